#!/usr/bin/env bash
# Stage 1, second part, where words are rescored: the larger n-gram, for the words of the lang.
help_message="Usage: local/rescore_lm.sh [options] DATA
 e.g.: local/rescore_lm.sh --order 4 data/mini      # leaves data/mini/lm_rescore/lm.arpa.gz
 takes DATA/rescore_arpa.gz where data preparation left one; else trains on DATA/lm_text (DATA/TRAIN/text where there is none)
  --order N          of the model that is trained (default: 4)
  --train-set NAME   (default: train)
  --dev-set NAME     whose perplexity is told (default: dev)"
order=4
train_set=train
dev_set=dev
. local/stage.sh
[ $# -eq 1 ] || usage
[[ $order =~ ^[1-9][0-9]*$ ]] || refuse "--order takes a whole number of at least 1, not '$order'"
data=$1
need 1 "$data/lang/words.txt" "$data/lang/.done" "$data/lm/lm.arpa.gz"
given=$data/rescore_arpa.gz
text=$data/lm_text
[ -f "$text" ] || text=$data/$train_set/text
if [ -f "$given" ]; then inputs=("$given"); else inputs=("$text"); fi
fp=$(fingerprint "rescoring lm order=$order" "$data/lang" "${inputs[@]}")
if is_done "$data/lm_rescore" "$fp"; then echo "$0: $data/lm_rescore is up to date"; exit 0; fi
rm -rf "$data/lm_rescore"
mkdir -p "$data/lm_rescore"
if [ -f "$given" ]; then
  cp "$given" "$data/lm_rescore/lm.arpa.gz"
else
  essence train-lm --order "$order" --words "$data/lang/words.txt" --map-oov "$(cat "$data/lang/oov.txt")" "$text" \
    "$data/lm_rescore/lm.arpa.gz"
fi
for lm in lm lm_rescore; do essence perplexity "$data/$lm/lm.arpa.gz" "$data/$dev_set/text"; done
mark_done "$data/lm_rescore" "$fp" lm.arpa.gz
echo "$0: the language model for rescoring is $data/lm_rescore/lm.arpa.gz"
