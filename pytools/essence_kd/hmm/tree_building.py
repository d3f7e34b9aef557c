"""Building phonetic decision trees: statistics, questions, splits by likelihood, and clusters of leaves.

The method and its constants are those of Kaldi's acc-tree-stats, cluster-phones, compile-questions and build-tree
(tree/build-tree.cc, tree/build-tree-utils.cc): with the same statistics and questions the same tree comes out.
"""
from __future__ import annotations

import heapq
import math
import sys
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.hmm.tree import STATE, Node, Split, Table, Tree, leaves, map_leaves
from essence_kd.io.errors import UserError

MIN_VARIANCE = 0.01  # of an event's Gaussian
MIN_GAIN = 300.0  # log-likelihood that a split must bring at least
CLUSTER_STATE = 1  # the HMM state by which phones are clustered into questions
NO_PHONE = -1  # in the place of a neighbour that a question may not ask for


@dataclass
class TreeStats:
    """Sums of frames by event: E events of dimension D.

    events: int32 (E, 4), HMM state, left, central and right phone-id, sorted; left and right are 0 at the edges of an
    utterance, and NO_PHONE where the central phone does not depend on its context; count: float64 (E,); first, second:
    float64 (E, D), sums of frames and of their squares.
    """

    events: np.ndarray
    count: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def rows(self) -> np.ndarray:
        """One matrix float64 (E, 1 + 2 D): count, first, second."""
        return np.hstack([self.count[:, None], self.first, self.second])


def accumulate_tree_stats(feats: np.ndarray, windows: np.ndarray, states: np.ndarray,
                          context_independent: Sequence[int]) -> TreeStats:
    """Statistics of frames: features (N, D), each with its phone window, int (N, 3), and HMM state, int (N,)."""
    from scipy.sparse import csr_matrix

    events = np.column_stack([states, windows]).astype(np.int64)
    free = np.isin(events[:, 2], context_independent)
    events[free, 1] = events[free, 3] = NO_PHONE
    base = int(events.max(initial=0)) + 2
    keys = (((events[:, 0] * base + events[:, 1] + 1) * base + events[:, 2]) * base) + events[:, 3] + 1
    unique, first_at, which = np.unique(keys, return_index=True, return_inverse=True)
    size, dim = len(unique), feats.shape[1]
    first, second, block = np.zeros((size, dim)), np.zeros((size, dim)), 32768
    for at in range(0, len(feats), block):  # blocks: in float64, without a copy of all frames
        x = feats[at:at + block].astype(np.float64)
        picks = csr_matrix((np.ones(len(x)), (which[at:at + block].ravel(), np.arange(len(x)))), shape=(size, len(x)))
        first += picks @ x
        second += picks @ (x * x)
    return TreeStats(events[first_at].astype(np.int32), np.bincount(which.ravel(), minlength=size).astype(np.float64),
                     first, second)


def add_tree_stats(parts: List[TreeStats]) -> TreeStats:
    """The sum of several parts' statistics."""
    events, which = np.unique(np.concatenate([part.events for part in parts]), axis=0, return_inverse=True)
    out = np.zeros((len(events), parts[0].rows().shape[1]))
    at = 0
    for part in parts:  # an event is in a part once
        out[which.ravel()[at:at + len(part.events)]] += part.rows()
        at += len(part.events)
    dim = (out.shape[1] - 1) // 2
    return TreeStats(events, out[:, 0], out[:, 1:1 + dim], out[:, 1 + dim:])


def log_likelihood(rows: np.ndarray) -> np.ndarray:
    """Log-likelihood, float64 (n,), of the frames of each row (count, first, second) under their own Gaussian.

    Variances are floored at MIN_VARIANCE (Kaldi's GaussClusterable::Objf).
    """
    dim = (rows.shape[1] - 1) // 2
    count = rows[:, 0]
    safe = np.where(count > 0, count, 1.0)[:, None]
    mean = rows[:, 1:1 + dim] / safe
    variance = rows[:, 1 + dim:] / safe - mean * mean
    floored = np.maximum(variance, MIN_VARIANCE)
    per_frame = -0.5 * ((variance / floored + np.log(floored)).sum(axis=1) + math.log(2 * math.pi) * dim)
    return np.where(count > 0, per_frame * count, 0.0)


# --------------------------------------------------------------------------------------------------------- questions

def cluster_phones(stats: TreeStats, sets: List[List[int]], seed: int = 0) -> List[List[int]]:
    """Questions: sets of phones that sound alike, from a tree of clusters of the phone sets (Kaldi's cluster-phones).

    The sets themselves are among them. A phone set without data goes with the others at random, which hurts nothing.
    """
    rows = stats.rows()
    middle = stats.events[:, 0] == CLUSTER_STATE
    if not middle.any():
        middle[:] = True
    points = np.stack([rows[middle & np.isin(stats.events[:, 2], line)].sum(axis=0) for line in sets])
    rng = np.random.default_rng(seed)
    found: List[List[int]] = []
    todo = [np.arange(len(sets))]
    while todo:
        members = todo.pop(0)
        found.append(sorted(phone for i in members for phone in sets[i]))
        if len(members) > 1:
            halves = _halve(points[members], rng)
            todo += [members[halves == half] for half in (0, 1)]
    found += [sorted(line) for line in sets]
    return [list(line) for line in sorted({tuple(line) for line in found})]


def _halve(points: np.ndarray, rng: np.random.Generator, tries: int = 10, passes: int = 20) -> np.ndarray:
    """Two clusters of points (count, first, second), both with members: the best of some tries of k-means."""
    best, best_value = None, -np.inf
    for _ in range(tries):
        assigned = np.zeros(len(points), dtype=np.int64)
        assigned[rng.permutation(len(points))[::2]] = 1
        value = -np.inf
        for _ in range(passes):
            sums = np.stack([points[assigned == half].sum(axis=0) for half in (0, 1)])
            total = float(log_likelihood(sums).sum())
            if total <= value + 1e-9 * abs(total):
                break
            value, kept = total, assigned
            score = np.stack([_score(points, centre) for centre in sums])
            assigned = np.argmax(score, axis=0)
            if len(np.unique(assigned)) < 2:
                break
        if value > best_value:
            best, best_value = kept, value
    return best


def _score(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Log-likelihood of each point's frames under the Gaussian of a centre's."""
    dim = (len(centre) - 1) // 2
    count = max(centre[0], 1e-10)
    mean = centre[1:1 + dim] / count
    variance = np.maximum(centre[1 + dim:] / count - mean * mean, MIN_VARIANCE)
    squares = points[:, 1 + dim:] - 2 * points[:, 1:1 + dim] * mean + points[:, :1] * (mean * mean)
    return -0.5 * (squares / variance + points[:, :1] * np.log(2 * math.pi * variance)).sum(axis=1)


# ------------------------------------------------------------------------------------------------------------ splits

class _Leaf:
    """A leaf that may be split: its events, and the best question for it."""

    def __init__(self, builder: "_Builder", number: int, members: np.ndarray):
        self.number, self.members = number, members
        self.gain, self.key, self.values = builder.best_split(members)
        self.children: Optional[Tuple["_Leaf", "_Leaf"]] = None

    def split(self, builder: "_Builder", new: int) -> Tuple["_Leaf", "_Leaf"]:
        yes = np.isin(builder.columns[self.key][self.members], self.values)
        self.children = (_Leaf(builder, self.number, self.members[yes]), _Leaf(builder, new, self.members[~yes]))
        return self.children

    def node(self) -> Node:
        if self.children is None:
            return self.number
        return Split(self.key, self.values, self.children[0].node(), self.children[1].node())


class _Builder:
    def __init__(self, stats: TreeStats, questions: List[List[int]], num_states: int):
        self.rows = stats.rows()
        self.columns = {STATE: stats.events[:, 0], 0: stats.events[:, 1], 1: stats.events[:, 2],
                        2: stats.events[:, 3]}
        phones = sorted({tuple(sorted(line)) for line in questions})
        states = [tuple(range(n)) for n in range(1, num_states)]
        self.questions = {key: (states if key == STATE else phones) for key in self.columns}
        self.marks = np.random.default_rng(0).random(1 + int(stats.events.max(initial=0)))
        self.tables = {}
        for key, asked in self.questions.items():
            table = np.zeros((len(asked), int(self.columns[key].max(initial=0)) + 1), dtype=np.float64)
            for number, values in enumerate(asked):
                table[number, [v for v in values if v < table.shape[1]]] = 1.0
            self.tables[key] = table

    def best_split(self, members: np.ndarray) -> Tuple[float, int, Tuple[int, ...]]:
        """(gain in log-likelihood, key, values) of the best question about these events."""
        best = (0.0, STATE, ())
        if len(members) < 2:
            return best
        rows = self.rows[members]
        total = rows.sum(axis=0)
        whole = float(log_likelihood(total[None])[0])
        for key, column in self.columns.items():
            values = column[members]
            if values.min() < 0 or not len(self.questions[key]):
                continue  # not defined for all events
            order = np.argsort(values, kind="stable")
            present, starts = np.unique(values[order], return_index=True)
            if len(present) < 2:
                continue
            sums = np.add.reduceat(rows[order], starts, axis=0)
            masks = self.tables[key][:, present]
            _, which = np.unique(masks @ self.marks[:len(present)], return_index=True)  # questions that differ here
            size = masks[which].sum(axis=1)
            which = np.sort(which[(size > 0) & (size < len(present))])  # ties go to the first question, as in Kaldi
            if not len(which):
                continue
            yes = masks[which] @ sums
            gains = log_likelihood(yes) + log_likelihood(total - yes) - whole
            at = int(np.argmax(gains))
            if gains[at] > best[0]:
                best = (float(gains[at]), key, self.questions[key][which[at]])
        return best


@dataclass
class TreeOptions:
    """num_leaves: leaves at most, before those that gain nothing are clustered; min_gain: of a split."""

    num_leaves: int = 2000
    min_gain: float = MIN_GAIN


def stub_tree(roots: List[Tuple[bool, List[int]]], states: Dict[int, int]) -> Tuple[Node, int]:
    """(Tree with one leaf per root, number of leaves). A root that is not shared has a leaf per HMM state.

    roots: of each line of roots.txt whether states share the root, and its phone-ids (Kaldi's GetStubMap).
    """
    count = 0

    def build(part: List[Tuple[bool, List[int]]]) -> Node:
        nonlocal count
        if len(part) == 1:
            shared, phones = part[0]
            size = 1 if shared else max(states[phone] for phone in phones)
            numbers: List[Optional[Node]] = list(range(count, count + size))
            count += size
            return numbers[0] if shared else Table(STATE, numbers)
        if all(len(phones) == 1 for _, phones in part) and len(part) <= 2 * max(phones[0] for _, phones in part):
            nodes: List[Optional[Node]] = [None] * (1 + max(phones[0] for _, phones in part))
            for line in part:
                nodes[line[1][0]] = build([line])
            return Table(1, nodes)
        half = len(part) // 2
        yes, no = build(part[:half]), build(part[half:])
        return Split(1, tuple(sorted(phone for _, phones in part[:half] for phone in phones)), yes, no)

    return build([(shared, sorted(phones)) for shared, phones in roots]), count


def build_tree(stats: TreeStats, questions: List[List[int]], roots: List[Tuple[bool, bool, List[int]]],
               states: Dict[int, int], options: TreeOptions = TreeOptions()) -> Tree:
    """A decision tree from statistics.

    Args:
      questions: sets of phone-ids that may be asked about any position.
      roots: (do the HMM states share the root, may it be split, phone-ids) of each line of roots.txt.
      states: number of HMM states by phone-id.

    Splits are made where they gain most, until there are `num_leaves` leaves or no split gains `min_gain`. The leaves
    of a root that lose less than the smallest split by being one are then merged, and more until their number is a
    multiple of 8. Raises UserError where there are fewer leaves than roots.
    """
    if not len(stats.events):
        raise UserError("a decision tree needs aligned frames, but there are none")
    root, count = stub_tree([(shared, phones) for shared, _, phones in roots], states)
    if options.num_leaves < count:
        raise UserError(f"a tree of {options.num_leaves} leaves cannot hold the {count} roots of roots.txt, one for "
                        f"each phone or its states; ask for {count} or more")
    builder = _Builder(stats, questions, max(states.values()))
    at_root = Tree(root).pdfs(stats.events[:, 1:], stats.events[:, 0])
    fixed = [phone for _, split, phones in roots if not split for phone in phones]
    may_split = ~np.isin(stats.events[:, 2], fixed)
    tops = [_Leaf(builder, number, np.flatnonzero((at_root == number) & may_split)) for number in range(count)]
    heap = [(-leaf.gain, -leaf.number, leaf) for leaf in tops]
    heapq.heapify(heap)
    smallest = math.inf
    while heap and count < options.num_leaves and -heap[0][0] > options.min_gain:
        gain, _, leaf = heapq.heappop(heap)
        smallest = min(smallest, -gain)
        for child in leaf.split(builder, count):
            heapq.heappush(heap, (-child.gain, -child.number, child))
        count += 1
    node = map_leaves(root, {leaf.number: leaf.node() for leaf in tops})
    if math.isfinite(smallest):
        node = _merge_leaves(node, stats, at_root, smallest, 8)
    numbers = {old: new for new, old in enumerate(sorted(set(leaves(node))))}
    return Tree(map_leaves(node, numbers))


def _merge_leaves(node: Node, stats: TreeStats, at_root: np.ndarray, threshold: float, multiple: int) -> Node:
    """Merges leaves of the same root: while that loses at most `threshold`, and until their number is a multiple of
    `multiple` (Kaldi's ClusterEventMapRestrictedByMap and ClusterEventMapToNClustersRestrictedByMap)."""
    rows = stats.rows()
    for fewer in (False, True):
        at_leaf = Tree(node).pdfs(stats.events[:, 1:], stats.events[:, 0])
        roots = []
        for number in np.unique(at_root):
            members = at_root == number
            names, which = np.unique(at_leaf[members], return_inverse=True)
            sums = np.zeros((len(names), rows.shape[1]))
            np.add.at(sums, which.ravel(), rows[members])
            roots.append((names.tolist(), _Clusters(sums)))
        surplus = len(set(leaves(node))) % multiple if fewer else 0
        if fewer and len(set(leaves(node))) - surplus < len(roots):
            break
        for _ in range(surplus):
            min(roots, key=lambda line: line[1].least)[1].merge()
        merged: Dict[int, int] = {}
        for names, clusters in roots:
            while not fewer and clusters.least <= threshold:
                clusters.merge()
            merged.update((names[old], names[new]) for old, new in enumerate(clusters.assignments()))
        node = map_leaves(node, merged)
    return node


class _Clusters:
    """Clusters of points (count, first, second) that are merged two by two, those first that lose least."""

    def __init__(self, points: np.ndarray):
        size = len(points)
        self.sums, self.own = points.copy(), log_likelihood(points)
        self.into = list(range(size))
        self.loss = np.full((size, size), np.inf)  # in log-likelihood, below the diagonal
        for i in range(1, size):
            self.loss[i, :i] = self.own[i] + self.own[:i] - log_likelihood(self.sums[i] + self.sums[:i])

    @property
    def least(self) -> float:
        """What the next merge loses; inf where there is one cluster."""
        return float(self.loss.min())

    def merge(self) -> None:
        """Merge the two clusters that lose least."""
        i, j = divmod(int(np.argmin(self.loss)), len(self.loss))
        self.sums[i] += self.sums[j]
        self.own[i] = log_likelihood(self.sums[i][None])[0]
        self.into[j] = i
        self.loss[j, :] = self.loss[:, j] = np.inf
        others = np.array([k for k, into in enumerate(self.into) if k == into and k != i], dtype=np.int64)
        new = self.own[i] + self.own[others] - log_likelihood(self.sums[i] + self.sums[others])
        self.loss[np.maximum(i, others), np.minimum(i, others)] = new

    def assignments(self) -> List[int]:
        """The number of each point's cluster; clusters are numbered in the order of their last points."""
        def last(point: int) -> int:
            while self.into[point] != point:
                point = self.into[point]
            return point

        ends = [last(point) for point in range(len(self.into))]
        number = {end: n for n, end in enumerate(sorted(set(ends)))}
        return [number[end] for end in ends]


def tell_tree(name: str, tree: Tree, stats: TreeStats) -> None:
    """One line on stderr: leaves, triphone states and frames."""
    print(f"{name}: a tree of {tree.num_pdfs} leaves from {len(stats.events)} triphone states of "
          f"{int(stats.count.sum())} frames", file=sys.stderr)
