"""GMMs applied to a data directory: alignments, by one process or several, and scores for decoding."""
from __future__ import annotations

import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np

from essence_kd.hmm.alignment_dir import MIN_ALIGNED, write_ali_dir
from essence_kd.hmm.fst import read_fst, to_kaldifst
from essence_kd.hmm.gmm import Gmm, TransitionTable, pdf_of_tid, tree_lines
from essence_kd.hmm.gmm_estimation import Statistics, accumulate
from essence_kd.hmm.gmm_features import FeatureReader, read_transcripts
from essence_kd.hmm.kaldi_gmm import acoustic_model, graph_compiler, transition_model
from essence_kd.hmm.lang import Topology, load_lang
from essence_kd.hmm.npz import read_npz, write_npz
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS, FRAME_SUBSAMPLING_FACTOR
from essence_kd.io.parallel import Workers
from essence_kd.io.provenance import sidecar_path, write_sidecar, write_text
from essence_kd.io.specifiers import indexed
from essence_kd.io.tables import IntVectorWriter, MatrixWriter

# Kaldi's steps/train_mono.sh and align_si.sh
BEAM, RETRY_BEAM = 10.0, 40.0
ACOUSTIC_SCALE, TRANSITION_SCALE, SELF_LOOP_SCALE = 0.1, 1.0, 0.1


class Aligner:
    """Aligns utterances of one data directory.

    keep: features and graphs of `utts` are held, for training (:meth:`align`); else both are made as utterances are
    asked for (:meth:`align_batch`). words: word-ids by utterance; dim: of the features with deltas, None: any.
    """

    def __init__(self, data_dir: str, lang_dir: str, utts: List[str], words: Dict[str, List[int]], dim: int | None,
                 keep: bool):
        self.reader = FeatureReader(data_dir, dim)
        self.lang = load_lang(lang_dir)
        self.lexicon = to_kaldifst(read_fst(Path(lang_dir) / "L.fst"))
        self.utts, self.words, self.keep = utts, words, keep
        parts = [self.reader[utt] for utt in utts] if keep else []
        self.matrix = np.concatenate(parts) if parts else np.zeros((0, dim or 0), np.float32)  # all frames
        bounds = np.cumsum([0] + [len(part) for part in parts])
        self.span = {utt: slice(start, stop) for utt, start, stop in zip(utts, bounds, bounds[1:])}
        self.graphs: Dict[str, object] = {}
        self.alignment: Dict[str, np.ndarray] = {}

    def moments(self) -> Tuple[np.ndarray, np.ndarray, int]:
        """Sums of frames and of their squares, float64 (D,) each, and how many frames there are."""
        first, second = np.zeros(self.matrix.shape[1]), np.zeros(self.matrix.shape[1])
        for at in range(0, len(self.matrix), 4096):
            block = self.matrix[at:at + 4096].astype(np.float64)
            first += block.sum(axis=0)
            second += (block * block).sum(axis=0)
        return first, second, len(self.matrix)

    def compile(self, model: Gmm) -> None:
        """Training graphs (without transition probabilities) of all utterances."""
        transitions, context = transition_model(model)
        self.compiler = graph_compiler(transitions, context, self.lexicon, self.lang.disambig)
        self.transitions, self.context = transitions, context  # the compiler refers to both
        if self.keep:
            self.graphs = {utt: self.compiler.compile_graph_from_text(self.words[utt]) for utt in self.utts}

    def align_equally(self) -> List[str]:
        """Flat start: every utterance cut into equal parts; returns those that are too short."""
        import kaldifst

        failed = []
        for utt in self.utts:
            frames = self.span[utt].stop - self.span[utt].start
            done = False
            if frames and self.words[utt]:
                done, path = kaldifst.equal_align(self.graphs[utt], frames, zlib.crc32(utt.encode()) % 100000, 10)
            if done:
                _, tids, _, _ = kaldifst.get_linear_symbol_sequence(path)
                self.alignment[utt] = np.array(tids, dtype=np.int32)
            else:
                failed.append(utt)
        return failed

    def align(self, model: Gmm, beam: float, retry_beam: float) -> List[str]:
        """Viterbi alignment of all utterances; returns those that failed (they are left out of the statistics)."""
        scorer = _Scorer(self, model)
        self.alignment = {}
        for utt in self.utts:
            tids = scorer.align(utt, self.matrix[self.span[utt]], self.graphs[utt], beam, retry_beam)
            if tids is not None:
                self.alignment[utt] = tids
        return [utt for utt in self.utts if utt not in self.alignment]

    def statistics(self, model: Gmm) -> Statistics:
        """Statistics of the current alignment under a model."""
        tids = np.zeros(len(self.matrix), dtype=np.int32)  # 0: a frame of an utterance that is not aligned
        for utt, ids in self.alignment.items():
            tids[self.span[utt]] = ids
        matrix = self.matrix
        if len(self.alignment) < len(self.utts):
            matrix, tids = matrix[tids > 0], tids[tids > 0]
        return accumulate(model, matrix, tids, pdf_of_tid(model)[tids])

    def start_alignment(self, model: Gmm) -> None:
        """Get ready for :meth:`align_batch`."""
        self.compile(model)
        self.model, self.scorer = model, _Scorer(self, model)

    def align_batch(self, utts: List[str], beam: float, retry_beam: float) -> List[Tuple[str, Optional[np.ndarray]]]:
        """(utterance, transition-ids, int32 (T,), or None where it failed) of some utterances; nothing is kept."""
        out = []
        for utt in utts:
            feats = self.reader[utt]
            graph = self.compiler.compile_graph_from_text(self.words[utt]) if self.words[utt] and len(feats) else None
            out.append((utt, self.scorer.align(utt, feats, graph, beam, retry_beam) if graph is not None else None))
        return out


class _Scorer:
    """One model ready for aligning."""

    def __init__(self, aligner: Aligner, model: Gmm):
        self.transitions, _ = transition_model(model)
        self.acoustic = acoustic_model(model)
        self.disambig = aligner.lang.disambig

    def align(self, utt: str, feats: np.ndarray, graph, beam: float, retry_beam: float) -> Optional[np.ndarray]:
        """Transition-ids of the best path, int32 (T,), or None."""
        import kaldi_hmm_gmm as khg
        import kaldifst

        if not len(feats) or graph.num_states == 0:
            return None
        graph = kaldifst.StdVectorFst(graph)
        khg.add_transition_probs(self.transitions, self.disambig, TRANSITION_SCALE, SELF_LOOP_SCALE, graph)
        decodable = khg.DecodableAmDiagGmmScaled(self.acoustic, self.transitions, feats, ACOUSTIC_SCALE)
        config = khg.AlignConfig(beam=beam, retry_beam=retry_beam, careful=False)
        _, errors, _, _, _, tids, _ = khg.align_utterance_wrapper(config, utt, ACOUSTIC_SCALE, graph, decodable,
                                                                  0, 0, 0, 0.0, 0)
        return None if errors or len(tids) != len(feats) else np.array(tids, dtype=np.int32)


def open_aligners(data_dir: str | Path, lang_dir: str | Path, shards: List[List[str]], words: Dict[str, List[int]],
                  dim: int | None, keep: bool) -> Workers:
    """Aligners over parts of the utterances, one a process (a single one: in this process)."""
    arguments = [(str(data_dir), str(lang_dir), shard, {utt: words[utt] for utt in shard} if keep else words, dim, keep)
                 for shard in shards]
    return Workers(Aligner, arguments, "a worker process died (out of memory?); try again with --nj 1", one_thread=True)


@dataclass
class SubsampledCounts:
    """How phones look at a lower frame rate: counts over all phases of alignments of which every `factor`-th frame is
    kept. Rows are the (phone, state) pairs in order. enter (N,): first seen in this state; leave (N,): last seen in it;
    stay (N, S): the next kept frame of the same phone occurrence is in state s."""

    factor: int
    enter: np.ndarray
    leave: np.ndarray
    stay: np.ndarray

    @classmethod
    def empty(cls, topo: Dict[int, Topology], factor: int) -> "SubsampledCounts":
        """All zero."""
        rows = sum(len(states) for states in topo.values())
        return cls(factor, np.zeros(rows), np.zeros(rows), np.zeros((rows, max(len(s) for s in topo.values()))))

    def add(self, table: TransitionTable, tids: np.ndarray) -> None:
        """Count one utterance's transition-ids, int (T,)."""
        token = np.cumsum(table.begin[tids])
        row, state = table.row[tids], table.state[tids]
        for phase in range(min(self.factor, len(tids))):
            t, r, s = token[phase::self.factor], row[phase::self.factor], state[phase::self.factor]
            same = t[1:] == t[:-1]
            np.add.at(self.stay, (r[:-1][same], s[1:][same]), 1)
            np.add.at(self.leave, r[np.append(~same, True)], 1)
            np.add.at(self.enter, r[np.append(True, ~same)], 1)

    def save(self, path: str | Path) -> None:
        """Write an npz file."""
        write_npz(path, {"factor": np.array(self.factor), "enter": self.enter, "leave": self.leave, "stay": self.stay})

    @classmethod
    def load(cls, path: str | Path) -> "SubsampledCounts":
        """Read what :meth:`save` wrote."""
        return read_npz(path, ("factor", "enter", "leave", "stay"), "align again with 'essence gmm-align'", cls._of)

    @classmethod
    def _of(cls, z: Dict[str, np.ndarray]) -> "SubsampledCounts":
        """Counts of such arrays. Raises ValueError and the like where they do not fit together."""
        rows = (len(z["enter"]),)
        if int(z["factor"]) < 1 or not z["enter"].shape == z["leave"].shape == z["stay"].shape[:1] == rows or \
                z["stay"].ndim != 2 or not all(np.isfinite(z[name]).all() for name in ("enter", "leave", "stay")):
            raise ValueError("its parts do not fit together")
        return cls(int(z["factor"]), z["enter"], z["leave"], z["stay"])


def align(data_dir: str | Path, lang_dir: str | Path, model: Gmm, ali_dir: str | Path, *, nj: int = 1,
          beam: float = BEAM, retry_beam: float = RETRY_BEAM, factor: int = FRAME_SUBSAMPLING_FACTOR,
          map_oov: bool = False) -> Tuple[int, int]:
    """Align a data directory; returns (utterances, failed ones).

    Writes ali.ark/.scp (int32 pdf-ids, a feature frame each), priors.txt, num_pdfs, tree.txt, failed.txt (ids),
    ali.json, and topology.npz (:class:`SubsampledCounts`). Raises UserError when under MIN_ALIGNED align;
    failed.txt is there then too.
    """
    started = time.monotonic()
    lang = load_lang(lang_dir)
    if lang.phones != model.phones:
        raise UserError(f"{Path(lang_dir) / 'phones.txt'}: not the phones that the model was trained with; "
                        "use the same lang directory, or train again")
    reader = FeatureReader(data_dir, model.dim)
    words = read_transcripts(data_dir, reader.utts, lang, map_oov)
    ali_dir = Path(ali_dir)
    ali_dir.mkdir(parents=True, exist_ok=True)
    table, pdfs_of = TransitionTable.of(model.topo), pdf_of_tid(model)
    counts, frames = SubsampledCounts.empty(model.topo, factor), np.zeros(model.num_pdfs, dtype=np.int64)
    failed: List[str] = []
    size = 16
    batches = [(reader.utts[at:at + size], beam, retry_beam) for at in range(0, len(reader.utts), size)]
    nj = max(1, min(nj, len(batches)))
    with open_aligners(data_dir, lang_dir, [[] for _ in range(nj)], words, model.dim, keep=False) as aligners:
        aligners.everyone("start_alignment", model)
        with IntVectorWriter(indexed(ali_dir / "ali.ark", ali_dir / "ali.scp")) as writer:
            done = 0
            for _, batch in aligners.in_order("align_batch", batches):
                for utt, tids in batch:
                    if tids is None:
                        failed.append(utt)
                        continue
                    pdfs = pdfs_of[tids]
                    writer.write(utt, pdfs)
                    frames += np.bincount(pdfs, minlength=model.num_pdfs)
                    counts.add(table, tids)
                done += len(batch)
                if done % 512 < size:
                    print(f"{done} of {len(reader.utts)} utterances aligned", file=sys.stderr)
            write_text(ali_dir / "failed.txt", "".join(f"{utt}\n" for utt in failed))
            check_failed(failed, len(reader.utts), data_dir, "could not be aligned")
    counts.save(ali_dir / "topology.npz")
    write_ali_dir(ali_dir, tree_lines(model), frames, len(reader.utts), failed, started)
    return len(reader.utts), len(failed)


def check_failed(failed: List[str], total: int, data_dir: str | Path, why: str) -> None:
    """Raises UserError where a smaller share than MIN_ALIGNED of `total` utterances is left; why: what became of the
    failed ones."""
    if total - len(failed) < MIN_ALIGNED * total:
        raise UserError(f"{data_dir}: {len(failed)} of {total} utterances {why} (first: {failed[0]}); at most "
                        f"{100 * (1 - MIN_ALIGNED):.0f} % may fail: check text, segments and lexicon")


def write_scores(data_dir: str | Path, model: Gmm, wspecifier: str,
                 factor: int = FRAME_SUBSAMPLING_FACTOR) -> Tuple[int, int]:
    """Log-likelihoods log p(x | pdf) of every `factor`-th frame (deltas at the full rate), float32 (ceil(T/factor), C).

    A sidecar goes with them. Returns (utterances, rows).
    """
    reader = FeatureReader(data_dir, model.dim)
    rows = 0
    with MatrixWriter(wspecifier) as writer:
        for utt in reader.utts:
            scores = model.log_likelihoods(reader[utt][::factor])
            writer.write(utt, scores)
            rows += len(scores)
    sidecar = sidecar_path(wspecifier)
    if sidecar is not None:
        write_sidecar(sidecar, {
            "kind": "scores", "output": "loglike", "num_pdfs": model.num_pdfs, "tree_hash": model.meta.get("tree_hash"),
            "frame_shift_ms": round(FRAME_SHIFT_MS * factor), "num_utts": len(reader.utts), "num_frames": rows})
    return len(reader.utts), rows
