"""Utterances that come in parts: running means, repeated frames, and scores that are those of the whole."""
import re
import shutil

import numpy as np
import pytest
import torch
from builders import refused
from builders.exports import SIZES, make_model
from builders.training_data import make_data

from essence_kd.am.cmn import OnlineMean
from essence_kd.am.dataset import TrainingData
from essence_kd.am.forward import iter_logits, load_model
from essence_kd.am.models.acoustic_model import look_ahead
from essence_kd.am.settings import ForwardSettings, TrainSettings
from essence_kd.am.sources import FeatureSource, load_cuts
from essence_kd.am.stream import StreamingModel
from essence_kd.am.targets import attach_alignments
from essence_kd.am.trainer import train
from essence_kd.cli.main import main
from essence_kd.io.settings import dump_settings, load_settings, read_yaml
from essence_kd.io.tables import MatrixTable, read_matrices

C = 12
STREAM = ["tdnn", "tdnn_f", "cnn_tdnn", "tdnn_lstm", "conformer"]
ONLINE = {"cmn": "online", "online_cmn": {"prior": 20, "window": 60, "look_ahead": 4, "mean": [0.5] * 40}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("corpus"), utterances=5, num_pdfs=C)


def by_hand(feats, online):
    out = np.empty_like(feats)
    for t in range(len(feats)):
        end = min(t + 1 + online.look_ahead, len(feats))
        heard = feats[max(0, end - online.window):end].astype(np.float64)
        prior = min(online.prior, online.window - len(heard))
        out[t] = feats[t] - (heard.sum(0) + prior * np.array(online.mean)) / (len(heard) + prior)
    return out


@pytest.mark.parametrize("prior,window,ahead", [(200, 600, 0), (20, 50, 0), (0, 30, 7), (5, 8, 7), (50, 40, 3)])
def test_a_running_mean(prior, window, ahead):
    rng = np.random.default_rng(1)
    feats = rng.normal(3, 2, (173, 5)).astype(np.float32)
    online = OnlineMean(prior, window, ahead, (1.0, 2.0, 3.0, 4.0, 5.0))
    whole = online(feats)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, by_hand(feats, online), atol=1e-5)
    for size in (1, 7, 30, 173):
        stream = online.stream()
        parts = [stream.part(feats[t:t + size], t + size >= len(feats)) for t in range(0, len(feats), size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
        stream = online.stream()
        parts = [stream.part(feats[t:t + size]) for t in range(0, len(feats), size)]
        assert sum(map(len, parts)) == len(feats) - ahead
        parts.append(stream.part(feats[:0], last=True))
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def changed(folder, model_dir, **more):
    """A copy of a model with other entries in its model.yaml."""
    shutil.copytree(model_dir, folder)
    dump_settings({**read_yaml(folder / "model.yaml"), **more}, folder / "model.yaml")
    return folder


@pytest.mark.parametrize("arch", STREAM)
@pytest.mark.parametrize("more", [{"cmn": "none"}, {**ONLINE, "edge_rows": [9, 8]}], ids=["zeros", "online"])
def test_parts_are_scored_as_the_whole(tmp_path, arch, more):
    source = changed(tmp_path / "b", make_model(tmp_path / "a", arch, cmn="none"), **more)
    streaming = StreamingModel(source)
    model, cmn = streaming.model, streaming.cmn
    rng = np.random.default_rng(2)
    for frames in (1, 2, 3, 4, 10, 46, 300):
        feats = rng.normal(0, 2, (frames, 40)).astype(np.float32)
        ready = feats if cmn == "none" else cmn(feats)
        with torch.inference_mode():
            whole = model(torch.from_numpy(ready)[None], torch.tensor([frames]))[0].numpy()
        for size in (1, 7, 30, 1000):
            stream = streaming.start()
            parts = [stream.part(feats[t:t + size]) for t in range(0, frames, size)]
            seen = sum(map(len, parts))  # as many as what has come allows
            assert seen == max(0, -(-(frames - streaming.look_ahead) // 3))
            logits = np.concatenate([*parts, stream.part(feats[:0], last=True)])
            np.testing.assert_allclose(logits, whole, atol=1e-4)
    ahead = look_ahead(model.__class__(model.encoder, 40, C, 3))
    assert streaming.look_ahead == ahead + (0 if cmn == "none" else 4)


@pytest.mark.parametrize("arch", SIZES)
def test_repeated_frames_are_frames(tmp_path, arch):
    plain, _ = load_model(make_model(tmp_path / "a", arch))
    edged, _ = load_model(changed(tmp_path / "b", tmp_path / "a", edge_rows=[3, 2]))
    feats = torch.randn(1, 20, 40, generator=torch.Generator().manual_seed(1))
    longer = torch.cat([feats[:, :1].expand(-1, 9, -1), feats, feats[:, -1:].expand(-1, 1 + 6, -1)], dim=1)
    with torch.inference_mode():
        expected = plain(longer, torch.tensor([36]))[:, 3:10]
        torch.testing.assert_close(edged(feats, torch.tensor([20])), expected)
        both = torch.cat([torch.randn(1, 30, 40), torch.cat([feats, torch.full((1, 10, 40), 7.0)], 1)])
        torch.testing.assert_close(edged(both, torch.tensor([30, 20]))[1:, :7], expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A model of a running mean and repeated frames, as long a context as it has, with its training data."""
    folder = tmp_path_factory.mktemp("trained") / "m"
    settings = load_settings(TrainSettings, None, [
        "model.hidden=12", "model.dilations=[1,2]", "optim.epochs=1", "data.batch_frames=300", "data.cmn=online",
        "data.cmn_prior=30", "data.cmn_window=90", "data.edges=repeat", "data.left_context=12",
        "data.right_context=11"])
    train(settings, corpus.data, corpus.ali, folder)
    return folder


def test_a_trained_model_tells_its_mean(corpus, trained):
    about = read_yaml(trained / "model.yaml")
    assert about["cmn"] == "online" and about["edge_rows"] == [4, 4]
    said = about["online_cmn"]
    assert (said["prior"], said["window"], said["look_ahead"]) == (30, 90, 0)
    table = MatrixTable(str(corpus.data / "feats.scp"))
    feats = [table[utt] for utt in corpus.frames]
    assert len(said["mean"]) == feats[0].shape[1]
    assert np.all(np.abs(said["mean"] - np.concatenate(feats).mean(0)) < np.concatenate(feats).std(0))
    assert "online_cmn" in load_model(trained)[1]


def training_data(corpus, cmn, chunk_frames, context):
    """Training data whose chunks have repeated frames."""
    cuts, hard, _ = attach_alignments(load_cuts(corpus.data / "feats.scp"), corpus.ali, C, 3)
    return TrainingData(FeatureSource(cuts, cmn), hard, C, 3, chunk_frames=chunk_frames, left_context=context,
                        right_context=context, repeat_edges=True)


def test_chunks_of_training_have_repeated_frames(corpus):
    data = training_data(corpus, "none", 60, 9)
    utt = 0
    feats, total = data.features(utt), int(data.row_start[1])
    numbers = np.flatnonzero(data.chunks[:, 0] == utt)
    batch = data.batch(numbers)
    for row, (_, first, last) in enumerate(data.chunks[numbers]):
        assert batch.lens[row] == (last - first + 6) * 3  # context of 9 frames at both sides
        index = np.clip(np.arange(3 * (first - 3), 3 * (last + 3)), 0, len(feats) - 1)
        np.testing.assert_array_equal(batch.feats[row, :batch.lens[row]].numpy(), feats[index])
        hard = batch.hard[row].numpy()
        np.testing.assert_array_equal(hard[3:3 + last - first], data.labels(utt)[first:last])
        assert (hard >= 0).sum() == last - first
    assert data.chunks[numbers[-1], 2] == total


def test_training_sees_what_forward_sees(corpus, trained):
    """Of an utterance that is one chunk, the logits of training are those of forward."""
    model, about = load_model(trained)
    online = OnlineMean(30, 90, 0, tuple(about["online_cmn"]["mean"]))
    data = training_data(corpus, online, 3000, 12)
    logits = dict(iter_logits(trained, corpus.data / "feats.scp"))
    model.edge_rows = (0, 0)
    for i, (utt, _, _) in enumerate(data.chunks):
        batch = data.batch([i])
        with torch.inference_mode():
            mine = model(batch.feats, batch.lens, select=batch.hard >= 0)
        np.testing.assert_allclose(mine.numpy(), logits[data.ids[utt]], atol=1e-4)


def test_forward_in_chunks(corpus, trained, tmp_path, capsys):
    for name, options in (("whole", []), ("parts", ["--stream", "--chunk-ms", "70"])):
        assert main(["forward", *options, str(trained), str(corpus.data), f"ark:{tmp_path}/{name}.ark"]) == 0
    said = capsys.readouterr().err
    chunks = sum(-(-frames // 7) for frames in corpus.frames.values())
    assert f"; {chunks} chunks of 70 ms" in said and "a row waits for 110 ms of audio" in said
    assert main(["forward", "--stream", "--also", str(corpus.data), f"ark:{tmp_path}/more.ark", str(trained),
                 str(corpus.data), f"ark:{tmp_path}/twice.ark"]) == 0
    told = re.findall("; ([0-9]+) chunks of 300 ms", capsys.readouterr().err)
    assert len(told) == 2 and told[0] == told[1]  # each set tells its own
    whole = dict(read_matrices(f"ark:{tmp_path}/whole.ark"))
    parts = dict(read_matrices(f"ark:{tmp_path}/parts.ark"))
    assert list(whole) == list(parts) == list(corpus.frames)
    for utt, scores in whole.items():
        np.testing.assert_allclose(parts[utt], scores, atol=1e-4)
    assert main(["forward", "--stream", "--chunk-ms", "3", str(trained), str(corpus.data), "ark:-"]) == 1
    assert "--chunk-ms 3: must be at least 10" in capsys.readouterr().err
    assert ForwardSettings.stream is False


def test_what_cannot_stream(tmp_path, trained):
    for arch, cmn, words in (("tdnn", "utterance", ["mean of the whole utterance", "student_tdnn_online"]),
                             ("tdnn", "speaker", ["mean of the whole speaker", "data.cmn: online"]),
                             ("blstm", "none", ["blstm waits for the end of the utterance", "tdnn_lstm"])):
        model = make_model(tmp_path / f"{arch}_{cmn}", arch, cmn=cmn)
        refused(lambda model=model: StreamingModel(model), model, *words)
    bad = [({"online_cmn": {}}, "prior, window, look_ahead and mean"), ({"edge_rows": [1]}, "edge_rows is [1]"),
           ({"edge_rows": [1, "x"]}, "edge_rows"),
           ({"online_cmn": {**ONLINE["online_cmn"], "mean": [1.0]}}, "a number per feature bin"),
           ({"online_cmn": {**ONLINE["online_cmn"], "window": 0}}, "window"), ({"edge_rows": 3}, "edge_rows is 3"),
           ({"online_cmn": {**ONLINE["online_cmn"], "mean": [float("nan")] * 40}}, "mean")]
    for number, (more, word) in enumerate(bad):
        model = changed(tmp_path / f"bad{number}", make_model(tmp_path / f"x{number}", "tdnn", cmn="online"),
                        **{**ONLINE, **more})
        refused(lambda model=model: StreamingModel(model), model / "model.yaml", word)


def test_settings_of_a_running_mean(corpus, tmp_path):
    for setting, word in (("data.cmn_window=0", "cmn_window"), ("data.cmn_prior=-1", "cmn_prior"),
                          ("data.cmn_look_ahead=600", "above data.cmn_look_ahead"),
                          ("data.edges=ones", "zeros or repeat")):
        refused(lambda setting=setting: train(load_settings(TrainSettings, None, [setting]), corpus.data, corpus.ali,
                                              tmp_path / "m"), word)


def test_nothing_comes_after_the_end(trained):
    stream = StreamingModel(trained).start()
    assert stream.part(np.zeros((0, stream._of.model.feat_dim), np.float32), last=True).shape == (0, C)
    with pytest.raises(ValueError, match="has ended"):
        stream.part(np.zeros((1, stream._of.model.feat_dim), np.float32))
