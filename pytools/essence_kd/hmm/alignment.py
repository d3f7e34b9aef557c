"""Alignments that Kaldi made, as an alignment directory of this project (docs/formats.md: ali)."""
from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import List, Set, Tuple

import numpy as np

from essence_kd.io.data_dir import read_table
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write, sha256_file, write_sidecar
from essence_kd.io.tables import IntVectorWriter, read_int_vectors

FLOOR = 0.95  # share of the utterances that must be aligned
_STATE = re.compile(r"Transition-state \d+: phone = (\S+) hmm-state = (\d+) "
                    r"(?:pdf = (\d+)|forward-pdf = (\d+) self-loop-pdf = (\d+))\s*$")


def read_transitions(path: str | Path) -> List[Tuple[int, str, int]]:
    """Sorted (pdf-id, phone, HMM state) of what Kaldi's show-transitions printed, each once.

    A state of a chain topology has two pdf-ids and appears with both. Raises UserError where the file is something
    else or a pdf-id is in no state.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read; make it with 'show-transitions phones.txt final.mdl'") from None
    rows: Set[Tuple[int, str, int]] = set()
    for line in lines:
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


def import_alignments(data_dir: str | Path, rspecifier: str, transitions: str | Path,
                      ali_dir: str | Path) -> Tuple[int, int]:
    """Write ali.ark/.scp, priors.txt, num_pdfs, tree.txt, failed.txt and ali.json; returns (utterances, missing ones).

    rspecifier: vectors of pdf-ids, one a feature frame (10 ms), in any order; transitions: the printout of
    show-transitions of their model. Utterances of the data without an alignment go to failed.txt. Raises UserError for
    alignments of other data (an unknown utterance, a length that differs from utt2num_frames, under 95 % aligned) or
    of another tree (a pdf-id that the model lacks).
    """
    started = time.time()
    data_dir, ali_dir = Path(data_dir), Path(ali_dir)
    tree = read_transitions(transitions)
    num_pdfs = tree[-1][0] + 1
    utts = read_table(data_dir / "utt2spk")
    lengths = read_table(data_dir / "utt2num_frames") if (data_dir / "utt2num_frames").exists() else {}
    ali_dir.mkdir(parents=True, exist_ok=True)
    frames, aligned = np.zeros(num_pdfs, dtype=np.int64), set()
    with IntVectorWriter(f"ark,scp:{ali_dir / 'ali.ark'},{ali_dir / 'ali.scp'}") as writer:
        for utt, pdfs in read_int_vectors(rspecifier):
            if utt not in utts:
                raise UserError(f"{rspecifier}: utterance {utt} is not in {data_dir / 'utt2spk'}: "
                                "these are alignments of other data")
            if not len(pdfs) or pdfs.min() < 0 or pdfs.max() >= num_pdfs:
                bad = f"pdf-id {pdfs.max() if pdfs.min() >= 0 else pdfs.min()}" if len(pdfs) else "no frame"
                raise UserError(f"{rspecifier}: utterance {utt} has {bad}, but {transitions} knows {num_pdfs} pdfs: "
                                "alignment and model belong to different trees")
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
    if missing:
        print(f"import-ali: {len(missing)} of {len(utts)} utterances are not aligned; they are listed in "
              f"{ali_dir / 'failed.txt'}", file=sys.stderr)
    for name, text in (("failed.txt", "".join(f"{utt}\n" for utt in missing)),
                       ("tree.txt", "".join(f"{pdf} {phone} {state}\n" for pdf, phone, state in tree)),
                       ("priors.txt", "".join(f"{p:.9g}\n" for p in frames / frames.sum())),
                       ("num_pdfs", f"{num_pdfs}\n")):
        with atomic_write(ali_dir / name) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    write_sidecar(ali_dir / "ali.json", {
        "kind": "alignment", "num_pdfs": num_pdfs, "num_utts": len(aligned), "failed": len(missing),
        "num_frames": int(frames.sum()), "frame_shift_ms": 10, "tree_hash": sha256_file(ali_dir / "tree.txt"),
        "unseen_pdfs": int((frames == 0).sum()), "seconds": round(time.time() - started, 1)})
    return len(utts), len(missing)
