"""What a network is taught: hard labels of an alignment directory, and soft targets, sparse or dense.

Legend: R = ceil(T / factor) output rows of an utterance of T feature frames, C pdfs, k entries of a sparse soft target.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np

from essence_kd.am.settings import SOFT_KINDS
from essence_kd.am.sources import StoredCuts, load_cuts
from essence_kd.distill.losses import UNLABELLED
from essence_kd.hmm.alignment_dir import tree_hash
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.posterior import PosteriorTable
from essence_kd.io.provenance import check_match, read_sidecar, sidecar_path
from essence_kd.io.tables import IntVectorTable, MatrixTable
from essence_kd.io.text import is_number, read_lines, split


class SparseTargets:
    """Essence targets from a Posterior scp, by utterance and rows."""

    dense = False

    def __init__(self, scp) -> None:
        self.scp, self.table = str(scp), PosteriorTable(str(scp))

    def read(self, utt: str, rows: int, num_pdfs: int) -> Tuple[np.ndarray, np.ndarray]:
        """(ids (R, k) int32, probs (R, k) float32) of an utterance, checked."""
        try:
            posterior = self.table[utt].as_targets(num_pdfs)
        except ValueError as error:
            raise UserError(f"{self.scp}: utterance {utt}: {error}") from None
        if posterior.num_frames != rows:
            raise UserError(f"{self.scp}: utterance {utt} has {posterior.num_frames} frames, its features make {rows}")
        k = int(np.diff(posterior.offsets).max(initial=1))
        return posterior.padded(k)


class DenseTargets:
    """Full soft targets from an scp of matrices of probabilities, by utterance and rows."""

    dense = True

    def __init__(self, scp) -> None:
        self.scp, self.table = str(scp), MatrixTable(str(scp))

    def read(self, utt: str, rows: int, num_pdfs: int) -> np.ndarray:
        """Probabilities (R, C) float32 of an utterance, checked."""
        probs = np.asarray(self.table[utt], dtype=np.float32)
        if probs.shape != (rows, num_pdfs):
            raise UserError(f"{self.scp}: utterance {utt} is {probs.shape[0]} x {probs.shape[1]}, "
                            f"expected {rows} frames x {num_pdfs} pdfs")
        if not np.isfinite(probs).all() or probs.min(initial=0.0) < 0:
            raise UserError(f"{self.scp}: utterance {utt} has a target that is negative or not finite: "
                            "these are not probabilities")
        return probs


class TargetsOfSets:
    """The soft targets of several sets as one; a set without any (None) has none at any frame."""

    def __init__(self, targets: Sequence[Union[SparseTargets, DenseTargets, None]],
                 ids: Iterable[Sequence[str]]) -> None:
        """``ids``: the utterances of each set."""
        self.dense = next(t for t in targets if t is not None).dense
        self._of = {utt: found for found, utts in zip(targets, ids) for utt in utts}

    def read(self, utt: str, rows: int, num_pdfs: int):
        """What the targets of the utterance's set give; zeros where that has none."""
        found = self._of[utt]
        if found is not None:
            return found.read(utt, rows, num_pdfs)
        if self.dense:
            return np.zeros((rows, num_pdfs), dtype=np.float32)
        return np.zeros((rows, 1), dtype=np.int32), np.zeros((rows, 1), dtype=np.float32)


def open_soft(soft, kind: str, ali_dir,
              factor: int) -> Tuple[Union[SparseTargets, DenseTargets], float, Dict[str, Any]]:
    """(targets, the temperature they were made at, the fields of their sidecar or none) of an scp.

    Raises UserError: no such scp, another kind than post and dense, a sidecar of another tree or frame rate than that
    of the alignments and ``factor``.
    """
    if kind not in SOFT_KINDS:
        raise UserError(f"--soft-kind {kind}: neither {' nor '.join(SOFT_KINDS)}")
    path = str(soft).removeprefix("scp:")
    if not Path(path).is_file():
        raise UserError(f"{path}: no soft targets (essence dump-post and prune-post make them)")
    beside = sidecar_path(path)
    sidecar = read_sidecar(beside) if Path(beside).is_file() else {}
    mine = {"num_pdfs": read_count(Path(ali_dir) / "num_pdfs"), "tree_hash": tree_hash(ali_dir),
            "frame_shift_ms": round(FRAME_SHIFT_MS * factor)}
    check_match(beside, sidecar, ali_dir, mine, [k for k in mine if None not in (sidecar.get(k), mine[k])])
    targets = DenseTargets(path) if kind == "dense" else SparseTargets(path)
    return targets, float(sidecar.get("temperature") or 1.0), sidecar


def attach_alignments(cuts: StoredCuts, ali_dir, num_pdfs: int,
                      factor: int) -> Tuple[StoredCuts, List[np.ndarray], int]:
    """The cuts that have alignments, their pdf-ids at rows 0, factor, 2 factor, ..., and how many cuts have none.

    An utterance without alignment must be listed in ``failed.txt`` of the alignment directory.

    Raises:
        UserError: another utterance lacks its alignment, a length differs, a pdf-id is out of range, nothing is left.
    """
    scp = Path(ali_dir) / "ali.scp"
    if not scp.is_file():
        raise UserError(f"{scp}: no alignments (essence gmm-align makes them)")
    table = IntVectorTable(str(scp))
    failed = Path(ali_dir) / "failed.txt"
    excused = {split(line)[0] for _, line in read_lines(failed)} if failed.is_file() else set()
    kept, hard, used = [], [], 0
    labels = np.empty(int((-(-cuts.frames // factor)).sum()), dtype=np.int32)  # of all: small arrays would cost more
    for i, (utt, frames) in enumerate(zip(cuts.ids, cuts.frames)):
        if utt not in table:
            if utt not in excused:
                raise UserError(f"{scp}: no alignment of utterance {utt}, and {failed} does not list it as failed: "
                                "features and alignments are of different data")
            continue
        ali = np.asarray(table[utt])
        if len(ali) != frames:
            raise UserError(f"{scp}: utterance {utt} has {len(ali)} aligned frames but {frames} feature frames "
                            f"({cuts.places[i]})")
        if ali.min() < 0 or ali.max() >= num_pdfs:
            worst = ali.max() if ali.max() >= num_pdfs else ali.min()
            raise UserError(f"{scp}: utterance {utt} has pdf-id {worst}, "
                            f"but {Path(ali_dir) / 'num_pdfs'} says {num_pdfs}")
        kept.append(i)
        hard.append(labels[used:used + -(-len(ali) // factor)])
        hard[-1][:] = ali[::factor]
        used += len(hard[-1])
    if not kept:
        raise UserError(f"{scp}: no utterance of the data has an alignment")
    without = len(cuts) - len(kept)
    return cuts.take(kept) if without else cuts, hard, without


@dataclass(frozen=True)
class UntranscribedSet:
    """Utterances without transcripts that have soft targets."""

    folder: Path  # the data directory
    scp: str  # of the targets
    cuts: StoredCuts
    targets: Union[SparseTargets, DenseTargets]
    temperature: float  # that they were made at
    sidecar: Dict[str, Any]  # of the targets
    left_out: int  # utterances whose targets are unsure

    def labels(self, factor: int) -> List[np.ndarray]:
        """In the place of pdf-ids: UNLABELLED at each of an utterance's R rows, (R,) int32."""
        return [np.full(-(-frames // factor), UNLABELLED, dtype=np.int32) for frames in self.cuts.frames]


def open_untranscribed(sets, data_dir, cuts: StoredCuts, ali_dir, *, soft: Optional[Tuple[float, Any]], kind: str,
                       factor: int, min_confidence: Optional[float]) -> List[UntranscribedSet]:
    """Audio without transcripts, checked: ``sets`` are pairs of a data directory and the scp of its soft targets.

    Args:
        data_dir, cuts: what has a transcript; no utterance may be in two places.
        soft: the temperature of its soft targets and what names them; None: there are none.
        min_confidence: utterances whose targets have a smaller best probability, in the mean over frames, are left out.

    Raises:
        UserError: features of another size, an utterance that is in two directories or has no target of its length,
            targets of another temperature, nothing left.
    """
    num_pdfs = read_count(Path(ali_dir) / "num_pdfs")
    seen, found = dict.fromkeys(cuts.ids, data_dir), []
    for folder, scp in sets:
        more = load_cuts(Path(folder) / "feats.scp")
        if more.feat_dim != cuts.feat_dim:
            raise UserError(f"{folder}: features have {more.feat_dim} bins, those of {data_dir} {cuts.feat_dim}")
        targets, temperature, sidecar = open_soft(scp, kind, ali_dir, factor)
        soft = soft or (temperature, scp)
        if temperature != soft[0]:
            raise UserError(f"{scp}: soft targets of temperature {temperature:g}, those of {soft[1]} have {soft[0]:g}")
        kept = []
        for i, utt in enumerate(more.ids):
            if utt in seen:
                raise UserError(f"{folder}: utterance {utt} is in {seen[utt]}, too: it would be learnt from twice")
            seen[utt] = folder
            if utt not in targets.table:
                raise UserError(f"{targets.scp}: no utterance {utt}, which {folder} has: make targets of all of it")
            if min_confidence is not None:
                read = targets.read(utt, -(-int(more.frames[i]) // factor), num_pdfs)
                probs: Any = read if targets.dense else read[1]
                if probs.max(axis=1, initial=0).mean() < min_confidence:
                    continue
            kept.append(i)
        if not kept:
            raise UserError(f"{folder}: no utterance has a mean best posterior of {min_confidence:g} or more")
        found.append(UntranscribedSet(Path(folder), str(scp), more.take(kept) if len(kept) < len(more) else more,
                                      targets, temperature, sidecar, len(more) - len(kept)))
    return found


def read_count(path) -> int:
    """The one positive whole number of a file such as num_pdfs."""
    lines = [line for _, line in read_lines(path)]
    if len(lines) != 1 or not is_number(lines[0]) or int(lines[0]) < 1:
        raise UserError(f"{path}: expected one positive whole number")
    return int(lines[0])
