"""``essence report`` of a small experiment: figures that anyone can recount, the page, refusals."""
from __future__ import annotations

import html
import json
import re
import shutil

import pytest
from builders.experiment import (FREE_COLOURS, FREE_PAIRS, FREE_RATES, RATES, SETS, free_names, make_experiment,
                                 recount, replan, report)
from builders.plans import make_plan, make_sets, student, usual_systems

from essence_kd.cli.main import main
from essence_kd.score import hub5, wer
from essence_kd.score.report import describe


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    exp, data = make_experiment(tmp_path_factory.mktemp("run"))
    assert report(exp) == 0
    return exp, data


# ---- results.json and RESULTS

def test_report_tells_what_each_system_costs(experiment):
    """Megaflops, look-ahead, training, real-time factor and active states stand in the row of the system."""
    exp, _ = experiment
    page = (exp / "report" / "report.html").read_text()
    table = next(t for t in re.findall(r"<table.*?</table>", page, re.S) if "Look-ahead" in t)
    row = next(row for row in table.split("</tr>") if "c-baseline" in row)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert cells[2:4] == ["0.20", "230 ms"] and cells[5:] == ["0.020", "321"]


def test_what_deployment_costs_is_shown_where_it_was_measured(tmp_path):
    """An ensemble's network costs what its members' do; exports and chunks have rows and cells of their own."""
    exp, _ = make_experiment(tmp_path, speakers=2, turns=2)
    assert report(exp) == 0
    assert "Deployed" not in (exp / "report" / "report.html").read_text()

    def row(name, network, **more):
        return {"system": name, "bytes": 1000, "cpu_ms": {"features": 0.5, "network": network, "search": 7.25},
                "start_cpu_s": 1.9, "peak_mb": 293, **more}

    chunks = {"chunk_p50_ms": 1.3, "chunk_p99_ms": 4.0, "word_ms": 406}
    rows = [row("teacher_1", 1.25), row("teacher_2", 2.5), row("student_essence", 0.875, **chunks),
            row("student_essence", 0.125, form="ONNX, int8 dynamic", wer=21.5)]
    told = {"kind": "deployment", "sets": ["eval_swbd", "eval_che"], "processor": "a <fast> one", "cores": 2,
            "written": "2026-11-30", "load": [0.5, 1.0], "utterances": 60, "chunk_ms": 300, "rows": rows}
    (exp / "deployment.json").write_text(json.dumps(told))
    assert report(exp) == 0
    page = (exp / "report" / "report.html").read_text()
    table = next(t for t in re.findall(r"<table.*?</table>", page, re.S) if "A word<br>after" in t)
    found = [re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in table.split("</tr>")[1:-1]]
    assert len(found) == 5 and "a &lt;fast&gt; one" in page
    assert [line[2] for line in found if line[3] == "\u2013"] == ["3.75"]
    assert [line[4:6] for line in found if line[4] != "\u2013"] == [["1.3, 4.0 ms", "406 ms"]]
    assert [line[2] for line in found if line[8] == "21.5"] == ["0.12"] and "ONNX, int8 dynamic" in table
    (exp / "deployment.json").write_text('{"rows": [{"system": "teacher_1"}]}')
    assert report(exp) == 1


def test_results_begin_with_what_the_run_was_given(tmp_path):
    """Of files their names, of folders of data nothing; names have blanks, values stay as they are."""
    text = tmp_path / "lm_text.gz"
    text.touch()
    plan = make_plan(tmp_path / "exp" / "run", recipe_options=[
        "fsdd_dir=/data/fsdd", f"lm_text={text}", "heldout_speakers=a_1 b", "eval_seed=7"])
    assert describe(plan, "k2", "a 3-gram") == (
        "corpus mini, size tiny, seed 1, engine native, decoder k2, lm text=lm_text.gz, heldout speakers=a_1 b, "
        "eval seed=7, rescored with a 3-gram")
    assert describe(make_plan(tmp_path / "exp" / "run"), None, None).endswith("decoder unknown")


def test_results_json_holds_what_a_recount_finds(experiment):
    exp, _ = experiment
    results = json.loads((exp / "report" / "results.json").read_text())
    assert [results[k] for k in ("corpus", "size", "seed", "engine", "decoder", "num_pdfs")] == \
        ["mini", "tiny", 3, "native", "kaldi", 21]
    assert list(results["systems"]) == list(RATES)
    for system, entry in results["systems"].items():
        assert set(entry) == {"role", "params", *SETS}
        for name in SETS:
            assert entry[name] == recount(exp, system, name)
    assert results["systems"]["baseline"]["params"] == 3000
    assert results["systems"]["ensemble"]["params"] == 1000 + 2000
    assert results["systems"]["gmm"]["params"] == 7900
    assert results["essence"] == {"select": "top-k", "k": 20, "mean_mass": 0.975, "bytes_per_frame": 205.12}
    assert results["stages"] == {"4": {"seconds": 61, "cpu_seconds": None, "bytes": 7},
                                 "5": {"seconds": 310, "cpu_seconds": 580, "bytes": 14},
                                 "10": {"seconds": 2, "cpu_seconds": None, "bytes": 1}}
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
    assert results["bootstrap"] == {"draws": 500, "unit": dict.fromkeys(SETS, "12 speakers")}


def test_results_text_lines_can_be_recounted(experiment):
    exp, _ = experiment
    text = (exp / "RESULTS").read_text()
    counted = recount(exp, "student_full", "eval_che")
    errors = counted["ins"] + counted["del"] + counted["sub"]
    assert (f"%WER {counted['wer']:.2f} [ {errors} / {counted['words']}, {counted['ins']} ins, {counted['del']} del, "
            f"{counted['sub']} sub ] {exp}/student_full/decode_eval_che\n") in text
    assert len(re.findall(r"^%WER ", text, re.M)) == len(RATES) * 4
    header = next(line for line in text.splitlines() if line.startswith("system "))
    assert header.split()[1:] == "parameters SWBD 95 % CHE 95 % total 95 % dev 95 %".split()


def add_times(exp, data):
    """One STM per test set, one CTM per system: every utterance is a recording, every word half a second."""
    for name in ("eval_swbd", "eval_che"):
        for ref in exp.glob(f"*/decode_{name}/ref.txt"):
            lines = [(line.split()[0], line.replace("<uh>", "uh").split()[1:]) for line in ref.open()]
            (data / name / "stm").write_text("".join(
                f"{utt} 1 {utt[:5]} 0.00 60.00 <O> {' '.join(words)}\n" for utt, words in lines))
            hyp = [(line.split()[0], line.replace("<uh>", "uh").split()[1:])
                   for line in (ref.parent / "hyp.txt").open()]
            (ref.parent / "hyp.ctm").write_text("".join(
                f"{utt} 1 {0.5 * i:.2f} 0.50 {word} 1.0\n" for utt, words in hyp for i, word in enumerate(words)))


@pytest.mark.parametrize("sclite", [False, pytest.param(True, marks=pytest.mark.sclite)])
def test_test_sets_with_an_stm_are_scored_by_time_too(tmp_path, monkeypatch, sclite):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})
    assert report(exp) == 0
    before = (exp / "RESULTS").read_text()
    assert json.loads((exp / "report" / "results.json").read_text())["hub5"]["systems"] == {}
    assert 'id="hub5"' not in (exp / "report" / "report.html").read_text()
    add_times(exp, data)
    if not sclite:
        monkeypatch.setattr(hub5, "find_sclite", lambda: None)
    assert report(exp) == 0
    text, found = (exp / "RESULTS").read_text(), json.loads((exp / "report" / "results.json").read_text())["hub5"]
    page = (exp / "report" / "report.html").read_text()
    section = re.search(r'<section id="hub5">.*?</section>', page, re.S).group(0)
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
    assert report(exp) == 0
    assert "baseline is not scored by time on eval_che" in capsys.readouterr().err
    found = json.loads((exp / "report" / "results.json").read_text())["hub5"]["systems"]
    assert set(found["baseline"]) == {"eval_swbd"}
    assert set(found["student_essence"]) == {"eval_swbd", "eval_che", "total"}
    ctm = exp / "baseline" / "decode_eval_swbd" / "hyp.ctm"
    ctm.write_text(ctm.read_text() + "elsewhere 1 0.00 0.50 yeah 1.0\n")
    assert report(exp) == 1
    assert "hyp.ctm: recording 'elsewhere' channel '1' is not in" in capsys.readouterr().err


def test_a_best_setting_at_the_edge_is_told(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=2, turns=2)
    (exp / "scales").mkdir()
    for scale, penalty in ((False, False), (True, False), (False, True)):
        found = {"best": {}, "scale_at_edge": scale, "penalty_at_edge": penalty}
        (exp / "scales" / "networks.json").write_text(json.dumps(found))
        assert report(exp) == 0
        for text in (capsys.readouterr().err, (exp / "RESULTS").read_text(), (exp / "report/report.html").read_text()):
            for what, edge in (("acoustic scale", scale), ("word insertion penalty", penalty)):
                assert (f"networks.json: the best {what} on the development set lies at the edge" in text) == edge


def test_the_same_experiment_gives_the_same_results(experiment, capsys):
    exp, data = experiment
    before = (exp / "RESULTS").read_bytes(), (exp / "report" / "results.json").read_text()
    assert report(exp) == 0
    assert (exp / "RESULTS").read_bytes() == before[0]
    first, second = json.loads(before[1]), json.loads((exp / "report" / "results.json").read_text())
    for results in (first, second):
        results["provenance"].pop("written")
    assert first == second
    assert "7 systems on eval_swbd, eval_che, dev" in capsys.readouterr().out


def test_few_speakers_are_not_resampled(tmp_path):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=3)
    assert report(exp) == 0
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
    (exp / "essence_k5").mkdir()  # of an earlier plan
    (exp / "essence_k5" / "essence.json").write_text('{"k": 5}')
    assert report(exp) == 0
    told = capsys.readouterr().err
    for words in ("has no decode_dev", "2 utterances without a hypothesis, counted as deleted",
                  "no path survived the search", f"{exp}/ensemble: not decoded, so not in the table",
                  "different decoders (k2, kaldi)",
                  "dev/utt2spk: no such file"):
        assert words in told
    page_text = (exp / "report" / "report.html").read_text()
    assert "2 utterances without a hypothesis" in page_text and "ensemble: not decoded" in page_text
    assert f"# {exp}/ensemble: not decoded" in (exp / "RESULTS").read_text()
    found = json.loads((exp / "report" / "results.json").read_text())
    assert found["decoder"] == "k2+kaldi" and found["essence"]["k"] == 20
    assert list(found["systems"]) == ["baseline", "student_essence"]
    (exp / "essence_k20" / "essence.json").unlink()
    assert report(exp) == 0
    assert "essence_k20/essence.json: no such file (stage 7 makes it)" in capsys.readouterr().err


def test_sets_of_other_names(tmp_path):
    """The plan names its sets: the total is that of all test sets, whatever they are called."""
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
    replan(exp, sets=make_sets({"train": "train", "valid": "dev", "clean": "test", "other": "test", "third": "test"}))
    assert report(exp) == 0
    found = json.loads((exp / "report" / "results.json").read_text())
    student, tests = found["systems"]["student_essence"], ["clean", "other", "third"]
    assert found["totals"]["student_essence"]["words"] == sum(student[name]["words"] for name in tests)
    assert {c["set"] for c in found["comparisons"]} == {*tests, "total"}
    text = (exp / "RESULTS").read_text()
    assert "(total of clean and other and third)" in text and "valid" in text
    assert "all test sets" in (exp / "report" / "report.html").read_text()


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """An experiment whose names say nothing of roles."""
    exp, _ = make_experiment(tmp_path_factory.mktemp("free"), FREE_RATES, factors={"fri": 1.0, "tune": 1.0, "sat": 1.6},
                             **free_names())
    assert report(exp) == 0
    return exp, json.loads((exp / "report" / "results.json").read_text())


def test_results_go_by_role_whatever_the_names(free):
    exp, found = free
    roles = {s.name: s.role for s in free_names()["systems"]}
    assert {name: entry["role"] for name, entry in found["systems"].items()} == roles
    assert list(found["systems"]) == list(roles)
    for name, entry in found["systems"].items():
        for set_ in ("fri", "sat", "tune"):
            assert entry[set_] == recount(exp, name, set_)
        assert "sun" not in entry and found["totals"][name]["words"] == sum(entry[s]["words"] for s in ("fri", "sat"))
    assert found["systems"]["old"]["params"] == 7900 and found["systems"]["choir"]["params"] == 1000 + 2000
    assert found["essence"]["bytes_per_frame"] == 205.12 and found["essence"]["k"] == 20
    assert found["notices"] == []


def test_comparisons_go_by_role_whatever_the_names(free):
    _, found = free
    rows = {(c["a"], c["b"], c["set"]): c for c in found["comparisons"]}
    dev = {name: found["systems"][name]["tune"]["wer"] for name in ("student_one", "gmm")}
    best = ("choir", min(dev, key=dev.get))
    pairs = {pair for pair in FREE_PAIRS if pair != ("choir", "student_one")} | {best}
    assert set(rows) == {(*pair, set_) for pair in pairs for set_ in ("fri", "sat", "total")}
    for (a, b, set_), row in rows.items():
        rates = found["totals"] if set_ == "total" else {name: entry[set_] for name, entry in found["systems"].items()}
        assert row["diff"] == pytest.approx(rates[a]["wer"] - rates[b]["wer"], abs=1e-3)
        assert row["low"] <= row["diff"] <= row["high"]
    assert found["bootstrap"]["unit"] == dict.fromkeys(("fri", "sat", "tune"), "12 speakers")


def test_results_text_has_the_labels_of_the_sets(free):
    exp, found = free
    text = (exp / "RESULTS").read_text()
    lines = re.findall(r"^%WER ([\d.]+) .* (\S+/decode_\w+|\S+ \(total of fri and sat\))$", text, re.M)
    assert [place for _, place in lines] == [
        f"{exp}/{name}{place}" for name in FREE_RATES
        for place in ("/decode_fri", "/decode_sat", " (total of fri and sat)", "/decode_tune")]
    shown = {place: float(rate) for rate, place in lines}
    assert shown[f"{exp}/alice/decode_sat"] == pytest.approx(found["systems"]["alice"]["sat"]["wer"], abs=0.006)
    header = next(line for line in text.splitlines() if line.startswith("system "))
    assert header.split()[1:] == "parameters Friday 95 % Saturday 95 % total 95 % tune 95 %".split()
    assert re.search(r"^dora - alice +Friday +[+-]", text, re.M)
    assert "Friday: 12 speakers, Saturday: 12 speakers" in text


def test_the_page_has_labels_and_colours_of_roles(free):
    exp, found = free
    text = (exp / "report" / "report.html").read_text()
    table = re.search(r'<section id="wer">.*?</section>', text, re.S).group(0)
    assert re.findall(r'<th class="num">([^<]*)</th>', table) == ["Friday", "Saturday", "total"]
    rows = re.findall(r'<th[^>]*>.*?</th>', table[table.index("<tbody>"):], re.S)
    labels = {s.name: s.label for s in free_names()["systems"]}
    for row, name in zip(rows, FREE_RATES):
        assert labels[name] in row and re.findall(r"c-[a-z-]+", row) == [FREE_COLOURS[name]], row
    assert len(rows) == len(FREE_RATES) and "leaves the GMM out" in table
    rates = found["totals"]
    assert f"the word error rate goes from {rates['alice']['wer']:.1f} % to {rates['dora']['wer']:.1f} %" in text
    assert f"with every soft label the same student gets {rates['baseline']['wer']:.1f} %." in text
    assert ">Dora <span class=\"muted\">against</span> Alice<" in text
    assert ">Gil <span class=\"muted\">against</span> Fay<" in text
    assert "Over 2 seeds it is \u22121.2 points" in text and "WER in percent, total" in text


def test_a_student_that_is_not_decoded_is_told_and_another_takes_its_place(tmp_path, capsys):
    rates = {name: rate for name, rate in FREE_RATES.items() if name not in ("dora", "eve", "carol")}
    exp, _ = make_experiment(tmp_path, rates, factors={"fri": 1.0, "tune": 1.0, "sat": 1.6}, **free_names())
    assert report(exp) == 0
    told = capsys.readouterr().err
    for name in ("dora", "eve", "carol"):
        assert f"{exp}/{name}: not decoded, so not in the table" in told
        assert f"# {exp}/{name}: not decoded" in (exp / "RESULTS").read_text()
    assert f"{exp}/alice: not" not in told
    found = json.loads((exp / "report" / "results.json").read_text())
    assert {(c["a"], c["b"]) for c in found["comparisons"]} - {("choir", "gmm"), ("choir", "student_one")} == {
        (a, b) for a, b in FREE_PAIRS if a in rates and b in rates and a != "choir"} | {("choir", "alice")}
    assert "not decoded" in (exp / "report" / "report.html").read_text()


@pytest.mark.parametrize("text, words", [
    (None, "no such file; run.sh, or 'essence plan', writes it"), ("{", "not JSON"), ("{}", "missing key 'corpus'"),
    ("[]", "expected a JSON object")])
def test_a_plan_that_is_missing_or_damaged_is_refused_by_name(tmp_path, capsys, text, words):
    exp, _ = make_experiment(tmp_path, {"baseline": 0.3}, speakers=2, turns=2)
    (exp / "plan.json").unlink()
    if text:
        (exp / "plan.json").write_text(text)
    assert report(exp) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"{exp}/plan.json: " in told[0] and words in told[0]
    assert not (exp / "RESULTS").exists()


def test_any_two_systems_are_compared(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"teacher_1": 0.2, "teacher_2": 0.25, "baseline": 0.3})
    assert report(exp, "--compare", "teacher_2", "teacher_1", "--compare", "teacher_1", "baseline") == 0
    comparisons = json.loads((exp / "report" / "results.json").read_text())["comparisons"]
    rows = {(c["a"], c["b"], c["set"]): c for c in comparisons}
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
    interval = re.findall(r"interval (\S+) to (\S+),", line)[0]
    assert [float(x) for x in interval] == pytest.approx([row["low"], row["high"]], abs=0.8)
    assert main([*command, "--glm", "default"]) == 1 and "leave out --glm" in capsys.readouterr().err
    assert report(exp, "--compare", "teacher_1", "nobody") == 1
    refusal = "--compare names 'nobody', which is not among the systems: teacher_1 teacher_2 baseline"
    assert refusal in capsys.readouterr().err


def test_rescoring_is_told(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})

    def rescored(system, order):
        for path in (exp / system).glob("decode_*/decode.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "rescoring": order and {"order": order}}))

    assert report(exp) == 0
    plain = json.loads((exp / "report" / "results.json").read_text())
    assert plain["rescoring"] is None and "rescored" not in (exp / "RESULTS").read_text() + capsys.readouterr().err
    rescored("baseline", 4)
    assert report(exp) == 0
    assert "not all words were rescored with the same language model: baseline with a 4-gram; student_essence not" \
        in (exp / "RESULTS").read_text() and "student_essence not" in capsys.readouterr().err
    rescored("student_essence", 4)
    assert report(exp) == 0
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
    (lambda e: (e / "stages.jsonl").write_text("{\"stage\": 1}\n"), "lacks 'stage' or numbers"),
    (lambda e: (e / "stages.jsonl").write_text("{\"stage\": 1, \"seconds\": \"long\"}\n"),
     "lacks 'stage' or numbers"),
    (lambda e: (e / "baseline/info.json").write_text("[1]"), "expected a JSON object"),
    (lambda e: (e / "baseline/progress.jsonl").write_text("{\"epoch\": \"one\"}\n"), "line 1: epoch is no number"),
    (lambda e: (e / "ablation").mkdir(exist_ok=True) or (e / "ablation/results.json").write_text("{}"), "has no base"),
    (lambda e: respoil(e / "ablation/results.json", lambda v: v["points"]["hard"].pop("wer")),
     "ablation/results.json: has values"),
    (lambda e: respoil(e / "ablation/results.json", lambda v: v["comparisons"][0].update(diff="less")),
     "results.json: has values"),
    (lambda e: respoil(e / "posteriors/post_stats.json", lambda v: v.update(f_k=["much"])),
     "post_stats.json: has values"),
    (lambda e: respoil(e / "calibration/calibration.json", lambda v: v["systems"]["baseline"].pop("ece")),
     "calibration.json: has values that its stage does not write (KeyError: 'ece')"),
    (lambda e: respoil(e / "calibration/calibration.json", lambda v: v["systems"].update(nobody={})),
     "calibration.json: has values that its stage does not write (KeyError: 'nobody')"),
    (lambda e: (e / "baseline/decode_dev/hyp.txt").write_bytes(b"x \xe9\n"), "hyp.txt: line 1 (x) is not UTF-8"),
    (lambda e: (e / "essence_k20/essence.json").write_text("{"), "not a JSON file"),
    (lambda e: (e / "essence_k20/essence.json").write_text('{"mean_mass": "much"}'),
     "mean_mass is 'much', not a number"),
    (lambda e: (e / "ali/num_pdfs").write_text("\n"), "num_pdfs: expected a whole number, got ''"),
    (lambda e: (e / "ali/num_pdfs").write_text("many\n"), "num_pdfs: expected a whole number, got 'many'"),
    (lambda e: (e / "ali/tree.txt").write_text("0 SIL\n"), "expected 'PDF-ID PHONE STATE'"),
    (lambda e: (e / "ali/tree.txt").write_text("0 SIL 0\n"), "is not in tree.txt"),
    (lambda e: [shutil.rmtree(p) for p in e.glob("*/decode_*")], "no SYSTEM/decode_SET/hyp.txt found"),
])
def test_spoilt_experiments_are_refused_in_one_line(tmp_path, capsys, spoil, words):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=2, turns=2)
    spoil(exp)
    assert report(exp) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and words in error[0] and str(exp) in error[0] or "pdf-id" in error[0]


def test_an_ablation_of_another_baseline_is_left_out(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})
    assert report(exp) == 0
    assert "Which labels, which weight?" in (exp / "report" / "report.html").read_text()
    found = json.loads((exp / "ablation" / "results.json").read_text())
    found["points"]["hard"]["systems"]["9"] = "baseline"  # a seed that was not decoded then
    (exp / "ablation" / "results.json").write_text(json.dumps(found))
    assert report(exp) == 0
    found["points"]["hard"]["wer"]["dev"]["each_seed"][0] += 1
    (exp / "ablation" / "results.json").write_text(json.dumps(found))
    assert report(exp) == 0
    assert "was made when baseline was another model" in capsys.readouterr().err
    assert "Which labels, which weight?" not in (exp / "report" / "report.html").read_text()


def test_an_utterance_without_a_recording_is_named(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2})
    (data / "eval_che" / "wav.scp").write_text("other /nowhere.wav\n")
    assert report(exp) == 1
    assert "eval_che/wav.scp: utterance" in capsys.readouterr().err


def test_wrong_arguments_are_refused(tmp_path, capsys):
    exp, data = make_experiment(tmp_path, {"baseline": 0.3}, speakers=2, turns=2)
    assert report(exp / "no") == 1
    assert report(exp, "--systems", "baseline student_essence") == 1
    assert report(exp, "--systems", "baseline nobody") == 1
    assert report(exp, "--draws", "3") == 1
    (data / "dev" / "utt2spk").write_text("dev00-00 dev00\n")
    assert report(exp) == 1
    told = capsys.readouterr().err.splitlines()
    assert ["no such directory" in told[0], "student_essence: no decode_SET/hyp.txt" in told[1],
            "the plan has no system 'nobody'; it has: gmm teacher_1" in told[2], "--draws 3" in told[3],
            "utt2spk of dev: utterance 'dev00-01' is missing" in told[4]] == [True] * 5


# ---- the page

def test_page_is_one_file_without_script_or_outside_resource(experiment):
    text = (experiment[0] / "report" / "report.html").read_text()
    assert '<td class="num optional">230 ms</td>' in text and '<td class="num optional">utterance</td>' in text
    assert "<script" not in text and "http://" not in text and "https://" not in text and "url(" not in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert sorted({source.partition(";")[0] for source in sources}) == ["data:audio/mpeg", "data:image/png"]
    assert len(sources) == 1 + 4  # the alignment, and the sound of two utterances gained and two lost
    for words in ("Word error rates", "Is it more than chance?", "that one seed can tell", "Same best<br>class, %",
                  ">81.2<", ">0.38<", "The essence of the posteriors", "k = 20: 98.0 %",
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


def test_names_and_words_are_text_and_not_markup(tmp_path):
    rates = {"baseline": 0.3, "student_essence": 0.2, "odd": 0.2}
    exp, _ = make_experiment(tmp_path, rates, speakers=2, turns=2, corpus="mini", systems=[
        *usual_systems(), student("odd", "full", "baseline", "odd <x>&")])
    for path, old in ((exp / "stages.jsonl", "teachers"), (exp / "student_essence/model.yaml", "tdnn"),
                      (exp / "ali/tree.txt", "HH_B"), (exp / "essence_k20/essence.json", "top-k"),
                      *((path, "lake") for path in exp.glob("*/decode_*/???.txt"))):
        path.write_text(path.read_text().replace(old, "<x>&"))
    assert report(exp) == 0
    text = (exp / "report" / "report.html").read_text()
    assert "<x>" not in text and "&&" not in text and "&amp;lt;" not in text
    for words in (">odd <x>&<", ">5 <x>&<", "\n<x>& (5 min", "<dd><x>&, 5 epochs",
                  "<dd><x>&</dd>", "<b><x>&</b>", '<span class="ref"><x>&</span>'):
        assert words in html.unescape(text), words
