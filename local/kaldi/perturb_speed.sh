#!/usr/bin/env bash
# Stage 3 of the engine kaldi: three-way speed perturbation by utils/, and features of the result.
nj=2
cmd=run.pl
help_message="Usage: local/kaldi/perturb_speed.sh [options] PLAN
 e.g.: local/kaldi/perturb_speed.sh --nj 2 exp/mini_kaldi/plan.json
 leaves DATA/TRAIN_sp and DATA/TRAIN_sp_hires
  --nj N          jobs (default: $nj)
  --cmd COMMAND   how they run (default: $cmd)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
set=$train_set
need 2 "$data/$set" "$data/$set/feats.scp"
fp=$(fingerprint perturb kaldi "$data/$set")
if is_done "$data/${set}_sp" "$fp" && is_done "$data/${set}_sp_hires" "$fp"; then
  echo "$0: $data/${set}_sp is up to date"
  exit 0
fi
enter_recipe_dir
rm -rf data/"${set}"_sp{,_hires,_source} data/"${set}"_sp_speed*
mkdir "data/${set}_sp_source"  # Kaldi's script repairs what it is given, and data/SET belongs to stage 0
for f in wav.scp segments reco2file_and_channel text utt2spk spk2utt spk2gender; do
  if [ -f "data/$set/$f" ]; then cp "data/$set/$f" "data/${set}_sp_source"; fi
done
utils/data/perturb_data_dir_speed_3way.sh "data/${set}_sp_source" "data/${set}_sp"
rm -r "data/${set}_sp_source"
kaldi_feats "${set}_sp" true
perturbed "$data/$set" "$fp"
