"""Linear transforms of features: LDA, MLLT (semi-tied covariances) and fMLLR (speaker adaptation).

The estimates are those of Kaldi's transform/lda-estimate.cc, transform/mllt.cc and transform/fmllr-diag-gmm.cc
(M. J. F. Gales: Maximum likelihood linear transformations for HMM-based speech recognition, 1998; Semi-tied covariance
matrices for hidden Markov models, 1999).
"""
from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

import numpy as np

from essence_kd.hmm.kaldi_objects import BinaryReader, ObjectWriter, TextReader
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write, write_text
from essence_kd.io.text import read_text, split

MIN_FRAMES = 500.0  # of a speaker, for a transform of its own
MAX_CONDITION = 1e14  # of a speaker's statistics, which are singular beyond it
MLLT_PASSES, FMLLR_PASSES = 200, 40


@dataclass
class FeatureSetup:
    """What a GMM sees of MFCC with the speaker's mean taken away.

    matrix: None: the MFCC with first and second derivatives; else float32 (D, M) of D dimensions, applied to the frames
    from `left` before to `right` after, one after the other (M of them or, with an offset in the last column, M - 1).
    """

    left: int = 0
    right: int = 0
    matrix: Optional[np.ndarray] = None

    def dim(self, static: int) -> int:
        """The dimension of what comes of `static` MFCC."""
        return 3 * static if self.matrix is None else len(self.matrix)

    def fits(self, static: int) -> bool:
        """Whether so many MFCC can be used."""
        return self.matrix is None or self.matrix.shape[1] - (self.left + self.right + 1) * static in (0, 1)

    def apply(self, feats: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """float32 (N, D) of normalised MFCC (N, static).

        first, last: int (N,), the first and last frame of the utterance that each frame belongs to; what lies beyond
        them is the frame at the edge, as in Kaldi's add-deltas and splice-feats.
        """
        if self.matrix is None:
            return add_deltas(feats, first, last)
        out = np.empty((len(feats), len(self.matrix)), dtype=np.float32)
        offsets = np.arange(-self.left, self.right + 1)
        size = len(offsets) * feats.shape[1]
        linear = np.ascontiguousarray(self.matrix[:, :size].T)
        for at in range(0, len(feats), 8192):
            rows = np.arange(at, min(at + 8192, len(feats)))[:, None]
            index = np.clip(rows + offsets, first[rows], last[rows])
            out[at:at + 8192] = feats[index].reshape(len(rows), -1) @ linear
        return out if self.matrix.shape[1] == size else out + self.matrix[:, size]


def add_deltas(feats: np.ndarray, first: np.ndarray, last: np.ndarray, order: int = 2, window: int = 2) -> np.ndarray:
    """(N, static) -> float32 (N, static * (order + 1)): features and their time derivatives, as Kaldi's add-deltas.

    The n-th derivative is one filter over the original frames (the first and last frame repeated at the edges).
    """
    feats = np.asarray(feats, dtype=np.float32)
    ramp = np.arange(-window, window + 1, dtype=np.float64)
    ramp /= np.sum(ramp * ramp)
    out, scales, rows = [feats], np.ones(1), np.arange(len(feats))
    for n in range(1, order + 1):
        scales = np.convolve(scales, ramp)
        reach = n * window
        delta = np.zeros_like(feats)
        for offset, scale in zip(range(-reach, reach + 1), scales):
            if scale:
                delta += np.float32(scale) * feats[np.clip(rows + offset, first, last)]
        out.append(delta)
    return np.hstack(out)


# --------------------------------------------------------------------------------------------------------------- LDA

@dataclass
class LdaStats:
    """Sums of frames (N, M) by class, float64: counts (C,), sums (C, M), and the sum of all outer products (M, M)."""

    counts: np.ndarray
    sums: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray, classes: np.ndarray, num_classes: int) -> "LdaStats":
        """Statistics of float32 frames (N, M) and their classes, int (N,)."""
        from scipy.sparse import csr_matrix

        products, sums = np.zeros((frames.shape[1], frames.shape[1])), np.zeros((num_classes, frames.shape[1]))
        for at in range(0, len(frames), 16384):
            x, own = frames[at:at + 16384].astype(np.float64), classes[at:at + 16384]
            products += x.T @ x
            sums += csr_matrix((np.ones(len(x)), (own, np.arange(len(x)))), shape=(num_classes, len(x))) @ x
        return cls(np.bincount(classes, minlength=num_classes).astype(np.float64), sums, products)

    def add(self, other: "LdaStats") -> None:
        """Add another part's sums."""
        self.counts += other.counts
        self.sums += other.sums
        self.products += other.products


def estimate_lda(stats: LdaStats, dim: int) -> np.ndarray:
    """LDA matrix float64 (dim, M), the direction that separates the classes best first.

    The within-class covariance of what it makes is the identity. Raises UserError where that covariance is singular
    (constant features, or fewer frames than dimensions) and where `dim` is more than M.
    """
    total = stats.counts.sum()
    size = len(stats.products)
    if dim > size:
        raise UserError(f"LDA cannot make {dim} dimensions of {size}; ask for fewer")
    if not total:
        raise UserError("LDA needs aligned frames that are not silence, but there are none")
    seen = stats.counts > 0
    means = stats.sums[seen] / stats.counts[seen, None]
    mean = stats.sums.sum(axis=0) / total
    between = (means * (stats.counts[seen, None] / total)).T @ means - np.outer(mean, mean)
    within = stats.products / total - np.outer(mean, mean) - between
    values = np.linalg.eigvalsh(within)
    if not np.isfinite(values).all() or values[0] <= 1e-9 * max(values[-1], 1e-30):
        raise UserError("the covariance of features within pdfs is singular: features are constant, depend on each "
                        "other, or are too few; LDA cannot be estimated from them")
    inverse = np.linalg.inv(np.linalg.cholesky(within))
    gains, vectors = np.linalg.eigh(inverse @ between @ inverse.T)
    matrix = vectors[:, np.argsort(-gains, kind="stable")[:dim]].T @ inverse
    return matrix * np.sign(matrix[np.arange(dim), np.abs(matrix).argmax(axis=1)])[:, None]


# -------------------------------------------------------------------------------------------------------------- MLLT

def estimate_mllt(count: float, products: np.ndarray) -> np.ndarray:
    """MLLT matrix float64 (D, D).

    count: frames; products: float64 (D, D, D), for each dimension i the sum over frames and Gaussians of
    posterior / variance[i] * outer(x - mean, x - mean).
    """
    dim = len(products)
    inverses = np.linalg.inv(products)
    matrix, inverse = np.eye(dim), np.eye(dim)
    for _ in range(MLLT_PASSES):
        for i in range(dim):
            cofactor = inverse[:, i]
            row = cofactor @ inverses[i]
            row = row * np.sqrt(count / (row @ cofactor))
            inverse = _replace_row(inverse, i, row - matrix[i])
            matrix[i] = row
        inverse = np.linalg.inv(matrix)  # what rank-one updates have rounded
    return matrix


def _replace_row(inverse: np.ndarray, i: int, change: np.ndarray) -> np.ndarray:
    """The inverse of a matrix (..., D, D) to whose row i `change` (..., D) was added (Sherman and Morrison)."""
    product = (change[..., None, :] @ inverse)  # (..., 1, D)
    return inverse - inverse[..., :, i:i + 1] * product / (1.0 + product[..., :, i:i + 1])


# ------------------------------------------------------------------------------------------------------------- fMLLR

@dataclass
class FmllrStats:
    """Statistics of S speakers' frames, float64; x+ is a frame with a 1 behind it.

    counts: (S,) frames; linear: (S, D, D + 1), sums of posterior * mean / variance times x+; quadratic: (S, D, D + 1,
    D + 1), sums of posterior / variance[i] * outer(x+, x+).
    """

    counts: np.ndarray
    linear: np.ndarray
    quadratic: np.ndarray

    @classmethod
    def of(cls, feats: np.ndarray, scaled_means: np.ndarray, precisions: np.ndarray,
           spans: List[np.ndarray]) -> "FmllrStats":
        """Statistics of frames (N, D) with, for each, the sums over Gaussians of posterior * mean / variance and of
        posterior / variance, (N, D) each; spans: rows of each speaker's frames."""
        dim = feats.shape[1]
        out = cls(np.array([len(rows) for rows in spans], dtype=np.float64), np.zeros((len(spans), dim, dim + 1)),
                  np.zeros((len(spans), dim, dim + 1, dim + 1)))
        for number, rows in enumerate(spans):
            for at in range(0, len(rows), 4096):
                part = rows[at:at + 4096]
                x = np.hstack([feats[part], np.ones((len(part), 1), np.float32)]).astype(np.float64)
                out.linear[number] += scaled_means[part].T.astype(np.float64) @ x
                weight = precisions[part].T.astype(np.float64)
                for i in range(dim):
                    out.quadratic[number, i] += (x * weight[i][:, None]).T @ x
        return out


def estimate_fmllr(stats: FmllrStats) -> np.ndarray:
    """fMLLR transforms float64 (S, D, D + 1): x -> A x + b; [I, 0] for speakers of fewer than MIN_FRAMES frames, and of
    frames that are constant or depend on each other in a dimension."""
    speakers, dim = stats.linear.shape[:2]
    out = np.tile(np.eye(dim, dim + 1), (speakers, 1, 1))
    own = np.flatnonzero(stats.counts >= MIN_FRAMES)
    inverses = _inverses(stats.quadratic[own])
    regular = np.isfinite(inverses).all(axis=(1, 2, 3))
    own, inverses = own[regular], inverses[regular]
    if not len(own):
        return out
    count, linear = stats.counts[own], stats.linear[own]
    matrix = out[own]
    inverse = np.linalg.inv(matrix[:, :, :dim])
    for _ in range(FMLLR_PASSES):
        for i in range(dim):
            cofactor = np.concatenate([inverse[:, :, i], np.zeros((len(own), 1))], axis=1)  # (S, D + 1)
            by_cofactor = np.einsum("sj,sjk->sk", cofactor, inverses[:, i])
            e1 = (by_cofactor * cofactor).sum(axis=1)
            e2 = (by_cofactor * linear[:, i]).sum(axis=1)
            root = np.sqrt(e2 * e2 + 4 * e1 * count)
            steps = np.stack([(-e2 + root) / (2 * e1), (-e2 - root) / (2 * e1)])
            gain = count * np.log(np.abs(steps * e1 + e2)) - 0.5 * steps * steps * e1
            step = np.where(gain[0] > gain[1], steps[0], steps[1])[:, None]
            row = np.einsum("sj,sjk->sk", step * cofactor + linear[:, i], inverses[:, i])
            inverse = _replace_row(inverse, i, row[:, :dim] - matrix[:, i, :dim])
            matrix[:, i] = row
        inverse = np.linalg.inv(matrix[:, :, :dim])
    out[own] = matrix
    return out


def _inverses(matrices: np.ndarray) -> np.ndarray:
    """Inverses of (S, D, M, M); NaN in all of a speaker's where one of them is singular."""
    try:
        out = np.linalg.inv(matrices)
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.full_like(matrices, np.nan)
        return np.concatenate([_inverses(matrices[at:at + 1]) for at in range(len(matrices))])
    condition = np.abs(matrices).sum(axis=-1).max(axis=-1) * np.abs(out).sum(axis=-1).max(axis=-1)
    out[~(condition < MAX_CONDITION).all(axis=1)] = np.nan
    return out


def compose(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The transform that does `before` (..., D, D + 1) first and `after` (..., D, D + 1) next."""
    dim = after.shape[-2]
    out = after[..., :dim] @ before
    out[..., dim] += after[..., dim]
    return out


# ------------------------------------------------------------------------------------------------------------- files

def read_matrix(path: str | Path) -> np.ndarray:
    """A Kaldi matrix file, binary or text: float32 (rows, columns). Raises UserError."""
    try:
        data = Path(path).read_bytes()
        reader = BinaryReader(data) if data[:2] == b"\0B" else TextReader(data.decode("ascii"))
        return reader.matrix().astype(np.float32)
    except (OSError, ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: not a whole matrix of Kaldi's ({error}); train the model again") from None


def write_matrix(path: str | Path, matrix: np.ndarray) -> None:
    """Write a Kaldi matrix file, binary float32, whole or not at all."""
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(ObjectWriter().matrix(matrix).data())


def write_setup(directory: Path, setup: FeatureSetup) -> None:
    """Write what tells Kaldi's scripts the features of a GMM: cmvn_opts and, with a matrix, final.mat, splice_opts."""
    write_text(directory / "cmvn_opts", "\n")
    if setup.matrix is not None:
        write_matrix(directory / "final.mat", setup.matrix)
        write_text(directory / "splice_opts", f"--left-context={setup.left} --right-context={setup.right}\n")


def read_setup(directory: Path) -> FeatureSetup:
    """The features of a GMM directory. Raises UserError for options that are not understood."""
    _options(directory / "cmvn_opts", {"norm-means": "true", "norm-vars": "false"})
    _options(directory / "delta_opts", {"delta-order": "2", "delta-window": "2"})
    if not (directory / "final.mat").exists():
        return FeatureSetup()
    context = _options(directory / "splice_opts", {"left-context": None, "right-context": None})
    return FeatureSetup(int(context.get("left-context", 4)), int(context.get("right-context", 4)),
                        read_matrix(directory / "final.mat"))


def _options(path: Path, known: dict) -> dict:
    """The options in a file such as cmvn_opts; those of `known` that have a value there must have that one."""
    out = {}
    for word in split(read_text(path)) if path.exists() else []:
        match = re.fullmatch(r"--([a-z-]+)=(\S+)", word)
        if not match or match[1] not in known or known[match[1]] not in (None, match[2]) \
                or known[match[1]] is None and not re.fullmatch("[0-9]{1,4}", match[2]):
            raise UserError(f"{path}: '{word}' cannot be followed here; train the GMM without it")
        out[match[1]] = match[2]
    return out
