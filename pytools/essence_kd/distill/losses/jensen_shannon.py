"""jensen-shannon: the (skewed) Jensen-Shannon divergence of student and soft target."""
from __future__ import annotations

import torch
from torch import Tensor

from essence_kd.distill.losses import Loss, register_loss
from essence_kd.distill.parameters import parameter


@register_loss
class JensenShannon(Loss):
    """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p, which is bounded.

    Agarwal et al., On-Policy Distillation of Language Models (2024). A class outside a sparse target has q = 0 and
    costs -(1 - beta) log(1 - beta) p, which is linear in p, so that their sum is all that is needed.
    """

    name = "jensen-shannon"
    beta: float = parameter(0.5, "weight of the soft target in the mean", lambda beta: 0 < beta < 1,
                            "above 0 and below 1")

    def soft(self, q: Tensor, p: Tensor) -> Tensor:
        tiny = torch.finfo(p.dtype).tiny
        p = p.clamp_min(tiny)
        log_m = (self.beta * q + (1 - self.beta) * p).clamp_min(tiny).log()
        log_q = torch.where(q > 0, q, torch.ones_like(q)).log()
        return (self.beta * q * (log_q - log_m) + (1 - self.beta) * p * (p.log() - log_m)).sum(1)
