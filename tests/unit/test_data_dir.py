"""Data directories: what is read, and every fault that is refused with one line naming the file, the id and the fix."""
import re
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT

from essence_kd.io.data_dir import DataDir, read_table, validate_data_dir
from essence_kd.io.errors import UserError
from essence_kd.io.recordings import Recordings
from essence_kd.io.wave import change_speed, read_wav, speed_command, split_speed, wav_info, write_wav

RATE = 8000


@pytest.fixture
def data(tmp_path):
    """Two speakers, two recordings of four seconds, two utterances each."""
    rng = np.random.default_rng(0)
    for reco in ("call1-A", "call1-B"):
        write_wav(tmp_path / f"{reco}.wav", rng.integers(-3000, 3000, 4 * RATE).astype(np.int16), RATE)
    path = tmp_path / "data"
    DataDir(path, {r: str(tmp_path / f"{r}.wav") for r in ("call1-A", "call1-B")},
            {"ann-1": "hello there", "ann-2": "yes", "bob-1": "well hello", "bob-2": "no"},
            {"ann-1": "ann", "ann-2": "ann", "bob-1": "bob", "bob-2": "bob"},
            {"ann-1": ("call1-A", 0.0, 1.0), "ann-2": ("call1-A", 1.5, 4.0), "bob-1": ("call1-B", 0.5, 1.25),
             "bob-2": ("call1-B", 2.0, -1.0)}).write(path)
    (tmp_path / "lexicon.txt").write_text("hello HH AX L OW\nno N OW\nthere DH EH R\nwell W EH L\nyes Y EH S\n")
    return path


def edit(file, old, new):
    text = file.read_bytes()
    assert old.encode() in text
    file.write_bytes(text.replace(old.encode(), new if isinstance(new, bytes) else new.encode()))


def refused(data, *patterns, **options):
    with pytest.raises(UserError) as caught:
        validate_data_dir(data, **options)
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), message


def test_a_good_directory(data, tmp_path):
    counts = validate_data_dir(data, lexicon=tmp_path / "lexicon.txt")
    assert counts == {"utterances": 4, "speakers": 2, "recordings": 2, "words": 6, "oov_words": {},
                      "seconds": pytest.approx(1 + 2.5 + 0.75 + 2)}
    loaded = DataDir.load(data)
    assert loaded.segments["bob-1"] == ("call1-B", 0.5, 1.25)
    assert loaded.spk2utt() == {"ann": ["ann-1", "ann-2"], "bob": ["bob-1", "bob-2"]}


def test_without_segments_recordings_are_utterances(tmp_path):
    write_wav(tmp_path / "a.wav", np.ones(RATE, np.int16), RATE)
    DataDir(tmp_path / "d", {"spk-a": str(tmp_path / "a.wav")}, {"spk-a": "one"}, {"spk-a": "spk"}).write(
        tmp_path / "d"
    )
    assert validate_data_dir(tmp_path / "d", wav_only=True)["seconds"] == 1


def test_ids_are_sorted_as_bytes(tmp_path):
    (tmp_path / "t").write_text("B 1\na 2\né 3\n", encoding="utf-8")
    assert list(read_table(tmp_path / "t")) == ["B", "a", "é"]


@pytest.mark.parametrize("name", ["text", "utt2spk", "segments", "wav.scp"])
def test_unsorted_and_duplicate_ids(data, name):
    file = data / name
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[::-1]))
    refused(data, rf"{name}: \S+ \(line 2\) is out of order", "LC_ALL=C sort")
    file.write_text(lines[0] + "".join(lines))
    refused(data, rf"{name}: {lines[0].split()[0]} comes twice")


def test_missing_files_and_lines(data):
    refused(data.parent / "nowhere", "nowhere: no such data directory")
    (data / "wav.scp").write_text("")
    refused(data, "wav.scp: holds no line")
    (data / "wav.scp").unlink()
    refused(data, "wav.scp: no such file")


def test_an_empty_line(data):
    edit(data / "text", "ann-2", "\nann-2")
    refused(data, "text: line 2 is empty")


def test_missing_wav(data, tmp_path):
    (tmp_path / "call1-B.wav").unlink()
    refused(data, "wav.scp: recording call1-B", "call1-B.wav: no such audio file")


@pytest.mark.parametrize("keep", [0, 7, 30, 44, 45, 1000])
def test_truncated_wav(data, tmp_path, keep):
    wav = tmp_path / "call1-B.wav"
    wav.write_bytes(wav.read_bytes()[:keep])
    refused(data, "recording call1-B", "truncated")


def test_zero_length_wav(data, tmp_path):
    write_wav(tmp_path / "call1-B.wav", np.zeros(0, np.int16), RATE)
    refused(data, "recording call1-B", "holds no samples")


def test_not_a_wav(data, tmp_path):
    (tmp_path / "call1-B.wav").write_bytes(b"fLaC" + bytes(100))
    refused(data, "recording call1-B", "not audio that can be read", "sox")


def test_wrong_sample_rate(data, tmp_path):
    write_wav(tmp_path / "call1-B.wav", np.ones(4 * 16000, np.int16), 16000)
    refused(data, "recording call1-B", "16000 samples per second, not 8000", "-r 8000")


def _header(channels=1, bits=16, encoding=1, rate=RATE):
    import struct

    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 8000, b"WAVE", b"fmt ", 16, encoding, channels, rate,
                       rate * channels * bits // 8, channels * bits // 8, bits, b"data", 8000)


def test_stereo_and_other_encodings(data, tmp_path):
    wav = tmp_path / "call1-B.wav"
    wav.write_bytes(_header(channels=2) + bytes(8000))
    refused(data, "recording call1-B", "2 channels", "remix 1")
    with pytest.raises(UserError, match="2 channels"):
        read_wav(str(wav))
    wav.write_bytes(_header(bits=8, encoding=7) + bytes(8000))  # mu-law, one second
    refused(data, "segments: bob-1 ends at 1.25 s, but recording call1-B ends at 1.00 s")
    wav.write_bytes(_header(bits=8, encoding=999) + bytes(8000))
    refused(data, "recording call1-B", "not audio that can be read", "16")


def test_empty_transcript(data):
    edit(data / "text", "ann-2 yes", "ann-2")
    refused(data, r"text: ann-2 has an empty transcript \(line 2\)")
    edit(data / "text", "ann-2\n", "ann-2   \t\n")
    refused(data, "text: ann-2 has an empty transcript")


def test_words_missing_from_the_lexicon(data, tmp_path):
    edit(data / "text", "bob-2 no", "bob-2 no zebra xylophone")
    refused(
        data, "text: bob-2 has the word 'zebra' .and 1 more words.*lexicon.txt lacks", lexicon=tmp_path / "lexicon.txt"
    )
    assert validate_data_dir(data, lexicon=tmp_path / "lexicon.txt", allow_oov=True)["oov_words"] == {
        "zebra": 1, "xylophone": 1}


@pytest.mark.parametrize("word", ["<s>", "</s>", "#0", "#1", "<eps>"])
def test_reserved_words_in_text(data, tmp_path, word):
    """Also where a words.txt has them, as the list of words that are known."""
    (tmp_path / "words.txt").write_text(f"<eps> 0\nhello 1\nno 2\nthere 3\nwell 4\nyes 5\n{word} 6\n")
    edit(data / "text", "bob-2 no", f"bob-2 no {word}")
    for options in ({}, {"lexicon": tmp_path / "words.txt"}, {"lexicon": tmp_path / "words.txt", "allow_oov": True}):
        refused(data, f"text: bob-2 has '{word}', which cannot be a word", **options)
    edit(data / "text", f"no {word}", "no #metoo <unk> -")
    assert validate_data_dir(data)["words"] == 9


@pytest.mark.parametrize("char, told", [
    ("\xa0", "U.00A0 NO-BREAK SPACE"), ("\u3000", "U.3000 IDEOGRAPHIC SPACE"), ("\u200b", "U.200B ZERO WIDTH SPACE"),
    ("\u2028", "U.2028 LINE SEPARATOR"), ("\x85", "U.0085"), ("\x1c", "U.001C"),
    ("\u200e", "U.200E LEFT-TO-RIGHT MARK")])
def test_characters_that_cannot_be_seen(data, char, told):
    edit(data / "text", "bob-2 no", f"bob-2 no{char}yes")
    refused(data, "text: bob-2 has 'no.{4,6}yes' with the character " + told)
    edit(data / "text", f"no{char}yes", "no\u200dyes")  # a joiner, which spelling has
    assert validate_data_dir(data)["words"] == 6
    for name in ("text", "utt2spk", "segments"):
        edit(data / name, "bob-2", f"bob-2{char}")
    (data / "spk2utt").unlink()
    refused(data, "'bob-2.{4,6}' with the character " + told)


def test_the_same_letters_in_another_form(data, tmp_path):
    composed, decomposed = "caf\xe9", "cafe\u0301"
    edit(data / "text", "bob-2 no", f"bob-2 {decomposed}")
    edit(tmp_path / "lexicon.txt", "no N OW", f"{composed} N OW")
    refused(data, f"bob-2 has the word '{decomposed}'", "same letters in Unicode's form NFC",
            lexicon=tmp_path / "lexicon.txt")
    edit(data / "text", "ann-2", composed)
    edit(data / "utt2spk", "ann-2", decomposed)
    (data / "text").write_text("".join(sorted((data / "text").read_text(encoding="utf-8").splitlines(True))), "utf-8")
    (data / "utt2spk").write_text("ann-1 ann\nbob-1 bob\nbob-2 bob\ncafe\u0301 cafe\u0301\n", "utf-8")
    (data / "segments").write_text("".join(f"{utt} call1-A 0 1\n" for utt in ("ann-1", "bob-1", "bob-2", decomposed)),
                                   "utf-8")
    (data / "spk2utt").unlink()
    refused(data, "text: lacks cafe.*, which utt2spk has .it is there with the same letters in Unicode's form NFC")


def test_utt2spk_that_disagrees(data):
    (data / "spk2utt").write_text("ann ann-1\nbob ann-2 bob-1 bob-2\n")
    refused(data, "spk2utt: speaker ann disagrees with utt2spk .utterance ann-2", "utt2spk_to_spk2utt")
    (data / "spk2utt").unlink()
    (data / "utt2spk").write_text("ann-1 ann\nann-2 ann\nbob-1 bob\n")
    refused(data, "utt2spk: lacks bob-2, which segments has")
    (data / "utt2spk").write_text("ann-1 ann\nann-2 zoe\nbob-1 bob\nbob-2 bob\n")
    refused(data, "utt2spk: .*not sorted by speaker .at bob-1", "beginning of each utterance id")
    (data / "utt2spk").write_text("ann-1 ann ann\nann-2 ann\nbob-1 bob\nbob-2 bob\n")
    refused(data, "utt2spk: ann-1 has the speaker 'ann ann'")


def test_text_that_disagrees(data):
    edit(data / "text", "bob-2 no\n", "")
    refused(data, "text: lacks bob-2, which utt2spk has")
    (data / "text").unlink()
    refused(data, "/text: no such file")
    assert validate_data_dir(data, need_text=False)["utterances"] == 4


def test_segments_beyond_the_recording(data):
    edit(data / "segments", "1.50 4.00", "1.50 4.30")
    refused(data, "segments: ann-2 ends at 4.30 s, but recording call1-A ends at 4.00 s")
    assert validate_data_dir(data, max_overshoot=0.5)["utterances"] == 4
    edit(data / "segments", "1.50 4.30", "4.10 -1")
    refused(data, "segments: ann-2")
    edit(data / "segments", "4.10 -1", "3.00 2.00")
    refused(data, "segments: ann-2 starts at 3.00 and ends at 2.00")
    edit(data / "segments", "3.00 2.00", "x y")
    refused(data, "segments: ann-2: expected 'UTTERANCE RECORDING START END'.*'x' is no such number")
    edit(data / "segments", "call1-A x y", "call7-A 1.0 2.0")
    refused(data, "segments: ann-2 is cut from recording call7-A, which wav.scp lacks")


@pytest.mark.parametrize("times, words", [
    ("1,5 4,0", "'1,5' is no such number .write a decimal point"), ("1.5 nan", "'nan' is no such number"),
    ("1.5 inf", "'inf' is no such number"), ("1_5 4.0", "'1_5' is no such number"), ("0x1 4", "'0x1' is no such"),
    ("1.5", "expected 'UTTERANCE RECORDING START END'"), ("1.5 4 0 7", "and perhaps a channel"),
    ("-0.5 4", "starts at -0.5"), ("1.5 1.5", "starts at 1.5 and ends at 1.5"), ("1.5 -2", "ends at -2"),
    ("1.5 4 A", "fifth column is 'A'"), ("1.5 4 -1", "fifth column is '-1'"),
    ("1.5 4 1", "call1-A, of which ann-2 is cut: has 1 channel, and segments asks for channel 1"),
    ("1.5 1e300", "ann-2 ends at 1.*, but recording call1-A ends at 4.00")])
def test_segments_that_are_refused(data, times, words):
    edit(data / "segments", "1.50 4.00", times)
    refused(data, "segments: ann-2|recording call1-A, of which ann-2", words)


def test_times_keep_all_their_digits(data, tmp_path):
    times = "0.285 3.786776870232002", "1e-2 2.5e0", ".5 4.", "3.9 -1", "0 4.049999999999999 0"
    for text in times:
        edit(data / "segments", "1.50 4.00", text)
        wanted = DataDir.load(data).segments["ann-2"]
        assert wanted[1:] == tuple(float(x) for x in text.split()[:2])
        loaded = DataDir.load(data)
        loaded.write(tmp_path / "copy")
        copy, channels = DataDir.load(tmp_path / "copy"), {"ann-2": 0} if text[-2:] == " 0" else {}
        assert copy.segments == loaded.segments and copy.channels == loaded.channels == channels
        validate_data_dir(tmp_path / "copy")
        edit(data / "segments", text, "1.50 4.00")
    DataDir.load(data).write(tmp_path / "copy")
    assert (tmp_path / "copy" / "segments").read_bytes() == (data / "segments").read_bytes()


def test_channels_of_segments(data, tmp_path):
    both = np.stack([np.arange(4 * RATE), -np.arange(4 * RATE)], axis=1).astype(np.int16)
    write_wav(tmp_path / "call1-A.wav", both.reshape(-1), RATE)
    whole = bytearray((tmp_path / "call1-A.wav").read_bytes())
    whole[22:24], whole[28:34] = b"\2\0", (4 * RATE).to_bytes(4, "little") + b"\4\0"
    (tmp_path / "call1-A.wav").write_bytes(whole)
    refused(data, "recording call1-A, of which ann-1 is cut: has 2 channels", "remix 1", "behind the times in segments")
    edit(data / "segments", "0.00 1.00", "0.00 1.00 1")
    edit(data / "segments", "1.50 4.00", "1.50 4.00 0")
    assert validate_data_dir(data)["seconds"] == pytest.approx(6.25)
    loaded = DataDir.load(data)
    recordings = Recordings(loaded.wav_scp, data / "wav.scp", RATE)
    for utt, first, last, column in (("ann-1", 0, RATE, 1), ("ann-2", 12000, 4 * RATE, 0)):
        assert (recordings.cut(utt, loaded.segments[utt], loaded.channels[utt]) == both[first:last, column]).all()
    edit(data / "segments", "1.50 4.00 0", "1.50 4.00 2")
    refused(data, "has 2 channels, and segments asks for channel 2")


def test_bad_utf8(data):
    edit(data / "text", "there", b"th\xe9re")
    refused(data, r"text: line 1 \(ann-1\) is not UTF-8 at byte 14", "iconv")


def test_pipes(data, tmp_path):
    edit(data / "wav.scp", f"call1-B {tmp_path}/call1-B.wav", f"call1-B cat {tmp_path}/call1-B.wav |")
    assert validate_data_dir(data)["seconds"] == -1
    assert validate_data_dir(data, run_pipes=True)["seconds"] == pytest.approx(6.25)
    rate, samples = read_wav(f"cat {tmp_path}/call1-B.wav |")
    assert rate == RATE and (samples == read_wav(str(tmp_path / "call1-B.wav"))[1]).all()
    edit(data / "wav.scp", "cat ", "cat /nonexistent/")
    refused(data, "recording call1-B", "failed with exit status 1", "No such file", run_pipes=True)
    with pytest.raises(UserError, match="truncated"):
        read_wav(f"head -c 1000 {tmp_path}/call1-A.wav |")
    with pytest.raises(UserError, match="ends too early"):
        read_wav("true |")


def test_streamed_headers_and_offsets(tmp_path):
    """sox writes an impossible length into a pipe; wav-copy puts several files behind one another."""
    samples = np.arange(100, dtype=np.int16)
    write_wav(tmp_path / "a.wav", samples, RATE)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "s.wav").write_bytes(whole[:4] + b"\xff" * 4 + whole[8:40] + b"\xff" * 4 + whole[44:])
    assert (read_wav(str(tmp_path / "s.wav"))[1] == samples).all()
    assert (read_wav(f"cat {tmp_path}/s.wav |")[1] == samples).all()
    (tmp_path / "x.ark").write_bytes(b"utt1 " + whole)
    assert (read_wav(f"{tmp_path}/x.ark:5")[1] == samples).all()
    assert wav_info(f"{tmp_path}/x.ark:5").num_samples == 100


@pytest.mark.parametrize("source", ["/a/b.wav", "sph2pipe -f wav -p -c 1 /a/b.sph |",
                                   "/a/b.ark:123", "/a/my files/b.wav"])
def test_speed_commands_are_kaldis(source):
    command = speed_command(source, "0.9")
    assert command.endswith("- speed 0.9 |")
    assert split_speed(command) == (source, "0.9")
    assert split_speed(source) == (source, None)
    twice = speed_command(command, "1.1")
    assert split_speed(twice) == (command, "1.1")


def test_change_of_speed(tmp_path):
    t = np.arange(8000) / RATE
    tone = (8000 * np.sin(2 * np.pi * 500 * t)).astype(np.int16)
    slow, fast = change_speed(tone, "0.9"), change_speed(tone, "1.1")
    assert (len(slow), len(fast)) == (8889, 7273)
    for out, hz in ((slow, 450), (fast, 550)):
        wanted = 8000 * np.sin(2 * np.pi * hz * np.arange(len(out)) / RATE)
        assert np.abs(out - wanted)[200:-200].max() < 40
    write_wav(tmp_path / "a.wav", tone, RATE)
    assert (read_wav(speed_command(f"cat {tmp_path}/a.wav |", "1.1"))[1] == fast).all()
    twice = speed_command(speed_command(f"{tmp_path}/a.wav", "0.9"), "1.1")
    assert (read_wav(twice)[1] == change_speed(slow, "1.1")).all()


def test_other_sox_commands_are_left_alone():
    for command in ("sox -t wav a.wav b.wav -t wav - speed 0.9 |", "sox a.wav -t wav - |"):
        assert split_speed(command) == (command, None)


@pytest.mark.sox
def test_speed_agrees_with_sox(tmp_path):
    rng = np.random.default_rng(1)
    noise = np.convolve(rng.standard_normal(16000), np.ones(4) / 4, "same")
    write_wav(tmp_path / "a.wav", (3000 * noise).astype(np.int16), RATE)
    for factor in ("0.9", "1.1"):
        ours = read_wav(speed_command(str(tmp_path / "a.wav"), factor))[1].astype(float)
        subprocess.run(["sox", "-D", tmp_path / "a.wav", tmp_path / "b.wav", "speed", factor], check=True)
        theirs = read_wav(str(tmp_path / "b.wav"))[1].astype(float)
        assert abs(len(ours) - len(theirs)) <= 2
        n = min(len(ours), len(theirs))
        assert np.corrcoef(ours[:n], theirs[:n])[0, 1] > 0.99


def test_the_verb_says_one_line(data):
    edit(data / "text", "ann-2 yes", "ann-2")
    run = subprocess.run(
        [sys.executable, "-m", "essence_kd", "validate-data", str(data)],
        cwd=ROOT / "pytools",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("essence validate-data: ") and run.stderr.count("\n") == 1
    edit(data / "text", "ann-2\n", "ann-2 yes\n")
    run = subprocess.run(
        [sys.executable, "-m", "essence_kd", "validate-data", str(data)],
        cwd=ROOT / "pytools",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "4 utterances, 2 speakers, 2 recordings, 6 words" in run.stderr
