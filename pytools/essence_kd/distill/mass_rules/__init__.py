"""Mass rules: what becomes of the mass that selection leaves out. One file of this package is one rule.

A rule says what is stored of the kept probabilities (`MassRule.apply`), and what the loss makes of what is stored
(`MassRule.target`). ``@register_mass_rule`` adds one from any module (distill/rules has an example).

Legend: T frames, n entries of all frames together; in the loss N frames, k entries a frame.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.distill.parameters import Parametrised, registers
from essence_kd.io.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class MassRule(Parametrised):
    """The base of mass rules; itself it leaves entries as they are."""

    rescales: ClassVar[bool] = False  # what is stored no longer tells the posterior's own values
    scale_free: ClassVar[bool] = False  # the same whatever all entries of a frame are multiplied with

    def reference(self, probs: Sequence[float]) -> Tuple[List[float], float]:
        """The definition: a frame's kept probabilities -> its soft target, and the mass of one more class "everything
        else" (0: there is none)."""
        raise NotImplementedError

    def apply(self, offsets: np.ndarray, probs: np.ndarray) -> np.ndarray:
        """What is stored: frame t has the entries offsets[t] to offsets[t + 1] of ``probs`` (n,) -> (n,).

        Raises FrameError for a frame that has no target.
        """
        return probs

    def target(self, probs: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """What the loss makes of it: stored (N, k) -> the soft target (N, k) and the mass (N,) of the class "everything
        else" (None: there is none). An entry of 0 and a frame of zeros are padding and stay so."""
        return probs, None


MASS_RULES: Registry = Registry("mass rule", __name__)
register_mass_rule = registers(MASS_RULES)
