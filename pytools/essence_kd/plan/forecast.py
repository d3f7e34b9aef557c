"""How long a run will take on this machine, and what that is known from: said before it starts.

From earlier runs, where ``stages.jsonl`` of the experiment has what each stage took. Else from ``seconds.json`` of the
recipe, seconds of each stage on two cores with those of a training step there: scaled by an earlier run of another
corpus or size, or by a training step that is timed here.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from essence_kd.io.errors import UserError
from essence_kd.io.lookup import read_json_lines
from essence_kd.plan.plan import FILE, Plan, read_plan

SPREAD = 1.5  # the same work took up to so many times as long, or as short
ENOUGH = 60  # seconds of an earlier run that tell how fast a machine is
WIDTH = {5: 4, 6: 8, 8: 2, 9: 8}  # jobs of stages in the runs of seconds.json; the others have as many as cores


@dataclass
class Stages:
    """What stages.jsonl tells: the longest whole run of each stage, and when each was last whole (Unix time)."""

    seconds: Dict[int, float] = field(default_factory=dict)
    ended: Dict[int, float] = field(default_factory=dict)


def read_stages(path: Path) -> Stages:
    """What stages took; time that failed or stopped attempts spent is added to the next. Nothing where it is unread."""
    found, spent = Stages(), {}  # type: Tuple[Stages, Dict[int, float]]
    try:
        for row in read_json_lines(path) if path.is_file() else ():
            stage, seconds = int(row["stage"]), float(row["seconds"])
            if row.get("unfinished"):
                spent[stage] = spent.get(stage, 0.0) + seconds
                found.ended.pop(stage, None)
            else:
                found.seconds[stage] = max(found.seconds.get(stage, 0.0), seconds + spent.pop(stage, 0.0))
                found.ended[stage] = float(row.get("ended", 0))
    except (UserError, KeyError, TypeError, ValueError):  # the report says so
        return Stages()
    return found


def _reference(root: Path, corpus: str, size: str, engine: str) -> Tuple[List[float], float]:
    """Seconds of each stage and of a training step where they were measured; nothing where the recipe has none."""
    path = root / "recipes" / corpus / "seconds.json"
    if engine != "native" or not path.is_file():
        return [], 0.0
    values = json.loads(path.read_text(encoding="utf-8")).get(size, {})
    return values.get("stages", []), values.get("step", 0.0)


def _on_cores(seconds: List[float], plan: Plan, cores: int) -> Dict[int, float]:
    """Seconds on so many cores of those on two, of the models that the plan has."""
    num = {role: sum(system.role == role for system in plan.systems) for role in ("teacher", "twin", "student")}
    models = {5: (num["teacher"] + num["twin"]) / 4, 8: num["student"] / 2, 9: len(plan.systems) / 8}
    return {stage: value * max(1.0, models.get(stage, 1.0)) * 2 / max(1, min(cores, WIDTH.get(stage, cores)))
            for stage, value in enumerate(seconds)}


def _speed_of_others(plan: Plan, root: Path, cores: int) -> Optional[Tuple[float, Path]]:
    """How many times as long as seconds.json says the latest run of another corpus or size took here, and where."""
    found = []
    for path in Path(plan.exp).parent.glob(f"*/{FILE}"):
        try:
            other = read_plan(path)
        except UserError:
            continue
        took = read_stages(path.parent / "stages.jsonl").seconds
        wanted = _on_cores(_reference(root, other.corpus, other.size, other.engine)[0], other, cores)
        both = [stage for stage in wanted if stage in took]
        if sum(took[stage] for stage in both) >= ENOUGH:
            found.append((path.stat().st_mtime, path.parent,
                          sum(took[stage] for stage in both) / sum(wanted[stage] for stage in both)))
    if not found:
        return None
    _, where, factor = max(found)
    return factor, where


def about(seconds: float) -> str:
    """Seconds as a human says them: 40 s, 19 min, 2.5 h."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def forecast(plan: Plan, root: Path, first: int, last: int, cores: int, *, force: bool,
             step: Callable[[], float]) -> Tuple[str, Dict[int, float]]:
    """What run.sh says of the time that stages ``first`` to ``last`` take, and seconds of each that seems to be to do.

    Stages that have ended since the plan was written are done, unless files have changed that the plan does not name.

    Args:
      root: the checkout.
      cores: those that work side by side.
      force: everything is made anew.
      step: seconds of a training step on this machine, as am.bench.step_seconds times it; called where nothing else
        tells how fast the machine is.
    """
    exp = Path(plan.exp)
    before = read_stages(exp / "stages.jsonl")
    asked = range(first, last + 1)
    written = int((exp / FILE).stat().st_mtime)  # stages note whole seconds
    done = [] if force else [stage for stage in asked if before.ended.get(stage, 0) >= written]
    known = {stage: before.seconds[stage] for stage in asked if stage in before.seconds}
    if len(done) == len(asked):
        return f"seconds, if nothing has changed since the last run; all anew took {about(sum(known.values()))}", {}
    to_do = [stage for stage in asked if stage not in done]
    skipped = "" if force else "; what is up to date is skipped"
    if all(stage in known for stage in to_do):
        times = {stage: known[stage] for stage in to_do}
        return (f"at most about {about(sum(times.values()))}, as long as these stages took before in {exp}{skipped}",
                times)
    seconds, there = _reference(root, plan.corpus, plan.size, plan.engine)
    if not seconds:
        return (f"how long it takes is not known before a first run of {plan.corpus} ({plan.size}, engine "
                f"{plan.engine}); {exp}/stages.jsonl keeps what each stage took"), {}
    wanted = _on_cores(seconds, plan, cores)
    elsewhere = about(sum(seconds[stage] for stage in to_do))
    others = None
    if sum(before.seconds.values()) >= ENOUGH:
        others = sum(before.seconds.values()) / sum(wanted[stage] for stage in before.seconds), exp
    others = others or _speed_of_others(plan, root, cores)
    if others:
        factor, why = others[0], f"by what stages took in {others[1]}"
    elif sum(wanted[stage] for stage in to_do) < ENOUGH:
        factor, why = 1.0, f"it took {elsewhere} on two other cores"
    else:
        here = step()
        factor = here / there
        why = (f"it took {elsewhere} on two cores where a step of training takes {1000 * there:.0f} ms; here one takes "
               f"{1000 * here:.0f}")
    times = {stage: known.get(stage, factor * wanted[stage]) for stage in to_do}
    total = sum(times.values())
    return f"roughly {about(total)} ({about(total / SPREAD)} to {about(total * SPREAD)}): {why}", times
