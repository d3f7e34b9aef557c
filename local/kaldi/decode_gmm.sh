#!/usr/bin/env bash
# Stage 9 of the engine kaldi, second part: the GMM, decoded by steps/decode_fmllr.sh, at its own best scale.
help_message="Usage: local/kaldi/decode_gmm.sh [options] DATA EXP
 e.g.: local/kaldi/decode_gmm.sh --nj 2 \$PWD/data/mini_kaldi \$PWD/exp/mini_kaldi
 leaves EXP/gmm/sweep and EXP/gmm/decode_SET; lattices and logs: EXP/kaldi/exp/final_gmm/decode_SET
  --nj N              jobs (default: 2)
  --cmd COMMAND       how they run (default: run.pl)
  --dev-set NAME      (default: dev)
  --eval-sets 'A B'   (default: eval_swbd eval_che)
  --rescore-lm DIR    rescore lattices with DATA/lang_rescore/G.carpa, made of this n-gram (default: do not)"
nj=2
cmd=run.pl
dev_set=dev
eval_sets="eval_swbd eval_che"
rescore_lm=
. local/kaldi/room.sh
[ $# -eq 2 ] || usage
data=$1 exp=$2
need 9 "$exp/graph/HCLG.fst" "$exp/graph/.done"
inputs=("$exp/graph" "$exp/gmm" "$ESSENCE_ROOT/conf/decode.yaml")
rescore=()
if [ -n "$rescore_lm" ]; then
  need 1 "$data/lang/G.fst" "$data/lang_rescore/G.carpa" "$rescore_lm/.done"
  rescore=(--old-lm "$data/lang/G.fst" --new-lm "$data/lang_rescore/G.carpa")
  inputs+=("$rescore_lm")
fi
for set in $dev_set $eval_sets; do
  need 2 "$data/$set/feats.scp" "$data/$set/.done"
  inputs+=("$data/$set")
done
fp=$(fingerprint "kaldi decode gmm" "${inputs[@]}")
out=$exp/gmm
if is_done "$out/decode_$dev_set" "$fp"; then echo "$0: the GMM's decoding is up to date"; exit 0; fi
enter_room "$data" "$exp"
rm -rf "$out"/{sweep,decode_*}
jobs=$(mktemp "$exp/gmm_list.XXXXXX")
trap 'rm -f "$jobs"' EXIT
for set in $dev_set $eval_sets; do
  dir=exp/final_gmm/decode_$set
  rm -rf "$dir" "$dir.si"
  steps/decode_fmllr.sh --cmd "$cmd" --nj "$(jobs_for "data/$set" "$nj")" --skip-scoring true exp/final_gmm/graph "data/$set" "$dir" ||
    fail "decoding data/$set failed; logs: $PWD/$dir/log"
  printf '%q %q %q %q\n' "lat:gunzip -c $PWD/$dir/lat.*.gz |" "$out/decode_$set" "$out/sweep/sweep.json" "$data/$set" >>"$jobs"
done
# One frame in 10 ms and likelihoods of a GMM: other scales than those of networks.
scales=0.05,0.0625,0.0714,0.0833,0.1,0.125,0.1667,0.2,0.25
printf '%q %q - %q\n' "lat:gunzip -c $PWD/exp/final_gmm/decode_$dev_set/lat.*.gz |" "$out/sweep" "$data/$dev_set" >"$jobs.sweep"
trap 'rm -f "$jobs" "$jobs.sweep"' EXIT
decode=(essence decode --decoder kaldi-lattice --config conf/decode.yaml)
one_job "$exp/log/sweep_gmm.log" "${decode[@]}" --sweep "$data/$dev_set/text" --sweep-scales "$scales" \
  --jobs-file "$jobs.sweep" "$exp/graph"
one_job "$exp/log/decode_gmm.log" "${decode[@]}" "${rescore[@]}" --jobs-file "$jobs" "$exp/graph"
for set in $dev_set $eval_sets; do
  cp "$data/$set/text" "$out/decode_$set/ref.txt"
  same_count "$data/$set/feats.scp" "$out/decode_$set/hyp.txt"
done
mark_done "$out/decode_$dev_set" "$fp" hyp.txt ref.txt decode.json
echo "$0: decoded the GMM"
