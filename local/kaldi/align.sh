#!/usr/bin/env bash
# A set aligned by the engine kaldi's GMM, as an alignment directory of this project.
help_message="Usage: local/kaldi/align.sh [options] DATA EXP SET OUT
 e.g.: local/kaldi/align.sh \$PWD/data/mini_kaldi \$PWD/exp/mini_kaldi eval_swbd \$PWD/exp/mini_kaldi/calibration/ali_eval_swbd
  --nj N          jobs (default: 2)
  --cmd COMMAND   how they run (default: run.pl)"
nj=2
cmd=run.pl
. local/kaldi/room.sh
[ $# -eq 4 ] || usage
data=$1 exp=$2 set=$3 out=$4
need 2 "$data/$set/feats.scp" "$data/$set/.done"
need 4 "$exp/gmm/final.mdl" "$exp/gmm/.done"
enter_room "$data" "$exp"
fp=$(fingerprint "kaldi ali" "$exp/gmm" "$data/$set")
name=$(readlink exp/final_gmm)
align_set "${name##*/}" "$set" "$out"
mark_done "$out" "$fp" ali.scp ali.ark num_pdfs priors.txt tree.txt failed.txt  # import-ali has counted the utterances
