"""What the numbers of a matrix are, and the posterior that is made of them: probabilities, their logs, or logits.

Legend: T frames, C pdfs, R rows of a block. Values are compared as float32, the type in which they are stored.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Tuple, Union

import numpy as np

from essence_kd.io.objects import StoredMatrix
from essence_kd.io.parallel import over_rows

KINDS = ("prob", "log", "logit")
SUM_TOLERANCE = 0.01  # a row of probabilities may miss 1 by this much (compressed archives do)
ONE_BITS = np.float32(1 + SUM_TOLERANCE).view(np.uint32)  # of the largest that counts as a probability

Matrix = Union[np.ndarray, StoredMatrix]


class FrameError(ValueError):
    """A frame that is no posterior: ``frame`` (0-based) and what is wrong with it."""

    def __init__(self, frame: int, reason: str):
        super().__init__(f"frame {frame}: {reason}")
        self.frame = frame
        self.reason = reason


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


@dataclass
class Scale:
    """What the numbers of a matrix are, and which posterior is made of them.

    ``kind``: prob (probabilities), log (log-probabilities), logit (anything whose softmax is the posterior). The
    posterior is softmax((log p or z) / temperature - log_prior): tempered, and with a scaled prior divided out.
    Raises ValueError for an unknown kind and a temperature that is not above 0.

    >>> import numpy as np
    >>> from essence_kd import Ensemble, Scale, combine
    >>> logits = np.log([[0.5, 0.25, 0.25]])
    >>> combine(Ensemble([Scale("logit")]), [logits]).round(3).tolist()
    [[0.5, 0.25, 0.25]]
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
    result: Any = matrix if same else np.empty_like(matrix)

    def work(rows: slice) -> None:
        if same:
            check_rows(matrix[rows], "prob", rows.start)
        else:
            result[rows] = scale.probabilities(matrix[rows], rows.start)

    rows, columns = matrix.shape
    over_rows(work, rows, columns, threads)
    return result


def check_rows(x: np.ndarray, kind: str, start: int) -> None:
    """Raise FrameError where rows (R, C) float32 cannot be posteriors of their kind (prob, log, logit).

    Probabilities are finite, from 0 to 1, and a row's sum is 1 within `SUM_TOLERANCE`; log-probabilities are at most
    0 and the exponentials of the very first row sum to 1 (it is the kind that is in question, and exponentials are
    dear); logits are neither NaN nor +Inf.
    """
    if kind == "prob":
        check_probabilities(x, start)
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


def check_probabilities(x: np.ndarray, start: int) -> None:
    """`check_rows` for the kind prob."""
    # a quick look: a sign bit, NaN or Inf makes an integer larger than any probability
    if len(x) == 0 or ((np.abs(x @ np.ones(x.shape[1], np.float32) - 1) <= SUM_TOLERANCE).all()
                       and x.view(np.uint32).max() <= ONE_BITS):
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
