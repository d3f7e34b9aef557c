"""Expands a grid of settings to the trainings of an ablation and the soft targets that they need.

e.g.: essence plan-ablation --model conf/models/student_tdnn.yaml --feats data/mini/train_sp_hires/feats.scp \\
        conf/ablation.yaml exp/mini exp/mini/ablation
Leaves OUT_DIR/{plan.json,points.tsv,targets.tsv}, which local/run_ablation.sh works off.
"""
from __future__ import annotations

from pathlib import Path

HELP = "expand a grid of settings (conf/ablation.yaml) to trainings and soft targets"


def add_arguments(parser) -> None:
    parser.add_argument("--model", metavar="YAML", required=True, help="settings of the student")
    parser.add_argument("--feats", metavar="SCP", type=Path, required=True, help="features for teachers that run again")
    parser.add_argument("--essence", metavar="YAML", default="conf/essence.yaml", help="what points start from")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                        help="a setting of --essence that differs; may be repeated")
    parser.add_argument("--rescored", action="store_true", help="points are rescored with a larger language model")
    parser.add_argument("grid", metavar="YAML", help="seeds and points (conf/ablation.yaml)")
    parser.add_argument("exp_dir", metavar="EXP_DIR", type=Path, help="exp/CORPUS, in which stages 0 to 9 have run")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="plan.json, points.tsv, targets.tsv go there")


def run(args) -> None:
    from essence_kd.score.grid import write_plan

    plan = write_plan(args.grid, args.exp_dir, args.out_dir, model_yaml=args.model, essence_yaml=args.essence,
                      feats=args.feats, overrides=args.set, rescored=args.rescored)
    trainings = sum(len(p["seeds"]) for p in plan["points"])
    print(f"{args.out_dir}/plan.json: {len(plan['points'])} points, {trainings} trainings, of which the main run has "
          f"{sum(len(p['from']) for p in plan['points'])}")
