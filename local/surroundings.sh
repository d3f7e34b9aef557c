# shellcheck shell=bash
# Sourced first by run.sh and the stages: takes back what a user's profile may have changed for every script
# and program.
export -n SHELLOPTS BASHOPTS # exported, they would hand on what this script sets, such as errexit
set +o allexport +o errexit +o noclobber +o noglob +o nounset +o pipefail
shopt -u dotglob failglob nocaseglob nocasematch nullglob
unset CDPATH BASH_ENV ENV POSIXLY_CORRECT PYTHONHOME PYTHONWARNINGS
export LC_ALL=C # the profile's may not exist here
[ -d "${TMPDIR:-/tmp}" ] || unset TMPDIR
