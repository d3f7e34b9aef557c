#!/usr/bin/env bash
# Stage 0: data preparation, by the recipe of the corpus.
nj=2
# shellcheck disable=SC2034
cmd=
help_message="Usage: local/prepare_data.sh [options] PLAN [RECIPE-OPTION...]
 e.g.: local/prepare_data.sh --nj 2 exp/fsdd/plan.json --fsdd-dir ~/fsdd
 leaves what recipes/CORPUS/prepare_data.sh leaves in DATA: a Kaldi data directory for each set, and dict/; where the
 plan has untranscribed sets also what recipes/CORPUS/prepare_untranscribed.sh leaves, if there is one
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
  ! -name 'RESULTS*' ! -name '*.pyc' ! -name train_gmm.sh ! -name check.sh \
  ! -name prepare_untranscribed.sh ! -path '*/slurm/*' | sort)
fp=$(fingerprint data "$size $* $given" "${scripts[@]}")
# What was changed by hand since is kept, and the stages that read it see its content.
up_to_date() {
  local bytes path edited='' damaged=''
  if is_done "$data" "$fp"; then echo "$0: $data is up to date"; return 0; fi
  if [ "$(marked "$data")" != "done $fp" ] || is_forced "$data"; then return 1; fi
  while read -r bytes path; do
    if [ ! -s "$data/$path" ]; then
      damaged=1
    elif [ "$(stat -c %s "$data/$path")" != "$bytes" ]; then
      if [ "$data/$path" -nt "$data/.marker" ]; then edited+=" $path"; else damaged=1; fi
    fi
  done < <(tail -n +2 "$data/.marker")
  [ -z "$damaged" ] || return 1
  echo "$0: $data is up to date, but for what was changed by hand and is kept:$edited" \
    "('./run.sh --force true' makes all anew)"
}
prepare() { # SCRIPT RECIPE-OPTION...
  local script=$recipe/$1 first
  shift
  read -r first <"$script" || true
  [[ $first != '#!'*sh* ]] || bash -n "$script" ||
    fail "$script is no script that bash can read: the line above says where"
  if [ "$script" = "$recipe/prepare_data.sh" ]; then # what was fetched is not fetched again
    mkdir -p "$data"
    rm -rf "$before"
    mkdir "$before"
    find "$data" -mindepth 1 -maxdepth 1 ! -name download ! -name .before -exec mv -t "$before" {} +
  fi
  ESSENCE_ENGINE=$engine "$script" --size "$size" --nj "$(here)" "$@" "$data" || fail "$script $(ended $?)"
}
before=$data/.before main='' more=''
up_to_date || main=1
# Audio without transcripts comes in addition, and does not make what there is stale.
if [ -n "$untranscribed_sets" ] && [ -e "$recipe/prepare_untranscribed.sh" ]; then
  more_fp=$(fingerprint untranscribed "$fp" "$recipe/prepare_untranscribed.sh")
  for set in $untranscribed_sets $renderings; do
    if [ ! -s "$data/$set/wav.scp" ]; then more=1; fi
  done
  if [ -n "$main" ] || ! is_done "$data/.untranscribed" "$more_fp"; then more=1; fi
fi
[ -n "$main$more" ] || exit 0
[ -z "$main" ] || prepare prepare_data.sh "$@"
[ -z "$more" ] || prepare prepare_untranscribed.sh "$@"
for set in $untranscribed_sets $renderings; do
  for f in wav.scp utt2spk; do
    [ -s "$data/$set/$f" ] || fail "set $set, which $recipe/recipe.conf names, has no $f: neither prepare_data.sh nor \
prepare_untranscribed.sh has left it"
  done
done
if [ -n "$more" ]; then mkdir -p "$data/.untranscribed"; mark_done "$data/.untranscribed" "$more_fp"; fi
[ -n "$main" ] || exit 0
# Audio that came out as it was keeps its time, so that features, and all that learnt from them, stand.
while IFS= read -r -d '' f; do
  if cmp -s "$data/$f" "$before/$f"; then touch -r "$before/$f" "$data/$f"; fi
done < <(cd "$data" && find . \( -path ./.before -o -path ./download \) -prune -o -type f -printf '%P\0')
rm -rf "$before"
outputs=(dict/lexicon.txt)
for set in $sets; do
  outputs+=("$set/wav.scp" "$set/utt2spk" "$set/text")
done
mark_done "$data" "$fp" "${outputs[@]}"
