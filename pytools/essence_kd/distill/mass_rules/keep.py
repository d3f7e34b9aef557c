"""keep: the entries at their own probabilities."""
from __future__ import annotations

from typing import List, Sequence, Tuple

from essence_kd.distill.mass_rules import MassRule, register_mass_rule


@register_mass_rule
class Keep(MassRule):
    """A frame sums to the mass that its entries had."""

    name = "keep"

    def reference(self, probs: Sequence[float]) -> Tuple[List[float], float]:
        return list(probs), 0.0
