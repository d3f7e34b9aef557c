#!/usr/bin/env bash
# The ablation: the same student on other soft targets, weights, temperatures and seeds. Everything upstream is shared:
# the teachers ran once, their wide archive is pruned again; points that the main run has are taken from there.
help_message="Usage: local/run_ablation.sh [options] DATA EXP
 e.g.: local/run_ablation.sh --nj 2 data/mini exp/mini     # after ./run.sh; or: ./run.sh --ablation true
 leaves EXP/ablation/{RESULTS,results.json} and EXP/ablation/POINT/seed_N/student
  --grid YAML              what to run (default: conf/ablation.yaml)
  --nj N                   points at a time, one thread each (default: 2)
  --cmd COMMAND            how jobs run (default: local/jobs.sh)
  --forward-cmd COMMAND    how points are trained, where that is another, such as one with a GPU (default: --cmd)
  --student NAME           file of conf/models without .yaml (default: student_tdnn)
  --top-k N, --soft-weight A, --temperature T   what points start from (default: conf/essence.yaml)
  --decoder k2|kaldi|auto|kaldi-lattice  (default: auto)
  --rescore-lm DIR         rescore the words with this n-gram, as the main run did (default: do not)
  --train-set NAME         (default: train)
  --dev-set NAME           (default: dev)
  --eval-sets 'A B'        (default: eval_swbd eval_che)
  --keep-targets true|false keep the soft targets (default: false: what no point waits for is removed)
  --plan true|false        say what would be done and how long it would take, no more (default: false)
  --point POINT/seed_N     run this one alone"
grid=conf/ablation.yaml
nj=2
cmd=local/jobs.sh
forward_cmd=
student=student_tdnn
top_k=
soft_weight=
temperature=
decoder=auto
rescore_lm=
train_set=train
dev_set=dev
eval_sets="eval_swbd eval_che"
keep_targets=false
plan=false
point=
. local/stage.sh
[ $# -eq 2 ] || usage
data=$1 exp=$2
out=$exp/ablation train=$data/${train_set}_sp_hires

# A line of points.tsv as variables; paths, where its targets and its own files lie.
read_point() {
  IFS=$'\t' read -r name target taken seconds seed weight temp mass <<<"$1"
  dir=$out/$name soft=
  case $target in
    -) ;;
    all) soft=$exp/posteriors/full.scp ;;
    all_*) soft=$out/targets/$target/full.scp ;;
    *) soft=$out/targets/$target/post.scp ;;
  esac
}

# One point, from targets to words; stages 8 and 9 know what of it is up to date.
run_point() {
  local system=student:$student line
  line=$(awk -F '\t' -v p="$1" '$1 == p' "$out/points.tsv")
  [ -n "$line" ] || fail "no point '$1' in '$out/points.tsv'"
  read_point "$line"
  [ -z "$soft" ] || system+=:$soft
  mkdir -p "$dir"
  local/train_models.sh --nj 1 --seed "$seed" --soft-weight "$weight" --temperature "$temp" --mass "$mass" \
    "$train" "$exp/ali" "$dir" "$system" || exit 1
  local/decode.sh --nj 1 --decoder "$decoder" --dev-set "$dev_set" --eval-sets "$eval_sets" --graph "$exp/graph" \
    --rescore-lm "$rescore_lm" --scales "$exp/scales.json" "$data" "$dir" student || exit 1
  mark_done "$dir" "$(point_fingerprint)" student/final.pt "student/decode_$dev_set/.done"
}
# What a point depends on; of its targets the command that makes them counts, since they are removed afterwards.
point_fingerprint() {
  local made
  made=$(awk -F '\t' -v t="$target" '$1 == t {print $3}' "$out/targets.tsv")
  fingerprint "seed=$seed weight=$weight T=$temp mass=$mass decoder=$decoder $made" "${inputs[@]}"
}

need 3 "$train/feats.scp" "$train/.done"
need 6 "$exp/posteriors/.done" "$exp/posteriors/wide.scp"
need 9 "$exp/graph/.done" "$exp/scales.json"
inputs=("conf/models/$student.yaml" "$train" "$exp/ali" "$exp/posteriors" conf/decode.yaml "$exp/graph")
inputs+=("$exp/scales.json")
for set in $dev_set $eval_sets; do inputs+=("$data/${set}_hires"); done
if [ -n "$rescore_lm" ]; then
  need 1 "$rescore_lm/.done"
  inputs+=("$rescore_lm")
fi
if [ -n "$point" ]; then run_point "$point"; exit 0; fi

echo "$0: grid $grid"
args=(${top_k:+--set "top_k=$top_k"} ${soft_weight:+--set "soft_weight=$soft_weight"}
  ${temperature:+--set "temperature=$temperature"})
[ -z "$rescore_lm" ] || args+=(--rescored)
essence plan-ablation --model "conf/models/$student.yaml" --feats "$train/feats.scp" "${args[@]}" "$grid" "$exp" "$out"

# What is left to do, and what it takes.
todo=() forecast=0 unknown=0
declare -A wanted=()
while read -r line; do
  read_point "$line"
  [ "$taken" = - ] || continue
  if is_done "$dir" "$(point_fingerprint)"; then continue; fi
  todo+=("$name")
  wanted[$target]=1
  if [ "$seconds" = - ]; then unknown=1; else forecast=$((forecast + seconds)); fi
done <"$out/points.tsv"
makes=() disk=0
while IFS=$'\t' read -r name bytes command; do
  if [ "$command" = - ] || [ -z "${wanted[$name]:-}" ]; then continue; fi
  if is_done "$out/targets/$name" "$(fingerprint "$command" "$exp/posteriors")"; then continue; fi
  makes+=("$name")
  disk=$((disk + bytes / 1000000))
done <"$out/targets.tsv"
left="about $(((forecast / nj + 59) / 60)) minutes, $nj at a time, if they take what the main run took"
[ $unknown -eq 0 ] || left="how long is not known: nothing like it has been trained yet"
echo "$0: ${#todo[@]} of $(wc -l <"$out/points.tsv") trainings to do: $left"
echo "$0: ${#makes[@]} soft targets to make, about $disk MB"
if [ "$plan" = true ]; then
  [ ${#todo[@]} -eq 0 ] || printf '  %s\n' "${todo[@]}"
  exit 0
fi

list=$(mktemp "$out/list.XXXXXX")
trap 'rm -f "$list"' EXIT
run_list() { # COMMAND LOG-NAME: starts the lines of $list as jobs; what stops this script stops them
  local n
  n=$(wc -l <"$list")
  as_jobs "$list"
  # shellcheck disable=SC2086  # cmd is words
  $1 --max-jobs-run "$nj" JOB=1:"$n" "$out/log/$2.JOB.log" bash "$list" JOB &
  jobs=$!
  trap 'trap "" INT TERM; kill $jobs 2>/dev/null; wait $jobs; rm -f "$list"; exit 130' INT TERM
}
if [ ${#makes[@]} -gt 0 ]; then
  for name in "${makes[@]}"; do
    rm -rf "$out/targets/$name"
    mkdir -p "$out/targets/$name"
    awk -F '\t' -v t="$name" '$1 == t {print $3}' "$out/targets.tsv" >>"$list"
  done
  echo "$0: making soft targets; logs: $out/log/target.*.log"
  run_list "$cmd" target
  wait $jobs
  for name in "${makes[@]}"; do
    kind=post
    case $name in all_*) kind=full ;; esac
    same_count "$exp/posteriors/wide.scp" "$out/targets/$name/$kind.scp"
    command=$(awk -F '\t' -v t="$name" '$1 == t {print $3}' "$out/targets.tsv")
    mark_done "$out/targets/$name" "$(fingerprint "$command" "$exp/posteriors")" $kind.ark $kind.scp
  done
fi

failed=0
if [ ${#todo[@]} -gt 0 ]; then
  : >"$list"
  for name in "${todo[@]}"; do
    rm -f "$out/$name/.done"
    printf '%q ' local/run_ablation.sh --point "$name" --student "$student" --decoder "$decoder" \
      --rescore-lm "$rescore_lm" --train-set "$train_set" --dev-set "$dev_set" --eval-sets "$eval_sets" "$data" "$exp" >>"$list"
    echo >>"$list"
  done
  echo "$0: training and decoding; logs: $out/log/point.*.log"
  started=$SECONDS said=-1
  run_list "${forward_cmd:-$cmd}" point
  while kill -0 $jobs 2>/dev/null; do
    sleep 2
    done=0
    for name in "${todo[@]}"; do [ ! -f "$out/$name/.done" ] || done=$((done + 1)); done
    if [ $done -ne $said ]; then
      togo="first results take longest to come"
      [ $done -eq 0 ] || togo="about $((((SECONDS - started) * (${#todo[@]} - done) / done + 59) / 60)) min to go"
      echo "  $done of ${#todo[@]} done, $togo"
      said=$done
    fi
  done
  wait $jobs || failed=1
fi
if [ "$keep_targets" = false ] && [ $failed -eq 0 ]; then
  # The description of a target stays; what it describes can be made again.
  find "$out/targets" -name '*.ark' -delete 2>/dev/null || true
fi
essence report-ablation --dev-set "$dev_set" --data-dir "$data" "$exp" "$out"
cat "$out/RESULTS"
[ $failed -eq 0 ] || fail "a point failed; logs: $out/log/point.*.log; the same command goes on from here"
