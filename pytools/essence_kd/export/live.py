"""Audio that comes while it is spoken, from a microphone or a pipe: cut into utterances by its loudness."""
from __future__ import annotations

import queue
from typing import BinaryIO, Iterator, Optional, Tuple

import numpy as np

from essence_kd.export.format import runtime
from essence_kd.io.errors import UserError

BLOCK_MS = 100
ABOVE = 8.0  # dB over the noise: speech
_RISE = 0.02  # dB a block that the estimate of the noise goes up
_LEAST = 20.0  # dB of int16 samples that the noise is taken to have
_AT_FIRST = 40.0  # dB that the noise has at most before it is known: a stream may begin with speech
_MARGIN = 2  # blocks of quiet that stay before and behind an utterance


class Endpointer:
    """Finds where an utterance begins and ends: at ``pause`` seconds of quiet, or after ``longest`` seconds."""

    def __init__(self, rate: int, pause: float = 0.6, longest: float = 30.0) -> None:
        self.block = rate * BLOCK_MS // 1000
        self._pause, self._longest = pause * 1000 / BLOCK_MS, longest * 1000 / BLOCK_MS
        self._noise = _AT_FIRST
        self._held: list = []  # blocks of the utterance, or the last ones before it
        self._speaking, self._quiet, self.first = False, 0, 0

    def add(self, samples: np.ndarray) -> Optional[Tuple[int, np.ndarray]]:
        """A block of int16 samples -> (number of its first sample, samples) of an utterance that ends with it."""
        level = 10 * np.log10(np.square(samples.astype(np.float64)).mean() + 1) if len(samples) else 0.0
        self._noise = min(level, self._noise + _RISE)
        loud = level > max(self._noise, _LEAST) + ABOVE
        self._held.append(samples)
        if not self._speaking:
            self._speaking, self._quiet = loud, 0
            if not loud:
                self.first += sum(map(len, self._held[:-_MARGIN]))
                self._held = self._held[-_MARGIN:]
                return None
        self._quiet = 0 if loud else self._quiet + 1
        return self.end() if self._quiet >= self._pause or len(self._held) >= self._longest else None

    @property
    def so_far(self) -> Optional[np.ndarray]:
        """The samples of the utterance that is being spoken, None where none is."""
        return np.concatenate(self._held) if self._speaking else None

    def end(self) -> Optional[Tuple[int, np.ndarray]]:
        """What :meth:`add` answers, at the end of the audio."""
        first, held, spoken, quiet = self.first, self._held, self._speaking, self._quiet
        self.first += sum(map(len, held))
        self._held, self._speaking, self._quiet = [], False, 0
        return (first, np.concatenate(held[:len(held) - max(0, quiet - _MARGIN)])) if spoken else None


def blocks_of_pipe(stream: BinaryIO, size: int) -> Iterator[np.ndarray]:
    """Blocks of ``size`` int16 samples of raw 16-bit audio, as they come; the last may be shorter."""
    rest = b""
    while True:
        data = stream.read(2 * size - len(rest))
        rest += data
        if not data or len(rest) == 2 * size:
            if len(rest) % 2:
                raise UserError("standard input: an odd number of bytes: raw audio has 16 bits (two bytes) a sample")
            if rest:
                yield np.frombuffer(rest, "<i2")
            rest = b""
        if not data:
            return


def blocks_of_microphone(rate: int, size: int) -> Iterator[np.ndarray]:
    """Blocks of int16 samples of the default microphone, without end. Raises UserError where there is none."""
    try:
        sounddevice = runtime("sounddevice", "sounddevice", "--mic")
    except OSError as error:  # PortAudio, which the package loads
        raise UserError(f"--mic: {error}: install PortAudio (apt-get install libportaudio2)") from None
    come: "queue.Queue[np.ndarray]" = queue.Queue()
    try:
        with sounddevice.InputStream(samplerate=rate, blocksize=size, channels=1, dtype="int16",
                                     callback=lambda data, *rest: come.put(data[:, 0].copy())):
            while True:
                yield come.get()
    except sounddevice.PortAudioError as error:
        raise UserError(f"--mic: no microphone can be opened ({error})") from None
