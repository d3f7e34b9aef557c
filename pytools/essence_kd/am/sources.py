"""Utterances of a Kaldi data directory by position: lhotse cuts, their features, and which of them are held out.

Legend: T feature frames of an utterance, F feature bins, B utterances of a batch.
"""
from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.am.cmn import Cmn, check_cmn, without_mean
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS, SAMPLE_RATE
from essence_kd.io.specifiers import read_scp
from essence_kd.io.tables import MatrixPlaces
from essence_kd.io.text import read_map

FRAME_SHIFT = FRAME_SHIFT_MS / 1000  # seconds per feature frame
FRAMES_PER_HOUR = 3_600_000 / FRAME_SHIFT_MS


class StoredCuts:
    """The utterances of a feats.scp by position, each of them a lhotse cut that is made when it is asked for.

    Kept are columns: ids, places of the matrices, frames (N,) int64, speakers, and uniq, the ids before speed
    perturbation. They take a third of the memory of the cuts, which counts where every process holds those of
    hundreds of hours.
    """

    def __init__(self, ids: List[str], places: List[str], frames: np.ndarray, feat_dim: int, speakers: List[str],
                 uniq: List[str]) -> None:
        self.ids, self.places, self.frames, self.feat_dim = ids, places, frames, feat_dim
        self.speakers, self.uniq = speakers, uniq

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int):
        """The MonoCut of utterance i; its speaker is its supervision's, ``cut.uniq`` the id before perturbation.

        Only ``cut.load_features()`` reads with lhotse's own reader (kaldi-native-io), as writing Shar does.
        """
        from lhotse import MonoCut, SupervisionSegment
        from lhotse.features.base import Features

        utt, frames = self.ids[i], int(self.frames[i])
        seconds = frames * FRAME_SHIFT
        features = Features(type="kaldi", num_frames=frames, num_features=self.feat_dim, frame_shift=FRAME_SHIFT,
                            sampling_rate=SAMPLE_RATE, start=0.0, duration=seconds, storage_type="kaldiio",
                            storage_path=self.places[i], storage_key=utt, recording_id=utt, channels=0)
        speaker = SupervisionSegment(id=utt, recording_id=utt, start=0.0, duration=seconds, speaker=self.speakers[i])
        return MonoCut(id=utt, start=0.0, duration=seconds, channel=0, features=features, supervisions=[speaker],
                       custom={"uniq": self.uniq[i]})

    def take(self, positions: Sequence[int]) -> "StoredCuts":
        """Some of the utterances, in the order of ``positions``."""
        def of(column):
            return [column[i] for i in positions]

        return StoredCuts(of(self.ids), of(self.places), self.frames[np.asarray(positions, dtype=np.int64)],
                          self.feat_dim, of(self.speakers), of(self.uniq))


def load_cuts(feats_scp) -> StoredCuts:
    """One cut an utterance of a feats.scp, in its order; the matrices stay on disk.

    Reads only the archives' headers. ``utt2spk`` and ``utt2uniq`` beside the scp give speakers and the ids before
    speed perturbation; without them both are the id.

    Raises:
        UserError: a missing or empty scp, a duplicate id, an archive that cannot be read, an empty matrix.
    """
    feats_scp, matrices = Path(feats_scp), MatrixPlaces()
    places: Dict[str, str] = {}
    for number, utt, file, span in read_scp(str(feats_scp)):
        if utt in places:
            raise UserError(f"{feats_scp}: {utt} comes twice (line {number}): remove one of its lines")
        places[utt] = file if span is None else f"{file}[{span}]"
    frames, width = np.zeros(len(places), dtype=np.int64), None
    for i, (utt, place) in enumerate(places.items()):
        try:
            frames[i], bins = matrices.shape(utt, place)
        except UserError:
            raise UserError(f"{feats_scp}: utterance {utt}: cannot read the features at {place}") from None
        if frames[i] == 0:
            raise UserError(f"{feats_scp}: utterance {utt} has no frames")
        width = width or bins
        if bins != width:
            raise UserError(f"{feats_scp}: utterance {utt} has {bins} feature bins, the first has {width}")
    if not places:
        raise UserError(f"{feats_scp}: no utterances")
    ids = list(places)
    columns = [_column(feats_scp.parent / name, ids) for name in ("utt2spk", "utt2uniq")]
    return StoredCuts(ids, list(places.values()), frames, width, *columns)


def _column(path: Path, ids: List[str]) -> List[str]:
    """What utt2spk or utt2uniq says of some utterances, the id where it says nothing; equal texts are one object."""
    found = read_map(path) if path.is_file() else {}
    return [sys.intern(found.get(utt, utt)) for utt in ids]


class FeatureSource:
    """Features of cuts by position, float32 (T, F), their mean removed: of nothing, the utterance, the speaker, or a
    running one."""

    mixer: Any = None  # what mixes noise into audio, in a source of audio

    def __init__(self, cuts: StoredCuts, cmn: Cmn) -> None:
        check_cmn(cmn)
        self.cuts, self.cmn, self._matrices = cuts, cmn, MatrixPlaces()
        self.ids, self.frames, self.feat_dim = cuts.ids, cuts.frames, cuts.feat_dim
        self._means: Dict[str, np.ndarray] = {}
        self._of_speaker: Dict[str, List[int]] = {}
        if cmn == "speaker":
            for i, speaker in enumerate(cuts.speakers):
                self._of_speaker.setdefault(speaker, []).append(i)

    def __len__(self) -> int:
        return len(self.cuts)

    def raw(self, i: int, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """The stored matrix of cut i as float32 (T, F); a UserError names the utterance when it is not all finite.

        ``rng`` is for sources that compute features from audio and mix noise into it.
        """
        try:
            feats = np.asarray(self._matrices.read(self.ids[i], self.cuts.places[i]), dtype=np.float32)
        except UserError:
            raise UserError(f"utterance {self.ids[i]}: cannot read the features at {self.cuts.places[i]}") from None
        if not np.isfinite(feats).all():
            raise UserError(f"utterance {self.ids[i]}: NaN or infinite features at {self.cuts.places[i]}")
        return feats

    def load(self, i: int, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """Features of cut i, (T, F) float32, mean removed."""
        feats = self.raw(i, rng)
        if self.cmn == "speaker":
            return feats - self._speaker_mean(self.cuts.speakers[i])
        return without_mean(feats, self.cmn)

    def padded(self, positions: Sequence[int]) -> np.ndarray:
        """(B, T, F) float32: features of some cuts, mean removed, zero beyond the end of each."""
        batch = np.zeros((len(positions), self.frames[positions].max(), self.feat_dim), dtype=np.float32)
        for row, i in enumerate(positions):
            batch[row, :self.frames[i]] = self.load(i)
        return batch

    def _speaker_mean(self, speaker: str) -> np.ndarray:
        if speaker not in self._means:
            total: Any = 0.0
            frames = 0
            for i in self._of_speaker[speaker]:
                feats = self.raw(i)
                total, frames = total + feats.sum(axis=0, dtype=np.float64), frames + len(feats)
            self._means[speaker] = (total / frames).astype(np.float32)
        return self._means[speaker]


class SourceOfSets:
    """Several sources as one, set after set; ``set_of`` (N,) int64 has the set of each utterance."""

    def __init__(self, sources: Sequence[FeatureSource]) -> None:
        first = sources[0]
        self.sources, self.mixer, self.cmn, self.feat_dim = sources, first.mixer, first.cmn, first.feat_dim
        self.ids = [utt for source in sources for utt in source.ids]
        self.frames = np.concatenate([source.frames for source in sources])
        self.set_of = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        self._place = np.concatenate([np.arange(len(source)) for source in sources])

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, i: int):
        """The MonoCut of utterance i."""
        return self.sources[self.set_of[i]].cuts[int(self._place[i])]

    def raw(self, i: int, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """`FeatureSource.raw` of utterance i."""
        return self.sources[self.set_of[i]].raw(int(self._place[i]), rng)

    def load(self, i: int, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """`FeatureSource.load` of utterance i."""
        return self.sources[self.set_of[i]].load(int(self._place[i]), rng)


def batches_by_length(frames: np.ndarray, window_frames: int, batch_frames: int) -> Iterator[Tuple[List[int], bool]]:
    """(positions of utterances of similar length, whether a window ends with them); ``frames`` (N,): their lengths.

    A window is consecutive utterances of at most ``window_frames`` together (or one that is longer). In each the
    shortest come first, in batches of at most ``batch_frames``, padding included (or one utterance).
    """
    start = 0
    while start < len(frames):
        stop = start + max(1, int(np.searchsorted(np.cumsum(frames[start:]), window_frames, side="right")))
        order = sorted(range(start, stop), key=lambda i: frames[i])
        start = stop
        while order:
            count = 1
            while count < len(order) and frames[order[count]] * (count + 1) <= batch_frames:
                count += 1
            batch, order = order[:count], order[count:]
            yield batch, not order


def split_heldout(cuts: StoredCuts, share: float) -> Tuple[List[int], List[int]]:
    """Positions of training cuts and of held-out cuts: ``share`` of the original utterances with all their speeds.

    The choice hashes the original id, so it is the same for every system and seed. At least one of each where
    share > 0.
    """
    groups = sorted(set(cuts.uniq), key=lambda u: hashlib.sha256(u.encode()).digest())
    if share <= 0:
        return list(range(len(cuts))), []
    if len(groups) < 2:
        raise UserError(f"utterance {groups[0]} is the only one: nothing can be held out (give --dev-data and "
                        "--dev-ali, or --set data.heldout=0)")
    held = set(groups[:min(len(groups) - 1, max(1, round(share * len(groups))))])
    train = [i for i, uniq in enumerate(cuts.uniq) if uniq not in held]
    return train, [i for i, uniq in enumerate(cuts.uniq) if uniq in held]
