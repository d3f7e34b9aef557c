"""Makes the mini corpus: invented telephone conversations spoken by eSpeak NG over noisy lines.

DIR gets Kaldi data directories (train, dev, eval_swbd, eval_che), dict/, lm_text (training transcripts and more
sentences of the same grammar, none of the tests), speakers.json and lines.json (who speaks, over what line) and wav/.
With --untranscribed it gets audio that nobody transcribed instead: untranscribed_swbd of train's population, and
untranscribed_che with the accents and lines of eval_che and the voices of train. Of each there is a rendering with 15
dB less noise (untranscribed_swbd_clean ...), frame by frame the same.
"""
from __future__ import annotations

import sys
import time

from essence_kd.corpus.synth import SIZES, synthesize, synthesize_untranscribed
from essence_kd.io.options import given, tell_defaults

HELP = "make the synthetic telephone corpus 'mini'"


def add_arguments(parser) -> None:
    parser.add_argument("--size", help=f"one of {' '.join(SIZES)}")
    parser.add_argument("--seed", type=int, help="another seed, another corpus")
    parser.add_argument("--eval-seed", type=int, metavar="N",
                        help="another one, other test sets of the same populations; train and dev stay")
    parser.add_argument("--untranscribed", action="store_const", const=True,
                        help="add the sets without transcripts, nothing else")
    parser.add_argument("--nj", type=int, help="processes")
    parser.add_argument("dir", metavar="DIR")
    tell_defaults(parser, synthesize)


def run(args) -> None:
    start = time.monotonic()
    make = synthesize_untranscribed if args.untranscribed else synthesize
    counts = make(args.dir, **given(args, make))
    for name, c in counts.items():
        print(f"{args.dir}/{name}: {c['utterances']} utterances, {c['words']} words, {c['speakers']} speakers, "
              f"{c['seconds'] / 60:.1f} min", file=sys.stderr)
    print(f"made in {time.monotonic() - start:.1f} s", file=sys.stderr)
