"""BLSTM: bidirectional LSTM layers at the output rate."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from essence_kd.am.models.layers import (FrontEnd, FrontEndSettings, RowLayerNorm, SharedDropout, length_mask,
                                         masked, num_rows, reverse_rows)
from essence_kd.am.models.registry import register_model


@dataclass
class BlstmSettings(FrontEndSettings):
    """Sizes of a BLSTM; ``cells`` counts one direction."""

    cells: int = 128
    layers: int = 2
    dropout: float = 0.2


@register_model("blstm")
class Encoder(nn.Module):
    """(B, T, feat_dim) features -> (B, R, 2 * cells) hidden rows."""

    Settings = BlstmSettings

    def __init__(self, settings: BlstmSettings, feat_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.input = FrontEnd(settings, feat_dim, factor, dropout=settings.dropout)
        self.forwards, self.backwards, self.norm = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        dim = settings.hidden
        for _ in range(settings.layers):
            self.forwards.append(nn.LSTM(dim, settings.cells, batch_first=True))
            self.backwards.append(nn.LSTM(dim, settings.cells, batch_first=True))
            dim = 2 * settings.cells
            self.norm.append(RowLayerNorm(dim))
        self.dropout = SharedDropout(settings.dropout)
        self.output_dim = dim

    def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        rows = num_rows(lens, self.factor)
        mask = length_mask(rows, num_rows(x.size(1), self.factor))
        x = self.input(x, mask)
        for ahead, back, norm in zip(self.forwards, self.backwards, self.norm):
            left, _ = ahead(x)
            right, _ = back(reverse_rows(x, rows, mask))
            x = torch.cat([left, reverse_rows(right, rows, mask)], dim=-1)
            x = masked(self.dropout(norm(x)), mask)
        return x
