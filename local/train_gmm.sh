#!/usr/bin/env bash
# Stage 4: GMM-HMM training on the training set, alignment of its speed-perturbed copy.
help_message="Usage: local/train_gmm.sh [options] DATA SET EXP
 e.g.: local/train_gmm.sh --nj 2 data/mini train exp/mini     # leaves exp/mini/gmm and exp/mini/ali
  --nj N    processes (default: 2)"
nj=2
. local/stage.sh
[ $# -eq 3 ] || usage
data=$1 set=$2 exp=$3
need 1 "$data/lang/L.fst" "$data/lang/.done"
need 2 "$data/$set/feats.scp" "$data/$set/.done"
need 3 "$data/${set}_sp/feats.scp" "$data/${set}_sp/.done"
fp=$(fingerprint "gmm" "$data/$set" "$data/lang")
if is_done "$exp/gmm" "$fp"; then
  echo "$0: $exp/gmm is up to date"
else
  rm -rf "$exp/gmm"
  essence gmm-train --nj "$nj" "$data/$set" "$data/lang" "$exp/gmm"
  mark_done "$exp/gmm" "$fp" gmm.npz tree.txt num_pdfs phones.txt
fi
fp=$(fingerprint "ali" "$exp/gmm" "$data/${set}_sp")
if is_done "$exp/ali" "$fp"; then
  echo "$0: $exp/ali is up to date"
else
  rm -rf "$exp/ali"
  essence gmm-align --nj "$nj" "$data/${set}_sp" "$data/lang" "$exp/gmm" "$exp/ali"
  mark_done "$exp/ali" "$fp" ali.scp ali.ark num_pdfs priors.txt tree.txt failed.txt
fi
