# shellcheck shell=bash
# Sourced by a script after it has set its defaults: turns "--name value" into the variable "name" ("-" becomes "_"),
# as Kaldi's scripts expect. What is left in "$@" are the positional arguments.
#
#   --name value, --name=value   sets a variable that the script has set before; any other name is refused
#   --config FILE                reads "name=value" lines first, so that options on the command line win
#   --help, -h                   prints $help_message and exits 0
#   --                           ends the options
#
# A variable whose default is true or false takes only true or false.

_po_fail() { echo "$0: $*" >&2; [ -z "${help_message:-}" ] || echo "$0: see --help" >&2; exit 2; }

_po_set() { # NAME VALUE
  local _po_var=${1//-/_}
  [[ $_po_var =~ ^[a-z][a-z0-9_]*$ && -n ${!_po_var+set} ]] || _po_fail "invalid option --$1"
  if [[ ${!_po_var} == true || ${!_po_var} == false ]] && [[ $2 != true && $2 != false ]]; then
    _po_fail "--$1 takes true or false, not '$2'"
  fi
  printf -v "$_po_var" %s "$2"
}

_po_args=("$@")
for ((_po_i = 0; _po_i < ${#_po_args[@]}; _po_i++)); do
  case ${_po_args[_po_i]} in
    --) break ;;
    --config) _po_file=${_po_args[_po_i + 1]:-} ;;
    --config=*) _po_file=${_po_args[_po_i]#*=} ;;
    *) continue ;;
  esac
  [ -r "$_po_file" ] || _po_fail "--config: cannot read '$_po_file'"
  while IFS= read -r _po_line || [ -n "$_po_line" ]; do
    _po_line=${_po_line%%#*}
    _po_line=${_po_line#"${_po_line%%[![:space:]]*}"}
    _po_line=${_po_line%"${_po_line##*[![:space:]]}"}
    [ -n "$_po_line" ] || continue
    [[ $_po_line == *=* ]] || _po_fail "$_po_file: expected name=value, got '$_po_line'"
    _po_value=${_po_line#*=}
    _po_value=${_po_value#[\"\']} _po_value=${_po_value%[\"\']}
    _po_set "${_po_line%%=*}" "$_po_value"
  done <"$_po_file"
done

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) printf '%s\n' "${help_message:-no help for $0}"; exit 0 ;;
    --) shift; break ;;
    --config) shift; shift ;;
    --config=*) shift ;;
    --*=*) _po_name=${1%%=*}; _po_set "${_po_name#--}" "${1#*=}"; shift ;;
    --*)
      [ $# -ge 2 ] || _po_fail "option $1 needs a value"
      _po_set "${1#--}" "$2"
      shift 2 ;;
    -?*) _po_fail "invalid option $1" ;;
    *) break ;;
  esac
done
unset _po_args _po_i _po_file _po_line _po_value _po_name
true
