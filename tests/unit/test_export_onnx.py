"""--format onnx: every architecture in the real onnxruntime, its bytes, and 8-bit weights."""
import numpy as np
import pytest
from builders import refused, table
from builders.exports import SIZES, make_model

from essence_kd.am.forward import forward
from essence_kd.export import format as formats
from essence_kd.export.exporter import LENGTHS, export
from essence_kd.export.format import ExportSettings
from essence_kd.export.onnx_file import scorer
from essence_kd.io.tables import MatrixWriter

ARCHS = [arch for arch in SIZES if arch != "conformer"]


def features(lengths, seed=0, bins=40):
    rng = np.random.default_rng(seed)
    level = np.cumsum(rng.standard_normal((1, bins)), axis=1)
    return {f"utt{i}": (12 + level + 2 * rng.standard_normal((n, bins))).astype(np.float32)
            for i, n in enumerate(lengths)}


def check_scores(model, out, feats, tmp_path, scale=0.5):
    """``out`` answers as `essence forward` does."""
    (tmp_path / "data").mkdir(exist_ok=True)
    table(MatrixWriter, tmp_path / "data" / "feats", feats)
    score = scorer(out / "model.onnx")
    for utt, expected in forward(model, tmp_path / "data"):
        found = score(feats[utt])
        assert found.dtype == np.float32 and found.shape == expected.shape == (-(-len(feats[utt]) // 3), 12)
        np.testing.assert_allclose(found, scale * expected, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_answers_as_forward_does(arch, tmp_path):
    model = make_model(tmp_path / "model", arch)
    export("onnx", model, tmp_path / "out", settings=ExportSettings(acoustic_scale=0.5))
    check_scores(model, tmp_path / "out", features(LENGTHS), tmp_path)


@pytest.mark.parametrize("options", [
    {"norm": "batch", "input_offsets": [-3, -1, 0, 4], "bottleneck": 0}, {"input_offsets": [1, 2]},
    {"input_offsets": [-5]}, {"input_offsets": [0], "cmn": "none"}], ids=str)
def test_other_contexts_and_norms(options, tmp_path):
    """Offsets that are no even steps, on one side only, or none; batch normalisation; no mean taken off."""
    model = make_model(tmp_path / "model", "tdnn", **options)
    export("onnx", model, tmp_path / "out", settings=ExportSettings(acoustic_scale=0.5))
    check_scores(model, tmp_path / "out", features([1, 2, 3, 40, 100], seed=1), tmp_path)


@pytest.mark.parametrize(["arch", "edges", "look_ahead"], [
    ("tdnn", [0, 0], 0), ("tdnn", [2, 3], 21), ("tdnn_lstm", [4, 0], 0)], ids=str)
def test_streaming_students(arch, edges, look_ahead, tmp_path):
    """A running mean, and end frames repeated beyond the edges."""
    online = {"prior": 30, "window": 120, "look_ahead": look_ahead, "mean": np.linspace(8, 14, 40).tolist()}
    model = make_model(tmp_path / "model", arch, cmn="online", about={"online_cmn": online, "edge_rows": edges})
    export("onnx", model, tmp_path / "out", settings=ExportSettings(acoustic_scale=0.5))
    check_scores(model, tmp_path / "out", features([1, 2, 3, 29, 122, 400], seed=1), tmp_path)


def test_the_file_suits_old_runtimes_and_is_the_same_at_every_export(tmp_path):
    import onnx

    model, settings = make_model(tmp_path / "model"), ExportSettings(acoustic_scale=0.5)
    for name in ("a", "b"):
        export("onnx", model, tmp_path / name, settings=settings)
    for name in ("model.onnx", "README.md", "export.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    held = onnx.load(tmp_path / "a" / "model.onnx")
    assert held.ir_version == 8 and [(o.domain, o.version) for o in held.opset_import] == [("", 17)]
    told = {prop.key: prop.value for prop in held.metadata_props}
    assert told["tree_hash"] == "cafe" and told["frame_subsampling_factor"] == "3" and told["acoustic_scale"] == "0.5"


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_8_bit_weights(kind, tmp_path):
    feats = features([120] * 10 + [300, 20])
    (tmp_path / "data").mkdir()
    table(MatrixWriter, tmp_path / "data" / "feats", feats)
    model = make_model(tmp_path / "model", hidden=128, dilations=[1, 2], bottleneck=0)
    settings = {"int8": kind, "calibrate": str(tmp_path / "data") if kind == "static" else None}
    export("onnx", model, tmp_path / "full")
    for name in ("a", "b"):
        export("onnx", model, tmp_path / name, settings=ExportSettings(**settings))
    small = (tmp_path / "a" / "model.int8.onnx").read_bytes()
    assert small == (tmp_path / "b" / "model.int8.onnx").read_bytes()
    assert len(small) < 0.32 * (tmp_path / "full" / "model.onnx").stat().st_size
    full, int8 = scorer(tmp_path / "full" / "model.onnx"), scorer(tmp_path / "a" / "model.int8.onnx")
    same = np.concatenate([full(f).argmax(1) == int8(f).argmax(1) for f in feats.values()])
    assert same.mean() > 0.9
    student = make_model(tmp_path / "student", hidden=160, dilations=[1, 1, 2, 3], bottleneck=0, num_pdfs=1120)
    export("onnx", student, tmp_path / "s", settings=ExportSettings(**settings))
    parameters = 200 * 160 + 4 * 480 * 160 + 160 * 1120 + 5 * 3 * 160 + 1120
    assert parameters < (tmp_path / "s" / "model.int8.onnx").stat().st_size < 0.26 * 4 * parameters


def test_what_is_refused(tmp_path, monkeypatch):
    model, out = make_model(tmp_path / "model"), tmp_path / "out"
    refused(lambda: export("onnx", make_model(tmp_path / "c", "conformer"), out), "conformer", "onnx cannot hold")
    refused(lambda: export("onnx", model, out, settings=ExportSettings(int8="static")), "--calibrate DATA_DIR")
    refused(lambda: export("onnx", model, out, settings=ExportSettings(calibrate="data")), "is for --int8 static")
    (tmp_path / "data").mkdir()
    table(MatrixWriter, tmp_path / "data" / "feats", features([30], bins=23))
    static = ExportSettings(int8="static", calibrate=str(tmp_path / "data"))
    refused(lambda: export("onnx", model, out, settings=static), "feats.scp: utterance utt0", "23 bins", "takes 40")
    static = ExportSettings(int8="static", calibrate=str(tmp_path / "none"))
    refused(lambda: export("onnx", model, out, settings=static), "none/feats.scp")

    def nothing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(formats.importlib, "import_module", nothing)
    refused(lambda: formats.runtime("onnxruntime", "onnxruntime", "--format onnx"), "pip install onnxruntime")
    assert not out.exists()


def test_a_model_of_other_features_is_exported_and_says_so(tmp_path):
    model = make_model(tmp_path / "model", feat_dim=23)
    export("onnx", model, tmp_path / "out")
    assert "Features are those that the model was trained on" in (tmp_path / "out" / "README.md").read_text()
    assert '"front_end": null' in (tmp_path / "out" / "export.json").read_text()
