"""top-k: the k largest."""
from __future__ import annotations

from typing import Any, Optional

import numpy as np

from essence_kd.distill.entries import Entries
from essence_kd.distill.parameters import parameter
from essence_kd.distill.rules import Frames, PrefixRule, Teachers, by_value, register_rule


@register_rule
class TopK(PrefixRule):
    """The ``top_k`` largest, ties to the lower pdf-id."""

    name = "top-k"
    by_order = True
    top_k: int = parameter(20, "classes per frame", lambda k: k >= 1, "1 or more", key="k")

    def label(self, base: Any = None) -> str:
        return f"k{self.top_k}"

    def title(self) -> str:
        return f"k = {self.top_k}"

    def reference(self, probs: np.ndarray, utt: str = "", teachers: Teachers = ()) -> Frames:
        return [[(c, float(row[c])) for c in by_value(row)[:self.top_k]] for row in probs]

    @property
    def exact(self) -> Optional[int]:
        return self.top_k

    def reach(self, columns: Optional[int]) -> Optional[int]:
        return self.top_k

    def trim(self, entries: Entries) -> np.ndarray:
        return np.minimum(entries.counts, self.top_k)
