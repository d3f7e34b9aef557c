"""Lexicons, lang directories, symbol tables, topologies, n-gram models and what is asked of them."""
from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from essence_kd.hmm.lang import format_topology, load_lang, parse_topology, read_dict, read_symbols
from essence_kd.hmm.lm import make_grammar, read_arpa, read_text, sentence_scores, vocabulary, write_arpa
from essence_kd.io.errors import UserError
from essence_kd.io.text import split
from essence_kd.score.alignment_picture import read_lexicon, read_tree
from fuzz.driver import directory, file, folder, target

DICT = ["lexicon.txt", "silence_phones.txt", "nonsilence_phones.txt", "optional_silence.txt", "extra_questions.txt",
        "lexiconp.txt"]
LANG = ["phones.txt", "words.txt", "topo", "phones/silence.int", "phones/nonsilence.int",
        "phones/optional_silence.int", "phones/disambig.int", "phones/sets.int", "phones/word_boundary.int", "oov.int"]


def _arpa(path: str) -> None:
    model = read_arpa(path)
    sentences = [["a", "b"], ["b", "a", "c"], [], ["a"]]
    logprob, _, _ = sentence_scores(model, sentences)
    assert logprob.shape == (4,) and not np.isnan(logprob).any()
    scores = []
    for _ in range(2):  # written once, what depends on the order of lines (as for Kaldi) has found its own
        copy = os.path.join(folder(), "copy.arpa")
        write_arpa(copy, model)
        model = read_arpa(copy)
        scores.append(sentence_scores(model, sentences)[0])
    assert np.allclose(*scores, rtol=1e-5)


@target
def arpa(data: bytes) -> None:
    """An ARPA file; what is written again scores alike, and it makes a grammar or says why not."""
    path = file(data)
    _arpa(path)
    words = ["<eps>", "a", "b", "c", "#0", "<s>", "</s>"]
    grammar, _ = make_grammar(read_arpa(path), words)
    assert not np.isnan(grammar.weight).any() and (grammar.dst < grammar.num_states).all()


@target
def arpa_gz(data: bytes) -> None:
    """The same in gzip; what is not gzip is compressed first."""
    _arpa(file(data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 1, mtime=0), "input.gz"))


@target
def lm_text(data: bytes) -> None:
    """The text of a language model."""
    path = file(data, "text")
    for ids in ("auto", "true", "false"):
        for utt, words in read_text(path, ids):
            assert utt and all(split(word) == [word] for word in words)
    read_text(path, words={"a": 1})


@target
def symbols(data: bytes) -> None:
    """A symbol table."""
    path = file(data, "words.txt")
    table = read_symbols(path)
    assert table[0] == "<eps>" and table[-1]
    again = file("".join(f"{word} {i}\n" for i, word in enumerate(table) if word).encode(), "again.txt")
    assert read_symbols(again) == table
    vocabulary(path)


@target
def topology(data: bytes) -> None:
    """A topo file in text."""
    found = parse_topology(data.decode("utf-8", "replace"))
    again = parse_topology(format_topology([([phone], states) for phone, states in found.items()]))
    assert set(again) == set(found)
    for phone, states in found.items():
        assert [[d for d, _ in arcs] for arcs in states] == [[d for d, _ in arcs] for arcs in again[phone]]
        assert all(0 <= d <= len(states) and 0 <= p <= 1 for arcs in states for d, p in arcs)


@target
def lang(data: bytes) -> None:
    """A lang directory."""
    found = load_lang(directory(data, LANG, "lang"))
    assert all(found.phones[p] for p in found.silence + found.nonsilence)
    found.phone_and_state()


@target
def dictionary(data: bytes) -> None:
    """A dict directory, and the lexicon and the tree as the report reads them."""
    path = Path(directory(data, DICT, "dict"))
    found = read_dict(path)
    assert found.lexicon and all(p.phones and 0 < p.prob <= 1 for p in found.lexicon)
    read_lexicon(path / "lexicon.txt")


@target
def tree(data: bytes) -> None:
    """tree.txt, which names pdfs, phones and states."""
    try:
        found = read_tree(Path(file(data)))
    except UserError:
        raise
    assert all(isinstance(pdf, int) and phone for pdf, (phone, _) in found.items())
