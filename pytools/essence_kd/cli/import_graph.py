"""Makes the decoding graph of this project from Kaldi's: HCLG.fst over transition-ids, and the final.mdl of it.

e.g.: essence import-graph exp/tri4/graph/HCLG.fst exp/tri4/final.mdl exp/tri4/graph/words.txt exp/swbd/graph

final.mdl may be a GMM, an nnet3 or a chain model, binary or text; HCLG.fst of type vector or const. The graph expects a
row of scores every 10 ms, or what the file frame_subsampling_factor beside final.mdl says (chain models: 3). Scores
that come every 30 ms are repeated by 'essence decode' where the graph expects them every 10 ms.
"""
from __future__ import annotations

import sys
from pathlib import Path

from essence_kd.hmm.graph import write_graph_dir
from essence_kd.hmm.hclg import import_graph
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import check_match, read_sidecar

HELP = "make a decoding graph (graph.npz) from Kaldi's HCLG.fst and final.mdl"


def add_arguments(parser) -> None:
    parser.add_argument("hclg", metavar="HCLG.fst")
    parser.add_argument("model", metavar="final.mdl")
    parser.add_argument("words", metavar="words.txt")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR", help="graph.npz, words.txt and graph.json are written there")
    parser.add_argument("--lang", metavar="DIR", help="phones.txt and phones/word_boundary.int, for the words' times "
                        "(default: the directory of HCLG.fst)")
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N", dest="factor",
                        help="feature frames of 10 ms per row that the graph expects (default: see above)")
    parser.add_argument("--ali-dir", metavar="ALI", help="alignment of the networks to decode: its ali.json gives "
                        "tree_hash, and its num_pdfs must be that of final.mdl")


def run(args) -> None:
    """Import and write the graph."""
    if args.factor is not None and args.factor < 1:
        raise UserError("--frame-subsampling-factor must be at least 1")
    if args.lang is not None and not (Path(args.lang) / "phones.txt").exists():
        raise UserError(f"{args.lang}: has no phones.txt; name a lang or a Kaldi graph directory with --lang")
    ali = Path(args.ali_dir) / "ali.json" if args.ali_dir else None
    fields = read_sidecar(ali) if ali else {}
    graph = import_graph(args.hclg, args.model, args.words, lang=args.lang, factor=args.factor,
                         meta={"tree_hash": fields["tree_hash"]} if "tree_hash" in fields else None)
    check_match(ali or "", fields, args.model, graph.meta, ["num_pdfs"])
    if graph.meta["word_times"] == "labels":
        print(f"essence import-graph: no phones/word_boundary.int in {args.lang or Path(args.hclg).parent}: words "
              "begin where their labels lie, which may be early or late (--lang names a directory that has it)",
              file=sys.stderr)
    print(write_graph_dir(args.graph_dir, graph))
