"""Mass rules: what becomes of the mass that selection leaves out. One file of this package is one rule.

A rule says what is stored of the kept probabilities (`MassRule.apply`), and what the loss makes of what is stored
(`MassRule.target`). ``@register_mass_rule`` adds one from any module (distill/rules has an example).

Legend: T frames, n entries of all frames together; in the loss N frames, k entries per frame.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, List, Optional, Sequence, Tuple, Type, TypeVar

import numpy as np

from essence_kd.distill.parameters import Parametrised, add_to
from essence_kd.io.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class MassRule(Parametrised):
    """The base of mass rules; itself it leaves entries as they are. `register_mass_rule` shows one of one's own.

    >>> from essence_kd import EssenceSettings, MassRule
    >>> rule = EssenceSettings(mass="renorm").mass_rule()
    >>> isinstance(rule, MassRule), rule.reference([0.25, 0.25])
    (True, ([0.5, 0.5], 0.0))
    """

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


T = TypeVar("T", bound=MassRule)
MASS_RULES: Registry = Registry("mass rule", __name__)


def register_mass_rule(cls: Type[T]) -> Type[T]:
    """Class decorator: a subclass of `MassRule` becomes the mass rule of its ``name``, a dataclass of its parameters.

    Raises UserError for a name that another mass rule has.

    >>> import numpy as np
    >>> from essence_kd import EssenceSettings, MassRule, register_mass_rule, select
    >>> @register_mass_rule
    ... class Even(MassRule):
    ...     name = "even"
    ...
    ...     def reference(self, probs):
    ...         return [1 / len(probs) for _ in probs], 0.0
    ...
    ...     def apply(self, offsets, probs):
    ...         counts = offsets[1:] - offsets[:-1]
    ...         return (1 / counts).repeat(counts)
    >>> select(np.array([[0.125, 0.75, 0.125]], np.float32), EssenceSettings(top_k=2, mass="even")).probs.tolist()
    [0.5, 0.5]
    """
    return add_to(MASS_RULES, cls)
