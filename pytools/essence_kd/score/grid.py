"""The grid of an ablation: which students are trained, on which targets, and what of it the main run has already.

A point is a set of settings, trained once a seed. Points share everything upstream: the teachers ran once, and their
wide archive is pruned again for each target.
"""
from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from essence_kd.distill.essence import EssenceSettings
from essence_kd.distill.rules import RULES
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import read_sidecar, sha256_file, write_text
from essence_kd.io.settings import from_dict, load_settings, read_yaml, to_dict
from essence_kd.score.experiment import read_json

WITHOUT_RULE = ("hard", "all")  # no soft targets at all; every soft label
ALL_TEACHERS = "all"


@dataclass
class GridSettings:
    """conf/ablation.yaml: seeds, and points whose lists are multiplied out; a point may name seeds of its own."""

    seeds: List[int] = field(default_factory=lambda: [1, 2, 3])
    points: List[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """One set of settings; what its rule does not depend on has the base's value, so that equal points are equal."""

    essence: EssenceSettings  # select may also be hard or all
    teachers: Tuple[int, ...]  # numbers from 1; empty: all of them
    base: EssenceSettings

    @property
    def target(self) -> str:
        """The name of its soft targets: rule, mass rule and teachers; empty for hard labels alone."""
        e = self.essence
        if e.select == "hard":
            return ""
        stem = "all" if e.select == "all" else e.rule().label(self.base)
        if e.mass != self.base.mass:
            stem += f"_{e.mass}"
        return stem + ("_teachers" + "+".join(map(str, self.teachers)) if self.teachers else "")

    @property
    def name(self) -> str:
        """Its directory below exp/CORPUS/ablation."""
        e, base = self.essence, self.base
        name = self.target or "hard"
        if e.temperature != base.temperature:
            name += f"_T{e.temperature:g}"
        return name + (f"_a{e.soft_weight:g}" if e.soft_weight != base.soft_weight else "")


def make_point(values: Dict[str, Any], base: EssenceSettings, num_teachers: int, where: str) -> Point:
    """A point from what a line of the grid says; UserError for unknown keys and values without meaning."""
    values = dict(values)
    teachers = str(values.pop("teachers", ALL_TEACHERS))
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
        numbers = ()
    kept = {name: value for name, value in to_dict(essence).items() if name in matters}
    return Point(replace(base, **kept), numbers, base)


def expand(grid: GridSettings, base: EssenceSettings, num_teachers: int, where: str) -> List[Tuple[Point, List[int]]]:
    """Every point with its seeds, in the order of the grid; a point that comes twice is there once, with all seeds."""
    found: Dict[str, Tuple[Point, List[int]]] = {}
    for number, line in enumerate(grid.points, 1):
        here = f"{where}: point {number}"
        line = dict(line)
        seeds = line.pop("seeds", grid.seeds)
        if not isinstance(seeds, list) or not seeds or any(type(s) is not int or s < 0 for s in seeds):
            raise UserError(f"{here}: seeds: expected a list of whole numbers, found {seeds!r}")
        choices = [value if isinstance(value, list) else [value] for value in line.values()]
        for chosen in itertools.product(*choices):
            point = make_point(dict(zip(line, chosen)), base, num_teachers, here)
            _, known = found.setdefault(point.name, (point, []))
            known += [s for s in seeds if s not in known]
    if not found:
        raise UserError(f"{where}: there is no point in the grid")
    return list(found.values())


# ---- what the main run has already

def _wanted(model_yaml, point: Point, seed: int) -> Dict[str, Any]:
    """What a training of this point depends on, of the settings that its model.yaml would hold."""
    from essence_kd.am.models.registry import model_settings
    from essence_kd.am.settings import TrainSettings

    e = point.essence
    overrides = [f"seed={seed}", f"distill.soft_weight={e.soft_weight}", f"distill.temperature={e.temperature}",
                 f"distill.mass={e.mass}"]
    settings = load_settings(TrainSettings, model_yaml, overrides)
    model = model_settings(settings.arch, settings.model, str(model_yaml))
    return _comparable(settings.arch, model, to_dict(settings), bool(point.target))


def _used(path: Path, soft: bool) -> Dict[str, Any]:
    """The same, of what a model was trained with; settings that are newer than its model.yaml have their defaults."""
    from essence_kd.am.models.registry import model_settings
    from essence_kd.am.settings import TrainSettings

    written = read_yaml(path)
    model = model_settings(written["arch"], written["model"], str(path))
    return _comparable(written["arch"], model, to_dict(from_dict(TrainSettings, written["train"], str(path))), soft)


def _comparable(arch: str, model: Dict[str, Any], train: Dict[str, Any], soft: bool) -> Dict[str, Any]:
    data = {k: v for k, v in train["data"].items() if k not in ("preload_mb", "workers")}
    return {"arch": arch, "model": model, "data": data, **{k: train[k] for k in ("augment", "optim", "seed")},
            "distill": train["distill"] if soft else None}


def _same_target(point: Point, sidecar: Dict[str, Any], dense: bool) -> bool:
    """Whether a sidecar describes the soft targets of this point (of all teachers)."""
    e = point.essence
    if point.teachers or float(sidecar.get("temperature") or 1.0) != 1.0:
        return False
    if e.select == "all":
        return dense
    rule = e.rule()
    return (not dense and not rule.needs_every_class and sidecar.get("selection") == e.select
            and sidecar.get("mass") == e.mass and all(sidecar.get(k) == v for k, v in rule.describe().items()))


def find_trained(exp_dir: Path, model_yaml, point: Point, seed: int, rescored: bool = False) -> Optional[str]:
    """The system of the main run that is this point with this seed, decoded as points are; None: train it.

    Points are decoded at EXP_DIR/scales.json, and ``rescored`` with a larger language model or not.
    """
    name = {"": "baseline", "all": "student_full"}.get(point.target, "student_essence")
    path, scales = exp_dir / name, exp_dir / "scales.json"
    decodes = list(path.glob("decode_*/decode.json"))
    if not decodes or not all((path / f).is_file() for f in (".done", "model.yaml", "info.json")):
        return None
    if _used(path / "model.yaml", bool(point.target)) != _wanted(model_yaml, point, seed):
        return None
    best = read_json(scales).get("best", {}) if scales.is_file() else {}
    for decode in map(read_json, decodes):
        if bool(decode.get("rescoring")) != rescored or \
                any(decode.get(key) != best.get(key) for key in ("acoustic_scale", "word_insertion_penalty")):
            return None
    used = read_json(path / "info.json").get("fingerprint", {}).get("soft targets", "none")
    if not point.target:
        return name if used == "none" else None
    for scp in [exp_dir / "posteriors" / "full.scp", *sorted(exp_dir.glob("essence_*/post.scp"))]:
        beside = scp.with_name("full.json" if scp.name == "full.scp" else "essence.json")
        if scp.is_file() and beside.is_file() and sha256_file(scp)[:16] == used and \
                _same_target(point, read_sidecar(beside), scp.name == "full.scp"):
            return name
    return None


# ---- the plan

def _make_target(point: Point, exp_dir: Path, out: Path, feats: str, essence_yaml: str, combine: str) -> List[str]:
    """The essence command that makes a point's soft targets, or nothing for those that stage 6 has left."""
    e, posteriors = point.essence, exp_dir / "posteriors"
    select = ["--config", essence_yaml, "--select", e.select, "--mass", e.mass, "--seed", str(e.seed)]
    for name in ("top_k", "top_p", "max_k", "min_post"):
        select += ["--" + name.replace("_", "-"), str(getattr(e, name))]
    if e.select == "all" and not point.teachers:
        return []
    post = f"ark,scp:{out}/post.ark,{out}/post.scp"
    rule = None if e.select == "all" else e.rule()
    for name, value in e.parameters.items():
        select += ["--set", f"{name}={value}"]
    if point.teachers or rule.needs_teachers:
        models = [str(exp_dir / f"teacher_{n}") for n in point.teachers or range(1, _num_teachers(exp_dir) + 1)]
        start = ["dump-post", "--combine", combine, "--feats", f"scp:{feats}"]
        if e.select == "all":
            return [*start, "--keep", "all", *models, f"ark,scp:{out}/full.ark,{out}/full.scp"]
        return [*start, "--fuse", *select, "--agree", str(e.agree), *models, post]
    source = posteriors / ("full.scp" if rule.needs_every_class else "wide.scp")
    return ["prune-post", *select, f"scp:{source}", post]


def _num_teachers(exp_dir: Path) -> int:
    return len(read_sidecar(exp_dir / "posteriors" / "wide.json").get("models") or [])


def _entries(point: Point, sidecar: Dict[str, Any]) -> float:
    """Entries a frame, for a forecast of the disk; a guess where only the data know."""
    e = point.essence
    if e.select == "all":
        return 0.4 * float(sidecar["num_pdfs"])  # four bytes a class, not ten
    return e.rule().usual()


def _forecast(exp_dir: Path, soft: bool) -> Optional[float]:
    """Seconds that a point will take, from what the main run took; None when there is nothing to go by."""
    for name in ("student_full", "student_essence", "baseline") if soft else ("baseline",):
        path = exp_dir / name
        if not (path / "info.json").is_file():
            continue
        seconds = float(read_json(path / "info.json")["seconds"])
        seconds += sum(float(read_json(d).get("wall_seconds") or 0.0) for d in path.glob("decode_*/decode.json"))
        return seconds + 10.0  # reading data, starting programs
    return None


def write_plan(grid_yaml, exp_dir: Path, out_dir: Path, *, model_yaml, essence_yaml, feats,
               overrides: Sequence[str] = (), rescored: bool = False) -> Dict[str, Any]:
    """Write plan.json, targets.tsv and points.tsv to ``out_dir`` and return what plan.json holds.

    targets.tsv has a line a set of soft targets: name, bytes (a forecast), the essence command that makes it (or -).
    points.tsv has a line a training, the first seed of every point first: POINT/seed_N, its target (or -), the system
    of the main run that it is (or -), seconds (a forecast, or -), seed, soft weight, temperature, mass rule.
    ``rescored``: points are rescored with a larger language model.
    """
    grid = load_settings(GridSettings, grid_yaml)
    base = load_settings(EssenceSettings, essence_yaml, overrides)
    wide = exp_dir / "posteriors" / "wide.json"
    if not wide.is_file():
        raise UserError(f"{wide}: no such file: the wide posteriors of stage 6 are pruned again for every point "
                        "(./run.sh --stage 6, without --fuse)")
    sidecar = read_sidecar(wide)
    points, targets, lines = [], {}, []
    for point, seeds in expand(grid, base, _num_teachers(exp_dir), str(grid_yaml)):
        if point.target and point.target not in targets:
            command = _make_target(point, exp_dir, out_dir / "targets" / point.target, str(feats), str(essence_yaml),
                                   sidecar.get("combine", "mean"))
            size = int(sidecar["num_frames"] * (5 + 10 * _entries(point, sidecar))) if command else 0
            targets[point.target] = (size, shlex.join(["essence", *command]) if command else "-")
        done = {seed: find_trained(exp_dir, model_yaml, point, seed, rescored) for seed in seeds}
        e, seconds = point.essence, _forecast(exp_dir, bool(point.target))
        for turn, seed in enumerate(seeds):
            fields = (f"{point.name}/seed_{seed}", point.target or "-", done[seed] or "-",
                      "-" if seconds is None else round(seconds), seed, e.soft_weight, e.temperature, e.mass)
            lines.append((turn, "\t".join(map(str, fields))))
        points.append({"name": point.name, **asdict(e), "target": point.target, "teachers": list(point.teachers),
                       "seeds": seeds, "from": {str(s): d for s, d in done.items() if d}})
    lines.sort(key=lambda line: line[0])  # every point with its first seed, then every point with its second ...
    plan = {"base": asdict(base), "points": points}
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in (("plan.json", json.dumps(plan, indent=1) + "\n"),
                       ("points.tsv", "".join(f"{line}\n" for _, line in lines)),
                       ("targets.tsv", "".join(f"{n}\t{s}\t{c}\n" for n, (s, c) in targets.items()))):
        write_text(out_dir / name, text)
    return plan
