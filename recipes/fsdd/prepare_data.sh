#!/usr/bin/env bash
# Stage 0 of the corpus fsdd: connected digits from the Free Spoken Digit Dataset.
fsdd_dir=
heldout_speakers=
size=default
seed=1
nj=2
fsdd_url=https://github.com/Jakobovski/free-spoken-digit-dataset
help_message="Usage: recipes/fsdd/prepare_data.sh [options] DATA
 e.g.: recipes/fsdd/prepare_data.sh --fsdd-dir ~/free-spoken-digit-dataset/recordings data/fsdd
 leaves DATA/{train,dev,eval_swbd,eval_che}, DATA/dict and DATA/wav
  --fsdd-dir DIR             the dataset's recordings (default: cloned from its public home into DATA/download)
  --heldout-speakers \"A B\"   the speakers of eval_che (default: the last third of the names)
  --size tiny|default|full   (default: $size)
  --seed N                   (default: $seed)
  --nj N                     processes (default: $nj)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
data=$1

mkdir -p "$data"
if [ -z "$fsdd_dir" ]; then
  fsdd_dir=$data/download/free-spoken-digit-dataset
  if [ ! -d "$fsdd_dir" ]; then
    command -v git >/dev/null ||
      fail "git is not installed: install it, or name the recordings with --fsdd-dir"
    echo "$0: cloning $fsdd_url"
    rm -rf "$fsdd_dir.part"
    mkdir -p "$data/download"
    export GIT_TERMINAL_PROMPT=0
    if ! git -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=60 clone -q --depth 1 "$fsdd_url" "$fsdd_dir.part"; then
      rm -rf "$fsdd_dir.part"
      fail "$fsdd_url cannot be cloned (no network?): get it on a machine that can, and name its folder with --fsdd-dir"
    fi
    mv "$fsdd_dir.part" "$fsdd_dir"
  fi
fi
essence prepare-fsdd --size "$size" --seed "$seed" --nj "$nj" --heldout-speakers "$heldout_speakers" "$fsdd_dir" "$data"
for set in train dev eval_swbd eval_che; do
  essence validate-data --lexicon "$data/dict/lexicon.txt" "$data/$set"
done
echo "$0: the corpus is in $data"
