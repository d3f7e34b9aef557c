"""TorchScript: the same graph as the format ``onnx`` has, run by PyTorch's C++ library, without Python."""
from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import numpy as np

from essence_kd.export.format import Format, Written, register_format
from essence_kd.export.formats.onnx import MEAN, front_end_text, score_settings
from essence_kd.io.errors import UserError

FILE = "model.pt"
README = """# {arch}, {num_pdfs} pdfs, as TorchScript

`{file}` takes the log-mels of one utterance, float32 (1, T, {feat_dim}), a frame every 10 ms, and answers with scores
for a decoder, float32 (1, ceil(T / {factor}), {num_pdfs}), a row every {row_ms:g} ms. A score is {acoustic_scale:g} x
(log p(pdf) - {prior_scale:g} x log prior(pdf)).{mean} The batch is 1. Over utterances of 1 to 1,000 frames, scores
differ from PyTorch's by at most {{worst}}.

    scores = torch.jit.load("{file}")(feats[None])[0]

    auto module = torch::jit::load("{file}");  // C++

{front_end}"""


@register_format
class TorchScript(Format):
    """model.pt."""

    name = "torchscript"
    architectures = ("tdnn", "tdnn_f", "cnn_tdnn", "tdnn_lstm", "blstm")
    packages = {"onnx": "onnx"}
    needs_front_end, exact_mean = False, True

    def check(self) -> None:
        """Repeated end frames need sizes that a trace does not hold."""
        if any(self.source.model.edge_rows):
            raise UserError(f"{self.source.model_dir / 'model.yaml'}: edge_rows is "
                            f"{list(self.source.model.edge_rows)}, which the format {self.name} cannot hold: use onnx")

    def write(self, folder: Path) -> Written:
        """The traced graph. Through a stream: given a name, torch would write that name into the file."""
        import torch

        from essence_kd.export.exporter import front_end
        from essence_kd.export.onnx_network import Network

        source, settings, ends = self.source, self.settings, front_end(self.settings)
        net = Network(source.model, "matmul")
        net.scores("feats", **score_settings(self))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # PyTorch advises other ways, which need other versions of it
            traced = torch.jit.trace(_module(net.nodes, net.constants),
                                     torch.zeros(1, 50, source.model.feat_dim), check_trace=False)
            stream = io.BytesIO()
            torch.jit.save(traced, stream)
        (folder / FILE).write_bytes(stream.getvalue())
        self.running: Any = None
        known = source.model.feat_dim == ends.num_mel_bins_fbank
        return Written(README.format(
            file=FILE, arch=source.about["arch"], num_pdfs=source.model.num_pdfs, feat_dim=source.model.feat_dim,
            factor=source.factor, row_ms=source.row_ms, acoustic_scale=settings.acoustic_scale,
            prior_scale=settings.prior_scale, mean=MEAN.get(source.about["cmn"], ""),
            front_end=front_end_text(ends) if known else "Features are those that the model was trained on."),
            {"model": FILE})

    def verify(self, folder: Path, feats: np.ndarray) -> np.ndarray:
        """By the file as it is loaded again."""
        import torch

        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            self.running = self.running or torch.jit.load(str(folder / FILE))
            return self.running(torch.from_numpy(feats)[None])[0].numpy()

    def timed(self, folder: Path) -> Tuple[Callable[[], Any], float]:
        """By PyTorch."""
        return partial(self.verify, folder, np.zeros((1000, self.source.model.feat_dim), np.float32)), 10.0


def _module(nodes, constants: Dict[str, np.ndarray]):
    """A module that computes ONNX nodes of onnx_network one after the other; sizes in time are free."""
    import torch
    from onnx import helper
    from torch.nn import functional

    def pad(a: Dict[str, Any], x, pads):
        _, before, _, _, after, _ = pads.tolist()
        return functional.pad(x, (0, 0, before, after))

    def rows(a: Dict[str, Any], x, start, end, axes, step):
        return x[:, start.item():end.item():step.item()]

    def lstm(a: Dict[str, Any], x, ahead, back, bias):
        def gates(value):  # ONNX: i o f c; PyTorch: i f c o
            i, o, f, c = value.chunk(4)
            return torch.cat([i, f, c, o])

        weights = [part for d in range(len(ahead)) for part in (
            gates(ahead[d]), gates(back[d]), *(gates(half) for half in bias[d].chunk(2)))]
        zero = torch.zeros(len(ahead), 1, a["hidden_size"])
        y = torch.lstm(x, (zero, zero), weights, True, 1, 0.0, False, len(ahead) == 2, False)[0]
        return y.reshape(y.shape[0], 1, len(ahead), a["hidden_size"]).permute(0, 2, 1, 3)

    operations = {
        "Add": lambda a, x, y: x + y, "Sub": lambda a, x, y: x - y, "Mul": lambda a, x, y: x * y,
        "MatMul": lambda a, x, y: x @ y, "Relu": lambda a, x: torch.relu(x),
        "ReduceMean": lambda a, x: x.double().mean(a["axes"], keepdim=True).float(),
        "LogSoftmax": lambda a, x: functional.log_softmax(x, a["axis"]),
        "Transpose": lambda a, x: x.permute(a["perm"]), "Unsqueeze": lambda a, x, axes: x.unsqueeze(1),
        "Reshape": lambda a, x, shape: x.flatten(2), "LSTM": lstm, "Pad": pad, "Slice": rows,
        "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
        "Conv": lambda a, x, weight, bias: functional.conv2d(x, weight, bias, a["strides"], a["pads"][:2]),
        "LayerNormalization": lambda a, x, scale, bias: functional.layer_norm(x, scale.shape, scale, bias,
                                                                              a["epsilon"])}

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in constants.items():
                self.register_buffer(name, torch.from_numpy(value.copy()))

        def forward(self, feats):
            values = {"feats": feats, **{name: getattr(self, name) for name in constants}}
            for node in nodes:
                attributes = {part.name: helper.get_attribute_value(part) for part in node.attribute}
                values[node.output[0]] = operations[node.op_type](attributes, *(values[i] for i in node.input))
            return values["scores"]

    return Graph().eval()
