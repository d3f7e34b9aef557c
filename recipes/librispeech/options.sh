# shellcheck shell=bash
# Sourced by this folder's scripts: options of essence prepare-librispeech, in the array prepare.
# shellcheck disable=SC2154,SC2034  # the callers'
[ -n "$librispeech_dir" ] ||
  refuse "name an unpacked LibriSpeech with --librispeech-dir: train-clean-5 of https://www.openslr.org/31 and \
test-clean of https://www.openslr.org/12 are enough for the size mini"
# shellcheck source=recipes/librispeech/recipe.conf
. recipes/librispeech/recipe.conf
of_test_clean() { # SPEAKER...: those that are there
  local speaker
  for speaker; do [ ! -d "$libri/test-clean/$speaker" ] || printf '%s ' "$speaker"; done
}
if [ -z "$dev_speakers" ] && [ ! -d "$libri/dev-clean-2" ] && [ ! -d "$libri/dev-clean" ]; then
  # shellcheck disable=SC2086  # speakers are words
  dev_speakers=$(of_test_clean $dev_of_test_clean)
  # shellcheck disable=SC2086
  [ -n "$eval_speakers" ] || eval_speakers=$(of_test_clean $eval_of_test_clean)
fi
prepare=(--size "$size")
[ -z "$lexicon" ] || prepare+=(--lexicon "$lexicon")
[ -z "$lm_text" ] || prepare+=(--lm-text "$lm_text")
[ -z "$dev_speakers" ] || prepare+=(--dev-speakers "$dev_speakers")
[ -z "$eval_speakers" ] || prepare+=(--eval-speakers "$eval_speakers")
