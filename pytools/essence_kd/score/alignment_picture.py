"""One utterance of the training alignment, ready to be drawn: log-mel picture, phones and words over time."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.text import read_lines, read_map, split

FRAME_SECONDS = FRAME_SHIFT_MS / 1000
SILENCES = ("SIL", "sil")


@dataclass(frozen=True)
class Span:
    """A phone or word from frame ``start`` to before frame ``end``."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class AlignedUtterance:
    """``features``: (T, bins) log-mel energies of an utterance, one row every 10 ms."""

    utt: str
    text: str
    features: np.ndarray
    phones: tuple[Span, ...]
    words: tuple[Span, ...]


def base_phone(phone: str) -> str:
    """A phone without its position in the word (``AH_B`` -> ``AH``)."""
    head, _, tail = phone.rpartition("_")
    return head if head and tail in ("B", "E", "I", "S") else phone


def read_tree(path: Path) -> dict[int, tuple[str, int]]:
    """tree.txt: pdf-id -> (phone without position, state); a pdf that several phones share keeps the first."""
    tree: dict[int, tuple[str, int]] = {}
    for number, line in read_lines(path):
        fields = split(line)
        try:
            pdf, phone, state = int(fields[0]), fields[1], int(fields[2])
        except (IndexError, ValueError):
            raise UserError(f"{path}: line {number}: expected 'PDF-ID PHONE STATE'") from None
        tree.setdefault(pdf, (base_phone(phone), state))
    return tree


def phone_spans(pdfs: np.ndarray, tree: dict[int, tuple[str, int]]) -> list[Span]:
    """Runs of a phone; a step back to an earlier state, but not of silence, begins the phone anew.

    Args:
      pdfs: (T,) pdf-id of each frame.
    """
    spans: list[Span] = []
    previous = None
    for t, pdf in enumerate(pdfs.tolist()):
        if pdf not in tree:
            raise UserError(f"pdf-id {pdf} of the alignment is not in tree.txt; both come from stage 4")
        phone, state = tree[pdf]
        again = previous is not None and state < previous[1] and phone not in SILENCES
        if previous is None or phone != previous[0] or again:
            spans.append(Span(phone, t, t + 1))
        else:
            spans[-1] = Span(phone, spans[-1].start, t + 1)
        previous = (phone, state)
    return spans


def word_spans(phones: Sequence[Span], words: Sequence[str], lexicon: dict[str, list[list[str]]]) -> list[Span]:
    """Words over time: the phones cut by pronunciations, silence being what lies between words.

    Args:
      phones: labels without position in the word.
      lexicon: word -> its pronunciations.

    Returns:
      A span per word; empty when no choice of pronunciations fits the phones.
    """
    labels = [p.label for p in phones]
    dead: set[tuple[int, int]] = set()

    def match(at: int, number: int) -> list[Span] | None:
        if (at, number) in dead:
            return None
        if number == len(words):
            return [] if all(label in SILENCES for label in labels[at:]) else None
        for pronunciation in lexicon.get(words[number], []):
            end = at + len(pronunciation)
            if labels[at:end] == pronunciation:
                rest = match(end, number + 1)
                if rest is not None:
                    return [Span(words[number], phones[at].start, phones[end - 1].end), *rest]
        if at < len(labels) and labels[at] in SILENCES:
            rest = match(at + 1, number)
            if rest is not None:
                return rest
        dead.add((at, number))
        return None

    return match(0, 0) or []


def read_lexicon(path: Path) -> dict[str, list[list[str]]]:
    """dict/lexicon.txt: word -> pronunciations."""
    lexicon: dict[str, list[list[str]]] = {}
    for _, line in read_lines(path):
        word, *phones = split(line)
        if phones:
            lexicon.setdefault(word, []).append(phones)
    return lexicon


def _pick(frames: dict[str, int], texts: dict[str, str]) -> str | None:
    """An utterance that reads well: unperturbed, 1.5 to 3 s, 4 to 7 words, or the nearest to that; of many the middle
    one, so that no end of the speaker list is favoured."""

    def distance(utt: str):
        seconds, words = frames[utt] * FRAME_SECONDS, len(split(texts[utt]))
        return re.match(r"sp\d", utt) is not None, max(0.0, 1.5 - seconds, seconds - 3.0), max(0, 4 - words, words - 7)

    if not frames:
        return None
    ranks = {utt: distance(utt) for utt in frames}
    best = min(ranks.values())
    chosen = sorted(utt for utt, rank in ranks.items() if rank == best)
    return chosen[len(chosen) // 2]


def load_alignment(ali_dir: Path, data_dir: Path) -> AlignedUtterance | None:
    """Read one utterance of ``exp/CORPUS/ali`` with its features; None where a part of it is absent.

    Args:
      data_dir: data/CORPUS; one of its ``*_hires`` directories holds feats.scp and text of the aligned utterances, and
        dict/lexicon.txt the pronunciations.
    """
    from essence_kd.io.tables import IntVectorTable, MatrixTable

    if not (ali_dir / "ali.scp").exists() or not (ali_dir / "tree.txt").exists():
        return None
    folders = [p.parent for p in sorted(data_dir.glob("*_hires/feats.scp")) if (p.parent / "text").exists()]
    alignments = IntVectorTable(str(ali_dir / "ali.scp"))
    folder = next((f for f in folders if any(u in alignments for u in read_map(f / "text"))), None)
    if folder is None:
        return None
    texts = read_map(folder / "text")
    features = MatrixTable(str(folder / "feats.scp"))
    frames = {}
    counts = read_map(folder / "utt2num_frames") if (folder / "utt2num_frames").exists() else {}
    candidates = [u for u in texts if u in alignments and u in features]
    for utt in candidates if counts else candidates[:200]:
        frames[utt] = int(counts[utt]) if utt in counts else len(alignments[utt])
    utt = _pick(frames, texts)
    if utt is None:
        return None
    phones = phone_spans(np.asarray(alignments[utt]), read_tree(ali_dir / "tree.txt"))
    lexicon = data_dir / "dict" / "lexicon.txt"
    words = word_spans(phones, split(texts[utt]), read_lexicon(lexicon)) if lexicon.exists() else []
    return AlignedUtterance(utt, texts[utt], np.asarray(features[utt]), tuple(phones), tuple(words))


def mel_image(features: np.ndarray) -> np.ndarray:
    """Log-mel energies (T, bins) as a uint8 picture (bins, T), low bins at the bottom, loud dark."""
    low, high = np.percentile(features, [5, 99.5])
    scaled = np.clip((features - low) / max(high - low, 1e-6), 0.0, 1.0)
    return (255 - 235 * scaled ** 1.2).astype(np.uint8).T[::-1]
