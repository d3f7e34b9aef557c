#!/usr/bin/env bash
# Sets up what the recipe needs, once: the Python packages (in the active environment when it has them all, else in
# .venv) and k2 (in .venv-k2). Running it again costs a fraction of a second; it needs no network then.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
help_message="Usage: local/setup_env.sh [options]
  --work-dir DIR        where .venv and .venv-k2 go (default: the checkout)
  --extras 'core ...'   lists of conf/requirements that must be there (default: core recipe)
  --k2 true|false       set up k2 for decoding (default: true; without it kaldi-decoder decodes)
Environment: ESSENCE_PYTHON (an interpreter that has every package: it is used, nothing is made)
             ESSENCE_BASE_PYTHON (the Python that makes .venv; default: python3)
             ESSENCE_K2_PYTHON (an interpreter that has k2: nothing is made)
             ESSENCE_TORCH_INDEX (wheel page of a torch build of your choice)"

unset CDPATH
cd -P "$(dirname "$0")/.." || exit 1
. local/surroundings.sh
work_dir=${WORK_DIR:-$PWD}
extras="core recipe"
k2=true
. local/parse_options.sh || exit 1
set -euo pipefail
[ $# -eq 0 ] || { echo "$0: unexpected argument '$1'; see --help" >&2; exit 2; }

log=$work_dir/setup.log
base=${ESSENCE_BASE_PYTHON:-${ESSENCE_PYTHON:-python3}}
recent() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; }
say() { echo "$0: $*" >&2; }
fail() { say "$*"; exit 1; }

mkdir -p "$work_dir" 2>/dev/null || true
touch "$work_dir/.write_test" 2>/dev/null || fail "cannot write in '$work_dir'; name a writable folder with --work-dir"
rm -f "$work_dir/.write_test"

lists=()
for e in $extras; do
  [ -f "conf/requirements/$e.txt" ] || fail "no conf/requirements/$e.txt for --extras '$e'"
  lists+=("conf/requirements/$e.txt")
done

# has PYTHON PACKAGE: is it there, whatever PYTHONPATH names? (An upgraded system's Python has lost those of its venvs.)
has() { "$1" -I -c 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$2" 2>/dev/null; }

# .venv/.ready has the checksums of the lists that were installed.
ready() { [ -f "$venv/.ready" ] && ! sha256sum "${lists[@]}" | grep -q -v -F -x -f "$venv/.ready" && has "$py" torch; }

# One set-up at a time works in a place; one that has waited finds what the other has made.
alone() {
  local told status=0
  [ -z "${alone:-}" ] || return 0
  alone=true
  exec 8>"$work_dir/.setup.lock"
  told=$(flock -n 8 2>&1) || status=$?
  if [ $status -eq 1 ] && [ -z "$told" ]; then
    say "another set-up is at work in $work_dir: waiting for it"
    flock 8
  elif [ $status -ne 0 ]; then
    say "$work_dir can have no lock (${told##*$'\n'}): do not start a second set-up there meanwhile"
  fi
}

# Does this Python (PYTHON [OPTION]) have every package in its range? Prints the first that is missing.
suffices() { "$@" - "${lists[@]}" <pytools/essence_kd/io/requirements.py; }

reachable() { # URL: does a wheel page answer within 5 seconds?
  "$py" -c 'import sys, urllib.request as u
try: u.urlopen(u.Request(sys.argv[1], method="HEAD"), timeout=5)
except Exception: sys.exit(1)' "$1"
}

# Into the environment, wherever a pip.conf has other installs go; what PYTHONPATH has is not in it.
install() { # WHAT PIP-ARGUMENTS...
  local what=$1; shift
  say "installing $what ..."
  if ! PIP_USER=0 PIP_TARGET='' PIP_PREFIX='' PIP_ROOT='' "$py" -I -m pip install --disable-pip-version-check \
    --retries 1 "$@" >>"$log" 2>&1; then
    tail -n 5 "$log" >&2
    say "could not install $what (whole log: $log)."
    say "Without a network, install the packages of conf/requirements/*.txt in an environment on a machine that"
    say "has one, activate it here, and run again; or set pip's index (PIP_INDEX_URL) to one that you can reach."
    return 1
  fi
}

venv=$work_dir/.venv
py=$venv/bin/python
if ready; then
  :
elif [ -z "${ESSENCE_BASE_PYTHON:-}" ] && suffices "$base" >/dev/null 2>&1; then
  py=$base
elif [ -n "${ESSENCE_PYTHON:-}" ] && [ -z "${ESSENCE_BASE_PYTHON:-}" ]; then
  fail "ESSENCE_PYTHON is set to '$ESSENCE_PYTHON', where $(suffices "$base" 2>&1); unset it to have .venv made"
elif alone && ready; then
  :
else
  if [ -z "${ESSENCE_BASE_PYTHON:-}" ]; then
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
      if recent "$candidate"; then base=$candidate; break; fi
    done
  fi
  command -v "$base" >/dev/null || fail "no '$base' on PATH: install Python 3.9 or newer, or set ESSENCE_BASE_PYTHON"
  recent "$base" ||
    fail "$("$base" --version 2>&1) is too old: 3.9 or newer is needed (set ESSENCE_BASE_PYTHON=/path/to/python3)"
  if [ -e "$venv" ] && ! has "$py" pip; then
    say "$venv is broken (its python does not run, or has no pip): making it anew"
    rm -rf "$venv"
  fi
  : >"$log"
  if [ ! -e "$venv" ]; then
    say "making $venv ($("$base" --version 2>&1); log: $log)"
    "$base" -m venv "$venv" >>"$log" 2>&1 ||
      { rm -rf "$venv"; fail "'$base -m venv' failed; on Debian and Ubuntu: apt install python3-venv (log: $log)"; }
  fi
  if ! "$py" -I -c 'import torch' 2>/dev/null; then
    torch=$(grep -m 1 '^torch' conf/requirements/core.txt)
    if [ -n "${ESSENCE_TORCH_INDEX:-}" ]; then
      install "torch" "$torch" --index-url "$ESSENCE_TORCH_INDEX"
    elif ! command -v nvidia-smi >/dev/null && reachable https://download.pytorch.org/whl/cpu/torch/; then
      install "torch (CPU build)" "$torch" --index-url https://download.pytorch.org/whl/cpu
    else
      install "torch" "$torch"
    fi
  fi
  args=()
  for l in "${lists[@]}"; do args+=(-r "$l"); done
  install "the Python packages of ${lists[*]}" "${args[@]}"
  told=$(suffices "$py" -I 2>&1) || fail "pip was content, but $told in $venv (log: $log)"
  told=$("$py" -I -c 'import torch' 2>&1 >/dev/null) ||
    fail "what was installed in $venv does not run: ${told##*$'\n'} (is that place mounted noexec? try --work-dir)"
  { cat "$venv/.ready" 2>/dev/null || true; sha256sum "${lists[@]}"; } >"$venv/.ready.tmp"
  mv "$venv/.ready.tmp" "$venv/.ready"
  say "the environment is ready: $venv"
fi

# k2: in the Python at hand if it is there, else in an environment of its own, which decoding calls through files.
# The newest build for torch 2.7.1 comes from k2's wheel page, where that can be reached; else the last release on the
# Python package index, 1.23.4, which needs torch 1.13.1, NumPy 1 and Python 3.9 to 3.11. Its wheels do not say which
# Python they are for: the hash picks the right one.
$k2 || exit 0
[ -z "${ESSENCE_K2_PYTHON:-}" ] || exit 0
kenv=$work_dir/.venv-k2
tried() {
  if [ -f "$kenv/.ready" ] && has "$kenv/bin/python" k2; then return 0; fi
  [ -f "$kenv/.none" ] && [ -z "${ESSENCE_RETRY_K2:-}" ]
}
if tried; then exit 0; fi
if has "$py" k2; then exit 0; fi
alone
if tried; then exit 0; fi
no_k2() { # REASON: remembered, so that the next start does not try again
  mkdir -p "$kenv"; echo "$1" >"$kenv/.none"
  say "no k2 here ($1): kaldi-decoder decodes instead (ESSENCE_RETRY_K2=1 tries again)"
  exit 0
}
main=$py
[ -f "$log" ] || : >"$log"
rm -rf "$kenv"
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
if command -v nvidia-smi >/dev/null; then
  page=https://k2-fsa.github.io/k2/cuda.html build='cuda12[.]6' torch=(torch==2.7.1)
else
  page=https://k2-fsa.github.io/k2/cpu.html build=cpu
  torch=(torch==2.7.1 --index-url https://download.pytorch.org/whl/cpu)
fi
wheel=$("$main" -c '
import re, sys, urllib.parse, urllib.request
page = urllib.request.urlopen(sys.argv[1], timeout=5).read().decode()
links = [urllib.parse.urljoin(sys.argv[1], h) for h in re.findall(r"href=\"([^\"]+)\"", page)]
want = re.compile(sys.argv[2].format(*sys.version_info[:2]))
print(max(h for h in links if want.search(urllib.parse.unquote(h))))
' "$page" "[+]${build}[.]torch2[.]7[.]1-cp{}{}-.*x86_64[.]whl" 2>/dev/null || true)
if [ -n "$wheel" ] && "$main" -m venv "$kenv" >>"$log" 2>&1; then
  py=$kenv/bin/python
  if install "k2 for torch 2.7.1, from k2's wheel page, into $kenv" "${torch[@]}" &&
    install "k2" "$wheel" numpy graphviz PyYAML && "$py" -c 'import k2' 2>>"$log"; then
    say "k2 is ready: ${wheel##*/}, in $kenv"
    : >"$kenv/.ready"
    exit 0
  fi
  rm -rf "$kenv"
fi
for candidate in "$main" python3.11 python3.10 python3.9; do
  case $(version "$candidate") in
    3.11) hash=5b5f709b12b9cd092b583984d0b7d940c9f898101259c998d68d1f4adefa48d4 ;;
    3.10) hash=1404589732fdb7f6f5bf62297a20dd73318b7b4f2e10dd52dc3d5b6669688a4c ;;
    3.9) hash=e483092fc06bbf211827474e17d71c3acee8a37ddbee32cbf2706bf179f2fa19 ;;
    *) continue ;;
  esac
  "$candidate" -m venv "$kenv" >>"$log" 2>&1 || { rm -rf "$kenv"; continue; }
  py=$kenv/bin/python
  install "k2 1.23.4 with torch 1.13.1 (about 3.5 GB) into $kenv" torch==1.13.1 'numpy<2' graphviz PyYAML ||
    { rm -rf "$kenv"; no_k2 "torch 1.13.1 could not be installed"; }
  echo "k2==1.23.4 --hash=sha256:$hash" >"$kenv/k2.txt"
  if ! install "k2 1.23.4" --no-deps --require-hashes -r "$kenv/k2.txt" || ! "$py" -c 'import k2' 2>>"$log"; then
    rm -rf "$kenv"
    no_k2 "k2 1.23.4 could not be installed"
  fi
  say "k2 is ready: release 1.23.4 with torch 1.13.1, in $kenv"
  : >"$kenv/.ready"
  exit 0
done
no_k2 "k2's wheel page does not answer, and its last release needs Python 3.9 to 3.11 with venv"
