"""min-post: all classes from a threshold on."""
from __future__ import annotations

from typing import Any, Optional

import numpy as np

from essence_kd.distill.entries import Entries, put_together, sort_entries
from essence_kd.distill.largest import positions
from essence_kd.distill.parameters import parameter
from essence_kd.distill.rules import Frames, PrefixRule, Teachers, by_value, register_rule
from essence_kd.distill.scales import Matrix
from essence_kd.distill.threshold import compiled_over_threshold
from essence_kd.io.parallel import over_rows


@register_rule
class MinPost(PrefixRule):
    """All that are ``min_post`` or more."""

    name = "min-post"
    min_post: float = parameter(0.01, "min-post and random-prune: the threshold", lambda p: 1e-30 <= p <= 1,
                                "at least 1e-30 and at most 1")

    def label(self, base: Any = None) -> str:
        return f"min{self.min_post:g}"

    def title(self) -> str:
        return f"At least {self.min_post:g}"

    def reference(self, probs: np.ndarray, utt: str = "", teachers: Teachers = ()) -> Frames:
        return [[(c, float(row[c])) for c in by_value(row) if row[c] >= np.float32(self.min_post)] for row in probs]

    def trim(self, entries: Entries) -> np.ndarray:
        inside = np.arange(entries.probs.shape[1]) < entries.counts[:, None]
        enough = ((entries.probs >= np.float32(self.min_post)) & inside).sum(axis=1)
        return np.minimum(entries.counts, np.maximum(enough, 1))

    def compiled(self, probs: Matrix, utt: str, threads: Optional[int]) -> Optional[Entries]:
        return compiled_over_threshold(probs, self.min_post, None, threads)

    def choose(self, probs: np.ndarray, utt: str, threads: Optional[int], teachers: Teachers = ()) -> Entries:
        """Every probability of a row that reaches the threshold, and the row's largest."""
        frames, columns = probs.shape
        parts: dict = {}

        def work(rows: slice) -> None:
            x = probs[rows]
            row, column = positions(x >= np.minimum(np.float32(self.min_post), x.max(axis=1))[:, None])
            parts[rows.start] = rows.start + row, column, x[row, column]

        over_rows(work, frames, columns, threads)
        row, column, kept = put_together(parts)
        return sort_entries(row, column, kept, frames)
