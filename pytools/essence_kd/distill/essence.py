"""Selection of the essence of a posterior, and the rules for the mass that is left out.

Legend: T frames, C pdfs, k entries a frame. A posterior is a row of C probabilities; its essence is a few
(pdf-id, probability) pairs, ordered by falling probability, ties by rising pdf-id. Values are compared as float32,
the type in which they are stored.

The definition of every rule is `reference_select`, a plain loop over frames. What `select` does instead: a frame is
cut into blocks of columns, the k-th largest of the blocks' maxima is a bound that at least k elements reach and few
others do, and only those few are looked at one by one. The maxima cost one pass over the memory, the rest does not
depend on C. The result is the same, ties included.

The pass is done by compiled kernels (io/kernels.c) where there are any, by NumPy where there are none, and NumPy
always has the last word on a row that the kernels refuse: it says what is wrong with it.
"""
from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from essence_kd.io.kernels import kernels, pointer
from essence_kd.io.objects import StoredMatrix

RULES = ("top-k", "top-p", "min-post", "random-prune", "agree")
MASS_RULES = ("renorm", "keep", "residual")
KINDS = ("prob", "log", "logit")
SUM_TOLERANCE = 0.01  # a row of probabilities may miss 1 by this much (compressed archives do)

_ROWS = 1 << 18  # elements of a block of rows: 1 MB, half of a core's second-level cache
_MANY_ROWS = 1 << 20  # the same for kernels, which look at one row after the other
_STORED_ROWS = 1 << 26  # the same for kernels that read the rows from a file
_LARGEST = float(np.finfo(np.float32).max)

Matrix = Union[np.ndarray, StoredMatrix]


class FrameError(ValueError):
    """A frame that is no posterior: ``frame`` (0-based) and what is wrong with it."""

    def __init__(self, frame: int, reason: str):
        super().__init__(f"frame {frame}: {reason}")
        self.frame = frame
        self.reason = reason


@dataclass
class EssenceSettings:
    """What to keep of a posterior (conf/essence.yaml)."""

    select: str = "top-k"  # top-k, top-p, min-post, random-prune, agree
    top_k: int = 20  # classes a frame (top-k); each teacher's own best (agree)
    top_p: float = 0.95  # the fewest classes whose sum reaches this (top-p)
    max_k: int = 100  # but never more than this many (top-p)
    min_post: float = 0.01  # the threshold of min-post and random-prune
    agree: int = 2  # how many teachers must hold a class among their own best (agree)
    mass: str = "renorm"  # renorm, keep, residual
    temperature: float = 1.0  # of the stored posterior
    seed: int = 0  # of random-prune
    soft_weight: float = 0.9  # of the soft target, where hard and soft are mixed

    def check(self) -> None:
        """Raises ValueError, naming the field, for a value that has no meaning."""
        for name, ok, wants in (
                ("select", self.select in RULES, f"one of {', '.join(RULES)}"),
                ("mass", self.mass in MASS_RULES, f"one of {', '.join(MASS_RULES)}"),
                ("top_k", self.top_k >= 1, "1 or more"),
                ("max_k", self.max_k >= 1, "1 or more"),
                ("agree", self.agree >= 1, "1 or more"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
                ("min_post", 1e-30 <= self.min_post <= 1, "at least 1e-30 and at most 1"),
                ("temperature", 0 < self.temperature < float("inf"), "above 0"),
                ("seed", self.seed >= 0, "0 or more"),
                ("soft_weight", 0 <= self.soft_weight <= 1, "from 0 to 1")):
            if not ok:
                raise ValueError(f"{name} must be {wants}, not {getattr(self, name)}")


class Essence(NamedTuple):
    """The kept entries of T frames: frame t has entries offsets[t] to offsets[t + 1]."""

    offsets: np.ndarray  # (T + 1,) int64
    ids: np.ndarray  # (n,) int32
    probs: np.ndarray  # (n,) float32, after the mass rule
    kept: np.ndarray  # (T,) float32: mass of the entries before the mass rule

    def fixed(self) -> Optional[Tuple[np.ndarray, np.ndarray]]:
        """(ids (T, k), probs (T, k)) when every frame has the same number of entries, else None."""
        counts = np.diff(self.offsets)
        if len(counts) == 0 or (counts != counts[0]).any():
            return None
        return self.ids.reshape(len(counts), -1), self.probs.reshape(len(counts), -1)


# ------------------------------------------------------------------------------------------- the plain definition

def reference_select(probs: np.ndarray, settings: EssenceSettings, utt: str = "") -> List[List[Tuple[int, float]]]:
    """The definition of every selection rule over one posterior: (T, C) float32 -> a list of entries a frame.

    Probabilities before the mass rule, save that random-prune has changed what it kept. A rule that would leave a
    frame without entries keeps its largest.
    """
    frames = []
    starts = frame_uniforms(len(probs), settings.seed, utt) if settings.select == "random-prune" else None
    for t, row in enumerate(probs):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        if settings.select == "top-k":
            entries = [(c, float(row[c])) for c in order[:settings.top_k]]
        elif settings.select == "top-p":
            entries, mass = [], 0.0
            for c in order[:settings.max_k]:
                entries.append((c, float(row[c])))
                mass += float(row[c])
                if mass >= settings.top_p:
                    break
        elif settings.select == "min-post":
            entries = [(c, float(row[c])) for c in order if row[c] >= np.float32(settings.min_post)]
        else:
            # systematic sampling: one uniform start a frame, then a mark every `threshold` along the running sum of
            # the small values; a value is kept for each mark that falls on it, so with probability value / threshold
            threshold = np.float32(settings.min_post)
            position, entries = float(starts[t]), []
            for c, value in enumerate(row):
                if value >= threshold:
                    entries.append((c, float(value)))
                else:
                    before = np.floor(position)
                    position += float(value) / float(threshold)
                    if np.floor(position) > before:
                        entries.append((c, float(threshold)))
            entries.sort(key=lambda entry: (-entry[1], entry[0]))
        frames.append(entries or [(order[0], float(row[order[0]]))])
    return frames


def reference_agree(teachers: Sequence[np.ndarray], combined: np.ndarray, settings: EssenceSettings) -> list:
    """The definition of ``agree``: classes that at least ``agree`` teachers hold in their own top-k, at the combined
    posterior's value; a frame without agreement keeps the combined posterior's largest."""
    frames = []
    for t, row in enumerate(combined):
        votes = [0] * len(row)
        for teacher in teachers:
            for c in sorted(range(len(row)), key=lambda c: (-teacher[t][c], c))[:settings.top_k]:
                votes[c] += 1
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        entries = [(c, float(row[c])) for c in order if votes[c] >= settings.agree]
        frames.append(entries or [(order[0], float(row[order[0]]))])
    return frames


def frame_uniforms(num_frames: int, seed: int, utt: str) -> np.ndarray:
    """(num_frames,) float64 in [0, 1): the same for an utterance however the work is split into jobs."""
    import hashlib

    digest = hashlib.sha256(f"{seed} {utt}".encode("utf-8")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little"))).random(num_frames)


# ------------------------------------------------------------------------------------------------ the fast kernels

def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_rows(work: Callable[[slice], None], rows: int, columns: int, threads: Optional[int] = None,
              elements: int = _ROWS) -> None:
    """Call ``work(slice)`` for blocks of rows that fit in a cache, on several threads (NumPy lets go of the lock)."""
    threads = threads or default_threads()
    step = max(1, min(elements // max(1, columns), -(-rows // threads)))
    slices = [slice(i, min(rows, i + step)) for i in range(0, rows, step)]
    threads = min(threads, len(slices))
    pending, errors = iter(slices), []

    def run() -> None:
        for rows_of in pending:
            try:
                work(rows_of)
            except BaseException as error:  # noqa: B036 - raised below
                errors.append((rows_of.start, error))
                return

    helpers = [threading.Thread(target=run) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> uint32 in the same order; -0 and 0 are one value."""
    bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32)
    flip = bits >> 31
    flip |= np.int32(-0x80000000)  # negative: all bits; else: the sign bit alone
    return (bits ^ flip).view(np.uint32)


def _values(bits: np.ndarray) -> np.ndarray:
    """The inverse of `_ordered_bits`."""
    bits = bits.view(np.int32)
    flip = ~(bits >> 31)
    flip |= np.int32(-0x80000000)
    return (bits ^ flip).view(np.float32)


def block_maxima(x: np.ndarray, n: int) -> np.ndarray:
    """(R, C) -> (R, min(n, C)): the largest of each of n blocks of columns, NaN where there is one.

    Block j holds the columns j, j + n, j + 2n, ...: the maxima are elementwise maxima of rows of n consecutive
    columns, which is what vector units do.
    """
    rows, columns = x.shape
    if n >= columns:
        return x
    full = columns // n * n
    best = np.maximum.reduce(x[:, :full].reshape(rows, full // n, n), axis=1)  # a view: nothing is copied
    if full < columns:
        np.maximum(best[:, :columns - full], x[:, full:], out=best[:, :columns - full])
    return best


def bound_maxima(x: np.ndarray, k: int) -> np.ndarray:
    """(R, C) -> (R, n), n >= min(k, C): maxima of blocks, few enough for a quick search of the k-th largest.

    In two steps where C is large, because short rows of maxima are slow to make.
    """
    n = max(128, 6 * k)
    return block_maxima(block_maxima(x, 4 * n) if x.shape[1] >= 8 * n else x, n)


def rank(rows: np.ndarray, ids: np.ndarray, values: np.ndarray, columns: int) -> Tuple[np.ndarray, np.ndarray]:
    """Candidates sorted within each row by falling value, ties by rising id: (ids int32 (n,), values float32 (n,)).

    ``rows`` (n,) int64, ascending from 0; ``ids`` (n,) below ``columns``; ``values`` (n,) float32. One sort of
    integers: row, inverted bits of the value, id. Rows and ids need 32 bits together.
    """
    width = max(1, (columns - 1).bit_length())
    keys = rows.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= ~_ordered_bits(values)
    keys <<= np.uint64(width)
    keys |= ids.astype(np.uint64)
    keys.sort()
    ids = (keys & np.uint64((1 << width) - 1)).astype(np.int32)
    keys >>= np.uint64(width)
    return ids, _values(~keys.astype(np.uint32))


def first_k(rows: np.ndarray, num_rows: int, k: int) -> np.ndarray:
    """Where the first k entries of each row are: rows (n,) ascending, each row at least k times -> (num_rows, k)."""
    return np.searchsorted(rows, np.arange(num_rows))[:, None] + np.arange(k)


def positions(mask: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """(row, column) of the true elements of a mask (R, C), row by row; faster than np.nonzero when they are few."""
    flat = np.flatnonzero(mask)
    row = flat // mask.shape[1]
    return row, flat - row * mask.shape[1]


def kth_largest(maxima: np.ndarray, k: int) -> np.ndarray:
    """(R, n) -> (R,): the k-th largest of each row, a bound that at least k elements of the row reach."""
    n = maxima.shape[1]
    return np.partition(maxima, n - k, axis=1)[:, n - k]


def check_finite(maxima: np.ndarray, start: int) -> None:
    """Raise FrameError for a row whose maxima hold a NaN or +Inf."""
    bad = ~(maxima < np.inf).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise FrameError(start + row, "holds a NaN" if np.isnan(maxima[row]).any() else "holds an infinite value")


def as_float32(matrix: Matrix) -> Matrix:
    """A (T, C) float32 array with contiguous, aligned rows; a stored matrix stays what it is."""
    if isinstance(matrix, StoredMatrix):
        return matrix
    matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"a posterior is a matrix (frames, pdfs), not an array of shape {matrix.shape}")
    return np.require(matrix, np.float32, ["C", "A"])


def _whereabouts(matrix: Matrix, rows: slice) -> Tuple[Optional[int], int, int]:
    """Where a kernel finds rows: (address, -1, 0), or (NULL, file descriptor, offset)."""
    if isinstance(matrix, StoredMatrix):
        return None, matrix.fd, matrix.offset + 4 * rows.start * matrix.shape[1]
    return pointer(matrix[rows]), -1, 0


def _over_many_rows(work: Callable[[slice], None], matrix: Matrix, threads: Optional[int]) -> None:
    """`over_rows` for a kernel."""
    over_rows(work, *matrix.shape, threads, _STORED_ROWS if isinstance(matrix, StoredMatrix) else _MANY_ROWS)


def top_k(matrix: Matrix, k: int, *, kind: Optional[str] = None,
          threads: Optional[int] = None) -> Tuple[np.ndarray, np.ndarray]:
    """The k largest of each row: (T, C) float -> ids (T, k) int32 and values (T, k) float32.

    Ordered by falling value, ties by rising pdf-id. Any order-preserving scale will do; with ``kind`` "prob" the rows
    must be probabilities. Raises ValueError when k is not in 1..C, FrameError for NaN, +Inf, or no probabilities.
    """
    matrix = as_float32(matrix)
    frames, columns = matrix.shape
    check_k(k, matrix.shape)
    ids, values = np.empty((frames, k), np.int32), np.empty((frames, k), np.float32)
    ones = np.ones(columns, np.float32)
    library = kernels()
    limits = (0, 1 + SUM_TOLERANCE, 0.99 * SUM_TOLERANCE) if kind == "prob" else (-np.inf, _LARGEST, 0)

    def work(rows: slice) -> None:
        done = library.top_k(*_whereabouts(matrix, rows), rows.stop - rows.start, columns, k, *limits,
                             pointer(ids[rows]), pointer(values[rows]))
        if done < rows.stop - rows.start:
            look(slice(rows.start + max(0, done), rows.stop))

    def look(rows: slice) -> None:
        x = matrix[rows]
        # the first look goes through the memory in its order, and then the rows are in the cache
        if kind == "prob":
            sums = x @ ones
            bits = bound_maxima(x.view(np.uint32), k)
            # a sign bit, NaN or Inf makes an integer larger than any probability
            clean = (bits <= _ONE).all() and (np.abs(sums - 1) <= SUM_TOLERANCE).all()
            if not clean:
                _check_probabilities(x, rows.start)
            maxima = bits.view(np.float32) if clean else bound_maxima(x, k)  # negative zeros
        else:
            check_finite(x.max(axis=1, keepdims=True), rows.start)
            maxima = bound_maxima(x, k)
        row, column = positions(x >= kth_largest(maxima, k)[:, None])
        first = first_k(row, len(x), k)
        column, value = rank(row, column, x[row, column], columns)
        ids[rows], values[rows] = column[first], value[first]

    if library is None:
        over_rows(look, frames, columns, threads)
    else:
        _over_many_rows(work, matrix, threads)
    return ids, values


def top_k_of_mixture(logs: Callable[[slice], Sequence[Tuple[np.ndarray, np.ndarray, float]]], shape: Tuple[int, int],
                     k: int, *, check: Callable[[slice], None],
                     threads: Optional[int] = None) -> Tuple[np.ndarray, np.ndarray]:
    """The k largest of p(c) = sum_m w_m exp(z_m(c) - norm_m), without p: ids (T, k) int32 and probs (T, k) float32.

    ``logs(rows)`` gives (z (R, C) float32, norm (R,) float64, w > 0) of each m for some rows; ``check(rows)`` is called
    to say what is wrong when the result is not a probability. With
    a(c) = max_m log(w_m) + z_m(c) - norm_m we have exp(a) <= p <= M exp(a). At least k classes reach t, the k-th
    largest of the blocks' maxima of a, so the k largest all have a >= t - log M: exponentials are taken of those
    only. p is computed in float64 and rounded to float32, and the rounded values are what is ordered.
    """
    frames, columns = shape
    check_k(k, shape)
    ids, probs = np.empty((frames, k), np.int32), np.empty((frames, k), np.float32)
    library = kernels()

    def work(rows: slice) -> None:
        terms = logs(rows)
        if library is not None:
            matrices = [np.ascontiguousarray(z, np.float32) for z, _, _ in terms]
            norms = np.array([norm for _, norm, _ in terms], np.float64)
            weights = np.array([weight for _, _, weight in terms], np.float64)
            addresses = np.array([pointer(z) for z in matrices], np.uintp)
            if library.top_k_of_mixture(pointer(addresses), pointer(norms), pointer(weights), len(terms),
                                        len(matrices[0]), columns, k, 1 + SUM_TOLERANCE, pointer(ids[rows]),
                                        pointer(probs[rows])) == len(matrices[0]):
                return
        shifts = [(norm - np.log(weight)).astype(np.float32) for _, norm, weight in terms]
        best = terms[0][0]  # a(c) + shifts[0]
        for (z, _, _), shift in zip(terms[1:], shifts[1:]):
            apart = (shift - shifts[0])[:, None]
            best = np.maximum(best, z - apart if apart.any() else z, out=None if best is terms[0][0] else best)
        maxima = bound_maxima(best, k)
        if not (maxima < np.inf).all():
            check(rows)
        bound = kth_largest(maxima, k)
        # 1e-4: what rounding may hide; near float32's smallest numbers probabilities tie over a wide range of logs
        bound = np.where(bound - shifts[0] < -85, np.float32(-np.inf), bound - np.float32(np.log(len(terms)) + 1e-4))
        row, column = positions(best >= bound[:, None])
        total = np.zeros(len(row))
        for z, norm, weight in terms:
            total += weight * np.exp(z[row, column].astype(np.float64) - norm[row])
        first = first_k(row, len(maxima), k)
        column, value = rank(row, column, total.astype(np.float32), columns)
        ids[rows], probs[rows] = column[first], value[first]
        if not (value <= 1 + SUM_TOLERANCE).all():
            check(rows)

    # `best` is as large as the rows
    over_rows(work, frames, columns * 2, threads, _MANY_ROWS if library else _ROWS)
    return ids, probs


def check_k(k: int, shape: Tuple[int, int]) -> None:
    """Raise ValueError for a k that a matrix of this shape does not have."""
    if k < 1 or (k > shape[1] and shape[0]):
        raise ValueError(f"k is {k}, but must be from 1 to the {shape[1]} pdfs there are")


# ------------------------------------------------------------------------------------- from any scale to posteriors

@dataclass
class Scale:
    """What the numbers of a matrix are, and which posterior is made of them.

    ``kind``: prob (probabilities), log (log-probabilities), logit (anything whose softmax is the posterior). The
    posterior is softmax((log p or z) / temperature - log_prior): tempered, and with a scaled prior divided out.
    """

    kind: str = "prob"
    temperature: float = 1.0
    log_prior: Optional[np.ndarray] = None  # (C,)
    name: str = ""  # of the teacher, for messages

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"the temperature must be above 0, not {self.temperature}")

    @property
    def plain(self) -> bool:
        """True when the matrix is the posterior itself or its log."""
        return self.temperature == 1 and self.log_prior is None and self.kind != "logit"

    def logs(self, x: np.ndarray, start: int) -> Tuple[np.ndarray, np.ndarray]:
        """(z, norm) with log p = z - norm, of some rows: (R, C) float32 -> (R, C) float32, (R,) float64.

        ``start``: the number of the first row, for messages. Raises FrameError where the rows are not of this kind;
        of log-probabilities as they are only the first rows are looked at: what follows shows in the result.
        """
        if start == 0 or not (self.plain and self.kind == "log"):
            self.check(x, start)
        z = x
        if self.kind == "prob":
            with np.errstate(divide="ignore"):
                z = np.log(x)
        if self.temperature != 1:
            z = z * np.float32(1 / self.temperature)
        if self.log_prior is not None:
            if len(self.log_prior) != x.shape[1]:
                raise ValueError(f"{len(self.log_prior)} priors for {x.shape[1]} pdfs")
            z = z - self.log_prior.astype(np.float32)
        return z, np.zeros(len(z)) if self.plain else log_normalisers(z, start)

    def check(self, x: np.ndarray, start: int) -> None:
        """Raise FrameError where rows are not of this kind."""
        try:
            check_rows(x, self.kind, start)
        except FrameError as error:
            raise FrameError(error.frame, f"{error.reason} [{self.name}]" if self.name else error.reason) from None

    def probabilities(self, x: np.ndarray, start: int) -> np.ndarray:
        """Some rows as probabilities: (R, C) float32 -> (R, C) float64 (float32 where they are probabilities)."""
        if self.plain and self.kind == "prob":
            self.check(x, start)
            return x
        z, norm = self.logs(x, start)
        p = np.subtract(z, norm[:, None], dtype=np.float64)
        return np.exp(p, out=p)


def log_normalisers(z: np.ndarray, start: int = 0) -> np.ndarray:
    """log sum_c exp z of each row: (R, C) float32 -> (R,) float64. Raises FrameError for NaN, +Inf, and all -Inf."""
    best = z.max(axis=1, keepdims=True)
    check_finite(best, start)
    if (best == -np.inf).any():
        raise FrameError(start + int(np.argmax(best == -np.inf)), "all its values are -Inf")
    shifted = z - best
    np.exp(shifted, out=shifted)
    return np.log(shifted.sum(axis=1).astype(np.float64)) + best[:, 0]


def to_probabilities(matrix: np.ndarray, scale: Scale, *, threads: Optional[int] = None) -> np.ndarray:
    """A whole posterior as probabilities: (T, C) float -> (T, C) float32, which may be ``matrix`` itself.

    Raises FrameError, ValueError.
    """
    matrix = as_float32(matrix)
    same = scale.plain and scale.kind == "prob"
    result = matrix if same else np.empty_like(matrix)

    def work(rows: slice) -> None:
        if same:
            check_rows(matrix[rows], "prob", rows.start)
        else:
            result[rows] = scale.probabilities(matrix[rows], rows.start)

    over_rows(work, *matrix.shape, threads)
    return result


_ONE = np.float32(1 + SUM_TOLERANCE).view(np.uint32)


def check_rows(x: np.ndarray, kind: str, start: int) -> None:
    """Raise FrameError where rows (R, C) float32 cannot be posteriors of their kind (prob, log, logit).

    Probabilities are finite, from 0 to 1, and a row's sum is 1 within `SUM_TOLERANCE`; log-probabilities are at most
    0 and the exponentials of the very first row sum to 1 (it is the kind that is in question, and exponentials are
    dear); logits are neither NaN nor +Inf.
    """
    if kind == "prob":
        _check_probabilities(x, start)
        return
    best = x.max(axis=1, keepdims=True)
    check_finite(best, start)
    if kind == "log":
        if (best > 1e-3).any():
            row = int(np.argmax(best))
            raise FrameError(start + row, f"a log-probability is {best[row, 0]:.4g}, above 0; {_guess(x[row])}")
        total = float(np.exp(x[0]).sum(dtype=np.float64)) if start == 0 and len(x) else 1.0
        if abs(total - 1) > SUM_TOLERANCE:
            raise FrameError(start, f"its log-probabilities sum to {total:.4g} as probabilities, not 1; {_guess(x[0])}")


def _check_probabilities(x: np.ndarray, start: int) -> None:
    # a quick look: a sign bit, NaN or Inf makes an integer larger than any probability
    if len(x) == 0 or ((np.abs(x @ np.ones(x.shape[1], np.float32) - 1) <= SUM_TOLERANCE).all()
                       and x.view(np.uint32).max() <= _ONE):
        return
    least, most = x.min(axis=1), x.max(axis=1)
    check_finite(most[:, None], start)
    total = x.sum(axis=1, dtype=np.float64)
    good = (least >= 0) & (most <= 1 + SUM_TOLERANCE) & (np.abs(total - 1) <= SUM_TOLERANCE)
    if good.all():
        return
    row = int(np.argmin(good))
    if least[row] < 0 or most[row] > 1 + SUM_TOLERANCE:
        what = f"a probability is {least[row] if least[row] < 0 else most[row]:.4g}"
    else:
        what = f"its probabilities sum to {total[row]:.4g}, not 1"
    raise FrameError(start + row, f"{what}; {_guess(x[row])}")


def _guess(row: np.ndarray) -> str:
    """What a row looks like, for the end of a message."""
    row = row.astype(np.float64)
    if row.min() >= 0 and abs(row.sum() - 1) <= SUM_TOLERANCE:
        return "it looks like probabilities (--input prob)"
    if row.max() <= 1e-3 and abs(np.exp(row).sum() - 1) <= SUM_TOLERANCE:
        return "it looks like log-probabilities (--input log)"
    if row.min() < 0 or row.max() > 1:
        return "it looks like logits or likelihoods (--input logit)"
    return "it is no posterior; if its scale is arbitrary, say --input logit"


# -------------------------------------------------------------------------------------------------------- selection

class _Sorted(NamedTuple):
    """Entries that a rule chooses from, by frame: falling probability, ties by lower id; row t has counts[t]."""

    ids: np.ndarray  # (T, W) int32
    probs: np.ndarray  # (T, W) float32, 0 beyond counts
    counts: np.ndarray  # (T,) int64


def select(matrix: Matrix, settings: EssenceSettings, *, kind: str = "prob", utt: str = "",
           threads: Optional[int] = None) -> Essence:
    """The essence of a dense posterior at ``settings.temperature``: (T, C) float -> Essence of T frames.

    ``kind``: prob, log or logit. ``utt`` seeds random-prune together with ``settings.seed``. For ``agree`` use
    `select_agree`. Raises FrameError (NaN, not a posterior), ValueError (k above C, a rule without meaning).
    """
    settings.check()
    scale = Scale(kind, settings.temperature)
    matrix = as_float32(matrix)
    frames, columns = matrix.shape
    if frames == 0:
        return _empty()
    if settings.select == "agree":
        raise ValueError("agree needs the teachers themselves (dump-post --fuse), not one posterior")
    if not (scale.plain and kind == "prob"):
        matrix = matrix[:]  # from the file, where it is stored
    if settings.select in ("min-post", "random-prune"):
        clean = not (scale.plain and kind == "prob")
        probs = to_probabilities(matrix, scale, threads=threads) if clean else matrix
        starts = frame_uniforms(frames, settings.seed, utt) if settings.select == "random-prune" else None
        entries = _compiled_over_threshold(probs, settings.min_post, starts, threads)
        if entries is None:
            if not clean:
                probs = to_probabilities(matrix[:], scale, threads=threads)
            entries = (_at_least(probs, settings.min_post, threads) if starts is None
                       else _random_prune(probs, settings.min_post, starts, threads))
        return _finish(entries, settings)
    k = settings.top_k if settings.select == "top-k" else min(settings.max_k, columns)
    if scale.plain and kind == "prob":
        ids, probs = top_k(matrix, k, kind="prob", threads=threads)
    else:
        ids, probs = top_k_of_mixture(lambda rows: [(*scale.logs(matrix[rows], rows.start), 1.0)], matrix.shape, k,
                                      check=lambda rows: scale.check(matrix[rows], rows.start), threads=threads)
    return entries_of(ids, probs, settings)


def select_sparse(offsets: np.ndarray, ids: np.ndarray, probs: np.ndarray, settings: EssenceSettings, *,
                  utt: str = "", source_temperature: float = 1.0) -> Essence:
    """The essence of a sparse posterior, such as a wide archive: entries offsets[t] to offsets[t + 1] of frame t.

    A frame with fewer entries than a rule asks for keeps them all; one without any stays empty. A temperature other
    than the source's is possible where no other class matters: top-k with mass renorm. Raises FrameError (entries
    that are no probabilities, a pdf-id twice), ValueError.
    """
    settings.check()
    offsets = np.asarray(offsets, np.int64)
    if len(offsets) <= 1:
        return _empty()
    if settings.select == "agree":
        raise ValueError("agree needs the teachers themselves (dump-post --fuse), not one posterior")
    tempered = settings.temperature != source_temperature
    if tempered and (settings.select != "top-k" or settings.mass != "renorm"):
        raise ValueError(f"temperature {settings.temperature} from entries at {source_temperature} needs every class, "
                         f"except with top-k and mass renorm")
    probs = np.ascontiguousarray(probs, np.float32)
    counts = np.diff(offsets)
    rows = np.repeat(np.arange(len(counts)), counts)
    _check_entries(rows, np.asarray(ids), probs, len(counts))
    if settings.select == "random-prune":
        order = np.lexsort((ids, rows))
        return _random_prune_entries(rows, np.asarray(ids)[order], probs[order], len(counts), settings, utt)
    entries = sort_entries(rows, np.asarray(ids), probs, len(counts))
    essence = _finish(entries, settings)
    if tempered:
        powered = essence.probs.astype(np.float64) ** (source_temperature / settings.temperature)
        return essence._replace(probs=_apply_mass(essence.offsets, powered, "renorm"))
    return essence


def select_agree(teachers: Sequence[np.ndarray], combined: np.ndarray, settings: EssenceSettings, *,
                 threads: Optional[int] = None) -> Essence:
    """``agree``: classes that at least ``settings.agree`` teachers hold in their own top-k, at the combined value.

    ``teachers``: (T, C) each, on any order-preserving scale; ``combined``: (T, C) probabilities. A frame without
    agreement keeps the combined posterior's largest class.
    """
    settings.check()
    combined = as_float32(combined)
    if settings.agree > len(teachers):
        raise ValueError(f"agree is {settings.agree}, but there are {len(teachers)} teachers")
    if len(combined) == 0:
        return _empty()
    frames, columns = combined.shape
    held = [top_k(teacher, settings.top_k, threads=threads)[0] for teacher in teachers]
    cells = np.concatenate([(ids + np.arange(frames, dtype=np.int64)[:, None] * columns).ravel() for ids in held])
    best = np.argmax(combined, axis=1) + np.arange(frames, dtype=np.int64) * columns
    cells, votes = np.unique(cells, return_counts=True)
    cells = cells[votes >= settings.agree]
    alone = np.bincount(cells // columns, minlength=frames) == 0
    cells = np.sort(np.concatenate([cells, best[alone]]))
    rows, ids = np.divmod(cells, columns)
    return _finish(sort_entries(rows, ids, combined.ravel()[cells], frames), settings)


def entries_of(ids: np.ndarray, probs: np.ndarray, settings: EssenceSettings) -> Essence:
    """Apply top-k, top-p or min-post, and the mass rule, to the largest entries of each frame.

    ``ids``, ``probs`` (T, W), by falling probability; W must reach as far as the rule can (top_k, max_k).
    """
    return _finish(_Sorted(ids, probs, np.full(len(ids), ids.shape[1], np.int64)), settings)


def _empty() -> Essence:
    return Essence(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32))


def _at_least(probs: np.ndarray, threshold: float, threads: Optional[int]) -> _Sorted:
    """Every probability of a row that reaches a threshold, and the row's largest."""
    frames, columns = probs.shape
    parts: dict = {}

    def work(rows: slice) -> None:
        x = probs[rows]
        row, column = positions(x >= np.minimum(np.float32(threshold), x.max(axis=1))[:, None])
        parts[rows.start] = rows.start + row, column, x[row, column]

    over_rows(work, frames, columns, threads)
    return sort_entries(*_in_order(parts), frames)


def _in_order(parts: dict) -> List[np.ndarray]:
    """(rows, ids, values) of blocks of rows, put together."""
    return [np.concatenate([parts[start][i] for start in sorted(parts)]) for i in range(3)]


def _check_entries(rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int) -> None:
    """Raise FrameError where entries are not probabilities of different pdfs."""
    good = (probs >= 0) & (probs <= np.float32(1 + SUM_TOLERANCE)) & (ids >= 0)
    if not good.all():
        at = int(np.argmin(good))
        raise FrameError(int(rows[at]), f"pdf-id {int(ids[at])} has probability {float(probs[at]):.4g}")
    mass = np.bincount(rows, weights=probs, minlength=frames)
    if (mass > 1 + SUM_TOLERANCE).any():
        frame = int(np.argmax(mass))
        raise FrameError(frame, f"its probabilities sum to {mass[frame]:.4g}, more than 1")
    cells = np.sort(rows << 32 | ids.astype(np.int64))
    twice = np.flatnonzero(cells[1:] == cells[:-1])
    if len(twice):
        raise FrameError(int(cells[twice[0]] >> 32), f"pdf-id {int(cells[twice[0]] & 0xFFFFFFFF)} occurs twice")


def sort_entries(rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int) -> _Sorted:
    """Entries (rows ascending) in the order of an essence, padded."""
    counts = np.bincount(rows, minlength=frames)
    inside = np.arange(max(1, int(counts.max(initial=0)))) < counts[:, None]
    columns = int(ids.max(initial=0)) + 1
    step = 1 << (32 - max(1, (columns - 1).bit_length()))  # frames that fit one sort
    sorted_ids, sorted_probs = np.zeros(inside.shape, np.int32), np.zeros(inside.shape, np.float32)
    for start in range(0, frames, step):
        some, part = slice(*np.searchsorted(rows, [start, start + step])), slice(start, start + step)
        some_ids, some_probs = rank(rows[some] - start, ids[some], probs[some], columns)
        sorted_ids[part][inside[part]], sorted_probs[part][inside[part]] = some_ids, some_probs
    return _Sorted(sorted_ids, sorted_probs, counts)


def _finish(entries: _Sorted, settings: EssenceSettings) -> Essence:
    """How many of its sorted entries each frame keeps, and the mass rule."""
    ids, probs, counts = entries
    if settings.select == "top-k":
        counts = np.minimum(counts, settings.top_k)
    elif settings.select == "top-p":
        mass = np.cumsum(probs[:, :settings.max_k], axis=1, dtype=np.float64)
        counts = np.minimum(counts, np.minimum((mass < settings.top_p).sum(axis=1) + 1, settings.max_k))
    elif settings.select == "min-post":
        inside = np.arange(probs.shape[1]) < counts[:, None]
        enough = ((probs >= np.float32(settings.min_post)) & inside).sum(axis=1)
        counts = np.minimum(counts, np.maximum(enough, 1))
    width = int(counts.max(initial=0))
    ids, probs = ids[:, :width], probs[:, :width]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if (counts == width).all():
        ids, probs = ids.reshape(-1), probs.reshape(-1)
    else:
        chosen = np.arange(width) < counts[:, None]
        ids, probs = ids[chosen], probs[chosen]
    return Essence(offsets, np.ascontiguousarray(ids, np.int32), _apply_mass(offsets, probs, settings.mass),
                   _mass(offsets, probs).astype(np.float32))


def _mass(offsets: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """(T,) float64: the sum of each frame's entries."""
    counts = np.diff(offsets)
    if len(counts) and (counts == counts[0]).all():
        return probs.reshape(len(counts), -1).sum(axis=1, dtype=np.float64)
    return np.bincount(np.repeat(np.arange(len(counts)), counts), weights=probs, minlength=len(counts))


def _apply_mass(offsets: np.ndarray, probs: np.ndarray, rule: str) -> np.ndarray:
    """Entries (n,) after the mass rule, float32. ``residual`` stores what ``keep`` stores; the loss adds the bucket."""
    if rule != "renorm":
        return np.ascontiguousarray(probs, np.float32)
    counts, mass = np.diff(offsets), _mass(offsets, probs)
    empty = (mass <= 0) & (counts > 0)
    if empty.any():
        raise FrameError(int(np.argmax(empty)), "its entries have no mass, so they cannot be scaled to 1")
    if len(counts) and (counts == counts[0]).all():
        return (probs.reshape(len(counts), -1) / mass[:, None]).astype(np.float32).reshape(-1)
    return (probs / np.repeat(mass, counts)).astype(np.float32)


def _compiled_over_threshold(probs: Matrix, threshold: float, starts: Optional[np.ndarray],
                             threads: Optional[int]) -> Optional[_Sorted]:
    """`_at_least` (starts None) or `_random_prune` by the kernel; None where it is missing or refuses a row."""
    library = kernels()
    if library is None:
        return None
    frames, columns = probs.shape
    most = min(columns, int((1 + SUM_TOLERANCE) / threshold + 1) * (1 if starts is None else 2) + 2)
    ids, values = np.empty((frames, most), np.int32), np.empty((frames, most), np.float32)
    counts = np.zeros(frames, np.int64)
    unfinished: List[int] = []

    def work(rows: slice) -> None:
        size = rows.stop - rows.start
        if library.over_threshold(*_whereabouts(probs, rows), size, columns, threshold,
                                  pointer(None if starts is None else starts[rows]), 1 + SUM_TOLERANCE,
                                  0.99 * SUM_TOLERANCE, most, pointer(counts[rows]), pointer(ids[rows]),
                                  pointer(values[rows])) != size:
            unfinished.append(rows.start)

    _over_many_rows(work, probs, threads)
    if unfinished:
        return None
    width = int(counts.max())
    ids, values = ids[:, :width], values[:, :width]
    beyond = np.arange(width) >= counts[:, None]
    ids[beyond] = values[beyond] = 0
    return _Sorted(ids, values, counts)


def _random_prune(probs: np.ndarray, threshold: float, starts: np.ndarray, threads: Optional[int]) -> _Sorted:
    """random-prune over a dense posterior (T, C) float32, as `reference_select` defines it; starts (T,) float64."""
    frames, columns = probs.shape
    threshold = np.float32(threshold)
    size = 64  # columns of a block; only blocks on which a mark falls are looked at again
    num = -(-columns // size)
    ones = np.ones(size)
    parts: dict = {}

    def work(rows: slice) -> None:
        x = probs[rows]
        big_row, big_id = positions(x >= threshold)
        small = np.empty((len(x), num * size))
        small[:, :columns] = x
        small[:, columns:] = 0
        small[big_row, big_id] = 0
        ends = np.cumsum((small.reshape(-1, size) @ ones).reshape(len(x), num), axis=1)
        ends /= np.float64(threshold)
        ends += starts[rows, None]
        begins = np.concatenate([starts[rows, None], ends[:, :-1]], axis=1)
        row, block = positions(np.floor(ends) > np.floor(begins))
        inner = np.cumsum(small.reshape(-1, size)[row * num + block], axis=1)
        inner /= np.float64(threshold)
        inner += begins[row, block, None]
        before = np.concatenate([begins[row, block, None], inner[:, :-1]], axis=1)
        hit, column = positions(np.floor(inner) > np.floor(before))
        parts[rows.start] = (rows.start + np.concatenate([big_row, row[hit]]),
                             np.concatenate([big_id, block[hit] * size + column]),
                             np.concatenate([x[big_row, big_id], np.full(len(hit), threshold)]))

    over_rows(work, frames, columns, threads)
    rows, ids, values = _in_order(parts)
    alone = np.flatnonzero(np.bincount(rows, minlength=frames) == 0)
    best = np.argmax(probs[alone], axis=1)
    rows, ids, values = (np.concatenate(pair) for pair in
                         ((rows, alone), (ids, best), (values, probs[alone, best])))
    order = np.argsort(rows, kind="stable")
    return sort_entries(rows[order], ids[order], values[order], frames)


def _random_prune_entries(rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int,
                          settings: EssenceSettings, utt: str) -> Essence:
    """random-prune over sparse entries, ordered by frame and pdf-id."""
    threshold = np.float32(settings.min_post)
    large = probs >= threshold
    steps = np.where(large, 0, probs.astype(np.float64) / np.float64(threshold))
    counts = np.bincount(rows, minlength=frames)
    width = int(counts.max(initial=0))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.zeros((frames, width + 1))
    padded[:, 0] = frame_uniforms(frames, settings.seed, utt)
    padded[rows, place + 1] = steps
    marks = np.diff(np.floor(np.cumsum(padded, axis=1)), axis=1)[rows, place] > 0
    kept = large | marks
    alone = (np.bincount(rows, weights=kept, minlength=frames) == 0) & (counts > 0)
    if alone.any():
        entries = sort_entries(rows, ids, probs, frames)
        position = np.full((frames, 1), -1, np.int64)
        position[alone, 0] = entries.ids[alone, 0]
        kept |= ids == position[rows, 0]
    values = np.where(marks, threshold, probs)
    return _finish(sort_entries(rows[kept], ids[kept], values[kept], frames), settings)
