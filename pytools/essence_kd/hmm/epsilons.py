"""Ways along the epsilon arcs of a decoding graph, which searches take at once."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, List, Tuple

import numpy as np

from essence_kd.hmm.fst import ranges
from essence_kd.hmm.graph import Graph

Phrase = Tuple[int, ...]  # word-ids


class Phrases:
    """Word sequences by number; 0 is the empty one."""

    def __init__(self, words: Iterable[Phrase]) -> None:
        self.words: List[Phrase] = list(words)
        self._number: Dict[Phrase, int] = {words: number for number, words in enumerate(self.words)}

    @classmethod
    def of_words(cls, count: int) -> "Phrases":
        """Those of one word each, by word-id, of ``count`` word-ids with 0, which is none."""
        return cls([(), *((word,) for word in range(1, count))])

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
class Ways:
    """N ways from a state to a state along epsilon arcs, of no arc included, sorted by ``begin``.

    ``begin``, ``end`` int64 (N,); ``cost`` float64 (N,); ``phrase`` int32 (N,), numbers of Phrases; way i takes the
    graph arcs ``arcs[offsets[i]:offsets[i + 1]]`` (int64).
    """

    begin: np.ndarray
    end: np.ndarray
    cost: np.ndarray
    phrase: np.ndarray
    offsets: np.ndarray
    arcs: np.ndarray


def epsilon_ways(graph: Graph, phrases: Phrases) -> Ways:
    """All ways to states that an emitting arc leaves or that are final; of several with the same words the cheapest."""
    free = np.flatnonzero(graph.ilabel == 0)
    free = free[np.argsort(graph.src[free], kind="stable")]
    first = np.searchsorted(graph.src[free], np.arange(graph.num_states + 1))
    states = np.arange(graph.num_states)
    # begin, end, cost, phrase, last arc, place of the way without it
    rounds = [(states, states, np.zeros(len(states)), np.zeros(len(states), np.int32), states, states)]
    length, start = [np.zeros(len(states), np.int64)], 0
    while len(rounds[-1][0]):
        begin, end, cost, phrase = rounds[-1][:4]
        count = first[end + 1] - first[end]
        arc, at = free[ranges(first[end], count)], np.repeat(np.arange(len(end)), count)
        rounds.append((begin[at], graph.dst[arc].astype(np.int64), cost[at] + graph.weight[arc],
                       phrases.joined(phrase[at], graph.olabel[arc]), arc, start + at))
        start += len(begin)
        length.append(np.full(len(arc), len(rounds) - 1))
    begin, end, cost, phrase, last, before = (np.concatenate(column) for column in zip(*rounds))
    lengths = np.concatenate(length)

    place = np.isfinite(graph.final)
    place[graph.src[graph.ilabel > 0]] = True
    chosen = np.flatnonzero(place[end])  # what only epsilons leave is no place to be
    chosen = chosen[np.lexsort((cost[chosen], phrase[chosen], end[chosen], begin[chosen]))]
    keys = np.stack([begin[chosen], end[chosen], phrase[chosen]])
    chosen = chosen[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))]
    offsets = np.append(0, np.cumsum(lengths[chosen]))
    arcs, at = np.zeros(offsets[-1], np.int64), chosen
    for step in range(len(rounds) - 1):
        more = lengths[chosen] > step
        arcs[offsets[1:][more] - 1 - step] = last[at[more]]
        at = np.where(more, before[at], at)
    return Ways(begin[chosen], end[chosen], cost[chosen], phrase[chosen], offsets, arcs)
