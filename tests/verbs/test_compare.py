"""``essence compare``: systems as columns, with the figures that the report has of them."""
from __future__ import annotations

import json
import re
import shutil

import pytest
from builders.experiment import make_experiment, recount, report

from essence_kd.cli.main import main


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    exp, _ = make_experiment(tmp_path_factory.mktemp("run"))
    assert report(exp) == 0
    return exp


@pytest.fixture
def compare(capsys):
    def run(*words, expected=0):
        assert main(["compare", "--draws", "500", *map(str, words)]) == expected
        told = capsys.readouterr()
        return told.err if expected else table_of(told.out)

    return run


def table_of(text):
    """{row: [cells]} of the table; the first row is called by nothing."""
    lines = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1  # columns end at one place
    return {re.split("  +", line)[0] if line[0] != " " else line.strip().split("  ")[0] if i else "":
            re.split("  +", line.strip())[1 if i else 0:] for i, line in enumerate(lines)}


def test_columns_have_the_figures_of_the_report(experiment, compare):
    found = compare(*(experiment / name for name in ("baseline", "student_essence", "ensemble")))
    assert found[""] == ["baseline", "student_essence", "ensemble"]
    for label, name in (("SWBD", "eval_swbd"), ("CHE", "eval_che"), ("dev", "dev")):
        wer = [recount(experiment, system, name)["wer"] for system in found[""]]
        assert list(map(float, found[f"%WER {label}"])) == pytest.approx(wer, abs=0.0051)
    results = json.loads((experiment / "report" / "results.json").read_text())
    totals = [results["totals"][name]["wer"] for name in found[""]]
    assert list(map(float, found["%WER total"])) == pytest.approx(totals, abs=0.0051)
    assert found["parameters"] == ["3,000", "5,000", "3,000"]  # the ensemble's are those of both teachers
    assert found["MFLOP per frame"] == ["0.20", "0.20", "0.40"]
    assert found["real-time factor of the search"][0] == "0.020"
    pair = ("student_essence", "baseline", "total")
    row = next(c for c in results["comparisons"] if (c["a"], c["b"], c["set"]) == pair)
    assert found["minus baseline, total"][:2] == ["-", f"{row['diff']:+.2f}"]
    assert found["95 % interval"][1] == f"{row['low']:+.2f} to {row['high']:+.2f}"
    for key, name in (("p, bootstrap", "p_bootstrap"), ("p, matched pairs", "p_matched")):
        assert found[key][1] == ("< 0.001" if row[name] < 0.001 else f"{row[name]:.3f}")


def test_a_whole_experiment_is_compared_with_its_baseline(experiment, compare):
    found = compare(experiment)
    results = json.loads((experiment / "report" / "results.json").read_text())
    assert found[""] == list(results["systems"])
    diffs = dict(zip(found[""], found["minus baseline, total"]))
    assert diffs.pop("baseline") == "-"
    baseline = results["totals"]["baseline"]["wer"]
    for name, diff in diffs.items():
        assert float(diff) == pytest.approx(results["totals"][name]["wer"] - baseline, abs=0.0051)


def test_systems_of_two_experiments(experiment, compare, tmp_path):
    other = tmp_path / "exp" / "again"
    shutil.copytree(experiment, other)
    found = compare(experiment / "baseline", other / "baseline", "--draws", "200", other / "ensemble")
    assert found[""] == ["mini/baseline", "again/baseline", "again/ensemble"]
    assert found["minus mini/baseline, total"][:2] == ["-", "+0.00"] and found["p, matched pairs"][1] == "1.000"
    assert found["%WER SWBD"][0] == found["%WER SWBD"][1]
    ref = other / "baseline" / "decode_dev" / "ref.txt"
    ref.write_text(ref.read_text().replace(" ", " other ", 1))
    assert "ref.txt differs from" in compare(experiment / "baseline", other / "baseline", expected=1)


@pytest.mark.parametrize("names, said", [
    (["baseline"], "name two systems or more"),
    (["baseline", "nobody"], "the plan has no system 'nobody'; it has: gmm"),
    (["baseline", ".."], "has a plan.json; name folders of an experiment"),
    (["baseline", "student_full", "--draws", "9"], "--draws 9: at least 100"),
])
def test_what_cannot_be_compared_is_named(experiment, compare, names, said):
    places = [name if name[0] == "-" or name.isdigit() else experiment / name for name in names]
    assert said in compare(*places, expected=1)
