"""Acoustic models as ONNX graphs, written node by node: no exporter of PyTorch's has a say in what they compute.

Legend: T feature frames, F feature bins, R rows of scores, C pdfs. Graphs take one utterance, a batch of 1: padding
would enter the utterance mean, and what follows it.

An affine map of spliced rows has one of two forms. ``conv``: a one-dimensional convolution. ``matmul``: slices, a
concatenation and a matrix product, which is what onnxruntime's dynamic 8-bit kernels are fast at.
"""
from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from torch import nn

from essence_kd import __version__
from essence_kd.am.cmn import Cmn, OnlineMean
from essence_kd.am.models.acoustic_model import AcousticModel
from essence_kd.am.models.layers import Convolutions, FactoredTdnn, FrontEnd, MaskedBatchNorm, SplicedLinear, Tdnn

IR_VERSION, OPSET = 8, 17  # which onnxruntime has run since 1.12 (2022), and so does what is built into apps
FORMS = ("conv", "matmul")
_END = np.iinfo(np.int64).max


class OnnxGraph:
    """Nodes and constants that are added one by one; a value is known by its name."""

    def __init__(self) -> None:
        self.nodes: List[Any] = []
        self.constants: Dict[str, np.ndarray] = {}

    def add(self, op: str, *inputs: str, name: Optional[str] = None, outputs: int = 1, **attributes) -> str:
        """A node; the name of its first output."""
        from onnx import helper

        name = name or f"{op.lower()}_{len(self.nodes)}"
        names = [name] + [f"{name}.{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return name

    def constant(self, value, dtype=np.float32) -> str:
        """A constant; equal ones are stored once."""
        array = np.ascontiguousarray(value, dtype=dtype)
        for name, held in self.constants.items():
            if held.dtype == array.dtype and held.shape == array.shape and np.array_equal(held, array):
                return name
        name = f"constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(values, np.int64)

    def to_bytes(self, inputs: Sequence[Tuple[str, Any, list]], outputs: Sequence[Tuple[str, Any, list]],
                 metadata: Dict[str, Any]) -> bytes:
        """The model file, checked. inputs, outputs: (name, NumPy type, shape with texts where sizes vary)."""
        import onnx
        from onnx import helper, numpy_helper

        def values(described):
            return [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
                    for name, dtype, shape in described]

        graph = helper.make_graph(self.nodes, "essence_kd", values(inputs), values(outputs),
                                  [numpy_helper.from_array(array, name) for name, array in self.constants.items()])
        model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)],
                                  producer_name="essence-kd", producer_version=__version__)
        helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


class Network(OnnxGraph):
    """The graph of an AcousticModel in eval mode, float32."""

    def __init__(self, model: AcousticModel, form: str = "conv") -> None:
        super().__init__()
        self.model, self.form = model, form

    # ---- from features to scores

    def scores(self, feats: str, *, cmn: Cmn, log_priors: np.ndarray, acoustic_scale: float,
               name: str = "scores") -> str:
        """acoustic scale x (log p - ``log_priors``) of features (1, T, F): (1, R, C), R = ceil(T / factor)."""
        if cmn == "utterance":
            feats = self.add("Sub", feats, self.add("ReduceMean", feats, axes=[1], keepdims=1))
        elif isinstance(cmn, OnlineMean):
            feats = self.add("Sub", feats, self.running_mean(feats, cmn))
        x = self.logits(self.normalised(feats))
        x = self.add("LogSoftmax", x, axis=-1)
        x = self.add("Sub", x, self.constant(log_priors))
        return self.add("Mul", x, self.constant(acoustic_scale), name=name)

    def frames(self, x: str) -> str:
        """T of (1, T, channels): int64, a scalar."""
        return self.add("Gather", self.add("Shape", x), self.constant(1, np.int64))

    def running_mean(self, x: str, cmn: OnlineMean) -> str:
        """What OnlineMean takes off features (1, T, F), by their sums in double precision."""
        def at(index: str) -> str:
            return self.add("Gather", sums, index, axis=1)

        def double(value: str) -> str:
            return self.add("Cast", value, to=11)  # TensorProto.DOUBLE

        begins, one = self.add("Pad", double(x), self.ints(0, 1, 0, 0, 0, 0)), self.constant(1, np.int64)
        sums = self.add("CumSum", begins, one)  # of the frames before each, and of all: (1, T + 1, F)
        count = self.frames(x)
        next_frames = self.add("Range", self.constant(1 + cmn.look_ahead, np.int64),
                               self.add("Add", count, self.constant(1 + cmn.look_ahead, np.int64)), one)
        end = self.add("Min", next_frames, count)
        window, none = self.constant(cmn.window, np.int64), self.constant(0, np.int64)
        begin = self.add("Max", self.add("Sub", end, window), none)
        held = self.add("Sub", end, begin)
        prior = self.add("Min", self.add("Sub", window, held), self.constant(cmn.prior, np.int64))
        column = self.ints(1)
        of_prior = self.add("Mul", self.add("Unsqueeze", double(prior), column), self.constant(cmn.mean, np.float64))
        total = self.add("Add", self.add("Sub", at(end), at(begin)), of_prior)
        frames = self.add("Unsqueeze", double(self.add("Add", held, prior)), column)
        return self.add("Cast", self.add("Div", total, frames), to=1)  # TensorProto.FLOAT

    def normalised(self, x: str) -> str:
        """Features (1, T, F) less the global mean, over the standard deviation."""
        x = self.add("Sub", x, self.constant(self.model.feat_mean.numpy()))
        return self.add("Mul", x, self.constant(self.model.feat_inv_std.numpy()))

    def logits(self, x: str) -> str:
        """Normalised features (1, T, F) to (1, R, C)."""
        before, after = self.model.edge_rows
        if before or after:
            x = self.with_edges(x, before, after)
        x = ENCODERS[_architecture(self.model.encoder)](self, self.model.encoder, x)
        if before or after:
            x = self.add("Slice", x, self.ints(before), self.ints(-after if after else _END), self.ints(1))
        return self.linear(x, self.model.output)

    def with_edges(self, x: str, before: int, after: int) -> str:
        """(1, T, F) with the first frame ``before`` rows long in front, the last one up to ``after`` rows behind."""
        factor, last = self.model.frame_subsampling_factor, self.add("Sub", self.frames(x), self.constant(1, np.int64))
        step = self.constant(factor, np.int64)
        rows = self.add("Add", self.add("Div", last, step), self.constant(1 + after, np.int64))  # ceil(T / factor) ...
        frames = self.add("Range", self.constant(-before * factor, np.int64), self.add("Mul", rows, step),
                          self.constant(1, np.int64))
        inside = self.add("Min", self.add("Max", frames, self.constant(0, np.int64)), last)
        return self.add("Gather", x, inside, axis=1)

    # ---- layers; x is (1, T or R, channels)

    def linear(self, x: str, layer: nn.Linear) -> str:
        """Affine."""
        x = self.add("MatMul", x, self.constant(layer.weight.detach().numpy().T))
        return x if layer.bias is None else self.add("Add", x, self.constant(layer.bias.detach().numpy()))

    def spliced(self, x: str, layer: SplicedLinear) -> str:
        """Affine map of rows 0, stride, ... beside their neighbours; zeros beyond the edges."""
        if layer.offsets == (0,) and layer.stride == 1:
            return self.linear(x, layer)
        first, last = min(0, *layer.offsets), max(0, *layer.offsets)
        if self.form == "matmul":
            if last - first:
                x = self.add("Pad", x, self.ints(0, -first, 0, 0, last, 0))
            parts = [self.add("Slice", x, self.ints(offset - first),
                              self.ints(offset - last if offset < last else _END), self.ints(1),
                              self.ints(layer.stride)) for offset in layer.offsets]
            return self.linear(parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=2), layer)
        step = math.gcd(*(offset - first for offset in (*layer.offsets, last))) or 1
        weight = layer.weight.detach().numpy().reshape(layer.out_features, len(layer.offsets), -1)
        kernel = np.zeros((layer.out_features, weight.shape[2], (last - first) // step + 1), np.float32)
        for i, offset in enumerate(layer.offsets):
            kernel[:, :, (offset - first) // step] += weight[:, i]
        bias = () if layer.bias is None else (self.constant(layer.bias.detach().numpy()),)
        x = self.add("Conv", self.add("Transpose", x, perm=[0, 2, 1]), self.constant(kernel), *bias,
                     kernel_shape=[kernel.shape[2]], dilations=[step], strides=[layer.stride], pads=[-first, last])
        return self.add("Transpose", x, perm=[0, 2, 1])

    def norm(self, x: str, layer: nn.Module) -> str:
        """Layer normalisation, or batch normalisation with its trained statistics."""
        if isinstance(layer, MaskedBatchNorm):
            scale = layer.weight.detach().numpy() / np.sqrt(layer.running_var.numpy() + layer.eps)
            x = self.add("Mul", x, self.constant(scale))
            return self.add("Add", x, self.constant(layer.bias.detach().numpy() - layer.running_mean.numpy() * scale))
        return self.add("LayerNormalization", x, self.constant(layer.weight.detach().numpy()),
                        self.constant(layer.bias.detach().numpy()), axis=-1, epsilon=layer.eps)

    def tdnn(self, x: str, layer: Tdnn) -> str:
        """layers.Tdnn."""
        return self.norm(self.add("Relu", self.spliced(x, layer.affine)), layer.norm)

    def factored(self, x: str, layer: FactoredTdnn) -> str:
        """layers.FactoredTdnn."""
        y = self.add("Relu", self.spliced(self.spliced(x, layer.linear), layer.affine))
        bypass = self.add("Mul", x, self.constant(layer.bypass))
        return self.add("Add", self.norm(y, layer.norm), bypass)

    def convolutions(self, x: str, layers: Convolutions) -> str:
        """layers.Convolutions."""
        x = self.add("Unsqueeze", x, self.ints(1))  # (1, 1, T, F)
        for i, layer in enumerate(layers.layers):
            if i:
                x = self.add("Transpose", x, perm=[0, 3, 1, 2])
            conv = layer.conv
            x = self.add("Conv", x, self.constant(conv.weight.detach().numpy()),
                         self.constant(conv.bias.detach().numpy()), kernel_shape=[3, 3], strides=list(conv.stride),
                         pads=[1, 1, 1, 1])
            x = self.norm(self.add("Transpose", self.add("Relu", x), perm=[0, 2, 3, 1]), layer.norm)
        return self.add("Reshape", x, self.ints(0, 0, layers.output_dim))

    def front_end(self, x: str, layers: FrontEnd) -> str:
        """layers.FrontEnd."""
        return self.tdnn(x if layers.convolutions is None else self.convolutions(x, layers.convolutions),
                         layers.project)

    def lstm(self, x: str, *layers: nn.LSTM) -> str:
        """An LSTM, or one forwards and one backwards, their answers side by side."""
        def stacked(name: str) -> np.ndarray:
            gates = [np.split(getattr(layer, name).detach().numpy(), 4) for layer in layers]  # PyTorch: i f c o
            return np.stack([np.concatenate([i, o, f, c]) for i, f, c, o in gates])  # ONNX: i o f c

        bias = np.concatenate([stacked("bias_ih_l0"), stacked("bias_hh_l0")], axis=1)
        y = self.add("LSTM", self.add("Transpose", x, perm=[1, 0, 2]), self.constant(stacked("weight_ih_l0")),
                     self.constant(stacked("weight_hh_l0")), self.constant(bias), hidden_size=layers[0].hidden_size,
                     direction="bidirectional" if len(layers) == 2 else "forward")
        y = self.add("Transpose", y, perm=[2, 0, 1, 3])  # (R, directions, 1, cells) -> (1, R, directions, cells)
        return self.add("Reshape", y, self.ints(0, 0, len(layers) * layers[0].hidden_size))


def _tdnn(net: Network, encoder, x: str) -> str:
    for layer in encoder.layers:
        x = net.tdnn(x, layer)
    return x


def _tdnn_f(net: Network, encoder, x: str) -> str:
    x = net.tdnn(x, encoder.input)
    for layer in encoder.layers:
        x = net.factored(x, layer)
    return x if encoder.prefinal is None else net.linear(x, encoder.prefinal)


def _cnn_tdnn(net: Network, encoder, x: str) -> str:
    x = net.tdnn(net.convolutions(x, encoder.convolutions), encoder.project)
    for layer in encoder.layers:
        x = net.factored(x, layer)
    return x


def _tdnn_lstm(net: Network, encoder, x: str) -> str:
    x = net.front_end(x, encoder.input)
    for tdnn, lstm, norm in zip(encoder.tdnn, encoder.lstm, encoder.norm):
        x = net.norm(net.lstm(net.tdnn(x, tdnn), lstm), norm)
    return x


def _blstm(net: Network, encoder, x: str) -> str:
    x = net.front_end(x, encoder.input)
    for ahead, back, norm in zip(encoder.forwards, encoder.backwards, encoder.norm):
        x = net.norm(net.lstm(x, ahead, back), norm)
    return x


ENCODERS: Dict[str, Callable[[Network, nn.Module, str], str]] = {
    "tdnn": _tdnn, "tdnn_f": _tdnn_f, "cnn_tdnn": _cnn_tdnn, "tdnn_lstm": _tdnn_lstm, "blstm": _blstm}


def logits_of(net: Network, x: str) -> str:
    """Logits of normalised frames as they are, without repeated ones: those of an utterance that was cut out."""
    return net.linear(ENCODERS[_architecture(net.model.encoder)](net, net.model.encoder, x), net.model.output)


def _architecture(encoder: nn.Module) -> str:
    return type(encoder).__module__.rpartition(".")[2]
