"""Is a difference of two word error rates more than chance? Paired bootstrap and the matched-pair segment test."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Hashable, Optional, Sequence, Tuple

import numpy as np

from essence_kd.io.errors import UserError

DRAWS = 10000


def group_sums(values: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Sum rows of ``values`` (U, S) by group: (G, S), groups in order of appearance; None leaves each row alone."""
    values = np.asarray(values, dtype=np.float64)
    if groups is None:
        return values
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} rows")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(g, len(numbers)) for g in groups], dtype=np.int64)
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def bootstrap_sums(values: np.ndarray, groups: Sequence[Hashable] | None = None, *, draws: int = DRAWS,
                   seed: int = 0) -> np.ndarray:
    """Resample groups with replacement and sum what they hold.

    The paired bootstrap of Bisani and Ney (ICASSP 2004): every column, that is every system, sees the same draws.
    Resampling whole groups (speakers) keeps the dependence between utterances of one speaker in the interval.

    Args:
      values: (U, S), a row per utterance, a column per quantity (errors of a system, reference words).
      groups: group of each row; None makes each row its own group.

    Returns:
      (draws, S) float64 sums.
    """
    sums = group_sums(values, groups)
    num_groups = len(sums)
    if num_groups == 0:
        raise UserError("bootstrap: there is no utterance to draw from")
    rng = np.random.default_rng(seed)
    out = np.empty((draws, sums.shape[1]))
    chunk = max(1, min(draws, 4_000_000 // num_groups))
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        picks = rng.integers(0, num_groups, size=(rows, num_groups), dtype=np.int64)
        picks += np.arange(rows, dtype=np.int64)[:, None] * num_groups
        times = np.bincount(picks.ravel(), minlength=rows * num_groups).reshape(rows, num_groups)  # (rows, G)
        out[start:start + rows] = times.astype(np.float64) @ sums
    return out


@dataclass(frozen=True)
class Difference:
    """WER of a minus WER of b in percentage points, its 95 % bootstrap interval and two-sided p."""

    diff: float
    low: float
    high: float
    p: float


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return float(low), float(high)


def difference(samples: np.ndarray, diff: float) -> Difference:
    """Interval and p of a difference from its bootstrap samples (draws,).

    p is twice the smaller share of draws on either side of zero (a draw at zero counts half on each), with one draw
    added so that it is never 0.
    """
    low, high = interval(samples)
    below, zero = int((samples < 0).sum()), int((samples == 0).sum())
    side = min(below, len(samples) - below - zero) + zero / 2
    return Difference(diff, low, high, min(1.0, 2.0 * (side + 1) / (len(samples) + 1)))


@dataclass(frozen=True)
class MatchedPairs:
    """Outcome of the matched-pair sentence-segment test: mean difference of errors a segment, z and two-sided p."""

    segments: int
    mean: float
    z: float
    p: float


Pairs = Sequence[Tuple[Optional[str], Optional[str]]]


def _errors_by_word(pairs: Pairs) -> tuple[list[int], list[int]]:
    """(errors on each reference word, insertions before each reference word and, last, after all of them)."""
    wrong: list[int] = []
    inserted = [0]
    for ref, hyp in pairs:
        if ref is None:
            inserted[-1] += 1
        else:
            wrong.append(int(ref != hyp))
            inserted.append(0)
    return wrong, inserted


def segment_errors(pairs_a: Pairs, pairs_b: Pairs, *, min_good: int = 2) -> list[tuple[int, int]]:
    """Errors of two systems in each segment of an utterance.

    A segment holds at least one error of either system and ends with the utterance or at ``min_good`` words in a row
    that both have right with nothing inserted between them, so that errors in different segments are nearly
    independent (Gillick and Cox, ICASSP 1989; NIST's sc_stats uses two words).

    Args:
      pairs_a, pairs_b: alignments (reference word or None, hypothesis word or None) with the same reference words.
    """
    wrong_a, inserted_a = _errors_by_word(pairs_a)
    wrong_b, inserted_b = _errors_by_word(pairs_b)
    if len(wrong_a) != len(wrong_b):
        raise ValueError(f"alignments with {len(wrong_a)} and {len(wrong_b)} reference words")
    segments: list[tuple[int, int]] = []
    errors_a = errors_b = good = 0
    for i in range(len(inserted_a)):
        new_a, new_b = inserted_a[i], inserted_b[i]
        if new_a or new_b:
            errors_a, errors_b, good = errors_a + new_a, errors_b + new_b, 0
        if i == len(wrong_a):
            break
        if wrong_a[i] or wrong_b[i]:
            errors_a, errors_b, good = errors_a + wrong_a[i], errors_b + wrong_b[i], 0
            continue
        good += 1
        if good >= min_good and (errors_a or errors_b):
            segments.append((errors_a, errors_b))
            errors_a = errors_b = 0
    if errors_a or errors_b:
        segments.append((errors_a, errors_b))
    return segments


def matched_pairs(segments: Sequence[tuple[int, int]]) -> MatchedPairs:
    """NIST's matched-pair sentence-segment word-error test on segments of :func:`segment_errors`.

    z = mean / (s / sqrt(n)) of the n differences with the unbiased s; p from the normal distribution, two-sided.
    Systems that never differ have z = 0 and p = 1. One segment cannot tell: p = 1.
    """
    z_values = np.array([a - b for a, b in segments], dtype=np.float64)
    if len(z_values) == 0:
        return MatchedPairs(0, 0.0, 0.0, 1.0)
    mean = float(z_values.mean())
    if len(z_values) < 2:
        return MatchedPairs(1, mean, 0.0, 1.0)
    spread = float(z_values.std(ddof=1))
    if spread == 0.0:
        z = 0.0 if mean == 0.0 else math.copysign(math.inf, mean)
    else:
        z = mean / (spread / math.sqrt(len(z_values)))
    return MatchedPairs(len(z_values), mean, z, math.erfc(abs(z) / math.sqrt(2.0)))
