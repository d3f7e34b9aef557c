"""Measures the essence core against its peers on this machine and prints tables in Markdown.

  essence bench                              # everything, at Switchboard's size
  essence bench --only select,loss --threads 1 --json bench.json

Peers are torch.topk, numpy.argpartition, kaldi-io and kaldi-native-io where they are installed, and Kaldi's
prob-to-post where KALDI_ROOT has one. Every number is a median of repeats taken in turns, so compare the ratios.
"""
from __future__ import annotations

import argparse

HELP = "measure the essence core against its peers on this machine"


def _parts(text: str) -> list:
    parts = text.split(",")
    known = ("select", "fuse", "process", "codec", "loss")
    for part in parts:
        if part not in known:
            raise argparse.ArgumentTypeError(f"{part} is none of {', '.join(known)}")
    return parts


def add_arguments(parser) -> None:
    from essence_kd.distill.essence import EssenceSettings

    parser.add_argument("--only", type=_parts, metavar="PART,...",
                        help="select, fuse, process, codec, loss (default: all)")
    parser.add_argument("--pdfs", type=int, default=8816, metavar="N", help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=4096, metavar="N",
                        help="frames of a matrix (default: %(default)s)")
    parser.add_argument("--archive-frames", type=int, default=49152, metavar="N",
                        help="frames of the archive that whole processes read (default: %(default)s, "
                             "1.7 GB at 8816 pdfs)")
    parser.add_argument("--top-k", type=int, default=EssenceSettings.top_k, metavar="K", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="default: OMP_NUM_THREADS or the cores there are")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the numbers, too")
    parser.add_argument("--tmp", metavar="DIR", help="where archives are written (default: the system's)")


def run(args) -> None:
    import os
    import platform
    import time

    import numpy
    import torch

    from essence_kd.distill.bench import PARTS, Bench, table
    from essence_kd.io.parallel import default_threads
    from essence_kd.io.errors import UserError
    from essence_kd.io.provenance import write_sidecar

    for name in ("frames", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    threads = args.threads or default_threads()
    bench = Bench(frames=args.frames, pdfs=args.pdfs, k=args.top_k, threads=threads, repeats=args.repeats,
                  archive_frames=args.archive_frames, folder=args.tmp)
    rows = bench.run(args.only or PARTS)
    machine = {"cores": os.cpu_count(), "threads": threads, "load": os.getloadavg()[0], "cpu": _cpu(),
               "python": platform.python_version(), "numpy": numpy.__version__, "torch": torch.__version__,
               "time": time.strftime("%Y-%m-%d %H:%M")}
    print(f"{args.pdfs} pdfs, k = {args.top_k}, {args.frames} frames, {threads} threads; {machine['cores']} cores "
          f"({machine['cpu']}), load {machine['load']:.1f}; Python {machine['python']}, NumPy {machine['numpy']}, "
          f"PyTorch {machine['torch']}; mean largest posterior {float(bench.probs.max(axis=1).mean()):.2f}\n")
    print(table(rows))
    if args.json:
        write_sidecar(args.json, {"machine": machine, "pdfs": args.pdfs, "frames": args.frames, "k": args.top_k,
                                  "repeats": args.repeats, "results": rows})


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"
