"""The scripts of benchmarks/ run on small things and print their tables; the figures themselves are not tested."""
import json
import os
import subprocess
import sys

import graph_building
import pytest
from builders import ROOT
from builders.decoding import make_scores
from builders.exports import make_model, make_system

from essence_kd.export.exporter import export
from essence_kd.export.format import ExportSettings
from essence_kd.hmm.graph import load_graph


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_scores(tmp_path_factory.mktemp("corpus"))


def bench(name, *arguments, kaldi_root=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if kaldi_root is not None:
        environment["KALDI_ROOT"] = kaldi_root
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_decoders(corpus, tmp_path):
    """Rows of all decoders that are there but k2, with the words of kaldi-decoder."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "text").write_text((corpus.folder / "text").read_text())
    done = bench("decoding.py", "--without-k2", "--scores", f"scp:{corpus.folder}/scores.scp", "--set", "set",
                 "--beams", "30", "--acoustic-scale", 1, "--repeats", 1, corpus.folder, tmp_path)
    assert done.returncode == 0, done.stderr
    header, *table = rows(done.stdout)
    assert header[:4] == ["beam", "decoder", "WER", "same words"] and "load average" in done.stdout
    compiled = os.path.exists(os.path.join(os.environ.get("KALDI_ROOT") or "/nowhere", "src/bin/latgen-faster-mapped"))
    assert len(table) == (3 if compiled else 1) and {row[3] for row in table} == {"40 of 40"}
    assert len({row[2] for row in table}) == 1 and float(table[0][2].split()[0]) < 20
    missing = bench("decoding.py", tmp_path / "none", tmp_path)
    assert missing.returncode == 1 and "graph.npz: there is no such file" in missing.stderr


def test_long_audio_and_sweeps(corpus, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "text").write_text((corpus.folder / "text").read_text())
    shared = ["--without-k2", "--scores", f"scp:{corpus.folder}/scores.scp", "--set", "set", "--beams", "30",
              "--acoustic-scale", 1, corpus.folder, tmp_path]
    done = bench("decoding.py", "--part", "long", "--seconds", 60, *shared)
    assert done.returncode == 0 and "60 s, 2000 rows" in done.stdout, done.stderr
    whole, pieces, differ = rows(done.stdout)[1:]
    for (name, words, _, megabytes), how in ((whole, "whole"), (pieces, "in pieces")):
        assert name == f"kaldi-decoder, {how}" and int(words) > 100 and float(megabytes.replace(",", "")) > 20
    assert differ[:2] == ["words that differ", "0"]  # a minute is one piece
    done = bench("decoding.py", "--part", "sweep", *shared)
    assert done.returncode == 0, done.stderr
    sweep, *scales = [row for row in rows(done.stdout) if not row[0].startswith(("decoder", "scale"))]
    assert sweep[0] == "kaldi-decoder" and len(scales) > 1
    assert all(row[1] == row[2] for row in scales)  # it has no lattices: a sweep of its is decoding in turn


def test_graph_building(tmp_path):
    done = bench("graph_building.py", "--words", 60, "--sentences", 100, "--work-dir", tmp_path, kaldi_root="")
    assert done.returncode == 0, done.stderr
    assert [row[0].split(",")[0] for row in rows(done.stdout)[1:]] == [
        "essence make-lang", "essence train-lm", "essence make-grammar", *["essence make-graph"] * 2]
    assert "mkgraph.sh was not run: KALDI_ROOT is not set" in done.stdout
    assert load_graph(tmp_path / "graph3" / "graph.npz").frame_shift_ms == 30
    assert len((tmp_path / "text").read_text().splitlines()) == 100


def test_what_mkgraph_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KALDI_ROOT", str(tmp_path))
    assert graph_building.missing_for_mkgraph() == f"{tmp_path}/src/fstbin/fsttablecompose is not there"


def test_deployment(tmp_path):
    """A row for PyTorch and one for each export, with the words of PyTorch."""
    root = make_system(tmp_path)
    (root / "data" / "text").write_text("".join(f"utt{i:02d} w1\n" for i in range(10)))
    export("onnx", root / "model", root / "onnx", settings=ExportSettings(acoustic_scale=0.7))
    make_model(root / "streams", num_pdfs=json.loads((root / "onnx" / "export.json").read_text())["num_pdfs"],
               cmn="none", hidden=48, dilations=[1, 2], bottleneck=0)
    (root / "streams" / "info.json").write_text('{"look_ahead_ms": 110}')
    done = bench("deployment.py", root / "model", root / "graph", root / "data", "--repeats", 1, "--out", root / "onnx",
                 "--models", root / "streams", "--json", root / "deployment.json")
    assert done.returncode == 0, done.stderr
    told = json.loads((root / "deployment.json").read_text())
    whole, stream, onnx = told["rows"]
    assert [(row["system"], row.get("form")) for row in told["rows"]] == [
        ("model", None), ("streams", None), ("model", "ONNX")] and told["sets"] == ["data"]
    assert all(value > 0 for row in told["rows"] for value in (*row["cpu_ms"].values(), row["peak_mb"], row["bytes"]))
    assert stream["word_ms"] == round(110 + 25 + 150 + stream["chunk_p50_ms"]) and "word_ms" not in whole
    assert onnx["wer"] > 0
    _, first, second = rows(done.stdout)
    assert [first[0], second[0]] == ["PyTorch", "ONNX fp32"] and second[5] == "100.0 %"
    assert first[6:] == [second[6], "10 of 10"] and second[7] == "10 of 10"
