"""Audio of wav.scp: a path, ``file.ark:offset`` or a pipe ``command |``, as int16 samples of one or more channels.

16-bit PCM WAV is read here, as Kaldi reads it, and everything else by ``sound``. A speed-perturbed recording is written
as Kaldi's perturb_data_dir_speed.sh writes it, with sox at the end of the pipe (``sox -t wav FILE -t wav - speed 0.9
|``); here that last step is done without sox, by polyphase resampling.
"""
from __future__ import annotations

import io
import os
import re
import shlex
import struct
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write
from essence_kd.io.sound import read_sound, sound_info
from essence_kd.io.sources import output_of

_SPEED = re.compile(r"^(?P<source>.*?)\s*\bsox -t (?:wav|\w+(?= [^-])) (?P<file>[^|]+?) -t wav - speed "
                    r"(?P<factor>[0-9]{1,3}(?:\.[0-9]{0,9})?) \|$")
_TYPES = ("flac", "ogg", "opus", "mp3", "sph", "aiff", "au")  # sox's names of what has such a suffix
_STREAMED = 0x7FFFF000  # sizes from here on are what sox and others write who do not know them yet


class WavInfo(NamedTuple):
    """What the header of an audio file says."""

    sample_rate: int  # Hz
    num_channels: int
    num_samples: int  # of each channel


def speed_command(source: str, factor: str) -> str:
    """The right-hand side of wav.scp for ``source`` (another right-hand side) at ``factor`` times its speed."""
    source = source.strip()
    if source.endswith("|"):
        return f"{source} sox -t wav - -t wav - speed {factor} |"
    if re.search(r":\d+$", source):
        return f"wav-copy {source} - | sox -t wav - -t wav - speed {factor} |"
    suffix = Path(source).suffix[1:].lower()
    return f"sox -t {suffix if suffix in _TYPES else 'wav'} {shlex.quote(source)} -t wav - speed {factor} |"


def split_speed(source: str) -> tuple[str, Optional[str]]:
    """The inverse of ``speed_command``: (source, factor), or (source, None) where no such command stands at the end."""
    match = _SPEED.match(source.strip())
    if not match or not 0.01 <= float(match.group("factor")) <= 100:
        return source.strip(), None
    if match.group("file") != "-":
        try:
            names = shlex.split(match.group("file"))
        except ValueError:  # a quote that does not end
            names = []
        if match.group("source") or len(names) != 1:
            return source.strip(), None  # some other command that sox can run
        return names[0], match.group("factor")
    inner = match.group("source")
    copied = re.match(r"^wav-copy (\S+:\d+) - \|$", inner)
    return (copied.group(1) if copied else inner), match.group("factor")


def is_command(source: str) -> bool:
    """Whether reading a right-hand side of wav.scp runs a shell command; a change of speed at its end is none."""
    factor: Optional[str] = ""
    while factor is not None:
        source, factor = split_speed(source)
    return source.endswith("|")


class _Header(NamedTuple):
    """The chunks of a WAV file up to its samples."""

    encoding: int  # 1: PCM
    channels: int
    rate: int
    bits: int
    length: int  # bytes of samples

    @property
    def plain(self) -> bool:
        """16-bit PCM."""
        return self.encoding == 1 and self.bits == 16


def _header(stream: BinaryIO, name: str) -> Optional[_Header]:
    """Reads up to the first sample; None for what is no WAV file. Raises UserError."""
    def take(count: int) -> bytes:
        data = stream.read(min(count, size))
        if len(data) < count:
            raise UserError(f"{name}: the WAV header ends too early (truncated or empty file): make the file again")
        return data

    start = stream.tell()
    size = stream.seek(0, os.SEEK_END) - start
    stream.seek(start)
    kind, riff, form = struct.unpack("<4sI4s", take(12))
    if kind != b"RIFF" or form != b"WAVE":
        return None
    form = b""
    while True:
        kind, length = struct.unpack("<4sI", take(8))
        if kind == b"data":
            break
        chunk = take(length)
        if length % 2 and take(1) != b"\0":  # some writers leave out the byte that makes the size even
            stream.seek(-1, os.SEEK_CUR)
        if kind == b"fmt ":
            form = chunk
    if len(form) < 16:
        raise UserError(f"{name}: the WAV header has no format: make the file again")
    encoding, channels, rate, _, block, bits = struct.unpack("<HHIIHH", form[:16])
    if encoding == 0xFFFE and len(form) >= 26:
        encoding = struct.unpack("<H", form[24:26])[0]
    for what, value in (("channels", channels), ("sample rate", rate), ("block size", block), ("bits", bits)):
        if value == 0 and (what != "bits" or encoding == 1):
            raise UserError(f"{name}: the WAV header says 0 for {what}: make the file again")
    if encoding == 1 and block != channels * ((bits + 7) // 8):
        raise UserError(f"{name}: the WAV header says {channels} channels of {bits} bits in blocks of {block} bytes, "
                        "which disagree: make the file again")
    left = size - (stream.tell() - start)
    # as in Kaldi, up to the end: what was not finished, or was written into a pipe
    if 0 in (riff, length) or riff == 0xFFFFFFFF or (length >= _STREAMED and length > left):
        length = left
    if length > left:
        raise UserError(f"{name}: truncated: its header promises {length} bytes of samples and {left} are there: "
                        "copy or make it again")
    return _Header(encoding, channels, rate, bits, length)


def _opened(source: str) -> BinaryIO:
    """The bytes of a right-hand side of wav.scp from their beginning on. Raises UserError."""
    if source.endswith("|"):
        return io.BytesIO(output_of(source[:-1]))
    match = re.match(r"^(.*):(\d{1,18})$", source)
    path, offset = (match.group(1), int(match.group(2))) if match and not os.path.exists(source) else (source, 0)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such audio file: correct wav.scp or put the file there")
    try:
        stream = open(path, "rb")
        stream.seek(offset)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    return stream


def _other(stream: BinaryIO, start: int, header: Optional[_Header]) -> BinaryIO:
    """What ``sound`` is to read of a stream that began at ``start``: this file alone, with its sizes in order."""
    at = stream.tell()
    stream.seek(start)
    if header is None:
        return stream if start == 0 else io.BytesIO(stream.read())
    head, data = bytearray(stream.read(at - start)), stream.read(header.length)
    head[4:8] = struct.pack("<I", min(len(head) + len(data) - 8, 0xFFFFFFFF))
    head[-4:] = struct.pack("<I", len(data))
    return io.BytesIO(bytes(head) + data)


def wav_info(source: str) -> WavInfo:
    """The header of an audio file, not of a pipe. Raises UserError: missing, truncated, empty, no known format."""
    with _opened(source) as stream:
        start = stream.tell()
        header = _header(stream, source)
        if header is not None and header.plain:
            info = WavInfo(header.rate, header.channels, header.length // (2 * header.channels))
        else:
            info = WavInfo(*sound_info(_other(stream, start, header), source))
    if info.num_samples == 0:
        raise UserError(f"{source}: holds no samples: remove the recording or make it again")
    return info


def expect_pcm_wav(source: str) -> None:
    """UserError where an audio file, not a pipe, is no 16-bit PCM WAV, which is all that Kaldi reads."""
    with _opened(source) as stream:
        header = _header(stream, source)
    if header is None or not header.plain:
        raise UserError(f"{source}: is not 16-bit PCM WAV, which is all that Kaldi reads: "
                        f"use a pipe, for example 'sox {source} -b 16 -t wav - |'")


def read_audio(source: str) -> tuple[int, np.ndarray]:
    """(rate in Hz, int16 samples (N, channels)) of a right-hand side of wav.scp.

    Raises UserError as ``wav_info`` does, and with the command where a pipe fails.
    """
    source, factor = split_speed(source)
    if factor is not None:
        rate, samples = read_audio(source)
        return rate, np.stack([change_speed(channel, factor) for channel in samples.T], axis=1)
    with _opened(source) as stream:
        return _samples(stream, source)


def read_bytes(data: bytes, name: str) -> tuple[int, np.ndarray]:
    """``read_audio`` of the bytes of a file, ``name`` in messages."""
    if not data:
        raise UserError(f"{name}: is empty: no audio has come")
    return _samples(io.BytesIO(data), name)


def _samples(stream: BinaryIO, name: str) -> tuple[int, np.ndarray]:
    start = stream.tell()
    header = _header(stream, name)
    if header is not None and header.plain:
        block = 2 * header.channels
        data = stream.read(header.length)
        rate, samples = header.rate, np.frombuffer(data, "<i2", len(data) // block * header.channels)
        samples = samples.reshape(-1, header.channels)
    else:
        rate, samples = read_sound(_other(stream, start, header), name)
    if not len(samples):
        raise UserError(f"{name}: holds no samples: remove the recording or make it again")
    return rate, samples


def read_wav(source: str) -> tuple[int, np.ndarray]:
    """(rate in Hz, int16 samples (N,)) of a recording of one channel. Raises UserError as ``read_audio`` does."""
    rate, samples = read_audio(source)
    return rate, samples[:, the_channel(None, samples.shape[1], source)]


def the_channel(wanted: Optional[int], channels: int, name: str) -> int:
    """The channel that a segment wants (None: it says nothing) of so many. Raises UserError that begins with ``name``.

    As in Kaldi's extract-segments, a recording of several channels needs segments that say which.
    """
    if wanted is None and channels > 1:
        raise UserError(f"{name}: has {channels} channels, and a recording must have one: take one with "
                        "'sox FILE -t wav - remix 1 |', or write its number (0, 1, ...) behind the times in segments")
    if (wanted or 0) >= channels:
        raise UserError(f"{name}: has {channels} channel{'s' * (channels > 1)}, and segments asks for channel "
                        f"{wanted}, counted from 0: correct segments")
    return wanted or 0


def expect_rate(rate: int, wanted: int, name: str) -> None:
    """UserError that begins with ``name`` where audio has another rate (Hz) than is wanted."""
    if rate != wanted:
        raise UserError(f"{name} has {rate} samples per second, not {wanted}: resample it, for example with 'sox FILE "
                        f"-r {wanted} -t wav - |', or have sample_rate={rate} in recipe.conf (--sample-rate)")


def change_speed(samples: np.ndarray, factor: str) -> np.ndarray:
    """int16 -> int16, ``factor`` times as fast (tempo and pitch), as ``sox speed`` does: round(n / factor) samples."""
    from scipy.signal import resample_poly

    ratio = 1 / Fraction(factor).limit_denominator(100)
    out = resample_poly(samples.astype(np.float32), ratio.numerator, ratio.denominator)
    return np.clip(np.round(out[: round(len(samples) * ratio)]), -32768, 32767).astype(np.int16)


def write_wav(path: str | Path, samples: np.ndarray, sample_rate: int) -> None:
    """16-bit PCM, one channel. The file appears under its name only when it is whole."""
    data = np.ascontiguousarray(samples, dtype="<i2").tobytes()
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, sample_rate,
                         2 * sample_rate, 2, 16, b"data", len(data))
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        stream.write(header)
        stream.write(data)
