"""Losses of the student: hard labels and soft targets together. One file of this package is one loss.

    multitask    (1 - soft_weight) CE(hard) + soft_weight T^2 soft

A loss is a class with a ``name``, annotated fields that are its parameters, and `Loss.soft`, the loss of each frame's
soft target. ``distill.loss`` of a model's YAML names it, ``distill.parameters`` has its parameters. A module of
somebody else's adds one like this, and is named in the environment variable ESSENCE_PLUGINS (io/registry.py)::

    @register_loss
    class Brier(Loss):
        name = "brier"

        def soft(self, q, p):
            return ((q - p) ** 2).sum(1)

Legend: N frames (time and batch flattened), C pdfs, k entries per frame, T temperature, logits (N, C). Losses are sums
over frames; whoever reports divides by the frames.
"""
from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Optional, Tuple, Type, TypeVar, Union

import torch
from torch import Tensor

from essence_kd.distill.essence import EssenceSettings
from essence_kd.distill.mass_rules import MASS_RULES, MassRule
from essence_kd.distill.parameters import Parametrised, add_to, build
from essence_kd.io.errors import UserError
from essence_kd.io.registry import Registry

PADDING = -100  # the hard label of a padded frame
UNLABELLED = -1  # that of a frame without one, which learns from its soft target alone


class MultitaskLoss(NamedTuple):
    """Sums over the frames that are not padding; divide by ``num_frames`` to report."""

    total: Tensor  # (1 - soft_weight) * hard + soft_weight * T^2 * soft, see `multitask`; float32 with gradient
    hard: Tensor  # cross-entropy against the alignment, of frames that have a hard label, detached
    soft: Tensor  # the soft loss at temperature T (without T^2), detached
    num_frames: Tensor  # int64 scalar: frames that are not padding (on the device of the logits)


class Loss(Parametrised):
    """The base of losses; `register_loss` shows one of one's own.

    T^2 keeps the soft gradient's size (Hinton et al. 2015).

    >>> import torch
    >>> from essence_kd import Loss
    >>> from essence_kd.distill.losses import make_loss
    >>> loss = make_loss("jensen-shannon", {"beta": 0.5}, "example")
    >>> q = torch.tensor([[0.5, 0.5]])  # the soft target, and what the student gives to the same classes
    >>> isinstance(loss, Loss), loss.soft(q, q).item()
    (True, 0.0)
    """

    def soft(self, q: Tensor, p: Tensor) -> Tensor:
        """The loss of each frame: the soft target and what the student gives to the same classes, (N, k) each -> (N,).

        With a sparse target the classes are its entries, in any order, and everything else as one more; in ``q`` that
        is 0 unless the mass rule says otherwise. With a dense target they are all classes. Where there is no entry,
        both are 0.
        """
        raise NotImplementedError

    def __call__(self, logits: Tensor, hard: Tensor, ids: Optional[Tensor], probs: Tensor, *, soft_weight: float,
                 temperature: float, mass: Union[str, MassRule]) -> MultitaskLoss:
        """The multitask loss, summed over the frames that count; arguments are those of `cross_entropy.multitask_loss`.

        A frame whose soft target has no mass costs nothing beyond its hard label. Raises ValueError for shapes that do
        not fit.
        """
        valid, labels = hard_labels(logits, hard, soft_weight)
        q, rest = soft_target(logits, ids, probs, temperature, mass)
        z = logits.to(loss_dtype(logits))
        hard_terms = torch.nn.functional.cross_entropy(z, labels, reduction="none").masked_fill(~valid, 0)
        p = torch.softmax(z / temperature, 1)
        if ids is not None:
            q, p = _pairs(q, rest, ids.long(), p)
        soft_terms = self.soft(q, p).masked_fill(~(valid & (q.sum(1) > 0)), 0)
        return multitask(hard_terms, soft_terms, hard, soft_weight, temperature)


T = TypeVar("T", bound=Loss)
LOSSES: Registry = Registry("loss", __name__)


def register_loss(cls: Type[T]) -> Type[T]:
    """Class decorator: a subclass of `Loss` becomes the loss of its ``name``, a dataclass of its parameters.

    Raises UserError for a name that another loss has.

    >>> import torch
    >>> from essence_kd import Loss, register_loss
    >>> @register_loss
    ... class Brier(Loss):
    ...     name = "brier"
    ...
    ...     def soft(self, q, p):
    ...         return ((q - p) ** 2).sum(1)
    >>> logits, hard = torch.zeros(1, 4), torch.tensor([2])
    >>> ids, probs = torch.tensor([[2, 3]]), torch.tensor([[0.75, 0.25]])
    >>> Brier()(logits, hard, ids, probs, soft_weight=1.0, temperature=1.0, mass="renorm").total.item()
    0.5
    """
    return add_to(LOSSES, cls)


def make_loss(name: str, parameters: Mapping[str, Any], where: str) -> Loss:
    """A loss with its parameters. Raises UserError that starts with ``where`` (a file) for what has no meaning."""
    try:
        return build(LOSSES.get(name, where), parameters, f"{where}: parameters of the loss {name}")
    except ValueError as error:
        raise UserError(f"{where}: loss {name}: {error}") from None


def multitask(hard_terms: Tensor, soft_terms: Optional[Tensor], hard: Tensor, soft_weight: float,
              temperature: float) -> MultitaskLoss:
    """The loss of N frames of their terms (N,), which are 0 where ``hard`` (N,) is PADDING; no soft terms: None.

    Where ``hard`` is UNLABELLED, the soft term has weight 1 and the hard one none, whatever ``soft_weight`` says.
    """
    unlabelled = hard == UNLABELLED
    hard_sum = hard_terms.masked_fill(unlabelled, 0).sum()
    total, soft_sum = (1 - soft_weight) * hard_sum, torch.zeros_like(hard_sum)
    if soft_terms is not None:
        soft_sum, alone = soft_terms.sum(), soft_terms.masked_fill(~unlabelled, 0).sum()
        total = total + soft_weight * temperature ** 2 * soft_sum + (1 - soft_weight) * temperature ** 2 * alone
    return MultitaskLoss(total, hard_sum.detach(), soft_sum.detach(), (hard != PADDING).sum())


def _pairs(q: Tensor, rest: Optional[Tensor], ids: Tensor, p: Tensor) -> Tuple[Tensor, Tensor]:
    """Target and student (N, k + 1) of the entries and of everything else; p (N, C). Padding may repeat an id."""
    here = q > 0
    p_at = torch.where(here, p.gather(1, ids), torch.zeros_like(q))
    others = p.scatter_add(1, ids, -p_at).sum(1)  # not 1 - p_at: exact however small it is
    rest = torch.zeros_like(others) if rest is None else rest
    return torch.cat([q, rest[:, None]], 1), torch.cat([p_at, others[:, None]], 1)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits (gradient checks), float32 for everything else."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def hard_labels(logits: Tensor, hard: Tensor, soft_weight: float) -> Tuple[Tensor, Tensor]:
    """Which frames count (N,) bool, and their labels (N,) int64, 0 where there is none. Raises ValueError."""
    if not 0 <= soft_weight <= 1:
        raise ValueError(f"soft_weight must be between 0 and 1, not {soft_weight}")
    if hard.dim() != 1 or hard.shape[0] != logits.shape[0]:
        raise ValueError(f"hard labels of shape {tuple(hard.shape)} do not fit logits of shape {tuple(logits.shape)}")
    valid = hard != PADDING
    return valid, torch.where(valid & (hard != UNLABELLED), hard, torch.zeros_like(hard)).long()


def soft_target(logits: Tensor, ids: Optional[Tensor], probs: Tensor, temperature: float,
                mass: Union[str, MassRule] = EssenceSettings.mass) -> Tuple[Tensor, Optional[Tensor]]:
    """The soft target (N, k) and the mass (N,) of everything else (None: there is no such class); dense: as it is.

    Raises ValueError for shapes and rules that do not fit.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits must be (frames, pdfs), not of shape {tuple(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, not {temperature}")
    want = tuple(logits.shape) if ids is None else tuple(ids.shape)
    if tuple(probs.shape) != want or want[0] != logits.shape[0]:
        raise ValueError(f"the soft target's shape {tuple(probs.shape)} does not fit "
                         f"{'the logits' if ids is None else 'the ids'} of shape {want} "
                         f"and {logits.shape[0]} frames of logits")
    probs = probs.to(loss_dtype(logits))
    if ids is None:
        return probs, None
    if isinstance(mass, str):
        if mass not in MASS_RULES:
            raise ValueError(f"mass must be one of {', '.join(MASS_RULES.names())}, not {mass!r}")
        return MASS_RULES.get(mass)().target(probs)
    return mass.target(probs)


def retemper(probs: Tensor, temperature: float, source_temperature: float = 1.0) -> Tensor:
    """An essence at another temperature: p^(T0/T), renormalised over its entries; (N, k) -> (N, k).

    For one teacher, softmax(z/T) restricted to the entries and renormalised equals this, so that targets stored at
    T0 = 1 serve every T. For an ensemble it tempers the combined posterior. Entries of 0 (padding) stay 0.
    """
    if temperature == source_temperature:
        return probs
    if not (temperature > 0 and source_temperature > 0):
        raise ValueError(f"temperatures must be above 0, not {temperature} and {source_temperature}")
    powered = probs.double().pow(source_temperature / temperature)
    total = powered.sum(1, keepdim=True)
    return (powered / torch.where(total == 0, torch.ones_like(total), total)).to(probs.dtype)
