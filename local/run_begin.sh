# shellcheck shell=bash
# Sourced by run.sh when its options are parsed: checks them, sets up the environment, takes the lock, writes the plan.
# shellcheck disable=SC2154,SC2034,SC2031  # the options are run.sh's

fail() { echo "$0: $*" >&2; exit 1; }
usage() { echo "$0: $*; see ./run.sh --help" >&2; exit 2; }
. local/ended.sh
set -o errtrace
trap 'failed_at $? $LINENO "$BASH_COMMAND"' ERR
[ $# -eq 0 ] || usage "unexpected argument '$1'"
[ -e /proc/self/fd ] || fail "there is no /proc here, which the shell and Python go by: mount -t proc proc /proc"
run_start=$SECONDS
export ESSENCE_ALLOW_PIPES=$allow_pipes
plan_args=(--root "$PWD") recipe_args=()
for v in stage stop_stage nj corpus size engine seed teachers student combine top_k temperature soft_weight fuse \
  all_labels untranscribed lattice_weight min_confidence teacher_hears \
  gmm num_leaves lm_order lm_prune rescore_lm_order decoder ablation grid; do
  [ -z "${!v}" ] || plan_args+=("--${v//_/-}=${!v}")
done
for v in "${recipe_options[@]}"; do
  if [ -n "${!v}" ]; then plan_args+=("--recipe=$v=${!v}") recipe_args+=("--${v//_/-}" "${!v}"); fi
done

# 1. What can be said before any work, by any Python; a machine that has none is set up first.
existing() { # FOLDER: it, or the one that it will be in
  local d=$1
  while [ ! -d "$d" ]; do d=$(dirname "$d"); done
  echo "$d"
}
check_options() ( # in a subshell: which Python it will be, local/setup_env.sh says
  # shellcheck disable=SC2030
  if [ -d "$work_dir" ]; then export WORK_DIR=$work_dir; fi
  . ./path.sh || exit 1
  [ -n "$ESSENCE_PYTHON" ] && "$ESSENCE_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 9))' || exit 127
  essence plan --check-only "--work-dir=$work_dir" "${plan_args[@]}"
)
status=0
told=$(check_options) || status=$?
if [ $status -eq 127 ]; then
  local/setup_env.sh --work-dir "$work_dir" --k2 false || exit 1
  status=0
  told=$(check_options) || status=$?
fi
[ $status -eq 0 ] || exit $status
eval "$told" # name, size, description, disk_mb, nnet3, rescore
if [ -x "recipes/$corpus/check.sh" ]; then
  "recipes/$corpus/check.sh" --size "$size" --fuse "$fuse" --all-labels "$all_labels" --forecast "$check" \
    --work-dir "$(existing "$work_dir")" "${recipe_args[@]}" || exit 1
fi
if [ "$engine" = kaldi ]; then
  lattices=false
  if [ "$decoder" = kaldi-lattice ]; then lattices=true; fi
  local/kaldi/check.sh --lattices $lattices --nnet3 "$nnet3" --rescore "$rescore" "$work_dir" || exit 1
fi
if [ "$check" = true ]; then
  echo "$0: nothing that corpus $corpus and engine $engine need is missing"
  exit 0
fi

# 2. A place to work in
mkdir -p "$work_dir" 2>/dev/null || fail "cannot make '$work_dir'"
work_dir=$(cd -P "$work_dir" && pwd)
touch "$work_dir/.write_test" 2>/dev/null || fail "cannot write in '$work_dir'; name a writable folder with --work-dir"
rm -f "$work_dir/.write_test"
export WORK_DIR=$work_dir
data=$work_dir/data/$name
exp=$work_dir/exp/$name
mkdir -p "$data" "$exp"
size_kb() { du -sk "$data" "$exp" | awk '{s += $1} END {print s}'; }
free_mb=$(($(df --output=avail -m "$exp" | tail -n 1) + $(size_kb) / 1024))
[ "$free_mb" -ge "$disk_mb" ] ||
  fail "'$work_dir' has $free_mb MB free and $corpus ($size) needs about $disk_mb; name another place with --work-dir"

# 3. One run at a time in one place: the lock is held until the last process of a run has ended.
. local/run_stage.sh
# What is left of one that was killed is being ended (local/guard.sh).
if read -r owner <"$exp/.lock" && ! kill -0 "$owner"; then flock -w 60 "$exp/.lock" true || true; fi 2>/dev/null
exec 9<>"$exp/.lock"
status=0
told=$(flock -n 9 2>&1) || status=$?
if [ $status -eq 1 ] && [ -z "$told" ]; then
  exec 9>&-  # this run is not at work there
  holders=$(for f in /proc/[0-9]*/fd/*; do
    if [ "$f" -ef "$exp/.lock" ]; then f=${f#/proc/}; echo "${f%%/*}"; fi
  done | sort -un | tr '\n' ' ')
  fail "another run is at work in '$exp', or its jobs have outlived it; wait, or stop it: \
${holders:+kill }${holders:-it is on another machine}"
elif [ $status -ne 0 ]; then
  echo "$0: '$exp' can have no lock (${told##*$'\n'}): nothing keeps a second run out; do not start one there" >&2
fi
# Of a run that was killed: lists of jobs, jobs of a cluster, what was half written
if [ $status -eq 0 ]; then
  echo $$ >"$exp/.lock" 2>/dev/null || true
  rm -f "$exp"/{train,post,target,score,decode,sweep,gmm}_list.*
  while IFS= read -r -d '' left; do
    if [ -s "$left/id" ]; then scancel "$(cut -d';' -f1 "$left/id")" 2>/dev/null || true; fi
    rm -rf "$left"
  done < <(find "$data" "$exp" \( -type d -name '.slurm.??????' -o -name '.*.tmp' \) -prune -print0)
fi

# 4. Environment and plan
k2=true
if [ "$stage" -gt 9 ] || [ "$stop_stage" -lt 7 ] || [ "${decoder%-lattice}" = kaldi ]; then k2=false; fi
run local/setup_env.sh --work-dir "$work_dir" --k2 $k2
. ./path.sh
cmd=${cmd:-}
[ "$engine" = native ] || cmd=${cmd:-run.pl}
. ./cmd.sh
if [[ "$cmd $cuda_cmd $forward_cmd" == *.pl* && $PWD$work_dir == *[[:space:]]* ]]; then
  fail "Kaldi's run.pl, queue.pl and slurm.pl do not bear the blank in '$work_dir' or '$PWD': choose another place"
fi
ESSENCE_FORCE=
if [ "$force" = true ]; then
  ESSENCE_FORCE=$exp/.force
  : >"$ESSENCE_FORCE"  # what is older is made anew
fi
export ESSENCE_FORCE
told=$(essence plan --forecast --work-dir "$work_dir" "${plan_args[@]}") || exit $?
eval "$told" # plan, forecast, stage_seconds
echo "$0: $corpus ($size): $description; engine $engine, seed $seed, $nj jobs; results go to $exp"
echo "$0: $forecast"
