"""Mixes posteriors with those that the language model gives them: what is learnt from audio without transcripts.

  essence lattice-post exp/mini/graph scp:wide.scp exp/mini/ali/priors.txt ark,scp:mixed.ark,mixed.scp
  essence prune-post --top-k 20 scp:mixed.scp ark,scp:post.ark,post.scp

Each utterance of POST (an archive of dump-post, sparse or of matrices) is decoded with the graph. In each frame a pdf
gets --weight times its probability among the paths of the lattice, and the rest of its own posterior.
"""
from __future__ import annotations

import sys

HELP = "mix posteriors of audio without transcripts with those of the paths in their lattices"


def add_arguments(parser) -> None:
    from essence_kd.decode.decoder import AUTO, DECODERS
    from essence_kd.decode.posteriors import LatticeSettings
    from essence_kd.io.options import tell_defaults

    parser.add_argument("--weight", type=float, metavar="W", help="of the lattice, above 0 and at most 1")
    parser.add_argument("--acoustic-scale", type=float, metavar="X",
                        help="of log posterior less log prior, in the lattice; a smaller one spreads it")
    parser.add_argument("--temperature", type=float, metavar="T",
                        help="of the result; below 1 it is surer of the best pdf than the mixture")
    parser.add_argument("--beam", type=float, metavar="X", help="of the search")
    parser.add_argument("--output-beam", type=float, metavar="X", help="what the lattice keeps around the best path")
    tell_defaults(parser, LatticeSettings)
    parser.add_argument("--decoder", metavar="NAME", default="auto",
                        help=f"{', '.join(n for n in DECODERS.names(plugins=False) if n in AUTO)}, one of a plugin, or "
                        "%(default)s (default)")
    parser.add_argument("--nj", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("graph", metavar="GRAPH_DIR", help="directory with graph.npz")
    parser.add_argument("posteriors", metavar="POST-RSPECIFIER")
    parser.add_argument("priors", metavar="PRIORS", help="one prior per line, such as ALI_DIR/priors.txt")
    parser.add_argument("output", metavar="POST-WSPECIFIER")


def run(args) -> int | None:
    from essence_kd.decode.decoder import hand_over
    from essence_kd.decode.posteriors import LatticeSettings, mix_with_lattices
    from essence_kd.io.errors import UserError
    from essence_kd.io.options import given

    if args.nj < 1:
        raise UserError(f"--nj is {args.nj}, but must be at least 1")
    settings = given(args, LatticeSettings)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**settings, "nj": args.nj}.items()]
    places = [args.graph, args.posteriors, args.priors, args.output]
    args.decoder, status = hand_over(
        args.decoder, lambda name: ["lattice-post", f"--decoder={name}", *flags, "--", *places])
    if status is not None:
        return status
    tally = mix_with_lattices(args.graph, args.posteriors, args.priors, args.output, LatticeSettings(**settings),
                              decoder=args.decoder, nj=args.nj)
    print(f"lattice-post: {tally}", file=sys.stderr)
    return None
