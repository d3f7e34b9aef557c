#!/usr/bin/env bash
# Essence targets in somebody else's Kaldi recipe: teachers' posteriors of DATA, combined and pruned, in parallel jobs.
help_message="Usage: ESSENCE/recipes/plugin/essence_targets.sh [options] DATA ALI TEACHER... OUT
 e.g. (in egs/X/s5): ESSENCE/recipes/plugin/essence_targets.sh --cmd \"\$train_cmd\" --nj 32 --top-k 20 \\
        data/train_sp_hires exp/tri3_ali_sp exp/nnet3/tdnn_lstm_sp exp/nnet3/blstm_sp exp/essence
 ALI: alignments of DATA by the model whose tree the teachers have (final.mdl, tree, ali.*.gz), or ESSENCE's own
 TEACHER: an nnet3 directory (final.mdl, tree, cmvn_opts), an scp of matrices or of posteriors, a row a frame, or a model
   directory of ESSENCE; the rows of all come at one rate
 OUT gets post.scp (Kaldi Posterior archives), essence.json and ali (an alignment directory of ESSENCE); logs: OUT/log
How it runs
  --nj N                          jobs (default: 4)
  --cmd COMMAND                   how they run (default: run.pl where it is found, else on this machine)
  --gpu true|false                jobs take a GPU each: '--gpu 1' to the queue, --use-gpu=yes to nnet3-compute (default: false)
Targets
  --top-k N                       classes a frame (default: 20)
  --temperature T                 (default: 1)
  --combine mean|logmean          how several teachers are combined (default: mean)
  --weights 'W,W,...'             a weight a teacher (default: all the same)
  --input prob|log|logit          what matrices in scps hold (default: prob)
  --frame-subsampling-factor N    feature frames a row of matrices (default: 1; directories say it themselves)
nnet3 teachers
  --online-ivector-dir DIR        for the networks that take i-vectors (default: none)
  --frames-per-chunk N            (default: 50; for recurrent teachers as in their training)
  --extra-left-context N, --extra-right-context N                   (default: 0)
  --extra-left-context-initial N, --extra-right-context-final N     (default: -1)
  --output-name NAME              node to read, such as output-xent of a chain model (default: output)"
nj=4
cmd=
gpu=false
top_k=20
temperature=1
combine=mean
weights=
input=prob
frame_subsampling_factor=1
online_ivector_dir=
frames_per_chunk=50
extra_left_context=0
extra_right_context=0
extra_left_context_initial=-1
extra_right_context_final=-1
output_name=output
# shellcheck source=recipes/plugin/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 4 ] || usage
data=$1 ali=$2 out=${*: -1}
teachers=("${@:3:$#-3}")
numbers top_k frame_subsampling_factor frames_per_chunk
files "$data"/{feats.scp,utt2spk}
if [ -n "$online_ivector_dir" ]; then files "$online_ivector_dir"/{ivector_online.scp,ivector_period}; fi
cmd=$(default_cmd "$cmd")

# What each teacher is: KIND and, of nnet3 directories, whether the tree is that of ALI and all have the same rate.
kinds=() factors=() ivectors=()
for t in "${teachers[@]}"; do
  ivector=0
  if [ -f "$t/final.mdl" ]; then
    files "$t"/{tree,cmvn_opts}
    program nnet3-compute nnet3-am-copy nnet3-am-info apply-cmvn
    same_tree "$ali" "$t"
    [ ! -f "$t/online_cmvn" ] ||
      fail "$t: online CMVN is not supported: write its posteriors with steps/nnet3/compute_output.sh, and give output.scp"
    ivector=$(nnet3-am-info "$t/final.mdl" 2>/dev/null | awk '/^ivector-dim/ { print $2 }')
    ivector=${ivector:-0}
    if [ "$ivector" -gt 0 ] && [ -z "$online_ivector_dir" ]; then
      fail "$t takes i-vectors of $ivector numbers: give --online-ivector-dir"
    fi
    kinds+=(nnet3) factors+=("$(cat "$t/frame_subsampling_factor" 2>/dev/null || echo 1)")
  elif [ -f "$t/final.pt" ]; then
    files "$t/model.yaml"
    kinds+=(model) factors+=("$(awk '/^frame_subsampling_factor:/ { print $2 }' "$t/model.yaml")")
  elif [ -f "${t#scp:}" ] && [[ $t == *.scp ]]; then
    kinds+=(table) factors+=("$frame_subsampling_factor")
  else
    fail "teacher '$t' is neither an nnet3 directory with final.mdl, nor a model directory with final.pt, nor an .scp file"
  fi
  ivectors+=("$ivector")
  [ "${factors[-1]}" = "${factors[0]}" ] ||
    fail "$t has a row every ${factors[-1]} frames, ${teachers[0]} every ${factors[0]}: teachers of one ensemble need one rate"
done
case " ${kinds[*]} " in
  *" nnet3 "*" table "* | *" table "*" nnet3 "*)
    [ "$input" != prob ] || fail "matrices of probabilities and nnet3 teachers do not mix: give log-probabilities and --input log" ;;
esac
factor=${factors[0]}

mkdir -p "$out/log"
out=$(cd -P "$out" && pwd)
import_ali "$data" "$ali" "$out/ali"
settings="top_k=$top_k T=$temperature combine=$combine weights=$weights input=$input factor=$factor nj=$nj node=$output_name
chunk=$frames_per_chunk $extra_left_context $extra_right_context $extra_left_context_initial $extra_right_context_final"
inputs=("$data/feats.scp")
for i in "${!teachers[@]}"; do
  case ${kinds[i]} in
    nnet3) inputs+=("${teachers[i]}/final.mdl") ;;
    model) inputs+=("${teachers[i]}/final.pt") ;;
    table) inputs+=("${teachers[i]#scp:}") ;;
  esac
done
[ -z "$online_ivector_dir" ] || inputs+=("$online_ivector_dir/ivector_online.scp")
fp=$(fingerprint "$settings" "${inputs[@]}")
if is_done "$out" "$fp"; then echo "$0: $out is up to date"; exit 0; fi
if [ "$(cat "$out/.begun" 2>/dev/null)" != "$fp" ]; then rm -rf "$out/jobs"; echo "$fp" >"$out/.begun"; fi
rm -f "$out/.done"

# One script a job; what another run of this command has finished is kept.
utts=$(wc -l <"$data/feats.scp")
[ "$nj" -le "$utts" ] || nj=$utts
mkdir -p "$out/jobs"
rm -f "$out"/jobs/feats.*
split -n "l/$nj" --numeric-suffixes=1 -a 5 "$data/feats.scp" "$out/jobs/feats."
gpu_option=--use-gpu=no
if [ "$gpu" = true ]; then gpu_option=--use-gpu=yes cmd="$cmd --gpu 1"; fi
for ((j = 1; j <= nj; j++)); do
  dir=$out/jobs/$j
  mkdir -p "$dir"
  mv "$(printf '%s/jobs/feats.%05d' "$out" "$j")" "$dir/feats.scp"
  sources=()
  for i in "${!teachers[@]}"; do
    t=${teachers[i]}
    case ${kinds[i]} in
      model) sources+=("$t") ;;
      table)
        only "$dir/feats.scp" "${t#scp:}" >"$dir/teacher_$((i + 1)).scp"
        sources+=("scp:$dir/teacher_$((i + 1)).scp") ;;
      nnet3)
        net="nnet3-am-copy --raw=true $t/final.mdl - |"
        if [ "$output_name" != output ]; then
          net="nnet3-am-copy --raw=true $t/final.mdl - | nnet3-copy --edits=\"remove-output-nodes name=output;"
          net+="rename-node old-name=$output_name new-name=output\" - - |"
        fi
        options=("$gpu_option" --frame-subsampling-factor="$factor" --frames-per-chunk="$frames_per_chunk"
          --extra-left-context="$extra_left_context" --extra-right-context="$extra_right_context"
          --extra-left-context-initial="$extra_left_context_initial"
          --extra-right-context-final="$extra_right_context_final")
        if [ "${ivectors[i]}" -gt 0 ]; then
          options+=(--online-ivectors="scp:$online_ivector_dir/ivector_online.scp"
            --online-ivector-period="$(cat "$online_ivector_dir/ivector_period")")
        fi
        feats="ark,s,cs:apply-cmvn $(cat "$t/cmvn_opts") --utt2spk=ark:$data/utt2spk scp:$data/cmvn.scp scp:$dir/feats.scp ark:- |"
        sources+=("ark:$(quoted nnet3-compute "${options[@]}" "$net" "$feats") ark:- |") ;;
    esac
  done
  # An nnet3 network answers log-probabilities: their softmax is the posterior, and logits may come in the same way.
  kind=$input
  case " ${kinds[*]} " in *" nnet3 "*) kind=logit ;; esac
  target="ark,scp:$dir/post.ark,$dir/post.scp"
  if [ "${kinds[*]}" = table ]; then  # one scp may hold posteriors, too
    work=(essence prune-post --top-k "$top_k" --temperature "$temperature" "${sources[0]}" "$target")
    if [ "$input" != prob ]; then work=(essence prune-post --input "$input" "${work[@]:2}"); fi
  else
    work=(essence dump-post --fuse --top-k "$top_k" --temperature "$temperature" --combine "$combine" --input "$kind"
      --frame-shift-ms "$((10 * factor))" --feats "scp:$dir/feats.scp")
    if [ -n "$weights" ]; then work+=(--weights "$weights"); fi
    work+=("${sources[@]}" "$target")
  fi
  job_script "$dir/job.sh" "$dir/essence.json" "$(quoted "${work[@]}")"
done
echo "$0: targets of $utts utterances from ${#teachers[@]} teachers in $nj jobs; logs: $out/log/targets.*.log"
# shellcheck disable=SC2086  # cmd is words
$cmd JOB=1:"$nj" "$out/log/targets.JOB.log" bash "$out/jobs/JOB/job.sh" ||
  fail "a job failed; its log is one of $out/log/targets.*.log. The same command goes on with what is missing"
models=()
for t in "${teachers[@]}"; do models+=(--model "$t"); done
scps=()
for ((j = 1; j <= nj; j++)); do scps+=("$out/jobs/$j/post.scp"); done
essence join-post --ali-dir "$out/ali" --utts "$data/feats.scp" --frame-shift-ms "$((10 * factor))" "${models[@]}" "$out" "${scps[@]}"
mark_done "$out" "$fp" post.scp essence.json
