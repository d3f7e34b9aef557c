"""Makes a lang directory (lexicon, phones, topology, L) from a Kaldi dict directory.

e.g.: essence make-lang data/mini/dict data/mini/lang
"""
from __future__ import annotations

HELP = "make a lang directory from a dict directory"


def add_arguments(parser) -> None:
    parser.add_argument("dict_dir", metavar="DICT", help="lexicon.txt (or lexiconp.txt), *silence_phones.txt")
    parser.add_argument("lang_dir", metavar="LANG", help="directory to make")
    parser.add_argument("--oov", metavar="WORD", help="stands for unknown words (default: <unk>)")
    parser.add_argument("--num-sil-states", type=int, default=5, metavar="N", help="of silence phones (default: 5)")
    parser.add_argument("--num-nonsil-states", type=int, default=3, metavar="N", help="of all others (default: 3)")
    parser.add_argument("--sil-prob", type=float, default=0.5, metavar="P",
                        help="probability of silence beside a word (default: 0.5)")


def run(args) -> None:
    """Make the directory and say what is in it."""
    from essence_kd.hmm.lang import prepare_lang

    lang = prepare_lang(args.dict_dir, args.lang_dir, oov=args.oov, num_sil_states=args.num_sil_states,
                        num_nonsil_states=args.num_nonsil_states, sil_prob=args.sil_prob)
    print(f"{args.lang_dir}: {len(lang.words) - 4} words, {len(lang.silence)} silence and {len(lang.nonsilence)} other "
          f"phones with positions, {len(lang.disambig)} disambiguation symbols")
