"""Layers that several acoustic models share.

Shapes: B utterances or chunks, T feature frames, R output rows, C channels.

Padding is on the right and every layer leaves it zero, so that an utterance sees at its end what it would see alone:
zeros beyond its edges. That makes a model's answer independent of what it is batched with.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional, Sequence, Tuple

import torch
from torch import nn

from essence_kd.io.errors import UserError


def num_rows(lens, factor: int):
    """Output rows of ``lens`` feature frames (int or int64 tensor): ceil(lens / factor)."""
    return (lens + factor - 1) // factor


def length_mask(lens: torch.Tensor, size: int) -> Optional[torch.Tensor]:
    """(B, size, 1) float32, 1 inside each length; None when nothing is padding. ``lens`` is (B,) int64."""
    if bool((lens >= size).all()):
        return None
    return (torch.arange(size, device=lens.device)[None, :] < lens[:, None]).unsqueeze(-1).float()


def masked(x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """``x`` (B, R, C) with padding set to zero."""
    return x if mask is None else x * mask


class _Splice(torch.autograd.Function):
    """:func:`splice` with its gradient added up in place: a third less time than slices and a concatenation."""

    @staticmethod
    def forward(ctx, x, offsets, stride):
        rows = num_rows(x.size(1), stride)
        out = x.new_empty(x.size(0), rows, len(offsets) * x.size(2))
        ctx.shape, ctx.offsets, ctx.stride = x.shape, offsets, stride
        for part, begin, end, frames in _parts(out, x.shape, offsets, stride):
            part[:, :begin].zero_()
            part[:, end:].zero_()
            part[:, begin:end] = x[:, frames]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        total = grad.new_zeros(ctx.shape)
        for part, begin, end, frames in _parts(grad, ctx.shape, ctx.offsets, ctx.stride):
            total[:, frames] += part[:, begin:end]
        return total, None, None


def _parts(spliced, shape, offsets, stride):
    """For every offset: its channels of ``spliced``, the rows [begin, end) that lie inside, and their frames."""
    _, size, channels = shape
    for i, offset in enumerate(offsets):
        begin = max(0, -(offset // stride))  # the first row with row * stride + offset >= 0
        end = max(begin, min(spliced.size(1), (size - 1 - offset) // stride + 1))
        first = begin * stride + offset
        frames = slice(first, first + (end - begin - 1) * stride + 1, stride) if end > begin else slice(0, 0)
        yield spliced[:, :, i * channels:(i + 1) * channels], begin, end, frames


def splice(x: torch.Tensor, offsets: Sequence[int], stride: int = 1) -> torch.Tensor:
    """Rows 0, stride, 2 stride, ... of ``x`` (B, T, C), each beside its neighbours at ``offsets``, zeros beyond edges.

    Returns (B, ceil(T / stride), len(offsets) * C). On CPU this and a matrix product are as fast as a convolution
    and keep the channels last.
    """
    if list(offsets) == [0] and stride == 1:
        return x
    return _Splice.apply(x, tuple(offsets), stride)


class _SplicedProduct(torch.autograd.Function):
    """``splice(x, offsets) @ weight.t() + bias`` without the spliced copies: a tenth of a small TDNN's step on a CPU.

    Chunks lie one behind the other with ``gap`` zero rows after each, so that every offset is one product of rows that
    follow each other in memory, and the products add up in place.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, offsets):
        batch, rows, channels = x.shape
        gap, first = max(map(abs, offsets)), max(0, -min(offsets))
        size = batch * (rows + gap)
        laid = x.new_zeros(first + size + max(0, max(offsets)), channels)
        laid[first:first + size].view(batch, rows + gap, channels)[:, :rows] = x
        parts = weight.view(len(weight), len(offsets), channels)
        out = x.new_zeros(size, len(weight)) if bias is None else bias.repeat(size, 1)
        for i, offset in enumerate(offsets):
            out.addmm_(laid[first + offset:first + offset + size], parts[:, i].t())
        ctx.save_for_backward(laid, weight)
        ctx.offsets, ctx.first, ctx.shape, ctx.biased = offsets, first, (batch, rows, gap), bias is not None
        return out.view(batch, rows + gap, -1)[:, :rows]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        laid, weight = ctx.saved_tensors
        batch, rows, gap = ctx.shape
        size, first, channels = batch * (rows + gap), ctx.first, laid.size(1)
        spread = grad.new_zeros(batch, rows + gap, grad.size(2))
        spread[:, :rows] = grad
        spread = spread.view(size, -1)
        parts = weight.view(len(weight), len(ctx.offsets), channels)
        of_weight, total = torch.empty_like(parts), torch.zeros_like(laid) if ctx.needs_input_grad[0] else None
        for i, offset in enumerate(ctx.offsets):
            here = slice(first + offset, first + offset + size)
            of_weight[:, i] = spread.t() @ laid[here]
            if total is not None:
                total[here].addmm_(spread, parts[:, i])
        if total is not None:
            total = total[first:first + size].view(batch, rows + gap, channels)[:, :rows]
        return total, of_weight.view_as(weight), spread.sum(0) if ctx.biased else None, None


class SplicedLinear(nn.Linear):
    """An affine map of spliced rows (:func:`splice`): (B, T, C) -> (B, ceil(T / stride), out)."""

    def __init__(self, channels: int, out_dim: int, offsets: Sequence[int], *, stride: int = 1,
                 bias: bool = True) -> None:
        super().__init__(len(offsets) * channels, out_dim, bias)
        self.offsets, self.stride = tuple(offsets), stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        trains = torch.is_grad_enabled() and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if trains and len(self.offsets) > 1 and self.stride == 1:
            return _SplicedProduct.apply(x, self.weight, self.bias, self.offsets)
        return super().forward(splice(x, self.offsets, self.stride))


def reverse_rows(x: torch.Tensor, rows: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """``x`` (B, R, C) backwards in time inside each length ``rows`` (B,); padding stays on the right."""
    if mask is None:
        return x.flip(1)
    index = torch.arange(x.size(1), device=x.device)[None, :]
    index = torch.where(index < rows[:, None], rows[:, None] - 1 - index, index)
    return x.gather(1, index.unsqueeze(-1).expand_as(x))


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, R, C) over the rows that are not padding."""

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        if mask is None or not self.training:
            return super().forward(x.reshape(-1, x.size(-1))).view_as(x)
        inside = mask.reshape(-1).bool()
        flat = x.reshape(-1, x.size(-1))
        out = torch.zeros_like(flat)
        out[inside] = super().forward(flat[inside])
        return out.view_as(x)


class RowLayerNorm(nn.LayerNorm):
    """Layer normalisation of (B, R, C) over C; the mask is accepted and not needed."""

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        return super().forward(x)


class SharedDropout(nn.Module):
    """Dropout of (B, R, C) with one mask a chunk for all its rows (Gal and Ghahramani 2016); cheap to draw, too."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.share == 0:
            return x
        keep = torch.rand(*self.mask_shape(x), device=x.device) >= self.share
        return x * (keep / (1.0 - self.share)).to(x.dtype)

    @staticmethod
    def mask_shape(x: torch.Tensor) -> Tuple[int, int, int]:
        """Of the mask that is drawn for ``x`` (B, R, C)."""
        return x.size(0), 1, x.size(2)


class FrameDropout(SharedDropout):
    """Dropout of whole rows of (B, R, C): a row is zero for all channels with probability ``share``, others grow.

    One draw a frame for a whole layer, as Cheng et al. found best for LSTMs ("An exploration of dropout with LSTMs",
    Interspeech 2017); they drop rows of the gates, which cuDNN's LSTM does not open, this drops rows of its answer.
    """

    @staticmethod
    def mask_shape(x: torch.Tensor) -> Tuple[int, int, int]:
        """One number per row."""
        return x.size(0), x.size(1), 1


def make_norm(kind: str, dim: int) -> nn.Module:
    """The normalisation named ``kind``: "layer" or "batch"."""
    return {"layer": RowLayerNorm, "batch": MaskedBatchNorm}[kind](dim)


class Tdnn(nn.Module):
    """One time-delay layer: splice, affine, ReLU, normalisation, dropout. (B, T, in) -> (B, ceil(T/stride), out)."""

    def __init__(self, in_dim: int, out_dim: int, offsets: Sequence[int], *, stride: int = 1, norm: str = "layer",
                 dropout: float = 0.0) -> None:
        super().__init__()
        self.affine = SplicedLinear(in_dim, out_dim, offsets, stride=stride)
        self.norm = make_norm(norm, out_dim)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        """``mask`` is that of the output rows."""
        y = torch.relu(self.affine(x))
        return masked(self.dropout(self.norm(y, mask)), mask)


class FactoredTdnn(nn.Module):
    """TDNN-F layer with bypass (Povey et al., "Semi-Orthogonal Low-Rank Matrix Factorization", Interspeech 2018).

    (B, R, dim) -> (B, R, dim): a bottleneck over offsets (-d, 0) whose matrix :meth:`constrain` keeps
    semi-orthogonal, an affine map back over (0, d), ReLU, normalisation, dropout, plus ``bypass`` times the input.
    """

    def __init__(self, dim: int, bottleneck: int, dilation: int, *, bypass: float = 0.66, norm: str = "layer",
                 dropout: float = 0.0) -> None:
        super().__init__()
        down, up = ([-dilation, 0], [0, dilation]) if dilation else ([0], [0])
        self.bypass = bypass
        self.linear = SplicedLinear(dim, bottleneck, down, bias=False)
        self.affine = SplicedLinear(bottleneck, dim, up)
        self.norm = make_norm(norm, dim)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        y = masked(self.linear(x), mask)
        y = torch.relu(self.affine(y))
        return masked(self.dropout(self.norm(y, mask)) + self.bypass * x, mask)

    @torch.no_grad()
    def constrain(self) -> None:
        """One step of the "floating" semi-orthogonal constraint: M M' towards a multiple of the identity."""
        m = self.linear.weight  # (bottleneck, splice * dim)
        p = m @ m.t()
        scale2 = (p * p).sum() / p.trace()  # alpha^2 = tr(P P') / tr(P)
        p.diagonal().sub_(scale2)
        m.sub_((p @ m) / (2.0 * scale2))  # nu = 1/8, the update is 4 nu / alpha^2 (P - alpha^2 I) M


class Convolution(nn.Module):
    """3 x 3 convolution, ReLU, layer norm over channels.

    (B, T, F, C) -> (B, ceil(T/time_stride), ceil(F/freq_stride), C').
    """

    def __init__(self, in_channels: int, channels: int, time_stride: int, freq_stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=(time_stride, freq_stride), padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.permute(0, 3, 1, 2))  # (B, C', T', F'), channels last in memory
        y = torch.relu(y.permute(0, 2, 3, 1))  # (B, T', F', C')
        # as autocast has it on a GPU; on a CPU the norm of 8 channels in bfloat16 takes seven times as long
        return self.norm(y.float() if y.dtype == torch.bfloat16 else y)


class Convolutions(nn.Module):
    """A front end of 3 x 3 convolutions over time and frequency; the first steps to the output rate.

    (B, T, feat_dim) -> (B, R, output_dim), output_dim = the last layer's channels times its frequencies.
    """

    def __init__(self, channels: Sequence[int], freq_strides: Sequence[int], feat_dim: int, factor: int) -> None:
        super().__init__()
        if not channels or len(channels) != len(freq_strides):
            raise UserError(f"model: channels {list(channels)} and freq_strides {list(freq_strides)} must be "
                            "of one length, one number per convolution")
        layers, before, freq = [], 1, feat_dim
        for i, (size, stride) in enumerate(zip(channels, freq_strides)):
            layers.append(Convolution(before, size, factor if i == 0 else 1, stride))
            before, freq = size, num_rows(freq, stride)
        self.layers = nn.ModuleList(layers)
        self.output_dim = before * freq

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        """``mask`` is that of the output rows; ``x`` is zero at padding."""
        x = x.unsqueeze(-1)  # (B, T, F, 1)
        for layer in self.layers:
            x = layer(x)  # (B, R, F', C)
            x = x if mask is None else x * mask.unsqueeze(-1)
        return x.flatten(2)


@dataclass
class FrontEndSettings:
    """What a :class:`FrontEnd` reads of the settings of an architecture."""

    channels: List[int] = field(default_factory=list)  # of convolutions in front, with freq_strides; none: splicing
    freq_strides: List[int] = field(default_factory=list)
    input_offsets: List[int] = field(default_factory=lambda: [-2, -1, 0, 1, 2])  # spliced feature frames
    hidden: int = 192  # what the layers behind it read


class FrontEnd(nn.Module):
    """What recurrent layers stand on: convolutions and a projection, or (no ``channels``) spliced features and one.

    (B, T, feat_dim) -> (B, R, hidden).
    """

    def __init__(self, settings: FrontEndSettings, feat_dim: int, factor: int, **common) -> None:
        """``common`` goes to the projection."""
        super().__init__()
        self.convolutions = None
        if settings.channels:
            self.convolutions = Convolutions(settings.channels, settings.freq_strides, feat_dim, factor)
            self.project = Tdnn(self.convolutions.output_dim, settings.hidden, [0], **common)
        else:
            self.project = Tdnn(feat_dim, settings.hidden, settings.input_offsets, stride=factor, **common)

    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        return self.project(x if self.convolutions is None else self.convolutions(x, mask), mask)
