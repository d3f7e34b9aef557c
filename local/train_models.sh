#!/usr/bin/env bash
# Stages 5 and 8: trains the networks of some roles side by side, those that are not up to date.
nj=2
cmd=local/jobs.sh
launcher=essence
nnet3_cmd=
nnet3_gpu=
keep_targets=false
help_message="Usage: local/train_models.sh [options] PLAN ROLE...
 e.g.: local/train_models.sh --nj 2 exp/mini/plan.json teacher twin      # leaves exp/mini/SYSTEM/final.pt ...
 ROLE: teacher, twin or student
  --nj N             networks trained at a time, one thread each (default: $nj)
  --cmd COMMAND      how jobs run (default: $cmd)
  --launcher COMMAND what starts a training: essence, or local/torchrun.sh, several processes (default: $launcher)
  --nnet3-cmd COMMAND, --nnet3-gpu WHAT   --cmd and --gpu of local/kaldi/train_nnet3.sh, which trains teachers of nnet3
                     (default: that script's)
  --keep-targets true|false   keep soft targets that only points of an ablation learn from (default: false: when all are
                     trained they are removed)"
. local/stage.sh || exit 1
[ $# -ge 2 ] || usage
read_plan "$1"
shift
for role; do
  [[ $role =~ ^(teacher|twin|student)$ ]] || refuse "ROLE is teacher, twin or student, not '$role'"
done
# shellcheck source=local/trainings.sh
. local/trainings.sh || exit 1
read_trainings
need 3 "$train" "$train/feats.scp"
need 4 "$exp/ali" "$exp/ali/ali.scp"

list=$(mktemp "$exp/train_list.XXXXXX")
trap 'rm -f "$list"*' EXIT
todo=() fps=() nnet3=()
found=$(rows "systems[role=$(IFS='|'; echo "$*")]" "$training_fields")
while IFS= read -r row; do
  [ -n "$row" ] || continue
  IFS=$'\t' read -r sys model _ targets _ _ _ _ untranscribed _ <<<"$row"
  if [ "${model_kind[$model]}" = nnet3 ]; then nnet3+=("$sys:${model#*/}"); continue; fi
  for target in $targets $untranscribed; do
    [ "$target" = - ] || need 6-7 "${target_scp[$target]%/*}"
  done
  read_training "$row"
  if is_done "$exp/$sys" "$fp"; then echo "$0: $exp/$sys is up to date"; continue; fi
  resume "$exp/$sys" "$fp"
  # shellcheck disable=SC2086  # launcher is words
  printf '%q ' $launcher train "${args[@]}" "$train" "$exp/ali" "$exp/$sys" >>"$list"
  echo >>"$list"
  todo+=("$sys") fps+=("$fp")
done <<<"$found"

if [ ${#nnet3[@]} -gt 0 ]; then
  local/kaldi/train_nnet3.sh --nj "$nj" ${nnet3_cmd:+--cmd "$nnet3_cmd"} ${nnet3_gpu:+--gpu "$nnet3_gpu"} \
    "$plan" "${nnet3[@]}"
fi

# Meanwhile, from time to time: where each model stands, or of many how many are trained.
waited=0 said_count=0 started=$SECONDS
declare -A said=()
watch_models() {
  local sys line left trained=0
  waited=$((waited + 1))
  [ $((waited % 30)) -eq 0 ] || return 0
  for sys in "${todo[@]}"; do
    if [ -f "$exp/$sys/final.pt" ]; then trained=$((trained + 1)); continue; fi
    if [ ${#todo[@]} -gt 8 ] || [ ! -s "$exp/$sys/train.log" ]; then continue; fi
    line=$(tail -n 1 "$exp/$sys/train.log")
    if [ "$line" != "${said[$sys]:-}" ]; then echo "  $sys: $line"; fi
    said[$sys]=$line
  done
  if [ ${#todo[@]} -gt 8 ] && [ "$trained" -gt "$said_count" ]; then
    left=$(((SECONDS - started) * (${#todo[@]} - trained) / trained))
    echo "  $trained of ${#todo[@]} trained, about $(((left + 59) / 60)) min to go"
    said_count=$trained
  fi
}
failed=0 logs=()
if [ ${#todo[@]} -gt 0 ]; then
  echo "$0: training ${todo[*]}; logs: $exp/*/train.log"
  watch=watch_models run_jobs "$cmd" "$list" "$exp/log/train.JOB.log" || failed=1
fi
for i in "${!todo[@]}"; do # those that were trained stay trained, whatever became of the others
  if [ "$failed" -eq 1 ] && ! [ -f "$exp/${todo[i]}/final.pt" ]; then
    logs+=("$exp/log/train.$((i + 1)).log")
    continue
  fi
  mark_done "$exp/${todo[i]}" "${fps[i]}" final.pt model.yaml priors.txt progress.jsonl info.json
  echo "$0: ${todo[i]}: $(tail -n 1 "$exp/${todo[i]}/train.log")"
done
[ "$failed" -eq 0 ] || fail "a training failed; logs: ${logs[*]:-$exp/log/train.*.log}"
if [ "$keep_targets" = false ] && [[ " $* " == *" student "* ]]; then
  found=$(rows 'targets[keep=false]' scp)
  # their descriptions stay; stage 7 makes them again where they are missed
  for scp in $found; do rm -f "$exp/${scp%/*}"/*.ark; done
fi
