"""What the page calls systems and figures, and which systems it compares."""
from __future__ import annotations

import math
from typing import Any, NamedTuple

from essence_kd.score.experiment import DEV_SET, Experiment, System

DASH = "\u2013"  # where there is no figure


# ---- who is who: the page goes by names of systems here and nowhere else

LABELS = {"gmm": "GMM", "ensemble": "Ensemble", "baseline": "Baseline", "student_full": "Student, all soft labels",
          "student_essence": "Student, essence"}
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
    """The systems that the page compares."""
    return Asked(*(name if name in exp.systems else None
                   for name in ("student_essence", "baseline", "student_full", "ensemble")))


def role(exp: Experiment, name: str) -> str:
    """gmm, teacher, ensemble, twin or student; "" of any other system."""
    if name.startswith(("teacher_", "student_")):
        return name.split("_")[0]
    return {"gmm": "gmm", "ensemble": "ensemble", "baseline": "twin"}.get(name, "")


def shown(exp: Experiment, name: str) -> Shown:
    """Label and colour of a system: one colour for each of the paper's, one for all teachers, one for the rest."""
    if name in LABELS:
        return Shown(LABELS[name], "c-" + name.replace("_", "-"))
    label = name.replace("teacher_", "Teacher ").replace("_", " ")
    return Shown(label, "c-teacher" if role(exp, name) == "teacher" else "c-other")


def group(exp: Experiment, name: str) -> str:
    """Systems of one group stand together in the table: twins and students, teachers, ..."""
    return "student" if role(exp, name) in ("twin", "student") else name.split("_")[0]


def teachers(exp: Experiment) -> list[System]:
    """The members of the ensemble."""
    return [system for name, system in exp.systems.items() if role(exp, name) == "teacher"]


def ablation_dev_set(found: dict[str, Any]) -> str:
    """The development set of an ablation."""
    return found.get("dev_set", DEV_SET)


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
