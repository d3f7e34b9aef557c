"""Estimates an n-gram model (interpolated modified Kneser-Ney) from text and writes it as an ARPA file.

e.g.: essence train-lm --words data/mini/lang/words.txt --test data/mini/dev/text data/mini/lm_text lm.arpa.gz

The text is a Kaldi text file or has a sentence per line; prints the perplexity of the training text and of each --test.
"""
from __future__ import annotations

import sys

from essence_kd.hmm import lm
from essence_kd.hmm.lang import ADD_OOV
from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults
from essence_kd.io.words import counted, refuse_unknown, unknown_words

HELP = "estimate an n-gram model from text (ARPA out)"


def add_arguments(parser) -> None:
    parser.add_argument("text", metavar="TEXT", help="sentences; utterance-ids are recognised")
    parser.add_argument("arpa", metavar="ARPA", help="model to write (.gz: compressed)")
    parser.add_argument("--order", type=int, metavar="N", help="longest n-gram")
    parser.add_argument("--prune", type=float, metavar="P",
                        help="leave out the longest n-grams without which the perplexity grows by less than a share P")
    parser.add_argument("--words", metavar="WORDS-TXT", dest="words_txt",
                        help="vocabulary: a lang's words.txt (default: the text's)")
    parser.add_argument("--map-oov", metavar="WORD", help="write this for words that --words lacks (default: refuse)")
    parser.add_argument("--ids", choices=("auto", "true", "false"), help="do lines begin with ids?")
    parser.add_argument("--test", metavar="TEXT", action="append", default=[], help="print the perplexity of this text")
    tell_defaults(parser, lm.estimate, lm.read_text)


def run(args) -> None:
    """Estimate, write, and print perplexities."""
    if args.order is not None and args.order < 1:
        raise UserError(f"--order {args.order}: must be at least 1")
    if args.prune is not None and not 0 <= args.prune < 1:
        raise UserError(f"--prune {args.prune:g}: must be at least 0 and less than 1")
    allowed, words = lm.vocabulary(args.words_txt) if args.words_txt else (None, None)
    known = {word: i for i, word in enumerate(allowed)} if allowed else None
    ids = given(args, lm.read_text)
    text = lm.read_text(args.text, words=known, **ids)
    if known is not None and args.map_oov is not None:
        if args.map_oov not in known:
            raise UserError(f"--map-oov {args.map_oov}: {args.words_txt} lacks it; {ADD_OOV}, and make the lang again")
        unknown = unknown_words(text, known, args.text, args.words_txt)
        if unknown:
            print(f"{args.text}: {counted(unknown)} are not in {args.words_txt} and taken as {args.map_oov}",
                  file=sys.stderr)
            text = [(utt, [w if w in known else args.map_oov for w in row]) for utt, row in text]
    elif known is not None:
        refuse_unknown(text, known, args.text, args.words_txt, "add it to the lexicon, or pass --map-oov WORD (if no "
                       f"word stands for unknown ones, {ADD_OOV})")
    model = lm.estimate([row for _, row in text], words=words, **given(args, lm.estimate))
    lm.write_arpa(args.arpa, model)
    print(f"{args.arpa}: {len(text)} sentences, {len(model.words) - 2} words, n-grams "
          + " ".join(str(len(table.key)) for table in model.orders))
    vocabulary = {word: i for i, word in enumerate(model.words)}
    for name in [args.text, *args.test]:
        sentences = text if name == args.text else lm.read_text(name, words=vocabulary, **ids)
        value, tokens, left_out = lm.perplexity(model, [row for _, row in sentences])
        print(f"{name}: perplexity {value:.2f} over {tokens} words and sentence ends, {left_out} unknown words left "
              "out")
