"""Aligns a data directory with a GMM-HMM: one pdf-id per feature frame.

e.g.: essence gmm-align --nj 2 data/mini/train_sp data/mini/lang exp/mini/gmm exp/mini/ali
"""
from __future__ import annotations

from essence_kd.hmm.gmm import load_gmm
from essence_kd.hmm.gmm_alignment import align
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults

HELP = "align utterances with a GMM-HMM (pdf-ids out)"


def add_arguments(parser) -> None:
    parser.add_argument("data_dir", metavar="DATA", help="data directory with feats.scp, cmvn.scp, text, utt2spk")
    parser.add_argument("lang_dir", metavar="LANG")
    parser.add_argument("gmm_dir", metavar="GMM_DIR")
    parser.add_argument("ali_dir", metavar="ALI_DIR", help="ali.ark, ali.scp, priors.txt, failed.txt ... go there")
    parser.add_argument("--nj", type=int, metavar="N", help="processes")
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N", dest="factor",
                        help="also count how phones look when every N-th frame is kept, for make-graph")
    parser.add_argument("--map-oov", choices=("true", "false"),
                        help="take words that the lang lacks as its oov word; false: refuse them")
    tell_defaults(parser, align)


def run(args) -> None:
    """Align and count."""
    options = given(args, align)
    if min(options.get("nj", 1), options.get("factor", 1)) < 1:
        raise UserError("--nj and --frame-subsampling-factor must be at least 1")
    total, failed = align(args.data_dir, args.lang_dir, load_gmm(args.gmm_dir), args.ali_dir, **options)
    listed = f" (listed in {args.ali_dir}/failed.txt)" if failed else ""
    print(f"{args.ali_dir}: {total - failed} of {total} utterances aligned, {failed} failed{listed}")
