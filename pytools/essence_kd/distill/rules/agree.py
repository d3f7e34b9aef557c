"""agree: classes on which several teachers agree."""
from __future__ import annotations

from typing import Any, Optional

import numpy as np

from essence_kd.distill.entries import Entries, sort_entries
from essence_kd.distill.largest import top_k
from essence_kd.distill.parameters import borrowed, parameter
from essence_kd.distill.rules import Frames, Rule, Teachers, by_value, register_rule
from essence_kd.distill.rules.top_k import TopK


@register_rule
class Agree(Rule):
    """Classes that at least ``agree`` teachers hold among their own ``top_k``, at the combined posterior's value."""

    name = "agree"
    needs_teachers = True
    top_k: int = borrowed(TopK, "top_k")
    agree: int = parameter(2, "agree: teachers that must hold a class", lambda n: n >= 1, "1 or more")

    def label(self, base: Any = None) -> str:
        return f"agree{self.agree}-k{self.top_k}"

    def title(self) -> str:
        return f"In the {self.top_k} best of {self.agree} teachers"

    def usual(self) -> float:
        return float(self.top_k)

    def reference(self, probs: np.ndarray, utt: str = "", teachers: Teachers = ()) -> Frames:
        frames = []
        for t, row in enumerate(probs):
            votes = [0] * len(row)
            for teacher in teachers:
                for c in by_value(teacher[t])[:self.top_k]:
                    votes[c] += 1
            frames.append([(c, float(row[c])) for c in by_value(row) if votes[c] >= self.agree])
        return frames

    def choose(self, probs: np.ndarray, utt: str, threads: Optional[int], teachers: Teachers = ()) -> Entries:
        if self.agree > len(teachers):
            raise ValueError(f"agree is {self.agree}, but there are {len(teachers)} teachers")
        frames, columns = probs.shape
        held = [top_k(teacher, self.top_k, threads=threads)[0] for teacher in teachers]
        cells = np.concatenate([(ids + np.arange(frames, dtype=np.int64)[:, None] * columns).ravel() for ids in held])
        best = np.argmax(probs, axis=1) + np.arange(frames, dtype=np.int64) * columns
        cells, votes = np.unique(cells, return_counts=True)
        cells = cells[votes >= self.agree]
        alone = np.bincount(cells // columns, minlength=frames) == 0
        cells = np.sort(np.concatenate([cells, best[alone]]))
        rows, ids = np.divmod(cells, columns)
        return sort_entries(rows, ids, probs.ravel()[cells], frames)
