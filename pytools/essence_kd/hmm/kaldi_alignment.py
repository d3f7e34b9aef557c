"""Alignments that Kaldi made, as an alignment directory of this project (docs/formats.md: ali)."""
from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import List, Sequence, Set, Tuple

import numpy as np

from essence_kd.io.data_dir import read_table
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.provenance import sha256_file, write_sidecar, write_text
from essence_kd.io.tables import IntVectorWriter, read_int_vectors
from essence_kd.io.text import read_lines

FLOOR = 0.95  # share of the utterances that must be aligned
_STATE = re.compile(r"Transition-state \d+: phone = (\S+) hmm-state = (\d+) "
                    r"(?:pdf = (\d+)|forward-pdf = (\d+) self-loop-pdf = (\d+))\s*$")


def read_transitions(path: str | Path) -> List[Tuple[int, str, int]]:
    """Sorted (pdf-id, phone, HMM state) of what Kaldi's show-transitions printed, each once.

    A state of a chain topology has two pdf-ids and appears with both. Raises UserError where the file is something
    else or a pdf-id is in no state.
    """
    rows: Set[Tuple[int, str, int]] = set()
    for _, line in read_lines(path, "make it with 'show-transitions phones.txt final.mdl'"):
        match = _STATE.match(line)
        if match:
            phone, state, *pdfs = match.groups()
            rows.update((int(pdf), phone, int(state)) for pdf in pdfs if pdf is not None)
    if not rows:
        raise UserError(f"{path}: names no transition state; make it with 'show-transitions phones.txt final.mdl'")
    lacking = set(range(max(rows)[0] + 1)) - {pdf for pdf, _, _ in rows}
    if lacking:
        raise UserError(f"{path}: pdf-id {min(lacking)} belongs to no state: the file is not whole; make it again")
    return sorted(rows)


def write_ali_dir(ali_dir: Path, tree: str, frames: np.ndarray, utterances: int, failed: Sequence[str],
                  started: float) -> None:
    """What lies beside the archive of an alignment directory: tree.txt, num_pdfs, priors.txt, failed.txt, ali.json.

    tree: text of tree.txt; frames: int (C,) aligned frames of each pdf; utterances: of the data; failed: those of them
    that are not aligned; started: the time (seconds) at which the work began.
    """
    for name, text in (("failed.txt", "".join(f"{utt}\n" for utt in failed)), ("tree.txt", tree),
                       ("priors.txt", "".join(f"{p:.9g}\n" for p in frames / frames.sum())),
                       ("num_pdfs", f"{len(frames)}\n")):
        write_text(ali_dir / name, text)
    write_sidecar(ali_dir / "ali.json", {
        "kind": "alignment", "num_pdfs": len(frames), "num_utts": utterances - len(failed), "failed": len(failed),
        "num_frames": int(frames.sum()), "frame_shift_ms": round(FRAME_SHIFT_MS),
        "tree_hash": sha256_file(ali_dir / "tree.txt"), "unseen_pdfs": int((frames == 0).sum()),
        "seconds": round(time.time() - started, 1)})


def tree_hash(ali_dir: str | Path) -> str | None:
    """The hash of an alignment directory's tree.txt, which every sidecar made from it carries; None without one."""
    path = Path(ali_dir) / "tree.txt"
    return sha256_file(path) if path.is_file() else None


def read_log_priors(path: str | Path, num_pdfs: int | None = None, floor: float = 1e-5) -> np.ndarray:
    """(C,) float64 log priors of a file with a prior a line, such as priors.txt; they are scaled to sum to 1.

    Priors are raised to ``floor``. A pdf that training never saw gets prior 1 (0 here): its likelihood is then its
    posterior, so that what a network never learnt is not lifted by a division by nearly nothing. Raises UserError, also
    for another number than ``num_pdfs`` where that is given.
    """
    try:
        priors = np.array([field for _, line in read_lines(path) for field in line.split()], dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}: not a number a line: {error}") from None
    if not len(priors) or not np.isfinite(priors).all() or priors.min() < 0 or priors.sum() <= 0:
        raise UserError(f"{path}: priors must be finite, not negative, and not all 0")
    if len(priors) != (num_pdfs or len(priors)):
        raise UserError(f"{path}: {len(priors)} priors, but there are {num_pdfs} pdfs")
    priors = priors / priors.sum()
    return np.log(np.where(priors > 0, np.maximum(priors, floor), 1.0))


def import_alignments(data_dir: str | Path, rspecifier: str, transitions: str | Path, ali_dir: str | Path, *,
                      factor: int = 1) -> Tuple[int, int]:
    """Write ali.ark/.scp, priors.txt, num_pdfs, tree.txt, failed.txt and ali.json; returns (utterances, missing ones).

    rspecifier: vectors of pdf-ids, one a feature frame (10 ms), in any order; transitions: the printout of
    show-transitions of their model; factor: a vector may have an element every so many feature frames, as utt2num_frames
    tells, and each element is then repeated. Utterances of the data without an alignment go to failed.txt, alignments of
    utterances that the data lack are left out. Raises UserError for alignments of other data (a length that differs from
    utt2num_frames, under 95 % aligned) or of another tree (a pdf-id that the model lacks).
    """
    started = time.time()
    data_dir, ali_dir = Path(data_dir), Path(ali_dir)
    tree = read_transitions(transitions)
    num_pdfs = tree[-1][0] + 1
    utts = read_table(data_dir / "utt2spk")
    lengths = read_table(data_dir / "utt2num_frames") if (data_dir / "utt2num_frames").exists() else {}
    if factor > 1 and not lengths:
        raise UserError(f"{data_dir / 'utt2num_frames'}: missing; it tells alignments of every frame from those of one "
                        f"in {factor}: make it with 'utils/data/get_utt2num_frames.sh {data_dir}'")
    ali_dir.mkdir(parents=True, exist_ok=True)
    frames, aligned, others = np.zeros(num_pdfs, dtype=np.int64), set(), 0
    with IntVectorWriter(f"ark,scp:{ali_dir / 'ali.ark'},{ali_dir / 'ali.scp'}") as writer:
        for utt, pdfs in read_int_vectors(rspecifier):
            if utt not in utts:
                others += 1
                continue
            if not len(pdfs) or pdfs.min() < 0 or pdfs.max() >= num_pdfs:
                bad = f"pdf-id {pdfs.max() if pdfs.min() >= 0 else pdfs.min()}" if len(pdfs) else "no frame"
                raise UserError(f"{rspecifier}: utterance {utt} has {bad}, but {transitions} knows {num_pdfs} pdfs: "
                                "alignment and model belong to different trees")
            if utt in lengths and factor > 1 and len(pdfs) == -(-int(lengths[utt]) // factor):
                pdfs = np.repeat(pdfs, factor)[:int(lengths[utt])]
            if utt in lengths and int(lengths[utt]) != len(pdfs):
                raise UserError(f"{rspecifier}: utterance {utt} has {len(pdfs)} aligned frames, but "
                                f"{data_dir / 'utt2num_frames'} says {lengths[utt]}: align the same features")
            writer.write(utt, pdfs)
            frames += np.bincount(pdfs, minlength=num_pdfs)
            aligned.add(utt)
        missing = [utt for utt in utts if utt not in aligned]
        if len(aligned) < FLOOR * len(utts):
            raise UserError(f"{rspecifier}: aligns {len(aligned)} of the {len(utts)} utterances of {data_dir} "
                            f"(the first without: {missing[0]}); under {FLOOR:.0%} is taken for a mistake")
    if others:
        print(f"import-ali: {others} aligned utterances are not in {data_dir / 'utt2spk'} and are left out", file=sys.stderr)
    if missing:
        print(f"import-ali: {len(missing)} of {len(utts)} utterances are not aligned; they are listed in "
              f"{ali_dir / 'failed.txt'}", file=sys.stderr)
    text = "".join(f"{pdf} {phone} {state}\n" for pdf, phone, state in tree)
    write_ali_dir(ali_dir, text, frames, len(utts), missing, started)
    return len(utts), len(missing)
