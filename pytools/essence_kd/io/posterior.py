"""Kaldi's Posterior over pdf-ids: for each frame a list of (pdf-id, weight), read and written without a Python loop.

Binary layout after the utterance id and a blank: ``\\0B``, then cells of five bytes, each the byte 4 and a 32-bit
little-endian value: the number of frames; then for each frame the number of entries n and n times pdf-id (int32),
weight (float32). A frame of k entries takes 5 + 10 k bytes. Where every frame has the same k, one NumPy structured
dtype is the whole codec and a frame range can be cut out of a memory-mapped file.

Compact archives (essence_kd.io.compact) are read by the same functions, told apart by their first bytes.
"""
from __future__ import annotations

import functools
import struct
from typing import Any, Iterable, Iterator

import numpy as np

from essence_kd.io import compact
from essence_kd.io.errors import UserError
from essence_kd.io.kernels import kernels, pointer
from essence_kd.io.objects import int32_array
from essence_kd.io.sources import Mapped, Source, Truncated, guarded, open_object
from essence_kd.io.specifiers import parse_span
from essence_kd.io.tables import ScpTable, TableWriter, read_table

_CELL = np.dtype([("tag", "u1"), ("value", "<i4")])
_ENTRY = np.dtype([("tag_id", "u1"), ("id", "<i4"), ("tag_prob", "u1"), ("prob", "<f4")])
_SMALLEST_NORMAL = 0x00800000  # bit pattern of the smallest normal float32; counts and pdf-ids are below it
_WINDOW = 1 << 16  # bytes looked at first where the length of an utterance is not known


@functools.lru_cache(maxsize=64)
def _frame_dtype(k: int) -> np.dtype:
    """One frame of k entries in Kaldi's binary format."""
    return np.dtype([("tag", "u1"), ("count", "<i4"), ("entries", _ENTRY, (k,))])


class Posterior:
    """The posterior of one utterance in compressed-row form.

    num_frames: T; offsets: int64 (T+1,), the entries of frame t are offsets[t]:offsets[t+1]; ids: int32 (N,) pdf-ids;
    probs: float32 (N,) probabilities (or weights).

    >>> from essence_kd import Posterior
    >>> post = Posterior(offsets=[0, 2, 3], ids=[3, 1, 0], probs=[0.75, 0.25, 1.0])  # two frames
    >>> post.counts().tolist(), post.mass().tolist()
    ([2, 1], [1.0, 1.0])
    >>> ids, probs = post.padded(2)  # (T, 2) each, with 0 where a frame has fewer
    >>> ids.tolist(), probs.tolist()
    ([[3, 1], [0, 0]], [[0.75, 0.25], [1.0, 0.0]])
    """

    __slots__ = ("num_frames", "ids", "probs", "_offsets", "_k")

    def __init__(self, offsets: np.ndarray, ids: np.ndarray, probs: np.ndarray):
        self._offsets: np.ndarray | None = np.ascontiguousarray(offsets, np.int64)
        self.num_frames = len(self._offsets) - 1  # T
        self.ids = np.ascontiguousarray(ids, np.int32)
        self.probs = np.ascontiguousarray(probs, np.float32)
        self._k: int | None = None

    @classmethod
    def from_fixed(cls, ids: np.ndarray, probs: np.ndarray) -> "Posterior":
        """From ids and probs of shape (T, k)."""
        frames, k = ids.shape
        return cls._of(frames, k, np.ascontiguousarray(ids, np.int32).reshape(-1),
                       np.ascontiguousarray(probs, np.float32).reshape(-1))

    @classmethod
    def _of(cls, num_frames: int, k: int, ids: np.ndarray, probs: np.ndarray) -> "Posterior":
        """From flat, contiguous ids (int32) and probs (float32) of num_frames times k entries."""
        made = cls.__new__(cls)
        made.num_frames, made._k, made.ids, made.probs = num_frames, k, ids, probs
        made._offsets = None  # until somebody asks
        return made

    @property
    def offsets(self) -> np.ndarray:
        """The entries of frame t are offsets[t]:offsets[t+1]: int64 (T+1,)."""
        if self._offsets is None:
            self._offsets = np.arange(self.num_frames + 1) * self._k
        return self._offsets

    @property
    def num_entries(self) -> int:
        """N, over all frames."""
        return len(self.ids)

    def counts(self) -> np.ndarray:
        """Entries of each frame: int64 (T,)."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Posterior":
        """These frames ((n,) int from 0 to T - 1, each as often as it is named) in this order. Raises IndexError."""
        counts = self.counts()[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        entries = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Posterior(offsets, self.ids[entries], self.probs[entries])

    def repeated(self, times: int) -> "Posterior":
        """Every frame `times` times, one after the other: (T times, ...), for tools that want the features' rate."""
        return self.take(np.repeat(np.arange(self.num_frames), times))

    def is_fixed(self) -> bool:
        """True when every frame has the same number of entries."""
        if self._k is None:
            counts = self.counts()
            if len(counts) and not (counts == counts[0]).all():
                return False
            self._k = int(counts[0]) if len(counts) else 0
        return True

    def fixed_k(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids (T, k) int32, probs (T, k) float32), views. Raises UserError when k varies over the frames."""
        if not self.is_fixed():
            counts = self.counts()
            raise UserError(f"frames hold from {counts.min()} to {counts.max()} entries where one number is wanted; "
                            f"prune with --select top-k")
        shape = (self.num_frames, self._k)
        return self.ids.reshape(shape), self.probs.reshape(shape)

    def padded(self, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids (T, k) int32, probs (T, k) float32) with pdf-id 0 and probability 0 where a frame has fewer than k.

        k is the longest frame when it is not given. Raises UserError when a frame has more than k entries.
        """
        counts = self.counts()
        longest = int(counts.max()) if len(counts) else 0
        k = longest if k is None else k
        if longest > k:
            raise UserError(f"a frame holds {longest} entries where at most {k} are wanted")
        if self.is_fixed() and self._k == k:
            ids, probs = self.fixed_k()
            return ids.copy(), probs.copy()
        ids = np.zeros((self.num_frames, k), np.int32)
        probs = np.zeros((self.num_frames, k), np.float32)
        there = np.arange(k) < counts[:, None]
        ids[there], probs[there] = self.ids, self.probs
        return ids, probs

    def mass(self) -> np.ndarray:
        """Sum of the probabilities of each frame: float64 (T,)."""
        if self.is_fixed():
            return self.fixed_k()[1].sum(axis=1, dtype=np.float64)
        total = np.concatenate([[0.0], np.cumsum(self.probs, dtype=np.float64)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def as_targets(self, num_pdfs: int | None = None) -> "Posterior":
        """The posterior as selection, mixing, statistics and training take it: a pdf that a frame names several times
        has the sum of its weights, where it comes first. Kaldi's programs add them up, too.

        Raises ValueError naming the frame where a weight is negative or not finite, or a pdf-id none of `num_pdfs`.

        >>> from essence_kd import Posterior
        >>> post = Posterior(offsets=[0, 3], ids=[5, 7, 5], probs=[0.5, 0.25, 0.25]).as_targets()
        >>> post.ids.tolist(), post.probs.tolist()
        ([5, 7], [0.75, 0.25])
        """
        top = 1 << 31 if num_pdfs is None else num_pdfs
        if len(self.ids) and not (self.probs.min() >= 0 and self.probs.max() < np.inf and 0 <= self.ids.min() and
                                  self.ids.max() < top):
            wrong = ~((self.probs >= 0) & (self.probs < np.inf))
            at = int((wrong | (self.ids < 0) | (self.ids >= top)).argmax())
            told = (f"has probability {self.probs[at]:.4g}" if wrong[at] else "is negative" if self.ids[at] < 0
                    else f"where there are {num_pdfs} pdfs")
            frame = np.searchsorted(self.offsets, at, side="right") - 1
            raise ValueError(f"frame {frame}: pdf-id {self.ids[at]} {told}")
        if not self._repeats():
            return self
        rows = np.repeat(np.arange(self.num_frames), self.counts())
        _, first, pdf = np.unique(rows << 32 | self.ids, return_index=True, return_inverse=True)
        totals = np.bincount(pdf.reshape(-1), weights=self.probs)
        order = np.argsort(first)
        counts = np.bincount(rows[first], minlength=self.num_frames)
        return Posterior(np.concatenate([[0], np.cumsum(counts)]), self.ids[first[order]], totals[order])

    def _repeats(self) -> bool:
        """Whether a frame names a pdf twice."""
        offsets = None if self.is_fixed() else self.offsets
        library = kernels()
        if library is not None:
            found = library.repeated_entries(pointer(self.ids), self.num_frames, self._k or 0, pointer(offsets))
            if found >= 0:
                return bool(found)
        if offsets is None:
            ids = np.sort(self.ids.reshape(self.num_frames, self._k), axis=1)
            return bool((ids[:, 1:] == ids[:, :-1]).any())
        cells = np.sort(np.repeat(np.arange(self.num_frames), self.counts()) << 32 | self.ids)
        return bool((cells[1:] == cells[:-1]).any())

    def __getitem__(self, frames: slice) -> "Posterior":
        """The frames of a slice with step 1."""
        start, stop, step = frames.indices(self.num_frames)
        if step != 1:
            raise ValueError("only slices with step 1")
        stop = max(start, stop)
        low, high = self.offsets[start], self.offsets[stop]
        made = Posterior(self.offsets[start:stop + 1] - low, self.ids[low:high], self.probs[low:high])
        made._k = self._k
        return made

    def __repr__(self) -> str:
        return f"Posterior({self.num_frames} frames, {self.num_entries} entries)"


# ---------------------------------------------------------------------------------------------------------- encode

def _header(num_frames: int) -> bytes:
    return b"\0B" + struct.pack("<bi", 4, num_frames)


def encode_fixed(ids: np.ndarray, probs: np.ndarray, scratch: dict | None = None) -> list:
    """Kaldi's bytes for ids and probs of shape (T, k), as buffers.

    `scratch` keeps frames whose tags and counts are filled in, by k, from one call to the next: with it the buffers
    hold until the next call.
    """
    count, k = ids.shape
    frames = None if scratch is None else scratch.get(k)
    if frames is None or len(frames) < count:
        frames = np.empty(max(64, count + count // 4), _frame_dtype(k))
        frames["tag"], frames["count"] = 4, k
        frames["entries"]["tag_id"] = frames["entries"]["tag_prob"] = 4
        if scratch is not None:
            scratch[k] = frames
    frames = frames[:count]
    entries = frames["entries"]
    entries["id"], entries["prob"] = ids, probs
    return [_header(count), memoryview(frames.view(np.uint8))]


def encode_ragged(offsets: np.ndarray, ids: np.ndarray, probs: np.ndarray) -> list:
    """Kaldi's bytes for a posterior in compressed-row form, as buffers."""
    count = len(offsets) - 1
    cells = np.empty(count + 2 * len(ids), _CELL)
    cells["tag"] = 4
    values = np.empty(len(cells), np.int32)
    heads = 2 * offsets[:-1] + np.arange(count)
    values[heads] = np.diff(offsets)
    rest = np.ones(len(cells), bool)
    rest[heads] = False
    values[rest] = np.stack([ids, probs.view(np.int32)], axis=1).reshape(-1)
    cells["value"] = values
    return [_header(count), memoryview(cells.view(np.uint8))]


def _encode_text(post: Posterior) -> bytes:
    """Kaldi's text form: ``[ id prob id prob ] [ ... ]`` on one line, numbers as C's %.7g."""
    shape = "".join("[ " + "%d %.7g " * count + "] " for count in post.counts().tolist()) + "\n"
    numbers: list = [None] * (2 * post.num_entries)
    numbers[0::2], numbers[1::2] = post.ids.tolist(), post.probs.tolist()
    return (shape % tuple(numbers)).encode("ascii")


# ---------------------------------------------------------------------------------------------------------- decode

@functools.lru_cache(maxsize=8)
def _tag_masks(words: int) -> tuple[np.ndarray, np.ndarray]:
    """For 64-bit words over cells of five bytes: the mask of the tag bytes and what they must be."""
    mask = np.zeros(40, np.uint8)
    mask[::5] = 255
    mask = np.tile(mask.view("<u8"), words // 5)
    return mask, mask & np.uint64(0x0404040404040404)


_TAG_WORDS = 5 * 4096  # 160 kB at a time


def _leading_fours(data: np.ndarray) -> int:
    """How many cells of five bytes at the front of `data` (uint8) have the tag 4."""
    cells = len(data) // 5
    whole = len(data) // 40 * 5  # 64-bit words
    words = data[:8 * whole].view("<u8")
    mask, wanted = _tag_masks(_TAG_WORDS)
    found = np.empty(min(whole, _TAG_WORDS), np.uint64)
    start = 0
    while start < whole:
        size = min(_TAG_WORDS, whole - start)
        np.bitwise_and(words[start:start + size], mask[:size], out=found[:size])
        if not (found[:size] == wanted[:size]).all():
            break
        start += size
    first = start * 8 // 5
    size = min(cells - first, _TAG_WORDS * 8 // 5)  # no more than the block that stopped the search, or the rest
    odd = data[5 * first:5 * (first + size):5] != 4
    return first + (int(odd.argmax()) if odd.any() else size)


def _check_entries(ids: np.ndarray, probs: np.ndarray) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < _SMALLEST_NORMAL:
        raise ValueError(f"a pdf-id is {ids.min()}" if ids.min() < 0 else f"a pdf-id is {ids.max()}")
    if not np.isfinite(probs).all():
        raise ValueError("a probability is not a finite number")


def _fixed_frames(data: np.ndarray, k: int) -> Posterior | None:
    """Decodes frames of k entries each; None when the bytes are not that."""
    library = kernels()
    if library is not None:
        count = len(data) // (5 + 10 * k)
        ids, probs = np.empty(count * k, np.int32), np.empty(count * k, np.float32)
        if library.posterior_entries(pointer(data), count, k, None, pointer(ids), pointer(probs)):
            return Posterior._of(count, k, ids, probs)
    frames = data.view(_frame_dtype(k))
    if not (frames["count"] == k).all() or 5 * _leading_fours(data) < len(data):
        return None
    ids = np.ascontiguousarray(frames["entries"]["id"])
    probs = np.ascontiguousarray(frames["entries"]["prob"])
    _check_entries(ids, probs)
    return Posterior.from_fixed(ids, probs)


def _frame_heads(values: np.ndarray, num_frames: int) -> np.ndarray | None:
    """Cell positions of the counts of all frames: int64 (num_frames,); None when they do not all lie in `values`.

    values: int32 (n,), the cells that follow the number of frames. A count is below the smallest normal float and so
    is what follows it (a pdf-id, or the next count): that leaves the counts and, only next to weights of zero, some
    pdf-ids. Which of these candidates are counts follows from the chain of lengths: at once when there are no false
    ones, else by doubling jumps (log2 T steps). Raises ValueError for a broken chain.
    """
    small = values.view(np.uint32) < _SMALLEST_NORMAL
    candidate = small.copy()
    candidate[:-1] &= small[1:]  # after the last cell anything may follow
    heads = np.flatnonzero(candidate)
    if not len(heads) or heads[0] != 0:
        raise ValueError("damaged: a frame does not start with its number of entries")
    targets = heads + 1 + 2 * values[heads].astype(np.int64)
    if len(heads) >= num_frames and (targets[:num_frames - 1] == heads[1:num_frames]).all():
        chain = heads[:num_frames]
    else:
        jump = np.searchsorted(heads, targets)
        hit = jump < len(heads)
        hit[hit] = heads[jump[hit]] == targets[hit]
        jump = np.append(np.where(hit, jump, len(heads)), len(heads))
        steps = np.zeros(1, np.int64)
        while len(steps) < num_frames and steps[-1] < len(heads):
            steps = np.concatenate([steps, jump[steps]])
            jump = jump[jump]
        steps = steps[:num_frames]
        last = steps[steps < len(heads)][-1]
        if steps[-1] == len(heads):
            if targets[last] < len(values):
                raise ValueError("damaged: the lengths of the frames do not add up")
            return None
        chain = heads[steps]
    end = chain[-1] + 1 + 2 * int(values[chain[-1]])
    return chain if end <= len(values) else None


def _varying_frames(source: Any, num_frames: int, guess: int) -> Posterior:
    """Decodes frames of any lengths from a source that stands at the first frame, and consumes them.

    `guess` is the number of bytes that is looked at first.
    """
    size = max(_WINDOW, guess)
    library = kernels()
    while True:
        data = source.peek(size)
        if library is not None and len(data) >= 5 * num_frames:
            offsets = np.empty(num_frames + 1, np.int64)
            end = library.posterior_offsets(pointer(data), len(data), num_frames, pointer(offsets))
            if end >= 0:
                ids, probs = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
                if library.posterior_entries(pointer(data), num_frames, 0, pointer(offsets), pointer(ids),
                                             pointer(probs)):
                    source.skip(end)
                    return Posterior(offsets, ids, probs)
            # what is wrong, or that more bytes are wanted, follows from what comes next
        cells = _leading_fours(data)
        values = np.ascontiguousarray(data[:5 * cells].view(_CELL)["value"])
        heads = _frame_heads(values, num_frames)
        if heads is not None:
            break
        if cells < len(data) // 5:
            raise ValueError("damaged: a number is not marked as 32 bits wide")
        if len(data) < size:
            raise Truncated(f"{source.name}: ends in the middle")
        size *= 2
    counts = values[heads].astype(np.int64)
    end = int(heads[-1] + 1 + 2 * counts[-1])
    rest = np.ones(end, bool)
    rest[heads] = False
    entries = values[:end][rest].reshape(-1, 2)
    ids = np.ascontiguousarray(entries[:, 0])
    probs = np.ascontiguousarray(entries[:, 1]).view(np.float32)
    _check_entries(ids, probs)
    source.skip(5 * end)
    offsets = np.zeros(num_frames + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Posterior(offsets, ids, probs)


def _read_counts(source: Any) -> tuple[int, int]:
    """(number of frames, entries of the first frame) of a binary Posterior; nothing is consumed."""
    head = source.peek(12).tobytes()
    if len(head) < 7:
        raise Truncated(f"{source.name}: ends in the middle")
    tag, num_frames = struct.unpack("<bi", head[2:7])
    if head[2:5] in (b"FM ", b"DM ") or head[2:4] == b"CM":
        raise ValueError("what lies there is a matrix: prune-post makes posteriors of matrices")
    if tag != 4 or num_frames < 0:
        raise ValueError("its header is damaged")
    if num_frames == 0:
        return 0, 0
    if len(head) < 12:
        raise Truncated(f"{source.name}: ends in the middle")
    tag, k = struct.unpack("<bi", head[7:])
    if tag != 4 or k < 0:
        raise ValueError("the header of its first frame is damaged")
    if not source.holds(7 + 5 * num_frames + 10 * k):
        raise Truncated(f"{source.name}: ends in the middle")
    return num_frames, k


def read_posterior(source: Any) -> Posterior:
    """One Posterior from a Source or Mapped that stands behind the utterance id: binary, text, compact.

    Raises UserError, Truncated or ValueError; tables.read_table adds the file and the utterance.
    """
    start = source.peek(3).tobytes()
    if start[:2] != b"\0B":
        return _read_text(source)
    if start[2:] != b"\4" and source.peek(6).tobytes() == compact.MAGIC:
        return Posterior(*compact.read(source))
    num_frames, k = _read_counts(source)
    if num_frames == 0:
        source.skip(7)
        return Posterior(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    size = num_frames * (5 + 10 * k)
    if source.holds(7 + size):
        data = source.peek(7 + size)
        if len(data) == 7 + size:
            post = _fixed_frames(data[7:], k)
            if post is not None:
                source.skip(7 + size)
                return post
    source.skip(7)
    return _varying_frames(source, num_frames, size + size // 4)


def _read_text(source: Any) -> Posterior:
    line = source.readline()
    if not line.endswith(b"\n"):
        raise Truncated(f"{source.name}: ends in the middle")
    tokens = np.array(line.replace(b"]", b" ] ").split(), dtype=np.bytes_)  # Kaldi reads "0.5][ 3", too
    opens, closes = np.flatnonzero(tokens == b"["), np.flatnonzero(tokens == b"]")
    good = len(opens) == len(closes) and len(opens) > 0
    if good:
        sizes = closes - opens - 1
        good = opens[0] == 0 and closes[-1] == len(tokens) - 1 and (opens[1:] == closes[:-1] + 1).all() and \
            (sizes >= 0).all() and (sizes % 2 == 0).all()
    if len(tokens) and not good:
        raise ValueError("not '[ pdf-id prob ... ] [ ... ]'")
    inside = np.ones(len(tokens), bool)
    inside[opens] = inside[closes] = False
    numbers = tokens[inside]
    ids = int32_array([int(token) for token in numbers[0::2].tolist()])
    probs = np.array([float(token) for token in numbers[1::2].tolist()], dtype=np.float32)
    _check_entries(ids, probs)
    return Posterior(np.concatenate([[0], np.cumsum(sizes // 2)]) if len(tokens) else np.zeros(1), ids, probs)


def cut_posterior(post: Posterior, span: str) -> Posterior:
    """The frames of a range ``a:b`` of an scp line (both ends inclusive). Raises ValueError."""
    return post[parse_span(span, post.num_frames, "frames")]


def read_posteriors(rspecifier: str) -> Iterator[tuple[str, Posterior]]:
    """Every (utterance, Posterior) of a table: Kaldi binary, Kaldi text, or compact.

    Raises UserError for what cannot be read. `PosteriorTable` reads single utterances of an scp file.

    >>> from essence_kd import read_posteriors
    >>> for utt, post in read_posteriors("scp:exp/post.scp"):
    ...     print(utt, post.num_frames, "frames:", post.ids[:2], post.probs[:2])
    utt1 16 frames: [2 5] [0.75 0.25]
    utt2 12 frames: [5 2] [0.75 0.25]
    """
    return read_table(rspecifier, read_posterior, cut_posterior, "posterior")


class PosteriorTable(ScpTable):
    """Random access through an scp file: ``table[utt]`` is a Posterior; ``table.frames(utt, start, stop)`` a part.

    Archives are memory-mapped. A frame range of an utterance with a fixed number of entries (Kaldi binary or
    compact) touches only those frames and, in Kaldi's format, the counts of the frames before them.
    """

    what = "posterior"
    _read = staticmethod(read_posterior)
    _cut = staticmethod(cut_posterior)

    def frames(self, utt: str, start: int, stop: int) -> Posterior:
        """Frames start..stop-1 (0 <= start <= stop <= T) of an utterance. Raises UserError when they do not exist."""
        file, span = self.line(utt)
        if span is None:
            with open_object(file, self._maps, utt, self.name) as source:
                if isinstance(source, Mapped):
                    post = guarded(lambda mapped: self._part(mapped, start, stop), source, utt, self.what)
                    if post is not None:
                        return post
        post = self[utt]
        if not 0 <= start <= stop <= post.num_frames:
            raise UserError(f"{self.name}: utterance {utt}: frames {start}:{stop} of {post.num_frames}")
        return post[start:stop]

    @staticmethod
    def _part(source: Source | Mapped, start: int, stop: int) -> Posterior | None:
        """The frames of an utterance with a fixed stride; None when it has none or the range is outside."""
        head = source.peek(6).tobytes()
        if head[:2] != b"\0B" or start < 0 or stop < start:
            return None
        if head == compact.MAGIC:
            part = compact.read_part(source, start, stop)
            return None if part is None else Posterior(*part)
        num_frames, k = _read_counts(source)
        stride = 5 + 10 * k
        if stop > num_frames or not source.holds(7 + num_frames * stride):
            return None
        data = source.peek(7 + stop * stride)[7:]
        if not (data.view(_frame_dtype(k))["count"] == k).all():
            return None
        post = _fixed_frames(data[start * stride:], k)
        if post is None:
            raise ValueError("damaged: a number is not marked as 32 bits wide")
        source.skip(7 + stop * stride)
        return post


# ----------------------------------------------------------------------------------------------------------- write

def write_posteriors(wspecifier: str, posteriors: Iterable[tuple[str, Any]], *, num_pdfs: int | None = None) -> int:
    """Writes (utterance, Posterior or Essence) pairs as a table, whole or not at all; how many there were.

    Of a posterior int (T+1,) offsets, int (N,) ids and float (N,) probs are written. ``num_pdfs`` as in
    `PosteriorWriter`. Raises UserError for what is no posterior and what cannot be written.

    >>> import numpy as np
    >>> from essence_kd import Posterior, read_posteriors, write_posteriors
    >>> post = Posterior.from_fixed(np.array([[3, 1], [1, 0]]), np.array([[0.75, 0.25], [0.5, 0.5]]))
    >>> write_posteriors("ark,scp:new.ark,new.scp", [("utt1", post), ("utt2", post[:1])])
    2
    >>> [(utt, post.ids.tolist()) for utt, post in read_posteriors("scp:new.scp")]
    [('utt1', [3, 1, 1, 0]), ('utt2', [3, 1])]
    """
    written = 0
    with PosteriorWriter(wspecifier, num_pdfs=num_pdfs) as writer:
        for written, (utt, post) in enumerate(posteriors, 1):
            writer.write(utt, Posterior(post.offsets, post.ids, post.probs))
    return written


class PosteriorWriter(TableWriter):
    """Writes posteriors: a context manager over a wspecifier (``ark:``, ``ark,t:``, ``ark,scp:``, pipes).

    ``compact:ark,scp:A,S`` writes the compact form instead of Kaldi's; then `num_pdfs` fixes the widths of its fields
    for the whole archive (else they follow from each utterance's largest pdf-id).
    """

    def __init__(self, wspecifier: str, *, num_pdfs: int | None = None):
        self.compact = wspecifier.startswith("compact:")
        self._num_pdfs = num_pdfs
        self._scratch: dict[int, np.ndarray] = {}
        super().__init__(wspecifier[len("compact:"):] if self.compact else wspecifier)
        if self.compact and self.text:
            self.abort()
            raise UserError(f"'{wspecifier}': a compact archive has no text form")

    def write(self, utt: str, ids: Any, probs: Any = None) -> None:
        """Writes one utterance: ids int (T, k) and probs float (T, k), or a Posterior.

        Raises UserError for shapes that differ, negative pdf-ids, and probabilities that are not finite.
        """
        if isinstance(ids, Posterior):
            if not ids.is_fixed():
                self.write_ragged(utt, ids.offsets, ids.ids, ids.probs)
                return
            ids, probs = ids.fixed_k()
        ids, probs = np.asarray(ids), np.asarray(probs)
        if ids.ndim != 2 or ids.shape != probs.shape:
            raise UserError(f"{self._ark}: utterance {utt}: ids {ids.shape} and probabilities {probs.shape} "
                            f"are not both (frames, k)")
        ids, probs = self._checked(utt, ids, probs)
        if self.text or self.compact:
            self._put_other(utt, Posterior.from_fixed(ids, probs))
        else:
            self.put(utt, encode_fixed(ids, probs, self._scratch))

    def write_ragged(self, utt: str, offsets: Any, ids: Any, probs: Any) -> None:
        """Writes one utterance in compressed-row form: offsets (T+1,), ids (N,), probs (N,). Raises UserError."""
        offsets, ids, probs = np.asarray(offsets), np.asarray(ids), np.asarray(probs)
        if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any() or \
                ids.shape != (int(offsets[-1]),) or probs.shape != ids.shape:
            raise UserError(f"{self._ark}: utterance {utt}: offsets, ids {ids.shape} and probabilities {probs.shape} "
                            f"do not describe one posterior")
        ids, probs = self._checked(utt, ids, probs)
        post = Posterior(offsets, ids, probs)
        if self.text or self.compact:
            self._put_other(utt, post)
        else:
            self.put(utt, encode_ragged(post.offsets, post.ids, post.probs))

    def _put_other(self, utt: str, post: Posterior) -> None:
        if self.text:
            self.put(utt, [_encode_text(post)])
            return
        try:
            self.put(utt, compact.encode(post.offsets, post.ids, post.probs, num_pdfs=self._num_pdfs))
        except ValueError as error:
            raise UserError(f"{self._ark}: utterance {utt}: {error}") from error

    def _checked(self, utt: str, ids: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if ids.size and (ids.dtype.kind not in "iu" or ids.max() >= 2**31):
            raise UserError(f"{self._ark}: utterance {utt}: pdf-ids are not 32-bit integers")
        ids, probs = np.ascontiguousarray(ids, np.int32), np.ascontiguousarray(probs, np.float32)
        try:
            _check_entries(ids, probs)
            if self._num_pdfs is not None and ids.size and ids.max() >= self._num_pdfs:
                raise ValueError(f"pdf-id {ids.max()} where there are {self._num_pdfs} pdfs")
        except ValueError as error:
            raise UserError(f"{self._ark}: utterance {utt}: {error}") from error
        return ids, probs
