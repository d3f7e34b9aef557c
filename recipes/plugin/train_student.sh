#!/usr/bin/env bash
# A student of ESSENCE's own trainer (PyTorch) on targets of essence_targets.sh.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
help_message="Usage: ESSENCE/recipes/plugin/train_student.sh [options] DATA TARGETS DIR
 e.g. (in egs/X/s5): ESSENCE/recipes/plugin/train_student.sh --cmd \"\$train_cmd\" --gpu true \\
        data/train_sp_hires exp/essence exp/student
 DATA: the student's features, frame by frame those of the targets; TARGETS: what essence_targets.sh left
 DIR gets final.pt, model.yaml, priors.txt ..., which decode_student.sh decodes ('essence forward' writes its scores)
  --model YAML        (default: ESSENCE/conf/models/student_tdnn.yaml)
  --set 'KEY=VALUE ..' settings that differ from it, such as 'optim.epochs=20'
  --soft-weight A     weight of the soft loss, 0 for a baseline (default: 0.9)
  --untranscribed DATA, --untranscribed-targets TARGETS
                      audio without transcripts, and what essence_targets.sh left of it
  --min-confidence P  leave out utterances of it whose targets have a best class below P in the mean (default: none)
  --seed N            (default: 1)
  --cmd COMMAND       how the training runs (default: run.pl where it is found, else on this machine)
  --gpu true|false    ask the queue for a GPU (default: false)"
model=
set=
soft_weight=0.9
untranscribed=
untranscribed_targets=
min_confidence=
seed=1
cmd=
gpu=false
# shellcheck source=recipes/plugin/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -eq 3 ] || usage
data=$1 targets=$2 dir=$3
model=${model:-$ESSENCE_ROOT/conf/models/student_tdnn.yaml}
[ -d "$targets/ali" ] ||
  fail "'$targets/ali' is missing: TARGETS is what essence_targets.sh leaves (of other posteriors give it the scp)"
files "$model" "$data"/{feats.scp,utt2spk} "$targets"/{post.scp,essence.json} \
  "$targets"/ali/{ali.scp,num_pdfs,priors.txt}
[ -z "$untranscribed$untranscribed_targets" ] ||
  files "$untranscribed"/{feats.scp,utt2spk} "$untranscribed_targets"/{post.scp,essence.json}
default_cmd
[ "$gpu" = false ] || cmd="$cmd --gpu 1"
shift_ms=$(essence get --default '' "$targets/essence.json" frame_shift_ms)
shift_ms=${shift_ms%.*}
[ -z "$shift_ms" ] || whole_number "$shift_ms" "frame_shift_ms of $targets/essence.json"

more=()
if [ -n "$untranscribed" ]; then more=("$untranscribed/feats.scp" "$untranscribed_targets"/{post.scp,essence.json}); fi
# an index alone may be that of other targets
fp=$(fingerprint train "plugin $set weight=$soft_weight seed=$seed${min_confidence:+ confidence=$min_confidence}" \
  "$model" "$data/feats.scp" "$targets"/{post.scp,essence.json} "$targets"/ali/{ali.scp,priors.txt} "${more[@]}")
if is_done "$dir" "$fp"; then echo "$0: $dir is up to date"; exit 0; fi
resume "$dir" "$fp"
mkdir -p "$dir/log" "$dir/data"
with_targets() { # DATA TARGETS OUT: the utterances that have targets
  local in n f
  mkdir -p "$3"
  only "$2/post.scp" "$1/feats.scp" >"$3/feats.scp"
  for f in utt2spk utt2uniq; do [ ! -f "$1/$f" ] || only "$3/feats.scp" "$1/$f" >"$3/$f"; done
  in=$(wc -l <"$1/feats.scp") n=$(wc -l <"$3/feats.scp")
  [ $((100 * n)) -ge $((95 * in)) ] || fail "$2/post.scp has targets of $n of the $in utterances of $1: other data?"
  echo "$0: $n of $in utterances of $1 have targets; log: $dir/log/train.log"
}
with_targets "$data" "$targets" "$dir/data"
args=(--model "$model" --seed "$seed")
[ -z "$shift_ms" ] || args+=(--set "frame_subsampling_factor=$((shift_ms / 10))")
for s in $set; do args+=(--set "$s"); done
if [ "$soft_weight" != 0 ]; then args+=(--soft "$targets/post.scp" --soft-weight "$soft_weight"); fi
if [ -n "$untranscribed" ]; then
  with_targets "$untranscribed" "$untranscribed_targets" "$dir/untranscribed"
  args+=(--untranscribed "$dir/untranscribed" "$untranscribed_targets/post.scp")
  [ -z "$min_confidence" ] || args+=(--min-confidence "$min_confidence")
fi
job_script "$dir/train.sh" '' "$(quoted essence train "${args[@]}" "$dir/data" "$targets/ali" "$dir")"
# shellcheck disable=SC2086  # cmd is words
$cmd "$dir/log/train.log" bash "$dir/train.sh" ||
  fail "training failed; log: $dir/log/train.log. The same command goes on from there"
if [ -f "$targets/ali/final.mdl" ]; then  # of Kaldi: what decode_student.sh, utils/mkgraph.sh and scoring take
  cp "$targets"/ali/{final.mdl,tree,phones.txt} "$dir"
  # A topology of one state a phone is one for rows of 30 ms, as in chain recipes.
  if [ "${shift_ms:-10}" -gt 10 ] && awk '$3 > 0 { exit 1 }' "$targets/ali/tree.txt"; then
    echo $((shift_ms / 10)) >"$dir/frame_subsampling_factor"
  fi
fi
mark_done "$dir" "$fp" final.pt model.yaml priors.txt
echo "$0: the student is in $dir"
