"""Makes connected digits from the Free Spoken Digit Dataset: train, dev, eval_swbd, eval_che, dict and wav/ in DIR.

FSDD_DIR holds DIGIT_SPEAKER_INDEX.wav (or a folder "recordings" that does). Held-out speakers make eval_che,
held-out takes of the other speakers make eval_swbd and dev.
"""
from __future__ import annotations

import sys

HELP = "make the connected-digit corpus 'fsdd' from the Free Spoken Digit Dataset"


def add_arguments(parser) -> None:
    parser.add_argument("--size", default="default", help="tiny, default or full (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--nj", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument(
        "--heldout-speakers", default="", help="speakers of eval_che, with blanks between (the last third of the names)"
    )
    parser.add_argument("fsdd_dir", metavar="FSDD_DIR")
    parser.add_argument("dir", metavar="DIR")


def run(args) -> None:
    from essence_kd.corpus.fsdd import prepare_fsdd

    counts = prepare_fsdd(args.fsdd_dir, args.dir, args.size, args.seed, args.nj, args.heldout_speakers.split() or None)
    for name, c in counts.items():
        print(f"{args.dir}/{name}: {c['utterances']} utterances, {c['words']} words, {c['speakers']} speakers, "
              f"{c['seconds'] / 60:.1f} min", file=sys.stderr)
