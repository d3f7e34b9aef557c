"""The entries that frames keep: few (pdf-id, probability) pairs per frame, by falling probability and rising id.

Legend: T frames, n entries of all frames together, W the most entries of a frame.
"""
from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from essence_kd.distill.largest import rank
from essence_kd.distill.scales import SUM_TOLERANCE, FrameError


class Entries(NamedTuple):
    """Entries that a rule chooses from, by frame; row t has counts[t]."""

    ids: np.ndarray  # (T, W) int32
    probs: np.ndarray  # (T, W) float32, 0 beyond counts
    counts: np.ndarray  # (T,) int64


class Essence(NamedTuple):
    """The kept entries of T frames: frame t has entries offsets[t] to offsets[t + 1].

    >>> import numpy as np
    >>> from essence_kd import Essence, EssenceSettings, select
    >>> posteriors = np.array([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]], np.float32)
    >>> essence: Essence = select(posteriors, EssenceSettings(top_k=1, mass="keep"))
    >>> essence.offsets.tolist(), essence.ids.tolist(), essence.probs.tolist(), essence.kept.tolist()
    ([0, 1, 2], [1, 2], [0.5, 1.0], [0.5, 1.0])
    """

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



def all_of(ids: np.ndarray, probs: np.ndarray) -> Entries:
    """Entries (T, W) of which every frame has W."""
    return Entries(ids, probs, np.full(len(ids), ids.shape[1], np.int64))


def listed(frames: Sequence[Sequence[Tuple[int, float]]], probs: np.ndarray) -> Entries:
    """Entries that are written as a list of (pdf-id, probability) for each row of ``probs`` (T, C); a frame without
    entries keeps its largest."""
    frames = [list(entries) or [(int(np.argmax(row)), row.max())] for entries, row in zip(frames, probs)]
    flat = [entry for entries in frames for entry in entries]
    rows = np.repeat(np.arange(len(frames)), [len(entries) for entries in frames])
    ids, values = np.array([c for c, _ in flat], np.int64), np.array([p for _, p in flat], np.float32)
    return sort_entries(rows, ids, values, len(frames))


def put_together(parts: dict) -> List[np.ndarray]:
    """(rows, ids, values) of blocks of rows, put together."""
    return [np.concatenate([parts[start][i] for start in sorted(parts)]) for i in range(3)]


def check_entries(rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int) -> None:
    """Raise FrameError where entries are not probabilities of pdfs."""
    good = (probs >= 0) & (probs <= np.float32(1 + SUM_TOLERANCE)) & (ids >= 0)
    if not good.all():
        at = int(np.argmin(good))
        raise FrameError(int(rows[at]), f"pdf-id {int(ids[at])} has probability {float(probs[at]):.4g}")
    mass = np.bincount(rows, weights=probs, minlength=frames)
    if (mass > 1 + SUM_TOLERANCE).any():
        frame = int(np.argmax(mass))
        raise FrameError(frame, f"its probabilities sum to {mass[frame]:.4g}, more than 1")


def sort_entries(rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int) -> Entries:
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
    return Entries(sorted_ids, sorted_probs, counts)


def mass_of(offsets: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """(T,) float64: the sum of each frame's entries."""
    counts = np.diff(offsets)
    if len(counts) and (counts == counts[0]).all():
        return probs.reshape(len(counts), -1).sum(axis=1, dtype=np.float64)
    return np.bincount(np.repeat(np.arange(len(counts)), counts), weights=probs, minlength=len(counts))
