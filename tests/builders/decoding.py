"""A graph with scores of 40 utterances, and ``essence decode`` of what a test has written."""
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from builders import ROOT, table
from builders.graphs import loop_graph, random_path, scores_of

from essence_kd.cli.main import main
from essence_kd.decode.lattice import path_words
from essence_kd.hmm.graph import save_graph
from essence_kd.io.tables import MatrixWriter

WIDE = {"beam": 60.0, "max_active": 1000000}
WIDE_FLAGS = ["--beam", "60", "--max-active", "1000000"]


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


def best_cost(graph, scores, scale, penalty):
    """Cost of the best path by dynamic programming over every state of the graph, nothing pruned."""
    cost = graph.weight.astype(np.float64) + penalty * (graph.olabel > 0)
    free = np.flatnonzero(graph.ilabel == 0)
    taking = np.flatnonzero(graph.ilabel > 0)

    def close(now):
        for _ in range(4):  # chains of epsilons are short
            np.minimum.at(now, graph.dst[free], now[graph.src[free]] + cost[free])
        return now

    now = np.full(graph.num_states, np.inf)
    now[0] = 0.0
    now = close(now)
    for row in scores.astype(np.float64):
        then = np.full(graph.num_states, np.inf)
        arcs = cost[taking] - scale * row[graph.ilabel[taking] - 1]
        np.minimum.at(then, graph.dst[taking], now[graph.src[taking]] + arcs)
        now = close(then)
    return (now + graph.final).min()


def run_k2(k2, *arguments):
    """``essence decode --decoder k2`` in a process of its own, from a Python without k2."""
    command = [sys.executable, "-m", "essence_kd", "decode", "--decoder", "k2", *map(str, arguments)]
    environment = {**os.environ, **k2, "PYTHONPATH": str(ROOT / "pytools"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def read_n_best(folder):
    """Utterance -> [(cost, words)] of nbest.cost and nbest.txt."""
    costs = dict(line.split() for line in (folder / "nbest.cost").read_text().splitlines())
    lists = {}
    for line in (folder / "nbest.txt").read_text().splitlines():
        key, *words = line.split()
        utt, rank = key.rsplit("-", 1)
        lists.setdefault(utt, []).append((float(costs[key]), tuple(words)))
        assert len(lists[utt]) == int(rank)
    return lists
