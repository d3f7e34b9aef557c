"""Turns an ARPA language model into the grammar G.fst of a lang directory.

e.g.: essence make-grammar data/mini/lm/lm.arpa.gz data/mini/lang
"""
from __future__ import annotations

import sys
from pathlib import Path

from essence_kd.hmm.fst import write_fst
from essence_kd.hmm.lang import read_symbols
from essence_kd.hmm.lm import make_grammar, ngrams_outside, read_arpa, vocabulary
from essence_kd.io.errors import UserError
from essence_kd.io.text import visible

HELP = "turn an ARPA language model into LANG/G.fst"


def add_arguments(parser) -> None:
    parser.add_argument("arpa", metavar="ARPA", help="any ARPA file, gzip or not")
    parser.add_argument("lang_dir", metavar="LANG", help="lang directory; G.fst is written there")


def run(args) -> None:
    """Write G.fst; say which words had to be left out."""
    lang = Path(args.lang_dir)
    words, model = read_symbols(lang / "words.txt"), read_arpa(args.arpa)
    try:
        grammar, missing = make_grammar(model, words)
    except UserError as error:
        raise UserError(f"{args.arpa} and {lang}: {error}") from None
    if missing:
        print(f"{args.arpa}: {len(missing)} words are not in {lang / 'words.txt'} (first: "
              f"{', '.join(map(visible, missing[:5]))}); {ngrams_outside(model, missing)} n-grams with them are left "
              "out",
              file=sys.stderr)
    silent = sorted(set(vocabulary(lang / "words.txt")[1]) - set(model.words))
    if silent:
        print(f"{args.arpa}: lacks {len(silent)} words of {lang / 'words.txt'}, which will not be recognised (first: "
              f"{', '.join(map(visible, silent[:5]))})", file=sys.stderr)
    write_fst(lang / "G.fst", grammar)
    print(f"{lang / 'G.fst'}: {grammar.num_states} states, {grammar.num_arcs} arcs")
