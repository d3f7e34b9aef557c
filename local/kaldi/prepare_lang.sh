#!/usr/bin/env bash
# Stage 1 of the engine kaldi: utils/prepare_lang.sh, our language model, G.fst by arpa2fst.
# shellcheck disable=SC2034
nj=1 cmd=
help_message="Usage: local/kaldi/prepare_lang.sh [options] PLAN
 e.g.: local/kaldi/prepare_lang.sh exp/mini_kaldi/plan.json
 reads DATA/dict and DATA/lm_arpa.gz, else DATA/lm_text, else DATA/TRAIN/text; leaves DATA/lang and DATA/lm, and what
 local/rescore_lm.sh and local/kaldi/const_arpa.sh leave, where words are rescored
  --nj N, --cmd COMMAND   not used: the work is done here, by one process"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
need 0 "$data" "$data/dict/lexicon.txt" "$data/$train_set/text" "$data/$dev_set/text"
lang_fp=$(fingerprint lang kaldi "$data"/dict/*.txt)
enter_recipe_dir
# What stands for unknown words: <unk>, or the first word that is a silence phone other than silence itself.
oov=$(awk 'FILENAME ~ /silence_phones/ { if (FILENAME !~ /nonsilence/) for (i = 1; i <= NF; i++) silence[$i] = 1; next }
  FILENAME ~ /optional_silence/ { delete silence[$1]; next }
  NF == 2 && ($2 in silence) && word != "<unk>" && (word == "" || tolower($1) == "<unk>") { word = $1 }
  END { print word }' data/dict/{silence_phones,optional_silence,lexicon}.txt)
[ -n "$oov" ] || fail "no word of $data/dict/lexicon.txt stands for unknown words: add '<unk> SPN'"
if is_done data/lang "$lang_fp"; then
  echo "$0: $data/lang is up to date"
else
  rm -rf data/{lang,local}
  mkdir -p data/local
  cp -r data/dict data/local/dict   # prepare_lang.sh writes there
  utils/prepare_lang.sh data/local/dict "$oov" data/local/lang data/lang
  mark_done data/lang "$lang_fp" L.fst L_disambig.fst words.txt phones.txt topo
fi
# Nothing but the graph depends on the language model: another order leaves GMM and networks as they are.
text=data/lm_text ids=auto
[ -f "$text" ] || text=data/$train_set/text ids=true
[ ! -f data/lm_arpa.gz ] || text=data/lm_arpa.gz
prune=()
[ "$lm_prune" = 0.0 ] || prune=(--prune "$lm_prune")
fp=$(fingerprint lm "kaldi order=$lm_order${prune[*]:+ ${prune[*]}}" "$data/lang" "$text")
if is_done data/lm "$fp"; then
  echo "$0: $data/lm is up to date"
else
  begin data/lm "$fp"
  if [ -f data/lm_arpa.gz ]; then  # data preparation made one
    cp data/lm_arpa.gz data/lm/lm.arpa.gz
    essence perplexity data/lm/lm.arpa.gz "data/$dev_set/text"
  else
    essence train-lm --order "$lm_order" "${prune[@]}" --words data/lang/words.txt --map-oov "$oov" --ids "$ids" \
      --test "data/$dev_set/text" "$text" data/lm/lm.arpa.gz
  fi
  gunzip -c data/lm/lm.arpa.gz | arpa2fst --disambig-symbol=#0 --read-symbol-table=data/lang/words.txt - data/lang/G.fst
  utils/validate_lang.pl --skip-determinization-check data/lang
  mark_done data/lm "$fp" lm.arpa.gz ../lang/G.fst
  echo "$0: lang and language model are in $data/lang and $data/lm"
fi
cd "$ESSENCE_ROOT"
local/rescore_lm.sh "$plan"
local/kaldi/const_arpa.sh "$plan"
