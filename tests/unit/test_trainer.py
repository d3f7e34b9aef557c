"""Training: it learns, it resumes to the same bytes, it refuses what does not fit."""
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import ROOT, refused
from builders.training_data import make_data
from builders.training_runs import SMALL, killed, progress, same, state, together

from essence_kd.am import train_log, trainer
from essence_kd.am.optim import learning_rate
from essence_kd.am.settings import OptimSettings, TrainSettings, check_settings
from essence_kd.am.train_log import TrainLog
from essence_kd.am.trainer import train
from essence_kd.cli.main import main
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import sha256_file, write_sidecar
from essence_kd.io.settings import load_settings
from essence_kd.io.tables import IntVectorWriter, MatrixWriter, read_matrices

C = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("corpus"), utterances=10, num_pdfs=C, noise=0.6)


def settings(*more):
    return load_settings(TrainSettings, None, [*SMALL, *more])


def test_it_learns_and_leaves_what_architecture_md_promises(corpus, tmp_path, capsys):
    info = train(settings("optim.epochs=25"), corpus.data, corpus.ali, tmp_path / "m")
    assert info["dev_frame_acc"] > 0.5 and info["look_ahead_ms"] == 10 * (2 + 3 * (1 + 1 + 2 + 3))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "final.pt", "info.json", "model.yaml", "priors.txt", "progress.jsonl", "train.log"]
    lines = [json.loads(line) for line in (tmp_path / "m" / "progress.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 26))
    assert set(lines[0]) == {"epoch", "train_loss", "hard_loss", "soft_loss", "dev_loss", "dev_frame_acc", "seconds",
                             "data_seconds", "lr"}
    assert all(0 < line["data_seconds"] < line["seconds"] for line in lines)
    assert lines[0]["dev_loss"] > lines[-1]["dev_loss"] and lines[0]["soft_loss"] is None
    assert lines[-1]["train_loss"] == lines[-1]["hard_loss"]
    assert lines[-1]["lr"] < lines[2]["lr"] <= 0.01
    assert json.loads((tmp_path / "m" / "info.json").read_text()) == info
    assert info["params"] == sum(v.numel() for k, v in state(tmp_path / "m").items() if not k.startswith("feat_"))
    assert (tmp_path / "m" / "priors.txt").read_text() == (corpus.ali / "priors.txt").read_text()
    log = (tmp_path / "m" / "train.log").read_text()
    assert "epoch 25/25" in log and "24 utterances" in log and "6 for the dev loss" in log
    assert "s to go" in capsys.readouterr().err
    # again: nothing to do, and nothing touched
    before = (tmp_path / "m" / "final.pt").stat().st_mtime_ns
    assert train(settings("optim.epochs=25"), corpus.data, corpus.ali, tmp_path / "m") == info
    assert (tmp_path / "m" / "final.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize("arch", ["tdnn", "tdnn_f", "cnn_tdnn", "tdnn_lstm", "blstm", "conformer"])
def test_every_architecture_trains_and_repeats_itself(corpus, tmp_path, arch):
    sizes = {"tdnn": ["model.hidden=12"], "cnn_tdnn": ["model.channels=[4]", "model.freq_strides=[2]",
                                                       "model.hidden=12",
                                                       "model.bottleneck=6", "model.dilations=[1]"],
             "tdnn_f": ["model.hidden=12", "model.bottleneck=6"],
             "conformer": ["model.hidden=8", "model.heads=2", "model.feed_forward=12", "model.blocks=1"],
             "tdnn_lstm": ["model.hidden=12", "model.cells=10"], "blstm": ["model.cells=8"]}[arch]
    run = load_settings(TrainSettings, None, [f"arch={arch}", *sizes, "optim.epochs=2", "data.batch_frames=600"])
    for name in ("a", "b"):
        train(run, corpus.data, corpus.ali, tmp_path / name)
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    run.seed = 2
    train(run, corpus.data, corpus.ali, tmp_path / "c")
    assert not same(state(tmp_path / "a"), state(tmp_path / "c"))


@pytest.mark.parametrize("arch", [["model.hidden=24", "model.dropout=0.2"], ["model.hidden=24", "optim.optimiser=sgd"],
                                  ["arch=tdnn_lstm", "model.hidden=12", "model.cells=10", "model.frame_dropout=0.2"]])
def test_killed_at_any_step_it_ends_in_the_same_bytes(corpus, tmp_path, arch):
    run = load_settings(TrainSettings, None, [*SMALL[1:], *arch, "checkpoint.every_steps=3", "optim.epochs=2"])
    soft = corpus.post(4)

    def begin():
        train(run, corpus.data, corpus.ali, tmp_path / "killed", soft=soft)

    info = train(run, corpus.data, corpus.ali, tmp_path / "whole", soft=soft)
    steps = info["steps"] // 2
    assert steps > 7
    for at in (2, 5, 3, steps, 4):  # each start goes on from the last checkpoint and is killed a few steps later
        assert killed(begin, at)
    assert killed(begin, 2, "checkpoint")
    assert [p.name for p in (tmp_path / "killed").iterdir() if p.name.endswith(".tmp")]  # half a checkpoint, by itself
    begin()
    assert not list((tmp_path / "killed").glob("checkpoint*"))
    log = (tmp_path / "killed" / "train.log").read_text()
    assert re.search(r"going on after epoch 0 and \d+ batches", log) and "after epoch 1" in log
    assert (tmp_path / "killed" / "final.pt").read_bytes() == (tmp_path / "whole" / "final.pt").read_bytes()
    assert progress(tmp_path / "killed") == progress(tmp_path / "whole")


def test_checkpoints_by_the_clock(corpus, tmp_path, monkeypatch):
    saved = []
    real = trainer.Trainer._save_checkpoint
    monkeypatch.setattr(trainer.Trainer, "_save_checkpoint", lambda self: (saved.append(self.state.step), real(self)))
    train(settings("checkpoint.every_minutes=1e-9", "optim.epochs=1"), corpus.data, corpus.ali, tmp_path / "m")
    assert saved[0] == 10 and len(saved) > 1
    del saved[:]
    train(settings("checkpoint.every_minutes=0", "optim.epochs=2"), corpus.data, corpus.ali, tmp_path / "n")
    assert len(saved) == 2


def test_several_processes_have_the_loss_curve_of_one(corpus, tmp_path):
    sets = [*SMALL, "model.dropout=0", "checkpoint.every_steps=4", "optim.epochs=4"]
    words = [w for item in sets for w in ("--set", item)] + ["--soft", corpus.post(4), corpus.data, corpus.ali]
    words = ["train", *map(str, words)]
    assert main([*words, str(tmp_path / "1")]) == 0
    one = progress(tmp_path / "1")
    assert one[-1]["train_loss"] < 0.9 * one[0]["train_loss"]

    def check(name):
        for a, b in zip(one, progress(tmp_path / name)):
            assert b == pytest.approx(a, rel=1e-3)
        for parameter, value in state(tmp_path / "1").items():
            torch.testing.assert_close(state(tmp_path / name)[parameter], value, atol=2e-3, rtol=2e-2)

    assert together(4, lambda: main([*words, str(tmp_path / "4")]), tmp_path / "4.err") == [0] * 4
    assert "4 processes" in (tmp_path / "4" / "train.log").read_text()
    assert (tmp_path / "4.err").read_text().count("epoch 4/4: loss") == 1
    check("4")

    def torchrun(*words):
        temporary = tmp_path / "temporary"
        temporary.mkdir(exist_ok=True)
        environment = {**os.environ, "ESSENCE_PYTHON": sys.executable, "PROCESSES_PER_NODE": "2",
                       "TMPDIR": str(temporary)}
        done = subprocess.run(["local/torchrun.sh", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert not list(temporary.glob("*torch*"))
        return done

    done = torchrun(*words, str(tmp_path / "2"))
    assert done.returncode == 0, done.stderr
    check("2")
    done = torchrun("train", "nowhere", "nowhere", str(tmp_path / "3"))
    assert done.returncode == 1 and "essence train: nowhere/num_pdfs: no such file" in done.stderr
    assert "torchrun: process " in done.stderr and "Traceback" not in done.stderr

    # killed and started again
    def die():
        real, count = trainer.take_average, []

        def average(*args):
            count.append(1)
            if len(count) == 9 and os.environ["RANK"] == "1":
                os._exit(9)
            real(*args)

        trainer.take_average = average
        return main([*words, str(tmp_path / "killed")])

    assert together(2, die, tmp_path / "killed.err") == [1, 9]
    said = (tmp_path / "killed.err").read_text()
    assert "another process of this training has ended" in said and "Traceback" not in said
    assert together(2, lambda: main([*words, str(tmp_path / "killed")]), tmp_path / "again.err") == [0, 0]
    assert re.search("going on after epoch . and . batches", (tmp_path / "again.err").read_text())
    assert same(state(tmp_path / "killed"), state(tmp_path / "2"))
    shutil.rmtree(tmp_path / "killed")
    assert together(2, die, tmp_path / "killed.err") == [1, 9]
    assert main([*words, str(tmp_path / "killed")]) == 0  # another number of processes
    check("killed")

    # what goes wrong in one process ends all
    bad = [*words[:1], *words[1:-2], "--set", "optim.lr=1e30", *words[-2:], str(tmp_path / "bad")]
    assert together(2, lambda: main(bad), tmp_path / "bad.err") == [1, 1]
    assert "is not finite" in (tmp_path / "bad.err").read_text() and not (tmp_path / "bad" / "final.pt").exists()


def test_scalars_for_tensorboard(corpus, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    info = train(settings(), corpus.data, corpus.ali, tmp_path / "m", soft=corpus.post(3), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "m" / "tensorboard")).Reload()
    for name in ("train_loss", "hard_loss", "soft_loss", "dev_loss", "dev_frame_acc", "lr"):
        values = [e.value for e in events.Scalars(f"epoch/{name}")]
        assert values == pytest.approx([line[name] for line in progress(tmp_path / "m")])
    assert [e.step for e in events.Scalars("batch/loss")] == list(range(20, info["steps"] + 1, 20))
    plain = train(settings(), corpus.data, corpus.ali, tmp_path / "n", soft=corpus.post(3))
    assert not (tmp_path / "n" / "tensorboard").exists() and plain["dev_loss"] == info["dev_loss"]


def test_tensorboard_is_asked_for_by_name(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "m", tensorboard=True), "pip install")


def test_too_little_memory_names_the_batch_and_the_way_out(corpus, tmp_path, monkeypatch):
    def short(*args, **more):
        torch.empty(1 << 60)

    monkeypatch.setattr(trainer, "multitask_loss", short)
    refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "m"), "not enough memory", "sp",
            "data.batch_frames")


def interrupted(corpus, model_dir, monkeypatch, *more):
    """A model directory whose training stopped after its first epoch."""
    class Stop(Exception):
        pass

    real = trainer.Trainer._train_epoch

    def once(self):
        if self.state.epoch == 1:
            raise Stop
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_train_epoch", once)
        with pytest.raises(Stop):
            train(settings(*more), corpus.data, corpus.ali, model_dir)
    return model_dir


def test_a_checkpoint_of_another_training_is_refused(corpus, tmp_path, monkeypatch):
    model = interrupted(corpus, tmp_path / "m", monkeypatch)
    before = (model / "checkpoint.pt").read_bytes()
    refused(lambda: train(settings("optim.lr=0.02"), corpus.data, corpus.ali, model), model / "checkpoint.pt",
            "settings: optim.lr", "0.01", "0.02")
    refused(lambda: train(settings("model.hidden=17"), corpus.data, corpus.ali, model), "model.hidden", 24, 17)
    refused(lambda: train(settings(), corpus.data, corpus.ali, model, soft=corpus.post(3)),
            "soft targets", "none there")
    other = make_data(tmp_path / "other", utterances=9, num_pdfs=C)
    refused(lambda: train(settings(), other.data, other.ali, model), "utterances")
    louder = tmp_path / "louder"
    shutil.copytree(corpus.data, louder)
    with MatrixWriter(f"ark,scp:{louder}/feats.ark,{louder}/feats.scp") as writer:
        for utt, feats in read_matrices(f"scp:{corpus.data}/feats.scp"):
            writer.write(utt, feats + 1)
    refused(lambda: train(settings(), louder, corpus.ali, model), "features of three utterances")
    assert (model / "checkpoint.pt").read_bytes() == before
    settled = settings()
    settled.threads = 2  # what does not change the model does not stand in the way
    train(settled, corpus.data, corpus.ali, model)
    refused(lambda: train(settings("seed=5"), corpus.data, corpus.ali, model), model / "info.json", "settings: seed")


def test_a_setting_that_came_later_has_its_default_in_an_older_checkpoint(corpus, tmp_path, monkeypatch):
    path = interrupted(corpus, tmp_path / "m", monkeypatch) / "checkpoint.pt"
    held = torch.load(path, weights_only=True)
    older = json.loads(held["fingerprint"]["settings"])
    del older["optim"]["grad_clip"]
    held["fingerprint"]["settings"] = json.dumps(older)
    torch.save(held, path)
    refused(lambda: train(settings("optim.grad_clip=4"), corpus.data, corpus.ali, tmp_path / "m"),
            "settings: optim.grad_clip", "5.0 there, 4.0 here")
    train(settings(), corpus.data, corpus.ali, tmp_path / "m")
    assert "going on after epoch 1" in (tmp_path / "m" / "train.log").read_text()


def test_two_trainings_in_one_place_are_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(train_log, "LOCK_PATIENCE", 0.1)
    (tmp_path / "m").mkdir()
    log = tmp_path / "m" / "train.log"
    log.touch()
    with subprocess.Popen(["flock", str(log), "sleep", "60"]) as other:
        try:
            while subprocess.run(["flock", "-n", str(log), "true"]).returncode == 0:
                assert other.poll() is None
            refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "m"), "another training is at work")
        finally:
            subprocess.run(["pkill", "-P", str(other.pid)])
            other.kill()
    train(settings("optim.epochs=1"), corpus.data, corpus.ali, tmp_path / "m")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with TrainLog(tmp_path, first=True).alone():
        pass
    told = capsys.readouterr().err
    assert told == (tmp_path / "train.log").read_text() and len(told.splitlines()) == 1
    assert f"{tmp_path} can have no lock ({os.strerror(number)})" in told


def test_a_truncated_checkpoint_is_refused(corpus, tmp_path, monkeypatch):
    model = interrupted(corpus, tmp_path / "m", monkeypatch)
    path = model / "checkpoint.pt"
    for content in (path.read_bytes()[:-1000], b"", b"not a checkpoint"):
        path.write_bytes(content)
        refused(lambda: train(settings(), corpus.data, corpus.ali, model), path, "truncated", "remove it")


def test_a_failed_write_leaves_the_old_checkpoint(corpus, tmp_path, monkeypatch):
    model = interrupted(corpus, tmp_path / "m", monkeypatch)
    before = (model / "checkpoint.pt").read_bytes()

    def full_disk(obj, stream):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.torch, "save", full_disk)
        refused(lambda: train(settings(), corpus.data, corpus.ali, model), model / "checkpoint.pt", "No space left")
    assert (model / "checkpoint.pt").read_bytes() == before
    assert not [p for p in model.iterdir() if p.name.endswith(".tmp")]
    train(settings(), corpus.data, corpus.ali, model)


@pytest.mark.mount
def test_a_full_disk_stops_the_training_and_room_lets_it_go_on(corpus, tmp_path):
    model = tmp_path / "m"
    model.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(model)], check=True)
    try:
        refused(lambda: train(settings(), corpus.data, corpus.ali, model), model / "checkpoint.pt", "No space left")
        assert [p.name for p in model.iterdir()] == ["train.log"]
        subprocess.run(["mount", "-o", "remount,size=4m", str(model)], check=True)
        train(settings(), corpus.data, corpus.ali, model)
        train(settings(), corpus.data, corpus.ali, tmp_path / "n")
        assert same(state(model), state(tmp_path / "n"))
    finally:
        subprocess.run(["umount", "--lazy", str(model)], check=True)  # the failed training's log may still be open


def test_hard_soft_and_total_loss_apart(corpus, tmp_path):
    train(settings("optim.epochs=1", "distill.soft_weight=0.25"), corpus.data, corpus.ali, tmp_path / "m",
          soft=f"scp:{corpus.post(4)}")
    line = json.loads((tmp_path / "m" / "progress.jsonl").read_text())
    assert line["train_loss"] == pytest.approx(0.75 * line["hard_loss"] + 0.25 * line["soft_loss"], rel=1e-5)
    assert line["soft_loss"] != line["hard_loss"]


def test_soft_targets_equal_to_the_alignment_train_as_the_alignment_does(corpus, tmp_path):
    corpus_probs = corpus.probs
    corpus.probs = {u: np.eye(C, dtype=np.float32)[a[::3]] for u, a in corpus.alignment.items()}
    try:
        dense, sparse = corpus.dense(), corpus.post(1)
    finally:
        corpus.probs = corpus_probs
    train(settings(), corpus.data, corpus.ali, tmp_path / "hard")
    train(settings("distill.soft_weight=1"), corpus.data, corpus.ali, tmp_path / "dense", soft=dense, soft_kind="dense")
    train(settings("distill.soft_weight=1"), corpus.data, corpus.ali, tmp_path / "sparse", soft=sparse)
    for name, value in state(tmp_path / "hard").items():
        torch.testing.assert_close(state(tmp_path / "dense")[name], value, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(state(tmp_path / "sparse")[name], value, atol=1e-3, rtol=1e-3)


def test_all_entries_kept_equals_dense_targets_at_a_temperature(corpus, tmp_path):
    more = ["distill.temperature=2", "optim.epochs=2"]
    train(settings(*more), corpus.data, corpus.ali, tmp_path / "sparse", soft=corpus.post(C))
    train(settings(*more), corpus.data, corpus.ali, tmp_path / "dense", soft=corpus.dense(), soft_kind="dense")
    for name, value in state(tmp_path / "sparse").items():
        torch.testing.assert_close(state(tmp_path / "dense")[name], value, atol=1e-3, rtol=1e-3)


def test_data_on_disk_trains_the_same_model(corpus, tmp_path):
    for name, more in (("memory", []), ("disk", ["data.preload_mb=0"])):
        train(settings("optim.epochs=2", *more), corpus.data, corpus.ali, tmp_path / name, soft=corpus.post(3))
    assert same(state(tmp_path / "memory"), state(tmp_path / "disk"))


def test_init_starts_from_another_models_parameters(corpus, tmp_path):
    train(settings(), corpus.data, corpus.ali, tmp_path / "first")
    first = train(settings(), corpus.data, corpus.ali, tmp_path / "scratch")
    second = train(settings("optim.warmup=0"), corpus.data, corpus.ali, tmp_path / "more", init=tmp_path / "first")
    assert second["dev_loss"] < first["dev_loss"]
    refused(lambda: train(settings("model.hidden=8"), corpus.data, corpus.ali, tmp_path / "x", init=tmp_path / "first"),
            "first/final.pt", "another kind", "24", "8")
    refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "x", init=tmp_path / "none"), "none/final.pt")


def test_dev_data_of_its_own(corpus, tmp_path):
    info = train(settings("optim.epochs=1"), corpus.data, corpus.ali, tmp_path / "m", dev_data=corpus.data,
                 dev_ali=corpus.ali)
    assert info["utterances"] == 30 and info["dev_loss"] > 0
    refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "x", dev_data=corpus.data), "--dev-ali")
    wide = make_data(tmp_path / "wide", utterances=2, num_pdfs=C, bins=9)
    refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "y", dev_data=wide.data, dev_ali=wide.ali),
            "9 bins", "8")
    info = train(settings("optim.epochs=1", "data.heldout=0"), corpus.data, corpus.ali, tmp_path / "z")
    assert info["dev_loss"] is None and info["utterances"] == 30


def test_the_final_model_is_the_moving_average(corpus, tmp_path, monkeypatch):
    mean, decays, real = {}, [], trainer.take_average

    def average(theirs, model, decay):
        for name, p in theirs.named_parameters():
            if not decays:  # what training starts from
                mean[name] = p.detach().clone()
            mean[name] = decay * mean[name] + (1 - decay) * dict(model.named_parameters())[name].detach()
        decays.append(decay)
        real(theirs, model, decay)

    monkeypatch.setattr(trainer, "take_average", average)
    train(settings("optim.epochs=1", "optim.ema_decay=0.5"), corpus.data, corpus.ali, tmp_path / "m")
    assert len(decays) > 5 and decays[0] == pytest.approx(2 / 11) and decays[-1] == 0.5  # it forgets its start sooner
    for name, wanted in mean.items():
        torch.testing.assert_close(state(tmp_path / "m")[name], wanted)
    del decays[:]
    train(settings("optim.epochs=1", "optim.ema_decay=0"), corpus.data, corpus.ali, tmp_path / "n")
    assert not decays


def test_gradients_are_clipped(corpus, tmp_path):
    """With hardly any gradient left, plain descent stays where it began."""
    train(settings("optim.epochs=1"), corpus.data, corpus.ali, tmp_path / "first")
    still = ["optim.epochs=1", "optim.optimiser=sgd", "optim.weight_decay=0", "optim.ema_decay=0"]
    moved = {}
    for clip in (1e-5, 5.0):
        train(settings(*still, f"optim.grad_clip={clip}"), corpus.data, corpus.ali, tmp_path / str(clip),
              init=tmp_path / "first")
        begun = state(tmp_path / "first")
        moved[clip] = max(float((x - begun[name]).abs().max()) for name, x in state(tmp_path / str(clip)).items()
                          if not name.startswith("feat_"))
    assert moved[1e-5] < 1e-4 < moved[5.0]


def test_sgd_learns_too(corpus, tmp_path):
    train(settings("optim.optimiser=sgd", "optim.lr=0.2", "optim.epochs=12"), corpus.data, corpus.ali, tmp_path / "m")
    losses = [line["dev_loss"] for line in progress(tmp_path / "m")]
    assert losses[-1] < 0.8 * losses[0]


class Scripted:
    """In the place of a decoder: the word error rates of epochs 1, 2, ..., and the models that were to be decoded."""

    fingerprint = "a set and a graph"

    def __init__(self, rates):
        self.rates, self.models = rates, {}

    def __call__(self, model_dir):
        done = model_dir.parent / "progress.jsonl"  # epochs before this one
        epoch = 1 + (len(done.read_text().splitlines()) if done.exists() else 0)
        assert sorted(p.name for p in model_dir.iterdir()) == ["final.pt", "model.yaml", "priors.txt"]
        self.models[epoch] = (model_dir / "final.pt").read_bytes()
        return self.rates[epoch - 1]


def test_early_stopping_by_word_error_rate_keeps_the_best_model_and_resumes(corpus, tmp_path):
    run = settings("optim.epochs=9", "early_stopping.metric=dev_wer", "early_stopping.patience=2", "model.dropout=0.2",
                   "checkpoint.every_steps=3")
    rates = [50.0, 40.0, 45.0, 30.0, 30.0, 31.0, 0.0, 0.0, 0.0]

    def begin(name, wer=None):
        return train(run, corpus.data, corpus.ali, tmp_path / name, dev_wer=wer or Scripted(rates))

    wer = Scripted(rates)
    info = begin("whole", wer)
    assert list(wer.models) == [1, 2, 3, 4, 5, 6]
    assert (info["epochs"], info["best_epoch"], info["dev_wer"]) == (6, 4, 30.0)
    lines = progress(tmp_path / "whole")
    assert [line["dev_wer"] for line in lines] == rates[:6] and info["dev_loss"] == lines[3]["dev_loss"]
    final = (tmp_path / "whole" / "final.pt").read_bytes()
    assert final == wer.models[4] and not (tmp_path / "whole" / "dev_wer").exists()
    log = (tmp_path / "whole" / "train.log").read_text()
    assert "stopped early: 2 figures in a row no better than epoch 4's dev_wer of 30.000" in log
    steps = info["steps"] // 6
    for at in (2 * steps + 2, 3 * steps - 1):
        assert killed(lambda: begin("killed"), at)
    assert begin("killed")["best_epoch"] == 4
    assert (tmp_path / "killed" / "final.pt").read_bytes() == final and progress(tmp_path / "killed") == lines
    run.early_stopping.every = 4  # and the last one
    wer = Scripted(rates)
    assert begin("fourth", wer)["best_epoch"] == 8 and list(wer.models) == [4, 8, 9]
    other = Scripted(rates)
    other.fingerprint = "another set"
    refused(lambda: begin("fourth", other), "set and graph of early stopping", "another set")


def test_early_stopping_of_two_processes(corpus, tmp_path):
    """The first one decodes; both stop, and take the same model for the best."""
    run = settings("optim.epochs=9", "early_stopping.metric=dev_wer", "early_stopping.patience=1", "model.dropout=0")

    def begin():
        wer = Scripted([50.0, 40.0, 45.0])
        train(run, corpus.data, corpus.ali, tmp_path / "m", dev_wer=wer)
        return len(wer.models)

    assert together(2, begin, tmp_path / "err") == [3, 0], (tmp_path / "err").read_text()
    info = json.loads((tmp_path / "m" / "info.json").read_text())
    assert (info["epochs"], info["best_epoch"], info["dev_wer"]) == (3, 2, 40.0)


def test_early_stopping_by_dev_loss(corpus, tmp_path):
    run = settings("optim.epochs=60", "optim.lr=0.05", "early_stopping.metric=dev_loss", "early_stopping.patience=1")
    info = train(run, corpus.data, corpus.ali, tmp_path / "m")
    losses = [line["dev_loss"] for line in progress(tmp_path / "m")]
    assert len(losses) == info["epochs"] == info["best_epoch"] + 1 < 60
    assert info["dev_loss"] == min(losses) == losses[-2]
    run.data.heldout = 0.0
    refused(lambda: train(run, corpus.data, corpus.ali, tmp_path / "n"), "there is no dev set")


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(corpus, tmp_path):
    run = settings("optim.lr=1e30", "optim.warmup=0", "data.heldout=0", "data.batch_frames=100")
    with pytest.raises(UserError, match="not finite.*epoch 1, batch|epoch 1, batch.*not finite") as error:
        train(run, corpus.data, corpus.ali, tmp_path / "m")
    named = str(error.value).rpartition(": ")[2].split()
    assert 1 <= len(named) <= 4 and set(named) <= set(corpus.frames)
    assert not (tmp_path / "m" / "final.pt").exists()


@pytest.mark.parametrize("setting, words", [
    ("seed=-1", ["seed", "at least 0"]), ("augment.time_width=-3", ["augment.time_width"]),
    ("data.left_context=-1", ["data.left_context"]), ("data.workers=-1", ["data.workers"]),
    ("optim.lr=0", ["optim.lr", "above 0"]), ("optim.grad_clip=0", ["optim.grad_clip", "above 0"]),
    ("optim.final_lr=-0.1", ["optim.final_lr"]), ("optim.weight_decay=-1", ["optim.weight_decay"]),
    ("optim.constrain_every=-1", ["optim.constrain_every"]), ("optim.epochs=0", ["optim.epochs"]),
    ("threads=0", ["threads"]),
    ("optim.optimiser=adam", ["optim.optimiser", "adamw or sgd"]),
    ("optim.schedule=step", ["schedule", "cosine"]), ("data.heldout=1", ["heldout"]),
    ("precision=float16", ["precision"]),
    ("distill.mass=all", ["mass", "renorm"]), ("distill.soft_weight=1.5", ["soft_weight"]),
    ("arch=rnn", ["rnn", "blstm"]),
    ("model.layers=3", ["layers", "hidden"]), ("distill.temperature=0", ["temperature"]),
    ("data.chunk_frames=2", ["chunk"]),
    ("augment.time_warp=5", ["unknown key 'time_warp'"]), ("early_stopping.metric=wer", ["metric", "dev_wer"]),
    ("early_stopping.patience=0", ["patience"]), ("early_stopping.every=0", ["every"]),
    ("data.cmn=global", ["cmn", "speaker"])])
def test_settings_that_no_training_can_use(corpus, tmp_path, setting, words):
    refused(lambda: train(settings(setting), corpus.data, corpus.ali, tmp_path / "m"), *words)


def test_soft_targets_of_another_tree_or_rate(corpus, tmp_path):
    soft = corpus.post(2)
    beside = soft.with_suffix(".json")
    good = {"num_pdfs": C, "tree_hash": sha256_file(corpus.ali / "tree.txt"), "frame_shift_ms": 30, "temperature": 1.0}
    try:
        for key, value in (("num_pdfs", 999), ("tree_hash", "f00"), ("frame_shift_ms", 10)):
            write_sidecar(beside, {**good, key: value})
            refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "x", soft=soft),
                    beside, key, value, good[key])
        write_sidecar(beside, {**good, "mean_mass": 0.875})
        train(settings("optim.epochs=1"), corpus.data, corpus.ali, tmp_path / "ok", soft=soft)
        write_sidecar(beside, {**good, "mean_mass": 0.75})  # made anew: another content, the same index
        refused(lambda: train(settings("optim.epochs=1"), corpus.data, corpus.ali, tmp_path / "ok", soft=soft),
                "mass of the soft targets", 0.875, 0.75)
    finally:
        beside.unlink()
    refused(lambda: train(settings(), corpus.data, corpus.ali, tmp_path / "x", soft=tmp_path / "no.scp"),
            "no.scp", "dump-post")


def test_inputs_that_are_missing_or_too_small(corpus, tmp_path):
    refused(lambda: train(settings(), tmp_path / "no", corpus.ali, tmp_path / "m"), "no/feats.scp")
    refused(lambda: train(settings(), corpus.data, tmp_path / "no", tmp_path / "m"), "no/num_pdfs")
    shutil.copytree(corpus.ali, tmp_path / "ali")
    (tmp_path / "ali" / "priors.txt").write_text("1\n")
    refused(lambda: train(settings(), corpus.data, tmp_path / "ali", tmp_path / "m"), "ali/priors.txt: 1 priors")
    one = make_data(tmp_path / "one", utterances=1, num_pdfs=C)
    refused(lambda: train(settings(), one.data, one.ali, tmp_path / "m"), "u00 is the only one", "data.heldout=0")
    train(settings("data.heldout=0", "optim.epochs=1"), one.data, one.ali, tmp_path / "ok")
    with IntVectorWriter(f"ark,scp:{one.ali}/ali.ark,{one.ali}/ali.scp") as writer:
        for u in one.frames:
            writer.write(u, np.full(one.frames[u], C, np.int32))
    refused(lambda: train(settings(), one.data, one.ali, tmp_path / "m2"), "pdf-id 12", "num_pdfs says 12")


def test_a_users_mistake_is_one_line_of_the_verb(corpus, tmp_path, capsys):
    (tmp_path / "m.yaml").write_text("arch: tdnn\noptim: {epoch: 3}\n")
    words = ["train", "--model", str(tmp_path / "m.yaml"), str(corpus.data), str(corpus.ali), str(tmp_path / "m")]
    assert main(words) == 1
    assert capsys.readouterr().err.strip() == (f"essence train: {tmp_path}/m.yaml: optim: unknown key 'epoch'; "
                                               "did you mean 'epochs'? (known: "
                                   + ", ".join(OptimSettings.__dataclass_fields__) + ")")
    for device, said in (("gpu", "no such device; say cpu, cuda or cuda:N"), ("cuda:99", "there is no such GPU here")):
        assert main(["train", "--device", device, str(corpus.data), str(corpus.ali), str(tmp_path / "m")]) == 1
        assert capsys.readouterr().err == f"essence train: --device {device}: {said}\n"
    assert not (tmp_path / "m").exists()


def test_bfloat16_is_a_choice(corpus, tmp_path):
    info = train(settings("precision=bfloat16", "optim.epochs=25"), corpus.data, corpus.ali, tmp_path / "m")
    assert info["precision"] == "bfloat16" and info["dev_frame_acc"] > 0.6
    assert all(v.dtype == torch.float32 for v in state(tmp_path / "m").values())


def test_the_models_of_conf_are_settings_that_exist():
    from essence_kd.am.models.registry import model_settings

    files = sorted((ROOT / "conf" / "models").glob("*.yaml"))
    assert len(files) >= 4
    for path in files:
        found = load_settings(TrainSettings, path)
        check_settings(found)
        model_settings(found.arch, found.model, str(path))


OWN = '''
from dataclasses import dataclass

import torch
from torch import nn

from essence_kd.am.models.registry import register_model


@dataclass
class PlainSettings:
    width: int = 16


class Scale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * x

    def flops(self, output):
        return output.numel()

    @torch.no_grad()
    def constrain(self):
        self.weight.clamp_(max=1.0)


@register_model("plain")
class Encoder(nn.Module):
    Settings = PlainSettings

    def __init__(self, settings, feat_dim, factor):
        super().__init__()
        self.factor, self.output_dim = factor, settings.width
        self.layer, self.scale = nn.Linear(feat_dim, settings.width), Scale(settings.width)

    def forward(self, x, lens):
        return self.scale(torch.relu(self.layer(x[:, ::self.factor])))
'''


@pytest.mark.parametrize("way", ["a file of am/models", "a plugin"])
def test_an_architecture_of_ones_own_is_one_file(corpus, tmp_path, way):
    """It is trained, kept and run by the verbs; nothing else is told of it."""
    package, environment = ROOT / "pytools", {**os.environ, "PYTHONPATH": str(ROOT / "pytools")}
    if way == "a plugin":
        (tmp_path / "my_models.py").write_text(OWN)
        environment.update(PYTHONPATH=f"{package}{os.pathsep}{tmp_path}", ESSENCE_PLUGINS="my_models")
    else:
        shutil.copytree(package, tmp_path / "pytools", ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "pytools" / "essence_kd" / "am" / "models" / "plain.py").write_text(OWN)
        environment.update(PYTHONPATH=str(tmp_path / "pytools"))
    (tmp_path / "plain.yaml").write_text("arch: plain\nmodel: {width: 24}\ndata: {batch_frames: 300, heldout: 0.2}\n"
                                         "optim: {epochs: 2, lr: 0.01, ema_decay: 0, constrain_every: 1}\n")
    words = [["train", "--model", tmp_path / "plain.yaml", corpus.data, corpus.ali, tmp_path / "m"],
             ["forward", tmp_path / "m", corpus.data, f"ark,scp:{tmp_path}/s.ark,{tmp_path}/s.scp"]]
    code = (f"from essence_kd.cli.main import main\nfor words in {[list(map(str, w)) for w in words]!r}:\n"
            "    assert main(words) == 0")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "m" / "info.json").read_text())
    assert info["params"] == 8 * 24 + 24 + 24 + 24 * C + C and info["look_ahead_ms"] == 0
    assert info["mflop_per_frame"] == pytest.approx((2 * 8 * 24 + 24 + 2 * 24 * C) / 3e6, abs=1e-6)
    losses = [line["train_loss"] for line in progress(tmp_path / "m")]
    assert losses[1] < losses[0] and float(state(tmp_path / "m")["encoder.scale.weight"].max()) <= 1.0
    assert len(list(read_matrices(f"scp:{tmp_path}/s.scp"))) == len(corpus.frames)


@pytest.mark.parametrize("schedule", ["cosine", "exponential", "linear"])
def test_learning_rate(schedule):
    optim = OptimSettings(lr=1.0, warmup=0.1, schedule=schedule, final_lr=0.05)
    rates = [learning_rate(optim, x / 100) for x in range(101)]
    assert max(rates) == pytest.approx(1.0) == rates[10] and rates[-1] == pytest.approx(0.05)
    assert rates[0] == pytest.approx(0.01) and rates[5] == pytest.approx(0.505)
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
