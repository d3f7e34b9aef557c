"""The k largest of each row, ordered by falling value, ties by rising pdf-id.

Legend: T frames, C pdfs, R rows of a block, k entries per frame. A frame is cut into blocks of columns, the k-th
largest of the blocks' maxima is a bound that at least k elements reach and few others do, and only those few are
looked at one by one. The maxima cost one pass over the memory, the rest does not depend on C. The result is that of a
sort, ties included.

The pass is done by compiled kernels (io/kernels.c) where there are any, by NumPy where there are none, and NumPy
always has the last word on a row that the kernels refuse: it says what is wrong with it.
"""
from __future__ import annotations

from typing import Callable, Optional, Sequence, Tuple

import numpy as np

from essence_kd.distill.rows import MANY_ROWS, over_many_rows, whereabouts
from essence_kd.distill.scales import ONE_BITS, SUM_TOLERANCE, Matrix, as_float32, check_finite, check_probabilities
from essence_kd.io.kernels import kernels, pointer
from essence_kd.io.parallel import ROWS, over_rows

_LARGEST = float(np.finfo(np.float32).max)


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
        done = library.top_k(*whereabouts(matrix, rows), rows.stop - rows.start, columns, k, *limits,
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
            clean = (bits <= ONE_BITS).all() and (np.abs(sums - 1) <= SUM_TOLERANCE).all()
            if not clean:
                check_probabilities(x, rows.start)
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
        over_many_rows(work, matrix, threads)
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
    over_rows(work, frames, columns * 2, threads, MANY_ROWS if library else ROWS)
    return ids, probs


def check_k(k: int, shape: Tuple[int, int]) -> None:
    """Raise ValueError for a k that a matrix of this shape does not have."""
    if k < 1 or (k > shape[1] and shape[0]):
        raise ValueError(f"k is {k}, but must be from 1 to the {shape[1]} pdfs there are")
