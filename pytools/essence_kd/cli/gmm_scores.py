"""Writes log-likelihoods of a GMM, log p(x | pdf), for a decoder: one row per N-th frame, one column per pdf.

e.g.: essence gmm-scores data/mini/dev exp/mini/gmm ark,scp:scores.ark,scores.scp
"""
from __future__ import annotations

import sys

from essence_kd.hmm.gmm import load_gmm
from essence_kd.hmm.gmm_alignment import write_scores
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults

HELP = "write a GMM's log-likelihoods for decoding"


def add_arguments(parser) -> None:
    parser.add_argument("data_dir", metavar="DATA", help="data directory with feats.scp, cmvn.scp, utt2spk")
    parser.add_argument("gmm_dir", metavar="GMM_DIR")
    parser.add_argument("wspecifier", metavar="SCORES-WSPECIFIER")
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N", dest="factor",
                        help="feature frames per row")
    parser.add_argument("--hyp", metavar="TEXT", help="hypotheses of a first pass, which adapt a tri3 to speakers; "
                        "without them its scores are those of a first pass")
    parser.add_argument("--lang", metavar="LANG", dest="lang_dir", help="lang directory of --hyp")
    tell_defaults(parser, write_scores)


def run(args) -> None:
    """Write the scores and count them."""
    options = given(args, write_scores)
    if options.get("factor", 1) < 1:
        raise UserError("--frame-subsampling-factor must be at least 1")
    utts, rows = write_scores(args.data_dir, load_gmm(args.gmm_dir), args.wspecifier, **options)
    print(f"{args.wspecifier}: {utts} utterances, {rows} rows", file=sys.stderr)
