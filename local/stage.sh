# shellcheck shell=bash
# Sourced by a stage script after its defaults: finds the tools, says how the script was called, parses its options, and
# lets it stop at the first error from then on. "$@" are the positional arguments: [ $# -eq 2 ] || usage
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
# shellcheck source=local/surroundings.sh
. "${BASH_SOURCE[0]%/*}/surroundings.sh"
# shellcheck source=path.sh
. "${BASH_SOURCE[0]%/*}/../path.sh" || exit 1
echo "$0 $*"
# shellcheck source=local/parse_options.sh
. "$ESSENCE_ROOT/local/parse_options.sh" || exit 1
# shellcheck source=local/marker.sh
. "$ESSENCE_ROOT/local/marker.sh"
# shellcheck source=local/ended.sh
. "$ESSENCE_ROOT/local/ended.sh"
set -euo pipefail
set -o errtrace
trap 'failed_at $? $LINENO "$BASH_COMMAND"' ERR

fail() { echo "$0: $*" >&2; exit 1; }
refuse() { echo "$0: $*" >&2; exit 2; } # of arguments that make no sense
usage() { echo "$help_message" >&2; exit 2; }
[[ ${nj:-1} =~ ^[1-9][0-9]*$ ]] || refuse "--nj takes a whole number of at least 1, not '$nj'"

# read_plan PLAN: the names that stages have for what a plan.json says (essence plan). Sets are words.
read_plan() {
  local found
  plan=$(realpath "$1")
  found=$(essence get --plan --words "$plan" data exp corpus size engine seed decoder combine fuse lm_order \
    rescore_lm_order 'sets[role=train].name' 'sets[role=dev].name' 'sets[role=test].name' \
    'sets[role=untranscribed].name' 'sets[role=rendering].name' sample_rate gmm num_leaves lm_prune post_keep) || exit 1
  # shellcheck disable=SC2034  # the callers'
  {
    IFS= read -r data; IFS= read -r exp; read -r corpus; read -r size; read -r engine; read -r seed
    read -r decoder; read -r combine
    read -r fuse; read -r lm_order; read -r rescore_lm_order
    read -r train_set; read -r dev_set; read -r test_sets; read -r untranscribed_sets
    read -r renderings
    read -r sample_rate; read -r gmm; read -r num_leaves; read -r lm_prune
    read -r post_keep # last, for it is never empty: the shell drops empty lines at the end
  } <<<"$found"
  # shellcheck disable=SC2034  # the callers'
  decode_sets="$dev_set $test_sets" sets="$train_set $dev_set $test_sets"
}
rows() { essence get --fields "$2" "$plan" "$1"; } # KEY FIELDS: a line for each item of a list, with tabs between
cores() { "$ESSENCE_ROOT/local/cores.sh"; }
here() { local n; n=$(cores); echo $((nj < n ? nj : n)); } # processes of work that is done on this machine

# read_by_feats DIR: what features are made of; sets tables (files of DIR) and audio (a checksum of size and time of
# every file that wav.scp names, by itself or in a command).
read_by_feats() {
  local f
  tables=()
  for f in wav.scp segments reco2file_and_channel utt2spk text; do [ ! -f "$1/$f" ] || tables+=("$1/$f"); done
  # shellcheck disable=SC2034  # the callers'
  audio=$({ awk '{ sub(/^[ \t]*[^ \t]+[ \t]+/, ""); sub(/[ \t\r]+$/, "") }
    /\|$/ { for (i = 1; i <= NF; i++) if ($i ~ /\//) print $i; next }
    { sub(/:[0-9]+$/, ""); print }' "$1/wav.scp" | sort -u | tr '\n' '\0' |
    xargs -0 -r stat -L -c '%n %s %Y' -- 2>/dev/null || true; } | sha256sum)
}

sh_quoted() { # WORD...: for a line that any sh reads, such as Kaldi's programs do with pipes; %q is bash's own
  local word between='' quote="'\\''"
  for word; do
    printf "%s'%s'" "$between" "${word//\'/$quote}"
    between=' '
  done
}

# What a job's script begins with. A queue may hand a job nothing of this environment (queue.pl and slurm.pl: PATH).
job_header() {
  local v
  printf '#!/usr/bin/env bash\ncd %q || exit 1\n' "$PWD"
  for v in PATH LD_LIBRARY_PATH WORK_DIR KALDI_ROOT ESSENCE_PYTHON ESSENCE_K2_PYTHON ESSENCE_KERNELS ESSENCE_PLUGINS \
    ESSENCE_ALLOW_PIPES PYTHONPATH ESSENCE_WORKED OMP_NUM_THREADS; do
    [ -z "${!v:-}" ] || printf 'export %s=%q\n' "$v" "${!v}"
  done
  # shellcheck disable=SC2016  # the job expands them: as many threads as it has cores
  printf '. %q\nexport OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-${NSLOTS:-1}}}\n' \
    "$ESSENCE_ROOT/path.sh"
}

as_jobs() { # LIST: a line of shell a job; LIST becomes a script that runs line $1
  {
    job_header
    awk 'BEGIN { print "set -x\ncase $1 in" } { print NR ") " $0 " ;;" } END { print "esac" }' "$1"
  } >"$1.sh"
  mv "$1.sh" "$1"
}

# run_jobs COMMAND LIST LOG: the lines of LIST as jobs of COMMAND, at most $nj at a time. What stops this script stops
# them. Where watch is the name of a function, it is called every second meanwhile.
run_jobs() {
  local n jobs status=0
  n=$(wc -l <"$2")
  as_jobs "$2"
  # shellcheck disable=SC2086  # COMMAND is words
  $1 --max-jobs-run "$nj" JOB=1:"$n" "$3" bash "$2" JOB &
  jobs=$!
  trap 'trap "" INT TERM; kill '$jobs' 2>/dev/null; wait '$jobs'; exit 130' INT TERM
  if [ -n "${watch:-}" ]; then
    while kill -0 $jobs 2>/dev/null; do sleep 1; $watch; done
  fi
  wait $jobs || status=$?
  trap - INT TERM
  return $status
}

# shellcheck disable=SC2154,SC2086  # cmd is the caller's, and words
one_job() { # LOG COMMAND...: runs the command as a job of $cmd
  local log=$1
  shift
  mkdir -p "${log%/*}"
  { job_header; printf '%q ' "$@"; echo; } >"$log.sh"
  $cmd "$log" bash "$log.sh" || fail "'$1 ${2:-}' failed: ${cmd%% *} $(ended $?); log: $log"
  rm -f "$log.sh"
}

same_count() { # IN OUT: files with a line per utterance
  local in out
  in=$(wc -l <"$1") out=$(wc -l <"$2")
  [ "$in" -eq "$out" ] || fail "${2%/*}: $in utterances went in and $out came out"
}

perturbed() { # FROM FP: FROM_sp has three times the utterances of FROM, but for a few; marks it and its filterbanks
  local in out kind
  in=$(wc -l <"$1/utt2spk") out=$(wc -l <"$1_sp_hires/feats.scp")
  [ $((100 * out)) -ge $((95 * 3 * in)) ] ||
    fail "$in utterances went in and $out came out (expected three times as many)"
  for kind in _sp_hires _sp; do mark_done "$1$kind" "$2" feats.scp cmvn.scp; done
  echo "$0: $in utterances became $out in $1_sp"
}
