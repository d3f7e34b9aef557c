"""Writes what an experiment found: RESULTS, results.json and report.html."""
from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Sequence

from essence_kd import __version__
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_text
from essence_kd.io.resources import checkout
from essence_kd.io.text import read_map, visible
from essence_kd.plan.plan import Plan
from essence_kd.score import significance
from essence_kd.score.alignment_picture import load_alignment
from essence_kd.score.clips import load_clips
from essence_kd.score.experiment import load_experiment, say, score_by_time
from essence_kd.score.page import render
from essence_kd.score.results import Analysis, results_dict, results_text
from essence_kd.score.sections import changed_utterances, extremes

VERSIONS_OF = ("numpy", "torch", "lhotse", "kaldi-native-io", "kaldifst",
               "kaldi-decoder", "kaldialign", "espeakng-loader")


def provenance() -> dict[str, Any]:
    """Commit of the checkout that the package lies in (None where it is installed), versions, machine and time."""
    root, commit, dirty = checkout(), None, None
    if root is not None:
        try:
            top, commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
            if not os.path.samefile(top, root):  # a repository of somebody else, in which the files of this one lie
                commit = None
            else:
                dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, ValueError, subprocess.CalledProcessError):
            commit = None  # not a git checkout, or no git: the report then says so
    versions = {"essence-kd": __version__, "python": platform.python_version()}
    for package in VERSIONS_OF:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"commit": commit, "modified": dirty, "versions": versions, "machine": platform.machine(),
            "cpus": os.cpu_count(), "system": f"{platform.system()} {platform.release()}",
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _git(root: Path, *words: str) -> str:
    """What git prints about a checkout. Raises OSError, CalledProcessError."""
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def _finite(value: Any) -> Any:
    """NaN and infinities as null, since JSON has no word for them."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(plan: Plan, decoder: str | None, rescoring: str | None) -> str:
    """The run in a line: what RESULTS begins with. Of the recipe's options those that say something of the data."""
    parts = [f"corpus {plan.corpus}, size {plan.size}, seed {plan.seed}, engine {plan.engine}, "
             f"decoder {decoder or 'unknown'}"]
    for given in plan.recipe_options:
        name, _, value = given.partition("=")
        if not name.endswith("_dir"):  # where data lie on this machine says nothing of them
            parts.append(f"{name.replace('_', ' ')}={Path(value).name if Path(value).is_file() else value}")
    return ", ".join(parts + [f"rescored with {rescoring}"] * bool(rescoring))


def write_report(exp_dir: Path, report_dir: Path, *, systems: Sequence[str] | None = None,
                 draws: int = significance.DRAWS, compare: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Collect ``exp_dir`` and write EXP_DIR/RESULTS, REPORT_DIR/results.json and REPORT_DIR/report.html.

    Args:
      systems: those to report; None: those of the main run that were decoded.
      compare: pairs of systems to compare besides the standard ones.

    Returns:
      The content of results.json.
    """
    if draws < 100:
        raise UserError(f"--draws {draws}: at least 100 are needed for a 95 % interval")
    exp = load_experiment(exp_dir, systems=systems)
    plan = exp.plan
    data_dir = Path(plan.data)
    score_by_time(exp, data_dir)
    utt2spk = {}
    for name in exp.sets:
        if (data_dir / name / "utt2spk").exists():
            utt2spk[name] = read_map(data_dir / name / "utt2spk")
        else:
            exp.notices.append(f"{data_dir / name}/utt2spk: no such file; the bootstrap of {name} draws utterances")
    analysis = Analysis(exp, utt2spk, draws=draws, seed=plan.seed)
    comparisons = analysis.comparisons(compare)
    origin = provenance()
    results = _finite(results_dict(analysis, comparisons=comparisons, provenance=origin))
    report_dir.mkdir(parents=True, exist_ok=True)
    text = visible(results_text(analysis, describe(plan, exp.decoder, exp.rescoring), comparisons), keep="\n")
    write_text(exp_dir / "RESULTS", text)
    write_text(report_dir / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    aligned = load_alignment(exp_dir / "ali", data_dir)
    sounds = {}
    if plan.clips:
        better, worse = extremes(changed_utterances(exp), plan.clips)
        sounds = load_clips(data_dir, [(name, utt) for _, name, utt in better + worse])
    write_text(report_dir / "report.html", render(analysis, comparisons, results, origin, aligned, sounds))
    say(exp.notices)
    print(f"essence report: {len(exp.systems)} systems on {', '.join(exp.sets)}: {exp_dir / 'RESULTS'}, "
          f"{report_dir / 'results.json'}, {report_dir / 'report.html'}")
    return results
