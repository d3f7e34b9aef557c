"""A decoding graph without epsilons, for searches that miscount rows or lose words where an arc consumes no row.

An arc that consumes a row takes in the epsilon arcs behind it, with their words and costs, and so leads to every state
that they lead to. Words that follow each other without a row between them lie on one arc then: a *phrase*.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, List, Tuple

import numpy as np

from essence_kd.hmm.fst import Fst, make_fst, ranges
from essence_kd.hmm.graph import Graph, trim

Phrase = Tuple[int, ...]  # word-ids


class Phrases:
    """Word sequences by number; 0 is the empty one."""

    def __init__(self, words: Iterable[Phrase]) -> None:
        self.words: List[Phrase] = list(words)
        self._number: Dict[Phrase, int] = {words: number for number, words in enumerate(self.words)}

    def joined(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The numbers of ``first`` followed by ``second``, int32 (N,) each."""
        out = np.where(first == 0, second, first).astype(np.int32)
        for i in np.flatnonzero((first > 0) & (second > 0)):
            words = self.words[first[i]] + self.words[second[i]]
            if words not in self._number:
                self._number[words] = len(self.words)
                self.words.append(words)
            out[i] = self._number[words]
        return out


@dataclass
class EpsilonFree:
    """``fst``: ilabel pdf-id + 1, olabel number of a phrase (0: none); ``phrases``: word-ids of each number."""

    fst: Fst
    phrases: List[Phrase]


def without_epsilons(graph: Graph) -> EpsilonFree:
    """The same word sequences at the same costs, but for the empty one of no rows. Epsilons must form no cycle."""
    phrases, free = Phrases([(), *((word,) for word in range(1, len(graph.words)))]), graph.ilabel == 0
    begin, end, cost, words = _closure(graph, np.flatnonzero(free), phrases)
    final = graph.final.astype(np.float64)
    leaves = np.bincount(graph.src[~free], minlength=graph.num_states) > 0
    useful = (leaves | np.isfinite(final))[end]  # what only epsilons leave is no place to be
    begin, end, cost, words = begin[useful], end[useful], cost[useful], words[useful]

    taking = np.flatnonzero(~free)
    first = np.searchsorted(begin, graph.dst[taking])
    count = np.searchsorted(begin, graph.dst[taking], side="right") - first
    arc, at = np.repeat(taking, count), ranges(first, count)
    src, dst, label = graph.src[arc], end[at], graph.ilabel[arc]
    weight = graph.weight[arc].astype(np.float64) + cost[at]
    spoken = phrases.joined(graph.olabel[arc], words[at])

    # the start may lie before epsilons, too: a state of its own has what leaves the states behind them
    order = np.argsort(src, kind="stable")
    src, dst, label, weight, spoken = src[order], dst[order], label[order], weight[order], spoken[order]
    behind = np.flatnonzero((begin == 0) & (end != 0))
    first = np.searchsorted(src, end[behind])
    count = np.searchsorted(src, end[behind], side="right") - first
    arc, at = ranges(first, count), np.repeat(behind, count)
    src, dst = np.concatenate([src, np.zeros(len(arc), src.dtype)]), np.concatenate([dst, dst[arc]])
    label, weight = np.concatenate([label, label[arc]]), np.concatenate([weight, weight[arc] + cost[at]])
    spoken = np.concatenate([spoken, phrases.joined(words[at], spoken[arc])])

    order = np.lexsort((weight, spoken, label, dst, src))
    keys = np.stack([src, dst, label, spoken])[:, order]
    best = order[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))]
    fst = trim(make_fst(src[best], dst[best], label[best], spoken[best], weight[best], final))
    return EpsilonFree(fst, phrases.words)


def _closure(graph: Graph, free: np.ndarray, phrases: Phrases):
    """(begin, end, cost, phrase), sorted by begin: the ways along epsilon arcs from each state, of no arc included.

    Of several with the same words the cheapest.
    """
    free = free[np.argsort(graph.src[free], kind="stable")]
    sources = graph.src[free]
    begin = np.arange(graph.num_states)
    ways = [(begin, begin, np.zeros(len(begin)), np.zeros(len(begin), np.int32))]
    while len(ways[-1][0]):
        begin, end, cost, words = ways[-1]
        first = np.searchsorted(sources, end)
        count = np.searchsorted(sources, end, side="right") - first
        arc, at = free[ranges(first, count)], np.repeat(np.arange(len(end)), count)
        ways.append((begin[at], graph.dst[arc].astype(np.int64), cost[at] + graph.weight[arc],
                     phrases.joined(words[at], graph.olabel[arc])))
    begin, end, cost, words = (np.concatenate(column) for column in zip(*ways))
    order = np.lexsort((cost, words, end, begin))
    keys = np.stack([begin, end, words])[:, order]
    best = order[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))]
    return begin[best], end[best], cost[best], words[best]
