"""A set of scores before it is decoded: does it fit the graph, at what rate, where in recordings, in which batches."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from essence_kd.decode.decoder import LAST_ROWS
from essence_kd.decode.options import DecodeOptions
from essence_kd.hmm.graph import Graph
from essence_kd.io.data_dir import DataDir
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import check_match, read_sidecar, sidecar_path
from essence_kd.io.text import split

_BATCH_CELLS = 1 << 25  # score cells of one batch, padding included
_RUN_UP = 100  # rows decoded before the one whose active states are counted


def check_scores(matrix: np.ndarray, utt: str, scores: str, graph: Graph, graph_path) -> np.ndarray:
    """Scores of one utterance as float32 (T, C), T possibly 0; UserError for what cannot be decoded.

    Minus infinity (the logarithm of zero) is kept possible to decode as -1e5 while a row has anything better.
    """
    matrix = np.asarray(matrix, np.float32)
    if matrix.size == 0:
        return np.zeros((0, graph.num_pdfs), np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != graph.num_pdfs:
        raise UserError(f"{scores}: utterance '{utt}' has {matrix.shape[-1]} columns, but the graph {graph_path} has "
                        f"{graph.num_pdfs} pdfs: model and graph belong to different trees; decode with the "
                        "graph made from the model's own alignments")
    if not np.isfinite(matrix.sum()):
        bad = np.isnan(matrix) | np.isposinf(matrix)
        if bad.any():
            row, column = (int(x) for x in np.argwhere(bad)[0])
            raise UserError(f"{scores}: utterance '{utt}' has {matrix[row, column]} in row {row}, column {column}; "
                            "the model that wrote it has diverged or the archive is damaged")
        if np.isneginf(matrix).all(axis=1).any():
            row = int(np.flatnonzero(np.isneginf(matrix).all(axis=1))[0])
            raise UserError(f"{scores}: utterance '{utt}' gives every pdf probability 0 in row {row}")
        matrix = np.maximum(matrix, np.float32(-1e5))
    return matrix


def fit_rates(scores: str, options: DecodeOptions, graph: Graph, graph_path) -> DecodeOptions:
    """The options with the frame shift of the scores and the repetitions that bring them to the graph's rate.

    UserError where the scores' sidecar, if there is one, tells another tree, width or frame shift, and where the scores
    cannot be brought to the graph's rate.
    """
    path = sidecar_path(scores)
    told = None
    if path is not None and Path(path).is_file():
        fields = {key: value for key, value in read_sidecar(path).items() if value is not None}
        mine = {"num_pdfs": graph.num_pdfs, "tree_hash": graph.meta.get("tree_hash")}
        check_match(path, fields, graph_path, mine, [key for key, value in mine.items() if value is not None])
        if options.frame_shift_ms:
            wanted = {"frame_shift_ms": options.frame_shift_ms}
            check_match(path, fields, "--frame-shift-ms", wanted, wanted)
        told = fields.get("frame_shift_ms")
    shift = options.frame_shift_ms or told or graph.frame_shift_ms * max(options.repeat_rows, 1)
    ratio = shift / graph.frame_shift_ms
    repeat = options.repeat_rows or round(ratio)
    if repeat < 1 or not options.repeat_rows and abs(ratio - repeat) > 1e-6:
        raise UserError(f"{scores}: has a row every {shift:g} ms, but the graph {graph_path} expects one every "
                        f"{graph.frame_shift_ms:g} ms; decode with a graph of the scores' rate")
    return dataclasses.replace(options, frame_shift_ms=shift, repeat_rows=repeat)


def ctm_places(data_dir) -> dict[str, tuple[str, str, float]]:
    """Utterance -> (recording, channel, start in seconds) of a data directory, as a CTM names them."""
    data = DataDir.load(data_dir)
    sides = {reco: split(value) for reco, value in data.extra.get("reco2file_and_channel", {}).items()}
    places = {}
    for utt, (reco, start, _) in data.utterances().items():
        side = sides.get(reco, [reco, "1"])
        if len(side) != 2:
            raise UserError(f"{data_dir}/reco2file_and_channel: recording '{reco}' has {len(side)} fields after it; "
                            "wanted a file and a channel")
        places[utt] = (side[0], side[1], start)
    return places


def cut_batches(lengths: list[int], width: int, max_rows: int) -> list[list[int]]:
    """Groups of utterance indices of like length whose padded size stays within bounds; longest first.

    A batch has at most ``max_rows`` rows and 2^25 cells, padding included, or is one utterance.
    """
    batches: list[list[int]] = []
    limit = max(1, min(max_rows, _BATCH_CELLS // max(width, 1)))
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class RowSample:
    """Scores up to rows that lie evenly among those of a set: ``limit`` at most, half as many at least.

    The last rows of an utterance, at which k2's beam is wider, are left out.
    """

    def __init__(self, limit: int):
        self._limit, self._step, self._seen = limit, 1, 0
        self.kept: list[np.ndarray] = []

    def add(self, scores: np.ndarray) -> None:
        """Take in what is decoded in one go."""
        rows = max(0, len(scores) - LAST_ROWS)
        while self._limit and (row := len(self.kept) * self._step - self._seen) < rows:
            self.kept.append(scores[max(0, row + 1 - _RUN_UP):row + 1].copy())
            if len(self.kept) > self._limit:
                del self.kept[1::2]
                self._step *= 2
        self._seen += rows
