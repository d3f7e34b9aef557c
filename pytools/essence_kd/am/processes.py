"""The processes of one training: those that torchrun started, or this one alone."""
from __future__ import annotations

import ctypes
import os
from datetime import timedelta
from pathlib import Path
from typing import List, Optional, Sequence

import torch

from essence_kd.io.errors import UserError


def device_of(name: Optional[str] = None) -> torch.device:
    """The device called ``name`` (cpu, cuda, cuda:1), by default a GPU if there is one. UserError: it is not here."""
    there = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if there else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; say cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not there or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: there is no such GPU here")
    return device


def precision_of(wanted: str, device: torch.device) -> str:
    """float32 or bfloat16. "auto" is a rule, not a timing: bfloat16 where the hardware multiplies it faster.

    That is CUDA with bfloat16 and CPUs with AMX tiles; with AVX-512 alone, even with its bfloat16 instructions,
    bfloat16 measured 0.7 times as fast as float32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    return "bfloat16" if "amx_bf16" in flags else "float32"


def keep_freed_memory() -> None:
    """Has glibc keep what this process frees, for its next step.

    Handed to the kernel and back, page by page, it cost a TDNN-LSTM of 0.7 million parameters up to a tenth of a
    step's processor time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, the largest that it takes
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


class Processes:
    """Rank, number of processes, and the few things they tell each other; alone, each is a no-op."""

    def __init__(self, device: Optional[str] = None) -> None:
        """Joins the others where torchrun's variables say that there are some (NCCL on GPUs, else gloo)."""
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self.device = device_of(device)
        if self.world == 1:
            return
        kind = self.device.type
        if kind == "cuda":
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local >= torch.cuda.device_count():
                raise UserError(f"process {local} of this machine has no GPU of its own: there are "
                                f"{torch.cuda.device_count()} (torchrun --nproc-per-node)")
            torch.cuda.set_device(local)
            self.device = torch.device("cuda", local)
        # the others wait while the first one decodes for early stopping
        try:
            torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(hours=2))
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"process {self.rank} does not reach the other {self.world - 1} of this training; where "
                            f"one of them has ended, its own message says why ({reason})") from None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """``model`` with its gradients averaged over processes; all start from the parameters of the first."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        try:
            return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
        except RuntimeError as error:  # the first thing that they tell each other
            reason = " ".join(str(error).split())[:300]
            fix = "; a container's /dev/shm may be too small for NCCL: give it more (docker run --shm-size=2g), or " \
                "set NCCL_SHM_DISABLE=1" if ids else ""
            raise UserError(f"process {self.rank} cannot tell the others its parameters ({reason}){fix}") from None

    def sums(self, values: Sequence[float]) -> List[float]:
        """Each value added up over all processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def told(self, word: bool) -> bool:
        """What the first process says."""
        return bool(self.sums([float(word and self.first)])[0])

    def gather(self, state: torch.Tensor) -> List[torch.Tensor]:
        """A tensor of every process, of one shape, in the order of ranks."""
        if self.world == 1:
            return [state]
        parts = [torch.empty_like(state, device=self.device) for _ in range(self.world)]
        torch.distributed.all_gather(parts, state.to(self.device))
        return [part.cpu() for part in parts]

    def leave(self) -> None:
        """Parts from the others, at the end."""
        if self.world > 1:
            torch.distributed.destroy_process_group()
