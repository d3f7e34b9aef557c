"""Another language model, or another weight of it, on lattices, in the place of the one in the graph.

A lattice is composed with the difference of two n-gram models: the graph's, whose costs are taken out, and another,
whose costs come in. Each is an automaton over histories, in which a word costs what its longest n-gram says,
or the back-off and what a shorter one says. The lattice's states are split by history where their words differ.
"""
from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np

from essence_kd.decode.lattice import Lattice
from essence_kd.hmm.fst import ranges
from essence_kd.hmm.graph import Graph
from essence_kd.hmm.lm import EOS, NgramModel, make_grammar, read_arpa
from essence_kd.io.errors import UserError

_NEVER = -90.0  # -99 stands for "never" (<s>)
_LEAST = 1e9  # cost of what a model holds for impossible


@dataclasses.dataclass
class Histories:
    """An n-gram model as an automaton of S histories over V word-ids; state 0: no history; word 0: the sentence ends.

    ``key`` int64 (N,), sorted: state * V + word of each n-gram; ``target`` int64 (N,) and ``cost`` float64 (N,): where
    it leads, natural logarithm. ``fall`` int64 (S,), ``fall_cost`` float64 (S,): the state without the first word of
    the history, and the back-off. ``unseen`` float64 (V,): costs of words without a unigram, NaN with one. ``start``
    int64 (1,): the state of <s>.
    """

    key: np.ndarray
    target: np.ndarray
    cost: np.ndarray
    fall: np.ndarray
    fall_cost: np.ndarray
    unseen: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, model: NgramModel, words: list[str]) -> "Histories":
        """A model's over the symbols ``words`` (0: <eps>). A word that it lacks costs as much as its rarest word.

        Raises UserError where the model does not say how sentences begin and end (hmm.lm.make_grammar).
        """
        symbols = words if "#0" in words else [*words, "#0"]
        fst, _ = make_grammar(model, symbols)
        size, falls, states = len(symbols), fst.olabel == 0, np.arange(fst.num_states)
        fall, fall_cost = np.zeros(len(states), np.int64), np.full(len(states), _LEAST)
        fall[fst.src[falls]], fall_cost[fst.src[falls]] = fst.dst[falls], fst.weight[falls]
        ends = states[np.isfinite(fst.final)]
        key = np.append(fst.src[~falls].astype(np.int64) * size + fst.olabel[~falls], ends * size)
        order = np.argsort(key)
        logprob = model.orders[0].logprob
        said = dict(zip(np.array(model.words)[model.orders[0].key].tolist(), logprob.tolist()))
        rarest = -np.log(10.0) * logprob[logprob > _NEVER].min()
        unseen = np.array([rarest if word not in said else np.nan if np.isfinite(said[word]) else _LEAST
                           for word in [EOS, *symbols[1:]]])
        return cls(key[order], np.append(fst.dst[~falls], np.zeros_like(ends))[order].astype(np.int64),
                   np.append(fst.weight[~falls], fst.final[ends])[order].astype(np.float64), fall, fall_cost, unseen,
                   np.array([fst.start]))

    def step(self, state: np.ndarray, word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The states (int64) to which words (int64) lead from N states, and the costs (float64)."""
        cost = self.unseen[word]
        waiting = np.flatnonzero(np.isnan(cost))
        at = np.zeros(len(state), np.int64)
        at[waiting], cost[waiting] = state[waiting], 0.0
        while len(waiting):
            key = at[waiting] * len(self.unseen) + word[waiting]
            place = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
            found = self.key[place] == key
            hit, waiting = waiting[found], waiting[~found]
            cost[hit] += self.cost[place[found]]
            at[hit] = self.target[place[found]]
            cost[waiting] += self.fall_cost[at[waiting]]
            waiting, at[waiting] = waiting[at[waiting] > 0], self.fall[at[waiting]]
        return at, cost


class Rescorer:
    """Replaces an old n-gram model (the graph's) by ``scale`` times a new one.

    It lives in a folder (:func:`make_rescorer`), which the processes of a decoding map into memory.
    """

    def __init__(self, folder: str | Path):
        self.old, self.new = (
            Histories(*(np.load(Path(folder) / f"{name}.{field.name}.npy", mmap_mode="r")
                        for field in dataclasses.fields(Histories))) for name in ("old", "new"))
        self.scale = float(np.load(Path(folder) / "scale.npy"))

    def step(self, states: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of states (old and new model, int64 (2, N)) after words int64 (N,), and the change of cost (N,)."""
        (old, taken), (new, added) = self.old.step(states[0], words), self.new.step(states[1], words)
        return np.stack([old, new]), self.scale * added - taken

    def rescored(self, lattice: Lattice, graph: Graph, acoustic_scale: float, word_insertion_penalty: float,
                 most: int = 20) -> Lattice:
        """The lattice with the new costs, each of its states split by the pairs of histories that lead to it.

        Of these, no more than the ``most`` best are kept. The answer has no ``posterior``.
        """
        costs, levels = lattice.arc_costs(graph, acoustic_scale, word_insertion_penalty), lattice.levels()
        by_source = np.argsort(lattice.src, kind="stable")
        first = np.searchsorted(lattice.src[by_source], np.arange(len(lattice.final) + 1))
        labels = graph.olabel[lattice.graph_arcs]
        words, word_of = labels[labels > 0].astype(np.int64), np.append(0, np.cumsum(labels > 0))[lattice.offsets]

        # what enters the states of a level: arc, where it comes from in the answer, state, histories, cost, its change
        nowhere = np.full(1, -1)
        start = np.concatenate([self.old.start, self.new.start])[:, None]
        entering = {0: [(nowhere, nowhere, np.zeros(1, np.int64), start, np.zeros(1), np.zeros(1))]}
        count, arcs, states, histories = 0, [], [], []
        for level in range(int(levels.max()) + 1):
            if level not in entering:
                continue
            arc, origin, state, pair, cost, change = (np.concatenate(parts, axis=-1)
                                                      for parts in zip(*entering.pop(level)))
            order = np.lexsort((cost, pair[1], pair[0], state))
            state, pair, cost = state[order], pair[:, order], cost[order]
            fresh = np.append(True, (state[1:] != state[:-1]) | (pair[:, 1:] != pair[:, :-1]).any(axis=0))
            group, chosen = np.cumsum(fresh) - 1, np.flatnonzero(fresh)
            good = _first_of_each(state[chosen], cost[chosen], most)
            kept = good[group]
            target = (count - 1 + np.cumsum(good))[group]
            arcs.append((arc[order][kept], origin[order][kept], target[kept], change[order][kept]))
            chosen = chosen[good]
            state, pair, cost = state[chosen], pair[:, chosen], cost[chosen]
            states.append(state)
            histories.append(pair)

            leaving = first[state + 1] - first[state]
            row = np.repeat(np.arange(len(state)), leaving)
            arc = by_source[ranges(first[state], leaving)]
            pair, change = pair[:, row], np.zeros(len(row))
            said = word_of[arc + 1] - word_of[arc]
            for place in range(int(said.max(initial=0))):
                which = np.flatnonzero(said > place)
                pair[:, which], more = self.step(pair[:, which], words[word_of[arc[which]] + place])
                change[which] += more
            ahead = levels[lattice.dst[arc]]
            for value in np.unique(ahead).tolist():
                which = np.flatnonzero(ahead == value)
                entering.setdefault(value, []).append(
                    (arc[which], count + row[which], lattice.dst[arc[which]].astype(np.int64), pair[:, which],
                     cost[row[which]] + costs[arc[which]] + change[which], change[which]))
            count += len(state)
        return self._answer(lattice, np.concatenate(states), np.concatenate(histories, axis=1),
                            *(np.concatenate(parts)[1:] for parts in zip(*arcs)))

    def _answer(self, lattice: Lattice, states: np.ndarray, histories: np.ndarray, arcs: np.ndarray, src: np.ndarray,
                dst: np.ndarray, changes: np.ndarray) -> Lattice:
        """Those states and arcs of a lattice, without the dead ends among them."""
        final = lattice.final[states]
        ends = np.flatnonzero(np.isfinite(final))
        final[ends] += self.step(histories[:, ends], np.zeros(len(ends), np.int64))[1].astype(np.float32)
        begin, length = lattice.offsets[arcs], np.diff(lattice.offsets)[arcs]
        whole = Lattice(src=src, dst=dst, offsets=np.append(0, np.cumsum(length)),
                        graph_arcs=lattice.graph_arcs[ranges(begin, length)], frame=lattice.frame[arcs],
                        graph_cost=(lattice.graph_cost[arcs] + changes).astype(np.float32), score=lattice.score[arcs],
                        final=final, num_frames=lattice.num_frames)
        return whole.without_dead_ends()


def _first_of_each(group: np.ndarray, cost: np.ndarray, most: int) -> np.ndarray:
    """Which of N items are among the ``most`` cheapest of their group (sorted): bool (N,)."""
    good = np.ones(len(group), bool)
    if len(group) > most:
        order = np.lexsort((cost, group))
        good[order] = np.arange(len(group)) - np.searchsorted(group, group) < most
    return good


@functools.lru_cache(maxsize=1)
def open_rescorer(folder: str) -> Rescorer:
    """The rescorer of a folder, which a process opens once."""
    return Rescorer(folder)


def make_rescorer(folder: str | Path, old_arpa, new_arpa, scale: float, graph: Graph, graph_path) -> dict:
    """Write a rescorer of ARPA files (new None: the old one) into a folder; what decode.json tells of it.

    Raises UserError where a model knows none of the graph's words, or not how sentences begin and end.
    """
    words, about = graph.words.tolist(), {}
    wanted = {words[word] for word in np.unique(graph.olabel).tolist() if word}
    for name, path in (("old", old_arpa), ("new", new_arpa or old_arpa)):
        model = read_arpa(path)
        unigrams = model.orders[0]
        if wanted.isdisjoint(model.words[word] for word in unigrams.key[unigrams.logprob > _NEVER]):
            raise UserError(f"{path}: has none of the words of {graph_path}; give the language model of the same "
                            "corpus")
        try:
            histories = Histories.of(model, words)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        for field in dataclasses.fields(histories):
            np.save(Path(folder) / f"{name}.{field.name}.npy", getattr(histories, field.name))
        about = {"method": "lattice", "old_lm": str(old_arpa), "new_lm": str(path), "order": len(model.orders),
                 "lm_scale": scale, "unknown_words": len(wanted.difference(model.words))}
    np.save(Path(folder) / "scale.npy", scale)
    if about["unknown_words"]:
        print(f"essence decode: {about['new_lm']}: {about['unknown_words']} of {len(wanted)} words of {graph_path} are "
              "not in it and cost as much as its rarest word", file=sys.stderr)
    return about
