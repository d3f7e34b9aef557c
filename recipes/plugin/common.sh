# shellcheck shell=bash
# Sourced by the plug-in's scripts, in the place of stage.sh. They run in the user's recipe directory, whose path.sh finds
# Kaldi; this checkout's finds essence and its Python.
plugin_root=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC1091  # the user's own
if [ -f ./path.sh ] && ! [ ./path.sh -ef "$plugin_root/path.sh" ]; then . ./path.sh; fi
# shellcheck source=local/stage.sh
. "$plugin_root/local/stage.sh"

numbers() { # NAME...: options that take whole numbers of at least 1
  local v
  for v in "$@"; do
    [[ ${!v} =~ ^[1-9][0-9]*$ ]] || refuse "--${v//_/-} takes a whole number of at least 1, not '${!v}'"
  done
}

files() { local f; for f in "$@"; do [ -f "$f" ] || fail "'$f' is missing"; done; }

program() {
  local p
  for p in "$@"; do
    command -v "$p" >/dev/null || fail "Kaldi's program '$p' is not found: compile it, and let ./path.sh put it on PATH"
  done
}

default_cmd() { # CMD: as given, Kaldi's run.pl, or this machine
  if [ -n "$1" ]; then echo "$1"; elif command -v run.pl >/dev/null; then echo run.pl; else echo "$ESSENCE_ROOT/local/jobs.sh"; fi
}

same_tree() { # ALI DIR: refuses a model of another tree
  [ ! -f "$1/tree" ] || cmp -s "$1/tree" "$2/tree" ||
    fail "$2/tree is not $1/tree: the senones of this model are others; align with the tree of the teachers"
}

only() { # LIST SCP: the lines of SCP whose utterance is in LIST, in the order of LIST
  awk 'NR == FNR { line[$1] = $0; next } $1 in line { print line[$1] }' "$2" "$1"
}

quoted() { printf '%q ' "$@"; }

job_script() { # FILE PRODUCT LINE: a job's script, which runs a line of shell unless its product (none: '') is there
  { job_header; printf '[ ! -f %q ] || exit 0\nset -o pipefail\n%s\n' "$2" "$3"; } >"$1"
}

import_ali() { # DATA ALI OUT: an alignment directory of essence, from Kaldi's or as it is
  local data=$1 ali=$2 out=$3
  if [ -f "$ali/ali.scp" ] && [ -f "$ali/ali.json" ]; then
    if [ ! -e "$out" ]; then ln -s "$(cd -P "$ali" && pwd)" "$out"; fi
    return 0
  fi
  files "$ali"/{final.mdl,tree,ali.1.gz,phones.txt}
  program show-transitions ali-to-pdf
  if [ -f "$out/ali.json" ] && [ "$out/ali.json" -nt "$ali/ali.1.gz" ]; then return 0; fi
  mkdir -p "$out"
  show-transitions "$ali/phones.txt" "$ali/final.mdl" >"$out/transitions.txt" 2>"$out/show_transitions.log" ||
    fail "show-transitions failed; log: $out/show_transitions.log"
  essence import-ali --transitions "$out/transitions.txt" "$data" \
    "ark:gunzip -c $ali/ali.*.gz | ali-to-pdf $ali/final.mdl ark:- ark:- |" "$out"
}
