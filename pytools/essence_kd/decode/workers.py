"""Batches decoded in this process or in several, which load the graph once each."""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from essence_kd.decode.decoder import Decoded, Decoder
from essence_kd.decode.lattice import Entry, Hypothesis, empty_hypothesis, hypothesis, lattice_lines, n_best
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.rescoring import open_rescorer
from essence_kd.hmm.graph import Graph, load_graph
from essence_kd.io.parallel import Workers


@dataclass
class Task:
    """A batch of one job for one process; ``pieces``: (utterance, number of its piece).

    ``rescorer``: a folder (rescoring.make_rescorer) of language models to exchange in the lattices. ``count``: instead
    of decoding, count the states that are active after the last row of each matrix.
    """

    job: int
    pieces: list
    batch: list
    options: DecodeOptions
    n_best: int = 0
    lattices: bool = False
    rescorer: Optional[str] = None
    sweep: bool = False
    count: bool = False


@dataclass
class Outcome:
    """What a process answers for one utterance or a piece of one."""

    hyp: Hypothesis
    found: bool
    retried: bool = False
    states: Optional[int] = None
    arcs: Optional[int] = None
    n_best: list = field(default_factory=list)  # of Entry
    lattice: list = field(default_factory=list)  # lines
    sweep: list = field(default_factory=list)  # [scale][penalty] of word-ids
    unrescored: bool = False  # another language model was wanted, but no lattice came


def run_task(decoder: Decoder, task: Task) -> tuple[list, float]:
    """Decode a batch; the outcomes (or counts of active states) and the seconds it took."""
    begin = time.perf_counter()
    decoder.set_options(task.options)
    batch, options = task.batch, task.options
    repeat = options.repeat_rows
    if repeat > 1:
        batch = [np.repeat(scores / np.float32(repeat), repeat, axis=0) for scores in batch]
    if task.count:
        return decoder.active_states(batch), 0.0
    if task.sweep:
        grids = decoder.sweep(batch, options.sweep_scales, options.sweep_penalties)
        outcomes = [Outcome(empty_hypothesis(), True, sweep=grid) for grid in grids]
        return outcomes, time.perf_counter() - begin
    outcomes = []
    for answer in decoder.decode(batch, lattices=task.lattices or task.n_best > 0 or task.rescorer is not None):
        outcomes.append(_outcome(decoder.graph, answer, task))
    return outcomes, time.perf_counter() - begin


def _outcome(graph: Graph, answer: Decoded, task: Task) -> Outcome:
    lattice, path, occurrences = answer.lattice, answer.path, answer.occurrences
    scale, penalty = task.options.acoustic_scale, task.options.word_insertion_penalty
    if lattice is not None and task.rescorer is not None:
        lattice = open_rescorer(task.rescorer).rescored(lattice, graph, scale, penalty)
        costs = lattice.arc_costs(graph, scale, penalty)
        path = lattice.path_of(lattice.best_path(costs))
        occurrences = lattice.occurrences(graph, lattice.arc_posteriors(costs))
    hyp = empty_hypothesis() if path is None else hypothesis(graph, path, occurrences)
    outcome = Outcome(hyp, path is not None, answer.retried, answer.states, answer.arcs,
                      unrescored=task.rescorer is not None and path is not None and lattice is None)
    if lattice is not None and task.n_best:
        outcome.n_best = [Entry(cost, hypothesis(graph, words, None))
                          for cost, words in n_best(lattice, graph, task.n_best, scale, penalty)]
    if lattice is not None and task.lattices:
        outcome.lattice = lattice_lines(lattice, graph, penalty)
    return outcome


class BatchDecoder:
    """A decoder of a process; ``graph``: itself or the name of its file."""

    def __init__(self, kind: type[Decoder], graph: Graph | str, options: DecodeOptions):
        self.decoder = kind(load_graph(graph) if isinstance(graph, str) else graph, options)

    def run(self, task: Task) -> tuple[list, float]:
        """What :func:`run_task` answers."""
        return run_task(self.decoder, task)


def open_workers(kind: type[Decoder], graph: Graph, graph_path, options: DecodeOptions, nj: int) -> Workers:
    """``nj`` processes with a BatchDecoder each, or this one where ``nj`` is 1.

    Raises UserError where what the decoder needs is not there.
    """
    if nj > 1:
        kind.check()
    return Workers(BatchDecoder, [(kind, graph if nj == 1 else str(graph_path), options)] * nj,
                   "a decoding process died, perhaps for want of memory; decode with --nj 1 or a smaller --max-active")
