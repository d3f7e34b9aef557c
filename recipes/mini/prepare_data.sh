#!/usr/bin/env bash
# Stage 0 of the corpus mini: synthetic telephone conversations.
size=default
seed=1
eval_seed=0
nj=2
help_message="Usage: recipes/mini/prepare_data.sh [options] DATA
 e.g.: recipes/mini/prepare_data.sh --size default --nj 2 data/mini
 leaves DATA/{train,dev,eval_swbd,eval_che}, DATA/dict, DATA/lm_text, DATA/speakers.json, DATA/lines.json and DATA/wav
  --size tiny|default|full   (default: $size)
  --seed N                   another seed, another corpus (default: $seed)
  --eval-seed N              another one, other test sets; the rest stays as it is (default: $eval_seed)
  --nj N                     processes (default: $nj)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
data=$1

mkdir -p "$data"
essence synth --size "$size" --seed "$seed" --eval-seed "$eval_seed" --nj "$nj" "$data"
for set in train dev eval_swbd eval_che; do
  essence validate-data --lexicon "$data/dict/lexicon.txt" "$data/$set"
done
echo "$0: the corpus is in $data"
