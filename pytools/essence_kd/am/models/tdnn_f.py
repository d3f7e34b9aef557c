"""TDNN-F: a spliced input layer at the output rate, then factored layers with bypass."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from torch import nn

from essence_kd.am.models.layers import FactoredTdnn, Tdnn, length_mask, num_rows
from essence_kd.am.models.registry import register_model


@dataclass
class TdnnFSettings:
    """Sizes of a TDNN-F; dilations count output rows, a layer each (0: a layer without context)."""

    input_offsets: List[int] = field(default_factory=lambda: [-2, -1, 0, 1, 2])  # feature frames around 3t
    hidden: int = 256
    bottleneck: int = 64
    dilations: List[int] = field(default_factory=lambda: [1, 1, 1, 0, 3, 3])
    bypass: float = 0.66  # share of a layer's input that is added to its answer
    prefinal: int = 128  # a last linear layer of this size, 0: none
    norm: str = "layer"
    dropout: float = 0.1


@register_model("tdnn_f")
class Encoder(nn.Module):
    """(B, T, feat_dim) features -> (B, R, output_dim) hidden rows."""

    Settings = TdnnFSettings

    def __init__(self, settings: TdnnFSettings, feat_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        common: Dict[str, Any] = {"norm": settings.norm, "dropout": settings.dropout}
        self.input = Tdnn(feat_dim, settings.hidden, settings.input_offsets, stride=factor, **common)
        self.layers = nn.ModuleList(FactoredTdnn(settings.hidden, settings.bottleneck, d, bypass=settings.bypass,
                                                 **common) for d in settings.dilations)
        self.output_dim = settings.prefinal or settings.hidden
        self.prefinal = nn.Linear(settings.hidden, settings.prefinal, bias=False) if settings.prefinal else None

    def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        mask = length_mask(num_rows(lens, self.factor), num_rows(x.size(1), self.factor))
        x = self.input(x, mask)
        for layer in self.layers:
            x = layer(x, mask)
        return x if self.prefinal is None else self.prefinal(x)
