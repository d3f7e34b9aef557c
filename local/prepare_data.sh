#!/usr/bin/env bash
# Stage 0: data preparation, by the recipe of the corpus.
nj=2
# shellcheck disable=SC2034
cmd=
help_message="Usage: local/prepare_data.sh [options] PLAN [RECIPE-OPTION...]
 e.g.: local/prepare_data.sh --nj 2 exp/fsdd/plan.json --fsdd-dir ~/fsdd
 leaves what recipes/CORPUS/prepare_data.sh leaves in DATA: a Kaldi data directory for each set, and dict/
 RECIPE-OPTIONs go to that script.
  --nj N          processes (default: $nj)
  --cmd COMMAND   not used: the work is done here"
. local/stage.sh || exit 1
[ $# -ge 1 ] || usage
read_plan "$1"
shift
recipe=recipes/$corpus
given='' # what the folders that are named hold
while read -r name folder; do
  if [[ $name == *-dir ]]; then given+=$(find -L "$folder" -type f -printf '%P %s\n' | sort); fi
done < <(printf '%s %s\n' "$@")
fp=$(fingerprint data "$size $* $given" "$recipe/prepare_data.sh" "$recipe/recipe.conf")
if is_done "$data" "$fp"; then echo "$0: $data is up to date"; exit 0; fi
# what was fetched is not fetched again
mkdir -p "$data"
find "$data" -mindepth 1 -maxdepth 1 ! -name download -exec rm -rf {} +
"$recipe/prepare_data.sh" --size "$size" --nj "$(here)" "$@" "$data"
outputs=(dict/lexicon.txt)
for set in $sets; do
  outputs+=("$set/wav.scp" "$set/utt2spk")
  [[ " $untranscribed_sets " == *" $set "* ]] || outputs+=("$set/text")
done
mark_done "$data" "$fp" "${outputs[@]}"
