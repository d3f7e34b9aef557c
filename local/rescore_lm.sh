#!/usr/bin/env bash
# Stage 1, second part, where words are rescored: the larger n-gram, for the words of the lang.
help_message="Usage: local/rescore_lm.sh PLAN
 e.g.: local/rescore_lm.sh exp/mini/plan.json      # leaves data/mini/lm_rescore/lm.arpa.gz
 takes DATA/rescore_arpa.gz where data preparation left one; else trains on DATA/lm_text, or on DATA/TRAIN/text"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
[ "$rescore_lm_order" -gt 0 ] || exit 0
need 1 "$data/lang" "$data/lang/words.txt" "$data/lm/lm.arpa.gz"
input=$data/rescore_arpa.gz
ids=auto
if [ ! -f "$input" ]; then input=$data/lm_text; fi
if [ ! -f "$input" ]; then input=$data/$train_set/text ids=true; fi
fp=$(fingerprint rescore-lm "order=$rescore_lm_order" "$data/lang" "$input")
if is_done "$data/lm_rescore" "$fp"; then echo "$0: $data/lm_rescore is up to date"; exit 0; fi
begin "$data/lm_rescore" "$fp"
if [ "${input##*/}" = rescore_arpa.gz ]; then
  cp "$input" "$data/lm_rescore/.lm.tmp" && mv "$data/lm_rescore/.lm.tmp" "$data/lm_rescore/lm.arpa.gz"
else
  map=() # words that the lexicon lacks
  [ ! -f "$data/lang/oov.txt" ] || map=(--map-oov "$(cat "$data/lang/oov.txt")")
  essence train-lm --order "$rescore_lm_order" --words "$data/lang/words.txt" "${map[@]}" --ids "$ids" \
    "$input" "$data/lm_rescore/lm.arpa.gz"
fi
for lm in lm lm_rescore; do essence perplexity "$data/$lm/lm.arpa.gz" "$data/$dev_set/text"; done
mark_done "$data/lm_rescore" "$fp" lm.arpa.gz
echo "$0: the language model for rescoring is $data/lm_rescore/lm.arpa.gz"
