"""Makes a data directory of the speech of another one: utterances and whole recordings that are longer than
--max-seconds are cut at silences, by energy, and silent ones are left out. Texts are not taken along.

e.g.: essence segment data/meetings data/meetings_cut
      essence segment --audio-of data/close_talk data/far_field data/far_field_cut      # both are cut alike
"""
from __future__ import annotations

import sys

from essence_kd.corpus.segmentation import segment
from essence_kd.io.options import given, tell_defaults

HELP = "cut audio without transcripts at silences"


def add_arguments(parser) -> None:
    parser.add_argument("--max-seconds", type=float, metavar="S", help="longest utterance")
    parser.add_argument("--audio-of", metavar="DIR",
                        help="decide by this rendering of the same utterances (default: by DATA_DIR's own audio)")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="of the audio")
    parser.add_argument("--nj", type=int, help="processes")
    parser.add_argument("source", metavar="DATA_DIR")
    parser.add_argument("target", metavar="OUT_DIR")
    tell_defaults(parser, segment)


def run(args) -> None:
    counts = segment(args.source, args.target, **given(args, segment))
    print(f"{args.target}: {counts['pieces']} utterances, {counts['seconds'] / 60:.1f} min, of {counts['utterances']} "
          f"in {args.source}; {counts['cut']} were cut, {counts['silent']} without speech left out", file=sys.stderr)
