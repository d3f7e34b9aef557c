"""An acoustic model as a network of Kaldi's nnet3, whose outputs at every frame 3t are its log-probabilities.

Layer normalisation: a fixed affine map takes the mean away (of 160 columns: to 1 and back to 160), and
NormalizeComponent scales what is left. Its epsilon is one more column of the affine map in front, a constant, so that
the scores are those of PyTorch however small a variance is. What a normalisation multiplies with and adds goes into the
weights of the layers behind it, and so do the global normalisation of features and, for MFCC, the inverse DCT.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Sequence

import numpy as np
from torch import nn

from essence_kd.export.nnet3_network import (FixedAffine, FixedBias, FixedScale, LogSoftmax, Network, NoOp, Normalize,
                                             RectifiedLinear, append, offset)


@dataclass
class _Signal:
    """Columns x (dim,) that the network holds as those of a node: x = matrix @ node + bias, float64."""

    node: str
    matrix: np.ndarray  # (dim, columns of the node)
    bias: np.ndarray  # (dim,)


def nnet3_network(model, arch: str, feature_map: Optional[np.ndarray] = None) -> Network:
    """The network of an AcousticModel in eval mode, of the architecture tdnn or tdnn_f.

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
        x = builder.tdnn("tdnn1", encoder.input, x, first=True)
        for number, layer in enumerate(encoder.layers, start=2):
            x = builder.factored(f"tdnnf{number}", layer, x)
        if encoder.prefinal is not None:
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
            return _Signal(node, np.diag(scale), _array(norm.bias) - scale * _array(norm.running_mean))
        dim = linear.out_features
        y = self.affine(name, linear, frames, x, constant=np.sqrt(dim * norm.eps))
        add, inside = self.network.add, (np.arange(dim + 1) < dim).astype(np.float32)
        relu = add(f"{name}.relu", RectifiedLinear(dim + 1), y.node)
        mean = add(f"{name}.mean", FixedAffine(-inside[None] / dim, np.zeros(1, np.float32)), relu)
        spread = add(f"{name}.spread", FixedAffine(inside[:, None], np.zeros(dim + 1, np.float32)), mean)
        # the mean square over dim + 1 columns is dim / (dim + 1) times the variance and its epsilon
        node = add(f"{name}.norm", Normalize(dim + 1, float(np.sqrt(dim / (dim + 1)))), f"Sum({relu}, {spread})")
        return _Signal(node, np.eye(dim, dim + 1) * _array(norm.weight)[:, None], _array(norm.bias))

    def tdnn(self, name: str, layer, x: _Signal, first: bool) -> _Signal:
        """A Tdnn of am.models.layers; offsets of the first layer are in feature frames, those of others in rows."""
        frames = [t if first else t * self.factor for t in layer.affine.offsets]
        return self.activation(name, layer.affine, frames, x, layer.norm)

    def factored(self, name: str, layer, x: _Signal) -> _Signal:
        """A FactoredTdnn, which adds a share of what it reads to what it answers."""
        down, up = ([t * self.factor for t in linear.offsets] for linear in (layer.linear, layer.affine))
        x = self.plain(f"{name}.input", x)
        y = self.affine(f"{name}.linear", layer.linear, down, x)
        y = self.plain(name, self.activation(name, layer.affine, up, y, layer.norm))
        total = f"Sum({y.node}, Scale({layer.bypass:.6g}, {x.node}))"
        return _Signal(self.network.add(f"{name}.noop", NoOp(y.matrix.shape[1]), total), y.matrix, y.bias)

    def plain(self, name: str, x: _Signal) -> _Signal:
        """The same signal as the first columns of a node, others of which are 0; of what a normalisation left."""
        plain = _Signal("", np.eye(*x.matrix.shape), np.zeros(len(x.bias)))
        if (x.matrix == plain.matrix).all() and not x.bias.any():
            return x
        scales, bias = np.zeros((2, x.matrix.shape[1]), np.float32)
        scales[:len(x.bias)], bias[:len(x.bias)] = np.diagonal(x.matrix), x.bias
        scaled = self.network.add(f"{name}.scale", FixedScale(scales), x.node)
        return replace(plain, node=self.network.add(f"{name}.bias", FixedBias(bias), scaled))
