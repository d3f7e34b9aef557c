"""Checks a data directory: one line names the first fault, the file, the id and the fix; exit status 1."""
from __future__ import annotations

import sys

HELP = "check a data directory"


def add_arguments(parser) -> None:
    parser.add_argument("--lexicon", help="lexicon.txt or words.txt that must hold every word of text")
    parser.add_argument(
        "--allow-oov", choices=("true", "false"), default="false", help="words outside the lexicon are only counted"
    )
    parser.add_argument("--sample-rate", type=int, default=8000, help="Hz (%(default)s)")
    parser.add_argument(
        "--need-text", choices=("true", "false"), default="true", help="text must be there (%(default)s)"
    )
    parser.add_argument("--run-pipes", choices=("true", "false"), default="false",
                        help="also run the commands of wav.scp (make-feats does anyway)")
    parser.add_argument("--max-overshoot", type=float, default=0.05,
                        help="seconds by which a segment may end after its recording (%(default)s)")
    parser.add_argument("data", metavar="DATA_DIR", nargs="+")


def run(args) -> None:
    from essence_kd.io.data_dir import validate_data_dir

    for path in args.data:
        counts = validate_data_dir(
            path,
            lexicon=args.lexicon,
            allow_oov=args.allow_oov == "true",
            sample_rate=args.sample_rate,
            need_text=args.need_text == "true",
            run_pipes=args.run_pipes == "true",
            max_overshoot=args.max_overshoot,
        )
        length = f", {counts['seconds'] / 60:.1f} min" if counts["seconds"] >= 0 else ""
        oov = f", {counts['oov_words']} words outside the lexicon" if args.lexicon else ""
        print(
            f"{path}: {counts['utterances']} utterances, {counts['speakers']} speakers, "
            f"{counts['recordings']} recordings, "
            f"{counts['words']} words{length}{oov}",
            file=sys.stderr,
        )
