"""Mixes soft essence targets and hard alignments into one archive, the target of the multitask loss.

  essence mix-post --soft-weight 0.9 scp:essence/post.scp scp:ali/ali.scp ark,scp:mixed/post.ark,mixed/post.scp
  essence mix-post scp:post.scp 'ark:gunzip -c ali.*.gz | ali-to-pdf final.mdl ark:- ark:- |' ark:mixed.ark

A frame becomes (1 - soft_weight) of the aligned pdf-id plus soft_weight of the soft target. Cross-entropy is linear
in its target, so an unmodified nnet3 setup that trains on the result minimises the two-term loss at T = 1.
"""
from __future__ import annotations

import sys

HELP = "mix soft essence targets and hard alignments into one archive"


def add_arguments(parser) -> None:
    from essence_kd.distill.options import add_settings_arguments

    add_settings_arguments(parser, ("soft_weight",))
    parser.add_argument("--frame-subsampling-factor", type=int, metavar="N",
                        help="alignment frames for one frame of the soft target (default: as its sidecar says, else 1)")
    parser.add_argument("--every-frame", action="store_true",
                        help="the result has all frames of the alignment, not one in N, "
                             "each with the nearest soft target")
    parser.add_argument("--untranscribed", metavar="RSPECIFIER",
                        help="essence targets of audio without transcripts, which follow as they are")
    parser.add_argument("--num-frames", metavar="FILE",
                        help="their utt2num_frames, which --every-frame needs")
    parser.add_argument("soft", metavar="SOFT-POST-RSPECIFIER",
                        help="essence targets (of prune-post or dump-post --fuse)")
    parser.add_argument("alignments", metavar="ALI-RSPECIFIER", help="vectors of pdf-ids")
    parser.add_argument("wspecifier", metavar="POST-WSPECIFIER")


def run(args) -> None:
    from essence_kd.distill.mix import mix
    from essence_kd.distill.options import essence_settings

    tally = mix(args.soft, args.alignments, args.wspecifier, essence_settings(args).soft_weight,
                factor=args.frame_subsampling_factor, every_frame=args.every_frame, untranscribed=args.untranscribed,
                num_frames=args.num_frames)
    print(f"mix-post: {tally}", file=sys.stderr)
