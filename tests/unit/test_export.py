"""essence export: what is checked, written and refused, whatever the format."""
import json

import numpy as np
import pytest
from builders import refused
from builders.exports import make_model
from builders.graphs import pdf_graph, write_graph

from essence_kd.cli.main import main
from essence_kd.export.exporter import export, torch_scores
from essence_kd.export.format import FORMATS, ExportSettings, Format, Written, register_format


@pytest.fixture
def echo():
    """A format whose scores are PyTorch's, plus Echo.off."""
    @register_format
    class Echo(Format):
        name, architectures, needs_graph, off = "echo", ("tdnn",), False, 0.0

        def write(self, folder):
            (folder / "a.txt").write_text("a")
            return Written("# Echo\n", {"echo": 1})

        def verify(self, folder, feats):
            return torch_scores(self, feats) + np.float32(self.off)

    yield Echo
    del FORMATS._entries["echo"]


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def test_an_export_tells_what_it_is(echo, model, tmp_path, capsys):
    assert main(["export", "--format", "echo", "--acoustic-scale", "0.5", str(model), str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert {key: told[key] for key in ("format", "acoustic_scale", "arch", "cmn", "num_pdfs", "row_ms", "echo")} == {
        "format": "echo", "acoustic_scale": 0.5, "arch": "tdnn", "cmn": "utterance", "num_pdfs": 12, "row_ms": 30,
        "echo": 1}
    assert told["front_end"]["num_mel_bins_fbank"] == 40 and told["front_end"]["sample_frequency"] == 8000
    assert (tmp_path / "out" / "README.md").read_text().startswith("# Echo\n\n## Files\n")
    assert "| `a.txt` | 1 |" in (tmp_path / "out" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_an_export_that_answers_otherwise_is_refused(echo, model, tmp_path):
    out = tmp_path / "out"
    export("echo", model, out)
    before = (out / "export.json").read_bytes()
    echo.off = 0.01
    refused(lambda: export("echo", model, out), model, "differ from PyTorch's by 0.01")
    assert (out / "export.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_what_cannot_be_exported(echo, model, tmp_path):
    out = tmp_path / "out"
    graph = write_graph(tmp_path / "graph", pdf_graph(12, "f00d"))
    refused(lambda: export("none", model, out), "unknown format 'none'", "echo")
    refused(lambda: export("echo", make_model(tmp_path / "c", "conformer"), out), "arch is 'conformer'", "echo", "tdnn")
    refused(lambda: export("echo", make_model(tmp_path / "s", cmn="speaker"), out), "cmn is 'speaker'", "utterance")
    refused(lambda: export("echo", make_model(tmp_path / "f", feat_dim=8), out), "8 feature bins", "makes 40")
    refused(lambda: export("echo", model, out, graph), "takes no graph")
    refused(lambda: export("echo", model, out, settings=ExportSettings(int8="static")), "--int8", "no int8")
    refused(lambda: export("echo", model, out, settings=ExportSettings(beam=0)), "--beam is 0")
    refused(lambda: export("echo", model, graph), graph, "no export")
    refused(lambda: export("echo", tmp_path / "nowhere", out), "nowhere")
    echo.needs_graph = True
    refused(lambda: export("echo", model, out), "needs a graph")
    refused(lambda: export("echo", model, out, graph), "tree_hash differs", "cafe", "f00d")
    wide = write_graph(tmp_path / "wide", pdf_graph(13, "cafe"))
    refused(lambda: export("echo", model, out, wide), "num_pdfs differs")
    echo.packages = {"no_such_runtime": "no-such-runtime"}
    refused(lambda: export("echo", model, out, graph), "pip install no-such-runtime")
    assert not out.exists()
