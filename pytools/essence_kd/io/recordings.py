"""The audio of a data directory, read when it is asked for: features, training and the report have it from here."""
from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Mapping, Optional

import numpy as np

from essence_kd.io.data_dir import sample_range
from essence_kd.io.errors import UserError
from essence_kd.io.text import read_map
from essence_kd.io.wave import expect_rate, is_command, read_audio, split_speed, the_channel, wav_info


def sample_rate_of(data_dir) -> Optional[int]:
    """Hz of the first recording of a data directory, by its file's header; None where that cannot be known.

    That is where there is no wav.scp or no such file, and where a command makes the audio, which is not run for this.
    """
    scp = Path(data_dir) / "wav.scp"
    if not scp.is_file():
        return None
    source: str = next(iter(read_map(scp).values()), "|")
    if is_command(source):
        return None
    factor: Optional[str] = ""
    while factor is not None:
        source, factor = split_speed(source)
    try:
        return wav_info(source).sample_rate
    except UserError:
        return None


class Recordings:
    """Recordings of a wav.scp; the last ``keep`` that were read stay in memory."""

    def __init__(self, wav_scp: Mapping[str, str], where: str | Path, rate: Optional[int] = None,
                 keep: int = 1) -> None:
        """``where``: the file, for messages. ``rate``: Hz that each must have; None: that of the one first read."""
        self.wav_scp, self.where, self.rate = wav_scp, Path(where), rate
        self._keep = keep
        self._kept: "OrderedDict[str, np.ndarray]" = OrderedDict()

    def __getitem__(self, recording: str) -> np.ndarray:
        """int16 samples (N, channels) of a recording that wav.scp has. Raises UserError that names both."""
        if recording not in self._kept:
            try:
                rate, samples = read_audio(self.wav_scp[recording])
            except UserError as error:
                raise UserError(f"{self.where}: recording {recording}: {error}") from None
            if self.rate is None:
                self.rate = rate
            expect_rate(rate, self.rate, f"{self.where}: recording {recording}: {self.wav_scp[recording]}")
            while len(self._kept) >= self._keep:
                self._kept.popitem(last=False)
            self._kept[recording] = samples
        return self._kept[recording]

    def whole(self, recording: str) -> np.ndarray:
        """int16 samples (N,) of a recording of one channel. Raises UserError."""
        samples = self[recording]
        return samples[:, the_channel(None, samples.shape[1], f"{self.where}: recording {recording}")]

    def cut(self, utt: str, segment: tuple[str, float, float], channel: Optional[int] = None) -> np.ndarray:
        """int16 samples (N,) of an utterance: (recording, start, end) in seconds, and its channel. Raises UserError."""
        if segment[0] not in self.wav_scp:
            raise UserError(f"{self.where}: utterance {utt} has no recording ({segment[0]}): add it")
        samples = self[segment[0]]
        name = f"{self.where}: recording {segment[0]}, of which {utt} is cut"
        channel = the_channel(channel, samples.shape[1], name)
        first, last = sample_range(segment, len(samples), self.rate, self.wav_scp[segment[0]],
                                   f"{self.where.parent}/segments: {utt}")
        return samples[first:last, channel]
