"""Systems side by side: word error rates, what they cost, and whether chance explains the differences."""
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Sequence

from essence_kd.io.errors import UserError
from essence_kd.io.text import read_map
from essence_kd.plan.plan import FILE
from essence_kd.score import significance, wer
from essence_kd.score.experiment import TOTAL, Experiment, load_experiment
from essence_kd.score.labels import time_text
from essence_kd.score.results import Analysis, p_text

NONE = "-"


def _asked(folders: Sequence[Path]) -> dict[Path, list[str] | None]:
    """The experiments of these folders and the systems asked for of each; None: all of the main run."""
    asked: dict[Path, list[str] | None] = {}
    for folder in folders:
        place = Path(os.path.abspath(folder))
        home = next((above for above in (place, *place.parents) if (above / FILE).is_file()), None)
        if home is None:
            raise UserError(f"{folder}: neither it nor a folder above it has a {FILE}; name folders of an experiment, "
                            "such as exp/mini/baseline")
        names = asked.setdefault(home, [])
        if home == place:
            asked[home] = None
        elif names is not None:
            names.append(place.relative_to(home).as_posix())
    return asked


def _together(exps: Sequence[Experiment]) -> Experiment:
    """The systems of several experiments as those of the first; UserError where they share no set, or none is alike."""
    first = replace(exps[0], systems=dict(exps[0].systems), notices=[])
    for exp in exps:
        first.notices += exp.notices
    if len(exps) == 1:
        return first
    first.systems = {}
    names = [exp.path.name for exp in exps]
    for exp in exps:
        home = exp.path.name if names.count(exp.path.name) == 1 else exp.path  # of one name in two places
        for name, system in exp.systems.items():
            first.systems[f"{home}/{name}"] = replace(system, name=f"{home}/{name}")
    first.sets = [name for name in first.sets if any(name in exp.sets for exp in exps[1:])]
    if not first.sets:
        raise UserError(f"{exps[0].path} and {exps[1].path} have decoded no set of one name")
    for name in first.sets:
        scores = [(system.path, system.scores[name]) for system in first.systems.values() if name in system.scores]
        for path, score in scores[1:]:
            if score.refs != scores[0][1].refs:
                raise UserError(f"{path}/decode_{name}/ref.txt differs from {scores[0][0]}/decode_{name}/ref.txt: "
                                "these systems cannot be compared")
    return first


def compare_text(folders: Sequence[Path], *, draws: int = significance.DRAWS) -> str:
    """A table with a column for each system, for the terminal; notices of the experiments stand below it.

    Args:
      folders: of systems (exp/mini/baseline), or of whole experiments (exp/mini): their systems in the plan's order.
        Differences, intervals and p are those to the first, on all test sets together; where that is a whole
        experiment, to its first twin of a student.
      draws: of the bootstrap.

    Raises:
      UserError: a folder is no system of an experiment, was not decoded, or was decoded on other data.
    """
    asked = _asked(folders)
    exps = [load_experiment(path, systems=names) for path, names in asked.items()]
    owners = [(exp, system) for exp in exps for system in exp.systems.values()]
    exp = _together(exps)
    if len(exp.systems) < 2:
        raise UserError(f"{folders[0]}: name two systems or more, or an experiment that has them")
    utt2spk = {}
    for name in exp.sets:
        path = Path(exp.plan.data) / name / "utt2spk"
        if path.exists():
            utt2spk[name] = read_map(path)
    analysis = Analysis(exp, utt2spk, draws=draws, seed=exp.plan.seed)
    rows = [["", *exp.systems]]
    for column in analysis.columns:
        counts = [analysis.counts(name, column) for name in exp.systems]
        rows.append([f"%WER {analysis.labels[column]}", *(f"{c.wer:.2f}" if c else NONE for c in counts)])
    costs = [(system.params, home.cost(system, "mflop_per_frame"), home.cost(system, "seconds"), system.mean_of("rtf"))
             for home, system in owners]
    for what, form, told in zip(("parameters", "MFLOP per frame", "training", "real-time factor of the search"),
                                ("{:,}".format, "{:.2f}".format, time_text, "{:.3f}".format), zip(*costs)):
        rows.append([what, *(NONE if value is None else form(value) for value in told)])
    base = next(iter(exp.systems))
    if asked[exps[0].path] is None:
        base = next((system.name for system in exp.of_role("twin")), base)
    column = TOTAL if TOTAL in analysis.columns else analysis.columns[0]
    found = [None if name == base else analysis.compare(name, base, column) for name in exp.systems]
    rows.append([f"minus {base}, {analysis.labels[column]}", *(f"{c['diff']:+.2f}" if c else NONE for c in found)])
    rows.append(["  95 % interval", *(f"{c['low']:+.2f} to {c['high']:+.2f}" if c else NONE for c in found)])
    for test, key in (("bootstrap", "p_bootstrap"), ("matched pairs", "p_matched")):
        rows.append([f"  p, {test}", *(p_text(c[key]) if c else NONE for c in found)])
    units = ", ".join(f"{analysis.labels[name]}: {analysis.unit[name]}" for name in exp.sets)
    lines = [wer.aligned_table(rows, right=range(1, len(rows[0]))), "",
             f"# Intervals: paired bootstrap, {draws:,} draws of {units}. Matched pairs: NIST's sentence-segment test."]
    return "\n".join([*lines, *(f"# {notice}" for notice in exp.notices)]) + "\n"
