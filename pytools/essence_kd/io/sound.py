"""Audio that is not 16-bit PCM WAV, read by libsndfile: FLAC, Ogg (Vorbis, Opus), MP3, NIST SPHERE, AIFF, other WAV.

libsndfile reads what is there of a file that was cut short. Such files are refused here, as far as their format tells.
"""
from __future__ import annotations

import io
import os
import re
from typing import Any, BinaryIO, List

import numpy as np

from essence_kd.io.errors import UserError

BLOCK = 1 << 20  # samples of all channels, decoded at a time
MAX_PEAK = 16.0  # of floats, whose full scale is 1: decoded music may be somewhat louder, another range is far louder
_EXACT = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")  # what 16 bits hold
_UNKNOWN = 1 << 62  # libsndfile: the header does not say how many samples come
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes, the longest


def read_sound(stream: BinaryIO, name: str) -> tuple[int, np.ndarray]:
    """(rate in Hz, int16 samples (N, channels)) of an open file or io.BytesIO.

    Floats, and integers of more than 16 bits, are rounded to 16; floats beyond full scale (1) are clipped.
    Raises UserError: libsndfile does not know the format, the file is damaged or ends too early, or its floats are so
    far beyond full scale that they must have another range.
    """
    with _opened(stream, name) as sound:
        blocks: List[np.ndarray] = []
        kind = "int16" if sound.subtype in _EXACT else "float32"
        while not blocks or len(blocks[-1]):
            try:
                block = sound.read(BLOCK // sound.channels, dtype=kind, always_2d=True)
            except (RuntimeError, ValueError) as error:
                raise _damaged(name, error) from None
            if kind == "float32":
                if not np.isfinite(block).all():
                    raise UserError(f"{name}: holds samples that are no numbers: make the file again")
                peak = float(np.abs(block).max(initial=0))
                if peak > MAX_PEAK:
                    raise UserError(f"{name}: holds the sample {peak:g}, but floats of full scale are 1: they were "
                                    "written in another range: divide them (16-bit samples by 32768) and write again")
                block = np.minimum(np.rint(np.clip(block, -1, 1) * 32768), 32767).astype(np.int16)
            blocks.append(block)
        samples = np.concatenate(blocks)
        if len(samples) < sound.frames < _UNKNOWN:
            raise _truncated(name, f"{sound.frames} samples", f"{len(samples)} are there")
        return sound.samplerate, samples


def sound_info(stream: BinaryIO, name: str) -> tuple[int, int, int]:
    """(rate in Hz, channels, samples of each) of an open file. Raises UserError as ``read_sound`` does."""
    with _opened(stream, name) as sound:
        if sound.frames < _UNKNOWN:
            return sound.samplerate, sound.channels, sound.frames
    stream.seek(0)
    rate, samples = read_sound(stream, name)
    return rate, samples.shape[1], len(samples)


def _opened(stream: Any, name: str):
    """A soundfile.SoundFile that is read forwards. Raises UserError."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise UserError(f"{name}: is not 16-bit PCM WAV, and the package soundfile, which reads all else, cannot be "
                        f"loaded ({error}): install it, or convert the file") from None

    class Forwards(soundfile.SoundFile):
        def seekable(self):  # it would seek after each block, which fails where a FLAC file does not tell its length
            return False

    head = stream.read(1024)
    if head.startswith(b"NIST_1A"):
        _check_sphere(head, _size(stream), name)
    elif head.startswith(b"OggS"):
        _check_ogg(stream, name)
    try:
        sound = Forwards(stream.name if hasattr(stream, "name") else _Bytes(stream.getvalue()))
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{name}: not audio that can be read (it starts with {head[:4]!r}; libsndfile says "
                        f"'{_said(error)}'): convert it, or use a pipe such as 'sox FILE -b 16 -t wav - |'") from None
    if not head.startswith(b"RIFF"):  # AIFF, AU, W64 and RF64 as libsndfile's log tells; wave.py has looked at WAV
        for promised, there in re.findall(r": (\d+) \(should be (\d+)\)", sound.extra_info):
            if int(there) + 1 < int(promised) < 0x7FFFF000:
                sound.close()
                raise _truncated(name, f"{promised} bytes", f"{there} are there")
    return sound


class _Bytes(io.BytesIO):
    """Bytes in which libsndfile may seek anywhere, as it does where a header is wrong."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return self.tell()


def _size(stream: BinaryIO) -> int:
    return stream.seek(0, os.SEEK_END)


def _said(error: Exception) -> str:
    return getattr(error, "error_string", str(error)).strip().rstrip(".") or "nothing"


def _damaged(name: str, error: Exception) -> UserError:
    return UserError(f"{name}: damaged or truncated (libsndfile says '{_said(error)}'): copy or make it again")


def _truncated(name: str, promised: str, there: str) -> UserError:
    return UserError(f"{name}: truncated: its header promises {promised} and {there}: copy or make it again")


def _check_sphere(head: bytes, size: int, name: str) -> None:
    """Refuses compressed SPHERE, which libsndfile does not know, and what ends before its header says."""
    fields = dict(re.findall(r"^(\w+) -\w+ (.*?)\s*$", head.decode("latin-1"), re.M))
    coding = fields.get("sample_coding", "pcm")
    if "embedded" in coding:
        raise UserError(f"{name}: NIST SPHERE with the coding '{coding}', which is not read here: "
                        f"use the pipe 'sph2pipe -f wav -p -c 1 {name} |'")
    try:
        at = int(head.split(b"\n", 2)[1])
        promised = int(fields["sample_count"]) * int(fields["channel_count"]) * int(fields["sample_n_bytes"])
    except (IndexError, KeyError, ValueError):
        raise UserError(f"{name}: the NIST SPHERE header lacks sample_count, channel_count or sample_n_bytes: "
                        f"try the pipe 'sph2pipe -f wav -p -c 1 {name} |'") from None
    if at + promised > size:
        raise _truncated(name, f"{promised} bytes of samples", f"{max(size - at, 0)} are there")


def _check_ogg(stream: BinaryIO, name: str) -> None:
    """Refuses an Ogg file whose last page is not whole."""
    stream.seek(max(0, _size(stream) - 2 * _OGG_PAGE))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS"):]
    segments = page[26] if len(page) > 26 else 256
    if len(page) < 27 + segments + sum(page[27:27 + segments]):
        raise UserError(f"{name}: truncated: its last Ogg page is not whole: copy or make it again")
