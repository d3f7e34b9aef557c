"""cross-entropy: hard and soft cross-entropy fused, without a dense target.

Legend: N frames (time and batch flattened), C pdfs, k entries per frame, T temperature, z logits (N, C),
p = softmax(z / T), q the soft target, M = sum of q over a frame's entries.

    soft loss of a frame    -sum_c q(c) log p(c)                        gradient (M p - q) / T
    with residual mass r    ... - r log(1 - sum of p over the entries)
    multitask               (1 - soft_weight) CE(hard) + soft_weight T^2 CE(q, student at T)

The gradient is a scaled softmax minus a sparse scatter, so neither a dense target nor log-probabilities of all
classes are ever stored: logits are walked through in blocks of rows that fit in a cache, once forward and once
backward.
"""
from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from essence_kd.distill.essence import EssenceSettings
from essence_kd.distill.losses import (Loss, MultitaskLoss, hard_labels, loss_dtype, multitask, register_loss,
                                       soft_target)
from essence_kd.distill.mass_rules import MassRule

_CPU_BLOCK = 1 << 19  # elements of a block of rows: about what a core's second-level cache holds
_SHARED_BLOCK = 1 << 22  # with several threads: every operation is a meeting of threads, so there must be fewer
_GPU_BLOCK = 1 << 27


class _Terms(torch.autograd.Function):
    """Per-frame cross-entropies (hard at T = 1, soft at T), each (N,) float.

    ``hard`` (N,) int64 or None, ``valid`` (N,) bool or None; the soft target is either sparse (``ids`` (N, k) int64,
    ``q`` (N, k)) with the optional bucket ``rest`` (N,), or dense (``ids`` None, ``q`` (N, C)).
    """

    @staticmethod
    def forward(ctx, logits, hard, valid, ids, q, rest, temperature):
        n = logits.shape[0]
        dtype = loss_dtype(logits)
        hard_loss = logits.new_zeros(n, dtype=dtype)
        soft_loss = logits.new_zeros(n, dtype=dtype)
        log_rest = None if rest is None else logits.new_zeros(n, dtype=dtype)
        blocks = _blocks(logits)
        scratch = torch.empty_like(logits[blocks[0]], dtype=dtype) if blocks else None
        for rows in blocks:
            z = logits[rows].to(dtype)
            logp = None
            if hard is not None:
                logp = torch.log_softmax(z, 1, out=scratch[:len(z)])
                hard_loss[rows] = -logp.gather(1, hard[rows, None])[:, 0]
            if q is None:
                continue
            if logp is None or temperature != 1:
                logp = torch.log_softmax(z if temperature == 1 else z / temperature, 1, out=scratch[:len(z)])
            if ids is None:
                soft_loss[rows] = -(logp * q[rows]).sum(1)
                continue
            logp_at = logp.gather(1, ids[rows])
            # 0 * -inf would be nan: an entry without mass says nothing about the class
            soft = -torch.where(q[rows] == 0, torch.zeros_like(logp_at), q[rows] * logp_at).sum(1)
            if rest is not None:
                others = _without(logp.exp_(), ids[rows], q[rows])
                log_rest[rows] = others.sum(1).clamp_min_(torch.finfo(dtype).tiny).log_()
                soft = soft - rest[rows] * log_rest[rows]
            soft_loss[rows] = soft
        if valid is not None:
            hard_loss.masked_fill_(~valid, 0)
            soft_loss.masked_fill_(~valid, 0)
        ctx.save_for_backward(logits, hard, valid, ids, q, rest, log_rest)
        ctx.temperature = temperature
        return hard_loss, soft_loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_hard, grad_soft):
        logits, hard, valid, ids, q, rest, log_rest = ctx.saved_tensors
        t = ctx.temperature
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        dtype = grad_hard.dtype
        if valid is not None:
            grad_hard = grad_hard.masked_fill(~valid, 0)
            grad_soft = grad_soft.masked_fill(~valid, 0)
        same = grad.dtype == dtype  # then the gradient is made in its place
        for rows in _blocks(logits):
            z = logits[rows].to(dtype)
            g_hard, g_soft = grad_hard[rows, None], grad_soft[rows, None] / t
            shared = hard is not None and q is not None and t == 1 and rest is None
            if shared:  # one softmax serves both terms
                out = torch.softmax(z, 1, out=grad[rows]) if same else torch.softmax(z, 1)
                out.mul_(g_hard + g_soft * q[rows].sum(1, keepdim=True))
                out.scatter_add_(1, hard[rows, None], -g_hard)
                _subtract(out, ids if ids is None else ids[rows], g_soft * q[rows])
            else:
                out = grad[rows] if same else torch.empty_like(z)
                if hard is not None:
                    torch.softmax(z, 1, out=out)
                    out.mul_(g_hard).scatter_add_(1, hard[rows, None], -g_hard)
                if q is not None:
                    soft = torch.softmax(z if t == 1 else z / t, 1, out=out if hard is None else None)
                    mass = q[rows].sum(1, keepdim=True)
                    if rest is None:
                        soft.mul_(g_soft * mass)
                        _subtract(soft, ids if ids is None else ids[rows], g_soft * q[rows])
                    else:
                        r = rest[rows, None]
                        p_at = soft.gather(1, ids[rows])
                        _without(soft, ids[rows], q[rows])  # the entries apart: exact however small the rest is
                        soft.mul_(g_soft * (mass + r - r * (-log_rest[rows, None]).exp()))
                        at = torch.where(q[rows] == 0, torch.zeros_like(p_at), p_at * (mass + r) - q[rows])
                        soft.scatter_add_(1, ids[rows], g_soft * at)
                    if hard is not None:
                        out.add_(soft)
            if not same:
                grad[rows] = out
        return grad, None, None, None, None, None, None


def _blocks(logits: Tensor):
    """Slices of rows, each block of about a cache's size."""
    n, c = logits.shape
    if logits.device.type != "cpu":
        size = _GPU_BLOCK
    else:
        size = _CPU_BLOCK if torch.get_num_threads() == 1 else _SHARED_BLOCK
    step = max(1, size // max(1, c))
    return [slice(i, min(n, i + step)) for i in range(0, n, step)]


def _subtract(out: Tensor, ids: Optional[Tensor], amount: Tensor) -> None:
    """out -= amount, scattered to ``ids`` where they are given; in place."""
    if ids is None:
        out.sub_(amount)
    else:
        out.scatter_add_(1, ids, -amount)


def _without(p: Tensor, ids: Tensor, q: Tensor) -> Tensor:
    """Set p to exactly 0 at the entries that have mass; in place (padding entries may repeat an id)."""
    p_at = p.gather(1, ids)
    return p.scatter_add_(1, ids, torch.where(q == 0, torch.zeros_like(p_at), -p_at))


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction must be sum or none, not {reduction!r}: divide by frames when reporting")
    return loss.sum() if reduction == "sum" else loss


def sparse_soft_cross_entropy(logits: Tensor, ids: Tensor, probs: Tensor, *, temperature: float = 1.0,
                              mass: Union[str, MassRule] = EssenceSettings.mass, reduction: str = "sum") -> Tensor:
    """-sum over entries of q(c) log softmax(logits / temperature)(c), summed over frames.

    ``logits`` (N, C) of any floating type; ``ids`` (N, k) integers below C; ``probs`` (N, k): the essence at
    ``temperature`` (see `retemper`). An entry of probability 0 is padding and a frame of zeros costs nothing (its
    id must still be a class). ``mass``: ``renorm`` scales the entries to 1, ``keep`` takes them as they are,
    ``residual`` adds one class "everything else" on both sides. ``reduction``: ``sum`` or ``none`` (N,).
    Returns float32 (float64 for float64 logits). Raises ValueError for shapes or rules that do not fit.

    >>> import torch
    >>> from essence_kd import sparse_soft_cross_entropy
    >>> logits = torch.zeros(2, 4, requires_grad=True)
    >>> ids, probs = torch.tensor([[0, 2], [1, 3]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    >>> loss = sparse_soft_cross_entropy(logits, ids, probs)  # 2 log 4
    >>> round(loss.item(), 3)
    2.773
    >>> loss.backward()
    >>> logits.grad[0].tolist()  # softmax less target
    [-0.5, 0.25, 0.0, 0.25]
    """
    q, rest = soft_target(logits, ids, probs, temperature, mass)
    loss = _Terms.apply(logits, None, None, ids.long(), q, rest, float(temperature))[1]
    return _reduce(loss, reduction)


def dense_soft_cross_entropy(logits: Tensor, probs: Tensor, *, temperature: float = 1.0,
                             reduction: str = "sum") -> Tensor:
    """-sum over all classes of probs log softmax(logits / temperature); both (N, C); for targets that were not pruned.

    ``probs`` is taken as it is (a row of zeros costs nothing). Returns and raises as `sparse_soft_cross_entropy`.
    """
    q, _ = soft_target(logits, None, probs, temperature)
    loss = _Terms.apply(logits, None, None, None, q, None, float(temperature))[1]
    return _reduce(loss, reduction)


def multitask_loss(logits: Tensor, hard: Tensor, ids: Optional[Tensor] = None, probs: Optional[Tensor] = None, *,
                   soft_weight: float = EssenceSettings.soft_weight, temperature: float = EssenceSettings.temperature,
                   mass: Union[str, MassRule] = EssenceSettings.mass) -> MultitaskLoss:
    """(1 - soft_weight) CE(hard) + soft_weight T^2 CE(q, student at T), summed over the frames that count.

    ``logits`` (N, C); ``hard`` (N,) pdf-ids, -100 where a frame is padding (left out of both terms), -1 where it has no
    hard label (its soft term then has weight 1, its hard one none); the soft target
    is ``ids`` and ``probs`` (N, k), or dense: ``ids`` None and ``probs`` (N, C), or none at all (``probs`` None: the
    hard loss alone, whatever ``soft_weight`` says must then be 0). T^2 keeps the soft gradient's size
    (Hinton et al. 2015). At T = 1 both terms share one softmax. Raises ValueError for shapes that do not fit.

    >>> import torch
    >>> from essence_kd import multitask_loss
    >>> logits, hard = torch.zeros(3, 4, requires_grad=True), torch.tensor([0, 1, -100])  # the last one is padding
    >>> ids = torch.tensor([[0, 2], [1, 3], [0, 0]])
    >>> probs = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.0, 0.0]])
    >>> loss = multitask_loss(logits, hard, ids, probs, soft_weight=0.5)
    >>> (loss.total / loss.num_frames).backward()
    >>> int(loss.num_frames), logits.grad[0].tolist()
    (2, [-0.3125, 0.125, 0.0625, 0.125])
    """
    valid, labels = hard_labels(logits, hard, soft_weight)
    q = rest = None
    if probs is not None:
        q, rest = soft_target(logits, ids, probs, temperature, mass)
        ids = None if ids is None else ids.long()
    elif soft_weight != 0:
        raise ValueError(f"soft_weight is {soft_weight} but there is no soft target")
    hard_terms, soft_terms = _Terms.apply(logits, labels, valid, ids, q, rest, float(temperature))
    return multitask(hard_terms, None if q is None else soft_terms, hard, soft_weight, temperature)


@register_loss
class CrossEntropy(Loss):
    """`multitask_loss`, by one pass over the logits each way."""

    name = "cross-entropy"

    def __call__(self, logits: Tensor, hard: Tensor, ids: Optional[Tensor], probs: Tensor, *, soft_weight: float,
                 temperature: float, mass: Union[str, MassRule]) -> MultitaskLoss:
        return multitask_loss(logits, hard, ids, probs, soft_weight=soft_weight, temperature=temperature, mass=mass)
