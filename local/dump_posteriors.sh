#!/usr/bin/env bash
# Stage 6: the ensemble's posteriors of the training data, as archives, an archive a job.
nj=2
cmd=local/jobs.sh
forward_cmd=
help_message="Usage: local/dump_posteriors.sh [options] PLAN
 e.g.: local/dump_posteriors.sh --nj 2 exp/mini/plan.json
 leaves EXP/posteriors/wide.{scp,N.ark} (the largest of each frame, post_keep of recipe.conf) and, where something learns
 from every label, full.{scp,N.ark} (dense); with --fuse true of run.sh the essence targets alone (post.{scp,N.ark}), in
 their own directory.
 What an utterance gets does not depend on --nj, to the last bit. An interrupted stage goes on with the jobs that are
 missing. Logs: EXP/posteriors/log
  --nj N                   jobs (default: $nj)
  --cmd COMMAND            how jobs run (default: $cmd)
  --forward-cmd COMMAND    how those run that run the teachers, such as one with GPUs (default: --cmd)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
train=$data/${train_set}_sp_hires ali=$exp/ali
need 3 "$train" "$train/feats.scp"
need 4 "$ali" "$ali/num_pdfs"
if [ "$fuse" = true ]; then
  found=$(rows 'targets[stage=6]' scp,teachers,options)
  IFS=$'\t' read -r scp teachers options <<<"$found"
  out=$exp/${scp%/*} stem=${scp##*/} names=("${stem%.scp}") settings="fuse $options"
else
  found=$(rows 'targets[name=wide]' scp,teachers)
  IFS=$'\t' read -r scp teachers <<<"$found"
  keep=$post_keep out=$exp/${scp%/*} names=(wide) settings="keep=$keep"
  dense=$(rows 'targets[name=full]' scp)
  [ -z "$dense" ] || names=(full wide) settings+=" and all"
  num_pdfs=$(cat "$ali/num_pdfs")
  [ "$keep" -le "$num_pdfs" ] || keep=$num_pdfs
fi
models=()
for t in $teachers; do
  need 5 "$exp/$t" "$exp/$t/model.yaml"
  models+=("$exp/$t")
done
fp=$(fingerprint posteriors "$settings combine=$combine" "$train" "$ali" "${models[@]}")
remove_parts() { for name in "${names[@]}"; do rm -f "$out/$name".[0-9]*.{scp,json}; done; }
if is_done "$out" "$fp"; then remove_parts; echo "$0: $out is up to date"; exit 0; fi
resume "$out" "$fp" "$nj" # what this setting left is kept, and so is its number of jobs
count=$(note_of "$out")
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "$out/.marker does not say how many jobs there are: remove $out"
table() { echo "ark,scp:$out/$1.$2.ark,$out/$1.$2.scp"; } # NAME JOB

list=$(mktemp "$exp/post_list.XXXXXX")
trap 'rm -f "$list"*' EXIT
for ((j = 1; j <= count; j++)); do
  if [ -f "$out/${names[-1]}.$j.json" ]; then continue; fi # it is written last
  work=(essence dump-post --job "$j/$count" --combine "$combine" --feats "scp:$train/feats.scp")
  if [ "$fuse" = true ]; then
    # shellcheck disable=SC2206  # options are words
    work+=(--fuse $options)
  else
    work+=(--keep "$keep")
    [ -z "$dense" ] || work+=(--full-wspecifier "$(table full "$j")")
  fi
  printf '%q ' "${work[@]}" "${models[@]}" "$(table "${names[-1]}" "$j")" >>"$list"
  echo >>"$list"
done
todo=$(wc -l <"$list")
if [ "$todo" -gt 0 ]; then
  echo "$0: $todo of $count jobs; logs: $out/log/dump.*.log"
  run_jobs "${forward_cmd:-$cmd}" "$list" "$out/log/dump.JOB.log" ||
    fail "a job failed; its log is one of $out/log/dump.*.log. The same command goes on with what is missing"
fi
outputs=()
for name in "${names[@]}"; do
  parts=()
  for ((j = 1; j <= count; j++)); do parts+=("$out/$name.$j.scp") outputs+=("$name.$j.ark"); done
  essence join-post "$out/$name.scp" "${parts[@]}"
  same_count "$train/feats.scp" "$out/$name.scp"
  outputs+=("$name.scp")
done
if [ "$fuse" = false ]; then
  # Means of 20,000 utterances say what those of more do, without reading terabytes in one job.
  every=$((($(wc -l <"$out/wide.scp") + 19999) / 20000))
  one_job "$out/log/post_stats.log" essence post-stats --every $every --alignment "scp:$ali/ali.scp" \
    --json "$out/post_stats.json" --plot "$out/post_stats.png" "scp:$out/${names[0]}.scp"
fi
mark_done "$out" "$fp" "${outputs[@]}"
remove_parts
echo "$0: posteriors of $(wc -l <"$train/feats.scp") utterances are in $out"
