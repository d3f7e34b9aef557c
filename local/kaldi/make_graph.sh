#!/usr/bin/env bash
# Stage 9 of the engine kaldi, first part: HCLG.fst by utils/mkgraph.sh, and as graph.npz for the other decoders.
help_message="Usage: local/kaldi/make_graph.sh [options] DATA EXP
 e.g.: local/kaldi/make_graph.sh \$PWD/data/mini_kaldi \$PWD/exp/mini_kaldi
 leaves EXP/kaldi/exp/final_gmm/graph and EXP/graph (graph.npz, HCLG.fst, final.mdl, words.txt, phones);
 logs: EXP/kaldi/exp/make_graph
  --cmd COMMAND   how jobs run (default: run.pl)"
cmd=run.pl
. local/kaldi/room.sh
[ $# -eq 2 ] || usage
data=$1 exp=$2
need 1 "$data/lang/G.fst" "$data/lang/.done" "$data/lm/.done"
need 4 "$exp/gmm/final.mdl" "$exp/gmm/.done" "$exp/ali/ali.scp" "$exp/ali/.done"
fp=$(fingerprint "kaldi graph" "$data/lang" "$data/lm" "$exp/gmm" "$exp/ali")
if is_done "$exp/graph" "$fp"; then echo "$0: $exp/graph is up to date"; exit 0; fi
enter_room "$data" "$exp"
rm -rf "$exp/graph" exp/final_gmm/graph
log=$PWD/exp/make_graph
one_job "$log/mkgraph.log" utils/mkgraph.sh data/lang exp/final_gmm exp/final_gmm/graph
one_job "$log/import_graph.log" essence import-graph --ali-dir "$exp/ali" exp/final_gmm/graph/HCLG.fst exp/final_gmm/final.mdl exp/final_gmm/graph/words.txt "$exp/graph"
cp exp/final_gmm/final.mdl "$exp/graph/final.mdl"
ln -f exp/final_gmm/graph/HCLG.fst "$exp/graph/HCLG.fst"
cp -r exp/final_gmm/graph/phones "$exp/graph/phones"
mark_done "$exp/graph" "$fp" graph.npz HCLG.fst final.mdl words.txt graph.json
