"""Combination and selection where the logits are: torch tensors on any device, so that a GPU keeps its posteriors.

The definitions are those of `ensemble` and `essence`; probabilities are float32 throughout, so that a value may differ
from the host's by rounding. Order and ties are exact: every element has a key of its own (its bits, then its pdf-id),
and the k largest keys lie in the k blocks whose largest keys are largest.
"""
from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from essence_kd.distill.ensemble import Ensemble

_LOW = 0xFFFFFFFF


def combine(ensemble: Ensemble, logits: Sequence[Tensor], log_priors: Sequence[Optional[Tensor]]) -> Tensor:
    """The ensemble's posterior: M tensors of logits (N, C) -> (N, C) float32 probabilities, on their device."""
    result = None
    for z, scale, prior, weight in zip(logits, ensemble.scales, log_priors, ensemble.weights):
        if weight == 0:
            continue
        z = z.float()
        if scale.temperature != 1:
            z = z / scale.temperature
        if prior is not None:
            z = z - prior
        term = torch.softmax(z, 1) if ensemble.combine == "mean" else z
        result = term.mul_(weight) if result is None and ensemble.combine == "mean" else (
            term * weight if result is None else result.add_(term, alpha=weight))
    return result if ensemble.combine == "mean" else torch.softmax(result, 1)


def top_k(probs: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """The k largest of each row: (N, C) float32, not negative -> ids (N, k) int32, probs (N, k) float32.

    Falling probability, ties by rising pdf-id. Raises ValueError when k is not in 1..C.
    """
    rows, columns = probs.shape
    if not 1 <= k <= columns:
        raise ValueError(f"k is {k}, but must be from 1 to the {columns} pdfs there are")
    size = max(1, min(16, int(round((columns / k) ** 0.5))))
    count = -(-columns // size)
    ids = torch.arange(columns, device=probs.device)
    keys = (probs + 0.0).view(torch.int32).long() << 32 | (_LOW - ids)  # floats that are not negative sort as integers
    if count * size > columns:
        keys = torch.nn.functional.pad(keys, (0, count * size - columns), value=-1)
    blocks = keys.view(rows, size, count)
    chosen = blocks.amax(1).topk(k, dim=1).indices
    best = blocks.gather(2, chosen[:, None, :].expand(-1, size, -1)).flatten(1).topk(k, dim=1).values
    return (_LOW - (best & _LOW)).int(), (best >> 32).int().view(torch.float32)
