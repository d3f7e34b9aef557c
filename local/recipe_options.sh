# shellcheck shell=bash
# Sourced by run.sh before it parses its options: declares those that recipes/*/recipe.conf name in "options", and adds
# their "options_help" to the help. The plan refuses an option of another corpus.
recipe_options=() recipe_help=
_own=$(grep -oE '(^ |,) --[a-z-]+' <<<"$help_message" | tr -d ' ,\n' | sed 's/--/ /g; s/-/_/g')
for _conf in recipes/*/recipe.conf; do
  # shellcheck disable=SC1090,SC2154  # the recipe's own
  _declared=$(options='' options_help='' && . "$_conf" >/dev/null 2>&1 && echo "$options" && echo "$options_help")
  for _name in ${_declared%%$'\n'*}; do
    # what two recipes declare is one option; what run.sh has itself, the plan refuses
    if ! [[ $_name =~ ^[a-z][a-z0-9_]*$ ]] || [[ " ${recipe_options[*]} $_own " == *" $_name "* ]]; then continue; fi
    recipe_options+=("$_name")
    printf -v "$_name" %s ''
  done
  _conf=${_conf%/recipe.conf} _declared=${_declared#*$'\n'}
  [ -z "$_declared" ] || recipe_help+=$'\n'"Corpus ${_conf#*/}"$'\n'$_declared
done
help_message+=$recipe_help
unset _own _conf _declared _name recipe_help
