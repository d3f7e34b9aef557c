"""What GMMs see of a data directory: normalised MFCC and what is made of them, and transcripts as word-ids."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np

from essence_kd.hmm.feature_transforms import FeatureSetup
from essence_kd.hmm.lang import ADD_OOV, Lang
from essence_kd.io.errors import UserError
from essence_kd.io.tables import MatrixTable
from essence_kd.io.text import read_map, read_words
from essence_kd.io.words import counted, refuse_reserved, refuse_unknown, unknown_words


class FeatureReader:
    """MFCC of a data directory with per-speaker mean normalisation, by utterance.

    ``reader[utt]`` is float32 (T, D), what `setup` makes of them and, after :meth:`adapt`, what speakers' transforms
    make of that; ``reader.utts`` in the order of feats.scp. Raises UserError where feats.scp, cmvn.scp or utt2spk lack
    something, and where an utterance's dimension differs from what `setup` takes.
    """

    def __init__(self, data_dir: str | Path, setup: FeatureSetup = FeatureSetup(), dim: int | None = None):
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
        self.setup, self.dim = setup, dim
        self.transforms: Dict[str, np.ndarray] = {}
        self._means: Dict[str, np.ndarray] = {}

    def speaker(self, utt: str) -> str:
        """The speaker of an utterance."""
        spk = self.utt2spk.get(utt)
        if not spk:
            raise UserError(f"{self.path / 'utt2spk'}: tells no speaker of utterance {utt}, which feats.scp has")
        return spk

    def by_speaker(self) -> List[List[str]]:
        """The utterances of each speaker, in the order of feats.scp."""
        out: Dict[str, List[str]] = {}
        for utt in self.utts:
            out.setdefault(self.speaker(utt), []).append(utt)
        return list(out.values())

    def mean(self, utt: str) -> np.ndarray:
        """The mean of the utterance's speaker, float64 (static,), from Kaldi's CMVN statistics (2, static + 1)."""
        spk = self.speaker(utt)
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

    def static(self, utt: str) -> np.ndarray:
        """The normalised MFCC of an utterance, float32 (T, static)."""
        feats, mean = self.feats[utt], self.mean(utt)
        if not len(feats):
            return np.zeros((0, len(mean)), dtype=np.float32)
        if feats.ndim != 2 or feats.shape[1] != len(mean):
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has dimension {feats.shape[-1]}, but cmvn.scp "
                            f"{len(mean)}; make features and statistics again")
        if not self.setup.fits(len(mean)) or self.dim not in (None, self.setup.dim(len(mean))):
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has dimension {feats.shape[1]}, but the model "
                            f"was trained on another one (it sees {self.dim} of what it makes of them); use the "
                            "features that it was trained on")
        if not np.isfinite(feats).all():
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has features that are not finite; "
                            "make them again")
        return feats - mean.astype(np.float32)

    def __getitem__(self, utt: str) -> np.ndarray:
        feats = self.static(utt)
        ends = np.zeros(len(feats), dtype=np.int64), np.full(len(feats), len(feats) - 1)
        out = self.setup.apply(feats, *ends)
        transform = self.transforms.get(self.utt2spk[utt]) if self.transforms else None
        return out if transform is None else adapt(out, transform)


def adapt(feats: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Features (T, D) after a speaker's transform (D, D + 1): float32 (T, D)."""
    dim = len(transform)
    return feats @ transform[:, :dim].T.astype(np.float32) + transform[:, dim].astype(np.float32)


def read_transcripts(data_dir: str | Path, utts: Sequence[str], lang: Lang,
                     map_oov: bool) -> Dict[str, List[int]]:
    """Word-ids of every utterance. Raises UserError for a missing transcript, for a reserved word, and for a word that
    the lang lacks unless `map_oov` (then it becomes the lang's oov word, if there is one, which stderr tells)."""
    path = Path(data_dir) / "text"
    if not path.exists():
        raise UserError(f"{path}: missing; training and alignment need transcripts")
    table = read_words(path)
    for utt in utts:
        if utt not in table:
            raise UserError(f"{path}: lacks utterance {utt}, which feats.scp has")
    return word_ids([(utt, table[utt]) for utt in utts], path, lang, map_oov)


def word_ids(rows: List[Tuple[str, List[str]]], path: str | Path, lang: Lang, map_oov: bool) -> Dict[str, List[int]]:
    """Word-ids of (utterance, words) pairs of a file, by the rules of :func:`read_transcripts`."""
    words_txt = lang.path / "words.txt"
    refuse_reserved(rows, path)
    if not map_oov or lang.oov < 0:
        refuse_unknown(rows, lang.word_ids, path, words_txt, "add it to the lexicon" + (
            ", or pass --map-oov true" if not map_oov else f", or, for a word that stands for unknown ones, {ADD_OOV}"))
    unknown = unknown_words(rows, lang.word_ids, path, words_txt)
    if unknown:
        print(f"{path}: {counted(unknown)} are not in {words_txt} and taken as {lang.words[lang.oov]}", file=sys.stderr)
    return {utt: [lang.word_ids.get(word, lang.oov) for word in words] for utt, words in rows}
