"""Alignments that Kaldi made, imported as an alignment directory (hmm.alignment_dir)."""
from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import List, Set, Tuple

import numpy as np

from essence_kd.hmm.alignment_dir import MIN_ALIGNED, write_ali_dir
from essence_kd.io.data_dir import read_table
from essence_kd.io.errors import UserError
from essence_kd.io.specifiers import indexed
from essence_kd.io.tables import IntVectorWriter, read_int_vectors
from essence_kd.io.text import read_lines

_STATE = re.compile(r"Transition-state \d+: phone = (\S+) hmm-state = (\d{1,9}) "
                    r"(?:pdf = (\d{1,9})|forward-pdf = (\d{1,9}) self-loop-pdf = (\d{1,9}))$", re.ASCII)


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
    for number, pdf in enumerate(sorted({pdf for pdf, _, _ in rows})):
        if pdf != number:
            raise UserError(f"{path}: pdf-id {number} belongs to no state: the file is not whole; make it again")
    return sorted(rows)


def import_alignments(data_dir: str | Path, rspecifier: str, transitions: str | Path, ali_dir: str | Path, *,
                      factor: int = 1) -> Tuple[int, int]:
    """Write ali.ark/.scp, priors.txt, num_pdfs, tree.txt, failed.txt and ali.json; returns (utterances, missing ones).

    rspecifier: vectors of pdf-ids, one per feature frame (10 ms), in any order; transitions: the printout of
    show-transitions of their model; factor: a vector may have an element every so many feature frames, as
    utt2num_frames tells, and each element is then repeated. Utterances of the data without an alignment go to
    failed.txt, alignments of utterances that the data lack are left out. Raises UserError for alignments of other data
    (a length that differs from utt2num_frames, under MIN_ALIGNED aligned) or of another tree (a pdf-id that the model
    lacks).
    """
    started = time.monotonic()
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
    with IntVectorWriter(indexed(ali_dir / "ali.ark", ali_dir / "ali.scp")) as writer:
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
        if len(aligned) < MIN_ALIGNED * len(utts):
            raise UserError(f"{rspecifier}: aligns {len(aligned)} of the {len(utts)} utterances of {data_dir} "
                            f"(the first without: {missing[0]}); under {MIN_ALIGNED:.0%} is taken for a mistake")
    if others:
        print(f"import-ali: {others} aligned utterances are not in {data_dir / 'utt2spk'} and are left out",
              file=sys.stderr)
    if missing:
        print(f"import-ali: {len(missing)} of {len(utts)} utterances are not aligned; they are listed in "
              f"{ali_dir / 'failed.txt'}", file=sys.stderr)
    text = "".join(f"{pdf} {phone} {state}\n" for pdf, phone, state in tree)
    write_ali_dir(ali_dir, text, frames, len(utts), missing, started)
    return len(utts), len(missing)
