"""The grid of an ablation: points, each a set of settings that a student is trained with, once a seed."""
from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

from essence_kd.distill.essence import EssenceSettings
from essence_kd.distill.rules import RULES
from essence_kd.io.errors import UserError
from essence_kd.io.settings import from_dict, to_dict

WITHOUT_RULE = ("hard", "all")  # no soft targets at all; every soft label
ALL_TEACHERS = "all"


@dataclass
class GridSettings:
    """conf/ablation.yaml: seeds, and points whose lists are multiplied out; a point may name seeds of its own."""

    seeds: List[int] = field(default_factory=lambda: [1, 2, 3])
    points: List[dict] = field(default_factory=list)


def rule_label(settings: EssenceSettings, base: EssenceSettings) -> str:
    """The short name of a rule and what differs from ``base``, such as ``k20`` or ``p0.9_keep``."""
    label = "all" if settings.select == "all" else settings.rule().label(base)
    return label + (f"_{settings.mass}" if settings.mass != base.mass else "")


@dataclass(frozen=True)
class GridPoint:
    """One set of settings; what its rule does not depend on has the base's value, so that equal points are equal."""

    essence: EssenceSettings  # select may also be hard or all
    teachers: Tuple[int, ...]  # numbers from 1; empty: all of them
    base: EssenceSettings
    student: Optional[str] = None  # a model of conf/models; None: the student of the run
    loss: Optional[str] = None  # a registered loss; None: what the model's file says
    untranscribed: bool = False  # also learns from the untranscribed sets; select: hard: from their one-best labels
    sets: Tuple[str, ...] = ()  # from these of them; empty: all of them
    lattice_weight: Optional[float] = None  # in their targets; None: that of the run

    @property
    def target(self) -> str:
        """The name of its soft targets: rule, mass rule and teachers; empty for hard labels alone."""
        if self.essence.select == "hard":
            return ""
        label = rule_label(self.essence, self.base)
        return label + ("_teachers" + "+".join(map(str, self.teachers)) if self.teachers else "")

    @property
    def name(self) -> str:
        """Its directory below exp/CORPUS/ablation."""
        e, base = self.essence, self.base
        name = self.target or "hard"
        if e.temperature != base.temperature:
            name += f"_T{e.temperature:g}"
        if e.soft_weight != base.soft_weight:
            name += f"_a{e.soft_weight:g}"
        more = "+".join(self.sets) or "untranscribed" * self.untranscribed
        if self.lattice_weight is not None:
            more += f"_l{self.lattice_weight:g}"
        return name + "".join(f"_{word}" for word in (self.loss, self.student, more) if word)

    @property
    def title(self) -> str:
        """What a reader calls it."""
        e, base = self.essence, self.base
        text = {"hard": "Hard labels alone (baseline)", "all": "Every soft label"}.get(e.select) or e.rule().title()
        if e.mass != base.mass:
            text += f", mass: {e.mass}"
        if e.temperature != base.temperature:
            text += f", T = {e.temperature:g}"
        if e.soft_weight != base.soft_weight:
            text += f", \u03b1 = {e.soft_weight:g}"
        if self.teachers:
            text += f", teacher{'s' if len(self.teachers) > 1 else ''} {' and '.join(map(str, self.teachers))}"
        more = ""
        if self.untranscribed:
            audio = " and ".join(self.sets) or "untranscribed audio"
            more = f"one-best labels of {audio}" if e.select == "hard" else f"with {audio}"
            if self.lattice_weight is not None:
                more += f", lattices {self.lattice_weight:g}" if self.lattice_weight else ", without lattices"
        return text + "".join(f", {word}" for word in (self.loss, self.student, more) if word)


def make_point(values: Dict[str, Any], base: EssenceSettings, num_teachers: int, where: str,
               untranscribed_sets: Sequence[str] = ()) -> GridPoint:
    """A point from what a line of the grid says; UserError for unknown keys and values without meaning."""
    values = dict(values)
    teachers = str(values.pop("teachers", ALL_TEACHERS))
    student, loss = values.pop("student", None), values.pop("loss", None)
    untranscribed, lattice_weight = values.pop("untranscribed", False), values.pop("lattice_weight", None)
    if lattice_weight is not None and not (untranscribed and type(lattice_weight) in (int, float)
                                           and 0 <= lattice_weight <= 1):
        raise UserError(f"{where}: lattice_weight: expected a number from 0 to 1, with untranscribed, found "
                        f"{lattice_weight!r}")
    sets: Tuple[str, ...] = ()
    if not isinstance(untranscribed, bool):
        sets = tuple(s for s in untranscribed_sets if s in str(untranscribed).split())
        if len(sets) != len(str(untranscribed).split()) or not sets:
            raise UserError(f"{where}: untranscribed: expected true, false or names of untranscribed sets of the run "
                            f"({' '.join(untranscribed_sets) or 'it has none'}), found {untranscribed!r}")
        if len(sets) == len(untranscribed_sets):
            sets = ()
    if loss is not None:
        from essence_kd.distill.losses import LOSSES  # PyTorch comes with them

        LOSSES.get(str(loss), where)
    numbers: Tuple[int, ...] = ()
    if teachers != ALL_TEACHERS:
        if not re.fullmatch(r"[1-9]\d*( [1-9]\d*)*", teachers) or max(map(int, teachers.split())) > num_teachers:
            raise UserError(f"{where}: teachers: '{teachers}' is neither 'all' nor numbers of the {num_teachers} "
                            "teachers, such as '1 3'")
        numbers = tuple(sorted(set(map(int, teachers.split()))))
        if len(numbers) == num_teachers:
            numbers = ()
    essence = from_dict(EssenceSettings, {**to_dict(base), **values}, where)
    bare = essence.select in WITHOUT_RULE
    if not bare and essence.select not in RULES:
        raise UserError(f"{where}: select: '{essence.select}' is none of {', '.join((*WITHOUT_RULE, *RULES.names()))}")
    try:
        replace(essence, select=EssenceSettings.select if bare else essence.select).check()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    matters = {"select"} if bare else {"select", "parameters", *RULES.get(essence.select).parameters}
    if essence.select != "hard":
        matters |= {"soft_weight", "temperature"} | ({"mass"} if essence.select != "all" else set())
    else:
        numbers, loss = (), None
    kept = {name: value for name, value in to_dict(essence).items() if name in matters}
    return GridPoint(replace(base, **kept), numbers, base, student, loss, bool(untranscribed), sets, lattice_weight)


def expand(grid: GridSettings, base: EssenceSettings, num_teachers: int, where: str,
           untranscribed: Sequence[str] = ()) -> List[Tuple[GridPoint, List[int]]]:
    """Every point with its seeds, in the order of the grid; a point that comes twice is there once, with all seeds.

    ``untranscribed``: the sets of such audio that the run has; without, points that learn from it are left out.
    """
    found: Dict[str, Tuple[GridPoint, List[int]]] = {}
    for number, line in enumerate(grid.points, 1):
        here = f"{where}: point {number}"
        line = dict(line)
        seeds = line.pop("seeds", grid.seeds)
        if not isinstance(seeds, list) or not seeds or any(type(s) is not int or s < 0 for s in seeds):
            raise UserError(f"{here}: seeds: expected a list of whole numbers, found {seeds!r}")
        choices = [value if isinstance(value, list) else [value] for value in line.values()]
        if line.get("untranscribed") and not untranscribed:
            choices = [[v for v in value if not v] if key == "untranscribed" else value
                       for key, value in zip(line, choices)]
        for chosen in itertools.product(*choices):
            point = make_point(dict(zip(line, chosen)), base, num_teachers, here, untranscribed)
            _, known = found.setdefault(point.name, (point, []))
            known += [s for s in seeds if s not in known]
    if not found:
        raise UserError(f"{where}: there is no point in the grid")
    return list(found.values())
