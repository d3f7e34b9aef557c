"""Parts of the report: pairs, labels and colours by role, headline, templates, charts, the alignment."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import numpy as np
import pytest
from builders import ROOT
from builders.experiment import FREE_COLOURS, FREE_PAIRS, PHONES, free_names, make_experiment
from builders.plans import make_plan

from essence_kd.io.wave import write_wav
from essence_kd.score import alignment_picture, charts, labels, page, results, sections
from essence_kd.score.clips import load_clips
from essence_kd.score.experiment import Experiment, System, as_base, load_experiment
from essence_kd.score.results import Analysis, best_teacher
from essence_kd.score.style import STYLE

TEMPLATES = ROOT / "pytools" / "essence_kd" / "score" / "templates"


def test_best_teacher_is_chosen_on_dev(tmp_path):
    exp, _ = make_experiment(tmp_path, {"teacher_1": 0.1, "teacher_2": 0.4}, speakers=3)
    shutil.copytree(exp / "teacher_1" / "decode_dev", exp / "swap")
    shutil.rmtree(exp / "teacher_1" / "decode_dev")
    shutil.copytree(exp / "teacher_2" / "decode_dev", exp / "teacher_1" / "decode_dev")
    shutil.rmtree(exp / "teacher_2" / "decode_dev")
    shutil.copytree(exp / "swap", exp / "teacher_2" / "decode_dev")
    assert best_teacher(load_experiment(exp)) == "teacher_2"
    assert [labels.size_text(n) for n in (None, 7, 30451, 304512, 3694813)] == [
        "\u2013", "7", "30.5 k", "305 k", "3.7 M"]
    assert [labels.bytes_text(n) for n in (0, 7, 30451)] == ["0 B", "7 B", "30.5 kB"]
    assert [labels.time_text(s) for s in (9.6, 99, 310, 7260)] == ["10 s", "99 s", "5 min 10 s", "2 h 01 min"]


def collected(exp=Path("/x/exp/y"), without=()):
    """An experiment with names that say nothing of roles, all of its systems decoded but those of ``without``."""
    plan = make_plan(exp, **free_names())
    decoded = (s for s in plan.systems if s.name not in without)
    return Experiment(exp, plan, {s.name: System(s.name, exp / s.name, s) for s in decoded})


def test_pairs_go_by_role(monkeypatch):
    monkeypatch.setattr(results, "best_teacher", lambda exp: "student_one")
    assert set(results.standard_pairs(collected())) == FREE_PAIRS
    assert len(results.standard_pairs(collected())) == len(FREE_PAIRS)
    assert results.standard_pairs(collected())[:3] == [("dora", "alice"), ("dora", "baseline"), ("dora", "choir")]
    usual = make_plan("/x/exp/y")
    every = {s.name: System(s.name, Path("/x") / s.name, s) for s in usual.systems}
    monkeypatch.setattr(results, "best_teacher", lambda exp: "teacher_2")
    assert results.standard_pairs(Experiment(Path("/x"), usual, every)) == [
        ("student_essence", "baseline"), ("student_essence", "student_full"), ("student_essence", "ensemble"),
        ("ensemble", "teacher_2"), ("student_full", "baseline"), ("ensemble", "baseline")]


def test_labels_colours_and_groups_go_by_role():
    exp = collected()
    entries = {s.name: s for s in exp.plan.systems}
    assert {name: labels.shown(exp, name).css for name in entries} == FREE_COLOURS
    assert all(labels.shown(exp, name).label == entry.label for name, entry in entries.items())
    assert [labels.group(exp, name) for name in ("old", "student_one", "gmm", "choir", "alice", "baseline", "hal")] == \
        ["gmm", "teacher", "teacher", "ensemble", "student", "student", "student"]


@pytest.mark.parametrize("without, expected", [
    ("", ("dora", "alice", "baseline", "choir")),
    ("baseline choir", ("dora", "alice", None, None)),
    ("alice", ("dora", None, "baseline", "choir")),
    ("dora", ("eve", "alice", "baseline", "choir")),
    ("dora eve", ("gil", "carol", "fay", "choir")),
    ("dora eve gil hal", (None, "alice", "baseline", "choir")),
])
def test_the_page_compares_the_first_student_of_an_essence(without, expected):
    assert labels.asked(collected(without=without.split())) == expected


def test_every_colour_has_its_style():
    for css in {*FREE_COLOURS.values(), labels.ESSENCE_COLOUR}:
        assert re.search(rf"\.{css}\b[^{{]*{{ --c:", STYLE), css


def test_only_points_like_the_base_are_other_seeds_of_the_main_run():
    """A point with another loss, student or members is none, though all else is as in the base."""
    base = {"select": "top-k", "top_k": 20}
    assert as_base({"settings": {**base, "teachers": [], "loss": None, "student": None}}, base)
    for more in ({"teachers": [1]}, {"loss": "reverse-kl"}, {"student": "tdnn_lstm"}, {"top_k": 5},
                 {"untranscribed": True}):
        assert not as_base({"settings": {**base, **more}}, base)
    assert as_base({"settings": {**base, "top_k": 5}}, base, "top_k")


def test_headline_says_that_an_ensemble_has_little_to_teach(tmp_path):
    for number, (ensemble, expected) in enumerate(((0.5, True), (0.1, False), (0.25, False))):
        errors = {"baseline": 0.25, "student_essence": 0.25, "ensemble": ensemble}
        exp, _ = make_experiment(tmp_path / str(number), errors, seed=5)
        analysis = Analysis(load_experiment(exp), draws=500)
        lines = page.headline(analysis, analysis.comparisons())[1]
        assert any("it has little to teach" in line for line in lines) == expected


@pytest.mark.parametrize("rates, title", [
    ({"baseline": 0.4, "student_essence": 0.15}, r"makes \d+ % fewer word errors than the baseline"),
    ({"baseline": 0.15, "student_essence": 0.4}, r"makes \d+ % more word errors than the baseline"),
    ({"baseline": 0.25, "student_essence": 0.25}, "cannot be told apart"),
    ({"teacher_1": 0.25}, "^Word error rates$"),
])
def test_headline_says_what_came_out(tmp_path, rates, title):
    exp, _ = make_experiment(tmp_path, rates, seed=5)
    analysis = Analysis(load_experiment(exp), draws=500)
    found, _ = page.headline(analysis, analysis.comparisons())
    assert re.search(title, found)


def test_headline_tells_of_other_students_beside_their_twins(tmp_path):
    rates = {"baseline": 0.3, "student_essence": 0.2, "student_full": 0.1, "ensemble": 0.2}
    exp, _ = make_experiment(tmp_path, rates, seed=5)
    experiment = load_experiment(exp)
    experiment.plan.targets[0].kind = "post"  # student_full learns from it: another student of an essence now
    analysis = Analysis(experiment, draws=500)
    student, _, dense, _ = labels.asked(experiment)
    other = next(s.name for s in experiment.plan.main_systems("student") if s.name != student)
    lines = page.headline(analysis, analysis.comparisons())[1]
    assert dense is None
    label, twin = experiment.plan.system(other).label, experiment.plan.system(experiment.plan.system(other).twin).label
    assert any(re.match(rf"{label}: from \d+\.\d % \({twin}, the same network on hard labels\) to \d", line)
               for line in lines)


def test_every_section_has_its_template_and_what_is_not_escaped_is_our_own():
    names = {path.stem for path in TEMPLATES.glob("*.html")}
    assert names == {section.name for section in sections.SECTIONS} | {"report", "macros"}
    made_here = {"style", "body", "mark", "labels", "chart", "legend", "times", "disk"}  # style.py, page.py, charts.py
    for path in TEMPLATES.glob("*.html"):
        safe = re.findall(r"([^\s{]+) *\| *safe", path.read_text())
        assert {name.rpartition(".")[2] for name in safe} <= made_here, path
        assert len(re.findall(r"\bsafe\b", path.read_text().replace("'unsafe-inline'", ""))) == len(safe)


def test_a_template_refuses_a_value_that_is_not_there():
    with pytest.raises(jinja2.UndefinedError, match="'column' is undefined"):
        page.environment({}).get_template("ablation.html").render(curve=None)


def test_the_package_needs_jinja_for_the_page_alone():
    code = "import sys, essence_kd.score.report; sys.exit('jinja2' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pytools")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 1, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert charts.ticks(-13, 8.2, 5) == [-10.0, -5.0, 0.0, 5.0]
    assert charts.ticks(20.4, 29.9, 5) == [22.0, 24.0, 26.0, 28.0]
    assert charts.ticks(3, 3) == [3]


def test_png_decodes_to_the_same_picture(tmp_path):
    import base64

    from matplotlib.image import imread

    picture = np.random.default_rng(1).integers(0, 256, (13, 29)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(base64.b64decode(charts.png_gray(picture).partition(",")[2]))
    assert np.array_equal(np.round(255 * imread(str(tmp_path / "a.png"))).astype(np.uint8), picture)


def test_a_segment_to_the_end_of_its_recording_has_its_sound(tmp_path):
    (tmp_path / "dev").mkdir()
    write_wav(tmp_path / "r.wav", np.arange(8000, dtype=np.int16), 8000)
    (tmp_path / "dev" / "wav.scp").write_text(f"r {tmp_path}/r.wav\n")
    (tmp_path / "dev" / "segments").write_text("u r 0.50 -1.00\n")
    assert set(load_clips(tmp_path, [("dev", "u")])) == {("dev", "u")}


def test_phones_and_words_of_an_alignment(tmp_path):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3}, speakers=2, turns=2)
    aligned = alignment_picture.load_alignment(exp / "ali", data)
    assert aligned.utt == "a-1" and aligned.features.shape == (180, 40)
    assert [p.label for p in aligned.phones] == [p.partition("_")[0] for p in PHONES]
    assert [(w.label, w.start, w.end) for w in aligned.words] == [("hello", 18, 90), ("i", 90, 108), ("know", 126, 162)]
    assert alignment_picture.load_alignment(exp, data) is None


def test_a_phone_that_repeats_begins_anew_and_silence_does_not():
    tree = {0: ("A", 0), 1: ("A", 1), 2: ("B", 0), 3: ("SIL", 0), 4: ("SIL", 1)}
    spans = alignment_picture.phone_spans(np.array([0, 0, 1, 0, 1, 2, 3, 4, 3, 4]), tree)
    assert [(s.label, s.start, s.end) for s in spans] == [("A", 0, 3), ("A", 3, 5), ("B", 5, 6), ("SIL", 6, 10)]


def test_words_are_cut_by_the_pronunciations_that_fit():
    phones = [alignment_picture.Span(label, i, i + 1) for i, label in enumerate("A B SIL A B C".split())]
    lexicon = {"x": [["A"], ["A", "B"]], "y": [["B", "C"]], "z": [["C"]]}
    found = alignment_picture.word_spans(phones, ["x", "x", "y"], lexicon)
    assert [(w.label, w.start, w.end) for w in found] == [("x", 0, 2), ("x", 3, 4), ("y", 4, 6)]
    assert [w.end for w in alignment_picture.word_spans(phones, ["x", "x", "z"], lexicon)] == [2, 5, 6]
    assert alignment_picture.word_spans(phones, ["x", "x"], lexicon) == []
    assert alignment_picture.word_spans(phones, ["x", "?", "y"], lexicon) == []


def test_two_alignments_share_the_columns_of_the_reference():
    first = [("a", "a"), (None, "x"), ("b", None), ("c", "c")]
    second = [(None, "y"), ("a", "z"), (None, "w"), ("b", "b"), ("c", None)]
    assert sections.merge_alignments(first, second) == [(None, None, "y"), ("a", "a", "z"), (None, "x", "w"),
                                                        ("b", None, "b"), ("c", "c", None)]
