"""How the compiled kernels are made, kept and done without."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from essence_kd.io import kernels as module

SAY = "from essence_kd.io.kernels import kernels; print(kernels() is not None)"


def say(**env):
    """What a fresh process with these variables says of its kernels."""
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).resolve().parents[2]), **env}
    done = subprocess.run([sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler (apt-get install gcc)")
def test_made_once_and_kept(tmp_path):
    assert say(ESSENCE_KERNELS=str(tmp_path))
    made, = tmp_path.iterdir()
    before = made.stat().st_mtime_ns
    assert say(ESSENCE_KERNELS=str(tmp_path))
    assert [p.stat().st_mtime_ns for p in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("env", [{"ESSENCE_KERNELS": "off"}, {"CC": "/nowhere/cc"}, {"CC": "false"}])
def test_done_without(tmp_path, env):
    assert not say(**{"ESSENCE_KERNELS": str(tmp_path), **env})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    assert not say(ESSENCE_KERNELS=str(tmp_path / "file" / "below"))


def test_a_broken_library_is_not_used(tmp_path):
    if not say(ESSENCE_KERNELS=str(tmp_path)):
        pytest.skip("no C compiler (apt-get install gcc)")
    made, = tmp_path.iterdir()
    made.write_bytes(b"")
    assert not say(ESSENCE_KERNELS=str(tmp_path))
