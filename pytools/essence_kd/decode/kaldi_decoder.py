"""Decoding with Kaldi's FasterDecoder (the kaldi-decoder wheel): a best path an utterance, on one CPU core.

The graph becomes an OpenFst transducer whose output labels are arc indices + 1, so that the best path
names the arcs of ``hmm.graph.Graph``.
"""
from __future__ import annotations

import os
import struct
import tempfile
from dataclasses import replace

import numpy as np

from essence_kd.decode.lattice import path_words
from essence_kd.decode.options import Decoded, DecodeOptions
from essence_kd.hmm.graph import Graph
from essence_kd.io.errors import UserError

_OPENFST_MAGIC = 2125659606


def vector_fst_bytes(graph: Graph, weight: np.ndarray) -> bytes:
    """OpenFst's binary VectorFst (version 2) with input labels of the graph and output labels arc index + 1.

    ``weight`` float32 (A,). The format: a header (magic, fst type, arc type, version, flags, properties, start, states,
    arcs), then for each state its final cost (float32), its number of arcs (int64) and the arcs, each int32 input and
    output label, float32 weight, int32 target.
    """
    num_states, num_arcs = graph.num_states, graph.num_arcs
    counts = np.bincount(graph.src, minlength=num_states)
    before = np.cumsum(counts) - counts
    cells = np.zeros(3 * num_states + 4 * num_arcs, "<i4")  # the body as 4-byte cells: 3 a state, 4 an arc
    state = 3 * np.arange(num_states) + 4 * before
    cells[state] = graph.final.astype("<f4").view("<i4")
    cells[state + 1] = counts
    arc = 3 * (graph.src.astype(np.int64) + 1) + 4 * np.arange(num_arcs)
    cells[arc] = graph.ilabel
    cells[arc + 1] = np.arange(1, num_arcs + 1)
    cells[arc + 2] = weight.astype("<f4").view("<i4")
    cells[arc + 3] = graph.dst
    header = struct.pack("<ii6si8sii", _OPENFST_MAGIC, 6, b"vector", 8, b"standard", 2, 0)
    header += struct.pack("<Qqqq", 3, 0, num_states, num_arcs)  # properties: expanded, mutable
    return header + cells.tobytes()


class KaldiDecoder:
    """Decodes score matrices one by one. UserError where the wheel cannot be imported."""

    name = "kaldi"

    def __init__(self, graph: Graph, options: DecodeOptions):
        try:
            import kaldi_decoder
            import kaldifst
        except ImportError as error:
            raise UserError(f"kaldi-decoder cannot be imported ({error}); "
                            "install it with: pip install kaldifst==1.7.17 kaldi-decoder==0.2.11") from None
        self._kaldi_decoder, self._kaldifst = kaldi_decoder, kaldifst
        self.graph = graph
        self.options = options
        self._penalty: float | None = None
        self._fst = None

    def set_options(self, options: DecodeOptions) -> None:
        """Take other scales and beams; the graph is converted again only when the word insertion penalty changes."""
        self.options = options

    def _search_graph(self):
        penalty = self.options.word_insertion_penalty
        if self._fst is None or penalty != self._penalty:
            weight = self.graph.weight + np.float32(penalty) * (self.graph.olabel > 0)
            handle, path = tempfile.mkstemp(suffix=".fst")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(vector_fst_bytes(self.graph, weight))
                self._fst = self._kaldifst.StdConstFst(self._kaldifst.StdVectorFst.read(path))
            finally:
                os.unlink(path)
            self._penalty = penalty
        return self._fst

    def _decode_one(self, fst, scaled: np.ndarray, widen: float) -> np.ndarray | None:
        options = self._kaldi_decoder.FasterDecoderOptions(
            beam=self.options.beam * widen, max_active=int(self.options.max_active * widen ** 2),
            min_active=self.options.min_active)
        decoder = self._kaldi_decoder.FasterDecoder(fst, options)
        decoder.decode(self._kaldi_decoder.DecodableCtc(scaled))
        if not decoder.reached_final():
            return None
        ok, best = decoder.get_best_path()
        if not ok:
            return None
        arcs = self._kaldifst.get_linear_symbol_sequence(best)[2]
        return np.asarray(arcs, np.int64) - 1

    def decode(self, batch: list[np.ndarray], *, lattices: bool = False) -> list[Decoded]:
        """Best paths of score matrices float32 (T, C), T > 0; an utterance without a path is tried again wider."""
        fst = self._search_graph()
        answers = []
        for scores in batch:
            scaled = np.ascontiguousarray(scores * np.float32(self.options.acoustic_scale), dtype=np.float32)
            path = self._decode_one(fst, scaled, 1.0)
            retried = path is None
            if retried:
                path = self._decode_one(fst, scaled, self.options.retry_factor)
            answers.append(Decoded(path=path, retried=retried))
        return answers

    def sweep(self, batch: list[np.ndarray], scales: list[float],
              penalties: list[float]) -> list[list[list[np.ndarray]]]:
        """Words of every utterance for every acoustic scale and word insertion penalty, each decoded anew.

        Returns ``[utterance][scale][penalty]`` of word-ids (int32); an utterance without a path has empty sequences.
        """
        kept = self.options
        answers: list = [[[] for _ in scales] for _ in batch]
        for i, scale in enumerate(scales):
            for penalty in penalties:
                self.options = replace(kept, acoustic_scale=scale, word_insertion_penalty=penalty)
                for row, decoded in enumerate(self.decode(batch)):
                    nothing = np.zeros(0, np.int32)
                    words = nothing if decoded.path is None else path_words(self.graph, decoded.path)
                    answers[row][i].append(words)
        self.options = kept
        return answers
