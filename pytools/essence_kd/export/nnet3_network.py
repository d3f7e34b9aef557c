"""Kaldi's nnet3 networks: components and the nodes that join them, as they are written, read again and computed.

Formats: Kaldi's nnet3/nnet-nnet.cc, nnet-simple-component.cc, nnet-normalize-component.cc,
nnet-convolutional-component.cc, nnet-descriptor.cc. What is written is what nnet3-am-copy would write, to the byte.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Set, Tuple, Union

import numpy as np

from essence_kd.hmm.kaldi_objects import BinaryReader, ObjectWriter, expect

_SQUARED_NORM_FLOOR = 2.0 ** -66  # of NormalizeComponent


# ------------------------------------------------------------------------------------------------------- components
# Each is written between <Type> and </Type>, and maps rows (n, input dimension) to rows (n, output dimension).

@dataclass
class FixedAffine:
    """x W' + b; weights float32 (out, in), bias float32 (out,)."""

    weights: np.ndarray
    bias: np.ndarray

    def write(self, out: ObjectWriter) -> None:
        out.token("<LinearParams>").matrix(self.weights).token("<BiasParams>").vector(self.bias)

    @classmethod
    def read(cls, reader: BinaryReader) -> "FixedAffine":
        expect(reader, "<LinearParams>")
        weights = reader.matrix()
        expect(reader, "<BiasParams>")
        return cls(weights, reader.vector())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights.T + self.bias


@dataclass
class FixedScale:
    """Each column times a number; scales float32 (dim,)."""

    scales: np.ndarray

    def write(self, out: ObjectWriter) -> None:
        out.token("<Scales>").vector(self.scales)

    @classmethod
    def read(cls, reader: BinaryReader) -> "FixedScale":
        expect(reader, "<Scales>")
        return cls(reader.vector())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x * self.scales


@dataclass
class FixedBias:
    """Each column plus a number; bias float32 (dim,)."""

    bias: np.ndarray

    def write(self, out: ObjectWriter) -> None:
        out.token("<Bias>").vector(self.bias)

    @classmethod
    def read(cls, reader: BinaryReader) -> "FixedBias":
        expect(reader, "<Bias>")
        return cls(reader.vector())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x + self.bias


@dataclass
class _Nonlinear:
    dim: int

    def write(self, out: ObjectWriter) -> None:
        out.token("<Dim>").integer(self.dim)
        none = np.zeros(0, np.float32)  # statistics of a training
        out.token("<ValueAvg>").vector(none).token("<DerivAvg>").vector(none).token("<Count>").double(0.0)
        out.token("<OderivRms>").vector(none).token("<OderivCount>").double(0.0)
        out.token("<NumDimsSelfRepaired>").double(0.0).token("<NumDimsProcessed>").double(0.0)

    @classmethod
    def read(cls, reader: BinaryReader):
        expect(reader, "<Dim>")
        dim = reader.integer()
        for name in ("<ValueAvg>", "<DerivAvg>", "<Count>", "<OderivRms>", "<OderivCount>", "<NumDimsSelfRepaired>",
                     "<NumDimsProcessed>"):
            expect(reader, name)
            reader.vector() if name in ("<ValueAvg>", "<DerivAvg>", "<OderivRms>") else reader.double()
        return cls(dim)


class RectifiedLinear(_Nonlinear):
    """max(0, x)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)


class LogSoftmax(_Nonlinear):
    """x - log sum exp(x)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@dataclass
class Normalize:
    """Each block of columns of a row scaled to a root of the mean square of ``target_rms``."""

    dim: int
    target_rms: float
    block: int  # columns of a block, a divisor of dim

    def write(self, out: ObjectWriter) -> None:
        out.token("<InputDim>").integer(self.dim)
        if self.block != self.dim:
            out.token("<BlockDim>").integer(self.block)
        out.token("<TargetRms>").real(self.target_rms).token("<AddLogStddev>").boolean(False)

    @classmethod
    def read(cls, reader: BinaryReader) -> "Normalize":
        expect(reader, "<InputDim>")
        dim = block = reader.integer()
        if expect(reader, "<BlockDim>", "<TargetRms>") == "<BlockDim>":
            block = reader.integer()
            expect(reader, "<TargetRms>")
        rms = reader.real()
        expect(reader, "<AddLogStddev>")
        reader.boolean()
        return cls(dim, rms, block)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        blocks = x.reshape(-1, self.block)
        norm = np.square(blocks).sum(axis=1, keepdims=True) / (self.block * self.target_rms ** 2)
        return (blocks / np.sqrt(np.maximum(norm, _SQUARED_NORM_FLOOR))).reshape(x.shape)


@dataclass
class NoOp:
    """What comes in; it makes a node of a sum."""

    dim: int

    def write(self, out: ObjectWriter) -> None:
        out.token("<Dim>").integer(self.dim).token("<BackpropScale>").real(1.0)

    @classmethod
    def read(cls, reader: BinaryReader) -> "NoOp":
        expect(reader, "<Dim>")
        dim = reader.integer()
        expect(reader, "<BackpropScale>")
        reader.real()
        return cls(dim)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x


@dataclass
class TimeHeightConvolution:
    """A convolution over frames and heights: of heights with some filters each, the filters of a height together.

    offsets: (frames, heights) of what a filter sees, sorted; weights float32 (filters out, offsets x filters in), bias
    (filters out,). Output height h is at input height h * step; beyond the heights there are zeros.
    """

    filters: int  # of a height of the input
    heights: int
    heights_out: int
    step: int
    offsets: List[Tuple[int, int]]
    weights: np.ndarray
    bias: np.ndarray

    @property
    def frames(self) -> List[int]:
        """Frames at which it reads its input, seen from that of its answer."""
        return sorted({t for t, _ in self.offsets})

    def write(self, out: ObjectWriter) -> None:
        out.token("<LearningRate>").real(0.001).token("<Model>").token("<ConvolutionModel>")
        for name, value in (("<NumFiltersIn>", self.filters), ("<NumFiltersOut>", len(self.bias)),
                            ("<HeightIn>", self.heights), ("<HeightOut>", self.heights_out),
                            ("<HeightSubsampleOut>", self.step)):
            out.token(name).integer(value)
        out.token("<Offsets>").pairs(self.offsets).token("<RequiredTimeOffsets>").integers(self.frames)
        out.token("</ConvolutionModel>")
        out.token("<LinearParams>").matrix(self.weights).token("<BiasParams>").vector(self.bias)
        # what follows is for training
        out.token("<MaxMemoryMb>").real(200.0).token("<UseNaturalGradient>").boolean(True)
        out.token("<NumMinibatchesHistory>").real(4.0).token("<AlphaInOut>").real(4.0).real(4.0)
        out.token("<RankInOut>").integer(1).integer(1)

    @classmethod
    def read(cls, reader: BinaryReader) -> "TimeHeightConvolution":
        for name, skip in (("<LearningRate>", reader.real), ("<Model>", None), ("<ConvolutionModel>", None)):
            expect(reader, name)
            skip and skip()
        sizes = []
        for name in ("<NumFiltersIn>", "<NumFiltersOut>", "<HeightIn>", "<HeightOut>", "<HeightSubsampleOut>"):
            expect(reader, name)
            sizes.append(reader.integer())
        expect(reader, "<Offsets>")
        offsets = reader.pairs()
        expect(reader, "<RequiredTimeOffsets>")
        reader.integers()
        expect(reader, "</ConvolutionModel>")
        expect(reader, "<LinearParams>")
        weights = reader.matrix()
        expect(reader, "<BiasParams>")
        bias = reader.vector()
        for name, *kinds in (("<MaxMemoryMb>", reader.real), ("<UseNaturalGradient>", reader.boolean),
                             ("<NumMinibatchesHistory>", reader.real), ("<AlphaInOut>", reader.real, reader.real),
                             ("<RankInOut>", reader.integer, reader.integer)):
            expect(reader, name)
            for kind in kinds:
                kind()
        return cls(sizes[0], sizes[2], sizes[3], sizes[4], offsets, weights, bias)

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """``inputs``: rows at each of ``frames``."""
        at = dict(zip(self.frames, inputs))
        rows = len(inputs[0])
        out = np.tile(self.bias.astype(np.float64), (rows, self.heights_out, 1))
        blocks = np.split(self.weights, len(self.offsets), axis=1)
        for (frame, height), block in zip(self.offsets, blocks):
            x = at[frame].reshape(rows, self.heights, self.filters)
            for h in range(self.heights_out):
                if 0 <= h * self.step + height < self.heights:
                    out[:, h] += x[:, h * self.step + height] @ block.T
        return out.reshape(rows, -1)


COMPONENTS = {f"{kind.__name__}Component": kind
              for kind in (FixedAffine, FixedScale, FixedBias, RectifiedLinear, LogSoftmax, Normalize, NoOp,
                           TimeHeightConvolution)}
Component = Union[FixedAffine, FixedScale, FixedBias, RectifiedLinear, LogSoftmax, Normalize, NoOp,
                  TimeHeightConvolution]


# ---------------------------------------------------------------------------------------------------------- networks

def append(parts: List[str]) -> str:
    """The descriptor of columns side by side."""
    return parts[0] if len(parts) == 1 else f"Append({', '.join(parts)})"


def offset(node: str, frames: int) -> str:
    """The descriptor of a node some frames later."""
    return node if frames == 0 else f"Offset({node}, {frames})"


@dataclass
class Network:
    """Nodes in their order: name -> (component, descriptor of what it reads); what the output reads; input dimension.

    A descriptor is a node's name, or ``Offset(d, frames)``, ``Scale(x, d)``, ``Sum(d, d)`` or ``Append(d, ...)``.
    """

    dim: int
    nodes: Dict[str, Tuple[Component, str]] = field(default_factory=dict)
    output: str = "input"

    def add(self, name: str, component: Component, source: str) -> str:
        """Append a node; its name."""
        self.nodes[name] = (component, source)
        self.output = name
        return name

    def write(self, out: ObjectWriter) -> None:
        """Add it to a binary file, as Kaldi's Nnet."""
        out.token("<Nnet3>").line("").line(f"input-node name=input dim={self.dim}")
        for name, (_, source) in self.nodes.items():
            out.line(f"component-node name={name} component={name} input={source}")
        out.line(f"output-node name=output input={self.output} objective=linear").line("")
        out.token("<NumComponents>").integer(len(self.nodes))
        for name, (component, _) in self.nodes.items():
            kind = f"{type(component).__name__}Component"
            out.token("<ComponentName>").token(name).token(f"<{kind}>")
            component.write(out)
            out.token(f"</{kind}>")
        out.token("</Nnet3>")

    @classmethod
    def read(cls, reader: BinaryReader) -> "Network":
        """What :meth:`write` wrote. Raises ValueError and the like for anything else."""
        expect(reader, "<Nnet3>")
        lines = [reader.line()]
        while len(lines) < 2 or lines[-1]:
            lines.append(reader.line())
        expect(reader, "<NumComponents>")
        components = {}
        for _ in range(reader.integer()):
            expect(reader, "<ComponentName>")
            name, kind = reader.token(), reader.token()[1:-1]
            components[name] = COMPONENTS[kind].read(reader)
            expect(reader, f"</{kind}>")
        expect(reader, "</Nnet3>")
        network = None
        for line in lines[1:-1]:
            kind, *parts = line.split(" ", 3 if line.startswith("component-node") else 2)
            said = dict(part.split("=", 1) for part in parts)
            if kind == "input-node":
                network = cls(int(said["dim"]))
            elif kind == "component-node":
                network.add(said["name"], components[said["component"]], said["input"])
            else:
                network.output = said["input"].split(" ")[0]
        return network

    def context(self) -> Tuple[int, int]:
        """(frames before, frames after) t that the output at t depends on, Kaldi's left and right context."""
        times = self._times({0})["input"]
        return -min(times), max(times)

    def compute(self, feats: np.ndarray, factor: int) -> np.ndarray:
        """Outputs (ceil(T / factor), dim) float32 at every factor-th frame of features (T, dim), whose first and last
        frame stand beyond the edges, as in Kaldi; in double precision, which PyTorch is compared with."""
        rows = range(0, len(feats), factor)
        times = self._times(set(rows))
        at = {"input": sorted(times["input"])}
        values = {"input": feats[np.clip(at["input"], 0, len(feats) - 1)].astype(np.float64)}

        def look_up(node: str, wanted: np.ndarray) -> np.ndarray:
            return values[node][np.searchsorted(at[node], wanted)]

        for name, (component, source) in self.nodes.items():
            at[name] = sorted(times[name])
            inputs = (_value(_parse(source), np.array(at[name]) + t, look_up) for t in _frames(component))
            values[name] = component(*inputs)
        return look_up(self.output, np.array(rows)).astype(np.float32)

    def _times(self, wanted: Set[int]) -> Dict[str, Set[int]]:
        """The frames at which each node is needed for the output at some."""
        times: Dict[str, Set[int]] = {name: set() for name in ("input", *self.nodes)}
        times[self.output] |= wanted
        for name in reversed(list(self.nodes)):
            component, source = self.nodes[name]
            for node, frames in _reads(_parse(source)):
                times[node] |= {t + frames + seen for t in times[name] for seen in _frames(component)}
        return times


def _frames(component: Component) -> List[int]:
    """Frames at which a component reads its input, seen from that of its answer."""
    return getattr(component, "frames", [0])


def _parse(text: str):
    """A descriptor as nested tuples, (function, argument, ...); nodes and numbers are texts."""
    tokens = re.findall(r"[A-Za-z0-9_.+-]+|[(),]", text)

    def one(at: int):
        if at + 1 < len(tokens) and tokens[at + 1] == "(":
            arguments, end = [tokens[at]], at + 1
            while tokens[end] != ")":
                argument, end = one(end + 1)
                arguments.append(argument)
            return tuple(arguments), end + 1
        return tokens[at], at + 1

    return one(0)[0]


def _reads(descriptor) -> List[Tuple[str, int]]:
    """(node, frames later) of everything that a descriptor reads."""
    if isinstance(descriptor, str):
        return [(descriptor, 0)]
    name, *arguments = descriptor
    if name == "Offset":
        return [(node, frames + int(arguments[1])) for node, frames in _reads(arguments[0])]
    return [pair for argument in arguments[name == "Scale":] for pair in _reads(argument)]


def _value(descriptor, times: np.ndarray, look_up) -> np.ndarray:
    """Rows of a descriptor at some frames; ``look_up`` gives those of a node."""
    if isinstance(descriptor, str):
        return look_up(descriptor, times)
    name, *arguments = descriptor
    if name == "Offset":
        return _value(arguments[0], times + int(arguments[1]), look_up)
    if name == "Scale":
        return np.float32(arguments[0]) * _value(arguments[1], times, look_up)
    parts = [_value(argument, times, look_up) for argument in arguments]
    return np.concatenate(parts, axis=1) if name == "Append" else sum(parts[1:], parts[0])
