"""What GMMs see of a data directory: normalised MFCC with deltas, and transcripts as word-ids."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, List, Sequence

import numpy as np

from essence_kd.hmm.lang import ADD_OOV, Lang
from essence_kd.io.errors import UserError
from essence_kd.io.tables import MatrixTable
from essence_kd.io.text import read_map, read_words
from essence_kd.io.words import counted, refuse_reserved, refuse_unknown, unknown_words


def add_deltas(feats: np.ndarray, order: int = 2, window: int = 2) -> np.ndarray:
    """(T, D) -> float32 (T, D * (order + 1)): each feature with its time derivatives, as Kaldi's add-deltas does.

    The n-th derivative is one filter over the original frames (the first and last frame repeated at the edges).
    """
    feats = np.asarray(feats, dtype=np.float32)
    ramp = np.arange(-window, window + 1, dtype=np.float64)
    ramp /= np.sum(ramp * ramp)
    out, scales = [feats], np.ones(1)
    for n in range(1, order + 1):
        scales = np.convolve(scales, ramp)
        reach = n * window
        index = np.clip(np.arange(-reach, len(feats) + reach), 0, len(feats) - 1)
        padded = feats[index]
        delta = np.zeros_like(feats)
        for k, scale in enumerate(scales):
            if scale:
                delta += np.float32(scale) * padded[k:k + len(feats)]
        out.append(delta)
    return np.hstack(out)


class FeatureReader:
    """MFCC of a data directory with per-speaker mean normalisation and deltas, by utterance.

    ``reader[utt]`` is float32 (T, 3 * D); ``reader.utts`` in the order of feats.scp. Raises UserError where feats.scp,
    cmvn.scp or utt2spk lack something, and where an utterance's dimension differs (``dim``: what the model wants).
    """

    def __init__(self, data_dir: str | Path, dim: int | None = None):
        self.path = Path(data_dir)
        for name, maker in (("feats.scp", "make-feats"), ("cmvn.scp", "compute-cmvn"), ("utt2spk", "data preparation")):
            if not (self.path / name).exists():
                raise UserError(f"{self.path / name}: missing; it is made by {maker}")
        self.feats = MatrixTable(str(self.path / "feats.scp"))
        self.cmvn = MatrixTable(str(self.path / "cmvn.scp"))
        self.utt2spk = read_map(self.path / "utt2spk")
        self.utts = list(self.feats)
        if not self.utts:
            raise UserError(f"{self.path / 'feats.scp'}: holds no utterance; it is made by make-feats")
        self.dim = dim
        self._means: Dict[str, np.ndarray] = {}

    def mean(self, utt: str) -> np.ndarray:
        """The mean of the utterance's speaker, float64 (D,), from Kaldi's CMVN statistics (2, D + 1)."""
        spk = self.utt2spk.get(utt)
        if not spk:
            raise UserError(f"{self.path / 'utt2spk'}: tells no speaker of utterance {utt}, which feats.scp has")
        if spk not in self._means:
            if spk not in self.cmvn:
                raise UserError(f"{self.path / 'cmvn.scp'}: lacks speaker {spk} of utterance {utt}; "
                                "run compute-cmvn again")
            stats = np.asarray(self.cmvn[spk], dtype=np.float64)
            if stats.ndim != 2 or len(stats) != 2 or not stats[0, -1] > 0:
                raise UserError(f"{self.path / 'cmvn.scp'}: speaker {spk}: these are no CMVN statistics; "
                                "run compute-cmvn again")
            self._means[spk] = stats[0, :-1] / stats[0, -1]
        return self._means[spk]

    def __getitem__(self, utt: str) -> np.ndarray:
        feats, mean = self.feats[utt], self.mean(utt)
        if not len(feats):
            return np.zeros((0, 3 * len(mean)), dtype=np.float32)
        if feats.ndim != 2 or feats.shape[1] != len(mean):
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has dimension {feats.shape[-1]}, but cmvn.scp "
                            f"{len(mean)}; make features and statistics again")
        if self.dim is not None and 3 * feats.shape[1] != self.dim:
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has dimension {feats.shape[1]}, but the model "
                            f"was trained on dimension {self.dim // 3}; use the features that it was trained on")
        if not np.isfinite(feats).all():
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has features that are not finite; "
                            "make them again")
        return add_deltas(feats - mean.astype(np.float32))


def read_transcripts(data_dir: str | Path, utts: Sequence[str], lang: Lang,
                     map_oov: bool) -> Dict[str, List[int]]:
    """Word-ids of every utterance. Raises UserError for a missing transcript, for a reserved word, and for a word that
    the lang lacks unless `map_oov` (then it becomes the lang's oov word, if there is one, which stderr tells)."""
    path, words_txt = Path(data_dir) / "text", lang.path / "words.txt"
    if not path.exists():
        raise UserError(f"{path}: missing; training and alignment need transcripts")
    table = read_words(path)
    for utt in utts:
        if utt not in table:
            raise UserError(f"{path}: lacks utterance {utt}, which feats.scp has")
    rows = [(utt, table[utt]) for utt in utts]
    refuse_reserved(rows, path)
    if not map_oov or lang.oov < 0:
        refuse_unknown(rows, lang.word_ids, path, words_txt, "add it to the lexicon" + (
            ", or pass --map-oov true" if not map_oov else f", or, for a word that stands for unknown ones, {ADD_OOV}"))
    unknown = unknown_words(rows, lang.word_ids, path, words_txt)
    if unknown:
        print(f"{path}: {counted(unknown)} are not in {words_txt} and taken as {lang.words[lang.oov]}", file=sys.stderr)
    return {utt: [lang.word_ids.get(word, lang.oov) for word in words] for utt, words in rows}
