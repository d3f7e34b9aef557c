"""Perplexity of texts under an n-gram model, e.g. of two models on the same text.

e.g.: essence perplexity data/mini/lm/lm.arpa.gz data/mini/dev/text
"""
from __future__ import annotations

from essence_kd.hmm import lm
from essence_kd.io.options import given, tell_defaults

HELP = "perplexity of texts under an ARPA language model"


def add_arguments(parser) -> None:
    parser.add_argument("arpa", metavar="ARPA", help="any ARPA file, gzip or not")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="Kaldi text files, or files with a sentence per line")
    parser.add_argument("--ids", choices=("auto", "true", "false"), help="do lines begin with ids?")
    tell_defaults(parser, lm.read_text)


def run(args) -> None:
    """Print a line a text."""
    model = lm.read_arpa(args.arpa)
    vocabulary = {word: i for i, word in enumerate(model.words)}
    for name in args.texts:
        text = lm.read_text(name, words=vocabulary, **given(args, lm.read_text))
        value, tokens, unknown = lm.perplexity(model, [row for _, row in text])
        print(f"{args.arpa}: {len(model.orders)}-gram, perplexity {value:.2f} of {name} over {tokens} words and "
              f"sentence ends, {unknown} unknown words left out")
