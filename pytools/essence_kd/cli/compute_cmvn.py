"""Computes cepstral mean and variance statistics per speaker: DATA_DIR/cmvn.scp, in the form of Kaldi's."""
from __future__ import annotations

import sys

from essence_kd.corpus.features import compute_cmvn

HELP = "compute CMVN statistics per speaker"


def add_arguments(parser) -> None:
    parser.add_argument("data", metavar="DATA_DIR")


def run(args) -> None:
    counts = compute_cmvn(args.data)
    print(f"{args.data}: CMVN statistics of {counts['speakers']} speakers from {counts['utterances']} utterances",
          file=sys.stderr)
