#!/usr/bin/env bash
# Names everything that the corpus librispeech lacks here, and says what the stages will take.
librispeech_dir=
lexicon=
lm_text=
g2p=false
telephone=false
transcribed=1
dev_speakers=
eval_speakers=
size=mini
fuse=false
all_labels=false
work_dir=$PWD
forecast=true
gpu_tflops=10
help_message="Usage: recipes/librispeech/check.sh [options]
 e.g.: recipes/librispeech/check.sh --librispeech-dir ~/LibriSpeech --size clean-100   # or ./run.sh ... --check true
 Ends with status 1 where something is missing.
  --librispeech-dir, --lexicon, --lm-text, --g2p, --telephone, --transcribed, --dev-speakers, --eval-speakers, --size:
                           as recipes/librispeech/prepare_data.sh has them
  --fuse true|false        of run.sh: essence targets without the archive of the 100 largest (default: $fuse)
  --all-labels true|false  of run.sh: also a student of every soft label (default: $all_labels)
  --work-dir DIR           whose disk is looked at (default: this folder)
  --forecast true|false    print what the stages will take (default: $forecast)
  --gpu-tflops N           10^12 operations per second in training, of a GPU (default: $gpu_tflops, assumed)"
. local/stage.sh || exit 1
[ $# -eq 0 ] || usage
[[ $gpu_tflops =~ ^[0-9]*[.]?[0-9]+$ ]] || refuse "--gpu-tflops is '$gpu_tflops', but must be a number"
# shellcheck source=recipes/librispeech/options.sh
. recipes/librispeech/options.sh
status=0
found=$(essence prepare-librispeech --check-only "${prepare[@]}" "$librispeech_dir") || status=1
missing='' why="the headers of the FLAC files"
if [ $status -ne 0 ]; then # forecast all the same, by what is published
  missing=1 why="what LibriSpeech's authors publish: the folder lacks something"
  case $size in
    clean-100) found="train 28539 362160" ;;
    full-960) found="train 281241 3459240" ;;
    *) found="train 1519 19116" ;;
  esac
  found+=$'\ndev 2703 19440\ntest_clean 2620 19440'
fi
if [ "$g2p" = true ] && ! "$ESSENCE_PYTHON" -c 'import espeakng_loader' 2>/dev/null; then
  echo "note: --g2p true needs the package espeakng-loader, which local/setup_env.sh installs" >&2
fi

if [ "$forecast" = true ]; then
  # A row of posteriors has 5 + 10 k bytes; features 13 + 40 float32 per frame. Core hours are by the rates of a run of
  # mini on two cores of an AMD EPYC with AVX-512, in the precision in which this machine trains: feature frames per
  # second and core, context included. Lattices and decoding are by the rates of a run with a third of the transcripts.
  # Training of larger networks: 6 operations per parameter and row. Audio without transcripts, where there is some, is
  # taken to be learned from (--untranscribed true), by students of their own.
  precision=$("$ESSENCE_PYTHON" -c 'from essence_kd.io.processor import precision_of_cpu
print(precision_of_cpu())')
  awk -v size="$size" -v fuse="$fuse" -v all_labels="$all_labels" -v telephone="$telephone" -v part="$transcribed" \
    -v tflops="$gpu_tflops" -v leaves="${num_leaves:-500}" -v why="$why" -v precision="$precision" '
    function row(stage, what, gb, cpu, gpu) {
      printf "%5s  %-46s %9.1f %9.2f %8.1f\n", stage, what, gb, cpu, gpu
      disk += gb; core += cpu; card += gpu
    }
    {
      printf "%s: %d utterances, %.2f h\n", $1, $2, $3 / 3600
      if ($1 == "train") train = $3 / 3600; else held += $3 / 3600
    }
    END {
      all = train; train *= part; hours = train * (1 / 0.9 + 1 + 1 / 1.1); frames = hours * 360000; rows = frames / 3
      more = (all - train) * 360000; learned = frames + (more > 0 ? frames + more : 0)
      big = size == "clean-100" || size == "full-960"
      if (big) {
        teachers = 95.8e6 + 3 * 1024 * (leaves - 8816); student = 11.5e6 + 768 * (leaves - 8816)
        epochs = 6; own = 8; num_students = 1; hour = tflops * 1e12 * 3600; train_ops = 6 * 342 / 300
        gpu5 = (train_ops * teachers * epochs + train_ops * student * own) * rows / hour
        gpu6 = 2 * teachers * (rows + more / 3) / hour; gpu8 = train_ops * student * own * learned / 3 / hour
        gpu9 = 2 * (2 * teachers + 3 * student) * held * 120000 / hour
        systems = more > 0 ? 8 : 7
      } else if (size == "mini") {
        context = 342 / 300 / 3600
        cnn = 5 / 20000; conformer = 4 / 14000; blstm = 4 / 22000; tdnn = 6 / 30000   # epochs per rate
        cpu6 = (frames + more) * context / 2.5 * (cnn / 5 + conformer / 4 + blstm / 4)
        if (precision == "bfloat16") { cnn = 5 / 26000; conformer = 4 / 17000; blstm = 4 / 34000; tdnn = 6 / 52000 }
        cpu5 = frames * context * (cnn + conformer + blstm + tdnn); cpu8 = learned * context * (tdnn + cnn)
        systems = more > 0 ? 10 : 8
      } else {
        cpu5 = cpu8 = 0.05; cpu6 = 0.01; systems = 6
      }
      printf "By %s.\nDisk follows from these sizes, core hours from the rates in recipes/librispeech/check.sh", why
      if (big) printf "; GPU hours at %.3g TFLOP/s in training, assumed", tflops
      print "."
      printf "%5s  %-46s %9s %9s %8s\n", "stage", "", "disk, GB", "core, h", "GPU, h"
      row(0, "data, dictionary" (telephone == "true" ? ", telephone audio" : ""),
          telephone == "true" ? (all + held) * 0.0576 : 0.01, telephone == "true" ? (all + held) / 150 : all / 20000, 0)
      row(1, "lang, language models", 0.2, 0.01, 0)
      row(2, "MFCC and filterbanks", (all + held) * 360000 * 53 * 4 / 1e9, (all + held) / 520, 0)
      row(3, "speed perturbation and its features", frames * 53 * 4 / 1e9, hours / 520, 0)
      row(4, "GMM, alignment", frames * 8 / 1e9, train / 16, 0)
      row(5, "three teachers and the twin", 0.1, cpu5, gpu5)
      row(6, "posteriors of the teachers, the 100 largest",
          fuse == "true" ? 0 : (rows + more / 3) * 1005 / 1e9, cpu6, gpu6)
      if (all_labels == "true") row("", "all posteriors, with --all-labels true", rows * leaves * 4 / 1e9, 0, 0)
      row(7, "essence targets, k = 20" (more > 0 ? "; lattices of the others" : ""),
          rows * 205 / 1e9 + more / 3 * 1210 / 1e9, rows / 130000 / 3600 + (all - train) / 24, 0)
      row(8, "students", 0.1, cpu8, gpu8)
      row(9, "graph, decoding of dev and tests", 1, systems * held / 25, gpu9)
      row(10, "scores, report", 0.05, 0.02, 0)
      printf "%5s  %-46s %9.1f %9.2f %8.1f\n", "", "together", disk, core, card
    }' <<<"$found"
fi
free_mb=$(df --output=avail -m "$work_dir" | tail -n 1 | tr -d ' ')
if [ "$free_mb" -lt "$disk_mb" ]; then
  missing=1
  echo "missing: '$work_dir' has $free_mb MB free and about $disk_mb are needed; --work-dir names another place" >&2
fi
[ -z "$missing" ] || fail "something is missing, which the lines above name"
echo "$0: nothing is missing"
