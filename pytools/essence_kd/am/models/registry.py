"""Architectures by name: each is an encoder class that registers itself, in a file of this package or of a plugin.

    @register_model("mine")
    class Encoder(nn.Module):
        Settings = MySettings  # a dataclass: what ``model:`` of the YAML may say, with all defaults

        def __init__(self, settings: MySettings, feat_dim: int, factor: int): ...  # sets output_dim

        def forward(self, x, lens): ...  # (B, T, feat_dim), (B,) frames -> (B, ceil(T / factor), output_dim)

An encoder with LSTM layers that run forward tells its layers (``stages()``, a list of modules ``(x, None) -> rows`` and
of nn.LSTM) for utterances that come in parts; of others am.stream finds out what a row depends on.
A layer may have ``constrain()``, called after some of the steps, and ``flops(output)``, the operations that made its
output, where they are not those of its parts (linear, convolution, LSTM).
"""
from __future__ import annotations

from typing import Any, Callable, Type, TypeVar

from torch import nn

from essence_kd.am.models.acoustic_model import AcousticModel
from essence_kd.io.errors import UserError
from essence_kd.io.registry import Registry
from essence_kd.io.settings import from_dict, to_dict

T = TypeVar("T", bound=Type[nn.Module])
ARCHITECTURES: Registry[Any] = Registry("architecture", "essence_kd.am.models")


def register_model(name: str) -> Callable[[T], T]:
    """Class decorator: an encoder becomes the architecture ``name`` (``arch: NAME`` in a model's YAML).

    Raises UserError for a name that is taken.

    >>> from dataclasses import dataclass
    >>> import torch
    >>> from essence_kd import build_model, register_model
    >>> @dataclass
    ... class LinearSettings:
    ...     width: int = 16
    >>> @register_model("linear")
    ... class Encoder(torch.nn.Module):
    ...     Settings = LinearSettings
    ...
    ...     def __init__(self, settings, feat_dim, factor):
    ...         super().__init__()
    ...         self.factor, self.output_dim = factor, settings.width
    ...         self.layer = torch.nn.Linear(feat_dim, settings.width)
    ...
    ...     def forward(self, x, lens):  # (B, T, feat_dim), (B,) -> (B, ceil(T / factor), output_dim)
    ...         return torch.relu(self.layer(x[:, ::self.factor]))
    >>> model = build_model("linear", {"width": 8}, feat_dim=40, num_pdfs=100, frame_subsampling_factor=3)
    >>> tuple(model(torch.zeros(2, 31, 40), torch.tensor([31, 28])).shape)
    (2, 11, 100)
    """
    return ARCHITECTURES.register(name)


def model_settings(arch: str, options: dict, where: str) -> dict:
    """``options`` checked against the architecture's settings and completed with its defaults."""
    return to_dict(_settings(arch, options, where))


def build_model(arch: str, options: dict, *, feat_dim: int, num_pdfs: int, frame_subsampling_factor: int,
                where: str = "model") -> AcousticModel:
    """An untrained model, its parameters drawn from torch's random state.

    ``options``: what differs from the architecture's defaults. Raises UserError that starts with ``where`` for unknown
    architectures and options.

    >>> import torch
    >>> from essence_kd import build_model
    >>> model = build_model("tdnn", {"hidden": 32}, feat_dim=40, num_pdfs=100, frame_subsampling_factor=3)
    >>> logits = model(torch.zeros(2, 30, 40), torch.tensor([30, 27]))  # features float32, frames of each
    >>> tuple(logits.shape), logits.dtype
    ((2, 10, 100), torch.float32)
    """
    settings = _settings(arch, options, where)
    if getattr(settings, "norm", "layer") not in ("layer", "batch"):
        raise UserError(f"{where}: model: norm: '{settings.norm}' is neither layer nor batch")
    encoder = ARCHITECTURES.get(arch, where)(settings, feat_dim, frame_subsampling_factor)
    return AcousticModel(encoder, feat_dim, num_pdfs, frame_subsampling_factor)


def _settings(arch: str, options: dict, where: str):
    return from_dict(ARCHITECTURES.get(arch, where).Settings, options, f"{where}: model")
