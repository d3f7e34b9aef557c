"""renorm: the entries of a frame are scaled to 1."""
from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.distill.entries import mass_of
from essence_kd.distill.mass_rules import MassRule, register_mass_rule
from essence_kd.distill.scales import FrameError

if TYPE_CHECKING:
    from torch import Tensor


@register_mass_rule
class Renorm(MassRule):
    """A frame sums to 1."""

    name = "renorm"
    rescales = scale_free = True

    def reference(self, probs: Sequence[float]) -> Tuple[List[float], float]:
        return [p / sum(probs) for p in probs], 0.0

    def apply(self, offsets: np.ndarray, probs: np.ndarray) -> np.ndarray:
        counts, mass = np.diff(offsets), mass_of(offsets, probs)
        empty = (mass <= 0) & (counts > 0)
        if empty.any():
            raise FrameError(int(np.argmax(empty)), "its entries have no mass, so they cannot be scaled to 1")
        if len(counts) and (counts == counts[0]).all():
            return (probs.reshape(len(counts), -1) / mass[:, None]).astype(np.float32).reshape(-1)
        return probs / np.repeat(mass, counts)

    def target(self, probs: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        import torch

        total = probs.sum(1)
        return probs / torch.where(total == 0, torch.ones_like(total), total)[:, None], None
