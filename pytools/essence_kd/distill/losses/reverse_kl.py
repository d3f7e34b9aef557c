"""reverse-kl: the student's divergence from the soft target, over the classes that the target has."""
from __future__ import annotations

import torch
from torch import Tensor

from essence_kd.distill.losses import Loss, register_loss


@register_loss
class ReverseKL(Loss):
    """KL(p || q), both scaled to 1 over the classes that have a target: where the student is wrong it rather holds few
    classes than all (Gu et al., MiniLLM, 2024).

    What the student gives to other classes is left to the hard labels, and to the mass rule residual, with which
    everything else is a class that has a target.
    """

    name = "reverse-kl"

    def soft(self, q: Tensor, p: Tensor) -> Tensor:
        here, tiny = q > 0, torch.finfo(p.dtype).tiny
        log_q = torch.where(here, q, torch.ones_like(q)).log() - q.sum(1, keepdim=True).clamp_min(tiny).log()
        p = torch.where(here, p.clamp_min(tiny), torch.zeros_like(p))
        p = p / p.sum(1, keepdim=True).clamp_min(tiny)
        return (p * (p.clamp_min(tiny).log() - log_q)).sum(1)
