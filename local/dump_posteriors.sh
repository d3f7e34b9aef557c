#!/usr/bin/env bash
# Stage 6: the ensemble's posteriors of the training data, as archives, an archive a job.
help_message="Usage: local/dump_posteriors.sh [options] DATA ALI OUT TEACHER...
 e.g.: local/dump_posteriors.sh --keep 100 data/mini/train_sp_hires exp/mini/ali exp/mini/posteriors exp/mini/teacher_*
 leaves OUT/wide.{scp,N.ark} (the --keep largest of a frame) and OUT/full.{scp,N.ark} (dense, for the full-soft student);
 with --fuse true only essence targets: OUT/essence.{scp,N.ark}. What an utterance gets does not depend on --nj, to the
 last bit. An interrupted stage goes on with the jobs that are missing. Logs: OUT/log
  --nj N                   jobs (default: 2)
  --cmd COMMAND            how jobs run (default: local/jobs.sh)
  --forward-cmd COMMAND    how those run that run the teachers, where that is another, such as one with GPUs (default: --cmd)
  --combine mean|logmean   (default: mean)
  --keep N                 classes a frame in the wide archive (default: 100)
  --fuse true|false        write essence targets alone, by conf/essence.yaml (default: false)
  --top-k N                their k (default: 20)"
nj=2
cmd=local/jobs.sh
forward_cmd=
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
if [ "$fuse" = true ]; then settings+=" k=$top_k archives=jobs" inputs+=(conf/essence.yaml); fi
fp=$(fingerprint "$settings" "${inputs[@]}")
if is_done "$out" "$fp"; then echo "$0: $out is up to date"; exit 0; fi
# What another setting left behind is removed; what this one left is kept, and so is its number of jobs.
if [ "$(head -n 1 "$out/.begun" 2>/dev/null)" != "$fp" ]; then
  rm -rf "$out"
  mkdir -p "$out"
  printf '%s\n' "$fp" "$nj" >"$out/.begun"
fi
rm -f "$out/.done"
count=$(sed -n 2p "$out/.begun")
num_pdfs=$(cat "$ali/num_pdfs")
[ "$keep" -le "$num_pdfs" ] || keep=$num_pdfs
if [ "$fuse" = true ]; then names=(essence); else names=(full wide); fi
table() { echo "ark,scp:$out/$1.$2.ark,$out/$1.$2.scp"; } # NAME JOB

list=$(mktemp "$out/list.XXXXXX")
trap 'rm -f "$list"' EXIT
for ((j = 1; j <= count; j++)); do
  if [ -f "$out/${names[-1]}.$j.json" ]; then continue; fi # it is written last
  work=(essence dump-post --job "$j/$count" --combine "$combine" --feats "scp:$data/feats.scp")
  if [ "$fuse" = true ]; then
    work+=(--fuse --config conf/essence.yaml --top-k "$top_k")
  else
    work+=(--keep "$keep" --full-wspecifier "$(table full "$j")")
  fi
  printf '%q ' "${work[@]}" "$@" "$(table "${names[-1]}" "$j")" >>"$list"
  echo >>"$list"
done
todo=$(wc -l <"$list")
if [ "$todo" -gt 0 ]; then
  as_jobs "$list"
  echo "$0: $todo of $count jobs; logs: $out/log/dump.*.log"
  # shellcheck disable=SC2086  # cmd is words
  ${forward_cmd:-$cmd} --max-jobs-run "$nj" JOB=1:"$todo" "$out/log/dump.JOB.log" bash "$list" JOB ||
    fail "a job failed; its log is one of $out/log/dump.*.log. The same command goes on with what is missing"
fi
outputs=()
for name in "${names[@]}"; do
  parts=()
  for ((j = 1; j <= count; j++)); do parts+=("$out/$name.$j.scp") outputs+=("$name.$j.ark"); done
  essence join-post "$out/$name.scp" "${parts[@]}"
  same_count "$data/feats.scp" "$out/$name.scp"
  outputs+=("$name.scp" "$name.json")
done
if [ "$fuse" = false ]; then
  # Means of 20,000 utterances say what those of more do, without reading terabytes in one job.
  every=$((($(wc -l <"$out/full.scp") + 19999) / 20000))
  one_job "$out/log/post_stats.log" essence post-stats --every $every --alignment "scp:$ali/ali.scp" \
    --json "$out/post_stats.json" --plot "$out/post_stats.png" "scp:$out/full.scp"
fi
mark_done "$out" "$fp" "${outputs[@]}"
for name in "${names[@]}"; do rm -f "$out/$name".[0-9]*.{scp,json}; done
echo "$0: posteriors of $(wc -l <"$data/feats.scp") utterances are in $out"
