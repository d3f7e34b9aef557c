"""What a program imports from essence_kd: it is light, whole, documented, and its examples run."""
from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT, refused
from builders.recipe import make_recipe, train_student

import essence_kd
from essence_kd.am.models.registry import ARCHITECTURES
from essence_kd.cli.main import main
from essence_kd.decode.decoder import DECODERS
from essence_kd.distill.losses import LOSSES
from essence_kd.distill.mass_rules import MASS_RULES
from essence_kd.distill.rules import RULES

API = ROOT / "docs" / "api.md"


def outside(code):
    """What Python prints that has only this package on its path."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT / "pytools"), "KALDI_ROOT": "", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light():
    printed = outside("import sys, essence_kd; dir(essence_kd); essence_kd.__all__; essence_kd.__version__\n"
                      "heavy = {'numpy', 'torch', 'yaml', 'pathlib'}\n"
                      "print([m for m in sys.modules if m in heavy or m.startswith('essence_kd.')])")
    assert printed == "[]\n"
    printed = outside("from essence_kd import read_posteriors, select, Rule, read_alignments, register_decoder\n"
                      "import sys; print('torch' in sys.modules)")
    assert printed == "False\n"


def test_every_name_is_there():
    assert len(set(essence_kd.__all__)) == len(essence_kd.__all__) and set(essence_kd.__all__) <= set(dir(essence_kd))
    for name in essence_kd.__all__:
        assert callable(getattr(essence_kd, name)), name
    with pytest.raises(AttributeError, match="module 'essence_kd' has no attribute 'prune'"):
        essence_kd.prune  # noqa: B018
    tree = ast.parse((ROOT / "pytools" / "essence_kd" / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in checked.body for alias in node.names}
    assert told == {"decode": "essence_kd", **{name: f"essence_kd.{home}" for name, home in essence_kd._HOME.items()}}


@pytest.mark.parametrize("before", ["", "import essence_kd.decode.runner; "])
def test_decode_is_the_package_that_can_be_called(before):
    """The name is the same thing whatever was imported before."""
    assert outside(f"{before}from essence_kd import decode; import essence_kd.decode.decoder\n"
                   "print(decode is essence_kd.decode, callable(decode), decode.decoder.Decoder.__name__)"
                   ) == "True True Decoder\n"
    assert list(inspect.signature(essence_kd.decode).parameters)[:3] == ["graph_dir", "scores", "out_dir"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    made = make_recipe(tmp_path_factory.mktemp("recipe"))
    train_student(made)
    return made


@pytest.fixture
def example(recipe, monkeypatch):
    """Runs the examples of a text in the recipe directory; what they register is forgotten afterwards."""
    monkeypatch.chdir(recipe)

    def run(text, name):
        test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, name, 0)
        said = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        assert result.attempted and not result.failed, "".join(said)
    yield run
    for registry in (RULES, MASS_RULES, LOSSES, ARCHITECTURES, DECODERS):
        for name in [name for name, entry in registry._entries.items() if entry.__module__ == "__main__"]:
            del registry._entries[name]


@pytest.mark.parametrize("name", essence_kd.__all__)
def test_examples(name, example):
    found = getattr(essence_kd, name)
    doc = inspect.getdoc(type(found).__call__ if inspect.ismodule(found) else found)
    assert re.search(rf"^>>> from essence_kd import .*\b{name}\b", doc, re.M), "there is no example of it"
    example(doc, name)


def test_examples_of_the_document(example):
    text = API.read_text(encoding="utf-8")
    example(text, "docs/api.md")
    for name in essence_kd.__all__:
        assert f"`{name}`" in text, name


@pytest.fixture
def scores(recipe):
    return list(essence_kd.forward(recipe / "exp" / "student", recipe / "data" / "eval"))


def test_forward_gives_what_the_verb_writes(recipe, scores, tmp_path):
    student, data = recipe / "exp" / "student", recipe / "data" / "eval"
    assert main(["forward", str(student), str(data), f"ark:{tmp_path}/s.ark"]) == 0
    for (utt, matrix), (same, stored) in zip(scores, essence_kd.read_matrices(f"ark:{tmp_path}/s.ark")):
        assert utt == same and np.array_equal(matrix, stored)
    (_, one), _ = essence_kd.forward([student] * 2, data, output="prob", combine="logmean")
    np.testing.assert_allclose(one.sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(TypeError):
        essence_kd.forward(student, data, ouput="prob")


def test_decode_gives_what_the_verb_writes(recipe, scores, tmp_path):
    graph = recipe / "exp" / "graph"
    words = essence_kd.decode(graph, scores, tmp_path / "out", decoder="kaldi", acoustic_scale=0.7)
    assert list(words) == ["utt1", "utt2"]
    assert (tmp_path / "out" / "hyp.txt").read_text() == "".join(" ".join([u, *w]) + "\n" for u, w in words.items())
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"hyp.txt", "hyp.ctm", "decode.json"}
    assert essence_kd.decode(graph, iter(scores), decoder="kaldi", acoustic_scale=0.7, nj=2) == words
    loud = essence_kd.decode(graph, scores, decoder="kaldi", acoustic_scale=0.7, word_insertion_penalty=1000.0)
    assert sum(map(len, loud.values())) < sum(map(len, words.values()))
    narrow = [("a", np.zeros((3, 7), np.float32))]
    refused(lambda: essence_kd.decode(graph, narrow, decoder="kaldi"), "7 columns", "8 pdfs")
    refused(lambda: essence_kd.decode(graph, scores, decoder="kaldi", beam=-1.0), "--beam is -1.0")
    refused(lambda: essence_kd.decode(graph, scores, decoder="vosk"), "unknown decoder 'vosk'")
    with pytest.raises(TypeError):
        essence_kd.decode(graph, scores, decoder="kaldi", bean=3.0)


def test_decode_by_the_python_that_has_k2(recipe, scores, k2, monkeypatch, tmp_path):
    monkeypatch.setenv("ESSENCE_K2_PYTHON", k2["ESSENCE_K2_PYTHON"])
    graph = recipe / "exp" / "graph"
    words = essence_kd.decode(graph, scores, tmp_path / "out", acoustic_scale=0.7, sweep_scales=[0.1, 0.2])
    assert '"decoder": "k2"' in (tmp_path / "out" / "decode.json").read_text()
    assert words == essence_kd.decode(graph, scores, decoder="kaldi", acoustic_scale=0.7)
    if importlib.util.find_spec("k2") is None:
        narrow = [("a", np.zeros((3, 7), np.float32))]
        refused(lambda: essence_kd.decode(graph, narrow, decoder="k2"), "k2 ended with status 1")


def test_write_posteriors_takes_what_select_gives(tmp_path):
    probs = np.random.default_rng(0).dirichlet(np.ones(9), size=5).astype(np.float32)
    essence = essence_kd.select(probs, essence_kd.EssenceSettings(select="top-p", top_p=0.6))
    assert essence_kd.write_posteriors(f"ark:{tmp_path}/p.ark", [("a", essence)]) == 1
    ((utt, post),) = essence_kd.read_posteriors(f"ark:{tmp_path}/p.ark")
    assert utt == "a" and np.array_equal(post.ids, essence.ids) and np.array_equal(post.probs, essence.probs)
    assert np.array_equal(post.offsets, essence.offsets)
    refused(lambda: essence_kd.write_posteriors(f"ark:{tmp_path}/q.ark", [("a", essence)], num_pdfs=3), "are 3 pdfs")
    assert not (tmp_path / "q.ark").exists()


def test_read_alignments(recipe):
    for where in (recipe / "exp" / "ali", f"scp:{recipe}/exp/ali/ali.scp"):
        assert {utt: len(pdfs) for utt, pdfs in essence_kd.read_alignments(where)} == {"utt1": 48, "utt2": 36}
    refused(lambda: list(essence_kd.read_alignments(recipe / "exp")), "ali.scp")
