"""The compact archive: the same posteriors in 3 bytes per entry and 2 per frame, for large corpora.

One utterance is, behind its id and a blank (all numbers little-endian):

    6 bytes  MAGIC, ``\\0BEPC1``
    4        CRC-32 of everything behind this field
    1        layout: 0 = every frame has k entries; 1, 2 = a count of 1 or 2 bytes per frame
    1        bits of a pdf-id (w)
    1        bytes of an entry (b: 3 or 4)
    1        0
    4        k (layout 0; else 0)
    4        T, the number of frames
    8        N, the number of entries
    T x layout   counts
    T x 2    mass of each frame, float16
    N x 2    low 16 bits of the entries
    N x (b-2)  high bits of the entries

An entry is pdf-id + 2^w * code. The code is the probability's logarithm against the largest of its frame, in equal
steps: code c < 2^p - 1 (p = 8 b - w) stands for r = 2^(-20 c / (2^p - 2)), the highest code for zero. The reader gives
mass * r / (sum of the r of the frame), so that every frame keeps its mass. With h = 10 ln 2 / (2^p - 2) the largest
error of ln r, a probability of at least 2^-20 of its frame's largest comes back within a factor of exp(2 h) (times
1 + 2^-11 for the mass), and one below it within 2^-20 of the largest. docs/formats.md has the table.
"""
from __future__ import annotations

import functools
import struct
import zlib
from typing import Any

import numpy as np

MAGIC = b"\0BEPC1"
RANGE_BITS = 20  # probabilities down to 2^-20 of the frame's largest are told apart
_USUAL_PDFS = 1 << 14  # assumed where the number is not known, unless a pdf-id is larger
_HEADER = struct.Struct("<BBBBIIQ")
_START = len(MAGIC) + 4  # bytes before the header: magic and checksum


def widths(num_pdfs: int) -> tuple[int, int]:
    """(bits of a pdf-id, bytes of an entry): 8 bits or more; 3 bytes up to 65,536 pdfs. Raises ValueError over 2^24."""
    bits = max(8, (num_pdfs - 1).bit_length())
    if bits > 24:
        raise ValueError(f"{num_pdfs} pdfs are too many for a compact archive")
    return bits, 3 if bits <= 16 else 4


def error_bound(num_pdfs: int) -> float:
    """The largest relative error of a probability that is at least 2^-20 of its frame's largest."""
    bits, width = widths(num_pdfs)
    half = RANGE_BITS / 2 * np.log(2) / (2 ** (8 * width - bits) - 2)
    return float(np.exp(2 * half) * (1 + 2.0 ** -11) - 1)


@functools.lru_cache(maxsize=8)
def _ratios(code_bits: int) -> np.ndarray:
    """float32 (2^code_bits,): the ratio to the frame's largest that each code stands for."""
    levels = 2 ** code_bits - 1
    table = np.exp2(-RANGE_BITS * np.arange(levels + 1) / (levels - 1)).astype(np.float32)
    table[-1] = 0
    return table


def _frame_reduce(function: np.ufunc, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """`function` over the entries of each frame, 0 for frames without any: (T,)."""
    out = np.zeros(len(offsets) - 1, values.dtype)
    filled = offsets[1:] > offsets[:-1]
    if filled.all():
        return function.reduceat(values, offsets[:-1]) if len(out) else out
    if filled.any():
        out[filled] = function.reduceat(values, offsets[:-1][filled])
    return out


def _spread(per_frame: np.ndarray, offsets: np.ndarray, k: int | None) -> np.ndarray:
    """One value per frame -> one value per entry."""
    return np.repeat(per_frame, k if k is not None else np.diff(offsets))


def _codes(probs: np.ndarray, largest: np.ndarray, levels: int) -> np.ndarray:
    """uint32 codes of probabilities against the largest of their frames: 0 .. levels - 1, and `levels` for zero."""
    codes = probs / np.maximum(largest, np.float32(1e-45))
    with np.errstate(divide="ignore"):
        np.log2(codes, out=codes)
    codes *= np.float32(-(levels - 1) / RANGE_BITS)
    np.rint(codes, out=codes)
    np.minimum(codes, np.float32(levels - 1), out=codes)
    codes += probs == 0
    return codes.astype(np.uint32)


def encode(offsets: np.ndarray, ids: np.ndarray, probs: np.ndarray, *, num_pdfs: int | None = None) -> list:
    """The bytes of one utterance, as buffers: offsets int64 (T+1,), ids int32 (N,), probs float32 (N,) >= 0.

    Raises ValueError for negative probabilities, a mass above 65,504, and a pdf-id that `num_pdfs` does not allow.
    """
    if len(probs) and probs.min() < 0:
        raise ValueError("a compact archive cannot hold negative weights")
    top = int(ids.max()) if len(ids) else 0
    if num_pdfs is not None and top >= num_pdfs:
        raise ValueError(f"pdf-id {top} where there are {num_pdfs} pdfs")
    id_bits, width = widths(max(_USUAL_PDFS, top + 1) if num_pdfs is None else num_pdfs)
    counts = np.diff(offsets)
    count = len(counts)
    most = int(counts.max()) if count else 0
    fixed = bool((counts == most).all())
    k = most if fixed else None
    if most > 65535:
        raise ValueError(f"a frame of {most} entries is too long for a compact archive")
    levels = 2 ** (8 * width - id_bits) - 1
    mass = _frame_reduce(np.add, probs, offsets)
    largest = _frame_reduce(np.maximum, probs, offsets)
    if count and mass.max() > 65504:
        raise ValueError("the weights of a frame are too large for a compact archive")
    codes = _codes(probs, _spread(largest, offsets, k), levels)
    entries = ids.view(np.uint32) | codes << np.uint32(id_bits)
    layout = 0 if fixed else 1 if most < 256 else 2
    body = [b"" if fixed else counts.astype("u1" if layout == 1 else "<u2").tobytes(),
            mass.astype("<f2").tobytes(), entries.astype("<u2").tobytes(),
            (entries >> np.uint32(16)).astype("u1" if width == 3 else "<u2").tobytes()]
    header = _HEADER.pack(layout, id_bits, width, 0, most if fixed else 0, count, len(ids))
    checksum = zlib.crc32(header)
    for part in body:
        checksum = zlib.crc32(part, checksum)
    return [MAGIC + struct.pack("<I", checksum) + header, *body]


def _read_header(source: Any) -> tuple[int, int, int, int, int, int, int]:
    """(layout, bits of an id, bytes of an entry, k, T, N, size of the whole record); nothing is consumed."""
    head = source.peek(_START + _HEADER.size).tobytes()
    if len(head) < _START + _HEADER.size:
        raise ValueError("the compact posterior is cut short")
    layout, id_bits, width, zero, k, count, total = _HEADER.unpack(head[_START:])
    size = len(head) + count * (layout + 2) + total * width
    if layout > 2 or zero or not 8 <= id_bits <= 24 or width != widths(1 << id_bits)[1] or \
            k > 65535 or (layout == 0 and total != count * k) or not source.holds(size):
        raise ValueError("its compact header is damaged or the archive is cut short")
    return layout, id_bits, width, k, count, total, size


def _decode(offsets: np.ndarray, k: int | None, mass: np.ndarray, low: np.ndarray, high: np.ndarray,
            id_bits: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, ids and probabilities of the entries of some frames. Raises ValueError."""
    entries = low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)
    ids = (entries & np.uint32(2 ** id_bits - 1)).view(np.int32)
    ratios = _ratios(8 * width - id_bits).take(entries >> np.uint32(id_bits))
    sums = _frame_reduce(np.add, ratios, offsets)
    mass = mass.astype(np.float32)
    if not (mass >= 0).all() or not (mass < np.inf).all():
        raise ValueError("the mass of a frame is negative or not a finite number")
    scale = np.divide(mass, sums, out=np.zeros(len(sums), np.float32), where=sums > 0)
    ratios *= _spread(scale, offsets, k)
    return offsets, ids, ratios


def read(source: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One utterance from a source that stands at MAGIC: offsets int64, ids int32, probs float32. Raises ValueError."""
    layout, id_bits, width, k, count, total, size = _read_header(source)
    record = source.peek(size)
    if len(record) < size:
        raise ValueError("the compact posterior is cut short")
    if zlib.crc32(record[_START:]) != struct.unpack("<I", record[6:10].tobytes())[0]:
        raise ValueError("its checksum is wrong: the archive is damaged")
    place = _START + _HEADER.size
    if layout:
        counts = record[place:place + layout * count].view("u1" if layout == 1 else "<u2")
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        if offsets[-1] != total:
            raise ValueError("its counts do not add up: the archive is damaged")
        place += layout * count
    else:
        offsets = np.arange(count + 1, dtype=np.int64) * k
    mass = record[place:place + 2 * count].view("<f2")
    place += 2 * count
    low = record[place:place + 2 * total].view("<u2")
    high = record[place + 2 * total:].view("u1" if width == 3 else "<u2")
    found = _decode(offsets, None if layout else k, mass, low, high, id_bits, width)
    source.skip(size)
    return found


def read_part(source: Any, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Frames start..stop-1 of an utterance, without a look at its checksum; None when k varies or there are fewer."""
    layout, id_bits, width, k, count, total, size = _read_header(source)
    if layout or stop > count:
        return None
    record = source.peek(size)
    place = _START + _HEADER.size
    mass = record[place:place + 2 * count].view("<f2")[start:stop]
    place += 2 * count
    low = record[place:place + 2 * total].view("<u2")[start * k:stop * k]
    high = record[place + 2 * total:].view("u1" if width == 3 else "<u2")[start * k:stop * k]
    source.skip(size)
    return _decode(np.arange(stop - start + 1, dtype=np.int64) * k, k, mass, low, high, id_bits, width)


class Information:
    """How many bits an entry needs at the compact archive's precision: entropies counted over an archive.

    Entries are taken in the order of descending probability. For pdf-ids it counts (a) each alone, and (b) each by
    where it stood in the frame before (its rank there, given its rank here), alone where it is new; for probabilities
    the difference of the code to that of the entry before it, given the rank. (b) and the codes together are what
    an adaptive arithmetic coder with these contexts would come to. Counts, not a proof: a better model needs less.
    """

    def __init__(self, num_pdfs: int, k: int):
        """`k`: entries of the longest frame."""
        id_bits, width = widths(num_pdfs)
        self.num_pdfs, self._k, self._levels = num_pdfs, k, 2 ** (8 * width - id_bits) - 1
        self._ids = np.zeros(num_pdfs, np.int64)
        self._new = np.zeros(num_pdfs, np.int64)
        self._ranks = np.zeros((k, k + 1), np.int64)
        self._steps = np.zeros((k, self._levels + 1), np.int64)

    def add(self, ids: np.ndarray, probs: np.ndarray, counts: np.ndarray) -> None:
        """Counts an utterance: ids and probs (T, k) padded, of which frame t uses the first counts[t]."""
        there = np.arange(self._k) < counts[:, None]
        order = np.argsort(np.where(there, -probs, 1), axis=1, kind="stable")
        ids = np.where(there, np.take_along_axis(ids, order, 1), -1)
        probs = np.where(there, np.take_along_axis(probs, order, 1), 0)
        self._ids += np.bincount(ids[there], minlength=self.num_pdfs)
        before = np.full_like(ids, -2)
        before[1:] = ids[:-1]
        match = ids[:, :, None] == before[:, None, :]  # (T, rank here, rank before)
        rank = np.where(match.any(2), match.argmax(2), self._k)
        here = np.broadcast_to(np.arange(self._k), rank.shape)[there]
        np.add.at(self._ranks, (here, rank[there]), 1)
        self._new += np.bincount(ids[there & (rank == self._k)], minlength=self.num_pdfs)
        codes = _codes(probs.astype(np.float32), probs[:, :1].astype(np.float32), self._levels).astype(np.int64)
        np.add.at(self._steps, (here, np.diff(codes, axis=1, prepend=0)[there]), 1)

    def report(self) -> dict[str, float]:
        """Bits an entry: id_flat, id_alone, id_given_frame_before, probability, total; and the number of entries."""
        entries = int(self._ids.sum())
        share = 1 / max(1, entries)
        ranks = sum(_total_bits(row) for row in self._ranks) + _total_bits(self._new)
        codes = sum(_total_bits(row) for row in self._steps)
        return {"entries": entries, "id_flat": float(np.log2(self.num_pdfs)),
                "id_alone": _total_bits(self._ids) * share, "id_given_frame_before": ranks * share,
                "probability": codes * share, "total": (ranks + codes) * share}


def _total_bits(counts: np.ndarray) -> float:
    """Bits of all the symbols counted, each at the logarithm of its relative frequency."""
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * np.log2(counts.sum() / counts)).sum())
