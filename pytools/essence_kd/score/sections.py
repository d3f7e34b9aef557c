"""The sections of report.html: for each a function here that prepares its values, and a template of its name."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.score import wer
from essence_kd.score.alignment_picture import FRAME_SECONDS, AlignedUtterance, mel_image
from essence_kd.score.charts import Axis, Series, bar_rows, legend, line_chart, number, png_gray, ticks
from essence_kd.score.experiment import Experiment, System, as_base
from essence_kd.score.labels import DASH, ESSENCE_COLOUR, asked, bytes_text, group, shown, time_text
from essence_kd.score.results import TOTAL, Analysis, detectable, hub5_header

Values = dict[str, Any]  # what a template is given


@dataclass(frozen=True)
class Content:
    """What the page is made of: the arguments of ``render``."""

    analysis: Analysis
    comparisons: Sequence[dict[str, Any]]
    facts: dict[str, Any]
    origin: dict[str, Any]
    aligned: AlignedUtterance | None
    clips: dict[tuple[str, str], str]

    @property
    def exp(self) -> Experiment:
        return self.analysis.exp


def main_column(analysis: Analysis) -> str:
    """What the headline is about: the test sets together, or the only set there is."""
    return TOTAL if TOTAL in analysis.columns else analysis.columns[0]


def verdict(comparison: dict[str, Any]) -> int:
    """-1: a is better, +1: a is worse, 0: the 95 % interval holds zero."""
    return -1 if comparison["high"] < 0 else 1 if comparison["low"] > 0 else 0


def rated_at(analysis: Analysis, name: str, column: str) -> Values | None:
    """WER and 95 % interval of a system; None where it was not decoded."""
    counts = analysis.counts(name, column)
    if counts is None:
        return None
    low, high = analysis.interval(name, column)
    return {"wer": counts.wer, "low": low, "high": high}


# ---- the values of each section, or None where there is nothing to show

def _wer(content: Content) -> Values:
    exp, analysis = content.exp, content.analysis
    columns = [c for c in analysis.columns if c in exp.test_sets or c == TOTAL] or analysis.columns
    main = main_column(analysis)
    rated = {(name, column): rated_at(analysis, name, column) for name in exp.systems for column in columns}
    best = {column: min((r["wer"] for n in exp.systems for r in [rated[n, column]] if r), default=None)
            for column in columns}
    drawn = {name: rated[name, main] for name, system in exp.systems.items()
             if system.entry.role != "gmm" and rated[name, main]}
    axis = Axis([v for r in drawn.values() for v in (r["low"], r["high"])]) if drawn else None
    rows: list[Values] = []
    previous = None
    for name, system in exp.systems.items():
        here, mark = shown(exp, name), ""
        if name in drawn:
            at = drawn[name]
            mark = axis.mark(at["wer"], at["low"], at["high"], here.css)
        rows.append({"system": here, "params": system.params, "mark": mark,
                     "rule": previous not in (None, group(exp, name)), "cells": [rated[name, c] for c in columns]})
        previous = group(exp, name)
    return {"columns": columns, "main": main, "best": [best[c] for c in columns], "rows": rows,
            "words": [(s, next(x.scores[s].total for x in exp.systems.values() if s in x.scores).words)
                      for s in exp.sets if s in columns],
            "labels": axis.labels() if axis else None,
            "gmm_left_out": axis and bool(exp.of_role("gmm"))}


def _hub5(content: Content) -> Values | None:
    """The test sets by the rules of Hub5, where they were scored so: each set and their total."""
    exp, members = content.exp, content.analysis.members
    columns = [c for c in exp.test_sets + [TOTAL] if c in content.analysis.columns
               and any(s.hub5_counts(members(c)) for s in exp.systems.values())]
    rows: list[Values] = [{"system": shown(exp, name), "cells": [system.hub5_counts(members(c)) for c in columns]}
            for name, system in exp.systems.items()]
    words = [(c, next(r["cells"][i].words for r in reversed(rows) if r["cells"][i])) for i, c in enumerate(columns)]
    return {"columns": columns, "rows": rows, "words": words, "rules": hub5_header(exp)} if columns else None


def _differences(content: Content) -> Values | None:
    comparisons, analysis = content.comparisons, content.analysis
    if not comparisons:
        return None
    axis = Axis([v for c in comparisons for v in (c["low"], c["high"])], zero=True)
    blocks: dict[tuple[str, str], list[Values]] = {}
    for c in comparisons:
        css = {-1: "good", 1: "bad", 0: "open"}[verdict(c)]
        blocks.setdefault((c["a"], c["b"]), []).append(
            {**c, "mark": axis.mark(c["diff"], c["low"], c["high"], css)})
    return {"blocks": [{"a": shown(content.exp, a), "b": shown(content.exp, b), "rows": rows}
                       for (a, b), rows in blocks.items()],
            "labels": axis.labels(), "draws": analysis.draws,
            "detectable": [(shown(content.exp, a).label, shown(content.exp, b).label, points)
                           for a, b, points in detectable(comparisons)],
            "units": [(s, analysis.unit[s]) for s in content.exp.test_sets]}


def _reach(stats: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures of ``essence post-stats``: the k for a share of the mass, perplexity, the aligned class among the k."""
    out = []
    for mass, reach in (stats.get("k_for_mass") or {}).items():
        if reach.get("mean") is not None:
            out.append((f"k for {100 * float(mass):g} % of the mass", f'{reach["mean"]:,}'))
    if isinstance(stats.get("perplexity"), (int, float)):
        out.append(("Perplexity of a frame", number(round(stats["perplexity"], 2))))
    for k, recall in ((stats.get("alignment") or {}).get("recall_at_k") or {}).items():
        if k in ("1", "20"):
            out.append((f"Aligned class in the top {k}", f"{100 * recall:.1f} %"))
    return out


def _essence(content: Content) -> Values | None:
    essence, stats = content.exp.essence, content.exp.post_stats
    curve, k, chart = stats.get("f_k") or [], essence.get("k"), ""
    if curve:
        chosen = (1, 2, 5, 10, 20, 40, 100, 200, 500, 1000, 2000, 5000)
        marks = []
        if isinstance(k, int) and 1 <= k <= len(curve):
            marks = [(k, curve[k - 1], f"k = {k}: {100 * curve[k - 1]:.1f} %", ESSENCE_COLOUR)]
        chart = line_chart([Series("f_k", range(1, len(curve) + 1), curve, ESSENCE_COLOUR)], log_x=True,
                           x_ticks=[t for t in chosen if t <= len(curve)], points=marks,
                           y_range=(min(0.5, 0.98 * min(curve)), 1.0), x_label="k, classes kept per frame",
                           y_label="f_k, mean mass of the k largest posteriors",
                           title="Mean mass of the k largest posteriors against k")
    facts = []
    for label, key in (("Selection", "selection"), ("k", "k"), ("Mass rule", "mass"), ("Temperature", "temperature"),
                       ("Combination", "combine"), ("Classes", "num_pdfs"), ("Frames", "num_frames"),
                       ("Retained mass", "mean_mass"), ("Bytes per frame", "bytes_per_frame")):
        value = essence.get(key)
        if key == "mean_mass" and value is not None:
            value = f"{100 * value:.2f} %"
        elif isinstance(value, int):
            value = f"{value:,}"
        elif isinstance(value, float):
            value = number(value)
        facts.append((label, value))
    facts = [(label, value) for label, value in facts if value is not None] + _reach(stats)
    return {"chart": chart, "facts": facts} if chart or facts else None


def _curve(found: dict[str, Any], column: str, label: str) -> Values | None:
    """WER against k, one dot per seed, with the references as level lines."""
    entries = found["points"]
    curve = sorted((p["settings"]["top_k"], p["wer"][column]) for p in entries.values()
                   if p["settings"].get("select") == "top-k" and as_base(p, found["base"], "select", "top_k"))
    if len({k for k, _ in curve}) < 2:
        return None
    ks = [k for k, _ in curve]
    series = [Series("Student, essence", ks, [w["wer"] for _, w in curve], ESSENCE_COLOUR)]
    for name, text, css in (("hard", "Baseline", "c-baseline"), ("all", "Every soft label", "c-student-full"),
                            ("ensemble", "Ensemble", "c-ensemble")):
        if name in entries:
            level = entries[name]["wer"][column]["wer"]
            series.append(Series(text, [ks[0], ks[-1]], [level, level], css))
    dots = [(k, value, "", ESSENCE_COLOUR) for k, w in curve for value in w["each_seed"]]
    every = [y for s in series for y in s.y] + [d[1] for d in dots]
    room = 0.08 * (max(every) - min(every)) or 0.5
    chart = line_chart(series, log_x=True, x_ticks=ks, points=dots, y_range=(min(every) - room, max(every) + room),
                       x_label="k, classes kept per frame", y_label=f"WER in percent, {label}", height=260,
                       title="Word error rate against k")
    return {"chart": chart, "legend": legend(series)}


def _ablation(content: Content) -> Values | None:
    found = content.exp.ablation
    if not found:
        return None
    entries_of = found["points"]
    columns = list(next(iter(entries_of.values()))["wer"])
    column = TOTAL if TOTAL in columns else columns[0]
    against = {(c["a"], c["b"]): {key: c[key] for key in ("diff", "low", "high")} for c in found["comparisons"]
               if c["set"] == column}
    rows = []
    for name, point in entries_of.items():
        taught = name != "ensemble"
        dev = point["wer"].get(found["dev_set"])
        rows.append({"label": point["label"],
                     "seeds": len(point["seeds"]) if taught else None, "dev": dev["wer"] if dev else None,
                     "entries": point["entries_per_frame"], "wer": point["wer"][column]["wer"],
                     "differences": [against.get((name, reference)) for reference in ("hard", "all")]})
    best = found.get("best_on_dev")
    return {"curve": _curve(found, column, content.analysis.labels[column]), "column": column, "rows": rows,
            "best": entries_of[best]["label"] if best else None}


def _training(content: Content) -> Values | None:
    models = {name: system.progress for name, system in content.exp.systems.items() if system.progress}
    lines = (("hard_loss", "training, hard labels", "c-hard"), ("soft_loss", "training, soft labels", "c-soft"),
             ("dev_loss", "dev, hard labels", "c-dev"))

    def values(progress: list[Values], key: str) -> list[float]:
        return [float(row[key]) if isinstance(row.get(key), (int, float)) else math.nan for row in progress]

    every = [v for progress in models.values() for key, _, _ in lines for v in values(progress, key)
             if math.isfinite(v)]
    if not every:
        return None
    low, high = min(every), float(np.percentile(every, 99))
    room = 0.06 * (high - low) or 0.5
    blocks, drawn = [], set()
    for name, progress in models.items():
        here = shown(content.exp, name)
        epochs = [float(row.get("epoch", i + 1)) for i, row in enumerate(progress)]
        series = []
        for key, text, css in lines:
            numbers = [min(v, high) if math.isfinite(v) else v for v in values(progress, key)]
            if any(math.isfinite(v) for v in numbers):
                series.append(Series(text, epochs, numbers, css))
                drawn.add(key)
        told = [row["dev_frame_acc"] for row in progress if isinstance(row.get("dev_frame_acc"), (int, float))]
        whole = [t for t in ticks(min(epochs), max(epochs)) if t == int(t)]
        span = (min(epochs), max(epochs)) if len(epochs) > 1 else (0.0, 2.0)
        blocks.append({"system": here, "epochs": len(epochs), "accuracy": told[-1] if told else None,
                       "chart": line_chart(series, height=150, x_ticks=whole, x_range=span,
                                           y_range=(low - room, high + room), title=f"Training of {here.label}")})
    return {"legend": legend([Series(text, (), (), css) for key, text, css in lines if key in drawn]), "blocks": blocks}


def _calibration(content: Content, least: int = 50) -> Values | None:
    systems = content.exp.calibration.get("systems") or {}
    if not systems:
        return None
    series = [Series("as sure as right", (0, 1), (0, 1), "c-gmm")]
    rows = []
    for name, found in systems.items():
        here = shown(content.exp, name)
        seen = [(c, a) for n, c, a in found["bins"] if n >= least]
        series.append(Series(here.label, [c for c, _ in seen], [a for _, a in seen], here.css))
        rows.append({"system": here, "nats": found["nll"], "same": found.get("same_best"),
                     "divergence": found.get("divergence"),
                     "percent": [100 * found[key] for key in ("accuracy", "confidence", "ece")]})
    chart = line_chart(series, x_range=(0, 1), y_range=(0, 1), x_ticks=[0, 0.2, 0.4, 0.6, 0.8, 1], height=300,
                       x_label="confidence: posterior of the best class", y_label="share of frames with that class",
                       title="Reliability diagram")
    first = next(iter(systems.values()))
    reference = content.exp.calibration.get("reference")
    return {"chart": chart, "legend": legend(series), "rows": rows, "frames": first["frames"],
            "reference": shown(content.exp, reference).label if reference else None,
            "bins": len(first["bins"]), "least": least}


def _alignment(content: Content) -> Values | None:
    aligned = content.aligned
    if aligned is None:
        return None
    total = max([len(aligned.features)] + [p.end for p in aligned.phones])
    half_seconds = np.arange(0, 0.93 * total * FRAME_SECONDS, 0.5).tolist()
    return {"aligned": aligned, "picture": png_gray(mel_image(aligned.features)), "second": FRAME_SECONDS,
            "percent": 100 / total, "times": [(t, 100 * t / FRAME_SECONDS / total) for t in half_seconds]}


def _cost(content: Content) -> Values:
    exp = content.exp

    def mean_of(system: System, key: str, form: str) -> str:
        told = system.mean_of(key)
        return DASH if told is None else format(told, form)

    rows = []
    for name, system in exp.systems.items():
        waits = [network.info.get("look_ahead_ms", DASH) for network in exp.networks(system)] or [DASH]
        mflop, seconds = exp.cost(system, "mflop_per_frame"), exp.cost(system, "seconds")
        size = exp.bytes_of(system)
        rows.append({"system": shown(exp, name), "params": system.params,
                     "bytes": DASH if size is None else bytes_text(size),
                     "mflop": DASH if mflop is None else f"{mflop:.2f}",
                     "wait": DASH if DASH in waits else "utterance" if None in waits else f"{max(waits)} ms",
                     "training": DASH if seconds is None else time_text(seconds), "rtf": mean_of(system, "rtf", ".3f"),
                     "active": mean_of(system, "active_states_per_frame", ".0f")})
    return {"rows": rows, "frame_ms": FRAME_SHIFT_MS}


def _deployment(content: Content) -> Values | None:
    """What benchmarks/deployment.py measured; an ensemble costs what its members do."""
    exp, found = content.exp, content.exp.deployment
    if not found:
        return None
    of_models = {row["system"]: row for row in found["rows"] if "form" not in row}
    main, rows = main_column(content.analysis), []

    def cells(measured: list[Values], wer: float | None) -> Values:
        one, parts = measured[0], [row["cpu_ms"] for row in measured]
        alone = len(measured) == 1
        return {"bytes": bytes_text(sum(row["bytes"] for row in measured)),
                "features": parts[0]["features"], "network": sum(part["network"] for part in parts),
                "search": parts[0]["search"] if alone else None,
                "start": one["start_cpu_s"] if alone else None, "peak": one["peak_mb"] if alone else None,
                "chunk": (one["chunk_p50_ms"], one["chunk_p99_ms"]) if alone and "word_ms" in one else None,
                "word": one.get("word_ms") if alone else None, "wer": wer}

    for name, system in exp.systems.items():
        members = [network.name for network in exp.networks(system)]
        if all(member in of_models for member in members):
            rated = rated_at(content.analysis, name, main)
            rows.append({"system": shown(exp, name), "form": "",
                         **cells([of_models[member] for member in members], rated["wer"] if rated else None)})
        for row in found["rows"]:
            if row["system"] == name and "form" in row:
                same = set(found["sets"]) == set(content.analysis.members(main))
                rows.append({"system": shown(exp, name), "form": row["form"],
                             **cells([row], row["wer"] if same else None)})
    told = ("processor", "cores", "written", "load", "utterances", "chunk_ms")
    return {"rows": rows, "main": main, **{key: found[key] for key in told}} if rows else None


def _stages(content: Content) -> Values | None:
    stages = content.exp.stages
    if not stages:
        return None
    spent = {number: float(s["seconds"]) for number, s in stages.items()}
    longest = sorted(stages, key=lambda n: -spent[n])[:3]
    names = {n: f'{n} {s.get("name", "")}' for n, s in stages.items()}
    times = [(names[n], spent[n], time_text(spent[n]), ESSENCE_COLOUR if n in longest else "c-other") for n in stages]
    disk = [(names[n], float(s.get("bytes") or 0), bytes_text(max(0, s.get("bytes") or 0)), "c-other")
            for n, s in stages.items()]
    return {"total": sum(spent.values()),
            "longest": [(stages[n].get("name") or f'stage {stages[n]["stage"]}', spent[n]) for n in longest],
            "times": bar_rows(times, title="Time per stage"), "disk": bar_rows(disk, title="Disk per stage")}


def merge_alignments(first, second) -> list[tuple[str | None, str | None, str | None]]:
    """Two alignments to one reference as columns (reference, first hypothesis, second hypothesis)."""
    columns: list[tuple[str | None, str | None, str | None]] = []
    i = j = 0
    while i < len(first) or j < len(second):
        a = first[i] if i < len(first) else None
        b = second[j] if j < len(second) else None
        insert_a, insert_b = a is not None and a[0] is None, b is not None and b[0] is None
        if insert_a or insert_b:
            columns.append((None, a[1] if insert_a else None, b[1] if insert_b else None))
            i, j = i + insert_a, j + insert_b
        else:
            columns.append((a[0], a[1], b[1]))
            i, j = i + 1, j + 1
    return columns


def changed_utterances(exp: Experiment) -> list[tuple[int, str, str]]:
    """(errors of the essence student less those of the baseline, set, utterance), most improved first."""
    found = asked(exp)
    changes = []
    for name in exp.test_sets or exp.sets:
        if all(s and name in exp.systems[s].scores for s in (found.twin, found.student)):
            before, after = exp.systems[found.twin].scores[name], exp.systems[found.student].scores[name]
            changes += [(after.utts[u].errors - before.utts[u].errors, name, u) for u in before.utts]
    return sorted(changes, key=lambda c: (c[0], c[2]))


def extremes(changes: Sequence[tuple[int, str, str]], count: int):
    """Of the most improved and of the most harmed utterances ``count`` each, the largest change first."""
    better = [c for c in changes if c[0] < 0][:count]
    worse = sorted((c for c in changes if c[0] > 0), key=lambda c: (-c[0], c[2]))[:count]
    return better, worse


def _utterances(content: Content, count: int = 6) -> Values | None:
    exp, found = content.exp, asked(content.exp)
    changes = changed_utterances(exp)
    if not changes:
        return None

    def listed(name: str, utt: str) -> Values:
        before, after = exp.systems[found.twin].scores[name], exp.systems[found.student].scores[name]
        ref = before.refs[utt]
        return {"utt": utt, "set": name, "before": before.utts[utt].errors, "after": after.utts[utt].errors,
                "words": merge_alignments(wer.align(ref, before.hyps[utt]), wer.align(ref, after.hyps[utt])),
                "sound": content.clips.get((name, utt))}

    return {"count": len(changes), "fewer": sum(c[0] < 0 for c in changes), "more": sum(c[0] > 0 for c in changes),
            "blocks": [(title, [listed(name, utt) for _, name, utt in rows])
                       for title, rows in zip(("Most improved", "Most harmed"), extremes(changes, count))]}


def _provenance(content: Content) -> Values:
    exp, facts, origin = content.exp, content.facts, content.origin
    commit = "unknown (not a git checkout)"
    if origin.get("commit"):
        commit = origin["commit"][:12] + (" (with uncommitted changes)" if origin.get("modified") else "")
    rows = [("Corpus", f'{facts["corpus"]}, size {facts["size"]}'), ("Seed", facts["seed"]),
            ("Engine", facts["engine"]), ("Decoder", (exp.decoder or "unknown")
             + (f", words rescored with {exp.rescoring}" if exp.rescoring else "")), ("Classes (pdfs)", exp.num_pdfs),
            ("Commit", commit), ("Written", origin["written"]),
            ("Machine", f'{origin["system"]}, {origin["machine"]}, {origin["cpus"]} CPUs')]
    who = asked(exp)
    model = next((exp.systems[n].model for n in (who.student, who.dense, who.twin) if n and exp.systems[n].model), {})
    train = model.get("train")
    if train:
        rows.append(("Student", f'{model["arch"]}, {train["optim"]["epochs"]} epochs, learning rate '
                                f'{train["optim"]["lr"]:g}, soft weight {train["distill"]["soft_weight"]:g}, '
                                f'temperature {train["distill"]["temperature"]:g}'))
    chosen: dict[str, dict[str, None]] = {}  # weights -> labels of the systems, each once
    for name, system in exp.systems.items():
        for set_, d in system.decodes.items():
            if set_ in exp.test_sets and "acoustic_scale" in d:
                weights = f'{number(d["acoustic_scale"])}, {number(d.get("word_insertion_penalty") or 0.0)}'
                chosen.setdefault(weights, {})[shown(exp, name).label] = None
    if chosen:
        rows.append(("Acoustic scale, word insertion penalty", "; ".join(
            weights if len(chosen) == 1 else f'{weights}: {", ".join(names)}' for weights, names in chosen.items())))
    decoders = sorted({f'{d["decoder"]} {d["decoder_version"]}' for system in exp.systems.values()
                       for d in system.decodes.values() if d.get("decoder") and d.get("decoder_version")})
    rows.append(("Versions", ", ".join([f"{k} {v}" for k, v in origin["versions"].items()] + decoders)))
    return {"notices": exp.notices, "facts": [(k, v) for k, v in rows if v is not None]}


class Section(NamedTuple):
    """A section of the page."""

    name: str  # of its template and its anchor
    title: str
    prepare: Callable[[Content], Values | None]
    source: str | None = None  # the file of exp/CORPUS that its values are read from, which an error names


SECTIONS = (
    Section("wer", "Word error rates", _wer),
    Section("hub5", "By the rules of Hub5", _hub5),
    Section("differences", "Is it more than chance?", _differences),
    Section("essence", "The essence of the posteriors", _essence, "posteriors/post_stats.json"),
    Section("ablation", "Which labels, which weight?", _ablation, "ablation/results.json"),
    Section("training", "Training", _training),
    Section("calibration", "As sure as right?", _calibration, "calibration/calibration.json"),
    Section("alignment", "One alignment", _alignment),
    Section("cost", "Size and speed", _cost),
    Section("deployment", "Deployed", _deployment, "deployment.json"),
    Section("stages", "Time and disk", _stages),
    Section("utterances", "Utterances", _utterances),
    Section("provenance", "Provenance", _provenance),
)
