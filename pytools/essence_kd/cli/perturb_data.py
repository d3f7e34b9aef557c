"""Makes a data directory with three speeds of every utterance (0.9, 1.0, 1.1), named as in Kaldi (sp0.9-UTTERANCE).

No audio is written: make-feats changes the speed as it reads.
"""
from __future__ import annotations

import re
import sys

from essence_kd.corpus.features import perturb_speed
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults

HELP = "speed perturbation of a data directory"


def add_arguments(parser) -> None:
    parser.add_argument("--speeds", type=lambda text: text.split(","), help="factors with commas between")
    parser.add_argument("data", metavar="DATA_DIR")
    parser.add_argument("out", metavar="OUT_DIR")
    tell_defaults(parser, perturb_speed)


def run(args) -> None:
    for speed in args.speeds or ():
        if not re.fullmatch(r"[0-9]+(\.[0-9]{1,2})?", speed) or not 0.2 <= float(speed) <= 5:
            raise UserError(f"--speeds: '{speed}' is not a factor between 0.2 and 5 with at most two decimals")
    counts = perturb_speed(args.data, args.out, **given(args, perturb_speed))
    print(f"{args.out}: {counts['utterances']} utterances of {counts['speakers']} speakers", file=sys.stderr)
