"""--format torchscript: every architecture, as `essence forward` answers."""
import warnings

import numpy as np
import pytest
import torch
from builders import refused, table
from builders.exports import SIZES, make_model

from essence_kd.am.forward import forward
from essence_kd.export.exporter import export
from essence_kd.export.format import ExportSettings
from essence_kd.io.tables import MatrixWriter


@pytest.mark.parametrize("arch", [arch for arch in SIZES if arch != "conformer"])
def test_every_architecture_answers_as_forward_does(arch, tmp_path):
    options = {"norm": "batch", "input_offsets": [-3, -1, 0, 4]} if arch == "tdnn" else {}
    model, rng = make_model(tmp_path / "model", arch, **options), np.random.default_rng(0)
    export("torchscript", model, tmp_path / "a", settings=ExportSettings(acoustic_scale=0.5))
    feats = {f"utt{n}": (12 + 2 * rng.standard_normal((n, 40))).astype(np.float32) for n in (1, 2, 3, 31, 120)}
    (tmp_path / "data").mkdir()
    table(MatrixWriter, tmp_path / "data" / "feats", feats)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.load(str(tmp_path / "a" / "model.pt"))
    for utt, expected in forward(model, tmp_path / "data"):  # a norm over few channels makes rounding errors larger
        np.testing.assert_allclose(script(torch.from_numpy(feats[utt])[None])[0].numpy(), 0.5 * expected, atol=1e-3)


def test_the_file_is_the_same_at_every_export(tmp_path, shell):
    """In processes of their own, as PyTorch numbers what it traces in one."""
    model = make_model(tmp_path / "model")
    for name in ("a", "b"):
        done = shell("local/bin/essence", "export", "--format", "torchscript", model, tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()


def test_what_is_refused(tmp_path):
    out = tmp_path / "out"
    refused(lambda: export("torchscript", make_model(tmp_path / "c", "conformer"), out), "arch is 'conformer'")
    refused(lambda: export("torchscript", make_model(tmp_path / "e", cmn="none", about={"edge_rows": [1, 2]}), out),
            "edge_rows is [1, 2]", "use onnx")
    refused(lambda: export("torchscript", make_model(tmp_path / "m"), out, settings=ExportSettings(int8="dynamic")),
            "no int8")
