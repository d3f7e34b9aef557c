#!/usr/bin/env bash
# Stops what a run has started when the run itself is gone and could not do so (kill -9, a closed pipe).
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
usage="Usage: local/guard.sh RUN <PIPE
 PIPE has a line for each command that the run starts, its process group, and an empty one when the command has ended.
 When PIPE closes, the group that was named last is ended, and whatever else has ESSENCE_RUN=RUN in its environment
 (jobs have groups of their own); after 30 seconds by force."
case ${1:-} in
  --help | -h) echo "$usage"; exit 0 ;;
  -* | '') echo "$usage" >&2; exit 2 ;;
esac
trap '' HUP INT TERM PIPE
group=
while read -r line; do group=$line; done
[ -n "$group" ] || exit 0
alive() { # sets pids: the processes of the run
  pids=$(grep -lzxF "ESSENCE_RUN=$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3)
  pids=$(for p in $pids; do kill -0 "$p" 2>/dev/null && echo "$p"; done)
  kill -0 -- "-$group" 2>/dev/null || [ -n "$pids" ]
}
kill -- "-$group" 2>/dev/null
for ((i = 1; i <= 60; i++)); do
  sleep 0.5
  alive "$1" || exit 0
  # shellcheck disable=SC2086  # pids are words
  [ $((i % 10)) -ne 0 ] || kill $pids 2>/dev/null
done
# shellcheck disable=SC2086
kill -9 -- "-$group" $pids 2>/dev/null
