# shellcheck shell=bash
# Sourced by stages that have to do with audio without transcripts. What is speech of SET is SET_cut, its features are
# SET_cut_hires; teachers may hear another rendering of it (teacher_hears of recipe.conf).
# shellcheck disable=SC2154  # data, exp, plan, train_set ... are read_plan's

declare -A heard=()
read_heard() {
  local set rendering found
  found=$(rows 'sets[role=untranscribed|rendering]' name,teacher_hears) || exit 1
  while IFS=$'\t' read -r set rendering; do
    [ -z "$set" ] || heard[$set]=$([ "$rendering" = - ] && echo "$set" || echo "$rendering")
  done <<<"$found"
}
# SET: the features that a student has of a set that is trained on, and those that teachers have of it
student_feats() { if [ "$1" = "$train_set" ]; then echo "$data/$1_sp_hires"; else echo "$data/$1_cut_hires"; fi; }
teacher_feats() { if [ "$1" = "$train_set" ]; then student_feats "$1"; else student_feats "${heard[$1]}"; fi; }

cut_fingerprint() { # SET MORE: of its features; sets fp
  local other all=() every=''
  need 0 "$data" "$data/$1/wav.scp" "$data/$1/utt2spk"
  for other in "$1" "${heard[$1]}"; do
    need 0 "$data/$other/wav.scp" "$data/$other/utt2spk"
    read_by_feats "$data/$other"
    all+=("${tables[@]}") every+=$audio
  done
  # shellcheck disable=SC2034  # the caller's
  fp=$(fingerprint feats "cut $2 rate=$sample_rate $every" "${all[@]}")
}

# Test sets may be drawn anew: then the set is checked again, and its features stand.
check_set() { # SET: refuses what dev or a test set has of it
  local check=() set file all=() done=$data/.checked_$1 fp
  for set in $dev_set; do check+=(--apart-from "$data/$set"); done
  for set in $test_sets; do check+=(--no-sentence-of "$data/$set"); done
  for set in "$1" $decode_sets; do
    for file in wav.scp utt2spk segments text; do
      if [ -e "$data/$set/$file" ]; then all+=("$data/$set/$file"); fi
    done
  done
  read_by_feats "$data/$1"
  fp=$(fingerprint feats "check rate=$sample_rate $audio" "${all[@]}")
  if is_done "$done" "$fp"; then return; fi
  essence validate-data --need-text false --sample-rate "$sample_rate" "${check[@]}" "$data/$1"
  mkdir -p "$done"
  mark_done "$done" "$fp"
}

cut_set() { # SET: leaves SET_cut
  essence segment --nj "$(here)" --sample-rate "$sample_rate" --audio-of "$data/${heard[$1]}" "$data/$1" "$data/$1_cut"
}

same_frames() { # of each set and of its rendering
  local set a b odd
  for set in $untranscribed_sets; do
    a=$data/${set}_cut_hires/utt2num_frames b=$data/${heard[$set]}_cut_hires/utt2num_frames
    odd=$(diff "$a" "$b" | grep '^[<>]' | head -n 1) || true
    [ -z "$odd" ] || fail "set $set and its rendering ${heard[$set]} differ in the frames of utterance ${odd#* } \
(utterance and frames): $a and $b must be alike"
  done
}
