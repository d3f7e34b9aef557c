"""Scores of a trained model: order, independence of batching, priors, and models that do not fit."""
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from builders.training_data import make_data

from essence_kd.am import forward
from essence_kd.am.forward import iter_logits, load_model, scores
from essence_kd.am.settings import TrainSettings
from essence_kd.am.trainer import train
from essence_kd.cli.main import main
from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import sha256_file
from essence_kd.io.settings import load_settings
from essence_kd.io.tables import MatrixTable, read_matrices

C = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("corpus"), utterances=5, num_pdfs=C)


@pytest.fixture(scope="module")
def models(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    sizes = {"tdnn": ["model.hidden=12"], "tdnn_lstm": ["model.hidden=12", "model.cells=10"],
             "blstm": ["model.cells=8"], "tdnn_f": ["model.hidden=12", "model.bottleneck=6"],
             "conformer": ["model.hidden=8", "model.heads=2", "model.feed_forward=12", "model.blocks=2"],
             "cnn_tdnn": ["model.channels=[4]", "model.freq_strides=[2]", "model.hidden=12", "model.bottleneck=6"]}
    for arch, size in sizes.items():
        settings = load_settings(TrainSettings, None, [f"arch={arch}", *size, "optim.epochs=1",
                                                       "data.batch_frames=300"])
        train(settings, corpus.data, corpus.ali, root / arch)
    return root


@pytest.fixture(params=["tdnn", "tdnn_f", "cnn_tdnn", "tdnn_lstm", "blstm", "conformer"])
def model_dir(models, request):
    return models / request.param


def test_every_utterance_in_order_whatever_the_batches(corpus, model_dir, monkeypatch):
    alone = dict(iter_logits(model_dir, corpus.data / "feats.scp", batch_frames=1))
    together = list(iter_logits(model_dir, corpus.data / "feats.scp", batch_frames=10 ** 6, threads=1))
    assert [utt for utt, _ in together] == list(corpus.frames) == list(alone)
    for utt, logits in together:
        assert logits.dtype == np.float32 and logits.shape == (-(-corpus.frames[utt] // 3), C)
        np.testing.assert_allclose(logits, alone[utt], atol=1e-4)
    monkeypatch.setattr(forward, "WINDOW_BYTES", 1)  # a window a batch
    few = list(iter_logits(model_dir, corpus.data / "feats.scp", batch_frames=300))
    assert [utt for utt, _ in few] == list(corpus.frames)
    for utt, logits in few:
        np.testing.assert_allclose(logits, alone[utt], atol=1e-4)


def test_logits_are_the_models_on_normalised_features(corpus, models):
    model, settings = load_model(models / "blstm")
    assert settings["arch"] == "blstm" and settings["num_pdfs"] == C and not model.training
    utt, logits = next(iter_logits(models / "blstm", corpus.data / "feats.scp"))
    feats = MatrixTable(str(corpus.data / "feats.scp"))[utt]
    x = torch.from_numpy(feats - feats.mean(axis=0))[None]
    with torch.no_grad():
        np.testing.assert_allclose(model(x, torch.tensor([len(feats)]))[0].numpy(), logits, atol=1e-5)


def run(*words):
    return main(["forward", *map(str, words)])


def test_a_clock_that_is_set_back_spoils_no_work(corpus, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("time.time", lambda now=itertools.count(1e9, -60.0): next(now))
    assert run(models / "tdnn", corpus.data, f"ark:{tmp_path}/a.ark") == 0
    assert re.search(r" s of audio in \d+\.\d s: \d+ x real time", capsys.readouterr().err)


def test_the_verb_writes_likelihoods(corpus, models, tmp_path, capsys):
    for output in ("loglike", "logprob", "prob", "logit"):
        assert run("--output", output, "--prior-scale", "0.5", models / "tdnn", corpus.data,
                   f"ark:{tmp_path}/{output}.ark") == 0
        said = capsys.readouterr().err
        assert "15 utterances" in said and "x real time" in said
        about = json.loads((tmp_path / f"{output}.json").read_text())
        assert (about["kind"], about["output"], about["num_pdfs"], about["frame_shift_ms"]) == ("scores", output, C, 30)
        assert about["num_utts"] == 15 and about["tree_hash"] == sha256_file(corpus.ali / "tree.txt")
    tables = {o: dict(read_matrices(f"ark:{tmp_path}/{o}.ark")) for o in ("loglike", "logprob", "prob", "logit")}
    priors = np.array([float(x) for x in (corpus.ali / "priors.txt").read_text().split()])
    assert list(tables["logit"]) == list(corpus.frames)
    for utt in corpus.frames:
        prob = torch.softmax(torch.from_numpy(tables["logit"][utt]).double(), 1).numpy()
        np.testing.assert_allclose(tables["prob"][utt], prob, atol=1e-6)
        np.testing.assert_allclose(tables["logprob"][utt], np.log(prob), atol=1e-4)
        np.testing.assert_allclose(tables["loglike"][utt], np.log(prob) - 0.5 * np.log(priors), atol=1e-4)


def test_priors_have_a_floor_and_unseen_pdfs_are_not_lifted(tmp_path):
    (tmp_path / "priors.txt").write_text("0.5\n0.4999999\n0.0000001\n0\n")
    got = read_log_priors(tmp_path / "priors.txt", 4, floor=1e-4)
    np.testing.assert_allclose(got, np.log([0.5, 0.5, 1e-4, 1.0]), rtol=1e-5, atol=1e-6)
    logits = np.zeros((1, 4), np.float32)
    row = scores(logits, "loglike", got)[0]
    assert row.argmin() == 3 and row.argmax() == 2
    with pytest.raises(UserError, match="4 priors.*5 pdfs"):
        read_log_priors(tmp_path / "priors.txt", 5)
    for text, word in (("a b", "not one number per line"), ("0 0", "not all 0"), ("-1 2", "not negative"),
                       ("nan 1", "finite")):
        (tmp_path / "priors.txt").write_text(text)
        with pytest.raises(UserError, match=word):
            read_log_priors(tmp_path / "priors.txt", 2)
    with pytest.raises(UserError, match="no such file"):
        read_log_priors(tmp_path / "none", 2)


def test_scores_of_extreme_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0]], np.float32)
    assert np.isfinite(scores(logits, "loglike", np.zeros(3, np.float32))).all()
    np.testing.assert_allclose(scores(logits, "prob"), [[1, 0, 0]])


def test_an_ensemble_that_answers_no_number_is_an_error(corpus, models, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(models / "tdnn", broken)
    state = torch.load(broken / "final.pt", weights_only=True)
    torch.save({name: value * float("nan") if name == "output.bias" else value for name, value in state.items()},
               broken / "final.pt")
    assert main(["forward", str(models / "tdnn"), str(broken), str(corpus.data), f"ark:{tmp_path}/scores.ark"]) == 1
    assert f"utterance {next(iter(corpus.frames))}: frame 0: holds a NaN" in capsys.readouterr().err
    assert not (tmp_path / "scores.ark").exists()


def test_models_and_data_that_do_not_fit(corpus, models, tmp_path, capsys):
    def broken(name, change):
        place = tmp_path / name
        place.mkdir()
        for file in ("final.pt", "model.yaml", "priors.txt"):
            (place / file).write_bytes((models / "tdnn" / file).read_bytes())
        change(place)
        with pytest.raises(UserError) as error:
            list(iter_logits(place, corpus.data / "feats.scp"))
        assert "\n" not in str(error.value)
        return str(error.value)

    yaml = (models / "tdnn" / "model.yaml").read_text()
    assert "final.pt: there is no such model" in broken("no_model", lambda d: (d / "final.pt").unlink())
    assert "truncated" in broken("cut", lambda d: (d / "final.pt").write_bytes((d / "final.pt").read_bytes()[:900]))
    other = broken("other", lambda d: (d / "final.pt").write_bytes((models / "blstm" / "final.pt").read_bytes()))
    assert "final.pt: not the parameters of" in other
    size = broken("size", lambda d: (d / "model.yaml").write_text(yaml.replace("hidden: 12", "hidden: 13")))
    assert "final.pt: not the parameters of" in size and "13" in size
    assert "model.yaml: no such file" in broken("no_yaml", lambda d: (d / "model.yaml").unlink())
    half, other = "arch: tdnn\nmodel: {}\nfeat_dim: 8\n", yaml.replace("arch: tdnn", "arch: x")
    assert "missing key 'num_pdfs'" in broken("half", lambda d: (d / "model.yaml").write_text(half))
    assert "unknown architecture" in broken("arch", lambda d: (d / "model.yaml").write_text(other))
    for key, value in (("num_pdfs", "many"), ("model", "3"), ("cmn", "[1]")):
        lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in yaml.splitlines()
                 if key != "model" or not line.startswith("  ")]
        assert f"model.yaml: {key} is " in broken(f"{key}_", lambda d: (d / "model.yaml").write_text("\n".join(lines)))

    (tmp_path / "half" / "model.yaml").write_text("")
    assert run(tmp_path / "half", corpus.data, "ark:/dev/null") == 1
    assert "half/model.yaml: missing key 'num_pdfs'" in capsys.readouterr().err

    for name, message in (("gpu", "--device gpu: no such device"),
                          ("cuda:99", "--device cuda:99: there is no such GPU")):
        with pytest.raises(UserError, match=message):
            next(iter_logits(models / "tdnn", corpus.data / "feats.scp", device=name))
        with pytest.raises(UserError, match=message):
            train(TrainSettings(), corpus.data, corpus.ali, tmp_path / "nowhere", device=name)
    assert len(list(iter_logits(models / "tdnn", corpus.data / "feats.scp", threads=-1))) == len(corpus.frames)

    wide = make_data(tmp_path / "wide", utterances=1, num_pdfs=C, bins=5)
    with pytest.raises(UserError, match="5 bins.*takes 8"):
        list(iter_logits(models / "tdnn", wide.data / "feats.scp"))
    assert run(models / "tdnn", tmp_path / "nothing", "ark:/dev/null") == 1
    assert "nothing/feats.scp" in capsys.readouterr().err
