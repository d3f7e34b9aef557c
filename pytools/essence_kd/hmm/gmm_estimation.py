"""Accumulation, maximum-likelihood update and mixing up of GMMs, as array operations.

The formulas and constants are those of Kaldi's mle-diag-gmm.cc, diag-gmm.cc, model-common.cc and transition-model.cc.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, List, Optional, Tuple

import numpy as np

from essence_kd.hmm.feature_transforms import FeatureSetup
from essence_kd.hmm.gmm import Gmm, natural_parameters
from essence_kd.hmm.lang import Topology
from essence_kd.hmm.transition_model import TransitionModel
from essence_kd.hmm.tree import Tree
from essence_kd.hmm.tree_building import MIN_VARIANCE as MIN_TREE_VARIANCE
from essence_kd.hmm.tree_building import TreeStats

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


@dataclass
class Frames:
    """N aligned frames, those of a pdf one after the other.

    order: int64 (N,), the frame that each row is; bounds: int64 (C + 1,), pdf c has rows bounds[c] to bounds[c + 1];
    feats: float32 (N, D), in that order; transitions: float64 (I + 1,), frames by transition-id.
    """

    order: np.ndarray
    bounds: np.ndarray
    feats: np.ndarray
    transitions: np.ndarray

    @classmethod
    def of(cls, feats: np.ndarray, tids: np.ndarray, transitions: TransitionModel) -> "Frames":
        """Of features (n, D) and transition-ids, int (n,); frames of transition-id 0 are left out."""
        pdfs = np.where(tids > 0, transitions.pdf[tids], -1)
        order = np.argsort(pdfs, kind="stable")[int((tids <= 0).sum()):]
        bounds = np.searchsorted(pdfs[order], np.arange(transitions.num_pdfs + 1))
        counts = np.bincount(tids, minlength=transitions.num_ids + 1).astype(np.float64)
        counts[0] = 0.0
        return cls(order, bounds, feats[order], counts)


def posteriors(model: Gmm, frames: Frames,
               skip: Iterable[int] = ()) -> Iterator[Tuple[slice, slice, np.ndarray, float]]:
    """Blocks of frames of one pdf: (rows, the pdf's Gaussians, their posteriors float32 (n, g), summed log-likelihood).

    skip: pdf-ids that are left out.
    """
    params, const = natural_parameters(model.weights, model.means, model.variances)
    linear, square = np.hsplit(params, 2)
    skip, bounds, offsets = set(skip), frames.bounds.tolist(), model.offsets.tolist()
    for pdf in np.flatnonzero(np.diff(frames.bounds)).tolist():
        if pdf in skip:
            continue
        own = slice(offsets[pdf], offsets[pdf + 1])
        a, b, c = linear[own].T, square[own].T, const[own]
        for at in range(bounds[pdf], bounds[pdf + 1], 2048):  # blocks, so that float32 sums stay exact enough
            rows = slice(at, min(at + 2048, bounds[pdf + 1]))
            x = frames.feats[rows]
            posterior = x @ a
            posterior += (x * x) @ b
            posterior += c
            top = posterior.max(axis=1, keepdims=True)
            posterior -= top
            np.exp(posterior, out=posterior)
            total = posterior.sum(axis=1, keepdims=True)
            posterior /= total
            yield rows, own, posterior, float(top.sum(dtype=np.float64) + np.log(total).sum(dtype=np.float64))


def accumulate(model: Gmm, frames: Frames, other: Optional[np.ndarray] = None) -> Statistics:
    """Statistics of aligned frames.

    other: features (n, D) of all frames of which sums are taken, in the place of those that give the posteriors
    (Kaldi's gmm-acc-stats-twofeats).
    """
    gauss, dim = model.means.shape
    out = Statistics(np.zeros(gauss), np.zeros((gauss, dim)), np.zeros((gauss, dim)), frames.transitions.copy(), 0.0,
                     len(frames.order))
    for rows, own, posterior, log_likelihood in posteriors(model, frames):
        x = frames.feats[rows] if other is None else other[frames.order[rows]]
        out.log_likelihood += log_likelihood
        out.occupancy[own] += posterior.sum(axis=0, dtype=np.float64)
        out.first[own] += posterior.T @ x
        out.second[own] += posterior.T @ (x * x)
    return out


def accumulate_mllt(model: Gmm, frames: Frames, skip: Iterable[int] = ()) -> Tuple[float, np.ndarray]:
    """(Frames, products float64 (D, D, D)) for feature_transforms.estimate_mllt, without those of the pdfs `skip`."""
    dim, total = model.dim, 0
    products = np.zeros((dim, dim * dim))
    for rows, own, posterior, _ in posteriors(model, frames, skip):
        x = frames.feats[rows]
        gauss = posterior.shape[1]
        total += len(x)
        weighted = (posterior[:, :, None] * x[:, None, :]).reshape(len(x), -1)  # (n, g D)
        second = (weighted.T @ x).reshape(gauss, dim, dim).astype(np.float64)
        first = weighted.sum(axis=0, dtype=np.float64).reshape(gauss, dim)
        mean, count = model.means[own], posterior.sum(axis=0, dtype=np.float64)
        cross = first[:, :, None] * mean[:, None, :]
        second += count[:, None, None] * mean[:, :, None] * mean[:, None, :] - cross - cross.transpose(0, 2, 1)
        products += (1.0 / model.variances[own]).T @ second.reshape(gauss, -1)
    return float(total), products.reshape(dim, dim, dim)


def speaker_sums(model: Gmm, frames: Frames, of: Gmm, skip: Iterable[int] = ()) -> Tuple[np.ndarray, np.ndarray,
                                                                                        np.ndarray]:
    """For feature_transforms.FmllrStats: (rows, int (n,), of the frames that are not of the pdfs `skip`; sums over
    Gaussians of posterior * mean / variance, and of posterior / variance, float32 (N, D) each). Posteriors are of
    `model`, means and variances of `of`."""
    scaled, precision = np.zeros_like(frames.feats), np.zeros_like(frames.feats)
    used = np.zeros(len(frames.feats), dtype=bool)
    inverse = (1.0 / of.variances).astype(np.float32)
    means = (of.means / of.variances).astype(np.float32)
    for rows, own, posterior, _ in posteriors(model, frames, skip):
        scaled[rows], precision[rows], used[rows] = posterior @ means[own], posterior @ inverse[own], True
    return np.flatnonzero(used), scaled, precision


def of_tree_stats(stats: TreeStats, tree: Tree, topo: dict[int, Topology], phones: List[str],
                  features: FeatureSetup) -> Gmm:
    """A model with one Gaussian for each pdf, from the statistics that its tree was built on (Kaldi's gmm-init-model).

    A pdf without frames gets the mean and variance of all.
    """
    pdfs = tree.num_pdfs
    at = tree.pdfs(stats.events[:, 1:], stats.events[:, 0])
    rows = stats.rows()
    sums = np.zeros((pdfs, rows.shape[1]))
    np.add.at(sums, at, rows)
    sums[sums[:, 0] <= 0] = rows.sum(axis=0)
    dim = stats.first.shape[1]
    means = sums[:, 1:1 + dim] / sums[:, :1]
    variances = np.maximum(sums[:, 1 + dim:] / sums[:, :1] - means * means, MIN_TREE_VARIANCE)
    return Gmm(phones, tree, TransitionModel.of_tree(tree, topo), np.arange(pdfs + 1), np.ones(pdfs), means, variances,
               features)


def update(model: Gmm, stats: Statistics, min_occupancy: float = MIN_OCCUPANCY, remove: bool = True) -> np.ndarray:
    """Maximum-likelihood update in place; returns each pdf's occupancy, float64 (C,).

    As Kaldi's MleDiagGmmUpdate: a Gaussian with too little data is removed (or, without `remove`, kept as it was), the
    last one of a pdf is kept as it was; variances are floored. Transition probabilities as in
    TransitionModel::MleUpdate.
    """
    owner = np.repeat(np.arange(model.num_pdfs), np.diff(model.offsets))
    of_pdf = np.bincount(owner, weights=stats.occupancy, minlength=model.num_pdfs)
    share = stats.occupancy / np.where(of_pdf > 0, of_pdf, 1.0)[owner]
    enough = (stats.occupancy > min_occupancy) & (share > MIN_WEIGHT)
    occ = np.where(enough, stats.occupancy, 1.0)[:, None]
    mean = np.where(enough[:, None], stats.first / occ, model.means)
    variance = np.where(enough[:, None], np.maximum(stats.second / occ - mean * mean, MIN_VARIANCE), model.variances)
    keep = enough.copy() if remove else np.ones_like(enough)
    for pdf in np.flatnonzero(np.bincount(owner, weights=enough, minlength=model.num_pdfs) == 0):
        own = np.arange(model.offsets[pdf], model.offsets[pdf + 1])
        keep[own[-1]] = True
        share[own[-1]] = 1.0
    weight = np.where(keep, share if remove else np.maximum(share, MIN_WEIGHT), 0.0)
    weight /= np.bincount(owner, weights=weight, minlength=model.num_pdfs)[owner]
    model.weights, model.means, model.variances = weight[keep], mean[keep], variance[keep]
    model.offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=model.num_pdfs))])
    _update_transitions(model, stats.transitions)
    return of_pdf


def _update_transitions(model: Gmm, counts: np.ndarray) -> None:
    row = model.transitions.row
    states = row.max() + 1
    valid = row >= 0
    total = np.bincount(row[valid], weights=counts[valid], minlength=states)
    probs = counts / np.where(total > 0, total, 1.0)[row]
    for _ in range(3):
        scale = np.bincount(row[valid], weights=probs[valid], minlength=states)
        probs = np.maximum(probs / np.where(scale > 0, scale, 1.0)[row], TRANSITION_FLOOR)
    old = model.transitions.probs
    model.transitions.probs = np.where(valid & (total >= TRANSITION_MIN_COUNT)[row], probs, old)


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
