"""What a posterior archive holds, before any training: retained mass f_k, entropy, agreement, sizes, a forecast.

f_k is the mean over frames of the sum of the k largest probabilities (the first figure of Yang et al. 2019).
"""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from essence_kd.distill.archives import (Progress, Tally, check_kind, check_sidecars, frame_error, num_utterances,
                                         read_dense_or_sparse, sidecar_of)
from essence_kd.distill.essence import EssenceSettings, select
from essence_kd.distill.mix import Alignments, factor_of, subsample
from essence_kd.distill.scales import Scale, to_probabilities
from essence_kd.io import compact
from essence_kd.io.errors import UserError
from essence_kd.io.objects import StoredMatrix
from essence_kd.io.parallel import ahead
from essence_kd.io.posterior import Posterior
from essence_kd.io.tables import read_matrices

MASSES = (0.9, 0.95, 0.99)
_ROWS = 1 << 20  # elements that are looked at together


@dataclass
class Statistics:
    """Sums over frames; `summary` divides. Entries beyond those of a sparse archive are not seen."""

    num_utts: int = 0
    num_frames: int = 0
    num_pdfs: int = 0  # columns, or the most entries of a frame
    ranked: np.ndarray = field(default_factory=lambda: np.zeros(0))  # sum of the 1st, 2nd, ... largest probability
    needed: List[np.ndarray] = field(default_factory=lambda: [np.zeros(1, np.int64) for _ in MASSES])
    entropy: float = 0.0
    aligned_frames: int = 0
    aligned_utts: int = 0
    top1: int = 0
    aligned_mass: float = 0.0
    ranks: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # frames whose aligned pdf is the r-th

    def add(self, ids: Optional[np.ndarray], probs: np.ndarray, alignment: Optional[np.ndarray]) -> None:
        """Some frames: probs (R, W); ids (R, W) where W is not all pdfs (entries of probability 0 are padding)."""
        self.num_frames += len(probs)
        ordered = -np.sort(-probs, axis=1)
        self.ranked = _added(self.ranked, ordered.sum(axis=0, dtype=np.float64))
        mass = np.cumsum(ordered, axis=1, dtype=np.float64)
        for i, wanted in enumerate(MASSES):  # W + 1: all that is here does not reach it
            self.needed[i] = _added(self.needed[i], np.bincount((mass < wanted - 1e-6).sum(axis=1) + 1))
        seen = np.where(ordered > 0, ordered, np.float32(1))
        self.entropy -= float((seen * np.log(seen)).sum(dtype=np.float64))
        if alignment is None:
            return
        if ids is None:
            at = np.take_along_axis(probs, alignment[:, None].astype(np.int64), axis=1)[:, 0]
            ahead_of_it = (probs > at[:, None]).sum(axis=1) + \
                ((probs == at[:, None]) & (np.arange(probs.shape[1]) < alignment[:, None])).sum(axis=1)
        else:
            here = (ids == alignment[:, None]) & (probs > 0)
            at = np.where(here.any(axis=1), (probs * here).sum(axis=1), 0)
            larger = (probs > at[:, None]) | ((probs == at[:, None]) & (ids < alignment[:, None]))
            ahead_of_it = np.where(here.any(axis=1), larger.sum(axis=1), probs.shape[1])
        self.aligned_frames += len(probs)
        self.top1 += int((ahead_of_it == 0).sum())
        self.aligned_mass += float(at.sum(dtype=np.float64))
        self.ranks = _added(self.ranks, np.bincount(ahead_of_it))

    def retained(self) -> np.ndarray:
        """f_k for k = 1, 2, ...: (W,) float64."""
        return np.cumsum(self.ranked) / max(1, self.num_frames)

    def summary(self) -> Dict[str, Any]:
        """Means over frames, ready for JSON."""
        f = self.retained()
        result: Dict[str, Any] = {
            "num_utts": self.num_utts, "num_frames": self.num_frames, "f_k": [float(x) for x in f],
            "mean_mass": float(f[-1]) if len(f) else None,
            "entropy_nats": self.entropy / max(1, self.num_frames),
            "perplexity": float(np.exp(self.entropy / max(1, self.num_frames))), "k_for_mass": {}}
        for wanted, counts in zip(MASSES, self.needed):
            share = np.cumsum(counts) / max(1, self.num_frames)
            width = len(self.ranked)
            reach = {name: int(np.searchsorted(share, q - 1e-12))
                     for name, q in (("median", 0.5), ("percentile_95", 0.95))}
            mean = np.flatnonzero(f >= wanted - 1e-6)
            result["k_for_mass"][f"{wanted:g}"] = {
                "mean": int(mean[0]) + 1 if len(mean) else None,
                **{name: k if k <= width else None for name, k in reach.items()}}
        if self.aligned_frames:
            recall = np.cumsum(self.ranks) / self.aligned_frames
            at = [k for k in (1, 2, 5, 10, 20, 40, 100) if k <= len(self.ranked)]
            result["alignment"] = {
                "num_utts": self.aligned_utts, "num_frames": self.aligned_frames,
                "top1_agreement": self.top1 / self.aligned_frames,
                "mean_probability": self.aligned_mass / self.aligned_frames,
                "recall_at_k": {str(k): float(recall[min(k, len(recall)) - 1]) for k in at}}
        return result


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b, the shorter filled up with zeros."""
    if len(a) < len(b):
        a, b = b, a
    total = a.copy()
    total[:len(b)] += b
    return total


@dataclass
class Disagreement:
    """How far teachers are from the ensemble and from each other; sums over frames."""

    names: Sequence[str]
    num_frames: int = 0

    def __post_init__(self):
        self.divergence = np.zeros(len(self.names))
        self.same_top1 = np.zeros((len(self.names) + 1, len(self.names) + 1))

    def add(self, ensemble: np.ndarray, teachers: Sequence[np.ndarray]) -> None:
        """Posteriors (T, C) float32 of the ensemble and of each teacher."""
        self.num_frames += len(ensemble)
        log_ensemble = np.log(np.maximum(ensemble, np.float32(1e-37)))
        for i, teacher in enumerate(teachers):
            terms = teacher * (np.log(np.maximum(teacher, np.float32(1e-37))) - log_ensemble)
            self.divergence[i] += float(terms.sum(dtype=np.float64))
        best = [posterior.argmax(axis=1) for posterior in (*teachers, ensemble)]
        for i, one in enumerate(best):
            for j, other in enumerate(best):
                self.same_top1[i, j] += int((one == other).sum())

    def summary(self) -> Dict[str, Any]:
        """KL(teacher || ensemble) in nats, and the share of frames with another best class, for each pair."""
        frames = max(1, self.num_frames)
        return {"teachers": list(self.names), "kl_from_ensemble_nats": (self.divergence / frames).tolist(),
                "top1_differs": (1 - self.same_top1 / frames).tolist(),
                "top1_differs_order": [*self.names, "ensemble"]}


def collect(rspecifier: str, *, kind: Optional[str] = None, alignments: Optional[str] = None,
            factor: Optional[int] = None, teachers: Sequence[str] = (), teacher_kind: Optional[str] = None,
            max_frames: int = 0, every: int = 1, threads: Optional[int] = None) -> Dict[str, Any]:
    """Statistics of a table of posteriors (matrices or sparse), as a dictionary for JSON.

    ``alignments``: rspecifier of pdf-ids; ``teachers``: tables of matrices of ``teacher_kind`` (None: as ``kind``), in
    the same order; ``max_frames``: stop after so many (0: all); ``every``: look at the first utterance and every so
    many-th after it. Raises UserError.
    """
    fields = sidecar_of(rspecifier)
    if alignments:
        check_sidecars(rspecifier, alignments, ("num_pdfs", "tree_hash"))
    for teacher in teachers:
        check_sidecars(rspecifier, teacher, ("num_pdfs", "tree_hash", "frame_shift_ms"))
    statistics, tally = Statistics(), Tally()
    source = Alignments(alignments) if alignments else None
    streams = [read_matrices(teacher) for teacher in teachers]
    disagreement = Disagreement(teachers)
    factor = factor_of(rspecifier, factor)
    there = num_utterances(rspecifier)
    progress = Progress("post-stats", None if there is None else -(-there // every))
    scale = Scale(kind if kind in ("prob", "log", "logit") else "prob")
    teacher_scale = Scale(teacher_kind or scale.kind)
    num_pdfs, sparse = fields.get("num_pdfs"), False
    select_seconds, selected = 0.0, 0
    value: Any
    for number, (utt, value) in enumerate(ahead(read_dense_or_sparse(rspecifier, stored=every > 1))):
        if number % every:
            for stream in streams:
                next(stream, None)
            continue
        if isinstance(value, StoredMatrix):
            value = value[:]
        sparse = isinstance(value, Posterior)
        check_kind(rspecifier, utt, sparse, kind)
        alignment = None if source is None else source.get(utt)
        try:
            if sparse:
                if teachers:
                    raise ValueError("sparse, but teachers are compared with whole posteriors (matrices)")
                ids, probs = value.as_targets(num_pdfs).padded()
            else:
                if value.size and value.shape[1] != (num_pdfs or value.shape[1]):
                    raise ValueError(f"{value.shape[1]} columns, but there are {num_pdfs} pdfs")
                num_pdfs = num_pdfs or value.shape[1] or None
                began = time.perf_counter()
                usual = EssenceSettings(top_k=min(EssenceSettings.top_k, max(1, value.shape[1])))
                select(value, usual, kind=scale.kind, threads=threads)
                select_seconds, selected = select_seconds + time.perf_counter() - began, selected + len(value)
                ids, probs = None, to_probabilities(value, scale, threads=threads)
            if alignment is not None:
                alignment = subsample(alignment, len(probs), factor)
                if len(alignment) and not 0 <= alignment.min() <= alignment.max() < (num_pdfs or 1 << 31):
                    raise ValueError(f"its alignment has pdf-ids from {alignment.min()} to {alignment.max()}")
                statistics.aligned_utts += 1
            others = []
            for name, stream in zip(teachers, streams):
                other, matrix = next(stream, (None, None))
                if other != utt or matrix.shape != value.shape:
                    raise ValueError(f"{name} has {'nothing' if other is None else other + ' ' + str(matrix.shape)} "
                                     f"where this has {value.shape}")
                others.append(to_probabilities(matrix, teacher_scale, threads=threads))
        except ValueError as error:
            raise frame_error(rspecifier, utt, error) from None
        step = max(1, _ROWS // max(1, probs.shape[1]))
        for start in range(0, len(probs), step):
            rows = slice(start, start + step)
            statistics.add(None if ids is None else ids[rows], probs[rows],
                           None if alignment is None else alignment[rows])
        if others:
            disagreement.add(probs, others)
        statistics.num_utts += 1
        tally.add(len(probs), probs.size, probs.sum(axis=1))
        progress.show(tally)
        if max_frames and statistics.num_frames >= max_frames:
            break
    else:
        for name, stream in zip(teachers, streams):
            extra, _ = next(stream, (None, None))
            if extra is not None:
                raise UserError(f"{name}: has utterance {extra} after {rspecifier} has ended; they must hold the same "
                                "utterances")
    if not statistics.num_frames:
        raise UserError(f"{rspecifier}: holds no frame")
    if not len(statistics.ranked):
        raise UserError(f"{rspecifier}: none of its frames holds an entry")
    if source is not None and not statistics.aligned_utts:
        raise UserError(f"{alignments}: aligns no utterance of {rspecifier}")
    result = {"source": rspecifier, "num_pdfs": num_pdfs, "frame_shift_ms": fields.get("frame_shift_ms"),
              "form": "sparse" if sparse else "dense", "mass": fields.get("mass"), **statistics.summary()}
    if teachers:
        result["disagreement"] = disagreement.summary()
    if selected:
        result["select_frames_per_second"] = selected / max(1e-9, select_seconds)
    return result


def bytes_per_frame(num_pdfs: Optional[int], keep: int, k: int) -> Dict[str, float]:
    """Bytes that one frame takes on disk in each form (headers of utterances left out)."""
    sizes: Dict[str, float] = {} if num_pdfs is None else {"dense": 4.0 * num_pdfs}
    wide = keep if num_pdfs is None else min(keep, num_pdfs)
    sizes.update(wide=5.0 + 10 * wide, essence=5.0 + 10 * k, compact=2.0 + compact.widths(num_pdfs or 16384)[1] * k)
    return sizes


def forecast(sizes: Dict[str, float], hours: float, frame_shift_ms: float,
             frames_per_second: Optional[float]) -> Dict[str, Union[float, None]]:
    """Frames, bytes and seconds for a corpus of ``hours`` at one output frame every ``frame_shift_ms``."""
    frames = hours * 3600 * 1000 / frame_shift_ms
    result: Dict[str, Union[float, None]] = {"hours": hours, "frame_shift_ms": frame_shift_ms, "frames": frames}
    result.update({f"{form}_bytes": size * frames for form, size in sizes.items()})
    result["select_seconds"] = frames / frames_per_second if frames_per_second else None
    return result


def plot(result: Dict[str, Any], path: str, kind: str) -> None:
    """f_k against k (logarithmic), as an image (png, pdf, svg); the k for 90, 95 and 99 % of the mass are marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    f = np.array(result["f_k"])
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.semilogx(np.arange(1, len(f) + 1), f, marker="." if len(f) <= 200 else None)
    for mass, reach in result["k_for_mass"].items():
        if reach["mean"] is not None:
            axes.plot([1, reach["mean"], reach["mean"]], [float(mass), float(mass), 0], linewidth=0.8, color="grey")
            axes.annotate(f"k = {reach['mean']}: {float(mass):.0%}", (reach["mean"], float(mass)), fontsize=8,
                          xytext=(4, -10), textcoords="offset points")
    axes.set_xlabel("k")
    axes.set_ylabel("mean mass of the k largest posteriors")
    axes.set_xlim(1, max(2, len(f)))
    axes.set_ylim(max(0.0, float(f[0]) - 0.1), 1.01)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150, format=kind)
    pyplot.close(figure)
