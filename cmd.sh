# shellcheck shell=bash
# How jobs run. Kaldi's contract: $cmd [--mem 4G] [--gpu 1] [--max-jobs-run 2] [JOB=1:8] LOG COMMAND...
# local/jobs.sh runs them on this machine, local/slurm.sh on a Slurm cluster (./run.sh --cmd "local/slurm.sh --partition
# all"); Kaldi's queue.pl and slurm.pl will do, too. Work that a stage does without $cmd runs where ./run.sh runs.
export cmd=${cmd:-local/jobs.sh}
# Training alone, where it is to have GPUs: cuda_cmd="local/slurm.sh --partition gpu --gpu 1" ./run.sh --cmd ...
export cuda_cmd=${cuda_cmd:-$cmd}
# Jobs that are to have a GPU each: the teachers' answers to the training data (stage 6), the points of an ablation.
export forward_cmd=${forward_cmd:-$cmd}
# --use-gpu of Kaldi's own trainer (--teachers nnet3): no, yes or wait; it asks $cmd for --gpu 1 by itself.
export nnet3_gpu=${nnet3_gpu:-no}
# What starts a training: 'essence', one process; local/torchrun.sh, one process per GPU on every node that the job has.
export train_launcher=${train_launcher:-essence}
