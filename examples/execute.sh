#!/usr/bin/env bash
# Runs the notebook on a finished run, as .ci/run does, and leaves it with its outputs in exp/notebook.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
usage="Usage: examples/execute.sh [EXP]
 e.g.: ./run.sh --size tiny && examples/execute.sh          # EXP: exp/mini_tiny
Its packages (conf/requirements/notebook.txt) go to exp/notebook/packages."
case ${1:-} in -*) echo "$usage"; exit 0 ;; esac
from=$PWD
cd -P "$(dirname "$0")/.." || exit 1
. ./path.sh
set -euo pipefail
exp=${1:-$WORK_DIR/exp/mini_tiny}
case $exp in /*) ;; *) exp=$from/$exp ;; esac
[ -f "$exp/RESULTS" ] || { echo "$0: no $exp/RESULTS: ./run.sh --size tiny makes exp/mini_tiny" >&2; exit 1; }
out=$WORK_DIR/exp/notebook
if ! cmp -s conf/requirements/notebook.txt "$out/packages/.ready"; then
  rm -rf "$out/packages"
  mkdir -p "$out"
  "$ESSENCE_PYTHON" -m pip install -q --disable-pip-version-check --target "$out/packages" \
    -r conf/requirements/notebook.txt
  cp conf/requirements/notebook.txt "$out/packages/.ready"
fi
PYTHONPATH=$PYTHONPATH:$out/packages ESSENCE_EXP=$exp "$ESSENCE_PYTHON" - \
  examples/tiny_run.ipynb "$out/tiny_run.ipynb" <<'P'
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": "examples"}}).execute()
nbformat.write(notebook, sys.argv[2])
P
echo "$0: $out/tiny_run.ipynb"
