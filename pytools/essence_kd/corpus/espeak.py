"""eSpeak NG through ctypes: text to speech and text to phonemes.

The library (GPLv3) comes with the optional package ``espeakng-loader`` and is called as a component of its own. What
it computes depends on what the same process computed before, so whoever wants the same samples for the same seed
calls it from a fresh process in a fixed order (``io.parallel``). It must not be called from two threads.
"""
from __future__ import annotations

import ctypes
import os

import numpy as np

from essence_kd.io.errors import UserError

SAMPLE_RATE = 22050

# Spellings that eSpeak reads as the sound that is meant, where it would spell out the transcript's own by letters.
RESPELLED = {"hm": "hum", "mhm": "mihum"}

_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1


class Espeak:
    """One per process. Raises UserError where espeakng-loader is missing or a voice does not exist."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError("eSpeak NG, by which words are spoken, is missing: pip install espeakng-loader") from None
        data = espeakng_loader.get_data_path()
        self._variants = set(os.listdir(os.path.join(data, "voices", "!v")))
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self._lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        if self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT) != SAMPLE_RATE:
            raise UserError(f"eSpeak NG does not start with the data in {data}: reinstall espeakng-loader")
        self._blocks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._take)
        self._lib.espeak_SetSynthCallback(self._callback)
        self._voice = ""

    def _take(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def set_voice(self, accent: str, variant: str = "") -> None:
        """accent: en-us, en, ...; variant: a file of voices/!v (an unknown one would be ignored silently: refused)."""
        if variant and variant not in self._variants:
            raise UserError(f"eSpeak NG has no voice variant '{variant}': it has {' '.join(sorted(self._variants))}")
        name = f"{accent}+{variant}" if variant else accent
        if name != self._voice and self._lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"eSpeak NG has no voice '{name}'")
        self._voice = name

    def speak(
        self, text: str, *, rate: int = 175, pitch: int = 50, pitch_range: int = 50, volume: int = 60
    ) -> np.ndarray:
        """Speech in the voice set last: int16 at 22,050 Hz. rate in words per minute, the others 0 to 100."""
        for parameter, value in ((_RATE, rate), (_VOLUME, volume), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, int(value), 0)
        data = _respell(text).encode()
        self._blocks = []
        status = self._lib.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8, None, None)
        if status != 0 or not self._blocks:
            raise RuntimeError(f"eSpeak NG answered {status} to '{text}'")
        return np.concatenate(self._blocks)

    def phonemes(self, text: str) -> list[list[str]]:
        """eSpeak's own phoneme names in the voice set last, a list a spoken word (eSpeak joins some words)."""
        data = ctypes.c_char_p(_respell(text).encode())
        words: list[list[str]] = []
        while data.value:
            clause = self._lib.espeak_TextToPhonemes(ctypes.byref(data), _UTF8, ord("_") << 8)
            words.extend(word.split("_") for word in (clause or b"").decode().split())
        return words


def _respell(text: str) -> str:
    return " ".join(RESPELLED.get(word, word) for word in text.split())
