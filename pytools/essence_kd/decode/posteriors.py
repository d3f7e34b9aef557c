"""Posteriors of pdfs that know the language model: those of the paths in a lattice, mixed with the acoustic ones.

Where nobody transcribed the audio, an ensemble labels each frame from a few hundred milliseconds around it. A lattice
of the same posteriors knows which words they can belong to (V. Manohar et al., "Semi-supervised training of acoustic
models using lattice-free MMI", ICASSP 2018, learn from such lattices). For a frame t and a pdf c

    mixture(t, c) = weight * lattice(t, c) + (1 - weight) * posterior(t, c)
    target(t, c) = mixture(t, c) ** (1 / temperature), divided by its sum over c,

where lattice(t, c) is the sum over the lattice's arcs of row t and pdf c of their probabilities among all paths, at
scores acoustic_scale * (log posterior - log prior). A small acoustic_scale lets the language model say much, and leaves
many paths; a temperature below 1 then makes the target as sure as a label.
"""
from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple, Union

import numpy as np

from essence_kd.decode.checks import cut_batches, fit_rates
from essence_kd.decode.decoder import DECODERS, ArchiveDecoder
from essence_kd.decode.lattice import Lattice
from essence_kd.decode.options import DecodeOptions
from essence_kd.distill.archives import (CARRIED, Progress, Tally, frame_error, num_utterances, read_dense_or_sparse,
                                         sidecar_of, target_sidecar)
from essence_kd.distill.largest import top_k
from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.hmm.graph import Graph, load_graph
from essence_kd.io.errors import UserError
from essence_kd.io.parallel import Workers
from essence_kd.io.posterior import Posterior, PosteriorWriter
from essence_kd.io.provenance import write_sidecar
from essence_kd.io.tables import MatrixWriter

FLOOR = 1e-10  # of a probability
HELD_ROWS = 20000  # of utterances that wait to be sorted by length
BATCH_ROWS = 500  # decoded at once, padding included
Stored = Union[Posterior, np.ndarray]


@dataclass
class LatticeSettings:
    """How much of a target is the lattice's, how the lattice is made, and how sure the target is."""

    weight: float = 0.75
    acoustic_scale: float = 0.25
    temperature: float = 0.25
    beam: float = 8.0
    output_beam: float = 6.0

    def options(self) -> DecodeOptions:
        """Those of the search. Raises UserError for a value without meaning."""
        if not 0 < self.weight <= 1:
            raise UserError(f"--weight is {self.weight}, but must be above 0 and at most 1")
        if not 0.01 <= self.temperature <= 100:
            raise UserError(f"--temperature is {self.temperature}, but must be from 0.01 to 100")
        options = DecodeOptions(acoustic_scale=self.acoustic_scale, beam=self.beam, output_beam=self.output_beam,
                                active_rows=0)
        options.check()
        return options


def lattice_posterior(lattice: Lattice, graph: Graph, acoustic_scale: float) -> np.ndarray:
    """Probability of each pdf in each row among the lattice's paths: float64 (T, C), rows sum to 1."""
    arcs = lattice.posterior
    if arcs is None:
        arcs = lattice.arc_posteriors(lattice.arc_costs(graph, acoustic_scale, 0.0))
    labels = graph.ilabel[lattice.graph_arcs]
    owner = np.repeat(np.arange(len(lattice.src)), np.diff(lattice.offsets))[labels > 0]
    found = np.zeros((lattice.num_frames, graph.num_pdfs))
    np.add.at(found, (lattice.frame[owner], labels[labels > 0] - 1), arcs[owner])
    return found


class LatticeMixer:
    """A decoder of a process, and what it makes of posteriors. ``graph``: itself or the name of its file."""

    def __init__(self, kind, graph: Union[Graph, str], settings: LatticeSettings, options: DecodeOptions,
                 log_priors: np.ndarray):
        self.decoder = kind(load_graph(graph) if isinstance(graph, str) else graph, options)
        self.settings, self.log_priors = settings, log_priors

    def run(self, batch: List[Stored]) -> List[Optional[np.ndarray]]:
        """The mixture, float32 (T, C), for each posterior with T > 0; None where no path survived."""
        graph, options = self.decoder.graph, self.decoder.options
        repeat = options.repeat_rows
        given = [_matrix(value, graph.num_pdfs) for value in batch]
        scores = [np.log(_above_zero(value, matrix)) - self.log_priors for value, matrix in zip(batch, given)]
        if repeat > 1:
            scores = [np.repeat(matrix / np.float32(repeat), repeat, axis=0) for matrix in scores]
        mixtures: List[Optional[np.ndarray]] = []
        for matrix, answer in zip(given, self.decoder.decode(scores, lattices=True)):
            if answer.lattice is None:
                mixtures.append(None)
                continue
            found = lattice_posterior(answer.lattice, graph, options.acoustic_scale)
            found = found.reshape(len(matrix), repeat, -1).mean(axis=1)
            weight = self.settings.weight
            mixtures.append(_sharpened(weight * found + (1 - weight) * matrix, self.settings.temperature))
        return mixtures


def _sharpened(mixture: np.ndarray, temperature: float) -> np.ndarray:
    """float32 (T, C) of a mixture at a temperature; as it is at 1."""
    if temperature != 1:
        mixture = (mixture / mixture.max(axis=1, keepdims=True)) ** (1 / temperature)
        mixture /= mixture.sum(axis=1, keepdims=True)
    return mixture.astype(np.float32)


def _frames(value: Stored) -> int:
    return value.num_frames if isinstance(value, Posterior) else len(value)


def _matrix(value: Stored, num_pdfs: int) -> np.ndarray:
    """A posterior as a matrix (T, C): 0 where a frame has no entry."""
    if not isinstance(value, Posterior):
        return np.asarray(value, np.float32)
    found = np.zeros((value.num_frames, num_pdfs), np.float32)
    found[np.repeat(np.arange(value.num_frames), value.counts()), value.ids] = value.probs
    return found


def _above_zero(value: Stored, matrix: np.ndarray) -> np.ndarray:
    """The matrix with nothing at 0: classes that a frame lacks have equal shares of what its entries leave of 1."""
    least = np.float32(FLOOR)
    if isinstance(value, Posterior):
        rest = 1 - matrix.sum(axis=1, keepdims=True)
        least = np.maximum(rest / np.maximum(matrix.shape[1] - value.counts()[:, None], 1), least)
    return np.maximum(matrix, least)


def mix_with_lattices(graph_dir, rspecifier: str, priors, wspecifier: str, settings: Optional[LatticeSettings] = None,
                      *, decoder: str = "k2", nj: int = 1) -> Tally:
    """Write the mixture of each utterance's posteriors (sparse, or matrices of probabilities) and its lattice's.

    Sparse ones stay so, with as many entries per frame as the fullest frame of their utterance had; matrices stay
    matrices. Where no path survives, an utterance keeps what it had, and is counted. ``priors``: one number per pdf.

    Raises UserError: posteriors that are not the graph's, an unknown decoder, one that has no lattices.
    """
    settings = settings or LatticeSettings()
    path = Path(graph_dir) / "graph.npz"
    graph, kind = load_graph(path), DECODERS.get(decoder, "--decoder")
    if issubclass(kind, ArchiveDecoder):
        raise UserError(f"--decoder {decoder} gives no lattices to this program: take k2 or kaldi")
    source, target = sidecar_of(rspecifier), target_sidecar(wspecifier, rspecifier)
    options = fit_rates(rspecifier, settings.options(), graph, path)
    log_priors = read_log_priors(priors, graph.num_pdfs).astype(np.float32)
    if nj > 1:
        kind.check()
    tally, lost, progress = Tally(), [], Progress("lattice-post", num_utterances(rspecifier))
    arguments = [(kind, graph if nj == 1 else str(path), settings, options, log_priors)] * nj
    with Workers(LatticeMixer, arguments, "a decoding process died, perhaps for want of memory; take a smaller --nj",
                 one_thread=True) as workers, ExitStack() as opened:
        writer: Union[PosteriorWriter, MatrixWriter, None] = None
        for held in _parts(rspecifier, graph, path):
            places = [i for i, (_, value) in enumerate(held) if _frames(value)]
            groups = [[places[i] for i in group]
                      for group in cut_batches([_frames(held[i][1]) * options.repeat_rows for i in places],
                                               graph.num_pdfs, BATCH_ROWS)]
            mixtures: Dict[int, Optional[np.ndarray]] = {}
            batches = (([held[i][1] for i in group],) for group in groups)
            for group, (_, found) in zip(groups, workers.in_order("run", batches)):
                mixtures.update(zip(group, found))
            for place, (utt, value) in enumerate(held):
                if writer is None:
                    sparse = isinstance(value, Posterior)
                    writer = (PosteriorWriter(wspecifier, num_pdfs=graph.num_pdfs) if sparse
                              else MatrixWriter(wspecifier))
                    opened.enter_context(writer)
                mixture = mixtures.get(place)
                if mixture is None and _frames(value):
                    lost.append(utt)
                entries, mass = _write(writer, rspecifier, utt, value, mixture)
                tally.add(_frames(value), entries, mass)
            progress.show(tally)
        if not tally.num_utts:
            raise UserError(f"{rspecifier}: holds no utterance")
    if lost:
        print(f"lattice-post: {len(lost)} of {tally.num_utts} utterances keep their posteriors, for no path survived "
              f"the search: {' '.join(lost[:5])}" + " ..." * (len(lost) > 5), file=sys.stderr)
    if target is not None:
        fields = {name: source[name] for name in (*CARRIED, "selection", "mass", "k", "kind", "form") if name in source}
        fields.update(tally.fields(), source=rspecifier, num_pdfs=graph.num_pdfs,
                      lattice={**asdict(settings), "decoder": kind.name, "without_path": len(lost)})
        write_sidecar(target, fields)
    return tally


def _parts(rspecifier: str, graph: Graph, path: Path) -> Iterator[List[Tuple[str, Stored]]]:
    """Utterances of a table, some thousand frames at a time, which can be sorted by length. Raises UserError."""
    held: List[Tuple[str, Stored]] = []
    rows = 0
    for utt, value in read_dense_or_sparse(rspecifier):
        try:
            if isinstance(value, Posterior):
                value = value.as_targets(graph.num_pdfs)
            elif all(value.shape) and value.shape[1] != graph.num_pdfs:
                raise ValueError(f"{value.shape[1]} columns, but the graph {path} has {graph.num_pdfs} pdfs")
        except ValueError as error:
            raise frame_error(rspecifier, utt, error) from None
        if held and isinstance(value, Posterior) != isinstance(held[0][1], Posterior):
            raise UserError(f"{rspecifier}: utterance {utt}: matrices and sparse posteriors in one table")
        held.append((utt, value))
        rows += _frames(value)
        if rows >= HELD_ROWS:
            yield held
            held, rows = [], 0
    if held:
        yield held


def _write(writer, rspecifier: str, utt: str, value: Stored, mixture: Optional[np.ndarray]) -> Tuple[int, np.ndarray]:
    """Write one utterance; its number of entries, and the mass (T,) that they keep."""
    if not isinstance(value, Posterior):
        kept = value if mixture is None else mixture
        writer.write(utt, kept)
        return kept.size, kept.sum(axis=1) if kept.size else np.zeros(0)
    if mixture is None:
        writer.write_ragged(utt, value.offsets, value.ids, value.probs)
        return value.num_entries, value.mass()
    ids, probs = top_k(mixture, min(int(value.counts().max()), mixture.shape[1]), threads=1)
    writer.write(utt, ids, probs)
    return ids.size, probs.sum(axis=1)
