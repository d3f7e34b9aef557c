"""Trainings that are killed, run in several processes or read back."""
import json
import os
import signal
import socket
import sys

import torch

from essence_kd.am import trainer

SMALL = ["model.hidden=24", "optim.epochs=3", "data.batch_frames=300", "optim.lr=0.01", "data.heldout=0.2",
         "augment.freq_width=1", "augment.time_width=3", "optim.ema_decay=0.9",
         "precision=float32"]  # the same wherever the tests run


def state(model_dir):
    return torch.load(model_dir / "final.pt", weights_only=True)


def same(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items()) and len(a) == len(b)


def killed(call, at, where="step"):
    """Runs ``call`` in a process that kills itself at its ``at``-th step, or in the middle of writing a checkpoint."""
    child = os.fork()
    if child == 0:
        count = [0]

        def die_in(module, name, before=lambda *args: None):
            real = getattr(module, name)

            def counted(*args, **more):
                count[0] += 1
                if count[0] == at:
                    before(*args)
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            setattr(module, name, counted)

        if where == "step":
            die_in(trainer, "take_average")
        else:
            die_in(trainer.torch, "save", lambda state, stream: (stream.write(b"half of it"), stream.flush()))
        try:
            call()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def progress(model_dir):
    """Everything in progress.jsonl but what took how long."""
    lines = [json.loads(line) for line in (model_dir / "progress.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "data_seconds")} for line in lines]


def together(processes, call, errors):
    """Forks so many processes that find each other as torchrun's do; their exit statuses. ``errors`` gets stderr."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            sys.stderr = open(errors, "a", buffering=1)
            status = 70
            try:
                status = call()
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
