"""Collects an experiment directory: RESULTS for the terminal, results.json for programs, report.html for people.

e.g.: essence report exp/mini
"""
from __future__ import annotations

from pathlib import Path

HELP = "RESULTS, results.json and report.html of an experiment"


def add_arguments(parser) -> None:
    from essence_kd.score.significance import DRAWS

    parser.add_argument("exp_dir", metavar="EXP_DIR", type=Path,
                        help="exp/CORPUS, where plan.json is; RESULTS is written there")
    parser.add_argument("report_dir", metavar="REPORT_DIR", type=Path, nargs="?",
                        help="where results.json and report.html go (default: EXP_DIR/report)")
    parser.add_argument("--systems", metavar="'NAME NAME ...'",
                        help="systems of the plan to report, in one argument; default: those of the main run that "
                             "were decoded")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), action="append", default=[],
                        help="also compare these two systems; may be repeated")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of the bootstrap (%(default)s)")


def run(args) -> None:
    from essence_kd.score.report import write_report

    write_report(args.exp_dir, args.report_dir or args.exp_dir / "report", draws=args.draws,
                 systems=args.systems.split() if args.systems else None, compare=[tuple(pair) for pair in args.compare])
