#!/usr/bin/env bash
# Stage 6: the ensemble's posteriors of the training data and of untranscribed sets, one archive per job.
nj=2
cmd=local/jobs.sh
forward_cmd=
kind='dense|post'
help_message="Usage: local/dump_posteriors.sh [options] PLAN
 e.g.: local/dump_posteriors.sh --nj 2 exp/mini/plan.json
 leaves EXP/posteriors/wide.{scp,N.ark} (the largest of each frame, post_keep of recipe.conf) and, where something
 learns from every label, EXP/dense/full.{scp,N.ark}; with --fuse true of run.sh the essence targets alone
 (post.{scp,N.ark}), in their own directory. Those of an untranscribed set SET lie in EXP/posteriors_SET, made of
 what teachers hear of it.
 What an utterance gets does not depend on --nj, to the last bit. An interrupted stage goes on with the jobs that are
 missing. Logs: EXP/posteriors/log and so on
  --nj N                   jobs (default: $nj)
  --cmd COMMAND            how jobs run (default: $cmd)
  --forward-cmd COMMAND    how those run that run the teachers, such as one with GPUs (default: --cmd)
  --kind dense|post        only the archive of every label, or only the others (default: both)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
# shellcheck source=local/untranscribed.sh
. local/untranscribed.sh || exit 1
read_heard
found=$(rows 'targets[stage=6]' kind,scp,sets,teachers,options)
found=$(grep -E "^($kind)[[:blank:]]" <<<"$found") || exit 0 # nothing of that kind
ali=$exp/ali
need 4 "$ali" "$ali/num_pdfs"
num_pdfs=$(cat "$ali/num_pdfs")
keep=$post_keep
[ "$keep" -le "$num_pdfs" ] || keep=$num_pdfs
list=$(mktemp "$exp/post_list.XXXXXX")
trap 'rm -f "$list"*' EXIT
remove_parts() { rm -f "$out/$name".[0-9]*.{scp,json}; }

dump() { # SCP SET TEACHERS OPTIONS: the archives of what teachers hear of SET
  local out=$exp/${1%/*} name=${1##*/} set=$2 teachers=$3 options=$4 feats models=() t settings fp count work j todo
  name=${name%.scp}
  feats=$(teacher_feats "$set")
  if [ "$set" = "$train_set" ]; then need 3 "$feats" "$feats/feats.scp"; else need 2 "$feats" "$feats/feats.scp"; fi
  for t in $teachers; do
    need 5 "$exp/$t" "$exp/$t/model.yaml"
    models+=("$exp/$t")
  done
  settings="keep=$keep"
  [ "$name" != full ] || settings="keep=all"
  if [ "$fuse" = true ]; then settings="fuse $options"; fi
  fp=$(fingerprint posteriors "$settings combine=$combine" "$feats" "$ali" "${models[@]}")
  if is_done "$out" "$fp"; then remove_parts; echo "$0: $out is up to date"; return; fi
  resume "$out" "$fp" "$nj" # what this setting left is kept, and so is its number of jobs
  count=$(note_of "$out")
  [[ $count =~ ^[1-9][0-9]*$ ]] || fail "$out/.marker does not say how many jobs there are: remove $out"
  : >"$list"
  for ((j = 1; j <= count; j++)); do
    if [ -f "$out/$name.$j.json" ]; then continue; fi # it is written last
    work=(essence dump-post --job "$j/$count" --combine "$combine" --feats "scp:$feats/feats.scp")
    if [ "$fuse" = true ]; then
      # shellcheck disable=SC2206  # options are words
      work+=(--fuse $options)
    else
      work+=("--$settings")
    fi
    printf '%q ' "${work[@]}" "${models[@]}" "ark,scp:$out/$name.$j.ark,$out/$name.$j.scp" >>"$list"
    echo >>"$list"
  done
  todo=$(wc -l <"$list")
  if [ "$todo" -gt 0 ]; then
    echo "$0: $todo of $count jobs; logs: $out/log/dump.*.log"
    run_jobs "${forward_cmd:-$cmd}" "$list" "$out/log/dump.JOB.log" ||
      fail "a job failed; its log is one of $out/log/dump.*.log. The same command goes on with what is missing"
  fi
  local outputs=("$name.scp") parts=() every
  for ((j = 1; j <= count; j++)); do parts+=("$out/$name.$j.scp") outputs+=("$name.$j.ark"); done
  essence join-post "$out/$name.scp" "${parts[@]}"
  same_count "$feats/feats.scp" "$out/$name.scp"
  if [ "$name" = wide ] && [ "$set" = "$train_set" ]; then
    # Means of 20,000 utterances say what those of more do, without reading terabytes in one job.
    every=$((($(wc -l <"$out/wide.scp") + 19999) / 20000))
    one_job "$out/log/post_stats.log" essence post-stats --every $every --alignment "scp:$ali/ali.scp" \
      --json "$out/post_stats.json" --plot "$out/post_stats.png" "scp:$out/wide.scp"
  fi
  mark_done "$out" "$fp" "${outputs[@]}"
  remove_parts
  echo "$0: posteriors of $(wc -l <"$feats/feats.scp") utterances are in $out"
}

while IFS=$'\t' read -r _ scp set teachers options <&3; do
  dump "$scp" "$set" "$teachers" "$options"
done 3<<<"$found"
