#!/usr/bin/env bash
# Stage 7: prunes the wide posteriors to essence targets.
help_message="Usage: local/make_essence.sh [options] POSTERIORS ALI OUT
 e.g.: local/make_essence.sh --top-k 20 exp/mini/posteriors exp/mini/ali exp/mini/essence_k20
 leaves OUT/post.ark (with --fuse true post.N.ark), post.scp and essence.json; log: OUT/log/prune.log
  --top-k N           classes a frame (default: 20)
  --cmd COMMAND       how the job runs (default: local/jobs.sh)
  --fuse true|false   the targets were dumped directly (default: false)"
top_k=20
cmd=local/jobs.sh
fuse=false
. local/stage.sh
[ $# -eq 3 ] || usage
posteriors=$1 ali=$2 out=$3
need 6 "$posteriors/.done"
fp=$(fingerprint "essence k=$top_k fuse=$fuse" "$posteriors" conf/essence.yaml)
if is_done "$out" "$fp"; then echo "$0: $out is up to date"; exit 0; fi
rm -rf "$out"
mkdir -p "$out"
if [ "$fuse" = true ]; then
  need 6 "$posteriors/essence.scp"
  place=$(cd "$out" && pwd) archives=()
  for ark in "$posteriors"/essence.*.ark; do
    archives+=("post.${ark#"$posteriors"/essence.}")
    ln -f "$ark" "$out/${archives[-1]}"
  done
  while read -r utt at; do echo "$utt $place/post.${at##*/essence.}"; done <"$posteriors/essence.scp" >"$out/post.scp"
  cp "$posteriors/essence.json" "$out/essence.json"
else
  need 6 "$posteriors/wide.scp"
  archives=(post.ark)
  one_job "$out/log/prune.log" essence prune-post --config conf/essence.yaml --top-k "$top_k" "scp:$posteriors/wide.scp" \
    "ark,scp:$out/post.ark,$out/post.scp"
fi
in=$(wc -l <"$ali/ali.scp") n=$(wc -l <"$out/post.scp")
mark_done "$out" "$fp" "${archives[@]}" post.scp essence.json
echo "$0: essence targets of $n utterances ($in aligned) are in $out"
