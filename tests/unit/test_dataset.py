"""Training data: cuts, guards, chunks, batches, augmentation, the held-out share."""
import multiprocessing
import os
import tempfile

import kaldi_native_io
import numpy as np
import pytest
import torch
from builders import refused
from builders.training_data import make_data

from essence_kd.am import dataset
from essence_kd.am.augment import spec_augment
from essence_kd.am.dataset import IGNORE, TrainingData, epoch_batches
from essence_kd.am.settings import AugmentSettings
from essence_kd.am.sources import FeatureSource, load_cuts, split_heldout
from essence_kd.am.targets import DenseTargets, SparseTargets, attach_alignments, read_count
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import PosteriorWriter
from essence_kd.io.tables import IntVectorWriter, MatrixTable, MatrixWriter

C = 12


@pytest.fixture
def corpus(tmp_path):
    return make_data(tmp_path, utterances=6, num_pdfs=C)


def training_data(corpus, soft=None, preload_mb=100, cmn="none", chunk_frames=60, context=9):
    cuts, hard, _ = attach_alignments(load_cuts(corpus.data / "feats.scp"), corpus.ali, C, 3)
    return TrainingData(FeatureSource(cuts, cmn), hard, C, 3, chunk_frames=chunk_frames, left_context=context,
                        right_context=context, soft=soft, preload_mb=preload_mb)


def stream_of(data, batch_frames=400, **more):
    plan = data.plan(batch_frames, 1, 1)
    return epoch_batches(data, plan, seed=1, epoch=1, augment=AugmentSettings(), **{"workers": 0, **more})


def batches_of(data, batch_frames=400, **more):
    return list(stream_of(data, batch_frames, **more))


def equal(a, b):
    names = [n for n in ("feats", "lens", "hard", "soft_ids", "soft_probs", "keep") if getattr(a, n) is not None]
    return a.ids == b.ids and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_cuts_know_frames_speaker_and_original_utterance(corpus):
    cuts = list(load_cuts(corpus.data / "feats.scp"))
    assert [c.id for c in cuts] == list(corpus.frames)
    assert [c.features.num_frames for c in cuts] == list(corpus.frames.values())
    assert cuts[1].supervisions[0].speaker == corpus.speaker[cuts[1].id]
    assert cuts[0].uniq == cuts[1].uniq == cuts[2].uniq == "u00"
    table = MatrixTable(str(corpus.data / "feats.scp"))
    np.testing.assert_array_equal(cuts[4].load_features(), table[cuts[4].id])
    some = load_cuts(corpus.data / "feats.scp").take([4, 1])
    assert len(some) == 2 and some[0].to_dict() == cuts[4].to_dict() and some[1].to_dict() == cuts[1].to_dict()


def test_cuts_of_ranges_and_compressed_matrices(tmp_path, corpus):
    table = MatrixTable(str(corpus.data / "feats.scp"))
    utt = next(iter(corpus.frames))
    place = dict(line.split() for line in (corpus.data / "feats.scp").read_text().splitlines())[utt]
    (tmp_path / "feats.scp").write_text(f"a {place}[3:9]\n")
    source = FeatureSource(load_cuts(tmp_path / "feats.scp"), "none")
    assert source.cuts[0].features.num_frames == 7
    np.testing.assert_array_equal(source.load(0), table[utt][3:10])
    with kaldi_native_io.CompressedMatrixWriter(f"ark,scp:{tmp_path}/c.ark,{tmp_path}/c.scp") as writer:
        writer.write(utt, table[utt], kaldi_native_io.CompressionMethod.kSpeechFeature)
    source = FeatureSource(load_cuts(tmp_path / "c.scp"), "none")
    assert source.cuts[0].features.num_frames == corpus.frames[utt]
    np.testing.assert_array_equal(source.load(0), source.cuts[0].load_features())  # of the same bits by either reader


@pytest.mark.parametrize("cmn", ["none", "utterance", "speaker"])
def test_mean_subtraction(corpus, cmn):
    source = FeatureSource(load_cuts(corpus.data / "feats.scp"), cmn)
    table = MatrixTable(str(corpus.data / "feats.scp"))
    cut = source.cuts[2]
    mean = 0.0
    if cmn == "utterance":
        mean = table[cut.id].mean(axis=0)
    if cmn == "speaker":
        same = [u for u in corpus.frames if corpus.speaker[u] == cut.supervisions[0].speaker]
        assert 1 < len(same) < len(corpus.frames)
        mean = np.concatenate([table[u] for u in same]).mean(axis=0)
    np.testing.assert_allclose(source.load(2), table[cut.id] - mean, atol=1e-5)


def test_every_row_is_trained_once_an_epoch_with_its_own_label(corpus):
    data = training_data(corpus)
    seen = {utt: np.full(-(-t // 3), -1) for utt, t in corpus.frames.items()}
    table = MatrixTable(str(corpus.data / "feats.scp"))
    for batch in (data.batch(plan) for plan in data.plan(400, seed=1, epoch=0)):
        assert batch.feats.shape[0] * batch.feats.shape[1] <= 400 + 3 * len(batch.ids)
        assert batch.hard.shape == (len(batch.ids), -(-batch.feats.shape[1] // 3))
        for b, utt in enumerate(batch.ids):
            feats = batch.feats[b, :batch.lens[b]].numpy()
            assert batch.feats[b, batch.lens[b]:].abs().sum() == 0
            # the first feature of these data counts frames: it tells where a chunk comes from
            begin = int(feats[0, 0])
            assert begin % 3 == 0
            np.testing.assert_array_equal(feats, table[utt][begin:begin + len(feats)])
            for r in (batch.hard[b] != IGNORE).nonzero()[:, 0].tolist():
                row = begin // 3 + r
                assert seen[utt][row] == -1, "a row twice"
                seen[utt][row] = batch.hard[b, r]
                # real context on both sides wherever the utterance has it
                assert begin <= max(0, 3 * row - 9) and begin + len(feats) >= min(corpus.frames[utt], 3 * row + 10)
    for utt, labels in seen.items():
        np.testing.assert_array_equal(labels, corpus.alignment[utt][::3])


def test_order_depends_on_seed_and_epoch_alone(corpus):
    plain = training_data(corpus)
    soft = training_data(corpus, SparseTargets(corpus.post(5)))

    def flat(plan):
        return [p.tolist() for p in plan]

    assert flat(plain.plan(400, 3, 2)) == flat(soft.plan(400, 3, 2))
    assert flat(plain.plan(400, 3, 2)) != flat(plain.plan(400, 3, 3))
    assert flat(plain.plan(400, 3, 2)) != flat(plain.plan(400, 4, 2))
    assert sorted(sum(flat(plain.plan(400, 3, 2)), [])) == list(range(len(plain)))
    a, b = batches_of(plain), batches_of(soft)
    assert all(torch.equal(x.keep, y.keep) and torch.equal(x.hard, y.hard) and x.ids == y.ids for x, y in zip(a, b))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_on_disk_gives_the_batches_of_data_in_memory(corpus, workers):
    def batches(preload_mb):
        data = training_data(corpus, SparseTargets(corpus.post(5)), preload_mb, cmn="speaker")
        assert data.in_memory == (preload_mb > 0)
        return batches_of(data, 600, workers=workers)

    memory, disk = batches(100), batches(0)
    assert len(memory) == len(disk) > 1
    assert all(equal(a, b) for a, b in zip(memory, disk))


@pytest.mark.parametrize("preload_mb", [0, 100])
def test_an_epoch_goes_on_from_any_batch(corpus, preload_mb):
    data = training_data(corpus, SparseTargets(corpus.post(5)), preload_mb)
    whole = batches_of(data, 300)
    for first in (0, 1, len(whole) - 1, len(whole)):
        rest = batches_of(data, 300, workers=1, first=first)
        assert len(rest) == len(whole) - first and all(equal(a, b) for a, b in zip(whole[first:], rest))


@pytest.mark.parametrize("world", [2, 3, 40])
def test_processes_share_every_batch_and_read_nothing_else(corpus, world):
    data = training_data(corpus, SparseTargets(corpus.post(5)), preload_mb=0)
    whole = batches_of(data, 600)
    read = []
    load = data.source.load
    data.source.load = lambda i: read.append(data.ids[i]) or load(i)
    seen = [[] for _ in whole]
    for rank in range(world):
        for number, part in enumerate(stream_of(data, 600, share=(rank, world))):
            assert read == part.ids
            read.clear()
            together = whole[number]
            if not part.ids:
                assert (part.hard == IGNORE).all() and part.soft_probs.sum() == 0
            for b, utt in enumerate(part.ids):
                at = rank + b * world
                seen[number].append(at)
                frames, rows = int(part.lens[b]), part.hard.shape[1]
                assert utt == together.ids[at] and frames == together.lens[at]
                for name, size in (("feats", frames), ("keep", frames), ("hard", rows), ("soft_ids", rows),
                                   ("soft_probs", rows)):
                    assert torch.equal(getattr(part, name)[b, :size], getattr(together, name)[at, :size]), name
    assert [sorted(s) for s in seen] == [list(range(len(b.ids))) for b in whole]


def test_lhotse_can_make_the_batches(corpus):
    data = training_data(corpus)
    data.sampler = "bucketing"

    def flat(epoch, seed=1):
        return [p.tolist() for p in data.plan(400, seed, epoch)]

    plan = flat(0)
    assert sorted(sum(plan, [])) == list(range(len(data)))
    assert plan == flat(0) and plan != flat(1) and plan != flat(0, seed=2)
    lengths = data.chunks[:, 2] - data.chunks[:, 1]
    assert len(plan) > 3 and max(lengths[p].sum() for p in plan) * 3 <= 400


def test_a_worker_that_fails_or_dies_is_one_line(corpus):
    data = training_data(corpus, preload_mb=0)

    def fail(i):
        raise UserError("utterance x: NaN")

    data.source.load = fail
    refused(lambda: batches_of(data, workers=1), "utterance x: NaN")
    data.source.load = lambda i: os._exit(3)
    refused(lambda: batches_of(data, workers=1), "a process that reads batches died", "data.workers=0")


def test_a_temporary_folder_whose_path_is_too_long_for_sockets(corpus, tmp_path, monkeypatch):
    """Workers hand over what lies in shared memory by a socket there."""
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    data = training_data(corpus, preload_mb=0)
    assert len(batches_of(data, workers=1)) == len(batches_of(data))


def no_room(*_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


@pytest.mark.parametrize("pin", [False, True])
def test_batches_come_without_shared_memory(corpus, monkeypatch, caplog, pin):
    """A container's /dev/shm may be full (batches come through pipes) or closed (nor are there semaphores)."""
    data, want = training_data(corpus, preload_mb=0), batches_of(training_data(corpus, preload_mb=0))
    dataset._warn_once.cache_clear()
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    monkeypatch.setattr(dataset.Batch, "pin_memory", lambda batch: batch.each(lambda tensor: tensor))  # takes a GPU
    got = batches_of(data, workers=1, pin=pin)
    assert len(got) == len(want) and all(equal(a, b) for a, b in zip(got, want))
    assert [r.message.split(" for ")[0] for r in caplog.records] == ["/dev/shm is too small"]
    assert "data.workers=0" in caplog.text and "--shm-size" in caplog.text
    caplog.clear()
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__",
                        lambda *_, **__: os.open("/proc/shm", os.O_CREAT))
    got = batches_of(data, workers=2)
    assert len(got) == len(want) and all(equal(a, b) for a, b in zip(got, want))
    assert len(caplog.records) == 1 and "/dev/shm cannot be used" in caplog.text and "workers=0" in caplog.text


def test_soft_targets_lie_beside_their_hard_labels(corpus):
    sparse = training_data(corpus, SparseTargets(corpus.post(C)))
    dense = training_data(corpus, DenseTargets(corpus.dense()))
    for plan in sparse.plan(500, 1, 0):
        a, b = sparse.batch(plan), dense.batch(plan)
        assert a.soft_probs[a.hard == IGNORE].sum() == 0 and b.soft_probs[b.hard == IGNORE].sum() == 0
        full = torch.zeros_like(b.soft_probs).scatter_add_(2, a.soft_ids, a.soft_probs)
        torch.testing.assert_close(full, b.soft_probs)
        valid = a.hard != IGNORE
        # these data's targets have their largest probability at the hard label
        assert torch.equal(b.soft_probs[valid].argmax(1), a.hard[valid])


def test_a_batch_moves_as_a_whole(corpus):
    data = training_data(corpus, soft=SparseTargets(corpus.post(3)))
    batch = data.batch(data.plan(300, 1, 0)[0])
    moved = batch.to("meta")
    for name, value in vars(batch).items():
        there = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert there.device.type == "meta" and there.shape == value.shape and there.dtype == value.dtype
        else:
            assert there == value
    assert batch.keep is None and batch.soft_ids is not None and batch.feats.device.type == "cpu"


def test_ragged_targets_are_padded(tmp_path, corpus):
    with PosteriorWriter(f"ark,scp:{tmp_path}/r.ark,{tmp_path}/r.scp") as writer:
        for utt, t in corpus.frames.items():
            counts = np.arange(-(-t // 3)) % 3 + 1
            offsets = np.concatenate([[0], np.cumsum(counts)])
            writer.write_ragged(utt, offsets, np.arange(offsets[-1]) % C, np.full(offsets[-1], 0.25, np.float32))
    data = training_data(corpus, SparseTargets(tmp_path / "r.scp"))
    batch = data.batch(range(len(data)))
    valid = batch.hard != IGNORE
    assert batch.soft_probs.shape[2] == 3
    assert set(batch.soft_probs[valid].sum(1).tolist()) == {0.25, 0.5, 0.75}


def test_global_statistics(corpus):
    data = training_data(corpus)
    every = np.concatenate([data.features(i) for i in range(len(data.ids))]).astype(np.float64)
    mean, std = data.global_stats()
    np.testing.assert_allclose(mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, every.std(0), rtol=1e-5)


def test_spec_augment_masks_whole_bands_and_stretches():
    settings = AugmentSettings(freq_masks=1, freq_width=4, time_masks=1, time_width=10)
    keep = spec_augment([40, 40, 40], 50, 8, settings, np.random.default_rng(3))
    assert keep.shape == (3, 50, 8) and set(np.unique(keep)) <= {0.0, 1.0}
    widths = []
    for one in keep:
        bands = (one == 0).all(axis=0)
        times = (one == 0).all(axis=1)
        np.testing.assert_array_equal(one == 0, bands[None] | times[:, None])
        assert bands.sum() <= 4 and times[:40].sum() <= 8  # a fifth of the length
        widths.append((bands.sum(), times.sum()))
    assert len(set(widths)) > 1
    draws = [spec_augment([40], 40, 8, settings, np.random.default_rng(i)) for i in range(300)]
    assert max((d[0] == 0).all(axis=1).sum() for d in draws) == 8
    assert max((d[0] == 0).all(axis=0).sum() for d in draws) == 4
    assert (spec_augment([9], 9, 8, AugmentSettings(0, 0, 0, 0), np.random.default_rng(1)) == 1).all()


def test_held_out_utterances_take_all_their_speeds_along(corpus):
    cuts = load_cuts(corpus.data / "feats.scp")
    train, held = split_heldout(cuts, 0.2)
    assert sorted(train + held) == list(range(len(cuts))) and len(held) == 3
    assert {cuts[i].uniq for i in held}.isdisjoint(cuts[i].uniq for i in train)
    assert split_heldout(cuts, 0.2) == (train, held) and split_heldout(cuts, 0) == (list(range(len(cuts))), [])
    with pytest.raises(UserError, match="u00 is the only one"):
        split_heldout(cuts.take([0, 1, 2]), 0.2)


# ---- bad input

def rewrite(corpus, utt, change):
    """The alignments again, with one utterance's changed (None: left out)."""
    with IntVectorWriter(f"ark,scp:{corpus.ali}/ali.ark,{corpus.ali}/ali.scp") as writer:
        for u, ali in corpus.alignment.items():
            new = change(ali) if u == utt else ali
            if new is not None:
                writer.write(u, new)


def test_alignments_that_do_not_fit(corpus):
    utt = list(corpus.frames)[4]

    def attach():
        return attach_alignments(load_cuts(corpus.data / "feats.scp"), corpus.ali, C, 3)

    rewrite(corpus, utt, lambda ali: ali[:-1])
    refused(attach, corpus.ali / "ali.scp", utt, corpus.frames[utt] - 1, f"{corpus.frames[utt]} feature frames")
    rewrite(corpus, utt, lambda ali: np.where(np.arange(len(ali)) == 2, C, ali))
    refused(attach, utt, f"pdf-id {C}", f"num_pdfs says {C}")
    rewrite(corpus, utt, lambda ali: None)
    refused(attach, utt, "failed.txt", "different data")
    (corpus.ali / "failed.txt").write_text(f"{utt} no path\n")
    cuts, hard, without = attach()
    assert without == 1 and len(cuts) == len(hard) == len(corpus.frames) - 1
    (corpus.ali / "failed.txt").write_text("".join(f"{u}\n" for u in corpus.frames))
    with IntVectorWriter(f"ark,scp:{corpus.ali}/ali.ark,{corpus.ali}/ali.scp") as writer:
        writer.write("other", np.zeros(5, np.int32))
    refused(attach, "no utterance of the data has an alignment")
    (corpus.ali / "ali.scp").unlink()
    refused(attach, "ali.scp", "essence gmm-align")


def test_soft_targets_that_do_not_fit(tmp_path, corpus):
    utt = list(corpus.frames)[3]
    rows = -(-corpus.frames[utt] // 3)

    def load(change, k=3):
        with PosteriorWriter(f"ark,scp:{tmp_path}/bad.ark,{tmp_path}/bad.scp") as writer:
            for u, t in corpus.frames.items():
                ids, probs = np.tile(np.arange(k), (-(-t // 3), 1)), np.full((-(-t // 3), k), 1 / k, np.float32)
                if u == utt:
                    if change is None:
                        continue
                    ids, probs = change(ids, probs)
                writer.write(u, ids, probs)
        return lambda: training_data(corpus, SparseTargets(tmp_path / "bad.scp"))

    refused(load(lambda i, p: (i[1:], p[1:])), "bad.scp", utt, f"{rows - 1} frames", f"make {rows}")
    refused(load(lambda i, p: (i + C, p)), utt, f"{C} pdfs")
    refused(load(lambda i, p: (i, -p)), utt, "frame 0", "probability -0.3333")
    refused(load(None), "bad.scp", utt)
    with MatrixWriter(f"ark,scp:{tmp_path}/d.ark,{tmp_path}/d.scp") as writer:
        for u, t in corpus.frames.items():
            writer.write(u, np.full((-(-t // 3), C + 1), 0.1, np.float32))
    refused(lambda: training_data(corpus, DenseTargets(tmp_path / "d.scp")), "d.scp", f"{C + 1}", f"x {C} pdfs")


def test_feature_tables_that_do_not_work(tmp_path, corpus):
    scp = tmp_path / "feats.scp"
    lines = (corpus.data / "feats.scp").read_text().splitlines()

    def load(text):
        scp.write_text(text)
        return lambda: load_cuts(scp)

    refused(load(""), scp, "no utterances")
    refused(load("\n".join(lines + lines[:1])), scp, "twice", lines[0].split()[0])
    refused(load("utt\n"), scp, "line 1", "utt")
    refused(load("utt nowhere.ark:5\n"), scp, "utt", "cannot read", "nowhere.ark:5")
    refused(lambda: load_cuts(tmp_path / "none.scp"), "none.scp", "No such file")
    with MatrixWriter(f"ark,scp:{tmp_path}/w.ark,{tmp_path}/w.scp") as writer:
        writer.write("a", np.zeros((3, 8), np.float32))
        writer.write("b", np.zeros((3, 7), np.float32))
    refused(lambda: load_cuts(tmp_path / "w.scp"), "w.scp", "b", "7", "8")
    with MatrixWriter(f"ark,scp:{tmp_path}/n.ark,{tmp_path}/n.scp") as writer:
        writer.write("a", np.full((3, 8), np.nan, np.float32))
    refused(lambda: FeatureSource(load_cuts(tmp_path / "n.scp"), "none").load(0), "a", "NaN", "n.ark")
    ark = tmp_path / "n.ark"
    ark.write_bytes(ark.read_bytes()[:-20])
    refused(lambda: FeatureSource(load_cuts(tmp_path / "n.scp"), "none").load(0), "a", "cannot read", "n.ark")
    refused(lambda: FeatureSource(load_cuts(corpus.data / "feats.scp"), "global"), "data.cmn", "global")


def test_counts(tmp_path):
    (tmp_path / "n").write_text("12\n")
    assert read_count(tmp_path / "n") == 12
    (tmp_path / "n").write_text("twelve\n")
    refused(lambda: read_count(tmp_path / "n"), "n", "whole number")
