"""Features computed from audio while training, with noise mixed in ("feature strategy" on the fly)."""
from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional, Tuple

import numpy as np

from essence_kd.am.cmn import Cmn
from essence_kd.am.sources import FeatureSource
from essence_kd.corpus.features import FeatureExtractor, FeatureOptions
from essence_kd.io.data_dir import DataDir, read_wav_scp
from essence_kd.io.errors import UserError
from essence_kd.io.recordings import Recordings

RECORDINGS_KEPT = 16  # in memory, of speech and of noise


class NoiseMixer:
    """Mixes recordings of a wav.scp (of MUSAN, for instance) into speech at a ratio drawn for each utterance."""

    def __init__(self, wav_scp, share: float, snr: Tuple[float, float], rate: int) -> None:
        """``share`` of utterances get noise; ``snr`` is the range of speech to noise in dB."""
        table = read_wav_scp(wav_scp)
        if not table:
            raise UserError(f"{wav_scp}: no noise recordings")
        self.share, self.snr, self.names = share, snr, list(table)
        self.recordings = Recordings(table, wav_scp, rate, RECORDINGS_KEPT)

    def __call__(self, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``speech`` (N,) with noise from a random place of a random recording, repeated where it is too short."""
        if rng.random() >= self.share:
            return speech
        noise = self.recordings.whole(self.names[rng.integers(len(self.names))])
        noise = np.take(noise, np.arange(len(speech)) + rng.integers(len(noise)), mode="wrap").astype(np.float64)
        power = np.mean(noise * noise)
        snr = rng.uniform(*self.snr)
        if power == 0:
            return speech
        return speech + noise * np.sqrt(np.mean(speech * speech) / power / 10 ** (snr / 10))


class AudioSource(FeatureSource):
    """Filterbanks of cuts by position, computed from the audio of their data directory when they are asked for."""

    def __init__(self, cuts, cmn: Cmn, data_dir, mixer: Optional[Callable] = None,
                 options: Optional[FeatureOptions] = None) -> None:
        """``cuts`` (of feats.scp) say how many frames there must be; ``mixer``: a NoiseMixer.

        Without ``options`` the rate of the first recording is that of all, as make-feats has found it.
        """
        super().__init__(cuts, cmn)
        data = DataDir.load(data_dir)
        self.where, self.segments, self.channels = Path(data_dir) / "wav.scp", data.utterances(), data.channels
        self.recordings = Recordings(data.wav_scp, self.where, options.sample_frequency if options else None,
                                     RECORDINGS_KEPT)
        if options is None:
            self.recordings[next(iter(data.wav_scp))]
            options = FeatureOptions(sample_frequency=self.recordings.rate)
        self.rate, self.mixer = options.sample_frequency, mixer
        self.extractor = FeatureExtractor(options, ("fbank",))

    def raw(self, i: int, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """Filterbanks (T, F) float32 of utterance i, with noise where ``rng`` is given."""
        utt = self.ids[i]
        if utt not in self.segments:
            raise UserError(f"{self.where.parent}: has no audio of utterance {utt}, which feats.scp has")
        samples = self.recordings.cut(utt, self.segments[utt], self.channels.get(utt)).astype(np.float64)
        if rng is not None and self.mixer is not None:
            samples = self.mixer(samples, rng)
        feats = self.extractor(samples)["fbank"]
        if feats.shape != (self.frames[i], self.feat_dim):
            raise UserError(f"{self.where}: the audio of utterance {utt} makes {feats.shape[0]} frames x "
                            f"{feats.shape[1]} bins, feats.scp has {self.frames[i]} x {self.feat_dim}: they were made "
                            "from other audio")
        return feats


def audio_source(cuts, cmn: Cmn, data_dir, augment) -> AudioSource:
    """The source that the settings ``augment`` (noise, noise_share, snr_low, snr_high) describe."""
    source = AudioSource(cuts, cmn, data_dir)
    if augment.noise:
        source.mixer = NoiseMixer(augment.noise, augment.noise_share, (augment.snr_low, augment.snr_high), source.rate)
    return source
