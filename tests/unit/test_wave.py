"""Audio of wav.scp: WAV headers as Kaldi takes them, other formats, pipes, and what is refused by name."""
import io
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from builders import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.io.errors import UserError
from essence_kd.io.wave import read_audio, read_wav, speed_command, split_speed, wav_info, write_wav

RATE = 16000
X = (3000 * np.random.default_rng(0).standard_normal(RATE)).astype(np.int16)  # a second
BYTES = X.tobytes()


def wav(riff=None, data=None, samples=BYTES, encoding=1, channels=1, rate=RATE, block=None, bits=16, before=b"",
        after=b"", form=b""):
    block = channels * bits // 8 if block is None else block
    form = struct.pack("<HHIIHH", encoding, channels, rate, rate * block, block, bits) + form
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form
    size = 4 + len(chunks) + 8 + len(samples) + len(after)
    return (b"RIFF" + struct.pack("<I", size if riff is None else riff) + b"WAVE" + chunks + b"data"
            + struct.pack("<I", len(samples) if data is None else data) + samples + after)


@pytest.mark.parametrize("riff, data", [(0, 0), (36, 0), (0, None), (None, 0), (0xFFFFFFFF, 0xFFFFFFFF),
                                        (None, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (0x7FFFFFFF, 0x7FFFFFFF),
                                        (5, None)])
def test_sizes_that_nobody_filled_in(tmp_path, riff, data):
    (tmp_path / "a.wav").write_bytes(wav(riff, data))
    (tmp_path / "a.ark").write_bytes(b"utt " + wav(riff, data))
    for source in (f"{tmp_path}/a.wav", f"cat {tmp_path}/a.wav |", f"{tmp_path}/a.ark:4"):
        assert (read_wav(source)[1] == X).all()
    assert wav_info(f"{tmp_path}/a.wav") == (RATE, 1, len(X))


def test_chunks_around_the_samples(tmp_path):
    junk, info = b"JUNK" + struct.pack("<I", 28) + bytes(28), b"LIST" + struct.pack("<I", 4) + b"INFO"
    for content in (wav(before=junk), wav(after=info), wav(before=b"odd " + struct.pack("<I", 3) + bytes(4)),
                    wav(before=b"odd " + struct.pack("<I", 3) + bytes(3)),
                    wav(samples=BYTES + b"\1"), wav(form=b"\0\0")):
        (tmp_path / "a.wav").write_bytes(content)
        assert (read_wav(f"{tmp_path}/a.wav")[1] == X).all()
    form = struct.pack(">HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    (tmp_path / "a.wav").write_bytes(b"RIFX" + struct.pack(">I", 36 + len(BYTES)) + b"WAVEfmt " + struct.pack(">I", 16)
                                     + form + b"data" + struct.pack(">I", len(BYTES)) + X.astype(">i2").tobytes())
    assert (read_wav(f"{tmp_path}/a.wav")[1] == X).all()  # other byte order


@pytest.mark.parametrize("options, words", [
    ({"channels": 0}, "0 for channels"), ({"rate": 0}, "0 for sample rate"), ({"block": 0}, "0 for block size"),
    ({"bits": 0, "block": 2}, "0 for bits"), ({"block": 1}, "1 channels of 16 bits in blocks of 1 bytes"),
    ({"bits": 32, "block": 2}, "which disagree"), ({"channels": 2, "block": 2}, "which disagree"),
    ({"data": len(BYTES) + 1}, "truncated"), ({"data": 0x7FFFEFFF}, "truncated"), ({"samples": b""}, "no samples"),
    ({"encoding": 999}, "not audio that can be read"), ({"bits": 64, "samples": bytes(800)}, "not audio that can be"),
    ({"encoding": 3, "bits": 32, "samples": b"\0\0\xc0\x7f" * 9}, "no numbers"),
    ({"encoding": 3, "bits": 32, "samples": np.array([0, -3000.5], "<f4").tobytes()},
     "holds the sample 3000.5, but floats of full scale are 1")])
def test_headers_that_are_refused(tmp_path, options, words):
    (tmp_path / "a.wav").write_bytes(wav(**options))
    refused(lambda: read_audio(f"{tmp_path}/a.wav"), "a.wav", words)
    refused(lambda: read_audio(f"cat {tmp_path}/a.wav |"), "a.wav", words)


def test_floats_beyond_full_scale_are_clipped(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(encoding=3, bits=32, samples=np.array([0.5, 1.2, -1.2], "<f4").tobytes()))
    assert read_audio(f"{tmp_path}/a.wav")[1].ravel().tolist() == [16384, 32767, -32768]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4), st.integers(0, 300),
       st.sampled_from(["WAV", "FLAC", "NIST", "OGG", "AIFF"]))
def test_damaged_files_are_refused_or_read(tmp_path_factory, changes, keep, kind):
    file = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    whole = bytearray(WHOLE[kind])
    for at, value in changes:
        whole[at] = value
    file.write_bytes(whole[:len(whole) - keep])
    for read in (read_audio, wav_info):
        try:
            read(str(file))
        except UserError as error:
            assert "\n" not in str(error)


def sound(samples, kind, subtype, rate=RATE):
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


WHOLE = {kind: sound(X[:4000], kind, "VORBIS" if kind == "OGG" else "PCM_16")
         for kind in ("WAV", "FLAC", "NIST", "OGG", "AIFF")}


def mu_law(codes):
    """G.711's table in 16 bits."""
    codes = ~codes.astype(np.uint8)
    value = (((codes & 15).astype(int) << 3) + 132 << ((codes & 112) >> 4)) - 132
    return np.where(codes & 128, -value, value)


@pytest.mark.parametrize("kind, subtype", [
    ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("NIST", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"),
    ("WAVEX", "PCM_16"), ("WAVEX", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"),
    ("W64", "PCM_16"), ("RF64", "PCM_16")])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_that_were_written(tmp_path, kind, subtype, channels):
    wanted = X.reshape(-1, channels)
    file = tmp_path / f"a.{kind}"
    file.write_bytes(sound(wanted / 32768 if subtype == "FLOAT" else wanted, kind, subtype))
    for source in (str(file), f"cat {file} |"):
        rate, samples = read_audio(source)
        assert rate == RATE and samples.dtype == np.int16 and samples.shape == wanted.shape
        assert (samples == wanted).all()
    assert wav_info(str(file)) == (RATE, channels, len(wanted))
    if channels == 2:
        refused(lambda: read_wav(str(file)), file, "2 channels", "remix 1")
    file.write_bytes(file.read_bytes()[:-5000])
    refused(lambda: read_audio(str(file)), file, "")


def test_more_than_16_bits_are_rounded(tmp_path):
    exact = np.array([0.4, 0.6, -0.4, -0.6, 100.3, 40000, -400000, 32767.9])
    soundfile.write(tmp_path / "a.wav", exact / 32768, RATE, subtype="DOUBLE")
    assert read_wav(f"{tmp_path}/a.wav")[1].tolist() == [0, 1, 0, -1, 100, 32767, -32768, 32767]


def test_g711(tmp_path):
    codes = np.arange(256, dtype=np.uint8)
    (tmp_path / "a.wav").write_bytes(wav(samples=codes.tobytes(), encoding=7, bits=8, rate=8000))
    assert (read_wav(f"{tmp_path}/a.wav")[1] == mu_law(codes)).all()
    for data in (0, 0xFFFFFFFF, 0x7FFFF000):
        (tmp_path / "a.wav").write_bytes(wav(samples=codes.tobytes(), encoding=7, bits=8, rate=8000, data=data))
        assert (read_wav(f"{tmp_path}/a.wav")[1] == mu_law(codes)).all()
        assert wav_info(f"{tmp_path}/a.wav").num_samples == 256
    (tmp_path / "b.wav").write_bytes(wav(samples=codes.tobytes(), encoding=6, bits=8))
    found = read_wav(f"{tmp_path}/b.wav")[1]
    assert (found[0xD5], found[0x55], found[0xAA], found[0x2A]) == (8, -8, 32256, -32256)  # G.711, A-law


def sphere(coding, samples, count, channels, size, order="01"):
    head = (f"NIST_1A\n   1024\nsample_rate -i 8000\nchannel_count -i {channels}\nsample_n_bytes -i {size}\n"
            f"sample_byte_format -s{len(order)} {order}\nsample_coding -s{len(coding)} {coding}\n"
            f"channels_interleaved -s4 TRUE\nsample_count -i {count}\nend_head\n").encode()
    return head + b" " * (1024 - len(head)) + samples


def test_sphere(tmp_path):
    file = tmp_path / "a.sph"
    codes = np.random.default_rng(0).integers(0, 256, (500, 2)).astype(np.uint8)
    file.write_bytes(sphere("ulaw", codes.tobytes(), 500, 2, 1, "1"))
    assert (read_audio(str(file))[1] == mu_law(codes)).all() and wav_info(str(file)) == (8000, 2, 500)
    file.write_bytes(sphere("pcm", X[:500].tobytes(), 500, 1, 2))
    assert (read_wav(str(file))[1] == X[:500]).all()
    file.write_bytes(sphere("pcm", X[:500].astype(">i2").tobytes(), 500, 1, 2, "10"))
    assert (read_wav(str(file))[1] == X[:500]).all()
    for read in (read_audio, wav_info):
        file.write_bytes(sphere("pcm", X[:499].tobytes(), 500, 1, 2))
        refused(lambda: read(str(file)), file, "truncated", "1000 bytes", "998 are there")
        file.write_bytes(sphere("ulaw,embedded-shorten-v2.00", bytes(300), 500, 2, 1, "1"))
        refused(lambda: read(str(file)), file, "embedded-shorten", "sph2pipe -f wav -p -c 1")


LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


@pytest.mark.parametrize("kind, subtype", [pair for pair in LOSSY if pair[0] in soundfile.available_formats()])
def test_lossy_formats(tmp_path, kind, subtype):
    tone = (8000 * np.sin(np.arange(RATE) / 9)).astype(np.int16)
    file = tmp_path / f"a.{kind}"
    file.write_bytes(sound(tone, kind, subtype))
    found = read_wav(str(file))[1]
    assert len(found) == len(tone) and np.abs(found - tone.astype(int))[500:-500].max() < 500
    assert wav_info(str(file)) == (RATE, 1, RATE)
    file.write_bytes(file.read_bytes()[:-len(file.read_bytes()) // 3])
    refused(lambda: read_audio(str(file)), file, "truncated")


def test_flac_that_does_not_tell_its_length(tmp_path):
    whole = bytearray(sound(X, "FLAC", "PCM_16"))
    whole[21] &= 0xF0
    whole[22:26] = bytes(4)  # as flac writes it into a pipe
    (tmp_path / "a.flac").write_bytes(whole)
    assert (read_wav(f"{tmp_path}/a.flac")[1] == X).all() and wav_info(f"{tmp_path}/a.flac").num_samples == len(X)


def test_speed_of_other_formats(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.stack([X, -X], axis=1), RATE)
    command = speed_command(f"{tmp_path}/a.flac", "0.9")
    assert command == f"sox -t flac {tmp_path}/a.flac -t wav - speed 0.9 |"
    assert split_speed(command) == (f"{tmp_path}/a.flac", "0.9")
    write_wav(tmp_path / "a.wav", X, RATE)
    slow = read_wav(speed_command(f"{tmp_path}/a.wav", "0.9"))[1]
    assert (read_audio(command)[1][:, 0] == slow).all() and len(slow) == round(len(X) / Fraction("0.9"))
    assert split_speed("sox -t flac 'a b -t wav - speed 0.9 |")[1] is None


@pytest.fixture
def trim(tmp_path):
    """A command that reads a long WAV from stdin and writes the first samples of it, and ends."""
    write_wav(tmp_path / "long.wav", np.tile(X, 60), RATE)
    (tmp_path / "short").write_bytes(wav(data=800, riff=836, samples=b""))
    return f"(cat {tmp_path}/short; tail -c +45 | head -c 800)"


@pytest.mark.parametrize("first", [
    "cat {}", "cat {} | cat", "python3 -c \"import sys; sys.stdout.buffer.write(open('{}', 'rb').read())\"",
    "(trap '' PIPE; cat {})"])
def test_a_pipe_whose_last_program_ends_early(trim, tmp_path, first):
    first = first.format(tmp_path / "long.wav")
    assert (read_wav(f"{first} | {trim} |")[1] == X[:400]).all()


def test_a_pipe_whose_source_is_missing(trim, tmp_path):
    whole = f"{tmp_path}/long.wav"
    for command, words in ((f"cat none.wav | {trim} |", "none.wav"), (f"cat {whole} none.wav | cat |", "exit status 1"),
                           (f"cat {whole} | (cat; exit 3) |", "exit status 3"),
                           (f"cat {whole}; false |", "exit status 1"),
                           (f"cat {whole} | (cat; kill -9 $BASHPID) |", "killed by signal 9"),
                           (f"false | cat {whole} | {trim} |", "exit status 1"),
                           (f"cat {whole} | (echo Broken pipe >&2; cat; exit 5) |", "exit status 5")):
        refused(lambda: read_wav(command), command[:-2], words)


def test_without_the_package_that_reads_other_formats(tmp_path, monkeypatch):
    (tmp_path / "a.flac").write_bytes(WHOLE["FLAC"])
    (tmp_path / "a.wav").write_bytes(wav())
    monkeypatch.setitem(sys.modules, "soundfile", None)
    refused(lambda: read_audio(f"{tmp_path}/a.flac"), "a.flac", "the package soundfile", "install it")
    assert (read_wav(f"{tmp_path}/a.wav")[1] == X).all()
