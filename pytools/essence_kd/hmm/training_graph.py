"""Training graphs: the HMM states that an utterance's words may pass through, as arrays, without Kaldi's FST code.

An utterance's words and the lexicon L make a graph of phones with optional silence; each phone there is a node with its
neighbours, so that a tree gives its pdf-ids; each node is its topology's states. What Kaldi's compile-train-graphs
makes of the same words accepts the same paths at the same costs.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import numpy as np

from essence_kd.hmm.fst import Fst
from essence_kd.hmm.transition_model import ContextStates, TransitionModel


@dataclass
class PhoneGraph:
    """M phones in context and E arcs between them; no cycles.

    windows: int32 (M, 3), left, own and right phone-id, 0 at the edges of the utterance; src, dst: int32 (E,); cost:
    float32 (E,); enter, leave: float32 (M,), cost of beginning and of ending with a phone, inf where it cannot.
    """

    windows: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    cost: np.ndarray
    enter: np.ndarray
    leave: np.ndarray


class PhoneGraphs:
    """Makes the phone graphs of word sequences from a lexicon transducer (L.fst)."""

    def __init__(self, lexicon: Fst):
        self.arcs: List[Dict[int, List[Tuple[int, int, float]]]] = [{} for _ in range(lexicon.num_states)]
        columns = (lexicon.src, lexicon.dst, lexicon.ilabel, lexicon.olabel, lexicon.weight)
        for src, dst, phone, word, cost in zip(*(column.tolist() for column in columns)):
            self.arcs[src].setdefault(word, []).append((dst, phone, cost))
        self.final = lexicon.final.tolist()
        self.start = lexicon.start

    def make(self, words: List[int]) -> Optional[PhoneGraph]:
        """The graph of word-ids; None where the lexicon has no path for them."""
        # A place is (state of L, words read). An arc with a phone is an occurrence, numbered in order of discovery.
        follow: Dict[Tuple[int, int], Tuple[List[Tuple[int, float]], float]] = {}
        number: Dict[Tuple[int, int, int, int], int] = {}
        phones: List[int] = []
        ends: List[Tuple[int, int]] = []
        inf, size = float("inf"), len(words)

        def after(place: Tuple[int, int]) -> Tuple[List[Tuple[int, float]], float]:
            """(Occurrences that may come next and their costs, cost of ending here), past arcs without phones."""
            if place in follow:
                return follow[place]
            best: Dict[int, float] = {}
            end, todo = inf, [(place, 0.0)]
            while todo:
                (state, read), cost = todo.pop()
                if read == size:
                    end = min(end, cost + self.final[state])
                for word in (0, words[read]) if read < size else (0,):
                    for dst, phone, more in self.arcs[state].get(word, ()):
                        place_after = (dst, read + (word != 0))
                        if not phone:
                            todo.append((place_after, cost + more))
                            continue
                        key = (state, read, dst, phone)
                        if key not in number:
                            number[key] = len(phones)
                            phones.append(phone)
                            ends.append(place_after)
                        best[number[key]] = min(best.get(number[key], inf), cost + more)
            follow[place] = (list(best.items()), end)
            return follow[place]

        first = after((self.start, 0))
        at = 0
        while at < len(ends):  # discovers every occurrence
            after(ends[at])
            at += 1
        following = [follow[end] for end in ends]
        useful = _reach_end(following)
        nodes: Dict[Tuple[int, int, int], int] = {}
        todo: List[Tuple[int, int, int]] = []
        src: List[int] = []
        dst: List[int] = []
        costs: List[float] = []
        enter: List[float] = []
        leave: List[float] = []
        rights = [sorted({phones[n] for n, _ in nexts if useful[n]} | ({0} if end < inf else set()))
                  for nexts, end in following]

        def node(left: int, occurrence: int, right: int) -> int:
            key = (left, occurrence, right)
            if key not in nodes:
                nodes[key] = len(todo)
                todo.append(key)
                enter.append(inf)
                leave.append(following[occurrence][1] if right == 0 else inf)
            return nodes[key]

        for occurrence, cost in first[0]:
            if useful[occurrence]:
                for right in rights[occurrence]:
                    enter[node(0, occurrence, right)] = cost
        at = 0
        while at < len(todo):
            _, occurrence, right = todo[at]
            if right:
                own = phones[occurrence]
                for following_one, cost in following[occurrence][0]:
                    if phones[following_one] == right and useful[following_one]:
                        for after_that in rights[following_one]:
                            src.append(at)
                            dst.append(node(own, following_one, after_that))
                            costs.append(cost)
            at += 1
        if not todo:
            return None
        windows = np.array([(left, phones[occurrence], right) for left, occurrence, right in todo], dtype=np.int32)
        return PhoneGraph(windows, np.array(src, np.int32), np.array(dst, np.int32), np.array(costs, np.float32),
                          np.array(enter, np.float32), np.array(leave, np.float32))


def _reach_end(following: List[Tuple[List[Tuple[int, float]], float]]) -> List[bool]:
    """Whether the end can be reached from each occurrence."""
    before: List[List[int]] = [[] for _ in following]
    for n, (nexts, _) in enumerate(following):
        for m, _ in nexts:
            before[m].append(n)
    out = [end < float("inf") for _, end in following]
    todo = [n for n, useful in enumerate(out) if useful]
    while todo:
        for n in before[todo.pop()]:
            if not out[n]:
                out[n] = True
                todo.append(n)
    return out


@dataclass
class StateGraph:
    """S HMM states and A arcs between different ones, sorted by destination; costs are float32.

    row: int32 (S,), the tuple of the transition model; pdf: int32 (S,), an index into `pdfs`; pdfs: int32 (c,), the
    pdf-ids that occur, sorted; node: int32 (S,), the phone graph's node; first_arc: int64 (S + 1,), the arcs that enter
    state s are first_arc[s] to first_arc[s + 1]; src: int32 (A,); cost: (A,); loop: (S,), inf where there is none;
    enter, leave: (S,), of beginning and ending there, inf where that cannot be.
    """

    row: np.ndarray
    pdf: np.ndarray
    pdfs: np.ndarray
    node: np.ndarray
    first_arc: np.ndarray
    src: np.ndarray
    cost: np.ndarray
    loop: np.ndarray
    enter: np.ndarray
    leave: np.ndarray

    @property
    def num_states(self) -> int:
        """How many HMM states there are."""
        return len(self.row)


class StateGraphs:
    """Makes state graphs of phone graphs.

    contexts: of the tree; transitions: a model of the same tree and topology, with its own probabilities.
    """

    def __init__(self, contexts: ContextStates, transitions: TransitionModel, transition_scale: float,
                 self_loop_scale: float):
        self.transitions, self.contexts = transitions, contexts
        costs = transitions.scaled_costs(transition_scale, self_loop_scale)
        # by tuple and the HMM state that follows (the number of states: the phone is left)
        self.tid = np.zeros((len(transitions.tuples), self.contexts.width + 1), dtype=np.int32)
        self.tid[transitions.row[1:], transitions.next[1:]] = np.arange(1, transitions.num_ids + 1)
        self.cost = np.where(self.tid > 0, costs[self.tid], np.inf).astype(np.float32)

    def states(self, graph: PhoneGraph) -> Tuple[np.ndarray, np.ndarray]:
        """(Tuple, node), int (S,) each, of the states of a phone graph, as :meth:`make` numbers them."""
        rows = self.contexts.rows(graph.windows)
        node, state = np.nonzero(rows >= 0)
        return rows[node, state], node

    def make(self, graph: PhoneGraph) -> StateGraph:
        """The state graph of a phone graph."""
        row, node = self.states(graph)
        nodes, state = len(graph.windows), self.transitions.tuples[row, 1]
        number = np.zeros((nodes, self.contexts.width), dtype=np.int64)  # of a (node, state)
        number[node, state] = np.arange(len(row))
        last = self.contexts.num_states[graph.windows[:, 1]]  # of each node: the state that means the end of the phone
        inner_cost = self.cost[row]  # (S, width + 1)
        follow = inner_cost.copy()
        follow[np.arange(len(row)), state] = np.inf  # without self-loops
        leaving = follow[np.arange(len(row)), last[node]]
        follow[np.arange(len(row)), last[node]] = np.inf
        at, to = np.nonzero(np.isfinite(follow))
        src, dst, cost = [at], [number[node[at], to]], [follow[at, to]]
        # from each state of a node that may leave the phone to the first state of the nodes that follow
        order = np.argsort(graph.src, kind="stable")
        arcs_of = np.bincount(graph.src, minlength=nodes)
        first_of = np.cumsum(arcs_of) - arcs_of
        may = np.flatnonzero(np.isfinite(leaving))
        counts = arcs_of[node[may]]
        which = order[np.repeat(first_of[node[may]] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())]
        source = np.repeat(may, counts)
        src.append(source)
        dst.append(number[graph.dst[which], 0])
        cost.append(leaving[source] + graph.cost[which])
        src, dst, cost = np.concatenate(src), np.concatenate(dst), np.concatenate(cost)
        by_dst = np.argsort(dst, kind="stable")
        first_arc = np.concatenate([[0], np.cumsum(np.bincount(dst, minlength=len(row)))])
        pdfs, pdf = np.unique(self.transitions.tuples[row, 2], return_inverse=True)
        enter = np.where(state == 0, graph.enter[node], np.inf)
        return StateGraph(row, pdf.ravel().astype(np.int32), pdfs, node.astype(np.int32), first_arc.astype(np.int64),
                          src[by_dst].astype(np.int32), cost[by_dst].astype(np.float32),
                          inner_cost[np.arange(len(row)), state], enter.astype(np.float32),
                          (leaving + graph.leave[node]).astype(np.float32))

    def transition_ids(self, graph: PhoneGraph, path: np.ndarray) -> np.ndarray:
        """Transition-ids, int32 (T,), of a path of states, int (T,): a state's transition onwards, then its
        self-loops (as Kaldi reorders graphs)."""
        row, node = self.states(graph)
        begins = np.append(True, path[1:] != path[:-1])
        at = path[begins]
        row, node = row[at], node[at]
        phone, state = self.transitions.tuples[row, 0], self.transitions.tuples[row, 1]
        following = self.contexts.num_states[phone]
        inside = np.flatnonzero(node[1:] == node[:-1])
        following[inside] = state[inside + 1]
        visit = np.cumsum(begins) - 1
        return np.where(begins, self.tid[row, following][visit], self.tid[row, state][visit]).astype(np.int32)
