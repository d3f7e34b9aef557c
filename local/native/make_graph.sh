#!/usr/bin/env bash
# Stage 9, first part: the decoding graph over pdf-ids, at the networks' frame rate.
# shellcheck disable=SC2034
nj=1 cmd=
transition_scale=0.3
help_message="Usage: local/native/make_graph.sh [options] PLAN
 e.g.: local/native/make_graph.sh exp/mini/plan.json       # leaves exp/mini/graph
  --nj N, --cmd COMMAND  not used: the work is done here, by one process
  --transition-scale S   of all transitions but self-loops (default: $transition_scale)"
. local/stage.sh || exit 1
[ $# -eq 1 ] || usage
read_plan "$1"
need 1 "$data/lang" "$data/lang/G.fst" "$data/lm"
need 4 "$exp/gmm" "$exp/ali" "$exp/ali/ali.scp"
fp=$(fingerprint graph "transition_scale=$transition_scale" "$data/lang" "$data/lm" "$exp/gmm" "$exp/ali")
if is_done "$exp/graph" "$fp"; then echo "$0: $exp/graph is up to date"; exit 0; fi
begin "$exp/graph" "$fp"
essence make-graph --transition-scale "$transition_scale" --ali-dir "$exp/ali" "$data/lang" "$exp/gmm" "$exp/graph"
mark_done "$exp/graph" "$fp" graph.npz words.txt graph.json
