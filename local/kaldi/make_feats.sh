#!/usr/bin/env bash
# Stage 2 of the engine kaldi: MFCC and CMVN by steps/, filterbanks for the networks (SET_hires).
nj=2
cmd=run.pl
help_message="Usage: local/kaldi/make_feats.sh [options] PLAN
 e.g.: local/kaldi/make_feats.sh --nj 2 exp/mini_kaldi/plan.json      # of every set of the plan
 logs: EXP/kaldi/exp/make_mfcc
  --nj N          jobs (default: $nj)
  --cmd COMMAND   how they run (default: $cmd)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
need 0 "$data"
enter_recipe_dir
for set in $sets; do
  need 0 "$data/$set/wav.scp" "$data/$set/text"
  read_by_feats "$data/$set"
  fp=$(fingerprint feats "kaldi rate=$sample_rate $audio" "${tables[@]}" conf/mfcc.conf)
  if is_done "$data/$set" "$fp" && is_done "$data/${set}_hires" "$fp"; then
    echo "$0: features of $data/$set are up to date"
    continue
  fi
  # Kaldi maps unknown words
  essence validate-data --lexicon data/dict/lexicon.txt --sample-rate "$sample_rate" --allow-oov true --wav-only true \
    "data/$set"
  kaldi_feats "$set"
  mark_done "$data/${set}_hires" "$fp" feats.scp cmvn.scp
  mark_done "$data/$set" "$fp" feats.scp cmvn.scp
done
# Of audio without transcripts, only filterbanks
# shellcheck source=local/untranscribed.sh
. "$ESSENCE_ROOT/local/untranscribed.sh" || exit 1
read_heard
for set in $untranscribed_sets $renderings; do
  cut_fingerprint "$set" kaldi
  check_set "$set"
  if is_done "$data/${set}_cut_hires" "$fp"; then echo "$0: features of $data/${set}_cut are up to date"; continue; fi
  cut_set "$set"
  fbank_feats "${set}_cut"
  mark_done "$data/${set}_cut_hires" "$fp" feats.scp cmvn.scp
done
same_frames
