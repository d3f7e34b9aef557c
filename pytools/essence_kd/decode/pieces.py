"""Long utterances in pieces: where they are cut, and what their pieces' answers are together.

A decoder holds the lattice of a whole utterance, which grows with its length. An utterance beyond a limit is cut where
silence is surest and its pieces are decoded one by one, each as a sentence of its own for the language model.
"""
from __future__ import annotations

import numpy as np

from essence_kd.decode.lattice import Entry, Hypothesis
from essence_kd.hmm.graph import Graph

_NONWORD = 0  # hmm.graph: phone_kind
_SURE = 20.0  # a larger difference of log-likelihoods is no surer


def silence_pdfs(graph: Graph) -> np.ndarray:
    """Pdf-ids (int64, sorted) of silence and noises, which no word's phone shares."""
    nonword = graph.phone_kind[graph.unit_phone] == _NONWORD
    used = np.zeros(len(graph.unit_pdf), bool)
    used[graph.unit[graph.ilabel > 0]] = True
    return np.setdiff1d(graph.unit_pdf[used & nonword], graph.unit_pdf[used & ~nonword]).astype(np.int64)


def first_rows(scores: np.ndarray, silence: np.ndarray, limit: int, width: int) -> list[int]:
    """The first row of each piece of scores float32 (T, C): [0] where T is at most ``limit``.

    A piece has at most ``limit`` rows and at least a quarter of that. A cut is the middle of the ``width`` rows with
    the largest mean of: log-likelihood of the likeliest of the pdfs ``silence`` less that of the likeliest other.
    Without such pdfs, or others, a cut lies where it may come last.
    """
    if len(scores) <= limit:
        return [0]
    sure = np.zeros(len(scores))
    others = np.setdiff1d(np.arange(scores.shape[1]), silence)
    if len(silence) and len(others):
        sure = np.clip(scores[:, silence].max(axis=1) - scores[:, others].max(axis=1), -_SURE, _SURE).astype(np.float64)
    around = np.convolve(sure, np.ones(min(width, limit)), mode="same")
    starts = [0]
    while len(scores) - starts[-1] > limit:
        low = starts[-1] + max(limit // 2, 1)
        high = max(min(starts[-1] + limit, len(scores) - limit // 4), low)
        starts.append(high - int(around[low:high + 1][::-1].argmax()))
    return starts


def joined(hypotheses: list[Hypothesis], starts: list[int]) -> Hypothesis:
    """One hypothesis of those of the pieces, which begin at these rows."""
    return Hypothesis(np.concatenate([h.words for h in hypotheses]),
                      np.concatenate([h.start + np.int32(start) for h, start in zip(hypotheses, starts)]),
                      np.concatenate([h.length for h in hypotheses]),
                      np.concatenate([h.confidence for h in hypotheses]))


def joined_lists(lists: list[list[Entry]], starts: list[int], count: int) -> list[Entry]:
    """The ``count`` best combinations of entries of the pieces' lists, best first; a piece without adds nothing."""
    best: list[Entry] = []
    for entries, start in zip(lists, starts):
        moved = [Entry(e.cost, joined([e.hyp], [start])) for e in entries]
        if not best or not moved:
            best = best or moved
            continue
        costs = np.add.outer([e.cost for e in best], [e.cost for e in moved])
        chosen, seen = [], set()
        for place in np.argsort(costs, axis=None, kind="stable"):
            one, other = best[place // len(moved)], moved[place % len(moved)]
            hyp = joined([one.hyp, other.hyp], [0, 0])
            if hyp.words.tobytes() not in seen:
                seen.add(hyp.words.tobytes())
                chosen.append(Entry(float(costs.flat[place]), hyp))
            if len(chosen) == count:
                break
        best = chosen
    return best[:count]
