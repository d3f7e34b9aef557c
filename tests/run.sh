#!/usr/bin/env bash
# Sets up what the tests need and runs them, but for those that take minutes (tests/run.sh -m slow). Arguments go to
# pytest: tests/run.sh -k posterior. REQUIRE="k2 kaldi" fails what would be skipped for lack of these (tests/README.md).
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
cd -P "$(dirname "$0")/.." || exit 1
set -euo pipefail
local/setup_env.sh --extras "core recipe test"
. ./path.sh
if [ -f "$WORK_DIR/.venv-k2/.ready" ]; then export REQUIRE="k2 ${REQUIRE-}"; fi
if command -v shellcheck >/dev/null; then
  git ls-files -z '*.sh' '*.sbatch' 'run.sh' 'local/bin/essence' '.ci/run' | xargs -0 shellcheck -x
else
  echo "$0: shellcheck is not installed: the shell scripts were not linted" >&2
fi
cores=$(env -u OMP_NUM_THREADS nproc) # with it, nproc would count threads
export OMP_NUM_THREADS=1
exec "$ESSENCE_PYTHON" -m pytest -q -n "$cores" --dist loadfile --durations 15 -r s -m "not slow" tests "$@"
