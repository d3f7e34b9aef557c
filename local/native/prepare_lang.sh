#!/usr/bin/env bash
# Stage 1: lexicon and phones -> lang; language model -> lm.arpa.gz and G.fst; the larger one, where words are rescored.
# shellcheck disable=SC2034
nj=1 cmd=
help_message="Usage: local/native/prepare_lang.sh [options] PLAN
 e.g.: local/native/prepare_lang.sh exp/mini/plan.json
 reads DATA/dict and DATA/lm_arpa.gz, else DATA/lm_text, else DATA/TRAIN/text; leaves DATA/lang and DATA/lm
  --nj N, --cmd COMMAND   not used: the work is done here, by one process"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
need 0 "$data" "$data/dict/lexicon.txt" "$data/$train_set/text" "$data/$dev_set/text"

fp=$(fingerprint lang "" "$data"/dict/*.txt)
if is_done "$data/lang" "$fp"; then
  echo "$0: $data/lang is up to date"
else
  begin "$data/lang" "$fp"
  essence make-lang "$data/dict" "$data/lang"
  mark_done "$data/lang" "$fp" L.fst L_disambig.fst words.txt phones.txt topo
fi
# Nothing but the graph depends on the language model: another order leaves GMM and networks as they are.
text=$data/lm_text ids=auto
[ -f "$text" ] || text=$data/$train_set/text ids=true
[ ! -f "$data/lm_arpa.gz" ] || text=$data/lm_arpa.gz
prune=()
[ "$lm_prune" = 0.0 ] || prune=(--prune "$lm_prune")
fp=$(fingerprint lm "order=$lm_order${prune[*]:+ ${prune[*]}}" "$data/lang" "$text")
if is_done "$data/lm" "$fp"; then
  echo "$0: $data/lm is up to date"
else
  begin "$data/lm" "$fp"
  if [ -f "$data/lm_arpa.gz" ]; then # data preparation made one
    cp "$data/lm_arpa.gz" "$data/lm/lm.arpa.gz"
    essence perplexity "$data/lm/lm.arpa.gz" "$data/$dev_set/text"
  else
    map=() # words that the lexicon lacks
    [ ! -f "$data/lang/oov.txt" ] || map=(--map-oov "$(cat "$data/lang/oov.txt")")
    essence train-lm --order "$lm_order" "${prune[@]}" --words "$data/lang/words.txt" "${map[@]}" --ids "$ids" \
      --test "$data/$dev_set/text" "$text" "$data/lm/lm.arpa.gz"
  fi
  essence make-grammar "$data/lm/lm.arpa.gz" "$data/lang"
  mark_done "$data/lm" "$fp" lm.arpa.gz ../lang/G.fst
  echo "$0: lang and language model are in $data/lang and $data/lm"
fi
local/rescore_lm.sh "$plan"
