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
  --seed N            (default: 1)
  --cmd COMMAND       how the training runs (default: run.pl where it is found, else on this machine)
  --gpu true|false    ask the queue for a GPU (default: false)"
model=
set=
soft_weight=0.9
seed=1
cmd=
gpu=false
# shellcheck source=recipes/plugin/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -eq 3 ] || usage
data=$1 targets=$2 dir=$3
model=${model:-$ESSENCE_ROOT/conf/models/student_tdnn.yaml}
[ -d "$targets/ali" ] || fail "'$targets/ali' is missing: TARGETS is what essence_targets.sh leaves (of other posteriors give it the scp)"
files "$model" "$data"/{feats.scp,utt2spk} "$targets"/{post.scp,essence.json} "$targets"/ali/{ali.scp,num_pdfs,priors.txt}
default_cmd
[ "$gpu" = false ] || cmd="$cmd --gpu 1"
shift_ms=$(essence get --default '' "$targets/essence.json" frame_shift_ms)
shift_ms=${shift_ms%.*}
[ -z "$shift_ms" ] || whole_number "$shift_ms" "frame_shift_ms of $targets/essence.json"

fp=$(fingerprint train "plugin $set weight=$soft_weight seed=$seed" "$model" "$data/feats.scp" "$targets"/{post.scp,essence.json} \
  "$targets"/ali/{ali.scp,priors.txt})  # an index alone may be that of other targets
if is_done "$dir" "$fp"; then echo "$0: $dir is up to date"; exit 0; fi
resume "$dir" "$fp"
mkdir -p "$dir/log" "$dir/data"
# The utterances that have targets
only "$targets/post.scp" "$data/feats.scp" >"$dir/data/feats.scp"
for f in utt2spk utt2uniq; do [ ! -f "$data/$f" ] || only "$dir/data/feats.scp" "$data/$f" >"$dir/data/$f"; done
in=$(wc -l <"$data/feats.scp") n=$(wc -l <"$dir/data/feats.scp")
[ $((100 * n)) -ge $((95 * in)) ] || fail "$targets/post.scp has targets of $n of the $in utterances of $data: other data?"
echo "$0: $n of $in utterances of $data have targets; log: $dir/log/train.log"
args=(--model "$model" --seed "$seed")
[ -z "$shift_ms" ] || args+=(--set "frame_subsampling_factor=$((shift_ms / 10))")
for s in $set; do args+=(--set "$s"); done
if [ "$soft_weight" != 0 ]; then args+=(--soft "$targets/post.scp" --soft-weight "$soft_weight"); fi
job_script "$dir/train.sh" '' "$(quoted essence train "${args[@]}" "$dir/data" "$targets/ali" "$dir")"
# shellcheck disable=SC2086  # cmd is words
$cmd "$dir/log/train.log" bash "$dir/train.sh" || fail "training failed; log: $dir/log/train.log. The same command goes on from there"
if [ -f "$targets/ali/final.mdl" ]; then  # of Kaldi: what decode_student.sh, utils/mkgraph.sh and scoring take
  cp "$targets"/ali/{final.mdl,tree,phones.txt} "$dir"
  # A topology of one state a phone is one for rows of 30 ms, as in chain recipes.
  if [ "${shift_ms:-10}" -gt 10 ] && awk '$3 > 0 { exit 1 }' "$targets/ali/tree.txt"; then
    echo $((shift_ms / 10)) >"$dir/frame_subsampling_factor"
  fi
fi
mark_done "$dir" "$fp" final.pt model.yaml priors.txt
echo "$0: the student is in $dir"
