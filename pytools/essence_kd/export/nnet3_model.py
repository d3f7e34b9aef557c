"""An acoustic model as a network of Kaldi's nnet3, whose outputs at every frame 3t are its log-probabilities.

Layer normalisation: a fixed affine map takes the mean away (of 160 columns: to 1 and back to 160), and
NormalizeComponent scales what is left. Its epsilon is one more column of the affine map in front, a constant, so that
the scores are those of PyTorch however small a variance is. What a normalisation multiplies with and adds goes into the
weights of the layers behind it, and so do the global normalisation of features and, for MFCC, the inverse DCT.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np
from torch import nn

from essence_kd.export.nnet3_network import (FixedAffine, FixedBias, FixedScale, LogSoftmax, Network, NoOp, Normalize,
                                             RectifiedLinear, TimeHeightConvolution, append, offset)


@dataclass
class _Signal:
    """Columns x (dim,) that the network holds as those of a node: x = matrix @ node + bias, float64."""

    node: str
    matrix: np.ndarray  # (dim, columns of the node)
    bias: np.ndarray  # (dim,)
    columns: Optional[np.ndarray] = None  # of each of x, where it is one column of the node times a number


def nnet3_network(model, arch: str, feature_map: Optional[np.ndarray] = None) -> Network:
    """The network of an AcousticModel in eval mode, of the architecture tdnn, tdnn_f or cnn_tdnn.

    ``feature_map`` (feat_dim, dim): turns the features of dimension dim that the network is given into the model's.
    """
    scale, mean = _array(model.feat_inv_std), _array(model.feat_mean)
    into = np.eye(len(scale)) if feature_map is None else feature_map
    builder = _Builder(Network(into.shape[1]), model.frame_subsampling_factor)
    x = _Signal("input", scale[:, None] * into, -scale * mean)
    encoder = model.encoder
    if arch == "tdnn":
        for number, layer in enumerate(encoder.layers, start=1):
            x = builder.tdnn(f"tdnn{number}", layer, x, first=number == 1)
    else:
        if arch == "cnn_tdnn":
            x = builder.convolutions(encoder.convolutions, x)
            x = builder.tdnn("tdnn1", encoder.project, x, first=False)
        else:
            x = builder.tdnn("tdnn1", encoder.input, x, first=True)
        for number, layer in enumerate(encoder.layers, start=2):
            x = builder.factored(f"tdnnf{number}", layer, x)
        if getattr(encoder, "prefinal", None) is not None:
            x = builder.affine("prefinal", encoder.prefinal, [0], x)
    builder.affine("output", model.output, [0], x)
    network = builder.network
    network.add("log_softmax", LogSoftmax(model.num_pdfs), network.output)
    return network


def _array(tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)


class _Builder:
    def __init__(self, network: Network, factor: int) -> None:
        self.network, self.factor = network, factor

    def affine(self, name: str, linear, frames: Sequence[int], x: _Signal, constant: Optional[float] = None) -> _Signal:
        """An affine map of ``x`` at some frames; ``constant``: the value of one more column."""
        weights = _array(linear.weight)
        blocks = np.split(weights, len(frames), axis=1)
        bias = sum(block @ x.bias for block in blocks)
        if linear.bias is not None:
            bias = bias + _array(linear.bias)
        weights = np.concatenate([block @ x.matrix for block in blocks], axis=1)
        if constant is not None:
            weights, bias = np.vstack([weights, np.zeros(weights.shape[1])]), np.append(bias, constant)
        node = self.network.add(f"{name}.affine", FixedAffine(weights.astype(np.float32), bias.astype(np.float32)),
                                append([offset(x.node, t) for t in frames]))
        return _Signal(node, np.eye(len(weights))[:linear.out_features], np.zeros(linear.out_features))

    def activation(self, name: str, linear, frames: Sequence[int], x: _Signal, norm) -> _Signal:
        """Affine map, ReLU, normalisation."""
        if isinstance(norm, nn.BatchNorm1d):
            y = self.affine(name, linear, frames, x)
            dim = linear.out_features
            node = self.network.add(f"{name}.relu", RectifiedLinear(dim), y.node)
            scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
            shift = _array(norm.bias) - scale * _array(norm.running_mean)
            return _Signal(node, np.diag(scale), shift, np.arange(dim))
        dim = linear.out_features
        y = self.affine(name, linear, frames, x, constant=np.sqrt(dim * norm.eps))
        add, inside = self.network.add, (np.arange(dim + 1) < dim).astype(np.float32)
        relu = add(f"{name}.relu", RectifiedLinear(dim + 1), y.node)
        mean = add(f"{name}.mean", FixedAffine(-inside[None] / dim, np.zeros(1, np.float32)), relu)
        spread = add(f"{name}.spread", FixedAffine(inside[:, None], np.zeros(dim + 1, np.float32)), mean)
        # the mean square over dim + 1 columns is dim / (dim + 1) times the variance and its epsilon
        node = add(f"{name}.norm", Normalize(dim + 1, float(np.sqrt(dim / (dim + 1))), dim + 1),
                   f"Sum({relu}, {spread})")
        return _Signal(node, np.eye(dim, dim + 1) * _array(norm.weight)[:, None], _array(norm.bias), np.arange(dim))

    def tdnn(self, name: str, layer, x: _Signal, first: bool) -> _Signal:
        """A Tdnn of am.models.layers; offsets of the first layer are in feature frames, those of others in rows."""
        frames = [t if first else t * self.factor for t in layer.affine.offsets]
        return self.activation(name, layer.affine, frames, x, layer.norm)

    def convolutions(self, encoder, x: _Signal) -> _Signal:
        """Convolutions of am.models.layers. Beyond the bins there are zeros, so features are normalised before them."""
        dim, filters = len(x.bias), 1
        affine = FixedAffine(x.matrix.astype(np.float32), x.bias.astype(np.float32))
        x = _Signal(self.network.add("features", affine, x.node), np.eye(dim), np.zeros(dim))
        for number, layer in enumerate(encoder.layers, start=1):
            if number > 1:
                x = self.plain(f"cnn{number - 1}", x)
            x = self.convolution(f"cnn{number}", layer, x, filters, 1 if number == 1 else self.factor)
            filters = layer.conv.out_channels + 1  # of a height of the node
        return x

    def convolution(self, name: str, layer, x: _Signal, filters: int, frames: int) -> _Signal:
        """A Convolution; ``filters`` of a height of the node that it reads, ``frames`` from one input to the next."""
        weights, norm, add = _array(layer.conv.weight), layer.norm, self.network.add
        count, of_input = weights.shape[:2]
        heights, step = x.matrix.shape[1] // filters, layer.conv.stride[1]
        heights_out = -(-heights // step)
        near = [h for h in (-1, 0, 1) if any(0 <= n * step + h < heights for n in range(heights_out))]
        offsets = [(t * frames, h) for t in (-1, 0, 1) for h in near]
        blocks = np.zeros((count + 1, len(offsets), filters), np.float32)  # one more filter, a constant
        for i, (t, h) in enumerate(offsets):
            blocks[:count, i, :of_input] = weights[:, :, t // frames + 1, h + 1]
        bias = np.append(_array(layer.conv.bias), np.sqrt(count * norm.eps)).astype(np.float32)
        node = add(f"{name}.conv", TimeHeightConvolution(filters, heights, heights_out, step, offsets,
                                                         blocks.reshape(count + 1, -1), bias), x.node)
        dim = heights_out * (count + 1)
        node = add(f"{name}.relu", RectifiedLinear(dim), node)
        centre = np.eye(count + 1)
        centre[:count, :count] -= 1 / count
        node = add(f"{name}.centre", TimeHeightConvolution(count + 1, heights_out, heights_out, 1, [(0, 0)],
                                                           centre.astype(np.float32), np.zeros_like(bias)), node)
        rms = float(np.sqrt(count / (count + 1)))
        node = add(f"{name}.norm", Normalize(dim, rms, count + 1), node)
        scale, shift = (np.tile(_array(part), heights_out) for part in (norm.weight, norm.bias))
        columns = np.flatnonzero(np.arange(dim) % (count + 1) < count)
        return _Signal(node, np.eye(dim)[columns] * scale[:, None], shift, columns)

    def factored(self, name: str, layer, x: _Signal) -> _Signal:
        """A FactoredTdnn, which adds a share of what it reads to what it answers."""
        down, up = ([t * self.factor for t in linear.offsets] for linear in (layer.linear, layer.affine))
        x = self.plain(f"{name}.input", x)
        y = self.affine(f"{name}.linear", layer.linear, down, x)
        y = self.plain(name, self.activation(name, layer.affine, up, y, layer.norm))
        total = f"Sum({y.node}, Scale({layer.bypass:.6g}, {x.node}))"
        return _Signal(self.network.add(f"{name}.noop", NoOp(y.matrix.shape[1]), total), y.matrix, y.bias)

    def plain(self, name: str, x: _Signal) -> _Signal:
        """The same signal as columns of a node, others of which are 0; of what a normalisation left."""
        if x.columns is None:
            return x
        chosen, nothing = np.eye(x.matrix.shape[1])[x.columns], np.zeros(len(x.bias))
        scaled = self.network.add(f"{name}.scale", FixedScale(x.matrix.sum(axis=0).astype(np.float32)), x.node)
        bias = FixedBias((x.bias @ chosen).astype(np.float32))
        return _Signal(self.network.add(f"{name}.bias", bias, scaled), chosen, nothing)
