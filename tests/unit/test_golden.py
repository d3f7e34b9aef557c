"""The comparison of a run's word error rates with stored ones."""
import copy
import json
import subprocess
import sys

from builders import ROOT
from golden.compare import TOLERANCE, differences, read

STORED = json.loads((ROOT / "tests" / "golden" / "mini_tiny.json").read_text())


def more(system, points):
    """The stored figures with so many points of WER more over all sets of a system."""
    found = copy.deepcopy(STORED)
    sets = found["systems"][system]
    sets["dev"][0] += round(points / 100 * sum(words for _, words in sets.values()))
    return found


def test_what_machines_differ_by_passes_and_more_is_named():
    assert differences(STORED, STORED) == []
    for system, limit in (("gmm", TOLERANCE["gmm"]), ("student_essence_untranscribed", TOLERANCE["network"])):
        for sign in (1, -1):
            assert differences(STORED, more(system, sign * (limit - 0.1))) == []
            line, = differences(STORED, more(system, sign * (limit + 0.1)))
            assert line.startswith(f"{system}: %WER ") and f"differ by {limit} at most" in line


def test_a_little_worse_everywhere_is_named():
    found = copy.deepcopy(STORED)
    for system in STORED["systems"]:
        found["systems"][system] = more(system, TOLERANCE["mean"] + 0.2)["systems"][system]
    line, = differences(STORED, found)
    assert line.startswith("systems have +2.") and "points of WER on average" in line


def test_another_run_other_words_and_other_systems_are_named():
    assert "decoder kaldi'" in differences(STORED, {**STORED, "run": STORED["run"].replace("k2", "kaldi")})[0]
    found = copy.deepcopy(STORED)
    found["systems"]["baseline"]["eval_che"][1] += 1
    words = found["systems"]["baseline"]["eval_che"][1]
    found["systems"]["new"] = found["systems"].pop("ensemble")
    said = differences(STORED, found)
    assert said[:2] == ["ensemble: not in this run", "new: not stored"] and len(said) == 3
    assert said[2].startswith("baseline: words of the sets are") and f"'eval_che': {words}" in said[2]


def test_lines_of_results_are_read_and_the_end_tells(tmp_path):
    exp = tmp_path / "mini_tiny"
    exp.mkdir()
    lines = [f"%WER 0.00 [ {errors} / {words}, 0 ins, 0 del, {errors} sub ] /x y/exp/mini_tiny/{system}/decode_{name}"
             for system, sets in STORED["systems"].items() for name, (errors, words) in sets.items()]
    lines += ["%WER 66.06 [ 584 / 884, 32 ins, 125 del, 427 sub ] /exp/gmm (total of eval_swbd and eval_che)", "",
              "# By the rules of Hub5: STM and CTM by time",
              "%WER 1.00 [ 1 / 449, 1 ins, 0 del, 0 sub ] /exp/gmm/decode_dev/hyp.ctm"]
    (exp / "RESULTS").write_text("\n".join([f"# {STORED['run']}", "#", *lines]) + "\n")
    assert read(exp) == STORED
    command = [sys.executable, ROOT / "tests" / "golden" / "compare.py", exp]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "the word error rates are those of mini_tiny.json" in done.stdout
    (exp / "RESULTS").write_text("\n".join([f"# {STORED['run']}", *lines[:-9]]) + "\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "mini_tiny.json: student_essence_untranscribed: " in done.stderr
