"""Recordings and segments against Kaldi's wav-copy, wav-to-duration, extract-segments and compute-mfcc-feats."""
import os
import subprocess

import numpy as np
import pytest

from essence_kd.corpus.features import make_feats
from essence_kd.io.data_dir import DataDir, read_table
from essence_kd.io.recordings import Recordings
from essence_kd.io.wave import read_audio, wav_info, write_wav

RATE = 8000
PROGRAMS = ("wav-copy", "wav-to-duration", "extract-segments", "compute-mfcc-feats", "feat-to-len")
pytestmark = pytest.mark.kaldi(*(f"src/featbin/{name}" for name in PROGRAMS))


def program(name, *words):
    """Runs one of Kaldi's programs."""
    path = os.path.join(os.environ["KALDI_ROOT"], "src", "featbin", name)
    done = subprocess.run([path, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def sizes(file, riff=None, data=None):
    """Overwrites the sizes in the header of a WAV file."""
    whole = bytearray(file.read_bytes())
    for at, value in ((4, riff), (40, data)):
        if value is not None:
            whole[at:at + 4] = value.to_bytes(4, "little")
    file.write_bytes(whole)


@pytest.mark.parametrize("riff, data", [(None, None), (0, 0), (36, 0), (0, None), (0xFFFFFFFF, 0xFFFFFFFF),
                                        (0xFFFFFFFF, None), (0x7FFFF024, 0x7FFFF000), (0x7FFFFFFF, 0x7FFFFFFF)])
@pytest.mark.parametrize("after", [b"", b"\1", b"LIST\4\0\0\0INFO"])
def test_the_same_samples_and_durations(tmp_path, riff, data, after):
    samples = np.random.default_rng(1).integers(-9000, 9000, 12345).astype(np.int16)
    file, copy = tmp_path / "a.wav", tmp_path / "copy.wav"
    write_wav(file, samples, RATE)
    file.write_bytes(file.read_bytes() + after)
    sizes(file, riff, data)
    program("wav-copy", file, copy)
    theirs, ours = read_audio(str(copy)), read_audio(str(file))
    assert ours[0] == theirs[0] == RATE and np.array_equal(ours[1], theirs[1])
    (tmp_path / "wav.scp").write_text(f"a {file}\n")
    program("wav-to-duration", "--read-entire-file=true", f"scp:{tmp_path}/wav.scp", f"ark,t:{tmp_path}/duration")
    seconds = float((tmp_path / "duration").read_text().split()[1])
    assert wav_info(str(file)).num_samples == round(seconds * RATE) == len(ours[1])


@pytest.mark.parametrize("rate, channels", [(8000, 1), (16000, 2), (11025, 1), (44100, 1)])
def test_segments_at_random_times(tmp_path, rate, channels):
    """Samples and frames of segments with any decimals, up to the end of the recording and over it."""
    rng = np.random.default_rng(rate)
    count = 20 * rate + 7
    write_wav(tmp_path / "r.wav", rng.integers(-9000, 9000, count * channels).astype(np.int16), rate)
    if channels == 2:
        whole = bytearray((tmp_path / "r.wav").read_bytes())
        whole[22:24], whole[28:34] = b"\2\0", (4 * rate).to_bytes(4, "little") + b"\4\0"
        (tmp_path / "r.wav").write_bytes(whole)
    lines = []
    for i in range(300):
        digits, start = int(rng.integers(1, 16)), rng.uniform(0, 19.5)
        end = min(start + rng.uniform(0.2, 3), 20.04) if i % 10 else -1
        if i % 3 == 0:  # halfway between two samples
            start = (int(start * rate) + 0.5) / rate
            digits = 17
        column = f" {i % 2}" if channels == 2 else ""
        lines.append(f"u{i:03d} r {start:.{digits}f} {end if end == -1 else format(end, f'.{digits}f')}{column}\n")
    data = tmp_path / "d"
    data.mkdir()
    (data / "segments").write_text("".join(lines))
    (data / "wav.scp").write_text(f"r {tmp_path}/r.wav\n")
    (data / "utt2spk").write_text("".join(f"{line.split()[0]} s\n" for line in lines))
    program("extract-segments", f"scp:{data}/wav.scp", data / "segments", f"ark,scp:{tmp_path}/s.ark,{tmp_path}/s.scp")
    theirs, ours = read_table(tmp_path / "s.scp"), DataDir.load(data)
    recordings = Recordings(ours.wav_scp, data / "wav.scp", rate)
    assert set(theirs) == set(ours.segments)
    for utt, place in theirs.items():
        cut = recordings.cut(utt, ours.segments[utt], ours.channels.get(utt))
        assert np.array_equal(cut, read_audio(place)[1][:, 0]), lines[int(utt[1:])]
    if rate == 8000:
        make_feats(data, kinds=["mfcc"], nj=1)
        program("compute-mfcc-feats", "--sample-frequency=8000", f"scp:{tmp_path}/s.scp", f"ark:{tmp_path}/m.ark")
        program("feat-to-len", f"ark:{tmp_path}/m.ark", f"ark,t:{tmp_path}/frames")
        assert read_table(tmp_path / "frames") == read_table(data / "utt2num_frames")
