#!/usr/bin/env bash
# Stage 9 of the engine kaldi, first part: HCLG.fst by utils/mkgraph.sh, and as graph.npz for the other decoders.
# shellcheck disable=SC2034
nj=1
cmd=run.pl
help_message="Usage: local/kaldi/make_graph.sh [options] PLAN
 e.g.: local/kaldi/make_graph.sh exp/mini_kaldi/plan.json
 leaves EXP/kaldi/exp/final_gmm/graph and EXP/graph (graph.npz, HCLG.fst, final.mdl, words.txt, phones);
 logs: EXP/kaldi/exp/make_graph
  --nj N          not used: a job makes the graph
  --cmd COMMAND   how jobs run (default: $cmd)"
. local/kaldi/recipe_dir.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
need 1 "$data/lang" "$data/lang/G.fst" "$data/lm"
need 4 "$exp/gmm" "$exp/gmm/final.mdl" "$exp/ali" "$exp/ali/ali.scp"
fp=$(fingerprint graph kaldi "$data/lang" "$data/lm" "$exp/gmm" "$exp/ali")
if is_done "$exp/graph" "$fp"; then echo "$0: $exp/graph is up to date"; exit 0; fi
enter_recipe_dir
begin "$exp/graph" "$fp"
rm -rf exp/final_gmm/graph
log=$PWD/exp/make_graph
one_job "$log/mkgraph.log" utils/mkgraph.sh data/lang exp/final_gmm exp/final_gmm/graph
one_job "$log/import_graph.log" essence import-graph --ali-dir "$exp/ali" \
  exp/final_gmm/graph/HCLG.fst exp/final_gmm/final.mdl exp/final_gmm/graph/words.txt "$exp/graph"
cp exp/final_gmm/final.mdl "$exp/graph/final.mdl"
ln -f exp/final_gmm/graph/HCLG.fst "$exp/graph/HCLG.fst" 2>/dev/null || cp exp/final_gmm/graph/HCLG.fst "$exp/graph"
cp -r exp/final_gmm/graph/phones "$exp/graph/phones"
mark_done "$exp/graph" "$fp" graph.npz HCLG.fst final.mdl words.txt graph.json
