"""The best path through a state graph (hmm.training_graph): a compiled kernel, and NumPy where there is none."""
from __future__ import annotations

from typing import Optional, Tuple

import numpy as np

from essence_kd.hmm.training_graph import StateGraph
from essence_kd.io.kernels import kernels, pointer

MAX_CELLS = 2 << 30  # frames times states that are searched at once: 4 GiB of back pointers
MAX_ARCS = 65535  # that enter one state


def best_path(graph: StateGraph, scores: np.ndarray) -> Optional[Tuple[np.ndarray, float]]:
    """(States, int32 (T,), cost) of the cheapest path; None where no path has so many frames, and
    where they are too many to search.

    scores: float32 (T, c), scaled log-likelihoods of `graph.pdfs`. Every path is looked at; there is no beam. Of paths
    of the same cost it is the one that stays longest in later states.
    """
    frames = len(scores)
    if not frames or frames * graph.num_states > MAX_CELLS or np.diff(graph.first_arc).max() > MAX_ARCS:
        return None
    library = kernels()
    if library is None:
        return _best_path(graph, scores)
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    path = np.empty(frames, dtype=np.int32)
    cost = np.empty(1, dtype=np.float64)
    done = library.viterbi(
        pointer(scores), frames, scores.shape[1], graph.num_states, pointer(graph.pdf), pointer(graph.loop),
        pointer(graph.first_arc), pointer(graph.src), pointer(graph.cost), pointer(graph.enter), pointer(graph.leave),
        pointer(path), pointer(cost))
    if done < 0:
        raise MemoryError(f"{frames} frames and {graph.num_states} states")
    return (path, float(cost[0])) if done else None


def _best_path(graph: StateGraph, scores: np.ndarray) -> Optional[Tuple[np.ndarray, float]]:
    """The same in NumPy, which is what the kernel's results are held to."""
    frames, states = len(scores), graph.num_states
    dst = np.repeat(np.arange(states), np.diff(graph.first_arc))
    back = np.zeros((frames, states), dtype=np.uint16)  # 0: the self-loop, n: the n-th arc that enters
    rank = np.arange(len(dst)) - graph.first_arc[dst] + 1
    alpha = graph.enter.astype(np.float64) - scores[0, graph.pdf]
    for t in range(1, frames):
        best = alpha + graph.loop
        come = alpha[graph.src] + graph.cost
        for n in np.flatnonzero(come < best[dst]).tolist():
            if come[n] < best[dst[n]]:
                best[dst[n]] = come[n]
                back[t, dst[n]] = rank[n]
        alpha = best - scores[t, graph.pdf]
    total = alpha + graph.leave
    state = int(np.argmin(total))
    if not np.isfinite(total[state]):
        return None
    path = np.empty(frames, dtype=np.int32)
    for t in range(frames - 1, -1, -1):
        path[t] = state
        if back[t, state]:
            state = int(graph.src[graph.first_arc[state] + back[t, state] - 1])
    return path, float(total[path[-1]])
