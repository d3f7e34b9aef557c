"""random-prune: values below a threshold survive at random, so that expectations hold (Kaldi's prob-to-post)."""
from __future__ import annotations

import hashlib
from typing import Any, Optional

import numpy as np

from essence_kd.distill.entries import Entries, put_together, sort_entries
from essence_kd.distill.largest import positions
from essence_kd.distill.parameters import borrowed, parameter
from essence_kd.distill.rules import Frames, Rule, Teachers, register_rule
from essence_kd.distill.rules.min_post import MinPost
from essence_kd.distill.scales import Matrix
from essence_kd.distill.threshold import compiled_over_threshold
from essence_kd.io.parallel import over_rows


@register_rule
class RandomPrune(Rule):
    """All that are ``min_post`` or more; a smaller p is kept with probability p / ``min_post``, at ``min_post``."""

    name = "random-prune"
    needs_every_class = True
    min_post: float = borrowed(MinPost, "min_post")
    seed: int = parameter(0, "seed of random-prune", lambda seed: seed >= 0, "0 or more")

    def label(self, base: Any = None) -> str:
        return f"random{self.min_post:g}" + (f"_draw{self.seed}" if base is not None and self.seed != base.seed else "")

    def title(self) -> str:
        return f"Random below {self.min_post:g}"

    def reference(self, probs: np.ndarray, utt: str = "", teachers: Teachers = ()) -> Frames:
        """Systematic sampling: one uniform start a frame, then a mark every ``min_post`` along the running sum of the
        small values; a value is kept for each mark that falls on it, so with probability value / threshold."""
        threshold, frames = np.float32(self.min_post), []
        for row, start in zip(probs, frame_uniforms(len(probs), self.seed, utt)):
            position, entries = float(start), []
            for c, value in enumerate(row):
                if value >= threshold:
                    entries.append((c, float(value)))
                else:
                    before = np.floor(position)
                    position += float(value) / float(threshold)
                    if np.floor(position) > before:
                        entries.append((c, float(threshold)))
            frames.append(sorted(entries, key=lambda entry: (-entry[1], entry[0])))
        return frames

    def compiled(self, probs: Matrix, utt: str, threads: Optional[int]) -> Optional[Entries]:
        starts = frame_uniforms(probs.shape[0], self.seed, utt)
        return compiled_over_threshold(probs, self.min_post, starts, threads)

    def choose(self, probs: np.ndarray, utt: str, threads: Optional[int], teachers: Teachers = ()) -> Entries:
        frames, columns = probs.shape
        threshold, starts = np.float32(self.min_post), frame_uniforms(frames, self.seed, utt)
        size = 64  # columns of a block; only blocks on which a mark falls are looked at again
        num = -(-columns // size)
        ones = np.ones(size)
        parts: dict = {}

        def work(rows: slice) -> None:
            x = probs[rows]
            big_row, big_id = positions(x >= threshold)
            small = np.empty((len(x), num * size))
            small[:, :columns] = x
            small[:, columns:] = 0
            small[big_row, big_id] = 0
            ends = np.cumsum((small.reshape(-1, size) @ ones).reshape(len(x), num), axis=1)
            ends /= np.float64(threshold)
            ends += starts[rows, None]
            begins = np.concatenate([starts[rows, None], ends[:, :-1]], axis=1)
            row, block = positions(np.floor(ends) > np.floor(begins))
            inner = np.cumsum(small.reshape(-1, size)[row * num + block], axis=1)
            inner /= np.float64(threshold)
            inner += begins[row, block, None]
            before = np.concatenate([begins[row, block, None], inner[:, :-1]], axis=1)
            hit, column = positions(np.floor(inner) > np.floor(before))
            parts[rows.start] = (rows.start + np.concatenate([big_row, row[hit]]),
                                 np.concatenate([big_id, block[hit] * size + column]),
                                 np.concatenate([x[big_row, big_id], np.full(len(hit), threshold)]))

        over_rows(work, frames, columns, threads)
        rows, ids, values = put_together(parts)
        alone = np.flatnonzero(np.bincount(rows, minlength=frames) == 0)
        best = np.argmax(probs[alone], axis=1)
        rows, ids, values = (np.concatenate(pair) for pair in
                             ((rows, alone), (ids, best), (values, probs[alone, best])))
        order = np.argsort(rows, kind="stable")
        return sort_entries(rows[order], ids[order], values[order], frames)

    def choose_sparse(self, rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int, utt: str) -> Entries:
        order = np.lexsort((ids, rows))  # by frame and pdf-id
        ids, probs = ids[order], probs[order]
        threshold = np.float32(self.min_post)
        large = probs >= threshold
        steps = np.where(large, 0, probs.astype(np.float64) / np.float64(threshold))
        counts = np.bincount(rows, minlength=frames)
        width = int(counts.max(initial=0))
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        padded = np.zeros((frames, width + 1))
        padded[:, 0] = frame_uniforms(frames, self.seed, utt)
        padded[rows, place + 1] = steps
        marks = np.diff(np.floor(np.cumsum(padded, axis=1)), axis=1)[rows, place] > 0
        kept = large | marks
        alone = (np.bincount(rows, weights=kept, minlength=frames) == 0) & (counts > 0)
        if alone.any():
            entries = sort_entries(rows, ids, probs, frames)
            position = np.full((frames, 1), -1, np.int64)
            position[alone, 0] = entries.ids[alone, 0]
            kept |= ids == position[rows, 0]
        values = np.where(marks, threshold, probs)
        return sort_entries(rows[kept], ids[kept], values[kept], frames)


def frame_uniforms(num_frames: int, seed: int, utt: str) -> np.ndarray:
    """(num_frames,) float64 in [0, 1): the same for an utterance however the work is split into jobs."""
    digest = hashlib.sha256(f"{seed} {utt}".encode("utf-8")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little"))).random(num_frames)
