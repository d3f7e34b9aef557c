"""The plan of a run: what options, recipe and conf/ come to. No process is started."""
from dataclasses import replace
from pathlib import Path

import pytest
from builders import ROOT, refused

from essence_kd.plan.build import make_plan
from essence_kd.plan.options import OptionError, Options
from essence_kd.plan.plan import FILE, Plan, check_plan, read_plan, write_plan
from essence_kd.plan.recipe import Recipe

OPTIONS = Options(corpus="mini", size="default", engine="native", stage="0", stop_stage="10", nj="2", seed="1",
                  decoder="auto", combine="mean", fuse="false", ablation="false", grid="conf/ablation.yaml")
RECIPE = Recipe(Path("recipe.conf"), "a corpus", ["default", "tiny"], ["native", "kaldi"], "train", "dev", ["fri", "sat"],
                ["found"], {"fri": "FRI"}, "teacher_cnn_tdnn teacher_blstm", "student_tdnn", "2", "", 6, 100, 4000)


def made(recipe=RECIPE, **options) -> Plan:
    return make_plan(replace(OPTIONS, **options), recipe, ROOT, Path("/work"))


def by_name(items):
    return {item.name: item for item in items}


def test_the_usual_run():
    plan = made()
    assert (plan.data, plan.exp) == ("/work/data/mini", "/work/exp/mini")
    assert [(s.name, s.role, s.label) for s in plan.sets] == [
        ("train", "train", "train"), ("dev", "dev", "dev"), ("fri", "test", "FRI"), ("sat", "test", "sat"),
        ("found", "untranscribed", "found")]
    assert [(s.name, s.role) for s in plan.systems] == [
        ("gmm", "gmm"), ("teacher_1", "teacher"), ("teacher_2", "teacher"), ("ensemble", "ensemble"), ("baseline", "twin"),
        ("student_full", "student"), ("student_essence", "student")]
    systems = by_name(plan.systems)
    assert systems["ensemble"].teachers == ["teacher_1", "teacher_2"]
    essence, full = systems["student_essence"], systems["student_full"]
    assert essence.twin == full.twin == "baseline" and systems["baseline"].targets is None
    assert (essence.targets, essence.soft_weight, essence.temperature, essence.mass) == ("essence_k20", 0.9, 1.0, "renorm")
    assert (full.targets, full.mass) == ("full", None)
    targets = by_name(plan.targets)
    assert {n: (t.kind, t.stage, t.source, t.scp) for n, t in targets.items()} == {
        "full": ("dense", 6, None, "posteriors/full.scp"), "wide": ("post", 6, None, "posteriors/wide.scp"),
        "essence_k20": ("post", 7, "wide", "essence_k20/post.scp")}
    assert targets["essence_k20"].options == ["--select", "top-k", "--mass", "renorm", "--top-k", "20"]
    # students have no say in the scale, and the GMM has its own
    assert {s.name for s in plan.systems if not s.chooses_scale} == {"student_full", "student_essence"}
    assert {s.scale_group for s in plan.systems if s.role != "gmm"} == {"networks"} and systems["gmm"].scale_group == "gmm"
    assert {m.name: m.kind for m in plan.models} == dict.fromkeys(
        ["teacher_cnn_tdnn", "teacher_blstm", "student_tdnn"], "torch")


def test_size_and_engine_are_in_the_names_of_directories_where_they_are_not_the_usual_ones():
    assert made(size="tiny", engine="kaldi").exp == "/work/exp/mini_tiny_kaldi"


def test_several_students_each_beside_its_twin_and_several_k():
    plan = made(student="student_tdnn teacher_cnn_tdnn student_tdnn_lstm", top_k="20 5")
    systems = by_name(plan.systems)
    twins = {s.name: s.twin for s in plan.systems if s.role == "student"}
    assert twins == {
        "student_full": "baseline", "student_essence": "baseline", "student_essence_k5": "baseline",
        # the first teacher is the same network on hard labels alone: it is not trained twice
        "student_full_teacher_cnn_tdnn": "teacher_1", "student_essence_teacher_cnn_tdnn": "teacher_1",
        "student_essence_teacher_cnn_tdnn_k5": "teacher_1",
        "student_full_tdnn_lstm": "baseline_tdnn_lstm", "student_essence_tdnn_lstm": "baseline_tdnn_lstm",
        "student_essence_tdnn_lstm_k5": "baseline_tdnn_lstm"}
    assert [s.name for s in plan.systems if s.role == "twin"] == ["baseline", "baseline_tdnn_lstm"]
    assert systems["student_essence_k5"].targets == "essence_k5"
    for name, twin in twins.items():
        assert (systems[name].model, systems[name].seed) == (systems[twin].model, systems[twin].seed)
    assert len({s.label for s in plan.systems}) == len(plan.systems)


def test_fused_targets_have_no_archive_to_be_pruned_from():
    plan = made(fuse="true")
    assert [(t.name, t.stage, t.source) for t in plan.targets] == [("essence_k20", 6, None)]
    assert "student_full" not in by_name(plan.systems)
    with pytest.raises(OptionError, match="one --top-k"):
        made(fuse="true", top_k="5 20")


def test_options_win_over_the_recipe_and_conf():
    plan = made(top_k="7", temperature="2", soft_weight="0.5", lm_order="3", rescore_lm_order="4", teachers="teacher_blstm",
                student="student_tdnn_lstm", seed="9")
    essence = by_name(plan.systems)["student_essence"]
    assert (essence.targets, essence.temperature, essence.soft_weight, essence.model, essence.seed) == (
        "essence_k7", 2.0, 0.5, "student_tdnn_lstm", 9)
    assert (plan.lm_order, plan.rescore_lm_order, plan.seed) == (3, 4, 9)
    assert [s.model for s in plan.systems if s.role == "teacher"] == ["teacher_blstm"]
    assert made(rescore_lm_order="0", recipe=replace(RECIPE, rescore_lm_order="4")).rescore_lm_order == 0
    assert made(teachers="torch").systems == made().systems
    nnet3 = made(teachers="nnet3", engine="kaldi")
    assert [m.kind for m in nnet3.models] == ["nnet3"] * 3 + ["torch"]


@pytest.mark.parametrize("options, words", [
    ({"temperature": "0"}, "--temperature must be above 0"), ({"soft_weight": "2"}, "--soft-weight must be from 0 to 1"),
    ({"teachers": "teacher_blstm teacher_blstm"}, "names teacher_blstm twice"),
    ({"student": "student_tdnn student_tdnn"}, "names a model twice"),
    ({"student": "nnet3/tdnn", "engine": "kaldi"}, "students are models of conf/models"),
    ({"recipe_options": {"fsdd_dir": ""}}, "corpus mini has no option --fsdd-dir"),
])
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        made(**options)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = made(ablation="true", top_k="20 5")
    write_plan(plan, tmp_path / FILE)
    assert read_plan(tmp_path) == read_plan(tmp_path / FILE) == plan
    before = (tmp_path / FILE).stat().st_mtime_ns
    write_plan(plan, tmp_path / FILE)
    assert (tmp_path / FILE).stat().st_mtime_ns == before  # nothing has changed


def test_a_plan_that_is_none_is_refused(tmp_path):
    refused(lambda: read_plan(tmp_path), f"{tmp_path}/plan.json", "essence plan")
    for text, word in (("{", "not JSON"), ("[]", "expected a JSON object"), ('{"corpus": "x"}', "missing key"),
                       ('{"corpse": "x"}', "unknown key 'corpse'")):
        (tmp_path / FILE).write_text(text)
        refused(lambda: read_plan(tmp_path), "plan.json", word)


@pytest.mark.parametrize("change, words", [
    (lambda p: p.systems.append(p.systems[0]), "system 'gmm' comes twice"),
    (lambda p: setattr(p.systems[1], "role", "boss"), "the role of system teacher_1 is 'boss'"),
    (lambda p: setattr(p.systems[-1], "targets", "none"), "the targets of system student_essence is 'none'"),
    (lambda p: setattr(p.systems[-1], "twin", "none"), "the twin of system student_essence is 'none'"),
    (lambda p: setattr(p.systems[1], "model", "none"), "the model of system teacher_1 is 'none'"),
    (lambda p: setattr(p.sets[1], "role", "test"), "exactly one set must have the role dev"),
    (lambda p: p.targets[0].teachers.append("x"), "a teacher of target full is 'x'"),
    (lambda p: setattr(p.targets[-1], "source", "x"), "the source of target essence_k20 is 'x'"),
    (lambda p: setattr(p.targets[-1], "kind", "x"), "the kind of target essence_k20 is 'x'"),
])
def test_a_plan_without_meaning_is_refused(change, words):
    plan = made()
    change(plan)
    refused(lambda: check_plan(plan, "plan.json"), "plan.json", words)


def test_an_ablation_is_the_same_plan_with_more_systems():
    plain, plan = made(), made(ablation="true")
    assert [s for s in plan.systems if not s.point] == plain.systems and plan.targets[:3] == plain.targets
    assert list(plan.main_systems()) == plain.systems
    points = by_name(plan.ablation.points)
    # what the main run trains is taken from there
    assert [run.system for run in points["hard"].runs] == ["baseline", "ablation/hard/seed_2", "ablation/hard/seed_3"]
    assert points["k20"].runs[0].system == "student_essence" and points["all"].runs[0].system == "student_full"
    assert points["k5"].runs[0].system == "ablation/k5/seed_1"
    of_point = by_name(plan.systems)["ablation/k5_residual/seed_2"]
    assert (of_point.role, of_point.seed, of_point.mass, of_point.chooses_scale) == ("student", 2, "residual", False)
    assert of_point.twin == "ablation/hard/seed_2"
    assert [t.keep for t in plan.targets] == [True] * 3 + [False] * (len(plan.targets) - 3)
    # every point with its first seed, then every one with its second
    seeds = [s.seed for s in plan.systems if s.point]
    assert seeds == sorted(seeds)
    # another main run has other points in it
    other = by_name(made(ablation="true", top_k="5").ablation.points)
    assert other["k5"].runs[0].system == "student_essence" and other["k20"].runs[0].system == "ablation/k20/seed_1"


def test_targets_are_pruned_from_the_wide_archive_unless_the_rule_needs_more():
    targets = by_name(made(ablation="true").targets)
    sources = {name.rpartition("/")[2]: (t.source, len(t.teachers)) for name, t in targets.items()}
    assert sources["k5"] == sources["p0.9"] == sources["min0.01"] == ("wide", 2)
    assert sources["random0.1_keep"] == ("full", 2)  # a value below the largest may survive
    assert sources["agree2-k20"] == (None, 2) and sources["k20_teachers1"] == (None, 1)
