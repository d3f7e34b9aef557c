#!/usr/bin/env bash
# Stage 9, second half: every system decoded by the same code. Acoustic scale and word insertion penalty of a system are
# chosen on the development set and used on the others.
help_message="Usage: local/decode.sh [options] DATA EXP SYSTEM...
 SYSTEM: gmm, ensemble, or the name of a model directory in EXP
 e.g.: local/decode.sh --nj 2 --teachers 'teacher_1 teacher_2' data/mini exp/mini gmm ensemble baseline
 leaves EXP/SYSTEM/decode_SET/{hyp.txt,hyp.ctm,ref.txt,decode.json}
  --nj N                   systems decoded at a time (default: 2)
  --cmd COMMAND            how jobs run (default: local/jobs.sh)
  --decoder k2|kaldi|auto  (default: auto)
  --dev-set NAME           (default: dev)
  --eval-sets 'A B'        (default: eval_swbd eval_che)
  --teachers 'A B ..'      model directories in EXP that make up the ensemble
  --combine mean|logmean   how (default: mean)
  --keep-scores true|false keep the score archives (default: false)"
nj=2
cmd=local/jobs.sh
decoder=auto
dev_set=dev
eval_sets="eval_swbd eval_che"
teachers=
combine=mean
keep_scores=false
echo "$0 $*"
. ./path.sh
. local/parse_options.sh || exit 1
. local/done.sh
set -euo pipefail
[ $# -ge 3 ] || { echo "$help_message" >&2; exit 2; }
data=$1 exp=$2
shift 2
graph=$exp/graph
need 9 "$graph/graph.npz" "$graph/.done"

todo=() fps=()
scoring=$(mktemp "$exp/score_list.XXXXXX") sweeps=$(mktemp "$exp/sweep_list.XXXXXX") decodes=$(mktemp "$exp/decode_list.XXXXXX")
trap 'rm -f "$scoring" "$sweeps"* "$decodes"*' EXIT
for sys in "$@"; do
  case $sys in
    gmm) models=("$exp/gmm") n=4 suffix='' ;;
    ensemble)
      models=() n=5 suffix=_hires
      for t in $teachers; do models+=("$exp/$t"); done ;;
    *) models=("$exp/$sys") n=5-8 suffix=_hires ;;
  esac
  for m in "${models[@]}"; do need $n "$m" "$m/.done"; done
  inputs=("$graph" "${models[@]}" conf/decode.yaml)
  for set in $dev_set $eval_sets; do
    need 2 "$data/$set$suffix/feats.scp" "$data/$set$suffix/.done"
    inputs+=("$data/$set$suffix")
  done
  fp=$(fingerprint "decode $sys decoder=$decoder combine=$combine" "${inputs[@]}")
  # The marker of a system's decoding is kept in its development set's folder.
  if is_done "$exp/$sys/decode_$dev_set" "$fp"; then echo "$0: $sys is up to date"; continue; fi
  rm -rf "$exp/$sys"/decode_*
  pairs=()
  for set in $dev_set $eval_sets; do
    out=$exp/$sys/decode_$set
    mkdir -p "$out"
    pairs+=("$data/$set$suffix" "ark,scp:$out/scores.ark,$out/scores.scp")
    if [ "$set" = "$dev_set" ]; then
      printf '%q %q - %q\n' "scp:$out/scores.scp" "$out" "$data/$set" >>"$sweeps"
    else
      printf '%q %q %q %q\n' "scp:$out/scores.scp" "$out" "$exp/$sys/decode_$dev_set/sweep.json" "$data/$set" >>"$decodes"
    fi
  done
  if [ "$sys" = gmm ]; then
    for ((i = 0; i < ${#pairs[@]}; i += 2)); do
      printf '%q ' essence gmm-scores --frame-subsampling-factor 3 "${pairs[i]}" "$exp/gmm" "${pairs[i + 1]}"
      printf '&& '
    done >>"$scoring"
    echo true >>"$scoring"
  else
    {
      printf '%q ' essence forward --combine "$combine" "${models[@]}" "${pairs[@]:0:2}"
      for ((i = 2; i < ${#pairs[@]}; i += 2)); do printf -- '--also %q %q ' "${pairs[i]}" "${pairs[i + 1]}"; done
      echo
    } >>"$scoring"
  fi
  todo+=("$sys") fps+=("$fp")
done
[ ${#todo[@]} -gt 0 ] || exit 0

echo "$0: scores of ${todo[*]}; logs: $exp/log/scores.*.log"
# shellcheck disable=SC2016,SC2086  # the job expands $(...); cmd is words
$cmd --max-jobs-run "$nj" JOB=1:${#todo[@]} "$exp/log/scores.JOB.log" bash -c 'eval "$(sed -n JOBp "$1")"' scores "$scoring"

# Each job decodes several systems and loads the graph once.
decode() { # LIST WHAT OPTION...
  local list=$1 what=$2 jobs
  shift 2
  jobs=$(wc -l <"$list")
  [ "$jobs" -le "$nj" ] || jobs=$nj
  split -n "r/$jobs" --numeric-suffixes=1 -a 3 "$list" "$list."
  for part in "$list".*; do mv "$part" "$list.$((10#${part##*.}))"; done
  echo "$0: $what; logs: $exp/log/${what// /_}.*.log"
  # shellcheck disable=SC2086
  $cmd --max-jobs-run "$nj" JOB=1:"$jobs" "$exp/log/${what// /_}.JOB.log" \
    essence decode --config conf/decode.yaml --decoder "$decoder" "$@" --jobs-file "$list.JOB" "$graph"
}
decode "$sweeps" "choosing scales" --sweep "$data/$dev_set/text"
decode "$decodes" "decoding"

for i in "${!todo[@]}"; do
  sys=${todo[i]}
  for set in $dev_set $eval_sets; do
    out=$exp/$sys/decode_$set
    cp "$data/$set/text" "$out/ref.txt"
    in=$(wc -l <"$data/$set/text") n=$(wc -l <"$out/hyp.txt")
    [ "$in" -eq "$n" ] || { echo "$0: $out: $in utterances went in and $n came out" >&2; exit 1; }
    if [ "$keep_scores" = false ]; then rm -f "$out"/scores.{ark,scp}; fi
  done
  mark_done "$exp/$sys/decode_$dev_set" "${fps[i]}" hyp.txt ref.txt decode.json sweep.json
done
echo "$0: decoded ${todo[*]}"
