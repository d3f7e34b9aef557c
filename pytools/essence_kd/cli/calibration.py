"""Reliability of frame posteriors: confidence against accuracy, expected calibration error, log loss.

e.g.: essence calibration --ali exp/mini/calibration/ali_dev/ali.scp out.json \\
        'baseline=ark:essence forward --output logprob exp/mini/baseline data/mini/dev_hires ark:- |'
--ali may be repeated; each system has as many tables, in the same order: NAME=TABLE NAME=TABLE ...
"""
from __future__ import annotations

from pathlib import Path

HELP = "reliability and expected calibration error of frame posteriors, against alignments"


def add_arguments(parser) -> None:
    parser.add_argument("--ali", metavar="SCP", action="append", required=True,
                        help="pdf-ids, one per feature frame")
    parser.add_argument("--frame-subsampling-factor", type=int, default=3, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--nj", type=int, default=1, metavar="N", help="systems at a time (default: %(default)s)")
    parser.add_argument("--reference", metavar="NAME",
                        help="the system, such as the ensemble, that the others' fidelity to it is measured of; its "
                        "tables are read once for each of them: files, rather than pipes that compute")
    parser.add_argument("out", metavar="OUT_JSON", type=Path)
    parser.add_argument("tables", metavar="NAME=RSPECIFIER", nargs="+",
                        help="log-probabilities, one row per output frame")


def run(args) -> None:
    import json

    from essence_kd.io.errors import UserError
    from essence_kd.io.provenance import write_text
    from essence_kd.score.calibration import calibrate

    if args.nj < 1:
        raise UserError(f"--nj {args.nj}: must be at least 1")
    tables: dict = {}
    for text in args.tables:
        name, equals, table = text.partition("=")
        if not equals or not name or not table:
            raise UserError(f"'{text}': expected NAME=RSPECIFIER")
        tables.setdefault(name, []).append(table)
    for name, given in tables.items():
        if len(given) != len(args.ali):
            raise UserError(f"{name} has {len(given)} tables, but there are {len(args.ali)} --ali")
    if args.reference not in (None, *tables):
        raise UserError(f"--reference {args.reference}: none of the systems {', '.join(tables)}")
    found = calibrate(tables, args.ali, args.frame_subsampling_factor, args.nj, args.reference)
    write_text(args.out, json.dumps(found, indent=1) + "\n")
    for name, system in found["systems"].items():
        line = (f"{name}: accuracy {100 * system['accuracy']:.1f} %, mean confidence "
                f"{100 * system['confidence']:.1f} %, ECE {100 * system['ece']:.2f} %, {system['nll']:.3f} nats per "
                f"frame, {system['frames']:,} frames")
        if "same_best" in system:
            line += (f"; best class that of {args.reference} in {100 * system['same_best']:.1f} %, divergence from it "
                     f"{system['divergence']:.3f} nats per frame")
        print(line)
