"""From options, recipe.conf and conf/ to the plan of a run."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from essence_kd.am.settings import TrainSettings
from essence_kd.decode.decoder import DECODERS
from essence_kd.decode.posteriors import LatticeSettings
from essence_kd.distill.essence import EssenceSettings
from essence_kd.hmm.gmm_kinds import KINDS
from essence_kd.io.settings import load_settings, to_dict
from essence_kd.plan.grid import GridPoint, GridSettings, expand, rule_label
from essence_kd.plan.options import DECODERS as USUAL_DECODERS
from essence_kd.plan.options import (SAME, OptionError, Options, check_models, check_options, check_recipe, find_recipe,
                                     model_file, model_names, run_name, student_names)
from essence_kd.plan.plan import Ablation, Model, Plan, Point, Run, Set, System, Target, check_plan
from essence_kd.plan.recipe import Recipe

NETWORKS = "networks"  # the scale group of all networks; the GMM, whose likelihoods are of another kind, has its own
POSTERIORS = "posteriors"  # where stage 6 leaves the archive that everything else is pruned from
DENSE = "dense"  # and that of every label, where something learns from it
LATTICE = "lattice"  # the rule of a target that essence lattice-post makes of its source


@dataclass
class _Builder:
    """Collects targets and systems; what equals an earlier one is that one."""

    seed: int
    combine: str
    teachers: List[str] = field(default_factory=list)
    sets: List[str] = field(default_factory=list)
    untranscribed: List[str] = field(default_factory=list)  # sets
    same_audio: bool = True  # whether students learn from the training data alone, too
    lattice_weight: float = 0.0  # in the targets of untranscribed sets
    min_confidence: Optional[float] = None
    targets: Dict[tuple, Target] = field(default_factory=dict)
    systems: List[System] = field(default_factory=list)
    trained: Dict[tuple, str] = field(default_factory=dict)

    def target(self, target: Target) -> Target:
        """The target, or the earlier one that holds the same."""
        key = (target.kind, target.select, tuple(target.options), tuple(target.teachers), tuple(target.sets),
               target.source)
        return self.targets.setdefault(key, target)

    def beside(self, target: Target, sets: Sequence[str] = (), lattice_weight: Optional[float] = None) -> List[str]:
        """The names of what ``target`` is for the training set, of each untranscribed set, or of those named.

        Posteriors are mixed with those of their lattices first, but where a rule asks the teachers themselves.
        """
        weight = self.lattice_weight if lattice_weight is None else lattice_weight
        end = "" if weight == self.lattice_weight else f"_l{weight:g}"
        found = []
        for name in sets or self.untranscribed:
            source = None
            if target.source:
                of_train = next(t for t in self.targets.values() if t.name == target.source)
                source = self.beside(of_train, [name], weight)[0]
            folder, _, file = target.scp.rpartition("/")
            made = replace(target, name=f"{target.name}_{name}{end if source else ''}", sets=[name], source=source,
                           scp=f"{folder}_{name}{end if source else ''}/{file}")
            made = self.target(made)
            if weight and made.select in ("wide", "all") and not source:
                made = self.target(replace(
                    made, name=f"{made.name}_lattice{end}", scp=f"{folder}_{name}_lattice{end}/{file}", select=LATTICE,
                    label=f"{made.label}, and lattices", options=["--weight", f"{weight:g}"], source=made.name,
                    stage=7))
            found.append(made.name)
        return found

    def with_untranscribed(self, system: System, target: Target) -> System:
        """The system that learns from the untranscribed sets, too."""
        return replace(system, name=f"{system.name}_untranscribed", label=f"{system.label}, with untranscribed audio",
                       untranscribed=self.beside(target), min_confidence=self.min_confidence)

    def train(self, system: System) -> str:
        """The name of the system, or of the earlier one that is trained alike."""
        key = _training(system)
        if key not in self.trained:
            self.trained[key] = system.name
            self.systems.append(system)
        return self.trained[key]


def _training(system: System) -> tuple:
    """What the training of a system depends on."""
    return (system.model, system.seed, system.targets, system.loss, system.soft_weight, system.temperature, system.mass,
            tuple(system.untranscribed), system.min_confidence)


def essence_settings(options: Options, root: Path) -> List[EssenceSettings]:
    """conf/essence.yaml with what run.sh was asked for; one for each ``--top-k``. Raises OptionError or UserError."""
    base = load_settings(EssenceSettings, root / "conf" / "essence.yaml")
    if options.temperature:
        base = replace(base, temperature=float(options.temperature))
    if options.soft_weight:
        base = replace(base, soft_weight=float(options.soft_weight))
    found = [replace(base, top_k=int(k)) for k in dict.fromkeys(options.top_k.split())] or [base]
    for settings in found:
        try:
            settings.check()
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            raise OptionError(f"--{name.replace('_', '-')} {rest}") from None
    return found


def _pruned(settings: EssenceSettings, builder: _Builder, place: str, label: str, **more) -> Target:
    """Targets that a rule selects, in the directory ``place`` of EXP; the builder has not been told of them."""
    rule = settings.rule()
    given = {"select": settings.select, "mass": settings.mass,
             **{name: getattr(settings, name) for name in rule.parameters if hasattr(settings, name)}}
    words = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]
    words += [word for name, value in settings.parameters.items() for word in ("--set", f"{name}={value}")]
    return Target(place, "post", f"{place}/post.scp", settings.select, label, words, settings.mass, rule.exact,
                  combine=builder.combine, sets=builder.sets, **more)


def _source(settings: EssenceSettings) -> str:
    """Which archive of stage 6 a rule is applied to: one that may keep any class reads them all."""
    return "full" if settings.rule().needs_every_class else "wide"


def _soft(settings: EssenceSettings, target: Target) -> dict:
    """What a training takes of the settings."""
    return {"targets": target.name, "soft_weight": settings.soft_weight, "temperature": settings.temperature,
            "mass": target.mass}


def _needs_dense(options: Options, base: Sequence[EssenceSettings],
                 grid: Sequence[Tuple[GridPoint, List[int]]]) -> bool:
    """Whether anything learns from every label of the ensemble, or is pruned by a rule that may keep any of them."""
    pruned = [*base, *(point.essence for point, _ in grid if point.target and not point.teachers)]
    return options.all_labels == "true" or any(s.select == "all" or s.rule().needs_every_class for s in pruned)


def _main_targets(builder: _Builder, base: Sequence[EssenceSettings], post_keep: int, fuse: bool,
                  dense: bool) -> List[Target]:
    """Stage 6 and 7 of the main run: every label if ``dense``, the wide archive, and essence targets, which are
    returned."""
    common: Dict[str, Any] = {"teachers": builder.teachers, "combine": builder.combine, "sets": builder.sets,
                              "stage": 6}
    if not fuse:
        if dense:
            builder.target(Target("full", "dense", f"{DENSE}/full.scp", "all", "every soft label", **common))
        builder.target(Target("wide", "post", f"{POSTERIORS}/wide.scp", "wide", f"the {post_keep} largest",
                              ["--keep", str(post_keep)], **common))
    elif len(base) > 1:
        raise OptionError("--fuse true leaves no wide archive to prune again: give one --top-k")
    found = []
    for settings in base:
        source = None if fuse or settings.rule().needs_teachers else _source(settings)
        place = "essence_" + rule_label(settings, EssenceSettings())
        target = _pruned(settings, builder, place, settings.rule().title(), teachers=builder.teachers, source=source,
                         stage=6 if fuse else 7)
        found.append(builder.target(target))
    return found


def _main_systems(builder: _Builder, students: Sequence[str], essences: Sequence[Target],
                  base: Sequence[EssenceSettings], all_labels: bool) -> None:
    """Each student beside its twin, and that of every soft label where it is asked for.

    The first of several students and k have the short names.
    """
    full = next(t for t in builder.targets.values() if t.name == "full") if all_labels else None
    of_first: List[Tuple[System, ...]] = []
    for number, model in enumerate(students):
        suffix = f"_{model.replace('student_', '', 1)}" if number else ""
        note = f", {model}" if number else ""
        common: Dict[str, Any] = {"model": model, "seed": builder.seed}
        twin = builder.train(System(f"baseline{suffix}", "twin", f"Baseline{note}", NETWORKS, True, **common))
        common["twin"] = twin
        found, wanted = [], []
        if full:
            wanted.append((full, base[0], f"student_full{suffix}", f"Student, all soft labels{note}"))
        for turn, (target, settings) in enumerate(zip(essences, base)):
            name = f"student_essence{suffix}" + (target.name.replace("essence", "", 1) if turn else "")
            label = f"Student, essence{note}" + (f", {target.label}" if len(base) > 1 else "")
            wanted.append((target, settings, name, label))
        for target, settings, name, label in wanted:
            same = System(name, "student", label, NETWORKS, False, **common, **_soft(settings, target))
            if builder.same_audio:
                found.append(same)
            if builder.untranscribed:
                found.append(builder.with_untranscribed(same, target))
        of_first.append(tuple(found))
    for systems in of_first:
        for system in systems:
            builder.train(system)


def _ablation(builder: _Builder, points: Sequence[Tuple[GridPoint, List[int]]], base: EssenceSettings,
              student: str) -> Ablation:
    """The systems of a grid that the main run has not: every point with its first seed, then with its second."""
    found, turns = [], []
    for point, seeds in points:
        settings, target = point.essence, None
        if point.target:
            place = f"ablation/targets/{point.target}"
            teachers = [builder.teachers[n - 1] for n in point.teachers] or builder.teachers
            if settings.select == "all":
                target = builder.target(Target(place, "dense", f"{place}/full.scp", "all", point.target, [], None, None,
                                               teachers, builder.combine, builder.sets, None, keep=False))
            else:
                run_teachers = bool(point.teachers) or settings.rule().needs_teachers
                target = builder.target(_pruned(settings, builder, place, settings.rule().title(), teachers=teachers,
                                                keep=False, source=None if run_teachers else _source(settings)))
        told = {**to_dict(settings), "teachers": list(point.teachers), "loss": point.loss, "student": point.student,
                **({"untranscribed": " ".join(point.sets) or True} if point.untranscribed else {}),
                **({} if point.lattice_weight is None else {"lattice_weight": point.lattice_weight})}
        entry = Point(point.name, point.title, told, target.name if target else None)
        found.append(entry)
        turns += [(turn, seed, point, target, entry) for turn, seed in enumerate(seeds)]
    for _, seed, point, target, entry in sorted(turns, key=lambda row: row[0]):
        model = point.student or student
        soft = _soft(point.essence, target) if target else {}
        learns = target
        if point.untranscribed and target is None:
            one = replace(base, select="top-k", top_k=1, mass="renorm", parameters={})
            learns = _pruned(one, builder, "ablation/targets/one_best", one.rule().title(), teachers=builder.teachers,
                             keep=False, source=_source(one))
            soft = {"temperature": 1.0, "mass": one.mass}
        if point.untranscribed:
            soft.update(untranscribed=builder.beside(learns, point.sets, point.lattice_weight),
                        min_confidence=builder.min_confidence)
        system = System(f"ablation/{point.name}/seed_{seed}", "student" if learns else "twin", point.name, NETWORKS,
                        False, model, seed, loss=point.loss, point=True, **soft)
        entry.runs.append(Run(seed, builder.train(system)))
    for system in builder.systems:
        if system.point and system.role == "student":  # the grid may have its twin later
            system.twin = builder.trained.get(_training(System("", "", "", "", False, system.model, system.seed)))
    for entry in found:
        entry.runs.sort(key=lambda run: run.seed)
    return Ablation(to_dict(base), found)


def make_plan(options: Options, recipe: Recipe, root: Path, work_dir: Path) -> Plan:
    """The plan of a run. ``root``: the checkout. Raises OptionError, UserError."""
    check_options(options, root)
    check_recipe(options, recipe)
    teachers = model_names(options.teachers, recipe.teachers)
    students = student_names(options.student, recipe.student)
    base = essence_settings(options, root)
    grid = None
    asked = options.untranscribed or recipe.untranscribed
    untranscribed = recipe.untranscribed_sets if asked != "false" else []
    if options.ablation == "true":
        grid = expand(load_settings(GridSettings, root / options.grid), base[0], len(teachers), options.grid,
                      untranscribed)
    models = list(dict.fromkeys([*teachers, *students, *(p.student for p, _ in grid or () if p.student)]))
    check_models(models, options.engine, root)
    if options.decoder not in USUAL_DECODERS and options.decoder not in DECODERS:
        raise OptionError(f"unknown decoder '{options.decoder}'; there are: {' '.join(('auto', *DECODERS.names()))}")
    for model in models:
        if not model.startswith("nnet3/"):
            load_settings(TrainSettings, model_file(root, model))
    seed, fuse = int(options.seed), options.fuse == "true"
    hears = recipe.teacher_hears if untranscribed else {}
    if options.teacher_hears:
        hears = dict(pair.split("=") for pair in options.teacher_hears.split() if pair != SAME)
    lattice_weight = float(options.lattice_weight or LatticeSettings.weight) if not fuse else 0.0
    builder = _Builder(seed, options.combine, [f"teacher_{n}" for n, _ in enumerate(teachers, 1)], [recipe.train_set],
                       untranscribed, asked != "only", lattice_weight,
                       float(options.min_confidence) if options.min_confidence else None)
    builder.systems.append(System("gmm", "gmm", "GMM", "gmm", True))
    for system, model in zip(builder.teachers, teachers):
        label = system.replace("_", " ").capitalize()
        taken = builder.train(System(system, "teacher", label, NETWORKS, True, model, seed))
        if taken != system:
            raise OptionError(f"--teachers names {model} twice: with one seed both would be the same")
    builder.systems.append(System("ensemble", "ensemble", "Ensemble", NETWORKS, True, teachers=builder.teachers))
    essences = _main_targets(builder, base, recipe.post_keep, fuse, _needs_dense(options, base, grid or ()))
    _main_systems(builder, students, essences, base, options.all_labels == "true")
    ablation = _ablation(builder, grid, base[0], students[0]) if grid else None
    name = run_name(options)
    roles = {"train": [recipe.train_set], "dev": [recipe.dev_set], "test": recipe.eval_sets,
             "untranscribed": untranscribed, "rendering": list(dict.fromkeys(hears.values()))}
    plan = Plan(
        corpus=options.corpus, size=options.size, description=recipe.description, engine=options.engine, seed=seed,
        decoder=options.decoder, combine=options.combine, fuse=fuse,
        lm_order=int(options.lm_order or recipe.lm_order),
        rescore_lm_order=int(options.rescore_lm_order or recipe.rescore_lm_order or 0),
        post_keep=recipe.post_keep, clips=recipe.clips, disk_mb=recipe.disk_mb,
        sample_rate=recipe.sample_rate, gmm=options.gmm or (recipe.gmm if options.engine == "native" else KINDS[-1]),
        recipe_options=[f"{name}={value}" for name, value in options.recipe_options.items()],
        lm_prune=float(options.lm_prune or recipe.lm_prune),
        num_leaves=int(options.num_leaves or recipe.num_leaves),
        data=str(work_dir / "data" / name), exp=str(work_dir / "exp" / name),
        sets=[Set(s, role, recipe.labels.get(s, s), hears.get(s)) for role, names in roles.items() for s in names],
        models=[Model(m, "nnet3" if m.startswith("nnet3/") else "torch", str(model_file(root, m).relative_to(root)))
                for m in models],
        targets=list(builder.targets.values()), systems=builder.systems, ablation=ablation)
    check_plan(plan, options.corpus)
    return plan


def plan_run(options: Options, root: Path, work_dir: Path) -> Plan:
    """Read the recipe and make the plan. Raises OptionError, UserError."""
    check_options(options, root)
    options, recipe = find_recipe(options, root)
    return make_plan(options, recipe, root, work_dir)
