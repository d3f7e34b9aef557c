#!/usr/bin/env bash
# Stage 10: calibration, word error rates, significance, RESULTS and the report; of an ablation, its own RESULTS.
nj=2
cmd=local/jobs.sh
help_message="Usage: local/score.sh [options] PLAN
 e.g.: local/score.sh --nj 2 exp/mini/plan.json    # leaves exp/mini/RESULTS, exp/mini/report, exp/mini/ablation/RESULTS
  --nj N                   processes of the calibration (default: $nj)
  --cmd COMMAND            how its jobs run (default: $cmd)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
local/calibrate.sh --nj "$nj" --cmd "$cmd" "$plan"
inputs=()
found=$(rows systems name)
while read -r sys; do
  for set in $decode_sets; do
    if marked "$exp/$sys/decode_$set" >/dev/null; then inputs+=("$exp/$sys/decode_$set"); fi
  done
done <<<"$found"
[ ${#inputs[@]} -gt 0 ] || fail "nothing is decoded in '$exp': stage 9 does that (./run.sh --stage 9)"
for f in "$exp/calibration/calibration.json" "$data"/*/stm "$data"/*/glm; do
  if [ -f "$f" ]; then inputs+=("$f"); fi
done
fp=$(fingerprint report "" "$plan" "${inputs[@]}")
if is_done "$exp/report" "$fp"; then echo "$0: $exp/report is up to date"; exit 0; fi
begin "$exp/report" "$fp"
points=$(rows systems point)
if [[ $points == *true* ]] || [ -n "$(essence get "$plan" ablation)" ]; then essence report-ablation "$exp"; fi
essence report "$exp"
mark_done "$exp/report" "$fp" report.html results.json
