# shellcheck shell=bash
# Sourced by run.sh: runs stages, notes in EXP/stages.jsonl what they took, and stops what they started when it is
# stopped.
# shellcheck disable=SC2154  # stage, stop_stage, data and exp are run.sh's

# Who stops what this script has started if it cannot: local/guard.sh, which reads this pipe. ESSENCE_RUN is in the
# environment of all that belongs to this run.
export ESSENCE_RUN=$$.$RANDOM.$SECONDS
exec {guard}> >(exec setsid env -u ESSENCE_RUN local/guard.sh "$ESSENCE_RUN" >/dev/null 2>&1)

# run COMMAND...: as a process group of its own, so that what stops this script stops all that the command has started.
# Nothing can ask for input there.
running='' at_stage='' did=0
run() {
  local status=0
  set -m
  (
    echo "$BASHPID" >&"$guard"
    exec "$@" {guard}>&-
  ) </dev/null &
  running=$!
  set +m
  wait $running || status=$?
  [ $status -eq 0 ] || kill -- "-$running" 2>/dev/null || true  # what fails leaves nothing at work
  running=
  (echo >&"$guard") 2>/dev/null || true
  return $status
}
stop() {
  local i
  trap - HUP INT TERM  # a second one does not wait
  if [ -n "$running" ]; then
    kill -- "-$running" 2>/dev/null || true
    for ((i = 0; i < 300; i++)); do kill -0 -- "-$running" 2>/dev/null || break; sleep 0.1; done
  fi
  [ -z "$at_stage" ] || note_stage '"unfinished": true' || true
  echo "$0: stopped; the same command goes on from here" >&2
  exit $((128 + $1))
}
trap 'stop 1' HUP
trap 'stop 2' INT
trap 'stop 15' TERM

# A line of stages.jsonl on the stage that runs: what it took, and more about it as JSON where given.
note_stage() {
  echo "{\"stage\": $at_stage, \"name\": \"$at_what\", \"seconds\": $((SECONDS - at_start)), \"bytes\": $((($(
    size_kb) - at_size) * 1024))${1:+, $1}}" >>"$exp/stages.jsonl"
}
# run_stage N WHAT COMMAND...: runs a stage if it is asked for, and notes what it took, also where it failed.
run_stage() {
  local n=$1 what=$2 status=0
  shift 2
  if [ "$stage" -gt "$n" ] || [ "$stop_stage" -lt "$n" ]; then return 0; fi
  echo "$0: stage $n: $what"
  export ESSENCE_WORKED=$exp/.worked
  rm -f "$ESSENCE_WORKED"
  at_what=$what at_start=$SECONDS at_size=$(size_kb) at_stage=$n
  run "$@" || status=$?
  if [ $status -ne 0 ]; then
    note_stage '"unfinished": true' || true
    fail "stage $n ($what) failed: $1 $(ended $status); the lines above name the reason. './run.sh --stage $n' goes on from here"
  fi
  if [ -e "$ESSENCE_WORKED" ]; then
    did=$((did + 1))
    rm -f "$ESSENCE_WORKED"
    note_stage
    echo "$0: stage $n took $((SECONDS - at_start)) s"
  fi
  at_stage=
}
run_end() {
  if [ "$stop_stage" -eq 10 ] && [ -f "$exp/RESULTS" ]; then
    [ "$ablation" = false ] || cat "$exp/ablation/RESULTS"
    cat "$exp/RESULTS"
    echo "$0: results: $exp/RESULTS, report: $exp/report/report.html"
  fi
  if [ "$did" -eq 0 ]; then
    echo "$0: nothing has changed: every stage was up to date ($((SECONDS - run_start)) s); --force true makes all anew"
  else
    echo "$0: done in $((SECONDS - run_start)) s"
  fi
}
