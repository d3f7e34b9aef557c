"""Accumulation, maximum-likelihood update and mixing up of GMMs, as array operations.

The formulas and constants are those of Kaldi's mle-diag-gmm.cc, diag-gmm.cc, model-common.cc and transition-model.cc.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from essence_kd.hmm.gmm import Gmm, TransitionTable, natural_parameters

MIN_OCCUPANCY, MIN_WEIGHT, MIN_VARIANCE = 10.0, 1e-5, 0.001
MIN_OCCUPANCY_FIRST = 3.0  # of the first update, from equal parts
SPLIT_POWER, SPLIT_MIN_COUNT, SPLIT_PERTURB = 0.25, 20.0, 0.01
TRANSITION_FLOOR, TRANSITION_MIN_COUNT = 0.01, 5.0


@dataclass
class Statistics:
    """Sums over frames, float64: occupancy (G,), first and second order (G, D), counts by transition-id (I + 1,)."""

    occupancy: np.ndarray
    first: np.ndarray
    second: np.ndarray
    transitions: np.ndarray
    log_likelihood: float = 0.0
    frames: int = 0

    def add(self, other: "Statistics") -> None:
        """Add another part's sums."""
        for name in ("occupancy", "first", "second", "transitions"):
            getattr(self, name)[...] += getattr(other, name)
        self.log_likelihood += other.log_likelihood
        self.frames += other.frames


def accumulate(model: Gmm, feats: np.ndarray, tids: np.ndarray, pdfs: np.ndarray) -> Statistics:
    """Statistics of float32 frames (N, D) with their transition-ids and pdf-ids, int (N,) each."""
    gauss, dim = model.means.shape
    out = Statistics(np.zeros(gauss), np.zeros((gauss, dim)), np.zeros((gauss, dim)),
                     np.bincount(tids, minlength=len(model.transitions)).astype(np.float64), 0.0, len(tids))
    params, const = natural_parameters(model.weights, model.means, model.variances)
    order = np.argsort(pdfs, kind="stable")
    bounds = np.searchsorted(pdfs[order], np.arange(model.num_pdfs + 1))
    for pdf in np.flatnonzero(np.diff(bounds)):
        own = slice(int(model.offsets[pdf]), int(model.offsets[pdf + 1]))
        for at in range(bounds[pdf], bounds[pdf + 1], 2048):  # blocks, so that float32 sums stay exact enough
            x = feats[order[at:min(at + 2048, bounds[pdf + 1])]]
            both = np.hstack([x, x * x])
            posterior = both @ params[own].T + const[own]
            top = posterior.max(axis=1, keepdims=True)
            np.exp(posterior - top, out=posterior)
            total = posterior.sum(axis=1, keepdims=True)
            out.log_likelihood += float((top + np.log(total)).sum(dtype=np.float64))
            posterior /= total
            sums = posterior.T @ both
            out.occupancy[own] += posterior.sum(axis=0, dtype=np.float64)
            out.first[own] += sums[:, :dim]
            out.second[own] += sums[:, dim:]
    return out


def update(model: Gmm, stats: Statistics, min_occupancy: float = MIN_OCCUPANCY) -> np.ndarray:
    """Maximum-likelihood update in place; returns each pdf's occupancy, float64 (C,).

    As Kaldi's MleDiagGmmUpdate: a Gaussian with too little data is removed, the last one of a pdf is kept as it was;
    variances are floored. Transition probabilities as in TransitionModel::MleUpdate.
    """
    owner = np.repeat(np.arange(model.num_pdfs), np.diff(model.offsets))
    of_pdf = np.bincount(owner, weights=stats.occupancy, minlength=model.num_pdfs)
    share = stats.occupancy / np.where(of_pdf > 0, of_pdf, 1.0)[owner]
    enough = (stats.occupancy > min_occupancy) & (share > MIN_WEIGHT)
    occ = np.where(enough, stats.occupancy, 1.0)[:, None]
    mean = np.where(enough[:, None], stats.first / occ, model.means)
    variance = np.where(enough[:, None], np.maximum(stats.second / occ - mean * mean, MIN_VARIANCE), model.variances)
    keep = enough.copy()
    for pdf in np.flatnonzero(np.bincount(owner, weights=enough, minlength=model.num_pdfs) == 0):
        own = np.arange(model.offsets[pdf], model.offsets[pdf + 1])
        keep[own[-1]] = True
        share[own[-1]] = 1.0
    weight = np.where(keep, share, 0.0)
    weight /= np.bincount(owner, weights=weight, minlength=model.num_pdfs)[owner]
    model.weights, model.means, model.variances = weight[keep], mean[keep], variance[keep]
    model.offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=model.num_pdfs))])
    _update_transitions(model, stats.transitions)
    return of_pdf


def _update_transitions(model: Gmm, counts: np.ndarray) -> None:
    row = TransitionTable.of(model.topo).row
    states = row.max() + 1
    valid = row >= 0
    total = np.bincount(row[valid], weights=counts[valid], minlength=states)
    probs = counts / np.where(total > 0, total, 1.0)[row]
    for _ in range(3):
        scale = np.bincount(row[valid], weights=probs[valid], minlength=states)
        probs = np.maximum(probs / np.where(scale > 0, scale, 1.0)[row], TRANSITION_FLOOR)
    model.transitions = np.where(valid & (total >= TRANSITION_MIN_COUNT)[row], probs, model.transitions)


def split_targets(occupancy: np.ndarray, target: int) -> np.ndarray:
    """How many Gaussians each pdf shall have so that there are `target` in all: int64 (C,) (Kaldi's GetSplitTargets).

    occupancy: float64 (C,). A pdf gets another Gaussian only where each has SPLIT_MIN_COUNT frames.
    """
    import heapq

    sizes = np.ones(len(occupancy), dtype=np.int64)
    power = occupancy ** SPLIT_POWER
    heap = [(-p, i) for i, p in enumerate(power)]
    heapq.heapify(heap)
    total = len(sizes)
    while total < target and heap:
        _, i = heapq.heappop(heap)
        if (sizes[i] + 1) * SPLIT_MIN_COUNT < occupancy[i]:
            sizes[i] += 1
            total += 1
            heapq.heappush(heap, (-power[i] / sizes[i], i))
    return sizes


def mix_up(model: Gmm, occupancy: np.ndarray, target: int, rng: np.random.Generator) -> None:
    """Split Gaussians in place until there are about `target` (Kaldi's DiagGmm::Split): the heaviest of a pdf first,
    its halves moved apart by SPLIT_PERTURB standard deviations times a Gaussian random vector.

    occupancy: float64 (C,), what :func:`update` returned.
    """
    wanted = split_targets(occupancy, target)
    weights, means, variances, sizes = [], [], [], []
    for pdf in range(model.num_pdfs):
        own = slice(int(model.offsets[pdf]), int(model.offsets[pdf + 1]))
        w, m, v = list(model.weights[own]), list(model.means[own]), list(model.variances[own])
        while len(w) < wanted[pdf]:
            i = int(np.argmax(w))
            step = SPLIT_PERTURB * np.sqrt(v[i]) * rng.standard_normal(len(v[i]))
            w[i] /= 2
            w.append(w[i])
            m.append(m[i] + step)
            m[i] = m[i] - step
            v.append(v[i])
        weights += w
        means += m
        variances += v
        sizes.append(len(w))
    model.weights, model.means, model.variances = np.array(weights), np.array(means), np.array(variances)
    model.offsets = np.concatenate([[0], np.cumsum(sizes)])
