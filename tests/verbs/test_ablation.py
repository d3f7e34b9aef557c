"""The ablation: what a grid expands to, what is taken from the main run, and what the figures over seeds say."""
from __future__ import annotations

import argparse
import json
import math
import random
import re
import shlex

import numpy as np
import pytest
import yaml
from builders import ROOT

from essence_kd.am.models.registry import model_settings
from essence_kd.am.settings import TrainSettings
from essence_kd.cli import dump_post, prune_post
from essence_kd.cli.main import main
from essence_kd.distill.essence import EssenceSettings
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import sha256_file
from essence_kd.io.settings import load_settings, to_dict
from essence_kd.score import ablation
from essence_kd.score.grid import GridSettings, expand, write_plan

MODEL = ROOT / "conf" / "models" / "student_tdnn.yaml"
SETS = {"dev": 0.8, "eval_swbd": 1.0, "eval_che": 1.5}
WORDS = "yeah i think so you know it was like really good we went to the lake and my brother called".split()


def names(points, seeds=(1,)):
    grid = GridSettings(list(seeds), points)
    return {p.name: s for p, s in expand(grid, EssenceSettings(), 3, "grid")}


# ---- the grid

def test_lists_are_multiplied_and_equal_points_are_one():
    found = names([{"select": ["all", "top-k"], "soft_weight": [0.5, 0.9]}, {"top_k": [20, 5], "seeds": [1, 4]},
                   {"select": "hard", "soft_weight": [0.1, 0.2], "mass": "keep"}], seeds=[1, 2])
    assert found == {"all_a0.5": [1, 2], "all": [1, 2], "k20_a0.5": [1, 2], "k20": [1, 2, 4], "k5": [1, 4],
                     "hard": [1, 2]}


def test_a_name_says_what_differs_and_nothing_that_the_rule_ignores():
    found = names([{"select": "top-p", "top_p": 0.9, "top_k": 7, "mass": "keep"},
                   {"select": "min-post", "min_post": 0.001}, {"select": "random-prune", "min_post": 0.1, "seed": 4}, {"select": "agree", "agree": 2, "top_k": 5},
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


# ---- an experiment as the main run leaves it

def write_system(path, rate, refs, rng, scale=0.5):
    for name, factor in SETS.items():
        out = path / f"decode_{name}"
        out.mkdir(parents=True)
        hyp = {u: [w if rng.random() > rate * factor else "wrong" for w in words] for u, words in refs[name].items()}
        for file, table in (("ref.txt", refs[name]), ("hyp.txt", hyp)):
            (out / file).write_text("".join(" ".join([u, *w]) + "\n" for u, w in table.items()))
        (out / "decode.json").write_text(json.dumps({"acoustic_scale": scale, "word_insertion_penalty": -1.0,
                                                     "wall_seconds": 4.0}))
    (path / "decode_dev" / ".done").write_text("x\n")


def write_model(path, seed, soft=None):
    settings = load_settings(TrainSettings, MODEL, [f"seed={seed}"])
    train = {k: v for k, v in to_dict(settings).items() if k not in ("arch", "model", "frame_subsampling_factor")}
    del train["checkpoint"]  # as an older version left it
    (path / "model.yaml").write_text(yaml.safe_dump(
        {"arch": settings.arch, "model": model_settings(settings.arch, settings.model, "x"), "train": train}))
    (path / "info.json").write_text(json.dumps({"seconds": 100.0, "fingerprint": {
        "soft targets": sha256_file(soft)[:16] if soft else "none"}}))
    (path / ".done").write_text("x\n")


@pytest.fixture
def experiment(tmp_path):
    """exp/x with teachers, posteriors, essence, three students of seed 1, and the texts of a test set."""
    exp, data, rng = tmp_path / "exp", tmp_path / "data", random.Random(1)
    refs = {}
    for name in SETS:
        refs[name] = {f"{name}{s:02d}-{t}": [rng.choice(WORDS) for _ in range(8)] for s in range(10) for t in range(5)}
        (data / name).mkdir(parents=True)
        (data / name / "utt2spk").write_text("".join(f"{u} {u[:-2]}\n" for u in refs[name]))
    (exp / "posteriors").mkdir(parents=True)
    (exp / "essence_k20").mkdir()
    common = {"num_frames": 1000, "num_pdfs": 50, "temperature": 1.0, "combine": "mean", "models": [{}, {}, {}]}
    (exp / "posteriors" / "wide.json").write_text(json.dumps({**common, "kind": "wide"}))
    (exp / "posteriors" / "full.json").write_text(json.dumps({**common, "kind": "dense", "num_entries": 50000}))
    (exp / "posteriors" / "full.scp").write_text("a full.ark:2\n")
    (exp / "essence_k20" / "post.scp").write_text("a post.ark:2\n")
    (exp / "essence_k20" / "essence.json").write_text(json.dumps(
        {**common, "kind": "essence", "selection": "top-k", "k": 20, "mass": "renorm", "num_entries": 20000,
         "mean_mass": 0.97}))
    (exp / "scales.json").write_text(json.dumps({"best": {"acoustic_scale": 0.5, "word_insertion_penalty": -1.0}}))
    for name, rate, soft in (("ensemble", 0.1, None), ("baseline", 0.3, None),
                             ("student_full", 0.2, "posteriors/full.scp"),
                             ("student_essence", 0.2, "essence_k20/post.scp")):
        write_system(exp / name, rate, refs, rng)
        if name != "ensemble":
            write_model(exp / name, 1, soft and exp / soft)
    return exp, data, refs


def plan(exp, points, seeds=(1,), **options):
    grid = exp / "grid.yaml"
    grid.write_text(yaml.safe_dump({"seeds": list(seeds), "points": points}))
    given = {"model_yaml": MODEL, "essence_yaml": ROOT / "conf" / "essence.yaml", "feats": exp / "feats.scp", **options}
    return write_plan(grid, exp, exp / "ablation", **given)


def lines(exp, file):
    return [line.split("\t") for line in (exp / "ablation" / file).read_text().splitlines()]


def test_what_the_main_run_has_is_taken_and_only_that(experiment):
    exp, _, _ = experiment
    grid = [{"select": ["hard", "all", "top-k"]}, {"top_k": 5}, {"soft_weight": 0.5}, {"mass": "keep"}]
    found = {p["name"]: p["from"] for p in plan(exp, grid, [1, 2])["points"]}
    assert found == {"hard": {"1": "baseline"}, "all": {"1": "student_full"}, "k20": {"1": "student_essence"}, "k5": {},
                     "k20_a0.5": {}, "k20_keep": {}}
    rows = {r[0]: r[1:] for r in lines(exp, "points.tsv")}
    assert [name[-1] for name in rows] == 6 * ["1"] + 6 * ["2"]  # a first picture of everything comes early
    assert rows["hard/seed_1"] == ["-", "baseline", "122", "1", "0.9", "1.0", "renorm"]
    assert rows["k20_a0.5/seed_2"] == ["k20", "-", "122", "2", "0.5", "1.0", "renorm"]
    assert plan(exp, grid, overrides=["top_k=7"])["points"][2]["name"] == "k7"
    (exp / "scales.json").write_text(json.dumps({"best": {"acoustic_scale": 0.4, "word_insertion_penalty": -1.0}}))
    assert not any(p["from"] for p in plan(exp, grid)["points"])  # decoded at another setting


def test_systems_are_taken_only_if_they_were_rescored_as_points_will_be(experiment):
    exp, _, _ = experiment
    assert plan(exp, [{"select": "hard"}], rescored=True)["points"][0]["from"] == {}
    for path in (exp / "baseline").glob("decode_*/decode.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "rescoring": {"order": 4}}))
    assert plan(exp, [{"select": "hard"}], rescored=True)["points"][0]["from"] == {"1": "baseline"}
    assert plan(exp, [{"select": "hard"}])["points"][0]["from"] == {}


def test_another_student_is_not_taken(experiment, tmp_path):
    exp, _, _ = experiment
    other = tmp_path / "other.yaml"
    other.write_text(re.sub("hidden: .*", "hidden: 161", MODEL.read_text()))
    assert plan(exp, [{"select": "hard"}])["points"][0]["from"] == {"1": "baseline"}
    assert plan(exp, [{"select": "hard"}], model_yaml=other)["points"][0]["from"] == {}
    (exp / "essence_k20" / "post.scp").write_text("b post.ark:2\n")  # not what the student was trained on
    assert plan(exp, [{}])["points"][0]["from"] == {}


def test_targets_are_pruned_from_the_wide_archive_unless_the_rule_needs_more(experiment):
    exp, _, _ = experiment
    plan(exp, [{"select": "hard"}, {"select": "all"}, {"top_k": 5, "soft_weight": [0.5, 0.9]},
               {"select": "random-prune"}, {"select": "agree"}, {"select": ["all", "top-k"], "teachers": "1 3"}])
    made = {name: command for name, _, command in lines(exp, "targets.tsv")}
    assert list(made) == ["all", "k5", "random0.01", "agree2-k20", "all_teachers1+3", "k20_teachers1+3"]
    assert made["all"] == "-"
    assert made["k5"].startswith("essence prune-post ") and f"scp:{exp}/posteriors/wide.scp" in made["k5"]
    assert f"scp:{exp}/posteriors/full.scp" in made["random0.01"]
    assert "--fuse" in made["agree2-k20"] and "--agree 2" in made["agree2-k20"]
    assert f"{exp}/teacher_3" in made["agree2-k20"]
    assert "--keep all" in made["all_teachers1+3"] and f"{exp}/teacher_2" not in made["all_teachers1+3"]
    for command in made.values():
        if command != "-":  # the verb takes every option
            _, verb, *options = shlex.split(command)
            parser = argparse.ArgumentParser()
            {"prune-post": prune_post, "dump-post": dump_post}[verb].add_arguments(parser)
            parser.parse_args(options)


def test_a_run_without_wide_posteriors_is_told_so(experiment, capsys):
    exp, _, _ = experiment
    (exp / "posteriors" / "wide.json").unlink()
    grid = exp / "grid.yaml"
    grid.write_text("points: [{select: hard}]\n")
    options = ["--model", str(MODEL), "--feats", "x", str(grid), str(exp), str(exp / "ablation")]
    assert main(["plan-ablation", *options]) == 1
    assert "wide posteriors of stage 6" in capsys.readouterr().err


# ---- the figures

def test_means_and_differences_are_what_a_recount_finds(experiment):
    exp, data, refs = experiment
    plan(exp, [{"select": ["hard", "all", "top-k"]}, {"top_k": 5}], [1, 2, 3])
    rng = random.Random(5)
    for point, rate in (("hard", 0.3), ("k20", 0.2), ("k5", 0.25)):
        for seed in (1, 2, 3):
            if (point, seed) not in (("hard", 1), ("k20", 1)):
                write_system(exp / "ablation" / point / f"seed_{seed}" / "student", rate, refs, rng)
    options = ["--draws", "500", "--data-dir", str(data), str(exp), str(exp / "ablation")]
    assert main(["report-ablation", "--against", "k5", *options]) == 0
    found = json.loads((exp / "ablation" / "results.json").read_text())
    assert {n: p["seeds"] for n, p in found["points"].items()} == {"hard": [1, 2, 3], "all": [1], "k20": [1, 2, 3],
                                                                   "k5": [1, 2, 3], "ensemble": [0]}
    assert found["waiting"] == ["all/seed_2", "all/seed_3"]

    def rate(path, sets):
        wrong = total = 0
        for name in sets:
            for line in (path / f"decode_{name}" / "hyp.txt").open():
                words = line.split()[1:]
                wrong, total = wrong + words.count("wrong"), total + len(words)
        return 100 * wrong / total

    tests = ["eval_swbd", "eval_che"]
    places = {(p, s): exp / "ablation" / p / f"seed_{s}" / "student" for p in ("hard", "k20", "k5") for s in (1, 2, 3)}
    places.update({("hard", 1): exp / "baseline", ("k20", 1): exp / "student_essence"})
    each = {p: [rate(places[p, s], tests) for s in (1, 2, 3)] for p in ("hard", "k20", "k5")}
    for point, rates in each.items():
        shown = found["points"][point]["wer"]["total"]
        assert shown["each_seed"] == pytest.approx(rates, abs=1e-3)
        assert shown["wer"] == pytest.approx(np.mean(rates), abs=1e-3)
        reach = 4.302652729911275 * np.std(rates, ddof=1) / math.sqrt(3)
        assert shown["interval"] == pytest.approx([np.mean(rates) - reach, np.mean(rates) + reach], abs=1e-3)
    rows = {(c["a"], c["b"], c["set"]): c for c in found["comparisons"]}
    row = rows["k20", "hard", "total"]
    assert row["diff"] == pytest.approx(np.mean(each["k20"]) - np.mean(each["hard"]), abs=1e-3)
    assert row["low"] < row["diff"] < row["high"] < 0 and row["p"] < 0.05 and row["seeds"] == [1, 2, 3]
    assert row["each_seed"] == pytest.approx(np.subtract(each["k20"], each["hard"]), abs=1e-3)
    assert rows["k5", "all", "dev"]["seeds"] == [1] and rows["k5", "all", "dev"]["p_seeds"] is None
    assert rows["k5", "ensemble", "total"]["seeds"] == [1, 2, 3] and rows["k5", "ensemble", "total"]["diff"] > 0
    assert found["points"]["k20"]["entries_per_frame"] == 20 and found["points"]["k20"]["retained_mass"] == 0.97
    dev = {n: found["points"][n]["wer"]["dev"]["wer"] for n in ("all", "k20", "k5")}
    assert found["best_on_dev"] == min(dev, key=dev.get)
    against, turned = rows["k20", "k5", "total"], rows["hard", "k5", "total"]["diff"]
    assert against["diff"] == pytest.approx(np.mean(each["k20"]) - np.mean(each["k5"]), abs=1e-3) and turned > 0
    text = (exp / "ablation" / "RESULTS").read_text()
    assert "less k5 " in text
    assert f"{np.mean(each['k20']):.2f}" in text and "less baseline (hard)" in text and "Not decoded yet: 2" in text
    assert main(["report-ablation", "--dev-set", "eval_che", *options]) == 0  # all other sets are test sets
    found = json.loads((exp / "ablation" / "results.json").read_text())
    assert found["points"]["k20"]["wer"]["total"]["each_seed"] == pytest.approx(
        [rate(places["k20", s], ["eval_swbd", "dev"]) for s in (1, 2, 3)], abs=1e-3)


def test_seeds_widen_an_interval_as_their_spread_demands():
    rng = np.random.default_rng(1)
    offsets = np.array([-1.0, 0.0, 2.5])
    drawn = np.broadcast_to(offsets, (20000, 3))  # no spread over speakers: all of it comes from the seeds
    found = ablation.over_seeds(drawn, rng)
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert found.std() == pytest.approx(np.std(offsets, ddof=1) / math.sqrt(3), rel=0.02)
    one = rng.normal(size=(100, 1))
    assert np.array_equal(ablation.over_seeds(one, rng), one[:, 0])


def test_student_s_t_agrees_with_the_tables():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    low, high = ablation.t_interval(values)
    assert (low, high) == pytest.approx((3 - 3.182446 * 1.825742 / 2, 3 + 3.182446 * 1.825742 / 2), abs=1e-5)
    assert ablation.t_test(values - low) == pytest.approx(0.05, abs=1e-6)
    assert ablation.t_test(values[:1]) is None and ablation.t_interval(values[:1]) is None
    assert ablation.t_test(np.zeros(3)) == 1.0


def test_points_of_other_data_and_an_empty_ablation_are_refused(experiment, capsys):
    exp, data, refs = experiment
    plan(exp, [{"top_k": 5}])
    assert main(["report-ablation", str(exp), str(exp / "ablation")]) == 1
    assert "no point has been decoded yet" in capsys.readouterr().err
    refs["dev"]["dev00-0"] = ["another"]
    write_system(exp / "ablation" / "k5" / "seed_1" / "student", 0.2, refs, random.Random(1))
    assert main(["report-ablation", "--draws", "9", str(exp), str(exp / "ablation")]) == 1
    assert main(["report-ablation", "--data-dir", str(data), str(exp), str(exp / "ablation")]) == 1
    assert main(["report-ablation", "--against", "k6", str(exp), str(exp / "ablation")]) == 1
    told = capsys.readouterr().err
    (exp / "ablation" / "plan.json").write_text("{}")
    assert main(["report-ablation", str(exp), str(exp / "ablation")]) == 1
    assert "plan.json: has no base that can be read" in capsys.readouterr().err
    assert "--draws 9" in told and "decode all points on the same data" in told
    assert "no decoded point 'k6' (there are: k5, ensemble)" in told
