"""Checks a data directory: one line names the first fault, the file, the id and the fix; exit status 1."""
from __future__ import annotations

import sys

from essence_kd.io.data_dir import validate_data_dir
from essence_kd.io.options import given, tell_defaults
from essence_kd.io.words import counted

HELP = "check a data directory"


def add_arguments(parser) -> None:
    parser.add_argument("--lexicon", help="lexicon.txt or words.txt that must hold every word of text")
    parser.add_argument("--allow-oov", choices=("true", "false"), help="words outside the lexicon are only counted")
    parser.add_argument("--sample-rate", type=int, help="Hz")
    parser.add_argument("--need-text", choices=("true", "false"), help="text must be there")
    parser.add_argument("--run-pipes", choices=("true", "false"),
                        help="also run the commands of wav.scp (make-feats does anyway)")
    parser.add_argument("--wav-only", choices=("true", "false"),
                        help="audio files must be 16-bit PCM WAV, which is all that Kaldi reads")
    parser.add_argument("--max-overshoot", type=float, help="seconds by which a segment may end after its recording")
    parser.add_argument("--apart-from", action="append", metavar="DIR",
                        help="refuse utterances, recordings and audio that this data directory has; may be repeated")
    parser.add_argument("--no-sentence-of", action="append", metavar="DIR",
                        help="likewise, and sentences of three words or more; may be repeated")
    parser.add_argument("data", metavar="DATA_DIR", nargs="+")
    tell_defaults(parser, validate_data_dir)


def run(args) -> None:
    """Check each directory and count what is in it."""
    for path in args.data:
        counts = validate_data_dir(path, **given(args, validate_data_dir))
        length = f", {counts['seconds'] / 60:.1f} min" if counts["seconds"] >= 0 else ""
        oov = f", {counted(counts['oov_words'])} outside the lexicon" if args.lexicon else ""
        print(f"{path}: {counts['utterances']} utterances, {counts['speakers']} speakers, "
              f"{counts['recordings']} recordings, {counts['words']} words{length}{oov}", file=sys.stderr)
