"""Audio without transcripts: cut at silences, told apart from what is tested."""
import numpy as np
import pytest
import soundfile
from builders import refused

from essence_kd.cli.main import main
from essence_kd.corpus.segmentation import energies, pieces, segment
from essence_kd.io.data_dir import DataDir, validate_data_dir
from essence_kd.io.wave import write_wav

RATE = 8000


def talk(parts, loud=3000, noise=30, seed=1):
    """int16 samples of (seconds, whether somebody speaks) in turn."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, loud if speaks else noise, int(RATE * seconds))
                           for seconds, speaks in parts]).clip(-32768, 32767).astype(np.int16)


def data_of(folder, recordings, segments=None, text=None):
    """A data directory; recordings: id -> samples, speakers are ids before the first dash."""
    folder.mkdir(parents=True)
    for reco, samples in recordings.items():
        write_wav(folder / f"{reco}.wav", samples, RATE)
    utts = segments or recordings
    DataDir(folder, {r: str(folder / f"{r}.wav") for r in recordings}, text or {}, {u: u.split("-")[0] for u in utts},
            segments).write(folder / "d")
    return folder / "d"


def test_energies_are_those_of_their_definition():
    samples = talk([(0.2, True), (0.153, False)])
    got = energies(samples, RATE)
    assert got.shape == (35,)
    for t in (0, 4, 5, 20, 34):
        part = samples[max(0, t - 5) * 80:min(35, t + 6) * 80].astype(float)
        assert got[t] == pytest.approx(10 * np.log10((part ** 2).mean() + 1e-3), abs=1e-6)


def test_long_utterances_are_cut_at_silences_and_silent_ones_left_out(tmp_path):
    parts = [(2, False), (6, True), (0.3, False), (2, True), (3, False), (5, True), (1, False)]
    data = data_of(tmp_path / "a", {"s1-a": talk(parts), "s2-b": talk([(4, False), (1, True)]),
                                    "s3-c": np.zeros(RATE * 3, np.int16), "s4-d": talk([(30, False)], noise=900)})
    counts = segment(data, tmp_path / "cut", max_seconds=10, nj=2)
    assert {k: v for k, v in counts.items() if k != "seconds"} == {"utterances": 4, "pieces": 3, "cut": 1, "silent": 2}
    out = DataDir.load(tmp_path / "cut")
    assert out.segments["s2-b"] == ("s2-b", 0.0, -1.0) and set(out.utt2spk.values()) == {"s1", "s2"}
    first, second = (out.segments[u] for u in out.segments if u != "s2-b")
    # 2 to 10.3 s with the short pause in it, 13.3 to 18.3 s; 0.2 s more on both sides, less what the smoothing sees
    for (reco, start, end), (wanted, last) in ((first, (2, 10.3)), (second, (13.3, 18.3))):
        assert reco == "s1-a" and abs(start - (wanted - 0.2)) <= 0.06 and abs(end - (last + 0.2)) <= 0.06
    names = [u for u in out.utt2spk if u != "s2-b"]
    assert names == [f"s1-a-{round(100 * s):07d}-{round(100 * e):07d}" for _, s, e in (first, second)]
    assert out.extra["utt2uniq"] == {names[0]: "s1-a", names[1]: "s1-a", "s2-b": "s2-b"}
    assert counts["seconds"] == pytest.approx(sum(e - s for _, s, e in (first, second)) + 5)
    validate_data_dir(tmp_path / "cut", need_text=False)
    again = segment(data, tmp_path / "again", max_seconds=10, nj=1)
    assert again == counts
    assert (tmp_path / "again" / "segments").read_text() == (tmp_path / "cut" / "segments").read_text()


def test_speech_without_a_pause_is_cut_where_it_is_softest():
    level = np.full(2400, 70.0)
    level[:30] = level[-30:] = 20.0
    level[900:905] = 60.0
    found = pieces(np.concatenate([np.full(300, 20.0), level]), 1500)
    assert found == [(310, 1200), (1200, 2690)]
    assert pieces(np.full(3000, 70.0), 1500) == []  # no frame is softer than others: nobody speaks
    assert max(b - a for a, b in pieces(np.where(np.arange(9000) < 1000, 20.0, 70.0), 1500)) <= 1500


def test_times_of_segments_and_channels_count_from_their_recording(tmp_path):
    samples = np.stack([talk([(40, False)]), talk([(10, False), (3, True), (2, False), (3, True), (22, False)])], 1)
    folder = tmp_path / "a"
    folder.mkdir()
    soundfile.write(folder / "r.wav", samples, RATE)
    data = DataDir(folder, {"r": str(folder / "r.wav")}, {}, {"s-u": "s"}, {"s-u": ("r", 9.5, 39.5)}, {}, {"s-u": 1})
    data.write(folder / "d")
    segment(folder / "d", tmp_path / "cut")
    out = DataDir.load(tmp_path / "cut")
    assert set(out.channels.values()) == {1} and len(out.segments) == 2
    for (_, start, end), wanted in zip(out.segments.values(), (10, 15)):
        assert abs(start - wanted + 0.2) <= 0.06 and abs(end - wanted - 3.2) <= 0.06


def test_two_renderings_are_cut_alike(tmp_path):
    parts = [(2, False), (6, True), (2, False), (7, True)]
    clean = data_of(tmp_path / "clean", {"s1-a": talk(parts), "s2-b": talk(parts[:2], seed=3)})
    noisy = data_of(tmp_path / "noisy", {"s1-a": talk(parts, noise=2900), "s2-b": talk(parts[:2], noise=2900)})
    segment(clean, tmp_path / "c", max_seconds=10)
    segment(noisy, tmp_path / "n", max_seconds=10, audio_of=clean)
    a, b = DataDir.load(tmp_path / "c"), DataDir.load(tmp_path / "n")
    assert a.segments == b.segments and len(a.segments) == 3 and b.wav_scp != a.wav_scp
    other = data_of(tmp_path / "other", {"s1-a": talk(parts), "s2-c": talk(parts)})
    refused(lambda: segment(other, tmp_path / "o", audio_of=clean), other / "utt2spk", "lacks s2-b")


def test_what_cannot_be_cut_is_refused(tmp_path, capsys):
    silent = data_of(tmp_path / "a", {"s1-a": np.zeros(RATE, np.int16), "s2-b": talk([(30, False)], noise=900)})
    refused(lambda: segment(silent, tmp_path / "x"), silent, "no speech in any of its 2 utterances")
    fast = tmp_path / "fast"
    fast.mkdir()
    write_wav(fast / "s-a.wav", talk([(2, True)]), 16000)
    DataDir(fast, {"s-a": str(fast / "s-a.wav")}, {}, {"s-a": "s"}).write(fast / "d")
    assert main(["segment", str(fast / "d"), str(tmp_path / "x")]) == 1
    assert "recording s-a" in capsys.readouterr().err
    refused(lambda: segment(silent, tmp_path / "x", max_seconds=0.5), "--max-seconds 0.5", "at least 1")
    assert not (tmp_path / "x").exists()


def test_what_is_tested_must_not_be_among_it(tmp_path, capsys):
    samples = talk([(1, True)])
    test = data_of(tmp_path / "test", {"s1-a": samples, "s1-b": samples},
                   text={"s1-a": "one two three", "s1-b": "yes"})
    good = data_of(tmp_path / "good", {"s2-c": samples, "s2-d": samples},
                   text={"s2-c": "yes", "s2-d": "one two three"})
    validate_data_dir(good, apart_from=[test])
    refused(lambda: validate_data_dir(good, no_sentence_of=[test]), good / "text", "s2-d says 'one two three'", test)
    utts = data_of(tmp_path / "utts", {"s1-a": samples})
    refused(lambda: validate_data_dir(utts, need_text=False, apart_from=[test]), utts / "utt2spk", "utterance s1-a",
            test)
    recos = data_of(tmp_path / "recos", {"s1-a": samples}, {"s1-a-1": ("s1-a", 0.0, 0.5)})
    refused(lambda: validate_data_dir(recos, need_text=False, apart_from=[test]), recos / "wav.scp", "recording s1-a")
    folder = tmp_path / "same"
    folder.mkdir()
    place = DataDir.load(test).wav_scp["s1-b"]
    DataDir(folder, {"s9-z": place}, {}, {"s9-z": "s9"}).write(folder / "d")
    words = ["validate-data", "--need-text", "false", "--no-sentence-of", str(test), str(folder / "d")]
    assert main(words) == 1
    assert f"the audio {place} is also in {test}" in capsys.readouterr().err
