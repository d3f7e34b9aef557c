#!/usr/bin/env bash
# Stage 1: lexicon and phones -> lang; language model -> lm.arpa.gz and G.fst.
help_message="Usage: local/prepare_lang.sh [options] DATA
 e.g.: local/prepare_lang.sh --lm-order 3 data/mini
 reads DATA/dict and DATA/lm_text (DATA/TRAIN/text where there is none); leaves DATA/lang and DATA/lm
  --lm-order N       order of the n-gram model (default: 3)
  --train-set NAME   (default: train)
  --dev-set NAME     whose perplexity is told (default: dev)"
lm_order=3
train_set=train
dev_set=dev
. local/stage.sh
[ $# -eq 1 ] || usage
data=$1
need 0 "$data/dict/lexicon.txt" "$data/$train_set/text" "$data/$dev_set/text" "$data/.done"

fp=$(fingerprint "lang" "$data" "$data/dict/lexicon.txt")
if is_done "$data/lang" "$fp"; then
  echo "$0: $data/lang is up to date"
else
  rm -rf "$data/lang"
  essence make-lang "$data/dict" "$data/lang"
  mark_done "$data/lang" "$fp" L.fst L_disambig.fst words.txt phones.txt topo
fi
# Nothing but the graph depends on the language model: another order leaves GMM and networks as they are.
text=$data/lm_text
[ -f "$text" ] || text=$data/$train_set/text
fp=$(fingerprint "lm order=$lm_order" "$data" "$data/lang")
if is_done "$data/lm" "$fp"; then echo "$0: $data/lm is up to date"; exit 0; fi
rm -rf "$data/lm"
mkdir -p "$data/lm"
essence train-lm --order "$lm_order" --words "$data/lang/words.txt" --test "$data/$dev_set/text" "$text" "$data/lm/lm.arpa.gz"
essence make-grammar "$data/lm/lm.arpa.gz" "$data/lang"
mark_done "$data/lm" "$fp" lm.arpa.gz ../lang/G.fst
echo "$0: lang and language model are in $data/lang and $data/lm"
