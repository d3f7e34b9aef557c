#!/usr/bin/env bash
# Stage 2: MFCC and CMVN statistics for the GMM, log-mel filterbanks for the networks (SET_hires).
nj=2
# shellcheck disable=SC2034
cmd=
help_message="Usage: local/native/make_feats.sh [options] PLAN
 e.g.: local/native/make_feats.sh --nj 2 exp/mini/plan.json      # of every set of the plan
  --nj N          processes (default: $nj)
  --cmd COMMAND   not used: the work is done here"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
# shellcheck source=local/untranscribed.sh
. local/untranscribed.sh || exit 1
read_heard
for set in $sets; do
  dir=$data/$set
  need 0 "$data" "$dir/wav.scp" "$dir/utt2spk" "$dir/text"
  read_by_feats "$dir"
  fp=$(fingerprint feats "rate=$sample_rate $audio" "${tables[@]}")
  if is_done "$dir" "$fp" && is_done "${dir}_hires" "$fp"; then echo "$0: features of $dir are up to date"; continue; fi
  # stages 1 and 4 map words that the lexicon lacks
  essence validate-data --lexicon "$data/dict/lexicon.txt" --allow-oov true --sample-rate "$sample_rate" "$dir"
  essence make-feats --nj "$(here)" --sample-rate "$sample_rate" "$dir"
  essence compute-cmvn "$dir"
  essence compute-cmvn "${dir}_hires"
  mark_done "${dir}_hires" "$fp" feats.scp cmvn.scp
  mark_done "$dir" "$fp" feats.scp cmvn.scp
done
for set in $untranscribed_sets $renderings; do
  dir=$data/${set}_cut
  cut_fingerprint "$set" native
  check_set "$set"
  if is_done "${dir}_hires" "$fp"; then echo "$0: features of $dir are up to date"; continue; fi
  cut_set "$set"
  essence make-feats --nj "$(here)" --kinds fbank --sample-rate "$sample_rate" "$dir"
  essence compute-cmvn "${dir}_hires"
  mark_done "${dir}_hires" "$fp" feats.scp cmvn.scp
done
same_frames
