"""Posteriors of every shape, written and compared."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from essence_kd.io.posterior import Posterior, PosteriorWriter


def ragged(counts, seed: int = 0, zeros: float = 0.0) -> Posterior:
    """A posterior with the given number of entries per frame; a share of `zeros` of its weights is exactly zero."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    probs = rng.random(offsets[-1]).astype(np.float32)
    probs[rng.random(len(probs)) < zeros] = 0
    return Posterior(offsets, rng.integers(0, 8816, offsets[-1]), probs)


def fixed(frames: int, k: int, seed: int = 0) -> Posterior:
    return ragged(np.full(frames, k), seed)


def same(found: Posterior, wanted: Posterior, exact: bool = True) -> None:
    np.testing.assert_array_equal(found.offsets, wanted.offsets)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    assert found.ids.dtype == np.int32 and found.probs.dtype == np.float32 and found.offsets.dtype == np.int64
    if exact:
        np.testing.assert_array_equal(found.probs.view(np.int32), wanted.probs.view(np.int32))
    else:
        np.testing.assert_allclose(found.probs, wanted.probs, rtol=5e-7)


def as_lists(post: Posterior) -> list:
    """As kaldi-native-io has it: one list of (pdf-id, weight) per frame."""
    return [list(zip(post.ids[a:b].tolist(), post.probs[a:b].tolist()))
            for a, b in zip(post.offsets[:-1], post.offsets[1:])]


def write(wspecifier: str, posts: dict, **options) -> None:
    with PosteriorWriter(wspecifier, **options) as writer:
        for utt, post in posts.items():
            writer.write(utt, post)


MANY = {"fixed": fixed(30, 20), "one": fixed(5, 1), "none": fixed(0, 0), "empty-frames": fixed(7, 0),
        "varying": ragged([3, 0, 1, 7, 0, 0, 2, 30, 1, 1]), "ends-empty": ragged([2, 1, 0, 0]),
        "starts-empty": ragged([0, 0, 4]), "zeros": ragged([3, 5, 1, 0, 9, 2, 2, 0], zeros=0.5),
        "all-zero": ragged([3, 5, 1, 0, 9, 2, 2, 0], zeros=1.0), "long": ragged(np.arange(400) % 23, zeros=0.05)}


def parts_of(path):
    """Bytes of every object of the archives that an scp names, by utterance."""
    places = [line.split(None, 1) for line in Path(path).read_text().splitlines()]
    starts = sorted((place.rpartition(":")[0], int(place.rpartition(":")[2]), utt) for utt, place in places)
    ends = [start - len(utt) - 1 if ark == now else None
            for (now, _, _), (ark, start, utt) in zip(starts, [*starts[1:], ("", 0, "")])]
    found = {utt: Path(ark).read_bytes()[start:end] for (ark, start, utt), end in zip(starts, ends)}
    return {utt: found[utt] for utt, _ in places}
