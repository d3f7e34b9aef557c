"""The whole acoustic model: normalisation, an encoder, an output layer over pdf-ids."""
from __future__ import annotations

import copy
from typing import Optional

import torch
from torch import nn

from essence_kd.am.models.layers import length_mask, num_rows


class AcousticModel(nn.Module):
    """Log-mel features to pdf logits, one row every ``frame_subsampling_factor`` frames.

    The buffers ``feat_mean`` and ``feat_inv_std`` (feat_dim,) hold the global normalisation of the training data.
    ``edge_rows``: of how many rows at both ends of an utterance the frames are its first and its last one, repeated;
    beyond these, and with (0, 0), there are zeros in every layer. Training sets none: its chunks have such frames.
    """

    def __init__(self, encoder: nn.Module, feat_dim: int, num_pdfs: int, frame_subsampling_factor: int) -> None:
        super().__init__()
        self.feat_dim, self.num_pdfs, self.frame_subsampling_factor = feat_dim, num_pdfs, frame_subsampling_factor
        self.register_buffer("feat_mean", torch.zeros(feat_dim))
        self.register_buffer("feat_inv_std", torch.ones(feat_dim))
        self.edge_rows = (0, 0)
        self.encoder = encoder
        self.output = nn.Linear(encoder.output_dim, num_pdfs)

    def forward(self, feats: torch.Tensor, lens: torch.Tensor, *, keep: Optional[torch.Tensor] = None,
                select: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Logits of a padded batch.

        Args:
            feats: (B, T, feat_dim) float32, anything beyond ``lens``.
            lens: (B,) int64 feature frames of each.
            keep: (B, T, feat_dim) of 0 and 1: SpecAugment's mask; what is masked becomes the mean.
            select: (B, R) bool: only these rows go through the output layer.

        Returns:
            (B, R, num_pdfs), R = ceil(T / frame_subsampling_factor), or (select.sum(), num_pdfs).
        """
        before, after = self.edge_rows
        rows = num_rows(feats.size(1), self.frame_subsampling_factor)
        if before or after:
            feats, lens, keep = self._with_edges(feats, lens, rows, keep)
        x = (feats - self.feat_mean) * self.feat_inv_std
        mask = length_mask(lens, feats.size(1))
        if keep is not None:
            x = x * keep
        if mask is not None:
            x = torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))
        hidden = self.encoder(x, lens)
        if before or after:
            hidden = hidden[:, before:before + rows]
        return self.output(hidden if select is None else hidden[select])

    def _with_edges(self, feats, lens, rows: int, keep):
        """Features, lengths and mask with the frames of ``edge_rows`` around; ``rows`` of the longest utterance."""
        factor, (before, after) = self.frame_subsampling_factor, self.edge_rows
        frames = torch.arange(-before * factor, (rows + after) * factor, device=feats.device)
        index = torch.minimum(frames[None].clamp(min=0), lens[:, None] - 1)[:, :, None].expand(-1, -1, feats.size(2))
        lens = (num_rows(lens, factor) + before + after) * factor
        return feats.gather(1, index), lens, None if keep is None else keep.gather(1, index)

    def constrain(self) -> None:
        """Apply the layers' constraints on parameters (the semi-orthogonal one of TDNN-F), after some of the steps."""
        for module in self.encoder.modules():
            if hasattr(module, "constrain"):
                module.constrain()


def look_ahead(model: AcousticModel, frames: int = 601) -> Optional[int]:
    """Feature frames after 3t that row t waits for, or None where it waits for the end of the utterance.

    Measured, not declared: where the gradient of a row in the middle of ``frames`` random frames is not zero (in double
    precision, in which what an LSTM remembers for 300 frames is not). The mean subtraction in front of the network
    (``cmn``) is not counted.
    """
    factor = model.frame_subsampling_factor
    model = copy.deepcopy(model).cpu().double().eval()
    feats = torch.randn(1, frames, model.feat_dim, generator=torch.Generator().manual_seed(1), dtype=torch.double,
                        requires_grad=True)
    row = frames // 2 // factor
    with torch.enable_grad():
        logits = model(feats, torch.tensor([frames]))
        grad, = torch.autograd.grad(logits[0, row].square().sum(), feats)
    last = int(grad[0].abs().sum(1).nonzero().max())
    return None if last == frames - 1 else max(0, last - row * factor)


def num_params(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def mflop_per_frame(model: AcousticModel, frames: int = 300) -> float:
    """Multiplications and additions, in millions, of matrix products and convolutions per feature frame (10 ms).

    Attention is counted as it would run over its window.
    """
    flops = [0.0]

    def count(module: nn.Module, inputs, output) -> None:
        if isinstance(module, nn.Linear):
            flops[0] += 2 * module.in_features * output.numel()
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            flops[0] += 2 * module.weight[0].numel() * output.numel()
        elif isinstance(module, nn.LSTM):
            rows = output[0].size(0) * output[0].size(1)
            flops[0] += 2 * rows * (module.weight_ih_l0.numel() + module.weight_hh_l0.numel())
        elif hasattr(module, "flops"):
            flops[0] += module.flops(output)

    hooks = [m.register_forward_hook(count) for m in model.modules()]
    training = model.training
    device = model.feat_mean.device
    with torch.no_grad():
        model.eval()(torch.zeros(1, frames, model.feat_dim, device=device), torch.tensor([frames], device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return flops[0] / frames / 1e6
