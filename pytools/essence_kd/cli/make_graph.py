"""Makes a decoding graph over pdf-id + 1 from a lang directory (with G.fst) and a GMM directory.

e.g.: essence make-graph --ali-dir exp/mini/ali data/mini/lang exp/mini/gmm exp/mini/graph
"""
from __future__ import annotations

from essence_kd.hmm.graph import make_graph, write_graph_dir
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults

HELP = "make a decoding graph (graph.npz)"


def add_arguments(parser) -> None:
    parser.add_argument("lang_dir", metavar="LANG", help="lang directory with L_disambig.fst and G.fst")
    parser.add_argument("gmm_dir", metavar="GMM_DIR")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR", help="graph.npz, words.txt and graph.json are written there")
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N", dest="factor",
                        help="feature frames per row of scores; 1: the plain topology")
    parser.add_argument("--ali-dir", metavar="ALI", help="alignment whose counts give the transition probabilities")
    parser.add_argument("--transition-scale", type=float, metavar="S",
                        help="of the log probability of all transitions but self-loops")
    parser.add_argument("--self-loop-scale", type=float, metavar="S", help="of self-loops'")
    tell_defaults(parser, make_graph)


def run(args) -> None:
    """Make and write the graph."""
    options = given(args, make_graph)
    if options.get("factor", 1) < 1:
        raise UserError("--frame-subsampling-factor must be at least 1")
    print(write_graph_dir(args.graph_dir, make_graph(args.lang_dir, args.gmm_dir, **options)))
