"""The package as a wheel in a fresh environment, far from the checkout: what users of ``pip install`` have."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT, table
from builders.experiment import make_experiment
from builders.recipe import make_recipe

import essence_kd
from essence_kd.io.posterior import read_posteriors
from essence_kd.io.settings import read_yaml
from essence_kd.io.tables import MatrixWriter
from essence_kd.io.text import read_words

pytestmark = pytest.mark.setuptools


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, made in a copy of it: without a network, by the setuptools at hand."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("pytools", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return next(source.glob("*.whl"))


@pytest.fixture(scope="module")
def essence(wheel, tmp_path_factory):
    """Runs ``essence`` of an environment that has the wheel, and this one's packages, in another folder: ``.folder``.

    That folder is somebody else's project: a git repository, if there is git, with the environment in it.
    """
    folder = make_recipe(tmp_path_factory.mktemp("theirs"))
    if shutil.which("git"):
        for words in ("init -q", "add data", "-c user.name=a -c user.email=a@b commit -q -m theirs"):
            subprocess.run(["git", *words.split()], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / ".venv")}))
    others = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (site / "theirs.pth").write_text("".join(f"{place}\n" for place in others))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WORK_DIR")}

    def run(*words, program="essence", env=None):
        done = subprocess.run([folder / ".venv" / "bin" / program, *map(str, words)], cwd=folder, text=True,
                              capture_output=True, env={**environment, **(env or {})})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", "--disable-pip-version-check",
        wheel, program="python")
    run.folder, run.site = folder, site
    return run


def test_the_wheel_has_what_the_verbs_need(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT / "pytools").as_posix() for path in (ROOT / "pytools" / "essence_kd").rglob("*")
               if path.is_file() and path.suffix in (".py", ".c", ".html", ".typed")}
    settings = {f"essence_kd/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    found = {name for name in names if ".dist-info/" not in name}
    assert found == package | settings and len(settings) > 10
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert f"\nVersion: {essence_kd.__version__}\n" in metadata and wheel.name.split("-")[1] == essence_kd.__version__
    told = re.findall(r"^Requires-Dist: ([^;\n ]+)", metadata, re.M)
    for kind in ("core", "recipe", "test", "export"):
        for line in (ROOT / "conf" / "requirements" / f"{kind}.txt").read_text().splitlines():
            need = re.match(r"[\w.\[\]-]+", line)
            assert need is None or any(name.startswith(need[0].split("[")[0]) for name in told), line
    assert re.search(r'^Requires-Dist: kaldi-decoder==\S+; extra == "recipe"$', metadata, re.M)


def test_the_command(essence):
    listing = essence("--help")
    for verb in (ROOT / "pytools" / "essence_kd" / "cli").glob("*.py"):
        assert verb.stem in ("__init__", "main") or f"  {verb.stem.replace('_', '-')} " in listing
    code = "import essence_kd; print(essence_kd.__file__, essence_kd.conf_file('essence.yaml'))"
    for path in essence("-c", code, program="python").split():
        assert path.startswith(str(essence.site / "essence_kd")), path


def test_from_posteriors_to_words(essence):
    """prune-post, train by the name of a packaged model, forward, and both ways to decode."""
    folder = essence.folder
    probs = np.random.default_rng(0).dirichlet(np.full(8, 0.3), size=14).astype(np.float32)
    full = table(MatrixWriter, folder / "full", {"utt1": probs})
    essence("prune-post", "--top-k", 3, full, "ark,scp:pruned.ark,pruned.scp")
    ((utt, post),) = read_posteriors(f"scp:{folder}/pruned.scp")
    assert utt == "utt1" and post.counts().tolist() == [3] * 14
    settings = {"optim.epochs": 1, "model.hidden": 16, "data.batch_frames": 200, "early_stopping.metric": "dev_wer",
                "early_stopping.data": "data/eval", "early_stopping.graph": "exp/graph",
                "early_stopping.decoder": "kaldi"}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    essence("train", "--model", "student_tdnn", *words, "--dev-data", "data/eval", "--dev-ali", "exp/ali", "--soft",
            "exp/post.scp", "data/eval", "exp/ali", "exp/named")
    about = read_yaml(folder / "exp" / "named" / "model.yaml")
    assert "dev_wer" in json.loads((folder / "exp" / "named" / "info.json").read_text())  # of verbs that it started
    wanted = read_yaml(ROOT / "conf" / "models" / "student_tdnn.yaml")
    assert (about["arch"], about["model"]["hidden"]) == (wanted["arch"], 16)
    assert about["model"]["dilations"] == wanted["model"]["dilations"]
    essence("forward", "exp/named", "data/eval", "ark,scp:scores.ark,scores.scp")
    for nj in (1, 2):  # in the process, and in processes that it starts
        essence("decode", "--decoder", "kaldi", "--nj", nj, "exp/graph", "scp:scores.scp", f"decode{nj}")
    words = read_words(folder / "decode1" / "hyp.txt")
    assert list(words) == ["utt1", "utt2"] and words == read_words(folder / "decode2" / "hyp.txt")


def test_jobs_in_processes_of_their_own(essence):
    code = ("import operator as o; from essence_kd.io.parallel import run_jobs as r; "
            "print(r(o.add, [(1, 2), (3, 4)], 2))")
    assert essence("-c", code, program="python") == "[3, 7]\n"


@pytest.mark.k2
def test_decoding_in_the_python_that_has_k2(essence, k2):
    folder = essence.folder
    scores = {"utt1": np.where(np.arange(8) == np.repeat([[2], [5]], 4, axis=0), 0.0, -9.0).astype(np.float32)}
    rspecifier = table(MatrixWriter, folder / "strong", scores)
    essence("decode", "--decoder", "k2", "exp/graph", rspecifier, "decode_k2", env=k2)
    assert read_words(folder / "decode_k2" / "hyp.txt") == {"utt1": ["w2", "w5"]}


def test_the_report_names_no_commit(essence, tmp_path):
    exp, _ = make_experiment(tmp_path, {"baseline": 0.3, "student_essence": 0.2}, speakers=2, turns=2)
    essence("report", "--draws", 100, exp)
    found = json.loads((exp / "report" / "results.json").read_text())["provenance"]
    assert found["commit"] is None and found["modified"] is None and found["versions"]["essence-kd"]
    assert (exp / "report" / "report.html").read_text().startswith("<!")
