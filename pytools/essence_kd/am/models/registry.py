"""Architectures by name. A file of this package is an architecture when it holds ``Settings`` and ``Encoder``."""
from __future__ import annotations

import importlib

from essence_kd.am.models.acoustic_model import AcousticModel
from essence_kd.io.errors import UserError
from essence_kd.io.settings import from_dict, to_dict

ARCHITECTURES = ("tdnn", "tdnn_f", "cnn_tdnn", "tdnn_lstm", "blstm", "conformer")


def model_settings(arch: str, options: dict, where: str) -> dict:
    """``options`` checked against the architecture's settings and completed with its defaults."""
    return to_dict(from_dict(_module(arch, where).Settings, options, f"{where}: model"))


def build_model(arch: str, options: dict, *, feat_dim: int, num_pdfs: int, frame_subsampling_factor: int,
                where: str = "model") -> AcousticModel:
    """An untrained model, its parameters drawn from torch's random state."""
    module = _module(arch, where)
    settings = from_dict(module.Settings, options, f"{where}: model")
    if getattr(settings, "norm", "layer") not in ("layer", "batch"):
        raise UserError(f"{where}: model: norm: '{settings.norm}' is neither layer nor batch")
    encoder = module.Encoder(settings, feat_dim, frame_subsampling_factor)
    return AcousticModel(encoder, feat_dim, num_pdfs, frame_subsampling_factor)


def _module(arch: str, where: str):
    if arch not in ARCHITECTURES:
        raise UserError(f"{where}: unknown architecture '{arch}' (known: {', '.join(ARCHITECTURES)})")
    return importlib.import_module(f"essence_kd.am.models.{arch}")
