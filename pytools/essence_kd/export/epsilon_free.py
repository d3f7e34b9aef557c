"""A decoding graph without epsilons, for searches that miscount rows or lose words where an arc consumes no row.

An arc that consumes a row takes in the epsilon arcs behind it, with their words and costs, and so leads to every state
that they lead to. Words that follow each other without a row between them lie on one arc then: a *phrase*.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import List

import numpy as np

from essence_kd.hmm.epsilons import Phrase, Phrases, epsilon_ways
from essence_kd.hmm.fst import Fst, make_fst, ranges
from essence_kd.hmm.graph import Graph, trim


@dataclass
class EpsilonFree:
    """``fst``: ilabel pdf-id + 1, olabel number of a phrase (0: none); ``phrases``: word-ids of each number."""

    fst: Fst
    phrases: List[Phrase]


def without_epsilons(graph: Graph) -> EpsilonFree:
    """The same word sequences at the same costs, but for the empty one of no rows. Epsilons must form no cycle."""
    phrases = Phrases.of_words(len(graph.words))
    ways = epsilon_ways(graph, phrases)
    begin, end, cost, words = ways.begin, ways.end, ways.cost, ways.phrase
    final = graph.final.astype(np.float64)

    taking = np.flatnonzero(graph.ilabel > 0)
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
