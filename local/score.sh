#!/usr/bin/env bash
# Stage 10: word error rates, significance, RESULTS and the report.
help_message="Usage: local/score.sh [options] DATA EXP
 e.g.: local/score.sh --corpus mini data/mini exp/mini    # leaves exp/mini/RESULTS and exp/mini/report
  --corpus, --size, --engine, --seed    for the record
  --essence-dir DIR                     the essence targets to report
  --dev-set NAME                        all other sets that were decoded are test sets (default: dev)
  --clips N                             embed the sound of so many utterances gained and lost (default: 0)"
corpus=mini
size=default
engine=native
seed=1
essence_dir=
dev_set=dev
clips=0
. local/stage.sh
[ $# -eq 2 ] || usage
data=$1 exp=$2
inputs=()
for d in "$exp"/*/decode_*; do
  if [ -f "$d/.done" ]; then inputs+=("$d"); fi
done
[ ${#inputs[@]} -gt 0 ] || fail "nothing is decoded in '$exp': stage 9 does that (./run.sh --stage 9)"
for f in "$exp"/{ablation/results,calibration/calibration}.json "$data"/*/stm "$data"/*/glm; do
  if [ -f "$f" ]; then inputs+=("$f"); fi
done
fp=$(fingerprint "report $corpus $size $engine $seed $essence_dir dev=$dev_set clips=$clips" "${inputs[@]}" "${essence_dir:-conf/essence.yaml}")
if is_done "$exp/report" "$fp"; then echo "$0: $exp/report is up to date"; exit 0; fi
rm -rf "$exp/report"
args=(--corpus "$corpus" --size "$size" --engine "$engine" --seed "$seed" --data-dir "$data" --dev-set "$dev_set" --clips "$clips")
[ -z "$essence_dir" ] || args+=(--essence-dir "$essence_dir")
essence report "${args[@]}" "$exp" "$exp/report"
mark_done "$exp/report" "$fp" report.html results.json
