#!/usr/bin/env bash
# Fuzzing: each target for so many seconds, one process at a time. What broke a rule lies in DIR/findings, then the exit
# status is 1; DIR/corpus keeps what was new, so that a later run goes on; DIR/logs has what libFuzzer says.
#
#   tests/fuzz/run.sh [--seconds 5] [--dir exp/fuzz] [TARGET...]    (all of them: python -m fuzz, and kernels)
#
# Readers are fuzzed by coverage where the Python has atheris (pip install --target exp/fuzz/site atheris, or in the
# Python itself), else by mutations of their seeds; the kernels where there is clang with libFuzzer (Debian: clang,
# libclang-rt-dev). For hours: nice -n 19 tests/fuzz/run.sh --seconds 300.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
root=$(cd -P "$(dirname "$0")/../.." && pwd)
set -euo pipefail
seconds=5 dir=$root/exp/fuzz
while [[ ${1-} == --* ]]; do
  case $1 in
    --seconds) seconds=$2 ;;
    --dir) dir=$2 ;;
    *) echo "$0: unknown option $1" >&2; exit 1 ;;
  esac
  shift 2
done
mkdir -p "$dir/logs" "$dir/findings" "$dir/corpus"
dir=$(cd "$dir" && pwd)
export PYTHONPATH=$root/pytools:$root/tests:$dir/site KALDI_ROOT='' OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
python=${ESSENCE_PYTHON:-$root/.venv/bin/python}
targets=("$@")
[ ${#targets[@]} -gt 0 ] || read -ra targets <<<"$("$python" -m fuzz) kernels"

# The kernels as a program, of the seeds alone where clang has no libFuzzer.
kernels() {
  local program=$dir/kernels_fuzz here=$root/tests/fuzz
  if [[ ! $program -nt $here/kernels_fuzz.c || ! $program -nt $root/pytools/essence_kd/io/kernels.c ]] &&
    ! clang -g -O2 -march=native -fopenmp-simd -ffp-contract=off -Wno-pass-failed -fno-sanitize-recover=all \
      -fsanitize=fuzzer,address,undefined -fno-sanitize-coverage=trace-cmp -o "$program" "$here/kernels_fuzz.c" -lm \
      2>"$dir/logs/clang.log"; then
    echo "$0: kernels are not fuzzed: no clang with libFuzzer" >&2
    return 0
  fi
  mkdir -p "$dir/corpus/kernels"
  ASAN_OPTIONS=quarantine_size_mb=8 "$program" -entropic=0 -max_total_time="$seconds" -max_len=2048 -timeout=60 \
    -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$dir/findings/kernels-" "$dir/corpus/kernels" \
    "$here/seeds/kernels"
}

status=0
for target in "${targets[@]}"; do
  log=$dir/logs/$target.log
  begin=$(wc -c 2>/dev/null <"$log" || true)
  if [ "$target" = kernels ]; then
    kernels >>"$log" 2>&1 || status=1
  else
    "$python" -m fuzz "$target" "$seconds" "$dir" >>"$log" 2>&1 || status=1
  fi
  said=$(tail -c "+$((${begin:-0} + 1))" "$log")
  runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' <<<"$said" | tail -n 1)
  edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' <<<"$said" | tail -n 1)
  echo "$target: ${runs:-no} runs in $seconds s, ${edges:-no} edges covered"
  grep -h '^FOUND' <<<"$said" || true
done
if [ -n "$(ls "$dir/findings")" ]; then
  echo "$0: something was found: $dir/findings" >&2
  status=1
fi
exit "$status"
