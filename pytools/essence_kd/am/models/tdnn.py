"""TDNN: spliced affine layers, the first of them at the output rate."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from torch import nn

from essence_kd.am.models.layers import Tdnn, length_mask, num_rows
from essence_kd.am.models.registry import register_model


@dataclass
class TdnnSettings:
    """Sizes of a TDNN; dilations count output rows."""

    input_offsets: List[int] = field(default_factory=lambda: [-2, -1, 0, 1, 2])  # feature frames around 3t
    hidden: int = 160
    dilations: List[int] = field(default_factory=lambda: [1, 1, 2, 3])  # 0: a layer without context
    bottleneck: int = 0  # a last layer without context of this size, 0: none
    norm: str = "layer"
    dropout: float = 0.1


@register_model("tdnn")
class Encoder(nn.Module):
    """(B, T, feat_dim) features -> (B, R, output_dim) hidden rows."""

    Settings = TdnnSettings

    def __init__(self, settings: TdnnSettings, feat_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        common: Dict[str, Any] = {"norm": settings.norm, "dropout": settings.dropout}
        layers = [Tdnn(feat_dim, settings.hidden, settings.input_offsets, stride=factor, **common)]
        for d in settings.dilations:
            layers.append(Tdnn(settings.hidden, settings.hidden, [-d, 0, d] if d else [0], **common))
        self.output_dim = settings.hidden
        if settings.bottleneck:
            layers.append(Tdnn(settings.hidden, settings.bottleneck, [0], **common))
            self.output_dim = settings.bottleneck
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        mask = length_mask(num_rows(lens, self.factor), num_rows(x.size(1), self.factor))
        for layer in self.layers:
            x = layer(x, mask)
        return x
