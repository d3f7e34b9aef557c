"""Do posteriors mean what they say, and are they the ensemble's? Frame posteriors of a network against a forced
alignment, and against those of another system."""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Iterator

import numpy as np

from essence_kd.io.errors import UserError

BINS = 15


@dataclass
class Calibration:
    """Frames by the confidence of their most probable class, in ``BINS`` equal parts of [0, 1].

    Expected calibration error: sum over bins of (share of frames) x |accuracy - mean confidence| (Guo et al., On
    Calibration of Modern Neural Networks, ICML 2017).
    """

    frames: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))  # (BINS,)
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(BINS))  # (BINS,) sums
    correct: np.ndarray = field(default_factory=lambda: np.zeros(BINS))  # (BINS,) sums
    nll: float = 0.0  # sum of -log p(label), nats

    def add(self, log_probs: np.ndarray, labels: np.ndarray) -> None:
        """Count frames.

        Args:
          log_probs: (R, C) log-probabilities.
          labels: (R,) pdf-ids.
        """
        best = log_probs.argmax(axis=1)
        rows = np.arange(len(best))
        confidence = np.exp(log_probs[rows, best].astype(np.float64))
        where = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self.frames += np.bincount(where, minlength=BINS)
        self.confidence += np.bincount(where, weights=confidence, minlength=BINS)
        self.correct += np.bincount(where, weights=best == labels, minlength=BINS)
        self.nll -= float(log_probs[rows, labels].sum(dtype=np.float64))

    def as_dict(self) -> dict[str, Any]:
        """frames, accuracy, mean confidence, ece, nll per frame, the bins as [frames, mean confidence, accuracy]."""
        total = int(self.frames.sum())
        some = np.maximum(self.frames, 1)
        bins = [[int(n), round(float(c), 5), round(float(a), 5)]
                for n, c, a in zip(self.frames, self.confidence / some, self.correct / some)]
        return {"frames": total, "accuracy": round(float(self.correct.sum()) / total, 5),
                "confidence": round(float(self.confidence.sum()) / total, 5),
                "ece": round(float(np.abs(self.correct - self.confidence).sum()) / total, 5),
                "nll": round(self.nll / total, 5), "bins": bins}


@dataclass
class Fidelity:
    """How near a network's posteriors are to those of another, which taught it."""

    frames: int = 0
    same: int = 0  # frames with the same best class
    divergence: float = 0.0  # sum of KL(teacher || network), nats

    def add(self, teacher: np.ndarray, network: np.ndarray) -> None:
        """Count frames: log-probabilities (R, C) of both."""
        self.frames += len(teacher)
        self.same += int((teacher.argmax(axis=1) == network.argmax(axis=1)).sum())
        wide = teacher.astype(np.float64)
        self.divergence += float((np.exp(wide) * (wide - network)).sum())

    def as_dict(self) -> dict[str, Any]:
        """The share of frames with the same best class, and the divergence per frame."""
        return {"same_best": round(self.same / max(1, self.frames), 5),
                "divergence": round(self.divergence / max(1, self.frames), 5)}


def _with_reference(table: str, reference: str | None, fidelity: Fidelity | None) -> Iterator[tuple[str, np.ndarray]]:
    """(utterance, matrix) of ``table``; each is counted in ``fidelity`` beside that of ``reference``, if there is one.

    Raises UserError where the two do not hold the same utterances in one order.
    """
    from essence_kd.io.tables import read_matrices

    others = iter(()) if reference is None else read_matrices(reference)
    for utt, matrix in read_matrices(table):
        if fidelity is not None:
            name, other = next(others, (None, np.zeros((0, 0))))
            if name != utt or other.shape != matrix.shape:
                raise UserError(f"{reference}: {name or 'nothing'} of {other.shape} where {table} has {utt} of "
                                f"{matrix.shape}: posteriors of different data")
            fidelity.add(other, matrix)
        yield utt, matrix
    for name, _ in others:
        raise UserError(f"{table}: lacks utterance {name} of {reference}: posteriors of different data")


def calibrate(rspecifiers: dict[str, list[str]], alignments: list[str], factor: int, nj: int = 1,
              reference: str | None = None) -> dict[str, Any]:
    """Calibration of systems over the same sets, ``nj`` systems at a time: tables are pipes that take their time.

    Args:
      rspecifiers: system -> tables of log-probabilities (ceil(T / factor), C), one per set.
      alignments: an scp of pdf-ids (T,) a set, 10 ms apart; utterances without an alignment are left out and counted.
      factor: feature frames an output row.
      reference: the system that the others' fidelity is measured against; its tables are read once for each of them.

    Raises:
      UserError: a length differs, a label is no column, no utterance is aligned, tables hold different utterances.
    """
    from essence_kd.io.parallel import in_turn
    from essence_kd.io.tables import IntVectorTable

    def one(name: str, tables: list[str]) -> dict[str, Any]:
        found, without = Calibration(), 0
        fidelity = None if reference in (None, name) else Fidelity()
        for turn, (table, scp) in enumerate(zip(tables, alignments)):
            labels_of = IntVectorTable(scp)
            for utt, log_probs in _with_reference(table, rspecifiers[reference][turn] if fidelity else None, fidelity):
                if utt not in labels_of:
                    without += 1
                    continue
                labels = np.asarray(labels_of[utt])[::factor]
                if len(labels) != len(log_probs):
                    raise UserError(f"{scp}: utterance {utt} has {len(labels)} rows, {name} has {len(log_probs)}; "
                                    "features and alignments are of different data")
                if labels.max(initial=0) >= log_probs.shape[1]:
                    raise UserError(f"{scp}: utterance {utt} has pdf-id {labels.max()}, {name} has "
                                    f"{log_probs.shape[1]} pdfs")
                found.add(log_probs, labels)
        if not found.frames.sum():
            raise UserError(f"{' '.join(alignments)}: align no utterance of {name} ({' '.join(tables)})")
        return {**found.as_dict(), "without_alignment": without, **(fidelity.as_dict() if fidelity else {})}

    systems = dict(zip(rspecifiers, in_turn(lambda item: one(*item), rspecifiers.items(), nj)))
    return {"labels": [os.fspath(scp) for scp in alignments], "reference": reference, "systems": systems}
