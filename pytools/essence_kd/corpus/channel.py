"""Rooms, noises and telephone lines: what lies between a clean voice and a recording.

Signals are float32 at 8 kHz, full scale = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np

from essence_kd.io.frames import SAMPLE_RATE


@dataclass(frozen=True)
class Condition:
    """How difficult a recording is; each pair is a range from which a side of a conversation draws uniformly.

    noises: kinds to choose from: babble (other speakers), hiss (white), street (pink with slow swells), car (low
    rumble), hum (mains and harmonics with hiss). snr_db: power of the active speech over that of the noise, on the
    line, both pre-emphasised (in the consonants' favour, as the ear has it). evenness: how far the voice's long-term
    spectrum goes towards that of ordinary speech (0 to 1).
    reverb_seconds: time to fall by 60 dB. direct_db: power of the direct path over the reverberation.
    low_hz, high_hz: edges of the telephone band. tilt_db: gain at 3 kHz against 500 Hz (handset, line).
    level_db: active speech below full scale.
    """

    snr_db: tuple[float, float] = (1.0, 16.0)
    evenness: tuple[float, float] = (0.5, 0.9)
    noises: tuple[str, ...] = ("babble", "hiss", "street", "car", "hum")
    reverb_seconds: tuple[float, float] = (0.05, 0.35)
    direct_db: tuple[float, float] = (3.0, 15.0)
    low_hz: tuple[float, float] = (250.0, 350.0)
    high_hz: tuple[float, float] = (3200.0, 3500.0)
    tilt_db: tuple[float, float] = (-8.0, 4.0)
    level_db: tuple[float, float] = (-30.0, -20.0)


def telephone_filter(low_hz: float, high_hz: float, tilt_db: float, taps: int = 201) -> np.ndarray:
    """Linear-phase FIR band-pass with a tilt over frequency (float32, unit gain at 1 kHz)."""
    from scipy.signal import firwin2

    freqs = np.array([0, 0.6 * low_hz, low_hz, 500, 1000, 2000, 3000, high_hz, min(1.08 * high_hz, 3980), 4000])
    db = tilt_db * np.log2(np.maximum(freqs, 100) / 1000) / np.log2(6)  # 500 Hz to 3 kHz are log2(6) octaves
    gains = 10 ** (db / 20)
    gains[[0, 1, -2, -1]] = 0
    order = np.argsort(freqs, kind="stable")
    return firwin2(taps, freqs[order], gains[order], fs=SAMPLE_RATE).astype(np.float32)


# Long-term spectrum of speech in dB by octaves from 125 Hz to 4 kHz: even to 500 Hz, then falling by 6 dB an octave.
_OCTAVES = np.array([125.0, 250, 500, 1000, 2000, 4000])
_LONG_TERM_DB = np.array([0.0, 0, 0, -6, -12, -18])


def equalizer(voice: np.ndarray, strength: float, taps: int = 65) -> np.ndarray:
    """FIR (float32) that moves the long-term spectrum of ``voice`` towards that of ordinary speech.

    voice: speech without pauses. strength: 0 changes nothing, 1 goes all the way; at most 20 dB. Some synthetic voices
    are so dull that noise would leave nothing of their consonants.
    """
    from scipy.signal import firwin2, welch

    freqs, power = welch(voice, SAMPLE_RATE, nperseg=256)
    smooth = np.array([np.log10(np.mean(power[(freqs > f / 1.5) & (freqs < f * 1.5)]) + 1e-15) for f in _OCTAVES]) * 10
    change = _LONG_TERM_DB - smooth
    gains = np.clip(strength * (change - change.mean()), -20, 20)
    grid = np.linspace(0, SAMPLE_RATE / 2, 65)
    db = np.interp(np.log2(np.maximum(grid, 60)), np.log2(_OCTAVES), gains)
    return firwin2(taps, grid, 10 ** (db / 20), fs=SAMPLE_RATE).astype(np.float32)


def room_response(rng: np.random.Generator, seconds: float, direct_db: float) -> np.ndarray:
    """A direct path followed by exponentially decaying noise (float32); seconds: the time to fall by 60 dB."""
    n = max(int(seconds * SAMPLE_RATE), 16)
    t = np.arange(n) / SAMPLE_RATE
    tail = rng.standard_normal(n) * 10 ** (-3 * t / seconds)
    tail[: int(0.003 * SAMPLE_RATE)] = 0  # the first reflections come 3 ms after the direct sound
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(tail**2) + 1e-12)
    tail[0] = 1.0
    return tail.astype(np.float32)


def noise(rng: np.random.Generator, kind: str, count: int, voices: Sequence[np.ndarray] = ()) -> np.ndarray:
    """``count`` samples (float32) of noise with unit power. voices: speech for "babble", of which 3 to 7 are mixed."""
    from scipy.signal import lfilter

    white = rng.standard_normal(count, dtype=np.float32)
    if kind == "babble" and len(voices):
        out = 0.02 * white
        for index in rng.integers(len(voices), size=int(rng.integers(3, 8))):
            voice = voices[index]
            shift = int(rng.integers(len(voice)))
            gain = 10 ** (rng.uniform(-6, 0) / 20) / (np.sqrt(np.mean(voice**2)) + 1e-9)
            out += gain * np.resize(np.roll(voice, shift), count)
    elif kind == "street":  # pink: Kellet's three-pole approximation
        out = sum(gain * lfilter([1.0], [1.0, -pole], white)
                  for pole, gain in ((0.99765, 0.0990460), (0.963, 0.2965164), (0.57, 1.0526913)))
        knots = 10 ** (rng.uniform(-8, 4, size=count // (2 * SAMPLE_RATE) + 2) / 20)
        out = out * np.interp(np.arange(count), np.arange(len(knots)) * 2 * SAMPLE_RATE, knots)
    elif kind == "car":
        out = lfilter([1.0], [1.0, -0.93], white) + 0.3 * white
    elif kind == "hum":
        t = np.arange(count, dtype=np.float32) / SAMPLE_RATE
        mains = rng.choice((50, 60))
        out = 0.5 * white
        for harmonic in range(6, 20, 2):
            out += rng.uniform(0, 0.6) * np.sin(2 * np.pi * (mains * harmonic * t + rng.uniform()), dtype=np.float32)
    else:
        out = white
    return (out / (np.sqrt(np.mean(out**2)) + 1e-9)).astype(np.float32)


def _mu_law_round_trip_table() -> np.ndarray:
    """int16 -> int16 after G.711 µ-law: sign, 3-bit segment and 4-bit step, decoded to the middle of the step."""
    x = np.arange(-32768, 32768)
    biased = np.minimum(np.abs(x), 32635) + 132
    segment = np.floor(np.log2(biased)).astype(int) - 7
    step = (biased >> (segment + 3)) & 15
    return (np.where(x < 0, -1, 1) * ((((step << 3) + 132) << segment) - 132)).astype(np.int16)


_MU_LAW = _mu_law_round_trip_table()


def mu_law_round_trip(samples: np.ndarray) -> np.ndarray:
    """int16 -> int16 as it comes back from a G.711 µ-law line."""
    return _MU_LAW[samples.astype(np.int32) + 32768]


def record(rng: np.random.Generator, condition: Condition, voice: np.ndarray, active: np.ndarray,
           voices: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, dict]:
    """One side of a telephone call.

    voice: clean speech (float32, any level; 0 where nobody speaks). active: bool, where the speaker speaks. voices: see
    ``noise``. Returns int16 samples of the same length after room, noise, band-pass and µ-law, and what was drawn.
    """
    from scipy.signal import oaconvolve

    drawn: dict[str, Any] = {name: float(rng.uniform(*getattr(condition, name))) for name in
             ("snr_db", "evenness", "reverb_seconds", "direct_db", "low_hz", "high_hz", "tilt_db", "level_db")}
    drawn["noise"] = str(rng.choice(condition.noises))
    line = telephone_filter(drawn["low_hz"], drawn["high_hz"], drawn["tilt_db"])
    room = room_response(rng, drawn["reverb_seconds"], drawn["direct_db"])

    def transmit(signal: np.ndarray, response: np.ndarray, delay: int) -> np.ndarray:
        return oaconvolve(signal, response)[delay: delay + len(signal)].astype(np.float32)

    even = equalizer(voice[active], drawn["evenness"])
    speech = transmit(voice, np.convolve(np.convolve(room, line), even), len(line) // 2 + len(even) // 2)
    background = transmit(noise(rng, drawn["noise"], len(voice), voices), line, len(line) // 2)
    power = float(np.mean(speech[active] ** 2)) + 1e-12
    clear = np.diff(speech, prepend=0)[active]
    background *= np.sqrt(np.mean(clear**2) / (np.mean(np.diff(background) ** 2) + 1e-12)) * 10 ** (
        -drawn["snr_db"] / 20
    )
    mixed = (speech + background) * (10 ** (drawn["level_db"] / 20) / np.sqrt(power))
    samples = np.round(np.clip(mixed, -1, 1) * 32767).astype(np.int16)
    return mu_law_round_trip(samples), drawn
