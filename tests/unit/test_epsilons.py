"""Ways along epsilon arcs, against walking every one of them."""
import numpy as np
import pytest
from builders.graphs import loop_graph

from essence_kd.hmm.epsilons import Phrases, epsilon_ways


@pytest.mark.parametrize("seed, moved", [(1, True), (2, True), (3, False)])
def test_ways_are_the_cheapest_chains_for_their_words(seed, moved):
    graph = loop_graph(num_words=12, num_phones=8, seed=seed, lengths=(1, 3), moved=moved)
    free = np.flatnonzero(graph.ilabel == 0)
    places = set(graph.src[graph.ilabel > 0].tolist()) | set(np.flatnonzero(np.isfinite(graph.final)).tolist())
    expected: dict = {}

    def walk(begin, end, cost, words):
        if end in places:
            key = begin, end, words
            expected[key] = min(cost, expected.get(key, np.inf))
        for arc in free[graph.src[free] == end]:
            word = int(graph.olabel[arc])
            walk(begin, int(graph.dst[arc]), cost + float(graph.weight[arc]), words + ((word,) if word else ()))

    for state in range(graph.num_states):
        walk(state, state, 0.0, ())
    phrases = Phrases.of_words(len(graph.words))
    ways, found = epsilon_ways(graph, phrases), {}
    assert (np.diff(ways.begin) >= 0).all() and len(expected) > graph.num_states
    for i in range(len(ways.begin)):
        chain = ways.arcs[ways.offsets[i]:ways.offsets[i + 1]]
        states = [int(ways.begin[i]), *graph.dst[chain].tolist()]
        assert states[-1] == ways.end[i] and states[:-1] == graph.src[chain].tolist()
        words = tuple(w for w in graph.olabel[chain].tolist() if w)
        assert words == phrases.words[ways.phrase[i]] and ways.cost[i] == pytest.approx(graph.weight[chain].sum())
        found[states[0], states[-1], words] = ways.cost[i]
    assert found == {key: pytest.approx(cost) for key, cost in expected.items()}
