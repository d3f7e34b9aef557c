"""A decoding graph over pdf-ids as Kaldi's HCLG over transition-ids, with the transition model that gives these.

A transition-id says where the HMM goes from a state, which an arc of graph.npz does not tell. So a state that a frame
of HMM state s leads to becomes one state for each place that a phone goes to from there: another HMM state, or its end.
An arc into such a state has the id of s and that place, its self-loop the id of s and s: the order of Kaldi's own
graphs, transitions onwards first and self-loops behind them. Costs are untouched.

The topology of a phone is what the graph does with it (at 30 ms a phone is entered in any state, and states are
skipped). Its probabilities are uniform: those of the graph are in its costs, and decoders read no others.

Legend: A arcs, S states of the graph; U units, (phone, HMM state, pdf), as hmm.graph has them.
"""
from __future__ import annotations

from typing import Dict, List, Set, Tuple

import numpy as np

from essence_kd.hmm.fst import Fst, make_fst
from essence_kd.hmm.graph import Graph, trim
from essence_kd.hmm.transition_model import TransitionModel
from essence_kd.io.errors import UserError


def kaldi_graph(graph: Graph, where, word_insertion_penalty: float = 0.0) -> Tuple[Fst, TransitionModel]:
    """(HCLG, transition model) of a graph, whose file is ``where``; each word costs ``word_insertion_penalty`` more.

    Raises UserError for a graph that has no HMM states of its own: one that was imported from Kaldi.
    """
    if graph.meta.get("transitions") == "HCLG":
        raise UserError(f"{where}: was imported from Kaldi ({graph.meta.get('hclg')}); only graphs of 'essence "
                        "make-graph' are written for Kaldi's programs")
    emits = graph.ilabel > 0
    into = np.zeros(graph.num_states, dtype=np.int64)  # the unit whose frame leads to a state, 0: none does
    into[graph.dst[emits]] = graph.unit[emits]
    if (into[graph.dst[emits]] != graph.unit[emits]).any() or into[graph.dst[~emits]].any() or into[0]:
        raise UserError(f"{where}: a state is reached by frames of several HMM states, or without a frame; make the "
                        "graph with 'essence make-graph'")
    end = int(graph.unit_state.max()) + 1  # stands for the end of the phone
    loop = emits & (graph.src == graph.dst)
    within = emits & ~loop & (graph.begin == 0)
    place = np.where(within, graph.unit_state[graph.unit], end)  # where an arc goes, seen from its phone
    inside = into[graph.src] > 0
    if (within & (~inside | (graph.unit_phone[graph.unit] != graph.unit_phone[into[graph.src]]))).any():
        raise UserError(f"{where}: a phone goes on where another one was; make the graph with 'essence make-graph'")

    # states of the new graph: (state, place) of those that frames lead to, and then the others
    leaves = inside & ~loop
    ends = np.flatnonzero(np.isfinite(graph.final) & (into > 0))
    width = end + 1
    keys = np.unique(np.concatenate([graph.src[leaves].astype(np.int64) * width + place[leaves],
                                     ends.astype(np.int64) * width + end]))
    state_of, place_of = keys // width, keys % width
    other = np.cumsum(into == 0) - 1 + len(keys)
    loop_unit = graph.unit[loop]
    transitions, id_of = _transition_model(graph, end, np.concatenate([
        np.stack([into[state_of], place_of]), np.stack([loop_unit, graph.unit_state[loop_unit]])], axis=1))

    def copies(states: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(position in ``states``, number of a (state, place)) for every place of each."""
        first, last = np.searchsorted(keys, states.astype(np.int64) * width), \
            np.searchsorted(keys, (states.astype(np.int64) + 1) * width)
        count = last - first
        which = np.repeat(np.arange(len(states)), count)
        return which, np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]

    source = np.where(leaves, np.searchsorted(keys, graph.src.astype(np.int64) * width + place), other[graph.src])
    cost = graph.weight + np.float32(word_insertion_penalty) * (graph.olabel > 0)
    arcs = np.flatnonzero(emits & ~loop)
    which, target = copies(graph.dst[arcs])
    onwards = arcs[which]
    arcs = np.flatnonzero(loop)
    which, same = copies(graph.src[arcs])
    loops, free = arcs[which], np.flatnonzero(~emits)
    columns = zip(
        (source[onwards], target, id_of(graph.unit[onwards], place_of[target]), graph.olabel[onwards], cost[onwards]),
        (same, same, id_of(graph.unit[loops], graph.unit_state[graph.unit[loops]]), graph.olabel[loops], cost[loops]),
        (source[free], other[graph.dst[free]], np.zeros(len(free)), graph.olabel[free], cost[free]))
    final = np.full(len(keys) + int((into == 0).sum()), np.inf, dtype=np.float32)
    plain = into == 0
    final[other[plain]] = graph.final[plain]
    final[np.searchsorted(keys, ends.astype(np.int64) * width + end)] = graph.final[ends]
    src, dst, ilabel, olabel, weight = (np.concatenate(column) for column in columns)
    return trim(make_fst(src, dst, ilabel, olabel, weight, final, int(other[0]))), transitions


def _transition_model(graph: Graph, end: int, used: np.ndarray):
    """(transition model, function of (units, places) -> transition-ids); ``used`` int (2, n): units and places."""
    size: Dict[int, int] = {}
    goes: Dict[int, List[Set[int]]] = {}
    for phone, state in zip(graph.unit_phone[1:].tolist(), graph.unit_state[1:].tolist()):
        size[phone] = max(size.get(phone, 0), state + 1)
    for phone, states in size.items():
        goes[phone] = [set() for _ in range(states)]
    for phone, state, place in np.unique(np.stack([graph.unit_phone[used[0]], graph.unit_state[used[0]], used[1]]),
                                         axis=1).T.tolist():
        goes[phone][state].add(size[phone] if place == end else place)
    for states in goes.values():
        for state, places in enumerate(states):  # Kaldi wants a way out of every state, and a way into it
            if not places or (state + 1 < len(states) and not any(state + 1 in others for others in states)):
                places.add(state + 1)
    topo = {phone: [[(place, 1 / len(places)) for place in sorted(places)] for places in states]
            for phone, states in goes.items()}
    tuples = np.stack([graph.unit_phone, graph.unit_state, graph.unit_pdf, graph.unit_pdf], axis=1)[1:]
    probs = [1.0] + [prob for phone, state, _, _ in tuples.tolist() for _, prob in topo[phone][state]]
    transitions = TransitionModel(topo, np.ascontiguousarray(tuples, dtype=np.int32), np.array(probs))
    table = np.zeros((len(graph.unit_pdf), end + 1), dtype=np.int32)
    number = np.arange(1, transitions.num_ids + 1)
    unit = transitions.row[1:] + 1
    sizes = np.array([size.get(phone, 0) for phone in range(max(size) + 1)])
    leads = transitions.next[1:]
    table[unit, np.where(leads == sizes[transitions.phone[1:]], end, leads)] = number
    return transitions, lambda units, places: table[units, places]
