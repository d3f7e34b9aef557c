"""Every reader on its seeds and on some hundred mutations of them, the same in each run."""
from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fuzz import driver

driver.load()
HERE = Path(driver.SEEDS).parent
SLOW = {"yaml": 30, "grid": 30, "model_yaml": 30, "lookup": 30, "checkpoint": 20, "gmm": 100, "graph": 100}
USUAL = 250  # mutations


def test_each_target_has_seeds():
    assert {path.name for path in driver.SEEDS.iterdir()} == {*driver.TARGETS, "kernels"}
    assert sum(path.stat().st_size for path in driver.SEEDS.rglob("*") if path.is_file()) < 200_000


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
