#!/usr/bin/env bash
# Stage 7: essence targets, pruned from the wide posteriors of stage 6, and the other soft targets that the plan names.
nj=2
cmd=local/jobs.sh
forward_cmd=
help_message="Usage: local/make_targets.sh [options] PLAN
 e.g.: local/make_targets.sh --nj 2 exp/mini/plan.json
 leaves of each target post.scp, post.ark (with --fuse true of run.sh post.N.ark) and essence.json, such as in
 exp/mini/essence_k20; logs: EXP/log/targets.*.log
  --nj N                  targets at a time (default: $nj)
  --cmd COMMAND           how jobs run (default: $cmd)
  --forward-cmd COMMAND   how those run that run teachers, such as one with GPUs (default: --cmd)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
# shellcheck source=local/trainings.sh
. local/trainings.sh || exit 1
read_trainings

# What only points of an ablation learn from is made when one of them waits for it.
trained() { # TARGET: are all systems that learn from it?
  local row targets untranscribed
  while IFS= read -r row; do
    IFS=$'\t' read -r _ _ _ targets _ _ _ _ untranscribed _ <<<"$row"
    [[ " $targets $untranscribed " == *" $1 "* ]] || continue
    read_training "$row"
    is_done "$exp/$sys" "$fp" || return 1
  done < <(rows 'systems[role=student]' "$training_fields")
}
# Every label may be wanted only now, such as by a point of an ablation: stage 6 need not run again for that.
local/dump_posteriors.sh --kind dense --nj "$nj" --cmd "$cmd" ${forward_cmd:+--forward-cmd "$forward_cmd"} "$plan" ||
  exit 1
list=$(mktemp "$exp/target_list.XXXXXX")
trap 'rm -f "$list"*' EXIT
todo=() fps=() outputs=() made_of=()
: >"$list.forward"
found=$(rows 'targets[stage=7]' name,kind,scp,source,keep,combine,sets,teachers,options)
while IFS=$'\t' read -r name kind scp source keep combine set teachers options; do
  [ -n "$name" ] || continue
  out=$exp/${scp%/*} stem=${scp##*/} stem=${stem%.scp}
  table=ark,scp:$out/$stem.ark,$out/$stem.scp models=()
  for t in $teachers; do models+=("$exp/$t"); done
  feats=$(teacher_feats "$set")
  inputs=("${models[@]}" "$feats") dump=(essence dump-post --combine "$combine" --feats "scp:$feats/feats.scp")
  if [ "$source" != - ]; then
    inputs=("${target_scp[$source]%/*}")
    need 6 "${inputs[@]}"
  fi
  target_fp=$(fingerprint targets "$kind $options combine=$combine source=$source" "${inputs[@]}")
  if is_done "$out" "$target_fp"; then echo "$0: $out is up to date"; continue; fi
  if [ "$keep" = false ] && [ "$(marked "$out")" = "done $target_fp" ] && trained "$name"; then
    echo "$0: $out is not needed: all that learn from it are trained"
    continue
  fi
  begin "$out" "$target_fp"
  # shellcheck disable=SC2086  # options are words
  if [ "$source" != - ]; then
    printf '%q ' essence prune-post $options "scp:${target_scp[$source]}" "$table" >>"$list"
    echo >>"$list"
  elif [ "$kind" = dense ]; then
    printf '%q ' "${dump[@]}" --keep all "${models[@]}" "$table" >>"$list.forward"
    echo >>"$list.forward"
  else
    printf '%q ' "${dump[@]}" --fuse $options "${models[@]}" "$table" >>"$list.forward"
    echo >>"$list.forward"
  fi
  todo+=("$out") fps+=("$target_fp") outputs+=("$stem") made_of+=("$feats")
done <<<"$found"
[ ${#todo[@]} -eq 0 ] || echo "$0: making ${#todo[@]} soft targets; logs: $exp/log/targets.*.log"
if [ -s "$list" ]; then
  run_jobs "$cmd" "$list" "$exp/log/targets.JOB.log" || fail "a job failed; its log is one of $exp/log/targets.*.log"
fi
if [ -s "$list.forward" ]; then
  run_jobs "${forward_cmd:-$cmd}" "$list.forward" "$exp/log/targets.forward.JOB.log" ||
    fail "a job failed; its log is one of $exp/log/targets.forward.*.log"
fi
if [ "$fuse" = true ]; then
  found=$(rows 'targets[stage=6]' scp)
  for scp in $found; do need 6 "$exp/${scp%/*}"; done
  echo "$0: stage 6 has left the essence targets"
  exit 0
fi
in=$(wc -l <"$exp/ali/ali.scp")
for i in "${!todo[@]}"; do
  out=${todo[i]} stem=${outputs[i]}
  same_count "${made_of[i]}/feats.scp" "$out/$stem.scp"
  mark_done "$out" "${fps[i]}" "$stem.ark" "$stem.scp"
  aligned=''
  if [ "${made_of[i]}" = "$train" ]; then aligned=" ($in aligned)"; fi
  echo "$0: soft targets of $(wc -l <"$out/$stem.scp") utterances$aligned are in $out"
done
