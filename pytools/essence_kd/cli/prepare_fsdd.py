"""Makes connected digits from the Free Spoken Digit Dataset: train, dev, eval_swbd, eval_che, dict and wav/ in DIR.

FSDD_DIR holds DIGIT_SPEAKER_INDEX.wav (or a folder "recordings" that does). Held-out speakers make eval_che,
held-out takes of the other speakers make eval_swbd and dev.
"""
from __future__ import annotations

import sys

from essence_kd.corpus.fsdd import SIZES, prepare_fsdd
from essence_kd.io.options import given, tell_defaults

HELP = "make the connected-digit corpus 'fsdd' from the Free Spoken Digit Dataset"


def add_arguments(parser) -> None:
    parser.add_argument("--size", help=f"one of {' '.join(SIZES)}")
    parser.add_argument("--seed", type=int, help="another seed, another corpus")
    parser.add_argument("--nj", type=int, help="processes")
    parser.add_argument("--heldout-speakers", dest="heldout", type=lambda text: text.split() or None,
                        help="speakers of eval_che, with blanks between (default: the last third of the names)")
    parser.add_argument("fsdd_dir", metavar="FSDD_DIR")
    parser.add_argument("dir", metavar="DIR")
    tell_defaults(parser, prepare_fsdd)


def run(args) -> None:
    counts = prepare_fsdd(args.fsdd_dir, args.dir, **given(args, prepare_fsdd))
    for name, c in counts.items():
        print(f"{args.dir}/{name}: {c['utterances']} utterances, {c['words']} words, {c['speakers']} speakers, "
              f"{c['seconds'] / 60:.1f} min", file=sys.stderr)
