#!/usr/bin/env python3
"""Time and memory of building a decoding graph: ours, and Kaldi's utils/mkgraph.sh where KALDI_ROOT is compiled.

    benchmarks/graph_building.py --words 20000 --sentences 40000        # a trigram of a synthetic language

The language: words of two to nine random phones, frequent words shorter; each word is followed by one of its forty
usual successors or by any word, both by Zipf's law, so that n-grams repeat as they do in text. Everything is made in
--work-dir (a scratch folder by default): dict, lang, trigram (no pruning), a model of position-dependent phones with
random transition probabilities, graphs. Prints a Markdown table; memory is the largest process'.
"""
from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from measure import ESSENCE, measured, script

from essence_kd.hmm.fst import read_fst
from essence_kd.hmm.gmm import Gmm, save_gmm
from essence_kd.hmm.graph import load_graph
from essence_kd.hmm.lang import load_lang
from essence_kd.hmm.transition_model import TransitionModel
from essence_kd.hmm.tree import monophone_tree

PHONES = ("AA AE AH AO AW AX AY EH ER EY IH IY OW OY UH UW B CH D DH DX F G HH JH K L M N NG P R S SH T TH V W Y Z "
          "ZH").split()
MKGRAPH_NEEDS = (*(f"src/fstbin/{name}" for name in (
    "fsttablecompose", "fstdeterminizestar", "fstminimizeencoded", "fstpushspecial", "fstisstochastic",
    "fstcomposecontext", "fstrmsymbols", "fstrmepslocal")),
    *(f"src/bin/{name}" for name in ("tree-info", "am-info", "make-h-transducer", "add-self-loops")),
    "tools/openfst/bin/fstconvert", "tools/openfst/bin/fstarcsort", "egs/wsj/s5/utils/mkgraph.sh")


def write_language(folder: Path, num_words: int, sentences: int, seed: int) -> None:
    """folder/dict and folder/text: a lexicon of random pronunciations and text of about ten words per sentence."""
    rng = np.random.default_rng(seed)
    (folder / "dict").mkdir(parents=True, exist_ok=True)
    lines = ["<unk> SPN"]
    for word in range(num_words):
        length = min(9, 2 + int(rng.poisson(1.0 + 0.45 * np.log1p(word))))
        lines.append(f"w{word:05d} {' '.join(rng.choice(PHONES, length))}")
    (folder / "dict" / "lexicon.txt").write_text("\n".join(lines) + "\n")
    (folder / "dict" / "nonsilence_phones.txt").write_text("\n".join(PHONES) + "\n")
    (folder / "dict" / "silence_phones.txt").write_text("SIL\nSPN\n")
    (folder / "dict" / "optional_silence.txt").write_text("SIL\n")
    weights = 1.0 / np.arange(3, num_words + 3)
    total = np.cumsum(weights / weights.sum())
    usual_total = np.cumsum(1.0 / np.arange(1, 41) / np.sum(1.0 / np.arange(1, 41)))
    usual = np.minimum(np.searchsorted(total, rng.random((num_words, 40))), num_words - 1)
    with open(folder / "text", "w") as out:
        for _ in range(sentences):
            word, row = min(int(np.searchsorted(total, rng.random())), num_words - 1), []
            for draw, other, step in rng.random((max(1, int(rng.poisson(10))), 3)):
                row.append(f"w{word:05d}")
                word = (int(usual[word, np.searchsorted(usual_total, other)]) if draw < 0.7
                        else min(int(np.searchsorted(total, step)), num_words - 1))
            out.write(" ".join(row) + "\n")


def write_model(lang_dir: Path, gmm_dir: Path, seed: int) -> None:
    """A model with a pdf for every state of every position-dependent phone and random transition probabilities."""
    lang, rng = load_lang(lang_dir), np.random.default_rng(seed)
    tree = monophone_tree([[phone] for phone in sorted(lang.topo)], {p: len(states) for p, states in lang.topo.items()})
    transitions, pdfs = TransitionModel.of_tree(tree, lang.topo), tree.num_pdfs
    for first, last in zip(transitions.first_ids(), [*transitions.first_ids()[1:], transitions.num_ids + 1]):
        transitions.probs[first:last] = rng.dirichlet(np.full(last - first, 5.0))
    save_gmm(gmm_dir, Gmm(lang.phones, tree, transitions, np.arange(pdfs + 1), np.ones(pdfs), np.zeros((pdfs, 1)),
                          np.ones((pdfs, 1))))


def missing_for_mkgraph() -> "str | None":
    """What mkgraph.sh needs and KALDI_ROOT lacks, or None."""
    root = os.environ.get("KALDI_ROOT")
    if not root:
        return "KALDI_ROOT is not set"
    lacking = [name for name in MKGRAPH_NEEDS if not (Path(root) / name).exists()]
    return f"{root}/{lacking[0]} is not there" if lacking else None


def kaldi_environment() -> dict:
    """The environment of Kaldi's scripts: its programs and OpenFst's on the PATH."""
    root = os.environ["KALDI_ROOT"]
    folders = [f"{root}/src/bin", f"{root}/src/fstbin", f"{root}/tools/openfst/bin"]
    libraries = [f"{root}/tools/openfst/lib", f"{root}/src/lib", os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "PATH": os.pathsep.join([*folders, os.environ["PATH"]]), "LC_ALL": "C",
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}


def mkgraph(lang: Path, model: Path, graph: Path) -> tuple:
    """What Kaldi's mkgraph.sh costs."""
    script = Path(os.environ["KALDI_ROOT"]) / "egs" / "wsj" / "s5" / "utils" / "mkgraph.sh"
    return measured(["bash", script.resolve(), "--self-loop-scale", "0.1", "--transition-scale", "1.0", lang.resolve(),
                     model.resolve(), graph.resolve()], env=kaldi_environment(), cwd=script.parent.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=20000, help="in the lexicon (%(default)s)")
    parser.add_argument("--sentences", type=int, default=40000, help="of the trigram's text (%(default)s)")
    parser.add_argument("--order", type=int, default=3, help="of the language model (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work-dir", type=Path, help="keep what is made here")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="essence-bench-") as scratch:
        here = args.work_dir or Path(scratch)
        write_language(here, args.words, args.sentences, args.seed)

        def essence(*words):
            return measured([*ESSENCE, *words])

        steps = [("essence make-lang", essence("make-lang", here / "dict", here / "lang")),
                 (f"essence train-lm, order {args.order}", essence(
                     "train-lm", "--ids", "false", "--order", args.order, "--words", here / "lang" / "words.txt",
                     here / "text", here / "lm.arpa.gz")),
                 ("essence make-grammar", essence("make-grammar", here / "lm.arpa.gz", here / "lang"))]
        write_model(here / "lang", here / "gmm", args.seed)
        for factor in (1, 3):
            steps.append((f"essence make-graph, a row every {10 * factor} ms", essence(
                "make-graph", "--frame-subsampling-factor", factor, here / "lang", here / "gmm",
                here / f"graph{factor}")))
        grammar = read_fst(here / "lang" / "G.fst")
        sizes = {f"graph{factor}": load_graph(here / f"graph{factor}" / "graph.npz") for factor in (1, 3)}
        lacking = missing_for_mkgraph()
        if lacking is None:
            steps.append(("Kaldi's mkgraph.sh, a row every 10 ms", mkgraph(here / "lang", here / "gmm",
                                                                          here / "kaldi" / "graph")))
            sizes["mkgraph.sh"] = read_fst(here / "kaldi" / "graph" / "HCLG.fst")
    print(f"{args.words} words, {args.sentences} sentences; G has {grammar.num_states} states and {grammar.num_arcs} "
          "arcs; " + "; ".join(f"{name}: {g.num_states} states, {g.num_arcs} arcs" for name, g in sizes.items()) + "\n")
    print("| | CPU s | s | MB |\n|---|---|---|---|")
    for name, (cpu, wall, memory) in steps:
        print(f"| {name} | {cpu:.0f} | {wall:.0f} | {memory:.0f} |")
    if lacking:
        print(f"\nmkgraph.sh was not run: {lacking}")


if __name__ == "__main__":
    script(main)
