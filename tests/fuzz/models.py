"""What a training leaves and goes on from: checkpoints, and the index of shards."""
from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch

from essence_kd.am.checkpoints import TrainingState, check_fingerprint, going_on, load_checkpoint, load_init
from essence_kd.am.shards import ShardSource, read_index
from fuzz.driver import SEEDS, SEPARATOR, directory, file, folder, target

_WANTED = {"settings": "{}", "seed": "1", "data": "x"}


def _zipped(pickled: bytes) -> bytes:
    """The seed, with this pickle in the place of its own."""
    out = io.BytesIO()
    with zipfile.ZipFile(SEEDS / "checkpoint" / "zip") as seed, zipfile.ZipFile(out, "w") as archive:
        for member in seed.infolist():
            archive.writestr(zipfile.ZipInfo(member.filename),
                             pickled if member.filename.endswith("/data.pkl") else seed.read(member))
    return out.getvalue()


@target
def checkpoint(data: bytes) -> None:
    """A checkpoint, a zip as it is, else the pickle inside of one: what it says of its training, and going on."""
    path = file(data if data[:2] == b"PK" else _zipped(data), "final.pt")
    held = load_checkpoint(path)
    model = torch.nn.Linear(2, 3)
    state = TrainingState(model, None, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    with going_on(path):
        check_fingerprint(path, held.get("fingerprint", {}), _WANTED)
        state.restore(held, True)


@target
def initial_model(data: bytes) -> None:
    """A model that a training begins with."""
    file(data, "final.pt")
    load_init(torch.nn.Linear(2, 3), Path(folder()))


@target
def shards(data: bytes) -> None:
    """shards.json and the list of utterances beside it, whose hash is put right."""
    import hashlib

    index, _, utterances = data.partition(SEPARATOR)
    index = index.replace(b"HASH", hashlib.sha256(utterances).hexdigest().encode())
    path = directory(index + SEPARATOR + utterances, ["shards.json", "utterances"], "shards")
    assert isinstance(read_index(path), dict)
    source = ShardSource(path, "train", "none", 1)
    assert len(source) == len(source.shard) == len(source.frames) and source.feat_dim > 0
