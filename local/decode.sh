#!/usr/bin/env bash
# Stage 9: the decoding graph, and every system decoded by the same code. Systems of a scale group have the same
# acoustic scale and word insertion penalty, so that a difference of two systems is one of their models: the best on the
# development set for those together that the plan gives a say in it (teachers, ensemble and twin; not students). The
# GMM has its own.
nj=2
cmd=local/jobs.sh
keep_scores=false
help_message="Usage: local/decode.sh [options] PLAN
 e.g.: local/decode.sh --nj 2 exp/mini/plan.json
 leaves EXP/scales/GROUP.json and EXP/SYSTEM/decode_SET/{hyp.txt,hyp.ctm,ref.txt,decode.json}
 Words are rescored where the plan says so, after the choice of the setting, which is without it.
  --nj N                   processes (default: $nj)
  --cmd COMMAND            how jobs run (default: $cmd)
  --keep-scores true|false keep the score archives, EXP/SYSTEM/scores (default: $keep_scores)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
"local/$engine/make_graph.sh" --nj "$nj" --cmd "$cmd" "$plan"
if [ "$engine" = kaldi ]; then local/kaldi/decode_gmm.sh --nj "$nj" --cmd "$cmd" "$plan"; fi
k2=''
if [ "$decoder" = auto ] && [ -n "${ESSENCE_K2_PYTHON:-}" ]; then k2=' k2'; fi # else the same words by kaldi-decoder
rescore=() rescore_inputs=()
if [ "$rescore_lm_order" -gt 0 ]; then
  if [ "$decoder" = kaldi-lattice ]; then
    need 1 "$data/lang/G.fst" "$data/lang_rescore/G.carpa"
    rescore=(--old-lm "$data/lang/G.fst" --new-lm "$data/lang_rescore/G.carpa")
  else
    rescore=(--old-lm "$data/lm/lm.arpa.gz" --new-lm "$data/lm_rescore/lm.arpa.gz")
  fi
  need 1 "$data/lm/lm.arpa.gz" "$data/lm_rescore" "$data/lm_rescore/lm.arpa.gz"
  rescore_inputs=("$data/lm_rescore")
fi

scoring=$(mktemp "$exp/score_list.XXXXXX")
decodes=$(mktemp "$exp/decode_list.XXXXXX")
sweeps=$(mktemp "$exp/sweep_list.XXXXXX")
trap 'rm -f "$scoring"* "$decodes"* "$sweeps"*' EXIT
systems=()
declare -A role=() group=() chooses=() members=()
found=$(rows systems name,role,scale_group,chooses_scale,teachers)
while IFS=$'\t' read -r name r g c t; do
  if [ "$r" = gmm ] && [ "$engine" = kaldi ]; then continue; fi # local/kaldi/decode_gmm.sh decodes it
  systems+=("$name") role[$name]=$r group[$name]=$g chooses[$name]=$c members[$name]=${t#-}
done <<<"$found"

# Of a system: sets models (its directories), suffix (of the data it reads) and fp (of what its scores depend on).
describe() { # SYSTEM
  local n=5-8 m set inputs
  models=() suffix=_hires
  case ${role[$1]} in
    gmm) n=4 suffix='' models=("$exp/$1") ;;
    ensemble) n=5; for m in ${members[$1]}; do models+=("$exp/$m"); done ;;
    *) models=("$exp/$1") ;;
  esac
  inputs=("$exp/graph" "${models[@]}" conf/decode.yaml)
  for m in "${models[@]}"; do need $n "$m"; done
  for set in $decode_sets; do
    need 2 "$data/$set$suffix" "$data/$set$suffix/feats.scp"
    inputs+=("$data/$set$suffix")
  done
  fp=$(fingerprint scores "${role[$1]} combine=$combine" "${inputs[@]}")
}

# Scores of the systems named, of the sets that have none.
make_scores() {
  local sys set out i pairs count tables new=()
  : >"$scoring"
  for sys in "$@"; do
    describe "$sys"
    out=$exp/$sys/scores
    if is_done "$out" "$fp"; then continue; fi
    resume "$out" "$fp"
    new+=("$sys") pairs=()
    for set in $decode_sets; do
      [ -s "$out/$set.scp" ] || pairs+=("$data/$set$suffix" "ark,scp:$out/$set.ark,$out/$set.scp")
    done
    {
      if [ "${role[$sys]}" = gmm ]; then
        for ((i = 0; i < ${#pairs[@]}; i += 2)); do
          second=()
          if [ "$gmm" = tri3 ]; then # the first pass gives the words that the second one is adapted by
            first=$out/first_$(basename "${pairs[i]}")
            printf '%q ' essence gmm-scores "${pairs[i]}" "$exp/$sys" "ark,scp:$first.ark,$first.scp"
            printf '&& '
            printf '%q ' essence decode --decoder "$decoder" --config conf/decode.yaml \
              "$exp/graph" "scp:$first.scp" "$first"
            printf '&& rm -f %q %q && ' "$first.ark" "$first.scp"
            second=(--hyp "$first/hyp.txt" --lang "$data/lang")
          fi
          printf '%q ' essence gmm-scores "${second[@]}" "${pairs[i]}" "$exp/$sys" "${pairs[i + 1]}"
          printf '&& '
        done
        echo true
      elif [ ${#pairs[@]} -gt 0 ]; then
        printf '%q ' essence forward --combine "$combine" "${models[@]}" "${pairs[@]:0:2}"
        for ((i = 2; i < ${#pairs[@]}; i += 2)); do printf -- '--also %q %q ' "${pairs[i]}" "${pairs[i + 1]}"; done
        echo
      fi
    } >>"$scoring"
  done
  count=$(wc -l <"$scoring")
  if [ "$count" -gt 0 ]; then
    echo "$0: scores of ${new[*]}; logs: $exp/log/scores.*.log"
    run_jobs "$cmd" "$scoring" "$exp/log/scores.JOB.log" || fail "making scores failed; logs: $exp/log/scores.*.log"
  fi
  for sys in "${new[@]}"; do
    describe "$sys"
    tables=()
    for set in $decode_sets; do tables+=("$set.scp"); done
    mark_done "$exp/$sys/scores" "$fp" "${tables[@]}"
  done
}

# How long it takes to decode a set of a system, in utterances of a network: a GMM is less sure, and keeps more states.
cost() { # SYSTEM SET
  local count
  count=$(wc -l <"$data/$2/utt2spk")
  if [ "${role[$1]}" = gmm ]; then echo $((3 * count)); else echo "$count"; fi
}

# Each job decodes a share of a list of COST SCORES OUT_DIR [SWEEP_JSON|- [DATA_DIR]] and loads the graph once. What
# costs most is dealt out first, each to the job that has least.
decode() { # LIST WHAT OPTION...
  local list=$1 what=$2 jobs part
  shift 2
  jobs=$(wc -l <"$list")
  [ "$jobs" -le "$nj" ] || jobs=$nj
  sort -s -k 1,1nr "$list" | awk -v list="$list" -v jobs="$jobs" '{
    least = 1
    for (job = 2; job <= jobs; job++) if (load[job] < load[least]) least = job
    load[least] += $1
    sub(/^[0-9]+ /, "")
    part = sprintf("%s.%03d", list, least)
    print >part
  }'
  for part in "$list".*; do
    printf '%q ' essence decode --decoder "$decoder" --config conf/decode.yaml "$@" --jobs-file "$part" "$exp/graph"
    echo
  done >"$list"
  echo "$0: $what; logs: $exp/log/${what// /_}.*.log"
  run_jobs "$cmd" "$list" "$exp/log/${what// /_}.JOB.log"
}

# 1. What setting is best for whom, on the development set.
todo=() fps=() failed=0
for sys in "${systems[@]}"; do
  if [ "${chooses[$sys]}" = false ]; then continue; fi
  describe "$sys"
  fp=$(fingerprint sweep "$decoder$k2 $fp")
  if is_done "$exp/$sys/sweep" "$fp"; then continue; fi
  begin "$exp/$sys/sweep" "$fp"
  todo+=("$sys") fps+=("$fp")
  printf '%s %q %q\n' "$(cost "$sys" "$dev_set")" "scp:$exp/$sys/scores/$dev_set.scp" "$exp/$sys/sweep" >>"$sweeps"
done
if [ ${#todo[@]} -gt 0 ]; then
  make_scores "${todo[@]}"
  decode "$sweeps" "choosing scales" --sweep "$data/$dev_set/text" --sweep-only || failed=1
  for i in "${!todo[@]}"; do
    if [ "$failed" -eq 1 ] && ! [ -f "$exp/${todo[i]}/sweep/sweep.json" ]; then continue; fi
    mark_done "$exp/${todo[i]}/sweep" "${fps[i]}" sweep.json
  done
  [ "$failed" -eq 0 ] || fail "choosing scales failed; logs: $exp/log/choosing_scales.*.log"
fi
mkdir -p "$exp/scales"
for g in $(printf '%s\n' "${group[@]}" | sort -u); do
  pool=()
  for sys in "${systems[@]}"; do
    if [ "${group[$sys]}" = "$g" ] && [ "${chooses[$sys]}" = true ]; then pool+=("$exp/$sys/sweep/sweep.json"); fi
  done
  [ ${#pool[@]} -gt 0 ] || fail "no system of the scale group '$g' has a say in its scale; see $plan"
  essence pool-sweeps "$exp/scales/$g.json" "${pool[@]}"
done

# 2. Every set of every system at that setting.
todo=() fps=()
for sys in "${systems[@]}"; do
  describe "$sys"
  setting=$exp/scales/${group[$sys]}.json
  fp=$(fingerprint decode "$decoder$k2 $fp" "$setting" "${rescore_inputs[@]}")
  new=()
  for set in $decode_sets; do is_done "$exp/$sys/decode_$set" "$fp" || new+=("$set"); done
  if [ ${#new[@]} -eq 0 ]; then
    [ "$keep_scores" = true ] || rm -rf "$exp/$sys/scores"
    echo "$0: $sys is up to date"
    continue
  fi
  for set in "${new[@]}"; do
    begin "$exp/$sys/decode_$set" "$fp"
    printf '%s %q %q %q %q\n' "$(cost "$sys" "$set")" "scp:$exp/$sys/scores/$set.scp" "$exp/$sys/decode_$set" \
      "$setting" "$data/$set" >>"$decodes"
  done
  todo+=("$sys") fps+=("$fp")
done
[ ${#todo[@]} -gt 0 ] || exit 0
make_scores "${todo[@]}"
failed=0
decode "$decodes" "decoding" "${rescore[@]}" || failed=1
for i in "${!todo[@]}"; do
  sys=${todo[i]} whole=1 hires=_hires
  [ "${role[$sys]}" != gmm ] || hires=''
  for set in $decode_sets; do
    out=$exp/$sys/decode_$set
    if is_done "$out" "${fps[i]}"; then continue; fi
    if [ "$failed" -eq 1 ] && ! [ -f "$out/decode.json" ]; then whole=0; continue; fi # it is written last
    cp "$data/$set/text" "$out/.ref.txt.tmp" && mv "$out/.ref.txt.tmp" "$out/ref.txt"
    same_count "$data/$set$hires/feats.scp" "$out/hyp.txt"  # an utterance too short for a frame counts as deleted
    mark_done "$out" "${fps[i]}" hyp.txt ref.txt decode.json
  done
  if [ "$whole" -eq 1 ] && [ "$keep_scores" = false ]; then rm -rf "$exp/$sys/scores"; fi
done
[ "$failed" -eq 0 ] || fail "decoding failed; logs: $exp/log/decoding.*.log"
echo "$0: decoded ${todo[*]}"
