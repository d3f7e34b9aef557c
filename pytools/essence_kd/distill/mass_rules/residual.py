"""residual: stored as keep has it; in the loss, everything else is one more class on both sides."""
from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from essence_kd.distill.mass_rules import MassRule, register_mass_rule

if TYPE_CHECKING:
    from torch import Tensor


@register_mass_rule
class Residual(MassRule):
    """A frame and its class "everything else" sum to 1."""

    name = "residual"

    def reference(self, probs: Sequence[float]) -> Tuple[List[float], float]:
        return list(probs), max(0.0, 1.0 - sum(probs))

    def target(self, probs: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        import torch

        total = probs.sum(1)
        return probs, torch.where(total == 0, total, (1 - total).clamp_min(0))  # a frame without entries is padding
