"""Aligns a data directory with a GMM-HMM: one pdf-id a feature frame.

e.g.: essence gmm-align --nj 2 data/mini/train_sp data/mini/lang exp/mini/gmm exp/mini/ali
"""
from __future__ import annotations

HELP = "align utterances with a GMM-HMM (pdf-ids out)"


def add_arguments(parser) -> None:
    parser.add_argument("data_dir", metavar="DATA", help="data directory with feats.scp, cmvn.scp, text, utt2spk")
    parser.add_argument("lang_dir", metavar="LANG")
    parser.add_argument("gmm_dir", metavar="GMM_DIR")
    parser.add_argument("ali_dir", metavar="ALI_DIR", help="ali.ark, ali.scp, priors.txt, failed.txt ... go there")
    parser.add_argument("--nj", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--beam", type=float, default=10.0, metavar="B", help="of the search (default: 10)")
    parser.add_argument("--retry-beam", type=float, default=40.0, metavar="B",
                        help="for utterances that fail (default: 40)")
    parser.add_argument("--frame-subsampling-factor", type=int, default=3, metavar="N",
                        help="also count how phones look when every N-th frame is kept (for make-graph; default: 3)")
    parser.add_argument("--map-oov", choices=("true", "false"), default="false",
                        help="take words that the lang lacks as its oov word (default: refuse them)")


def run(args) -> None:
    """Align and count."""
    from essence_kd.hmm.gmm import align, load_gmm
    from essence_kd.io.errors import UserError

    if args.nj < 1 or args.frame_subsampling_factor < 1:
        raise UserError("--nj and --frame-subsampling-factor must be at least 1")
    total, failed = align(args.data_dir, args.lang_dir, load_gmm(args.gmm_dir), args.ali_dir, nj=args.nj,
                          beam=args.beam, retry_beam=args.retry_beam, factor=args.frame_subsampling_factor,
                          map_oov=args.map_oov == "true")
    listed = f" (listed in {args.ali_dir}/failed.txt)" if failed else ""
    print(f"{args.ali_dir}: {total - failed} of {total} utterances aligned, {failed} failed{listed}")
