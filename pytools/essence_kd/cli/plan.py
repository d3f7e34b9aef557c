"""Writes plan.json of a run: its sets, models, targets and systems, and their roles. run.sh calls it at every start.

e.g.: essence plan --corpus mini --size tiny --engine native ... (every option of run.sh)
Prints the path of the plan, WORK_DIR/exp/CORPUS/plan.json. Ends with status 2 where an option makes no sense.
"""
from __future__ import annotations

from pathlib import Path

HELP = "write the plan of a run (plan.json) from recipe.conf, conf/ and the options of run.sh"


def add_arguments(parser) -> None:
    from essence_kd.plan.options import option_names

    for name in option_names():
        parser.add_argument("--" + name.replace("_", "-"), default="", metavar="VALUE",
                            help="as run.sh has it")
    parser.add_argument("--recipe", metavar="NAME=VALUE", action="append", default=[],
                        help="an option that the recipe declares; may be repeated")
    parser.add_argument("--root", type=Path, required=True, help="the checkout, where recipes/ and conf/ are")
    parser.add_argument("--work-dir", required=True, help="where data/ and exp/ go")
    parser.add_argument("--check-only", action="store_true",
                        help="write nothing and read no YAML: print what run.sh needs to know before any set-up")
    parser.add_argument("--forecast", action="store_true",
                        help="print for run.sh, beside the path, how long the stages take on this machine")
    parser.add_argument("--dry-run", action="store_true", help="write nothing, and say what the plan has")


def _told(options, root) -> list:
    """Checks what can be checked without a package; lines NAME=VALUE that run.sh must know before it sets up any."""
    import shlex

    from essence_kd.plan.options import (check_models, check_options, check_recipe, find_recipe, model_names, run_name,
                                         student_names)

    check_options(options, root)
    options, recipe = find_recipe(options, root)
    check_recipe(options, recipe)
    teachers = model_names(options.teachers, recipe.teachers)
    check_models(teachers + student_names(options.student, recipe.student), options.engine, root)
    told = {"name": run_name(options), "size": options.size, "description": recipe.description,
            "disk_mb": str(recipe.disk_mb),
            "nnet3": "true" if any(t.startswith("nnet3/") for t in teachers) else "false",
            "rescore": "true" if int(options.rescore_lm_order or recipe.rescore_lm_order or 0) else "false"}
    return [f"{name}={shlex.quote(value)}" for name, value in told.items()]


def run(args) -> int:
    import sys

    from essence_kd.plan.options import OptionError, Options, check_work_dir, option_names

    recipe = dict(text.partition("=")[::2] for text in args.recipe)
    options = Options(**{name: getattr(args, name) for name in option_names()}, recipe_options=recipe)
    try:
        check_work_dir(args.work_dir)
        if args.check_only:
            print("\n".join(_told(options, args.root)))
            return 0
        from essence_kd.plan.build import plan_run

        plan = plan_run(options, args.root, Path(args.work_dir).absolute())
    except OptionError as error:
        print(f"./run.sh: {error}; see ./run.sh --help", file=sys.stderr)
        return 2
    from essence_kd.io.kernels import kernels
    from essence_kd.plan.plan import FILE, write_plan

    if args.dry_run:
        for what, items in (("sets", plan.sets), ("targets", plan.targets), ("systems", plan.systems)):
            print(f"{len(items)} {what}: " + " ".join(item.name for item in items))
        return 0
    path = Path(plan.exp) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_plan(plan, path)
    kernels()  # compiled once, before jobs ask for them side by side; where they cannot be, the user is told
    if args.forecast:
        print("\n".join(_forecast(plan, args.root, options, path)))
    else:
        print(path)
    return 0


def _forecast(plan, root, options, path) -> list:
    """Lines NAME=VALUE: the plan's path, what is said of the time, and the seconds of each stage."""
    import os
    import shlex

    from essence_kd.io.parallel import cores
    from essence_kd.plan.forecast import forecast

    def step() -> float:
        from essence_kd.am.bench import step_seconds

        return step_seconds()

    told, seconds = forecast(plan, root, int(options.stage), int(options.stop_stage), min(int(options.nj), cores()),
                             force=bool(os.environ.get("ESSENCE_FORCE")), step=step)
    each = " ".join(str(round(seconds.get(stage, 0))) for stage in range(int(options.stop_stage) + 1))
    return [f"{name}={shlex.quote(str(value))}" for name, value in
            (("plan", path), ("forecast", told), ("stage_seconds", each))]
