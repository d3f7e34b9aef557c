"""Verbs on machines of many kinds: locales."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT

from essence_kd.io.tables import MatrixWriter

MAIN = ROOT / "pytools" / "essence_kd" / "__main__.py"
NOT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # what a locale such as ISO-8859-1 does


@pytest.mark.parametrize("start", [[ROOT / "local/bin/essence"], [sys.executable, "-m", "essence_kd"],
                                   [sys.executable, MAIN]], ids=["essence", "module", "path"])
@pytest.mark.parametrize("locale", [NOT_UTF8, {"LC_ALL": "xx_YY.UTF-8"}, {"LC_ALL": "POSIX", "PYTHONUTF8": ""}],
                         ids=["not UTF-8", "does not exist", "POSIX"])
def test_names_are_utf8_in_every_locale(tmp_path, start, locale):
    folder = tmp_path / "dätä"
    folder.mkdir()
    with MatrixWriter(f"ark,scp:{folder}/x.ark,{tmp_path}/x.scp") as writer:
        writer.write("Ω1", np.float32([[1, 3, 2]]))
    (folder / "x.json").write_text(json.dumps({"name": "größe Ω"}), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment.update(locale, PYTHONPATH=str(ROOT / "pytools"), ESSENCE_PYTHON=sys.executable, WORK_DIR=str(tmp_path))

    def run(*words):
        done = subprocess.run([*start, *words], env=environment, cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8")

    assert run("get", "dätä/x.json", "name") == "größe Ω\n"
    assert run("prune-post", "--input", "logit", "--top-k", "1", "scp:x.scp", "ark,t:-") == "Ω1 [ 1 1 ] \n"
