"""One file an architecture; what model.yaml says of a trained model."""
from __future__ import annotations

import reprlib
from pathlib import Path

from essence_kd.io.errors import UserError
from essence_kd.io.settings import read_yaml

_NEEDED = ("num_pdfs", "frame_subsampling_factor")
_KINDS = {"arch": str, "num_pdfs": int, "feat_dim": int, "frame_subsampling_factor": int, "cmn": str, "model": dict,
          "online_cmn": dict, "edge_rows": list, "sample_rate": int}


def read_model_yaml(model_dir) -> dict:
    """The contents of a model directory's model.yaml; UserError where it or what it must tell is missing or wrong."""
    path = Path(model_dir) / "model.yaml"
    settings = read_yaml(path)
    for key in _NEEDED:
        if key not in settings:
            raise UserError(f"{path}: missing key '{key}': this is not what training wrote; train again")
    for key, kind in _KINDS.items():
        if key in settings and not isinstance(settings[key], kind):
            raise UserError(f"{path}: {key} is {reprlib.repr(settings[key])}: this is not what training wrote; "
                            "train again")
    return settings
