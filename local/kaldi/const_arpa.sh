#!/usr/bin/env bash
# Stage 1 of the engine kaldi, where lattices are rescored: the larger n-gram as Kaldi's lattice tools read it.
help_message="Usage: local/kaldi/const_arpa.sh PLAN
 e.g.: local/kaldi/const_arpa.sh exp/mini_kaldi/plan.json
 leaves DATA/lang_rescore (utils/build_const_arpa_lm.sh), in it G.carpa"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
[ "$rescore_lm_order" -gt 0 ] || exit 0
need 1 "$data/lang" "$data/lang/words.txt" "$data/lm_rescore" "$data/lm_rescore/lm.arpa.gz"
fp=$(fingerprint const-arpa "" "$data/lang" "$data/lm_rescore")
if is_done "$data/lang_rescore" "$fp"; then echo "$0: $data/lang_rescore is up to date"; exit 0; fi
enter_recipe_dir
rm -rf data/lang_rescore
utils/build_const_arpa_lm.sh data/lm_rescore/lm.arpa.gz data/lang data/lang_rescore
mark_done "$data/lang_rescore" "$fp" G.carpa words.txt
echo "$0: G.carpa is in $data/lang_rescore"
