"""Decoding of score archives, by any decoder.

The package can be called, too: ``essence_kd.decode(graph_dir, scores)`` decodes from Python (`Package.__call__`).
"""
from __future__ import annotations

import os
import sys
import types
from typing import Iterable


class Package(types.ModuleType):
    """This package, as a function with the package's name."""

    def __call__(self, graph_dir: str | os.PathLike, scores: str | Iterable[tuple],
                 out_dir: str | os.PathLike | None = None, *, decoder: str = "auto", nj: int = 1,
                 **settings) -> dict[str, list[str]]:
        """The words of every utterance, in the order of the scores; none where no path survived.

        scores: an rspecifier, or (utterance, float (T, C) log-likelihoods) pairs, which `forward` gives; C is the
        graph's number of pdfs, and a row stands for as much time as the graph expects, unless ``frame_shift_ms`` tells
        otherwise or the scores' sidecar does. out_dir: hyp.txt, hyp.ctm and decode.json go there (default: nowhere).
        decoder: a name of ``essence decode --decoder``; nj: processes; settings: fields of
        `decode.options.DecodeOptions`. Raises UserError for scores and graph that do not fit and for settings that
        cannot be decoded with, TypeError for unknown ones.

        >>> import numpy as np
        >>> from essence_kd import decode, forward
        >>> scores = np.full((6, 8), -5.0, np.float32)
        >>> scores[:3, 2] = scores[3:, 5] = 0.0  # in this graph the word w2 is three frames or more of pdf 2
        >>> decode("exp/graph", [("utt1", scores)], decoder="kaldi", acoustic_scale=1.0)
        {'utt1': ['w2', 'w5']}
        >>> list(decode("exp/graph", forward("exp/student", "data/eval"), "exp/decode_eval", decoder="kaldi"))
        ['utt1', 'utt2']
        """
        from essence_kd.decode.runner import decode

        return decode(graph_dir, scores, out_dir, decoder, nj, settings)


sys.modules[__name__].__class__ = Package
