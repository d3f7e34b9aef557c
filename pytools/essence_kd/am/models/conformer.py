"""A small Conformer (Gulati et al., Interspeech 2020) at the output rate, its attention over a window of rows.

Departures from the paper, each for chunks of a few seconds and short latency: a learned bias for every distance in
the window stands in the place of relative sinusoids, and the convolution module has layer normalisation, so that an
answer does not depend on what it is batched with.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from torch.nn import functional

from essence_kd.am.models.layers import FrontEnd, FrontEndSettings, SharedDropout, length_mask, masked, num_rows
from essence_kd.am.models.registry import register_model
from essence_kd.io.errors import UserError

BLOCK = 256  # rows that attend at a time


@dataclass
class ConformerSettings(FrontEndSettings):
    """Sizes of a Conformer. A row attends to ``left`` rows before it and ``right`` rows after it in each block."""

    hidden: int = 144
    heads: int = 4
    feed_forward: int = 288
    blocks: int = 4
    kernel: int = 7  # rows that the convolution of a block sees, an odd number
    left: int = 24
    right: int = 4
    dropout: float = 0.1


class FeedForward(nn.Module):
    """(B, R, C) -> (B, R, C)."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.down(functional.silu(self.up(self.norm(x)))))


class WindowAttention(nn.Module):
    """Self-attention with a learned bias a head and distance, (B, R, C) -> (B, R, C).

    Rows are taken in blocks, so that memory and time grow with the length of an utterance and not with its square.
    """

    def __init__(self, dim: int, heads: int, left: int, right: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.left, self.right = heads, left, right
        self.norm, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(heads, left + right + 1))
        self.dropout = SharedDropout(dropout)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        batch, rows, dim = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, rows, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, R, dim / heads)
        parts = []
        for begin in range(0, rows, BLOCK):
            end = min(rows, begin + BLOCK)
            heard = slice(max(0, begin - self.left), min(rows, end + self.right))
            bias = self._bias(begin, end, heard, None if mask is None else mask[:, heard, 0], x.device)
            parts.append(functional.scaled_dot_product_attention(q[:, :, begin:end], k[:, :, heard], v[:, :, heard],
                                                                 attn_mask=bias.to(q.dtype)))
        y = torch.cat(parts, dim=2)
        return self.dropout(self.out(y.permute(0, 2, 1, 3).reshape(batch, rows, dim)))

    def flops(self, output: torch.Tensor) -> int:
        """Operations of the scores and the sums of values, as they would run over the window."""
        return 4 * output.numel() * self.bias.size(1)

    def _bias(self, begin: int, end: int, heard: slice, inside: Optional[torch.Tensor], device) -> torch.Tensor:
        """What is added to the scores of rows [begin, end) for rows ``heard``; ``inside`` (B, heard): 0 is padding."""
        rows = torch.arange(begin, end, device=device)[:, None]
        others = torch.arange(heard.start, heard.stop, device=device)[None, :]
        entry = others - rows + self.left
        outside = (entry < 0) | (entry > self.left + self.right)
        bias = self.bias[:, entry.clamp(0, self.left + self.right)].masked_fill(outside, float("-inf"))[None]
        if inside is None:
            return bias  # (1, heads, end - begin, heard)
        # padding is heard by nobody; that rows of padding hear themselves keeps their softmax finite
        deaf = (inside[:, None, None, :] == 0) & (rows != others)
        return bias.masked_fill(deaf, float("-inf"))


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise over ``kernel`` rows, pointwise; (B, R, C) -> (B, R, C)."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.inner_norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        y = masked(functional.glu(self.gate(self.norm(x))), mask)
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.out(functional.silu(self.inner_norm(y))))


class Block(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each added to what comes in."""

    def __init__(self, s: ConformerSettings) -> None:
        super().__init__()
        self.before = FeedForward(s.hidden, s.feed_forward, s.dropout)
        self.attention = WindowAttention(s.hidden, s.heads, s.left, s.right, s.dropout)
        self.convolution = ConvolutionModule(s.hidden, s.kernel, s.dropout)
        self.after = FeedForward(s.hidden, s.feed_forward, s.dropout)
        self.norm = nn.LayerNorm(s.hidden)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        x = x + 0.5 * self.before(x)
        x = x + self.attention(x, mask)
        x = x + self.convolution(x, mask)
        return masked(self.norm(x + 0.5 * self.after(x)), mask)


@register_model("conformer")
class Encoder(nn.Module):
    """(B, T, feat_dim) features -> (B, R, hidden) rows."""

    Settings = ConformerSettings

    def __init__(self, settings: ConformerSettings, feat_dim: int, factor: int) -> None:
        super().__init__()
        if settings.hidden % settings.heads or settings.kernel % 2 == 0 or min(settings.left, settings.right) < 0:
            raise UserError(f"model: hidden ({settings.hidden}) must be a multiple of heads ({settings.heads}), kernel "
                            f"({settings.kernel}) odd, left and right ({settings.left}, {settings.right}) at least 0")
        self.factor = factor
        self.input = FrontEnd(settings, feat_dim, factor, dropout=settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.output_dim = settings.hidden

    def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        mask = length_mask(num_rows(lens, self.factor), num_rows(x.size(1), self.factor))
        x = self.input(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        return x
