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

list=$(mktemp "$exp/decode_list.XXXXXX")
trap 'rm -f "$list"' EXIT
todo=() fps=()
for sys in "$@"; do
  case $sys in
    gmm) models=("$exp/gmm") n=4 suffix='' ;;
    ensemble)
      models=() n=5 suffix=_hires
      for t in $teachers; do models+=("$exp/$t"); done ;;
    *) models=("$exp/$sys") n=5-8 suffix=_hires ;;
  esac
  for m in "${models[@]}"; do need $n "$m" "$m/.done"; done
  for set in $dev_set $eval_sets; do need 2 "$data/$set$suffix/feats.scp" "$data/$set$suffix/.done"; done
  inputs=("$graph" "${models[@]}" conf/decode.yaml)
  for set in $dev_set $eval_sets; do inputs+=("$data/$set$suffix"); done
  fp=$(fingerprint "decode $sys decoder=$decoder combine=$combine" "${inputs[@]}")
  # The marker of a system's decoding is kept in its development set's folder.
  if is_done "$exp/$sys/decode_$dev_set" "$fp"; then echo "$0: $sys is up to date"; continue; fi
  rm -rf "$exp/$sys"/decode_*
  {
    for set in $dev_set $eval_sets; do
      out=$exp/$sys/decode_$set
      mkdir -p "$out"
      case $sys in
        gmm) printf '%q ' essence gmm-scores --frame-subsampling-factor 3 "$data/$set" "$exp/gmm" ;;
        *) printf '%q ' essence forward --combine "$combine" "${models[@]}" "$data/$set$suffix" ;;
      esac
      printf '%q && ' "ark,scp:$out/scores.ark,$out/scores.scp"
      args=(--config conf/decode.yaml --decoder "$decoder")
      if [ "$set" = "$dev_set" ]; then args+=(--sweep "$data/$set/text"); else args+=(--scale-from "$exp/$sys/decode_$dev_set/sweep.json"); fi
      printf '%q ' essence decode "${args[@]}" "$graph" "scp:$out/scores.scp" "$out"
      printf '&& '
    done
    echo true
  } >>"$list"
  todo+=("$sys") fps+=("$fp")
done
[ ${#todo[@]} -gt 0 ] || exit 0

echo "$0: decoding ${todo[*]}; logs: $exp/log/decode.*.log"
# shellcheck disable=SC2016,SC2086  # the job expands $(...); cmd is words
$cmd --max-jobs-run "$nj" JOB=1:${#todo[@]} "$exp/log/decode.JOB.log" bash -c 'eval "$(sed -n JOBp "$1")"' decode "$list"
for i in "${!todo[@]}"; do
  sys=${todo[i]}
  for set in $dev_set $eval_sets; do
    out=$exp/$sys/decode_$set
    cp "$data/$set/text" "$out/ref.txt"
    in=$(wc -l <"$data/$set/text") n=$(wc -l <"$out/hyp.txt")
    [ "$in" -eq "$n" ] || { echo "$0: $out: $in utterances went in and $n came out" >&2; exit 1; }
    if [ "$keep_scores" = false ]; then rm -f "$out/scores.ark" "$out/scores.scp"; fi
  done
  mark_done "$exp/$sys/decode_$dev_set" "${fps[i]}" hyp.txt ref.txt decode.json sweep.json
  for set in $eval_sets; do [ -s "$exp/$sys/decode_$set/hyp.txt" ]; done
  echo "$0: decoded $sys"
done
