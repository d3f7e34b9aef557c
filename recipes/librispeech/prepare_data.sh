#!/usr/bin/env bash
# Stage 0 of the corpus librispeech: data directories of an unpacked LibriSpeech, dictionary, text or model of the
# language.
librispeech_dir=
lexicon=
lm_text=
g2p=false
telephone=false
transcribed=1
dev_speakers=
eval_speakers=
size=mini
nj=2
help_message="Usage: recipes/librispeech/prepare_data.sh [options] DATA
 e.g.: recipes/librispeech/prepare_data.sh --librispeech-dir ~/LibriSpeech --lm-text lm_text.gz \\
         --lexicon lexicon.txt DATA
 leaves DATA/{train,dev,test_clean}, test_other where it is there, untranscribed with --transcribed, DATA/dict, and
 DATA/lm_text or DATA/lm_arpa.gz; audio stays where it is, but for DATA/wav with --telephone true
  --librispeech-dir DIR       parts such as train-clean-5, or a folder LibriSpeech that holds them
  --lexicon FILE              (default: librispeech-lexicon.txt in DIR or DIR/lm)
  --lm-text FILE              (default: 3-gram.pruned.*.arpa.gz in DIR or DIR/lm)
  --g2p true|false            eSpeak NG pronounces words outside the lexicon (default: $g2p)
  --telephone true|false      over telephone lines, 8 kHz (default: $telephone)
  --transcribed P             share of the training audio whose transcripts are used (default: $transcribed)
  --dev-speakers 'A B'        (default: all of dev-clean-2 or dev-clean; else those of recipe.conf)
  --eval-speakers 'A B'       (default: all of test-clean but those of dev; else those of recipe.conf)
  --size NAME                 mini, clean-100, full-960 or tiny (default: $size)
  --nj N                      processes (default: $nj)
 ESSENCE_ENGINE=kaldi in the environment: wav.scp has commands, for Kaldi reads no FLAC"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
data=$1
# shellcheck source=recipes/librispeech/options.sh
. recipes/librispeech/options.sh
pipes=false
if [ "${ESSENCE_ENGINE:-native}" = kaldi ] && [ "$telephone" = false ]; then pipes=true; fi
mkdir -p "$data"
essence prepare-librispeech "${prepare[@]}" --g2p "$g2p" --telephone "$telephone" --transcribed "$transcribed" \
  --pipes $pipes --nj "$nj" "$librispeech_dir" "$data"
echo "$0: the corpus is in $data"
