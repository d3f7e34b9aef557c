"""Computes features with Kaldi's conventions: MFCC into DATA_DIR/feats.scp, log-mel into DATA_DIR_hires/feats.scp.

Both kinds come from one pass over the audio and have the same frames. utt2num_frames and utt2dur are written too.
"""

from __future__ import annotations

import sys
import time

HELP = "compute MFCC and filterbank features of a data directory"


def add_arguments(parser) -> None:
    parser.add_argument("--nj", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--kinds", default="mfcc,fbank", help="mfcc, fbank or both, with a comma (%(default)s)")
    parser.add_argument("data", metavar="DATA_DIR")


def run(args) -> None:
    from essence_kd.corpus.features import make_feats

    start = time.time()
    counts = make_feats(args.data, args.kinds.split(","), args.nj)
    taken = time.time() - start
    print(f"{args.data}: features of {counts['utterances']} utterances, {counts['frames']} frames, "
          f"{counts['seconds'] / 60:.1f} min of speech in {taken:.1f} s", file=sys.stderr)
