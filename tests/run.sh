#!/usr/bin/env bash
# Sets up what the tests need and runs them, but for those that take minutes (tests/run.sh -m slow). Arguments go to
# pytest. Where a file or a folder is named (tests/run.sh tests/unit/test_losses.py, or test_losses.py alone), that is
# all that runs.
# REQUIRE="k2 kaldi" fails what would be skipped for lack of these (tests/README.md).
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
from=$PWD
cd -P "$(dirname "$0")/.." || exit 1
set -euo pipefail
args=() places=()
for word; do # files and folders, from where the caller stands, from the checkout, or by a test file's name alone
  path=${word%%::*}
  if [[ $path == */* || $path == *.py ]]; then
    for place in "$from/$path" "$PWD/$path" "$PWD"/tests/*/"$path"; do
      if [ -e "$place" ]; then
        word=$place${word:${#path}}
        places+=("$place")
        break
      fi
    done
  fi
  args+=("$word")
done
set -- ${args[@]+"${args[@]}"}
local/setup_env.sh --extras "core recipe export test"
. ./path.sh
if [ -f "$WORK_DIR/.venv-k2/.ready" ]; then export REQUIRE="k2 ${REQUIRE-}"; fi
if [ ${#places[@]} -gt 0 ]; then
  :
elif command -v shellcheck >/dev/null; then
  # found without git, which a checkout of another user's, or one that was unpacked, has no use for
  scripts=(*.sh)
  find .ci "${scripts[@]}" benchmarks conf examples local recipes tests -name __pycache__ -prune -o -type f \
    \( -name '*.sh' -o -name '*.sbatch' -o -path .ci/run -o -path local/bin/essence \) -print0 | xargs -0 shellcheck -x
else
  echo "$0: shellcheck is not installed: the shell scripts were not linted" >&2
fi
if [ ${#places[@]} -eq 0 ]; then # pyproject.toml has their settings
  "$ESSENCE_PYTHON" -m ruff check --quiet --cache-dir "$WORK_DIR/.cache/ruff"
  "$ESSENCE_PYTHON" -m mypy --no-error-summary --cache-dir "$WORK_DIR/.cache/mypy"
fi
cores=$(local/cores.sh)
if [ ${#places[@]} -eq 1 ] && [ -f "${places[0]}" ]; then cores=0; fi # one file is one process's
export OMP_NUM_THREADS=1
coverage=()
if [ "${1-}" = --cov ]; then
  shift
  coverage=(--cov --cov-config tests/coverage.ini --cov-report '')
  if "$ESSENCE_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then export COVERAGE_CORE=sysmon; fi
fi
status=0
"$ESSENCE_PYTHON" -m pytest -q -n "$cores" --dist loadfile --durations 15 -r s -m "not slow" \
  ${coverage[@]+"${coverage[@]}"} "$@" || status=$?
if [ ${#coverage[@]} -gt 0 ]; then
  "$ESSENCE_PYTHON" -m coverage report --rcfile tests/coverage.ini --sort cover >"$WORK_DIR/coverage.txt"
  echo "Least covered; all in $WORK_DIR/coverage.txt:"
  sed -n '1,12p;$p' "$WORK_DIR/coverage.txt"
fi
exit "$status"
