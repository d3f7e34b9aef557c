"""The optimiser, the learning rate of a step, and the moving average of parameters."""
from __future__ import annotations

import math
from typing import List

import torch

from essence_kd.am.settings import OptimSettings


def parameter_groups(model, weight_decay: float) -> List[dict]:
    """Parameter groups: matrices decay, biases and normalisation do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_optimiser(model, optim: OptimSettings) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters of ``model``."""
    groups = parameter_groups(model, optim.weight_decay)
    if optim.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(0.9, 0.98), fused=True)


def learning_rate(optim: OptimSettings, done: float) -> float:
    """The learning rate when ``done`` (0 to 1) of the training is over."""
    if done < optim.warmup:
        return optim.lr * (0.01 + 0.99 * done / optim.warmup)
    x = (done - optim.warmup) / (1.0 - optim.warmup)
    if optim.schedule == "exponential":
        return optim.lr * optim.final_lr ** x
    shape = 0.5 * (1 + math.cos(math.pi * x)) if optim.schedule == "cosine" else 1 - x
    return optim.lr * (optim.final_lr + (1 - optim.final_lr) * shape)


@torch.no_grad()
def take_average(average, model, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers()):
        mine.copy_(theirs)
