"""The compiled kernel of the rules that have a threshold."""
from __future__ import annotations

from typing import List, Optional

import numpy as np

from essence_kd.distill.entries import Entries
from essence_kd.distill.rows import over_many_rows, whereabouts
from essence_kd.distill.scales import SUM_TOLERANCE, Matrix
from essence_kd.io.kernels import kernels, pointer


def compiled_over_threshold(probs: Matrix, threshold: float, starts: Optional[np.ndarray],
                            threads: Optional[int]) -> Optional[Entries]:
    """min-post (starts None) or random-prune (starts (T,) float64) of probabilities (T, C) by the kernel, which checks
    them; None where it is missing or refuses a row."""
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
        if library.over_threshold(*whereabouts(probs, rows), size, columns, threshold,
                                  pointer(None if starts is None else starts[rows]), 1 + SUM_TOLERANCE,
                                  0.99 * SUM_TOLERANCE, most, pointer(counts[rows]), pointer(ids[rows]),
                                  pointer(values[rows])) != size:
            unfinished.append(rows.start)

    over_many_rows(work, probs, threads)
    if unfinished:
        return None
    width = int(counts.max())
    ids, values = ids[:, :width], values[:, :width]
    beyond = np.arange(width) >= counts[:, None]
    ids[beyond] = values[beyond] = 0
    return Entries(ids, values, counts)
