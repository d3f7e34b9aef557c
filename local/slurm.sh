#!/usr/bin/env bash
# Runs jobs on a Slurm cluster as one job array, with the contract of local/jobs.sh: a job's output goes to its log, and
# when jobs fail, run out of time or are cancelled, this script names their logs and fails. Requeued jobs
# are waited for.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
usage="Usage: local/slurm.sh [--partition P] [--mem M] [--gpu N] [--time T] [--max-jobs-run N] [JOB=1:8] LOG COMMAND...
 e.g.: local/slurm.sh --partition all --mem 8G --max-jobs-run 10 JOB=1:8 exp/log/train.JOB.log \\
         essence train --seed JOB ...
JOB in LOG and COMMAND becomes the job's number. --gpu asks for GPUs of a node, --num-threads for cores; any other
--option VALUE goes to sbatch as it is. Jobs run in the folder and environment that this script is started in, which
every node must see. Stopping this script cancels its jobs."
options=() max='' name='' first=1 last=1
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) echo "$usage"; exit 0 ;;
    --max-jobs-run) max=${2:-0}; shift 2 || break ;;
    --gpu) [ "${2:-0}" = 0 ] || options+=("--gres=gpu:$2"); shift 2 || break ;;
    --num-threads) options+=("--cpus-per-task=${2:-}"); shift 2 || break ;;
    --*=*) options+=("$1"); shift ;;
    --*) options+=("$1=${2:-}"); shift 2 || break ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *=*:*) name=${1%%=*}; r=${1#*=}; first=${r%%:*} last=${r#*:}; shift ;;
    *=*) name=${1%%=*}; first=${1#*=} last=$first; shift ;;
    *) break ;;
  esac
done
[ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
[[ $first =~ ^[0-9]+$ && $last =~ ^[0-9]+$ && $max =~ ^([1-9][0-9]*)?$ && $first -le $last ]] ||
  { echo "$0: bad job range '$name=$first:$last' or --max-jobs-run '$max'" >&2; exit 2; }
for program in sbatch squeue scancel; do
  command -v $program >/dev/null ||
    { echo "$0: there is no $program here: is this a machine of a Slurm cluster?" >&2; exit 1; }
done

log=$1
shift
# shellcheck source=local/shell_words.sh
. "${BASH_SOURCE[0]%/*}/shell_words.sh"
# shellcheck source=local/ended.sh
. "${BASH_SOURCE[0]%/*}/ended.sh"
shell_words "$@"
log_of() { if [ -n "$name" ]; then echo "${log//"$name"/$1}"; else echo "$log"; fi; }
for ((j = first; j <= last; j++)); do # slurmd makes no folders, and appends (a requeued job goes on with its log)
  l=$(log_of "$j")
  { mkdir -p "$(dirname "$l")" && : >"$l"; } || { echo "$0: cannot write the log '$l'" >&2; exit 1; }
done
pattern=${log//%/%%}
[ -z "$name" ] || pattern=${pattern//"$name"/%a}
dir=$(CDPATH='' cd "$(dirname "$(log_of "$first")")" && mktemp -d "$PWD/.slurm.XXXXXX") || exit 1

# What each job runs. It leaves its exit status in $dir/NUMBER: what the queue says of a job is forgotten after minutes.
{
  echo '#!/usr/bin/env bash'
  printf 'dir=%q name=%q command=(' "$dir" "$name"
  printf '%q ' "${command[@]}"
  echo ')'
  cat <<'JOB'
j=$SLURM_ARRAY_TASK_ID
[ -d "$dir" ] || { echo "# nobody waits for this job any more"; exit 0; }
rm -f "$dir/$j"
[ -z "$name" ] || command=("${command[@]//"$name"/$j}")
echo "# $(printf '%q ' "${command[@]}")"
echo "# started $(date) on $(hostname)${SLURM_RESTART_COUNT:+, after being requeued}"
SECONDS=0 status=0
"${command[@]}" </dev/null || status=$?
echo "# ended $(date), $SECONDS s, status $status"
echo "$status" >"$dir/.$j" && mv "$dir/.$j" "$dir/$j"
exit "$status"
JOB
} >"$dir/job.sh"

# sbatch's answer goes to a file, so that a signal in the middle of it loses no job.
cancel() { scancel "$(cut -d';' -f1 "$dir/id")" 2>/dev/null; }
trap 'trap "" INT TERM HUP; cancel; rm -rf "$dir"; exit 130' INT TERM HUP
label=${log##*/}
sbatch --parsable --requeue --job-name="${label%.log}" --array="$first-$last${max:+%$max}" --chdir="$PWD" \
  --output="$pattern" --open-mode=append "${options[@]}" <"$dir/job.sh" >"$dir/id" ||
  { rm -rf "$dir"; echo "$0: sbatch refused the jobs of $log: the line above says why" >&2; exit 1; }
id=$(cut -d';' -f1 "$dir/id")

status_of() { status=''; { read -r status <"$dir/$1"; } 2>/dev/null; }
declare -A state # of a job that did not succeed yet: what the queue says, '' when it has forgotten the job
for ((j = first; j <= last; j++)); do state[$j]=''; done
polls=0 silent=0 lost=0 said=''
pause() { local s=1; [ $((polls += 1)) -le 60 ] || s=5; sleep $s & wait $!; }
while :; do
  for j in "${!state[@]}"; do
    status_of "$j"
    state[$j]=''
    if [ "$status" = 0 ]; then unset "state[$j]"; fi
  done
  [ ${#state[@]} -gt 0 ] || break
  if queue=$(squeue --noheader --array --states=all --jobs="$id" --format='%K|%T|%r' 2>"$dir/error"); then
    silent=0
  elif grep -q 'Invalid job id' "$dir/error"; then
    queue=''
  else # the controller restarts, or the network is down: the jobs live on
    [ "$silent" -eq 1 ] || echo "$0: squeue failed, trying on: $(head -n 1 "$dir/error")" >&2
    silent=1
    pause
    continue
  fi
  live=0
  while IFS='|' read -r j what why; do
    [ -n "${state[$j]+set}" ] || continue
    case $what in
      BOOT_FAIL | CANCELLED | COMPLETED | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | TIMEOUT) ;;
      *)
        case $why in # a job that only an administrator can set free again
          *[Rr]equeued*[Hh]eld* | JobHoldMaxRequeue) scancel "${id}_$j"; what="HELD ($why)" ;;
          *) live=$((live + 1)) ;;
        esac
        case $why in
          None | Priority | Resources | JobArrayTaskLimit | BeginTime | Cleaning | "$said") ;;
          *) if [ "$what" = PENDING ]; then echo "$0: job ${id}_$j waits: $why" >&2; said=$why; fi ;;
        esac ;;
    esac
    state[$j]=$what
  done <<<"$queue"
  if [ "$live" -eq 0 ]; then
    # A shared disk may show a status file late: wait a minute for those of jobs that are said to be complete.
    for j in "${!state[@]}"; do
      case ${state[$j]} in COMPLETED | '') [ -s "$dir/$j" ] || live=1 ;; esac
    done
    if [ "$live" -eq 0 ] || [ $((lost += 1)) -gt 60 ]; then break; fi
  fi
  pause
done

failed=0
for ((j = first; j <= last; j++)); do
  status_of "$j"
  if [ "$status" = 0 ]; then continue; fi
  failed=$((failed + 1)) l=$(log_of "$j")
  case ${state[$j]:-} in
    TIMEOUT | DEADLINE) what="ran out of time (--time)" ;;
    OUT_OF_MEMORY) what="ran out of memory (--mem)" ;;
    CANCELLED | PREEMPTED) what="was cancelled" ;;
    FAILED | COMPLETED | '')
      if [ -n "$status" ]; then what=$(ended "$status"); else what="ended and left no status"; fi ;;
    *) what="ended: ${state[$j]}" ;;
  esac
  echo "$0: job ${id}_$j $what, see $l:" >&2
  tail -n 8 "$l" >&2
done
rm -rf "$dir"
[ "$failed" -eq 0 ] || { echo "$0: $failed of $((last - first + 1)) jobs failed" >&2; exit 1; }
