#!/usr/bin/env bash
# Stage 4: GMM-HMM training on the training set, alignment of its speed-perturbed copy.
nj=2
# shellcheck disable=SC2034
cmd=
help_message="Usage: local/native/train_gmm.sh [options] PLAN
 e.g.: local/native/train_gmm.sh --nj 2 exp/mini/plan.json     # leaves exp/mini/gmm and exp/mini/ali
  --nj N          processes (default: $nj)
  --cmd COMMAND   not used: the work is done here"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
train=$data/$train_set
tree=()
need 1 "$data/lang" "$data/lang/L.fst"
need 2 "$train" "$train/feats.scp"
need 3 "${train}_sp" "${train}_sp/feats.scp"
[ "$num_leaves" -eq 0 ] || tree=(--num-leaves "$num_leaves" --min-gain 0) # that many, whatever the last of them gain
fp=$(fingerprint gmm "$gmm${tree[*]:+ ${tree[*]}}" "$train" "$data/lang")
if is_done "$exp/gmm" "$fp"; then
  echo "$0: $exp/gmm is up to date"
else
  begin "$exp/gmm" "$fp"
  essence gmm-train --kind "$gmm" "${tree[@]}" --nj "$(here)" --map-oov true "$train" "$data/lang" "$exp/gmm"
  mark_done "$exp/gmm" "$fp" final.mdl tree tree.txt num_pdfs phones.txt ali.1.gz
fi
fp=$(fingerprint ali "" "$exp/gmm" "${train}_sp")
if is_done "$exp/ali" "$fp"; then
  echo "$0: $exp/ali is up to date"
else
  begin "$exp/ali" "$fp"
  essence gmm-align --nj "$(here)" --map-oov true "${train}_sp" "$data/lang" "$exp/gmm" "$exp/ali"
  mark_done "$exp/ali" "$fp" ali.scp ali.ark num_pdfs priors.txt tree.txt failed.txt
fi
