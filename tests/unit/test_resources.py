"""Where files that come with the package are found, and when a commit is that of the package."""
import os
import shutil
import subprocess
import sys

import pytest
from builders import ROOT, refused

from essence_kd.io.resources import checkout, conf_file, model_file


def test_a_checkout_has_its_own_files(tmp_path, monkeypatch):
    assert checkout() == ROOT
    assert conf_file("decode.yaml") == ROOT / "conf" / "decode.yaml"
    refused(lambda: conf_file("models/student.yaml"), "models/student.yaml: there is no such file", "student_tdnn.yaml")
    monkeypatch.chdir(tmp_path)
    assert model_file("student_tdnn") == conf_file("models/student_tdnn.yaml")
    for path in ("mine.yaml", "models/student_tdnn", "/conf/models/student_tdnn.yaml"):
        assert str(model_file(path)) == path
    refused(lambda: model_file("student"), "conf/models/student.yaml")
    (tmp_path / "student").touch()
    assert str(model_file("student")) == "student"


def test_verbs_take_models_by_name(capsys):
    from essence_kd.cli.main import main

    assert main(["train", "--model", "student_tdn", "data", "ali", "model"]) == 1
    said = capsys.readouterr().err
    assert "conf/models/student_tdn.yaml: there is no such file" in said and "student_tdnn.yaml" in said


@pytest.mark.git
def test_the_commit_of_a_report_is_that_of_the_package(tmp_path):
    """In a checkout of its own; none where the files lie in somebody else's repository, or where they are installed."""
    def told(package):
        done = subprocess.run([sys.executable, "-c", "from essence_kd.score.report import provenance as p; d = p(); "
                               "print(d['commit'], d['modified'])"], env={**os.environ, "PYTHONPATH": str(package)},
                              cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    def git(folder, *words):
        done = subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", folder, *words], check=True,
                              capture_output=True, text=True)
        return done.stdout.strip()

    mine = tmp_path / "theirs" / "essence"
    shutil.copytree(ROOT / "pytools", mine / "pytools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.sh", "setup.py"):
        shutil.copy(ROOT / name, mine)
    shutil.copytree(mine / "pytools", tmp_path / "theirs" / ".venv" / "lib" / "python" / "site-packages")
    (tmp_path / "theirs" / "README").write_text("something else\n")
    git(tmp_path / "theirs", "init", "-q")
    git(tmp_path / "theirs", "add", "README")
    git(tmp_path / "theirs", "commit", "-q", "-m", "theirs")
    assert told(mine / "pytools") == ["None", "None"]
    assert told(tmp_path / "theirs" / ".venv" / "lib" / "python" / "site-packages") == ["None", "None"]
    git(mine, "init", "-q")
    git(mine, "add", ".")
    assert told(mine / "pytools") == ["None", "None"]  # nothing is committed
    git(mine, "commit", "-q", "-m", "mine")
    assert told(mine / "pytools") == [git(mine, "rev-parse", "HEAD"), "False"]
    (mine / "setup.py").write_text("")
    assert told(mine / "pytools")[1] == "True"
