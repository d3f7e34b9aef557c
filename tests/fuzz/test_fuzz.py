"""Every reader on its seeds and on some hundred mutations of them, the same in each run."""
from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from builders import refused

from fuzz import driver

driver.load()
HERE = Path(driver.SEEDS).parent
SLOW = {"yaml": 30, "grid": 30, "model_yaml": 30, "lookup": 30, "checkpoint": 20, "gmm": 100, "graph": 100}
USUAL = 250  # mutations


def test_each_target_has_seeds():
    assert {path.name for path in driver.SEEDS.iterdir()} == {*driver.TARGETS, "kernels"}
    assert sum(path.stat().st_size for path in driver.SEEDS.rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize("name", driver.TARGETS)
def test_a_value_or_a_user_error(name):
    reader, known = driver.TARGETS[name], driver.seeds(name)
    taken = 0
    with driver.Quiet():
        for data in itertools.islice(driver.made_up(name), len(known) + SLOW.get(name, USUAL)):
            try:
                taken += driver.run(reader, data)
            except (Exception, driver.TooSlow) as error:
                raise AssertionError(f"{driver.signature(error)} of {data!r}") from error
    assert taken, "no input is good: what is tested is the refusal alone"


@pytest.mark.parametrize("name", driver.TARGETS)
def test_seeds_are_taken_or_refused_as_their_names_say(name):
    """bad-...: what was found, or what must not come in."""
    for path in sorted((driver.SEEDS / name).iterdir()):
        with driver.Quiet():
            taken = driver.run(driver.TARGETS[name], path.read_bytes())
        assert taken != path.name.startswith("bad-"), path.name


FOUND = {  # what some of them are told
    "posterior_compact/bad-widths": "compact header is damaged",  # a table of 2^31 ratios was made
    "posterior_compact/bad-mass": "the mass of a frame is negative or not a finite number",
    "symbols/bad-id": "line 2: the id 4000000000 is too large",
    "topology/bad-target": "a transition to state 7",
    "fst/bad-counts": "its counts disagree",
    "fst/bad-type": r"type 'vec\nor'",
    "transition_model/bad-count": "a vector of -1 numbers",
    "transition_model/bad-phone": "phone -1, state 0",
    "transitions/bad-pdf": "pdf-id 0 belongs to no state",
    "graph/bad-size": "src.npy is not (1099511627776,) of int32",
    "graph/bad-label": "its ilabel goes from 1 to 77, where there are",
    "graph/bad-meta": "'num_pdfs'",
    "graph/bad-text": "phones is no text",
    "arpa/bad-no-unigrams": "there are no 1-grams",
    "checkpoint/bad-optimiser": "not a whole checkpoint (KeyError: 'optimiser')",
    "checkpoint/bad-weight": "Missing key(s) in state_dict",
    "stm/bad-time": "line 1: time 1e999 is negative, endless",
    "glm/bad-expression": "line 1: '[stm' is no regular expression",
    "yaml/bad-aliases": "its aliases stand for 100000 values or more",
    "yaml/bad-scalars": "month must be in 1..12",
    "sidecar/bad-number": "inf cannot be stored in a sidecar",
    "sweep/bad-errors": "not a whole sweep.json",
    "shards/bad-line": "a line is not 'SET SHARD FRAMES UTTERANCE'",
}


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_is_refused_by_name(seed):
    name, _, _ = seed.partition("/")
    with driver.Quiet():
        refused(lambda: driver.TARGETS[name]((driver.SEEDS / seed).read_bytes()), FOUND[seed])


def test_what_breaks_a_rule_is_found():
    """A crash, a message of two lines, too much memory and too much time do not pass."""
    def crash(data):
        raise KeyError("x")

    def hoard(data):
        np.empty(2 * driver.MEMORY, np.uint8)

    def hang(data):
        while True:
            pass

    with driver.Quiet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "SECONDS", 0.1)
        for reader, kind in ((crash, KeyError), (hoard, MemoryError), (hang, driver.TooSlow)):
            with pytest.raises(kind):
                driver.run(reader, b"")


@pytest.mark.clang
def test_kernels_under_sanitizers(tmp_path):
    """The seeds and some seconds more."""
    done = subprocess.run(["bash", str(HERE / "run.sh"), "--seconds", "5", "--dir", str(tmp_path), "kernels"],
                          capture_output=True, text=True, timeout=300, env={**os.environ, "ESSENCE_PYTHON": "false"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "kernels" in done.stdout and shutil.which("clang")
