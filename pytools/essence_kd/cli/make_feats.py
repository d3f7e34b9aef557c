"""Computes features with Kaldi's conventions: MFCC into DATA_DIR/feats.scp, log-mel into DATA_DIR_hires/feats.scp.

Both kinds come from one pass over the audio and have the same frames. utt2num_frames and utt2dur are written too.

On a cluster: essence make-feats --job J/8 DATA_DIR for J from 1 to 8, and then essence make-feats --join 8 DATA_DIR.
"""

from __future__ import annotations

import sys
import time

from essence_kd.io.parallel import job_share

HELP = "compute MFCC and filterbank features of a data directory"


def add_arguments(parser) -> None:
    parser.add_argument("--nj", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--kinds", default="mfcc,fbank", help="mfcc, fbank or both, with a comma (%(default)s)")
    parser.add_argument("--job", type=job_share, metavar="J/N", help="write the archives of the J-th of N jobs, no more")
    parser.add_argument("--join", type=int, metavar="N", help="write what belongs to the archives of N jobs")
    parser.add_argument("data", metavar="DATA_DIR")


def run(args) -> None:
    from essence_kd.corpus.features import join_feats, make_feats, make_feats_job

    start, kinds = time.time(), args.kinds.split(",")
    if args.job:
        make_feats_job(args.data, kinds, *args.job)
        return
    counts = join_feats(args.data, kinds, args.join) if args.join else make_feats(args.data, kinds, args.nj)
    taken = time.time() - start
    print(f"{args.data}: features of {counts['utterances']} utterances, {counts['frames']} frames, "
          f"{counts['seconds'] / 60:.1f} min of speech in {taken:.1f} s", file=sys.stderr)
