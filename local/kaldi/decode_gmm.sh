#!/usr/bin/env bash
# Stage 9 of the engine kaldi, second part: the GMM, decoded by steps/decode_fmllr.sh, at its own best scale.
nj=2
cmd=run.pl
help_message="Usage: local/kaldi/decode_gmm.sh [options] PLAN
 e.g.: local/kaldi/decode_gmm.sh --nj 2 exp/mini_kaldi/plan.json
 leaves EXP/gmm/sweep and EXP/gmm/decode_SET; lattices and logs: EXP/kaldi/exp/final_gmm/decode_SET
  --nj N          jobs (default: $nj)
  --cmd COMMAND   how they run (default: $cmd)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
need 9 "$exp/graph" "$exp/graph/HCLG.fst"
inputs=("$exp/graph" "$exp/gmm" "$ESSENCE_ROOT/conf/decode.yaml")
rescore=()
if [ "$rescore_lm_order" -gt 0 ]; then
  need 1 "$data/lang/G.fst" "$data/lang_rescore/G.carpa" "$data/lm_rescore"
  rescore=(--old-lm "$data/lang/G.fst" --new-lm "$data/lang_rescore/G.carpa")
  inputs+=("$data/lm_rescore")
fi
for set in $decode_sets; do
  need 2 "$data/$set" "$data/$set/feats.scp"
  inputs+=("$data/$set")
done
fp=$(fingerprint decode kaldi "${inputs[@]}")
out=$exp/gmm whole=true
for set in $decode_sets; do is_done "$out/decode_$set" "$fp" || whole=false; done
if [ $whole = true ]; then echo "$0: the GMM's decoding is up to date"; exit 0; fi
enter_recipe_dir
rm -rf "$out"/{sweep,decode_*}
jobs=$(mktemp "$exp/gmm_list.XXXXXX")
trap 'rm -f "$jobs"' EXIT
for set in $decode_sets; do
  dir=exp/final_gmm/decode_$set
  rm -rf "$dir" "$dir.si"
  steps/decode_fmllr.sh --cmd "$cmd" --nj "$(jobs_for "data/$set" "$nj")" --skip-scoring true \
    exp/final_gmm/graph "data/$set" "$dir" ||
    fail "decoding data/$set failed; logs: $PWD/$dir/log"
  printf '%q %q %q %q\n' "lat:gunzip -c $(sh_quoted "$PWD/$dir")/lat.*.gz |" \
    "$out/decode_$set" "$out/sweep/sweep.json" "$data/$set" >>"$jobs"
done
# One frame in 10 ms and likelihoods of a GMM: other scales than those of networks.
scales=0.05,0.0625,0.0714,0.0833,0.1,0.125,0.1667,0.2,0.25
printf '%q %q - %q\n' "lat:gunzip -c $(sh_quoted "$PWD/exp/final_gmm/decode_$dev_set")/lat.*.gz |" \
  "$out/sweep" "$data/$dev_set" >"$jobs.sweep"
trap 'rm -f "$jobs" "$jobs.sweep"' EXIT
decode=(essence decode --decoder kaldi-lattice --config conf/decode.yaml)
one_job "$exp/log/sweep_gmm.log" "${decode[@]}" --sweep "$data/$dev_set/text" --sweep-scales "$scales" \
  --jobs-file "$jobs.sweep" "$exp/graph"
one_job "$exp/log/decode_gmm.log" "${decode[@]}" "${rescore[@]}" --jobs-file "$jobs" "$exp/graph"
for set in $decode_sets; do
  cp "$data/$set/text" "$out/decode_$set/ref.txt"
  same_count "$data/$set/feats.scp" "$out/decode_$set/hyp.txt"
done
for set in $decode_sets; do mark_done "$out/decode_$set" "$fp" hyp.txt ref.txt decode.json; done
echo "$0: decoded the GMM"
