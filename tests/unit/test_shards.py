"""Training data as lhotse Shar: what is written comes back, and trains."""
import json

import numpy as np
import pytest
from builders import refused
from builders.training_data import make_data
from builders.training_runs import SMALL, killed, progress, same, state, together

from essence_kd.am.dataset import TrainingData
from essence_kd.am.shards import ShardSource, ShardTargets, is_sharded, read_index, write_shards
from essence_kd.am.settings import TrainSettings
from essence_kd.am.trainer import train
from essence_kd.cli.main import main
from essence_kd.io.settings import load_settings
from essence_kd.io.tables import MatrixTable

C = 12
SETTINGS = [*SMALL, "data.shards_at_once=2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("corpus"), utterances=10, num_pdfs=C, noise=0.6)


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "s"
    assert main(["shard", "--soft", str(corpus.post(4)), "--shard-size", "5", "--heldout", "0.2", str(corpus.data),
                 str(corpus.ali), str(out)]) == 0
    return out


def settings(*more):
    return load_settings(TrainSettings, None, [*SETTINGS, *more])


def data_of(shards, processes=1, **more):
    source = ShardSource(shards, "train", "none", keep=2)
    return TrainingData(source, None, C, 3, chunk_frames=60, left_context=9, right_context=9, processes=processes,
                        soft=ShardTargets(source, False), **more)


def test_what_goes_in_comes_out(corpus, shards):
    index = read_index(shards)
    assert index["utterances"] == 30 and index["num_pdfs"] == C and index["frames"] == sum(corpus.frames.values())
    assert sorted(p.name for p in shards.iterdir()) == ["heldout", "num_pdfs", "priors.txt", "shards.json", "train",
                                                        "tree.txt", "utterances"]
    feats = MatrixTable(str(corpus.data / "feats.scp"))
    seen = []
    for name, count in (("train", 24), ("heldout", 6)):
        source = ShardSource(shards, name, "none", keep=2)
        assert len(source) == count and source.feat_dim == 8
        targets = ShardTargets(source, False)
        for i in (*range(count), 0):  # back to a shard that was let go
            utt = source.ids[i]
            np.testing.assert_array_equal(source.load(i), feats[utt])
            np.testing.assert_array_equal(source.labels(i, 3), corpus.alignment[utt][::3])
            ids, probs = targets.read(utt, len(source.labels(i, 3)), C)
            np.testing.assert_allclose(probs, np.sort(corpus.probs[utt], axis=1)[:, :-5:-1], rtol=1e-6)
            np.testing.assert_allclose(np.take_along_axis(corpus.probs[utt], ids.astype(int), 1), probs, rtol=1e-6)
            assert len(source._kept) <= 2
        seen += source.ids
    assert sorted(seen) == sorted(corpus.frames)
    assert {u[-3:] for u in source.ids}.isdisjoint(u[-3:] for u in seen[:24])  # held out with all speeds


def test_lhotse_itself_reads_them(corpus, shards):
    from lhotse import CutSet

    cuts = list(CutSet.from_shar(in_dir=shards / "train"))
    assert len(cuts) == 24
    np.testing.assert_array_equal(cuts[3].load_alignment(), corpus.alignment[cuts[3].id])


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_process_reads_its_own_shards_and_every_chunk_is_there_once(shards, processes):
    data = data_of(shards, processes)
    plan = data.plan(600, 1, 0)
    assert [p.tolist() for p in plan] == [p.tolist() for p in data_of(shards, processes).plan(600, 1, 0)]
    assert [p.tolist() for p in plan] != [p.tolist() for p in data.plan(600, 1, 1)]
    chunks = np.concatenate(plan)
    assert sorted(chunks[chunks >= 0]) == list(range(len(data)))
    assert sum(data.rows(p) for p in plan) == data.row_start[-1]
    owner = {}
    for rank in range(processes):
        mine = data_of(shards, processes)
        read = []
        real = mine.source._read
        mine.source._read = lambda shard: read.append(shard) or real(shard)
        for number, p in enumerate(plan):
            batch = mine.batch(p, share=(rank, processes))
            assert int((batch.hard >= 0).sum()) == data.rows(p[rank::processes]), number
        assert len(read) == len(set(read)), "a shard was read twice in an epoch"
        for shard in read:
            assert owner.setdefault(shard, rank) == rank
    assert sorted(owner) == list(range(5))


def test_it_trains_and_resumes_as_from_archives(corpus, shards, tmp_path):
    run = settings("optim.epochs=6", "data.workers=0")
    info = train(run, shards, shards, tmp_path / "memory", soft=shards)
    assert info["dev_frame_acc"] > 0.25 and info["utterances"] == 24
    assert (tmp_path / "memory" / "priors.txt").read_text() == (corpus.ali / "priors.txt").read_text()
    run = settings("optim.epochs=6", "data.workers=0", "data.preload_mb=0", "checkpoint.every_steps=5")
    assert killed(lambda: train(run, shards, shards, tmp_path / "disk", soft=shards), 23)
    train(run, shards, shards, tmp_path / "disk", soft=shards)
    assert same(state(tmp_path / "disk"), state(tmp_path / "memory"))
    plain = train(settings("optim.epochs=6"), corpus.data, corpus.ali, tmp_path / "plain", soft=corpus.post(4))
    assert plain["dev_loss"] == pytest.approx(info["dev_loss"], rel=0.1)  # the same data in another order


def test_two_processes_train_from_shards(shards, tmp_path):
    words = [w for item in SETTINGS for w in ("--set", item)] + ["--set", "model.dropout=0", "--soft"]
    words = ["train", *words, *[str(shards)] * 3, str(tmp_path / "m")]
    assert together(2, lambda: main(words), tmp_path / "err") == [0, 0], (tmp_path / "err").read_text()
    lines = progress(tmp_path / "m")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] and lines[-1]["dev_loss"] > 0
    assert "6 for the dev loss" in (tmp_path / "m" / "train.log").read_text()


def test_dense_targets_and_none(corpus, tmp_path):
    write_shards(corpus.data, corpus.ali, tmp_path / "d", soft=corpus.dense(), soft_kind="dense", heldout=0)
    source = ShardSource(tmp_path / "d", "train", "none", 1)
    np.testing.assert_array_equal(source.soft(7), corpus.probs[source.ids[7]])
    info = train(settings("optim.epochs=1"), tmp_path / "d", tmp_path / "d", tmp_path / "m", soft=tmp_path / "d")
    assert info["dev_loss"] is None
    write_shards(corpus.data, corpus.ali, tmp_path / "h")
    info = train(settings("optim.epochs=1"), tmp_path / "h", tmp_path / "h", tmp_path / "n", dev_data=corpus.data,
                 dev_ali=corpus.ali)
    assert info["dev_loss"] > 0 and progress(tmp_path / "n")[0]["soft_loss"] is None
    refused(lambda: train(settings(), tmp_path / "h", tmp_path / "h", tmp_path / "x", soft=tmp_path / "h"),
            "essence shard --soft")


def test_shards_that_do_not_fit_or_are_broken(corpus, shards, tmp_path):
    def begin(folder=shards, ali=None, soft=None, *more):
        return lambda: train(settings("data.preload_mb=0", *more), folder, ali or folder, tmp_path / "m", soft=soft)

    refused(begin(ali=corpus.ali), "name them as ALI_DIR too")
    refused(begin(soft=corpus.post(4)), "soft targets of shards are in them")
    refused(begin(shards, None, None, "data.cmn=speaker"), "speaker", "none, utterance and online")
    refused(begin(shards, None, None, "data.features=on-the-fly"), "precomputed")
    refused(begin(shards, None, None, "frame_subsampling_factor=4"), "frame_subsampling_factor differs", "3", "4")
    refused(lambda: write_shards(corpus.data, corpus.ali, shards), "not empty")
    refused(lambda: write_shards(corpus.data, corpus.ali, tmp_path / "o", shard_size=0), "at least 1")
    refused(lambda: write_shards(corpus.data, corpus.ali, tmp_path / "o", soft="none.scp"), "none.scp", "dump-post")
    refused(lambda: data_of(shards, 6).plan(600, 1, 0), "5 shards for 6 processes", "--shard-size")
    copy = tmp_path / "copy"
    write_shards(corpus.data, corpus.ali, copy, shard_size=10)
    tar = copy / "train" / "features.000001.tar"
    whole = tar.read_bytes()
    for content in (whole[:len(whole) // 2], b"", (copy / "train" / "features.000000.tar").read_bytes()):
        tar.write_bytes(content)
        refused(lambda: [ShardSource(copy, "train", "none", 1).load(i) for i in range(20)], "shard 000001",
                "make the shards again")
    text = (copy / "utterances").read_text()
    (copy / "utterances").write_text(text.replace(" 0 ", " 1 "))
    refused(begin(copy), "utterances", "is not the one")
    index = json.loads((copy / "shards.json").read_text())
    (copy / "shards.json").write_text(json.dumps(index)[:40])
    refused(begin(copy), "not an index of shards")
    (copy / "shards.json").unlink()
    refused(begin(copy), "shards without shards.json", "did not come to its end")
    assert is_sharded(shards) and not is_sharded(corpus.data)
