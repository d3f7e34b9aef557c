#!/usr/bin/env bash
# Stage 10, first half: are the posteriors of baseline, ensemble and students as sure as they are right? Compared with
# a forced alignment of the test sets by the GMM, which errs, too: systems may be compared, figures not taken for truth.
help_message="Usage: local/calibrate.sh [options] DATA EXP SYSTEM...
 SYSTEM: ensemble, or the name of a model directory in EXP
 e.g.: local/calibrate.sh --nj 2 --teachers 'teacher_1 teacher_2' data/mini exp/mini baseline ensemble student_essence
 leaves EXP/calibration/{calibration.json,ali_SET}
  --nj N                   processes (default: 2)
  --cmd COMMAND            how jobs run (default: local/jobs.sh)
  --eval-sets 'A B'        (default: eval_swbd eval_che)
  --teachers 'A B ..'      model directories in EXP that make up the ensemble
  --combine mean|logmean   how (default: mean)"
nj=2
cmd=local/jobs.sh
eval_sets="eval_swbd eval_che"
teachers=
combine=mean
. local/stage.sh
[ $# -ge 3 ] || usage
data=$1 exp=$2
shift 2
out=$exp/calibration
need 4 "$exp/gmm/.done"
align() { # SET OUT: by the GMM of either engine
  if [ -f "$exp/gmm/final.mdl" ]; then
    local/kaldi/align.sh --nj "$nj" --cmd "$cmd" "$data" "$exp" "$1" "$2"
  else
    essence gmm-align --nj "$nj" --map-oov true "$data/$1" "$data/lang" "$exp/gmm" "$2"
  fi
}
inputs=("$exp/gmm" "$data/lang") args=() tables=()
for set in $eval_sets; do
  need 2 "$data/$set/feats.scp" "$data/$set/.done" "$data/${set}_hires/.done"
  inputs+=("$data/$set" "$data/${set}_hires")
done
for sys in "$@"; do
  models=()
  if [ "$sys" = ensemble ]; then for m in $teachers; do models+=("$exp/$m"); done; else models=("$exp/$sys"); fi
  [ ${#models[@]} -gt 0 ] || refuse "the ensemble needs --teachers"
  for m in "${models[@]}"; do need 5-8 "$m/model.yaml" "$m/.done"; done
  inputs+=("${models[@]}")
  for set in $eval_sets; do
    forward=(essence forward --output logprob --combine "$combine" "${models[@]}" "$data/${set}_hires" ark:-)
    tables+=("$sys=ark:$(printf '%q ' "${forward[@]}") |")
  done
done
fp=$(fingerprint "calibration $* sets=$eval_sets combine=$combine" "${inputs[@]}")
if is_done "$out" "$fp"; then echo "$0: $out is up to date"; exit 0; fi
rm -rf "$out"
mkdir -p "$out"
for set in $eval_sets; do
  if ! align "$set" "$out/ali_$set"; then
    echo "$0: warning: without an alignment of $set the report says nothing of calibration" >&2
    exit 0
  fi
  args+=(--ali "$out/ali_$set/ali.scp")
done
if [ "$cmd" = local/jobs.sh ]; then args+=(--nj "$nj"); fi # elsewhere a job has one core
one_job "$out/log/calibration.log" essence calibration "${args[@]}" "$out/calibration.json" "${tables[@]}"
mark_done "$out" "$fp" calibration.json
