"""essence doctor: each line says what is there, or what to do about what is not."""
from __future__ import annotations

import os
import sys

import pytest
from builders import ROOT

from essence_kd import __version__


def rows(done):
    """{name: (mark, text, fix)} of what doctor prints."""
    found, name = {}, None
    for line in done.stdout.split("\n\n")[0].splitlines():
        if line.startswith(" "):
            found[name] = (*found[name][:2], line.strip()[3:])
        else:
            name = line[3:15].strip()
            found[name] = (line[:2].strip(), line[15:], "")
    return found


@pytest.fixture
def doctor(shell):
    def run(expected=0, **env):
        done = shell("local/bin/essence", "doctor", env={"KALDI_ROOT": "", **env})
        assert done.returncode == expected and not done.stderr, done.stdout + done.stderr
        return rows(done), done.stdout.splitlines()[-1]

    return run


def test_what_is_here_and_what_is_not(doctor, tmp_path):
    import torch

    found, last = doctor(ESSENCE_K2_PYTHON="/nowhere/python", ESSENCE_KERNELS="off", PATH="/usr/bin:/bin")
    assert last == "everything that ./run.sh needs is here"
    assert found["essence"] == ("ok", f"{__version__}, the checkout {ROOT}", "")
    assert found["Python"][1] == f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"
    assert found["PyTorch"][:2] == ("ok", torch.__version__)
    assert found["packages"] == ("ok", "all of conf/requirements/{core,recipe}.txt", "")
    assert found["kernels"][0] == "-" and "2 to 20 times slower" in found["kernels"][1]
    assert found["kernels"][2] == "unset ESSENCE_KERNELS"
    assert found["k2"][0] == "-" and "/nowhere/python has none that can be used" in found["k2"][1]
    assert "ESSENCE_K2_PYTHON" in found["k2"][2]
    assert found["Kaldi"][0] == "-" and "export KALDI_ROOT=" in found["Kaldi"][2]
    assert found["cores"][1].startswith(f"{len(os.sched_getaffinity(0))},") or "cpu.max" in os.listdir("/sys/fs/cgroup")
    assert str(tmp_path) in found["disk"][1]
    assert {"GPU", "lhotse", "C compiler", "sclite", "memory", "Slurm"} <= set(found)


@pytest.mark.compiler
def test_kernels_that_are_compiled_and_kernels_that_cannot_be(doctor, tmp_path):
    assert doctor()[0]["kernels"][:2][0] == "ok"
    found = doctor(CC="no-such-compiler", XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path))[0]
    assert found["C compiler"][1] == "'no-such-compiler' is not here or does not run"
    assert found["kernels"][0] == "-" and found["kernels"][1].startswith("not compiled (no-such-compiler: No such file")
    assert "gcc" in found["kernels"][2]


def test_a_kaldi_that_is_not_whole_names_what_it_lacks(doctor, tmp_path):
    assert doctor(KALDI_ROOT=str(tmp_path))[0]["Kaldi"][1] == f"{tmp_path} has no src/bin/copy-post"
    (tmp_path / "src" / "bin").mkdir(parents=True)
    (tmp_path / "src" / "bin" / "copy-post").touch()
    mark, text, fix = doctor(KALDI_ROOT=str(tmp_path))[0]["Kaldi"]
    assert (mark, text) == ("-", f"{tmp_path}, not whole") and "egs/wsj/s5/steps" in fix


def test_a_python_without_the_packages(doctor, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    found, last = doctor(1, ESSENCE_PYTHON=str(bare))
    assert found["packages"][0] == "!" and "local/setup_env.sh" in found["packages"][2]
    assert found["GPU"][1] == "cannot be told without the package torch"
    assert last == "missing for ./run.sh: packages, PyTorch, lhotse; the lines with -> say what to do"
