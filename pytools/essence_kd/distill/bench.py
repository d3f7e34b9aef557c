"""Speed of the essence core against its peers, on the same data in the same run: medians of interleaved repeats."""
from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from essence_kd.distill.ensemble import Ensemble, combine_top_k
from essence_kd.distill.largest import top_k
from essence_kd.distill.scales import Scale, log_normalisers
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import PosteriorWriter, read_posteriors
from essence_kd.io.tables import MatrixWriter

PARTS = ("select", "fuse", "process", "codec", "loss")
OURS = "essence"
_PAUSE = 0.05  # seconds


def synthetic_logits(frames: int, pdfs: int, count: int, seed: int = 0) -> List[np.ndarray]:
    """Logits (frames, pdfs) float32 of teachers that mostly agree; the largest posterior is about 0.6 on average."""
    rng = np.random.default_rng(seed)
    common = 6.6 * rng.standard_normal((frames, pdfs), dtype=np.float32)
    return [common + 2.3 * rng.standard_normal((frames, pdfs), dtype=np.float32) for _ in range(count)]


def interleaved(works: Dict[str, Callable[[], Any]], repeats: int) -> Dict[str, List[float]]:
    """Seconds of each work, taken in turns, so that a busy machine meets all alike; the first turn is not kept.

    A pause before each: threads of OpenMP (PyTorch's) spin for some milliseconds when their work is done.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            time.sleep(_PAUSE)
            began = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _rows(section: str, seconds: Dict[str, List[float]], amount: float, unit: str) -> List[Dict[str, Any]]:
    """One result a work: median speed, and the median over turns of its ratio to ours."""
    rows = []
    for name, times in seconds.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(times, seconds[OURS]))
        rows.append({"section": section, "name": name, "speed": amount / statistics.median(times), "unit": unit,
                     "ours_is_faster_by": None if name == OURS else ratio})
    return rows


class Bench:
    """The data and the settings that the parts share."""

    def __init__(self, *, frames: int, pdfs: int, k: int, threads: int, repeats: int, archive_frames: int,
                 folder: Optional[str] = None):
        self.frames, self.pdfs, self.k, self.threads, self.repeats = frames, pdfs, k, threads, repeats
        self.archive_frames, self.folder = archive_frames, folder
        if not 1 <= k <= pdfs:
            raise UserError(f"--top-k {k}: must be from 1 to the {pdfs} pdfs")
        logits = synthetic_logits(frames, pdfs, 3)
        self.logs = [(z - log_normalisers(z)[:, None]).astype(np.float32) for z in logits]
        self.probs = np.exp(self.logs[0])

    def run(self, parts) -> List[Dict[str, Any]]:
        """Results of some of `PARTS`, in order."""
        import torch

        torch.set_num_threads(self.threads)
        return [row for part in parts for row in getattr(self, part)()]

    def select(self) -> List[Dict[str, Any]]:
        """The k largest of a matrix in memory."""
        import torch

        probs, k, columns = torch.from_numpy(self.probs), self.k, self.pdfs
        ids, values = top_k(self.probs, k, kind="prob", threads=self.threads)
        order = np.argsort(-self.probs, axis=1, kind="stable")[:, :k]
        assert np.array_equal(ids, order) and np.array_equal(values, np.take_along_axis(self.probs, order, axis=1))
        seconds = interleaved({
            OURS: lambda: top_k(self.probs, k, kind="prob", threads=self.threads),
            "torch.topk": lambda: probs.topk(k),
            "numpy.argpartition": lambda: np.argpartition(self.probs, columns - k, axis=1),
            "reading the matrix (torch.sum)": lambda: probs.sum()}, self.repeats)
        return _rows("select top-k from a float32 matrix in memory", seconds, self.frames, "frames/s")

    def fuse(self) -> List[Dict[str, Any]]:
        """Three log-posterior matrices to the k largest of their mean."""
        import torch

        tensors = [torch.from_numpy(log) for log in self.logs]
        ensemble = Ensemble([Scale("log")] * 3)

        def plain():
            total = torch.softmax(tensors[0], 1)
            for tensor in tensors[1:]:
                total += torch.softmax(tensor, 1)
            return (total / 3).topk(self.k)

        def exponentials():
            total = torch.exp(tensors[0])
            for tensor in tensors[1:]:
                total += torch.exp(tensor)
            return (total / 3).topk(self.k)

        ids, values = combine_top_k(ensemble, self.logs, self.k, threads=self.threads)
        theirs = plain().values.numpy()
        assert np.allclose(values, theirs, rtol=1e-4)
        seconds = interleaved({OURS: lambda: combine_top_k(ensemble, self.logs, self.k, threads=self.threads),
                               "torch: softmax, mean, topk": plain, "torch: exp, mean, topk": exponentials},
                              self.repeats)
        return _rows("three log-posterior matrices, mean, top-k", seconds, self.frames, "frames/s")

    def process(self) -> List[Dict[str, Any]]:
        """A whole process: dense archive of about `archive_frames` to essence archive, both files."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            full, out = os.path.join(folder, "full.ark"), os.path.join(folder, "post.ark")
            frames = 0
            with MatrixWriter(f"ark:{full}") as writer:
                for utt in range(max(1, self.archive_frames // self.frames)):
                    for start in range(0, self.frames, 512):
                        writer.write(f"utt{utt}-{start}", self.probs[start:start + 512])
                        frames += len(self.probs[start:start + 512])
            essence = [sys.executable, "-m", "essence_kd", "prune-post", "--threads", str(self.threads)]
            env = {**os.environ, "OMP_NUM_THREADS": str(self.threads),
                   "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            env.pop("PYTHONDONTWRITEBYTECODE", None)  # the first turn compiles the modules, as a user's first call does

            def call(*command):
                done = subprocess.run(command, env=env, capture_output=True, text=True)
                if done.returncode:
                    raise UserError(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")

            works = {OURS: lambda: call(*essence, "--top-k", str(self.k), f"ark:{full}", f"ark:{out}"),
                     "essence, threshold 0.01": lambda: call(*essence, "--select", "min-post", "--min-post", "0.01",
                                                             f"ark:{full}", f"ark:{out}"),
                     "essence, random pruning 0.01": lambda: call(*essence, "--select", "random-prune",
                                                                  "--min-post", "0.01", f"ark:{full}", f"ark:{out}"),
                     "reading the file": lambda: _slurp(full)}
            kaldi = _kaldi_binary("prob-to-post")
            if kaldi:
                works["Kaldi prob-to-post, threshold 0.01"] = lambda: call(
                    kaldi, "--min-post=0.01", "--random-prune=false", f"ark:{full}", f"ark:{out}")
                works["Kaldi prob-to-post, random pruning 0.01"] = lambda: call(
                    kaldi, "--min-post=0.01", "--random-prune=true", f"ark:{full}", f"ark:{out}")
            seconds = interleaved(works, max(1, self.repeats // 2))
        return _rows("whole process, dense archive to essence archive", seconds, frames, "frames/s")

    def codec(self) -> List[Dict[str, Any]]:
        """Posterior archives written and read.

        Our writer and all readers have 200,000 frames, the utterances many times, so that what follows a pause (a
        processor that wakes) does not count; the other writers, whose turns are long, have the utterances once.
        """
        turns = max(1, 200_000 // self.frames)
        ids, probs = top_k(self.probs, self.k, threads=self.threads)
        utterances = [(ids[i:i + 512], probs[i:i + 512]) for i in range(0, len(ids), 512)]
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = os.path.join(folder, "post.ark")

            def write():
                with PosteriorWriter(f"ark:{path}") as writer:
                    for turn in range(turns):
                        for n, (i, p) in enumerate(utterances):
                            writer.write(f"u{turn}-{n}", i, p)

            def read():
                return sum(post.num_frames for _, post in read_posteriors(f"ark:{path}"))

            small = os.path.join(folder, "small.ark")
            with PosteriorWriter(f"ark:{small}") as writer:
                for n, (i, p) in enumerate(utterances):
                    writer.write(f"u{n}", i, p)
            write()
            ours = interleaved({OURS: write, "r": read}, self.repeats)
            writers = {OURS: [t / turns for t in ours[OURS]]}
            readers = {OURS: ours["r"]}
            theirs = os.path.join(folder, "theirs.ark")
            for name, (write_other, read_other) in _other_codecs(utterances, theirs, path).items():
                seconds = interleaved({"w": write_other, "r": read_other}, max(1, self.repeats // 2))
                writers[name], readers[name] = seconds["w"], seconds["r"]
                with open(theirs, "rb") as one, open(small, "rb") as other:
                    assert one.read() == other.read(), f"{name} writes other bytes"
            readers["reading the file"] = interleaved({"cat": lambda: _slurp(path)}, self.repeats)["cat"]
        return (_rows("write a Posterior archive", _padded(writers), self.frames, "frames/s")
                + _rows("read a Posterior archive", _padded(readers), self.frames * turns, "frames/s"))

    def loss(self) -> List[Dict[str, Any]]:
        """Losses forward and backward: speed, and memory beyond the logits and their gradient."""
        seconds = interleaved(loss_works(self.frames, self.pdfs, self.k), self.repeats)
        rows = _rows("loss, forward and backward", seconds, self.frames, "frames/s")
        if os.path.exists("/proc/self/clear_refs"):
            done = subprocess.run([sys.executable, "-c", "from essence_kd.distill.bench import _print_peaks as p; p()",
                                   *map(str, (self.frames, self.pdfs, self.k, self.threads))],
                                  capture_output=True, text=True,
                                  env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
            if done.returncode:
                raise UserError(f"the memory of the losses could not be measured: {done.stderr.strip()[-400:]}")
            peaks = json.loads(done.stdout)
            for row in rows:
                row["extra_bytes_per_logit"] = peaks[row["name"]] / (self.frames * self.pdfs)
        return rows


def loss_works(frames: int, pdfs: int, k: int) -> Dict[str, Callable[[], Any]]:
    """Losses by name, each a function that goes forward and backward once."""
    import torch
    from torch.nn import functional

    from essence_kd.distill.losses.cross_entropy import multitask_loss, sparse_soft_cross_entropy

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(frames, pdfs, generator=generator)
    hard = torch.randint(0, pdfs, (frames,), generator=generator)
    probs, ids = torch.softmax(5 * torch.randn(frames, pdfs, generator=generator), 1).topk(k)
    probs = probs / probs.sum(1, keepdim=True)

    dense = torch.zeros(frames, pdfs).scatter_(1, ids, probs)

    def work(loss):
        def run():
            z = logits.detach().requires_grad_()
            loss(z).backward()
            return z.grad
        return run

    return {OURS: work(lambda z: sparse_soft_cross_entropy(z, ids, probs)),
            "essence, hard and soft (multitask)": work(
                lambda z: multitask_loss(z, hard, ids, probs).total),
            "torch, dense soft targets": work(lambda z: functional.cross_entropy(z, dense, reduction="sum")),
            "torch, hard labels": work(lambda z: functional.cross_entropy(z, hard, reduction="sum"))}


def _print_peaks() -> None:
    """In a process of its own: the peak memory (bytes) of each loss beyond its inputs and the gradient, as JSON."""
    import torch

    frames, pdfs, k, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    for work in loss_works(8, 16, 2).values():  # loads what is loaded lazily
        work()
    peaks = {}
    for name, work in loss_works(frames, pdfs, k).items():
        with open("/proc/self/clear_refs", "w", encoding="ascii") as stream:
            stream.write("5")  # the peak starts again from what is used now
        before = _memory("VmRSS")
        work()
        peaks[name] = _memory("VmHWM") - before - 4 * frames * pdfs
    print(json.dumps(peaks))


def _memory(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(field))


def _slurp(path: str) -> None:
    with open(path, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 20)
        while stream.readinto(buffer):
            pass


def _padded(seconds: Dict[str, List[float]]) -> Dict[str, List[float]]:
    """Lists of one length (peers that are slow are repeated less), by their medians."""
    most = max(len(times) for times in seconds.values())
    return {name: times if len(times) == most else [statistics.median(times)] * most for name, times in seconds.items()}


def _other_codecs(utterances, path: str, archive: str) -> Dict[str, Tuple[Callable[[], Any], Callable[[], Any]]]:
    """(write, read) of the other Python packages that are installed."""
    lists = [[list(zip(i, p)) for i, p in zip(ids.tolist(), probs.tolist())] for ids, probs in utterances]
    codecs: Dict[str, Tuple[Callable[[], Any], Callable[[], Any]]] = {}
    try:
        import kaldi_native_io

        def write_native():
            with kaldi_native_io.PosteriorWriter(f"ark:{path}") as writer:
                for n, post in enumerate(lists):
                    writer.write(f"u{n}", post)

        def read_native():
            with kaldi_native_io.SequentialPosteriorReader(f"ark:{archive}") as reader:
                return sum(len(post) for _, post in reader)

        codecs["kaldi-native-io"] = write_native, read_native
    except ImportError:
        pass
    try:
        os.environ.setdefault("KALDI_ROOT", "")  # kaldi-io prints a banner without it
        import kaldi_io

        def write_kaldi_io():
            with open(path, "wb") as stream:
                for n, post in enumerate(lists):
                    kaldi_io.write_post(stream, post, f"u{n}")

        codecs["kaldi-io"] = write_kaldi_io, lambda: sum(len(post) for _, post in kaldi_io.read_post_ark(archive))
    except ImportError:
        pass
    return codecs


def _kaldi_binary(name: str) -> Optional[str]:
    """A program of the Kaldi at KALDI_ROOT, or on the PATH."""
    root = os.environ.get("KALDI_ROOT") or ""
    for folder in ("bin", "latbin", "nnet3bin", "chainbin"):
        path = os.path.join(root, "src", folder, name)
        if root and os.access(path, os.X_OK):
            return path
    return shutil.which(name)


def table(rows: List[Dict[str, Any]]) -> str:
    """Markdown: a table a section."""
    lines: List[str] = []
    section = None
    for row in rows:
        if row["section"] != section:
            section = row["section"]
            memory = "extra_bytes_per_logit" in row
            lines += ["", f"**{section}**", "",
                      "| | speed | ours is faster by |" + (" extra bytes per logit |" if memory else ""),
                      "|---|---|---|" + ("---|" if memory else "")]
        ratio = row["ours_is_faster_by"]
        line = f"| {row['name']} | {row['speed']:,.0f} {row['unit']} | {'' if ratio is None else f'{ratio:.1f} x'} |"
        if "extra_bytes_per_logit" in row:
            line += f" {row['extra_bytes_per_logit']:.1f} |"
        lines.append(line)
    return "\n".join(lines[1:])
