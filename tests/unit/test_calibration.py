"""Calibration: figures that a loop over frames finds, too, and refusals."""
from __future__ import annotations

import json

import numpy as np
import pytest

from essence_kd.cli.main import main
from essence_kd.io.tables import IntVectorWriter, MatrixWriter
from essence_kd.score.calibration import BINS, Calibration, Fidelity


def posteriors(rng, rows, classes=7):
    logits = 3 * rng.normal(size=(rows, classes))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.log(probs).astype(np.float32)


def test_figures_are_those_of_a_loop_over_frames():
    rng = np.random.default_rng(1)
    log_probs, labels = posteriors(rng, 3000), rng.integers(0, 7, 3000)
    found = Calibration()
    found.add(log_probs[:1000], labels[:1000])
    found.add(log_probs[1000:], labels[1000:])
    bins = [[] for _ in range(BINS)]
    nll = 0.0
    for row, label in zip(np.exp(log_probs.astype(np.float64)), labels):
        bins[min(int(row.max() * BINS), BINS - 1)].append((row.max(), row.argmax() == label))
        nll -= np.log(row[label])
    ece = sum(len(b) / 3000 * abs(np.mean([c for c, _ in b]) - np.mean([r for _, r in b])) for b in bins if b)
    result = found.as_dict()
    assert result["ece"] == pytest.approx(ece, abs=2e-5) and result["nll"] == pytest.approx(nll / 3000, abs=1e-4)
    assert [n for n, _, _ in result["bins"]] == [len(b) for b in bins]
    assert result["frames"] == 3000 and 0 < result["accuracy"] < result["confidence"] < 1


def test_a_network_as_sure_as_right_has_no_error_and_a_sharper_one_has():
    rng = np.random.default_rng(2)
    log_probs = posteriors(rng, 60000)
    labels = np.array([rng.choice(7, p=p / p.sum()) for p in np.exp(log_probs.astype(np.float64))])
    fair, sharp = Calibration(), Calibration()
    fair.add(log_probs, labels)
    twice = 2 * log_probs
    sharp.add(twice - np.log(np.exp(twice).sum(1, keepdims=True)), labels)
    assert fair.as_dict()["ece"] < 0.01 < 0.05 < sharp.as_dict()["ece"]
    assert fair.as_dict()["nll"] < sharp.as_dict()["nll"]


def test_certainty_falls_into_the_last_bin():
    found = Calibration()
    found.add(np.log(np.array([[1.0, 1e-30]], dtype=np.float32)), np.array([0]))
    assert found.as_dict()["bins"][-1] == [1, 1.0, 1.0] and found.as_dict()["ece"] == 0


@pytest.fixture
def tables(tmp_path):
    rng = np.random.default_rng(3)
    for name, utts in (("dev", ("a", "b", "c")), ("eval", ("d",))):
        with IntVectorWriter(f"ark,scp:{tmp_path}/{name}.ali.ark,{tmp_path}/{name}.ali.scp") as ali, \
                MatrixWriter(f"ark,scp:{tmp_path}/{name}.ark,{tmp_path}/{name}.scp") as scores:
            for utt in utts:
                if utt != "b":
                    ali.write(utt, rng.integers(0, 7, 20).astype(np.int32))
                scores.write(utt, posteriors(rng, 7))
    return tmp_path


def test_the_verb_adds_sets_and_counts_what_has_no_alignment(tables, capsys):
    out = tables / "out.json"
    options = ["calibration", "--ali", f"{tables}/dev.ali.scp", "--ali", f"{tables}/eval.ali.scp", str(out)]
    assert main([*options, f"x=scp:{tables}/dev.scp", f"x=ark:cat {tables}/eval.ark |"]) == 0
    found = json.loads(out.read_text())["systems"]["x"]
    assert found["frames"] == 21 and found["without_alignment"] == 1
    assert "x: accuracy" in capsys.readouterr().out
    both = [f"{name}={table}" for name in "yx" for table in (f"scp:{tables}/dev.scp", f"ark:cat {tables}/eval.ark |")]
    assert main(["calibration", "--nj", "2", *options[1:], *both]) == 0
    systems = json.loads(out.read_text())["systems"]
    assert list(systems) == ["y", "x"] and systems["x"] == systems["y"] == found
    assert main(["calibration", "--nj", "0", *options[1:], *both]) == 1
    assert "--nj 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("spoil, words", [
    (lambda t: ["x"], "expected NAME=RSPECIFIER"),
    (lambda t: [f"x=scp:{t}/dev.scp"], "x has 1 tables, but there are 2 --ali"),
    (lambda t: [f"x=scp:{t}/eval.scp", f"x=scp:{t}/eval.scp"], "align no utterance of x"),
])
def test_what_does_not_fit_is_refused(tables, capsys, spoil, words):
    (tables / "eval.ali.scp").write_text("z nowhere.ark:2\n")
    options = ["calibration", "--ali", f"{tables}/dev.ali.scp", "--ali", f"{tables}/eval.ali.scp", f"{tables}/o.json"]
    assert main([*options, *spoil(tables)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and words in told[0]


def test_other_lengths_and_other_trees_are_refused(tables, capsys):
    options = ["calibration", "--ali", f"{tables}/dev.ali.scp", f"{tables}/o.json", f"x=scp:{tables}/dev.scp"]
    assert main(["calibration", "--frame-subsampling-factor", "2", *options[1:]]) == 1
    with IntVectorWriter(f"ark,scp:{tables}/dev.ali.ark,{tables}/dev.ali.scp") as ali:
        ali.write("a", np.full(20, 7, np.int32))
    assert main(options) == 1
    told = capsys.readouterr().err.splitlines()
    assert "has 10 rows, x has 7" in told[0] and "pdf-id 7, x has 7 pdfs" in told[1]


def test_fidelity_is_that_of_a_loop_over_frames(tables):
    rng = np.random.default_rng(4)
    teacher, network = posteriors(rng, 500), posteriors(rng, 500)
    found = Fidelity()
    found.add(teacher[:200], network[:200])
    found.add(teacher[200:], network[200:])
    same = np.mean([t.argmax() == n.argmax() for t, n in zip(teacher, network)])
    divergence = np.mean([sum(np.exp(t[c]) * (t[c] - n[c]) for c in range(7)) for t, n in zip(teacher, network)])
    assert found.as_dict() == {"same_best": round(same, 5), "divergence": pytest.approx(divergence, abs=1e-4)}
    itself = Fidelity()
    itself.add(teacher, teacher)
    assert itself.as_dict() == {"same_best": 1.0, "divergence": 0.0}


def test_the_verb_compares_with_a_reference(tables, capsys):
    out = tables / "out.json"
    options = ["calibration", "--ali", f"{tables}/dev.ali.scp", str(out)]
    dev, other = f"scp:{tables}/dev.scp", tables / "other"
    with MatrixWriter(f"ark:{other}.ark") as writer:
        for utt in "abc":
            writer.write(utt, posteriors(np.random.default_rng(ord(utt)), 7))
    assert main([*options, "--reference", "e", f"e=ark:{other}.ark", f"x={dev}", f"y=ark:{other}.ark"]) == 0
    found = json.loads(out.read_text())
    assert found["reference"] == "e" and "same_best" not in found["systems"]["e"]
    assert found["systems"]["y"]["same_best"] == 1 and found["systems"]["y"]["divergence"] == 0
    assert found["systems"]["x"]["same_best"] < 1 and found["systems"]["x"]["divergence"] > 0.1
    assert "y: accuracy" in (said := capsys.readouterr().out) and "best class that of e in 100.0 %" in said
    for table, words in ((f"ark:{other}.ark", "--reference z: none of the systems e, x"),
                         (f"scp:{tables}/eval.scp", "different data")):
        name = "z" if "none" in words else "x"
        assert main([*options, "--reference", name, f"e={table}", f"x={dev}"]) == 1
        assert words in capsys.readouterr().err
