"""Paths and lattices: word times, confidences, n-best and forward-backward against counting every path."""
import itertools
import math

import numpy as np
import pytest

from essence_kd.decode.lattice import (Lattice, Occurrences, edit_distance, hypothesis, label_frames, lattice_lines,
                                       n_best, path_cost, path_word_spans, path_words, word_confidences)
from essence_kd.hmm.graph import Graph

KINDS = {"": 0, "_B": 1, "_E": 2, "_I": 3, "_S": 4}


def loop_graph(num_words=20, num_phones=8, seed=0, positions=True, lengths=(1, 3), moved=False, silence_first=False):
    """A loop of random words over phones of three skippable states, with optional silence and epsilons.

    Shaped like the graphs of networks at 30 ms: a phone takes one frame or more. A word's label sits
    on the first arc of its first phone; with ``moved``, that of word 1, 4, ... on an epsilon after its last phone and
    that of word 2, 5, ... on an epsilon before its first. Silence comes after words; with ``silence_first`` before them, too.
    """
    rng = np.random.default_rng(seed)
    phones, kinds, units, unit_of, arcs = ["<eps>", "SIL"], [0, 0], [(0, -1, -1)], {}, []
    words, final = ["<eps>"] + [f"w{i}" for i in range(1, num_words + 1)], {0: 0.5, 1: 0.25}
    states = itertools.count(2)

    def phone_id(name, suffix):
        if name + suffix not in phones:
            phones.append(name + suffix)
            kinds.append(KINDS[suffix] if positions else 0)
        return phones.index(name + suffix)

    def unit(phone, state):
        if (phone, state) not in unit_of:
            unit_of[phone, state] = len(units)
            units.append((phone, state, len(units) - 1))
        return unit_of[phone, state]

    def add_phone(source, phone, target, word, cost, word_after=0):
        inside = [next(states) for _ in range(3)]
        for k, here in enumerate(inside):
            arcs.append((source, here, unit(phone, k), word, cost + 1.0 + 0.1 * k, 1))
            arcs.append((here, here, unit(phone, k), 0, 0.7, 0))
            arcs.extend((here, inside[j], unit(phone, j), 0, 1.2, 0) for j in range(k + 1, 3))
            arcs.append((here, target, 0, word_after, 0.6, 0))

    seen = set()
    for word in range(1, num_words + 1):
        while True:
            pron = tuple(rng.integers(num_phones, size=rng.integers(lengths[0], lengths[1] + 1)))
            if pron not in seen:
                seen.add(pron)
                break
        here, lm = 0, float(rng.uniform(1, 4))
        for i, phone in enumerate(pron):
            last = i == len(pron) - 1
            suffix = "_S" if len(pron) == 1 else "_B" if i == 0 else "_E" if last else "_I"
            there = 1 if last else next(states)
            place = word % 3 if moved else 0
            if i == 0 and place == 2:
                arcs.append((here, here := next(states), 0, word, 0.0, 0))
            add_phone(here, phone_id(f"P{phone}", suffix), there, word if i == 0 and place == 0 else 0,
                      lm if i == 0 else 0.0, word if last and place == 1 else 0)
            here = there
    add_phone(1, 1, 0, 0, 0.7)
    if silence_first:
        add_phone(0, 1, 0, 0, 0.7)
    arcs.append((1, 0, 0, 0, 0.7, 0))
    table = np.array([(src, dst, units[u][2] + 1 if u else 0, word, cost, u, begin)
                      for src, dst, u, word, cost, begin in arcs])
    table = table[np.lexsort((table[:, 2], table[:, 0]))]
    costs = np.full(next(states), np.inf, np.float32)
    for state, cost in final.items():
        costs[state] = cost
    columns = dict(zip(("src", "dst", "ilabel", "olabel", "weight", "unit", "begin"), table.T))
    types = dict(weight=np.float32, begin=np.uint8)
    of_unit = np.array(units, np.int32)
    return Graph(**{k: v.astype(types.get(k, np.int32)) for k, v in columns.items()}, final=costs,
                 unit_phone=of_unit[:, 0], unit_state=of_unit[:, 1], unit_pdf=of_unit[:, 2], phones=np.array(phones),
                 phone_kind=np.array(kinds, np.uint8), words=np.array(words),
                 meta={"num_pdfs": len(units) - 1, "frame_subsampling_factor": 3, "tree_hash": "f00d"})


def random_path(graph, num_words, rng):
    """Arc indices of a random walk from the start to a final state that says ``num_words`` words."""
    leaving = [np.flatnonzero(graph.src == state) for state in range(graph.num_states)]
    while True:
        state, path, said = 0, [], 0
        while said < num_words or not np.isfinite(graph.final[state]):
            weights = np.exp(-graph.weight[leaving[state]])
            arc = rng.choice(leaving[state], p=weights / weights.sum())
            path.append(int(arc))
            said += int(graph.olabel[arc] > 0)
            state = int(graph.dst[arc])
            if said > num_words or len(path) > 200 * num_words:
                break
        else:
            return np.array(path)


def scores_of(graph, path, rng, strength=4.0):
    """Noisy scores (T, C) in which the path's pdfs stand out."""
    labels = graph.ilabel[path]
    labels = labels[labels > 0]
    scores = rng.normal(size=(len(labels), graph.num_pdfs))
    scores[np.arange(len(labels)), labels - 1] += strength
    return scores.astype(np.float32)


def small_lattice(graph, seed, num_states=7):
    """A random lattice over random graph arcs, with an epsilon here and there; its row numbers mean little."""
    rng = np.random.default_rng(seed)
    src, dst = [], []
    for state in range(num_states - 1):
        for _ in range(rng.integers(1, 4)):
            src.append(state)
            dst.append(int(rng.integers(state + 1, min(state + 3, num_states))))
    count = len(src)
    lengths = rng.integers(1, 3, size=count)
    chain = rng.integers(graph.num_arcs, size=lengths.sum())
    final = np.full(num_states, np.inf, np.float32)
    final[-1], final[-2] = 0.3, 0.7
    return Lattice(np.array(src, np.int32), np.array(dst, np.int32), np.append(0, np.cumsum(lengths)), chain,
                   np.array(src, np.int32), rng.uniform(0, 3, count).astype(np.float32),
                   rng.normal(size=count).astype(np.float32), final, num_states)


def all_paths(lattice, costs):
    """Every path of a lattice: (cost, arcs)."""
    found = []

    def walk(state, cost, arcs):
        if np.isfinite(lattice.final[state]):
            found.append((cost + float(lattice.final[state]), arcs))
        for arc in np.flatnonzero(lattice.src == state):
            walk(int(lattice.dst[arc]), cost + costs[arc], arcs + [int(arc)])

    walk(0, 0.0, [])
    return found


@pytest.mark.parametrize("moved", [False, True])
def test_word_spans_follow_the_phones(moved):
    graph, rng = loop_graph(moved=moved), np.random.default_rng(3)
    for count in (1, 2, 5, 9):
        path = random_path(graph, count, rng)
        frames = path[graph.ilabel[path] > 0]
        phone, begin = graph.unit_phone[graph.unit[frames]], graph.begin[frames]
        start, length = path_word_spans(graph, path)
        assert len(path_words(graph, path)) == len(start) == count
        inside = np.zeros(len(frames), int)
        for first, rows in zip(start, length):
            assert begin[first] and graph.phone_kind[phone[first]] in (1, 4)
            assert graph.phone_kind[phone[first + rows - 1]] in (2, 4)
            inside[first:first + rows] += 1
        assert np.array_equal(inside > 0, phone != 1) and inside.max() == 1  # everything but silence, once
        if not moved:
            assert np.array_equal(start, label_frames(graph, path))


def test_equal_single_phone_words_in_a_row_are_told_apart():
    graph = loop_graph(num_words=4, num_phones=9, lengths=(1, 1))
    word = int(graph.olabel[graph.olabel > 0][0])
    enter = np.flatnonzero(graph.olabel == word)
    leave = {int(s): int(a) for a, s in enumerate(graph.src) if graph.dst[a] == 1 and graph.ilabel[a] == 0}
    back = int(np.flatnonzero((graph.src == 1) & (graph.ilabel == 0))[0])
    first, second = int(enter[0]), int(enter[1])  # state 0, then, skipping, state 1 of the same phone
    path = np.array([first, leave[int(graph.dst[first])], back, second, leave[int(graph.dst[second])]])
    start, length = path_word_spans(graph, path)
    assert start.tolist() == [0, 1] and length.tolist() == [1, 1]


def test_without_word_positions_words_reach_to_the_next_label():
    graph, rng = loop_graph(positions=False), np.random.default_rng(4)
    path = random_path(graph, 4, rng)
    start, length = path_word_spans(graph, path)
    assert np.array_equal(start, label_frames(graph, path))
    assert np.array_equal(start[1:], (start + length)[:-1])
    assert start[-1] + length[-1] == np.count_nonzero(graph.ilabel[path])


def test_path_cost_is_the_sum_of_its_parts():
    graph, rng = loop_graph(), np.random.default_rng(5)
    path = random_path(graph, 3, rng)
    scores = scores_of(graph, path, rng)
    frames = [(t, graph.ilabel[a] - 1) for t, a in enumerate(path[graph.ilabel[path] > 0])]
    expected = (sum(float(w) for w in graph.weight[path]) + float(graph.final[graph.dst[path[-1]]]) + 3 * 0.5
                - 0.3 * sum(float(scores[t, c]) for t, c in frames))
    assert path_cost(graph, path, scores, 0.3, 0.5) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_posteriors_equal_the_count_over_all_paths(seed):
    graph = loop_graph()
    lattice = small_lattice(graph, seed)
    costs = lattice.arc_costs(graph, 0.5, 0.2)
    paths = all_paths(lattice, costs)
    total = sum(math.exp(-cost) for cost, _ in paths)
    expected = np.zeros(len(lattice.src))
    for cost, arcs in paths:
        expected[arcs] += math.exp(-cost) / total
    np.testing.assert_allclose(lattice.arc_posteriors(costs), expected, atol=1e-12)
    occurrences = lattice.occurrences(graph, expected)
    assert occurrences.posterior.sum() == pytest.approx(
        sum(math.exp(-c) / total * np.count_nonzero(graph.olabel[lattice.path_of(np.array(a))]) for c, a in paths))


@pytest.mark.parametrize("seed", range(6))
def test_n_best_equals_sorting_all_paths(seed):
    graph = loop_graph()
    lattice = small_lattice(graph, seed)
    best = {}
    for cost, arcs in all_paths(lattice, lattice.arc_costs(graph, 0.5, 0.2)):
        words = tuple(path_words(graph, lattice.path_of(np.array(arcs, np.int64))).tolist())
        best[words] = min(cost, best.get(words, np.inf))
    expected = sorted(best.values())
    for count in (1, 3, 1000):
        found = n_best(lattice, graph, count, 0.5, 0.2)
        assert [c for c, _ in found] == pytest.approx(expected[:count])
        for cost, path in found:
            assert cost == pytest.approx(best[tuple(path_words(graph, path).tolist())])


def test_n_best_of_an_empty_lattice_is_empty():
    lattice = small_lattice(loop_graph(), 0)
    lattice.final[:] = np.inf
    assert n_best(lattice, loop_graph(), 5, 1.0) == []


def test_text_lattice_has_the_same_paths():
    graph = loop_graph()
    for seed in range(4):
        lattice = small_lattice(graph, seed)
        arcs, final = [], {}
        for line in lattice_lines(lattice, graph, 0.2):
            fields = line.split("\t")
            if len(fields) == 2:
                final[int(fields[0])] = float(fields[1].split(",")[0])
            else:
                weights = [float(x) for x in fields[4].split(",")]
                arcs.append((int(fields[0]), int(fields[1]), fields[3], weights[0] + 0.5 * weights[1]))
        assert arcs[0][0] == 0  # the first line names the start
        found = []

        def walk(state, cost, words):
            if state in final:
                found.append((round(cost + final[state], 4), words))
            for src, dst, word, weight in arcs:
                if src == state:
                    walk(dst, cost + weight, words + ((word,) if word != "<eps>" else ()))

        walk(0, 0.0, ())
        expected = [(cost, tuple(graph.words[path_words(graph, lattice.path_of(np.array(a, np.int64)))].tolist()))
                    for cost, a in all_paths(lattice, lattice.arc_costs(graph, 0.5, 0.2))]
        assert sorted(w for _, w in found) == sorted(w for _, w in expected)
        assert sorted(c for c, _ in found) == pytest.approx(sorted(c for c, _ in expected), abs=1e-3)


def test_confidence_shares_equal_words_by_nearness():
    words, frames = np.array([7, 7, 5]), np.array([10, 40, 60])
    lattice = Occurrences(np.array([7, 7, 7, 7, 5, 9]), np.array([9, 12, 38, 90, 60, 60]),
                          np.array([0.5, 0.25, 0.75, 1.0, 0.4, 0.6]))
    # the 7 at row 90 is too far from either; the 9 competes with the 5
    np.testing.assert_allclose(word_confidences(words, frames, lattice), [0.75, 0.75, 0.4])


def test_confidence_of_a_path_without_a_lattice_is_one():
    graph = loop_graph()
    hyp = hypothesis(graph, random_path(graph, 3, np.random.default_rng(0)), None)
    assert hyp.confidence.tolist() == [1.0, 1.0, 1.0]


def test_edit_distance_agrees_with_kaldialign():
    import kaldialign

    rng = np.random.default_rng(1)
    for _ in range(200):
        ref, hyp = (rng.choice(list("abcd"), size=rng.integers(0, 9)).tolist() for _ in range(2))
        assert edit_distance(ref, hyp) == kaldialign.edit_distance(ref, hyp)["total"]
