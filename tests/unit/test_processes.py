"""Processes of one training that do not start, do not answer or are killed: the others end, and say which it was."""
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from builders import ROOT
from builders.sweep import marked
from builders.training_data import make_data
from builders.training_runs import SMALL, together

from essence_kd.am import processes, trainer
from essence_kd.cli.main import main
from essence_kd.io import processor


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("corpus"))


def words(corpus, model_dir):
    settings = (word for item in SMALL for word in ("--set", item))
    return ["train", *settings, *map(str, (corpus.data, corpus.ali, model_dir))]


def test_one_that_does_not_start_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MEETING", 2.0)

    def call():
        return 0 if os.environ["RANK"] == "1" else main(words(corpus, tmp_path / "m"))

    assert together(3, call, tmp_path / "err") == [1, 0, 1]
    assert "process 1 of 3 did not start within 2 s" in (tmp_path / "err").read_text()


def test_one_that_does_not_answer_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.2)
    errors = tmp_path / "err"

    def stop(*args):
        if os.environ["RANK"] != "1":
            return average(*args)
        if os.fork() == 0:
            for _ in range(3000):
                if "has not answered" in errors.read_text():
                    break
                time.sleep(0.1)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)

    average = trainer.take_average
    monkeypatch.setattr(trainer, "take_average", stop)
    assert together(2, lambda: main(words(corpus, tmp_path / "m")), errors) == [1, -signal.SIGKILL]
    assert re.search(r"^process 0 \(.*\): process 1 of 2 has not answered for 6 s \(stopped, or its machine hangs\); "
                     r"batches begun: \d by process 0", errors.read_text(), re.M)


def test_one_that_is_killed_is_named_with_the_signal(corpus, tmp_path):
    token, log = f"KILLED={tmp_path}", tmp_path / "log"
    command = ["local/jobs.sh", str(log), "local/torchrun.sh", *words(corpus, tmp_path / "m"),
               "--set", "optim.epochs=500"]
    run = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, env={
        **os.environ, "ESSENCE_PYTHON": sys.executable, "PROCESSES_PER_NODE": "2", "KILLED": str(tmp_path)})
    try:
        while run.poll() is None and not (log.exists() and "epoch 1/500: loss" in log.read_text()):
            time.sleep(0.1)
        killed = min(marked(token, "RANK=1"))  # before what it has started
        os.kill(killed, signal.SIGKILL)
        said = run.communicate(timeout=300)[1]
    finally:
        run.terminate()
    assert run.returncode == 1 and f"see {log}:" in said
    assert re.search(rf"^torchrun: process 1 \(on .*, PID {killed}\) was killed by signal 9 \(SIGKILL\)$", said, re.M)
    until = time.monotonic() + 120  # what it has started ends by itself
    while marked(token) and time.monotonic() < until:
        time.sleep(0.1)
    assert not marked(token)


@pytest.mark.parametrize("vendor, flags, precision", [
    ("AuthenticAMD", "avx512f avx512_bf16", "bfloat16"), ("AuthenticAMD", "avx512f", "float32"),
    ("GenuineIntel", "avx512f avx512_bf16", "float32"),
    ("GenuineIntel", "avx512f avx512_bf16 amx_tile amx_bf16", "bfloat16")])
def test_precision_follows_the_cpu(tmp_path, monkeypatch, vendor, flags, precision):
    told = tmp_path / "cpuinfo"
    told.write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", told)
    cpu = torch.device("cpu")
    assert processes.precision_of("auto", cpu) == precision
    assert processes.precision_of("float32", cpu) == "float32"
    told.unlink()
    assert processes.precision_of("auto", cpu) == "float32"
