#!/usr/bin/env bash
# The whole recipe swbd from a login node of a Slurm cluster: Kaldi's steps and decoding as jobs of a partition of
# processors, every training on the GPUs of several nodes, the teachers' posteriors by jobs of one GPU. Arguments go to
# run.sh, such as: --stage 5 --fuse true
# Partitions, nodes and memory are examples: set the variables, or change them here.
unset CDPATH
cd -P "$(dirname "$0")/../../.." || exit 1
export train_launcher=local/torchrun.sh
gpus="local/slurm.sh --partition gpu --nodes 2 --gpu 4 --num-threads 20 --mem 64G --time 2-00:00:00"
export cuda_cmd=${cuda_cmd:-$gpus}
export forward_cmd=${forward_cmd:-local/slurm.sh --partition gpu --gpu 1 --num-threads 4 --mem 32G}
exec ./run.sh --corpus swbd --engine kaldi --nj 100 --cmd "${cmd:-local/slurm.sh --partition cpu --mem 8G}" "$@"
