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
  if [[ $name == *-dir ]]; then given+=$(find -L "$folder" -type f -printf '%P %s %T@\n' | sort); fi
done < <(printf '%s %s\n' "$@")
scripts=() # what prepare_data.sh may call: all of the recipe but for large files and what other stages call
while IFS= read -r f; do scripts+=("$f"); done < <(find -L "$recipe" -type f -size -2048k ! -name '.*' ! -name '*.md' \
  ! -name 'RESULTS*' ! -name '*.pyc' ! -name train_gmm.sh ! -name check.sh ! -path '*/slurm/*' | sort)
fp=$(fingerprint data "$size $* $given" "${scripts[@]}")
if is_done "$data" "$fp"; then echo "$0: $data is up to date"; exit 0; fi
# What was changed by hand since is kept, and the stages that read it see its content.
edited='' damaged=''
if [ "$(marked "$data")" = "done $fp" ] && ! is_forced "$data"; then
  while read -r bytes path; do
    if [ ! -s "$data/$path" ]; then
      damaged=1
    elif [ "$(stat -c %s "$data/$path")" != "$bytes" ]; then
      if [ "$data/$path" -nt "$data/.marker" ]; then edited+=" $path"; else damaged=1; fi
    fi
  done < <(tail -n +2 "$data/.marker")
  if [ -z "$damaged" ]; then
    echo "$0: $data is up to date, but for what was changed by hand and is kept:$edited ('./run.sh --force true' makes all anew)"
    exit 0
  fi
fi
read -r first <"$recipe/prepare_data.sh" || true
[[ $first != '#!'*sh* ]] || bash -n "$recipe/prepare_data.sh" || fail "$recipe/prepare_data.sh is no script that bash can read: the line above says where"
# what was fetched is not fetched again
mkdir -p "$data"
before=$data/.before
rm -rf "$before"
mkdir "$before"
find "$data" -mindepth 1 -maxdepth 1 ! -name download ! -name .before -exec mv -t "$before" {} +
"$recipe/prepare_data.sh" --size "$size" --nj "$(here)" "$@" "$data" || fail "$recipe/prepare_data.sh $(ended $?)"
# Audio that came out as it was keeps its time, so that features, and all that learnt from them, stand.
while IFS= read -r -d '' f; do
  if cmp -s "$data/$f" "$before/$f"; then touch -r "$before/$f" "$data/$f"; fi
done < <(cd "$data" && find . \( -path ./.before -o -path ./download \) -prune -o -type f -printf '%P\0')
rm -rf "$before"
outputs=(dict/lexicon.txt)
for set in $sets; do
  outputs+=("$set/wav.scp" "$set/utt2spk")
  [[ " $untranscribed_sets " == *" $set "* ]] || outputs+=("$set/text")
done
mark_done "$data" "$fp" "${outputs[@]}"
