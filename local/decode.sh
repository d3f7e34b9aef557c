#!/usr/bin/env bash
# Stage 9, second half: every system decoded by the same code and at the same acoustic scale and word insertion penalty,
# so that a difference of two systems is one of their models. The setting is the best on the development set for teachers,
# ensemble and baseline together (the GMM, whose likelihoods are of another kind, has its own); students have no say in it.
help_message="Usage: local/decode.sh [options] DATA EXP SYSTEM...
 SYSTEM: gmm, ensemble, or the name of a model directory in EXP
 e.g.: local/decode.sh --nj 2 --teachers 'teacher_1 teacher_2' data/mini exp/mini gmm ensemble baseline
 leaves EXP/scales.json and EXP/SYSTEM/decode_SET/{hyp.txt,hyp.ctm,ref.txt,decode.json}
  --nj N                   processes (default: 2)
  --cmd COMMAND            how jobs run (default: local/jobs.sh)
  --decoder k2|kaldi|auto|kaldi-lattice  (default: auto)
  --dev-set NAME           (default: dev)
  --eval-sets 'A B'        (default: eval_swbd eval_che)
  --teachers 'A B ..'      model directories in EXP that make up the ensemble
  --combine mean|logmean   how (default: mean)
  --graph DIR              (default: EXP/graph)
  --rescore-lm DIR         rescore the words with the n-gram of DIR (DATA/lm_rescore: local/rescore_lm.sh), after the choice of
                           the setting, which is without it (default: do not rescore)
  --scales JSON            decode everything at this setting and choose none (default: choose EXP/scales.json)
  --keep-scores true|false keep the score archives (default: false)"
nj=2
cmd=local/jobs.sh
decoder=auto
dev_set=dev
eval_sets="eval_swbd eval_che"
teachers=
combine=mean
graph=
rescore_lm=
scales=
keep_scores=false
. local/stage.sh
[ $# -ge 3 ] || usage
data=$1 exp=$2
shift 2
graph=${graph:-$exp/graph}
need 9 "$graph/graph.npz" "$graph/.done"
rescore=()
if [ -n "$rescore_lm" ]; then
  if [ "$decoder" = kaldi-lattice ]; then
    need 1 "$data/lang/G.fst" "$data/lang_rescore/G.carpa"
    rescore=(--old-lm "$data/lang/G.fst" --new-lm "$data/lang_rescore/G.carpa")
  else
    rescore=(--old-lm "$data/lm/lm.arpa.gz" --new-lm "$rescore_lm/lm.arpa.gz")
  fi
  need 1 "$data/lm/lm.arpa.gz" "$rescore_lm/lm.arpa.gz" "$rescore_lm/.done"
fi

sweeps=$(mktemp "$exp/sweep_list.XXXXXX") decodes=$(mktemp "$exp/decode_list.XXXXXX") scoring=$(mktemp "$exp/score_list.XXXXXX")
trap 'rm -f "$scoring"* "$sweeps"* "$decodes"*' EXIT

# Of a system: sets models (its directories), suffix (of the data it reads) and fp (of what its scores depend on).
describe() {
  local n m set inputs
  case $1 in
    gmm) models=("$exp/gmm") n=4 suffix='' ;;
    ensemble)
      models=() n=5 suffix=_hires
      for m in $teachers; do models+=("$exp/$m"); done ;;
    *) models=("$exp/$1") n=5-8 suffix=_hires ;;
  esac
  for m in "${models[@]}"; do need $n "$m" "$m/.done"; done
  inputs=("$graph" "${models[@]}" conf/decode.yaml)
  for set in $dev_set $eval_sets; do
    need 2 "$data/$set$suffix/feats.scp" "$data/$set$suffix/.done"
    inputs+=("$data/$set$suffix")
  done
  fp=$(fingerprint "decode $1 decoder=$decoder combine=$combine" "${inputs[@]}")
}

# Scores that were made from other models or data than $fp names are removed; an interrupted stage finds its own again.
fresh() { # SYSTEM
  [ "$(cat "$exp/$1/.scored" 2>/dev/null)" != "$fp" ] || return 0
  rm -rf "$exp/$1"/decode_*
  mkdir -p "$exp/$1"
  echo "$fp" >"$exp/$1/.scored"
}

# Scores of the systems named, of the sets that have none.
make_scores() {
  local sys set out i pairs count
  : >"$scoring"
  for sys in "$@"; do
    describe "$sys"
    pairs=()
    for set in $dev_set $eval_sets; do
      out=$exp/$sys/decode_$set
      mkdir -p "$out"
      [ -s "$out/scores.scp" ] || pairs+=("$data/$set$suffix" "ark,scp:$out/scores.ark,$out/scores.scp")
    done
    [ ${#pairs[@]} -gt 0 ] || continue
    {
      if [ "$sys" = gmm ]; then
        for ((i = 0; i < ${#pairs[@]}; i += 2)); do
          printf '%q ' essence gmm-scores --frame-subsampling-factor 3 "${pairs[i]}" "$exp/gmm" "${pairs[i + 1]}"
          printf '&& '
        done
        echo true
      else
        printf '%q ' essence forward --combine "$combine" "${models[@]}" "${pairs[@]:0:2}"
        for ((i = 2; i < ${#pairs[@]}; i += 2)); do printf -- '--also %q %q ' "${pairs[i]}" "${pairs[i + 1]}"; done
        echo
      fi
    } >>"$scoring"
  done
  count=$(wc -l <"$scoring")
  [ "$count" -gt 0 ] || return 0
  echo "$0: scores of $*; logs: $exp/log/scores.*.log"
  as_jobs "$scoring"
  # shellcheck disable=SC2086  # cmd is words
  $cmd --max-jobs-run "$nj" JOB=1:"$count" "$exp/log/scores.JOB.log" bash "$scoring" JOB
}

# Each job decodes a share of a list of SCORES OUT_DIR [SWEEP_JSON|- [DATA_DIR]] and loads the graph once.
decode() { # LIST WHAT OPTION...
  local list=$1 what=$2 jobs part
  shift 2
  jobs=$(wc -l <"$list")
  [ "$jobs" -le "$nj" ] || jobs=$nj
  split -n "r/$jobs" --numeric-suffixes=1 -a 3 "$list" "$list."
  for part in "$list".*; do
    printf '%q ' essence decode --decoder "$decoder" --config conf/decode.yaml "$@" --jobs-file "$part" "$graph"
    echo
  done >"$list"
  as_jobs "$list"
  echo "$0: $what; logs: $exp/log/${what// /_}.*.log"
  # shellcheck disable=SC2086
  $cmd --max-jobs-run "$nj" JOB=1:"$jobs" "$exp/log/${what// /_}.JOB.log" bash "$list" JOB
}

# 1. What scale is best for whom, on the development set.
choose_scales() {
  local todo=() fps=() pool=() failed=0 sys i
  for sys in "$@"; do
    case $sys in student_*) continue ;; gmm) ;; *) pool+=("$exp/$sys/sweep/sweep.json") ;; esac
    describe "$sys"
    if is_done "$exp/$sys/sweep" "$fp"; then continue; fi
    rm -rf "$exp/$sys/sweep"
    fresh "$sys"
    todo+=("$sys") fps+=("$fp")
    printf '%q %q\n' "scp:$exp/$sys/decode_$dev_set/scores.scp" "$exp/$sys/sweep" >>"$sweeps"
  done
  if [ ${#todo[@]} -gt 0 ]; then
    make_scores "${todo[@]}"
    decode "$sweeps" "choosing scales" --sweep "$data/$dev_set/text" || failed=1
    for i in "${!todo[@]}"; do
      if [ "$failed" -eq 1 ] && ! [ -f "$exp/${todo[i]}/sweep/sweep.json" ]; then continue; fi
      mark_done "$exp/${todo[i]}/sweep" "${fps[i]}" sweep.json
    done
    [ "$failed" -eq 0 ] || fail "choosing scales failed; logs: $exp/log/choosing_scales.*.log"
  fi
  [ ${#pool[@]} -gt 0 ] || refuse "name a teacher, the ensemble or the baseline: the scale is chosen for them"
  essence pool-sweeps "$exp/scales.json" "${pool[@]}"
}
if [ -n "$scales" ]; then need 9 "$scales"; else choose_scales "$@"; fi

# 2. Every set of every system at that setting.
todo=() fps=()
for sys in "$@"; do
  describe "$sys"
  scored=$fp setting=${scales:-$exp/scales.json}
  [ "$sys" != gmm ] || [ -n "$scales" ] || setting=$exp/gmm/sweep/sweep.json
  fp=$(fingerprint "$fp" "$setting" ${rescore_lm:+"$rescore_lm"})
  # The marker of a system's decoding is kept in its development set's folder.
  if is_done "$exp/$sys/decode_$dev_set" "$fp"; then echo "$0: $sys is up to date"; continue; fi
  todo+=("$sys") fps+=("$fp")
  fp=$scored
  fresh "$sys"
  for set in $dev_set $eval_sets; do
    printf '%q %q %q %q\n' "scp:$exp/$sys/decode_$set/scores.scp" "$exp/$sys/decode_$set" "$setting" "$data/$set" >>"$decodes"
  done
done
[ ${#todo[@]} -gt 0 ] || exit 0
make_scores "${todo[@]}"
failed=0
decode "$decodes" "decoding" "${rescore[@]}" || failed=1
for i in "${!todo[@]}"; do
  sys=${todo[i]} whole=1
  for set in $dev_set $eval_sets; do
    out=$exp/$sys/decode_$set
    if [ "$failed" -eq 1 ] && ! [ "$out/decode.json" -nt "$decodes" ]; then whole=0; break; fi
    cp "$data/$set/text" "$out/ref.txt"
    hires=_hires
    [ "$sys" != gmm ] || hires=''
    same_count "$data/$set$hires/feats.scp" "$out/hyp.txt"  # an utterance too short for a frame counts as deleted
  done
  [ "$whole" -eq 1 ] || continue
  if [ "$keep_scores" = false ]; then rm -f "$exp/$sys"/decode_*/scores.{ark,scp,json}; fi
  mark_done "$exp/$sys/decode_$dev_set" "${fps[i]}" hyp.txt ref.txt decode.json
done
[ "$failed" -eq 0 ] || fail "decoding failed; logs: $exp/log/decoding.*.log"
echo "$0: decoded ${todo[*]}"
