"""Finite-state transducers as arrays, and OpenFst's binary files of them (tropical semiring, ``standard`` arcs).

Reading and writing go through NumPy, so a graph of millions of arcs costs a second and no Python objects. Kaldi,
kaldifst and OpenFst's own tools read what :func:`write_fst` writes, and :func:`read_fst` reads theirs
(types ``vector`` and ``const``).
"""
from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write

_MAGIC = 2125659606
_EXPANDED_MUTABLE = 3  # property bits that every vector FST has
_HAS_ISYMBOLS, _HAS_OSYMBOLS, _IS_ALIGNED = 1, 2, 4


@dataclass
class Fst:
    """A transducer of A arcs and S states; arcs are grouped by source state.

    src, dst, ilabel, olabel: int32 (A,); weight: float32 (A,) costs; final: float32 (S,), +inf where not final;
    start: a state, or -1 for the empty transducer.
    """

    src: np.ndarray
    dst: np.ndarray
    ilabel: np.ndarray
    olabel: np.ndarray
    weight: np.ndarray
    final: np.ndarray
    start: int = 0

    @property
    def num_states(self) -> int:
        """How many states there are."""
        return len(self.final)

    @property
    def num_arcs(self) -> int:
        """How many arcs there are."""
        return len(self.src)


def make_fst(src, dst, ilabel, olabel, weight, final, start: int = 0) -> Fst:
    """An Fst of the given columns, its arcs put in order of source state (ties stay as given)."""
    src = np.asarray(src, dtype=np.int32)
    order = np.argsort(src, kind="stable")
    columns = [np.asarray(column, dtype=dtype)[order] for column, dtype in
               ((dst, np.int32), (ilabel, np.int32), (olabel, np.int32), (weight, np.float32))]
    dst, ilabel, olabel, weight = columns
    return Fst(src[order], dst, ilabel, olabel, weight, np.asarray(final, dtype=np.float32), int(start))


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (count[0] numbers), first[1], ..."""
    return np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())


def sort_arcs(fst: Fst, by: str = "ilabel") -> Fst:
    """The same transducer with each state's arcs in order of ``ilabel`` or ``olabel`` (ties: the other label)."""
    first, second = (fst.ilabel, fst.olabel) if by == "ilabel" else (fst.olabel, fst.ilabel)
    order = np.lexsort((second, first, fst.src))
    return Fst(fst.src[order], fst.dst[order], fst.ilabel[order], fst.olabel[order], fst.weight[order],
               fst.final, fst.start)


def _string(text: str) -> bytes:
    return struct.pack("<i", len(text)) + text.encode("ascii")


def write_fst(path: str | Path, fst: Fst) -> None:
    """Write an OpenFst binary file (type ``vector``), whole or not at all."""
    states, arcs = fst.num_states, fst.num_arcs
    counts = np.bincount(fst.src, minlength=states).astype(np.int64)
    first_arc = np.concatenate([[0], np.cumsum(counts)[:-1]]) if states else np.zeros(0, dtype=np.int64)
    words = np.empty(3 * states + 4 * arcs, dtype="<u4")  # a state: final, count (64 bits); an arc: four words
    at_state = 3 * np.arange(states) + 4 * first_arc
    words[at_state] = fst.final.astype("<f4").view("<u4")
    words[at_state + 1] = counts.astype("<u4")
    words[at_state + 2] = 0
    at_arc = 3 * (fst.src.astype(np.int64) + 1) + 4 * np.arange(arcs)
    words[at_arc] = fst.ilabel.astype("<i4").view("<u4")
    words[at_arc + 1] = fst.olabel.astype("<i4").view("<u4")
    words[at_arc + 2] = fst.weight.astype("<f4").view("<u4")
    words[at_arc + 3] = fst.dst.astype("<i4").view("<u4")
    header = (struct.pack("<i", _MAGIC) + _string("vector") + _string("standard")
              + struct.pack("<iiQqqq", 2, 0, _EXPANDED_MUTABLE, fst.start, states, arcs))
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as stream:
            stream.write(header)
            stream.write(words.tobytes())


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    length, = struct.unpack_from("<i", data, at)
    if not 0 <= length <= 256:
        raise ValueError("no OpenFst header")
    return data[at + 4:at + 4 + length].decode("ascii"), at + 4 + length


def _skip_symbols(data: bytes, at: int) -> int:
    """Past a symbol table that is stored in the file."""
    magic, = struct.unpack_from("<i", data, at)
    if magic != 2125658996:
        raise ValueError("broken symbol table")
    _, at = _read_string(data, at + 4)
    _, count = struct.unpack_from("<qq", data, at)
    at += 16
    for _ in range(count):
        length, = struct.unpack_from("<i", data, at)
        at += 4 + length + 8
    return at


def read_fst(path: str | Path) -> Fst:
    """Read an OpenFst binary file of type ``vector`` or ``const`` with ``standard`` arcs.

    Raises UserError when it is missing, truncated or of another kind.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: this transducer cannot be read") from None
    try:
        return _parse_fst(data)
    except (struct.error, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a whole OpenFst file ({error}); make it again") from None


def _parse_fst(data: bytes) -> Fst:
    magic, = struct.unpack_from("<i", data, 0)
    if magic != _MAGIC:
        raise ValueError("it does not begin as an OpenFst file does")
    kind, at = _read_string(data, 4)
    arc_kind, at = _read_string(data, at)
    version, flags, _, start, states, arcs = struct.unpack_from("<iiQqqq", data, at)
    at += 40
    if arc_kind != "standard" or kind not in ("vector", "const"):
        raise ValueError(f"type {kind!r}, arcs {arc_kind!r}: only vector and const of standard arcs are read")
    for flag in (_HAS_ISYMBOLS, _HAS_OSYMBOLS):
        if flags & flag:
            at = _skip_symbols(data, at)
    if kind == "const":
        if states < 0 or arcs < 0:
            raise ValueError("a negative number of states or arcs")
        aligned = bool(flags & _IS_ALIGNED) or version == 1
        at = -(-at // 16) * 16 if aligned else at
        rows = np.frombuffer(data, dtype="<u4", count=5 * states, offset=at).reshape(states, 5)
        at += 20 * states
        at = -(-at // 16) * 16 if aligned else at
        cells = np.frombuffer(data, dtype="<u4", count=4 * arcs, offset=at).reshape(arcs, 4)
        counts, final = rows[:, 2], rows[:, 0]
    else:  # the header may not know the counts (files that were written to a pipe)
        rest = np.frombuffer(data, dtype="<u4", count=(len(data) - at) // 4, offset=at)
        lengths: list = []
        unpack, here = struct.Struct("<Q").unpack_from, at
        while here < len(data) if states < 0 else len(lengths) < states:
            count, = unpack(data, here + 4)
            lengths.append(count)
            here += 12 + 16 * count
        if here > len(data):
            raise ValueError("it ends too early")
        counts = np.array(lengths, dtype=np.int64)
        states, arcs = len(counts), int(counts.sum())
        at_state = 3 * np.arange(states) + 4 * (np.cumsum(counts) - counts)
        final = rest[at_state]
        is_arc = np.ones(3 * states + 4 * arcs, dtype=bool)
        is_arc[(at_state[:, None] + np.arange(3)).ravel()] = False
        cells = rest[:len(is_arc)][is_arc].reshape(arcs, 4)
    if int(counts.sum(dtype=np.int64)) != arcs:
        raise ValueError("its counts disagree")
    src = np.repeat(np.arange(states, dtype=np.int32), counts.astype(np.int64))
    if not -1 <= start < states or arcs and cells[:, 3].max() >= states:
        raise ValueError("an arc leads to a state that is not there")
    column = [np.ascontiguousarray(cells[:, i]) for i in range(4)]
    return Fst(src, column[3].view("<i4"), column[0].view("<i4"), column[1].view("<i4"), column[2].view("<f4"),
               np.ascontiguousarray(final).view("<f4"), int(start))


def to_kaldifst(fst: Fst):
    """The same transducer as a ``kaldifst.StdVectorFst``."""
    import kaldifst

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.fst")
        write_fst(path, fst)
        return kaldifst.StdVectorFst.read(path)


def from_kaldifst(fst) -> Fst:
    """The arrays of a ``kaldifst.StdVectorFst``. Raises UserError as ``written`` does."""
    import kaldifst

    with written(kaldifst.StdConstFst(fst)) as path:  # const: read without a loop over states
        return read_fst(path)


@contextlib.contextmanager
def written(fst) -> Iterator[str]:
    """The path of a temporary file with what an object of kaldifst writes. Raises UserError where the disk is full."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.fst")
        if not fst.write(path):
            raise UserError(f"{path}: cannot be written; is that folder full? TMPDIR names another one")
        yield path
