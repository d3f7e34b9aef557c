# shellcheck shell=bash
# Sourced by the plug-in's scripts, in the place of stage.sh. They run in the user's recipe directory, whose path.sh
# finds Kaldi; this checkout's finds essence and its Python.
unset CDPATH
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

whole_number() { # TEXT WHERE: what a file says, before the shell counts with it: an expression could be a command
  [[ $1 =~ ^-?(0|[1-9][0-9]{0,8})$ ]] || fail "$2 is '$1', no whole number"
}

# kaldi_options FILE: the options for Kaldi's programs in a file of somebody's: switches and numbers,
# for a name could be a pipe
kaldi_options() {
  local word words option='^--[a-z][a-z0-9-]*=(true|false|[-+.0-9e]+)$'
  IFS=$' \t\n' read -r -d '' -a words <"$1" || true
  for word in "${words[@]}"; do
    [[ $word =~ $option ]] ||
      fail "$1: '$word' is no option that a network may ask for: write --name=true, --name=false or --name=NUMBER"
  done
  echo "${words[*]}"
}

files() { local f; for f in "$@"; do [ -f "$f" ] || fail "'$f' is missing"; done; }

program() {
  local p
  for p in "$@"; do
    command -v "$p" >/dev/null || fail "Kaldi's program '$p' is not found: compile it, and let ./path.sh put it on PATH"
  done
}

# Sets cmd where none is given: Kaldi's run.pl, which cannot have blanks in the name of a log, or else our jobs.sh (by
# name alone, since cmd is split into words).
default_cmd() {
  if [ -n "$cmd" ]; then return 0; fi
  case $PWD in
    *[[:space:]]*) ;;
    *) if command -v run.pl >/dev/null; then cmd=run.pl; return 0; fi ;;
  esac
  PATH=$PATH:$ESSENCE_ROOT/local cmd=jobs.sh
}

# parts NJ SCP STEM [UTT2SPK]: the lines in STEM.1, STEM.2 ...; with UTT2SPK a speaker's stay together. Prints how many
parts() {
  awk -v nj="$1" -v stem="$3" -v lines="$(wc -l <"$2")" -v by_speaker="${4:+1}" '
    FILENAME != ARGV[ARGC - 1] { speaker[$1] = $2; next }
    { key = by_speaker ? speaker[$1] : $1 }
    !(key in part) { if (seen * nj >= made * lines) made++; part[key] = made }
    { seen++; print >(stem "." part[key]) }
    END { print made + 0 }' ${4:+"$4"} "$2"
}

only() { # LIST SCP: the lines of SCP whose utterance is in LIST, in the order of LIST
  awk 'NR == FNR { line[$1] = $0; next } $1 in line { print line[$1] }' "$2" "$1"
}

quoted() { printf '%q ' "$@"; }

job_script() { # FILE PRODUCT LINE: a job's script, which runs a line of shell unless its product (none: '') is there
  { job_header; printf '[ ! -f %q ] || exit 0\nset -o pipefail\n%s\n' "$2" "$3"; } >"$1"
}

# import_ali DATA ALI OUT FACTOR: an alignment directory of essence, from Kaldi's or a link;
# sets ali_fp, its fingerprint
import_ali() {
  local data=$1 ali=$2 out=$3 factor=$4
  if [ -f "$ali/ali.scp" ] && [ -f "$ali/ali.json" ]; then
    [ -L "$out" ] || rm -rf "$out"
    ln -sfn "$(cd -P "$ali" && pwd)" "$out"
    ali_fp=$(fingerprint ali plugin "$ali"/ali.{scp,json})
    return 0
  fi
  files "$ali"/{final.mdl,tree,ali.1.gz,phones.txt}
  program show-transitions copy-transition-model ali-to-pdf
  ali_fp=$(fingerprint ali "plugin factor=$factor" "$data/utt2spk" "$ali"/{final.mdl,tree} "$ali"/ali.*.gz)
  if [ ! -L "$out" ] && is_done "$out" "$ali_fp"; then return 0; fi
  begin "$out" "$ali_fp"
  # The transition model without Gaussians, which decoding with a student takes
  { show-transitions "$ali/phones.txt" "$ali/final.mdl" >"$out/transitions.txt" &&
    copy-transition-model "$ali/final.mdl" "$out/final.mdl"; } 2>"$out/transitions.log" ||
    fail "$ali/final.mdl cannot be read; log: $out/transitions.log"
  cp "$ali"/{tree,phones.txt} "$out"
  essence import-ali --transitions "$out/transitions.txt" --frame-subsampling-factor "$factor" "$data" \
    "ark:gunzip -c $(sh_quoted "$ali")/ali.*.gz | ali-to-pdf $(sh_quoted "$ali/final.mdl") ark:- ark:- |" "$out"
  mark_done "$out" "$ali_fp" ali.ark ali.scp ali.json final.mdl
}
