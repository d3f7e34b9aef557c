"""Write training data as shards: a few large files that a cluster's disk reads from front to back (lhotse Shar).

e.g.: essence shard --soft exp/mini/essence_k20/post.scp data/mini/train_sp_hires exp/mini/ali exp/mini/shards
      essence train --model conf/models/student_tdnn.yaml --soft exp/mini/shards exp/mini/shards exp/mini/shards OUT
"""
from __future__ import annotations

import sys

HELP = "write features, alignments and soft targets as lhotse Shar"


def add_arguments(parser) -> None:
    parser.add_argument("--soft", metavar="SCP", help="soft targets, a row an output frame")
    parser.add_argument("--soft-kind", choices=("post", "dense"), default="post",
                        help="Kaldi Posterior or matrices of probabilities (default: post)")
    parser.add_argument("--shard-size", type=int, default=500, metavar="N", help="utterances a shard (default 500)")
    parser.add_argument("--heldout", type=float, default=0.05, metavar="SHARE",
                        help="share of utterances set apart for the dev loss (default 0.05)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the order of utterances (default 1)")
    parser.add_argument("--frame-subsampling-factor", type=int, default=3, metavar="N",
                        help="feature frames an output frame (default 3)")
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("ali_dir", metavar="ALI_DIR")
    parser.add_argument("out_dir", metavar="OUT_DIR")


def run(args) -> None:
    from essence_kd.am.shards import write_shards

    done = write_shards(args.data_dir, args.ali_dir, args.out_dir, soft=args.soft, soft_kind=args.soft_kind,
                        shard_size=args.shard_size, heldout=args.heldout, seed=args.seed,
                        frame_subsampling_factor=args.frame_subsampling_factor)
    print(f"{args.out_dir}: {done['utterances']} utterances, {done['frames'] / 360000:.2f} h, "
          f"{done['without_alignment']} without alignment left out", file=sys.stderr)
