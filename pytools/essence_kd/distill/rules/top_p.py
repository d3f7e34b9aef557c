"""top-p: the fewest classes that hold a given mass."""
from __future__ import annotations

from typing import Any, Optional

import numpy as np

from essence_kd.distill.entries import Entries
from essence_kd.distill.parameters import parameter
from essence_kd.distill.rules import Frames, PrefixRule, Teachers, by_value, register_rule


@register_rule
class TopP(PrefixRule):
    """The fewest largest whose sum reaches ``top_p``, never more than ``max_k``."""

    name = "top-p"
    top_p: float = parameter(0.95, "top-p: the mass to reach", lambda p: 0 < p <= 1, "above 0 and at most 1")
    max_k: int = parameter(100, "top-p: never more classes than this", lambda k: k >= 1, "1 or more")

    def label(self, base: Any = None) -> str:
        return f"p{self.top_p:g}" + (f"_max{self.max_k}" if base is not None and self.max_k != base.max_k else "")

    def title(self) -> str:
        return f"Mass of {self.top_p:g}"

    def reference(self, probs: np.ndarray, utt: str = "", teachers: Teachers = ()) -> Frames:
        frames = []
        for row in probs:
            entries, mass = [], 0.0
            for c in by_value(row)[:self.max_k]:
                entries.append((c, float(row[c])))
                mass += float(row[c])
                if mass >= self.top_p:
                    break
            frames.append(entries)
        return frames

    def reach(self, columns: Optional[int]) -> Optional[int]:
        return min(self.max_k, columns or self.max_k)

    def trim(self, entries: Entries) -> np.ndarray:
        mass = np.cumsum(entries.probs[:, :self.max_k], axis=1, dtype=np.float64)
        return np.minimum(entries.counts, np.minimum((mass < self.top_p).sum(axis=1) + 1, self.max_k))
