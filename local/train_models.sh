#!/usr/bin/env bash
# Stages 5 and 8: trains models side by side, those that are not up to date.
help_message="Usage: local/train_models.sh [options] DATA ALI EXP SYSTEM...
 SYSTEM is NAME:MODEL for hard labels alone (EXP/NAME, conf/models/MODEL.yaml), or NAME:MODEL:SCP with soft targets
 too: a Posterior scp, or one of dense matrices where its name is full.scp.
 e.g.: local/train_models.sh --nj 2 data/mini/train_sp_hires exp/mini/ali exp/mini teacher_1:teacher_blstm \\
         student_essence:student_tdnn:exp/mini/essence_k20/post.scp
  --nj N             models trained at a time, one thread each (default: 2)
  --cmd COMMAND      how jobs run (default: local/jobs.sh)
  --launcher COMMAND what starts a training: essence, or local/torchrun.sh, several processes (default: essence)
  --seed N           (default: 1)
  --soft-weight A    weight of the soft loss (default: 0.9)
  --temperature T    (default: 1)
  --mass RULE        what a pruned target sums to: renorm, keep or residual (default: the model's, renorm)"
nj=2
cmd=local/jobs.sh
launcher=essence
seed=1
soft_weight=0.9
temperature=1
mass=
. local/stage.sh
[ $# -ge 4 ] || usage
data=$1 ali=$2 exp=$3
shift 3
need 3 "$data/feats.scp" "$data/.done"
need 4 "$ali/ali.scp" "$ali/.done"

list=$(mktemp "$exp/train_list.XXXXXX")
trap 'rm -f "$list"' EXIT
todo=() fps=()
for system in "$@"; do
  IFS=: read -r sys model soft <<<"$system"
  [ -f "conf/models/$model.yaml" ] || refuse "no conf/models/$model.yaml for '$system'"
  settings="train seed=$seed" inputs=("conf/models/$model.yaml" "$data" "$ali") args=()
  if [ -n "$soft" ]; then
    need 6-7 "$soft" "${soft%/*}/.done"
    kind=post
    if [ "${soft##*/}" = full.scp ]; then kind=dense; fi
    settings+=" soft=$kind weight=$soft_weight temperature=$temperature${mass:+ mass=$mass}"
    inputs+=("${soft%/*}")
    args=(--soft "$soft" --soft-kind "$kind" --soft-weight "$soft_weight" --temperature "$temperature" ${mass:+--mass "$mass"})
  fi
  fp=$(fingerprint "$settings" "${inputs[@]}")
  if is_done "$exp/$sys" "$fp"; then echo "$0: $exp/$sys is up to date"; continue; fi
  # What another setting left behind is not resumed; what this one left is.
  if [ "$(cat "$exp/$sys/.begun" 2>/dev/null)" != "$fp" ]; then rm -rf "${exp:?}/$sys"; mkdir -p "$exp/$sys"; echo "$fp" >"$exp/$sys/.begun"; fi
  rm -f "$exp/$sys/.done"
  # shellcheck disable=SC2086  # launcher is words
  printf '%q ' $launcher train --model "conf/models/$model.yaml" --seed "$seed" "${args[@]}" "$data" "$ali" "$exp/$sys" >>"$list"
  echo >>"$list"
  todo+=("$sys") fps+=("$fp")
done
[ ${#todo[@]} -gt 0 ] || exit 0

echo "$0: training ${todo[*]}; logs: $exp/*/train.log"
as_jobs "$list"
# shellcheck disable=SC2086  # cmd is words
$cmd --max-jobs-run "$nj" JOB=1:${#todo[@]} "$exp/log/train.JOB.log" bash "$list" JOB &
jobs=$!
trap 'trap "" INT TERM; kill $jobs 2>/dev/null; wait $jobs; rm -f "$list"; exit 130' INT TERM
# Meanwhile, where each model stands, whenever that has changed.
waited=0
declare -A said=()
while kill -0 $jobs 2>/dev/null; do
  sleep 1
  waited=$((waited + 1))
  [ $((waited % 30)) -eq 0 ] || continue
  for sys in "${todo[@]}"; do
    if [ ! -s "$exp/$sys/train.log" ] || [ -f "$exp/$sys/final.pt" ]; then continue; fi
    line=$(tail -n 1 "$exp/$sys/train.log")
    if [ "$line" != "${said[$sys]:-}" ]; then echo "  $sys: $line"; fi
    said[$sys]=$line
  done
done
failed=0 logs=()
wait $jobs || failed=1
for i in "${!todo[@]}"; do # those that were trained stay trained, whatever became of the others
  if [ "$failed" -eq 1 ] && ! [ -f "$exp/${todo[i]}/final.pt" ]; then logs+=("$exp/log/train.$((i + 1)).log"); continue; fi
  mark_done "$exp/${todo[i]}" "${fps[i]}" final.pt model.yaml priors.txt progress.jsonl info.json
  echo "$0: ${todo[i]}: $(tail -n 1 "$exp/${todo[i]}/train.log")"
done
[ "$failed" -eq 0 ] || fail "a training failed; logs: ${logs[*]:-$exp/log/train.*.log}"
