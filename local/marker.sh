# shellcheck shell=bash
# Sourced by the stage scripts. The marker of a directory says what made that which lies in it, and whether it is whole:
#
#   fp=$(fingerprint WHAT "settings as text" FILE-OR-DIR...)   of a directory, its marker counts; of a file, its content
#   if is_done DIR "$fp"; then echo "... is up to date"; exit 0; fi
#   begin DIR "$fp"; ... the work ...; mark_done DIR "$fp" FILE...       FILEs: the outputs that must be there, in DIR
#
# DIR/.marker: a line "done FINGERPRINT" and a line "BYTES PATH" for each output, or "begun FINGERPRINT [NOTE]".

# WHAT of fingerprint, and the version of what it leaves. Who changes the output of a stage raises its number, so that
# work of an older checkout is made anew.
declare -A versions=(
  [data]=1 [untranscribed]=1 [lang]=2 [lm]=1 [rescore-lm]=1 [const-arpa]=1 [feats]=1 [perturb]=1 [gmm]=2 [gmm-step]=1
  [ali]=2 [train]=1 [posteriors]=1 [targets]=2 [graph]=2 [scores]=1 [sweep]=1 [decode]=1 [calibration]=2
  [report]=1 [plugin]=1)

fingerprint() {
  local f what=$1
  [ -n "${versions[$what]:-}" ] || { echo "$0: no '$what' among the versions of local/marker.sh" >&2; return 1; }
  {
    printf '%s %s\n%s\n' "$what" "${versions[$what]}" "$2"
    case $what in train | posteriors | targets | scores | sweep | decode) plugins ;; esac
    shift 2
    for f in "$@"; do
      if [ -d "$f" ]; then
        marked "$f" || { echo "$0: missing input '$f'" >&2; return 1; }
      else
        [ -r "$f" ] || { echo "$0: missing input '$f'" >&2; return 1; }
        sha256sum <"$f"
      fi
    done
  } | sha256sum | cut -d' ' -f1
}

plugins() { # prints the files of ESSENCE_PLUGINS' modules with their checksums
  local module folder named=${ESSENCE_PLUGINS:-}
  for module in ${named//,/ }; do
    while IFS= read -r -d : folder; do
      folder+=/${module//.//}
      if [ -f "$folder.py" ]; then sha256sum <"$folder.py"; elif [ -d "$folder" ]; then
        find -L "$folder" -name '*.py' | sort | while IFS= read -r folder; do sha256sum <"$folder"; done
      fi
    done <<<"${PYTHONPATH:-}:"
  done
}

marked() { # DIR: prints the first line of the marker of what is done
  local line
  { read -r line <"$1/.marker"; } 2>/dev/null && [[ $line == done\ * ]] && echo "$line"
}

is_done() { # DIR FINGERPRINT
  local word fp bytes path
  [ -f "$1/.marker" ] || return 1
  {
    read -r word fp
    [ "$word $fp" = "done $2" ] || return 1
    while read -r bytes path; do
      [ "$(stat -c %s "$1/$path" 2>/dev/null)" = "$bytes" ] || return 1
    done
  } <"$1/.marker"
  ! is_forced "$1"
}

# ESSENCE_FORCE: a file that ./run.sh --force true makes when it begins; what was marked before is to be made anew.
is_forced() { [ -n "${ESSENCE_FORCE:-}" ] && [ "$1/.marker" -ot "$ESSENCE_FORCE" ]; } # DIR

begin() { # DIR FINGERPRINT: empties DIR
  rm -rf "${1:?}" || return 1
  resume "$@"
}

# What an interrupted attempt with the same fingerprint left in DIR stays, and its note; anything else goes.
resume() { # DIR FINGERPRINT [NOTE]
  local word fp note=${3:-} old
  read -r word fp old 2>/dev/null <"$1/.marker" || true
  if [ "${fp:-}" = "$2" ] && ! is_forced "$1"; then note=${old:-$note}; else rm -rf "${1:?}" || return 1; fi
  mkdir -p "$1" && echo "begun $2 $note" >"$1/.marker.tmp" && mv "$1/.marker.tmp" "$1/.marker"
}

note_of() { # DIR: the note that resume made
  local word fp note
  read -r word fp note <"$1/.marker" && echo "$note"
}

mark_done() { # DIR FINGERPRINT FILE...
  local dir=$1 fp=$2 f
  shift 2
  for f in "$@"; do
    [ -f "$dir/$f" ] || { echo "$0: '$dir/$f' should have been made and is not there" >&2; return 1; }
  done
  {
    echo "done $fp"
    for f in "$@"; do echo "$(stat -c %s "$dir/$f") $f"; done
  } >"$dir/.marker.tmp" || { rm -f "$dir/.marker.tmp"; return 1; }
  mv "$dir/.marker.tmp" "$dir/.marker"
  [ -z "${ESSENCE_WORKED:-}" ] || : >"$ESSENCE_WORKED"  # tells run.sh that the stage was not up to date
}

need() { # STAGE FILE-OR-DIR...: inputs that must be there, a directory whole, and the stage that makes them
  local n=$1 f
  shift
  for f in "$@"; do
    if [ ! -e "$f" ] || { [ -d "$f" ] && ! marked "$f" >/dev/null; }; then
      echo "$0: '$f' is missing or not whole: stage $n makes it (./run.sh --stage $n)" >&2
      exit 1
    fi
  done
}
