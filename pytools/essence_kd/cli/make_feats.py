"""Computes features with Kaldi's conventions: MFCC into DATA_DIR/feats.scp, log-mel into DATA_DIR_hires/feats.scp.

Both kinds come from one pass over the audio and have the same frames. utt2num_frames and utt2dur are written too.

On a cluster: essence make-feats --job J/8 DATA_DIR for J from 1 to 8, and then essence make-feats --join 8 DATA_DIR.
"""

from __future__ import annotations

import sys
import time

from essence_kd.corpus.features import FeatureOptions, join_feats, make_feats, make_feats_job
from essence_kd.io.options import given, tell_defaults
from essence_kd.io.parallel import job_share

HELP = "compute MFCC and filterbank features of a data directory"


def add_arguments(parser) -> None:
    parser.add_argument("--nj", type=int, help="processes")
    parser.add_argument("--kinds", type=lambda text: text.split(","), help="mfcc, fbank or both, with a comma")
    parser.add_argument("--job", type=job_share, metavar="J/N",
                        help="write the archives of the J-th of N jobs, no more")
    parser.add_argument("--join", type=int, metavar="N", help="write what belongs to the archives of N jobs")
    parser.add_argument("--sample-rate", dest="sample_frequency", metavar="HZ", type=int,
                        help="of the audio; the highest mel bin ends 300 Hz below half of it")
    parser.add_argument("data", metavar="DATA_DIR")
    tell_defaults(parser, make_feats, FeatureOptions)


def run(args) -> None:
    start = time.monotonic()
    args.options = FeatureOptions(**given(args, FeatureOptions))
    if args.job:
        make_feats_job(args.data, *args.job, **given(args, make_feats_job))
        return
    if args.join:
        counts = join_feats(args.data, args.join, **given(args, join_feats))
    else:
        counts = make_feats(args.data, **given(args, make_feats))
    taken = time.monotonic() - start
    print(f"{args.data}: features of {counts['utterances']} utterances, {counts['frames']} frames, "
          f"{counts['seconds'] / 60:.1f} min of speech in {taken:.1f} s", file=sys.stderr)
