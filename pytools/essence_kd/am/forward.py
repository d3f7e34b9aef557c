"""Scores of trained models: utterances in batches of similar length, answers in the order of the scp."""
from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from essence_kd.am import nnet3
from essence_kd.am.checkpoints import load_checkpoint
from essence_kd.am.cmn import cmn_of_model
from essence_kd.am.models import read_model_yaml
from essence_kd.am.models.registry import build_model
from essence_kd.am.processes import device_of
from essence_kd.am.settings import ForwardSettings
from essence_kd.am.sources import FeatureSource, batches_by_length, load_cuts
from essence_kd.distill.archives import frame_error
from essence_kd.distill.ensemble import Ensemble, combine
from essence_kd.distill.scales import Scale
from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.provenance import sidecar_path, write_sidecar
from essence_kd.io.tables import MatrixWriter

WINDOW_BYTES = 400_000_000  # logits held while they wait for their turn
Job = Tuple[int, int]  # the first of three jobs: (1, 3)


def share(frames: np.ndarray, window_frames: int, batch_frames: int,
          job: Optional[Job]) -> Iterator[Tuple[List[int], bool]]:
    """`batches_by_length`, or the part of its batches that falls to a job: about as many frames to each.

    A batch is never divided, so an utterance has the same companions, and so the same answer to the last bit, whatever
    the number of jobs. Where there are few batches a job may have none.
    """
    number, jobs = job or (1, 1)
    total, seen, held = int(frames.sum()), 0, None
    for batch, last in batches_by_length(frames, window_frames, batch_frames):
        mine = seen * jobs // total == number - 1
        seen += int(frames[batch].sum())
        if held is not None:
            yield held[0], held[1] or not mine
        held = (batch, last) if mine else None
    if held is not None:
        yield held[0], True


def window_of(num_pdfs: int, factor: int, batch_frames: int) -> int:
    """Feature frames of a window of utterances that are answered before the first of them is handed out."""
    return max(batch_frames, WINDOW_BYTES // (4 * num_pdfs) * factor)


def load_model(model_dir, device: Union[str, torch.device] = "cpu") -> Tuple[torch.nn.Module, dict]:
    """(the AcousticModel in eval mode, the contents of model.yaml) of a model directory.

    Raises UserError where model.yaml or final.pt is missing or truncated, or one does not belong to the other.

    >>> import torch
    >>> from essence_kd import load_model
    >>> model, settings = load_model("exp/student")
    >>> model.feat_dim, model.num_pdfs, model.frame_subsampling_factor, settings["cmn"]
    (8, 8, 3, 'none')
    >>> with torch.inference_mode():
    ...     logits = model(torch.zeros(2, 30, 8), torch.tensor([30, 27]))  # features float32, frames of each
    >>> tuple(logits.shape)
    (2, 10, 8)
    """
    model_dir = Path(model_dir)
    settings = read_model_yaml(model_dir)
    for key in ("arch", "model", "feat_dim", "num_pdfs", "frame_subsampling_factor", "cmn"):
        if key not in settings:
            raise UserError(f"{model_dir / 'model.yaml'}: missing key '{key}'")
    model = build_model(settings["arch"], settings["model"], feat_dim=settings["feat_dim"],
                        num_pdfs=settings["num_pdfs"], where=str(model_dir / "model.yaml"),
                        frame_subsampling_factor=settings["frame_subsampling_factor"])
    state = load_checkpoint(model_dir / "final.pt")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{model_dir / 'final.pt'}: not the parameters of {model_dir / 'model.yaml'}: "
                        f"{reason}") from None
    model.edge_rows = _edge_rows(settings, model_dir / "model.yaml")
    return model.to(device).eval(), settings


def _edge_rows(settings: dict, where: Path) -> Tuple[int, int]:
    """The rows of repeated frames that a model.yaml, ``where``, asks for at both ends of an utterance."""
    rows = settings.get("edge_rows", [0, 0])
    if len(rows) != 2 or not all(type(row) is int and 0 <= row < 10_000 for row in rows):
        raise UserError(f"{where}: edge_rows is {rows}: expected rows at the beginning and at the end; train again")
    return rows[0], rows[1]


def iter_logits(model_dir, feats_scp, *, batch_frames: int = ForwardSettings.batch_frames, device: Optional[str] = None,
                threads: Optional[int] = None, job: Optional[Job] = None) -> Iterator[Tuple[str, np.ndarray]]:
    """(utterance, float32 (ceil(T / factor), num_pdfs) logits) of every utterance, in the order of the scp.

    ``job`` (J, N): of those utterances alone that fall to the J-th of N jobs.

    Utterances of similar length share a batch of at most ``batch_frames`` feature frames, padding included; an
    utterance's logits do not depend on its companions beyond rounding.
    """
    if nnet3.is_nnet3(model_dir):
        wanted = None
        if job is not None:
            settings, cuts = read_model_yaml(model_dir), load_cuts(feats_scp)
            window = window_of(settings["num_pdfs"], settings["frame_subsampling_factor"], batch_frames)
            mine = (i for batch, _ in share(cuts.frames, window, batch_frames, job) for i in batch)
            wanted = [cuts.ids[i] for i in sorted(mine)]
        yield from nnet3.iter_logits(model_dir, feats_scp, wanted)
        return
    if threads:
        torch.set_num_threads(max(1, threads))
    device = device_of(device)
    model, settings = load_model(model_dir, device)
    source = FeatureSource(load_cuts(feats_scp), cmn_of_model(settings, model_dir))
    if source.feat_dim != model.feat_dim:
        raise UserError(f"{feats_scp}: features have {source.feat_dim} bins, but the model {model_dir} takes "
                        f"{model.feat_dim}")
    factor = model.frame_subsampling_factor
    window = window_of(model.num_pdfs, factor, batch_frames)
    ready = {}
    for batch, last in share(source.frames, window, batch_frames, job):
        with torch.inference_mode():
            logits = model(torch.from_numpy(source.padded(batch)).to(device),
                           torch.from_numpy(source.frames[batch]).to(device))
        logits = logits.float().cpu().numpy()
        for row, i in enumerate(batch):
            ready[i] = logits[row, :-(-source.frames[i] // factor)].copy()
        if last:
            for i in sorted(ready):
                yield source.ids[i], ready.pop(i)


def forward(model_dirs: Union[str, os.PathLike, Sequence], data_dir, **settings) -> Iterator[Tuple[str, np.ndarray]]:
    """(utterance, scores float32 (ceil(T / factor), num_pdfs)) of a data directory's feats.scp, in its order.

    ``model_dirs``: a model directory, or several whose posteriors are combined. ``settings``: fields of
    `ForwardSettings`, such as ``output="logit"``; by default scores are log-likelihoods, log p less log prior.
    PyTorch gets ``threads`` threads. Raises UserError for models that do not fit each other or the features, TypeError
    for an unknown setting.

    >>> from essence_kd import forward
    >>> for utt, scores in forward("exp/student", "data/eval"):
    ...     print(utt, scores.shape, scores.dtype)
    utt1 (16, 8) float32
    utt2 (12, 8) float32
    """
    folders = [model_dirs] if isinstance(model_dirs, (str, os.PathLike)) else model_dirs
    return Scorer([os.fspath(folder) for folder in folders], ForwardSettings(**settings)).utterances(data_dir)


class Scorer:
    """The scores of one model, or of several combined."""

    def __init__(self, model_dirs: Sequence[str], settings: ForwardSettings) -> None:
        """Raises UserError for models that do not belong to one ensemble, and settings that they cannot meet."""
        self.model_dirs, self.settings = model_dirs, settings
        about = [read_model_yaml(model_dir) for model_dir in model_dirs]
        for key in ("num_pdfs", "frame_subsampling_factor", "tree_hash"):
            for model_dir, other in zip(model_dirs, about):
                if other.get(key) != about[0].get(key):
                    raise UserError(f"{model_dirs[0]} has {key} {about[0].get(key)} and {model_dir} has "
                                    f"{other.get(key)}: these models do not belong to one ensemble")
        self.about = about[0]
        if len(about) > 1 and settings.output == "logit":
            raise UserError("several models together have no logits: ask for --output prob, logprob or loglike")
        try:
            weights = [float(w) for w in settings.weights.split(",")] if settings.weights else []
            self.ensemble = Ensemble([Scale("logit") for _ in about], weights, settings.combine)
        except ValueError as error:
            raise UserError(f"--weights {settings.weights}: {error}") from None
        self.timing: list = []  # of a stream: how long the chunks of each model took
        if settings.stream and not settings.chunk_ms >= FRAME_SHIFT_MS:
            raise UserError(f"--chunk-ms {settings.chunk_ms:g}: must be at least {FRAME_SHIFT_MS:g}, a frame")
        self.priors = None
        if settings.output == "loglike":
            self.priors = read_log_priors(Path(model_dirs[0]) / "priors.txt", self.about["num_pdfs"],
                                          settings.prior_floor).astype(np.float32)

    def utterances(self, data_dir) -> Iterator[Tuple[str, np.ndarray]]:
        """(utterance, scores (ceil(T / factor), num_pdfs) float32), in the order of the data directory's feats.scp."""
        for together in zip(*self._logits(Path(data_dir) / "feats.scp")):
            s, (utt, logits) = self.settings, together[0]
            if len(together) > 1:  # the log of the combined posterior has the same softmax as logits would
                try:
                    mean = combine(self.ensemble, [matrix for _, matrix in together], threads=s.threads)
                except ValueError as error:
                    raise frame_error(" + ".join(self.model_dirs), utt, error) from None
                logits = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
            yield utt, scores(logits, s.output, self.priors, s.prior_scale)

    def _logits(self, feats_scp: Path) -> List[Iterator[Tuple[str, np.ndarray]]]:
        """Of each model, every (utterance, logits)."""
        s = self.settings
        if s.stream:
            from essence_kd.am import stream

            self.timing = [stream.Timing(s.chunk_ms) for _ in self.model_dirs]
            return [stream.iter_logits(model_dir, feats_scp, timing, s.device, s.threads)
                    for model_dir, timing in zip(self.model_dirs, self.timing)]
        return [iter_logits(model_dir, feats_scp, batch_frames=s.batch_frames, device=s.device, threads=s.threads)
                for model_dir in self.model_dirs]

    def write(self, data_dir, wspecifier: str) -> str:
        """Write the scores of a data directory, and their sidecar; a line that tells how much it was and how fast."""
        began, utterances, rows = time.monotonic(), 0, 0
        with MatrixWriter(wspecifier) as writer:
            for utt, matrix in self.utterances(data_dir):
                writer.write(utt, matrix)
                utterances, rows = utterances + 1, rows + len(matrix)
        shift = round(FRAME_SHIFT_MS * self.about["frame_subsampling_factor"])
        sidecar = sidecar_path(wspecifier)
        if sidecar is not None:
            write_sidecar(sidecar, {"kind": "scores", "output": self.settings.output,
                                    "num_pdfs": self.about["num_pdfs"], "tree_hash": self.about.get("tree_hash"),
                                    "frame_shift_ms": shift, "num_utts": utterances, "num_frames": rows})
        seconds, audio = time.monotonic() - began, rows * shift / 1000
        chunks = "".join(f"; {timing.line()}" for timing in self.timing)
        return (f"{data_dir}: {utterances} utterances, {audio:.0f} s of audio in {seconds:.1f} s: "
                f"{audio / seconds:.0f} x real time{chunks}")


def scores(logits: np.ndarray, output: str, priors: Optional[np.ndarray] = None,
           prior_scale: float = ForwardSettings.prior_scale) -> np.ndarray:
    """Logits (R, C) float32 as ``output``: loglike (log p - prior_scale * ``priors``), logprob, prob or logit."""
    if output == "logit":
        return logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    logprob = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if output == "prob":
        return np.exp(logprob)
    return logprob - prior_scale * priors if output == "loglike" else logprob
