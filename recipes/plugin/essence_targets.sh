#!/usr/bin/env bash
# Essence targets in somebody else's Kaldi recipe: teachers' posteriors of DATA, combined and pruned, in parallel jobs.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
help_message="Usage: ESSENCE/recipes/plugin/essence_targets.sh [options] DATA ALI TEACHER... OUT
 e.g. (in egs/X/s5): ESSENCE/recipes/plugin/essence_targets.sh --cmd \"\$train_cmd\" --nj 32 --top-k 20 \\
        data/train_sp_hires exp/tri3_ali_sp exp/nnet3/tdnn_lstm_sp exp/nnet3/blstm_sp exp/essence
 ALI: alignments of DATA by the model whose tree the teachers have (final.mdl, tree, ali.*.gz), or ESSENCE's own; of
   chain models, the directory of their tree
 TEACHER: an nnet3 directory (final.mdl, tree, cmvn_opts), an scp of matrices or of posteriors, a row per frame, or a
   model directory of ESSENCE; the rows of all come at one rate
 OUT gets post.scp (Kaldi Posterior archives), essence.json and ali (an alignment directory of ESSENCE); logs: OUT/log
How it runs
  --nj N                          jobs (default: 4)
  --cmd COMMAND                   how they run (default: run.pl where it is found, else on this machine)
  --gpu true|false                jobs take a GPU each: '--gpu 1' to the queue, --use-gpu=yes to nnet3-compute
                                  (default: false)
Targets
  --top-k N                       classes per frame (default: 20)
  --temperature T                 (default: 1)
  --combine mean|logmean          how several teachers are combined (default: mean)
  --weights 'W,W,...'             one weight per teacher (default: all the same)
  --input prob|log|logit          what matrices in scps hold (default: prob)
  --frame-subsampling-factor N    feature frames per row of matrices (default: what a sidecar beside the scp says,
                                  else 1; directories say it themselves)
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
frame_subsampling_factor=
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
numbers top_k frames_per_chunk
[ -z "$frame_subsampling_factor" ] || numbers frame_subsampling_factor
files "$data"/{feats.scp,utt2spk}
if [ -n "$online_ivector_dir" ]; then
  files "$online_ivector_dir"/{ivector_online.scp,ivector_period}
  ivector_dim=$(feat-to-dim "scp:$online_ivector_dir/ivector_online.scp" - 2>/dev/null) || ivector_dim=unknown
fi
default_cmd

# What each teacher is: its kind, feature frames per row, and of nnet3 directories the size of an i-vector.
kinds=() factors=() ivectors=()
look_at_nnet3() { # DIR
  local t=$1 info nodes name other tree dim rate
  program nnet3-compute nnet3-am-copy nnet3-am-info feat-to-dim apply-cmvn
  files "$data/cmvn.scp"
  info=$(nnet3-am-info "$t/final.mdl" 2>/dev/null) ||
    fail "$t/final.mdl is no nnet3 model: nnet3-am-info cannot read it"
  told() { awk -v name="$1:" '$1 == name { print $2; exit }' <<<"$info"; }
  nodes=" $(sed -n 's/^output-node name=\([^ ]*\) .*/\1/p' <<<"$info" | tr '\n' ' ')"
  [[ $nodes == *" $output_name "* ]] || fail "$t has no output '$output_name' (--output-name); it has:$nodes"
  # A chain model: its output was trained by a sum over sequences, and is no posterior of a frame.
  other=
  for name in output-xent output-default-xent; do [[ $nodes != *" $name "* ]] || other=$name; done
  if [ "$output_name" = output ]; then
    [ -z "$other" ] || fail "$t is a chain model, whose 'output' is no posterior. Take its cross-entropy output by\
 --output-name $other, and as ALI the directory of its tree, such as exp/chain/tree_sp\
 (steps/nnet3/chain/build_tree.sh)"
    if [ -f "$t/den.fst" ] || [ -d "$t/den_fsts" ]; then
      fail "$t is a chain model without a cross-entropy output (output-xent): it has no posteriors to learn from"
    fi
  fi
  tree=$t/tree
  if [ ! -f "$tree" ] && [ -f "$t/default.tree" ]; then tree=$t/default.tree; fi  # of steps/chain2
  files "$tree"
  [ ! -f "$ali/tree" ] || cmp -s "$ali/tree" "$tree" ||
    fail "$tree is not $ali/tree: the senones of this model are others. ALI must have the tree of the teachers\
${other:+; that of a chain model is the directory that steps/nnet3/chain/build_tree.sh made, such as exp/chain/tree_sp}"
  if [ -f "$t/online_cmvn" ]; then
    program apply-cmvn-online
    files "$t"/{cmvn_opts,global_cmvn.stats}
    by_speaker=$data/utt2spk
  fi
  dim=$(feat-to-dim "scp:$data/feats.scp" - 2>/dev/null) || fail "$data/feats.scp: Kaldi's feat-to-dim cannot read it"
  [ "$dim" = "$(told input-dim)" ] ||
    fail "$t takes features of $(told input-dim) numbers, those of $data have $dim:\
 give data with its features (${data}_hires?)"
  dim=$(told ivector-dim)
  dim=${dim/#-1/0}
  if [ "${dim:=0}" -gt 0 ]; then
    [ -n "$online_ivector_dir" ] || fail "$t takes i-vectors of $dim numbers: give --online-ivector-dir"
    [ "$dim" = "$ivector_dim" ] ||
      fail "$t takes i-vectors of $dim numbers, those in $online_ivector_dir have $ivector_dim"
  fi
  ivectors+=("$dim")
  rate=$(cat "$t/frame_subsampling_factor" 2>/dev/null) ||
    # of steps/chain2
    rate=$(awk '$1 == "frame_subsampling_factor" { print $2 }' "$t/init/info.txt" 2>/dev/null) || true
  whole_number "${rate:-1}" "frame_subsampling_factor of $t"
  factors+=("${rate:-1}")
}
look_at_table() { # SCP: what wrote it may have left a sidecar
  local scp=${1#scp:} sidecar shift rate=
  sidecar=${scp%.scp}.json
  [ "${scp##*/}" != post.scp ] || sidecar=${scp%post.scp}essence.json
  shift=$(sed -n 's/.*"frame_shift_ms": *\([0-9]*\).*/\1/p' "$sidecar" 2>/dev/null) || true
  [ -z "$shift" ] || rate=$((shift / 10))
  if [ -n "$rate" ] && [ -n "$frame_subsampling_factor" ] && [ "$rate" -ne "$frame_subsampling_factor" ]; then
    fail "$1 has a row every $rate frames ($sidecar), not every $frame_subsampling_factor (--frame-subsampling-factor)"
  fi
  factors+=("${frame_subsampling_factor:-${rate:-1}}")
}
by_speaker=
for t in "${teachers[@]}"; do
  if [ -f "$t/final.pt" ]; then
    files "$t/model.yaml"
    by_speaker=$data/utt2spk  # means may be taken off speaker by speaker
    kinds+=(model) ivectors+=(0) factors+=("$(essence get "$t/model.yaml" frame_subsampling_factor)")
    whole_number "${factors[-1]}" "frame_subsampling_factor of $t/model.yaml"
  elif [ -f "$t/final.mdl" ]; then
    kinds+=(nnet3)
    look_at_nnet3 "$t"
  elif [ -f "${t#scp:}" ] && [[ $t == *.scp ]]; then
    kinds+=(table) ivectors+=(0)
    look_at_table "$t"
  else
    fail "teacher '$t' is neither an nnet3 directory with final.mdl, nor a model directory with final.pt,\
 nor an .scp file"
  fi
  [ "${factors[-1]}" = "${factors[0]}" ] ||
    fail "$t has a row every ${factors[-1]} frames, ${teachers[0]} every ${factors[0]}:\
 teachers of one ensemble need one rate"
done
case " ${kinds[*]} " in
  *" nnet3 "*" table "* | *" table "*" nnet3 "*)
    [ "$input" != prob ] ||
      fail "matrices of probabilities and nnet3 teachers do not mix: give log-probabilities and --input log" ;;
esac
factor=${factors[0]}

mkdir -p "$out/log"
out=$(cd -P "$out" && pwd)
import_ali "$data" "$ali" "$out/ali" "$factor"
ali_tree=$(sed -n 's/.*"tree_hash": *"\([0-9a-f]*\)".*/\1/p' "$out/ali/ali.json")
for i in "${!teachers[@]}"; do
  if [ "${kinds[i]}" = model ]; then
    tree=$(awk '/^tree_hash:/ && $2 != "null" { print $2 }' "${teachers[i]}/model.yaml")
    [ -z "$tree" ] || [ -z "$ali_tree" ] || [ "$tree" = "$ali_tree" ] ||
      fail "${teachers[i]} was trained on another tree (tree_hash of its model.yaml) than that of $ali:\
 its senones are others"
  fi
done
settings="top_k=$top_k T=$temperature combine=$combine weights=$weights input=$input factor=$factor nj=$nj\
 node=$output_name${by_speaker:+ speakers}
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
fp=$(fingerprint plugin "$settings" "${inputs[@]}")
all_fp=$(fingerprint plugin "$fp $ali_fp")
if is_done "$out" "$all_fp"; then echo "$0: $out is up to date"; exit 0; fi
rm -f "$out/.marker"
resume "$out/jobs" "$fp"

# One script a job; what another run of this command has finished is kept.
rm -f "$out"/jobs/feats.*
utts=$(wc -l <"$data/feats.scp") nj=$(parts "$nj" "$data/feats.scp" "$out/jobs/feats" ${by_speaker:+"$by_speaker"})
gpu_option=--use-gpu=no
if [ "$gpu" = true ]; then gpu_option=--use-gpu=yes cmd="$cmd --gpu 1"; fi
for ((j = 1; j <= nj; j++)); do
  dir=$out/jobs/$j
  mkdir -p "$dir"
  mv "$out/jobs/feats.$j" "$dir/feats.scp"
  only "$dir/feats.scp" "$data/utt2spk" >"$dir/utt2spk"
  sources=()
  for i in "${!teachers[@]}"; do
    t=${teachers[i]}
    case ${kinds[i]} in
      model) sources+=("$t") ;;
      table)
        only "$dir/feats.scp" "${t#scp:}" >"$dir/teacher_$((i + 1)).scp"
        sources+=("scp:$dir/teacher_$((i + 1)).scp") ;;
      nnet3)
        net="$(sh_quoted nnet3-am-copy --raw=true "$t/final.mdl" -) |"
        if [ "$output_name" != output ]; then
          net+=" $(sh_quoted nnet3-copy \
            "--edits=remove-output-nodes name=output;rename-node old-name=$output_name new-name=output" - -) |"
        fi
        options=("$gpu_option" --frame-subsampling-factor="$factor" --frames-per-chunk="$frames_per_chunk"
          --extra-left-context="$extra_left_context" --extra-right-context="$extra_right_context"
          --extra-left-context-initial="$extra_left_context_initial"
          --extra-right-context-final="$extra_right_context_final")
        if [ "${ivectors[i]}" -gt 0 ]; then
          options+=(--online-ivectors="scp:$online_ivector_dir/ivector_online.scp"
            --online-ivector-period="$(cat "$online_ivector_dir/ivector_period")")
        fi
        cmvn="--norm-means=false --norm-vars=false"
        [ ! -f "$t/cmvn_opts" ] || cmvn=$(kaldi_options "$t/cmvn_opts") || exit 1
        if [ -f "$t/online_cmvn" ]; then
          only "$dir/feats.scp" "$data/utt2spk" | awk '
            !($2 in utts) { speaker[++n] = $2 }
            { utts[$2] = utts[$2] " " $1 }
            END { for (i = 1; i <= n; i++) print speaker[i] utts[speaker[i]] }' >"$dir/spk2utt"
          feats="ark,s,cs:apply-cmvn-online $cmvn $(sh_quoted "--spk2utt=ark:$dir/spk2utt" "$t/global_cmvn.stats" \
            "scp:$dir/feats.scp") ark:- |"
        else
          feats="ark,s,cs:apply-cmvn $cmvn $(sh_quoted "--utt2spk=ark:$data/utt2spk" "scp:$data/cmvn.scp" \
            "scp:$dir/feats.scp") ark:- |"
        fi
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
echo "$0: targets of $utts utterances from ${#teachers[@]} teacher(s) in $nj jobs; logs: $out/log/targets.*.log"
# shellcheck disable=SC2086  # cmd is words
$cmd JOB=1:"$nj" "$out/log/targets.JOB.log" bash "$out/jobs/JOB/job.sh" ||
  fail "a job failed; its log is one of $out/log/targets.*.log. The same command goes on with what is missing"
models=()
for t in "${teachers[@]}"; do models+=(--model "$t"); done
scps=()
for ((j = 1; j <= nj; j++)); do scps+=("$out/jobs/$j/post.scp"); done
essence join-post --ali-dir "$out/ali" --utts "$data/feats.scp" --frame-shift-ms "$((10 * factor))" \
  "${models[@]}" "$out" "${scps[@]}"
mark_done "$out" "$all_fp" post.scp essence.json
