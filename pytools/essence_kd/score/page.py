"""report.html: one file without script or outside resource, for screens of every width, light and dark, and paper."""
from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Sequence

from essence_kd.io.text import visible
from essence_kd.score.alignment_picture import AlignedUtterance
from essence_kd.score.charts import WRITING, number
from essence_kd.score.experiment import as_base, shown_from
from essence_kd.score.labels import asked, points, shown, size_text, time_text, wer_text
from essence_kd.score.results import TOTAL, Analysis, p_text
from essence_kd.score.sections import SECTIONS, Content, Values, main_column, rated_at, verdict
from essence_kd.score.style import STYLE


def shown_text(value: Any) -> Any:
    """A value as the page has it: of texts, characters that would reorder or hide others are escapes."""
    return visible(value, keep=WRITING) if type(value) is str else value


def environment(set_labels: dict[str, str]):
    """Jinja2 with the templates and filters: what is not marked safe is escaped, and a missing value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(loader=PackageLoader("essence_kd.score"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.finalize = shown_text
    made.filters.update(wer=wer_text, points=points, size=size_text, time=time_text, number=number, p=p_text,
                        set_name=lambda name: set_labels.get(name, name))
    return made


def headline(analysis: Analysis, comparisons: Sequence[dict[str, Any]],
             seeds: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The finding in one sentence, and the sentences below it (``seeds`` among them).

    A gain that may be chance is called so.
    """
    column = main_column(analysis)
    student, twin, dense, ensemble = asked(analysis.exp)

    def find(a: str | None, b: str | None) -> dict[str, Any] | None:
        return next((c for c in comparisons if (c["a"], c["b"], c["set"]) == (a, b, column)), None)

    def rate(name: str) -> str:
        return wer_text(analysis.counts(name, column).wer)

    where = f"the set {analysis.labels[column]}"
    if column == TOTAL:
        where = "both test halves" if len(analysis.exp.test_sets) == 2 else "all test sets"
    found = find(student, twin)
    if found is None:
        sets = ", ".join(analysis.labels[name] for name in analysis.exp.sets)
        return "Word error rates", [f"{len(analysis.exp.systems)} systems on {sets}."]
    baseline = analysis.counts(twin, column).wer
    relative = 100.0 * abs(found["diff"]) / baseline if baseline else 0.0
    title = {-1: f"The essence student makes {relative:.0f} % fewer word errors than the baseline",
             1: f"The essence student makes {relative:.0f} % more word errors than the baseline",
             0: "The essence student and the baseline cannot be told apart"}[verdict(found)]
    lines = [f"Over {where} the word error rate goes from {rate(twin)} % to {rate(student)} %: "
             f"{points(found['diff'])} points, 95 % interval {points(found['low'])} to {points(found['high'])}."]
    lines += seeds
    found = find(student, ensemble)
    if found:
        lines.append({-1: f"It is better than the ensemble that taught it ({rate(ensemble)} %).",
                      1: f"The ensemble that taught it remains better ({rate(ensemble)} %).",
                      0: f"It cannot be told from the ensemble that taught it ({rate(ensemble)} %)."}[verdict(found)])
    found = find(ensemble, twin)
    if found and verdict(found) > 0:
        lines.append(f"The ensemble is worse than the baseline, by {points(found['diff'])} points: it has little to "
                     "teach. Train its members longer, or larger ones.")
    found = find(student, dense)
    if found:
        lines.append({-1: "Pruning helped", 1: "Pruning cost accuracy",
                      0: "Pruning neither helped nor hurt measurably"}[verdict(found)]
                     + f": with every soft label the same student gets {rate(dense)} %.")
    for system in analysis.exp.plan.main_systems("student"):  # others, each beside its own twin
        found = find(system.name, system.twin)
        if found is None or system.name in (student, dense):
            continue
        line = (f"{system.label}: from {rate(system.twin)} % ({analysis.exp.plan.system(system.twin).label}, the same "
                f"network on hard labels) to {rate(system.name)} %, {points(found['diff'])} points, "
                f"{points(found['low'])} to {points(found['high'])}")
        against = find(system.name, ensemble)
        if against:
            line += {-1: "; better than the ensemble", 1: "; worse than the ensemble",
                     0: "; not to be told from the ensemble"}[verdict(against)]
        lines.append(line + ".")
    return title, lines


def _seeds_line(found: dict[str, Any], column: str) -> list[str]:
    """What other seeds of the same student and baseline say, where an ablation has trained them."""
    for c in found.get("comparisons", ()):
        same = as_base(found["points"][c["a"]], found["base"])
        if same and (c["b"], c["set"]) == ("hard", column) and len(c["seeds"]) > 1:
            return [f"Over {len(c['seeds'])} seeds it is {points(c['diff'])} points, {points(c['low'])} to "
                    f"{points(c['high'])}."]
    return []


def _figures(analysis: Analysis) -> list[Values]:
    found = asked(analysis.exp)
    rated = [(name, rated_at(analysis, name, main_column(analysis)))
             for name in (found.twin, found.student, found.dense, found.ensemble) if name]
    return [{"system": shown(analysis.exp, name), **figures} for name, figures in rated if figures]


def render(analysis: Analysis, comparisons: Sequence[dict[str, Any]], facts: dict[str, Any], origin: dict[str, Any],
           aligned: AlignedUtterance | None = None, clips: dict[tuple[str, str], str] | None = None) -> str:
    """The whole page.

    Args:
      facts: corpus, size, seed, engine.
      origin: what ``report.provenance`` says.
      clips: (set, utterance) -> data URI of its sound, for some of the utterances listed.

    Raises:
      UserError: a file of the experiment has values that its stage does not write.
    """
    exp = analysis.exp
    templates = environment(analysis.labels)
    content = Content(analysis, comparisons, facts, origin, aligned, clips or {})
    with shown_from(exp.path / "ablation" / "results.json"):
        seeds = _seeds_line(exp.ablation, main_column(analysis))
    sections = []
    for section in SECTIONS:
        with shown_from(exp.path / section.source) if section.source else nullcontext():
            values = section.prepare(content)
            if values is not None:
                body = templates.get_template(f"{section.name}.html").render(values)
                sections.append((section.name, section.title, body))
    title, lines = headline(analysis, comparisons, seeds)
    return templates.get_template("report.html").render(
        {key: facts[key] for key in ("corpus", "size", "seed", "engine")}, decoder=exp.decoder, style=STYLE,
        title=title, lines=lines, figures=_figures(analysis), sections=sections)
