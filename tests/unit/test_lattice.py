"""Paths and lattices: word times, confidences, n-best, other language models, each against counting every path."""
import math

import numpy as np
import pytest
from builders.graphs import loop_graph, random_path, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.decode.lattice import (Lattice, Occurrences, edit_distance, hypothesis, label_frames, lattice_lines,
                                       n_best, path_cost, path_word_spans, path_words, word_confidences)
from essence_kd.decode.rescoring import Histories, Rescorer, make_rescorer
from essence_kd.hmm.lm import estimate, read_arpa, sentence_scores, write_arpa


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


def model_cost(model, words):
    """Cost of a sentence, where a word that the model lacks costs as much as its rarest one."""
    (total,), _, (unknown,) = sentence_scores(model, [words])
    logprob = model.orders[0].logprob
    return -math.log(10) * (total + unknown * logprob[logprob > -90].min())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=6), min_size=1, max_size=12), st.integers(1, 4),
       st.lists(st.sampled_from("abcde"), max_size=6))
def test_histories_cost_what_the_model_says(sentences, order, said):
    model = estimate([*sentences, ["a"]], order)
    symbols = ["<eps>", *"edcba"]
    histories = Histories.of(model, symbols)
    state, total = histories.start, 0.0
    for word in [*(symbols.index(word) for word in said), 0]:
        state, cost = histories.step(state, np.array([word]))
        total += cost[0]
    assert total == pytest.approx(model_cost(model, said), abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_a_rescored_lattice_has_the_same_paths_with_other_costs(tmp_path, seed):
    graph, rng = loop_graph(), np.random.default_rng(seed)
    lattice, vocabulary, models = small_lattice(graph, seed), graph.words[1:].tolist(), []
    for name, order in (("old", 2), ("new", 3)):
        text = [rng.choice(vocabulary, rng.integers(1, 6)).tolist() for _ in range(40)]
        write_arpa(tmp_path / f"{name}.arpa", estimate(text, order, vocabulary if name == "old" else None))
        models.append(read_arpa(tmp_path / f"{name}.arpa"))
    make_rescorer(tmp_path, tmp_path / "old.arpa", tmp_path / "new.arpa", 0.7, graph, "graph.npz")

    def sentences(lattice, arcs):
        return graph.words[path_words(graph, lattice.path_of(np.array(arcs, np.int64)))].tolist()

    expected = sorted((cost + 0.7 * model_cost(models[1], words) - model_cost(models[0], words), words)
                      for cost, words in ((cost, sentences(lattice, arcs)) for cost, arcs in all_paths(
                          lattice, lattice.arc_costs(graph, 0.5, 0.2))))
    rescored = Rescorer(tmp_path).rescored(lattice, graph, 0.5, 0.2)
    costs = rescored.arc_costs(graph, 0.5, 0.2)
    found = sorted((cost, sentences(rescored, arcs)) for cost, arcs in all_paths(rescored, costs))
    assert [cost for cost, _ in found] == pytest.approx([cost for cost, _ in expected], abs=1e-4)
    assert sorted(words for _, words in found) == sorted(words for _, words in expected)
    assert sentences(rescored, rescored.best_path(costs)) == expected[0][1]
    pruned = Rescorer(tmp_path).rescored(lattice, graph, 0.5, 0.2, most=1)
    assert len(pruned.final) <= len(lattice.final)  # no state is split


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
