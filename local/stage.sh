# shellcheck shell=bash
# Sourced by a stage script after its defaults: finds the tools, says how the script was called, parses its options, and
# lets it stop at the first error from then on. "$@" are the positional arguments: [ $# -eq 2 ] || usage
# shellcheck source=path.sh
. "${BASH_SOURCE[0]%/*}/../path.sh"
echo "$0 $*"
# shellcheck source=local/parse_options.sh
. "$ESSENCE_ROOT/local/parse_options.sh" || exit 1
# shellcheck source=local/done.sh
. "$ESSENCE_ROOT/local/done.sh"
set -euo pipefail

fail() { echo "$0: $*" >&2; exit 1; }
refuse() { echo "$0: $*" >&2; exit 2; } # of arguments that make no sense
usage() { echo "$help_message" >&2; exit 2; }
[[ ${nj:-1} =~ ^[1-9][0-9]*$ ]] || refuse "--nj takes a whole number of at least 1, not '$nj'"

same_count() { # IN OUT: files with a line an utterance
  local in out
  in=$(wc -l <"$1") out=$(wc -l <"$2")
  [ "$in" -eq "$out" ] || fail "${2%/*}: $in utterances went in and $out came out"
}
