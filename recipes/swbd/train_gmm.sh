#!/usr/bin/env bash
# Stage 4 of the corpus swbd: Kaldi's recipe s5c to tri4, from subsets to all of the training set.
nj=30
cmd=run.pl
help_message="Usage: recipes/swbd/train_gmm.sh [options] PLAN
 e.g.: recipes/swbd/train_gmm.sh --nj 30 --cmd queue.pl exp/swbd_kaldi/plan.json
 mono on short utterances, tri1 and tri2 (deltas) on a part, tri3 (LDA+MLLT) and tri4 (speaker adaptive) on all
  --nj N          jobs (default: $nj)
  --cmd COMMAND   how they run (default: $cmd)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
[ "$num_leaves" -eq 0 ] || refuse "--num-leaves: recipes/swbd/recipe.conf has those of each tree"
set=$train_set
# shellcheck source=recipes/swbd/recipe.conf
. recipes/swbd/recipe.conf
need 1 "$data/lang" "$data/lang/L.fst"
need 2 "$data/$set" "$data/$set/feats.scp"
need 3 "$data/${set}_sp" "$data/${set}_sp/feats.scp"
enter_recipe_dir

# shellcheck disable=SC2154  # the sizes are recipe.conf's
{
  read -r shortest short <<<"$mono_utts"
  read -ra leaves <<<"$leaves"
  read -ra gauss <<<"$gauss"
  fp=$(fingerprint gmm "swbd ${leaves[*]} ${gauss[*]} $shortest $short $deltas_utts" "$data/$set" "$data/lang")
  if ! is_done exp/subsets "$fp"; then
    begin exp/subsets "$fp"
    utils/subset_data_dir.sh --shortest "data/$set" "$shortest" exp/subsets/shortest
    utils/subset_data_dir.sh exp/subsets/shortest "$short" exp/subsets/short
    utils/subset_data_dir.sh --first "data/$set" "$deltas_utts" exp/subsets/part
    mark_done exp/subsets "$fp" short/feats.scp part/feats.scp
  fi
}
# align MODEL DATA DIR; train SCRIPT NUMBER DATA ALI DIR OPTION...: with the NUMBERth numbers of leaves and Gaussians
align() {
  step "${3##*/}" ali.1.gz "steps/align_$4.sh" --cmd "$cmd" --nj "$(jobs_for "$2" "$nj")" "$2" data/lang "$1" "$3"
}
train() {
  local script=$1 n=$2 of=$3 ali=$4 dir=$5
  shift 5
  step "${dir##*/}" final.mdl "steps/train_$script.sh" --cmd "$cmd" "$@" "${leaves[n]}" "${gauss[n]}" \
    "$of" data/lang "$ali" "$dir"
}
short=exp/subsets/short part=exp/subsets/part whole=data/$set
step mono final.mdl steps/train_mono.sh --cmd "$cmd" --nj "$(jobs_for $short "$nj")" $short data/lang exp/mono
align exp/mono $part exp/mono_ali si
train deltas 0 $part exp/mono_ali exp/tri1
align exp/tri1 $part exp/tri1_ali si
train deltas 1 $part exp/tri1_ali exp/tri2
align exp/tri2 "$whole" exp/tri2_ali si
train lda_mllt 2 "$whole" exp/tri2_ali exp/tri3
align exp/tri3 "$whole" exp/tri3_ali fmllr
train sat 3 "$whole" exp/tri3_ali exp/tri4
export_gmm tri4 "$set"
