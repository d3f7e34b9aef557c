# shellcheck shell=bash
# Sourced by local/run_stage.sh: the line that a terminal shows of a stage at work.

time_text() { # SECONDS: 45 s, 2 min 13 s, 1 h 05 min
  local s=$1
  if [ "$s" -lt 100 ]; then
    echo "$s s"
  elif [ "$s" -lt 6000 ]; then
    printf '%d min %02d s\n' $((s / 60)) $((s % 60))
  else
    printf '%d h %02d min\n' $((s / 3600)) $((s % 3600 / 60))
  fi
}

# live_line LOG WHAT SECONDS: appends what it reads to LOG, and meanwhile shows on the terminal, in one line that is
# written over every second, WHAT works, for how long, of about how many SECONDS (0: not known), and the last line read.
# Warnings stay on the terminal. Ends with its input, and leaves the terminal's line empty.
live_line() {
  local log=$1 what=$2 of=$3 start=$SECONDS line='' part='' last='' text columns status clear=$'\r\e[K'
  trap '' HUP INT TERM # what stops the run ends the input
  while true; do
    status=0
    IFS= read -r -t 1 part || status=$?
    line+=$part
    if [ $status -eq 0 ]; then
      printf '%s\n' "$line" >>"$log"
      last=${line//[[:cntrl:]]/ }
      if [[ $last == *[Ww]arning* ]]; then printf '%s%s\n' "$clear" "$last"; fi
      line=''
    elif [ $status -le 128 ]; then
      break
    fi
    columns=$(stty size <&1 2>/dev/null) || columns=
    columns=${columns##* }
    [ "${columns:-0}" -gt 20 ] || columns=80
    text="$what: $(time_text $((SECONDS - start)))"
    if [ "$of" -ge 10 ]; then text+=" of about $(time_text "$of")"; fi
    if [ -n "$last" ]; then text+=" | $last"; fi
    printf '%s%s' "$clear" "${text:0:columns - 1}"
  done
  if [ -n "$line" ]; then printf '%s\n' "$line" >>"$log"; fi
  printf '%s' "$clear"
}
