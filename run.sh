#!/usr/bin/env bash
# The main job: from audio to the table of word error rates, in eleven stages.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
cd -P "$(dirname "$0")" || exit 1
help_message="Usage: ./run.sh [options]
 e.g.: ./run.sh                                    # everything, on the embedded corpus
       ./run.sh --corpus fsdd --fsdd-dir ~/fsdd    # the same on real speech
       ./run.sh --stage 7 --top-k 10               # other essence targets, and what follows from them

What runs
  --stage N, --stop-stage N   first and last stage (0 to 10, default: all)
        0 data   1 lang and LM   2 features   3 speed perturbation   4 GMM and alignment   5 teachers
        6 posteriors   7 essence targets   8 students   9 decoding   10 scores and report
  --corpus NAME               a folder of recipes/ (default: mini)
  --size NAME                 default, full or tiny (default: default)
  --engine native|kaldi       native (default): the wheels of Kaldi's own code; kaldi: a compiled Kaldi at KALDI_ROOT
  --fsdd-dir DIR              where the recordings of the Free Spoken Digit Dataset are (corpus fsdd)
  --heldout-speakers 'a b'    speakers kept for eval_che (corpus fsdd)
How it runs
  --nj N                      jobs side by side (default: the number of cores)
  --cmd COMMAND               how jobs run (default: on this machine, by local/jobs.sh, or Kaldi's run.pl)
  --check true|false          only name what corpus and engine lack here, and the forecast of large corpora (default: false)
  --work-dir DIR              where data/, exp/ and .venv go (default: this folder)
  --decoder NAME              k2, kaldi (kaldi-decoder), auto (default: k2 where it could be set up, else kaldi), or, with
                              --engine kaldi, kaldi-lattice (latgen-faster-mapped)
  --lm-order N                order of the n-gram in the decoding graph (default: the recipe's; one that data preparation
                              left is taken as it is)
  --rescore-lm-order N        rescore the words of every system with an N-gram larger than the graph's; 0: do not (default: the
                              recipe's)
What is trained
  --seed N                    of the models (default: 1)
  --teachers 'A B ..'         files of conf/models without .yaml (default, or torch: the recipe's); with --engine kaldi also
                              nnet3/NAME for files of conf/nnet3, and nnet3 for all of them
  --student NAME              likewise
  --combine mean|logmean      how teachers are combined (default: mean)
  --top-k N, --temperature T, --soft-weight A   the distillation (default: conf/essence.yaml)
  --fuse true|false           dump essence targets without the wide archive (default: false)
  --ablation true|false       also train the points of --grid, after stage 9 (default: false; hours on two cores)
  --grid YAML                 (default: conf/ablation.yaml; local/run_ablation.sh --plan true says how long it takes)"

stage=0
stop_stage=10
corpus=mini
size=default
engine=native
fsdd_dir=
heldout_speakers=
nj=$(env -u OMP_NUM_THREADS nproc) # nproc would count threads, not cores
cmd=
check=false
work_dir=$PWD
decoder=auto
lm_order=
rescore_lm_order=
seed=1
teachers=
student=
combine=mean
top_k=
temperature=
soft_weight=
fuse=false
ablation=false
grid=conf/ablation.yaml
. local/parse_options.sh || exit 1
set -euo pipefail

fail() { echo "$0: $*" >&2; exit 1; }
usage() { echo "$0: $*; see ./run.sh --help" >&2; exit 2; }
[ $# -eq 0 ] || usage "unexpected argument '$1'"
for v in stage stop_stage nj seed; do [[ ${!v} =~ ^[0-9]+$ ]] || usage "--${v//_/-} takes a whole number, not '${!v}'"; done
[ "$nj" -ge 1 ] || usage "--nj must be at least 1"
[[ $lm_order =~ ^([1-9][0-9]*)?$ ]] || usage "--lm-order takes a whole number of at least 1, not '$lm_order'"
[[ $rescore_lm_order =~ ^([0-9]+)?$ ]] || usage "--rescore-lm-order takes a whole number, not '$rescore_lm_order'"
[[ $top_k =~ ^([1-9][0-9]*)?$ ]] || usage "--top-k takes a whole number of at least 1, not '$top_k'"
[ "$stage" -le 10 ] || usage "there is no stage $stage: stages are 0 to 10"
[ "$stop_stage" -le 10 ] || usage "there is no stage $stop_stage: stages are 0 to 10"
[ "$stage" -le "$stop_stage" ] || usage "--stage $stage comes after --stop-stage $stop_stage"
[ -f "recipes/$corpus/recipe.conf" ] ||
  usage "unknown corpus '$corpus'; there are: $(cd recipes && for r in */recipe.conf; do printf '%s ' "${r%%/*}"; done)"
case $engine in native | kaldi) ;; *) usage "unknown engine '$engine'; there are: native kaldi" ;; esac
engines="native kaldi"
case $engine:$decoder in
  *:k2 | *:kaldi | *:auto | kaldi:kaldi-lattice) ;;
  native:kaldi-lattice) usage "--decoder kaldi-lattice needs --engine kaldi" ;;
  *) usage "unknown decoder '$decoder'; there are: k2 kaldi auto kaldi-lattice" ;;
esac
[ "$ablation" = false ] || [ "$fuse" = false ] ||
  usage "--ablation prunes the wide archive, which --fuse true does not leave"
[ -f "$grid" ] || usage "no grid '$grid'"
[ -z "$fsdd_dir" ] || [ -d "$fsdd_dir" ] || usage "no folder '$fsdd_dir' for --fsdd-dir"

asked_teachers=$teachers asked_student=$student asked_lm_order=$lm_order asked_rescore_lm_order=$rescore_lm_order
clips=0
# shellcheck source=recipes/mini/recipe.conf
. "recipes/$corpus/recipe.conf"
if [ "$asked_teachers" = torch ]; then asked_teachers=''; fi
teachers=${asked_teachers:-$teachers} student=${asked_student:-$student} lm_order=${asked_lm_order:-$lm_order}
rescore_lm_order=${asked_rescore_lm_order:-$rescore_lm_order}
rescore=true
if [ "${rescore_lm_order:-0}" -eq 0 ]; then rescore=false; fi
case " $engines " in *" $engine "*) ;; *) usage "corpus $corpus needs --engine $engines" ;; esac
case " $sizes " in *" $size "*) ;; *) usage "corpus $corpus has no size '$size'; it has: $sizes" ;; esac
if [ "$teachers" = nnet3 ]; then teachers="nnet3/tdnn nnet3/tdnn_lstm nnet3/blstm"; fi
for m in $teachers $student; do
  case $m in
    nnet3/*)
      [ "$engine" = kaldi ] || usage "teacher $m needs --engine kaldi"
      [ -f "conf/$m.xconfig" ] || usage "no conf/$m.xconfig for model '$m'" ;;
    *) [ -f "conf/models/$m.yaml" ] || usage "no conf/models/$m.yaml for model '$m'" ;;
  esac
done

existing() { local d=$1; while [ ! -d "$d" ]; do d=$(dirname "$d"); done; echo "$d"; }  # the folder to be, or the one it will be in
lattices=false
if [ "$decoder" = kaldi-lattice ]; then lattices=true; fi
if [ -x "recipes/$corpus/check.sh" ]; then
  "recipes/$corpus/check.sh" --size "$size" --fuse "$fuse" --forecast "$check" --work-dir "$(existing "$work_dir")" || exit 1
fi
case $teachers in *nnet3/*) nnet3=true ;; *) nnet3=false ;; esac
if [ "$engine" = kaldi ]; then local/kaldi/check.sh --lattices $lattices --nnet3 $nnet3 --rescore $rescore "$work_dir" || exit 1; fi
if [ "$check" = true ]; then
  echo "$0: nothing that corpus $corpus and engine $engine need is missing"
  exit 0
fi
mkdir -p "$work_dir" 2>/dev/null || fail "cannot make '$work_dir'"
work_dir=$(cd -P "$work_dir" && pwd)
touch "$work_dir/.write_test" 2>/dev/null || fail "cannot write in '$work_dir'; name a writable folder with --work-dir"
rm -f "$work_dir/.write_test"
export WORK_DIR=$work_dir

name=$corpus
[ "$size" = default ] || name=${corpus}_$size
[ "$engine" = native ] || name=${name}_$engine
data=$work_dir/data/$name
exp=$work_dir/exp/$name
mkdir -p "$data" "$exp"
free_mb=$(df --output=avail -m "$exp" | tail -n 1 | tr -d ' ')
used_mb=$(du -sm "$data" "$exp" | awk '{s += $1} END {print s}')
[ $((free_mb + used_mb)) -ge "$disk_mb" ] ||
  fail "'$work_dir' has $free_mb MB free and $corpus ($size) needs about $disk_mb; name another place with --work-dir"

# run COMMAND...: as a process group of its own, so that what stops this script stops all that the command has started.
# Nothing can ask for input there.
running='' at_stage=''
run() {
  local status=0
  set -m
  "$@" </dev/null &
  running=$!
  set +m
  wait $running || status=$?
  [ $status -eq 0 ] || kill -- "-$running" 2>/dev/null || true  # what fails leaves nothing at work
  running=
  return $status
}
stop() {
  local i
  trap - HUP INT TERM  # a second one does not wait
  if [ -n "$running" ]; then
    kill -- "-$running" 2>/dev/null || true
    for ((i = 0; i < 300; i++)); do kill -0 -- "-$running" 2>/dev/null || break; sleep 0.1; done
  fi
  [ -z "$at_stage" ] || note_stage '"unfinished": true' || true
  echo "$0: stopped; the same command goes on from here" >&2
  exit $((128 + $1))
}
trap 'stop 1' HUP
trap 'stop 2' INT
trap 'stop 15' TERM

# One run at a time in one place: the lock is held until the last process of a run has ended.
exec 9>"$exp/.lock"
flock -n 9 || fail "another run is at work in '$exp', or its jobs have outlived it; wait, or stop it: kill $(
  find /proc/[0-9]*/fd -lname "$exp/.lock" 2>/dev/null | cut -d/ -f3 | sort -un | tr '\n' ' ')"

k2=true
if [ "$stage" -gt 9 ] && [ "$ablation" = false ]; then k2=false; fi
if [ "$stop_stage" -lt 9 ] || [ "${decoder%-lattice}" = kaldi ]; then k2=false; fi
run local/setup_env.sh --work-dir "$work_dir" --k2 $k2
. ./path.sh
cmd=${cmd:-}
[ "$engine" = native ] || cmd=${cmd:-run.pl}
. ./cmd.sh
if [[ "$cmd $cuda_cmd $forward_cmd" == *.pl* && $PWD$work_dir == *[[:space:]]* ]]; then
  fail "Kaldi's run.pl, queue.pl and slurm.pl do not bear the blank in '$work_dir' or '$PWD': choose another place"
fi
. local/done.sh

setting() { sed -n "s/^$1: *\([^ #]*\).*/\1/p" conf/essence.yaml; }
top_k=${top_k:-$(setting top_k)}
temperature=${temperature:-$(setting temperature)}
soft_weight=${soft_weight:-$(setting soft_weight)}
essence=$exp/essence_k$top_k
rescore_lm=
if [ $rescore = true ]; then rescore_lm=$data/lm_rescore; fi
sets="$train_set $dev_set $eval_sets"
teacher_dirs=()
for t in $teachers; do teacher_dirs+=("$exp/teacher_$((${#teacher_dirs[@]} + 1))"); done

echo "$0: $corpus ($size): $description; engine $engine, seed $seed, $nj jobs; results go to $exp"
run_start=$SECONDS did=0
export ESSENCE_WORKED=$exp/.worked
here=$(env -u OMP_NUM_THREADS nproc)  # processes of a stage that works on this machine, however many jobs $cmd may run
[ "$here" -le "$nj" ] || here=$nj
size_kb() { du -sk "$data" "$exp" | awk '{s += $1} END {print s}'; }
# A line of stages.jsonl on the stage that runs: what it took, and more about it as JSON where given.
note_stage() {
  echo "{\"stage\": $at_stage, \"name\": \"$at_what\", \"seconds\": $((SECONDS - at_start)), \"bytes\": $((($(
    size_kb) - at_size) * 1024))${1:+, $1}}" >>"$exp/stages.jsonl"
}
# run_stage N WHAT COMMAND...: runs a stage if it is asked for, and notes what it took, also where it did not come to its end.
run_stage() {
  local n=$1 what=$2
  shift 2
  if [ "$stage" -gt "$n" ] || [ "$stop_stage" -lt "$n" ]; then return 0; fi
  echo "$0: stage $n: $what"
  rm -f "$ESSENCE_WORKED"
  at_what=$what at_start=$SECONDS at_size=$(size_kb) at_stage=$n
  if ! run "$@"; then
    note_stage '"unfinished": true' || true
    fail "stage $n ($what) failed; the lines above name the reason. './run.sh --stage $n' goes on from here"
  fi
  if [ -e "$ESSENCE_WORKED" ]; then
    did=$((did + 1))
    rm -f "$ESSENCE_WORKED"
    note_stage
    echo "$0: stage $n took $((SECONDS - at_start)) s"
  fi
  at_stage=
}

stage_0() {
  local args=(--size "$size") given='' fp set outputs=(dict/lexicon.txt)
  [ -z "$heldout_speakers" ] || args+=(--heldout-speakers "$heldout_speakers")
  if [ -n "$fsdd_dir" ]; then
    args+=(--fsdd-dir "$fsdd_dir")
    given=$(find -L "$fsdd_dir" -name '*.wav' -printf '%f %s\n' | sort)
  fi
  fp=$(fingerprint "data ${args[*]} $given") || return 1
  if is_done "$data" "$fp"; then echo "$0: $data is up to date"; return 0; fi
  # what was fetched is not fetched again
  find "$data" -mindepth 1 -maxdepth 1 ! -name download -exec rm -rf {} + || return 1
  "recipes/$corpus/prepare_data.sh" "${args[@]}" --nj "$here" "$data" || return 1
  for set in $sets; do outputs+=("$set/wav.scp" "$set/text" "$set/utt2spk"); done
  mark_done "$data" "$fp" "${outputs[@]}"
}
stage_8() {
  local systems=("baseline:$student")
  if [ "$fuse" = false ]; then systems+=("student_full:$student:$exp/posteriors/full.scp"); fi
  systems+=("student_essence:$student:$essence/post.scp")
  local/train_models.sh --cmd "$cuda_cmd" --launcher "$train_launcher" --nj "$nj" --seed "$seed" --soft-weight "$soft_weight" \
    --temperature "$temperature" "$data/${train_set}_sp_hires" "$exp/ali" "$exp" "${systems[@]}"
}
stage_5() {
  # The baseline needs no teacher: it fills the cores while the last teacher trains.
  local systems=() nnet3=() t n=0
  for t in $teachers; do
    n=$((n + 1))
    case $t in nnet3/*) nnet3+=("teacher_$n:${t#*/}") ;; *) systems+=("teacher_$n:$t") ;; esac
  done
  if [ ${#nnet3[@]} -gt 0 ]; then
    local/kaldi/train_nnet3.sh "${jobs[@]}" --gpu "$nnet3_gpu" --seed "$seed" "$data" "$exp" "${train_set}_sp" "${nnet3[@]}" || return 1
  fi
  local/train_models.sh --cmd "$cuda_cmd" --launcher "$train_launcher" --nj "$nj" --seed "$seed" \
    "$data/${train_set}_sp_hires" "$exp/ali" "$exp" "${systems[@]}" "baseline:$student"
}
# shellcheck disable=SC2086  # sets are words
if [ "$engine" = kaldi ]; then
  jobs=(--nj "$nj" --cmd "$cmd")
  make_lang() { local/kaldi/prepare_lang.sh --lm-order "$lm_order" --train-set "$train_set" --dev-set "$dev_set" "$data" "$exp"; }
  stage_2() { local/kaldi/make_feats.sh "${jobs[@]}" "$data" "$exp" $sets; }
  stage_3() { local/kaldi/perturb_speed.sh "${jobs[@]}" "$data" "$exp" "$train_set"; }
  stage_4() {
    if [ -x "recipes/$corpus/train_gmm.sh" ]; then
      "recipes/$corpus/train_gmm.sh" "${jobs[@]}" --size "$size" "$data" "$exp" "$train_set"
    else
      local/kaldi/train_gmm.sh "${jobs[@]}" "$data" "$exp" "$train_set"
    fi
  }
  make_graph() {
    local/kaldi/make_graph.sh --cmd "$cmd" "$data" "$exp" &&
      local/kaldi/decode_gmm.sh "${jobs[@]}" --rescore-lm "$rescore_lm" --dev-set "$dev_set" --eval-sets "$eval_sets" "$data" "$exp"
  }
else
  make_lang() { local/prepare_lang.sh --lm-order "$lm_order" --train-set "$train_set" --dev-set "$dev_set" "$data"; }
  stage_2() { local/make_feats.sh --nj "$here" "$data" $sets; }
  stage_3() { local/perturb_speed.sh --nj "$here" "$data" "$train_set"; }
  stage_4() { local/train_gmm.sh --nj "$here" "$data" "$train_set" "$exp"; }
  make_graph() { local/make_graph.sh "$data/lang" "$exp/gmm" "$exp/ali" "$exp/graph"; }
fi
stage_1() {
  make_lang || return 1
  [ $rescore = true ] || return 0
  local/rescore_lm.sh --order "$rescore_lm_order" --train-set "$train_set" --dev-set "$dev_set" "$data" || return 1
  [ "$engine" = native ] || local/kaldi/const_arpa.sh "$data" "$exp"
}
stage_9() {
  local systems=() t
  make_graph || return 1
  if [ "$engine" = native ]; then systems=(gmm); fi
  for t in "${teacher_dirs[@]}"; do systems+=("${t##*/}"); done
  systems+=(ensemble baseline)
  if [ "$fuse" = false ]; then systems+=(student_full); fi
  local/decode.sh --cmd "$cmd" --nj "$nj" --decoder "$decoder" --combine "$combine" --dev-set "$dev_set" \
    --eval-sets "$eval_sets" --rescore-lm "$rescore_lm" --teachers "${teacher_dirs[*]##*/}" "$data" "$exp" "${systems[@]}" student_essence
}

stage_10() {
  local systems=(baseline ensemble) alignments=$nj
  if [ "$fuse" = false ]; then systems+=(student_full); fi
  if [ "$engine" = native ]; then alignments=$here; fi
  local/calibrate.sh --nj "$alignments" --cmd "$cmd" --eval-sets "$eval_sets" --teachers "${teacher_dirs[*]##*/}" --combine "$combine" \
    "$data" "$exp" "${systems[@]}" student_essence || return 1
  local/score.sh --corpus "$corpus" --size "$size" --engine "$engine" --seed "$seed" --essence-dir "$essence" --dev-set "$dev_set" \
    --clips "$clips" "$data" "$exp"
}
# Students on other targets; those of stage 8 are points of the grid and are not trained again.
stage_ablation() {
  echo "$0: ablation over $grid"
  rm -f "$ESSENCE_WORKED"
  run local/run_ablation.sh --cmd "$cmd" --forward-cmd "$forward_cmd" --nj "$nj" --grid "$grid" --student "$student" --decoder "$decoder" \
    --rescore-lm "$rescore_lm" --top-k "$top_k" --soft-weight "$soft_weight" --temperature "$temperature" --train-set "$train_set" --dev-set "$dev_set" \
    --eval-sets "$eval_sets" "$data" "$exp" ||
    fail "the ablation failed; the lines above name the reason. The same command goes on from here"
  if [ -e "$ESSENCE_WORKED" ]; then did=$((did + 1)); fi
}

# shellcheck disable=SC2086  # sets are words
{
  run_stage 0 "data preparation" stage_0
  run_stage 1 "lexicon, lang, language model" stage_1
  run_stage 2 "features" stage_2
  run_stage 3 "speed perturbation" stage_3
  run_stage 4 "GMM training and alignment" stage_4
  run_stage 5 "teachers and baseline" stage_5
  run_stage 6 "ensemble posteriors" local/dump_posteriors.sh --cmd "$cmd" --forward-cmd "$forward_cmd" --nj "$nj" \
    --combine "$combine" --keep "$post_keep" --fuse "$fuse" \
    --top-k "$top_k" "$data/${train_set}_sp_hires" "$exp/ali" "$exp/posteriors" "${teacher_dirs[@]}"
  run_stage 7 "essence targets" local/make_essence.sh --cmd "$cmd" --top-k "$top_k" --fuse "$fuse" "$exp/posteriors" "$exp/ali" "$essence"
  run_stage 8 "baseline and students" stage_8
  run_stage 9 "decoding" stage_9
  if [ "$ablation" = true ] && [ "$stop_stage" -eq 10 ]; then stage_ablation; fi
  run_stage 10 "scores and report" stage_10
}
if [ "$stop_stage" -eq 10 ] && [ -f "$exp/RESULTS" ]; then
  cat "$exp/RESULTS"
  echo "$0: results: $exp/RESULTS, report: $exp/report/report.html"
fi
if [ "$did" -eq 0 ]; then
  echo "$0: nothing has changed: every stage was up to date ($((SECONDS - run_start)) s)"
else
  echo "$0: done in $((SECONDS - run_start)) s"
fi
