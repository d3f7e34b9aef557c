#!/usr/bin/env bash
# Stage 1 of the engine kaldi, where lattices are rescored: the larger n-gram as Kaldi's lattice tools read it.
help_message="Usage: local/kaldi/const_arpa.sh DATA EXP
 e.g.: local/kaldi/const_arpa.sh \$PWD/data/mini_kaldi \$PWD/exp/mini_kaldi
 leaves DATA/lang_rescore (utils/build_const_arpa_lm.sh), in it G.carpa"
. local/kaldi/room.sh
[ $# -eq 2 ] || usage
data=$1 exp=$2
need 1 "$data/lang/words.txt" "$data/lang/.done" "$data/lm_rescore/lm.arpa.gz" "$data/lm_rescore/.done"
fp=$(fingerprint "kaldi const arpa" "$data/lang" "$data/lm_rescore")
if is_done "$data/lang_rescore" "$fp"; then echo "$0: $data/lang_rescore is up to date"; exit 0; fi
enter_room "$data" "$exp"
rm -rf data/lang_rescore
utils/build_const_arpa_lm.sh data/lm_rescore/lm.arpa.gz data/lang data/lang_rescore
mark_done "$data/lang_rescore" "$fp" G.carpa words.txt
echo "$0: G.carpa is in $data/lang_rescore"
