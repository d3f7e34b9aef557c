"""Word error rates of an ablation: means over seeds, intervals, and tests against baseline, all labels and ensemble.

e.g.: essence report-ablation --data-dir data/mini exp/mini exp/mini/ablation
Reads OUT_DIR/plan.json and whatever is decoded of it; leaves OUT_DIR/RESULTS and OUT_DIR/results.json.
"""
from __future__ import annotations

from pathlib import Path

HELP = "mean WER over seeds and paired tests of the points of an ablation"


def add_arguments(parser) -> None:
    parser.add_argument("exp_dir", metavar="EXP_DIR", type=Path)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="where plan.json lies")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, help="data/CORPUS: utt2spk of its sets groups draws")
    parser.add_argument("--against", metavar="POINT", action="append", default=[],
                        help="compare all with this point, too; may be repeated")
    parser.add_argument("--dev-set", default="dev", metavar="NAME",
                        help="the set that is for development; all others are test sets (%(default)s)")
    parser.add_argument("--draws", type=int, default=10000, help="of the bootstrap (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap (%(default)s)")


def run(args) -> None:
    from essence_kd.io.errors import UserError
    from essence_kd.score.ablation import write_results

    if args.draws < 100:
        raise UserError(f"--draws {args.draws}: at least 100 are needed for a 95 % interval")
    found = write_results(args.exp_dir, args.out_dir, data_dir=args.data_dir, corpus=args.exp_dir.resolve().name,
                          dev_set=args.dev_set, draws=args.draws, seed=args.seed, against=args.against)
    print(f"{args.out_dir}/RESULTS: {len(found['points'])} points; {len(found['waiting'])} trainings not decoded yet")
