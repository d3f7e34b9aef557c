"""What an ablation found: mean word error rates over seeds, and whether points differ from the references."""
from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import sidecar_path, write_text
from essence_kd.io.text import read_map, visible
from essence_kd.plan.plan import Plan, read_plan
from essence_kd.score import significance, wer
from essence_kd.score.experiment import TOTAL, System, load_system, read_json, set_labels
from essence_kd.score.results import draw_errors, p_text

REFERENCES = (("hard", "baseline"), ("all", "every soft label"), ("ensemble", "ensemble"))


@dataclass
class Entry:
    """A point of the grid, or the ensemble: its systems, by seed."""

    name: str
    label: str
    settings: dict[str, Any]
    runs: dict[int, System] = field(default_factory=dict)
    entries_per_frame: float | None = None
    retained_mass: float | None = None
    systems: dict[int, str] = field(default_factory=dict)  # seed -> name of the system


def t_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - reach, mean + reach


def t_test(values: np.ndarray) -> float | None:
    """Two-sided p of the hypothesis that the mean is zero; None for fewer than two values, 1 where all are zero."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    spread = float(np.std(values, ddof=1))
    if spread == 0.0:
        return 1.0 if float(np.mean(values)) == 0.0 else 0.0
    return float(2 * t.sf(abs(float(np.mean(values))) / (spread / math.sqrt(len(values))), len(values) - 1))


def over_seeds(drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws of a mean over seeds, of which more could have been trained.

    Each draw takes n of the n seeds with replacement; their spread is widened by sqrt(n / (n - 1)), because the
    bootstrap of a mean of n values has the variance s^2 / n of the biased s. One seed is taken as it is.

    Args:
      drawn: (draws, n), one column per seed.

    Returns:
      (draws,).
    """
    draws, count = drawn.shape
    mean = drawn.mean(axis=1)
    if count == 1:
        return mean
    picks = rng.integers(0, count, size=(draws, count))
    again = np.take_along_axis(drawn, picks, axis=1).mean(axis=1)
    return mean + math.sqrt(count / (count - 1)) * (again - mean)


class Ablation:
    """The entries with whatever of them is decoded, and bootstrap draws that all of them share."""

    def __init__(self, exp_dir: Path, plan: Plan, utt2spk: dict[str, dict[str, str]], *, draws: int, seed: int,
                 against: Sequence[str] = ()):
        if plan.ablation is None:
            raise UserError(f"{exp_dir}: the plan has no ablation (./run.sh --ablation true)")
        self.plan, self.dev_set = plan, plan.dev_set
        self.draws, self.seed = draws, seed
        self.entries: dict[str, Entry] = {}
        self.waiting: list[str] = []
        columns = plan.sets_of("test") + [plan.dev_set]

        def decoded(name: str) -> System | None:
            # ref.txt comes last: a decoding that is under way has none
            whole = [s for s in columns if (exp_dir / name / f"decode_{s}" / "ref.txt").exists()]
            system = load_system(exp_dir, plan.system(name), whole)
            return system if system.scores else None

        for point in plan.ablation.points:
            entry = Entry(point.name, point.label, point.settings, systems={run.seed: run.system for run in point.runs})
            for run in point.runs:
                system = decoded(run.system)
                if system is None:
                    self.waiting.append(f"{point.name}/seed_{run.seed}")
                else:
                    entry.runs[run.seed] = system
            target = plan.target(point.targets)
            sidecar = Path(sidecar_path(f"scp:{exp_dir / target.scp}")) if target else None
            if sidecar is not None and sidecar.is_file():
                told = read_json(sidecar)
                entry.entries_per_frame = told["num_entries"] / told["num_frames"]
                entry.retained_mass = told.get("mean_mass")
            if entry.runs:
                self.entries[entry.name] = entry
        if not self.entries:
            raise UserError(f"{exp_dir}: no point of the ablation has been decoded yet (./run.sh --ablation true "
                            "does that)")
        for ensemble in plan.main_systems("ensemble"):
            system = decoded(ensemble.name)
            if system is not None:
                self.entries["ensemble"] = Entry("ensemble", ensemble.label, {}, {0: system})
        unknown = [name for name in against if name not in self.entries]
        if unknown:
            raise UserError(f"{exp_dir}: there is no decoded point '{unknown[0]}' (there are: "
                            f"{', '.join(self.entries)})")
        self.against = list(against)
        self._check_references()
        whole = set.intersection(*(set(r.scores) for e in self.entries.values() for r in e.runs.values()))
        self.sets = [name for name in columns if name in whole]
        if not self.sets:
            raise UserError(f"{exp_dir}: no set has been decoded for every point")
        self.unit: dict[str, str] = {}
        self._draw(utt2spk)
        self.tests = [s for s in self.sets if s != self.dev_set]
        self.columns = self.tests + [TOTAL] * (len(self.tests) > 1) + [s for s in self.sets if s == self.dev_set]

    def _check_references(self) -> None:
        first: dict[str, System] = {}
        for entry in self.entries.values():
            for run in entry.runs.values():
                for name, score in run.scores.items():
                    other = first.setdefault(name, run)
                    if score.refs != other.scores[name].refs:
                        raise UserError(f"{run.path}/decode_{name}/ref.txt differs from {other.path}/decode_{name}/"
                                        "ref.txt; decode all points on the same data")

    def _draw(self, utt2spk: dict[str, dict[str, str]]) -> None:
        """Errors of every run and words in each draw."""
        runs = [(e.name, s) for e in self.entries.values() for s in e.runs]
        self.errors: dict[tuple[str, int, str], np.ndarray] = {}
        self.words: dict[str, np.ndarray] = {}
        for number, name in enumerate(self.sets):
            scores = [self.entries[e].runs[s].scores[name] for e, s in runs]
            drawn, self.words[name], self.unit[name] = draw_errors(name, scores, utt2spk.get(name), draws=self.draws,
                                                                   seed=self.seed + number)
            for i, (entry, seed) in enumerate(runs):
                self.errors[entry, seed, name] = drawn[:, i]

    def members(self, column: str) -> list[str]:
        """The sets that a column adds up."""
        return self.tests if column == TOTAL else [column]

    def rate(self, name: str, seed: int, column: str) -> float:
        """WER of one run in percent."""
        return sum((self.entries[name].runs[seed].scores[s].total for s in self.members(column)), wer.Counts()).wer

    def rates(self, name: str, column: str) -> np.ndarray:
        """(seeds,) WER in percent, in the order of the seeds."""
        return np.array([self.rate(name, s, column) for s in sorted(self.entries[name].runs)])

    def _samples(self, name: str, seed: int, column: str) -> np.ndarray:
        members = self.members(column)
        return 100.0 * sum(self.errors[name, seed, s] for s in members) / sum(self.words[s] for s in members)

    def compare(self, a: str, b: str, column: str) -> dict[str, Any] | None:
        """Mean WER of a less that of b, over the seeds that both have (the ensemble has one for all).

        ``low``, ``high`` and ``p`` draw test speakers and seeds; ``p_seeds`` is the paired t test over seeds alone.
        """
        runs_a, runs_b = self.entries[a].runs, self.entries[b].runs
        seeds = sorted(runs_a if b == "ensemble" else set(runs_a) & set(runs_b))
        if not seeds:
            return None
        of_b = {s: 0 if b == "ensemble" else s for s in seeds}
        each = np.array([self.rate(a, s, column) - self.rate(b, of_b[s], column) for s in seeds])
        drawn = np.stack([self._samples(a, s, column) - self._samples(b, of_b[s], column) for s in seeds], axis=1)
        found = significance.difference(over_seeds(drawn, np.random.default_rng(self.seed)), float(each.mean()))
        p_seeds = t_test(each)
        return {"a": a, "b": b, "set": column, "seeds": seeds, "diff": round(found.diff, 4), "low": round(found.low, 4),
                "high": round(found.high, 4), "p": found.p, "p_seeds": p_seeds,
                "each_seed": [round(float(v), 4) for v in each]}

    def references(self) -> list[str]:
        """The points that all others are compared with."""
        return list(dict.fromkeys([name for name, _ in REFERENCES if name in self.entries] + self.against))

    def best_on_dev(self) -> str | None:
        """The point with soft targets whose mean WER on dev is lowest; of equals the first of the grid."""
        names = [n for n, e in self.entries.items() if e.settings.get("select", "hard") != "hard"]
        if self.dev_set not in self.sets or not names:
            return None
        return min(names, key=lambda n: float(self.rates(n, self.dev_set).mean()))

    def results(self) -> dict[str, Any]:
        """The content of results.json."""
        points = {}
        for name, entry in self.entries.items():
            found = {}
            for column in self.columns:
                rates = self.rates(name, column)
                interval = t_interval(rates)
                found[column] = {"wer": round(float(rates.mean()), 4), "each_seed": [round(float(v), 4) for v in rates],
                                 "interval": interval and [round(v, 4) for v in interval]}
            points[name] = {"label": entry.label, "settings": entry.settings, "systems": entry.systems,
                            "seeds": sorted(entry.runs), "wer": found, "entries_per_frame": entry.entries_per_frame,
                            "retained_mass": entry.retained_mass}
        comparisons = [self.compare(a, b, column) for a in self.entries for b in self.references() if a != b
                       and a != "ensemble" for column in self.columns]
        return {"base": self.plan.ablation.base, "dev_set": self.dev_set, "labels": set_labels(self.plan),
                "points": points, "comparisons": [c for c in comparisons if c], "best_on_dev": self.best_on_dev(),
                "waiting": self.waiting, "bootstrap": {"draws": self.draws, "unit": self.unit}}


def results_text(found: dict[str, Any], columns: list[str], header: str) -> str:
    """RESULTS of an ablation for the terminal, from what results.json holds."""
    labels = found["labels"]
    rows = [["point", "seeds", "entries", "mass"] + [labels[c] for c in columns] + ["95 % of the mean"]]
    main = TOTAL if TOTAL in columns else columns[0]
    for name, point in found["points"].items():
        entries, mass, interval = point["entries_per_frame"], point["retained_mass"], point["wer"][main]["interval"]
        rows.append([name, str(len(point["seeds"])) if name != "ensemble" else "-",
                     "-" if entries is None else f"{entries:.1f}", "-" if mass is None else f"{100 * mass:.1f} %"]
                    + [f"{point['wer'][c]['wer']:.2f}" for c in columns]
                    + ["-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"])
    lines = [f"# {header}", "", wer.aligned_table(rows, right=range(1, len(rows[0])))]
    lines += ["", f"# WER in percent, mean over seeds; last column: Student's t over the seeds, of {labels[main]}."]
    names = dict(REFERENCES)
    for reference in dict.fromkeys([*names, *(c["b"] for c in found["comparisons"])]):
        text = f"{names[reference]} ({reference})" if reference in names else reference
        rows = [[f"less {text}", "seeds", "set", "diff", "95 % interval", "p", "p over seeds"]]
        for c in found["comparisons"]:
            if c["b"] == reference and c["set"] in (main, found["dev_set"]):
                rows.append([c["a"], str(len(c["seeds"])), labels[c["set"]], f"{c['diff']:+.2f}",
                             f"{c['low']:+.2f} to {c['high']:+.2f}", p_text(c["p"]),
                             "-" if c["p_seeds"] is None else p_text(c["p_seeds"])])
        if len(rows) > 1:
            lines += ["", wer.aligned_table(rows, right=(1, 3, 4, 5, 6))]
    units = ", ".join(f"{labels[s]}: {u}" for s, u in found["bootstrap"]["unit"].items())
    lines += ["", f"# Intervals and p: paired bootstrap, {found['bootstrap']['draws']:,} draws of {units}, and of "
                  "seeds where there are two or more; p over seeds: paired t test. No correction for the number of "
                  "points."]
    if found["best_on_dev"]:
        lines.append(f"# Lowest on dev: {found['best_on_dev']}")
    if found["waiting"]:
        lines.append(f"# Not decoded yet: {len(found['waiting'])} ({', '.join(found['waiting'][:5])}"
                     + (", ..." if len(found["waiting"]) > 5 else "") + ")")
    return "\n".join(lines) + "\n"


def write_results(exp_dir: Path, *, draws: int = significance.DRAWS, seed: int = 1,
                  against: Sequence[str] = ()) -> dict[str, Any]:
    """Write EXP_DIR/ablation/RESULTS and results.json of whatever is decoded; returns the latter's content."""
    plan = read_plan(exp_dir)
    utt2spk = {p.parent.name: read_map(p) for p in Path(plan.data).glob("*/utt2spk")}
    ablation = Ablation(exp_dir, plan, utt2spk, draws=draws, seed=seed, against=against)
    found = ablation.results()
    out = exp_dir / "ablation"
    out.mkdir(exist_ok=True)
    shown = visible(results_text(found, ablation.columns, f"ablation of {exp_dir.resolve().name}"), keep="\n")
    for name, text in (("results.json", json.dumps(found, indent=1, allow_nan=False) + "\n"), ("RESULTS", shown)):
        write_text(out / name, text)
    return found
