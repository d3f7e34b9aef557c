"""Combining teachers: from M matrices of one utterance to the ensemble's posterior, or straight to its k largest.

Legend: M teachers, T frames, C pdfs; p_m the posterior of teacher m at its temperature and with its prior divided
out where asked (`scales.Scale`); w_m weights that sum to 1.

    mean      sum_m w_m p_m
    logmean   softmax(sum_m w_m log p_m)

`combine` gives the whole posterior, `combine_top_k` the k largest without it: the same numbers, since probabilities
are computed in float64 and rounded to float32 in both.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Sequence, Tuple

import numpy as np

from essence_kd.distill.largest import check_k, top_k, top_k_of_mixture
from essence_kd.distill.scales import Scale, as_float32, log_normalisers
from essence_kd.io.parallel import over_rows

COMBINE = ("mean", "logmean")


@dataclass
class Ensemble:
    """How each teacher's matrices are to be read, their weights (scaled to sum to 1), and the rule of combination.

    Raises ValueError for an unknown rule and weights that make no sense.

    >>> from essence_kd import Ensemble, Scale
    >>> Ensemble([Scale("logit"), Scale("logit", temperature=2.0)], weights=[3, 1], combine="logmean").weights
    [0.75, 0.25]
    """

    scales: List[Scale]
    weights: Sequence[float] = field(default_factory=list)  # empty: all the same
    combine: str = "mean"

    def __post_init__(self):
        if self.combine not in COMBINE:
            raise ValueError(f"combine must be one of {', '.join(COMBINE)}, not {self.combine!r}")
        if not self.scales:
            raise ValueError("no teachers")
        given = np.array(list(self.weights) or [1.0] * len(self.scales), np.float64)
        if len(given) != len(self.scales):
            raise ValueError(f"{len(given)} weights for {len(self.scales)} teachers")
        if not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
            raise ValueError(f"weights must be 0 or more and not all 0, not {given.tolist()}")
        self.weights = (given / given.sum()).tolist()

    def _aligned(self, matrices: Sequence[np.ndarray]) -> List[Tuple[np.ndarray, Scale, float]]:
        """(matrix, scale, weight) of the teachers that have a say. Raises ValueError for shapes that differ."""
        if len(matrices) != len(self.scales):
            raise ValueError(f"{len(matrices)} matrices for {len(self.scales)} teachers")
        matrices = [as_float32(matrix) for matrix in matrices]
        if len({matrix.shape for matrix in matrices}) != 1:
            raise ValueError("the teachers differ: "
                             + ", ".join(f"{m.shape[0]} frames of {m.shape[1]} pdfs" for m in matrices))
        return [term for term in zip(matrices, self.scales, self.weights) if term[2] > 0]

    def _log_mean(self, teachers, rows: slice) -> np.ndarray:
        """sum_m w_m z_m of some rows: (R, C) float32. What is constant over a row does not matter."""
        total = None
        for matrix, scale, weight in teachers:
            term = scale.logs(matrix[rows], rows.start)[0] * np.float32(weight)
            total = term if total is None else np.add(total, term, out=total)
        return total


def combine(ensemble: Ensemble, matrices: Sequence[np.ndarray], *, threads=None) -> np.ndarray:
    """The ensemble's posterior: M matrices (T, C) of any floating type -> (T, C) float32 probabilities.

    Raises FrameError for a frame that is no posterior, ValueError for matrices that do not fit.

    >>> import numpy as np
    >>> from essence_kd import Ensemble, Scale, combine
    >>> teachers = [np.array([[0.5, 0.5, 0.0]]), np.array([[1.0, 0.0, 0.0]])]
    >>> combine(Ensemble([Scale("prob"), Scale("prob")]), teachers).tolist()
    [[0.75, 0.25, 0.0]]
    """
    teachers = ensemble._aligned(matrices)
    result = np.empty(teachers[0][0].shape, np.float32)
    plain = _are_probabilities(teachers)

    def work(rows: slice) -> None:
        if ensemble.combine == "logmean":
            z = ensemble._log_mean(teachers, rows)
            p = np.subtract(z, log_normalisers(z, rows.start)[:, None], dtype=np.float64)
            result[rows] = np.exp(p, out=p)
            return
        total = np.zeros((rows.stop - rows.start, result.shape[1]))
        for matrix, scale, weight in teachers:
            if plain:
                scale.check(matrix[rows], rows.start)
                total += weight * matrix[rows]
            else:  # as combine_top_k has it, to the last bit
                z, norm = scale.logs(matrix[rows], rows.start)
                p = np.subtract(z, norm[:, None], dtype=np.float64)
                total += weight * np.exp(p, out=p)
        result[rows] = total

    frames, columns = result.shape
    over_rows(work, frames, columns, threads)
    return result


def _are_probabilities(teachers) -> bool:
    return all(scale.plain and scale.kind == "prob" for _, scale, _ in teachers)


def combine_top_k(ensemble: Ensemble, matrices: Sequence[np.ndarray], k: int, *,
                  threads=None) -> Tuple[np.ndarray, np.ndarray]:
    """The k largest probabilities of `combine`, without it: ids (T, k) int32 and probs (T, k) float32.

    Ordered by falling probability, ties by rising pdf-id. For the mean of log-posteriors, exponentials are taken of
    the few classes that can be among the k largest only (`largest.top_k_of_mixture`). Raises FrameError, ValueError.
    """
    teachers = ensemble._aligned(matrices)
    shape = teachers[0][0].shape
    check_k(k, shape)
    if ensemble.combine == "mean" and _are_probabilities(teachers):
        return top_k(combine(ensemble, matrices, threads=threads), k, threads=threads)

    def mean(rows: slice):
        return [(*scale.logs(matrix[rows], rows.start), weight) for matrix, scale, weight in teachers]

    def log_mean(rows: slice):
        z = ensemble._log_mean(teachers, rows)
        return [(z, log_normalisers(z, rows.start), 1.0)]

    def check(rows: slice) -> None:
        for matrix, scale, _ in teachers:
            scale.check(matrix[rows], rows.start)

    return top_k_of_mixture(mean if ensemble.combine == "mean" else log_mean, shape, k, check=check, threads=threads)
