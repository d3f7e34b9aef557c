"""Kaldi's TransitionModel, which stands at the head of every final.mdl: what a transition-id means.

The file is binary (it begins with ``\\0B``) or text, of a GMM, an nnet3 or a chain model. Formats: Kaldi's
hmm/transition-model.cc and hmm/hmm-topology.cc.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Tuple, Union

import numpy as np

from essence_kd.hmm.kaldi_objects import BinaryReader, ObjectWriter, TextReader, expect
from essence_kd.hmm.lang import Topology
from essence_kd.hmm.tree import Tree, possible_pdfs
from essence_kd.io.errors import UserError


@dataclass
class TransitionModel:
    """An HMM topology on the pdf-ids of a tree: N transition states, I transition-ids.

    topo: by phone-id; tuples: int32 (N, 4), rows (phone-id, HMM state, pdf-id, pdf-id of the self-loop), sorted, a row
    for each pdf-id that a state may have; probs: float64 (I + 1,), probability by transition-id, index 0 unused.

    What follows from these, by transition-id, int32 (I + 1,) with -1 at 0: ``row`` of the tuple; ``phone``, ``state``
    (0-based), ``pdf`` of the tuple; ``next``, the HMM state that the transition leads to; ``loop``, 1 where that is the
    state itself, else 0; ``begin``, 1 where a frame with the id is the first one of its phone, else 0 (a state's frames
    are its transition onwards first and its self-loops after that, as Kaldi reorders graphs).
    """

    topo: Dict[int, Topology]
    tuples: np.ndarray
    probs: np.ndarray
    row: np.ndarray = field(init=False)
    phone: np.ndarray = field(init=False)
    state: np.ndarray = field(init=False)
    pdf: np.ndarray = field(init=False)
    next: np.ndarray = field(init=False)
    loop: np.ndarray = field(init=False)
    begin: np.ndarray = field(init=False)

    def __post_init__(self):
        pairs = [(-1, -1)] + [(row, following) for row, (phone, state, _, _) in enumerate(self.tuples.tolist())
                              for following, _ in self.topo[phone][state]]
        self.row, self.next = np.array(pairs, dtype=np.int32).reshape(-1, 2).T.copy()
        if len(self.probs) != len(self.row):
            raise ValueError(f"{len(self.probs) - 1} probabilities of {len(self.row) - 1} transitions")
        self.phone, self.state, forward, of_loop = self.tuples[self.row].T.copy()
        self.loop = (self.next == self.state).astype(np.int32)
        self.pdf = np.where(self.loop == 1, of_loop, forward)
        self.begin = ((self.state == 0) & (self.loop == 0)).astype(np.int32)
        for column in (self.phone, self.state, self.pdf, self.loop, self.begin):
            column[0] = -1

    @classmethod
    def of_tree(cls, tree: Tree, topo: Dict[int, Topology]) -> "TransitionModel":
        """The model that Kaldi gives to a new tree: probabilities of the topology."""
        rows = [(phone, state, pdf, pdf) for phone in sorted(topo) for state in range(len(topo[phone]))
                for pdf in possible_pdfs(tree, phone, state)]
        probs = [1.0] + [prob for phone, state, _, _ in rows for _, prob in topo[phone][state]]
        return cls(topo, np.array(rows, dtype=np.int32).reshape(-1, 4), np.array(probs))

    @property
    def num_ids(self) -> int:
        """How many transition-ids there are; they count from 1."""
        return len(self.pdf) - 1

    @property
    def num_pdfs(self) -> int:
        """The largest pdf-id + 1, Kaldi's NumPdfs()."""
        return int(self.pdf.max()) + 1

    def first_ids(self) -> np.ndarray:
        """The first transition-id of each tuple, int64 (N,)."""
        return np.searchsorted(self.row[1:], np.arange(len(self.tuples))) + 1

    def scaled_costs(self, transition_scale: float, self_loop_scale: float) -> np.ndarray:
        """Cost by transition-id, float64 (I + 1,), as in Kaldi's GetScaledTransitionLogProb.

        A self-loop has the scaled cost of staying. Another transition has the scaled costs of not staying, and of going
        where it goes given that the state is left.
        """
        cost = -np.log(np.maximum(self.probs, 1e-20))
        stay = np.bincount(self.row[1:], weights=self.probs[1:] * (self.loop[1:] == 1), minlength=len(self.tuples))
        leave = -np.log(np.maximum(1.0 - stay, 1e-20))[self.row]
        out = np.where(self.loop == 1, cost * self_loop_scale, (cost - leave) * transition_scale
                       + leave * self_loop_scale)
        out[0] = 0.0
        return out


class ContextStates:
    """Which tuples of a transition model the HMM states of phones in context are."""

    def __init__(self, tree: Tree, transitions: TransitionModel):
        self.tree = tree
        self.num_states = np.zeros(max(transitions.topo) + 1, dtype=np.int64)  # by phone-id
        for phone, states in transitions.topo.items():
            self.num_states[phone] = len(states)
        self.width = int(self.num_states.max())
        phone, state, pdf, _ = transitions.tuples.T.astype(np.int64)
        self._pdfs = int(pdf.max()) + 1
        self._keys = (phone * self.width + state) * self._pdfs + pdf  # sorted, as the tuples are
        self._known: Dict[Tuple[int, int, int], np.ndarray] = {}

    def rows(self, windows: np.ndarray) -> np.ndarray:
        """Numbers of tuples, int32 (n, most states), of left, own and right phone-id, int (n, 3); -1 behind the last
        state."""
        keys = list(map(tuple, windows.tolist()))
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            table = np.array(new, dtype=np.int64)
            sizes = self.num_states[table[:, 1]]
            which = np.repeat(np.arange(len(new)), sizes)
            state = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            pdf = self.tree.pdfs(table[which] if self.tree.width == 3 else table[which, 1:2], state)
            rows = np.full((len(new), self.width), -1, dtype=np.int32)
            rows[which, state] = np.searchsorted(self._keys, (table[which, 1] * self.width + state) * self._pdfs + pdf)
            self._known.update(zip(new, rows))
        return np.stack([self._known[key] for key in keys])


# A topology as it is read: for each HMM state, the final one included, (next state, probability) pairs.
def _binary_topology(reader: BinaryReader) -> Dict[int, Topology]:
    phones, entry_of = reader.integers(), reader.integers()
    count, pdf_classes = reader.integer(), 1
    if count == -1:  # self-loops have pdf classes of their own
        count, pdf_classes = reader.integer(), 2
    entries = []
    for _ in range(count):
        entry = []
        for _ in range(reader.integer()):
            for _ in range(pdf_classes):
                reader.integer()
            targets = []
            for _ in range(reader.integer()):
                following = reader.integer()
                targets.append((following, reader.real()))
            entry.append(targets)
        entries.append(entry)
    expect(reader, "</Topology>")
    return {phone: entries[entry_of[phone]] for phone in phones}


def _text_topology(reader: TextReader) -> Dict[int, Topology]:
    topology: Dict[int, Topology] = {}
    while expect(reader, "<TopologyEntry>", "</Topology>") != "</Topology>":
        expect(reader, "<ForPhones>")
        phones = [int(field) for field in iter(reader.token, "</ForPhones>")]
        entry: Topology = []
        for token in iter(reader.token, "</TopologyEntry>"):
            if token == "<State>":
                reader.token()
                entry.append([])
            elif token == "<Transition>":
                following = reader.integer()
                entry[-1].append((following, reader.real()))
            elif token in ("<PdfClass>", "<ForwardPdfClass>", "<SelfLoopPdfClass>"):
                reader.token()
            elif token != "</State>":
                raise ValueError(f"{token[:40]!r} in a topology")
        topology.update((phone, entry) for phone in phones)
    return topology


def read_model_file(path: str | Path):
    """(transition model, reader that stands behind it) of a final.mdl; UserError where the file is missing, cut off or
    something else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: this model cannot be read") from None
    try:
        if data[:2] == b"\0B":
            reader: Union[BinaryReader, TextReader] = BinaryReader(data)
        else:
            if b"</TransitionModel>" not in data:
                raise ValueError("there is no </TransitionModel>")
            reader = TextReader(data.decode("ascii"))
        return _parse(reader), reader
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: holds no whole transition model of Kaldi's ({error}); name a final.mdl") from None


def read_transition_model(path: str | Path) -> TransitionModel:
    """The transition model of a final.mdl; UserError where the file is missing, cut off or something else."""
    return read_model_file(path)[0]


def _parse(reader) -> TransitionModel:
    expect(reader, "<TransitionModel>")
    expect(reader, "<Topology>")
    topology = _binary_topology(reader) if isinstance(reader, BinaryReader) else _text_topology(reader)
    apart = expect(reader, "<Triples>", "<Tuples>") == "<Tuples>"  # the pdf of a self-loop may be another
    rows = []
    for _ in range(reader.integer()):
        phone, state, forward = reader.integer(), reader.integer(), reader.integer()
        rows.append((phone, state, forward, reader.integer() if apart else forward))
        if min(rows[-1]) < 0 or state >= len(topology[phone]):
            raise ValueError(f"phone {phone}, state {state}, pdfs {forward} and {rows[-1][3]}: there is no such state")
    expect(reader, "</Tuples>" if apart else "</Triples>")
    expect(reader, "<LogProbs>")
    log_probs = reader.vector()
    expect(reader, "</LogProbs>")
    expect(reader, "</TransitionModel>")
    emitting = {phone: [arcs for arcs in states if arcs] for phone, states in topology.items()}
    if not rows or any(state >= len(emitting[phone]) for phone, state, _, _ in rows):
        raise ValueError("there are no transitions, or some of a state that has none")
    return TransitionModel(emitting, np.array(rows, np.int32).reshape(-1, 4), np.exp(log_probs.astype(np.float64)))


def write_transition_model(out: ObjectWriter, model: TransitionModel) -> None:
    """Add a transition model, whose self-loops have no pdf-ids of their own, to a binary file."""
    phones = sorted(model.topo)
    entries: List[Tuple] = []
    number = np.full(phones[-1] + 1, -1, dtype=np.int32)
    for phone in phones:
        entry = tuple(tuple(arcs) for arcs in model.topo[phone])
        if entry not in entries:
            entries.append(entry)
        number[phone] = entries.index(entry)
    out.token("<TransitionModel>").token("<Topology>").integers(phones).integers(number).integer(len(entries))
    for entry in entries:
        out.integer(len(entry) + 1)
        for state, arcs in enumerate(entry):
            out.integer(state).integer(len(arcs))
            for following, prob in arcs:
                out.integer(following).real(prob)
        out.integer(-1).integer(0)  # the final state: no pdf, no transition
    out.token("</Topology>").token("<Triples>").integer(len(model.tuples))
    for phone, state, pdf, _ in model.tuples.tolist():
        out.integer(phone).integer(state).integer(pdf)
    probs = model.probs.copy()
    probs[0] = 1.0
    out.token("</Triples>").token("<LogProbs>").vector(np.log(probs)).token("</LogProbs>").token("</TransitionModel>")
