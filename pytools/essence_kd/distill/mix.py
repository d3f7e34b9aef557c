"""Hard alignments and soft essence in one archive: the multitask target as one Kaldi Posterior.

Cross-entropy is linear in its target, so that training an unmodified setup on (1 - a) onehot + a q is training with
the two-term loss (1 - a) CE(hard) + a CE(q) at T = 1.
"""
from __future__ import annotations

import logging
import os
from typing import Dict, Iterator, Optional, Tuple

import numpy as np

from essence_kd.distill.archives import (CARRIED, Progress, Tally, check_sidecars, num_utterances, sidecar_of,
                                         target_sidecar)
from essence_kd.distill.entries import sort_entries
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.posterior import Posterior, PosteriorWriter, read_posteriors
from essence_kd.io.provenance import write_sidecar
from essence_kd.io.specifiers import parse_rspecifier
from essence_kd.io.tables import IntVectorTable, read_int_vectors
from essence_kd.io.text import is_number, read_map

logger = logging.getLogger(__name__)
FLOOR = 0.95  # share of the utterances that must come out


def mix_frames(soft: Posterior, hard: np.ndarray, soft_weight: float, num_pdfs: Optional[int] = None) -> Posterior:
    """(1 - soft_weight) onehot(hard) + soft_weight soft, entries of weight 0 left out; ``hard`` (T,) int pdf-ids.

    Entries by falling weight, ties by rising pdf-id. A soft target's mass is taken as it is. Raises ValueError when
    the frames differ, and for soft targets that are none (``Posterior.as_targets``).
    """
    frames = soft.num_frames
    if len(hard) != frames:
        raise ValueError(f"{len(hard)} aligned frames for {frames} frames of soft targets")
    soft = soft.as_targets(num_pdfs)
    rows = np.repeat(np.arange(frames), soft.counts())
    weights = soft_weight * soft.probs.astype(np.float64)
    match = soft.ids == np.asarray(hard)[rows]
    weights[match] += 1 - soft_weight
    apart = np.flatnonzero(np.bincount(rows[match], minlength=frames) == 0)
    rows = np.concatenate([rows, apart])
    ids = np.concatenate([soft.ids, np.asarray(hard, np.int32)[apart]])
    weights = np.concatenate([weights, np.full(len(apart), 1 - soft_weight)]).astype(np.float32)
    kept = weights > 0
    order = np.argsort(rows[kept], kind="stable")
    entries = sort_entries(rows[kept][order], ids[kept][order], weights[kept][order], frames)
    inside = np.arange(entries.ids.shape[1]) < entries.counts[:, None]
    return Posterior(np.concatenate([[0], np.cumsum(entries.counts)]), entries.ids[inside], entries.probs[inside])


class Alignments:
    """Alignments by utterance: random access to an scp, or a stream read as far as it is needed."""

    def __init__(self, rspecifier: str):
        spec = parse_rspecifier(rspecifier)
        self.table = IntVectorTable(rspecifier) if spec.scp is not None and os.path.isfile(spec.scp) else None
        self._stream: Optional[Iterator[Tuple[str, np.ndarray]]] = None if self.table else read_int_vectors(rspecifier)
        self._passed: Dict[str, np.ndarray] = {}

    def get(self, utt: str) -> Optional[np.ndarray]:
        """(T,) int32, or None where the utterance is not aligned; each is asked for once."""
        if self.table is not None:
            return self.table[utt] if utt in self.table else None  # noqa: SIM401 - a table has no get
        if utt in self._passed:
            return self._passed.pop(utt)
        for other, value in self._stream:
            if other == utt:
                return value
            self._passed[other] = value
        return None


def subsample(alignment: np.ndarray, frames: int, factor: int) -> np.ndarray:
    """Every ``factor``-th pdf-id of an alignment at the feature rate. Raises ValueError unless they are ``frames``."""
    if -(-len(alignment) // factor) != frames:
        at = f"one in {factor} of " if factor > 1 else ""
        raise ValueError(f"{frames} frames of posteriors, but the alignment has {at}{len(alignment)} frames; "
                         f"--frame-subsampling-factor says how many alignment frames go to one of posteriors")
    return alignment[::factor]


def upsample(soft: Posterior, frames: int, factor: int) -> Posterior:
    """For each of the ``frames`` of an alignment the soft target nearest to it: row r stands for frame ``factor`` r.

    ``soft`` has ceil(frames / factor) rows, the result has ``frames``.
    Raises ValueError unless the soft targets are of every ``factor``-th frame.
    """
    subsample(np.arange(frames), soft.num_frames, factor)
    return soft.take(np.minimum((np.arange(frames) + factor // 2) // factor, max(0, soft.num_frames - 1)))


def factor_of(rspecifier: str, given: Optional[int]) -> int:
    """Alignment frames (10 ms) a posterior frame: as given (UserError under 1), else as the sidecar says, else 1."""
    if given is not None:
        if given < 1:
            raise UserError(f"--frame-subsampling-factor {given}: must be at least 1")
        return given
    return max(1, int(round((sidecar_of(rspecifier).get("frame_shift_ms") or FRAME_SHIFT_MS) / FRAME_SHIFT_MS)))


def mix(soft: str, alignments: str, wspecifier: str, soft_weight: float, *, factor: Optional[int] = None,
        every_frame: bool = False, untranscribed: Optional[str] = None, num_frames: Optional[str] = None) -> Tally:
    """Mix every utterance of a table of soft targets with its alignment, one of whose frames in ``factor`` is taken.

    ``every_frame``: all of them are taken, each with the soft target nearest to it.

    Utterances without an alignment are left out with a warning; under 95 % left, nothing is written. Those of the table
    ``untranscribed``, which nobody transcribed, follow with their soft targets alone; with ``every_frame`` their
    feature frames stand in ``num_frames``, a file utt2num_frames. Raises UserError.
    """
    if not 0 <= soft_weight <= 1:
        raise UserError(f"--soft-weight must be from 0 to 1, not {soft_weight}")
    factor = factor_of(soft, factor)
    fields, target = sidecar_of(soft), target_sidecar(wspecifier, soft, alignments)
    check_sidecars(soft, alignments, ("num_pdfs", "tree_hash"))
    num_pdfs = fields.get("num_pdfs")
    source, tally, missing, lengths = Alignments(alignments), Tally(), [], {}
    if untranscribed is not None:
        check_sidecars(soft, untranscribed, ("num_pdfs", "tree_hash", "frame_shift_ms"))
        if every_frame and num_frames is None:
            raise UserError("--untranscribed with --every-frame needs --num-frames: how long these utterances are")
        lengths = read_map(num_frames) if num_frames is not None else {}
    progress = Progress("mix-post", num_utterances(soft))
    with PosteriorWriter(wspecifier, num_pdfs=num_pdfs) as writer:
        for utt, posterior in read_posteriors(soft):
            alignment = source.get(utt)
            if alignment is None:
                missing.append(utt)
                continue
            if len(alignment) and not 0 <= alignment.min() <= alignment.max() < (num_pdfs or 1 << 31):
                raise UserError(f"{alignments}: utterance {utt}: pdf-ids from {alignment.min()} to {alignment.max()}, "
                                f"but there are {num_pdfs or 'no negative'} pdfs")
            try:
                if every_frame:
                    posterior = upsample(posterior, len(alignment), factor)
                else:
                    alignment = subsample(alignment, posterior.num_frames, factor)
                mixed = mix_frames(posterior, alignment, soft_weight, num_pdfs)
            except ValueError as error:
                raise UserError(f"{soft}: utterance {utt}: {error}") from None
            writer.write(utt, mixed)
            tally.add(mixed.num_frames, mixed.num_entries, mixed.mass())
            progress.show(tally)
        if missing:
            logger.warning("%s has no alignment of %d utterances (first: %s)", alignments, len(missing), missing[0])
        if tally.num_utts < FLOOR * (tally.num_utts + len(missing)) or not tally.num_utts:
            raise UserError(f"{alignments}: aligns {tally.num_utts} of {tally.num_utts + len(missing)} utterances of "
                            f"{soft}; are they of the same data?")
        alone = 0
        for utt, posterior in read_posteriors(untranscribed) if untranscribed is not None else ():
            if source.get(utt) is not None:
                raise UserError(f"{untranscribed}: utterance {utt} has an alignment in {alignments}: it is transcribed")
            try:
                if every_frame:
                    if not is_number(lengths.get(utt, "")):
                        raise UserError(f"{num_frames}: says no number of frames of utterance {utt}")
                    posterior = upsample(posterior, int(lengths[utt]), factor)
                posterior = posterior.as_targets(num_pdfs)
            except ValueError as error:
                raise UserError(f"{untranscribed}: utterance {utt}: {error}") from None
            writer.write(utt, posterior)
            tally.add(posterior.num_frames, posterior.num_entries, posterior.mass())
            alone += 1
        if untranscribed is not None and not alone:
            raise UserError(f"{untranscribed}: holds no utterance")
    if target is not None:
        carried = {name: fields[name] for name in (*CARRIED, "selection", "k") if name in fields}
        if every_frame and carried.get("frame_shift_ms"):
            carried["frame_shift_ms"] /= factor
        write_sidecar(target, {**carried, **tally.fields(), "kind": "mixed", "soft_weight": soft_weight, "source": soft,
                               "alignment": alignments, "num_missing": len(missing), "mass": "keep",
                               **({} if untranscribed is None else {"untranscribed": alone}),
                               "form": "compact" if writer.compact else "kaldi"})
    return tally
