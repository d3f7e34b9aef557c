"""The figures of an experiment: intervals, comparisons, RESULTS for the terminal and results.json."""
from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.score import significance, wer
from essence_kd.score.experiment import TOTAL, Experiment, set_labels

MIN_SPEAKERS = 8


def p_text(p: float) -> str:
    """A p value for a table."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def best_teacher(exp: Experiment) -> str | None:
    """The teacher with the lowest WER on dev, or on the test sets where dev was not decoded."""
    for sets in ([exp.plan.dev_set], exp.test_sets):
        rated = [(c.wer, s.name) for s in exp.of_role("teacher") for c in [s.counts(sets)] if sets and c is not None]
        if rated:
            return min(rated)[1]
    return None


def dense_sibling(exp: Experiment, student: str) -> str | None:
    """The student of the same network and seed that learns from every soft label."""
    entry = exp.plan.system(student)
    return next((s.name for s in exp.plan.main_systems("student") if (s.model, s.seed) == (entry.model, entry.seed)
                 and s.name != student and s.targets and exp.plan.target(s.targets).kind == "dense"), None)


def standard_pairs(exp: Experiment) -> list[tuple[str, str]]:
    """The questions of the method: what a student gained, what pruning did, what the ensemble gained."""
    pairs: list[tuple[str | None, str | None]] = []
    students = list(exp.plan.main_systems("student"))
    pruned = [s for s in students if s.targets and exp.plan.target(s.targets).kind == "post"]
    ensembles = [s.name for s in exp.plan.main_systems("ensemble")]
    for student in pruned:
        pairs += [(student.name, student.twin), (student.name, dense_sibling(exp, student.name))]
        pairs += [(student.name, ensemble) for ensemble in ensembles]
    pairs += [(ensemble, best_teacher(exp)) for ensemble in ensembles]
    pairs += [(s.name, s.twin) for s in students if s not in pruned]
    pairs += [(ensemble, s.twin) for ensemble in ensembles for s in students]
    return [(a, b) for a, b in dict.fromkeys(pairs) if a in exp.systems and b in exp.systems]


def draw_errors(name: str, scores: Sequence[wer.Score], speakers: dict[str, str] | None, *, draws: int,
                seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Bootstrap draws of the errors of S systems on one set: (draws, S) errors, (draws,) words, and what is drawn.

    Draws take whole speakers (``speakers``: utterance -> speaker) where there are at least ``MIN_SPEAKERS``, and single
    utterances otherwise: a handful of speakers cannot be resampled. Raises UserError for an utterance without one.
    """
    utts, groups = list(scores[0].utts), None
    if speakers is not None:
        lost = [u for u in utts if u not in speakers]
        if lost:
            raise UserError(f"utt2spk of {name}: utterance '{lost[0]}' is missing ({len(lost)} of {len(utts)}); "
                            "give the data directory that was decoded")
        groups = [speakers[u] for u in utts]
    if groups and len(set(groups)) < MIN_SPEAKERS:
        groups = None
    columns = [[score.utts[u].errors for u in utts] for score in scores]
    columns.append([scores[0].utts[u].words for u in utts])
    drawn = significance.bootstrap_sums(np.array(columns).T, groups, draws=draws, seed=seed)
    unit = f"{len(set(groups))} speakers" if groups else f"{len(utts)} utterances"
    return drawn[:, :-1], np.maximum(drawn[:, -1], 1.0), unit


def matched_segments(a: wer.Score, b: wer.Score) -> list[tuple[int, int]]:
    """Errors of two systems in each segment of one set, for NIST's matched-pair test; both have the same references."""
    segments: list[tuple[int, int]] = []
    for utt, ref in a.refs.items():
        if a.utts[utt].errors or b.utts[utt].errors:
            segments += significance.segment_errors(wer.align(ref, a.hyps[utt]), wer.align(ref, b.hyps[utt]))
    return segments


def compare_scores(a: wer.Score, b: wer.Score, speakers: dict[str, str] | None = None, *,
                   draws: int = significance.DRAWS, seed: int = 1,
                   ) -> tuple[significance.Difference, significance.MatchedPairs, str]:
    """WER of a minus WER of b on one set by both tests, and what the bootstrap draws. UserError without words."""
    if not a.total.words:
        raise UserError("the reference has no words, so there is no error rate to compare")
    errors, words, unit = draw_errors("the reference", [a, b], speakers, draws=draws, seed=seed)
    found = significance.difference(100.0 * (errors[:, 0] - errors[:, 1]) / words, a.total.wer - b.total.wer)
    return found, significance.matched_pairs(matched_segments(a, b)), unit


class Analysis:
    """Bootstrap samples of every system on every set and on all test sets together; the total draws each set alone.

    ``unit``: what was drawn, by set.
    """

    def __init__(self, exp: Experiment, utt2spk: dict[str, dict[str, str]] | None = None, *,
                 draws: int = significance.DRAWS, seed: int = 1):
        self.exp, self.draws = exp, draws
        self.labels = set_labels(exp.plan)
        self.unit: dict[str, str] = {}
        self.samples: dict[tuple[str, str], np.ndarray] = {}  # (system, set) -> (draws,) WER in percent
        sums: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = {}
        for number, name in enumerate(exp.sets):
            systems = [s for s in exp.systems.values() if name in s.scores]
            errors, words, self.unit[name] = draw_errors(name, [s.scores[name] for s in systems],
                                                         (utt2spk or {}).get(name), draws=draws, seed=seed + number)
            sums[name] = ({s.name: errors[:, i] for i, s in enumerate(systems)}, words)
            for i, system in enumerate(systems):
                self.samples[system.name, name] = 100.0 * errors[:, i] / words
        if len(exp.test_sets) > 1:
            words = sum(sums[t][1] for t in exp.test_sets)
            for key in exp.systems:
                if all(key in sums[t][0] for t in exp.test_sets):
                    self.samples[key, TOTAL] = 100.0 * sum(sums[t][0][key] for t in exp.test_sets) / words
        self.columns = exp.test_sets + ([TOTAL] if len(exp.test_sets) > 1 else []) \
            + [s for s in exp.sets if s not in exp.test_sets]

    def members(self, column: str) -> list[str]:
        """The sets that a column of the table adds up."""
        return self.exp.test_sets if column == TOTAL else [column]

    def counts(self, system: str, column: str) -> wer.Counts | None:
        """Errors of a system in a column; None where one of its sets was not decoded."""
        return self.exp.systems[system].counts(self.members(column))

    def interval(self, system: str, column: str) -> tuple[float, float]:
        """95 % bootstrap interval of a system's WER in percent."""
        return significance.interval(self.samples[system, column])

    def compare(self, a: str, b: str, column: str) -> dict[str, Any] | None:
        """WER of a minus WER of b on a column with interval and both p; None where one was not decoded."""
        counts_a, counts_b = self.counts(a, column), self.counts(b, column)
        if counts_a is None or counts_b is None or not counts_a.words:
            return None
        found = significance.difference(self.samples[a, column] - self.samples[b, column], counts_a.wer - counts_b.wer)
        segments = [segment for name in self.members(column) for segment in
                    matched_segments(self.exp.systems[a].scores[name], self.exp.systems[b].scores[name])]
        matched = significance.matched_pairs(segments)
        return {"a": a, "b": b, "set": column, "diff": round(found.diff, 4), "low": round(found.low, 4),
                "high": round(found.high, 4), "p_bootstrap": found.p, "p_matched": matched.p,
                "segments": matched.segments}

    def comparisons(self, more: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        """The standard pairs and ``more`` on the test columns; on every set where there is no test set."""
        unknown = [name for pair in more for name in pair if name not in self.exp.systems]
        if unknown:
            raise UserError(f"--compare names '{unknown[0]}', which is not among the systems: "
                            f"{' '.join(self.exp.systems)}")
        pairs = list(dict.fromkeys([*standard_pairs(self.exp), *more]))
        columns = [c for c in self.columns if c in self.exp.test_sets or c == TOTAL] or self.columns
        rows = [self.compare(a, b, column) for a, b in pairs for column in columns]
        return [row for row in rows if row]


def detectable(comparisons: Sequence[dict[str, Any]]) -> list[tuple[str, str, float]]:
    """(a, b, points) of each pair: the smallest difference that all test sets together can tell at one seed, which is
    half of its 95 % interval."""
    found: dict[tuple[str, str], float] = {}
    for row in comparisons:  # the total comes last
        found[row["a"], row["b"]] = (row["high"] - row["low"]) / 2
    return [(a, b, points) for (a, b), points in found.items()]


def hub5_header(exp: Experiment) -> str:
    """How the test sets were scored by time."""
    rules = sorted(set(exp.hub5_rules.values()))
    return ("By the rules of Hub5: STM and CTM by time, hesitations and fragments out, acronyms spelled, mapping "
            f"rules {' and '.join(rules)}; counted by {'sclite' if exp.hub5_scorer == 'sclite' else 'our own aligner'}")


def results_text(analysis: Analysis, header: str, comparisons: Sequence[dict[str, Any]]) -> str:
    """RESULTS: %WER lines of every system and set, the table, and the differences, for the terminal."""
    exp = analysis.exp
    lines = [f"# {header}", "#"]
    for system in exp.systems.values():
        for column in analysis.columns:
            counts = analysis.counts(system.name, column)
            if counts is not None:
                place = f"decode_{column}" if column != TOTAL else "total of " + " and ".join(exp.test_sets)
                lines.append(f"{wer.wer_line(counts)} {system.path}/{place}" if column != TOTAL
                             else f"{wer.wer_line(counts)} {system.path} ({place})")
    if exp.hub5_scorer:
        lines += ["", f"# {hub5_header(exp)}"]
        for system in exp.systems.values():
            for column in exp.test_sets + [TOTAL]:
                counts = system.hub5_counts(analysis.members(column))
                if counts is not None and column != TOTAL:
                    lines.append(f"{wer.wer_line(counts)} {system.path}/decode_{column}/hyp.ctm")
                elif counts is not None and len(exp.test_sets) > 1:
                    both = " and ".join(exp.test_sets)
                    lines.append(f"{wer.wer_line(counts)} {system.path} (total of {both} by time)")
    rows = [["system", "parameters"] + [h for c in analysis.columns for h in (analysis.labels[c], "95 %")]]
    for system in exp.systems.values():
        row = [system.name, f"{system.params:,}" if system.params is not None else "-"]
        for column in analysis.columns:
            counts = analysis.counts(system.name, column)
            if counts is None:
                row += ["-", ""]
            else:
                low, high = analysis.interval(system.name, column)
                row += [f"{counts.wer:.2f}", f"{low:.1f} to {high:.1f}"]
        rows.append(row)
    lines += ["", wer.aligned_table(rows, right=range(1, len(rows[0])))]
    if comparisons:
        rows = [["WER difference in points", "set", "diff", "95 % interval", "p bootstrap", "p matched pairs"]]
        for c in comparisons:
            rows.append([f"{c['a']} - {c['b']}", analysis.labels[c["set"]], f"{c['diff']:+.2f}",
                         f"{c['low']:+.2f} to {c['high']:+.2f}", p_text(c["p_bootstrap"]), p_text(c["p_matched"])])
        lines += ["", wer.aligned_table(rows, right=(2, 3, 4, 5))]
        units = ", ".join(f"{analysis.labels[s]}: {analysis.unit[s]}" for s in exp.sets)
        lines += ["", f"# Intervals: paired bootstrap, {analysis.draws:,} draws of {units}. "
                      "p matched pairs: NIST's sentence-segment test.",
                  "# The smallest difference that one seed can tell, half of the interval over all test sets: "
                  + ", ".join(f"{a} - {b} {points:.1f}" for a, b, points in detectable(comparisons)) + "."]
    if exp.notices:
        lines += [""] + [f"# {notice}" for notice in exp.notices]
    return "\n".join(lines) + "\n"


def results_dict(analysis: Analysis, *, comparisons: Sequence[dict[str, Any]],
                 provenance: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json."""
    exp, plan = analysis.exp, analysis.exp.plan
    systems: dict[str, dict[str, Any]] = {}
    totals: dict[str, dict[str, Any]] = {}
    for system in exp.systems.values():
        entry: dict[str, Any] = {"role": system.entry.role, "params": system.params}
        for name in exp.sets:
            if name in system.scores:
                entry[name] = system.scores[name].total.as_dict()
        systems[system.name] = entry
        counts = system.counts(exp.test_sets) if exp.test_sets else None
        if counts is not None:
            totals[system.name] = counts.as_dict()
    by_time = {system.name: {column: counts.as_dict() for column in exp.test_sets + [TOTAL]
                             for counts in [system.hub5_counts(analysis.members(column))] if counts is not None}
               for system in exp.systems.values() if system.hub5}
    essence = exp.essence
    return {
        "corpus": plan.corpus, "size": plan.size, "seed": plan.seed, "engine": plan.engine, "decoder": exp.decoder,
        "rescoring": exp.rescoring, "num_pdfs": exp.num_pdfs, "systems": systems,
        "essence": {"select": essence.get("selection"), "k": essence.get("k"), "mean_mass": essence.get("mean_mass"),
                    "bytes_per_frame": essence.get("bytes_per_frame")},
        "stages": {n: {key: s.get(key) for key in ("seconds", "cpu_seconds", "bytes")} for n, s in exp.stages.items()},
        "totals": totals, "hub5": {"scorer": exp.hub5_scorer, "rules": exp.hub5_rules, "systems": by_time},
        "comparisons": list(comparisons),
        "bootstrap": {"draws": analysis.draws, "unit": analysis.unit}, "notices": exp.notices, "provenance": provenance,
    }
