# shellcheck shell=bash
# Sourced by the stages of the engine kaldi, in the place of stage.sh: Kaldi's scripts run in a recipe directory of the
# usual kind, EXP/kaldi, with links to steps, utils, conf and data, a path.sh, and exp/ for what they train, logs
# included.
. local/stage.sh || exit 1

# shellcheck disable=SC2154  # data and exp are read_plan's
enter_recipe_dir() { # makes the recipe directory, goes there
  [ -d "${KALDI_ROOT:-}/egs/wsj/s5/steps" ] ||
    fail "KALDI_ROOT is '${KALDI_ROOT:-}', which is no Kaldi: local/kaldi/check.sh says what is needed"
  mkdir -p "$exp/kaldi/exp"
  ln -sfn "$KALDI_ROOT/egs/wsj/s5/steps" "$exp/kaldi/steps"
  ln -sfn "$KALDI_ROOT/egs/wsj/s5/utils" "$exp/kaldi/utils"
  ln -sfn "$ESSENCE_ROOT/conf" "$exp/kaldi/conf"
  ln -sfn "$data" "$exp/kaldi/data"
  local v
  for v in KALDI_ROOT WORK_DIR ESSENCE_PYTHON PYTHONPATH PATH LD_LIBRARY_PATH LC_ALL PYTHONUTF8; do
    echo "export $v=$(sh_quoted "${!v}")" # some of Kaldi's programs read it by sh, so no more than this
  done >"$exp/kaldi/path.sh"
  case ${cmd:-} in local/*) cmd=$ESSENCE_ROOT/$cmd ;; esac # this project's runners
  cd "$exp/kaldi" || exit 1
}

jobs_for() { # DATA NJ: Kaldi splits by speaker, so there are no more jobs than those
  local speakers
  speakers=$(wc -l <"$1/spk2utt")
  if [ "$2" -lt "$speakers" ]; then echo "$2"; else echo "$speakers"; fi
}

# MFCC and CMVN by Kaldi's programs; log-mel filterbanks for the networks (SET_hires) by this project's. Utterances that
# Kaldi makes no features of (segments under 0.1 s) stay in text and utt2spk, which are stage 0's; in a set of our own
# they go.
# shellcheck disable=SC2154  # data, nj and cmd are the caller's
kaldi_feats() { # SET [OWN]: a directory of data/; OWN: true for a set that is no stage 0's
  local set=$1 n in out
  n=$(jobs_for "data/$set" "$nj")
  in=$(wc -l <"data/$set/utt2spk")
  local check=(--no-feats)
  [ -f "data/$set/text" ] || check+=(--no-text)
  utils/validate_data_dir.sh "${check[@]}" "data/$set"
  mkdir -p "exp/make_mfcc/$set"
  { cat conf/mfcc.conf; echo "--sample-frequency=$sample_rate"; } >"exp/make_mfcc/$set/mfcc.conf"
  steps/make_mfcc.sh --cmd "$cmd" --nj "$n" --mfcc-config "exp/make_mfcc/$set/mfcc.conf" --write-utt2num-frames true \
    "data/$set" "exp/make_mfcc/$set" "$data/$set/data"
  steps/compute_cmvn_stats.sh "data/$set" "exp/make_mfcc/$set" "$data/$set/data"
  out=$(wc -l <"data/$set/feats.scp")
  [ $((100 * out)) -ge $((95 * in)) ] ||
    fail "data/$set: $in utterances went in and $out came out; logs: $PWD/exp/make_mfcc/$set"
  if [ "$out" -ne "$in" ]; then
    echo "$0: data/$set: Kaldi made no features of $((in - out)) of $in utterances; logs: $PWD/exp/make_mfcc/$set"
    [ "${2:-false}" = false ] || utils/fix_data_dir.sh "data/$set"
  fi
  fbank_feats "$set"
}

fbank_feats() { # SET: leaves data/SET_hires
  local set=$1 n=$nj dir=exp/make_fbank/$1 j
  rm -rf "$dir" "data/${set}_hires"
  mkdir -p "$dir"
  for ((j = 1; j <= n; j++)); do
    printf 'OMP_NUM_THREADS=1 essence make-feats --kinds fbank --sample-rate %s --job %s/%s %q\n' \
      "$sample_rate" "$j" "$n" "data/$set"
  done >"$dir/jobs"
  as_jobs "$dir/jobs"
  # shellcheck disable=SC2086  # cmd is words
  $cmd JOB=1:"$n" "$dir/fbank.JOB.log" bash "$dir/jobs" JOB || fail "filterbanks of data/$set failed; logs: $PWD/$dir"
  one_job "$PWD/$dir/join.log" essence make-feats --kinds fbank --sample-rate "$sample_rate" --join "$n" "data/$set"
  one_job "$PWD/$dir/cmvn.log" essence compute-cmvn "data/${set}_hires"
}

# shellcheck disable=SC2154  # fp is the caller's
# step DIR FILE COMMAND...: runs a script of Kaldi's that leaves exp/DIR/FILE, unless it has;
# fp says what that depends on
step() {
  local dir=exp/$1 file=$2 step_fp
  shift 2
  step_fp=$(fingerprint gmm-step "$fp $dir")
  if is_done "$dir" "$step_fp"; then return 0; fi
  begin "$dir" "$step_fp"
  "$@" || fail "${1##*/} failed; logs: $PWD/$dir/log"
  mark_done "$dir" "$step_fp" "$file"
}

# align_set NAME SET OUT: data/SET aligned by the speaker adaptive model exp/NAME, as an alignment directory
# of this project
# shellcheck disable=SC2154  # exp, nj and cmd are the caller's
align_set() {
  local ali=exp/$1_ali_$2
  step "$1_ali_$2" ali.1.gz steps/align_fmllr.sh --cmd "$cmd" --nj "$(jobs_for "data/$2" "$nj")" \
    "data/$2" data/lang "exp/$1" "$ali"
  rm -rf "$3"
  essence import-ali --transitions "$exp/gmm/transitions.txt" "data/$2" \
    "ark:gunzip -c $ali/ali.*.gz | ali-to-pdf exp/$1/final.mdl ark:- ark:- |" "$3"
}

# export_gmm NAME SET: the model exp/NAME (speaker adaptive) as EXP/gmm, and its alignment of SET_sp as EXP/ali.
# shellcheck disable=SC2154  # data, exp, fp, nj and cmd are the caller's
export_gmm() {
  local model=exp/$1 set=$2 out=$exp/gmm ali_fp
  ln -sfn "$1" exp/final_gmm
  if ! is_done "$out" "$fp"; then
    begin "$out" "$fp"
    cp "$model"/{final.mdl,tree,phones.txt} "$out"
    show-transitions "$model/phones.txt" "$model/final.mdl" >"$out/transitions.txt" 2>"$out/show_transitions.log"
    gmm-info --print-args=false "$model/final.mdl" >"$out/gmm_info.txt"
    awk '/number of pdfs/ { print $NF }' "$out/gmm_info.txt" >"$out/num_pdfs"
    awk '/number of gaussians/ { gauss = $NF } /feature dimension/ { dim = $NF } /number of pdfs/ { pdfs = $NF }
      END { printf "{\"kind\": \"gmm\", \"num_pdfs\": %d, \"num_gauss\": %d, \"dim\": %d}\n", pdfs, gauss, dim }' \
      "$out/gmm_info.txt" >"$out/gmm.json"
    mark_done "$out" "$fp" final.mdl tree phones.txt num_pdfs transitions.txt gmm.json
  fi
  ali_fp=$(fingerprint ali kaldi "$out" "$data/${set}_sp")
  if is_done "$exp/ali" "$ali_fp"; then
    echo "$0: $exp/ali is up to date"
  else
    fp=$ali_fp align_set "$1" "${set}_sp" "$exp/ali"
    mark_done "$exp/ali" "$ali_fp" ali.scp ali.ark num_pdfs priors.txt tree.txt failed.txt
  fi
  echo "$0: a GMM of $(cat "$out/num_pdfs") pdfs is in $out, alignments are in $exp/ali"
}
