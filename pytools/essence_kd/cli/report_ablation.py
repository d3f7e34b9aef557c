"""Word error rates of an ablation: means over seeds, intervals, and tests against baseline, all labels and ensemble.

e.g.: essence report-ablation exp/mini
Reads EXP_DIR/plan.json and whatever is decoded of its points; leaves EXP_DIR/ablation/RESULTS and results.json.
"""
from __future__ import annotations

from pathlib import Path

HELP = "mean WER over seeds and paired tests of the points of an ablation"


def add_arguments(parser) -> None:
    from essence_kd.score.significance import DRAWS

    parser.add_argument("exp_dir", metavar="EXP_DIR", type=Path, help="exp/CORPUS, where plan.json is")
    parser.add_argument("--against", metavar="POINT", action="append", default=[],
                        help="compare all with this point, too; may be repeated")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the bootstrap (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap (%(default)s)")


def run(args) -> None:
    from essence_kd.io.errors import UserError
    from essence_kd.score.ablation import write_results

    if args.draws < 100:
        raise UserError(f"--draws {args.draws}: at least 100 are needed for a 95 % interval")
    found = write_results(args.exp_dir, draws=args.draws, seed=args.seed, against=args.against)
    print(f"{args.exp_dir}/ablation/RESULTS: {len(found['points'])} points; {len(found['waiting'])} trainings not "
          "decoded yet")
