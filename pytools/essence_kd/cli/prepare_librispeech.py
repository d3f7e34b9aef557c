"""Makes Kaldi data directories of an unpacked LibriSpeech: train, dev, test_clean and, where it is there, test_other.

LIBRISPEECH_DIR holds parts such as train-clean-5 (or a folder LibriSpeech that does). DIR also gets dict/, and lm_text
or lm_arpa.gz. Audio is not copied. With --check-only nothing is written: what is missing is named, else the counts of
the sets are printed (set, utterances, seconds).
"""
from __future__ import annotations

import sys

from essence_kd.corpus.librispeech import TRAIN, find_sources, prepare_librispeech
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults
from essence_kd.io.words import counted

HELP = "make data directories of LibriSpeech"


def add_arguments(parser) -> None:
    parser.add_argument("--size", help=f"one of {' '.join(TRAIN)}")
    parser.add_argument("--lexicon", metavar="FILE", help="WORD PHONE ... (default: librispeech-lexicon.txt there)")
    parser.add_argument("--lm-text", metavar="FILE",
                        help="a sentence per line, gzip or not (default: a published 3-gram that lies there)")
    parser.add_argument("--g2p", choices=("true", "false"),
                        help="eSpeak NG pronounces words of training and lm_text that the lexicon lacks")
    parser.add_argument("--telephone", choices=("true", "false"), help="the same speech over telephone lines, 8 kHz")
    parser.add_argument("--transcribed", type=float, metavar="P",
                        help="share of the training audio whose transcripts are used; the rest is untranscribed")
    parser.add_argument("--dev-speakers", type=str.split, metavar="'A B'",
                        help="of the development part or of test-clean (default: all of dev-clean-2 or dev-clean)")
    parser.add_argument("--eval-speakers", type=str.split, metavar="'A B'",
                        help="of test-clean (default: all that are not in dev)")
    parser.add_argument("--pipes", choices=("true", "false"), help="wav.scp has commands that make WAV, for Kaldi")
    parser.add_argument("--seed", type=int, help="of the lines, and of who is transcribed")
    parser.add_argument("--nj", type=int, help="processes")
    parser.add_argument("--check-only", action="store_const", const=True, help="only look whether all is there")
    parser.add_argument("librispeech_dir", metavar="LIBRISPEECH_DIR")
    parser.add_argument("dir", metavar="DIR", nargs="?")
    tell_defaults(parser, prepare_librispeech)


def run(args) -> None:
    options = given(args, prepare_librispeech)
    if args.check_only:
        wanted = {"size", "dev_speakers", "eval_speakers", "lexicon", "lm_text"}
        options = {"size": "mini", **{name: value for name, value in options.items() if name in wanted}}
        for name, utts in find_sources(args.librispeech_dir, **options).sets.items():
            print(f"{name} {len(utts)} {sum(utt.seconds for utt in utts):.0f}")
        return
    if args.dir is None:
        raise UserError("DIR is missing: say where data directories go")
    counts = prepare_librispeech(args.librispeech_dir, args.dir, **options)
    for name, c in counts.items():
        print(f"{args.dir}/{name}: {c['utterances']} utterances, {c['words']} words, {c['speakers']} speakers, "
              f"{c['seconds'] / 60:.1f} min, {counted(c['unknown'])} outside the lexicon", file=sys.stderr)
    if counts["train"]["unknown"] and args.g2p != "true":
        print("with --g2p true eSpeak NG pronounces words of training that the lexicon lacks", file=sys.stderr)
