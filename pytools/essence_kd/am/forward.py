"""Scores of a trained model: utterances in batches of similar length, answers in the order of the scp."""
from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Tuple

import numpy as np
import torch

from essence_kd.am import nnet3
from essence_kd.am.dataset import FeatureSource, load_cuts
from essence_kd.am.models.registry import build_model
from essence_kd.am.trainer import load_checkpoint
from essence_kd.io.errors import UserError
from essence_kd.io.settings import read_yaml

OUTPUTS = ("loglike", "logprob", "prob", "logit")
WINDOW_BYTES = 400_000_000  # logits held while they wait for their turn


def load_model(model_dir, device: Optional[str] = None) -> Tuple[torch.nn.Module, dict]:
    """(the AcousticModel in eval mode, the contents of model.yaml) of a model directory.

    Raises:
        UserError: model.yaml or final.pt is missing, truncated, or one does not belong to the other.
    """
    model_dir = Path(model_dir)
    settings = read_yaml(model_dir / "model.yaml")
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
    return model.to(device or "cpu").eval(), settings


def iter_logits(model_dir, feats_scp, *, batch_frames: int = 30000, device: Optional[str] = None,
                threads: Optional[int] = None) -> Iterator[Tuple[str, np.ndarray]]:
    """(utterance, float32 (ceil(T / factor), num_pdfs) logits) of every utterance, in the order of the scp.

    Utterances of similar length share a batch of at most ``batch_frames`` feature frames, padding included; an
    utterance's logits do not depend on its companions beyond rounding.
    """
    if nnet3.is_nnet3(model_dir):
        yield from nnet3.iter_logits(model_dir, feats_scp)
        return
    if threads:
        torch.set_num_threads(threads)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, settings = load_model(model_dir, device)
    source = FeatureSource(load_cuts(feats_scp), settings["cmn"])
    width = source.cuts[0].features.num_features
    if width != model.feat_dim:
        raise UserError(f"{feats_scp}: features have {width} bins, but the model {model_dir} takes {model.feat_dim}")
    factor = model.frame_subsampling_factor
    most = max(batch_frames, WINDOW_BYTES // (4 * model.num_pdfs) * factor)
    frames = np.array([cut.features.num_frames for cut in source.cuts])
    start = 0
    while start < len(frames):
        stop = start + max(1, int(np.searchsorted(np.cumsum(frames[start:]), most, side="right")))
        yield from _window(model, source, frames, range(start, stop), batch_frames, device)
        start = stop


def _window(model, source: FeatureSource, frames, positions, batch_frames: int, device):
    """Logits of some utterances, computed shortest first, given back in order."""
    factor = model.frame_subsampling_factor
    ready = {}
    order = sorted(positions, key=lambda i: frames[i])
    while order:
        count = 1
        while count < len(order) and frames[order[count]] * (count + 1) <= batch_frames:
            count += 1
        batch, order = order[:count], order[count:]
        feats = np.zeros((count, frames[batch[-1]], model.feat_dim), dtype=np.float32)
        for b, i in enumerate(batch):
            feats[b, :frames[i]] = source.load(i)
        with torch.inference_mode():
            logits = model(torch.from_numpy(feats).to(device), torch.from_numpy(frames[batch]).to(device))
        logits = logits.float().cpu().numpy()
        for b, i in enumerate(batch):
            ready[i] = logits[b, :-(-frames[i] // factor)].copy()
    for i in positions:
        yield source.cuts[i].id, ready.pop(i)


def log_priors(model_dir, num_pdfs: int, floor: float = 1e-5) -> np.ndarray:
    """(num_pdfs,) float32 log priors of a model directory's priors.txt.

    Priors are raised to ``floor``. A pdf that training never saw gets prior 1: its likelihood is then its posterior,
    so that what the network never learnt is not lifted by a division by nearly nothing.
    """
    path = Path(model_dir) / "priors.txt"
    try:
        priors = np.array([float(x) for x in path.read_text(encoding="utf-8").split()])
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: expected one number a line: {error}") from None
    if len(priors) != num_pdfs:
        raise UserError(f"{path}: {len(priors)} priors, but the model has {num_pdfs} pdfs")
    if not np.isfinite(priors).all() or priors.min() < 0 or priors.sum() <= 0:
        raise UserError(f"{path}: priors must be finite, not negative, and not all zero")
    priors = priors / priors.sum()
    return np.log(np.where(priors > 0, np.maximum(priors, floor), 1.0)).astype(np.float32)


def scores(logits: np.ndarray, output: str, priors: Optional[np.ndarray] = None,
           prior_scale: float = 1.0) -> np.ndarray:
    """Logits (R, C) float32 as ``output``: loglike (log p - prior_scale * ``priors``), logprob, prob or logit."""
    if output == "logit":
        return logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    logprob = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if output == "prob":
        return np.exp(logprob)
    return logprob - prior_scale * priors if output == "loglike" else logprob
