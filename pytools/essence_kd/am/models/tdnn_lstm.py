"""TDNN-LSTM: TDNN layers that look ahead, with forward LSTM layers between them, all at the output rate."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from torch import nn

from essence_kd.am.models.layers import (FrameDropout, FrontEnd, FrontEndSettings, RowLayerNorm, SharedDropout, Tdnn,
                                         length_mask, masked, num_rows)
from essence_kd.am.models.registry import register_model


@dataclass
class TdnnLstmSettings(FrontEndSettings):
    """Sizes of a TDNN-LSTM; a block is one TDNN layer (dilation in output rows) and one LSTM layer."""

    cells: int = 192
    dilations: List[int] = field(default_factory=lambda: [1, 2])
    norm: str = "layer"
    dropout: float = 0.1
    frame_dropout: float = 0.0  # of whole rows of what an LSTM layer answers


@register_model("tdnn_lstm")
class Encoder(nn.Module):
    """(B, T, feat_dim) features -> (B, R, output_dim) hidden rows."""

    Settings = TdnnLstmSettings

    def __init__(self, settings: TdnnLstmSettings, feat_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        common: Dict[str, Any] = {"norm": settings.norm, "dropout": settings.dropout}
        self.input = FrontEnd(settings, feat_dim, factor, **common)
        self.tdnn, self.lstm, self.norm = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        dim = settings.hidden
        for d in settings.dilations:
            self.tdnn.append(Tdnn(dim, settings.hidden, [-d, 0, d] if d else [0], **common))
            self.lstm.append(nn.LSTM(settings.hidden, settings.cells, batch_first=True))
            self.norm.append(RowLayerNorm(settings.cells))
            dim = settings.cells
        self.dropout = SharedDropout(settings.dropout)
        self.frame_dropout = FrameDropout(settings.frame_dropout)
        self.output_dim = dim

    def stages(self) -> List[nn.Module]:
        """The layers in their order, for utterances that come in parts (am.stream)."""
        return [self.input, *(layer for layers in zip(self.tdnn, self.lstm, self.norm) for layer in layers)]

    def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        mask = length_mask(num_rows(lens, self.factor), num_rows(x.size(1), self.factor))
        x = self.input(x, mask)
        for tdnn, lstm, norm in zip(self.tdnn, self.lstm, self.norm):
            x, _ = lstm(tdnn(x, mask))  # padding is on the right: it reaches no valid row of a forward LSTM
            x = masked(self.frame_dropout(self.dropout(norm(x))), mask)
        return x
