#!/usr/bin/env bash
# Stage 9, first half: the decoding graph over pdf-ids, at the networks' frame rate.
help_message="Usage: local/make_graph.sh [options] LANG GMM ALI GRAPH
 e.g.: local/make_graph.sh data/mini/lang exp/mini/gmm exp/mini/ali exp/mini/graph
  --transition-scale S   of all transitions but self-loops (default: 0.3)"
transition_scale=0.3
. local/stage.sh
[ $# -eq 4 ] || usage
lang=$1 gmm=$2 ali=$3 graph=$4
lm=${lang%/*}/lm
need 1 "$lang/G.fst" "$lang/.done" "$lm/.done"
need 4 "$gmm/gmm.npz" "$gmm/.done" "$ali/ali.scp" "$ali/.done"
fp=$(fingerprint "graph transition_scale=$transition_scale" "$lang" "$lm" "$gmm" "$ali")
if is_done "$graph" "$fp"; then echo "$0: $graph is up to date"; exit 0; fi
rm -rf "$graph"
essence make-graph --frame-subsampling-factor 3 --transition-scale "$transition_scale" --ali-dir "$ali" "$lang" "$gmm" "$graph"
mark_done "$graph" "$fp" graph.npz words.txt graph.json
