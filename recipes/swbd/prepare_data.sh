#!/usr/bin/env bash
# Stage 0 of the corpus swbd: data preparation by Kaldi's egs/swbd/s5c/local, dictionary and language model included.
help_message="Usage: recipes/swbd/prepare_data.sh [options] DATA
 e.g.: recipes/swbd/prepare_data.sh data/swbd_kaldi
 reads the corpora that recipes/swbd/recipe.conf names; leaves DATA/{train,dev,eval_swbd,eval_che}, DATA/dict,
 DATA/lm_text, DATA/lm_arpa.gz and DATA/rescore_arpa.gz (with SRILM; the latter with Fisher), and DATA/prep, the recipe
 directory in which Kaldi's scripts ran
  --size default|made_up   (default: default)
  --nj N                   for run.sh; Kaldi's preparation is one process"
size=default
# shellcheck disable=SC2034
nj=1
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
# shellcheck source=recipes/swbd/recipe.conf
. recipes/swbd/recipe.conf
recipes/swbd/check.sh --size "$size" --forecast false --work-dir "$(dirname "$1")"
mkdir -p "$1"
data=$(cd -P "$1" && pwd)
count() { wc -l <"$1"; }

prep=$data/prep
rm -rf "$prep"
mkdir -p "$prep"
s5c=$KALDI_ROOT/egs/swbd/s5c
ln -s "$KALDI_ROOT/egs/wsj/s5/steps" "$KALDI_ROOT/egs/wsj/s5/utils" "$s5c/local" "$s5c/conf" "$prep"
for p in "$KALDI_ROOT"/tools/srilm/bin/*; do
  if [ -x "$p/ngram-count" ]; then PATH=$PATH:$p; fi
done
for v in KALDI_ROOT PATH LC_ALL; do echo "export $v=$(sh_quoted "${!v}")"; done >"$prep/path.sh"
cd "$prep"

# 1. Kaldi's own preparation
# shellcheck disable=SC2154
{
  local/swbd1_data_download.sh "$ldc97s62"
  local/swbd1_prepare_dict.sh
  # shellcheck disable=SC2086  # no argument where there is no folder of documents
  local/swbd1_data_prep.sh "$ldc97s62" $ldc97s62_docs
  local/eval2000_data_prep.sh "$ldc2002s09" "$ldc2002t43"
  if [ "$lm" = srilm ]; then
    # shellcheck disable=SC2086  # folders are words
    local/swbd1_train_lms.sh data/local/train/text data/local/dict_nosp/lexicon.txt data/local/lm $fisher
  fi
}
for f in data/train/text data/eval2000/stm data/local/dict_nosp/lexicon.txt; do
  [ -s "$f" ] || fail "'$prep/$f' should have been made and is not there; the lines above name the reason"
done

if cut -d' ' -f2- data/train/text | grep -q '[A-Z]'; then  # Kaldi's script goes on when its last step has failed
  fail "'$prep/data/train/text' has capitals: mapping its acronyms failed, see the lines above"
fi

# 2. Training and development set: the first conversations are for development, what is said very often is thinned out.
all=$(count data/train/segments)
# shellcheck disable=SC2154
[ "$all" -gt $((2 * dev_utts)) ] || fail "$all utterances of Switchboard are too few for $dev_utts of development"
utils/subset_data_dir.sh --first data/train "$dev_utts" data/dev
utils/subset_data_dir.sh --last data/train $((all - dev_utts)) data/nodev
# shellcheck disable=SC2154
utils/data/remove_dup_utts.sh "$dups" data/nodev data/nodup

# 3. The two halves of the evaluation: sw_* is Switchboard, en_* CallHome. Its transcripts come in upper case and with
# optional hesitations in brackets; the text here is for counting by utterance, the stm for counting by time.
for half in swbd:sw_ che:en_; do
  set=eval_${half%%:*} prefix=${half##*:}
  awk -v p="$prefix" 'index($1, p) == 1 { print $1 }' data/eval2000/utt2spk >data/local/"$set".utts
  [ -s data/local/"$set".utts ] || fail "no utterance of $prefix* in '$ldc2002s09'"
  utils/subset_data_dir.sh --utt-list data/local/"$set".utts data/eval2000 "data/$set"
  awk -v p="$prefix" '/^;;/ || index($1, p) == 1' data/eval2000/stm >"data/$set/stm"
  cp data/eval2000/glm "data/$set/glm"
  awk '{
    line = $1
    for (i = 2; i <= NF; i++) {
      word = tolower($i)
      if (word ~ /^\(.*\)$/ || word ~ /^<.*>$/ || word ~ /^[{}\/]$/ || word == "@") continue
      line = line " " word
    }
    print line
  }' "data/$set/text" >"data/$set/text.words"
  mv "data/$set/text.words" "data/$set/text"
  # an utterance of nothing but hesitations has no words to count
  awk 'NF < 2 { print $1 }' "data/$set/text" >data/local/"$set".empty
  if [ -s data/local/"$set".empty ]; then
    echo "$0: $(count data/local/"$set".empty) utterances of $set have no words but optional ones" \
      "and are left to the stm"
    awk 'NF > 1' "data/$set/text" >data/local/"$set".text
    mv data/local/"$set".text "data/$set/text"
  fi
  utils/fix_data_dir.sh "data/$set"
done

# 4. What the stages read
mv data/nodup "$data/train"
for set in dev eval_swbd eval_che; do mv "data/$set" "$data/$set"; done
cp -rL data/local/dict_nosp "$data/dict"
rm -f "$data"/dict/lexicon[0-9].txt "$data/dict/lexiconp.txt" "$data"/dict/acronyms*
cut -d' ' -f2- "$data/train/text" >"$data/lm_text"
for f in $fisher; do cat "$f"/data/trans/*/*.txt; done | awk '!/^#/ && NF > 3' | cut -d' ' -f4- |
  local/fisher_map_words.pl >>"$data/lm_text"
for arpa in data/local/lm/sw1_fsh.o3g.kn.gz data/local/lm/sw1.o3g.kn.gz; do
  if [ -f "$arpa" ]; then cp "$arpa" "$data/lm_arpa.gz"; break; fi
done
if [ -f data/local/lm/sw1_fsh.o4g.kn.gz ]; then cp data/local/lm/sw1_fsh.o4g.kn.gz "$data/rescore_arpa.gz"; fi
for set in train dev eval_swbd eval_che; do
  echo "$0: $data/$set: $(count "$data/$set/utt2spk") utterances, $(count "$data/$set/spk2utt") speakers"
done
echo "$0: of $all utterances of Switchboard, $(count "$data/train/utt2spk") are for training" \
  "and $(count "$data/dev/utt2spk") for development"
