"""Features computed from audio while training, with noise mixed in ("feature strategy" on the fly)."""
from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Callable, Optional, Tuple

import numpy as np

from essence_kd.am.sources import FeatureSource
from essence_kd.corpus.features import FeatureExtractor, FeatureOptions
from essence_kd.io.data_dir import DataDir, read_wav_scp
from essence_kd.io.errors import UserError
from essence_kd.io.wave import read_wav

RECORDINGS_KEPT = 16  # in memory, of speech and of noise


class _Recordings:
    """Audio of a wav.scp by recording, float64 at int16 scale; the last few are kept."""

    def __init__(self, wav_scp: dict, where, rate: int) -> None:
        self.wav_scp, self.where, self.rate = wav_scp, where, rate
        self._kept: "OrderedDict[str, np.ndarray]" = OrderedDict()

    def __getitem__(self, recording: str) -> np.ndarray:
        if recording not in self._kept:
            try:
                rate, samples = read_wav(self.wav_scp[recording])
            except KeyError:
                raise UserError(f"{self.where}: lacks recording {recording}") from None
            except UserError as error:
                raise UserError(f"{self.where}: recording {recording}: {error}") from None
            if rate != self.rate:
                raise UserError(f"{self.where}: recording {recording} has {rate} samples a second, not {self.rate}: "
                                "resample it")
            self._kept[recording] = samples.astype(np.float64)
            if len(self._kept) > RECORDINGS_KEPT:
                self._kept.popitem(last=False)
        return self._kept[recording]


class NoiseMixer:
    """Mixes recordings of a wav.scp (of MUSAN, for instance) into speech at a ratio drawn for each utterance."""

    def __init__(self, wav_scp, share: float, snr: Tuple[float, float], rate: int) -> None:
        """``share`` of utterances get noise; ``snr`` is the range of speech to noise in dB."""
        table = read_wav_scp(wav_scp)
        if not table:
            raise UserError(f"{wav_scp}: no noise recordings")
        self.share, self.snr, self.names = share, snr, list(table)
        self.recordings = _Recordings(table, wav_scp, rate)

    def __call__(self, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``speech`` (N,) with noise from a random place of a random recording, repeated where it is too short."""
        if rng.random() >= self.share:
            return speech
        noise = self.recordings[self.names[rng.integers(len(self.names))]]
        noise = np.take(noise, np.arange(len(speech)) + rng.integers(len(noise)), mode="wrap")
        power = np.mean(noise * noise)
        snr = rng.uniform(*self.snr)
        if power == 0:
            return speech
        return speech + noise * np.sqrt(np.mean(speech * speech) / power / 10 ** (snr / 10))


class AudioSource(FeatureSource):
    """Filterbanks of cuts by position, computed from the audio of their data directory when they are asked for."""

    def __init__(self, cuts, cmn: str, data_dir, mixer: Optional[Callable] = None,
                 options: FeatureOptions = FeatureOptions()) -> None:
        """``cuts`` (of feats.scp) say how many frames there must be; ``mixer``: a NoiseMixer."""
        super().__init__(cuts, cmn)
        data = DataDir.load(data_dir)
        self.where, self.segments = Path(data_dir) / "wav.scp", data.utterances()
        self.recordings = _Recordings(data.wav_scp, self.where, options.sample_frequency)
        self.rate, self.mixer = options.sample_frequency, mixer
        self.extractor = FeatureExtractor(options, ("fbank",))

    def raw(self, i: int, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """Filterbanks (T, F) float32 of utterance i, with noise where ``rng`` is given."""
        utt = self.ids[i]
        if utt not in self.segments:
            raise UserError(f"{self.where.parent}: has no audio of utterance {utt}, which feats.scp has")
        recording, start, end = self.segments[utt]
        samples = self.recordings[recording]
        samples = samples[round(start * self.rate):None if end == -1 else round(end * self.rate)]
        if rng is not None and self.mixer is not None:
            samples = self.mixer(samples, rng)
        feats = self.extractor(samples)["fbank"]
        if feats.shape != (self.frames[i], self.feat_dim):
            raise UserError(f"{self.where}: the audio of utterance {utt} makes {feats.shape[0]} frames x "
                            f"{feats.shape[1]} bins, feats.scp has {self.frames[i]} x {self.feat_dim}: they were made "
                            "from other audio")
        return feats


def audio_source(cuts, cmn: str, data_dir, augment) -> AudioSource:
    """The source that the settings ``augment`` (noise, noise_share, snr_low, snr_high) describe."""
    options, mixer = FeatureOptions(), None
    if augment.noise:
        mixer = NoiseMixer(augment.noise, augment.noise_share, (augment.snr_low, augment.snr_high),
                           options.sample_frequency)
    return AudioSource(cuts, cmn, data_dir, mixer, options)
