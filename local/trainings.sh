# shellcheck shell=bash disable=SC2034
# Sourced by the stages that train networks and make their targets: what a training of the plan depends on.
# shellcheck disable=SC2154  # data, exp, train_set and plan are read_plan's

# shellcheck source=local/untranscribed.sh
. local/untranscribed.sh || exit 1
declare -A model_path=() model_kind=() target_scp=() target_kind=() target_set=()
read_trainings() { # models and targets of the plan
  local name kind path scp set found
  read_heard
  found=$(rows models name,kind,path) || exit 1
  while IFS=$'\t' read -r name kind path; do model_path[$name]=$path model_kind[$name]=$kind; done <<<"$found"
  found=$(rows targets name,kind,scp,sets) || exit 1
  while IFS=$'\t' read -r name kind scp set; do
    if [ -n "$name" ]; then target_kind[$name]=$kind target_scp[$name]=$exp/$scp target_set[$name]=$set; fi
  done <<<"$found"
  train=$data/${train_set}_sp_hires
}
training_fields=name,model,seed,targets,loss,soft_weight,temperature,mass,untranscribed,min_confidence
# A row of these fields as variables; args: the options of essence train; fp: the fingerprint.
read_training() { # ROW
  local inputs settings target place
  IFS=$'\t' read -r sys model seed targets loss weight temperature mass untranscribed confidence <<<"$1"
  args=(--model "${model_path[$model]}" --seed "$seed")
  inputs=("${model_path[$model]}" "$train" "$exp/ali") settings="seed=$seed"
  if [ "$targets" != - ]; then
    inputs+=("${target_scp[$targets]%/*}")
    settings+=" soft=${target_kind[$targets]} weight=$weight temperature=$temperature mass=$mass loss=$loss"
    args+=(--soft "${target_scp[$targets]}" --soft-kind "${target_kind[$targets]}")
    args+=(--soft-weight "$weight" --temperature "$temperature")
    [ "$mass" = - ] || args+=(--mass "$mass")
    [ "$loss" = - ] || args+=(--set "distill.loss=$loss")
  fi
  if [ "$untranscribed" != - ]; then
    for target in $untranscribed; do
      place=$(student_feats "${target_set[$target]}")
      inputs+=("$place" "${target_scp[$target]%/*}")
      args+=(--untranscribed "$place" "${target_scp[$target]}")
    done
    settings+=" untranscribed=$untranscribed confidence=$confidence"
    [ "$confidence" = - ] || args+=(--min-confidence "$confidence")
    if [ "$targets" = - ]; then # what has a transcript learns from it alone
      settings+=" soft=${target_kind[$target]} temperature=$temperature mass=$mass"
      args+=(--soft-kind "${target_kind[$target]}" --temperature "$temperature" --mass "$mass")
    fi
  fi
  fp=$(fingerprint train "$settings" "${inputs[@]}")
}
