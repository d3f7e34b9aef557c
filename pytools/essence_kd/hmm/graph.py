"""Decoding graphs: one stored form for every decoder.

**graph.npz** (numpy only, ``allow_pickle=False``; A arcs, S states, U units, P phones) holds:

===============  ==================  =========================================================================
array            type, shape         meaning
===============  ==================  =========================================================================
``src``          int32 (A,)          state an arc leaves; arcs are sorted by ``src``, then ``ilabel``
``dst``          int32 (A,)          state an arc enters
``ilabel``       int32 (A,)          pdf-id + 1, or 0 = epsilon (consumes no frame); epsilons never form a cycle
``olabel``       int32 (A,)          word-id of words.txt, or 0 = no word
``weight``       float32 (A,)        cost (-log probability) of language model, lexicon and transitions, with the
                                     transition scales already applied
``unit``         int32 (A,)          which (phone, HMM state) the arc's frame belongs to: 1..U, or 0 on an epsilon arc
``begin``        uint8 (A,)          1 when the arc's frame is the first one of a phone, else 0
``final``        float32 (S,)        final cost, +inf where the state is not final
``unit_phone``   int32 (U+1,)        phone-id of a unit (index 0: 0)
``unit_state``   int32 (U+1,)        HMM state of a unit, 0-based (index 0: -1)
``unit_pdf``     int32 (U+1,)        pdf-id of a unit (index 0: -1); ``ilabel == unit_pdf[unit] + 1`` on every arc
``phones``       str (P,)            phone symbol by phone-id ("<eps>" at 0, disambiguation symbols included)
``phone_kind``   uint8 (P,)          0 nonword (optional silence, epsilon), 1 begin (_B), 2 end (_E), 3 internal (_I),
                                     4 singleton (_S): Kaldi's phones/word_boundary.txt
``words``        str (W,)            word by word-id ("<eps>" at 0)
``meta``         str ()              JSON: num_pdfs, frame_subsampling_factor, tree_hash, ...
===============  ==================  =========================================================================

The start state is 0 and every state lies on a path from start to a final state. Self-loops (``src == dst``) are
ordinary arcs. A frame's word follows from the phones: a word is one singleton, or begin, internals, end; the n-th such
group of a path is the n-th word label of that path, even though the label itself may lie on an earlier or later arc.
"""
from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.hmm.fst import Fst, from_kaldifst, make_fst, read_fst, sort_arcs, to_kaldifst
from essence_kd.hmm.lang import Lang, Topology, load_lang
from essence_kd.hmm.npz import read_npz, write_npz
from essence_kd.hmm.transition_model import ContextStates, TransitionModel
from essence_kd.hmm.tree import Tree
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS, FRAME_SUBSAMPLING_FACTOR
from essence_kd.io.provenance import check_match, read_sidecar, write_sidecar, write_text

TRANSITION_SCALE, SELF_LOOP_SCALE = 1.0, 0.1  # Kaldi's utils/mkgraph.sh
PRIOR_WEIGHT = 10.0  # occurrences of a phone that counts are smoothed with
_FIELDS = {"src": np.int32, "dst": np.int32, "ilabel": np.int32, "olabel": np.int32, "weight": np.float32,
           "unit": np.int32, "begin": np.uint8, "final": np.float32, "unit_phone": np.int32, "unit_state": np.int32,
           "unit_pdf": np.int32, "phones": np.str_, "phone_kind": np.uint8, "words": np.str_}


@dataclass
class Graph:
    """A decoding graph over pdf-id + 1 (the module's docstring tells every field).

    ``num_pdfs`` etc. are in ``meta``: num_pdfs, frame_subsampling_factor, tree_hash.
    """

    src: np.ndarray
    dst: np.ndarray
    ilabel: np.ndarray
    olabel: np.ndarray
    weight: np.ndarray
    unit: np.ndarray
    begin: np.ndarray
    final: np.ndarray
    unit_phone: np.ndarray
    unit_state: np.ndarray
    unit_pdf: np.ndarray
    phones: np.ndarray
    phone_kind: np.ndarray
    words: np.ndarray
    meta: dict = field(default_factory=dict)

    @property
    def num_states(self) -> int:
        """How many states there are."""
        return len(self.final)

    @property
    def num_arcs(self) -> int:
        """How many arcs there are."""
        return len(self.src)

    @property
    def num_pdfs(self) -> int:
        """The width of score matrices that this graph decodes."""
        return int(self.meta["num_pdfs"])

    @property
    def frame_shift_ms(self) -> float:
        """The time between two rows that the graph expects."""
        return float(self.meta.get("frame_shift_ms", FRAME_SHIFT_MS * self.meta["frame_subsampling_factor"]))


def save_graph(path: str | Path, graph: Graph) -> None:
    """Write a graph as ``path`` (.npz), whole or not at all."""
    arrays = {name: np.ascontiguousarray(getattr(graph, name), dtype=dtype) for name, dtype in _FIELDS.items()}
    write_npz(path, {**arrays, "meta": np.asarray(json.dumps(graph.meta, sort_keys=True))})


def load_graph(path: str | Path) -> Graph:
    """Read what :func:`save_graph` wrote; UserError when the file is missing, truncated or something else."""
    return read_npz(path, (*_FIELDS, "meta"), "make the graph with 'essence make-graph'", _graph_of)


def _graph_of(arrays: dict[str, np.ndarray]) -> Graph:
    """The graph of such arrays. Raises ValueError and the like where they do not fit together."""
    graph = Graph(**{name: arrays[name] for name in _FIELDS}, meta=json.loads(str(arrays["meta"])))
    sizes = {"weight": None, "begin": None, "src": graph.num_states, "dst": graph.num_states,
             "ilabel": graph.num_pdfs + 1, "olabel": len(graph.words), "unit": len(graph.unit_pdf)}
    for name, dtype in _FIELDS.items():
        column = arrays[name]
        if column.ndim != 1 or (column.dtype.kind != "U" if dtype is np.str_ else column.dtype != dtype):
            raise ValueError(f"its {name} is {column.dtype} {column.shape}")
        most = sizes.get(name)
        if name in sizes and len(column) != graph.num_arcs:
            raise ValueError(f"its {name} has {len(column)} entries for {graph.num_arcs} arcs")
        if most is not None and len(column) and not 0 <= column.min() <= column.max() < most:
            raise ValueError(f"its {name} goes from {column.min()} to {column.max()}, where there are {most}")
    if not len(graph.unit_pdf) == len(graph.unit_phone) == len(graph.unit_state) or \
            len(graph.phones) != len(graph.phone_kind) or graph.num_pdfs < 1 or not graph.frame_shift_ms > 0:
        raise ValueError("its parts do not fit together")
    return graph


def write_graph_dir(path: str | Path, graph: Graph) -> str:
    """Write graph.npz, words.txt and graph.json into a directory; one line that tells the graph's size."""
    out = Path(path)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "words.txt", "".join(f"{w} {i}\n" for i, w in enumerate(graph.words) if w))
    write_sidecar(out / "graph.json", {"kind": "graph", **graph.meta})
    save_graph(out / "graph.npz", graph)
    return (f"{out}: {graph.num_states} states, {graph.num_arcs} arcs ({graph.meta['num_epsilons']} epsilons), "
            f"{graph.num_pdfs} pdfs, a row every {graph.frame_shift_ms:g} ms, {graph.meta['seconds']} s")


# ------------------------------------------------------------------------------------------------ HMM at a frame rate

@dataclass
class PhoneHmm:
    """A phone's HMM at the graph's frame rate; S states.

    enter: (S,) probability that the first frame is in a state; stay: (S, S) that the next frame of the phone is in a
    state; leave: (S,) that there is none. ``enter`` and the rows of ``[stay, leave]`` sum to one.
    """

    enter: np.ndarray
    stay: np.ndarray
    leave: np.ndarray


def subsample(topology: Topology, factor: int) -> PhoneHmm:
    """The HMM that a phone shows when every `factor`-th frame is kept (factor 1: the HMM itself).

    Its states follow each other as they do on full-rate paths that are thinned out: with A the matrix of transitions,
    ``stay`` is A^factor, and the first kept frame is, each with the same probability, the phone's 1st, 2nd, ...
    factor-th.
    """
    size = len(topology)
    step = np.zeros((size + 1, size + 1))  # the last state: the phone has ended, so that what cannot be stays exactly 0
    step[size, size] = 1.0
    for state, arcs in enumerate(topology):
        for dst, prob in arcs:
            step[state, dst] += prob
    first = np.zeros(size + 1)
    first[0] = 1.0
    enter = np.zeros(size)
    for _ in range(factor):
        enter += first[:size]
        first = first @ step
    steps = np.linalg.matrix_power(step, factor)[:size]
    return PhoneHmm(enter / enter.sum(), steps[:, :size], steps[:, size])


class UnitHmms:
    """The HMMs of phones in context at the graph's frame rate.

    transitions: the full-rate transition model; counts: hmm.gmm_alignment.SubsampledCounts of an alignment, or None.
    Counts, which are of phones, are smoothed with PRIOR_WEIGHT occurrences of what the full-rate transitions foretell.
    """

    def __init__(self, transitions: TransitionModel, factor: int, counts=None):
        self.transitions, self.factor, self.counts = transitions, factor, counts
        sizes = [len(transitions.topo[phone]) for phone in sorted(transitions.topo)]
        starts = np.cumsum(sizes) - sizes
        self.first = {phone: int(start) for phone, start in zip(sorted(transitions.topo), starts)}
        self.ids = np.append(transitions.first_ids(), transitions.num_ids + 1)
        self._of_phone: Dict[int, PhoneHmm] = {}

    def of(self, phone: int, rows: Sequence[int]) -> PhoneHmm:
        """The HMM of a phone whose states are these tuples of the transition model."""
        if self.counts is not None:  # the same in every context
            if phone not in self._of_phone:
                tuples = self.transitions.tuples
                first = [int(np.flatnonzero((tuples[:, 0] == phone) & (tuples[:, 1] == state))[0])
                         for state in range(len(self.transitions.topo[phone]))]
                self._of_phone[phone] = self._counted(phone, self._plain(phone, first))
            return self._of_phone[phone]
        return self._plain(phone, rows)

    def _plain(self, phone: int, rows: Sequence[int]) -> PhoneHmm:
        trained = []
        for state, row in enumerate(rows):
            probs = self.transitions.probs[self.ids[row]:self.ids[row + 1]]
            trained.append([(dst, p / probs.sum()) for (dst, _), p in zip(self.transitions.topo[phone][state], probs)])
        return subsample(trained, self.factor)

    def _counted(self, phone: int, hmm: PhoneHmm) -> PhoneHmm:
        size = len(hmm.enter)
        rows = slice(self.first[phone], self.first[phone] + size)
        enter = self.counts.enter[rows] * (hmm.enter > 0) + PRIOR_WEIGHT * hmm.enter
        stay = self.counts.stay[rows, :size] * (hmm.stay > 0) + PRIOR_WEIGHT * hmm.stay
        leave = self.counts.leave[rows] * (hmm.leave > 0) + PRIOR_WEIGHT * hmm.leave
        mass = stay.sum(axis=1) + leave
        return PhoneHmm(enter / enter.sum(), stay / mass[:, None], leave / mass)


# ------------------------------------------------------------------------------------------------------- building

def compose_lexicon_and_grammar(lang: Lang) -> Fst:
    """L o G, determinised (log semiring) and minimised; input: phone-ids with disambiguation symbols, output: words."""
    import kaldifst

    for name in ("L_disambig.fst", "G.fst"):
        if not (lang.path / name).exists():
            raise UserError(f"{lang.path / name}: missing; make it with 'essence "
                            + ("make-grammar'" if name == "G.fst" else "make-lang'"))
    grammar = read_fst(lang.path / "G.fst")
    if grammar.num_arcs and int(grammar.olabel.max()) >= len(lang.words):
        raise UserError(f"{lang.path / 'G.fst'}: has word-id {int(grammar.olabel.max())}, but words.txt ends at "
                        f"{len(lang.words) - 1}; make it again with 'essence make-grammar'")
    lexicon = to_kaldifst(sort_arcs(read_fst(lang.path / "L_disambig.fst"), "olabel"))
    graph = kaldifst.compose(lexicon, to_kaldifst(sort_arcs(grammar)))
    kaldifst.determinize_star(graph, use_log=True)
    kaldifst.minimize_encoded(graph)
    if graph.start < 0 or graph.num_states == 0:
        raise UserError(f"{lang.path}: lexicon and grammar accept nothing together; were both made from its words.txt?")
    return from_kaldifst(graph)


def _costs(probs: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -np.log(probs)


def add_context(lg: Fst, disambig: List[int]) -> Tuple[Fst, np.ndarray]:
    """(C o L o G over triphones, windows int32 (n, 3) of its input labels; left, own and right phone-id).

    The labels of disambiguation symbols have windows of -1; that of epsilon, label 0, too.
    """
    import kaldifst

    graph, windows = kaldifst.compose_context(disambig, 3, 1, to_kaldifst(sort_arcs(lg)))
    table = np.full((len(windows), 3), -1, dtype=np.int32)
    for label, window in enumerate(windows):
        if len(window) == 3 and window[1] > 0:
            table[label] = window
    return from_kaldifst(graph), table


def share_labels(fst: Fst, rows: np.ndarray, determinize: bool) -> Tuple[Fst, np.ndarray]:
    """Give phones in context with the same HMM states the same label.

    rows: int32 (n, states), the tuples of each input label, all -1 where it is no phone. Returns the transducer, its
    labels from 1, and the tuples of each label, int32 (m + 1, states). Labels of no phone become epsilons; determinize:
    arcs of one state that have the same label now become one, and the transducer minimal.
    """
    import kaldifst

    unique, label = np.unique(rows, axis=0, return_inverse=True)
    label = label.ravel()  # the first row is the one of no phone
    if not (unique[0] < 0).all():
        unique, label = np.vstack([np.full((1, rows.shape[1]), -1, np.int32), unique]), label + 1
    if determinize:
        nameless = np.flatnonzero(label == 0)
        label[nameless] = len(unique) - 1 + np.arange(len(nameless))  # apart, or the result would not be a function
        label[0] = 0
        graph = to_kaldifst(Fst(fst.src, fst.dst, label[fst.ilabel].astype(np.int32), fst.olabel, fst.weight, fst.final,
                                fst.start))
        kaldifst.determinize_star(graph, use_log=True)
        kaldifst.minimize_encoded(graph)
        fst = from_kaldifst(graph)
        fst.ilabel = np.where(fst.ilabel < len(unique), fst.ilabel, 0)
    else:
        fst = Fst(fst.src, fst.dst, label[fst.ilabel].astype(np.int32), fst.olabel, fst.weight, fst.final, fst.start)
    return fst, unique


def expand_phones(fst: Fst, rows: np.ndarray, hmms: List[Optional[PhoneHmm]], transition_scale: float) -> Fst:
    """Replace phones by their HMM states, still without self-loops.

    rows: int32 (n, states), tuples of the transition model of each input label; hmms: of each label; both unused at 0.
    Arcs with the same label and end state share the phone's states. Input labels become 2 * (tuple + 1) + begin (0 on
    arcs without a phone). Each arc from one state of a phone carries the probability of going there given that the
    state is left, scaled; the first arc that enters the phone carries the word and the cost of the arc that it
    replaces.
    """
    is_phone = fst.ilabel > 0
    columns = [(fst.src[~is_phone], fst.dst[~is_phone], np.zeros(int((~is_phone).sum())), fst.olabel[~is_phone],
                fst.weight[~is_phone])]
    next_state = fst.num_states
    order = np.argsort(fst.ilabel, kind="stable")
    labels, starts = np.unique(fst.ilabel[order], return_index=True)
    for label, start, stop in zip(labels.tolist(), starts.tolist(), [*starts[1:].tolist(), len(order)]):
        if not label:
            continue
        hmm, arcs = hmms[label], order[start:stop]
        size = len(hmm.enter)
        unit = 2 * (rows[label, :size].astype(np.int64) + 1)
        ends, which = np.unique(fst.dst[arcs], return_inverse=True)
        base = next_state + size * np.arange(len(ends))
        next_state += size * len(ends)
        away = 1.0 - np.diagonal(hmm.stay)
        for state in range(size):
            if hmm.enter[state] > 0:
                columns.append((fst.src[arcs], base[which] + state, np.full(len(arcs), unit[state] + 1),
                                fst.olabel[arcs], fst.weight[arcs] + transition_scale * _costs(hmm.enter[state])))
            for other in range(size):
                if other != state and hmm.stay[state, other] > 0:
                    cost = transition_scale * _costs(hmm.stay[state, other] / away[state])
                    columns.append((base + state, base + other, np.full(len(ends), unit[other]),
                                    np.zeros(len(ends)), np.full(len(ends), cost)))
            if hmm.leave[state] > 0:
                cost = transition_scale * _costs(hmm.leave[state] / away[state])
                columns.append((base + state, ends, np.zeros(len(ends)), np.zeros(len(ends)), np.full(len(ends), cost)))
    final = np.concatenate([fst.final, np.full(next_state - fst.num_states, np.inf, dtype=np.float32)])
    src, dst, ilabel, olabel, weight = (np.concatenate(parts) for parts in zip(*columns))
    return make_fst(src, dst, ilabel, olabel, weight, final, fst.start)


def add_self_loops(fst: Fst, loop_prob: np.ndarray, self_loop_scale: float) -> Fst:
    """Give every state a self-loop of the unit that its incoming arcs carry (Kaldi's AddSelfLoops, reordered form).

    loop_prob: probability of staying by unit, (U + 1,). A state that different units or epsilons enter gets, for each
    unit, a state of its own with the loop and an epsilon arc onwards. What leaves a state carries the scaled cost of
    not staying.
    """
    unit = fst.ilabel // 2
    emitting = unit > 0
    pairs = np.unique(np.stack([fst.dst[emitting], unit[emitting]]), axis=1)  # (state, unit that enters it)
    kinds = np.bincount(pairs[0], minlength=fst.num_states)
    plain = kinds == 1
    plain[fst.dst[~emitting]] = False
    plain[fst.start] = False
    stay, go = self_loop_scale * _costs(loop_prob), self_loop_scale * _costs(1.0 - loop_prob)

    alone = plain[pairs[0]]
    own_unit = np.zeros(fst.num_states, dtype=np.int64)
    own_unit[pairs[0][alone]] = pairs[1][alone]
    weight = fst.weight + np.where(own_unit > 0, go[own_unit], 0.0)[fst.src]
    final = fst.final + np.where(own_unit > 0, go[own_unit], 0.0)

    shared = pairs[:, ~alone]
    new_state = fst.num_states + np.arange(shared.shape[1])
    dst = fst.dst.astype(np.int64).copy()
    moved = np.flatnonzero(emitting & ~plain[fst.dst])
    width = int(unit.max()) + 1 if len(unit) else 1
    dst[moved] = new_state[np.searchsorted(shared[0].astype(np.int64) * width + shared[1],
                                           fst.dst[moved].astype(np.int64) * width + unit[moved])]
    loop_at = np.concatenate([pairs[0][alone], new_state])
    loop_unit = np.concatenate([pairs[1][alone], shared[1]])
    loops = loop_prob[loop_unit] > 0
    loop_at, loop_unit = loop_at[loops], loop_unit[loops]
    zeros = np.zeros(len(loop_at))
    columns = ((fst.src, dst, fst.ilabel, fst.olabel, weight),
               (new_state, shared[0], np.zeros(len(new_state)), np.zeros(len(new_state)), go[shared[1]]),
               (loop_at, loop_at, 2 * loop_unit, zeros, stay[loop_unit]))
    final = np.concatenate([final, np.full(len(new_state), np.inf)])
    src, dst, ilabel, olabel, weight = (np.concatenate(parts) for parts in zip(*columns))
    return make_fst(src, dst, ilabel, olabel, weight, final, fst.start)


def trim(fst: Fst) -> Fst:
    """Without the states that are on no path from start to a final one; the start becomes state 0."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order

    size = fst.num_states
    ones = np.ones(fst.num_arcs, dtype=np.int8)
    forward = csr_matrix((ones, (fst.src, fst.dst)), shape=(size, size))
    reached = breadth_first_order(forward, fst.start, return_predecessors=False)
    final = np.flatnonzero(np.isfinite(fst.final))
    to_final = csr_matrix((np.ones(fst.num_arcs + len(final), dtype=np.int8),
                           (np.concatenate([fst.dst, np.full(len(final), size)]), np.concatenate([fst.src, final]))),
                          shape=(size + 1, size + 1))
    useful = np.zeros(size + 1, dtype=bool)
    useful[breadth_first_order(to_final, size, return_predecessors=False)] = True
    kept = reached[useful[reached]]  # in the order of the search: neighbours lie together, the start first
    number = np.full(size, -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    arcs = (number[fst.src] >= 0) & (number[fst.dst] >= 0)
    return make_fst(number[fst.src[arcs]], number[fst.dst[arcs]], fst.ilabel[arcs], fst.olabel[arcs], fst.weight[arcs],
                    fst.final[kept], 0)


def build_graph(lang: Lang, tree: Tree, hmms: UnitHmms, *, transition_scale: float = TRANSITION_SCALE,
                self_loop_scale: float = SELF_LOOP_SCALE, meta: dict | None = None) -> Graph:
    """A decoding graph from lang (with G.fst), a tree, and HMMs; the scales are those of Kaldi's mkgraph.sh."""
    transitions = hmms.transitions
    lacking = [phone for phone in lang.silence + lang.nonsilence if phone not in transitions.topo]
    if lacking:
        raise UserError(f"{lang.path}: the model has no pdfs for the phone {lang.phones[lacking[0]]}; "
                        "use the lang directory that it was trained with")
    if (tree.width, tree.central) not in ((1, 0), (3, 1)):
        raise UserError(f"the model's tree looks at {tree.width} phones, the central one number {tree.central}; graphs "
                        "are made of monophones and triphones alone")
    lg = compose_lexicon_and_grammar(lang)
    if tree.width == 3:
        fst, windows = add_context(lg, lang.disambig)
    else:
        phones = np.arange(max(int(lg.ilabel.max()), len(lang.phones) - 1) + 1)
        own = np.isin(phones, list(transitions.topo))
        fst, windows = lg, np.where(own[:, None], np.column_stack([0 * phones, phones, 0 * phones]), -1)
    contexts = ContextStates(tree, transitions)
    rows = np.full((len(windows), contexts.width), -1, dtype=np.int32)
    rows[windows[:, 1] > 0] = contexts.rows(windows[windows[:, 1] > 0])
    fst, rows = share_labels(fst, rows, tree.width == 3)
    states = transitions.tuples
    of_label = [None] + [hmms.of(int(states[row[0], 0]), row[row >= 0].tolist()) for row in rows[1:]]
    loop_prob = np.zeros(len(states) + 1)
    for row, hmm in zip(rows[1:], of_label[1:]):
        loop_prob[row[row >= 0] + 1] = np.diagonal(hmm.stay)

    # what is expanded is minimal and expand_phones shares what it can
    expanded = expand_phones(fst, rows, of_label, transition_scale)
    fst = sort_arcs(trim(add_self_loops(expanded, loop_prob, self_loop_scale)))
    unit = fst.ilabel // 2
    loop = (fst.src == fst.dst) & (unit > 0)
    kind = np.zeros(len(lang.phones), dtype=np.uint8)
    kind[:len(lang.phone_kind)] = lang.phone_kind
    unit_phone, unit_state, unit_pdf = (np.append(none, states[:, column]).astype(np.int32)
                                        for column, none in ((0, 0), (1, -1), (2, -1)))
    return Graph(fst.src, fst.dst, np.where(unit > 0, unit_pdf[unit] + 1, 0).astype(np.int32), fst.olabel, fst.weight,
                 unit, (fst.ilabel % 2).astype(np.uint8), fst.final, unit_phone, unit_state, unit_pdf,
                 np.array(lang.phones, dtype=np.str_), kind, np.array(lang.words, dtype=np.str_),
                 {**(meta or {}), "num_pdfs": transitions.num_pdfs, "transition_scale": transition_scale,
                  "self_loop_scale": self_loop_scale, "num_states": fst.num_states, "num_arcs": fst.num_arcs,
                  "num_self_loops": int(loop.sum()), "num_epsilons": int((unit == 0).sum())})


def make_graph(lang_dir: str | Path, gmm_dir: str | Path, *, factor: int = FRAME_SUBSAMPLING_FACTOR,
               ali_dir: str | Path | None = None, transition_scale: float = TRANSITION_SCALE,
               self_loop_scale: float = SELF_LOOP_SCALE) -> Graph:
    """The decoding graph of a lang directory and a GMM directory for networks that answer every `factor`-th frame.

    ali_dir: an alignment whose counts give the transition probabilities at that rate; without it they follow from the
    GMM's. Raises UserError where lang, model and alignment do not belong together.
    """
    from essence_kd.hmm.gmm import load_gmm
    from essence_kd.hmm.gmm_alignment import SubsampledCounts

    started = time.monotonic()
    lang, model = load_lang(lang_dir), load_gmm(gmm_dir)
    if lang.phones != model.phones:
        raise UserError(f"{lang.path / 'phones.txt'}: not the phones that {gmm_dir} was trained with; "
                        "use the same lang directory")
    counts = None
    if ali_dir is not None:
        ali_dir = Path(ali_dir)
        check_match(Path(gmm_dir) / "gmm.json", read_sidecar(Path(gmm_dir) / "gmm.json"), ali_dir / "ali.json",
                    read_sidecar(ali_dir / "ali.json"), ["num_pdfs", "tree_hash"], required=True)
        counts = SubsampledCounts.load(ali_dir / "topology.npz")
        if counts.factor != factor:
            print(f"{ali_dir / 'topology.npz'}: counted at factor {counts.factor}, not {factor}: transition "
                  "probabilities follow from the GMM's", file=sys.stderr)
            counts = None
    graph = build_graph(lang, model.tree, UnitHmms(model.transitions, factor, counts),
                        transition_scale=transition_scale, self_loop_scale=self_loop_scale,
                        meta={"frame_subsampling_factor": factor, "frame_shift_ms": round(FRAME_SHIFT_MS * factor),
                              "tree_hash": model.meta.get("tree_hash"),
                              "transitions": "gmm" if counts is None else "alignment"})
    graph.meta["seconds"] = round(time.monotonic() - started, 1)
    return graph
