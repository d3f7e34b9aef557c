"""Paths and lattices over the arcs of a decoding graph: words, word times, confidences, CTM, n-best, word errors.

Both decoders answer with *arc indices* into the arrays of ``hmm.graph.Graph``: a path is the int64 sequence of graph
arcs from the start to a final state, epsilon arcs included, so that words, times and costs come from one place for
every decoder. Costs have OpenFst's sign (-log p) and a path costs

    sum of graph weights + final cost + word_insertion_penalty * words - acoustic_scale * sum of scores.

A positive word insertion penalty therefore makes fewer words. Frames are rows of the score matrix. Numpy only.
"""
from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from essence_kd.hmm.fst import ranges
from essence_kd.hmm.graph import Graph

_NONWORD, _BEGIN, _END, _INTERNAL, _SINGLETON = range(5)


@dataclass
class Hypothesis:
    """The best words of one utterance: W words with their times in rows of the scores.

    ``words`` int32 (W,), ``start`` and ``length`` int32 (W,) in rows, ``confidence`` float32 (W,) in [0, 1].
    """

    words: np.ndarray
    start: np.ndarray
    length: np.ndarray
    confidence: np.ndarray


@dataclass
class Entry:
    """One word sequence of an n-best list: its cost, and its words with times (confidences 1)."""

    cost: float
    hyp: Hypothesis


def empty_hypothesis() -> Hypothesis:
    """No words at all: what an utterance without a surviving path answers."""
    none = np.zeros(0, np.int32)
    return Hypothesis(none, none, none, np.zeros(0, np.float32))


def path_words(graph: Graph, path: np.ndarray) -> np.ndarray:
    """Word-ids (int32) on a path of arc indices."""
    labels = graph.olabel[path]
    return labels[labels > 0]


def label_frames(graph: Graph, path: np.ndarray) -> np.ndarray:
    """The row at which each word label of a path is emitted (int64, one per word): rows consumed before its arc."""
    consumed = np.cumsum(graph.ilabel[path] > 0) - (graph.ilabel[path] > 0)
    return consumed[graph.olabel[path] > 0]


def path_word_spans(graph: Graph, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row and number of rows (both int32 (W,)) of each word of a path.

    The n-th word label belongs to the n-th group of phones "singleton" or "begin internal* end" (hmm.graph). Where
    phones do not show word positions, so that groups and labels differ in number, a word reaches from its
    label to the next one.
    """
    frames = path[graph.ilabel[path] > 0]
    phone = graph.unit_phone[graph.unit[frames]]
    first = graph.begin[frames] > 0
    if len(first):
        first = first.copy()
        first[0] = True
    starts = np.flatnonzero(first)  # of phone instances
    kind = graph.phone_kind[phone[starts]]
    ends = np.append(starts[1:], len(frames))
    opening = (kind == _BEGIN) | (kind == _SINGLETON)
    closing = (kind == _END) | (kind == _SINGLETON)
    word_start, word_end = starts[opening], ends[closing]
    count = int(np.count_nonzero(graph.olabel[path]))
    if len(word_start) == len(word_end) == count and np.all(word_start < word_end):
        return word_start.astype(np.int32), (word_end - word_start).astype(np.int32)
    label = np.minimum(label_frames(graph, path), max(len(frames) - 1, 0))
    return label.astype(np.int32), np.diff(np.append(label, len(frames))).astype(np.int32)


def path_cost(graph: Graph, path: np.ndarray, scores: np.ndarray, acoustic_scale: float,
              word_insertion_penalty: float = 0.0) -> float:
    """Cost of a path against scores (T, C), in double precision; see the module's docstring."""
    labels = graph.ilabel[path]
    labels = labels[labels > 0]
    acoustic = np.asarray(scores, np.float64)[np.arange(len(labels)), labels - 1].sum()
    words = np.count_nonzero(graph.olabel[path])
    return float(graph.weight[path].astype(np.float64).sum() + graph.final[graph.dst[path[-1]]]
                 + word_insertion_penalty * words - acoustic_scale * acoustic)


@dataclass
class Occurrences:
    """Word labels in a lattice: ``word`` int32 (N,), ``frame`` int32 (N,) and ``posterior`` float64 (N,) of the arc."""

    word: np.ndarray
    frame: np.ndarray
    posterior: np.ndarray


def word_confidences(words: np.ndarray, frames: np.ndarray, occurrences: Occurrences, reach: int = 15) -> np.ndarray:
    """Posterior of each word of the best path: float32 (W,), in [0, 1].

    The expected number of times that a path of the lattice shows the same word label within ``reach`` rows of the
    best path's label (``frames`` (W,)), where two equal words of the best path share the lattice's labels by nearness.
    """
    confidence = np.zeros(len(words), np.float64)
    by_word: dict[int, list[int]] = {}
    for index, word in enumerate(words):
        by_word.setdefault(int(word), []).append(index)
    for word, indices in by_word.items():
        mine = np.flatnonzero(occurrences.word == word)
        distance = np.abs(occurrences.frame[mine, None].astype(np.int64) - frames[None, indices])
        nearest = distance.argmin(axis=1)
        keep = distance[np.arange(len(mine)), nearest] <= reach
        np.add.at(confidence, np.asarray(indices)[nearest[keep]], occurrences.posterior[mine[keep]])
    return np.clip(confidence, 0.0, 1.0).astype(np.float32)


def hypothesis(graph: Graph, path: np.ndarray, occurrences: Occurrences | None) -> Hypothesis:
    """Words, times and confidences of a path; confidence 1 without a lattice."""
    words = path_words(graph, path)
    start, length = path_word_spans(graph, path)
    if occurrences is None:
        confidence = np.ones(len(words), np.float32)
    else:
        confidence = word_confidences(words, label_frames(graph, path), occurrences)
    return Hypothesis(words.astype(np.int32), start, length, confidence)


def ctm_lines(recording: str, channel: str, offset: float, hyp: Hypothesis, words: np.ndarray,
              frame_shift: float) -> list[str]:
    """NIST CTM: "recording channel start duration word confidence"; ``offset``: the utterance's start in seconds."""
    return [f"{recording} {channel} {offset + start * frame_shift:.3f} {length * frame_shift:.3f} "
            f"{words[word]} {conf:.3f}"
            for word, start, length, conf in zip(hyp.words, hyp.start, hyp.length, hyp.confidence)]


@dataclass
class Lattice:
    """What survived of the search for one utterance: N arcs between M states; state 0 is the start.

    ``src``, ``dst`` int32 (N,), every arc leads to a higher state; ``graph_arcs`` int64 and ``offsets`` int64 (N+1,):
    the graph arcs that lattice arc i stands for are ``graph_arcs[offsets[i]:offsets[i+1]]`` (one that consumes a row
    and the epsilons around it, or epsilons alone). ``final`` float32 (M,) final costs (+inf: not final).
    ``frame`` int32 (N,): the row that the arc consumes or stands before.
    ``graph_cost`` and ``score`` float32 (N,): weights of the graph, and the unscaled score of the row (0 where none).
    ``posterior`` float64 (N,): of each arc among all paths, at the costs of the search, where the decoder tells it.
    """

    src: np.ndarray
    dst: np.ndarray
    offsets: np.ndarray
    graph_arcs: np.ndarray
    frame: np.ndarray
    graph_cost: np.ndarray
    score: np.ndarray
    final: np.ndarray
    num_frames: int
    posterior: np.ndarray | None = None

    def arc_words(self, graph: Graph) -> np.ndarray:
        """How many word labels each arc carries: int64 (N,)."""
        labels = np.append(0, np.cumsum(graph.olabel[self.graph_arcs] > 0))
        return labels[self.offsets[1:]] - labels[self.offsets[:-1]]

    def arc_costs(self, graph: Graph, acoustic_scale: float, word_insertion_penalty: float) -> np.ndarray:
        """Cost of each arc: float64 (N,)."""
        return (self.graph_cost.astype(np.float64) + word_insertion_penalty * self.arc_words(graph)
                - acoustic_scale * self.score)

    def levels(self) -> np.ndarray:
        """The most arcs that lead from the start to each state: int64 (M,)."""
        level = [0] * len(self.final)
        order = np.argsort(self.src, kind="stable")
        for src, dst in zip(self.src[order].tolist(), self.dst[order].tolist()):
            if level[src] >= level[dst]:
                level[dst] = level[src] + 1
        return np.asarray(level)

    def costs_to_go(self, costs: np.ndarray) -> np.ndarray:
        """Cost of the best path from each state to the end (float64 (M,), +inf: none), given arc costs (N,)."""
        to_go = self.final.tolist()
        order = np.argsort(self.src, kind="stable")[::-1]
        for src, dst, cost in zip(self.src[order].tolist(), self.dst[order].tolist(), costs[order].tolist()):
            cost += to_go[dst]
            if cost < to_go[src]:
                to_go[src] = cost
        return np.asarray(to_go)

    def best_path(self, costs: np.ndarray) -> np.ndarray:
        """The cheapest path's arcs (int64), given arc costs (N,); none where the start does not lead to the end."""
        to_go, path, state = self.costs_to_go(costs), [], 0
        order = np.argsort(self.src, kind="stable")
        first = np.searchsorted(self.src[order], np.arange(len(self.final) + 1))
        while to_go[state] < self.final[state]:
            leaving = order[first[state]:first[state + 1]]
            path.append(leaving[(costs[leaving] + to_go[self.dst[leaving]]).argmin()])
            state = self.dst[path[-1]]
        return np.asarray(path, np.int64)

    def arc_posteriors(self, costs: np.ndarray) -> np.ndarray:
        """Probability of each arc (float64 (N,)) among all paths, given arc costs float64 (N,): forward-backward."""
        forward, backward = np.full(len(self.final), -np.inf), -self.final.astype(np.float64)
        forward[0] = 0.0
        level = self.levels()[self.src]
        order = np.argsort(level, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(level[order])) + 1)
        for arcs in groups:
            np.logaddexp.at(forward, self.dst[arcs], forward[self.src[arcs]] - costs[arcs])
        for arcs in reversed(groups):
            np.logaddexp.at(backward, self.src[arcs], backward[self.dst[arcs]] - costs[arcs])
        return np.exp(forward[self.src] - costs + backward[self.dst] - backward[0])

    def without_dead_ends(self) -> "Lattice":
        """The same lattice without what no path from the start to the end goes through; ``posterior`` is left out."""
        alive = np.isfinite(self.costs_to_go(np.zeros(len(self.src))))
        kept = np.flatnonzero(alive[self.dst])
        number = np.cumsum(alive) - 1
        lengths = self.offsets[kept + 1] - self.offsets[kept]
        return Lattice(src=number[self.src[kept]].astype(np.int32), dst=number[self.dst[kept]].astype(np.int32),
                       offsets=np.append(0, np.cumsum(lengths)),
                       graph_arcs=self.graph_arcs[ranges(self.offsets[kept], lengths)], frame=self.frame[kept],
                       graph_cost=self.graph_cost[kept], score=self.score[kept], final=self.final[alive],
                       num_frames=self.num_frames)

    def occurrences(self, graph: Graph, posteriors: np.ndarray) -> Occurrences:
        """Word labels of the lattice with their rows and the posteriors (N,) of their arcs."""
        words = graph.olabel[self.graph_arcs]
        owner = np.repeat(np.arange(len(self.src)), np.diff(self.offsets))
        carrying = words > 0
        owner = owner[carrying]
        return Occurrences(words[carrying], self.frame[owner], posteriors[owner])

    def path_of(self, arcs: np.ndarray) -> np.ndarray:
        """Graph arcs of a sequence of lattice arcs."""
        pieces = [self.graph_arcs[self.offsets[a]:self.offsets[a + 1]] for a in arcs]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def n_best(lattice: Lattice, graph: Graph, count: int, acoustic_scale: float,
           word_insertion_penalty: float = 0.0, max_expansions: int = 200000) -> list[tuple[float, np.ndarray]]:
    """The ``count`` best different word sequences: (cost, path of graph arcs), best first.

    A* over the lattice with the exact cost to go as heuristic: paths come out in order of cost, and a partial path is
    dropped when ``count`` cheaper ones with the same words have been seen at its state, which keeps
    the first path of every word sequence. Gives fewer than ``count`` when the lattice has no more or after
    ``max_expansions`` steps.
    """
    cost = lattice.arc_costs(graph, acoustic_scale, word_insertion_penalty).tolist()
    src, dst, final = lattice.src.tolist(), lattice.dst.tolist(), lattice.final.astype(np.float64).tolist()
    order = np.argsort(lattice.src, kind="stable").tolist()
    to_go = lattice.costs_to_go(np.asarray(cost)).tolist()
    if not to_go or to_go[0] == np.inf:
        return []
    leaving: list[list[int]] = [[] for _ in final]
    for arc in order:
        if to_go[dst[arc]] < np.inf:
            leaving[src[arc]].append(arc)
    labels = graph.olabel[lattice.graph_arcs]
    owner = np.repeat(np.arange(len(src)), np.diff(lattice.offsets))
    said: dict[int, list[int]] = {}
    for arc, word in zip(owner[labels > 0].tolist(), labels[labels > 0].tolist()):
        said.setdefault(arc, []).append(word)

    sequences: dict[tuple[int, int], int] = {}  # (number of a word sequence, a word more) -> number; 0: no words
    serial = 0
    heap: list = [(to_go[0], serial, 0, 0.0, 0, None)]  # estimate, tie, state, cost so far, words, arcs as linked list
    visits: set[tuple[int, int]] = set()
    found: list[tuple[float, np.ndarray]] = []
    seen: set[int] = set()
    for _ in range(max_expansions):
        if not heap or len(found) == count:
            break
        estimate, _, state, so_far, words, arcs = heapq.heappop(heap)
        if state < 0:
            if words not in seen:
                seen.add(words)
                chain = []
                while arcs is not None:
                    arcs, arc = arcs
                    chain.append(arc)
                found.append((estimate, lattice.path_of(np.asarray(chain[::-1], np.int64))))
            continue
        if (state, words) in visits:
            continue  # a cheaper way to the same state with the same words was expanded before
        visits.add((state, words))
        if final[state] < np.inf:
            serial += 1
            heapq.heappush(heap, (so_far + final[state], serial, -1, so_far, words, arcs))
        for arc in leaving[state]:
            serial += 1
            new, longer = so_far + cost[arc], words
            for word in said.get(arc, ()):
                longer = sequences.setdefault((longer, word), len(sequences) + 1)
            heapq.heappush(heap, (new + to_go[dst[arc]], serial, dst[arc], new, longer, (arcs, arc)))
    return found


def edit_distance(ref: Sequence, hyp: Sequence) -> int:
    """Fewest insertions, deletions and substitutions that turn ``ref`` into ``hyp`` (the WER's numerator)."""
    row = list(range(len(hyp) + 1))
    for i, word in enumerate(ref, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hyp, 1):
            diagonal, row[j] = row[j], min(diagonal + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def lattice_lines(lattice: Lattice, graph: Graph, word_insertion_penalty: float = 0.0) -> list[str]:
    """Kaldi's text form of a state-level lattice (an OpenFst listing), one line an arc: "from to pdf words costs".

    Input labels are pdf-id + 1, output labels words (``<eps>`` where there is none); an arc with several words is
    split. Weights are "graph,acoustic" costs, the acoustic one unscaled (-score) as in Kaldi's lattices; penalties are
    part of the graph cost.
    """
    lines, extra = [], len(lattice.final)
    graph_cost = lattice.arc_costs(graph, 0.0, word_insertion_penalty)
    for arc in np.argsort(lattice.src, kind="stable"):
        chain = lattice.graph_arcs[lattice.offsets[arc]:lattice.offsets[arc + 1]]
        labels = [str(graph.words[w]) for w in graph.olabel[chain] if w > 0] or ["<eps>"]
        emitting = graph.ilabel[chain]
        emitting = int(emitting[emitting > 0][0]) if (emitting > 0).any() else 0
        source = int(lattice.src[arc])
        for position, label in enumerate(labels):
            last = position == len(labels) - 1
            target = int(lattice.dst[arc]) if last else extra
            weight = "0,0" if position else f"{graph_cost[arc]:.6g},{-float(lattice.score[arc]):.6g}"
            lines.append(f"{source}\t{target}\t{0 if position else emitting}\t{label}\t{weight}")
            if not last:
                source, extra = extra, extra + 1
    for state in np.flatnonzero(np.isfinite(lattice.final)):
        lines.append(f"{state}\t{float(lattice.final[state]):.6g},0")
    return lines
