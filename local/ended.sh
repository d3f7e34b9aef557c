# shellcheck shell=bash
# Sourced by run.sh, the stages and the runners: says how a command ended.

ended() { # STATUS: "ended with status 3", or "was killed by SIGKILL (status 137; out of memory?)"
  local name why=''
  if [ "$1" -gt 128 ] && name=$(kill -l "$1" 2>/dev/null) && [[ $name == [A-Z]* ]]; then
    if [ "$name" = KILL ]; then why='; out of memory?'; fi
    if [ "$name" = BUS ]; then why='; /dev/shm or the disk is full?'; fi
    echo "was killed by SIG$name (status $1$why)"
  else
    echo "ended with status $1"
  fi
}

# trap 'failed_at $? $LINENO "$BASH_COMMAND"' ERR: what ends the script and has not said why, such as a killed program
failed_at() { # STATUS LINE COMMAND
  case $3 in return*) return ;; esac # what returns has said why
  [ "$BASH_SUBSHELL" -gt 0 ] || echo "${BASH_SOURCE[1]}: line $2: ${3:0:200} $(ended "$1")" >&2
}
