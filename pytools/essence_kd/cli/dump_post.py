"""Combines teachers and writes the ensemble's posteriors: wide and sparse, whole, or as essence targets at once.

  essence dump-post --feats scp:data/train_hires/feats.scp exp/teacher_1 exp/teacher_2 ark,scp:wide.ark,wide.scp
  essence dump-post --input log --weights 2,1 scp:a.scp 'ark:nnet3-compute b.raw scp:feats.scp ark:- |' ark:wide.ark
  essence dump-post --fuse --top-k 20 --feats scp:feats.scp exp/teacher_* ark,scp:post.ark,post.scp

A TEACHER is a model directory of this project, run on --feats, or a table of matrices with one row per frame (--input
says what its numbers are). All must have the same utterances, frames and pdfs. Without --fuse the archive is wide:
the --keep largest of each frame at their true probability, so that prune-post can be run on it again and again.
A sidecar (JSON) beside the archive says what was done.
"""
from __future__ import annotations

import argparse
import sys

from essence_kd.io.options import numbers
from essence_kd.io.parallel import job_share

HELP = "combine teachers and write the ensemble's posteriors, wide, whole, or as essence targets"


def _keep(text: str) -> int:
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more, or all")
    return int(text)


def add_arguments(parser) -> None:
    from essence_kd.am.dump import DumpSettings
    from essence_kd.distill.archives import WIDE
    from essence_kd.distill.ensemble import COMBINE
    from essence_kd.distill.options import SELECTION, add_settings_arguments
    from essence_kd.distill.scales import KINDS

    parser.add_argument("--combine", choices=COMBINE,
                        help=f"mean of the posteriors or of their logs, normalised (default: {DumpSettings.combine})")
    parser.add_argument("--weights", type=numbers, metavar="W,W,...", help="one weight per teacher")
    parser.add_argument("--temperatures", type=numbers, metavar="T,T,...",
                        help="a temperature per teacher, or one for all (default: --temperature, or 1)")
    parser.add_argument("--input", choices=KINDS,
                        help=f"what tables hold (default: {DumpSettings.input}); models give logits")
    parser.add_argument("--priors", metavar="FILE", help="one prior per line, divided out of every teacher")
    parser.add_argument("--prior-scale", type=float, metavar="S",
                        help=f"of the log prior (default: {DumpSettings.prior_scale:g})")
    parser.add_argument("--feats", metavar="scp:FILE", help="features for model directories")
    parser.add_argument("--keep", type=_keep, default=None, metavar="N|all",
                        help=f"entries per frame of the wide archive (default: {WIDE}, or all); all: matrices")
    parser.add_argument("--full-wspecifier", metavar="WSPECIFIER", help="write the whole posteriors, too, as matrices")
    parser.add_argument("--fuse", action="store_true",
                        help="write essence targets (the options below), not a wide archive")
    add_settings_arguments(parser, (*SELECTION, "agree"))
    parser.add_argument("--frame-shift-ms", type=float, metavar="MS", help="for the sidecar, where no model says it")
    parser.add_argument("--job", type=job_share, metavar="J/N",
                        help="the utterances alone that fall to the J-th of N jobs, which join-post joins; what "
                             "an utterance gets does not depend on N")
    parser.add_argument("--batch-frames", type=int, metavar="N",
                        help=f"feature frames of a batch (default: {DumpSettings.batch_frames})")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: OMP_NUM_THREADS or the cores there are")
    parser.add_argument("teachers", nargs="+", metavar="TEACHER", help="model directory or rspecifier of matrices")
    parser.add_argument("wspecifier", metavar="POST-WSPECIFIER")


def run(args) -> None:
    from dataclasses import replace

    from essence_kd.am.dump import DumpSettings, dump
    from essence_kd.distill.options import SELECTION, essence_settings, option
    from essence_kd.io.errors import UserError
    from essence_kd.io.options import given

    essence = None
    temperatures = args.temperatures or ([args.temperature] if args.temperature is not None else [])
    if args.fuse:
        essence = essence_settings(args)
        temperatures = temperatures or [essence.temperature]
        if len(set(temperatures)) == 1:
            essence = replace(essence, temperature=temperatures[0])
    else:
        for name in ("config", *SELECTION, "agree", "set"):
            if name != "temperature" and getattr(args, name) is not None:
                raise UserError(f"{option(name)} selects essence targets: say --fuse, or prune-post later")
    tally = dump(DumpSettings(**{**given(args, DumpSettings), "output": args.wspecifier, "essence": essence,
                                 "full": args.full_wspecifier, "temperatures": temperatures}))
    print(f"dump-post: {tally}", file=sys.stderr)
