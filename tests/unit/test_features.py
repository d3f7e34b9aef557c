"""Features against Kaldi's own code, frames, archives, CMVN statistics and speed perturbation."""
import re
import shutil

import numpy as np
import pytest
import soundfile
from builders.corpora import RATE, make_recordings, speechlike
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.cli.main import main
from essence_kd.corpus.features import (
    FeatureExtractor,
    FeatureOptions,
    compute_cmvn,
    make_feats,
    num_frames,
    perturb_speed,
)
from essence_kd.io.data_dir import DataDir, read_table, validate_data_dir
from essence_kd.io.errors import UserError
from essence_kd.io.tables import MatrixTable, read_matrices
from essence_kd.io.wave import change_speed, read_wav


def kaldis(samples, kind, rate=RATE, high_freq=3700):
    """The features of kaldi-native-fbank, which is Kaldi's code."""
    import kaldi_native_fbank as knf
    options = knf.MfccOptions() if kind == "mfcc" else knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0
    options.mel_opts.low_freq, options.mel_opts.high_freq = 20, high_freq
    options.mel_opts.num_bins = 23 if kind == "mfcc" else 40
    options.use_energy = False
    extractor = (knf.OnlineMfcc if kind == "mfcc" else knf.OnlineFbank)(options)
    extractor.accept_waveform(rate, samples.astype(np.float32))
    extractor.input_finished()
    return np.array([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])


@pytest.mark.parametrize("kind,dim", [("mfcc", 13), ("fbank", 40)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_same_as_kaldi(kind, dim, seed):
    samples = speechlike(3.217, seed)
    ours, theirs = FeatureExtractor()(samples)[kind], kaldis(samples, kind)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape == (num_frames(len(samples)), dim)
    assert np.abs(ours - theirs).max() < 1e-3


def test_digital_silence_is_floored_as_in_kaldi():
    samples = np.zeros(1000, np.int16)
    for kind in ("mfcc", "fbank"):
        assert np.abs(FeatureExtractor()(samples)[kind] - kaldis(samples, kind)).max() < 1e-4


@settings(deadline=None)
@given(st.integers(0, 3000))
def test_frames_are_those_that_fit(count):
    frames = num_frames(count)
    assert frames == len([start for start in range(0, count, 80) if start + 200 <= count])
    features = FeatureExtractor()(np.ones(count, np.int16))
    assert features["mfcc"].shape == (frames, 13) and features["fbank"].shape == (frames, 40)


def test_other_options():
    options = FeatureOptions(sample_frequency=16000, high_freq=7600, num_mel_bins_fbank=80)
    features = FeatureExtractor(options, ["fbank"])(np.random.default_rng(0).integers(-99, 99, 16000).astype(np.int16))
    assert set(features) == {"fbank"} and features["fbank"].shape == (98, 80) and np.isfinite(features["fbank"]).all()


@pytest.fixture
def data(tmp_path):
    return make_recordings(tmp_path)


def test_make_feats(data):
    counts = make_feats(data, nj=2)
    assert counts["utterances"] == 6 and counts["too_short"] == 0
    assert counts["seconds"] == pytest.approx(3 * (1.25 + 1.91))
    hires = data.with_name("data_hires")
    samples = read_wav(DataDir.load(data).wav_scp["call1-A"])[1][16000:31280]
    wanted = FeatureExtractor()(samples)
    for place, kind in ((data, "mfcc"), (hires, "fbank")):
        table = MatrixTable(str(place / "feats.scp"))
        assert list(table) == sorted(DataDir.load(data).utt2spk)
        assert (table["bob-call1-A-1"] == wanted[kind]).all()
        frames = read_table(place / "utt2num_frames")
        assert {utt: int(n) for utt, n in frames.items()} == {
            utt: len(m) for utt, m in read_matrices(f"scp:{place}/feats.scp")
        }
        assert read_table(place / "utt2dur")["bob-call1-A-1"] == "1.9100"
        assert validate_data_dir(place)["utterances"] == 6
    assert (hires / "text").read_bytes() == (data / "text").read_bytes()


def test_a_comma_in_the_path(tmp_path):
    (tmp_path / "Smith, John").mkdir()
    data = make_recordings(tmp_path / "Smith, John")
    make_feats(data, nj=1)
    assert compute_cmvn(data)["speakers"] == len(list(MatrixTable(str(data / "cmvn.scp"))))
    assert len(dict(read_matrices(f"scp:{data}/feats.scp"))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["Smith, John"]


def test_any_number_of_processes_gives_the_same(data):
    make_feats(data, nj=1)
    once = {utt: matrix.copy() for utt, matrix in read_matrices(f"scp:{data}/feats.scp")}
    make_feats(data, kinds=["mfcc"], nj=7)
    again = dict(read_matrices(f"scp:{data}/feats.scp"))
    assert list(once) == list(again) and all((once[utt] == again[utt]).all() for utt in once)
    assert len(list((data / "data").glob("raw_mfcc.*.ark"))) == 3  # one per recording; none is left over


def test_jobs_of_a_cluster_leave_what_one_process_leaves(data, capsys):
    make_feats(data, kinds=["fbank"], nj=2)
    hires = data.with_name("data_hires")
    wanted = {file.relative_to(hires): file.read_bytes() for file in hires.rglob("*") if file.is_file()}
    shutil.rmtree(hires)
    fbank = ["make-feats", "--kinds", "fbank"]
    assert main([*fbank, "--job", "1/2", str(data)]) == 0
    assert main([*fbank, "--join", "2", str(data)]) == 1
    assert "features of job 2 of 2 are not there" in capsys.readouterr().err and not (hires / "feats.scp").exists()
    assert main([*fbank, "--job", "2/2", str(data)]) == 0
    assert main([*fbank, "--join", "2", str(data)]) == 0
    assert {file.relative_to(hires): file.read_bytes() for file in hires.rglob("*") if file.is_file()} == wanted
    for job in range(1, 6):  # more than there are recordings
        assert main([*fbank, "--job", f"{job}/5", str(data)]) == 0
    assert main([*fbank, "--join", "5", str(data)]) == 0 and len(MatrixTable(str(hires / "feats.scp"))) == 6
    with pytest.raises(SystemExit):
        main([*fbank, "--job", "6/5", str(data)])


def test_a_broken_recording_leaves_nothing_that_looks_whole(data, tmp_path):
    make_feats(data, nj=2)
    wav = tmp_path / "call2-A.wav"
    wav.write_bytes(wav.read_bytes()[:-500])
    with pytest.raises(UserError, match="recording call2-A.*truncated"):
        make_feats(data, nj=2)
    for place in (data, data.with_name("data_hires")):
        assert not (place / "feats.scp").exists()
        assert not list((place / "data").iterdir())
    with pytest.raises(UserError, match="feats.scp: no such file: run 'essence make-feats"):
        compute_cmvn(data)


def test_short_utterances_are_counted_and_listed(data, capfd):
    text = (data / "segments").read_text()
    (data / "segments").write_text(text.replace("0.25 1.50", "0.25 0.27", 1))
    with pytest.raises(UserError, match="1 of 6 utterances are too short .the first is ann-call0-A-0"):
        make_feats(data)
    data_dir = DataDir.load(data)
    for i in range(30):  # now one in 36: less than 5 %
        utt = f"eve-call2-A-x{i:02d}"
        data_dir.segments[utt], data_dir.utt2spk[utt], data_dir.text[utt] = ("call2-A", 1.0, 1.1), "eve", "one"
    data_dir.write(data)
    assert make_feats(data)["too_short"] == 1
    assert "1 of 36 utterances are too short" in capfd.readouterr().err
    assert "ann-call0-A-0" not in MatrixTable(str(data / "feats.scp"))


def test_segments_beyond_a_pipe(data):
    wav_scp = (data / "wav.scp").read_text()
    (data / "wav.scp").write_text(re.sub(r"call0-A (\S+)", r"call0-A head -c 16044 \1 |", wav_scp))
    with pytest.raises(UserError, match="call0-A: .*truncated"):
        make_feats(data)
    (data / "wav.scp").write_text(wav_scp)
    (data / "segments").write_text((data / "segments").read_text().replace("2.00 3.91", "2.00 4.20", 1))
    with pytest.raises(UserError, match="segments: ann-call0-A-1 ends at 4.20 s, but recording call0-A ends at 4.00 s"):
        make_feats(data)


def test_audio_of_another_rate(tmp_path):
    """16 kHz FLAC: features of Kaldi's formulas at that rate, up to 7700 Hz; at 8 kHz it is refused."""
    rng = np.random.default_rng(5)
    samples = (2000 * np.convolve(rng.standard_normal(32000), np.ones(3) / 3, "same")).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    DataDir(tmp_path, {"s-a": str(tmp_path / "a.flac")}, {"s-a": "one"}, {"s-a": "s"}).write(tmp_path / "d")
    for call in (make_feats, validate_data_dir):
        with pytest.raises(UserError, match="recording s-a.* has 16000 samples per second, not 8000: .*-r 8000.*"
                                            "sample_rate=16000 in recipe.conf"):
            call(tmp_path / "d")
    assert validate_data_dir(tmp_path / "d", sample_rate=16000)["seconds"] == 2
    with pytest.raises(UserError, match="recording s-a: .*a.flac: is not 16-bit PCM WAV, which is all that Kaldi"):
        validate_data_dir(tmp_path / "d", sample_rate=16000, wav_only=True)
    assert main(["make-feats", "--sample-rate", "16000", str(tmp_path / "d")]) == 0
    for place, kind in (("d", "mfcc"), ("d_hires", "fbank")):
        ours, theirs = MatrixTable(str(tmp_path / place / "feats.scp"))["s-a"], kaldis(samples, kind, 16000, 7700)
        assert ours.shape == theirs.shape and len(ours) == 198 and np.abs(ours - theirs).max() < 2e-3
    assert main(["make-feats", "--sample-rate", "600", str(tmp_path / "d")]) == 1
    perturb_speed(tmp_path / "d", tmp_path / "sp")
    assert "sox -t flac " in (tmp_path / "sp" / "wav.scp").read_text()
    counts = make_feats(tmp_path / "sp", options=FeatureOptions(sample_frequency=16000))
    assert counts["utterances"] == 3 and counts["seconds"] == pytest.approx(2 / 0.9 + 2 + 2 / 1.1, abs=1e-4)


def test_unknown_kind(data):
    with pytest.raises(UserError, match="no features 'plp'"):
        make_feats(data, kinds=["plp"])


def test_cmvn_statistics(data):
    make_feats(data)
    assert compute_cmvn(data) == {"speakers": 3, "utterances": 6, "missing": 0}
    stats = dict(read_matrices(f"scp:{data}/cmvn.scp"))
    feats = dict(read_matrices(f"scp:{data}/feats.scp"))
    frames = np.concatenate([feats["bob-call1-A-0"], feats["bob-call1-A-1"]]).astype(np.float64)
    bob = stats["bob"]
    assert list(stats) == ["ann", "bob", "eve"] and bob.dtype == np.float64 and bob.shape == (2, 14)
    assert np.allclose(bob[0, :13], frames.sum(0)) and np.allclose(bob[1, :13], (frames**2).sum(0))
    assert bob[0, 13] == len(frames) and bob[1, 13] == 0


def test_speed_perturbation(data, tmp_path):
    assert perturb_speed(data, tmp_path / "sp") == {"utterances": 18, "speakers": 9}
    out = DataDir.load(tmp_path / "sp")
    assert validate_data_dir(tmp_path / "sp")["recordings"] == 9
    assert out.utt2spk["sp0.9-bob-call1-A-0"] == "sp0.9-bob"
    assert out.extra["utt2uniq"]["sp1.1-bob-call1-A-0"] == out.extra["utt2uniq"]["bob-call1-A-0"] == "bob-call1-A-0"
    assert out.segments["sp0.9-bob-call1-A-0"] == ("sp0.9-call1-A", 0.28, 1.67)
    make_feats(tmp_path / "sp")
    samples = change_speed(read_wav(DataDir.load(data).wav_scp["call1-A"])[1], "0.9")
    table = MatrixTable(str(tmp_path / "sp_hires" / "feats.scp"))
    assert (table["sp0.9-bob-call1-A-0"] == FeatureExtractor()(samples[2240:13360])["fbank"]).all()
    frames = {utt: int(n) for utt, n in read_table(tmp_path / "sp" / "utt2num_frames").items()}
    assert frames["sp1.1-bob-call1-A-1"] < frames["bob-call1-A-1"] < frames["sp0.9-bob-call1-A-1"]
    with pytest.raises(UserError, match="directory of their own"):
        perturb_speed(data, data)
    lines = (data / "segments").read_text().splitlines(keepends=True)
    (data / "segments").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=f"segments: lacks {lines[-1].split()[0]}, which utt2spk has"):
        perturb_speed(data, tmp_path / "less")


def test_perturbed_segments_are_kaldis(data, tmp_path, capsys):
    """The unperturbed lines stay; others are scaled to two decimals, and left out at 10 ms, as Kaldi's awk does it."""
    times = ["0.285 1.786776870232002", "1.0 2.50", "3e-1 0.5", "2.001 2.004", "1.0 1.0105", "3.3 -1"]
    utts = [f"u{i}" for i in range(len(times))]
    (data / "segments").write_text("".join(f"{u} call0-A {t}\n" for u, t in zip(utts, times)))
    for name in ("text", "utt2spk"):
        (data / name).write_text("".join(f"{u} {u}\n" for u in utts))
    (data / "spk2utt").write_text("".join(f"{u} {u}\n" for u in utts))
    perturb_speed(data, tmp_path / "sp")
    assert "left out 3 segments of at most 10 ms: sp0.9-u3 sp1.1-u3 sp1.1-u4" in capsys.readouterr().err
    lines = (tmp_path / "sp" / "segments").read_text().splitlines(keepends=True)
    assert "".join(line for line in lines if line[0] == "u") == (data / "segments").read_text()
    assert [line.strip() for line in lines if line.startswith("sp0.9")] == [
        "sp0.9-u0 sp0.9-call0-A 0.32 1.99", "sp0.9-u1 sp0.9-call0-A 1.11 2.78", "sp0.9-u2 sp0.9-call0-A 0.33 0.56",
        "sp0.9-u4 sp0.9-call0-A 1.11 1.12", "sp0.9-u5 sp0.9-call0-A 3.67 -1.00"]
    assert validate_data_dir(tmp_path / "sp")["utterances"] == 15
    (data / "segments").write_text("".join(f"{u} call0-A 1 1.009\n" for u in utts))
    with pytest.raises(UserError, match="every segment has at most 10 ms at speed 0.9,1.1"):
        perturb_speed(data, tmp_path / "none", ["0.9", "1.1"])


def test_a_segment_at_the_end_stays_readable_at_every_speed(data, tmp_path):
    """One that ends late by what is allowed, and one whose start is rounded to after the recording's end."""
    (data / "segments").write_text("".join(f"{utt} {utt.split('-', 1)[1][:-2]} {times}\n" for utt, times in zip(
        DataDir.load(data).utt2spk, ["0 4.05", "3.999 4.05", "0 1", "0 1", "0 1", "0 1"])))
    perturb_speed(data, tmp_path / "sp")
    assert validate_data_dir(tmp_path / "sp")["utterances"] == 18
    with pytest.raises(UserError, match="3 of 18 utterances are too short"):
        make_feats(tmp_path / "sp")
    (data / "segments").write_text((data / "segments").read_text().replace("3.999 4.05", "1 2"))
    perturb_speed(data, tmp_path / "sp")
    assert make_feats(tmp_path / "sp")["utterances"] == 18
