"""The Dockerfile and the devcontainer: what they name is there, and their steps work in a clean Debian."""
from __future__ import annotations

import json
import re

import pytest
from builders import ROOT
from builders.container import Container, instructions

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_what_they_name_is_there():
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.M)
    dev = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert dev["build"]["target"] in stages
    assert (ROOT / ".devcontainer" / dev["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert f" {dev['remoteUser']}" in DOCKERFILE
    for command in (DOCKERFILE, dev["postCreateCommand"]):
        for script in re.findall(r"(?<![\w/])((?:local|\.)/[\w./]*\w)", command):
            assert (ROOT / script).exists(), script
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", "data", "exp", ".venv", ".venv-k2"} <= set(ignored)


@pytest.mark.slow
@pytest.mark.debootstrap
@pytest.mark.mount
def test_the_steps_in_a_clean_debian(tmp_path):
    """As docker build and docker run take them, but without k2; of the main job its first stages."""
    container = Container(tmp_path / "debian", {"K2": "false"})
    try:
        for instruction, argument in instructions(DOCKERFILE):
            container.take(instruction, argument)
        assert container.command == ["./run.sh", "--size", "tiny"]
        done = container.run(" ".join([*container.command, "--stop-stage", "2"]))
        assert done.returncode == 0 and "stage 2 took" in done.stdout, done.stdout + done.stderr
        doctor = container.run("essence doctor")
        assert "everything that ./run.sh needs is here" in doctor.stdout, doctor.stdout + doctor.stderr
        assert re.search(r"^ok kernels +compiled", doctor.stdout, re.M), doctor.stdout
        dev = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
        made = container.run(dev["postCreateCommand"])
        assert made.returncode == 0, made.stdout + made.stderr
        tests = container.run(".venv/bin/python -m pytest -q -p no:cacheprovider tests/unit/test_losses.py")
        assert tests.returncode == 0, tests.stdout + tests.stderr
    finally:
        container.end()
