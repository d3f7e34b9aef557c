"""Systems of an experiment as columns: word error rates, what they cost, and p values against the first of them.

e.g.: essence compare exp/mini/baseline exp/mini/student_full exp/mini/student_essence
      essence compare exp/mini                               # every system of the main run
      essence compare exp/mini/baseline ~/other/exp/mini/student_essence

All must have been decoded on the same data. Differences are in points of %WER on all test sets together, to the system
that is named first, or to the baseline where a whole experiment is.
"""
from __future__ import annotations

from pathlib import Path

HELP = "systems as columns: WER of each set, parameters, speed, p values against the first"


def add_arguments(parser) -> None:
    from essence_kd.score.significance import DRAWS

    parser.add_argument("folders", metavar="SYSTEM_DIR|EXP_DIR", type=Path, nargs="+",
                        help="what stage 9 has decoded, such as exp/mini/baseline; or exp/mini: all of its systems")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of the bootstrap (%(default)s)")


def run(args) -> None:
    from essence_kd.io.errors import UserError
    from essence_kd.score.compare import compare_text

    if args.draws < 100:
        raise UserError(f"--draws {args.draws}: at least 100 are needed for a 95 % interval")
    print(compare_text(args.folders, draws=args.draws), end="")
