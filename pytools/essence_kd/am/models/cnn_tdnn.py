"""CNN-TDNN-F: two-dimensional convolutions over time and frequency, then factored TDNN layers."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import List

import torch
from torch import nn

from essence_kd.am.models.layers import FactoredTdnn, Tdnn, length_mask, num_rows


@dataclass
class Settings:
    """Sizes of a CNN-TDNN-F. The first convolution steps to the output rate; dilations count output rows."""

    channels: List[int] = field(default_factory=lambda: [16, 32, 48])
    freq_strides: List[int] = field(default_factory=lambda: [1, 2, 2])
    hidden: int = 256
    bottleneck: int = 96
    dilations: List[int] = field(default_factory=lambda: [1, 1, 2, 3])
    norm: str = "layer"
    dropout: float = 0.1


class Convolution(nn.Module):
    """3 x 3 convolution, ReLU, layer norm over channels. (B, T, F, C) -> (B, ceil(T/time_stride), F', C')."""

    def __init__(self, in_channels: int, channels: int, time_stride: int, freq_stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=(time_stride, freq_stride), padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.permute(0, 3, 1, 2))  # (B, C, T, F), channels last in memory
        return self.norm(torch.relu(y.permute(0, 2, 3, 1)))  # (B, T', F', C')


class Encoder(nn.Module):
    """(B, T, feat_dim) features -> (B, R, output_dim) hidden rows."""

    def __init__(self, settings: Settings, feat_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        convolutions, channels, freq = [], 1, feat_dim
        for i, (size, stride) in enumerate(zip(settings.channels, settings.freq_strides)):
            convolutions.append(Convolution(channels, size, factor if i == 0 else 1, stride))
            channels, freq = size, (freq + stride - 1) // stride
        self.convolutions = nn.ModuleList(convolutions)
        common = {"norm": settings.norm, "dropout": settings.dropout}
        self.project = Tdnn(channels * freq, settings.hidden, [0], **common)
        self.layers = nn.ModuleList(
            FactoredTdnn(settings.hidden, settings.bottleneck, d, **common) for d in settings.dilations)
        self.output_dim = settings.hidden

    def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        rows = num_rows(x.size(1), self.factor)
        mask = length_mask(num_rows(lens, self.factor), rows)  # (B, R, 1)
        x = x.unsqueeze(-1)  # (B, T, F, 1)
        for convolution in self.convolutions:
            x = convolution(x)
            x = x if mask is None else x * mask.unsqueeze(-1)
        x = self.project(x.flatten(2), mask)
        for layer in self.layers:
            x = layer(x, mask)
        return x
