"""report.html: one file without script or outside resource, for screens of every width, light and dark, and paper."""
from __future__ import annotations

import math
from typing import Any, Sequence

import numpy as np

from essence_kd.score import wer
from essence_kd.score.alignment_picture import FRAME_SECONDS, AlignedUtterance, mel_image
from essence_kd.score.charts import Axis, Series, bar_rows, esc, legend, line_chart, number, png_gray, ticks
from essence_kd.score.experiment import Experiment, System, shown_from
from essence_kd.score.results import TOTAL, Analysis, hub5_header, p_text, set_name
from essence_kd.score.style import STYLE

NAMES = {"gmm": "GMM", "ensemble": "Ensemble", "baseline": "Baseline", "student_full": "Student, all soft labels",
         "student_essence": "Student, essence"}

DASH = "\u2013"  # where there is no figure


def system_name(name: str) -> str:
    """What a reader calls a system."""
    if name in NAMES:
        return NAMES[name]
    return name.replace("teacher_", "Teacher ").replace("_", " ")


def css_class(name: str) -> str:
    """The CSS class that colours a system: one for each of the paper's, one for all teachers, one for the rest."""
    if name in NAMES:
        return "c-" + name.replace("_", "-")
    return "c-teacher" if name.startswith("teacher_") else "c-other"


def wer_text(value: float) -> str:
    """A rate in percent with one decimal."""
    return f"{value:.1f}" if math.isfinite(value) else "\u221e"


def points(value: float) -> str:
    """A difference with its sign, a real minus."""
    return f"{value:+.1f}".replace("-", "\u2212")


def size_text(count: float | None) -> str:
    """Parameters or bytes with a decimal prefix: 304 k, 3.7 M."""
    if count is None:
        return "\u2013"
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


# ---- headline

def _main_column(analysis: Analysis) -> str:
    """What the headline is about: the test sets together, or the only set there is."""
    return TOTAL if TOTAL in analysis.columns else analysis.columns[0]


def _find(comparisons: Sequence[dict[str, Any]], a: str, b: str, column: str) -> dict[str, Any] | None:
    return next((c for c in comparisons if (c["a"], c["b"], c["set"]) == (a, b, column)), None)


def verdict(comparison: dict[str, Any]) -> int:
    """-1: a is better, +1: a is worse, 0: the 95 % interval holds zero."""
    return -1 if comparison["high"] < 0 else 1 if comparison["low"] > 0 else 0


def headline(analysis: Analysis, comparisons: Sequence[dict[str, Any]],
             seeds: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The finding in one sentence, and the sentences below it (``seeds`` among them).

    A gain that may be chance is called so.
    """
    column = _main_column(analysis)
    where = f"the set {set_name(column)}"
    if column == TOTAL:
        where = "both test halves" if len(analysis.exp.test_sets) == 2 else "all test sets"
    found = _find(comparisons, "student_essence", "baseline", column)
    if found is None:
        sets = ", ".join(map(set_name, analysis.exp.sets))
        return "Word error rates", [f"{len(analysis.exp.systems)} systems on {sets}."]
    student, baseline = (analysis.counts(n, column).wer for n in ("student_essence", "baseline"))
    relative = 100.0 * abs(found["diff"]) / baseline if baseline else 0.0
    title = {-1: f"The essence student makes {relative:.0f} % fewer word errors than the baseline",
             1: f"The essence student makes {relative:.0f} % more word errors than the baseline",
             0: "The essence student and the baseline cannot be told apart"}[verdict(found)]
    lines = [f"Over {where} the word error rate goes from {wer_text(baseline)} % to {wer_text(student)} %: "
             f"{points(found['diff'])} points, 95 % interval {points(found['low'])} to {points(found['high'])}."]
    lines += seeds
    teacher = _find(comparisons, "student_essence", "ensemble", column)
    if teacher:
        rate = wer_text(analysis.counts("ensemble", column).wer)
        lines.append({-1: f"It is better than the ensemble that taught it ({rate} %).",
                      1: f"The ensemble that taught it remains better ({rate} %).",
                      0: f"It cannot be told from the ensemble that taught it ({rate} %)."}[verdict(teacher)])
    ensemble = _find(comparisons, "ensemble", "baseline", column)
    if ensemble and verdict(ensemble) > 0:
        lines.append(f"The ensemble is worse than the baseline, by {points(ensemble['diff'])} points: it has little to teach. "
                     "Train its members longer, or larger ones.")
    full = _find(comparisons, "student_essence", "student_full", column)
    if full:
        rate = wer_text(analysis.counts("student_full", column).wer)
        lines.append({-1: f"Pruning helped: with every soft label the same student gets {rate} %.",
                      1: f"Pruning cost accuracy: with every soft label the same student gets {rate} %.",
                      0: f"Pruning neither helped nor hurt measurably: with every soft label the same student gets "
                         f"{rate} %."}[verdict(full)])
    return title, lines


def _seeds_line(found: dict[str, Any], column: str) -> list[str]:
    """What other seeds of the same student and baseline say, where an ablation has trained them."""
    for c in found.get("comparisons", ()):
        settings = found["points"][c["a"]]["settings"]
        same = not settings.get("teachers") and all(settings.get(k) == v for k, v in found["base"].items())
        if same and (c["b"], c["set"]) == ("hard", column) and len(c["seeds"]) > 1:
            return [f"Over {len(c['seeds'])} seeds it is {points(c['diff'])} points, {points(c['low'])} to "
                    f"{points(c['high'])}."]
    return []


def _figures(analysis: Analysis) -> str:
    column = _main_column(analysis)
    out = []
    for name in ("baseline", "student_essence", "student_full", "ensemble"):
        counts = analysis.counts(name, column) if name in analysis.exp.systems else None
        if counts is None:
            continue
        low, high = analysis.interval(name, column)
        out.append(f'<div class="figure {css_class(name)}"><div class="label">{esc(system_name(name))}</div>'
                   f'<div class="big">{wer_text(counts.wer)}<span>%</span></div>'
                   f'<div class="muted">{wer_text(low)} to {wer_text(high)}</div></div>')
    return f'<div class="figures">{"".join(out)}</div>' if out else ""


# ---- sections

def _section(title: str, body: str, lead: str = "", ident: str = "") -> str:
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    mark = f' id="{ident}"' if ident else ""
    return f"<section{mark}><h2>{esc(title)}</h2>{lead}{body}</section>" if body else ""


def _table(analysis: Analysis) -> str:
    exp = analysis.exp
    columns = [c for c in analysis.columns if c in exp.test_sets or c == TOTAL] or analysis.columns
    main = _main_column(analysis)
    best, bounds = {}, []
    for column in columns:
        rated = [c.wer for n in exp.systems for c in [analysis.counts(n, column)] if c is not None]
        best[column] = min(rated) if rated else None
    for name in exp.systems:
        if name != "gmm" and analysis.counts(name, main) is not None:
            bounds += analysis.interval(name, main)
    axis = Axis(bounds) if bounds else None
    head = "".join(f'<th class="num">{esc(set_name(c))}</th>' for c in columns)
    rows = []
    previous = None
    for system in exp.systems.values():
        kind = system.name.split("_")[0].replace("student", "baseline")
        rule = ' class="rule"' if previous not in (None, kind) else ""
        previous = kind
        cells = []
        for column in columns:
            counts = analysis.counts(system.name, column)
            if counts is None:
                cells.append('<td class="num">\u2013</td>')
                continue
            low, high = analysis.interval(system.name, column)
            cells.append(f'<td class="num{" best" if counts.wer == best[column] else ""}">{wer_text(counts.wer)}'
                         f'<small>{wer_text(low)}\u2013{wer_text(high)}</small></td>')
        mark = ""
        counts = analysis.counts(system.name, main)
        if axis and counts is not None and system.name != "gmm":
            mark = axis.mark(counts.wer, *analysis.interval(system.name, main), css_class(system.name))
        size = f'<small>{size_text(system.params)} parameters</small>' if system.params is not None else ""
        rows.append(f'<tr{rule}><th scope="row"><i class="swatch {css_class(system.name)}"></i>'
                    f'{esc(system_name(system.name))}{size}</th>{"".join(cells)}<td class="graph">{mark}</td></tr>')
    words = ", ".join(f"{set_name(s)} {next(x.scores[s].total for x in exp.systems.values() if s in x.scores).words:,} "
                      f"words" for s in exp.sets if s in columns)
    foot = f'<tfoot><tr><td colspan="{len(columns) + 1}"></td><td class="graph">{axis.labels()}</td></tr></tfoot>' \
        if axis else ""
    gmm = " The picture leaves the GMM out." if "gmm" in exp.systems and axis else ""
    return (f'<table class="wer"><thead><tr><th>System</th>{head}<th class="graph">{esc(set_name(main))}, 95 % interval'
            f'</th></tr></thead><tbody>{"".join(rows)}</tbody>{foot}</table>'
            f'<p class="muted fine">Word error rate in percent, lowest in bold; below it the 95 % bootstrap interval. '
            f'{esc(words)}.<span class="graph">{gmm}</span></p>')


def _hub5(analysis: Analysis) -> str:
    """The test sets by the rules of Hub5, where they were scored so: each set and their total."""
    exp = analysis.exp
    columns = [c for c in exp.test_sets + [TOTAL] if c in analysis.columns
               and any(s.hub5_counts(analysis.members(c)) for s in exp.systems.values())]
    if not columns:
        return ""
    rows, words = [], {}
    for system in exp.systems.values():
        cells = []
        for column in columns:
            counts = system.hub5_counts(analysis.members(column))
            if counts is None:
                cells.append(f'<td class="num">{DASH}</td>')
                continue
            words[column] = counts.words
            cells.append(f'<td class="num">{wer_text(counts.wer)}<small>{counts.errors:,} errors</small></td>')
        rows.append(f'<tr><th scope="row"><i class="swatch {css_class(system.name)}"></i>{esc(system_name(system.name))}'
                    f'</th>{"".join(cells)}</tr>')
    head = "".join(f'<th class="num">{esc(set_name(c))}</th>' for c in columns)
    reference = ", ".join(f"{set_name(c)} {count:,} words" for c, count in words.items())
    return (f'<table class="cost"><thead><tr><th>System</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            f'<p class="muted fine">Word error rate in percent. {esc(reference)}. {esc(hub5_header(exp))}.</p>')


def _differences(analysis: Analysis, comparisons: Sequence[dict[str, Any]]) -> str:
    if not comparisons:
        return ""
    axis = Axis([v for c in comparisons for v in (c["low"], c["high"])], zero=True)
    out = []
    for a, b in dict.fromkeys((c["a"], c["b"]) for c in comparisons):
        rows = []
        for c in comparisons:
            if (c["a"], c["b"]) != (a, b):
                continue
            css = {-1: "good", 1: "bad", 0: "open"}[verdict(c)]
            both = f'p {p_text(c["p_bootstrap"])} \u00b7 {p_text(c["p_matched"])}'
            rows.append(f'<div class="row"><div class="name">{esc(set_name(c["set"]))}<small>{esc(both)}</small></div>'
                        f'{axis.mark(c["diff"], c["low"], c["high"], css)}<div class="num">{points(c["diff"])}'
                        f'<small>{points(c["low"])} to {points(c["high"])}</small></div></div>')
        out.append(f'<div class="block"><h3>{esc(system_name(a))} <span class="muted">against</span> '
                   f'{esc(system_name(b))}</h3><div class="rows">{"".join(rows)}'
                   f'<div class="row foot"><div></div>{axis.labels()}<div></div></div></div></div>')
    units = "; ".join(f"{set_name(s)}: {analysis.unit[s]}" for s in analysis.exp.sets if s in analysis.exp.test_sets)
    fine = (f'<p class="muted fine">Differences of word error rates in points with 95 % intervals of the paired '
            f'bootstrap ({analysis.draws:,} draws of {esc(units)}); left of the line the first system is better. '
            f'The two p: bootstrap, and NIST\u2019s matched-pair sentence-segment test.</p>')
    return f'<div class="columns">{"".join(out)}</div>{fine}'


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


def _essence(exp: Experiment) -> str:
    essence, stats = exp.essence, exp.post_stats
    parts = []
    curve = stats.get("f_k") or []
    k = essence.get("k")
    if curve:
        ks = list(range(1, len(curve) + 1))
        marks = []
        if isinstance(k, int) and 1 <= k <= len(curve):
            marks = [(k, curve[k - 1], f"k = {k}: {100 * curve[k - 1]:.1f} %", "c-student-essence")]
        shown = [t for t in (1, 2, 5, 10, 20, 40, 100, 200, 500, 1000, 2000, 5000) if t <= len(curve)]
        parts.append(line_chart([Series("f_k", ks, curve, "c-student-essence")], log_x=True, x_ticks=shown,
                                y_range=(min(0.5, 0.98 * min(curve)), 1.0), points=marks,
                                x_label="k, classes kept a frame", y_label="f_k, mean mass of the k largest posteriors",
                                title="Mean mass of the k largest posteriors against k"))
    facts = []
    if essence:
        for label, value in (("Selection", essence.get("selection")), ("k", k), ("Mass rule", essence.get("mass")),
                             ("Temperature", essence.get("temperature")), ("Combination", essence.get("combine")),
                             ("Classes", essence.get("num_pdfs")), ("Frames", essence.get("num_frames")),
                             ("Retained mass", essence.get("mean_mass")),
                             ("Bytes a frame", essence.get("bytes_per_frame"))):
            if value is not None:
                if label == "Retained mass":
                    value = f"{100 * value:.2f} %"
                elif isinstance(value, int):
                    value = f"{value:,}"
                elif isinstance(value, float):
                    value = number(value)
                facts.append(f"<div><dt>{esc(label)}</dt><dd>{esc(value)}</dd></div>")
    for label, value in _reach(stats):
        facts.append(f"<div><dt>{esc(label)}</dt><dd>{esc(value)}</dd></div>")
    if facts:
        parts.append(f'<dl class="facts">{"".join(facts)}</dl>')
    return f'<div class="columns">{"".join(parts)}</div>' if parts else ""


def _training(exp: Experiment) -> str:
    models = [s for s in exp.systems.values() if s.progress]
    if not models:
        return ""

    def values(system: System, key: str) -> list[float]:
        return [float(row[key]) if isinstance(row.get(key), (int, float)) else math.nan for row in system.progress]

    every = [v for s in models for key in ("hard_loss", "soft_loss", "dev_loss") for v in values(s, key)
             if math.isfinite(v)]
    if not every:
        return ""
    low, high = min(every), float(np.percentile(every, 99))
    room = 0.06 * (high - low) or 0.5
    lines = (("hard_loss", "training, hard labels", "c-hard"), ("soft_loss", "training, soft labels", "c-soft"),
             ("dev_loss", "dev, hard labels", "c-dev"))
    out, drawn = [], set()
    for system in models:
        epochs = [float(row.get("epoch", i + 1)) for i, row in enumerate(system.progress)]
        series = []
        for key, name, css in lines:
            numbers = [min(v, high) if math.isfinite(v) else v for v in values(system, key)]
            if any(math.isfinite(v) for v in numbers):
                series.append(Series(name, epochs, numbers, css))
                drawn.add(key)
        last = [row["dev_frame_acc"] for row in system.progress if isinstance(row.get("dev_frame_acc"), (int, float))]
        note = f"{len(epochs)} epochs" + (f", dev frame accuracy {100 * last[-1]:.1f} %" if last else "")
        whole = [t for t in ticks(min(epochs), max(epochs)) if t == int(t)]
        span = (min(epochs), max(epochs)) if len(epochs) > 1 else (0.0, 2.0)
        chart = line_chart(series, height=150, x_ticks=whole, x_range=span,
                           y_range=(low - room, high + room), title=f"Training of {system_name(system.name)}")
        out.append(f'<div class="block"><h3><i class="swatch {css_class(system.name)}"></i>'
                   f'{esc(system_name(system.name))}<small>{esc(note)}</small></h3>{chart}</div>')
    key = legend([Series(name, (), (), css) for k, name, css in lines if k in drawn])
    return (f'<p class="lead">Cross-entropy a frame, epoch by epoch.</p>{key}'
            f'<div class="columns three">{"".join(out)}</div>')


def _picture(aligned: AlignedUtterance | None) -> str:
    if aligned is None:
        return ""
    frames = len(aligned.features)
    total = max([frames] + [p.end for p in aligned.phones])

    def lane(spans, css: str) -> str:
        return f'<div class="lane {css}">' + "".join(
            f'<span style="left:{100 * s.start / total:.3f}%;width:{100 * (s.end - s.start) / total:.3f}%" '
            f'title="{esc(s.label)} {s.start * FRAME_SECONDS:.2f}\u2013{s.end * FRAME_SECONDS:.2f} s">'
            f"<b>{esc(s.label)}</b></span>" for s in spans) + "</div>"

    seconds = "".join(f'<span style="left:{100 * t / FRAME_SECONDS / total:.3f}%">{number(t)} s</span>'
                      for t in np.arange(0, 0.93 * total * FRAME_SECONDS, 0.5))
    return (f'<div class="alignment">{lane(aligned.words, "words") if aligned.words else ""}'
            f'<img alt="Log-mel energies of {esc(aligned.utt)}" src="{png_gray(mel_image(aligned.features))}">'
            f'{lane(aligned.phones, "phones")}<div class="lane time">{seconds}</div></div>'
            f'<p class="muted fine">{esc(aligned.utt)}: \u201c{esc(aligned.text)}\u201d; log-mel energies, the words '
            f'and the phones of the training alignment.</p>')


def _cost(exp: Experiment) -> str:
    teachers = [s.info for name, s in exp.systems.items() if name.startswith("teacher_")]

    def figure(system: System, key: str) -> float | None:
        found = [system.info.get(key)]
        if system.name == "ensemble":  # each member looks at every frame, and each was trained
            found = [info.get(key) for info in teachers]
        known = found and all(isinstance(v, (int, float)) for v in found)
        return float(sum(found)) if known else None

    def mean_of(system: System, key: str) -> float | None:
        told = [d[key] for d in system.decodes.values() if isinstance(d.get(key), (int, float))]
        return sum(told) / len(told) if told else None

    def ahead(system: System) -> str:
        infos = teachers if system.name == "ensemble" else [system.info]
        if not infos or not all("look_ahead_ms" in info for info in infos):
            return DASH
        waits = [info["look_ahead_ms"] for info in infos]
        return "utterance" if None in waits else f"{max(waits)} ms"

    rows = []
    for system in exp.systems.values():
        rtf = mean_of(system, "rtf")
        active = mean_of(system, "active_states_per_frame")
        mflop, seconds = figure(system, "mflop_per_frame"), figure(system, "seconds")
        cells = [size_text(system.params), DASH if mflop is None else f"{mflop:.2f}", ahead(system),
                 DASH if seconds is None else time_text(seconds), DASH if rtf is None else f"{rtf:.3f}",
                 DASH if active is None else f"{active:.0f}"]
        rows.append(f'<tr><th scope="row"><i class="swatch {css_class(system.name)}"></i>'
                    f'{esc(system_name(system.name))}</th>'
                    + "".join(f'<td class="num{" optional" if i in (2, 3, 5) else ""}">{esc(c)}</td>'
                              for i, c in enumerate(cells)) + "</tr>")
    return ('<table class="cost"><thead><tr><th>System</th><th class="num">Parameters</th>'
            '<th class="num">MFLOP<br>a frame</th><th class="num optional">Look-ahead</th>'
            '<th class="num optional">Training</th><th class="num">Decoding,<br>'
            '\u00d7 real time</th><th class="num optional">Active<br>states</th></tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table><p class="muted fine">A frame: 10 '
            'ms of speech. Look-ahead: later speech that the network waits for. Decoding: the search in the graph alone, '
            'without the network; times are those of this machine, whatever else it did. Active states: of the graph, in '
            'k2\u2019s search after a row of scores, roughly (a sample of rows).</p>')


def _stages(exp: Experiment) -> str:
    stages = exp.stages
    if not stages:
        return ""
    total = sum(float(s["seconds"]) for s in stages.values())
    longest = sorted(stages.values(), key=lambda s: -float(s["seconds"]))[:3]
    most = {id(s) for s in longest}
    rows = [(f'{n} {s.get("name", "")}', float(s["seconds"]), time_text(float(s["seconds"])),
             "c-student-essence" if id(s) in most else "c-other") for n, s in stages.items()]
    disk = [(f'{n} {s.get("name", "")}', float(s.get("bytes") or 0), bytes_text(max(0, s.get("bytes") or 0)), "c-other")
            for n, s in stages.items()]
    names = ", ".join(f'{s.get("name") or "stage " + str(s["stage"])} ({time_text(float(s["seconds"]))})'
                      for s in longest)
    return (f'<p class="lead">{time_text(total)} in all; the longest stages: {esc(names)}.</p><div class="columns">'
            f'<div class="block"><h3>Time</h3>{bar_rows(rows, title="Time a stage")}</div>'
            f'<div class="block"><h3>Disk</h3>{bar_rows(disk, title="Disk a stage")}</div></div>')


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


def _columns_html(columns) -> str:
    out = []
    for ref, a, b in columns:
        cells = [f'<span class="ref">{esc(ref) if ref is not None else "&nbsp;"}</span>']
        for word in (a, b):
            if word is None and ref is None:
                cells.append("<span>&nbsp;</span>")
            elif word is None:
                cells.append('<span class="del">\u2013</span>')
            elif ref is None:
                cells.append(f'<span class="ins">{esc(word)}</span>')
            else:
                cells.append(f'<span class="{"ok" if word == ref else "sub"}">{esc(word)}</span>')
        out.append(f'<div class="word">{"".join(cells)}</div>')
    return "".join(out)


COMPARED = ("baseline", "student_essence")


def changed_utterances(exp: Experiment) -> list[tuple[int, str, str]]:
    """(errors of the essence student less those of the baseline, set, utterance), most improved first."""
    a, b = COMPARED
    changes = []
    for name in exp.test_sets or exp.sets:
        if all(s in exp.systems and name in exp.systems[s].scores for s in COMPARED):
            before, after = exp.systems[a].scores[name], exp.systems[b].scores[name]
            changes += [(after.utts[u].errors - before.utts[u].errors, name, u) for u in before.utts]
    return sorted(changes, key=lambda c: (c[0], c[2]))


def extremes(changes: Sequence[tuple[int, str, str]], count: int):
    """Of the most improved and of the most harmed utterances ``count`` each, the largest change first."""
    better = [c for c in changes if c[0] < 0][:count]
    worse = sorted((c for c in changes if c[0] > 0), key=lambda c: (-c[0], c[2]))[:count]
    return better, worse


def _utterances(exp: Experiment, clips: dict[tuple[str, str], str], count: int = 6) -> str:
    a, b = COMPARED
    changes = changed_utterances(exp)
    if not changes:
        return ""
    better, worse = extremes(changes, count)
    fewer, more = sum(c[0] < 0 for c in changes), sum(c[0] > 0 for c in changes)

    def listing(title: str, rows) -> str:
        if not rows:
            return f'<div class="block"><h3>{esc(title)}</h3><p class="muted">none</p></div>'
        out = []
        for _, name, utt in rows:
            before, after = exp.systems[a].scores[name], exp.systems[b].scores[name]
            ref = before.refs[utt]
            columns = merge_alignments(wer.align(ref, before.hyps[utt]), wer.align(ref, after.hyps[utt]))
            out.append(f'<li><div class="utt"><span>{esc(utt)}</span><span class="muted">{esc(set_name(name))} \u00b7 '
                       f'{before.utts[utt].errors} \u2192 {after.utts[utt].errors} errors</span></div>'
                       f'<div class="compared"><div class="heads"><span>reference</span><span>baseline</span>'
                       f'<span>student</span></div><div class="words">{_columns_html(columns)}</div></div>'
                       f'{_player(clips.get((name, utt)), utt)}</li>')
        return f'<div class="block"><h3>{esc(title)}</h3><ol class="utts">{"".join(out)}</ol></div>'

    lead = (f'<p class="lead">Of {len(changes):,} test utterances the essence student has fewer errors than the '
            f'baseline in {fewer:,} and more in {more:,}.</p>')
    key = ('<p class="muted fine"><span class="sub">substituted</span> <span class="ins">inserted</span> '
           '<span class="del">\u2013</span> deleted</p>')
    return (lead + listing("Most improved", better) + listing("Most harmed", worse) + key)


def _player(source: str | None, utt: str) -> str:
    return f'<audio controls preload="none" aria-label="{esc(utt)}" src="{source}"></audio>' if source else ""


# ---- ablation and calibration

def point_text(settings: dict[str, Any], base: dict[str, Any]) -> str:
    """What a reader calls a point of the ablation."""
    s = settings
    text = {"hard": "Hard labels alone (baseline)", "all": "Every soft label", "top-k": f"k = {s['top_k']}",
            "top-p": f"Mass of {s['top_p']:g}", "min-post": f"At least {s['min_post']:g}",
            "random-prune": f"Random below {s['min_post']:g}",
            "agree": f"In the {s['top_k']} best of {s['agree']} teachers"}[s["select"]]
    if s["mass"] != base["mass"]:
        text += f", mass: {s['mass']}"
    if s["temperature"] != base["temperature"]:
        text += f", T = {s['temperature']:g}"
    if s["soft_weight"] != base["soft_weight"]:
        text += f", \u03b1 = {s['soft_weight']:g}"
    if s["teachers"]:
        text += f", teacher{'s' if len(s['teachers']) > 1 else ''} {' and '.join(map(str, s['teachers']))}"
    return text


def _curve(found: dict[str, Any], column: str) -> str:
    """WER against k, a dot a seed, with the references as level lines."""
    base, points = found["base"], found["points"]
    fixed = {k: v for k, v in base.items() if k not in ("select", "top_k")}
    curve = sorted((p["settings"]["top_k"], p["wer"][column]) for p in points.values()
                   if p["settings"].get("select") == "top-k" and not p["settings"]["teachers"]
                   and all(p["settings"][k] == v for k, v in fixed.items()))
    if len({k for k, _ in curve}) < 2:
        return ""
    ks = [k for k, _ in curve]
    series = [Series("Student, essence", ks, [w["wer"] for _, w in curve], css_class("student_essence"))]
    for name, text, system in (("hard", "Baseline", "baseline"), ("all", "Every soft label", "student_full"),
                               ("ensemble", "Ensemble", "ensemble")):
        if name in points:
            level = points[name]["wer"][column]["wer"]
            series.append(Series(text, [ks[0], ks[-1]], [level, level], css_class(system)))
    dots = [(k, value, "", css_class("student_essence")) for k, w in curve for value in w["each_seed"]]
    every = [y for s in series for y in s.y] + [d[1] for d in dots]
    room = 0.08 * (max(every) - min(every)) or 0.5
    chart = line_chart(series, log_x=True, x_ticks=ks, points=dots, y_range=(min(every) - room, max(every) + room),
                       x_label="k, classes kept a frame", y_label=f"WER in percent, {set_name(column)}", height=260,
                       title="Word error rate against k")
    return f"{chart}{legend(series)}<p class=\"muted fine\">A dot a seed; lines join the means.</p>"


def _ablation(exp: Experiment) -> str:
    found = exp.ablation
    if not found:
        return ""
    entries_of = found["points"]
    columns = list(next(iter(entries_of.values()))["wer"])
    column = TOTAL if TOTAL in columns else columns[0]
    against = {(c["a"], c["b"]): c for c in found["comparisons"] if c["set"] == column}
    rows = []
    for name, point in entries_of.items():
        if name == "ensemble":
            label, seeds = "Ensemble", ""
        else:
            count = len(point["seeds"])
            label, seeds = point_text(point["settings"], found["base"]), f"{count} seed{'s' if count > 1 else ''}"
        cells = []
        for reference in ("hard", "all"):
            c = against.get((name, reference))
            cells.append('<td class="num">\u2013</td>' if c is None else
                         f'<td class="num">{points(c["diff"])}<small>{points(c["low"])} to '
                         f'{points(c["high"])}</small></td>')
        entries = point["entries_per_frame"]
        dev = point["wer"].get(found.get("dev_set", "dev"))
        rows.append(f'<tr><th scope="row">{esc(label)}<small>{esc(seeds)}</small></th>'
                    f'<td class="num optional">{DASH if entries is None else number(round(entries, 1))}</td>'
                    f'<td class="num optional">{wer_text(dev["wer"]) if dev else DASH}</td>'
                    f'<td class="num">{wer_text(point["wer"][column]["wer"])}</td>{"".join(cells)}</tr>')
    best = found.get("best_on_dev")
    chosen = f' Lowest on dev: {esc(point_text(entries_of[best]["settings"], found["base"]))}.' if best else ""
    return (f'{_curve(found, column)}<table class="cost"><thead><tr><th>Point</th><th class="num optional">Entries<br>'
            f'a frame</th><th class="num optional">WER<br>dev</th><th class="num">WER<br>{esc(set_name(column))}</th>'
            f'<th class="num">less<br>baseline</th><th class="num">less every<br>label</th></tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table><p class="muted fine">Means over seeds; a difference is of the seeds '
            f'that both have, with its 95 % interval over test speakers and, where there are two or more, seeds. Nothing '
            f'corrects for the number of points.{chosen}</p>')


def _calibration(exp: Experiment, least: int = 50) -> str:
    systems = exp.calibration.get("systems") or {}
    if not systems:
        return ""
    series = [Series("as sure as right", (0, 1), (0, 1), "c-gmm")]
    rows = []
    for name, found in systems.items():
        seen = [(c, a) for n, c, a in found["bins"] if n >= least]
        series.append(Series(system_name(name), [c for c, _ in seen], [a for _, a in seen], css_class(name)))
        cells = (f'{100 * found["accuracy"]:.1f}', f'{100 * found["confidence"]:.1f}', f'{100 * found["ece"]:.1f}',
                 f'{found["nll"]:.2f}')
        rows.append(f'<tr><th scope="row"><i class="swatch {css_class(name)}"></i>{esc(system_name(name))}</th>'
                    + "".join(f'<td class="num">{esc(c)}</td>' for c in cells) + "</tr>")
    axis = [0, 0.2, 0.4, 0.6, 0.8, 1]
    chart = line_chart(series, x_range=(0, 1), y_range=(0, 1), x_ticks=axis, height=300,
                       x_label="confidence: posterior of the best class", y_label="share of frames with that class",
                       title="Reliability diagram")
    first = next(iter(systems.values()))
    return (f'<div class="columns"><div>{chart}{legend(series)}</div><div><table class="cost"><thead><tr>'
            f'<th>System</th><th class="num">Right,<br>%</th><th class="num">Sure,<br>%</th><th class="num">ECE,<br>%</th>'
            f'<th class="num">Nats<br>a frame</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
            f'<p class="muted fine">{first["frames"]:,} frames of the test halves against their forced alignment by the '
            f'GMM, which errs, too: compare systems, do not take the figures for truth. Sure: mean posterior of the best '
            f'class. ECE: expected calibration error, {len(first["bins"])} bins; bins of fewer than {least} frames are '
            f'not drawn.</p></div></div>')


def _provenance(exp: Experiment, facts: dict[str, Any], origin: dict[str, Any]) -> str:
    commit = origin.get("commit")
    commit = (commit[:12] + (" (with uncommitted changes)" if origin.get("modified") else "")) if commit \
        else "unknown (not a git checkout)"
    machine = f'{origin["system"]}, {origin["machine"]}, {origin["cpus"]} CPUs'
    rows = [("Corpus", f'{facts["corpus"]}, size {facts["size"]}'), ("Seed", facts["seed"]),
            ("Engine", facts["engine"]), ("Decoder", (exp.decoder or "unknown")
             + (f", words rescored with {exp.rescoring}" if exp.rescoring else "")), ("Classes (pdfs)", exp.num_pdfs),
            ("Commit", commit),
            ("Written", origin["written"]), ("Machine", machine)]
    chosen: dict[str, list[str]] = {}
    for system in exp.systems.values():
        for name, d in system.decodes.items():
            if name in exp.test_sets and "acoustic_scale" in d:
                weights = f'{number(d["acoustic_scale"])}, {number(d.get("word_insertion_penalty") or 0.0)}'
                if system_name(system.name) not in chosen.setdefault(weights, []):
                    chosen[weights].append(system_name(system.name))
    versions = sorted({f'{d["decoder"]} {d["decoder_version"]}' for system in exp.systems.values()
                       for d in system.decodes.values() if d.get("decoder") and d.get("decoder_version")})
    student = next((exp.systems[n].model for n in ("student_essence", "student_full", "baseline")
                    if n in exp.systems and exp.systems[n].model), None)
    train = (student or {}).get("train")
    if train:
        rows.append(("Student", f'{student["arch"]}, {train["optim"]["epochs"]} epochs, learning rate '
                                f'{train["optim"]["lr"]:g}, soft weight {train["distill"]["soft_weight"]:g}, '
                                f'temperature {train["distill"]["temperature"]:g}'))
    if chosen:
        rows.append(("Acoustic scale, word insertion penalty", "; ".join(
            weights if len(chosen) == 1 else f'{weights}: {", ".join(names)}' for weights, names in chosen.items())))
    body = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in rows if v is not None)
    versions = ", ".join([f"{k} {v}" for k, v in origin["versions"].items()] + versions)
    notices = "".join(f"<li>{esc(n)}</li>" for n in exp.notices)
    notices = f'<h3>To know</h3><ul class="notices">{notices}</ul>' if notices else ""
    return f'{notices}<dl class="facts wide">{body}<div><dt>Versions</dt><dd>{esc(versions)}</dd></div></dl>'


def render(analysis: Analysis, comparisons: Sequence[dict[str, Any]], facts: dict[str, Any], origin: dict[str, Any],
           aligned: AlignedUtterance | None = None, clips: dict[tuple[str, str], str] | None = None) -> str:
    """The whole page.

    Args:
      facts: corpus, size, seed, engine.
      origin: what ``report.provenance`` says.
      clips: (set, utterance) -> data URI of its sound, for some of the utterances listed.
    """
    exp = analysis.exp
    with shown_from(exp.path / "ablation" / "results.json"):
        seeds, ablation = _seeds_line(exp.ablation, _main_column(analysis)), _ablation(exp)
    with shown_from(exp.path / "posteriors" / "post_stats.json"):
        essence = _essence(exp)
    with shown_from(exp.path / "calibration" / "calibration.json"):
        calibration = _calibration(exp)
    title, lines = headline(analysis, comparisons, seeds)
    eyebrow = f'{facts["corpus"]} \u00b7 {facts["size"]} \u00b7 seed {facts["seed"]} \u00b7 {facts["engine"]} engine' \
              f' \u00b7 decoded by {exp.decoder or "an unknown decoder"}'
    sections = [
        _section("Word error rates", _table(analysis), ident="wer"),
        _section("By the rules of Hub5", _hub5(analysis), ident="hub5"),
        _section("Is it more than chance?", _differences(analysis, comparisons), ident="differences"),
        _section("The essence of the posteriors", essence, ident="essence"),
        _section("Which labels, which weight?", ablation, ident="ablation"),
        _section("Training", _training(exp), ident="training"),
        _section("As sure as right?", calibration, ident="calibration"),
        _section("One alignment", _picture(aligned), ident="alignment"),
        _section("Size and speed", _cost(exp), ident="cost"),
        _section("Time and disk", _stages(exp), ident="stages"),
        _section("Utterances", _utterances(exp, clips or {}), ident="utterances"),
        _section("Provenance", _provenance(exp, facts, origin), ident="provenance"),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Essence distillation: {esc(facts["corpus"])}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">{esc(eyebrow)}</p>
<h1>{esc(title)}</h1>
<p class="summary">{esc(" ".join(lines))}</p>
{_figures(analysis)}
</header>
{"".join(sections)}
<footer>Counted from <code>SYSTEM/decode_SET/hyp.txt</code> and <code>ref.txt</code>; recount any line with
<code>essence score ref.txt hyp.txt</code>.</footer>
</main>
</body>
</html>
"""
