#!/usr/bin/env bash
# Stage 4 of the engine kaldi: mono, tri1 (deltas), tri2 (LDA+MLLT), tri3 (speaker adaptive),
# and the alignment of SET_sp by fMLLR.
nj=2
cmd=run.pl
leaves=
gauss=0
help_message="Usage: local/kaldi/train_gmm.sh [options] PLAN
 e.g.: local/kaldi/train_gmm.sh --nj 2 exp/mini_kaldi/plan.json
 leaves EXP/gmm (final.mdl, tree, tree.txt), EXP/ali, and in EXP/kaldi/exp what Kaldi's scripts leave, logs too
 A corpus may have a train_gmm.sh of its own in its recipe, which is run in the place of this one.
  --nj N          jobs (default: $nj)
  --cmd COMMAND   how they run (default: $cmd)
  --leaves N      leaves of the trees (default: the plan's; 0: one per 600 frames of SET, 100 to 4000)
  --gauss N       Gaussians of the last model (default: 0: 6 a leaf)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
[ -n "$leaves" ] || leaves=$num_leaves
if [ -x "recipes/$corpus/train_gmm.sh" ]; then exec "recipes/$corpus/train_gmm.sh" --nj "$nj" --cmd "$cmd" "$plan"; fi
set=$train_set
need 1 "$data/lang" "$data/lang/L.fst"
need 2 "$data/$set" "$data/$set/feats.scp"
need 3 "$data/${set}_sp" "$data/${set}_sp/feats.scp"
enter_recipe_dir

frames=$(awk '{ n += $2 } END { print n }' "data/$set/utt2num_frames")
if [ "$leaves" -eq 0 ]; then
  leaves=$((frames / 600))
  [ "$leaves" -ge 100 ] || leaves=100
  [ "$leaves" -le 4000 ] || leaves=4000
fi
[ "$gauss" -gt 0 ] || gauss=$((6 * leaves))
n=$(jobs_for "data/$set" "$nj")
fp=$(fingerprint gmm "kaldi leaves=$leaves gauss=$gauss" "$data/$set" "$data/lang")

echo "$0: $frames frames: trees of $leaves leaves, $gauss Gaussians; logs: $PWD/exp/*/log"
train=("data/$set" data/lang)
step mono final.mdl steps/train_mono.sh --cmd "$cmd" --nj "$n" --boost-silence 1.25 "${train[@]}" exp/mono
step mono_ali ali.1.gz steps/align_si.sh --cmd "$cmd" --nj "$n" --boost-silence 1.25 "${train[@]}" exp/mono exp/mono_ali
step tri1 final.mdl steps/train_deltas.sh --cmd "$cmd" --boost-silence 1.25 "$leaves" "$((gauss * 2 / 3))" \
  "${train[@]}" exp/mono_ali exp/tri1
step tri1_ali ali.1.gz steps/align_si.sh --cmd "$cmd" --nj "$n" "${train[@]}" exp/tri1 exp/tri1_ali
step tri2 final.mdl steps/train_lda_mllt.sh --cmd "$cmd" --splice-opts "--left-context=3 --right-context=3" \
  "$leaves" "$gauss" "${train[@]}" exp/tri1_ali exp/tri2
step tri2_ali ali.1.gz steps/align_si.sh --cmd "$cmd" --nj "$n" "${train[@]}" exp/tri2 exp/tri2_ali
step tri3 final.mdl steps/train_sat.sh --cmd "$cmd" "$leaves" "$gauss" "${train[@]}" exp/tri2_ali exp/tri3

export_gmm tri3 "$set"
