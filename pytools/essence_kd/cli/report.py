"""Collect an experiment directory: RESULTS for the terminal, results.json for programs, report.html for people."""
from __future__ import annotations

from pathlib import Path

HELP = "RESULTS, results.json and report.html of an experiment"


def add_arguments(parser) -> None:
    parser.add_argument("exp_dir", metavar="EXP_DIR", type=Path, help="exp/CORPUS; RESULTS is written there")
    parser.add_argument("report_dir", metavar="REPORT_DIR", type=Path, help="where results.json and report.html go")
    parser.add_argument("--corpus", help="name of the corpus; default: the name of EXP_DIR")
    parser.add_argument("--size", default="default", help="size of the corpus, for the record")
    parser.add_argument("--seed", type=int, default=1, help="seed of the run; it also seeds the bootstrap")
    parser.add_argument("--engine", default="native", help="engine of the run, for the record")
    parser.add_argument("--data-dir", type=Path, metavar="DIR",
                        help="data/CORPUS: utt2spk of each set groups the bootstrap by speaker, and its features and "
                             "lang draw the alignment")
    parser.add_argument("--systems", metavar="'NAME NAME ...'",
                        help="directories of EXP_DIR to report, in one argument; default: all that were decoded")
    parser.add_argument("--essence-dir", type=Path, metavar="DIR", help="default: the newest EXP_DIR/essence_*")
    parser.add_argument("--clips", type=int, default=0, metavar="N", help="embed the sound of the N most improved and "
                        "the N most harmed utterances; only of audio that may be passed on (%(default)s)")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), action="append", default=[],
                        help="also compare these two systems; may be repeated")
    parser.add_argument("--dev-set", default="dev", metavar="NAME",
                        help="the set that is for development; all others are test sets (%(default)s)")
    parser.add_argument("--draws", type=int, default=10000, help="draws of the bootstrap (%(default)s)")


def run(args) -> None:
    from essence_kd.score.report import write_report

    write_report(args.exp_dir, args.report_dir, corpus=args.corpus or args.exp_dir.resolve().name, size=args.size,
                 seed=args.seed, engine=args.engine, data_dir=args.data_dir,
                 systems=args.systems.split() if args.systems else None, essence_dir=args.essence_dir,
                 dev_set=args.dev_set, draws=args.draws, clips=args.clips,
                 compare=[tuple(pair) for pair in args.compare])
