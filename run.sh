#!/usr/bin/env bash
# The main job: from audio to the table of word error rates, in eleven stages.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
# shellcheck disable=SC2046  # names; a profile may have exported functions, such as a cd of its own
unset -f $(compgen -A function)
unset CDPATH
cd -P "$(dirname "$0")" || exit 1
. local/surroundings.sh
# shellcheck disable=SC2034 # local/run_begin.sh hands the options on
{
# What runs
stage=0
stop_stage=10
corpus=mini
size=default
engine=native
# How it runs
nj=$(local/cores.sh)
cmd=
check=false
force=false
work_dir=$PWD
allow_pipes=${ESSENCE_ALLOW_PIPES:-true}
# What is trained and decoded; empty: the recipe's, or conf/essence.yaml's
seed=1
teachers=
student=
combine=mean
top_k=
temperature=
soft_weight=
fuse=false
gmm=
num_leaves=
lm_order=
lm_prune=
rescore_lm_order=
decoder=auto
all_labels=false
untranscribed=
lattice_weight=
min_confidence=
teacher_hears=
ablation=false
grid=conf/ablation.yaml
}

help_message="Usage: ./run.sh [options]
 e.g.: ./run.sh                                    # everything, on the embedded corpus
       ./run.sh --corpus fsdd --fsdd-dir ~/fsdd    # the same on real speech
       ./run.sh --stage 7 --top-k 10               # other essence targets, and what follows from them

What runs
  --stage N, --stop-stage N   first and last stage (default: $stage, $stop_stage)
        0 data   1 lang and LM   2 features   3 speed perturbation   4 GMM and alignment   5 teachers
        6 posteriors   7 essence targets   8 students   9 decoding   10 scores and report
  --corpus NAME               a folder of recipes/ (default: $corpus)
  --size NAME                 default, full, tiny, or what the recipe has (default: $size, or else its first)
  --engine native|kaldi       what pip has, or a compiled Kaldi at KALDI_ROOT (default: $engine)
How it runs
  --nj N                      jobs side by side (default: the number of cores, $nj)
  --cmd COMMAND               how jobs run (default: on this machine, by local/jobs.sh, or Kaldi's run.pl)
  --check true|false          only name what is missing here, and forecast large corpora (default: $check)
  --force true|false          make again what is up to date, of the stages that run (default: $force)
  --allow-pipes true|false    whether commands in wav.scp and scp files run; SECURITY.md says what else runs code
                              (default: $allow_pipes)
  --work-dir DIR              where data/, exp/ and .venv go (default: this folder)
What is trained and decoded
  --seed N                    of the models (default: $seed)
  --teachers 'A B ..'         files of conf/models without .yaml (default, or torch: the recipe's); with --engine kaldi
                              also nnet3/NAME for files of conf/nnet3, and nnet3 for all of them
  --student 'A B ..'          likewise; each is trained beside its twin, which learns from hard labels alone
  --combine mean|logmean      how teachers are combined (default: $combine)
  --top-k 'N ..', --temperature T, --soft-weight A   the distillation (default: conf/essence.yaml)
  --untranscribed true|false|only   students that learn from the recipe's audio without transcripts, too: beside those
                              that do not, none, or in their place (default: the recipe's)
  --lattice-weight W          of it, the share of the lattice in a target, which knows the language model; the rest is
                              the ensemble's (default: that of essence lattice-post; 0 with --fuse true)
  --min-confidence P          of it, leave out utterances of which the ensemble is less sure: the mean over frames of
                              the best class's posterior (default: leave out none)
  --teacher-hears 'SET=SET'   of an untranscribed set, the rendering that its targets are made of; same: what students
                              hear (default: the recipe's)
  --all-labels true|false     also a student of every soft label, to compare with (default: $all_labels)
  --fuse true|false           dump essence targets without the wide archive (default: $fuse)
  --gmm KIND                  the GMM of --engine native that aligns: mono, tri1 (tied triphones), tri2 (and
                              LDA+MLLT), tri3 (and speaker adaptation) (default: the recipe's)
  --num-leaves N              leaves of its decision trees, the senones, at most (default: the recipe's, or one per
                              600 frames of training data, of splits that gain 300 or more)
  --lm-order N                order of the n-gram in the decoding graph (default: the recipe's)
  --lm-prune P                leave out its longest n-grams without which the perplexity of its text grows by less
                              than a share P: a smaller graph (default: the recipe's)
  --rescore-lm-order N        rescore the words with a larger n-gram; 0: do not (default: the recipe's)
  --decoder NAME              k2, kaldi, auto (k2 where it could be set up, else kaldi-decoder), or, with
                              --engine kaldi, kaldi-lattice (latgen-faster-mapped) (default: $decoder)
  --ablation true|false       also train the points of --grid; hours on two cores (default: $ablation)
  --grid YAML                 (default: $grid)"
. local/recipe_options.sh # the options that recipes declare
. local/parse_options.sh || exit 1
set -euo pipefail
. local/run_begin.sh # checks, environment, lock; writes the plan, and defines run_stage

jobs=(--nj "$nj" --cmd "$cmd")
gpu_jobs=("${jobs[@]}" --forward-cmd "$forward_cmd")
train_jobs=(--nj "$nj" --cmd "$cuda_cmd" --launcher "$train_launcher")

run_stage 0 "data preparation" local/prepare_data.sh "${jobs[@]}" "$plan" "${recipe_args[@]}"

run_stage 1 "lexicon, lang, language model" "local/$engine/prepare_lang.sh" "${jobs[@]}" "$plan"

run_stage 2 "features" "local/$engine/make_feats.sh" "${jobs[@]}" "$plan"

run_stage 3 "speed perturbation" "local/$engine/perturb_speed.sh" "${jobs[@]}" "$plan"

run_stage 4 "GMM training and alignment" "local/$engine/train_gmm.sh" "${jobs[@]}" "$plan"

# The twins need no teacher: they fill the cores while the last teacher trains.
# shellcheck disable=SC2154 # nnet3_gpu is cmd.sh's
run_stage 5 "teachers and baseline" local/train_models.sh "${train_jobs[@]}" \
  --nnet3-cmd "$cmd" --nnet3-gpu "$nnet3_gpu" "$plan" teacher twin

run_stage 6 "ensemble posteriors" local/dump_posteriors.sh "${gpu_jobs[@]}" "$plan"

run_stage 7 "essence targets" local/make_targets.sh "${gpu_jobs[@]}" "$plan"

run_stage 8 "baseline and students" local/train_models.sh "${train_jobs[@]}" "$plan" twin student

run_stage 9 "decoding" local/decode.sh "${jobs[@]}" "$plan"

run_stage 10 "scores and report" local/score.sh "${jobs[@]}" "$plan"

run_end
