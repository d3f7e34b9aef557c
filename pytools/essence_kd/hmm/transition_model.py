"""Kaldi's TransitionModel, which stands at the head of every final.mdl: what a transition-id means.

The file is binary (it begins with ``\\0B``) or text, of a GMM, an nnet3 or a chain model; what follows the transition
model is not read. Formats: Kaldi's hmm/transition-model.cc and hmm/hmm-topology.cc.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List

import numpy as np

from essence_kd.io.errors import UserError


@dataclass
class TransitionModel:
    """Columns by transition-id, int32 (I + 1,) with -1 at 0, which is no transition-id.

    ``phone``: phone-id; ``state``: HMM state, 0-based; ``pdf``: pdf-id; ``loop``: 1 where the transition leads back to
    its state, else 0.
    """

    phone: np.ndarray
    state: np.ndarray
    pdf: np.ndarray
    loop: np.ndarray

    @property
    def num_ids(self) -> int:
        """How many transition-ids there are; they count from 1."""
        return len(self.pdf) - 1

    @property
    def num_pdfs(self) -> int:
        """The largest pdf-id + 1, Kaldi's NumPdfs()."""
        return int(self.pdf.max()) + 1


class _Binary:
    """Kaldi's basic types, binary: a token ends with a blank, a number follows a byte with its width."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 2

    def token(self) -> str:
        end = self._data.index(b" ", self._at, self._at + 40)
        token, self._at = self._data[self._at:end].decode("ascii"), end + 1
        return token

    def _number(self, kind: str):
        if self._data[self._at] != 4:
            raise ValueError(f"a number of {self._data[self._at]} bytes at byte {self._at}, not of 4")
        value, = struct.unpack_from(kind, self._data, self._at + 1)
        self._at += 5
        return value

    def integer(self) -> int:
        return self._number("<i")

    def real(self) -> float:
        return self._number("<f")

    def _array(self, kind: str, count: int) -> np.ndarray:
        if count < 0:  # for NumPy: all there is
            raise ValueError(f"a vector of {count} numbers")
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at += values.nbytes
        return values

    def integers(self) -> List[int]:
        return self._array("<i4", self.integer()).tolist()

    def vector_length(self) -> int:
        kind = {"FV": "<f4", "DV": "<f8"}[self.token()]
        return len(self._array(kind, self.integer()))


class _Text:
    """The same in text."""

    def __init__(self, text: str):
        self._fields = iter(text.split())

    def token(self) -> str:
        try:
            return next(self._fields)
        except StopIteration:
            raise ValueError("it ends too early") from None

    def integer(self) -> int:
        return int(self.token())

    def vector_length(self) -> int:
        _expect(self, "[")
        return sum(1 for _ in iter(self.token, "]"))


def _expect(reader, *tokens: str) -> str:
    token = reader.token()
    if token not in tokens:
        raise ValueError(f"{token[:40]!r} where {' or '.join(tokens)} should be")
    return token


# A topology: for each HMM state that emits, where its transitions lead.
_Topology = List[List[int]]


def _binary_topology(reader: _Binary) -> Dict[int, _Topology]:
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
                targets.append(reader.integer())
                reader.real()
            entry.append(targets)
        entries.append(entry)
    _expect(reader, "</Topology>")
    return {phone: entries[entry_of[phone]] for phone in phones}


def _text_topology(reader: _Text) -> Dict[int, _Topology]:
    topology: Dict[int, _Topology] = {}
    while _expect(reader, "<TopologyEntry>", "</Topology>") != "</Topology>":
        _expect(reader, "<ForPhones>")
        phones = [int(field) for field in iter(reader.token, "</ForPhones>")]
        entry: _Topology = []
        for token in iter(reader.token, "</TopologyEntry>"):
            if token == "<State>":
                reader.token()
                entry.append([])
            elif token == "<Transition>":
                entry[-1].append(reader.integer())
                reader.token()
            elif token in ("<PdfClass>", "<ForwardPdfClass>", "<SelfLoopPdfClass>"):
                reader.token()
            elif token != "</State>":
                raise ValueError(f"{token[:40]!r} in a topology")
        topology.update((phone, entry) for phone in phones)
    return topology


def read_transition_model(path: str | Path) -> TransitionModel:
    """The transition model of a final.mdl; UserError where the file is missing, cut off or something else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: this model cannot be read") from None
    try:
        return _parse(data)
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: holds no whole transition model of Kaldi's ({error}); name a final.mdl") from None


def _parse(data: bytes) -> TransitionModel:
    if data[:2] == b"\0B":
        reader = _Binary(data)
    else:
        end = data.find(b"</TransitionModel>")
        if end < 0:
            raise ValueError("there is no </TransitionModel>")
        reader = _Text(data[:end + len(b"</TransitionModel>")].decode("ascii"))
    _expect(reader, "<TransitionModel>")
    _expect(reader, "<Topology>")
    topology = _binary_topology(reader) if isinstance(reader, _Binary) else _text_topology(reader)
    apart = _expect(reader, "<Triples>", "<Tuples>") == "<Tuples>"  # the pdf of a self-loop may be another
    rows = [(-1, -1, -1, -1)]
    for _ in range(reader.integer()):
        phone, state, forward = reader.integer(), reader.integer(), reader.integer()
        of_loop = reader.integer() if apart else forward
        if min(phone, state, forward, of_loop) < 0:
            raise ValueError(f"phone {phone}, state {state}, pdfs {forward} and {of_loop}: one is negative")
        for target in topology[phone][state]:
            loop = int(target == state)
            rows.append((phone, state, of_loop if loop else forward, loop))
    _expect(reader, "</Tuples>" if apart else "</Triples>")
    _expect(reader, "<LogProbs>")
    log_probs = reader.vector_length()
    _expect(reader, "</LogProbs>")
    _expect(reader, "</TransitionModel>")
    if log_probs != len(rows):
        raise ValueError(f"{log_probs - 1} probabilities of {len(rows) - 1} transitions")
    if len(rows) == 1:
        raise ValueError("there are no transitions")
    return TransitionModel(*np.array(rows, np.int32).T)
