"""``essence report-ablation``: what the figures over seeds say of the points of a plan."""
from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from builders.plans import make_sets, planned, write

from essence_kd.cli.main import main
from essence_kd.plan.plan import read_plan
from essence_kd.score import ablation

SETS = {"dev": 0.8, "eval_swbd": 1.0, "eval_che": 1.5}
WORDS = "yeah i think so you know it was like really good we went to the lake and my brother called".split()


# ---- an experiment as the stages leave it

def write_system(path, rate, refs, rng, sets=SETS):
    for name in sets:
        out = path / f"decode_{name}"
        out.mkdir(parents=True)
        hyp = {utt: [word if rng.random() > rate * SETS[name] else "wrong" for word in words]
               for utt, words in refs[name].items()}
        for file, table in (("ref.txt", refs[name]), ("hyp.txt", hyp)):
            (out / file).write_text("".join(" ".join([u, *w]) + "\n" for u, w in table.items()))
        (out / "decode.json").write_text(json.dumps({"acoustic_scale": 0.5, "word_insertion_penalty": -1.0}))


@pytest.fixture
def experiment(tmp_path):
    """exp/mini with the sidecars of the main run's targets, its ensemble and three systems, and the texts."""
    exp, data, rng = tmp_path / "exp" / "mini", tmp_path / "data" / "mini", random.Random(1)
    refs = {}
    for name in SETS:
        refs[name] = {f"{name}{s:02d}-{t}": [rng.choice(WORDS) for _ in range(8)] for s in range(10) for t in range(5)}
        (data / name).mkdir(parents=True)
        (data / name / "utt2spk").write_text("".join(f"{u} {u[:-2]}\n" for u in refs[name]))
    (exp / "dense").mkdir(parents=True)
    (exp / "essence_k20").mkdir()
    common = {"num_frames": 1000, "num_pdfs": 50, "temperature": 1.0, "combine": "mean", "models": [{}, {}, {}]}
    (exp / "dense" / "full.json").write_text(json.dumps({**common, "kind": "dense", "num_entries": 50000}))
    (exp / "essence_k20" / "essence.json").write_text(json.dumps(
        {**common, "kind": "essence", "selection": "top-k", "k": 20, "mass": "renorm", "num_entries": 20000,
         "mean_mass": 0.97}))
    for name, rate in (("ensemble", 0.1), ("baseline", 0.3), ("student_full", 0.2), ("student_essence", 0.2)):
        write_system(exp / name, rate, refs, rng)
    return exp, data, refs


def plan(exp, points, seeds=(1,)):
    """Write the plan of a grid; point, seed -> directory of its system."""
    found = write(planned(exp.parents[1], points, seeds))
    assert found.exp == str(exp)
    return {(point.name, run.seed): exp / run.system for point in found.ablation.points for run in point.runs}


def report(exp, *options):
    """``essence report-ablation``; its results.json, or the exit status where it fails."""
    status = main(["report-ablation", "--draws", "500", *options, str(exp)])
    return status or json.loads((exp / "ablation" / "results.json").read_text())


# ---- the figures

def test_means_and_differences_are_what_a_recount_finds(experiment):
    exp, data, refs = experiment
    places = plan(exp, [{"select": ["hard", "all", "top-k"]}, {"top_k": 5}], [1, 2, 3])
    rng = random.Random(5)
    for point, rate in (("hard", 0.3), ("k20", 0.2), ("k5", 0.25)):
        for seed in (1, 2, 3):
            if (point, seed) not in (("hard", 1), ("k20", 1)):
                write_system(places[point, seed], rate, refs, rng)
    assert places["hard", 1] == exp / "baseline" and places["k20", 1] == exp / "student_essence"
    found = report(exp, "--against", "k5")
    assert found["points"]["k20"]["systems"] == {"1": "student_essence", "2": "ablation/k20/seed_2",
                                                 "3": "ablation/k20/seed_3"}
    assert [point["label"] for point in found["points"].values()] == [
        "Hard labels alone (baseline)", "Every soft label", "k = 20", "k = 5", "Ensemble"]
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
    assert found["points"]["all"]["entries_per_frame"] == 50 and found["points"]["k5"]["entries_per_frame"] is None
    dev = {n: found["points"][n]["wer"]["dev"]["wer"] for n in ("all", "k20", "k5")}
    assert found["best_on_dev"] == min(dev, key=dev.get)
    against, turned = rows["k20", "k5", "total"], rows["hard", "k5", "total"]["diff"]
    assert against["diff"] == pytest.approx(np.mean(each["k20"]) - np.mean(each["k5"]), abs=1e-3) and turned > 0
    text = (exp / "ablation" / "RESULTS").read_text()
    assert "less k5 " in text
    assert f"{np.mean(each['k20']):.2f}" in text and "less baseline (hard)" in text and "Not decoded yet: 2" in text
    assert "SWBD" in text and "# ablation of mini" in text
    roles = {"train": "train", "eval_che": "dev", "eval_swbd": "test", "dev": "test"}
    write(replace(read_plan(exp), sets=make_sets(roles)))  # tuned on another set: all test sets are the total
    found = report(exp)
    assert found["dev_set"] == "eval_che"
    assert list(found["points"]["k20"]["wer"]) == ["eval_swbd", "dev", "total", "eval_che"]
    assert found["points"]["k20"]["wer"]["total"]["each_seed"] == pytest.approx(
        [rate(places["k20", s], ["eval_swbd", "dev"]) for s in (1, 2, 3)], abs=1e-3)


def test_a_decoding_that_is_under_way_is_left_out(experiment):
    exp, _, refs = experiment
    places = plan(exp, [{"select": ["hard", "top-k"]}, {"top_k": 5}])
    write_system(places["k5", 1], 0.2, refs, random.Random(1))
    assert list(report(exp)["points"]["k5"]["wer"]) == ["eval_swbd", "eval_che", "total", "dev"]
    (places["k5", 1] / "decode_eval_che" / "ref.txt").unlink()  # it comes last
    found = report(exp)
    assert all(list(point["wer"]) == ["eval_swbd", "dev"] for point in found["points"].values())
    for ref in places["k5", 1].glob("*/ref.txt"):
        ref.unlink()
    found = report(exp)
    assert list(found["points"]) == ["hard", "k20", "ensemble"] and found["waiting"] == ["k5/seed_1"]


def test_the_best_point_on_dev_has_soft_targets(experiment):
    """Hard labels of another student have none, whatever the point is called."""
    exp, _, refs = experiment
    places = plan(exp, [{"select": ["hard", "top-k"]}, {"select": "hard", "student": "tdnn_f"}])
    write_system(places["hard_tdnn_f", 1], 0.01, refs, random.Random(1))
    found = report(exp)
    assert found["points"]["hard_tdnn_f"]["wer"]["dev"]["wer"] < found["points"]["k20"]["wer"]["dev"]["wer"]
    assert found["best_on_dev"] == "k20"


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
    exp, _, refs = experiment
    places = plan(exp, [{"top_k": 5}])
    assert report(exp) == 1
    assert "no point of the ablation has been decoded yet" in capsys.readouterr().err
    refs["dev"]["dev00-0"] = ["another"]
    write_system(places["k5", 1], 0.2, refs, random.Random(1))
    assert report(exp, "--draws", "9") == 1
    assert report(exp) == 1
    assert report(exp, "--against", "k6") == 1
    told = capsys.readouterr().err
    assert "--draws 9" in told and "decode all points on the same data" in told
    assert "no decoded point 'k6' (there are: k5, ensemble)" in told
    write(planned(exp.parents[1]))
    assert report(exp) == 1
    assert f"{exp}: the plan has no ablation" in capsys.readouterr().err


@pytest.mark.parametrize("text, words", [("{}", "plan.json: missing key 'corpus'"), (None, "plan.json: no such file")])
def test_a_plan_that_is_missing_or_damaged_is_refused(experiment, capsys, text, words):
    exp, _, _ = experiment
    if text:
        (exp / "plan.json").write_text(text)
    assert report(exp) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"{exp}/{words}" in told[0]
