# shellcheck shell=bash
# Sourced by run.sh: runs stages, notes in EXP/stages.jsonl what they took, and stops what they started when it is
# stopped.
# shellcheck disable=SC2154  # stage, stop_stage, data and exp are run.sh's

# On a terminal a stage is one line, and all that it says stands in EXP/log/run.log; elsewhere lines are printed
# as they are.
# shellcheck source=local/live.sh
. local/live.sh
run_log=$exp/log/run.log live='' live_process=''
if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then
  mkdir -p "$exp/log"
  live=true
fi

# Who stops what this script has started if it cannot: local/guard.sh, which reads this pipe. ESSENCE_RUN is in the
# environment of all that belongs to this run.
export ESSENCE_RUN=$$.$RANDOM.$SECONDS
exec {guard}> >(exec setsid env -u ESSENCE_RUN local/guard.sh "$ESSENCE_RUN" >/dev/null 2>&1)

# run COMMAND...: as a process group of its own, so that what stops this script stops all that the command has started.
# Nothing can ask for input there.
running='' at_stage='' at_cpu=0 did=0
run() {
  local status=0
  set -m
  (
    echo "$BASHPID" >&"$guard"
    if [ -n "$live_process" ]; then exec >&"$live" 2>&1; fi
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
# live_begin WHAT SECONDS, live_end: what is written to $live between is shown as one line. The process that shows it
# has not the lock, and is no reason for the guard to wait.
live_begin() {
  [ -n "$live" ] || return 0
  exec {live}> >(exec 9>&- {guard}>&-; live_line "$run_log" "$@")
  live_process=$!
}
live_end() {
  local i
  [ -n "$live_process" ] || return 0
  exec {live}>&-
  # what else may write there
  for ((i = 0; i < 30; i++)); do kill -0 "$live_process" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$live_process" 2>/dev/null || true
  live_process=''
}

stop() {
  local i
  trap - HUP INT TERM  # a second one does not wait
  if [ -n "$running" ]; then
    kill -- "-$running" 2>/dev/null || true
    for ((i = 0; i < 300; i++)); do kill -0 -- "-$running" 2>/dev/null || break; sleep 0.1; done
  fi
  live_end
  [ -z "$at_stage" ] || note_stage '"unfinished": true' || true
  echo "$0: stopped; the same command goes on from here" >&2
  exit $((128 + $1))
}
trap 'stop 1' HUP
trap 'stop 2' INT
trap 'stop 15' TERM

# CPU time of what this script has waited for, in tenths of a second; jobs that a cluster runs are not in it.
cpu_time() {
  local stat
  read -r stat </proc/$$/stat
  # shellcheck disable=SC2086  # fields after the name, which may hold spaces: proc_pid_stat(5)
  set -- ${stat##*) }
  echo $(((${14} + ${15}) * 10 / $(getconf CLK_TCK)))
}
# A line of stages.jsonl on the stage that runs: what it took, and more about it as JSON where given.
note_stage() {
  local cpu=$(($(cpu_time) - at_cpu)) took
  took="\"seconds\": $((SECONDS - at_start)), \"cpu_seconds\": $((cpu / 10)).$((cpu % 10))"
  took+=", \"bytes\": $((($(size_kb) - at_size) * 1024)), \"ended\": $(printf '%(%s)T' -1)"
  echo "{\"stage\": $at_stage, \"name\": \"$at_what\", $took${1:+, $1}}" >>"$exp/stages.jsonl"
}
# run_stage N WHAT COMMAND...: runs a stage if it is asked for, and notes what it took, also where it failed.
run_stage() {
  local n=$1 what=$2 status=0 seconds
  shift 2
  if [ "$stage" -gt "$n" ] || [ "$stop_stage" -lt "$n" ]; then return 0; fi
  seconds=$(cut -d' ' -f$((n + 1)) <<<"$stage_seconds")
  export ESSENCE_WORKED=$exp/.worked
  rm -f "$ESSENCE_WORKED"
  at_what=$what at_start=$SECONDS at_cpu=$(cpu_time) at_size=$(size_kb) at_stage=$n
  if [ -n "$live" ]; then
    live_begin "stage $n: $what" "$seconds"
    run "$@" || status=$?
    live_end
    if [ $status -ne 0 ]; then tail -n 20 "$run_log" >&2; fi
  else
    echo "$0: stage $n: $what$([ "$seconds" -lt 10 ] || echo " (about $(time_text "$seconds"))")"
    run "$@" || status=$?
  fi
  if [ $status -ne 0 ]; then
    note_stage '"unfinished": true' || true
    fail "stage $n ($what) failed: $1 $(ended $status); the lines above name the reason. './run.sh --stage $n' \
goes on from here"
  fi
  if [ -e "$ESSENCE_WORKED" ]; then
    did=$((did + 1))
    rm -f "$ESSENCE_WORKED"
    note_stage
    if [ -n "$live" ]; then
      echo "stage $n: $what: $(time_text $((SECONDS - at_start)))"
    else
      echo "$0: stage $n took $((SECONDS - at_start)) s"
    fi
  elif [ -n "$live" ]; then
    echo "stage $n: $what: up to date"
  fi
  at_stage=
}
# Four things to look at when all is done; the last one to speak to.
look_next() {
  local student twin rate k=5 again=./run.sh
  IFS=$'\t' read -r student twin <<<"$(essence get --fields name,twin "$plan" 'systems[role=student]' | tail -n 1)"
  if [ "$top_k" = "$k" ]; then k=10; fi
  [ "$corpus" = mini ] || again+=" --corpus $corpus"
  [ "$size" = default ] || again+=" --size $size"
  [ "$engine" = native ] || again+=" --engine $engine"
  [ ${#recipe_args[@]} -eq 0 ] || again+=$(printf ' %q' "${recipe_args[@]}")
  [ "$work_dir" = "$PWD" ] || again+=$(printf ' --work-dir %q' "$work_dir")
  echo "$0: look next at"
  echo "  1. $exp/report/report.html: all of it on one page, which opens offline"
  if [ -n "$student" ] && [ "$twin" != - ]; then
    echo "  2. local/bin/essence compare $exp/$twin $exp/$student: with and without soft labels, side by side"
  else
    echo "  2. local/bin/essence compare $exp: its systems side by side"
  fi
  echo "  3. $again --stage 7 --top-k $k: other essence targets, their student and its errors; or docs/corpora.md:" \
    "your data"
  if [ -n "$student" ]; then
    rate=$(essence get "$plan" sample_rate)
    echo "  4. speak to it (pip install sounddevice): local/bin/essence recognize --mic --sample-rate $rate" \
      "--scale-from $exp/scales/networks.json $exp/$student $exp/graph; docs/deploy.md: phone, server"
  fi
}
run_end() {
  if [ "$stop_stage" -eq 10 ] && [ -f "$exp/RESULTS" ]; then
    [ "$ablation" = false ] || cat "$exp/ablation/RESULTS"
    cat "$exp/RESULTS"
    echo "$0: results: $exp/RESULTS, report: $exp/report/report.html"
    look_next
  fi
  if [ "$did" -eq 0 ]; then
    echo "$0: nothing has changed: every stage was up to date ($((SECONDS - run_start)) s); --force true makes all anew"
  else
    echo "$0: done in $((SECONDS - run_start)) s"
  fi
}
