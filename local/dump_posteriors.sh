#!/usr/bin/env bash
# Stage 6: the ensemble's posteriors of the training data, as archives.
help_message="Usage: local/dump_posteriors.sh [options] DATA ALI OUT TEACHER...
 e.g.: local/dump_posteriors.sh --keep 100 data/mini/train_sp_hires exp/mini/ali exp/mini/posteriors exp/mini/teacher_*
 leaves OUT/wide.{ark,scp} (the --keep largest of a frame) and OUT/full.{ark,scp} (dense, for the full-soft student);
 with --fuse true only essence targets: OUT/essence.{ark,scp}
  --combine mean|logmean   (default: mean)
  --keep N                 classes a frame in the wide archive (default: 100)
  --fuse true|false        write essence targets alone, by conf/essence.yaml (default: false)
  --top-k N                their k (default: 20)"
combine=mean
keep=100
fuse=false
top_k=20
. local/stage.sh
[ $# -ge 4 ] || usage
data=$1 ali=$2 out=$3
shift 3
need 3 "$data/feats.scp" "$data/.done"
need 4 "$ali/num_pdfs" "$ali/.done"
for t in "$@"; do need 5 "$t/model.yaml" "$t/.done"; done
settings="combine=$combine keep=$keep fuse=$fuse" inputs=("$data" "$ali" "$@")
if [ "$fuse" = true ]; then settings+=" k=$top_k" inputs+=(conf/essence.yaml); fi
fp=$(fingerprint "$settings" "${inputs[@]}")
if is_done "$out" "$fp"; then echo "$0: $out is up to date"; exit 0; fi
rm -rf "$out"
mkdir -p "$out"
num_pdfs=$(cat "$ali/num_pdfs")
[ "$keep" -le "$num_pdfs" ] || keep=$num_pdfs
args=(--combine "$combine" --feats "scp:$data/feats.scp")
if [ "$fuse" = true ]; then
  essence dump-post "${args[@]}" --fuse --config conf/essence.yaml --top-k "$top_k" "$@" \
    "ark,scp:$out/essence.ark,$out/essence.scp"
  outputs=(essence.ark essence.scp)
else
  essence dump-post "${args[@]}" --keep "$keep" --full-wspecifier "ark,scp:$out/full.ark,$out/full.scp" "$@" \
    "ark,scp:$out/wide.ark,$out/wide.scp"
  outputs=(wide.ark wide.scp full.ark full.scp)
  essence post-stats --alignment "scp:$ali/ali.scp" --json "$out/post_stats.json" --plot "$out/post_stats.png" "scp:$out/full.scp"
fi
same_count "$data/feats.scp" "$out/${outputs[1]}"
mark_done "$out" "$fp" "${outputs[@]}"
echo "$0: posteriors of $(wc -l <"$data/feats.scp") utterances are in $out"
