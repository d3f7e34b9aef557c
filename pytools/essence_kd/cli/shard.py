"""Write training data as shards: a few large files that a cluster's disk reads from front to back (lhotse Shar).

e.g.: essence shard --soft exp/mini/essence_k20/post.scp data/mini/train_sp_hires exp/mini/ali exp/mini/shards
      essence train --model conf/models/student_tdnn.yaml --soft exp/mini/shards exp/mini/shards exp/mini/shards OUT
"""
from __future__ import annotations

import sys

from essence_kd.am.settings import SOFT_KINDS, ShardSettings
from essence_kd.io.options import given, tell_defaults

HELP = "write features, alignments and soft targets as lhotse Shar"


def add_arguments(parser) -> None:
    parser.add_argument("--soft", metavar="SCP", help="soft targets, one row per output frame")
    parser.add_argument("--soft-kind", choices=SOFT_KINDS, help="Kaldi Posterior or matrices of probabilities")
    parser.add_argument("--untranscribed", metavar=("DIR", "SCP"), nargs=2, action="append",
                        help="data without transcripts, and its soft targets; may be repeated")
    parser.add_argument("--min-confidence", type=float, metavar="P",
                        help="leave out utterances without transcript whose soft target has a best probability below "
                        "this in the mean over its frames")
    parser.add_argument("--shard-size", type=int, metavar="N", help="utterances per shard")
    parser.add_argument("--heldout", type=float, metavar="SHARE", help="share of utterances set apart for the dev loss")
    parser.add_argument("--seed", type=int, metavar="N", help="of the order of utterances")
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N", help="feature frames per output frame")
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("ali_dir", metavar="ALI_DIR")
    parser.add_argument("out_dir", metavar="OUT_DIR")
    tell_defaults(parser, ShardSettings)


def run(args) -> None:
    from essence_kd.am.shards import write_shards
    from essence_kd.am.sources import FRAMES_PER_HOUR

    done = write_shards(args.data_dir, args.ali_dir, args.out_dir, **given(args, ShardSettings))
    print(f"{args.out_dir}: {done['utterances']} utterances, {done['frames'] / FRAMES_PER_HOUR:.2f} h, "
          f"{done['without_alignment']} without alignment left out"
          + (f"; {done['untranscribed']} of them without transcripts, {done['left_out']} of unsure targets left out"
             if "untranscribed" in done else ""), file=sys.stderr)
