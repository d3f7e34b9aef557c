"""A graph with scores of 40 utterances, and ``essence decode`` of what a test has written."""
import dataclasses
from pathlib import Path

import numpy as np
from builders import table
from builders.graphs import loop_graph, random_path, scores_of

from essence_kd.cli.main import main
from essence_kd.decode.lattice import path_words
from essence_kd.hmm.graph import save_graph
from essence_kd.io.tables import MatrixWriter


def make_scores(folder):
    """A graph of 60 words and 40 utterances: scores with noise, their words, and a second archive with odd ones.

    Word labels come early and late, so that an arc of the graph without epsilons may carry two.
    """
    rng = np.random.default_rng(0)
    graph = loop_graph(num_words=60, num_phones=12, seed=1, lengths=(1, 4), moved=True)
    (folder / "graph").mkdir()
    save_graph(folder / "graph" / "graph.npz", graph)
    (folder / "graph" / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(graph.words)))
    scores, text, paths = {}, {}, {}
    for number in range(40):
        utt = f"utt{number:02d}"
        path = random_path(graph, int(rng.integers(1, 8)), rng)
        scores[utt], paths[utt] = scores_of(graph, path, rng, strength=4.0), path
        text[utt] = graph.words[path_words(graph, path)].tolist()
    write(folder / "scores", scores)
    odd = {"fine": scores["utt00"], "empty": np.zeros((0, graph.num_pdfs), np.float32),
           "also": scores["utt01"]}
    write(folder / "odd", odd)
    (folder / "text").write_text("".join(f"{utt} {' '.join(words)}\n" for utt, words in text.items()))
    return dataclasses.make_dataclass("Corpus", ["folder", "graph", "scores", "text", "paths"])(
        folder, graph, scores, text, paths)


def write(stem, scores):
    table(MatrixWriter, stem, scores)


def read_hyp(folder):
    return {line.split()[0]: line.split()[1:] for line in (Path(folder) / "hyp.txt").read_text().splitlines()}


def decode(*arguments):
    return main(["decode", "--decoder", "kaldi", *map(str, arguments)])
