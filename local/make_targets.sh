#!/usr/bin/env bash
# Stage 7: essence targets, pruned from the wide posteriors of stage 6, and the other soft targets that the plan names.
# Posteriors of audio without transcripts are mixed with those of their lattices first.
nj=2
cmd=local/jobs.sh
forward_cmd=
help_message="Usage: local/make_targets.sh [options] PLAN
 e.g.: local/make_targets.sh --nj 2 exp/mini/plan.json
 leaves of each target post.scp, post.ark (with --fuse true of run.sh post.N.ark) and essence.json, such as in
 exp/mini/essence_k20; logs: EXP/log/{targets,lattices}.*.log
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
wanted=$(rows 'targets[stage=7]' name,kind,select,scp,source,keep,combine,sets,teachers,options)
found=$(rows 'targets[stage=6]' scp)
for scp in $found; do need 6 "$exp/${scp%/*}"; done
of_lattices=${decoder/#kaldi-lattice/auto} # that one takes scores alone

# The targets that teachers make at once, those with lattices, or those that are pruned, from what was made before.
make_targets() { # forward|lattices|targets
  local name kind select scp source keep combine set teachers options part out stem table feats target_fp t i
  local models inputs work aligned how=$cmd todo=() fps=() outputs=() made_of=()
  : >"$list"
  while IFS=$'\t' read -r name kind select scp source keep combine set teachers options; do
    [ -n "$name" ] || continue
    part=targets
    if [ "$source" = - ]; then part=forward; elif [ "$select" = lattice ]; then part=lattices; fi
    [ "$part" = "$1" ] || continue
    out=$exp/${scp%/*} stem=${scp##*/} stem=${stem%.scp}
    table=ark,scp:$out/$stem.ark,$out/$stem.scp models=()
    feats=$(teacher_feats "$set")
    for t in $teachers; do models+=("$exp/$t"); done
    # shellcheck disable=SC2206  # options are words
    case $part in
      forward)
        inputs=("${models[@]}" "$feats") work=(essence dump-post --combine "$combine" --feats "scp:$feats/feats.scp")
        if [ "$kind" = dense ]; then work+=(--keep all); else work+=(--fuse $options); fi
        work+=("${models[@]}" "$table") ;;
      lattices)
        inputs=("${target_scp[$source]%/*}" "$exp/graph" "$exp/ali")
        work=(essence lattice-post --decoder "$of_lattices" $options "$exp/graph" "scp:${target_scp[$source]}"
          "$exp/ali/priors.txt" "$table") ;;
      targets)
        inputs=("${target_scp[$source]%/*}") work=(essence prune-post $options "scp:${target_scp[$source]}" "$table") ;;
    esac
    target_fp=$(fingerprint targets "$kind $options combine=$combine source=$source" "${inputs[@]}")
    if is_done "$out" "$target_fp"; then echo "$0: $out is up to date"; continue; fi
    if [ "$keep" = false ] && [ "$(marked "$out")" = "done $target_fp" ] && trained "$name"; then
      echo "$0: $out is not needed: all that learn from it are trained"
      continue
    fi
    begin "$out" "$target_fp"
    printf '%q ' "${work[@]}" >>"$list"
    # the job knows how many cores it has
    if [ $part = lattices ]; then printf '%s' "--nj \$((OMP_NUM_THREADS < $nj ? OMP_NUM_THREADS : $nj))" >>"$list"; fi
    echo >>"$list"
    todo+=("$out") fps+=("$target_fp") outputs+=("$stem") made_of+=("$feats")
  done <<<"$wanted"
  [ ${#todo[@]} -gt 0 ] || return 0
  if [ "$1" = forward ]; then how=${forward_cmd:-$cmd}; fi
  echo "$0: making ${#todo[@]} soft targets; logs: $exp/log/$1.*.log"
  run_jobs "$how" "$list" "$exp/log/$1.JOB.log" || fail "a job failed; its log is one of $exp/log/$1.*.log"
  for i in "${!todo[@]}"; do
    out=${todo[i]} stem=${outputs[i]}
    same_count "${made_of[i]}/feats.scp" "$out/$stem.scp"
    mark_done "$out" "${fps[i]}" "$stem.ark" "$stem.scp"
    aligned=''
    if [ "${made_of[i]}" = "$train" ]; then aligned=" ($(wc -l <"$exp/ali/ali.scp") aligned)"; fi
    echo "$0: soft targets of $(wc -l <"$out/$stem.scp") utterances$aligned are in $out"
  done
}
make_targets forward
if cut -f 3 <<<"$wanted" | grep -qx lattice; then
  "local/$engine/make_graph.sh" --nj "$nj" --cmd "$cmd" "$plan"
  make_targets lattices
fi
make_targets targets
[ "$fuse" = false ] || echo "$0: stage 6 has left the essence targets"
