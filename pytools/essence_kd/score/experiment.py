"""What an experiment directory holds, collected: scores of every system, stages, essence, training curves."""
from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Sequence

from essence_kd.io.errors import UserError
from essence_kd.io.lookup import read_json_lines
from essence_kd.io.provenance import read_sidecar, sidecar_path
from essence_kd.io.settings import read_yaml
from essence_kd.io.text import is_number, read_lines, read_words
from essence_kd.plan.plan import Plan, Target, read_plan
from essence_kd.plan.plan import System as Entry
from essence_kd.score import hub5, wer

TOTAL = "total"  # the column of all test sets together


@dataclass
class System:
    """One recogniser: its scores on each set and what its directory tells of it."""

    name: str
    path: Path
    entry: Entry  # what the plan says of it: role, label, targets, ...
    scores: dict[str, wer.Score] = field(default_factory=dict)
    hub5: dict[str, wer.Counts] = field(default_factory=dict)  # by the rules of Hub5, where there is an STM
    decodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    progress: list[dict[str, Any]] = field(default_factory=list)
    params: int | None = None

    def mean_of(self, key: str) -> float | None:
        """The mean over its decoded sets of a number of decode.json; None where none tells it."""
        told = [values[key] for values in self.decodes.values() if isinstance(values.get(key), (int, float))]
        return sum(told) / len(told) if told else None

    def counts(self, sets: Sequence[str]) -> wer.Counts | None:
        """Sum over ``sets``, or None when one of them was not decoded."""
        if any(s not in self.scores for s in sets):
            return None
        return sum((self.scores[s].total for s in sets), wer.Counts())

    def hub5_counts(self, sets: Sequence[str]) -> wer.Counts | None:
        """Sum over ``sets`` by the rules of Hub5, or None when one of them was not scored so."""
        return sum((self.hub5[s] for s in sets), wer.Counts()) if sets and all(s in self.hub5 for s in sets) else None


@dataclass
class Experiment:
    """Everything that the report shows; ``notices`` are losses and gaps that the reader must hear of."""

    path: Path
    plan: Plan
    systems: dict[str, System] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    num_pdfs: int | None = None
    decoder: str | None = None
    rescoring: str | None = None  # with what language model, in words
    essence: dict[str, Any] = field(default_factory=dict)
    post_stats: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    ablation: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)  # what benchmarks/deployment.py left
    notices: list[str] = field(default_factory=list)
    hub5_scorer: str | None = None
    hub5_rules: dict[str, str] = field(default_factory=dict)  # set -> its mapping rules

    @property
    def test_sets(self) -> list[str]:
        """The test sets that were decoded."""
        return [s for s in self.sets if s in self.plan.sets_of("test")]

    def of_role(self, *roles: str) -> list[System]:
        """The systems that have one of these roles, in the order of the plan."""
        return [s for s in self.systems.values() if s.entry.role in roles]

    def networks(self, system: System) -> list[System]:
        """What runs where a system does: itself, or the members of an ensemble, each on every frame."""
        if system.entry.role != "ensemble":
            return [system]
        return [self.systems.get(name) or load_system(self.path, self.plan.system(name), ())
                for name in system.entry.teachers]

    def cost(self, system: System, key: str) -> float | None:
        """The sum over :meth:`networks` of a number of info.json; None where one of them does not tell it."""
        told = [network.info.get(key) for network in self.networks(system)]
        return float(sum(told)) if told and all(isinstance(value, (int, float)) for value in told) else None

    def bytes_of(self, system: System) -> int | None:
        """Bytes of the trained networks of :meth:`networks`; None where one of them is not there."""
        files = [network.path / "final.pt" for network in self.networks(system)]
        return sum(file.stat().st_size for file in files) if all(file.is_file() for file in files) else None

    def target(self, system: System) -> Target | None:
        """The soft targets that a system learned from."""
        return self.plan.target(system.entry.targets)


def set_labels(plan: Plan) -> dict[str, str]:
    """The short names of sets and columns in tables."""
    return {TOTAL: TOTAL, **{s.name: s.label for s in plan.sets}}


def as_base(point: dict[str, Any], base: dict[str, Any], *but: str) -> bool:
    """Does a point of the ablation have the settings that all start from, leaving those named in ``but`` aside?"""
    settings = point["settings"]
    return not any(settings.get(key) for key in ("teachers", "loss", "student", "untranscribed")) \
        and all(settings.get(key) == value for key, value in base.items() if key not in but)


def read_json(path: Path, **kinds: type) -> dict[str, Any]:
    """A JSON object from a file; UserError when it is not one or lacks a value of ``kinds`` (key -> type)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); remove it and run its stage again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}; run its stage again")
    for key, kind in kinds.items():
        if not isinstance(value.get(key), kind):
            raise UserError(f"{path}: has no {key} that can be read; remove it and run its stage again")
    return value


@contextmanager
def shown_from(path: Path) -> Iterator[None]:
    """What is made of a file's values: UserError that names the file where they are not those that its stage writes."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: has values that its stage does not write ({type(error).__name__}: {error}); remove "
                        "it and run its stage again") from error


def load_system(exp_dir: Path, entry: Entry, sets: Sequence[str]) -> System:
    """Score ``decode_SET`` of a system, of each of ``sets`` that was decoded, and read what lies beside it.

    Raises:
      UserError: hyp.txt without ref.txt, or a hypothesis of an utterance that the reference lacks.
    """
    path = exp_dir / entry.name
    system = System(entry.name, path, entry)
    for set_name in sets:
        decode_dir = path / f"decode_{set_name}"
        hyp, ref = decode_dir / "hyp.txt", decode_dir / "ref.txt"
        if not hyp.exists():
            continue
        if not ref.exists():
            raise UserError(f"{ref}: no such file beside hyp.txt; run the decoding stage again")
        system.scores[set_name] = wer.score(read_words(ref), read_words(hyp),
                                            ref_name=str(ref), hyp_name=str(hyp))
        if (decode_dir / "decode.json").exists():
            system.decodes[set_name] = read_json(decode_dir / "decode.json")
    if (path / "info.json").exists():
        system.info = read_json(path / "info.json")
        params = system.info.get("params")
        system.params = params if isinstance(params, int) else None
    elif (path / "gmm.json").exists():
        system.info = read_json(path / "gmm.json")
        if all(isinstance(system.info.get(key), int) for key in ("num_gauss", "dim")):
            system.params = system.info["num_gauss"] * (2 * system.info["dim"] + 1)  # mean, variance, weight
    if (path / "model.yaml").exists():
        system.model = read_yaml(path / "model.yaml")
    if (path / "progress.jsonl").exists():
        system.progress = read_json_lines(path / "progress.jsonl")
        for number, row in enumerate(system.progress, 1):
            if not isinstance(row.get("epoch", number), (int, float)):
                raise UserError(f"{path / 'progress.jsonl'}: line {number}: epoch is no number; remove the line")
    return system


def _load_essence(exp: Experiment) -> dict[str, Any]:
    """The sidecar of the essence targets, those of the first student that learns from any, and their size."""
    learned = [exp.plan.target(student.targets) for student in exp.plan.main_systems("student")]
    targets = [target for target in learned if target and target.kind == "post"]
    if not targets:
        return {}
    scp = exp.path / targets[0].scp
    path = Path(sidecar_path(f"scp:{scp}"))
    if not path.exists():
        exp.notices.append(f"{path}: no such file (stage {targets[0].stage} makes it)")
        return {}
    sidecar = read_sidecar(path)
    sidecar["dir"] = str(scp.parent)
    # with --fuse true several jobs have written it
    archives = [*scp.parent.glob(f"{scp.stem}.ark"), *scp.parent.glob(f"{scp.stem}.*.ark")]
    if archives and sidecar.get("num_frames"):
        sidecar["bytes"] = sum(archive.stat().st_size for archive in archives)
        sidecar["bytes_per_frame"] = round(sidecar["bytes"] / sidecar["num_frames"], 2)
    return sidecar


def _load_stages(path: Path) -> dict[str, dict[str, Any]]:
    """stages.jsonl: the last time of a stage stands, with the unfinished attempts before it; bytes are what each run
    added or freed, so they add up."""
    stages: dict[str, dict[str, Any]] = {}
    spent: dict[tuple[str, str], float] = {}
    size: dict[str, float] = {}
    for row in read_json_lines(path):
        if "stage" not in row or not isinstance(row.get("seconds"), (int, float)) or \
                not all(isinstance(row.get(key) or 0, (int, float)) for key in ("bytes", "cpu_seconds")):
            raise UserError(f"{path}: a line lacks 'stage' or numbers of seconds and bytes; run the stage again")
        name = str(row["stage"])
        size[name] = size.get(name, 0) + (row.get("bytes") or 0)
        unfinished = row.pop("unfinished", False)
        for key in [key for key in ("seconds", "cpu_seconds") if row.get(key) is not None]:
            row[key] += spent.pop((name, key), 0)
            if unfinished:
                spent[name, key] = row[key]
        if not unfinished:
            stages[name] = row
    for name, row in stages.items():
        row["bytes"] = size[name]
    return dict(sorted(stages.items(), key=lambda item: (len(item[0]), item[0])))


def _load_ablation(exp: Experiment) -> dict[str, Any]:
    """The results of the ablation, unless the systems that it took from the main run are no longer the same."""
    path = exp.path / "ablation" / "results.json"
    found = read_json(path, base=dict, points=dict, comparisons=list)
    with shown_from(path):
        for point in found["points"].values():
            for seed, name in point["systems"].items():
                for set_name in exp.sets:
                    system = exp.systems.get(name)
                    if system is None or set_name not in system.scores or set_name not in point["wer"] \
                            or int(seed) not in point["seeds"]:  # it was not decoded then
                        continue
                    then = point["wer"][set_name]["each_seed"][point["seeds"].index(int(seed))]
                    if abs(then - system.scores[set_name].total.wer) > 0.001:
                        exp.notices.append(f"{path}: was made when {name} was another model, so it is left out "
                                           "(./run.sh --ablation true makes it anew)")
                        return {}
    return found


def load_experiment(exp_dir: Path, *, systems: Sequence[str] | None = None) -> Experiment:
    """Collect ``exp/CORPUS`` as its plan.json describes it.

    Args:
      systems: names of the systems to report; None takes those of the main run that were decoded.

    Raises:
      UserError: nothing was decoded, or two systems were scored against different references of one set.
    """
    if not exp_dir.is_dir():
        raise UserError(f"{exp_dir}: no such directory; stages 0 to 9 of run.sh make it")
    plan = read_plan(exp_dir)
    exp = Experiment(exp_dir, plan)
    known = {entry.name: entry for entry in plan.systems}
    unknown = [name for name in systems or () if name not in known]
    if unknown:
        raise UserError(f"{exp_dir}: the plan has no system '{unknown[0]}'; it has: {' '.join(known)}")
    columns = plan.sets_of("test") + plan.sets_of("dev")
    for entry in [known[name] for name in systems] if systems else plan.main_systems():
        system = load_system(exp_dir, entry, columns)
        if system.scores:
            exp.systems[entry.name] = system
        elif systems:
            raise UserError(f"{exp_dir / entry.name}: no decode_SET/hyp.txt; stage 9 makes them")
        else:
            exp.notices.append(f"{exp_dir}/{entry.name}: not decoded, so not in the table")
    if not exp.systems:
        raise UserError(f"{exp_dir}: no SYSTEM/decode_SET/hyp.txt found; run stage 9 first")
    exp.sets = [name for name in columns if any(name in system.scores for system in exp.systems.values())]
    for set_name in exp.sets:
        first: System | None = None
        for system in exp.systems.values():
            if set_name not in system.scores:
                exp.notices.append(f"{system.path}: has no decode_{set_name}")
                continue
            score = system.scores[set_name]
            lost = system.decodes.get(set_name, {}).get("no_path", 0)
            if lost:
                exp.notices.append(f"{system.path}/decode_{set_name}: no path survived the search in {lost} of "
                                   f"{len(score.utts)} utterances; their words are counted as deleted")
            if score.missing:
                exp.notices.append(f"{system.path}/decode_{set_name}: {len(score.missing)} utterances without a "
                                   f"hypothesis, counted as deleted (first: {score.missing[0]})")
            if first is None:
                first = system
            elif score.refs != first.scores[set_name].refs:
                raise UserError(f"{system.path}/decode_{set_name}/ref.txt differs from "
                                f"{first.path}/decode_{set_name}/ref.txt; decode all systems on the same data")
    for path in [*sorted((exp_dir / "scales").glob("*.json")), exp_dir / "gmm" / "sweep" / "sweep.json"]:
        sweep = read_json(path) if path.exists() else {}
        for key, what in (("scale_at_edge", "acoustic scale"), ("penalty_at_edge", "word insertion penalty")):
            if sweep.get(key):
                exp.notices.append(f"{path}: the best {what} on the development set lies at the edge of the sweep; "
                                   "widen it (conf/decode.yaml)")
    for system in exp.of_role("ensemble"):
        params = exp.cost(system, "params")
        if system.params is None and params is not None:
            system.params = int(params)
    for path in (exp_dir / "ali" / "num_pdfs", exp_dir / "gmm" / "num_pdfs"):
        if path.exists():
            told = next((line for _, line in read_lines(path)), "")
            if not is_number(told):
                raise UserError(f"{path}: expected a whole number, got '{told}'; run stage 4 again")
            exp.num_pdfs = int(told)
            break
    decoders = sorted({d["decoder"] for s in exp.systems.values() for d in s.decodes.values() if d.get("decoder")})
    exp.decoder = "+".join(decoders) or None
    if len(decoders) > 1:
        exp.notices.append(f"{exp_dir}: systems were decoded with different decoders ({', '.join(decoders)})")
    orders = {system.name: sorted({(d.get("rescoring") or {}).get("order", 0) for d in system.decodes.values()})
              for system in exp.systems.values() if system.decodes}
    used = {n for found in orders.values() for n in found}
    exp.rescoring = " or ".join(f"a {n}-gram" for n in sorted(used - {0})) or None
    if len({tuple(found) for found in orders.values()}) > 1 or any(len(found) > 1 for found in orders.values()):
        exp.notices.append(f"{exp_dir}: not all words were rescored with the same language model: " + "; ".join(
            f"{name} " + " and ".join(f"with a {n}-gram" if n else "not" for n in found)
            for name, found in orders.items()))
    exp.essence = _load_essence(exp)
    if (exp_dir / "posteriors" / "post_stats.json").exists():
        exp.post_stats = read_json(exp_dir / "posteriors" / "post_stats.json", f_k=list)
    if (exp_dir / "stages.jsonl").exists():
        exp.stages = _load_stages(exp_dir / "stages.jsonl")
    if (exp_dir / "calibration" / "calibration.json").exists():
        exp.calibration = read_json(exp_dir / "calibration" / "calibration.json", systems=dict)
    if (exp_dir / "ablation" / "results.json").exists():
        exp.ablation = _load_ablation(exp)
    if (exp_dir / "deployment.json").exists():
        exp.deployment = read_json(exp_dir / "deployment.json", rows=list)
    return exp


def score_by_time(exp: Experiment, data_dir: Path) -> None:
    """Count the test sets that have an STM by the rules of Hub5 too, as the swbd recipe does: total words by time.

    The reference is ``data_dir/SET/stm``, mapping rules are those of ``data_dir/SET/glm`` or ours, the hypothesis is
    ``hyp.ctm``. Scored by sclite where it is installed. Raises UserError where STM and CTM do not belong together.
    """
    for name in exp.test_sets:
        stm, glm = data_dir / name / "stm", data_dir / name / "glm"
        if not stm.exists():
            continue
        exp.hub5_rules[name] = str(glm) if glm.exists() else "default"
        for system in exp.systems.values():
            ctm = system.path / f"decode_{name}" / "hyp.ctm"
            if name not in system.scores:
                continue
            if not ctm.exists():
                exp.notices.append(f"{ctm}: no such file, so {system.name} is not scored by time on {name}")
                continue
            scores, exp.hub5_scorer = hub5.score_hub5(stm, ctm, glm=glm if glm.exists() else None, drop_noise=True)
            system.hub5[name] = sum((s.counts for s in scores), wer.Counts())


def say(notices: Sequence[str]) -> None:
    """Print notices to stderr, one per line."""
    for notice in notices:
        print(f"essence report: {notice}", file=sys.stderr)
