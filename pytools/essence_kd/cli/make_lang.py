"""Makes a lang directory (lexicon, phones, topology, L) from a Kaldi dict directory.

e.g.: essence make-lang data/mini/dict data/mini/lang
"""
from __future__ import annotations

from essence_kd.hmm.lang import OOV_WORDS, prepare_lang
from essence_kd.io.options import given, tell_defaults

HELP = "make a lang directory from a dict directory"


def add_arguments(parser) -> None:
    parser.add_argument("dict_dir", metavar="DICT", help="lexicon.txt (or lexiconp.txt), *silence_phones.txt")
    parser.add_argument("lang_dir", metavar="LANG", help="directory to make")
    parser.add_argument("--oov", metavar="WORD", help="stands for unknown words (default: the first of "
                        f"{' '.join(OOV_WORDS)} that the lexicon has, else {OOV_WORDS[0]})")
    parser.add_argument("--num-sil-states", type=int, metavar="N", help="of silence phones")
    parser.add_argument("--num-nonsil-states", type=int, metavar="N", help="of all others")
    parser.add_argument("--sil-prob", type=float, metavar="P", help="probability of silence beside a word")
    tell_defaults(parser, prepare_lang)


def run(args) -> None:
    """Make the directory and say what is in it."""
    lang = prepare_lang(args.dict_dir, args.lang_dir, **given(args, prepare_lang))
    print(f"{args.lang_dir}: {len(lang.words) - 4} words, {len(lang.silence)} silence and {len(lang.nonsilence)} other "
          f"phones with positions, {len(lang.disambig)} disambiguation symbols")
