"""``plan.json``: which sets, models, targets and systems a run has, and their roles. Stages and report go by it.

Paths of targets and systems are relative to ``exp``. A name is free: what a thing is for, its role or kind says.
"""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, List, Optional

from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.provenance import write_text
from essence_kd.io.settings import from_dict, to_dict

SET_ROLES = ("train", "dev", "test", "untranscribed", "rendering")  # rendering: of another set, for teachers alone
SYSTEM_ROLES = ("gmm", "teacher", "ensemble", "twin", "student")
TARGET_KINDS = ("dense", "post")  # float matrices of every probability; Kaldi Posterior archives
FILE = "plan.json"
_NAME = re.compile(r"\w[\w.+=-]*")  # what scripts have as words: folders, options
_PATH = re.compile(rf"{_NAME.pattern}(/{_NAME.pattern})*")  # below exp, or below the checkout
_OPTION = re.compile(r"[\w.,+=-]+")


@dataclass
class Set:
    """A data directory, ``DATA/NAME``."""

    name: str
    role: str
    label: str  # its short name in tables
    teacher_hears: Optional[str] = None  # the rendering of the same utterances that teachers make its targets of


@dataclass
class Model:
    """An architecture with its settings."""

    name: str
    kind: str  # torch: conf/models/NAME.yaml; nnet3: conf/nnet3/NAME.xconfig
    path: str  # relative to the checkout


@dataclass
class Target:
    """Soft targets of the training data, or of an untranscribed set, from the posteriors of teachers."""

    name: str
    kind: str  # of TARGET_KINDS
    scp: str
    select: str  # selection rule; all: every probability; wide: the largest, to be pruned again
    label: str  # in words
    options: List[str] = field(default_factory=list)  # of prune-post and dump-post, that select it
    mass: Optional[str] = None  # mass rule of pruned targets
    k: Optional[int] = None  # classes per frame, where the rule fixes it
    teachers: List[str] = field(default_factory=list)  # systems
    combine: str = "mean"
    sets: List[str] = field(default_factory=list)
    source: Optional[str] = None  # the target that it is pruned from; None: the teachers run
    stage: int = 7  # that makes it
    keep: bool = True  # False: its archives are removed when all systems that learn from it are trained


@dataclass
class System:
    """A recogniser: EXP/NAME holds its model and its decode directories."""

    name: str
    role: str  # of SYSTEM_ROLES
    label: str
    scale_group: str  # systems of a group are decoded at one acoustic scale and word insertion penalty
    chooses_scale: bool  # has a say in that choice
    model: Optional[str] = None
    seed: Optional[int] = None
    teachers: List[str] = field(default_factory=list)  # the members of an ensemble
    targets: Optional[str] = None  # None: hard labels alone
    loss: Optional[str] = None  # None: what the model's file says
    soft_weight: Optional[float] = None
    temperature: Optional[float] = None
    mass: Optional[str] = None
    twin: Optional[str] = None  # of a student: the same network, trained on hard labels alone
    untranscribed: List[str] = field(default_factory=list)  # targets of untranscribed sets: it learns from these, too
    min_confidence: Optional[float] = None  # of these, least mean best posterior of an utterance
    point: bool = False  # of the ablation alone: left out of the tables of the main run


@dataclass
class Run:
    """A point of the ablation with one seed."""

    seed: int
    system: str


@dataclass
class Point:
    """A set of settings of the ablation."""

    name: str
    label: str  # in words
    settings: dict
    targets: Optional[str]
    runs: List[Run] = field(default_factory=list)


@dataclass
class Ablation:
    """The points of a grid; ``base``: the settings that they start from."""

    base: dict
    points: List[Point]


@dataclass
class Plan:
    """A run. ``data`` and ``exp`` are absolute paths."""

    corpus: str
    size: str
    description: str
    engine: str
    seed: int
    decoder: str
    combine: str
    fuse: bool
    lm_order: int
    rescore_lm_order: int  # 0: words are not rescored
    post_keep: int  # classes per frame in the wide archive
    clips: int  # so many utterances gained, and lost, sound in the report
    disk_mb: int
    data: str
    exp: str
    sets: List[Set]
    models: List[Model]
    targets: List[Target]
    systems: List[System]
    ablation: Optional[Ablation] = None
    sample_rate: int = SAMPLE_RATE  # Hz of the audio
    recipe_options: List[str] = field(default_factory=list)  # of prepare_data.sh, as NAME=VALUE
    gmm: str = "tri3"  # what aligns: mono, tri1, tri2 or tri3
    lm_prune: float = 0.0  # of the n-gram of the graph: essence train-lm --prune
    num_leaves: int = 0  # of its tree; 0: by the frames of training

    def sets_of(self, *roles: str) -> List[str]:
        """Names of the sets that have one of these roles, in the order of the plan."""
        return [s.name for s in self.sets if s.role in roles]

    @property
    def dev_set(self) -> str:
        """The set for tuning."""
        return self.sets_of("dev")[0]

    def system(self, name: str) -> System:
        """A system by name. Raises KeyError."""
        return {s.name: s for s in self.systems}[name]

    def target(self, name: Optional[str]) -> Optional[Target]:
        """A target by name; None for None."""
        return None if name is None else {t.name: t for t in self.targets}[name]

    def main_systems(self, *roles: str) -> Iterator[System]:
        """The systems of the main run, those of all roles where none is named."""
        return (s for s in self.systems if not s.point and (not roles or s.role in roles))


def check_plan(plan: Plan, where: str) -> None:
    """What a plan must hold to make sense. Raises UserError that starts with ``where``."""
    def known(what, value, names):
        if value not in names:
            raise UserError(f"{where}: {what} is '{value}', none of {', '.join(map(str, names)) or 'nothing'}")

    _check_names(plan, where)
    for items, what in ((plan.sets, "set"), (plan.models, "model"), (plan.targets, "target"), (plan.systems, "system")):
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{where}: {what} '{name}' comes twice")
    for s in plan.sets:
        known(f"the role of set {s.name}", s.role, SET_ROLES)
        known(f"the rendering of set {s.name}", s.teacher_hears, [None, *plan.sets_of("rendering")])
    for role in ("train", "dev"):
        if len(plan.sets_of(role)) != 1:
            raise UserError(f"{where}: exactly one set must have the role {role}")
    targets, systems = [t.name for t in plan.targets], [s.name for s in plan.systems]
    for t in plan.targets:
        known(f"the kind of target {t.name}", t.kind, TARGET_KINDS)
        known(f"the source of target {t.name}", t.source, [None, *targets])
        for name in t.teachers:
            known(f"a teacher of target {t.name}", name, systems)
        for name in t.sets:
            known(f"a set of target {t.name}", name, [s.name for s in plan.sets])
    for s in plan.systems:
        known(f"the role of system {s.name}", s.role, SYSTEM_ROLES)
        known(f"the model of system {s.name}", s.model, [None, *(m.name for m in plan.models)])
        known(f"the targets of system {s.name}", s.targets, [None, *targets])
        known(f"the twin of system {s.name}", s.twin, [None, *systems])
        for name in s.teachers:
            known(f"a teacher of system {s.name}", name, systems)
        for name in s.untranscribed:
            known(f"targets of untranscribed audio of system {s.name}", name, targets)
            if len(plan.target(name).sets) != 1 or plan.target(name).sets[0] not in plan.sets_of("untranscribed"):
                raise UserError(f"{where}: target {name} of system {s.name} is of {plan.target(name).sets}, and must "
                                "be of one untranscribed set")
        if s.role == "student" and s.targets is None and s.twin is None:
            raise UserError(f"{where}: student {s.name} has neither targets nor a twin")
    for point in plan.ablation.points if plan.ablation else ():
        known(f"the targets of point {point.name}", point.targets, [None, *targets])
        for run in point.runs:
            known(f"a system of point {point.name}", run.system, systems)


def _check_names(plan: Plan, where: str) -> None:
    """Stages make folders, arguments and scripts of these. Raises UserError."""
    named = [("corpus", plan.corpus, _NAME), ("size", plan.size, _NAME), ("engine", plan.engine, _NAME),
             ("gmm", plan.gmm, _NAME),
             *(("a set", s.name, _NAME) for s in plan.sets),
             *(("a system", s.name, _PATH) for s in plan.systems), *(("a target", t.name, _PATH) for t in plan.targets),
             *(("a model", m.name, _PATH) for m in plan.models),
             *(("a scale group", s.scale_group, _NAME) for s in plan.systems),
             *((f"the file of model {m.name}", m.path, _PATH) for m in plan.models),
             *((f"the scp of target {t.name}", t.scp, _PATH) for t in plan.targets),
             *((f"an option of target {t.name}", word, _OPTION) for t in plan.targets for word in t.options)]
    for what, name, pattern in named:
        if not pattern.fullmatch(name):
            raise UserError(f"{where}: {what} cannot be '{name}': write letters, digits, '_', '.', '+', '=' and '-'")
    for what, folder in (("data", plan.data), ("exp", plan.exp)):
        if not folder.startswith("/"):
            raise UserError(f"{where}: {what} is '{folder}', no absolute path")


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan as JSON, where it is not there already."""
    text = json.dumps(to_dict(plan), indent=1, ensure_ascii=False) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def read_plan(path: Path) -> Plan:
    """The plan in a file, or of a directory EXP. Raises UserError where it is none."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run.sh, or 'essence plan', writes it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); run.sh writes it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; run.sh writes it again")
    plan = from_dict(Plan, values, str(path))
    check_plan(plan, str(path))
    return plan
