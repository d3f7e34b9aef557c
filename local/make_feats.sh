#!/usr/bin/env bash
# Stage 2: MFCC and CMVN statistics for the GMM, log-mel filterbanks for the networks (SET_hires).
help_message="Usage: local/make_feats.sh [options] DATA SET...
 e.g.: local/make_feats.sh --nj 2 data/mini train dev eval_swbd eval_che
  --nj N    processes (default: 2)"
nj=2
. local/stage.sh
[ $# -ge 2 ] || usage
data=$1
shift
for set in "$@"; do
  dir=$data/$set
  need 0 "$dir/wav.scp" "$dir/text" "$data/.done"
  fp=$(fingerprint "feats" "$data" "$dir/wav.scp" "$dir/text")
  if is_done "$dir" "$fp" && is_done "${dir}_hires" "$fp"; then echo "$0: features of $dir are up to date"; continue; fi
  essence validate-data --lexicon "$data/dict/lexicon.txt" "$dir"
  essence make-feats --nj "$nj" "$dir"
  essence compute-cmvn "$dir"
  essence compute-cmvn "${dir}_hires"
  mark_done "${dir}_hires" "$fp" feats.scp cmvn.scp
  mark_done "$dir" "$fp" feats.scp cmvn.scp
done
