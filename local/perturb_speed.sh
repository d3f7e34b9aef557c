#!/usr/bin/env bash
# Stage 3: three-way speed perturbation (0.9, 1.0, 1.1) of the training set, and its features.
help_message="Usage: local/perturb_speed.sh [options] DATA SET
 e.g.: local/perturb_speed.sh --nj 2 data/mini train     # leaves data/mini/train_sp and train_sp_hires
  --nj N    processes (default: 2)"
nj=2
. local/stage.sh
[ $# -eq 2 ] || usage
data=$1 set=$2
need 2 "$data/$set/feats.scp" "$data/$set/.done"
dir=$data/${set}_sp
fp=$(fingerprint "perturb" "$data/$set")
if is_done "$dir" "$fp" && is_done "${dir}_hires" "$fp"; then echo "$0: $dir is up to date"; exit 0; fi
essence perturb-data "$data/$set" "$dir"
essence make-feats --nj "$nj" "$dir"
essence compute-cmvn "$dir"
essence compute-cmvn "${dir}_hires"
in=$(wc -l <"$data/$set/utt2spk") out=$(wc -l <"$dir/feats.scp")
[ $((100 * out)) -ge $((95 * 3 * in)) ] ||
  fail "$in utterances went in and $out came out (expected three times as many)"
mark_done "${dir}_hires" "$fp" feats.scp cmvn.scp
mark_done "$dir" "$fp" feats.scp cmvn.scp
echo "$0: $in utterances became $out in $dir"
