"""Mean subtraction: what is taken from stored features before a network sees them.

Legend: T feature frames of an utterance, F feature bins.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Tuple, Union

import numpy as np

from essence_kd.io.errors import UserError

KINDS = ("none", "utterance", "speaker", "online")
_GLOBAL_FRAMES = 2_000_000  # that a global mean is taken of, at most


@dataclass(frozen=True)
class OnlineMean:
    """A running mean, which needs no more of an utterance than ``look_ahead`` frames after the frame at hand.

    It is the mean of the ``window`` last frames, and of ``prior`` frames of ``mean`` (F,) as long as the window is
    not full: with ``look_ahead`` 0 that of Kaldi's OnlineCmvn (cmn-window, global-frames) at the beginning
    of a speaker.
    """

    prior: int
    window: int
    look_ahead: int
    mean: Tuple[float, ...]

    def __call__(self, feats: np.ndarray) -> np.ndarray:
        """Features (T, F) float32 of a whole utterance, the running mean removed."""
        return self.stream().part(feats, True)

    def stream(self) -> "MeanStream":
        """The same for an utterance that comes in parts."""
        return MeanStream(self)


class MeanStream:
    """A running mean at work on one utterance."""

    def __init__(self, online: OnlineMean) -> None:
        self._online = online
        self._frames = np.zeros((0, len(online.mean)), dtype=np.float32)  # that have come and wait
        # sums of the frames before each of those from number ``_first`` on; the last is of all that have come
        self._sums = np.zeros((1, len(online.mean)))
        self._first = self._answered = 0

    def part(self, feats: np.ndarray, last: bool = False) -> np.ndarray:
        """The next frames (n, F) float32 of the utterance, maybe none -> those that can be answered now, (m, F)
        float32. With ``last`` these are all that are left."""
        o = self._online
        sums = self._sums[-1:] + np.cumsum(feats, axis=0, dtype=np.float64)
        self._sums = np.concatenate([self._sums, sums])
        self._frames = np.concatenate([self._frames, feats]) if len(self._frames) else feats
        come = self._first + len(self._sums) - 1
        ready = max(0, (come if last else come - o.look_ahead) - self._answered)
        end = np.minimum(np.arange(self._answered, self._answered + ready) + 1 + o.look_ahead, come)
        begin = np.maximum(0, end - o.window)
        count = end - begin
        prior = np.minimum(o.prior, o.window - count)
        total = self._sums[end - self._first] - self._sums[begin - self._first]
        mean = (total + prior[:, None] * np.array(o.mean)) / (count + prior)[:, None]
        out, self._frames = self._frames[:ready] - mean.astype(np.float32), self._frames[ready:]
        self._answered += ready
        drop = max(0, min(self._answered + 1 + o.look_ahead, come) - o.window - self._first)
        self._sums, self._first = self._sums[drop:], self._first + drop
        return out


Cmn = Union[str, OnlineMean]  # none, utterance, speaker, or a running mean


def cmn_of_model(settings: dict, model_dir) -> Cmn:
    """What a model directory's model.yaml, ``settings``, says of mean subtraction; UserError where that makes no sense.
    """
    if settings["cmn"] != "online":
        return settings["cmn"]
    said = settings.get("online_cmn") or {}
    try:
        mean = tuple(float(number) for number in said["mean"])
        online = OnlineMean(int(said["prior"]), int(said["window"]), int(said["look_ahead"]), mean)
    except (KeyError, TypeError, ValueError, OverflowError):
        online = None
    if online is None or len(online.mean) != settings["feat_dim"] or not np.isfinite(online.mean).all() or \
            online.window < 1 or min(online.prior, online.look_ahead) < 0:
        raise UserError(f"{Path(model_dir) / 'model.yaml'}: cmn is online, but online_cmn does not tell prior, window, "
                        "look_ahead and mean (a number per feature bin); train again")
    return online


def cmn_of_training(data, source: Callable) -> Cmn:
    """The mean subtraction that ``data`` (DataSettings) asks for; a running mean begins with that of ``source()``."""
    if data.cmn != "online":
        return data.cmn
    return OnlineMean(data.cmn_prior, data.cmn_window, data.cmn_look_ahead,
                      tuple(float(f"{number:.7g}") for number in _global_mean(source())))


def _global_mean(source) -> np.ndarray:
    """Mean (F,) float64 of stored features, of utterances spread evenly over a source."""
    step = max(1, int(np.ceil(source.frames.sum() / _GLOBAL_FRAMES)))
    # shards are shuffled, and read whole: the first ones will do
    some = range(max(1, len(source.ids) // step)) if hasattr(source, "shard") else range(0, len(source.ids), step)
    total, count = 0.0, 0
    for i in some:
        feats = source.raw(i)
        total, count = total + feats.sum(axis=0, dtype=np.float64), count + len(feats)
    return total / count


def check_cmn(cmn: Cmn) -> None:
    """UserError for a name of no mean subtraction; a running mean is none by its name alone."""
    if not isinstance(cmn, OnlineMean) and cmn not in KINDS[:-1]:
        raise UserError(f"data.cmn: '{cmn}' is none of {', '.join(KINDS)}")


def without_mean(feats: np.ndarray, cmn: Cmn) -> np.ndarray:
    """An utterance's features (T, F) float32 without their mean; that of a speaker is not this function's."""
    if isinstance(cmn, OnlineMean):
        return cmn(feats)
    return feats - feats.mean(axis=0) if cmn == "utterance" else feats
