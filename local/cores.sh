#!/usr/bin/env bash
# Prints how many cores there are to work on.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
usage="Usage: local/cores.sh
Prints how many cores there are to work on: those that this process may use, and no more than a container's limit of
processor time (docker --cpus 2) is worth."
case ${1:-} in
  '') ;;
  --help | -h) echo "$usage"; exit 0 ;;
  *) echo "$0: unexpected argument '$1'; see --help" >&2; exit 2 ;;
esac
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # with these, nproc would count threads
limit() { # QUOTA PERIOD, in microseconds; what is begun of a core counts
  if [[ $1 =~ ^[1-9][0-9]*$ && $2 =~ ^[1-9][0-9]*$ ]] && [ $((($1 + $2 - 1) / $2)) -lt "$cores" ]; then
    cores=$((($1 + $2 - 1) / $2))
  fi
}
while IFS=: read -r _ kind group; do # the groups that this process is in, and all above them
  case $kind in
    '') root=/sys/fs/cgroup ;;
    *cpu,* | *,cpu | cpu) root=/sys/fs/cgroup/cpu ;;
    *) continue ;;
  esac
  while true; do
    { read -r quota period <"$root$group/cpu.max"; } 2>/dev/null && limit "$quota" "$period"
    { read -r quota <"$root$group/cpu.cfs_quota_us" && read -r period <"$root$group/cpu.cfs_period_us"; } 2>/dev/null &&
      limit "$quota" "$period"
    [ -n "$group" ] || break
    group=${group%/*}
  done
done <<<"$(cat /proc/self/cgroup 2>/dev/null || echo 0::)"
echo "$cores"
