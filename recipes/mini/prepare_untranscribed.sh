#!/usr/bin/env bash
# Stage 0 of the corpus mini, second part: audio without transcripts, where it is asked for.
size=default
seed=1
eval_seed=0
nj=2
help_message="Usage: recipes/mini/prepare_untranscribed.sh [options] DATA
 e.g.: recipes/mini/prepare_untranscribed.sh --size default --nj 2 data/mini
 leaves DATA/untranscribed_swbd (train's population) and DATA/untranscribed_che (accents and lines of eval_che, other
 voices), of each a rendering with less noise (untranscribed_swbd_clean ..), and their audio in DATA/wav
  --size, --seed, --eval-seed, --nj    as recipes/mini/prepare_data.sh has them"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
essence synth --untranscribed --size "$size" --seed "$seed" --eval-seed "$eval_seed" --nj "$nj" "$1"
