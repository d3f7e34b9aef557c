"""Checkpoints and parameters on disk: written whole or not at all, refused where they are of another training."""
from __future__ import annotations

import contextlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional

import torch

from essence_kd.am.settings import TrainSettings
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write
from essence_kd.io.settings import to_dict

_SUMS = {"train": 0.0, "hard": 0.0, "soft": 0.0, "frames": 0, "waited": 0.0}  # losses, rows, seconds waiting for data


@dataclass
class TrainingState:
    """All that changes while a model learns, but for the random states of its processes."""

    model: torch.nn.Module
    average: Optional[torch.nn.Module]  # the moving average of its parameters, where one is kept
    optimiser: torch.optim.Optimizer
    epoch: int = 0  # epochs that are done
    step: int = 0  # steps of all epochs
    history: List[dict] = field(default_factory=list)  # a line of progress.jsonl per epoch
    best: Optional[dict] = None  # early stopping: value, epoch and model of the best epoch so far
    stale: int = 0  # figures since then that were no better
    batch: int = 0  # batches of the epoch at work that are done
    seconds: float = 0.0  # what they took
    sums: Dict[str, float] = field(default_factory=lambda: dict(_SUMS))  # over their frames, in this process

    @property
    def final(self) -> torch.nn.Module:
        """The model that is evaluated and kept."""
        return self.model if self.average is None else self.average

    def begin_epoch(self) -> None:
        """Nothing of the next epoch is done yet."""
        self.batch, self.seconds, self.sums = 0, 0.0, dict(_SUMS)

    def checkpoint(self, fingerprint: dict, sums: Dict[str, float], random: dict) -> dict:
        """What a checkpoint holds; ``sums``: those of all processes, ``random``: their random states."""
        return {"fingerprint": fingerprint, "epoch": self.epoch, "batch": self.batch, "step": self.step,
                "history": self.history, "sums": sums, "seconds": self.seconds, "random": random,
                "model": self.model.state_dict(), "ema": None if self.average is None else self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(), "best": self.best, "stale": self.stale}

    def restore(self, held: dict, first: bool) -> None:
        """Go on from a checkpoint; the sums of all processes go to the ``first`` one."""
        self.model.load_state_dict(held["model"])
        if self.average is not None:
            self.average.load_state_dict(held["ema"])
        self.optimiser.load_state_dict(held["optimiser"])
        self.epoch, self.step, self.history = held["epoch"], held["step"], held["history"]
        self.best, self.stale = held.get("best"), held.get("stale", 0)
        self.batch, self.seconds = held["batch"], held["seconds"]
        if first:
            self.sums.update(held["sums"])


def save(state: dict, path: Path) -> None:
    """Save atomically. Through a stream: given a name, torch would write that name into the file."""
    with atomic_write(path) as staged, open(staged, "wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:  # torch's zip writer complains again of what the stream has told it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


@contextlib.contextmanager
def going_on(path) -> Iterator[None]:
    """What is taken from a checkpoint: UserError where it lacks something or has something else in its place."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole checkpoint ({type(error).__name__}: {said}); remove it and train "
                        "again") from None


def load_checkpoint(path) -> dict:
    """A checkpoint or state dict; a truncated or foreign file is a UserError.

    Only zip files of tensors are given to torch.load: before release 2.6, code could run from what else it reads (tar
    files, TorchScript) in spite of ``weights_only``.
    """
    try:
        with zipfile.ZipFile(path) as parts, open(path, "rb") as stream:
            if stream.read(4) != b"PK\3\4" or any(name.endswith("constants.pkl") for name in parts.namelist()):
                raise ValueError("no zip file of tensors")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such model") from None
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        raise UserError(f"{path}: truncated, or not a checkpoint ({type(error).__name__}); "
                        "remove it and train again") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a checkpoint of this program")
    return state


def check_fingerprint(path, theirs: dict, mine: dict) -> None:
    """Refuse a checkpoint made with other settings or data, naming what differs and both values."""
    for key, value in mine.items():
        if theirs.get(key, value if theirs else None) == value:  # what an older version did not note is not compared
            continue
        found, wanted = str(theirs.get(key)), value
        if key == "settings" and theirs.get(key):
            a, b = ({**_flat(to_dict(TrainSettings())), **_flat(json.loads(text))} for text in (found, wanted))
            names = sorted(k for k in set(a) | set(b) if a.get(k) != b.get(k))
            if not names:  # settings that came later have their defaults here
                continue
            key, found, wanted = f"settings: {names[0]}", a.get(names[0]), b.get(names[0])
        raise UserError(f"{path}: made by another training ({key}: {found} there, {wanted} here); "
                        "use another model directory or remove this one")


def _flat(values: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in values.items():
        out.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out


def load_init(model, init: Path) -> None:
    """Give a model the parameters of the model directory ``init``, which must be of its architecture and sizes."""
    state = load_checkpoint(init / "final.pt")
    own = model.state_dict()
    for name, value in own.items():
        shape = getattr(state.get(name), "shape", None)
        if shape != value.shape:
            found = "nothing" if shape is None else tuple(shape)
            raise UserError(f"{init / 'final.pt'}: a model of another kind: {name} is {found}, "
                            f"expected {tuple(value.shape)}")
    model.load_state_dict({name: state[name] for name in own})
