# shellcheck shell=bash
# Sourced by the stage scripts: knows whether an output is whole and was made from the same settings and inputs.
#
#   fp=$(fingerprint "settings as text" FILE-OR-DIR...)   of a directory, its .done counts; of a file, its content
#   if is_done DIR "$fp"; then say "..."; exit 0; fi
#   rm -f DIR/.done; ... the work ...; mark_done DIR "$fp" FILE...    FILEs: the outputs that must be there, in DIR

fingerprint() {
  local f
  {
    printf '%s\n' "$1"
    shift
    for f in "$@"; do
      if [ -d "$f" ]; then f=$f/.done; fi
      [ -r "$f" ] || { echo "$0: missing input '$f'" >&2; return 1; }
      # line 1 of a .done is its fingerprint
      if [ "${f##*/}" = .done ]; then head -n 1 "$f"; else sha256sum <"$f"; fi
    done
  } | sha256sum | cut -d' ' -f1
}

is_done() { # DIR FINGERPRINT
  local fp bytes path
  [ -f "$1/.done" ] || return 1
  {
    read -r fp
    [ "$fp" = "$2" ] || return 1
    while read -r bytes path; do
      [ "$(stat -c %s "$1/$path" 2>/dev/null)" = "$bytes" ] || return 1
    done
  } <"$1/.done"
}

mark_done() { # DIR FINGERPRINT FILE...
  local dir=$1 fp=$2 f
  shift 2
  for f in "$@"; do
    [ -f "$dir/$f" ] || { echo "$0: '$dir/$f' should have been made and is not there" >&2; return 1; }
  done
  {
    echo "$fp"
    for f in "$@"; do echo "$(stat -c %s "$dir/$f") $f"; done
  } >"$dir/.done.tmp" || { rm -f "$dir/.done.tmp"; return 1; }
  mv "$dir/.done.tmp" "$dir/.done"
  [ -z "${ESSENCE_WORKED:-}" ] || : >"$ESSENCE_WORKED"  # tells run.sh that the stage was not up to date
}

need() { # STAGE FILE...: the inputs of a stage and the stage that makes them
  local n=$1 f
  shift
  for f in "$@"; do
    [ -e "$f" ] || { echo "$0: '$f' is missing: stage $n makes it (./run.sh --stage $n)" >&2; exit 1; }
  done
}
