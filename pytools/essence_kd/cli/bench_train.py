"""Measures a training step with hard labels, essence targets and dense soft targets, and prints a table in Markdown.

  essence bench-train                        # a TDNN-LSTM of Switchboard's size with 8,816 outputs
  essence bench-train --model conf/models/student_tdnn.yaml --pdfs 343 --chunks 8

The steps are taken in turns, and every number is a median, so compare the ratios.
"""
from __future__ import annotations

from essence_kd.distill.essence import EssenceSettings

MODEL = "swbd_tdnn_lstm"
HELP = "measure the training step with each kind of target on this machine"


def add_arguments(parser) -> None:
    parser.add_argument("--model", metavar="YAML", default=MODEL,
                        help="settings: a file, or a name of conf/models (default: %(default)s)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting that differs")
    parser.add_argument("--pdfs", type=int, default=8816, metavar="N", help="default: %(default)s")
    parser.add_argument("--top-k", type=int, default=EssenceSettings.top_k, metavar="K", help="default: %(default)s")
    parser.add_argument("--feat-dim", type=int, default=40, metavar="N", help="default: %(default)s")
    parser.add_argument("--chunks", type=int, metavar="N",
                        help="chunks of a batch (default: 4 on a CPU, what data.batch_frames holds on a GPU)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--json", metavar="FILE",
                        help="write the numbers, too: recipes/swbd/check.sh --rates FILE forecasts with them")


def run(args) -> None:
    import os

    import torch

    from essence_kd.am.bench import StepBench, table
    from essence_kd.am.settings import TrainSettings
    from essence_kd.io.errors import UserError
    from essence_kd.io.provenance import write_sidecar
    from essence_kd.io.resources import model_file
    from essence_kd.io.settings import load_settings

    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: must be at least 1")
    settings = load_settings(TrainSettings, model_file(args.model), args.set)
    bench = StepBench(settings, pdfs=args.pdfs, k=args.top_k, feat_dim=args.feat_dim, chunks=args.chunks,
                      device=args.device)
    load = os.getloadavg()[0]
    rows = bench.run(args.repeats)
    device = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    print(f"{settings.arch}, {bench.params} parameters, {bench.mflop:.1f} MFLOP per frame, {args.pdfs} pdfs; "
          f"batches of {bench.frames} frames; {device}, {bench.precision}, {settings.threads} threads of "
          f"{os.cpu_count()}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after; PyTorch {torch.__version__}; "
          f"{rows[1]['tflops']:.3g} TFLOP/s with essence targets\n")
    print(table(rows))
    if args.json:
        write_sidecar(args.json, {"params": bench.params, "mflop_per_frame": bench.mflop, "pdfs": args.pdfs,
                                  "k": args.top_k, "frames": bench.frames, "device": device, "load": load,
                                  "tflops": rows[1]["tflops"],
                                  "precision": bench.precision, "threads": settings.threads,
                                  "torch": torch.__version__, "repeats": args.repeats, "results": rows})
