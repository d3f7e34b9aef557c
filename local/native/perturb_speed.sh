#!/usr/bin/env bash
# Stage 3: three-way speed perturbation (0.9, 1.0, 1.1) of the training set, and its features.
nj=2
# shellcheck disable=SC2034
cmd=
help_message="Usage: local/native/perturb_speed.sh [options] PLAN
 e.g.: local/native/perturb_speed.sh --nj 2 exp/mini/plan.json     # leaves data/mini/train_sp and train_sp_hires
  --nj N          processes (default: $nj)
  --cmd COMMAND   not used: the work is done here"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
from=$data/$train_set
dir=${from}_sp
need 2 "$from" "$from/feats.scp"
fp=$(fingerprint perturb "" "$from")
if is_done "$dir" "$fp" && is_done "${dir}_hires" "$fp"; then echo "$0: $dir is up to date"; exit 0; fi
essence perturb-data "$from" "$dir"
essence make-feats --nj "$(here)" --sample-rate "$sample_rate" "$dir"
essence compute-cmvn "$dir"
essence compute-cmvn "${dir}_hires"
perturbed "$from" "$fp"
