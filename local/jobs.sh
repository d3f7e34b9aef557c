#!/usr/bin/env bash
# Runs jobs on this machine, with Kaldi's contract: every job's output goes to its log, a failure names the log.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
usage="Usage: local/jobs.sh [--max-jobs-run N] [--mem M] [--gpu N] [JOB=1:8] LOG COMMAND...
 e.g.: local/jobs.sh JOB=1:8 exp/log/train.JOB.log essence train --seed JOB ...
JOB in LOG and COMMAND becomes the job's number. --mem, --gpu and other options of a grid are accepted and ignored. Jobs
that run side by side share the cores: OMP_NUM_THREADS is set for them, unless it is set already."
cores=$("${BASH_SOURCE[0]%/*}/cores.sh")
max=$cores name='' first=1 last=1
while [ $# -gt 0 ]; do
  case $1 in
    --max-jobs-run) max=${2:-}; shift 2 || break ;;
    --help | -h) echo "$usage"; exit 0 ;;
    -*) shift 2 || { echo "$usage" >&2; exit 2; } ;;
    *=*:*) name=${1%%=*}; r=${1#*=}; first=${r%%:*} last=${r#*:}; shift ;;
    *=*) name=${1%%=*}; first=${1#*=} last=$first; shift ;;
    *) break ;;
  esac
done
[ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
[[ $first =~ ^[0-9]+$ && $last =~ ^[0-9]+$ && $max =~ ^[1-9][0-9]*$ && $first -le $last ]] ||
  { echo "$0: bad job range '$name=$first:$last' or --max-jobs-run '$max'" >&2; exit 2; }

log=$1
shift
# shellcheck source=local/shell_words.sh
. "${BASH_SOURCE[0]%/*}/shell_words.sh"
# shellcheck source=local/ended.sh
. "${BASH_SOURCE[0]%/*}/ended.sh"
shell_words "$@"
set -- "${command[@]}"
# Jobs side by side share the cores: threads beyond them only wait for each other.
beside=$((last - first + 1))
[ "$beside" -le "$max" ] || beside=$max
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > beside ? cores / beside : 1))}
pids=() logs=() failed=0 next=0
# Stopping this script stops its jobs, each a process group of its own, with all that they started.
set -m
# shellcheck disable=SC2154  # p is the trap's own
trap 'trap "" TERM INT; for p in $(jobs -rp); do kill -- "-$p" 2>/dev/null; done; wait; exit 130' TERM INT
collect() { # waits for the oldest job
  local status=0 l=${logs[next]}
  wait "${pids[next]}" || status=$?
  next=$((next + 1))
  if [ "$status" -ne 0 ]; then
    echo "$0: a job $(ended "$status"), see $l:" >&2
    tail -n 8 "$l" >&2
    failed=$((failed + 1))
  fi
}
for ((j = first; j <= last; j++)); do
  if [ -n "$name" ]; then l=${log//"$name"/$j} command=("${@//"$name"/$j}"); else l=$log command=("$@"); fi
  mkdir -p "$(dirname "$l")"
  while [ "$(jobs -rp | wc -l)" -ge "$max" ]; do wait -n 2>/dev/null || true; done
  {
    echo "# $(printf '%q ' "${command[@]}")"
    echo "# started $(date)"
    SECONDS=0 status=0
    "${command[@]}" || status=$?
    echo "# ended $(date), $SECONDS s, status $status"
    exit "$status"
  } >"$l" 2>&1 </dev/null &
  pids+=($!) logs+=("$l")
done
while [ "$next" -lt ${#pids[@]} ]; do collect; done
[ "$failed" -eq 0 ] || { echo "$0: $failed of ${#pids[@]} jobs failed" >&2; exit 1; }
