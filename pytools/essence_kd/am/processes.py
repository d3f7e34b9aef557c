"""The processes of one training: those that torchrun started, or this one alone."""
from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import List, Optional, Sequence

import torch

from essence_kd.io.errors import UserError
from essence_kd.io.processor import precision_of_cpu

MEETING = 600.0  # seconds in which all processes of a training must have started
BEAT = 10.0  # seconds between two signs of life of a process
SILENCE = 30  # signs of life that may be missing
ANSWER = timedelta(hours=2)  # the others wait so long while the first one decodes for early stopping


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
    """float32 or bfloat16. "auto" is bfloat16 on CUDA devices that have it, and on CPUs where it is faster."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return precision_of_cpu()


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
        self.batches = 0  # that this process has begun; what hangs is told by it
        if self.world == 1:
            return
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _end_with_parent()
        kind = self.device.type
        if kind == "cuda":
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local >= torch.cuda.device_count():
                raise UserError(f"process {local} of this machine has no GPU of its own: there are "
                                f"{torch.cuda.device_count()} (torchrun --nproc-per-node)")
            torch.cuda.set_device(local)
            self.device = torch.device("cuda", local)
        self._store = self._meet()
        try:
            torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=ANSWER,
                                                 store=self._store, rank=self.rank, world_size=self.world)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"process {self.rank} does not reach the other {self.world - 1} of this training; where "
                            f"one of them has ended, its own message says why ({reason})") from None
        self._watch = _Watch(self, self._store)
        self._watch.start()

    def _meet(self) -> torch.distributed.Store:
        """The store that all processes share, when all are there. Raises UserError that names those that are not."""
        address, port = os.environ.get("MASTER_ADDR", "?"), os.environ.get("MASTER_PORT", "?")
        where = f"{address}:{port}"
        launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun has the store, or the first
        try:
            store = torch.distributed.TCPStore(address, int(port), is_master=self.first and not launcher,
                                               timeout=timedelta(seconds=MEETING), wait_for_workers=False)
            store = torch.distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            store.set(f"essence/here/{self.rank}", socket.gethostname())
            until = time.monotonic() + MEETING
            while True:
                missing = [rank for rank in range(self.world) if not store.check([f"essence/here/{rank}"])]
                if not missing:
                    return store
                if time.monotonic() > until:
                    break
                time.sleep(0.1)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"process {self.rank} ({socket.gethostname()}) does not reach {where}, where the first one "
                            f"of this training should answer ({reason})") from None
        raise UserError(f"{_named(missing)} of {self.world} did not start within {MEETING:.0f} s: look whether its "
                        f"machine works and reaches {where}")

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

    def failed(self, error: RuntimeError) -> UserError:
        """What the failure of a word among the processes means."""
        if "imed out" not in str(error) and "imeout" not in str(error):
            return UserError("another process of this training has ended; its own message says why")
        return UserError(f"process {self.rank} waited {ANSWER} for the others in vain; {self._watch.told()}")

    def leave(self) -> None:
        """Parts from the others, at the end."""
        if self.world > 1:
            self._watch.end()
            torch.distributed.destroy_process_group()


class _Watch(threading.Thread):
    """Every process says from time to time that it lives, and which batch it is at; who falls silent is named.

    Connections of a process that ends are closed, which the others notice at once. This is for those that are there
    and do not answer: stopped, or on a machine that hangs or is cut off. The others end then, with status 1.
    """

    def __init__(self, processes: Processes, store: torch.distributed.Store) -> None:
        super().__init__(daemon=True, name="watch")
        self.processes, self.store = processes, store
        self.others = [rank for rank in range(processes.world) if rank != processes.rank]
        self.last, self.missed = dict.fromkeys(self.others, b""), dict.fromkeys(self.others, 0)
        self.ended = threading.Event()

    def run(self) -> None:
        beats = 0
        try:
            while not self.ended.wait(BEAT):
                beats += 1
                self.store.set(f"essence/beat/{self.processes.rank}", f"{beats} {self.processes.batches}")
                for rank in self.others:
                    self._listen(rank)
                # counted in beats of this process: where all were stopped for a while, nobody is to blame
                silent = [rank for rank in self.others if self.missed[rank] > SILENCE and self.last[rank] != b"left"]
                if silent:
                    self._give_up(f"{_named(silent)} of {self.processes.world} has not answered for "
                                  f"{BEAT * SILENCE:.0f} s (stopped, or its machine hangs); {self.told()}")
        except RuntimeError as error:  # the store has gone with its process: who talks to that one is told, too
            if "imeout" in str(error) or "imed out" in str(error):
                self._give_up(f"{os.environ.get('MASTER_ADDR', '?')}, the machine of process 0 of "
                              f"{self.processes.world}, does not answer; {self.told()}")

    def _listen(self, rank: int) -> None:
        key = f"essence/beat/{rank}"
        beat = self.store.get(key) if self.store.check([key]) else b""
        self.missed[rank] = self.missed[rank] + 1 if beat == self.last[rank] else 0
        self.last[rank] = beat

    def _give_up(self, message: str) -> None:
        if not self.ended.is_set():
            print(f"process {self.processes.rank} ({socket.gethostname()}): {message}", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread waits in a library that cannot be interrupted

    def told(self) -> str:
        """How far each has come, as far as it was heard."""
        far = {self.processes.rank: str(self.processes.batches)}
        far.update({rank: beat.decode().split()[-1] for rank, beat in self.last.items() if beat not in (b"", b"left")})
        return "batches begun: " + ", ".join(f"{count} by process {rank}" for rank, count in sorted(far.items()))

    def end(self) -> None:
        """No more is expected of this process."""
        self.ended.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"essence/beat/{self.processes.rank}", "left")


def _named(ranks: Sequence[int]) -> str:
    return f"process{'es' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _end_with_parent() -> None:
    """Has this process killed when the one that started it dies, which cannot do so itself then."""
    with contextlib.suppress(OSError, AttributeError):  # another system
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == 1:
            os._exit(1)
