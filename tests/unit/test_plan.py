"""The plan of a run: what options, recipe and conf/ come to. No process is started."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
from builders import ROOT, refused
from builders.plans import make_plan as plan_of, make_sets, make_system, make_target, student, write

from essence_kd.io.errors import UserError
from essence_kd.plan.build import make_plan
from essence_kd.plan.options import OptionError, Options
from essence_kd.plan.plan import FILE, Ablation, Plan, Point, Run, check_plan, read_plan, write_plan
from essence_kd.plan.recipe import Recipe

OPTIONS = Options(corpus="mini", size="default", engine="native", stage="0", stop_stage="10", nj="2", seed="1",
                  decoder="auto", combine="mean", fuse="false", all_labels="true", ablation="false",
                  grid="conf/ablation.yaml")
RECIPE = Recipe(Path("recipe.conf"), "a corpus", ["default", "tiny"], ["native", "kaldi"],
                "train", "dev", ["fri", "sat"],
                ["found"], {"fri": "FRI"}, "cnn_tdnn blstm", "student_tdnn", "2", "", 6, 100, 4000)
ABLATION = Ablation({"top_k": 20}, [Point("k5", "k = 5", {"top_k": 5}, "essence_k20", [Run(1, "student_essence")])])


def made(recipe=RECIPE, **options) -> Plan:
    return make_plan(replace(OPTIONS, **options), recipe, ROOT, Path("/place"))


def by_name(items):
    return {item.name: item for item in items}


def test_the_usual_run():
    plan = made()
    assert (plan.data, plan.exp) == ("/place/data/mini", "/place/exp/mini")
    assert [(s.name, s.role, s.label) for s in plan.sets] == [
        ("train", "train", "train"), ("dev", "dev", "dev"), ("fri", "test", "FRI"), ("sat", "test", "sat")]
    assert [(s.name, s.role) for s in plan.systems] == [
        ("gmm", "gmm"), ("teacher_1", "teacher"), ("teacher_2", "teacher"), ("ensemble", "ensemble"),
        ("baseline", "twin"),
        ("student_full", "student"), ("student_essence", "student")]
    systems = by_name(plan.systems)
    assert systems["ensemble"].teachers == ["teacher_1", "teacher_2"]
    essence, full = systems["student_essence"], systems["student_full"]
    assert essence.twin == full.twin == "baseline" and systems["baseline"].targets is None
    assert (essence.targets, essence.soft_weight, essence.temperature, essence.mass) == (
        "essence_k20", 0.9, 1.0, "renorm")
    assert (full.targets, full.mass) == ("full", None)
    targets = by_name(plan.targets)
    assert {n: (t.kind, t.stage, t.source, t.scp) for n, t in targets.items()} == {
        "full": ("dense", 6, None, "dense/full.scp"), "wide": ("post", 6, None, "posteriors/wide.scp"),
        "essence_k20": ("post", 7, "wide", "essence_k20/post.scp")}
    assert targets["essence_k20"].options == ["--select", "top-k", "--mass", "renorm", "--top-k", "20"]
    # students have no say in the scale, and the GMM has its own
    assert {s.name for s in plan.systems if not s.chooses_scale} == {"student_full", "student_essence"}
    assert {s.scale_group for s in plan.systems if s.role != "gmm"} == {"networks"}
    assert systems["gmm"].scale_group == "gmm"
    assert {m.name: m.kind for m in plan.models} == dict.fromkeys(
        ["cnn_tdnn", "blstm", "student_tdnn"], "torch")


def test_a_student_of_every_label_comes_when_asked_for():
    plan, without = made(), made(all_labels="false")
    assert [s for s in plan.systems if s.name != "student_full"] == without.systems
    assert [t for t in plan.targets if t.name != "full"] == without.targets


def test_sets_and_systems_are_found_by_role_in_their_order(tmp_path):
    sets = make_sets({"sun": "untranscribed", "fri": "test", "tune": "dev", "mon": "train", "sat": "test"})
    point = make_system("point", "twin", point=True)
    plan = plan_of(tmp_path / "exp" / "x", sets=sets, targets=[], systems=[
        make_system("old", "gmm"), point, make_system("ann", "teacher"), make_system("bob", "teacher")])
    assert plan.sets_of("test", "dev") == ["fri", "tune", "sat"] and plan.dev_set == "tune"
    assert [s.name for s in plan.main_systems()] == ["old", "ann", "bob"]
    assert [s.name for s in plan.main_systems("teacher", "twin")] == ["ann", "bob"]
    assert plan.system("point") is point and plan.target(None) is None
    for call in (plan.system, plan.target):
        with pytest.raises(KeyError):
            call("nobody")


def test_names_are_free_and_roles_are_not():
    plan = plan_of("/x/exp/y", targets=[make_target("soup", "dense")], systems=[
        make_system("gmm", "teacher"), make_system("teacher_1", "ensemble", teachers=["gmm"]),
        make_system("student_essence", "twin", model="baseline"),
        student("full", "soup", "student_essence", model="baseline")])
    assert [s.name for s in plan.main_systems("twin")] == ["student_essence"]
    plan.systems[0].role = "baseline"
    with pytest.raises(UserError, match="^here: the role of system gmm is 'baseline'"):
        check_plan(plan, "here")


def test_size_and_engine_are_in_the_names_of_directories_where_they_are_not_the_usual_ones():
    assert made(size="tiny", engine="kaldi").exp == "/place/exp/mini_tiny_kaldi"


def test_several_students_each_beside_its_twin_and_several_k():
    plan = made(student="student_tdnn cnn_tdnn tdnn_f", top_k="20 5")
    systems = by_name(plan.systems)
    twins = {s.name: s.twin for s in plan.systems if s.role == "student"}
    assert twins == {
        "student_full": "baseline", "student_essence": "baseline", "student_essence_k5": "baseline",
        # the first teacher is the same network on hard labels alone: it is not trained twice
        "student_full_cnn_tdnn": "teacher_1", "student_essence_cnn_tdnn": "teacher_1",
        "student_essence_cnn_tdnn_k5": "teacher_1",
        "student_full_tdnn_f": "baseline_tdnn_f", "student_essence_tdnn_f": "baseline_tdnn_f",
        "student_essence_tdnn_f_k5": "baseline_tdnn_f"}
    assert [s.name for s in plan.systems if s.role == "twin"] == ["baseline", "baseline_tdnn_f"]
    assert systems["student_essence_k5"].targets == "essence_k5"
    for name, twin in twins.items():
        assert (systems[name].model, systems[name].seed) == (systems[twin].model, systems[twin].seed)
    assert len({s.label for s in plan.systems}) == len(plan.systems)


def test_each_student_is_there_without_and_with_untranscribed_audio():
    recipe = replace(RECIPE, untranscribed_sets=["found", "more"], teacher_hears={"found": "found_clean"})
    plan = made(recipe, untranscribed="true", min_confidence="0.4", student="student_tdnn tdnn_lstm")
    assert [(s.name, s.role, s.teacher_hears) for s in plan.sets[4:]] == [
        ("found", "untranscribed", "found_clean"), ("more", "untranscribed", None), ("found_clean", "rendering", None)]
    names = [s.name for s in plan.systems if s.role == "student"]
    assert names == ["student_full", "student_full_untranscribed", "student_essence", "student_essence_untranscribed",
                     "student_full_tdnn_lstm", "student_full_tdnn_lstm_untranscribed", "student_essence_tdnn_lstm",
                     "student_essence_tdnn_lstm_untranscribed"]
    systems, targets = by_name(plan.systems), by_name(plan.targets)
    for name in names[::2]:
        same, more = systems[name], systems[f"{name}_untranscribed"]
        assert more == replace(same, name=more.name, label=f"{same.label}, with untranscribed audio",
                               untranscribed=[same.targets.replace("full", "full_found_lattice").replace(
                                   "k20", "k20_found"), same.targets.replace("full", "full_more_lattice").replace(
                                       "k20", "k20_more")], min_confidence=0.4)
    assert {n: (t.kind, t.scp, t.source, t.sets, t.stage) for n, t in targets.items()} == {
        "full": ("dense", "dense/full.scp", None, ["train"], 6),
        "wide": ("post", "posteriors/wide.scp", None, ["train"], 6),
        "essence_k20": ("post", "essence_k20/post.scp", "wide", ["train"], 7),
        **{f"full_{u}": ("dense", f"dense_{u}/full.scp", None, [u], 6) for u in ("found", "more")},
        **{f"wide_{u}": ("post", f"posteriors_{u}/wide.scp", None, [u], 6) for u in ("found", "more")},
        **{f"full_{u}_lattice": ("dense", f"dense_{u}_lattice/full.scp", f"full_{u}", [u], 7)
           for u in ("found", "more")},
        **{f"wide_{u}_lattice": ("post", f"posteriors_{u}_lattice/wide.scp", f"wide_{u}", [u], 7)
           for u in ("found", "more")},
        **{f"essence_k20_{u}": ("post", f"essence_k20_{u}/post.scp", f"wide_{u}_lattice", [u], 7)
           for u in ("found", "more")}}
    mixed = targets["wide_more_lattice"]
    assert (mixed.select, mixed.options) == ("lattice", ["--weight", "0.75"])
    # what is there without it is as it is without it
    plain = made(student="student_tdnn tdnn_lstm")
    assert [s for s in plan.systems if not s.untranscribed] == plain.systems and plan.targets[:3] == plain.targets
    same = made(recipe, untranscribed="true", teacher_hears="same")
    assert {s.teacher_hears for s in same.sets} == {None} and not same.sets_of("rendering")
    acoustic = made(recipe, untranscribed="true", lattice_weight="0")
    assert not any("lattice" in t.name or t.select == "lattice" for t in acoustic.targets)
    assert by_name(acoustic.targets)["essence_k20_found"].source == "wide_found"
    assert by_name(made(recipe, untranscribed="true", lattice_weight="0.5").targets)["wide_found_lattice"].options == [
        "--weight", "0.5"]
    only = made(recipe, untranscribed="only", student="student_tdnn tdnn_lstm")
    wanted = made(recipe, untranscribed="true", student="student_tdnn tdnn_lstm")
    assert only.targets == wanted.targets
    assert only.systems == [s for s in wanted.systems if s.role != "student" or s.untranscribed]
    recipes = replace(recipe, untranscribed="only")
    assert made(recipes, student="student_tdnn tdnn_lstm").systems == only.systems
    assert not any(s.untranscribed for s in made(recipes, untranscribed="false").systems)
    fused = made(recipe, untranscribed="true", fuse="true", all_labels="false", student="student_tdnn")
    assert [(t.name, t.stage, t.source) for t in fused.targets] == [
        (f"essence_k20{u}", 6, None) for u in ("", "_found", "_more")]


def test_fused_targets_have_no_archive_to_be_pruned_from():
    plan = made(fuse="true", all_labels="false")
    assert [(t.name, t.stage, t.source) for t in plan.targets] == [("essence_k20", 6, None)]
    assert "student_full" not in by_name(plan.systems)
    with pytest.raises(OptionError, match="one --top-k"):
        made(fuse="true", all_labels="false", top_k="5 20")


def test_options_win_over_the_recipe_and_conf():
    assert [made(recipe=replace(RECIPE, lm_prune="1e-6"), lm_prune=p).lm_prune for p in ("", "0")] == [1e-6, 0]
    assert [made(recipe=replace(RECIPE, num_leaves=9), num_leaves=n).num_leaves for n in ("", "7")] == [9, 7]
    plan = made(top_k="7", temperature="2", soft_weight="0.5", lm_order="3", rescore_lm_order="4",
                teachers="blstm", student="tdnn_lstm", seed="9")
    essence = by_name(plan.systems)["student_essence"]
    assert (essence.targets, essence.temperature, essence.soft_weight, essence.model, essence.seed) == (
        "essence_k7", 2.0, 0.5, "tdnn_lstm", 9)
    assert (plan.lm_order, plan.rescore_lm_order, plan.seed) == (3, 4, 9)
    assert [s.model for s in plan.systems if s.role == "teacher"] == ["blstm"]
    assert made(rescore_lm_order="0", recipe=replace(RECIPE, rescore_lm_order="4")).rescore_lm_order == 0
    assert made(teachers="torch").systems == made().systems
    nnet3 = made(teachers="nnet3", engine="kaldi")
    assert [m.kind for m in nnet3.models] == ["nnet3"] * 3 + ["torch"]


@pytest.mark.parametrize("options, words", [
    ({"temperature": "0"}, "--temperature must be above 0"),
    ({"soft_weight": "2"}, "--soft-weight must be from 0 to 1"),
    ({"teachers": "blstm blstm"}, "names blstm twice"),
    ({"student": "student_tdnn student_tdnn"}, "names a model twice"),
    ({"student": "nnet3/tdnn", "engine": "kaldi"}, "students are models of conf/models"),
    ({"student": "nnet3/tdnn"}, "student nnet3/tdnn: students are models of conf/models"),
    ({"recipe_options": {"fsdd_dir": ""}}, "corpus mini has no option --fsdd-dir"),
    ({"untranscribed": "yes"}, "--untranscribed takes false, true or only, not 'yes'"),
    ({"min_confidence": "0.5"}, "--min-confidence is of the utterances of --untranscribed true or only"),
    ({"lattice_weight": "0.5"}, "--lattice-weight is of the utterances of --untranscribed true or only"),
    ({"lattice_weight": "2", "untranscribed": "true"}, "--lattice-weight is 2, but must be from 0 to 1"),
    ({"lattice_weight": "1", "untranscribed": "true", "fuse": "true", "all_labels": "false"},
     "--lattice-weight is of the wide archive"),
    ({"teacher_hears": "found=clean", "untranscribed": "true"}, "--teacher-hears 'found=clean': neither same nor"),
    ({"min_confidence": "2", "untranscribed": "true"}, "--min-confidence is 2, but must be from 0 to 1"),
    ({"untranscribed": "true", "recipe": replace(RECIPE, untranscribed_sets=[])},
     "corpus mini has no untranscribed audio: recipe.conf names no untranscribed_sets"),
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


@pytest.mark.parametrize("spoil, words", [
    (lambda p: p.unlink(), "no such file; run.sh, or 'essence plan', writes it"),
    (lambda p: p.write_text(p.read_text()[:200]), "not JSON"),
    (lambda p: p.write_bytes(b"\xff\xfe"), "not JSON"),
    (lambda p: p.write_text("[]"), "expected a JSON object"),
    (lambda p: p.write_text("{}"), "missing key 'corpus'"),
])
def test_a_file_that_is_no_plan_is_refused_by_name(tmp_path, spoil, words):
    path = tmp_path / "exp" / "x" / "plan.json"
    write(plan_of(path.parent))
    spoil(path)
    refused(lambda: read_plan(path.parent), f"{path}: ", words)


@pytest.mark.parametrize("change, words", [
    (lambda v: v.update(seeds=1), "unknown key 'seeds'; did you mean 'seed'?"),
    (lambda v: v.update(seed="one"), "seed: expected a whole number, found 'one'"),
    (lambda v: v.pop("decoder"), "missing key 'decoder'"),
    (lambda v: v.update(systems=[1]), "systems[0]: expected a group of settings"),
    (lambda v: v["systems"][3].pop("role"), "systems[3]: missing key 'role'"),
    (lambda v: v["systems"][3].update(role="boss"), "the role of system ensemble is 'boss', none of gmm, teacher"),
    (lambda v: v["systems"][3].update(teachers=["ann"]), "a teacher of system ensemble is 'ann', none of gmm"),
    (lambda v: v["systems"][3].update(name="gmm"), "system 'gmm' comes twice"),
    (lambda v: v["systems"][4].update(model="big"), "the model of system baseline is 'big'"),
    (lambda v: v["systems"][5].update(targets="empty"), "the targets of system student_full is 'empty'"),
    (lambda v: v["systems"][5].update(twin="alice"), "the twin of system student_full is 'alice'"),
    (lambda v: v["systems"][5].update(twin=None, targets=None), "student student_full has neither targets nor a twin"),
    (lambda v: v["sets"][0].update(role="tests"), "the role of set train is 'tests', none of train, dev"),
    (lambda v: v["sets"][2].update(role="dev"), "exactly one set must have the role dev"),
    (lambda v: v["sets"].pop(0), "exactly one set must have the role train"),
    (lambda v: v["sets"][3].update(name="dev"), "set 'dev' comes twice"),
    (lambda v: v["targets"][0].update(kind="sparse"), "the kind of target full is 'sparse', none of dense, post"),
    (lambda v: v["targets"][2].update(source="narrow"), "the source of target essence_k20 is 'narrow'"),
    (lambda v: v["targets"][2].update(teachers=["ann"]), "a teacher of target essence_k20 is 'ann'"),
    (lambda v: v["targets"][2].update(sets=["fri"]), "a set of target essence_k20 is 'fri'"),
    (lambda v: v["targets"][1].update(name="full"), "target 'full' comes twice"),
    (lambda v: v["sets"][2].update(teacher_hears="moon"), "the rendering of set eval_swbd is 'moon'"),
    (lambda v: v["systems"][5].update(untranscribed=["some"]), "targets of untranscribed audio of system student_full"),
    (lambda v: v["systems"][5].update(untranscribed=["full"]), "is of ['train'], and must be of one untranscribed set"),
    (lambda v: v["models"].append(v["models"][0]), "model 'teacher_1' comes twice"),
    (lambda v: v["ablation"]["points"][0]["runs"][0].update(system="k5"), "a system of point k5 is 'k5'"),
    (lambda v: v["ablation"]["points"][0].update(targets="k5"), "the targets of point k5 is 'k5'"),
    (lambda v: v["ablation"]["points"][0]["runs"][0].update(seed=None), "runs[0]: seed: expected a whole"),
])
def test_a_damaged_plan_is_refused_by_file_and_field(tmp_path, change, words):
    path = tmp_path / "exp" / "x" / "plan.json"
    write(plan_of(path.parent, ablation=ABLATION))
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    refused(lambda: read_plan(path), f"{path}: ", words)


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
