"""Makes a decoding graph over pdf-id + 1 from a lang directory (with G.fst) and a GMM directory.

e.g.: essence make-graph --frame-subsampling-factor 3 --ali-dir exp/mini/ali data/mini/lang exp/mini/gmm exp/mini/graph
"""
from __future__ import annotations

HELP = "make a decoding graph (graph.npz)"


def add_arguments(parser) -> None:
    parser.add_argument("lang_dir", metavar="LANG", help="lang directory with L_disambig.fst and G.fst")
    parser.add_argument("gmm_dir", metavar="GMM_DIR")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR", help="graph.npz, words.txt and graph.json are written there")
    parser.add_argument("--frame-subsampling-factor", type=int, default=3, metavar="N",
                        help="feature frames a row of scores (1: the plain topology; default: 3)")
    parser.add_argument("--ali-dir", metavar="ALI", help="alignment whose counts give the transition probabilities")
    parser.add_argument("--transition-scale", type=float, default=1.0, metavar="S",
                        help="of the log probability of all transitions but self-loops (default: 1)")
    parser.add_argument("--self-loop-scale", type=float, default=0.1, metavar="S", help="of self-loops' (default: 0.1)")


def run(args) -> None:
    """Make and write the graph."""
    from essence_kd.hmm.graph import make_graph, write_graph_dir
    from essence_kd.io.errors import UserError

    if args.frame_subsampling_factor < 1:
        raise UserError("--frame-subsampling-factor must be at least 1")
    graph = make_graph(args.lang_dir, args.gmm_dir, factor=args.frame_subsampling_factor, ali_dir=args.ali_dir,
                       transition_scale=args.transition_scale, self_loop_scale=args.self_loop_scale)
    print(write_graph_dir(args.graph_dir, graph))
