"""Batches decoded in this process or in several, which load the graph once each."""
from __future__ import annotations

import collections
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Iterable, Iterator, Optional

import numpy as np

from essence_kd.decode.decoder import Decoded, Decoder
from essence_kd.decode.lattice import Hypothesis, empty_hypothesis, hypothesis, label_frames, lattice_lines, n_best
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.rescoring import Entry
from essence_kd.hmm.graph import Graph, load_graph
from essence_kd.io.errors import UserError


@dataclass
class Task:
    """A batch of one job for one process; ``pieces``: (utterance, number of its piece).

    ``count``: instead of decoding, count the states that are active after the last row of each matrix.
    """

    job: int
    pieces: list
    batch: list
    options: DecodeOptions
    n_best: int = 0
    lattices: bool = False
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
    for answer in decoder.decode(batch, lattices=task.lattices or task.n_best > 0):
        outcomes.append(_outcome(decoder.graph, answer, task))
    return outcomes, time.perf_counter() - begin


def _outcome(graph: Graph, answer: Decoded, task: Task) -> Outcome:
    found = answer.path is not None
    hyp = hypothesis(graph, answer.path, answer.occurrences) if found else empty_hypothesis()
    outcome = Outcome(hyp, found, answer.retried, answer.states, answer.arcs)
    if answer.lattice is not None:
        scale, penalty = task.options.acoustic_scale, task.options.word_insertion_penalty
        if task.n_best:
            outcome.n_best = [Entry(cost, hypothesis(graph, path, None), label_frames(graph, path))
                              for cost, path in n_best(answer.lattice, graph, task.n_best, scale, penalty)]
        if task.lattices:
            outcome.lattice = lattice_lines(answer.lattice, graph, penalty)
    return outcome


_decoder = None  # of a worker process


def _start_worker(kind: type[Decoder], graph_path: str, options: DecodeOptions) -> None:
    global _decoder
    _decoder = kind(load_graph(graph_path), options)


def _work(task: Task) -> tuple[list, float]:
    return run_task(_decoder, task)


class Workers:
    """``nj`` processes with a decoder each, or this one where ``nj`` is 1. UserError where there is no such decoder."""

    def __init__(self, kind: type[Decoder], graph: Graph, graph_path, options: DecodeOptions, nj: int):
        self.nj, self._start = nj, (kind, str(graph_path), options)
        self._decoder = kind(graph, options) if nj == 1 else None
        self._pool: ProcessPoolExecutor | None = None
        if nj > 1:
            kind.check()
        self.batch_rows = (self._decoder or kind).batch_rows

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, list, float]]:
        """What :func:`run_task` answers of every task, in their order; at most two tasks a process are held."""
        if self.nj == 1:
            for task in tasks:
                yield (task, *run_task(self._decoder, task))
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.nj, multiprocessing.get_context("spawn"), _start_worker, self._start)
        waiting: collections.deque = collections.deque()
        try:
            for task in tasks:
                waiting.append((task, self._pool.submit(_work, task)))
                if len(waiting) > 2 * self.nj:
                    task, future = waiting.popleft()
                    yield (task, *future.result())
            while waiting:
                task, future = waiting.popleft()
                yield (task, *future.result())
        except BrokenProcessPool:
            raise UserError("a decoding process died, perhaps for want of memory; decode with --nj 1 or a "
                            "smaller --max-active") from None
        finally:
            for _, future in waiting:
                future.cancel()

    def close(self, wait: bool) -> None:
        """End the processes; without ``wait`` at once, for nobody wants what they are at, which may take minutes."""
        if self._pool is None:
            return
        if not wait:
            # a thread may be writing a batch into a pipe that nobody will read any more: it is not waited for
            self._pool._call_queue.cancel_join_thread()
            for process in list(self._pool._processes.values()):
                process.terminate()
        self._pool.shutdown()
