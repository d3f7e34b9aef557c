"""Adds the errors of several sweeps and writes the setting that is best for them together.

e.g.: essence pool-sweeps exp/mini/scales/networks.json exp/mini/{teacher_1,baseline}/sweep/sweep.json
"""
from __future__ import annotations

HELP = "one acoustic scale and word insertion penalty for several systems, from their sweeps"


def add_arguments(parser) -> None:
    parser.add_argument("out", metavar="OUT_JSON", help="read by essence decode --scale-from")
    parser.add_argument("sweeps", metavar="SWEEP_JSON", nargs="+", help="of essence decode --sweep")


def run(args) -> None:
    from essence_kd.decode.sweeps import pool_sweeps

    best = pool_sweeps(args.sweeps, args.out)["best"]
    print(f"{args.out}: acoustic scale {best['acoustic_scale']}, "
          f"word insertion penalty {best['word_insertion_penalty']}: {best['wer']:.2f} % WER "
          f"over {len(args.sweeps)} systems")
