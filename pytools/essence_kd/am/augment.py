"""SpecAugment's masks."""
from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

from essence_kd.am.settings import AugmentSettings


def spec_augment(lens: Sequence[int], frames: int, bins: int, settings: AugmentSettings, rng: np.random.Generator,
                 numbers: Optional[Sequence[int]] = None, of: Optional[int] = None) -> np.ndarray:
    """SpecAugment's masks (Park et al., Interspeech 2019, without time warping, which would move the targets).

    ``freq_masks`` bands of 0 to ``freq_width`` bins and ``time_masks`` stretches of 0 to ``time_width`` frames (at most
    a fifth of a chunk) are masked in each. Where the chunks are the ``numbers`` of a batch ``of`` so many, they get the
    masks that they have in the whole batch. Returns (B, frames, bins) float32, 0 where masked.
    """
    keep = np.ones((len(lens), frames, bins), dtype=np.float32)
    draws = rng.random((of or len(lens), settings.freq_masks + settings.time_masks, 2))
    draws = draws if numbers is None else draws[numbers]
    for i, length in enumerate(lens):
        for m, (a, b) in enumerate(draws[i]):
            if m < settings.freq_masks:
                width = int(a * (min(settings.freq_width, bins) + 1))
                start = int(b * (bins - width + 1))
                keep[i, :, start:start + width] = 0.0
            else:
                width = int(a * (min(settings.time_width, length // 5) + 1))
                start = int(b * (length - width + 1))
                keep[i, start:start + width] = 0.0
    return keep
