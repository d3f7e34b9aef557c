"""Checkpoints and parameters on disk: written whole or not at all, refused where they are of another training."""
from __future__ import annotations

import json
from pathlib import Path

import torch

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write


def save(state: dict, path: Path) -> None:
    """Save atomically. Through a stream: given a name, torch would write that name into the file."""
    with atomic_write(path) as staged, open(staged, "wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:  # torch's zip writer complains again of what the stream has told it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path) -> dict:
    """A checkpoint or state dict; a truncated or foreign file is a UserError."""
    try:
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
            a, b = _flat(json.loads(found)), _flat(json.loads(wanted))
            name = sorted(k for k in set(a) | set(b) if a.get(k) != b.get(k))[0]
            key, found, wanted = f"settings: {name}", a.get(name), b.get(name)
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
        if name not in state or state[name].shape != value.shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise UserError(f"{init / 'final.pt'}: a model of another kind: {name} is {found}, "
                            f"expected {tuple(value.shape)}")
    model.load_state_dict({name: state[name] for name in own})
