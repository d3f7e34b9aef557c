"""CNN-TDNN-F: two-dimensional convolutions over time and frequency, then factored TDNN layers."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from torch import nn

from essence_kd.am.models.layers import Convolutions, FactoredTdnn, Tdnn, length_mask, num_rows
from essence_kd.am.models.registry import register_model


@dataclass
class CnnTdnnSettings:
    """Sizes of a CNN-TDNN-F. The first convolution steps to the output rate; dilations count output rows."""

    channels: List[int] = field(default_factory=lambda: [16, 32, 48])
    freq_strides: List[int] = field(default_factory=lambda: [1, 2, 2])
    hidden: int = 256
    bottleneck: int = 96
    dilations: List[int] = field(default_factory=lambda: [1, 1, 2, 3])
    norm: str = "layer"
    dropout: float = 0.1


@register_model("cnn_tdnn")
class Encoder(nn.Module):
    """(B, T, feat_dim) features -> (B, R, output_dim) hidden rows."""

    Settings = CnnTdnnSettings

    def __init__(self, settings: CnnTdnnSettings, feat_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        common: Dict[str, Any] = {"norm": settings.norm, "dropout": settings.dropout}
        self.convolutions = Convolutions(settings.channels, settings.freq_strides, feat_dim, factor)
        self.project = Tdnn(self.convolutions.output_dim, settings.hidden, [0], **common)
        self.layers = nn.ModuleList(
            FactoredTdnn(settings.hidden, settings.bottleneck, d, **common) for d in settings.dilations)
        self.output_dim = settings.hidden

    def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        mask = length_mask(num_rows(lens, self.factor), num_rows(x.size(1), self.factor))
        x = self.project(self.convolutions(x, mask), mask)
        for layer in self.layers:
            x = layer(x, mask)
        return x
