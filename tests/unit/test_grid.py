"""The grid of an ablation: what it expands to, and which systems and targets its points share with the main run."""
from __future__ import annotations

import argparse

import pytest
from builders import ROOT, refused
from builders.plans import make_recipe, planned

from essence_kd.cli import dump_post, prune_post
from essence_kd.distill.essence import EssenceSettings
from essence_kd.io.errors import UserError
from essence_kd.io.settings import load_settings
from essence_kd.plan.grid import GridSettings, expand
from essence_kd.plan.options import OptionError


def names(points, seeds=(1,)):
    grid = GridSettings(list(seeds), points)
    return {p.name: s for p, s in expand(grid, EssenceSettings(), 3, "grid")}


# ---- points

def test_lists_are_multiplied_and_equal_points_are_one():
    found = names([{"select": ["all", "top-k"], "soft_weight": [0.5, 0.9]}, {"top_k": [20, 5], "seeds": [1, 4]},
                   {"select": "hard", "soft_weight": [0.1, 0.2], "mass": "keep"}], seeds=[1, 2])
    assert found == {"all_a0.5": [1, 2], "all": [1, 2], "k20_a0.5": [1, 2], "k20": [1, 2, 4], "k5": [1, 4],
                     "hard": [1, 2]}


def test_a_name_says_what_differs_and_nothing_that_the_rule_ignores():
    found = names([{"select": "top-p", "top_p": 0.9, "top_k": 7, "mass": "keep"},
                   {"select": "min-post", "min_post": 0.001}, {"select": "random-prune", "min_post": 0.1, "seed": 4},
                   {"select": "agree", "agree": 2, "top_k": 5},
                   {"teachers": ["3 1", "1 2 3", 2]}, {"temperature": 2, "soft_weight": 1, "mass": "residual"},
                   {"select": "all", "mass": "keep", "teachers": "2"}])
    assert list(found) == ["p0.9_keep", "min0.001", "random0.1_draw4", "agree2-k5", "k20_teachers1+3", "k20",
                           "k20_teachers2", "k20_residual_T2_a1", "all_teachers2"]


@pytest.mark.parametrize("points, words", [
    ([{"top-k": 5}], "unknown key 'top-k'; did you mean 'top_k'"),
    ([{"select": "best"}], "select: 'best' is none of"),
    ([{"top_k": 0}], "top_k must be 1 or more"),
    ([{"teachers": "4"}], "numbers of the 3 teachers"),
    ([{"teachers": "one"}], "neither 'all' nor numbers"),
    ([{"seeds": []}], "expected a list of whole numbers"),
    ([], "no point in the grid"),
])
def test_grids_without_meaning_are_refused(points, words):
    with pytest.raises(UserError, match=words):
        names(points)


def test_the_grid_of_the_recipe_is_sound():
    grid = load_settings(GridSettings, ROOT / "conf" / "ablation.yaml")
    base = load_settings(EssenceSettings, ROOT / "conf" / "essence.yaml")
    found = {p.name for p, _ in expand(grid, base, 3, "grid")}
    assert {"hard", "all", "k1", "k2", "k5", "k10", "k20", "k40", "k100"} <= found and len(found) > 20


# ---- the plan

def runs(plan):
    """The systems of every point: point -> seed -> system."""
    return {point.name: {run.seed: run.system for run in point.runs} for point in plan.ablation.points}


def test_equal_points_and_systems_of_the_main_run_are_one_system(tmp_path):
    grid = [{"select": ["hard", "all", "top-k"]}, {"top_k": 5}, {"soft_weight": 0.5}, {"mass": "keep"}]
    plan = planned(tmp_path, grid, [1, 2])
    assert {name: seeds[1] for name, seeds in runs(plan).items()} == {
        "hard": "baseline", "all": "student_full", "k20": "student_essence", "k5": "ablation/k5/seed_1",
        "k20_a0.5": "ablation/k20_a0.5/seed_1", "k20_keep": "ablation/k20_keep/seed_1"}
    assert {name: seeds[2] for name, seeds in runs(plan).items()} == {
        name: f"ablation/{name}/seed_2" for name in ("hard", "all", "k20", "k5", "k20_a0.5", "k20_keep")}
    more = [s for s in plan.systems if s.point]
    assert [s.seed for s in more] == 3 * [1] + 6 * [2]  # a first picture of everything comes early
    keys = ("model", "seed", "targets", "soft_weight", "temperature", "mass", "loss")
    trained = [tuple(getattr(s, key) for key in keys) for s in plan.systems if s.model]
    assert len(set(trained)) == len(trained)  # nothing is trained twice
    hard, k20 = plan.system("ablation/hard/seed_2"), plan.system("ablation/k20_a0.5/seed_2")
    assert (hard.role, *(getattr(hard, key) for key in keys)) == ("twin", "student_tdnn", 2, *5 * [None])
    assert (k20.role, *(getattr(k20, key) for key in keys)) == \
        ("student", "student_tdnn", 2, "essence_k20", 0.5, 1.0, "renorm", None)
    assert k20.twin == hard.name and plan.system("ablation/k5/seed_1").twin == "baseline"
    assert {s.scale_group for s in plan.systems if s.model} == {"networks"}  # all are decoded at one setting
    assert not any(s.chooses_scale for s in more)


def test_points_with_untranscribed_audio_and_the_twin_that_had_its_one_best_labels(tmp_path):
    grid = [{"select": ["hard", "all", "top-k"], "untranscribed": [False, True]},
            {"select": "random-prune", "min_post": 0.1, "untranscribed": True}]
    recipe = make_recipe(untranscribed_sets=["found"])
    plan = planned(tmp_path, grid, recipe=recipe, untranscribed="true")
    assert {name: seeds[1] for name, seeds in runs(plan).items()} == {
        "hard": "baseline", "hard_untranscribed": "ablation/hard_untranscribed/seed_1", "all": "student_full",
        "all_untranscribed": "student_full_untranscribed", "k20": "student_essence",
        "k20_untranscribed": "student_essence_untranscribed",
        "random0.1_untranscribed": "ablation/random0.1_untranscribed/seed_1"}
    control = plan.system("ablation/hard_untranscribed/seed_1")
    assert (control.role, control.targets, control.soft_weight, control.temperature, control.mass, control.twin,
            control.untranscribed) == ("student", None, None, 1.0, "renorm", "baseline",
                                       ["ablation/targets/one_best_found"])
    labels = plan.target("ablation/targets/one_best_found")
    assert labels.options == ["--select", "top-k", "--mass", "renorm", "--top-k", "1"] and \
        labels.source == "wide_found_lattice"
    assert labels.sets == ["found"] and not labels.keep
    # whatever a rule is applied to is there of the other audio, too; nothing else is made for the control alone
    assert plan.target("ablation/targets/random0.1_found").source == "full_found_lattice"
    assert "ablation/targets/one_best" not in [t.name for t in plan.targets]
    points = {p.name: p for p in plan.ablation.points}
    assert points["hard_untranscribed"].label == \
        "Hard labels alone (baseline), one-best labels of untranscribed audio"
    assert points["k20_untranscribed"].settings["untranscribed"] is True
    assert "untranscribed" not in points["k20"].settings
    # of a run without such audio, the grid has the other points
    assert list(runs(planned(tmp_path, grid, recipe=recipe))) == ["hard", "all", "k20"]
    refused(lambda: planned(tmp_path, [{"untranscribed": "yes"}], recipe=recipe, untranscribed="true"), "point 1",
            "untranscribed: expected true, false or names of untranscribed sets of the run (found), found 'yes'")


def test_points_with_some_of_the_untranscribed_sets_and_with_other_weights_of_their_lattices(tmp_path):
    grid = [{"untranscribed": ["found", True, "more found"]}, {"untranscribed": True, "lattice_weight": [0, 0.5]}]
    recipe = make_recipe(untranscribed_sets=["found", "more"])
    plan = planned(tmp_path, grid, recipe=recipe, untranscribed="only")
    assert {name: seeds[1] for name, seeds in runs(plan).items()} == {
        "k20_found": "ablation/k20_found/seed_1", "k20_untranscribed": "student_essence_untranscribed",
        "k20_untranscribed_l0": "ablation/k20_untranscribed_l0/seed_1",
        "k20_untranscribed_l0.5": "ablation/k20_untranscribed_l0.5/seed_1"}
    sources = {name: [plan.target(t).source for t in plan.system(f"ablation/{name}/seed_1").untranscribed]
               for name in ("k20_found", "k20_untranscribed_l0", "k20_untranscribed_l0.5")}
    assert sources == {"k20_found": ["wide_found_lattice"], "k20_untranscribed_l0": ["wide_found", "wide_more"],
                       "k20_untranscribed_l0.5": ["wide_found_lattice_l0.5", "wide_more_lattice_l0.5"]}
    assert plan.target("wide_found_lattice_l0.5").options == ["--weight", "0.5"]
    assert len({t.scp for t in plan.targets}) == len(plan.targets)
    points = {p.name: p for p in plan.ablation.points}
    assert points["k20_found"].label == "k = 20, with found"
    assert points["k20_found"].settings["untranscribed"] == "found"
    assert points["k20_untranscribed_l0"].label == "k = 20, with untranscribed audio, without lattices"
    for point in ({"lattice_weight": 0.5}, {"untranscribed": True, "lattice_weight": 2}):
        refused(lambda: planned(tmp_path, [point], recipe=recipe, untranscribed="only"),  # noqa: B023
                "point 1: lattice_weight: expected a number from 0 to 1, with untranscribed")


def test_the_same_point_twice_in_a_grid_has_one_system_a_seed(tmp_path):
    grid = [{"top_k": [5, 5]}, {"top_k": 5, "select": "top-k", "seeds": [3, 1]}, {"mass": "renorm"}]
    plan = planned(tmp_path, grid, [1, 2])
    assert runs(plan) == {"k5": {seed: f"ablation/k5/seed_{seed}" for seed in (1, 2, 3)},
                          "k20": {1: "student_essence", 2: "ablation/k20/seed_2"}}
    assert [t.name for t in plan.targets] == ["full", "wide", "essence_k20", "ablation/targets/k5"]


def test_points_follow_what_run_sh_was_asked_for(tmp_path):
    plan = planned(tmp_path, [{}, {"top_k": 20}, {"soft_weight": 0.9}], top_k="7", soft_weight="0.6", seed="4")
    assert runs(plan) == {"k7": {1: "ablation/k7/seed_1"}, "k20": {1: "ablation/k20/seed_1"},
                          "k7_a0.9": {1: "ablation/k7_a0.9/seed_1"}}  # the main run has seed 4
    assert runs(planned(tmp_path, [{}], [4], top_k="7", seed="4")) == {"k7": {4: "student_essence"}}
    several = planned(tmp_path, [{"top_k": [20, 5, 1]}], top_k="20 5")
    assert [seeds[1] for seeds in runs(several).values()] == ["student_essence", "student_essence_k5",
                                                              "ablation/k1/seed_1"]


def test_another_student_or_loss_is_another_system(tmp_path):
    grid = [{"select": ["hard", "top-k"]}, {"select": ["hard", "top-k"], "student": "tdnn_f"},
            {"loss": "reverse-kl"}]
    plan = planned(tmp_path, grid)
    found = {name: plan.system(seeds[1]) for name, seeds in runs(plan).items()}
    assert list(found) == ["hard", "k20", "hard_tdnn_f", "k20_tdnn_f", "k20_reverse-kl"]
    assert [s.name for s in found.values()][:2] == ["baseline", "student_essence"]
    other, student, loss = list(found.values())[2:]
    assert (other.role, other.model, other.point) == ("twin", "tdnn_f", True)
    assert (student.model, student.targets, student.twin) == ("tdnn_f", "essence_k20", other.name)
    assert (loss.model, loss.loss, loss.targets, loss.twin) == ("student_tdnn", "reverse-kl", "essence_k20", "baseline")
    two = planned(tmp_path, grid, student="student_tdnn tdnn_f")  # the main run has both
    assert [seeds[1] for seeds in runs(two).values()] == ["baseline", "student_essence", "baseline_tdnn_f",
                                                          "student_essence_tdnn_f", "ablation/k20_reverse-kl/seed_1"]


def test_a_student_has_the_twin_of_its_network_and_seed_wherever_the_grid_has_it(tmp_path):
    plan = planned(tmp_path, [{"top_k": 5, "seeds": [1, 2, 3]}, {"select": "hard"}, {"top_k": 2}], [2])
    assert [plan.system(f"ablation/k5/seed_{seed}").twin for seed in (1, 2, 3)] == [
        "baseline", "ablation/hard/seed_2", None]
    assert plan.system("ablation/k2/seed_2").twin == "ablation/hard/seed_2"


def test_targets_are_pruned_from_the_wide_archive_unless_the_rule_needs_more(tmp_path):
    plan = planned(tmp_path, [{"select": "hard"}, {"select": "all"}, {"top_k": 5, "soft_weight": [0.5, 0.9]},
                              {"select": "random-prune"}, {"select": "agree"},
                              {"select": ["all", "top-k"], "teachers": "1 3"}])
    made = {t.name.replace("ablation/targets/", ""): t for t in plan.targets}
    assert list(made) == ["full", "wide", "essence_k20", "k5", "random0.01", "agree2-k20", "all_teachers1+3",
                          "k20_teachers1+3"]
    assert {name: t.source for name, t in made.items()} == {
        "full": None, "wide": None, "essence_k20": "wide", "k5": "wide", "random0.01": "full", "agree2-k20": None,
        "all_teachers1+3": None, "k20_teachers1+3": None}
    assert [name for name, t in made.items() if not t.keep] == list(made)[3:]  # removed when all points are trained
    assert [name for name, t in made.items() if t.kind == "dense"] == ["full", "all_teachers1+3"]
    assert made["k5"].scp == "ablation/targets/k5/post.scp" and made["all_teachers1+3"].scp.endswith("/full.scp")
    every = ["teacher_1", "teacher_2", "teacher_3"]
    assert made["agree2-k20"].teachers == made["k5"].teachers == every
    assert "--agree 2" in " ".join(made["agree2-k20"].options)
    assert made["all_teachers1+3"].teachers == made["k20_teachers1+3"].teachers == ["teacher_1", "teacher_3"]
    for target in plan.targets:  # the verb takes every option
        parser = argparse.ArgumentParser()
        (prune_post if target.source else dump_post).add_arguments(parser)
        parser.parse_args([*target.options, *(["--feats", "x", "model", "y"] if not target.source else ["x", "y"])])


def test_every_grid_of_the_checkout_makes_a_plan(tmp_path):
    plan = planned(tmp_path, ablation="true")
    assert len(plan.ablation.points) > 20 and runs(plan)["k20"][1] == "student_essence"
    assert planned(tmp_path).ablation is None


def test_a_grid_that_its_run_cannot_have_is_refused(tmp_path):
    refused(lambda: planned(tmp_path, [{"select": "hard"}], fuse="true"), "--ablation prunes the wide archive")
    refused(lambda: planned(tmp_path, [{"teachers": "3"}], recipe=make_recipe(teachers="blstm")),
            "grid.yaml: point 1", "numbers of the 1 teachers")
    with pytest.raises(OptionError, match="no conf/models/nothing.yaml for model 'nothing'"):
        planned(tmp_path, [{"student": "nothing"}])
    with pytest.raises(OptionError, match="no grid 'conf/other.yaml'"):
        planned(tmp_path, ablation="true", grid="conf/other.yaml")
