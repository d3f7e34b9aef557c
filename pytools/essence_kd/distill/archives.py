"""Posterior archives for the verbs: dense or sparse input told apart, sidecars carried on, frames named in errors."""
from __future__ import annotations

import os
import sys
import time
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple, Union

import numpy as np

from essence_kd.distill.entries import Essence
from essence_kd.distill.essence import EssenceSettings
from essence_kd.io import compact
from essence_kd.io.errors import UserError
from essence_kd.io.objects import StoredMatrix, cut_matrix, read_matrix
from essence_kd.io.posterior import Posterior, PosteriorWriter, cut_posterior, read_posterior
from essence_kd.io.provenance import check_match, read_sidecar, sidecar_path
from essence_kd.io.sources import Source
from essence_kd.io.specifiers import parse_rspecifier, read_scp
from essence_kd.io.tables import read_table

WIDE = 100  # entries of a frame of a wide archive
CARRIED = ("num_pdfs", "temperature", "combine", "weights", "frame_shift_ms", "tree_hash", "models", "prior_scale",
           "lattice")


def _is_sparse(source: Source) -> bool:
    """True when the object ahead is a Posterior (Kaldi's binary or text form, or compact), False for a matrix."""
    head = source.peek(6).tobytes()
    if head[:2] == b"\0B":
        return head == compact.MAGIC or head[2:3] == b"\4"
    size = 256  # text: a matrix goes on in the next line, and an empty one has a second blank in front, as in Kaldi
    while b"\n" not in source.peek(size).tobytes() and len(source.peek(size)) == size:
        size *= 4
    line = source.peek(size).tobytes().partition(b"\n")[0]
    if line.split() == [b"[", b"]"]:
        return not line[:1].isspace()
    return line.strip()[:1] != b"[" or line.strip()[-1:] == b"]"


def _cut_either(value: Union[np.ndarray, StoredMatrix, Posterior], span: str) -> Union[np.ndarray, Posterior]:
    return cut_posterior(value, span) if isinstance(value, Posterior) else cut_matrix(value[:], span)


def read_dense_or_sparse(rspecifier: str, stored: bool = False) -> Iterator[
        Tuple[str, Union[np.ndarray, StoredMatrix, Posterior]]]:
    """Every (utterance, matrix or Posterior) of a table, whichever it holds. Raises UserError.

    With `stored`, large matrices of float32 that lie in regular files are left there.
    """
    def read(source: Source) -> Union[np.ndarray, StoredMatrix, Posterior]:
        return read_posterior(source) if _is_sparse(source) else read_matrix(source, stored)

    return read_table(rspecifier, read, _cut_either, "matrix or posterior")


def sidecar_of(specifier: str) -> Dict[str, Any]:
    """The fields of the sidecar beside an archive; empty when there is none (a pipe, somebody else's archive)."""
    path = sidecar_path(specifier)
    return read_sidecar(path) if path is not None and os.path.isfile(path) else {}


def target_sidecar(wspecifier: str, *sources: str) -> Optional[str]:
    """The sidecar of an output; None for a pipe. Raises UserError when it is that of an input, too."""
    path = sidecar_path(wspecifier)
    for source in sources:
        if path is not None and sidecar_path(source) == path:
            raise UserError(f"{wspecifier}: would share the sidecar {path} with {source}; give it another name")
    return path


def check_sidecars(one: str, other: str, keys: Sequence[str]) -> None:
    """Refuse two tables whose sidecars, where both have one, disagree on any of ``keys``. Raises UserError."""
    ours, theirs = sidecar_of(one), sidecar_of(other)
    if ours and theirs:
        check_match(sidecar_path(one), ours, sidecar_path(other), theirs, keys)


def num_utterances(rspecifier: str) -> Optional[int]:
    """How many utterances an scp file lists; None for anything else."""
    spec = parse_rspecifier(rspecifier)
    if spec.scp is None or spec.scp in ("", "-") or spec.scp.endswith("|"):
        return None
    return sum(1 for _ in read_scp(spec.scp))


def frame_error(source: str, utt: str, error: Exception) -> UserError:
    """The message for an utterance that cannot be used."""
    return UserError(f"{source}: utterance {utt}: {error}")


def check_kind(source: str, utt: str, is_sparse: bool, wanted: Optional[str]) -> None:
    """Refuse a Posterior where --input names a kind of matrix, and the other way round."""
    if wanted == "post" and not is_sparse:
        raise UserError(f"{source}: utterance {utt}: a matrix, but --input says post; say --input prob, log or logit")
    if wanted not in (None, "post") and is_sparse:
        raise UserError(f"{source}: utterance {utt}: a Posterior, but --input says {wanted}; leave --input out")


def describe(settings: EssenceSettings) -> Dict[str, Any]:
    """The fields of a sidecar that say how an essence was selected."""
    return {"selection": settings.select, "mass": settings.mass, "temperature": settings.temperature,
            **settings.rule().describe(), **settings.mass_rule().describe()}


class Tally:
    """Counts for a sidecar and for the closing line: utterances, frames, entries, retained mass."""

    def __init__(self):
        self.num_utts = self.num_frames = self.num_entries = 0
        self.mass = 0.0
        self.began = time.monotonic()

    def add(self, frames: int, entries: int, kept: np.ndarray) -> None:
        """One utterance; ``kept`` (T,) is the mass its frames retain."""
        self.num_utts += 1
        self.num_frames += frames
        self.num_entries += entries
        self.mass += float(kept.sum(dtype=np.float64))

    def fields(self) -> Dict[str, Any]:
        """For the sidecar."""
        mean = self.mass / self.num_frames if self.num_frames else None
        return {"num_utts": self.num_utts, "num_frames": self.num_frames, "num_entries": self.num_entries,
                "mean_mass": mean}

    def __str__(self) -> str:
        seconds = max(1e-9, time.monotonic() - self.began)
        frames = max(1, self.num_frames)
        return (f"{self.num_utts} utterances, {self.num_frames} frames, {self.num_entries / frames:.1f} entries and "
                f"mass {self.mass / frames:.4f} per frame; {seconds:.1f} s, {self.num_frames / seconds:.0f} frames/s")


class Progress:
    """A line on stderr from time to time: how far, how fast, and when it will be done."""

    def __init__(self, name: str, total: Optional[int], every: float = 10.0):
        self.name, self.total, self.every = name, total, every
        self.began = self.last = time.monotonic()

    def show(self, tally: Tally) -> None:
        """Called after every utterance; prints at most every ``every`` seconds, and no guess from the first few."""
        now = time.monotonic()
        if now - self.last < self.every or tally.num_utts * 50 < (self.total or 0):
            return
        self.last = now
        done, seconds = tally.num_utts, now - self.began
        left = ""
        if self.total:
            left = f" of {self.total}, {(self.total - done) * seconds / done:.0f} s left"
        print(f"{self.name}: {done} utterances{left}; {tally.num_frames / seconds:.0f} frames/s", file=sys.stderr)


def write_essence(writer: PosteriorWriter, utt: str, essence: Essence) -> None:
    """Write one utterance, by the fixed-stride path where every frame has the same number of entries."""
    fixed = essence.fixed()
    if fixed is not None:
        writer.write(utt, *fixed)
    else:
        writer.write_ragged(utt, essence.offsets, essence.ids, essence.probs)
