"""Alignment directories, whoever aligned: what lies beside the archive (docs/formats.md: ali)."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.provenance import sha256_file, write_sidecar, write_text
from essence_kd.io.tables import read_int_vectors
from essence_kd.io.text import read_lines, split

MIN_ALIGNED = 0.95  # a smaller share of aligned utterances is an error
PRIOR_FLOOR = 1e-5  # the least prior of a pdf that training saw


def write_ali_dir(ali_dir: Path, tree: str, frames: np.ndarray, utterances: int, failed: Sequence[str],
                  started: float) -> None:
    """What lies beside the archive of an alignment directory: tree.txt, num_pdfs, priors.txt, failed.txt, ali.json.

    tree: text of tree.txt; frames: int (C,) aligned frames of each pdf; utterances: of the data; failed: those of them
    that are not aligned; started: the time.monotonic() at which the work began.
    """
    for name, text in (("failed.txt", "".join(f"{utt}\n" for utt in failed)), ("tree.txt", tree),
                       ("priors.txt", "".join(f"{p:.9g}\n" for p in frames / frames.sum())),
                       ("num_pdfs", f"{len(frames)}\n")):
        write_text(ali_dir / name, text)
    write_sidecar(ali_dir / "ali.json", {
        "kind": "alignment", "num_pdfs": len(frames), "num_utts": utterances - len(failed), "failed": len(failed),
        "num_frames": int(frames.sum()), "frame_shift_ms": round(FRAME_SHIFT_MS),
        "tree_hash": sha256_file(ali_dir / "tree.txt"), "unseen_pdfs": int((frames == 0).sum()),
        "seconds": round(time.monotonic() - started, 1)})


def read_alignments(alignments: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every (utterance, int32 (T,) pdf-ids of its feature frames) of an alignment directory or an rspecifier.

    Raises UserError for what cannot be read.

    >>> from essence_kd import read_alignments
    >>> for utt, pdfs in read_alignments("exp/ali"):
    ...     print(utt, pdfs.shape, pdfs[:4])
    utt1 (48,) [2 2 2 2]
    utt2 (36,) [5 5 5 5]
    """
    folder = Path(alignments)
    return read_int_vectors(f"scp:{folder / 'ali.scp'}" if folder.is_dir() else str(alignments))


def tree_hash(ali_dir: str | Path) -> str | None:
    """The hash of an alignment directory's tree.txt, which every sidecar made from it carries; None without one."""
    path = Path(ali_dir) / "tree.txt"
    return sha256_file(path) if path.is_file() else None


def read_log_priors(path: str | Path, num_pdfs: int | None = None, floor: float = PRIOR_FLOOR) -> np.ndarray:
    """(C,) float64 log priors of a file with one prior per line, such as priors.txt; they are scaled to sum to 1.

    Priors are raised to ``floor``. A pdf that training never saw gets prior 1 (0 here): its likelihood is then its
    posterior, so that what a network never learnt is not lifted by a division by nearly nothing. Raises UserError, also
    for another number than ``num_pdfs`` where that is given.
    """
    try:
        priors = np.array([field for _, line in read_lines(path) for field in split(line)], dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}: not one number per line: {error}") from None
    if not len(priors) or not np.isfinite(priors).all() or priors.min() < 0 or priors.sum() <= 0:
        raise UserError(f"{path}: priors must be finite, not negative, and not all 0")
    if len(priors) != (num_pdfs or len(priors)):
        raise UserError(f"{path}: {len(priors)} priors, but there are {num_pdfs} pdfs")
    priors = priors / priors.sum()
    return np.log(np.where(priors > 0, np.maximum(priors, floor), 1.0))
