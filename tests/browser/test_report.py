"""The report of a small experiment: figures that anyone can recount, refusals, and the page in a real browser."""
from __future__ import annotations

import fcntl
import html
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import asdict

import jinja2
import kaldialign
import numpy as np
import pytest
from conftest import ROOT

from essence_kd.cli.main import main
from essence_kd.distill.essence import EssenceSettings
from essence_kd.io.errors import UserError
from essence_kd.io.tables import IntVectorWriter, MatrixWriter
from essence_kd.io.wave import write_wav
from essence_kd.score import alignment_picture, charts, hub5, labels, page, sections, wer
from essence_kd.score.clips import load_clips
from essence_kd.score.experiment import load_experiment, load_system
from essence_kd.score.results import Analysis, best_teacher

TEMPLATES = ROOT / "pytools" / "essence_kd" / "score" / "templates"
SETS = {"eval_swbd": 1.0, "eval_che": 1.6, "dev": 1.0}
RATES = {"gmm": 0.45, "teacher_1": 0.2, "teacher_2": 0.22, "ensemble": 0.17, "baseline": 0.26, "student_full": 0.21,
         "student_essence": 0.2}
WORDS = "yeah i think so you know it was like really good we went to the lake <uh> and my brother called".split()
PHONES = "SIL HH_B AH_I L_I OW_E AY_S SIL N_B OW_E SIL".split()


def _noisy(rng, words, rate):
    out = []
    for word in words:
        kind = rng.random()
        out += [rng.choice(WORDS)] if kind < 0.6 * rate else [] if kind < 0.8 * rate else [word]
        out += [rng.choice(WORDS)] if rng.random() < 0.15 * rate else []
    return out


def _text(table):
    return "".join(" ".join([utt, *words]) + "\n" for utt, words in table.items())


def make_ablation(exp):
    """results.json of an ablation: hard labels (seed 1 is the baseline) and three k, two seeds each."""
    base = asdict(EssenceSettings())
    first = load_system(exp / "baseline").scores if (exp / "baseline").is_dir() else {}
    points, comparisons = {}, []
    for name, changes in (("hard", {"select": "hard"}), ("k1", {"top_k": 1}),
                          ("k5_a0.5", {"top_k": 5, "soft_weight": 0.5}), ("k5", {"top_k": 5}), ("k20", {})):
        taken = {"1": "baseline"} if name == "hard" and first else {}
        wer = {s: {"wer": 30.0, "each_seed": [first[s].total.wer if taken and s in first else 29.0, 31.0],
                   "interval": [28.0, 32.0]} for s in (*SETS, "total")}
        points[name] = {"settings": {**base, **changes, "teachers": [], "from": taken}, "seeds": [1, 2], "wer": wer,
                        "entries_per_frame": None if name == "hard" else 5.0, "retained_mass": 0.9}
        if name != "hard":
            comparisons.append({"a": name, "b": "hard", "set": "total", "diff": -1.25, "low": -2.5, "high": 0.5,
                                "seeds": [1, 2]})
    return {"base": base, "points": points, "comparisons": comparisons, "best_on_dev": "k5"}


def make_experiment(root, rates=RATES, seed=1, speakers=12, turns=4):
    """Texts, model directories, alignment, features, essence and stages, as the stages of run.sh leave them."""
    rng = random.Random(seed)
    exp, data = root / "exp" / "mini", root / "data" / "mini"
    for name, factor in SETS.items():
        refs = {f"{name[-3:]}{s:02d}-{t:02d}": [rng.choice(WORDS) for _ in range(rng.randint(3, 14))]
                for s in range(speakers) for t in range(turns)}
        (data / name).mkdir(parents=True)
        (data / name / "utt2spk").write_text("".join(f"{u} {u.split('-')[0]}\n" for u in refs))
        for system, rate in rates.items():
            out = exp / system / f"decode_{name}"
            out.mkdir(parents=True)
            (out / "ref.txt").write_text(_text(refs))
            (out / "hyp.txt").write_text(_text({u: _noisy(rng, w, rate * factor) for u, w in refs.items()}))
            (out / "decode.json").write_text(json.dumps(
                {"decoder": "kaldi", "rtf": 0.02, "acoustic_scale": 0.1, "word_insertion_penalty": -0.5, "no_path": 0,
                 "active_states_per_frame": 321.4}))
        with wave.open(str(data / f"{name}.wav"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes((8000 * np.sin(np.arange(16000) / 3)).astype("<i2").tobytes())
        (data / name / "wav.scp").write_text(f"{name}-A {data}/{name}.wav\n")
        (data / name / "segments").write_text("".join(f"{u} {name}-A 0.5 1.5\n" for u in refs))
    for number, system in enumerate(s for s in rates if s not in ("gmm", "ensemble")):
        (exp / system / "info.json").write_text(json.dumps({"params": 1000 * (number + 1), "mflop_per_frame": 0.2,
                                                            "look_ahead_ms": 230 if number else None,
                                                            "seconds": 12.5, "epochs": 5}))
        (exp / system / "progress.jsonl").write_text("".join(json.dumps(
            {"epoch": e, "train_loss": 3 / e, "hard_loss": 3 / e, "dev_loss": 3.2 / e, "dev_frame_acc": 0.1 * e,
             "soft_loss": 2 / e if "student" in system else None, "seconds": 2.5, "lr": 0.001}) + "\n"
            for e in range(1, 6)))
    if "student_essence" in rates:
        (exp / "student_essence" / "model.yaml").write_text(
            "arch: tdnn\ntrain: {optim: {epochs: 5, lr: 0.003}, distill: {soft_weight: 0.9, temperature: 1.0}}\n")
    if "gmm" in rates:
        (exp / "gmm" / "gmm.json").write_text(json.dumps({"num_gauss": 100, "dim": 39, "seconds": 60.5}))
    ali, feats = exp / "ali", data / "train_sp_hires"
    ali.mkdir()
    feats.mkdir()
    states = {(p, s): 3 * i + s for i, p in enumerate(sorted(set(PHONES))) for s in range(3)}
    (ali / "num_pdfs").write_text(f"{len(states)}\n")
    (ali / "tree.txt").write_text("".join(f"{pdf} {p} {s}\n" for (p, s), pdf in states.items()))
    pdfs = np.repeat([states[p, s] for p in PHONES for s in range(3)], 6).astype(np.int32)
    noise = np.random.default_rng(2)
    with IntVectorWriter(f"ark,scp:{ali}/ali.ark,{ali}/ali.scp") as vectors, \
            MatrixWriter(f"ark,scp:{feats}/feats.ark,{feats}/feats.scp") as matrices:
        for utt in ("sp0.9-a-1", "a-1"):
            vectors.write(utt, pdfs)
            matrices.write(utt, noise.normal(size=(len(pdfs), 40)).astype(np.float32))
    (feats / "text").write_text("a-1 hello i know\nsp0.9-a-1 hello i know\n")
    (data / "dict").mkdir()
    (data / "dict" / "lexicon.txt").write_text("hello HH AH L OW\ni AH\ni AY\nknow N OW\n")
    essence = exp / "essence_k20"
    essence.mkdir()
    (essence / "essence.json").write_text(json.dumps({"num_pdfs": 21, "selection": "top-k", "k": 20, "mean_mass": 0.975,
                                                      "mass": "renorm", "temperature": 1.0, "num_frames": 100}))
    (essence / "post.1.ark").write_bytes(bytes(20000))
    (essence / "post.2.ark").write_bytes(bytes(512))
    (exp / "posteriors").mkdir()
    (exp / "posteriors" / "post_stats.json").write_text(json.dumps(
        {"f_k": [1 - 0.4 / k for k in range(1, 101)], "k_for_mass": {"0.9": {"mean": 4}, "0.99": {"mean": None}},
         "perplexity": 3.14159, "alignment": {"recall_at_k": {"1": 0.71, "20": 0.995}}}))
    (exp / "calibration").mkdir()
    bins = [[100 * b, (b + 0.5) / 15, (b + 0.3) / 15] for b in range(15)]
    (exp / "calibration" / "calibration.json").write_text(json.dumps({"labels": ["ali.scp"], "systems": {
        name: {"frames": 10500, "accuracy": 0.5, "confidence": 0.52, "ece": 0.0123, "nll": 1.875, "bins": bins,
               "without_alignment": 0} for name in ("baseline", "student_essence")}}))
    (exp / "ablation").mkdir()
    (exp / "ablation" / "results.json").write_text(json.dumps(make_ablation(exp)))
    (exp / "stages.jsonl").write_text("".join(json.dumps(s) + "\n" for s in (
        {"stage": 5, "name": "teachers", "seconds": 99.0, "bytes": 5},
        {"stage": 4, "name": "gmm", "seconds": 61, "bytes": 7}, {"stage": 10, "name": "report", "seconds": 2, "bytes": 1},
        {"stage": 5, "name": "teachers", "seconds": 300, "bytes": 8, "unfinished": True},
        {"stage": 5, "name": "teachers", "seconds": 10, "bytes": 1},
        {"stage": 9, "name": "decoding", "seconds": 7, "bytes": 0, "unfinished": True})))
    return exp, data


def report(exp, data, *options):
    return main(["report", "--corpus", "mini", "--size", "tiny", "--seed", "3", "--engine", "native", "--draws", "500",
                 "--data-dir", str(data), "--clips", "2", *options, str(exp), str(exp / "report")])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    exp, data = make_experiment(tmp_path_factory.mktemp("run"))
    assert report(exp, data) == 0
    return exp, data


def _recount(exp, system, name):
    """Errors counted straight from the files with kaldialign."""
    ref, hyp = ({line.split()[0]: line.split()[1:] for line in (exp / system / f"decode_{name}" / file).open()}
                for file in ("ref.txt", "hyp.txt"))
    total = {"ins": 0, "del": 0, "sub": 0, "words": 0, "utterances": len(ref)}
    for utt, words in ref.items():
        found = kaldialign.edit_distance(words, hyp[utt])
        for key in ("ins", "del", "sub"):
            total[key] += found[key]
        total["words"] += len(words)
    total["wer"] = round(100 * (total["ins"] + total["del"] + total["sub"]) / total["words"], 4)
    return total


# ---- results.json and RESULTS

def test_report_tells_what_each_system_costs(experiment):
    """Megaflops, look-ahead, training, real-time factor and active states stand in the row of the system."""
    exp, _ = experiment
    page = (exp / "report" / "report.html").read_text()
    table = next(t for t in re.findall(r"<table.*?</table>", page, re.S) if "Look-ahead" in t)
    row = next(row for row in table.split("</tr>") if "c-baseline" in row)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert cells[1:3] == ["0.20", "230 ms"] and cells[4:] == ["0.020", "321"]


def test_results_json_holds_what_a_recount_finds(experiment):
    exp, _ = experiment
    results = json.loads((exp / "report" / "results.json").read_text())
    assert [results[k] for k in ("corpus", "size", "seed", "engine", "decoder", "num_pdfs")] == \
        ["mini", "tiny", 3, "native", "kaldi", 21]
    assert list(results["systems"]) == list(RATES)
    for system, entry in results["systems"].items():
        assert set(entry) == {"params", *SETS}
        for name in SETS:
            assert entry[name] == _recount(exp, system, name)
    assert results["systems"]["baseline"]["params"] == 3000
    assert results["systems"]["ensemble"]["params"] == 1000 + 2000
    assert results["systems"]["gmm"]["params"] == 7900
    assert results["essence"] == {"select": "top-k", "k": 20, "mean_mass": 0.975, "bytes_per_frame": 205.12}
    assert results["stages"] == {"4": {"seconds": 61, "bytes": 7}, "5": {"seconds": 310, "bytes": 14},
                                 "10": {"seconds": 2, "bytes": 1}}
    both = [results["systems"]["baseline"][name] for name in ("eval_swbd", "eval_che")]
    assert results["totals"]["baseline"]["words"] == sum(c["words"] for c in both)
    assert results["provenance"]["versions"]["essence-kd"]


def test_comparisons_are_paired_and_tell_the_sign(experiment):
    exp, _ = experiment
    results = json.loads((exp / "report" / "results.json").read_text())
    rows = {(c["a"], c["b"], c["set"]): c for c in results["comparisons"]}
    row = rows["student_essence", "baseline", "total"]
    totals = results["totals"]
    assert row["diff"] == pytest.approx(totals["student_essence"]["wer"] - totals["baseline"]["wer"], abs=1e-3)
    assert row["low"] < row["diff"] < row["high"] < 0
    assert 0 < row["p_bootstrap"] < 0.05 and 0 < row["p_matched"] < 0.05
    assert {c["set"] for c in results["comparisons"]} == {"eval_swbd", "eval_che", "total"}
    dev = {t: results["systems"][t]["dev"]["wer"] for t in ("teacher_1", "teacher_2")}
    assert ("ensemble", min(dev, key=dev.get), "total") in rows
    assert results["bootstrap"] == {"draws": 500, "unit": {name: "12 speakers" for name in SETS}}


def test_results_text_lines_can_be_recounted(experiment):
    exp, _ = experiment
    text = (exp / "RESULTS").read_text()
    counted = _recount(exp, "student_full", "eval_che")
    errors = counted["ins"] + counted["del"] + counted["sub"]
    assert (f"%WER {counted['wer']:.2f} [ {errors} / {counted['words']}, {counted['ins']} ins, {counted['del']} del, "
            f"{counted['sub']} sub ] {exp}/student_full/decode_eval_che\n") in text
    assert len(re.findall(r"^%WER ", text, re.M)) == len(RATES) * 4
    header = next(line for line in text.splitlines() if line.startswith("system "))
    assert header.split()[1:] == "parameters SWBD 95 % CHE 95 % total 95 % dev 95 %".split()


def add_times(exp, data):
    """An STM a test set and a CTM a system: every utterance a recording of its own, half a second a word."""
    for name in ("eval_swbd", "eval_che"):
        for ref in exp.glob(f"*/decode_{name}/ref.txt"):
            lines = [(line.split()[0], line.replace("<uh>", "uh").split()[1:]) for line in ref.open()]
            (data / name / "stm").write_text("".join(
                f"{utt} 1 {utt[:5]} 0.00 60.00 <O> {' '.join(words)}\n" for utt, words in lines))
            hyp = [(line.split()[0], line.replace("<uh>", "uh").split()[1:])
                   for line in (ref.parent / "hyp.txt").open()]
            (ref.parent / "hyp.ctm").write_text("".join(
                f"{utt} 1 {0.5 * i:.2f} 0.50 {word} 1.0\n" for utt, words in hyp for i, word in enumerate(words)))


@pytest.mark.parametrize("sclite", [False, True])
def test_test_sets_with_an_stm_are_scored_by_time_too(tmp_path, monkeypatch, sclite):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})
    assert report(exp, data) == 0
    before = (exp / "RESULTS").read_text()
    assert json.loads((exp / "report" / "results.json").read_text())["hub5"]["systems"] == {}
    assert 'id="hub5"' not in (exp / "report" / "report.html").read_text()
    add_times(exp, data)
    if not sclite:
        monkeypatch.setattr(hub5, "find_sclite", lambda: None)
    elif hub5.find_sclite() is None:
        pytest.skip("sclite is not installed (Debian's sctk)")
    assert report(exp, data) == 0
    text, found = (exp / "RESULTS").read_text(), json.loads((exp / "report" / "results.json").read_text())["hub5"]
    section = re.search(r'<section id="hub5">.*?</section>', (exp / "report" / "report.html").read_text(), re.S).group(0)
    assert re.findall(r'<th class="num">([^<]*)</th>', section) == ["SWBD", "CHE", "total"]
    assert f"counted by {'sclite' if sclite else 'our own aligner'}." in section
    assert found["scorer"] == ("sclite" if sclite else "native")
    assert f"mapping rules default; counted by {'sclite' if sclite else 'our own aligner'}\n" in text
    assert text.startswith(before[:before.index("\n\n")])  # Kaldi's lines stay as they were
    shown = re.findall(r'<td class="num">([\d.]+)<small>([\d,]+) errors</small>', section)
    assert shown == [(f"{c['wer']:.1f}", str(c["ins"] + c["del"] + c["sub"])) for system in
                     ("baseline", "student_essence") for c in found["systems"][system].values()]
    assert f"total {found['systems']['baseline']['total']['words']:,} words. By the rules of Hub5" in section
    for system in ("baseline", "student_essence"):
        total = 0
        for name in ("eval_swbd", "eval_che"):
            place = exp / system / f"decode_{name}"
            refs, hyps = ({line.split()[0]: " ".join(line.replace("<uh>", "uh").split()[1:]) for line in path.open()}
                          for path in (place / "ref.txt", place / "hyp.txt"))
            counts = hub5.score_text(refs, hyps, drop_noise=True).total  # utterance by utterance
            assert found["systems"][system][name] == counts.as_dict()
            assert f"{wer.wer_line(counts)} {place}/hyp.ctm\n" in text
            total += counts.errors
        assert f" [ {total} / " in next(x for x in text.splitlines() if f"{system} (total of" in x and "by time" in x)


def test_times_that_do_not_fit_are_refused_or_told(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=2, turns=2)
    add_times(exp, data)
    (exp / "baseline" / "decode_eval_che" / "hyp.ctm").unlink()
    assert report(exp, data) == 0
    assert "baseline is not scored by time on eval_che" in capsys.readouterr().err
    found = json.loads((exp / "report" / "results.json").read_text())["hub5"]["systems"]
    assert set(found["baseline"]) == {"eval_swbd"}
    assert set(found["student_essence"]) == {"eval_swbd", "eval_che", "total"}
    ctm = exp / "baseline" / "decode_eval_swbd" / "hyp.ctm"
    ctm.write_text(ctm.read_text() + "elsewhere 1 0.00 0.50 yeah 1.0\n")
    assert report(exp, data) == 1
    assert "hyp.ctm: recording 'elsewhere' channel '1' is not in" in capsys.readouterr().err


def test_a_best_setting_at_the_edge_is_told(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=2, turns=2)
    for scale, penalty in ((False, False), (True, False), (False, True)):
        (exp / "scales.json").write_text(json.dumps({"best": {}, "scale_at_edge": scale, "penalty_at_edge": penalty}))
        assert report(exp, data) == 0
        for text in (capsys.readouterr().err, (exp / "RESULTS").read_text(), (exp / "report/report.html").read_text()):
            assert ("scales.json: the best acoustic scale on the development set lies at the edge" in text) == scale
            assert ("scales.json: the best word insertion penalty on the development set lies at the" in text) == penalty


def test_the_same_experiment_gives_the_same_results(experiment, capsys):
    exp, data = experiment
    before = (exp / "RESULTS").read_bytes(), (exp / "report" / "results.json").read_text()
    assert report(exp, data) == 0
    assert (exp / "RESULTS").read_bytes() == before[0]
    first, second = json.loads(before[1]), json.loads((exp / "report" / "results.json").read_text())
    for results in (first, second):
        results["provenance"].pop("written")
    assert first == second
    assert "7 systems on eval_swbd, eval_che, dev" in capsys.readouterr().out


def test_few_speakers_are_not_resampled(tmp_path):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=3)
    assert report(exp, data) == 0
    unit = json.loads((exp / "report" / "results.json").read_text())["bootstrap"]["unit"]
    assert unit["eval_swbd"] == "12 utterances"


def test_gaps_are_told(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})
    shutil.rmtree(exp / "student_essence" / "decode_dev")
    (data / "dev" / "utt2spk").unlink()
    hyp = exp / "baseline" / "decode_eval_che" / "hyp.txt"
    lines = hyp.read_text().splitlines(keepends=True)
    hyp.write_text("".join(lines[2:]))
    decode = exp / "baseline" / "decode_eval_swbd" / "decode.json"
    decode.write_text(json.dumps({"decoder": "k2", "no_path": 4}))
    (exp / "essence_k5").mkdir()
    shutil.copy(exp / "essence_k20" / "essence.json", exp / "essence_k5" / "essence.json")
    os.utime(exp / "essence_k5" / "essence.json", (1, 1))
    assert report(exp, data) == 0
    told = capsys.readouterr().err
    for words in ("has no decode_dev", "2 utterances without a hypothesis, counted as deleted",
                  "no path survived the search", "ensemble: not decoded", "different decoders (k2, kaldi)", "reporting the newest, essence_k20",
                  "dev/utt2spk: no such file"):
        assert words in told
    page_text = (exp / "report" / "report.html").read_text()
    assert "2 utterances without a hypothesis" in page_text
    assert json.loads((exp / "report" / "results.json").read_text())["decoder"] == "k2+kaldi"


def test_sets_of_other_names(tmp_path, capsys):
    """A recipe names its sets: all but the development set are test sets, and the total is theirs."""
    exp, data = make_experiment(tmp_path, {"teacher_1": 0.2, "teacher_2": 0.3, "baseline": 0.3, "student_essence": 0.1})
    shutil.rmtree(exp / "ablation")
    names = {"dev": "valid", "eval_swbd": "clean", "eval_che": "other"}
    for old, new in names.items():
        (data / old).rename(data / new)
        for folder in exp.glob(f"*/decode_{old}"):
            folder.rename(folder.with_name(f"decode_{new}"))
    shutil.copytree(data / "other", data / "third")
    for folder in exp.glob("*/decode_other"):
        shutil.copytree(folder, folder.with_name("decode_third"))
    assert report(exp, data, "--dev-set", "valid") == 0
    found = json.loads((exp / "report" / "results.json").read_text())
    student, tests = found["systems"]["student_essence"], ["clean", "other", "third"]
    assert found["totals"]["student_essence"]["words"] == sum(student[name]["words"] for name in tests)
    assert {c["set"] for c in found["comparisons"]} == {*tests, "total"}
    text = (exp / "RESULTS").read_text()
    assert "(total of clean and other and third)" in text and "valid" in text
    assert "all test sets" in (exp / "report" / "report.html").read_text()


def test_any_two_systems_are_compared(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"teacher_1": 0.2, "teacher_2": 0.25, "baseline": 0.3})
    assert report(exp, data, "--compare", "teacher_2", "teacher_1", "--compare", "teacher_1", "baseline") == 0
    rows = {(c["a"], c["b"], c["set"]): c for c in json.loads((exp / "report" / "results.json").read_text())["comparisons"]}
    assert {key[:2] for key in rows} == {("teacher_2", "teacher_1"), ("teacher_1", "baseline")}
    assert "teacher_2 - teacher_1" in (exp / "RESULTS").read_text()
    ref, hyp, other = (exp / name for name in ("baseline/decode_eval_che/ref.txt", "teacher_2/decode_eval_che/hyp.txt",
                                               "teacher_1/decode_eval_che/hyp.txt"))
    capsys.readouterr()
    command = ["score", "--against", str(other), "--utt2spk", str(data / "eval_che" / "utt2spk"), str(ref), str(hyp)]
    assert main(command) == 0
    line, row = capsys.readouterr().out.splitlines()[-1], rows["teacher_2", "teacher_1", "eval_che"]
    assert line.startswith(f"Difference {row['diff']:+.2f} points, 95 % interval ") and "over 12 speakers" in line
    assert f"p {row['p_matched']:.3f} (matched pairs, {row['segments']} segments)" in line
    assert [float(x) for x in re.findall(r"interval (\S+) to (\S+),", line)[0]] == pytest.approx([row["low"], row["high"]], abs=0.8)
    assert main([*command, "--glm", "default"]) == 1 and "leave out --glm" in capsys.readouterr().err
    assert report(exp, data, "--compare", "teacher_1", "nobody") == 1
    assert "--compare names 'nobody', which is not among the systems: teacher_1 teacher_2 baseline" in capsys.readouterr().err


def test_rescoring_is_told(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})

    def rescored(system, order):
        for path in (exp / system).glob("decode_*/decode.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "rescoring": order and {"order": order}}))

    assert report(exp, data) == 0
    plain = json.loads((exp / "report" / "results.json").read_text())
    assert plain["rescoring"] is None and "rescored" not in (exp / "RESULTS").read_text() + capsys.readouterr().err
    rescored("baseline", 4)
    assert report(exp, data) == 0
    assert "not all words were rescored with the same language model: baseline with a 4-gram; student_essence not" \
        in (exp / "RESULTS").read_text() and "student_essence not" in capsys.readouterr().err
    rescored("student_essence", 4)
    assert report(exp, data) == 0
    assert (exp / "RESULTS").read_text().splitlines()[0].endswith("decoder kaldi, rescored with a 4-gram")
    assert json.loads((exp / "report" / "results.json").read_text())["rescoring"] == "a 4-gram"
    assert "words rescored with a 4-gram" in (exp / "report" / "report.html").read_text()
    assert "not all words" not in capsys.readouterr().err


def respoil(path, change):
    """The JSON file with a change made to its value."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("spoil, words", [
    (lambda e: (e / "baseline/decode_dev/ref.txt").write_text("x one\n"), "is not in"),
    (lambda e: (e / "baseline/decode_dev/ref.txt").unlink(), "no such file beside hyp.txt"),
    (lambda e: (e / "student_essence/decode_dev/ref.txt").write_text(
        (e / "student_essence/decode_dev/ref.txt").read_text() + "zzz extra\n"), "differs from"),
    (lambda e: (e / "stages.jsonl").write_text("{\"stage\": 1,\n"), "line 1 is not JSON"),
    (lambda e: (e / "stages.jsonl").write_text("{\"stage\": 1}\n"), "lacks 'stage' or 'seconds'"),
    (lambda e: (e / "stages.jsonl").write_text("{\"stage\": 1, \"seconds\": \"long\"}\n"), "lacks 'stage' or 'seconds'"),
    (lambda e: (e / "baseline/info.json").write_text("[1]"), "expected a JSON object"),
    (lambda e: (e / "baseline/progress.jsonl").write_text("{\"epoch\": \"one\"}\n"), "line 1: epoch is no number"),
    (lambda e: (e / "ablation").mkdir(exist_ok=True) or (e / "ablation/results.json").write_text("{}"), "has no base"),
    (lambda e: respoil(e / "ablation/results.json", lambda v: v["points"]["hard"].pop("wer")), "ablation/results.json: has values"),
    (lambda e: respoil(e / "ablation/results.json", lambda v: v["comparisons"][0].update(diff="less")), "results.json: has values"),
    (lambda e: respoil(e / "posteriors/post_stats.json", lambda v: v.update(f_k=["much"])), "post_stats.json: has values"),
    (lambda e: respoil(e / "calibration/calibration.json", lambda v: v["systems"]["baseline"].pop("ece")),
     "calibration.json: has values that its stage does not write (KeyError: 'ece')"),
    (lambda e: (e / "baseline/decode_dev/hyp.txt").write_bytes(b"x \xe9\n"), "hyp.txt: line 1 (x) is not UTF-8"),
    (lambda e: (e / "essence_k20/essence.json").write_text("{"), "not a JSON file"),
    (lambda e: (e / "essence_k20/essence.json").write_text('{"mean_mass": "much"}'), "mean_mass is 'much', not a number"),
    (lambda e: (e / "ali/num_pdfs").write_text("\n"), "num_pdfs: expected a whole number, got ''"),
    (lambda e: (e / "ali/num_pdfs").write_text("many\n"), "num_pdfs: expected a whole number, got 'many'"),
    (lambda e: (e / "ali/tree.txt").write_text("0 SIL\n"), "expected 'PDF-ID PHONE STATE'"),
    (lambda e: (e / "ali/tree.txt").write_text("0 SIL 0\n"), "is not in tree.txt"),
    (lambda e: [shutil.rmtree(p) for p in e.glob("*/decode_*")], "no SYSTEM/decode_SET/hyp.txt found"),
])
def test_spoilt_experiments_are_refused_in_one_line(tmp_path, capsys, spoil, words):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=2, turns=2)
    spoil(exp)
    assert report(exp, data) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and words in error[0] and str(exp) in error[0] or "pdf-id" in error[0]


def test_an_ablation_of_another_baseline_is_left_out(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})
    assert report(exp, data) == 0
    assert "Which labels, which weight?" in (exp / "report" / "report.html").read_text()
    found = json.loads((exp / "ablation" / "results.json").read_text())
    found["points"]["hard"]["settings"]["from"]["9"] = "baseline"  # a seed that was not decoded then
    (exp / "ablation" / "results.json").write_text(json.dumps(found))
    assert report(exp, data) == 0
    found["points"]["hard"]["wer"]["dev"]["each_seed"][0] += 1
    (exp / "ablation" / "results.json").write_text(json.dumps(found))
    assert report(exp, data) == 0
    assert "was made when baseline was another model" in capsys.readouterr().err
    assert "Which labels, which weight?" not in (exp / "report" / "report.html").read_text()


def test_an_utterance_without_a_recording_is_named(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})
    (data / "eval_che" / "wav.scp").write_text("other /nowhere.wav\n")
    assert report(exp, data) == 1
    assert "eval_che/wav.scp: utterance" in capsys.readouterr().err


def test_a_segment_to_the_end_of_its_recording_has_its_sound(tmp_path):
    (tmp_path / "dev").mkdir()
    write_wav(tmp_path / "r.wav", np.arange(8000, dtype=np.int16), 8000)
    (tmp_path / "dev" / "wav.scp").write_text(f"r {tmp_path}/r.wav\n")
    (tmp_path / "dev" / "segments").write_text("u r 0.50 -1.00\n")
    assert set(load_clips(tmp_path, [("dev", "u")])) == {("dev", "u")}


def test_wrong_arguments_are_refused(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3}, speakers=2, turns=2)
    assert report(exp / "no", data) == 1
    assert report(exp, data, "--systems", "baseline student_essence") == 1
    assert report(exp, data, "--essence-dir", str(exp / "essence_k9")) == 1
    assert report(exp, data, "--draws", "3") == 1
    told = capsys.readouterr().err.splitlines()
    assert ["no such directory" in told[0], "no decode_SET/hyp.txt" in told[1], "essence_k9/essence.json" in told[2],
            "--draws 3" in told[3]] == [True] * 4
    (data / "dev" / "utt2spk").write_text("dev00-00 dev00\n")
    with pytest.raises(UserError, match="utt2spk of dev: utterance 'dev00-01' is missing"):
        Analysis(load_experiment(exp), {"dev": {"dev00-00": "dev00"}})


# ---- the page

def test_headline_says_that_an_ensemble_has_little_to_teach(tmp_path):
    for number, (ensemble, expected) in enumerate(((0.5, True), (0.1, False), (0.25, False))):
        exp, _ = make_experiment(tmp_path / str(number), {"baseline": 0.25, "student_essence": 0.25, "ensemble": ensemble}, seed=5)
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


def test_page_is_one_file_without_script_or_outside_resource(experiment):
    text = (experiment[0] / "report" / "report.html").read_text()
    assert '<td class="num optional">230 ms</td>' in text and '<td class="num optional">utterance</td>' in text
    assert "<script" not in text and "http://" not in text and "https://" not in text and "url(" not in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert sorted({source.partition(";")[0] for source in sources}) == ["data:audio/mpeg", "data:image/png"]
    assert len(sources) == 1 + 4  # the alignment, and the sound of two utterances gained and two lost
    for words in ("Word error rates", "Is it more than chance?", "The essence of the posteriors", "k = 20: 98.0 %",
                  "k for 90 % of the mass", "3.14", "99.5 %",
                  "Training", "One alignment", "Which labels, which weight?", "k = 5, \u03b1 = 0.5",
                  "Lowest on dev: k = 5.", "Over 2 seeds it is \u22121.2 points, \u22122.5 to +0.5.",
                  "As sure as right?", ">1.2<", "Size and speed", "Time and disk", "teachers (5 min 10 s)",
                  "Most improved", "Most harmed", "Provenance", "tdnn, 5 epochs, learning rate 0.003"):
        assert html.escape(words) in text or words in text
    assert "&lt;uh&gt;" in text and "<uh>" not in text


def test_page_without_extras_still_renders(tmp_path):
    exp, _ = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=2, turns=2)
    for path in ("ali", "posteriors", "essence_k20", "calibration", "ablation"):
        shutil.rmtree(exp / path)
    (exp / "stages.jsonl").unlink()
    for path in list(exp.glob("*/info.json")) + list(exp.glob("*/progress.jsonl")) + list(exp.glob("*/*/decode.json")):
        path.unlink()
    assert main(["report", str(exp), str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Word error rates" in text and "One alignment" not in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["corpus"] == "mini" and results["decoder"] is None and results["stages"] == {}


def test_every_section_has_its_template_and_what_is_not_escaped_is_our_own():
    names = {path.stem for path in TEMPLATES.glob("*.html")}
    assert names == {section.name for section in sections.SECTIONS} | {"report", "macros"}
    made_here = {"style", "body", "mark", "labels", "chart", "legend", "times", "disk"}  # style.py, page.py, charts.py
    for path in TEMPLATES.glob("*.html"):
        safe = re.findall(r"([^\s{]+) *\| *safe", path.read_text())
        assert {name.rpartition(".")[2] for name in safe} <= made_here, path
        assert path.read_text().count("safe") == len(safe)


def test_a_template_refuses_a_value_that_is_not_there():
    with pytest.raises(jinja2.UndefinedError, match="'column' is undefined"):
        page.environment().get_template("ablation.html").render(curve=None)


def test_names_and_words_are_text_and_not_markup(tmp_path):
    rates = {"baseline": 0.3, "student_essence": 0.2, "odd <x>&": 0.2}
    exp, data = make_experiment(tmp_path, rates, speakers=2, turns=2)
    for path, old in ((exp / "stages.jsonl", "teachers"), (exp / "student_essence/model.yaml", "tdnn"),
                      (exp / "ali/tree.txt", "HH_B"), (exp / "essence_k20/essence.json", "top-k"),
                      *((path, "lake") for path in exp.glob("*/decode_*/???.txt"))):
        path.write_text(path.read_text().replace(old, "<x>&"))
    assert report(exp, data, "--corpus", "'\"<x>&") == 0
    text = (exp / "report" / "report.html").read_text()
    assert "<x>" not in text and "&&" not in text and "&amp;lt;" not in text
    for words in ("distillation: '\"<x>&</title>", ">odd <x>&<", ">5 <x>&<", "\n<x>& (5 min", "<dd><x>&, 5 epochs",
                  "<dd><x>&</dd>", "<b><x>&</b>", '<span class="ref"><x>&</span>'):
        assert words in html.unescape(text), words


def test_the_package_needs_jinja_for_the_page_alone():
    code = "import sys, essence_kd.score.report; sys.exit('jinja2' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pytools")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


class Browser:
    """Headless Chromium over its debugging pipe (file descriptors 3 and 4, messages end with a zero byte)."""

    def __init__(self, binary):
        self.profile = tempfile.mkdtemp(prefix="essence-chromium-")
        theirs_in, self.out = os.pipe()
        self.inlet, theirs_out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]

        def hand_over():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "about:blank"],
            preexec_fn=hand_over, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self.rest, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _receive(self):
        while b"\0" not in self.rest:
            data = os.read(self.inlet, 1 << 16)
            if not data:
                raise RuntimeError("chromium has ended")
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path, width, dark):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        self.session = None
        os.write(self.out, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.inlet)
        shutil.rmtree(self.profile, ignore_errors=True)


@pytest.fixture(scope="module")
def browser():
    binary = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
    if binary is None:
        pytest.skip("no Chromium: install the package chromium to check the page in a browser")
    opened = Browser(binary)
    yield opened
    opened.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_in_a_browser(experiment, browser, width, dark):
    browser.open(experiment[0] / "report" / "report.html", width, dark)
    said = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not said, said
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:")) for url in asked) and len(asked) >= 1
    wide = browser.evaluate("[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > "
                            "innerWidth + 1).map(e => e.outerHTML.slice(0, 120)).slice(0, 3)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width and not wide, wide
    images = browser.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert images == [180]  # the alignment's 180 frames
    paper, ink = browser.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (brightness[0] < brightness[1]) == dark
    lines = browser.evaluate("[...document.querySelectorAll('path.line')].map(p => p.getBoundingClientRect().width)")
    # f_k; two or three curves of each of five models; WER against k and its baseline; two systems and the diagonal
    assert len(lines) == 13 + 2 + 3 and min(lines) > 100


def test_sounds_can_be_played(experiment, browser):
    browser.open(experiment[0] / "report" / "report.html", 390, False)
    browser.evaluate("document.querySelectorAll('audio').forEach(a => { a.preload = 'auto'; a.load(); })")
    for _ in range(100):
        seconds = browser.evaluate("[...document.querySelectorAll('audio')].map("
                                   "a => a.error ? -1 : a.readyState && a.duration)")
        if all(seconds):
            break
        time.sleep(0.1)
    assert len(seconds) == 4 and all(0.9 < s < 1.3 for s in seconds), seconds


# ---- parts

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


def test_phones_and_words_of_an_alignment(experiment):
    exp, data = experiment
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


def test_best_teacher_is_chosen_on_dev(tmp_path):
    exp, _ = make_experiment(tmp_path, {"teacher_1": 0.1, "teacher_2": 0.4}, speakers=3)
    shutil.copytree(exp / "teacher_1" / "decode_dev", exp / "swap")
    shutil.rmtree(exp / "teacher_1" / "decode_dev")
    shutil.copytree(exp / "teacher_2" / "decode_dev", exp / "teacher_1" / "decode_dev")
    shutil.rmtree(exp / "teacher_2" / "decode_dev")
    shutil.copytree(exp / "swap", exp / "teacher_2" / "decode_dev")
    assert best_teacher(load_experiment(exp)) == "teacher_2"
    assert [labels.size_text(n) for n in (None, 7, 30451, 304512, 3694813)] == ["\u2013", "7", "30.5 k", "305 k", "3.7 M"]
    assert [labels.bytes_text(n) for n in (0, 7, 30451)] == ["0 B", "7 B", "30.5 kB"]
    assert [labels.time_text(s) for s in (9.6, 99, 310, 7260)] == ["10 s", "99 s", "5 min 10 s", "2 h 01 min"]
