#!/usr/bin/env bash
# An nnet3 student on targets of essence_targets.sh: writes the egs, then runs Kaldi's own steps/nnet3/train_dnn.py or
# train_rnn.py on them.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
help_message="Usage: ESSENCE/recipes/plugin/train_nnet3_student.sh [options] DATA ALI TARGETS DIR [-- TRAINER-OPTION...]
 e.g. (in egs/X/s5, with exp/student/configs made by steps/nnet3/xconfig_to_configs.py):
   ESSENCE/recipes/plugin/train_nnet3_student.sh --cmd \"\$train_cmd\" --nj 16 --soft-weight 0.9 \\
     data/train_sp_hires exp/tri3_ali_sp exp/essence exp/student -- --trainer.num-epochs 4 --use-gpu wait
 DATA: the student's features; ALI: the alignments that TARGETS (of essence_targets.sh) was made with
 DIR gets egs and final.mdl, which steps/nnet3/decode.sh decodes
  --nj N                      jobs that write egs (default: 4)
  --cmd COMMAND               how they run, and the trainer's (default: run.pl)
  --soft-weight A             weight of the targets, the alignments have the rest (default: 0.9)
  --untranscribed DATA, --untranscribed-targets TARGETS   audio without transcripts, whose targets are taken as they are
  --trainer dnn|rnn           train_dnn.py or train_rnn.py (default: dnn)
  --frames-per-eg N           rows of an example; of rnn: the chunk width, such as 40,30,20 (default: 8)
  --chunk-left-context N, --chunk-right-context N      of rnn, beyond what the model sees (default: 0)
  --samples-per-iter N        examples of an archive (default: 400000)
  --cmvn-opts 'OPTIONS'       (default: --norm-means=false --norm-vars=false)
  --online-ivector-dir DIR    (default: none)
  --num-utts-subset N         utterances for validation, and for diagnostics of the training set (default: 300)
  --srand N                   (default: 0)"
nj=4
cmd=run.pl
soft_weight=0.9
untranscribed=
untranscribed_targets=
trainer=dnn
frames_per_eg=8
chunk_left_context=0
chunk_right_context=0
samples_per_iter=400000
cmvn_opts="--norm-means=false --norm-vars=false"
online_ivector_dir=
num_utts_subset=300
srand=0
# shellcheck source=recipes/plugin/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
{ [ $# -ge 4 ] && [ "${5:---}" = -- ]; } || usage
data=$1 ali=$2 targets=$3 dir=$4
shift 4
[ $# -eq 0 ] || shift
# How many models Kaldi's trainer trains side by side at the end: each takes an archive, and it refuses
# to begin with fewer.
side_by_side=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --trainer.optimization.num-jobs-final=*) side_by_side=${!i#*=} ;;
    --trainer.optimization.num-jobs-final) next=$((i + 1)) side_by_side=${!next:-} ;;
  esac
done
[[ ${side_by_side:-1} =~ ^[1-9][0-9]*$ ]] ||
  refuse "--trainer.optimization.num-jobs-final takes a whole number, not '$side_by_side'"
case $trainer in dnn | rnn) ;; *) refuse "--trainer is dnn or rnn, not '$trainer'" ;; esac
numbers samples_per_iter num_utts_subset
[[ $frames_per_eg =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] ||
  refuse "--frames-per-eg takes whole numbers with commas between, not '$frames_per_eg'"
program nnet3-get-egs nnet3-copy-egs nnet3-shuffle-egs nnet3-subset-egs nnet3-train feat-to-dim feat-to-len ali-to-pdf \
  apply-cmvn copy-post
files "$data"/{feats.scp,utt2spk,spk2utt,cmvn.scp} "$ali"/{final.mdl,tree,ali.1.gz,num_jobs,phones.txt}
[ -d "$targets/ali" ] ||
  fail "'$targets/ali' is missing: TARGETS is what essence_targets.sh leaves (of other posteriors give it the scp)"
files "$targets"/{post.scp,essence.json} "$targets"/ali/{ali.scp,num_pdfs} "$dir"/configs/{vars,final.config}
[ -z "$untranscribed$untranscribed_targets" ] ||
  files "$untranscribed"/{feats.scp,utt2spk,cmvn.scp} "$untranscribed_targets"/{post.scp,essence.json}
[ -f "steps/nnet3/train_$trainer.py" ] ||
  fail "there is no steps/nnet3/train_$trainer.py here: run this in a Kaldi recipe directory"
ivector_dim=$(sed -n 's/^input-node name=ivector dim=\([0-9]*\).*/\1/p' "$dir/configs/final.config")
ivector_dim=${ivector_dim:-0}
if [ -n "$online_ivector_dir" ]; then
  files "$online_ivector_dir"/{ivector_online.scp,ivector_period}
  given=$(feat-to-dim "scp:$online_ivector_dir/ivector_online.scp" - 2>/dev/null) || given=unknown
  [ "$given" = "$ivector_dim" ] ||
    fail "i-vectors in $online_ivector_dir have $given numbers, the network $dir/configs takes $ivector_dim"
  in=$(wc -l <"$data/feats.scp") n=$(only "$data/feats.scp" "$online_ivector_dir/ivector_online.scp" | wc -l)
  [ $((100 * n)) -ge $((95 * in)) ] ||
    fail "$online_ivector_dir has i-vectors of $n of the $in utterances of $data: other data?"
elif [ "$ivector_dim" -gt 0 ]; then
  fail "the network $dir/configs takes i-vectors of $ivector_dim numbers: give --online-ivector-dir"
fi
if [ -f "$targets/ali/transitions.txt" ]; then
  show-transitions "$ali/phones.txt" "$ali/final.mdl" 2>/dev/null | grep '^Transition-state' |
    cmp -s - <(grep '^Transition-state' "$targets/ali/transitions.txt") ||
    fail "$targets was made for another tree than that of $ali"
fi
num_pdfs=$(cat "$targets/ali/num_pdfs")
shift_ms=$(essence get "$targets/essence.json" frame_shift_ms)
whole_number "${shift_ms%.*}" "frame_shift_ms of $targets/essence.json"
factor=$((${shift_ms%.*} / 10))
context() { sed -n "s/^\(model_\)\?$1=//p" "$dir/configs/vars"; }
left=$(context left_context) right=$(context right_context)
whole_number "$left" "left_context of $dir/configs/vars"
whole_number "$right" "right_context of $dir/configs/vars"
left=$((left + chunk_left_context)) right=$((right + chunk_right_context))

# Is the tree of ALI one for a low frame rate, whose graph decode.sh needs every Nth frame for? build_tree.sh says so,
# or the first alignment is shorter than its features.
low_rate() {
  local utt length frames
  [ ! -f "$ali/frame_subsampling_factor" ] || return 0
  read -r utt length < <(gunzip -c "$ali/ali.1.gz" | ali-to-pdf "$ali/final.mdl" ark:- ark,t:- 2>/dev/null |
    awk 'NR == 1 { print $1, NF - 1 }')
  frames=$(grep "^$utt " "$data/feats.scp" | feat-to-len scp:- ark,t:- 2>/dev/null | awk '{ print $2 }')
  [ -n "$frames" ] && [ "$length" -lt "$((frames / 2))" ]
}
# Networks learn from all frames, as in Kaldi's own recipes of a low rate, so targets of such a rate are brought to the
# features': where the tree is of that rate by repeating the mixed targets, elsewhere each frame's own alignment is
# mixed with the soft target nearest to it. nnet3-get-egs --frame-subsampling-factor=N would take every Nth row, but
# multiplies it with a weight that it reads at N times the place, beyond the end of its vector
# (Kaldi since July 2020, #4183).
times=1 mix=(--frame-subsampling-factor "$factor")
if [ "$factor" -gt 1 ] && low_rate; then times=$factor; else mix+=(--every-frame); fi
egs=$dir/egs more=()
if [ -n "$untranscribed" ]; then
  more=("$untranscribed"/{feats,cmvn}.scp "$untranscribed_targets"/{post.scp,essence.json})
fi
settings="egs $trainer ${mix[*]} A=$soft_weight frames=$frames_per_eg context=$left,$right samples=$samples_per_iter\
 cmvn=$cmvn_opts
subset=$num_utts_subset srand=$srand"
fp=$(fingerprint plugin "$settings" "$data"/{feats,cmvn}.scp "$targets"/{post.scp,essence.json} "$targets/ali/ali.scp" \
  ${online_ivector_dir:+"$online_ivector_dir/ivector_online.scp"} "${more[@]}")
if is_done "$egs" "$fp" && [ "${side_by_side:-1}" -le "$(cat "$egs/info/num_archives")" ]; then
  echo "$0: $egs is up to date"
else
  rm -rf "$egs" "$dir"/[0-9]*.mdl "$dir"/[0-9]*.raw "$dir"/final.mdl
  mkdir -p "$egs"/{info,log,jobs}
  all=$data # what egs are made of
  if [ -n "$untranscribed" ]; then
    all=$egs/jobs/all
    mkdir "$all"
    for f in feats.scp utt2spk cmvn.scp utt2uniq; do
      for d in "$data" "$untranscribed"; do
        if [ -f "$d/$f" ]; then cat "$d/$f"; elif [ "$f" = utt2uniq ]; then awk '{ print $1, $1 }' "$d/feats.scp"; fi
      done | LC_ALL=C sort >"$all/$f"
      twice=$(awk '{ print $1 }' "$all/$f" | uniq -d | head -n 1)
      [ -z "$twice" ] || fail "$twice is in $f of both $data and $untranscribed: give one of them another name"
    done
    feat-to-len "scp:$untranscribed/feats.scp" "ark,t:$egs/jobs/utt2num_frames" 2>"$egs/log/feat_to_len.log" ||
      fail "$untranscribed/feats.scp cannot be read; log: $egs/log/feat_to_len.log"
    mix+=(--untranscribed "scp:$untranscribed_targets/post.scp" --num-frames "$egs/jobs/utt2num_frames")
  fi
  essence mix-post --soft-weight "$soft_weight" "${mix[@]}" "scp:$targets/post.scp" \
    "scp:$targets/ali/ali.scp" "ark,scp:$egs/jobs/post.ark,$egs/jobs/post.scp"
  # Whoever has targets, apart from the utterances (all versions of them) that are for validation.
  only "$egs/jobs/post.scp" "$all/feats.scp" >"$egs/jobs/feats.scp"
  in=$(wc -l <"$all/feats.scp") n=$(wc -l <"$egs/jobs/feats.scp")
  [ $((100 * n)) -ge $((95 * in)) ] ||
    fail "$targets/post.scp has targets of $n of the $in utterances of $data${untranscribed:+ and $untranscribed}:\
 other data?"
  uniq=$all/utt2uniq
  if [ ! -f "$uniq" ]; then
    uniq=$egs/jobs/utt2uniq
    awk '{ print $1, $1 }' "$egs/jobs/feats.scp" >"$uniq"
  fi
  awk -v n="$num_utts_subset" -v seed="$srand" '
    NR == FNR { uniq[$1] = $2; next }
    { id[++count] = $1; group = uniq[$1]; if (!(group in versions)) order[++groups] = group; versions[group]++ }
    END {
      if (n > groups / 5) n = int(groups / 5)
      srand(seed)
      for (i = 1; i <= n; i++) {
        j = i + int(rand() * (groups - i + 1)); swap = order[i]; order[i] = order[j]; order[j] = swap; held[order[i]]
      }
      for (i = 1; i <= count; i++) print id[i], (uniq[id[i]] in held ? "valid" : "train")
    }' "$uniq" "$egs/jobs/feats.scp" >"$egs/jobs/part"
  awk '$2 == "valid" { print $1 }' "$egs/jobs/part" >"$egs/valid_uttlist"
  awk '$2 == "train" { print $1 }' "$egs/jobs/part" >"$egs/jobs/train_uttlist"
  [ -s "$egs/valid_uttlist" ] || fail "$data: $n utterances are too few: none can be held out for validation"
  awk -v n="$num_utts_subset" -v total="$(wc -l <"$egs/jobs/train_uttlist")" \
    'BEGIN { step = total > n ? total / n : 1 } NR > at { print; at += step }' \
    "$egs/jobs/train_uttlist" >"$egs/train_subset_uttlist"

  frames=$(essence get "$egs/jobs/essence.json" num_frames)
  per_eg=${frames_per_eg%%,*}
  frames=$((frames * times))
  archives=$((frames / (per_eg * samples_per_iter) + 1))
  if [ "$archives" -lt "${side_by_side:-1}" ]; then archives=$side_by_side; fi
  [ $((archives + 16)) -le "$(ulimit -n)" ] ||
    fail "$archives archives are more than files can be open (ulimit -n: $(ulimit -n)):\
 raise that or --samples-per-iter"
  echo "$left" >"$egs/info/left_context"
  echo "$right" >"$egs/info/right_context"
  echo -1 | tee "$egs/info/left_context_initial" >"$egs/info/right_context_final"
  echo "$frames" >"$egs/info/num_frames"
  echo "$archives" >"$egs/info/num_archives"
  echo "$frames_per_eg" >"$egs/info/frames_per_eg"
  echo "$((frames / (per_eg * archives)))" >"$egs/info/egs_per_archive"
  echo "$cmvn_opts" >"$egs/cmvn_opts"
  feat-to-dim "scp:$all/feats.scp" - >"$egs/info/feat_dim" 2>"$egs/log/feat_dim.log"
  echo "$ivector_dim" >"$egs/info/ivector_dim"
  options=(--num-pdfs="$num_pdfs" --left-context="$left" --right-context="$right" --num-frames="$frames_per_eg")
  rm -f "$dir/frame_subsampling_factor"
  [ "$times" -eq 1 ] || echo "$times" >"$dir/frame_subsampling_factor"
  if [ -n "$online_ivector_dir" ]; then
    steps/nnet2/get_ivector_id.sh "$online_ivector_dir" >"$egs/info/final.ie.id" 2>/dev/null ||
      rm -f "$egs/info/final.ie.id"
    options+=(--online-ivectors="scp:$online_ivector_dir/ivector_online.scp"
      --online-ivector-period="$(cat "$online_ivector_dir/ivector_period")")
  fi
  post="scp:$egs/jobs/post.scp"
  if [ "$times" -gt 1 ]; then
    post="ark,s,cs:essence copy-post --repeat $times $(sh_quoted "scp:$egs/jobs/post.JOB.scp") ark:- |"
  fi

  # get_egs LIST NAME WSPECIFIER...: the examples of some utterances, by one job's script
  get_egs() {
    local list=$1 name=$2 mine=$post
    shift 2
    only "$list" "$all/feats.scp" >"$egs/jobs/feats.$name.scp"
    only "$list" "$egs/jobs/post.scp" >"$egs/jobs/post.$name.scp"
    mine=${mine//post.JOB/post.$name}
    local feats
    feats="ark,s,cs:apply-cmvn $cmvn_opts $(sh_quoted "--utt2spk=ark:$all/utt2spk" "scp:$all/cmvn.scp" \
      "scp:$egs/jobs/feats.$name.scp") ark:- |"
    job_script "$egs/jobs/$name.sh" '' \
      "$(quoted nnet3-get-egs "${options[@]}" "$feats" "$mine" ark:-) | $(quoted "$@")"
  }
  run_jobs() { # LOG ARGUMENT...: runs, and a failure names the log
    # shellcheck disable=SC2086  # cmd is words
    $cmd "$@" || fail "writing egs failed; logs: $egs/log. The same command begins them anew"
  }
  get_egs "$egs/valid_uttlist" valid nnet3-copy-egs ark:- "ark:$egs/jobs/valid.egs"
  get_egs "$egs/train_subset_uttlist" train_subset nnet3-copy-egs ark:- "ark:$egs/jobs/train_subset.egs"
  run_jobs "$egs/log/valid.log" bash "$egs/jobs/valid.sh"
  run_jobs "$egs/log/train_subset.log" bash "$egs/jobs/train_subset.sh"
  for part in valid train_subset; do
    run_jobs "$egs/log/${part}_combine.log" nnet3-subset-egs --n="$((10000 / per_eg))" "ark:$egs/jobs/$part.egs" \
      "ark:$egs/jobs/${part}_combine.egs"
    run_jobs "$egs/log/${part}_diagnostic.log" nnet3-subset-egs --n="$((4000 / per_eg))" "ark:$egs/jobs/$part.egs" \
      "ark:$egs/${part%_subset}_diagnostic.egs"
  done
  cat "$egs"/jobs/{valid,train_subset}_combine.egs >"$egs/combine.egs"

  nj=$(parts "$nj" "$egs/jobs/train_uttlist" "$egs/jobs/list")
  for ((j = 1; j <= nj; j++)); do
    outputs=()
    for ((a = 1; a <= archives; a++)); do outputs+=("ark:$egs/jobs/orig.$j.$a.ark"); done
    get_egs "$egs/jobs/list.$j" "$j" nnet3-copy-egs --random=true --srand="$((j + srand))" ark:- "${outputs[@]}"
  done
  run_jobs JOB=1:"$nj" "$egs/log/get_egs.JOB.log" bash "$egs/jobs/JOB.sh"
  run_jobs --max-jobs-run "$nj" JOB=1:"$archives" "$egs/log/shuffle.JOB.log" nnet3-shuffle-egs --srand="$srand" \
    "ark:cat $(sh_quoted "$egs/jobs")/orig.*.JOB.ark |" "ark:$egs/egs.JOB.ark"
  outputs=(combine.egs valid_diagnostic.egs train_diagnostic.egs cmvn_opts)
  for ((a = 1; a <= archives; a++)); do outputs+=("egs.$a.ark"); done
  for f in "${outputs[@]}"; do [ -s "$egs/$f" ] || fail "'$egs/$f' has no example; logs: $egs/log"; done
  rm -rf "$egs/jobs"
  mark_done "$egs" "$fp" "${outputs[@]}"
  echo "$0: $archives archives of examples are in $egs, $(wc -l <"$egs/valid_uttlist") utterances are for validation"
fi

width=(--egs.frames-per-eg "$frames_per_eg")
if [ "$trainer" = rnn ]; then
  width=(--egs.chunk-width "$frames_per_eg" --egs.chunk-left-context "$chunk_left_context"
    --egs.chunk-right-context "$chunk_right_context")
fi
archives=$(cat "$egs/info/num_archives")
whole_number "$archives" "$egs/info/num_archives"
# Kaldi's default: 8
[ -n "$side_by_side" ] || width+=(--trainer.optimization.num-jobs-final "$((archives < 8 ? archives : 8))")
if [ -n "$online_ivector_dir" ]; then width+=(--feat.online-ivector-dir "$online_ivector_dir"); fi
# no LDA layer, which train_rnn.py takes for granted
if [ "$trainer" = rnn ] && [ ! -f "$dir/configs/init.config" ]; then
  nnet3-init --srand="$srand" "$dir/configs/final.config" "$dir/initial.raw" 2>"$egs/log/init.log"
  width+=(--trainer.input-model "$dir/initial.raw")
fi
# --stage: Kaldi's default leaves out the first step, which networks with an LDA layer need
steps/nnet3/train_"$trainer".py --stage=-10 --cmd "$cmd" --feat.cmvn-opts "$cmvn_opts" --egs.dir "$egs" "${width[@]}" \
  --trainer.srand "$srand" --feat-dir "$data" --ali-dir "$ali" --dir "$dir" "$@" ||
  fail "the trainer failed; logs: $dir/log"
if [ -f "$dir/final.mdl" ]; then echo "$0: the student is in $dir; steps/nnet3/decode.sh decodes it"
else echo "$0: as it was told, the trainer ended before $dir/final.mdl"; fi
