"""What the page calls systems and figures, and which systems it compares."""
from __future__ import annotations

import math
from typing import NamedTuple

from essence_kd.score.experiment import Experiment
from essence_kd.score.results import dense_sibling

DASH = "\u2013"  # where there is no figure


# ---- who is who

ESSENCE_COLOUR = "c-student-essence"


class Asked(NamedTuple):
    """The systems that the headline and the listed utterances are about; None where the experiment has none."""

    student: str | None  # learns from the essence
    twin: str | None  # the same network, from hard labels alone
    dense: str | None  # the same network, from every soft label
    ensemble: str | None  # has taught them


class Shown(NamedTuple):
    """A system as the page has it: what a reader calls it, and the CSS class that colours it."""

    label: str
    css: str


def asked(exp: Experiment) -> Asked:
    """The systems that the page compares: the first decoded student of an essence, or else of any labels."""
    students = [s for s in exp.plan.main_systems("student") if s.name in exp.systems]
    first = next((s for s in students if s.targets and exp.plan.target(s.targets).kind == "post"), None)
    twin = first.twin if first else next((s.name for s in exp.plan.main_systems("twin")), None)
    dense = dense_sibling(exp, first.name) if first else next((s.name for s in students), None)
    ensemble = next((s.name for s in exp.plan.main_systems("ensemble")), None)
    return Asked(*(name if name in exp.systems else None for name in (first and first.name, twin, dense, ensemble)))


def shown(exp: Experiment, name: str) -> Shown:
    """Label and colour of a system: the colour tells the role, and of students whether every label taught them."""
    entry = exp.plan.system(name)
    css = {"twin": "baseline", "student": "student-essence"}.get(entry.role, entry.role)
    target = exp.plan.target(entry.targets)
    if target is not None and target.kind == "dense":
        css = "student-full"
    return Shown(entry.label, f"c-{css}")


def group(exp: Experiment, name: str) -> str:
    """Systems of one group stand together in the table: twins and students, teachers, ..."""
    role = exp.plan.system(name).role
    return "student" if role == "twin" else role


# ---- figures as text

def wer_text(value: float) -> str:
    """A rate in percent with one decimal."""
    return f"{value:.1f}" if math.isfinite(value) else "\u221e"


def points(value: float) -> str:
    """A difference with its sign, a real minus."""
    return f"{value:+.1f}".replace("-", "\u2212")


def size_text(count: float | None) -> str:
    """Parameters or bytes with a decimal prefix: 304 k, 3.7 M."""
    if count is None:
        return DASH
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            value = count / limit
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{count:.0f}"


def bytes_text(count: float) -> str:
    """Bytes: 61 B, 9.8 MB."""
    text = size_text(count)
    return text + ("B" if text[-1].isalpha() else " B")


def time_text(seconds: float) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    seconds = int(round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 6000:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
