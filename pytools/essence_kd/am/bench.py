"""Speed of a training step with essence targets, against hard labels alone and against dense soft targets."""
from __future__ import annotations

import copy
import statistics
import time
from dataclasses import replace
from typing import Any, Dict, List, Optional

import torch

from essence_kd.am.models.acoustic_model import mflop_per_frame, num_params
from essence_kd.am.models.registry import build_model
from essence_kd.am.optim import parameter_groups, take_average
from essence_kd.am.processes import Processes, precision_of
from essence_kd.am.settings import TrainSettings
from essence_kd.distill.losses import make_loss
from essence_kd.distill.losses.cross_entropy import multitask_loss
from essence_kd.io.errors import UserError
from essence_kd.io.resources import model_file
from essence_kd.io.settings import load_settings

BASE = "hard labels alone"


class StepBench:
    """One model, one batch on the host, and three kinds of targets for it; a step does what the trainer's does."""

    def __init__(self, settings: TrainSettings, *, pdfs: int, k: int, feat_dim: int, chunks: Optional[int] = None,
                 device: Optional[str] = None) -> None:
        """``chunks`` of data.chunk_frames random frames, with context, make the batch.

        None: 4 of them on a CPU, and as many as data.batch_frames holds on a GPU.
        """
        if not 1 <= k <= pdfs:
            raise UserError(f"--top-k {k}: must be from 1 to the {pdfs} pdfs")
        if chunks is not None and chunks < 1:
            raise UserError(f"--chunks {chunks}: must be at least 1")
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        d, factor = settings.data, settings.frame_subsampling_factor
        self.settings, self.device = settings, Processes(device).device
        self.precision = precision_of(settings.precision, self.device)
        self.model = build_model(settings.arch, settings.model, feat_dim=feat_dim, num_pdfs=pdfs,
                                 frame_subsampling_factor=factor).to(self.device)
        self.soft_loss = make_loss(settings.distill.loss, settings.distill.parameters, "settings: distill")
        self.mflop, self.params = mflop_per_frame(self.model), num_params(self.model)
        self.average = copy.deepcopy(self.model)
        groups = parameter_groups(self.model, settings.optim.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        size = d.chunk_frames + d.left_context + d.right_context
        if chunks is None:
            chunks = 4 if self.device.type == "cpu" else max(1, d.batch_frames // size)
        self.frames = chunks * size
        self.feats, self.lens = torch.randn(chunks, size, feat_dim), torch.full((chunks,), size)
        self.select = torch.zeros(chunks, -(-size // factor), dtype=torch.bool)
        self.select[:, d.left_context // factor:(d.left_context + d.chunk_frames) // factor] = True
        rows = int(self.select.sum())
        self.hard = torch.randint(pdfs, (rows,))
        dense = torch.softmax(6.6 * torch.randn(rows, pdfs), 1)
        probs, ids = dense.topk(k)
        self.targets = {BASE: (None, None), f"essence, k = {k}": (ids, probs), "all soft labels, dense": (None, dense)}

    def step(self, ids: Optional[torch.Tensor], probs: Optional[torch.Tensor]) -> float:
        """A step of training; its loss."""
        s, device = self.settings, self.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.model(self.feats.to(device), self.lens.to(device), select=self.select.to(device))
        hard = self.hard.to(device)
        if probs is None:
            loss = multitask_loss(logits.float(), hard, soft_weight=0.0)
        else:
            d = s.distill
            loss = self.soft_loss(logits.float(), hard, None if ids is None else ids.to(device), probs.to(device),
                                  soft_weight=d.soft_weight, temperature=d.temperature, mass=d.mass)
        self.optimiser.zero_grad(set_to_none=True)
        (loss.total / len(hard)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.optim.grad_clip)
        self.optimiser.step()
        take_average(self.average, self.model, s.optim.ema_decay)
        return float(loss.total.detach())

    def run(self, repeats: int) -> List[Dict[str, Any]]:
        """A result a kind of target: medians of a step's seconds and of its ratio to hard labels, a GPU's peak memory.

        ``tflops`` (10^12 operations per second) counts a step as three forward passes over all frames of the batch.
        Steps are taken in turns. On a CPU the seconds are the processor's, which other work on the machine disturbs
        less.
        """
        self.model.train()
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        seconds: Dict[str, List[float]] = {name: [] for name in self.targets}
        for turn in range(repeats + 1):
            for name, target in self.targets.items():
                began = clock()
                self.step(*target)  # it ends by asking the device for a number
                if turn:
                    seconds[name].append(clock() - began)
        rows = []
        for name, times in seconds.items():
            ids, probs = self.targets[name]
            held = sum(t.numel() * t.element_size() for t in (ids, probs) if t is not None)
            peak = None
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                self.step(ids, probs)
                peak = torch.cuda.max_memory_allocated()
            rows.append({"name": name, "seconds": statistics.median(times),
                         "frames_per_second": self.frames / statistics.median(times),
                         "tflops": 3e-6 * self.mflop * self.frames / statistics.median(times), "target_bytes": held,
                         "ratio": statistics.median(a / b for a, b in zip(times, seconds[BASE])), "peak_bytes": peak})
        return rows


def step_seconds(steps: int = 12) -> float:
    """Seconds of a training step of conf/models/student_tdnn.yaml on one core: the median of so many steps.

    The clock's seconds, not the processor's: what else the machine does counts.
    """
    settings = replace(load_settings(TrainSettings, model_file("student_tdnn")), threads=1)
    bench = StepBench(settings, pdfs=400, k=20, feat_dim=40, chunks=7, device="cpu")
    bench.model.train()
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        bench.step(*bench.targets["essence, k = 20"])
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def table(rows: List[Dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| targets | seconds per step | frames/s | against hard labels | targets of a batch | peak memory |",
             "|---|---|---|---|---|---|"]
    for r in rows:
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e9:.2f} GB"
        lines.append(f"| {r['name']} | {r['seconds']:.3f} | {r['frames_per_second']:,.0f} | {r['ratio']:.3f} × | "
                     f"{r['target_bytes'] / 1e6:.2f} MB | {peak} |")
    return "\n".join(lines)
