#!/usr/bin/env bash
# Names everything that the corpus swbd lacks here, before hours are spent, and says what the stages will take.
help_message="Usage: recipes/swbd/check.sh [options]
 e.g.: recipes/swbd/check.sh --size default     # or ./run.sh --corpus swbd --engine kaldi --check true
 Paths are those of recipes/swbd/recipe.conf. Ends with status 1 where something is missing.
  --size default|made_up   (default: default)
  --fuse true|false        of run.sh: essence targets without the archive of the 100 largest (default: false)
  --all-labels true|false  of run.sh: also a student of every soft label (default: false)
  --work-dir DIR           whose disk is looked at (default: this folder)
  --forecast true|false    print what the stages will take (default: true)
  --rates FILE             forecast at the speed of your GPU, as 'essence bench-train --json FILE' measured it there
  --gpu-tflops N           without that, the speed that is assumed: 10^12 operations per second in training
                           (default: 10, a tenth of what a GPU with 100 in bfloat16 could do)"
size=default
fuse=false
all_labels=false
work_dir=$PWD
forecast=true
rates=
gpu_tflops=10
. local/stage.sh || exit 1
[ $# -eq 0 ] || usage
# shellcheck source=recipes/swbd/recipe.conf
. recipes/swbd/recipe.conf
speed="assumed (--rates FILE: as measured)" device=GPU
if [ -n "$rates" ]; then
  [ -f "$rates" ] || fail "--rates: there is no '$rates'; 'essence bench-train --json FILE' writes it"
  gpu_tflops=$(essence get --default '' "$rates" tflops) name=$(essence get --default '' "$rates" device)
  if [ -z "$gpu_tflops" ] || [ -z "$name" ]; then
    fail "--rates: '$rates' is not what 'essence bench-train --json FILE' writes"
  fi
  speed="measured on $name"
  [ "$name" != CPU ] || device=CPU
elif ! [[ $gpu_tflops =~ ^[0-9]*[.]?[0-9]+$ ]]; then
  refuse "--gpu-tflops is '$gpu_tflops', but must be a number"
fi

kaldi=${KALDI_ROOT:-KALDI_ROOT}
missing=0
lack() { missing=$((missing + 1)); echo "missing: $1" >&2; }
# shellcheck disable=SC2154  # the paths are recipe.conf's
{
  swbd=$kaldi/egs/swbd/s5c
  if [ -z "${KALDI_ROOT:-}" ]; then
    lack "KALDI_ROOT: the folder of a compiled Kaldi"
  else
    for f in swbd1_data_download.sh swbd1_prepare_dict.sh swbd1_data_prep.sh swbd1_train_lms.sh eval2000_data_prep.sh \
      dict.patch; do
      [ -f "$swbd/local/$f" ] || lack "$swbd/local/$f: a part of Kaldi's recipe"
    done
    [ -x "$kaldi/tools/sph2pipe_v2.5/sph2pipe" ] ||
      lack "sph2pipe at $kaldi/tools/sph2pipe_v2.5/sph2pipe: make -C $kaldi/tools sph2pipe"
  fi
  if [ ! -d "$ldc97s62" ]; then
    lack "LDC97S62 (Switchboard-1 Release 2) at '$ldc97s62'"
  else
    n=$(find -L "$ldc97s62" -iname '*.sph' | wc -l)
    if [ "$n" -eq 0 ]; then lack "LDC97S62: there is no *.sph under '$ldc97s62'"; fi
    if [ "$size" = default ] && [ "$n" -gt 0 ] && [ "$n" -ne 2435 ] && [ "$n" -ne 2438 ]; then
      echo "note: $n *.sph under '$ldc97s62', where 2435 or 2438 are usual" >&2
    fi
    if [ ! -d "$ldc97s62/transcriptions/swb_ms98_transcriptions" ]; then
      if [ "$size" = default ]; then
        echo "note: no '$ldc97s62/transcriptions/swb_ms98_transcriptions': Kaldi's script" \
          "will download the transcriptions" >&2
      else
        lack "'$ldc97s62/transcriptions/swb_ms98_transcriptions'"
      fi
    fi
  fi
  if [ -n "$ldc97s62_docs" ]; then
    [ -n "$(find -L "$ldc97s62_docs" -name conv.tab 2>/dev/null | head -n 1)" ] ||
      lack "conv.tab under '$ldc97s62_docs'"
  fi
  [ -f "$ldc2002s09/english/hub5e_00.pem" ] || lack "LDC2002S09 (Hub5 2000, speech): '$ldc2002s09/english/hub5e_00.pem'"
  tran=$ldc2002t43
  [ ! -d "$tran/2000_hub5_eng_eval_tr" ] || tran=$tran/2000_hub5_eng_eval_tr
  for f in hub5e00.english.000405.stm en20000405_hub5.glm; do
    [ -f "$tran/reference/$f" ] || lack "LDC2002T43 (Hub5 2000, transcripts): '$tran/reference/$f'"
  done
  for f in $fisher; do [ -d "$f/data/trans" ] || lack "Fisher transcripts: '$f/data/trans'"; done
  case $lm in
    own) ;;
    srilm)
      if ! command -v ngram-count >/dev/null && ! ls "$kaldi"/tools/srilm/bin/*/ngram-count >/dev/null 2>&1; then
        lack "SRILM's ngram-count: $kaldi/tools/extras/install_srilm.sh, or SWBD_LM=own for our own trigram"
      fi ;;
    *) lack "a language model: lm (SWBD_LM) is '$lm', neither srilm nor own" ;;
  esac
  command -v python >/dev/null ||
    lack "'python' on PATH, by which Kaldi's recipe starts its own scripts (a link to python3 serves)"
  command -v patch >/dev/null || lack "'patch', which Kaldi's recipe needs for the dictionary"
  sclite=''
  for f in "$(command -v sclite || true)" "$kaldi/tools/sctk/bin/sclite" /usr/lib/sctk/bin/sclite; do
    if [ -n "$f" ] && [ -x "$f" ]; then sclite=$f; break; fi
  done
  [ -n "$sclite" ] || echo "note: no sclite: our own aligner scores by time, with the same counts (docs/formats.md)" >&2
}
free_mb=$(df --output=avail -m "$work_dir" | tail -n 1 | tr -d ' ')
# shellcheck disable=SC2154
[ "$free_mb" -ge "$disk_mb" ] ||
  lack "disk: '$work_dir' has $free_mb MB free and about $disk_mb are needed; --work-dir names another place"

if [ "$forecast" = true ] && [ "$size" = default ]; then
  # 313 h in three versions (0.9, 1.0, 1.1 times as fast) are 313 (1/0.9 + 1 + 1/1.1) = 945 h: 340 M frames of 10 ms,
  # 113 M rows of 30 ms; 11,500 leaves give about 8,800 pdfs. Features: 13 + 40 float32 per frame. Posteriors: 5 + 10 k
  # bytes per row. Parameters: conf/models/swbd_*.yaml. Training: 6 floating-point operations per parameter and row, and
  # of rows 342/300, since chunks of 300 frames have 42 of context; a forward pass: 2. Measured on mini on an idle
  # machine: features of 1,000 h and essence of 130,000 rows per second. Assumed: the rest of the hours.
  awk -v fuse="$fuse" -v all_labels="$all_labels" -v tflops="$gpu_tflops" -v speed="$speed" -v device="$device" '
    function row(stage, what, gb, cpu, gpu) {
      printf "%5s  %-44s %9.0f %8.0f %8.1f\n", stage, what, gb, cpu, gpu
      disk += gb; core += cpu; card += gpu
    }
    BEGIN {
      hours = 945; frames = 340e6; rows = 113e6; pdfs = 8800; teachers = 95.8e6; student = 11.5e6
      hour = tflops * 1e12 * 3600; train = 6 * 342 / 300
      print "Forecast. Disk and operations follow from the sizes of corpus and models."
      printf "%s hours: at %.3g TFLOP/s in training, %s.\n", device, tflops, speed
      print "Core hours: features of 1,000 h per hour, essence of 130,000 rows per second: measured; " \
          "alignment of 30 h per hour, the"
      print "rest as it stands: assumed."
      printf "%5s  %-44s %9s %8s %8s\n", "stage", "", "disk, GB", "core, h", device ", h"
      row(0, "data, dictionary, language models", 5, 4, 0)
      row("1-2", "lang, MFCC and filterbanks", 313 * 360000 * 53 * 4 / 1e9, 313 / 1000, 0)
      row(3, "speed perturbation and its features", frames * 53 * 4 / 1e9, hours / 1000, 0)
      row(4, "GMM to tri4, alignment", 30, (40 * 313 + 3 * hours) / 30, 0)
      row(5, "three teachers (96 M parameters), 6 epochs", 1, 0, train * teachers * rows * 6 / hour)
      row(6, "their posteriors, the 100 largest", fuse == "true" ? 0 : rows * 1005 / 1e9, 0, 2 * teachers * rows / hour)
      row("", "all posteriors, with --all-labels true", all_labels == "false" ? 0 : rows * pdfs * 4 / 1e9, 0, 0)
      row(7, "essence targets, k = 20", rows * 205 / 1e9, rows / 130000 / 3600, 0)
      row(8, "baseline and students (11.5 M), 8 epochs", 1, 0,
          (all_labels == "false" ? 2 : 3) * train * student * rows * 8 / hour)
      row(9, "HCLG, decoding of dev and eval2000, 8 h", 10, 60,
          2 * (2 * teachers + 3 * student) * rows * 8 / hours / hour)
      printf "%5s  %-44s %9.0f %8.0f %8.1f\n", "", "together", disk, core, card
    }'
fi
[ "$missing" -eq 0 ] || fail "$missing things are missing; recipes/swbd/recipe.conf says where they are looked for"
echo "$0: nothing is missing"
