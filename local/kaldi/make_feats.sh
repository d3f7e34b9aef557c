#!/usr/bin/env bash
# Stage 2 of the engine kaldi: MFCC and CMVN by steps/, filterbanks for the networks (SET_hires).
help_message="Usage: local/kaldi/make_feats.sh [options] DATA EXP SET...
 e.g.: local/kaldi/make_feats.sh --nj 2 \$PWD/data/mini_kaldi \$PWD/exp/mini_kaldi train dev
 logs: EXP/kaldi/exp/make_mfcc
  --nj N          jobs (default: 2)
  --cmd COMMAND   how they run (default: run.pl)"
nj=2
cmd=run.pl
. local/kaldi/room.sh
[ $# -ge 3 ] || usage
data=$1 exp=$2
shift 2
need 0 "$data/.done"
for set in "$@"; do need 0 "$data/$set/wav.scp" "$data/$set/text"; done
enter_room "$data" "$exp"
for set in "$@"; do
  fp=$(fingerprint "kaldi feats" "$data" "$data/$set/wav.scp" "$data/$set/text" conf/mfcc.conf)
  if is_done "$data/$set" "$fp" && is_done "$data/${set}_hires" "$fp"; then
    echo "$0: features of $data/$set are up to date"
    continue
  fi
  essence validate-data --lexicon data/dict/lexicon.txt --allow-oov true "data/$set"   # Kaldi maps unknown words
  kaldi_feats "$set"
  mark_done "$data/${set}_hires" "$fp" feats.scp cmvn.scp
  mark_done "$data/$set" "$fp" feats.scp cmvn.scp
done
