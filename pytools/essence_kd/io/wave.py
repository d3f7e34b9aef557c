"""WAV audio as Kaldi reads it: a path, ``file.ark:offset`` or a pipe ``command |``; 16-bit PCM, one channel.

A speed-perturbed recording is written as Kaldi's perturb_data_dir_speed.sh writes it, with sox at the end of the pipe
(``sox -t wav FILE -t wav - speed 0.9 |``); here that last step is done without sox, by polyphase resampling.
"""
from __future__ import annotations

import io
import os
import re
import shlex
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.pipes import check_pipe
from essence_kd.io.provenance import atomic_write

_SPEED = re.compile(r"^(?P<source>.*?)\s*\bsox -t wav (?P<file>[^|]+?) -t wav - speed (?P<factor>[0-9.]+) \|$")


class WavInfo(NamedTuple):
    """What the header of a WAV file says."""

    sample_rate: int
    num_channels: int
    num_samples: int  # of each channel


def speed_command(source: str, factor: str) -> str:
    """The right-hand side of wav.scp for ``source`` (another right-hand side) at ``factor`` times its speed."""
    source = source.strip()
    if source.endswith("|"):
        return f"{source} sox -t wav - -t wav - speed {factor} |"
    if re.search(r":\d+$", source):
        return f"wav-copy {source} - | sox -t wav - -t wav - speed {factor} |"
    return f"sox -t wav {shlex.quote(source)} -t wav - speed {factor} |"


def split_speed(source: str) -> tuple[str, Optional[str]]:
    """The inverse of ``speed_command``: (source, factor), or (source, None) where no such command stands at the end."""
    match = _SPEED.match(source.strip())
    if not match:
        return source.strip(), None
    if match.group("file") != "-":
        names = shlex.split(match.group("file"))
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


def _chunks(stream: BinaryIO, name: str, size: Optional[int]) -> tuple[WavInfo, int]:
    """Reads up to the first sample. size: bytes there are from the start of the header, None where unknown (a pipe).

    Returns (info, number of bytes of samples; -1: up to the end of the stream).
    """
    def take(count: int) -> bytes:
        data = stream.read(count)
        if len(data) < count:
            raise UserError(f"{name}: the WAV header ends too early (truncated or empty file): make the file again")
        return data

    head = take(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise UserError(f"{name}: not a WAV file (it starts with {head[:4]!r}): convert it, or use a pipe such as "
                        "'sox FILE -r 8000 -b 16 -c 1 -t wav - |'")
    at, form = 12, None
    while True:
        kind, length = struct.unpack("<4sI", take(8))
        at += 8
        if kind == b"fmt ":
            form = take(length)
        elif kind == b"data":
            break
        else:
            take(length + length % 2)
        at += length + length % 2
        if kind == b"fmt " and length % 2:
            take(1)
    if form is None or len(form) < 16:
        raise UserError(f"{name}: the WAV header has no format: make the file again")
    encoding, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if encoding == 0xFFFE and len(form) >= 26:
        encoding = struct.unpack("<H", form[24:26])[0]
    if encoding != 1 or bits != 16:
        raise UserError(f"{name}: {bits}-bit WAV of encoding {encoding}, but 16-bit PCM is needed: "
                        "convert it, for example with 'sox FILE -b 16 -e signed-integer -t wav - |'")
    streamed = length >= 0x7FFFF000 or (length == 0 and size is None)  # what sox and others write into pipes
    if size is not None and not streamed and at + length > size:
        raise UserError(
            f"{name}: truncated: its header promises {length} bytes of samples and {max(size - at, 0)} are there: "
            "copy or make it again"
        )
    if size is not None and streamed:
        length = size - at
    info = WavInfo(rate, channels, length // (2 * channels) if length >= 0 and not (streamed and size is None) else -1)
    return info, -1 if streamed and size is None else length


def _place(source: str) -> tuple[str, int]:
    match = re.match(r"^(.*):(\d+)$", source)
    return (match.group(1), int(match.group(2))) if match and not os.path.exists(source) else (source, 0)


def wav_info(source: str) -> WavInfo:
    """The header of a WAV file, not of a pipe. Raises UserError: missing, truncated, empty or not 16-bit PCM."""
    path, offset = _place(source)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such WAV file: correct wav.scp or put the file there")
    with open(path, "rb") as stream:
        stream.seek(offset)
        info, _ = _chunks(stream, source, os.path.getsize(path) - offset)
    if info.num_samples == 0:
        raise UserError(f"{source}: holds no samples: remove the recording or make it again")
    return info


def read_wav(source: str) -> tuple[int, np.ndarray]:
    """(sample rate, int16 samples) of a right-hand side of wav.scp.

    Raises UserError as ``wav_info`` does, and with the command where a pipe fails. Recordings with more than one
    channel are refused: a recording is one side.
    """
    source, factor = split_speed(source)
    if factor is not None:
        rate, samples = read_wav(source)
        return rate, change_speed(samples, factor)
    if source.endswith("|"):
        check_pipe(source)
        done = subprocess.run(["bash", "-c", "set -o pipefail; " + source[:-1]], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise UserError(
                f"'{source}' failed with status {done.returncode}: {said[-1] if said else 'it said nothing'}"
            )
        stream, name = io.BytesIO(done.stdout), source
        info, length = _chunks(stream, name, None)
        data = stream.read() if length < 0 else stream.read(length)
        if len(data) < length:
            raise UserError(f"{name}: truncated: its header promises {length} bytes of samples and {len(data)} came")
    else:
        info = wav_info(source)
        path, offset = _place(source)
        with open(path, "rb") as stream:
            stream.seek(offset)
            _, length = _chunks(stream, source, os.path.getsize(path) - offset)
            data = stream.read(length)
    if info.num_channels != 1:
        raise UserError(f"{source}: has {info.num_channels} channels, and a recording must have one: "
                        "take one with 'sox FILE -t wav - remix 1 |'")
    samples = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2")
    if not len(samples):
        raise UserError(f"{source}: holds no samples: remove the recording or make it again")
    return info.sample_rate, samples


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
