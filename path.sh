# shellcheck shell=bash
# Sourced by every script: finds the tools. Sets ESSENCE_ROOT (this checkout), WORK_DIR (where data/, exp/ and the
# environments live; the checkout unless set), ESSENCE_PYTHON, PYTHONPATH and PATH; Kaldi's tools where KALDI_ROOT is
# set.
ESSENCE_ROOT=$(CDPATH='' builtin cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export ESSENCE_ROOT
case $ESSENCE_ROOT in
  *:*)
    echo "'$ESSENCE_ROOT' has a colon in its name, where PATH would be divided: move it to another folder" >&2
    return 1 ;;
esac
export WORK_DIR=${WORK_DIR:-$ESSENCE_ROOT}
export LC_ALL=C PYTHONUTF8=1

if [ -z "${ESSENCE_PYTHON:-}" ]; then
  if [ -x "$WORK_DIR/.venv/bin/python" ] && [ -f "$WORK_DIR/.venv/.ready" ]; then
    ESSENCE_PYTHON=$WORK_DIR/.venv/bin/python
  else
    ESSENCE_PYTHON=$(command -v python3 || true)
  fi
fi
export ESSENCE_PYTHON
if [ -z "${ESSENCE_K2_PYTHON:-}" ] && [ -f "$WORK_DIR/.venv-k2/.ready" ]; then
  export ESSENCE_K2_PYTHON=$WORK_DIR/.venv-k2/bin/python
fi
case ":${PYTHONPATH:-}:" in
  *":$ESSENCE_ROOT/pytools:"*) ;;
  *) export PYTHONPATH=$ESSENCE_ROOT/pytools${PYTHONPATH:+:$PYTHONPATH} ;;
esac
case ":$PATH:" in *":$ESSENCE_ROOT/local/bin:"*) ;; *) export PATH=$ESSENCE_ROOT/local/bin:$PATH ;; esac

if [ -n "${KALDI_ROOT:-}" ]; then
  export KALDI_ROOT
  for d in bin fstbin gmmbin featbin latbin nnet2bin nnet3bin chainbin ivectorbin online2bin lmbin; do
    [ -d "$KALDI_ROOT/src/$d" ] && PATH=$PATH:$KALDI_ROOT/src/$d
  done
  PATH=$PATH:$KALDI_ROOT/tools/openfst/bin:$KALDI_ROOT/egs/wsj/s5/utils
  export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$KALDI_ROOT/tools/openfst/lib
fi
