#!/usr/bin/env bash
# A set aligned by the engine kaldi's GMM, as an alignment directory of this project.
nj=2
cmd=run.pl
help_message="Usage: local/kaldi/align.sh [options] PLAN SET OUT
 e.g.: local/kaldi/align.sh exp/mini_kaldi/plan.json eval_swbd \$PWD/exp/mini_kaldi/calibration/ali_eval_swbd
  --nj N          jobs (default: $nj)
  --cmd COMMAND   how they run (default: $cmd)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 3 ] || usage
read_plan "$1"
set=$2 out=$3
need 2 "$data/$set" "$data/$set/feats.scp"
need 4 "$exp/gmm" "$exp/gmm/final.mdl"
enter_recipe_dir
fp=$(fingerprint ali kaldi "$exp/gmm" "$data/$set")
name=$(readlink exp/final_gmm)
align_set "${name##*/}" "$set" "$out"
mark_done "$out" "$fp" ali.scp ali.ark num_pdfs priors.txt tree.txt failed.txt  # import-ali has counted the utterances
