#!/usr/bin/env bash
# Fuzzing: each target for so many seconds, one process at a time. What broke a rule lies in DIR/findings, then the exit
# status is 1; DIR/corpus keeps what was new, so that a later run goes on; DIR/logs has what libFuzzer says.
#
#   tests/fuzz/run.sh [--seconds 5] [--dir WORK_DIR/exp/fuzz] [TARGET...]
#
# Readers are fuzzed by coverage where the Python has atheris (or DIR/site: pip install --target DIR/site atheris), else
# by mutations of their seeds; the target kernels where there is clang with libFuzzer (Debian: clang, libclang-rt-dev).
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
cd -P "$(dirname "$0")/../.." || exit 1
set -euo pipefail
export KALDI_ROOT='' OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
. ./path.sh
seconds=5 dir=$WORK_DIR/exp/fuzz
while [[ ${1-} == --* ]]; do
  case $1 in
    --seconds) seconds=$2 ;;
    --dir) dir=$2 ;;
    *) echo "$0: unknown option $1" >&2; exit 1 ;;
  esac
  shift 2
done
mkdir -p "$dir/logs" "$dir/findings" "$dir/corpus"
dir=$(cd -P "$dir" && pwd)
export PYTHONPATH=$PYTHONPATH:$ESSENCE_ROOT/tests:$dir/site
targets=("$@")
[ ${#targets[@]} -gt 0 ] || read -ra targets <<<"$("$ESSENCE_PYTHON" -m fuzz) kernels"

# The kernels as a program; 0 where there is no clang with libFuzzer.
kernels() {
  local program=$dir/kernels_fuzz
  if [[ ! $program -nt tests/fuzz/kernels_fuzz.c || ! $program -nt pytools/essence_kd/io/kernels.c ]] &&
    ! clang -g -O2 -march=native -fopenmp-simd -ffp-contract=off -Wno-pass-failed -fno-sanitize-recover=all \
      -fsanitize=fuzzer,address,undefined -fno-sanitize-coverage=trace-cmp -o "$program" tests/fuzz/kernels_fuzz.c -lm \
      2>"$dir/logs/clang.log"; then
    echo "$0: kernels are not fuzzed: no clang with libFuzzer" >&2
    return 0
  fi
  mkdir -p "$dir/corpus/kernels"
  ASAN_OPTIONS=quarantine_size_mb=8 "$program" -entropic=0 -max_total_time="$seconds" -max_len=2048 -timeout=60 \
    -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$dir/findings/kernels-" "$dir/corpus/kernels" \
    tests/fuzz/seeds/kernels
}

status=0
for target in "${targets[@]}"; do
  log=$dir/logs/$target.log now=$dir/logs/.now
  if [ "$target" = kernels ]; then
    kernels >"$now" 2>&1 || status=1
  else
    "$ESSENCE_PYTHON" -m fuzz "$target" "$seconds" "$dir" >"$now" 2>&1 || status=1
  fi
  runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$now")
  edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$now" | tail -n 1)
  echo "$target: ${runs:-no} runs in $seconds s, ${edges:-no} edges covered"
  grep '^FOUND' "$now" || true
  [ -n "$runs" ] || tail -n 3 "$now"
  cat "$now" >>"$log"
done
rm -f "$now"
if [ -n "$(ls "$dir/findings")" ]; then
  echo "$0: something was found: $dir/findings" >&2
  status=1
fi
exit "$status"
