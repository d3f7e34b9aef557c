#!/usr/bin/env bash
# Stage 10, first part: are the posteriors of twins, ensemble and students as sure as they are right, and how near are
# they to the ensemble's? A forced alignment of the test sets by the GMM says what is right, and errs, too: systems may
# be compared, figures not taken for truth.
nj=2
cmd=local/jobs.sh
help_message="Usage: local/calibrate.sh [options] PLAN
 e.g.: local/calibrate.sh --nj 2 exp/mini/plan.json
 leaves EXP/calibration/{calibration.json,ali_SET}
  --nj N                   processes (default: $nj)
  --cmd COMMAND            how jobs run (default: $cmd)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
out=$exp/calibration
need 4 "$exp/gmm"
align() { # SET OUT: by the GMM of either engine
  if [ "$engine" = kaldi ]; then
    local/kaldi/align.sh --nj "$nj" --cmd "$cmd" "$plan" "$1" "$2"
  else
    essence gmm-align --nj "$(here)" --map-oov true "$data/$1" "$data/lang" "$exp/gmm" "$2"
  fi
}
inputs=("$exp/gmm" "$data/lang") args=() tables=() names='' ensemble='' dumps=()
for set in $test_sets; do
  need 2 "$data/$set" "$data/$set/feats.scp" "$data/${set}_hires"
  inputs+=("$data/$set" "$data/${set}_hires")
done
twins=" $(rows 'systems[point=false]' twin | tr '\n' ' ')"
found=$(rows 'systems[point=false]' name,role,teachers)
while IFS=$'\t' read -r sys role teachers; do
  models=("$exp/$sys")
  case $role in
    gmm) continue ;;
    teacher) [[ $twins == *" $sys "* ]] || continue ;;
    ensemble) ensemble=$sys models=(); for m in $teachers; do models+=("$exp/$m"); done ;;
  esac
  need 5-8 "${models[@]}"
  inputs+=("${models[@]}") names+=" $sys"
  for set in $test_sets; do
    forward=(essence forward --allow-pipes "${ESSENCE_ALLOW_PIPES:-true}" --output logprob --combine "$combine"
      "${models[@]}" "$data/${set}_hires")
    if [ "$role" = ensemble ]; then # it is read once for each of the others
      dumps+=("$(printf '%q ' "${forward[@]}" "ark:$out/$sys.$set.ark")")
      tables+=("$sys=ark:$out/$sys.$set.ark")
    else
      tables+=("$sys=ark:$(printf '%q ' "${forward[@]}" ark:-) |")
    fi
  done
done <<<"$found"
fp=$(fingerprint calibration "$names sets=$test_sets combine=$combine" "${inputs[@]}")
if is_done "$out" "$fp"; then echo "$0: $out is up to date"; exit 0; fi
begin "$out" "$fp"
for set in $test_sets; do
  if ! align "$set" "$out/ali_$set"; then
    echo "$0: warning: without an alignment of $set the report says nothing of calibration" >&2
    exit 0
  fi
  args+=(--ali "$out/ali_$set/ali.scp")
done
if [ -n "$ensemble" ]; then
  list=$(mktemp "$out/list.XXXXXX")
  printf '%s\n' "${dumps[@]}" >"$list"
  run_jobs "$cmd" "$list" "$out/log/ensemble.JOB.log" || fail "a job failed; its log is one of $out/log/ensemble.*.log"
  rm -f "$list"*
  args+=(--reference "$ensemble")
fi
if [ "$cmd" = local/jobs.sh ]; then args+=(--nj "$(here)"); fi # elsewhere a job has one core
# the pipes are those above, and what they read may have none if so it was said
one_job "$out/log/calibration.log" essence calibration --allow-pipes true "${args[@]}" "$out/calibration.json" \
  "${tables[@]}"
rm -f "$out"/*.ark
mark_done "$out" "$fp" calibration.json
