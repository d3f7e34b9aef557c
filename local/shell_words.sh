# shellcheck shell=bash
# Sourced by jobs.sh and slurm.sh. Kaldi's scripts hand a runner pieces of shell, such as: $cmd x.log copy-feats .. \|
# wc -l. Where a word is an operator, the words are shell, those with a blank in quotes, as run.pl, queue.pl and
# slurm.pl have it.
# shellcheck disable=SC2034  # command is the caller's
shell_words() { # WORD...: sets the array command to what runs them
  local word line='' operators=0 operator='^(\|\|?|&&?|;|[(){}]|([0-9]*|&)[<>][^[:space:]]*)$'
  command=("$@")
  for word in "$@"; do
    if [[ $word =~ $operator ]]; then operators=1; fi
    case $word in
      '') line+=" ''" ;;
      *[[:space:]]*\"* | *\"*[[:space:]]*) line+=" '$word'" ;;
      *[[:space:]]*) line+=" \"$word\"" ;;
      *) line+=" $word" ;;
    esac
  done
  [ $operators -eq 0 ] || command=(bash -c "$line")
}
