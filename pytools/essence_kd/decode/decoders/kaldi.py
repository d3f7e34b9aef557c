"""Decoding with Kaldi's FasterDecoder (the kaldi-decoder wheel): a best path per utterance, on one CPU core.

The graph becomes an OpenFst transducer whose output labels are arc indices + 1, so that the best path
names the arcs of ``hmm.graph.Graph``.
"""
from __future__ import annotations

import struct

import numpy as np

from essence_kd.decode.decoder import Decoded, Decoder, register_decoder
from essence_kd.decode.lattice import Lattice
from essence_kd.decode.options import DecodeOptions
from essence_kd.hmm.fst import Fst, to_kaldifst, written
from essence_kd.hmm.graph import Graph
from essence_kd.io.errors import UserError


def load_kaldi():
    """The modules kaldi_decoder and kaldifst; UserError where they cannot be imported."""
    try:
        import kaldifst  # before kaldi_decoder, whose types it holds
        import kaldi_decoder
    except ImportError as error:
        raise UserError(f"kaldi-decoder cannot be imported ({error}); "
                        "install it with: pip install kaldifst==1.7.17 kaldi-decoder==0.2.11") from None
    return kaldi_decoder, kaldifst


def raw_lattice(data: bytes, graph: Graph, scores: np.ndarray) -> Lattice:
    """A state-level lattice of kaldi-decoder as it writes it (OpenFst's VectorFst over two-part weights).

    Output labels are graph arc + 1. ``scores`` float32 (T, C) are the unscaled ones. States are numbered anew, by row
    and within a row so that epsilons lead upwards.
    """
    position = 4
    for _ in range(2):  # fst type, arc type
        position += 4 + struct.unpack_from("<i", data, position)[0]
    start, num_states = struct.unpack_from("<qq", data, position + 16)
    position += 16 + 24  # version, flags, properties; start, states, arcs
    arc_type = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("graph", "<f4"), ("acoustic", "<f4"), ("next", "<i4")])
    final = np.full(num_states, np.inf, np.float32)
    pieces, sources = [], []
    for state in range(num_states):
        cost, _, count = struct.unpack_from("<ffq", data, position)
        final[state] = cost
        position += 16
        pieces.append(np.frombuffer(data, arc_type, count, position))
        sources.append(np.full(count, state))
        position += count * arc_type.itemsize
    arcs, src = np.concatenate(pieces), np.concatenate(sources)
    dst = arcs["next"].astype(np.int64)

    rank = _topological_order(num_states, int(start), src, dst)
    emitting = arcs["ilabel"] > 0
    row = np.zeros(num_states, np.int64)
    order = np.argsort(rank[src], kind="stable")
    for a in order:
        row[dst[a]] = row[src[a]] + emitting[a]
    src, dst, frame, chosen = rank[src[order]], rank[dst[order]], row[src[order]], arcs[order]
    label, chain = chosen["ilabel"], chosen["olabel"].astype(np.int64) - 1
    score = np.zeros(len(order), np.float32)
    score[label > 0] = scores[frame[label > 0], label[label > 0] - 1]
    sorted_final = np.full(num_states, np.inf, np.float32)
    sorted_final[rank] = final
    return Lattice(src=src.astype(np.int32), dst=dst.astype(np.int32), offsets=np.arange(len(order) + 1),
                   graph_arcs=chain, frame=frame.astype(np.int32), graph_cost=graph.weight[chain], score=score,
                   final=sorted_final, num_frames=len(scores))


def _topological_order(num_states: int, start: int, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """The new number of each state (int64), so that every arc leads upwards and the start is 0."""
    waiting = np.bincount(dst, minlength=num_states)
    order = np.argsort(src, kind="stable")
    splits = np.searchsorted(src[order], np.arange(num_states + 1))
    targets = dst[order]
    rank = np.full(num_states, -1, np.int64)
    ready, number = [start], 0
    while ready:
        state = ready.pop()
        rank[state] = number
        number += 1
        for target in targets[splits[state]:splits[state + 1]]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(int(target))
    return rank


@register_decoder
class KaldiDecoder(Decoder):
    """Decodes score matrices one by one; a batch is what one process takes at a time. UserError without the wheel."""

    name, library = "kaldi", "kaldi-decoder"

    def __init__(self, graph: Graph, options: DecodeOptions):
        super().__init__(graph, options)
        self._kaldi_decoder, self._kaldifst = load_kaldi()
        self._penalty: float | None = None
        self._fst = None  # converted again only when the word insertion penalty changes

    @classmethod
    def check(cls) -> None:
        load_kaldi()

    def _search_graph(self):
        graph, penalty = self.graph, self.options.word_insertion_penalty
        if self._fst is None or penalty != self._penalty:
            weight = graph.weight + np.float32(penalty) * (graph.olabel > 0)
            fst = Fst(graph.src, graph.dst, graph.ilabel, np.arange(1, graph.num_arcs + 1), weight, graph.final)
            self._fst = self._kaldifst.StdConstFst(to_kaldifst(fst))
            self._penalty = penalty
        return self._fst

    def _search(self, fst, widen: float):
        return self._kaldi_decoder.FasterDecoder(fst, self._kaldi_decoder.FasterDecoderOptions(
            beam=self.options.beam * widen, max_active=int(self.options.max_active * widen ** 2),
            min_active=self.options.min_active))

    def _best_path(self, search, final: bool) -> np.ndarray | None:
        ok, best = search.get_best_path(final)
        if not ok:
            return None
        arcs = self._kaldifst.get_linear_symbol_sequence(best)[2]
        return np.asarray(arcs, np.int64) - 1

    def _decode_one(self, fst, scaled: np.ndarray, widen: float) -> np.ndarray | None:
        search = self._search(fst, widen)
        search.decode(self._kaldi_decoder.DecodableCtc(scaled))
        return self._best_path(search, True) if search.reached_final() else None

    def stream(self) -> "KaldiStream":
        """The search of an utterance whose rows come in parts."""
        return KaldiStream(self)

    def _lattice_of_one(self, fst, scores: np.ndarray, scaled: np.ndarray, widen: float) -> Lattice | None:
        config = self._kaldi_decoder.LatticeSimpleDecoderConfig(
            beam=self.options.beam * widen, lattice_beam=self.options.output_beam)
        decoder = self._kaldi_decoder.LatticeSimpleDecoder(fst, config)
        if not decoder.decode(self._kaldi_decoder.DecodableCtc(scaled)):
            return None
        if not np.isfinite(decoder.final_relative_cost()):
            return None
        ok, raw = decoder.get_raw_lattice()
        if not ok:
            return None
        with written(raw) as path, open(path, "rb") as stream:
            return raw_lattice(stream.read(), self.graph, scores)

    def decode(self, batch: list[np.ndarray], *, lattices: bool = False) -> list[Decoded]:
        """Best paths of score matrices float32 (T, C), T > 0; an utterance without a path is tried again wider.

        ``lattices`` adds lattices and word posteriors by LatticeSimpleDecoder, which has no ``max_active``: slow at
        wide beams.
        """
        fst = self._search_graph()
        scale, penalty = self.options.acoustic_scale, self.options.word_insertion_penalty
        answers = []
        for scores in batch:
            scaled = np.ascontiguousarray(scores * np.float32(scale), dtype=np.float32)
            answer = Decoded(path=self._decode_one(fst, scaled, 1.0))
            widen = 1.0
            if answer.path is None:
                widen, answer.retried = self.options.retry_factor, True
                answer.path = self._decode_one(fst, scaled, widen)
            if lattices and answer.path is not None:
                answer.lattice = self._lattice_of_one(fst, scores, scaled, widen)
                if answer.lattice is not None:
                    posteriors = answer.lattice.arc_posteriors(answer.lattice.arc_costs(self.graph, scale, penalty))
                    answer.occurrences = answer.lattice.occurrences(self.graph, posteriors)
                    answer.states, answer.arcs = len(answer.lattice.final), len(answer.lattice.src)
            answers.append(answer)
        return answers


class KaldiStream:
    """A search at work on one utterance."""

    def __init__(self, decoder: KaldiDecoder) -> None:
        self._decoder, self._rows = decoder, 0
        self._search = decoder._search(decoder._search_graph(), 1.0)
        self._search.init_decoding()

    def part(self, scores: np.ndarray) -> None:
        """The next rows, float32 (n, C)."""
        decoder, self._rows = self._decoder, self._rows + len(scores)
        scaled = np.ascontiguousarray(scores * np.float32(decoder.options.acoustic_scale), dtype=np.float32)
        if len(scaled):
            self._search.advance_decoding(decoder._kaldi_decoder.DecodableCtc(scaled, self._rows - len(scores)))

    @property
    def path(self) -> np.ndarray:
        """Graph arcs, int64 (N,), of the best path so far, wherever in the graph it is."""
        path = self._decoder._best_path(self._search, False) if self._rows else None
        return np.zeros(0, np.int64) if path is None else path
