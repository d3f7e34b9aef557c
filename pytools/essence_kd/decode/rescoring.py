"""Another language model, or another weight of it, on n-best lists, in the place of the one in the graph."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from essence_kd.decode.lattice import Hypothesis, Occurrences, word_confidences
from essence_kd.hmm.lm import NgramModel, read_arpa, sentence_scores
from essence_kd.io.errors import UserError

_NATURAL = float(np.log(10.0))
_NEVER = -90.0  # -99 stands for "never" (<s>)
_LEAST = -1e9  # log10 of a sentence that a model holds for impossible


@dataclass
class Entry:
    """One word sequence of an n-best list: its cost, words with times (confidences unset), and rows of its labels."""

    cost: float
    hyp: Hypothesis
    labels: np.ndarray  # int64 (W,)


class Rescorer:
    """Replaces an old n-gram model (the graph's) by ``scale`` times a new one; ARPA files, new None: the old one.

    A word that a model lacks costs as much as the rarest word of that model.
    """

    def __init__(self, old_arpa, new_arpa=None, scale: float = 1.0):
        self.old = read_arpa(old_arpa)
        self.new = self.old if new_arpa is None else read_arpa(new_arpa)
        self.names = (str(old_arpa), str(new_arpa or old_arpa))
        self.scale = scale
        self.unknown = 0

    def about(self) -> dict:
        """What decode.json tells of it."""
        return {"method": "n-best", "old_lm": self.names[0], "new_lm": self.names[1], "order": len(self.new.orders),
                "lm_scale": self.scale, "unknown_words": self.unknown}

    def check(self, words: np.ndarray, graph) -> None:
        """UserError where a model can score none of a graph's words."""
        wanted = set(words[1:].tolist())
        for name, model in zip(self.names, (self.old, self.new)):
            if not any(model.words[word] in wanted for word in model.orders[0].key[model.orders[0].logprob > _NEVER]):
                raise UserError(f"{name}: has none of the words of {graph}; give the language model of the same corpus")

    def costs(self, sentences: list[list[str]]) -> np.ndarray:
        """Scaled cost of the new model less the cost of the old, natural logarithms: float64 (S,)."""
        new, unknown = _costs(self.new, sentences)
        self.unknown += int(unknown.sum())
        return self.scale * new - _costs(self.old, sentences)[0]

    def rescore(self, lists: list[list[Entry]], words: np.ndarray) -> list[list[Entry]]:
        """N-best lists of many utterances with the new model's costs, sorted anew; ``words``: symbols by id.

        Confidences of an utterance's best entry are posteriors over its list. ``unknown`` counts the words of all lists
        that the new model lacks.
        """
        flat = [entry for entries in lists for entry in entries]
        changes = iter(self.costs([words[entry.hyp.words].tolist() for entry in flat]) if flat else ())
        answer = []
        for entries in lists:
            entries = sorted((Entry(e.cost + float(next(changes)), e.hyp, e.labels) for e in entries),
                             key=lambda e: e.cost)
            answer.append(_with_confidences(entries))
        return answer


def _costs(model: NgramModel, sentences: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    total, _, unknown = sentence_scores(model, sentences)
    floor = float(model.orders[0].logprob[model.orders[0].logprob > _NEVER].min())
    return -_NATURAL * np.maximum(total + floor * unknown, _LEAST), unknown


def _with_confidences(entries: list[Entry]) -> list[Entry]:
    if not entries:
        return entries
    weights = np.exp(entries[0].cost - np.array([e.cost for e in entries]))
    posteriors = weights / weights.sum()
    occurrences = Occurrences(np.concatenate([e.hyp.words for e in entries]),
                              np.concatenate([e.labels for e in entries]),
                              np.repeat(posteriors, [len(e.labels) for e in entries]))
    best = entries[0].hyp
    best.confidence = word_confidences(best.words, entries[0].labels, occurrences)
    return entries
