"""The plan of a run (EXP/plan.json), made in code: names, roles, sets, labels, targets and systems as tests want."""
from pathlib import Path

import yaml
from builders import ROOT

from essence_kd.plan import build
from essence_kd.plan.options import Options
from essence_kd.plan.plan import FILE, Model, Plan, Set, System, Target, check_plan, write_plan
from essence_kd.plan.recipe import Recipe

SETS = {"train": "train", "dev": "dev", "eval_swbd": "test", "eval_che": "test"}  # name -> role
LABELS = {"eval_swbd": "SWBD", "eval_che": "CHE"}
STUDENT = "student_tdnn"
TEACHERS = ("teacher_1", "teacher_2")


def make_sets(roles, labels=()):
    """Sets from name -> role and name -> label; what has no label is called by its name."""
    return [Set(name, role, dict(labels).get(name, name)) for name, role in roles.items()]


def make_target(name, kind="post", *, scp=None, select="top-k", k=20, **values):
    """Soft targets in NAME/post.scp, or every soft label in dense/NAME.scp."""
    if kind == "dense":
        return Target(name, kind, scp or f"dense/{name}.scp", "all", "every soft label", **{"stage": 6, **values})
    return Target(name, kind, scp or f"{name}/post.scp", select, f"k = {k}",
                  **{"options": ["--select", select, "--top-k", str(k)], "mass": "renorm", "k": k, **values})


def make_system(name, role, label=None, **values):
    """A system of the scale group that its role has."""
    return System(name, role, label or name, **{"scale_group": "gmm" if role == "gmm" else "networks",
                                                "chooses_scale": role != "student", **values})


def student(name, targets, twin, label=None, *, model=STUDENT, seed=1, **values):
    """A student with the usual weight and temperature."""
    return make_system(name, "student", label, model=model, seed=seed, targets=targets, twin=twin,
                       **{"soft_weight": 0.9, "temperature": 1.0, **values})


def usual_targets():
    """Those of a main run that was given nothing: every soft label, the wide archive, k = 20."""
    common = {"teachers": list(TEACHERS), "sets": ["train"]}
    wide = {"scp": "posteriors/wide.scp", "select": "wide", "options": ["--keep", "100"], "mass": None, "stage": 6}
    return [make_target("full", "dense", **common), make_target("wide", k=None, **wide, **common),
            make_target("essence_k20", source="wide", **common)]


def usual_systems():
    """Those of a main run that was given nothing, with two teachers."""
    return [make_system("gmm", "gmm", "GMM"),
            *(make_system(name, "teacher", f"Teacher {n}", model=name, seed=1) for n, name in enumerate(TEACHERS, 1)),
            make_system("ensemble", "ensemble", "Ensemble", teachers=list(TEACHERS)),
            make_system("baseline", "twin", "Baseline", model=STUDENT, seed=1),
            student("student_full", "full", "baseline", "Student, all soft labels"),
            student("student_essence", "essence_k20", "baseline", "Student, essence", mass="renorm")]


def make_plan(exp, **values):
    """A checked plan of a run in WORK/exp/NAME (``exp``) and WORK/data/NAME; ``values`` are fields of Plan.

    Models are those that the systems name, unless ``models`` is given.
    """
    exp = Path(exp)
    found = {"corpus": "mini", "size": "tiny", "description": "a test", "engine": "native", "seed": 1,
             "decoder": "kaldi", "combine": "mean", "fuse": False, "lm_order": 2, "rescore_lm_order": 0,
             "post_keep": 100, "clips": 0, "disk_mb": 1,
             "data": str(exp.parents[1] / "data" / exp.name), "exp": str(exp),
             "sets": make_sets(SETS, LABELS), "targets": usual_targets(), "systems": usual_systems(), **values}
    names = dict.fromkeys(system.model for system in found["systems"] if system.model)
    found.setdefault("models", [Model(name, "torch", f"conf/models/{name}.yaml") for name in names])
    plan = Plan(**found)
    check_plan(plan, "the plan of a test")
    return plan


def write(plan):
    """Write EXP/plan.json; returns the plan."""
    Path(plan.exp).mkdir(parents=True, exist_ok=True)
    write_plan(plan, Path(plan.exp) / FILE)
    return plan


def make_recipe(**values):
    """recipe.conf of a corpus with three teachers, without its file."""
    return Recipe(**{"path": ROOT / "recipes" / "mini" / "recipe.conf", "description": "a test",
                     "sizes": ["default", "tiny"], "engines": ["native", "kaldi"], "train_set": "train",
                     "dev_set": "dev", "eval_sets": ["eval_swbd", "eval_che"], "untranscribed_sets": [],
                     "labels": LABELS,
                     "teachers": "cnn_tdnn tdnn_lstm blstm", "student": STUDENT,
                     "lm_order": "2", "rescore_lm_order": "", "clips": 0, "post_keep": 100, "disk_mb": 1, **values})


def make_options(**values):
    """Options of run.sh, as text."""
    return Options(**{"corpus": "mini", "size": "default", "engine": "native", "stage": "0", "stop_stage": "10",
                      "nj": "2", "seed": "1", "decoder": "kaldi", "combine": "mean", "fuse": "false",
                      "ablation": "false", "all_labels": "true", "grid": "conf/ablation.yaml", **values})


def planned(work, points=None, seeds=(1,), *, recipe=None, **options):
    """The plan that ``essence plan`` makes of options of run.sh and the conf/ of this checkout, unwritten.

    ``points``: the grid of an ablation, of which WORK/grid.yaml is left.
    """
    if points is not None:
        (work / "grid.yaml").write_text(yaml.safe_dump({"seeds": list(seeds), "points": points}))
        options = {"ablation": "true", "grid": str(work / "grid.yaml"), **options}
    return build.make_plan(make_options(**options), recipe or make_recipe(), ROOT, work)
