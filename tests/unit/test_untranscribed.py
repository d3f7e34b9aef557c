"""Audio without transcripts in a training: its utterances learn from their soft targets alone, beside those that have
a transcript."""
import shutil

import numpy as np
import pytest
import torch
from builders import refused
from builders.training_data import make_data
from builders.training_runs import SMALL, killed, progress, same, state, together

from essence_kd.am.dataset import IGNORE, TrainingData, epoch_batches
from essence_kd.am.settings import AugmentSettings, TrainInputs, TrainSettings
from essence_kd.am.shards import ShardSource, read_index, write_shards
from essence_kd.am.sources import FeatureSource, SourceOfSets, load_cuts
from essence_kd.am.targets import SparseTargets, TargetsOfSets, attach_alignments, open_untranscribed
from essence_kd.am.trainer import train
from essence_kd.cli.main import main
from essence_kd.distill.losses import LOSSES, UNLABELLED, make_loss
from essence_kd.io.posterior import PosteriorWriter
from essence_kd.io.provenance import write_sidecar
from essence_kd.io.settings import load_settings
from essence_kd.io.tables import IntVectorWriter, MatrixWriter

C = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("corpus"), utterances=8, num_pdfs=C, noise=0.6)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Other utterances, whose alignment nobody is to see."""
    found = make_data(tmp_path_factory.mktemp("pool"), utterances=5, num_pdfs=C, noise=0.6, seed=5, prefix="v")
    shutil.rmtree(found.ali)
    return found


def settings(*more):
    return load_settings(TrainSettings, None, [*SMALL, *more])


def data_of(corpus, pools, soft=None, shares=None, preload_mb=100, sampler="pooled"):
    cuts, hard, _ = attach_alignments(load_cuts(corpus.data / "feats.scp"), corpus.ali, C, 3)
    added = open_untranscribed([(p.data, p.post(4)) for p in pools], corpus.data, cuts, corpus.ali, soft=None,
                               kind="post", factor=3, min_confidence=None)
    source = SourceOfSets([FeatureSource(cuts, "none"), *(FeatureSource(more.cuts, "none") for more in added)])
    hard = hard + [labels for more in added for labels in more.labels(3)]
    targets = TargetsOfSets([soft and SparseTargets(soft), *(more.targets for more in added)],
                            [part.ids for part in source.sources])
    return TrainingData(source, hard, C, 3, chunk_frames=60, left_context=9, right_context=9, soft=targets,
                        preload_mb=preload_mb, sampler=sampler, shares=shares or [1.0] * (1 + len(pools)))


# ---- the loss

def by_hand(logits, hard, target, weight, temperature):
    """The loss of mixed frames, as its definition says: a frame at a time, dense, in float64."""
    total, hard_sum, soft_sum = 0.0, 0.0, 0.0
    for z, label, q in zip(logits, hard.tolist(), target):
        if label == IGNORE:
            continue
        soft = -(q * torch.log_softmax(z / temperature, 0)).sum()
        soft_sum = soft_sum + soft
        if label == UNLABELLED:
            total = total + temperature ** 2 * soft
            continue
        nll = -torch.log_softmax(z, 0)[label]
        hard_sum = hard_sum + nll
        total = total + (1 - weight) * nll + weight * temperature ** 2 * soft
    return total, hard_sum, soft_sum


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dense", [False, True])
def test_a_mixed_batch_has_the_loss_of_its_definition(dense, weight, temperature):
    torch.manual_seed(3)
    logits = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
    hard = torch.tensor([2, UNLABELLED, IGNORE, 0, UNLABELLED, 5, UNLABELLED])
    target = torch.softmax(3 * torch.randn(7, C, dtype=torch.float64), 1)
    probs, ids = (target, None) if dense else target.topk(4)
    if not dense:
        probs = probs / probs.sum(1, keepdim=True)
        target = torch.zeros_like(target).scatter_(1, ids, probs)
    total, hard_sum, soft_sum = by_hand(logits, hard, target, weight, temperature)
    wanted, = torch.autograd.grad(total, logits)
    loss = make_loss("cross-entropy", {}, "test")(logits, hard, ids, probs, soft_weight=weight,
                                                  temperature=temperature, mass="renorm")
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(loss.hard, hard_sum)
    torch.testing.assert_close(loss.soft, soft_sum)
    assert int(loss.num_frames) == 6
    torch.testing.assert_close(torch.autograd.grad(loss.total, logits)[0], wanted)


@pytest.mark.parametrize("name", LOSSES.names(plugins=False))
def test_each_loss_gives_frames_without_label_their_soft_loss_alone(name):
    torch.manual_seed(4)
    logits, loss = torch.randn(6, C), make_loss(name, {}, "test")
    probs, ids = torch.softmax(torch.randn(6, C), 1).topk(3)
    hard = torch.tensor([1, 2, 3, UNLABELLED, UNLABELLED, UNLABELLED])
    more = {"temperature": 2.0, "mass": "renorm"}
    mixed = loss(logits, hard, ids, probs, soft_weight=0.4, **more)
    first = loss(logits[:3], hard[:3], ids[:3], probs[:3], soft_weight=0.4, **more)
    second = loss(logits[3:], torch.zeros(3, dtype=torch.long), ids[3:], probs[3:], soft_weight=1.0, **more)
    torch.testing.assert_close(mixed.total, first.total + second.total)
    torch.testing.assert_close(mixed.hard, first.hard)
    torch.testing.assert_close(mixed.soft, first.soft + second.soft)


# ---- batches

def test_rows_without_transcript_have_their_target_and_no_label(corpus, pool):
    data = data_of(corpus, [pool], corpus.post(4))
    seen = set()
    for batch in (data.batch(plan) for plan in data.plan(400, 1, 0)):
        for b, utt in enumerate(batch.ids):
            rows = (batch.hard[b] != IGNORE).nonzero()[:, 0]
            begin = int(batch.feats[b, 0, 0]) // 3  # the first feature of these data counts frames
            mine = pool if utt in pool.frames else corpus
            if mine is pool:
                assert (batch.hard[b, rows] == UNLABELLED).all()
            else:
                np.testing.assert_array_equal(batch.hard[b, rows], mine.alignment[utt][::3][begin + rows])
            wanted = np.sort(mine.probs[utt][begin + rows], axis=1)[:, :-5:-1]
            np.testing.assert_allclose(batch.soft_probs[b, rows], wanted, rtol=1e-6)
            seen |= {(utt, begin + int(r)) for r in rows}
    assert len(seen) == sum(-(-t // 3) for t in (*corpus.frames.values(), *pool.frames.values()))
    plan = np.concatenate(data.plan(400, 1, 0))
    assert data.rows(plan, transcribed=True) == sum(-(-t // 3) for t in corpus.frames.values())


@pytest.mark.parametrize("sampler", ["pooled", "bucketing"])
def test_an_epoch_draws_a_share_of_each_set_and_epochs_all_of_it_equally(corpus, pool, sampler):
    data = data_of(corpus, [pool], shares=[0.5, 1.5], sampler=sampler)
    first = data.source.set_of[data.chunks[:, 0]] == 0
    sizes, counts = [int(first.sum()), int((~first).sum())], np.zeros(len(data), int)
    for epoch in range(4):
        chunks = np.concatenate(data.plan(400, 2, epoch))
        counts += np.bincount(chunks, minlength=len(data))
        for share, size, drawn in zip(data.shares, sizes, ((counts * first).sum(), (counts * ~first).sum())):
            assert drawn == int((epoch + 1) * share * size)
    assert set(counts[first]) == {2} and set(counts[~first]) == {6}

    def flat(seed, epoch, data=data):
        return [p.tolist() for p in data.plan(400, seed, epoch)]

    assert flat(2, 1) == flat(2, 1, data_of(corpus, [pool], shares=[0.5, 1.5], sampler=sampler))
    assert sorted(sum(flat(2, 1), [])) != sorted(sum(flat(2, 0), [])) != sorted(sum(flat(3, 0), []))
    whole = data_of(corpus, [pool], sampler=sampler)
    assert sorted(sum(flat(2, 1, whole), [])) == list(range(len(whole)))


def test_data_on_disk_and_several_processes_see_the_same_batches(corpus, pool):
    def stream(preload_mb, **more):
        data = data_of(corpus, [pool], corpus.post(4), [1.0, 0.5], preload_mb)
        assert data.in_memory == (preload_mb > 0)
        return list(epoch_batches(data, data.plan(400, 1, 1), seed=1, epoch=1, augment=AugmentSettings(),
                                  **{"workers": 1, **more}))

    memory, disk, parts = stream(100), stream(0), [stream(0, share=(rank, 2)) for rank in (0, 1)]
    for number, (a, b) in enumerate(zip(memory, disk)):
        assert a.ids == b.ids and all(torch.equal(getattr(a, n), getattr(b, n))
                                      for n in ("feats", "hard", "soft_ids", "soft_probs", "keep"))
        assert [u for pair in zip(*(p[number].ids for p in parts)) for u in pair] == a.ids[:len(a.ids) // 2 * 2]
    assert len(memory) == len(disk)


# ---- trainings

def test_it_learns_from_targets_alone(corpus, pool, tmp_path):
    """Two utterances have transcripts; what others' targets say makes a better model of the same sentences."""
    few = make_data(tmp_path / "few", utterances=3, num_pdfs=C, noise=0.6, seed=8)
    more = ["optim.epochs=12", "data.heldout=0"]
    dev = {"dev_data": corpus.data, "dev_ali": corpus.ali}
    alone = train(settings(*more), few.data, few.ali, tmp_path / "alone", soft=few.post(4), **dev)
    info = train(settings(*more), few.data, few.ali, tmp_path / "m", soft=few.post(4),
                 untranscribed=[(pool.data, pool.post(4))], **dev)
    assert info["dev_loss"] < 0.9 * alone["dev_loss"]
    assert info["untranscribed"] == {"utterances": 15, "frames": sum(pool.frames.values()), "left_out": 0}
    assert info["utterances"] == 24 and "untranscribed" not in alone
    log = (tmp_path / "m" / "train.log").read_text()
    assert "24 utterances" in log and "(15 of them, 0.0" in log and "h, without transcripts)" in log


def test_losses_of_an_epoch_are_told_apart(corpus, pool, tmp_path):
    train(settings("optim.epochs=1", "distill.soft_weight=0.25", "data.heldout=0"), corpus.data, corpus.ali,
          tmp_path / "m", untranscribed=[(pool.data, pool.post(4))], soft=corpus.post(4))
    line, = progress(tmp_path / "m")
    labelled, alone = (sum(-(-t // 3) for t in c.frames.values()) for c in (corpus, pool))
    assert 1.0 < line["hard_loss"] < 3.0  # of the frames that have a label alone
    # 0.75 hard + 0.25 soft of the labelled ones + soft of the others
    everything = labelled + alone
    rest = line["train_loss"] * everything - 0.75 * line["hard_loss"] * labelled
    assert 0.25 * line["soft_loss"] * everything < rest < line["soft_loss"] * everything


def test_pseudo_labels_beside_hard_labels_alone_equal_an_alignment(corpus, pool, tmp_path):
    """One-best targets without --soft: what a twin that had the other audio learns, as if that had been aligned."""
    probs = {u: p.argmax(1) for u, p in pool.probs.items()}
    scp = tmp_path / "one.scp"
    with PosteriorWriter(f"ark,scp:{tmp_path}/one.ark,{scp}") as writer:
        for utt, best in probs.items():
            writer.write(utt, best[:, None].astype(np.int32), np.ones((len(best), 1), np.float32))
    train(settings("data.heldout=0"), corpus.data, corpus.ali, tmp_path / "m", untranscribed=[(pool.data, scp)])
    folder, ali = tmp_path / "joined", tmp_path / "joined_ali"
    folder.mkdir()
    shutil.copytree(corpus.ali, ali)
    (folder / "feats.scp").write_text("".join((c.data / "feats.scp").read_text() for c in (corpus, pool)))
    with IntVectorWriter(f"ark,scp:{ali}/ali.ark,{ali}/ali.scp") as writer:
        for utt, labels in corpus.alignment.items():
            writer.write(utt, labels)
        for utt, best in probs.items():
            writer.write(utt, np.repeat(best, 3)[:pool.frames[utt]].astype(np.int32))
    train(settings("data.heldout=0"), folder, ali, tmp_path / "n")
    for name, value in state(tmp_path / "n").items():
        torch.testing.assert_close(state(tmp_path / "m")[name], value, atol=1e-3, rtol=1e-3)


def test_killed_it_ends_in_the_same_bytes(corpus, pool, tmp_path):
    run = settings("checkpoint.every_steps=3", "optim.epochs=2", "model.dropout=0.2")
    more = {"soft": corpus.post(4), "untranscribed": [(pool.data, pool.post(4))], "shares": [1.0, 0.5]}
    info = train(run, corpus.data, corpus.ali, tmp_path / "whole", **more)
    for at in (4, info["steps"] // 2, 5):
        assert killed(lambda: train(run, corpus.data, corpus.ali, tmp_path / "killed", **more), at)
    train(run, corpus.data, corpus.ali, tmp_path / "killed", **more)
    assert "going on after epoch 1" in (tmp_path / "killed" / "train.log").read_text()
    assert (tmp_path / "killed" / "final.pt").read_bytes() == (tmp_path / "whole" / "final.pt").read_bytes()
    assert progress(tmp_path / "killed") == progress(tmp_path / "whole")
    for change, words in (({"shares": [1.0, 1.0]}, ("shares", "1.0,0.5")), ({"untranscribed": None, "shares": None}, (
            "utterances",)), ({"untranscribed": [(pool.data, pool.post(3))]}, ("untranscribed targets",))):
        refused(lambda: train(run, corpus.data, corpus.ali, tmp_path / "whole", **{**more, **change}), *words)


def test_two_processes_have_the_loss_curve_of_one(corpus, pool, tmp_path):
    words = [w for item in (*SMALL, "model.dropout=0") for w in ("--set", item)]
    words = ["train", *words, "--soft", corpus.post(4), "--untranscribed", pool.data, pool.post(4), "--shares", "1,0.5",
             corpus.data, corpus.ali]
    words = list(map(str, words))
    assert main([*words, str(tmp_path / "1")]) == 0
    assert together(2, lambda: main([*words, str(tmp_path / "2")]), tmp_path / "err") == [0, 0]
    for a, b in zip(progress(tmp_path / "1"), progress(tmp_path / "2")):
        assert b == pytest.approx(a, rel=1e-3)


def test_all_targets_at_a_temperature_sparse_as_dense(corpus, pool, tmp_path):
    run = settings("distill.temperature=2", "optim.epochs=2")
    train(run, corpus.data, corpus.ali, tmp_path / "sparse", soft=corpus.post(C),
          untranscribed=[(pool.data, pool.post(C))])
    train(run, corpus.data, corpus.ali, tmp_path / "dense", soft=corpus.dense(), soft_kind="dense",
          untranscribed=[(pool.data, pool.dense())])
    for name, value in state(tmp_path / "sparse").items():
        torch.testing.assert_close(state(tmp_path / "dense")[name], value, atol=1e-3, rtol=1e-3)


def test_unsure_utterances_are_left_out_and_counted(corpus, pool, tmp_path):
    means = {utt: float(probs.max(1).mean()) for utt, probs in pool.probs.items()}
    least = sorted(means.values())[6] - 1e-6
    for soft, kind in ((pool.post(4), "post"), (pool.dense(), "dense")):
        found, = open_untranscribed([(pool.data, soft)], corpus.data, load_cuts(corpus.data / "feats.scp"), corpus.ali,
                                    soft=None, kind=kind, factor=3, min_confidence=least)
        assert found.left_out == 6 and found.cuts.ids == [u for u in pool.frames if means[u] >= least]
    info = train(settings("optim.epochs=1"), corpus.data, corpus.ali, tmp_path / "m", soft=corpus.post(4),
                 untranscribed=[(pool.data, pool.post(4))], min_confidence=least)
    assert info["untranscribed"]["utterances"] == 9 and info["untranscribed"]["left_out"] == 6
    assert f"6 left out, whose mean best posterior is below {least:g}" in (tmp_path / "m" / "train.log").read_text()
    refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "n", min_confidence=0.999,
                          untranscribed=[(pool.data, pool.post(4))]), pool.data, "no utterance", "0.999")


# ---- shards

def test_shards_hold_them_too(corpus, pool, tmp_path):
    words = ["shard", "--soft", corpus.post(4), "--untranscribed", pool.data, pool.post(4), "--shard-size", 5,
             "--heldout", 0.2, corpus.data, corpus.ali, tmp_path / "s"]
    assert main(list(map(str, words))) == 0
    index, source = read_index(tmp_path / "s"), ShardSource(tmp_path / "s", "train", "none", 2)
    assert (index["utterances"], index["untranscribed"], index["untranscribed_sets"], index["left_out"]) == (39, 15, 1,
                                                                                                            0)
    assert sorted(u for u, s in zip(source.ids, source.set_of) if s) == sorted(pool.frames)
    shards = [source.set_of[source.shard == n] for n in range(7)]
    assert sum(0 < s.sum() < len(s) for s in shards) > 4  # shuffled among the others
    for i in range(len(source)):
        mine = pool if source.set_of[i] else corpus
        ids, probs = source.soft(i)
        np.testing.assert_allclose(probs, np.sort(mine.probs[source.ids[i]], axis=1)[:, :-5:-1], rtol=1e-6)
        wanted = np.full(len(probs), UNLABELLED) if mine is pool else mine.alignment[source.ids[i]][::3]
        np.testing.assert_array_equal(source.labels(i, 3), wanted)
    held = ShardSource(tmp_path / "s", "heldout", "none", 2)
    assert len(held) == 6 and set(held.ids) <= set(corpus.frames)
    more = {"soft": tmp_path / "s", "shares": [1.0, 0.5]}
    for name, memory in (("disk", 0), ("memory", 100)):
        run = settings(f"data.preload_mb={memory}", "data.workers=0", "data.shards_at_once=2")
        info = train(run, tmp_path / "s", tmp_path / "s", tmp_path / name, **more)
        assert info["untranscribed"]["utterances"] == 15
    assert same(state(tmp_path / "disk"), state(tmp_path / "memory"))
    assert progress(tmp_path / "disk")[-1]["hard_loss"] < progress(tmp_path / "disk")[0]["hard_loss"]
    refused(lambda: train(settings(), tmp_path / "s", tmp_path / "s", tmp_path / "x"), "train with --soft")
    refused(lambda: train(settings(), tmp_path / "s", tmp_path / "s", tmp_path / "x", soft=tmp_path / "s",
                          untranscribed=[(pool.data, pool.post(4))]), "essence shard --untranscribed")
    refused(lambda: write_shards(corpus.data, corpus.ali, tmp_path / "t", untranscribed=[(pool.data, pool.post(4))]),
            "--soft")


# ---- what does not fit

def test_inputs_that_do_not_fit_are_refused(corpus, pool, tmp_path):
    soft = corpus.post(4)

    def begin(*sets, **more):
        return lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "m",
                             **{"soft": soft, "untranscribed": sets, **more})

    refused(begin((corpus.data, soft)), corpus.data, "is in", "twice")
    refused(begin((pool.data, pool.post(4)), (pool.data, pool.post(4))), pool.data, "is in", "twice")
    first = next(iter(pool.frames))
    refused(begin((pool.data, soft)), soft, f"no utterance {first}", pool.data)
    refused(begin((pool.data, tmp_path / "none.scp")), "none.scp", "dump-post")
    refused(begin((tmp_path, pool.post(4))), tmp_path / "feats.scp")
    scp = tmp_path / "short.scp"
    with PosteriorWriter(f"ark,scp:{tmp_path}/short.ark,{scp}") as writer:  # a rendering of another length
        for utt, frames in pool.frames.items():
            rows = -(-frames // 3) - (utt == first)
            writer.write(utt, np.zeros((rows, 1), np.int32), np.ones((rows, 1), np.float32))
    rows = -(-pool.frames[first] // 3)
    refused(begin((pool.data, scp)), scp, first, f"{rows - 1} frames", f"make {rows}")
    with MatrixWriter(f"ark,scp:{tmp_path}/w.ark,{tmp_path}/feats.scp") as writer:
        writer.write("w", np.zeros((30, 9), np.float32))
    refused(begin((tmp_path, pool.post(4))), tmp_path, "9 bins", "8")
    beside = pool.post(4).with_suffix(".json")
    write_sidecar(beside, {"temperature": 2.0})
    refused(begin((pool.data, pool.post(4))), "temperature 2", "have 1")
    beside.unlink()
    sets = [(pool.data, pool.post(4))]
    refused(begin(*sets, shares=[1.0]), "--shares 1.0", "1 shares of 2 sets")
    refused(begin(*sets, shares=[1.0, 0.0]), "--shares", "above 0")
    refused(begin(shares=[0.5]), "--shares", "no --untranscribed")
    refused(begin(*sets, min_confidence=1.5), "--min-confidence 1.5", "from 0 to 1")
    refused(lambda: TrainInputs("d", "a", min_confidence=0.5), "--min-confidence 0.5", "no --untranscribed")


def test_numbers_that_are_none_are_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--shares", "1,x", "a", "b", "c"])
    assert "--shares: 1,x: numbers with commas between" in capsys.readouterr().err
