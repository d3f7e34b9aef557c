"""GMMs applied to a data directory: alignments, by one process or several, and scores for decoding."""
from __future__ import annotations

import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.hmm.alignment_dir import MIN_ALIGNED, write_ali_dir
from essence_kd.hmm.feature_transforms import (
    FeatureSetup,
    FmllrStats,
    LdaStats,
    compose,
    estimate_fmllr,
)
from essence_kd.hmm.fst import read_fst
from essence_kd.hmm.gmm import Gmm, Scorer, tree_text
from essence_kd.hmm.gmm_estimation import Frames, Statistics, accumulate, accumulate_mllt, speaker_sums
from essence_kd.hmm.gmm_features import FeatureReader, adapt, read_transcripts, word_ids
from essence_kd.hmm.lang import Lang, load_lang
from essence_kd.hmm.npz import read_npz, write_npz
from essence_kd.hmm.training_graph import PhoneGraph, PhoneGraphs, StateGraph, StateGraphs
from essence_kd.hmm.transition_model import ContextStates, TransitionModel
from essence_kd.hmm.tree_building import TreeStats, accumulate_tree_stats
from essence_kd.hmm.viterbi import best_path
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS, FRAME_SUBSAMPLING_FACTOR
from essence_kd.io.parallel import Workers
from essence_kd.io.provenance import sidecar_path, write_sidecar, write_text
from essence_kd.io.specifiers import indexed
from essence_kd.io.tables import IntVectorWriter, MatrixWriter
from essence_kd.io.text import read_words

ACOUSTIC_SCALE, TRANSITION_SCALE, SELF_LOOP_SCALE = 0.1, 1.0, 0.1  # Kaldi's steps/align_si.sh


class Aligner:
    """Aligns utterances of one data directory, and sums up what training needs of them.

    keep: features and graphs of `utts` are held, for training; else both are made as utterances are asked for
    (:meth:`align_batch`). words: word-ids by utterance. An alignment is a path of states of an utterance's graph. The
    graph's states do not depend on the tree, so that a new tree gives the same path other pdf-ids.
    """

    def __init__(self, data_dir: str, lang_dir: str, utts: List[str], words: Dict[str, List[int]], keep: bool):
        self.reader = FeatureReader(data_dir)
        self.lang = load_lang(lang_dir)
        self.phone_graphs = PhoneGraphs(read_fst(Path(lang_dir) / "L.fst"))
        self.words = words
        if keep:
            self.load(utts)

    def load(self, utts: List[str]) -> None:
        """Hold features and graphs of these utterances, and of no others."""
        self.utts = utts
        self.paths: Dict[str, np.ndarray] = {}
        parts = [self.reader.static(utt) for utt in utts]
        self.static = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)  # all frames
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        stops = np.cumsum(sizes)
        self.span = {utt: slice(stop - size, stop) for utt, size, stop in zip(utts, sizes.tolist(), stops.tolist())}
        self.edges = np.repeat(stops - sizes, sizes), np.repeat(stops - 1, sizes)  # first and last frame, by frame
        speakers = [self.reader.speaker(utt) for utt in utts]
        self.speakers = list(dict.fromkeys(speakers))
        self.frames_of = [np.concatenate([np.arange(self.span[utt].start, self.span[utt].stop)
                                          for utt, own in zip(utts, speakers) if own == speaker])
                          for speaker in self.speakers]
        self.graphs: Dict[str, Optional[PhoneGraph]] = {utt: self.phone_graph(utt) for utt in utts}

    def phone_graph(self, utt: str) -> Optional[PhoneGraph]:
        """The phone graph of an utterance's words; None where it has none."""
        return self.phone_graphs.make(self.words[utt]) if self.words[utt] else None

    # ------------------------------------------------------------------------------------------------------- features

    def set_features(self, setup: FeatureSetup) -> None:
        """Makes the features that models see from now on; speakers' transforms are forgotten."""
        self.setup = setup
        self.transforms: Optional[np.ndarray] = None
        self.frames: Optional[Frames] = None
        self.plain = self.matrix = setup.apply(self.static, *self.edges)

    def moments(self) -> Tuple[np.ndarray, np.ndarray, int]:
        """Sums of frames and of their squares, float64 (D,) each, and how many frames there are."""
        first, second = np.zeros(self.matrix.shape[1]), np.zeros(self.matrix.shape[1])
        for at in range(0, len(self.matrix), 4096):
            block = self.matrix[at:at + 4096].astype(np.float64)
            first += block.sum(axis=0)
            second += (block * block).sum(axis=0)
        return first, second, len(self.matrix)

    # ------------------------------------------------------------------------------------------------------ alignment

    def align_equally(self, model: Gmm, seed: int) -> List[str]:
        """Flat start: every utterance cut into equal parts, along a path that is drawn; returns those too short."""
        graphs = self._graphs(model, fresh=True)
        self.paths = {}
        for utt in self.utts:
            count, graph = self.span[utt].stop - self.span[utt].start, self.graphs[utt]
            if graph is not None and count:
                path = _equal_path(graphs.make(graph), count, zlib.crc32(utt.encode()) + seed)
                if path is not None:
                    self.paths[utt] = path
        return self._take(graphs)

    def align(self, model: Gmm, silence_boost: float = 1.0) -> List[str]:
        """Viterbi alignment of all utterances; returns those that failed (they are left out of the statistics).

        silence_boost: factor on the likelihoods of silence phones' pdfs (Kaldi's gmm-boost-silence).
        """
        graphs, scorer = self._graphs(model), Scorer(model)
        boost = np.zeros(model.num_pdfs, dtype=np.float32)
        boost[self.silence_pdfs(model)] = np.log(silence_boost)
        self.paths = {}
        for utt in self.utts:
            if self.graphs[utt] is not None:
                graph = graphs.make(self.graphs[utt])
                found = best_path(graph, _scores(scorer, graph, self.matrix[self.span[utt]], boost))
                if found is not None:
                    self.paths[utt] = found[0]
        return self._take(graphs)

    def use(self, model: Gmm) -> None:
        """Take the alignment as one of this model, which has another tree than those before it."""
        self._take(self._graphs(model, fresh=True))

    def _graphs(self, model: Gmm, fresh: bool = False) -> StateGraphs:
        """fresh: the model has another tree than the one that was asked for last."""
        if fresh:
            self.contexts = ContextStates(model.tree, model.transitions)
            known = [graph.windows for graph in self.graphs.values() if graph is not None]
            if known:
                self.contexts.rows(np.unique(np.concatenate(known), axis=0))  # all at once, which is quicker
        return StateGraphs(self.contexts, model.transitions, TRANSITION_SCALE, SELF_LOOP_SCALE)

    def _take(self, graphs: StateGraphs) -> List[str]:
        self.tids = np.zeros(len(self.matrix), dtype=np.int32)  # 0: a frame of an utterance that is not aligned
        for utt, path in self.paths.items():
            self.tids[self.span[utt]] = graphs.transition_ids(self.graphs[utt], path)
        self.frames = None
        return [utt for utt in self.utts if utt not in self.paths]

    def silence_pdfs(self, model: Gmm) -> List[int]:
        """pdf-ids of silence phones."""
        tuples = model.transitions.tuples
        return np.unique(tuples[np.isin(tuples[:, 0], self.lang.silence), 2]).tolist()

    def transition_ids(self) -> Dict[str, np.ndarray]:
        """Transition-ids, int32 (T,), of the utterances that are aligned."""
        return {utt: self.tids[self.span[utt]] for utt in self.paths}

    # ----------------------------------------------------------------------------------------------------- statistics

    def _frames(self, model: Gmm) -> Frames:
        if self.frames is None:
            self.frames = Frames.of(self.matrix, self.tids, model.transitions)
        return self.frames

    def statistics(self, model: Gmm, plain: bool = False) -> Statistics:
        """Statistics of the current alignment under a model; plain: sums are of features without speakers'
        transforms."""
        return accumulate(model, self._frames(model), self.plain if plain else None)

    def tree_statistics(self, context_independent: Sequence[int]) -> TreeStats:
        """Statistics by triphone state of the current alignment."""
        windows = np.zeros((len(self.matrix), 3), dtype=np.int32)
        states = np.full(len(self.matrix), -1, dtype=np.int32)
        sizes = {phone: len(topology) for phone, topology in self.lang.topo.items()}
        for utt, path in self.paths.items():
            graph = self.graphs[utt]
            counts = np.array([sizes[phone] for phone in graph.windows[:, 1].tolist()])
            node = np.repeat(np.arange(len(counts)), counts)
            windows[self.span[utt]] = graph.windows[node[path]]
            states[self.span[utt]] = path - (np.cumsum(counts) - counts)[node[path]]
        rows = np.flatnonzero(states >= 0)
        return accumulate_tree_stats(self.matrix[rows], windows[rows], states[rows], context_independent)

    def lda_statistics(self, model: Gmm, left: int, right: int) -> LdaStats:
        """Statistics of spliced MFCC with the alignment's pdf-ids as classes, without silence."""
        phone = model.transitions.phone[self.tids]
        rows = np.flatnonzero((self.tids > 0) & ~np.isin(phone, self.lang.silence))
        pdfs = model.transitions.pdf[self.tids[rows]]
        size = (left + 1 + right) * self.static.shape[1]
        out = LdaStats(np.zeros(model.num_pdfs), np.zeros((model.num_pdfs, size)), np.zeros((size, size)))
        for at in range(0, len(rows), 32768):
            part = rows[at:at + 32768]
            index = np.clip(part[:, None] + np.arange(-left, right + 1), self.edges[0][part][:, None],
                            self.edges[1][part][:, None])
            out.add(LdaStats.of(self.static[index].reshape(len(part), -1), pdfs[at:at + 32768], model.num_pdfs))
        return out

    def mllt_statistics(self, model: Gmm) -> Tuple[float, np.ndarray]:
        """Statistics for an MLLT, without silence."""
        return accumulate_mllt(model, self._frames(model), self.silence_pdfs(model))

    def adapt_speakers(self, model: Gmm, of: Optional[Gmm] = None) -> int:
        """Estimate a transform for each speaker from the current alignment and features, on top of the ones there are.

        Posteriors of Gaussians are of `model`, their means and variances of `of` (or of `model`). Returns how many
        speakers have too few frames for a transform.
        """
        frames = self._frames(model)
        rows, scaled, precision = speaker_sums(model, frames, of or model, self.silence_pdfs(model))
        place = np.full(len(self.matrix), -1)
        place[frames.order[rows]] = rows
        spans = [own[own >= 0] for own in (place[one] for one in self.frames_of)]
        new = estimate_fmllr(FmllrStats.of(frames.feats, scaled, precision, spans))
        self.transforms = new if self.transforms is None else compose(new, self.transforms)
        self.matrix, self.frames = np.empty_like(self.plain), None
        for own, transform in zip(self.frames_of, self.transforms):
            self.matrix[own] = adapt(self.plain[own], transform)
        return int((new == np.eye(*new.shape[1:])).all(axis=(1, 2)).sum())

    def speaker_transforms(self) -> Dict[str, np.ndarray]:
        """The transforms by speaker, float64 (D, D + 1); nothing where there are none."""
        return {} if self.transforms is None else dict(zip(self.speakers, self.transforms))

    # -------------------------------------------------------------------------------------------- one batch at a time

    def start_alignment(self, model: Gmm) -> None:
        """Get ready for :meth:`align_batch`."""
        self.model = model
        self.reader.setup, self.reader.dim = model.features, model.dim
        self.graphs = {}
        self.state_graphs, self.scorer = self._graphs(model, fresh=True), Scorer(model)

    def align_batch(self, utts: List[str]) -> List[Tuple[str, Optional[np.ndarray]]]:
        """(utterance, transition-ids, int32 (T,), or None where it failed) of some utterances; nothing is kept."""
        out = []
        for utt in utts:
            feats, tids = self.reader[utt], None
            phones = self.phone_graph(utt) if len(feats) else None
            if phones is not None:
                graph = self.state_graphs.make(phones)
                found = best_path(graph, _scores(self.scorer, graph, feats))
                tids = None if found is None else self.state_graphs.transition_ids(phones, found[0])
            out.append((utt, tids))
        return out

    def align_speakers(self, utts: List[str]) -> List[Tuple[str, Optional[np.ndarray]]]:
        """As :meth:`align_batch`, of all utterances of some speakers: the first alignment, without adaptation, gives
        their transforms (Kaldi's steps/align_fmllr.sh)."""
        self.load(utts)
        self.set_features(self.model.features)
        self.align(self.model.speaker_independent)
        self.adapt_speakers(self.model.speaker_independent, self.model)
        self.align(self.model)
        tids = self.transition_ids()
        return [(utt, tids.get(utt)) for utt in utts]


def _scores(scorer: Scorer, graph: StateGraph, feats: np.ndarray, boost: Optional[np.ndarray] = None) -> np.ndarray:
    scores = scorer.log_likelihoods(feats, graph.pdfs)
    if boost is not None:
        scores += boost[graph.pdfs]
    scores *= np.float32(ACOUSTIC_SCALE)
    return scores


def _equal_path(graph: StateGraph, frames: int, seed: int) -> Optional[np.ndarray]:
    """A path of states drawn at random whose states have equal parts of the frames, int32 (frames,); None where every
    path that was drawn has more states than there are frames."""
    rng = np.random.default_rng(seed)
    dst = np.repeat(np.arange(graph.num_states), np.diff(graph.first_arc))
    order = np.argsort(graph.src, kind="stable")
    first = np.searchsorted(graph.src[order], np.arange(graph.num_states + 1))
    starts = np.flatnonzero(np.isfinite(graph.enter))
    for _ in range(10):
        state = int(rng.choice(starts))
        path = [state]
        while len(path) <= frames:
            ways = dst[order[first[state]:first[state + 1]]]
            ends = np.isfinite(graph.leave[state])
            choice = int(rng.integers(len(ways) + ends))
            if choice == len(ways):
                return np.array(path, np.int32)[np.arange(frames) * len(path) // frames]
            state = int(ways[choice])
            path.append(state)
    return None


def open_aligners(data_dir: str | Path, lang_dir: str | Path, shards: List[List[str]], words: Dict[str, List[int]],
                  keep: bool) -> Workers:
    """Aligners over parts of the utterances, one per process (a single one: in this process)."""
    arguments = [(str(data_dir), str(lang_dir), shard, {utt: words[utt] for utt in shard} if keep else words, keep)
                 for shard in shards]
    return Workers(Aligner, arguments, "a worker process died (out of memory?); try again with --nj 1", one_thread=True)


def shards_by_speaker(reader: FeatureReader, nj: int) -> List[List[str]]:
    """The utterances in at most `nj` parts of about the same number; a speaker's are in one part."""
    speakers = reader.by_speaker()
    shards: List[List[str]] = [[] for _ in range(max(1, min(nj, len(speakers))))]
    for utts in sorted(speakers, key=len, reverse=True):
        min(shards, key=len).extend(utts)
    return shards


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
    def empty(cls, transitions: TransitionModel, factor: int) -> "SubsampledCounts":
        """All zero."""
        sizes = [len(states) for states in transitions.topo.values()]
        return cls(factor, np.zeros(sum(sizes)), np.zeros(sum(sizes)), np.zeros((sum(sizes), max(sizes))))

    def add(self, begin: np.ndarray, row: np.ndarray, state: np.ndarray) -> None:
        """Count one utterance: of each frame, int (T,), whether a phone begins there, the number of its (phone, state)
        and its state."""
        token = np.cumsum(begin)
        for phase in range(min(self.factor, len(row))):
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
          factor: int = FRAME_SUBSAMPLING_FACTOR, map_oov: bool = False) -> Tuple[int, int]:
    """Align a data directory; returns (utterances, failed ones).

    A model of features that are adapted to speakers aligns twice, as Kaldi's steps/align_fmllr.sh does: the first
    alignment gives each speaker's transform. Writes ali.ark/.scp (int32 pdf-ids, one per feature frame), priors.txt,
    num_pdfs, tree.txt, failed.txt (ids), ali.json, and topology.npz (:class:`SubsampledCounts`). Raises UserError when
    under MIN_ALIGNED align; failed.txt is there then too.
    """
    started = time.monotonic()
    lang = _lang_of(model, lang_dir)
    reader = FeatureReader(data_dir, model.features, model.dim)
    words = read_transcripts(data_dir, reader.utts, lang, map_oov)
    ali_dir = Path(ali_dir)
    ali_dir.mkdir(parents=True, exist_ok=True)
    columns = model.transitions
    _, pair = np.unique(columns.tuples[:, :2], axis=0, return_inverse=True)
    pair = np.append(pair.ravel(), -1)[columns.row]  # by transition-id: the number of its (phone, state)
    counts, frames = SubsampledCounts.empty(columns, factor), np.zeros(model.num_pdfs, dtype=np.int64)
    failed: List[str] = []
    with IntVectorWriter(indexed(ali_dir / "ali.ark", ali_dir / "ali.scp")) as writer:
        for utt, tids in _alignments(data_dir, lang_dir, model, reader, words, nj):
            if tids is None:
                failed.append(utt)
                continue
            pdfs = columns.pdf[tids]
            writer.write(utt, pdfs)
            frames += np.bincount(pdfs, minlength=model.num_pdfs)
            counts.add(columns.begin[tids], pair[tids], columns.state[tids])
        write_text(ali_dir / "failed.txt", "".join(f"{utt}\n" for utt in failed))
        check_failed(failed, len(reader.utts), data_dir, "could not be aligned")
    counts.save(ali_dir / "topology.npz")
    write_ali_dir(ali_dir, tree_text(model), frames, len(reader.utts), failed, started)
    return len(reader.utts), len(failed)


def _lang_of(model: Gmm, lang_dir: str | Path) -> Lang:
    """The lang directory of a model's phones. Raises UserError where its phones are others."""
    lang = load_lang(lang_dir)
    if lang.phones != model.phones:
        raise UserError(f"{Path(lang_dir) / 'phones.txt'}: not the phones that the model was trained with; "
                        "use the same lang directory, or train again")
    return lang


def _alignments(data_dir: str | Path, lang_dir: str | Path, model: Gmm, reader: FeatureReader,
                words: Dict[str, List[int]], nj: int):
    """(utterance, transition-ids or None) of every utterance, in the order of feats.scp."""
    if model.speaker_independent is None:
        size, method = 16, "align_batch"
        batches = [(reader.utts[at:at + size],) for at in range(0, len(reader.utts), size)]
    else:
        batches, method = [(utts,) for utts in reader.by_speaker()], "align_speakers"
    early: Dict[str, Optional[np.ndarray]] = {}  # of speakers whose utterances do not follow each other in feats.scp
    order, done = iter(reader.utts), 0
    with open_aligners(data_dir, lang_dir, [[] for _ in range(max(1, min(nj, len(batches))))], words,
                       keep=False) as aligners:
        aligners.everyone("start_alignment", model)
        utt = next(order)
        for _, batch in aligners.in_order(method, batches):
            early.update(batch)
            while utt in early:
                yield utt, early.pop(utt)
                done += 1
                if done % 500 == 0:
                    print(f"{done} of {len(reader.utts)} utterances aligned", file=sys.stderr)
                utt = next(order, "")


def check_failed(failed: List[str], total: int, data_dir: str | Path, why: str) -> None:
    """Raises UserError where a smaller share than MIN_ALIGNED of `total` utterances is left; why: what became of the
    failed ones."""
    if total - len(failed) < MIN_ALIGNED * total:
        raise UserError(f"{data_dir}: {len(failed)} of {total} utterances {why} (first: {failed[0]}); at most "
                        f"{100 * (1 - MIN_ALIGNED):.0f} % may fail: check text, segments and lexicon")


def write_scores(data_dir: str | Path, model: Gmm, wspecifier: str, factor: int = FRAME_SUBSAMPLING_FACTOR,
                 hyp: str | None = None, lang_dir: str | None = None) -> Tuple[int, int]:
    """Log-likelihoods log p(x | pdf) of every `factor`-th frame, float32 (ceil(T/factor), C).

    A model of features that are adapted to speakers needs words for that: hyp, a text file of hypotheses of a first
    pass, and the lang directory. Without them the scores are those of the first pass, of the model for features that
    are not adapted. A sidecar goes with the scores. Returns (utterances, rows).
    """
    reader = FeatureReader(data_dir, model.features, model.dim)
    if hyp is not None:
        if lang_dir is None or model.speaker_independent is None:
            raise UserError("--hyp adapts a GMM of adapted features (tri3) to speakers and needs --lang")
        reader.transforms = _speaker_transforms(data_dir, lang_dir, model, reader, hyp)
    elif model.speaker_independent is not None:
        model.speaker_independent.meta, model = model.meta, model.speaker_independent
    scorer, rows = Scorer(model), 0
    with MatrixWriter(wspecifier) as writer:
        for utt in reader.utts:
            scores = scorer.log_likelihoods(reader[utt][::factor])
            writer.write(utt, scores)
            rows += len(scores)
    sidecar = sidecar_path(wspecifier)
    if sidecar is not None:
        write_sidecar(sidecar, {
            "kind": "scores", "output": "loglike", "num_pdfs": model.num_pdfs, "tree_hash": model.meta.get("tree_hash"),
            "frame_shift_ms": round(FRAME_SHIFT_MS * factor), "num_utts": len(reader.utts), "num_frames": rows})
    return len(reader.utts), rows


def _speaker_transforms(data_dir: str | Path, lang_dir: str | Path, model: Gmm, reader: FeatureReader,
                        hyp: str) -> Dict[str, np.ndarray]:
    """Transforms by speaker from hypotheses, which are aligned with the model for features that are not adapted."""
    lang, table = _lang_of(model, lang_dir), read_words(hyp)
    lacking = [utt for utt in reader.utts if utt not in table]
    if len(lacking) == len(reader.utts):
        raise UserError(f"{hyp}: has none of the {len(lacking)} utterances of {data_dir} (first: {lacking[0]}); "
                        "name the hypotheses of these utterances")
    if lacking:
        print(f"{hyp}: lacks {len(lacking)} of {len(reader.utts)} utterances of {data_dir} (first: {lacking[0]}); "
              "their speakers are adapted without them", file=sys.stderr)
    words = word_ids([(utt, table.get(utt, [])) for utt in reader.utts], hyp, lang, True)
    aligner = Aligner(str(data_dir), str(lang_dir), [], words, keep=False)
    aligner.start_alignment(model)
    out: Dict[str, np.ndarray] = {}
    for utts in reader.by_speaker():
        aligner.load(utts)
        aligner.set_features(model.features)
        aligner.align(model.speaker_independent)
        aligner.adapt_speakers(model.speaker_independent, model)
        out.update(aligner.speaker_transforms())
    return out
