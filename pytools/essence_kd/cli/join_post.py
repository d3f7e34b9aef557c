"""Joins archives of essence or posteriors that jobs wrote side by side: OUT_DIR/post.scp and essence.json, or OUT.scp
and its sidecar.

e.g.: essence join-post --ali-dir exp/ali --utts data/train/utt2spk exp/essence exp/essence/jobs/*/post.scp
      essence join-post exp/posteriors/wide.scp exp/posteriors/wide.*.scp
"""
from __future__ import annotations

HELP = "join the archives of several jobs"


def add_arguments(parser) -> None:
    parser.add_argument("--ali-dir", metavar="ALI", help="alignment directory whose tree the targets belong to")
    parser.add_argument("--utts", metavar="FILE", help="utterances (first in each line) that should be there")
    parser.add_argument("--model", action="append", default=[], metavar="NAME",
                        help="a teacher, for the record; repeat it")
    parser.add_argument("--frame-shift-ms", type=float, metavar="MS",
                        help="for the sidecar, where the parts do not say it")
    parser.add_argument("out", metavar="OUT_DIR|OUT.SCP")
    parser.add_argument("scps", nargs="+", metavar="POST.SCP")


def run(args) -> None:
    """Join and say how much there is."""
    from essence_kd.distill.join import join

    fields = join(args.scps, args.out, ali_dir=args.ali_dir, utts=args.utts, models=args.model,
                  frame_shift_ms=args.frame_shift_ms)
    mass = "" if fields["mean_mass"] is None else f", mass {fields['mean_mass']:.4f} per frame"
    what = "posteriors" if fields.get("kind") in ("wide", "dense") else "essence targets"
    print(f"{args.out}: {what} of {fields['num_utts']} utterances, {fields['num_frames']} frames{mass}")
