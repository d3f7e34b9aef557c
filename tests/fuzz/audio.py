"""Audio: headers of WAV files, and the right-hand sides of wav.scp that change the speed."""
from __future__ import annotations

import os

import numpy as np
import scipy.signal  # noqa: F401 - what change_speed imports, too

from essence_kd.io.wave import change_speed, read_wav, speed_command, split_speed, wav_info, write_wav
from fuzz.driver import file, folder, target


@target
def wave(data: bytes) -> None:
    """A WAV file: header and samples agree; what is written again is the same."""
    path = file(data)
    info = wav_info(path)
    assert info.num_samples > 0 and info.num_channels > 0 and info.sample_rate > 0
    rate, samples = read_wav(path)
    assert rate == info.sample_rate and samples.dtype == np.dtype("<i2") and len(samples) == info.num_samples
    if rate >= 1 << 31:
        return
    copy = os.path.join(folder(), "copy.wav")
    write_wav(copy, samples, rate)
    again, theirs = read_wav(copy)
    assert again == rate and np.array_equal(theirs, samples)


@target
def wave_source(data: bytes) -> None:
    """What wav.scp says after an id; no command is run."""
    text = data.decode("utf-8", "replace").replace("\n", " ")
    source, factor = split_speed(text)
    assert (factor is None) == (source == text.strip())
    if factor is None:
        return
    out = change_speed(np.arange(160, dtype=np.int16), factor)
    assert out.dtype == np.int16 and 0 < len(out) <= 160 * 100
    again = split_speed(speed_command(source, factor))
    # else it may look like a command
    assert again == (source, factor) or source.split() != [source] or source.startswith("|")
