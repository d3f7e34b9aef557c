"""Scores of an utterance while it is spoken: features come in parts, rows are answered as soon as they can be.

A part is computed with the frames before it that its rows depend on, which are kept; LSTM layers keep their state. The
rows are those of the whole utterance (am.forward), whatever the parts.

Legend: T feature frames of an utterance, F feature bins, f frames per row, C pdfs.
"""
from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import nn

from essence_kd.am.cmn import OnlineMean, cmn_of_model
from essence_kd.am.forward import load_model
from essence_kd.am.models.layers import num_rows
from essence_kd.am.nnet3 import is_nnet3
from essence_kd.am.processes import device_of
from essence_kd.am.sources import FeatureSource, load_cuts
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS

_TRIAL = 601  # random inputs on which it is measured what a row depends on
_TRAIN = "train a student that streams: conf/models/student_tdnn_online.yaml"


class StreamingModel:
    """A trained model that answers while an utterance is spoken.

    ``look_ahead``: feature frames after 3t (f = 3) that row t waits for.

    >>> from essence_kd.am.stream import StreamingModel
    >>> stream = StreamingModel("exp/student").start()
    >>> logits = [stream.part(feats[t:t + 30]) for t in range(0, len(feats), 30)]  # features as they are stored
    >>> logits.append(stream.part(feats[:0], last=True))
    >>> np.concatenate(logits).shape
    (16, 8)
    """

    def __init__(self, model_dir, device: Optional[str] = None, threads: Optional[int] = None) -> None:
        """Raises UserError for a model that needs the whole utterance."""
        if is_nnet3(model_dir):
            raise UserError(f"{model_dir}: is a network of Kaldi's, which online2-wav-nnet3-latgen-faster streams; "
                            f"here, {_TRAIN}")
        if threads:
            torch.set_num_threads(max(1, threads))
        self.model_dir, self.device = Path(model_dir), device_of(device)
        self.model, self.settings = load_model(model_dir, self.device)
        self.cmn = cmn_of_model(self.settings, self.model_dir)
        if self.cmn in ("utterance", "speaker"):
            raise UserError(f"{model_dir}: subtracts the mean of the whole {self.cmn} (data.cmn: {self.cmn}), so it "
                            f"cannot stream; a running mean can (data.cmn: online): {_TRAIN}")
        self.factor = self.model.frame_subsampling_factor
        self._layers = self._measured()
        ahead = sum(layer.right * layer.every for layer in self._layers)
        self.look_ahead = ahead + (self.cmn.look_ahead if isinstance(self.cmn, OnlineMean) else 0)

    def start(self) -> "Stream":
        """A new utterance."""
        parts: List[Any] = [_Window(layer) if layer.lstm is None else _Memory(layer) for layer in self._layers]
        return Stream(self, parts)

    def _measured(self) -> List["_Layer"]:
        """The encoder's layers with what their rows depend on; as one, where it does not tell them (``stages``)."""
        encoder, arch = self.model.encoder, self.settings["arch"]
        if hasattr(encoder, "stages"):
            parts = [(part, part if isinstance(part, nn.LSTM) else None) for part in encoder.stages()]
        else:
            parts = [(_Whole(encoder), None)]
        layers, factor, every, dim = [], self.factor, 1, self.model.feat_dim
        for part, lstm in parts:
            left, right, out = (0, 0, part.hidden_size) if lstm is not None else _context(part, dim, factor)
            if left is None or right is None:
                waits = "waits for the end of the utterance" if right is None else \
                    "remembers all of the utterance, and does not tell its layers"
                raise UserError(f"{self.model_dir}: a network of the architecture {arch} {waits}, so it cannot stream; "
                                "tdnn, tdnn_f, cnn_tdnn, tdnn_lstm and conformer do, with data.cmn online or none "
                                "(such as conf/models/student_tdnn_online.yaml)")
            layers.append(_Layer(part, lstm, left, right, factor, every))
            factor, every, dim = 1, self.factor, out
        return layers


class Stream:
    """One utterance at work."""

    def __init__(self, streaming: StreamingModel, layers: List["_Window"]) -> None:
        self._of, self._layers = streaming, layers
        self._mean = streaming.cmn.stream() if isinstance(streaming.cmn, OnlineMean) else None
        self._before, self._after = streaming.model.edge_rows
        self._skip, self._frames, self._ended = self._before, 0, False
        self._last: Optional[np.ndarray] = None  # frame that has come

    @torch.inference_mode()
    def part(self, feats: np.ndarray, last: bool = False) -> np.ndarray:
        """The next frames (n, F) float32, n >= 0 -> logits float32 (m, C) of the rows that are ready now.

        ``last``: the utterance ends with them; nothing may come after that. In all there are ceil(T / f) rows.
        """
        model, device = self._of.model, self._of.device
        if self._ended:
            raise ValueError("the utterance has ended")
        self._ended = last
        feats = np.asarray(feats, dtype=np.float32)
        if feats.ndim != 2 or feats.shape[1] != model.feat_dim:
            raise ValueError(f"features of shape {feats.shape}, where the model takes (n, {model.feat_dim})")
        if self._mean is not None:
            feats = self._mean.part(feats, last)
        x = (torch.from_numpy(self._with_edges(feats, last)).to(device) - model.feat_mean) * model.feat_inv_std
        x = x[None]
        for layer in self._layers:
            x = layer.part(x, last)
        skip = min(self._skip, x.size(1))  # rows of repeated frames
        x, self._skip = x[:, skip:], self._skip - skip
        if last and self._after:
            x = x[:, :max(0, x.size(1) - self._after)]
        return model.output(x)[0].float().cpu().numpy() if x.size(1) else np.zeros((0, model.num_pdfs), np.float32)

    def _with_edges(self, feats: np.ndarray, last: bool) -> np.ndarray:
        """Frames with the repeated ones, where the utterance begins or ends with them."""
        factor, begins = self._of.factor, self._frames == 0 and len(feats) > 0
        self._frames += len(feats)
        self._last = feats[-1:] if len(feats) else self._last
        parts = [feats]
        if begins and self._before:
            parts.insert(0, feats[:1].repeat(self._before * factor, axis=0))
        if last and self._after and self._frames:
            parts.append(self._last.repeat(
                (num_rows(self._frames, factor) + self._after) * factor - self._frames, axis=0))
        return np.concatenate(parts) if len(parts) > 1 else feats


@dataclass
class _Layer:
    """A part of the encoder: row r depends on inputs [factor r - left, factor r + right]; an input is ``every`` frames.

    An LSTM depends on all before, and keeps its state."""

    module: nn.Module
    lstm: Optional[nn.LSTM]
    left: int
    right: int
    factor: int
    every: int


class _Whole(nn.Module):
    """An encoder as a layer of one utterance."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor, mask: None) -> torch.Tensor:
        return self.encoder(x, torch.full((1,), x.size(1), device=x.device))


class _Window:
    """A layer at work on one utterance: inputs are kept as long as a row depends on them."""

    def __init__(self, layer: _Layer) -> None:
        self._layer, self._kept = layer, None
        self._first = self._answered = 0  # number of the first input that is kept; rows

    def part(self, x: torch.Tensor, last: bool) -> torch.Tensor:
        """The next inputs (1, n, C) -> rows (1, m, C') that are ready."""
        layer, factor = self._layer, self._layer.factor
        if x.size(1):
            self._kept = x if self._kept is None else torch.cat([self._kept, x], dim=1)
        if self._kept is None:
            return x
        come = self._first + self._kept.size(1)
        ready = max(0, num_rows(come if last else come - layer.right, factor))
        if ready <= self._answered:
            return x.new_zeros(1, 0, 1)
        rows = layer.module(self._kept, None)[:, self._answered - self._first // factor:ready - self._first // factor]
        self._answered = ready
        begin = max(self._first, (ready * factor - layer.left) // factor * factor)
        self._kept, self._first = self._kept[:, begin - self._first:], begin
        return rows


class _Memory:
    """An LSTM at work on one utterance."""

    def __init__(self, layer: _Layer) -> None:
        self._lstm, self._state = layer.lstm, None

    def part(self, x: torch.Tensor, last: bool) -> torch.Tensor:
        """The next inputs (1, n, C) -> rows (1, n, C')."""
        if x.size(1) == 0:
            return x
        rows, self._state = self._lstm(x, self._state)
        return rows


def _context(part: nn.Module, dim: int, factor: int) -> Tuple[Optional[int], Optional[int], int]:
    """(inputs before factor r, inputs after it that row r of a layer depends on, size of a row); None: all of them.

    Measured as `look_ahead` of am.models.acoustic_model does it.
    """
    part = copy.deepcopy(part).cpu().double().eval()
    x = torch.randn(1, _TRIAL, dim, generator=torch.Generator().manual_seed(1), dtype=torch.double, requires_grad=True)
    row = _TRIAL // 2 // factor
    with torch.enable_grad():
        out = part(x, None)
        grad, = torch.autograd.grad(out[0, row].square().sum(), x)
    some = grad[0].abs().sum(1).nonzero()[:, 0]
    first, last = (int(some.min()), int(some.max())) if len(some) else (row * factor, row * factor)
    return (None if first == 0 else max(0, row * factor - first),
            None if last == _TRIAL - 1 else max(0, last - row * factor), out.size(2))


@dataclass
class Timing:
    """How long the parts of some utterances took, in seconds; parts that ended an utterance are among them."""

    chunk_ms: float
    look_ahead_ms: float = 0.0
    seconds: List[float] = field(default_factory=list)

    def line(self) -> str:
        """What is said of it."""
        p50, p99 = (1000 * np.percentile(self.seconds, p) for p in (50, 99)) if self.seconds else (0.0, 0.0)
        return (f"{len(self.seconds)} chunks of {self.chunk_ms:g} ms: half of them within {p50:.2f} ms, 99 % within "
                f"{p99:.2f} ms; a row waits for {self.look_ahead_ms:g} ms of audio")


def iter_logits(model_dir, feats_scp, timing: Timing, device: Optional[str] = None,
                threads: Optional[int] = None) -> Iterator[Tuple[str, np.ndarray]]:
    """As am.forward.iter_logits, each utterance in chunks of ``timing.chunk_ms``, whose seconds are added to it."""
    streaming = StreamingModel(model_dir, device, threads)
    timing.look_ahead_ms = FRAME_SHIFT_MS * streaming.look_ahead
    frames = max(1, round(timing.chunk_ms / FRAME_SHIFT_MS))
    source = FeatureSource(load_cuts(feats_scp), "none")
    if source.feat_dim != streaming.model.feat_dim:
        raise UserError(f"{feats_scp}: features have {source.feat_dim} bins, but the model {model_dir} takes "
                        f"{streaming.model.feat_dim}")
    for i, utt in enumerate(source.ids):
        feats, stream, rows = source.raw(i), streaming.start(), []
        for begin in range(0, len(feats), frames):
            started = time.perf_counter()
            rows.append(stream.part(feats[begin:begin + frames], begin + frames >= len(feats)))
            timing.seconds.append(time.perf_counter() - started)
        yield utt, np.concatenate(rows)
