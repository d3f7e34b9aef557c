"""Architectures by name: each is an encoder class that registers itself, in a file of this package or of a plugin.

    @ARCHITECTURES.register("mine")
    class Encoder(nn.Module):
        Settings = MySettings  # a dataclass: what ``model:`` of the YAML may say, with all defaults

        def __init__(self, settings: MySettings, feat_dim: int, factor: int): ...  # sets output_dim

        def forward(self, x, lens): ...  # (B, T, feat_dim), (B,) frames -> (B, ceil(T / factor), output_dim)

A layer may have ``constrain()``, called after some of the steps, and ``flops(output)``, the operations that made its
output, where they are not those of its parts (linear, convolution, LSTM).
"""
from __future__ import annotations

from typing import Type

from torch import nn

from essence_kd.am.models.acoustic_model import AcousticModel
from essence_kd.io.errors import UserError
from essence_kd.io.registry import Registry
from essence_kd.io.settings import from_dict, to_dict

ARCHITECTURES: Registry[Type[nn.Module]] = Registry("architecture", "essence_kd.am.models")


def model_settings(arch: str, options: dict, where: str) -> dict:
    """``options`` checked against the architecture's settings and completed with its defaults."""
    return to_dict(_settings(arch, options, where))


def build_model(arch: str, options: dict, *, feat_dim: int, num_pdfs: int, frame_subsampling_factor: int,
                where: str = "model") -> AcousticModel:
    """An untrained model, its parameters drawn from torch's random state."""
    settings = _settings(arch, options, where)
    if getattr(settings, "norm", "layer") not in ("layer", "batch"):
        raise UserError(f"{where}: model: norm: '{settings.norm}' is neither layer nor batch")
    encoder = ARCHITECTURES.get(arch, where)(settings, feat_dim, frame_subsampling_factor)
    return AcousticModel(encoder, feat_dim, num_pdfs, frame_subsampling_factor)


def _settings(arch: str, options: dict, where: str):
    return from_dict(ARCHITECTURES.get(arch, where).Settings, options, f"{where}: model")
