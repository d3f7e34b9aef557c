# shellcheck shell=bash
# Sourced by a stage script after its defaults: finds the tools, says how the script was called, parses its options, and
# lets it stop at the first error from then on. "$@" are the positional arguments: [ $# -eq 2 ] || usage
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
# shellcheck source=path.sh
. "${BASH_SOURCE[0]%/*}/../path.sh"
echo "$0 $*"
# shellcheck source=local/parse_options.sh
. "$ESSENCE_ROOT/local/parse_options.sh" || exit 1
# shellcheck source=local/done.sh
. "$ESSENCE_ROOT/local/done.sh"
set -euo pipefail

fail() { echo "$0: $*" >&2; exit 1; }
refuse() { echo "$0: $*" >&2; exit 2; } # of arguments that make no sense
usage() { echo "$help_message" >&2; exit 2; }
[[ ${nj:-1} =~ ^[1-9][0-9]*$ ]] || refuse "--nj takes a whole number of at least 1, not '$nj'"

# What a job's script begins with. A queue may hand a job nothing of this environment (Kaldi's queue.pl and slurm.pl: PATH).
job_header() {
  local v
  printf '#!/usr/bin/env bash\ncd %q || exit 1\n' "$PWD"
  for v in PATH LD_LIBRARY_PATH WORK_DIR KALDI_ROOT ESSENCE_PYTHON ESSENCE_K2_PYTHON ESSENCE_KERNELS ESSENCE_WORKED OMP_NUM_THREADS; do
    [ -z "${!v:-}" ] || printf 'export %s=%q\n' "$v" "${!v}"
  done
  # shellcheck disable=SC2016  # the job expands them: as many threads as it has cores
  printf '. %q\nexport OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-${NSLOTS:-1}}}\n' "$ESSENCE_ROOT/path.sh"
}

as_jobs() { # LIST: a line of shell a job; LIST becomes a script that runs line $1
  { job_header; awk 'BEGIN { print "set -x\ncase $1 in" } { print NR ") " $0 " ;;" } END { print "esac" }' "$1"; } >"$1.sh"
  mv "$1.sh" "$1"
}

# shellcheck disable=SC2154,SC2086  # cmd is the caller's, and words
one_job() { # LOG COMMAND...: runs the command as a job of $cmd
  local log=$1
  shift
  mkdir -p "${log%/*}"
  { job_header; printf '%q ' "$@"; echo; } >"$log.sh"
  $cmd "$log" bash "$log.sh" || fail "'$1 ${2:-}' failed; log: $log"
  rm -f "$log.sh"
}

same_count() { # IN OUT: files with a line an utterance
  local in out
  in=$(wc -l <"$1") out=$(wc -l <"$2")
  [ "$in" -eq "$out" ] || fail "${2%/*}: $in utterances went in and $out came out"
}
