"""Features on the fly: those of make-feats, with noise at the ratio that was drawn."""
import numpy as np
import pytest
from builders import refused
from builders.training_runs import same, state

from essence_kd.am.audio import AudioSource, NoiseMixer
from essence_kd.am.settings import TrainSettings
from essence_kd.am.sources import FeatureSource, load_cuts
from essence_kd.am.trainer import train
from essence_kd.corpus.features import make_feats
from essence_kd.io.recordings import sample_rate_of
from essence_kd.io.settings import load_settings, read_yaml
from essence_kd.io.tables import IntVectorWriter
from essence_kd.io.wave import write_wav

SMALL = ["model.hidden=16", "optim.epochs=2", "data.batch_frames=600", "data.heldout=0.2"]


@pytest.fixture
def corpus(tmp_path):
    """(data directory with filterbanks, alignments, wav.scp of noise): six utterances cut from three recordings."""
    rng = np.random.default_rng(1)
    data, ali = tmp_path / "data", tmp_path / "ali"
    data.mkdir()
    ali.mkdir()
    wav, segments = [], []
    for r in range(3):
        tone = 3000 * np.sin(np.arange(16000) * (0.2 + 0.1 * r)) + 300 * rng.normal(size=16000)
        write_wav(data / f"r{r}.wav", tone.astype(np.int16), 8000)
        wav.append(f"r{r} {data}/r{r}.wav\n")
        segments += [f"s{r}-u{2 * r} r{r} 0.00 0.90\n", f"s{r}-u{2 * r + 1} r{r} 0.95 2.00\n"]
    (data / "wav.scp").write_text("".join(wav))
    (data / "segments").write_text("".join(segments))
    utts = [line.split()[0] for line in segments]
    (data / "text").write_text("".join(f"{u} word\n" for u in utts))
    (data / "utt2spk").write_text("".join(f"{u} {u[:2]}\n" for u in utts))
    (data / "spk2utt").write_text("".join(f"s{r} s{r}-u{2 * r} s{r}-u{2 * r + 1}\n" for r in range(3)))
    make_feats(data, nj=1)
    hires = tmp_path / "data_hires"
    with IntVectorWriter(f"ark,scp:{ali}/ali.ark,{ali}/ali.scp") as writer:
        for cut in load_cuts(hires / "feats.scp"):
            writer.write(cut.id, (np.arange(cut.features.num_frames) // 10 % 4).astype(np.int32))
    (ali / "num_pdfs").write_text("4\n")
    (ali / "priors.txt").write_text("0.25\n" * 4)
    write_wav(tmp_path / "n.wav", (1000 * rng.normal(size=5000)).astype(np.int16), 8000)
    (tmp_path / "noise.scp").write_text(f"n1 {tmp_path}/n.wav\n")
    return hires, ali, tmp_path / "noise.scp"


@pytest.mark.parametrize("cmn", ["none", "utterance", "speaker"])
def test_features_are_those_of_make_feats(corpus, cmn):
    cuts = load_cuts(corpus[0] / "feats.scp")
    stored, made = FeatureSource(cuts, cmn), AudioSource(cuts, cmn, corpus[0])
    for i in range(len(stored)):
        np.testing.assert_array_equal(made.load(i), stored.load(i))


def test_noise_has_the_ratio_and_share_that_were_asked_for(corpus):
    mixer = NoiseMixer(corpus[2], 1.0, (10.0, 10.0), 8000)
    speech = 500 * np.sin(np.arange(12000) * 0.3)  # longer than the noise
    noise = mixer(speech, np.random.default_rng(3)) - speech
    assert np.mean(speech**2) / np.mean(noise**2) == pytest.approx(10.0)
    np.testing.assert_allclose(noise[:5000], noise[5000:10000])
    assert not np.allclose(noise, mixer(speech, np.random.default_rng(4)) - speech)
    half = NoiseMixer(corpus[2], 0.5, (0.0, 20.0), 8000)
    changed = [not np.array_equal(half(speech, np.random.default_rng(i)), speech) for i in range(200)]
    assert 70 < sum(changed) < 130
    np.testing.assert_array_equal(mixer(np.zeros(100), np.random.default_rng(1)), np.zeros(100))


def test_training_with_noise_repeats_itself_and_differs_from_clean(corpus, tmp_path):
    def run(name, *more):
        settings = load_settings(TrainSettings, None, [*SMALL, *more])
        return train(settings, corpus[0], corpus[1], tmp_path / name)

    run("stored")
    run("clean", "data.features=on-the-fly")
    for name in ("a", "b"):
        run(name, "data.features=on-the-fly", f"augment.noise={corpus[2]}", "augment.noise_share=1")
    run("none", "data.features=on-the-fly", f"augment.noise={corpus[2]}", "augment.noise_share=0")
    assert same(state(tmp_path / "stored"), state(tmp_path / "clean")) and same(state(tmp_path / "clean"),
                                                                                state(tmp_path / "none"))
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    assert not same(state(tmp_path / "a"), state(tmp_path / "clean"))


def test_audio_and_noise_that_do_not_fit(corpus, tmp_path):
    hires, ali, noise = corpus

    def run(*more):
        settings = load_settings(TrainSettings, None, [*SMALL, *more])
        return lambda: train(settings, hires, ali, tmp_path / "m")

    refused(run(f"augment.noise={noise}"), "augment.noise", "on-the-fly")
    refused(run("data.features=later"), "data.features", "precomputed or on-the-fly")
    refused(run("data.features=on-the-fly", "augment.noise=no.scp"), "no.scp")
    refused(run("augment.snr_low=30"), "augment.snr_low", "snr_high")
    refused(lambda: load_settings(TrainSettings, None, ["augment.time_warp=80"]), "unknown key 'time_warp'")
    segments = (hires / "segments").read_text()
    (hires / "segments").write_text(segments.replace("0.95 2.00", "0.95 1.80"))
    refused(run("data.features=on-the-fly"), "wav.scp", "other audio", "frames x 40 bins")
    (hires / "segments").write_text("".join(segments.splitlines(keepends=True)[:-1]))
    refused(lambda: AudioSource(load_cuts(hires / "feats.scp"), "none", hires).load(5), "no audio of utterance s2-u5")
    (hires / "segments").write_text(segments)
    write_wav(tmp_path / "n.wav", np.ones(500, np.int16), 16000)
    mixer = NoiseMixer(noise, 1.0, (5.0, 5.0), 8000)
    refused(lambda: mixer(np.ones(100), np.random.default_rng(0)), "n1", "16000 samples per second, not 8000")
    (tmp_path / "data" / "r0.wav").unlink()
    refused(run("data.features=on-the-fly"), "wav.scp", "r0", "no such audio file")


def test_a_model_says_the_rate_of_its_audio(corpus, tmp_path):
    """model.yaml has it of the header of the first recording; no command is run for it."""
    hires, ali, _ = corpus
    settings = load_settings(TrainSettings, None, [*SMALL, "optim.epochs=1"])
    train(settings, hires, ali, tmp_path / "known")
    assert read_yaml(tmp_path / "known" / "model.yaml")["sample_rate"] == 8000
    wav = hires / "wav.scp"
    perturbed = f"r0 sox -t wav {hires.parent}/data/r0.wav -t wav - speed 0.9 |\n"
    for text, rate in ((perturbed, 8000), ("r0 touch ran |\n", None), ("r0 gone.wav\n", None), ("", None)):
        wav.write_text(text)
        assert sample_rate_of(hires) == rate, text
    wav.unlink()
    assert sample_rate_of(hires) is None
    train(settings, hires, ali, tmp_path / "unknown")
    assert "sample_rate" not in read_yaml(tmp_path / "unknown" / "model.yaml")
