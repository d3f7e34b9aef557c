#!/usr/bin/env bash
# Stage 5 of the engine kaldi with --teachers nnet3: networks by steps/nnet3, on the filterbanks and alignments
# of all others.
nj=2
cmd=run.pl
gpu=no
help_message="Usage: local/kaldi/train_nnet3.sh [options] PLAN SYSTEM...
 SYSTEM is NAME:MODEL for EXP/NAME by conf/nnet3/MODEL.xconfig
 e.g.: local/kaldi/train_nnet3.sh exp/mini_kaldi/plan.json teacher_1:tdnn teacher_2:blstm
 leaves EXP/NAME (final.mdl, model.yaml, priors.txt, info.json, ...), which essence runs as it runs its own models;
 logs: EXP/kaldi/exp/nnet3/NAME/log
  --nj N          jobs (default: $nj)
  --cmd COMMAND   how they run (default: $cmd)
  --gpu WHAT      --use-gpu of Kaldi's trainer: no, yes or wait (default: $gpu)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -ge 2 ] || usage
read_plan "$1"
shift
set=${train_set}_sp
need 3 "$data/${set}_hires" "$data/${set}_hires/feats.scp"
need 4 "$exp/gmm" "$exp/gmm/final.mdl" "$exp/ali" "$exp/ali/num_pdfs"
for system in "$@"; do
  [ -f "conf/nnet3/${system#*:}.xconfig" ] || refuse "no conf/nnet3/${system#*:}.xconfig for '$system'"
done
local/kaldi/check.sh --gmm false --nnet3 true
enter_recipe_dir
name=$(readlink exp/final_gmm)
ali=exp/${name##*/}_ali_$set
pdfs=$(cat "$exp/ali/num_pdfs") dim=$(feat-to-dim "scp:data/${set}_hires/feats.scp" - 2>/dev/null)
cmvn_opts="--norm-means=true --norm-vars=false"
# held out, and as many of the rest for diagnostics: a twentieth, 300 at most
subset=$(awk 'END { n = int(NR / 20); print (n > 300 ? 300 : n < 12 ? 12 : n) }' "data/${set}_hires/utt2spk")
frames=$(awk '{ n += $2 } END { print n }' "data/${set}_hires/utt2num_frames")

train() { # SYSTEM
  local sys=${1%%:*} xconfig=conf/nnet3/${1#*:}.xconfig out=$exp/${1%%:*} dir=exp/nnet3/${1%%:*}
  local fp model width began params tree_hash
  fp=$(fingerprint train "nnet3 seed=$seed" "$xconfig" "$data/${set}_hires" "$exp/ali")
  if is_done "$out" "$fp"; then echo "$0: $out is up to date"; return; fi
  rm -rf "$dir"
  mkdir -p "$dir/configs"
  begin "$out" "$fp"
  setting() { sed -n "s/^# $1: *//p" "$xconfig"; }
  sed "/^#/d; s/NUM_PDFS/$pdfs/; s/FEAT_DIM/$dim/" "$xconfig" >"$dir/configs/network.xconfig"
  steps/nnet3/xconfig_to_configs.py --xconfig-file "$dir/configs/network.xconfig" --config-dir "$dir/configs" \
    >"$out/train.log" 2>&1 || {
    tail -n 5 "$out/train.log" >&2
    fail "$xconfig: cannot be made a network; log: $out/train.log"
  }
  echo "$0: training $sys by $xconfig; log: $out/train.log"
  # train_rnn.py wants either an LDA layer, whose covariances are singular where speech has no energy in a band,
  # or a network.
  model=()
  if [ "$(setting trainer)" = rnn ]; then
    nnet3-init --srand="$seed" "$dir/configs/final.config" "$dir/initial.raw" 2>>"$out/train.log"
    model=(--trainer.input-model "$dir/initial.raw")
  fi
  # An archive of about 100,000 frames: what few hours of speech take.
  width=$(setting options | sed -n 's/.*\(frames-per-eg\|chunk-width\) \([0-9]*\).*/\2/p')
  began=$SECONDS
  # shellcheck disable=SC2046  # options are words
  steps/nnet3/train_"$(setting trainer)".py --stage=-10 --cmd "$cmd" --feat.cmvn-opts "$cmvn_opts" $(setting options) \
    --trainer.samples-per-iter $((100000 / width)) --trainer.optimization.num-jobs-initial 1 \
    --trainer.optimization.num-jobs-final 1 --trainer.srand "$seed" --use-gpu "$gpu" "${model[@]}" \
    --egs.opts "--nj $nj --num-utts-subset $subset" \
    --feat-dir "data/${set}_hires" --ali-dir "$ali" --lang data/lang --dir "$dir" >>"$out/train.log" 2>&1 ||
    { tail -n 5 "$out/train.log" >&2; fail "training $sys failed; logs: $out/train.log, $PWD/$dir/log"; }
  cp "$dir"/{final.mdl,tree,cmvn_opts,phones.txt} "$exp/ali/priors.txt" "$out"
  params=$(nnet3-am-info "$dir/final.mdl" 2>/dev/null | awk '/^num-parameters:/ { print $2 }')
  tree_hash=$(essence get "$exp/ali/ali.json" tree_hash)
  printf '%s\n' "arch: nnet3" "model: {compute: '$(setting compute)'}" "feat_dim: $dim" "num_pdfs: $pdfs" \
    "frame_subsampling_factor: 3" "cmn: speaker" "tree_hash: $tree_hash" >"$out/model.yaml"
  printf '{"params": %d, "seconds": %d, "frames": %d, "device": "nnet3"}\n' "$params" $((SECONDS - began)) "$frames" \
    >"$out/info.json"
  mark_done "$out" "$fp" final.mdl tree cmvn_opts model.yaml priors.txt info.json
  echo "$0: $sys: $params parameters, $((SECONDS - began)) s"
}

# As many side by side as there are jobs. Meanwhile, from time to time, how far each is.
waited=0
watch() {
  local sys line
  sleep 1
  waited=$((waited + 1))
  [ $((waited % 60)) -eq 0 ] || return 0
  for sys in "${begun[@]}"; do
    if marked "$exp/$sys" >/dev/null; then continue; fi
    line=$(grep -o 'Epoch: [^)]* complete' "$exp/$sys/train.log" 2>/dev/null | tail -n 1 |
      sed 's/Epoch: /epoch /; s/ (/, /') || true
    [ -z "$line" ] || echo "  $sys: $line"
  done
}
# once, not by each of them at the same time
for n in "$nj" "$(cat "$ali/num_jobs")"; do utils/split_data.sh "data/${set}_hires" "$n" >/dev/null; done
begun=() pids=() failed=0
for system in "$@"; do
  while [ "$(jobs -rp | wc -l)" -ge "$nj" ]; do watch; done
  train "$system" &
  pids+=($!) begun+=("${system%%:*}")
done
while [ -n "$(jobs -rp)" ]; do watch; done
for pid in "${pids[@]}"; do wait "$pid" || failed=$((failed + 1)); done
[ $failed -eq 0 ] || fail "$failed of $# networks were not trained"
