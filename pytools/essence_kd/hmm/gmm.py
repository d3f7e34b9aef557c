"""GMM-HMM monophone training and alignment with kaldi-hmm-gmm, following Kaldi's steps/train_mono.sh.

kaldi-hmm-gmm (Kaldi's own code) compiles training graphs and aligns; accumulation, update and mixing up are array
operations here with the formulas of Kaldi's mle-diag-gmm.cc, diag-gmm.cc and model-common.cc. Training begins with one
set of pdfs a phone, as in Kaldi, and gives each position of a phone (``AA_B``, ``AA_I`` ...) its own pdfs once the
alignment has settled; a position that hardly occurs keeps sharing the pdfs of the phone's commonest position.
"""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import traceback
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.hmm.kaldi_alignment import write_ali_dir
from essence_kd.hmm.fst import read_fst, to_kaldifst
from essence_kd.hmm.lang import Lang, Topology, format_topology, load_lang, parse_topology
from essence_kd.hmm.npz import read_npz, write_npz
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import sha256_file, sidecar_path, write_sidecar, write_text
from essence_kd.io.tables import IntVectorWriter, MatrixTable, MatrixWriter
from essence_kd.io.text import read_map, read_words

# Kaldi's steps/train_mono.sh
REALIGN = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 23, 26, 29, 32, 35, 38)
INITIAL_BEAM, BEAM, RETRY_BEAM = 6.0, 10.0, 40.0
ACOUSTIC_SCALE, TRANSITION_SCALE, SELF_LOOP_SCALE = 0.1, 1.0, 0.1
MIN_OCCUPANCY_FIRST, MIN_OCCUPANCY, MIN_WEIGHT, MIN_VARIANCE = 3.0, 10.0, 1e-5, 0.001
SPLIT_POWER, SPLIT_MIN_COUNT, SPLIT_PERTURB = 0.25, 20.0, 0.01
TRANSITION_FLOOR, TRANSITION_MIN_COUNT = 0.01, 5.0
MIN_ALIGNED = 0.95  # a smaller share of aligned utterances is an error


# -------------------------------------------------------------------------------------------------------- features

def add_deltas(feats: np.ndarray, order: int = 2, window: int = 2) -> np.ndarray:
    """(T, D) -> (T, D * (order + 1)): each feature with its time derivatives, as Kaldi's add-deltas computes them.

    The n-th derivative is one filter over the original frames (the first and last frame repeated at the edges).
    """
    feats = np.asarray(feats, dtype=np.float32)
    ramp = np.arange(-window, window + 1, dtype=np.float64)
    ramp /= np.sum(ramp * ramp)
    out, scales = [feats], np.ones(1)
    for n in range(1, order + 1):
        scales = np.convolve(scales, ramp)
        reach = n * window
        index = np.clip(np.arange(-reach, len(feats) + reach), 0, len(feats) - 1)
        padded = feats[index]
        delta = np.zeros_like(feats)
        for k, scale in enumerate(scales):
            if scale:
                delta += np.float32(scale) * padded[k:k + len(feats)]
        out.append(delta)
    return np.hstack(out)


class FeatureReader:
    """MFCC of a data directory with per-speaker mean normalisation and deltas, by utterance.

    ``reader[utt]`` is float32 (T, 3 * D); ``reader.utts`` in the order of feats.scp. Raises UserError where feats.scp,
    cmvn.scp or utt2spk lack something, and where an utterance's dimension differs (``dim``: what the model wants).
    """

    def __init__(self, data_dir: str | Path, dim: int | None = None):
        self.path = Path(data_dir)
        for name, maker in (("feats.scp", "make-feats"), ("cmvn.scp", "compute-cmvn"), ("utt2spk", "data preparation")):
            if not (self.path / name).exists():
                raise UserError(f"{self.path / name}: missing; it is made by {maker}")
        self.feats = MatrixTable(str(self.path / "feats.scp"))
        self.cmvn = MatrixTable(str(self.path / "cmvn.scp"))
        self.utt2spk = read_map(self.path / "utt2spk")
        self.utts = list(self.feats)
        if not self.utts:
            raise UserError(f"{self.path / 'feats.scp'}: holds no utterance; it is made by make-feats")
        self.dim = dim
        self._means: Dict[str, np.ndarray] = {}

    def mean(self, utt: str) -> np.ndarray:
        """The mean of the utterance's speaker, from Kaldi's CMVN statistics (2, D + 1)."""
        spk = self.utt2spk.get(utt)
        if not spk:
            raise UserError(f"{self.path / 'utt2spk'}: tells no speaker of utterance {utt}, which feats.scp has")
        if spk not in self._means:
            if spk not in self.cmvn:
                raise UserError(f"{self.path / 'cmvn.scp'}: lacks speaker {spk} of utterance {utt}; "
                                "run compute-cmvn again")
            stats = np.asarray(self.cmvn[spk], dtype=np.float64)
            if stats.ndim != 2 or len(stats) != 2 or not stats[0, -1] > 0:
                raise UserError(f"{self.path / 'cmvn.scp'}: speaker {spk}: these are no CMVN statistics; "
                                "run compute-cmvn again")
            self._means[spk] = stats[0, :-1] / stats[0, -1]
        return self._means[spk]

    def __getitem__(self, utt: str) -> np.ndarray:
        feats, mean = self.feats[utt], self.mean(utt)
        if not len(feats):
            return np.zeros((0, 3 * len(mean)), dtype=np.float32)
        if feats.ndim != 2 or feats.shape[1] != len(mean):
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has dimension {feats.shape[-1]}, but cmvn.scp "
                            f"{len(mean)}; make features and statistics again")
        if self.dim is not None and 3 * feats.shape[1] != self.dim:
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has dimension {feats.shape[1]}, but the model "
                            f"was trained on dimension {self.dim // 3}; use the features that it was trained on")
        if not np.isfinite(feats).all():
            raise UserError(f"{self.path / 'feats.scp'}: utterance {utt} has features that are not finite; "
                            "make them again")
        return add_deltas(feats - mean.astype(np.float32))


def read_transcripts(data_dir: str | Path, utts: Sequence[str], lang: Lang,
                     map_oov: bool = False) -> Dict[str, List[int]]:
    """Word-ids of every utterance. Raises UserError for a missing transcript, and for a word that the lang lacks
    unless `map_oov` (then it becomes the lang's oov word)."""
    path = Path(data_dir) / "text"
    if not path.exists():
        raise UserError(f"{path}: missing; training and alignment need transcripts")
    table = read_words(path)
    out, unknown = {}, Counter()
    for utt in utts:
        if utt not in table:
            raise UserError(f"{path}: lacks utterance {utt}, which feats.scp has")
        ids = [lang.word_ids.get(word, -1) for word in table[utt]]
        for word, i in zip(table[utt], ids):
            if i < 0:
                if not map_oov:
                    raise UserError(f"{path}: utterance {utt} has the word '{word}', which {lang.path / 'words.txt'} "
                                    "lacks; add it to the lexicon, or pass --map-oov true")
                unknown[word] += 1
        out[utt] = [lang.oov if i < 0 else i for i in ids]
    if unknown:
        print(f"{path}: {sum(unknown.values())} words are not in the lexicon and taken as {lang.words[lang.oov]} "
              f"(first: {', '.join(list(unknown)[:5])})", file=sys.stderr)
    return out


# ----------------------------------------------------------------------------------------------------------- model

@dataclass
class TransitionTable:
    """What each of Kaldi's transition-ids means (index 0 unused): phone-id, HMM state, next state, flags."""

    phone: np.ndarray
    state: np.ndarray
    next_state: np.ndarray
    self_loop: np.ndarray
    begin: np.ndarray  # the frame is the first of its phone
    row: np.ndarray  # number of the (phone, state), from 0

    @classmethod
    def of(cls, topo: Dict[int, Topology]) -> "TransitionTable":
        """The ids that Kaldi gives: in the order of phone-id, state, and the topology's transitions."""
        rows = [(0, 0, 0, -1)]
        number = 0
        for phone in sorted(topo):
            for state, arcs in enumerate(topo[phone]):
                rows += [(phone, state, dst, number) for dst, _ in arcs]
                number += 1
        phone, state, dst, row = np.array(rows, dtype=np.int32).T
        loop = state == dst
        loop[0] = False
        # Kaldi reorders graphs: a state's frames are its outgoing transition first, then its self-loops
        return cls(phone, state, dst, loop, (state == 0) & ~loop & (row >= 0), row)


@dataclass
class Gmm:
    """A trained model. C pdfs, G Gaussians in all, of dimension D (features with deltas).

    tree: int32 (N, 3), rows (pdf-id, phone-id, HMM state) for every state of every phone, sorted; offsets: int64
    (C + 1,), pdf c owns the Gaussians offsets[c] to offsets[c + 1]; weights (G,), means, variances (G, D): float64;
    transitions: float64, probability by transition-id (index 0 unused); seen: bool (C,) pdfs that had data.
    """

    phones: List[str]
    topo: Dict[int, Topology]
    tree: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    transitions: np.ndarray
    classes: List[List[int]]
    meta: dict = field(default_factory=dict)

    @property
    def num_pdfs(self) -> int:
        """How many pdfs there are."""
        return len(self.offsets) - 1

    @property
    def dim(self) -> int:
        """Dimension of the features with deltas."""
        return self.means.shape[1]

    def pdf_table(self) -> Dict[Tuple[int, int], int]:
        """(phone-id, state) -> pdf-id."""
        return {(int(phone), int(state)): int(pdf) for pdf, phone, state in self.tree}

    def log_likelihoods(self, feats: np.ndarray) -> np.ndarray:
        """log p(x | pdf): float32 (T, C) for features (T, D)."""
        params, const = _natural(self.weights, self.means, self.variances)
        starts, sizes = self.offsets[:-1], np.diff(self.offsets)
        out = np.empty((len(feats), self.num_pdfs), dtype=np.float32)
        for at in range(0, len(feats), 128):
            block = np.asarray(feats[at:at + 128], dtype=np.float32).T
            scores = params @ np.vstack([block, block * block])  # (G, frames)
            scores += const[:, None]
            top = np.maximum.reduceat(scores, starts, axis=0)
            scores -= np.repeat(top, sizes, axis=0)
            np.exp(np.maximum(scores, -80.0, out=scores), out=scores)  # smaller ones would be slow denormals
            out[at:at + 128] = (top + np.log(np.add.reduceat(scores, starts, axis=0))).T
        return out


def _natural(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Parameters (G, 2 D) and constants (G,), float32, with log(w N(x)) = parameters @ [x, x * x] + constants."""
    inverse = 1.0 / variances
    const = np.log(weights) - 0.5 * (np.log(2 * math.pi * variances) + means * means * inverse).sum(axis=1)
    return np.hstack([means * inverse, -0.5 * inverse]).astype(np.float32), const.astype(np.float32)


def tree_lines(model: Gmm) -> str:
    """tree.txt: ``pdf-id phone state`` lines, phones by symbol; pdf-ids ascend; a shared pdf has several lines."""
    return "".join(f"{pdf} {model.phones[phone]} {state}\n" for pdf, phone, state in model.tree)


def save_gmm(directory: str | Path, model: Gmm) -> None:
    """Write gmm.npz, tree.txt, num_pdfs, phones.txt and gmm.json into a directory."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "tree.txt", tree_lines(model))
    model.meta["tree_hash"] = sha256_file(directory / "tree.txt")
    topology = format_topology([([phone], states) for phone, states in sorted(model.topo.items())])
    write_npz(directory / "gmm.npz", {
        "phones": np.array(model.phones, dtype=np.str_), "topo": np.array(topology), "tree": model.tree,
        "offsets": model.offsets, "weights": model.weights.astype(np.float32), "means": model.means.astype(np.float32),
        "variances": model.variances.astype(np.float32), "transitions": model.transitions,
        "classes": np.array(json.dumps(model.classes)), "meta": np.array(json.dumps(model.meta))})
    for name, text in (("num_pdfs", f"{model.num_pdfs}\n"),
                       ("phones.txt", "".join(f"{p} {i}\n" for i, p in enumerate(model.phones) if p))):
        write_text(directory / name, text)
    write_sidecar(directory / "gmm.json", {"kind": "gmm", "num_pdfs": model.num_pdfs, "num_gauss": len(model.weights),
                                           "dim": model.dim, **model.meta})


def load_gmm(directory: str | Path) -> Gmm:
    """Read the model of a GMM directory. Raises UserError when it is missing or broken."""
    path = Path(directory) / "gmm.npz"
    z = read_npz(path, ("phones", "topo", "tree", "offsets", "weights", "means", "variances", "transitions", "classes",
                        "meta"), "train the model with 'essence gmm-train'")
    return Gmm([str(p) for p in z["phones"]], parse_topology(str(z["topo"]), str(path)), z["tree"], z["offsets"],
               z["weights"].astype(np.float64), z["means"].astype(np.float64), z["variances"].astype(np.float64),
               z["transitions"], json.loads(str(z["classes"])), json.loads(str(z["meta"])))


# --------------------------------------------------------------------------------------------- estimation formulas

@dataclass
class Statistics:
    """Sums over frames: occupancy (G,), first and second order (G, D), counts by transition-id, log-likelihood."""

    occupancy: np.ndarray
    first: np.ndarray
    second: np.ndarray
    transitions: np.ndarray
    log_likelihood: float = 0.0
    frames: int = 0

    def add(self, other: "Statistics") -> None:
        """Add another part's sums."""
        for name in ("occupancy", "first", "second", "transitions"):
            getattr(self, name)[...] += getattr(other, name)
        self.log_likelihood += other.log_likelihood
        self.frames += other.frames


def accumulate(model: Gmm, feats: np.ndarray, tids: np.ndarray, pdfs: np.ndarray) -> Statistics:
    """Statistics of frames (N, D) with their transition-ids (N,) and pdf-ids (N,)."""
    gauss, dim = model.means.shape
    out = Statistics(np.zeros(gauss), np.zeros((gauss, dim)), np.zeros((gauss, dim)),
                     np.bincount(tids, minlength=len(model.transitions)).astype(np.float64), 0.0, len(tids))
    params, const = _natural(model.weights, model.means, model.variances)
    order = np.argsort(pdfs, kind="stable")
    bounds = np.searchsorted(pdfs[order], np.arange(model.num_pdfs + 1))
    for pdf in np.flatnonzero(np.diff(bounds)):
        own = slice(int(model.offsets[pdf]), int(model.offsets[pdf + 1]))
        for at in range(bounds[pdf], bounds[pdf + 1], 2048):  # blocks, so that float32 sums stay exact enough
            x = feats[order[at:min(at + 2048, bounds[pdf + 1])]]
            both = np.hstack([x, x * x])
            posterior = both @ params[own].T + const[own]
            top = posterior.max(axis=1, keepdims=True)
            np.exp(posterior - top, out=posterior)
            total = posterior.sum(axis=1, keepdims=True)
            out.log_likelihood += float((top + np.log(total)).sum(dtype=np.float64))
            posterior /= total
            sums = posterior.T @ both
            out.occupancy[own] += posterior.sum(axis=0, dtype=np.float64)
            out.first[own] += sums[:, :dim]
            out.second[own] += sums[:, dim:]
    return out


def update(model: Gmm, stats: Statistics, min_occupancy: float = MIN_OCCUPANCY) -> np.ndarray:
    """Maximum-likelihood update in place; returns each pdf's occupancy (C,).

    As Kaldi's MleDiagGmmUpdate: a Gaussian with too little data is removed, the last one of a pdf is kept as it was;
    variances are floored. Transition probabilities as in TransitionModel::MleUpdate.
    """
    owner = np.repeat(np.arange(model.num_pdfs), np.diff(model.offsets))
    of_pdf = np.bincount(owner, weights=stats.occupancy, minlength=model.num_pdfs)
    share = stats.occupancy / np.where(of_pdf > 0, of_pdf, 1.0)[owner]
    enough = (stats.occupancy > min_occupancy) & (share > MIN_WEIGHT)
    occ = np.where(enough, stats.occupancy, 1.0)[:, None]
    mean = np.where(enough[:, None], stats.first / occ, model.means)
    variance = np.where(enough[:, None], np.maximum(stats.second / occ - mean * mean, MIN_VARIANCE), model.variances)
    keep = enough.copy()
    for pdf in np.flatnonzero(np.bincount(owner, weights=enough, minlength=model.num_pdfs) == 0):
        own = np.arange(model.offsets[pdf], model.offsets[pdf + 1])
        keep[own[-1]] = True
        share[own[-1]] = 1.0
    weight = np.where(keep, share, 0.0)
    weight /= np.bincount(owner, weights=weight, minlength=model.num_pdfs)[owner]
    model.weights, model.means, model.variances = weight[keep], mean[keep], variance[keep]
    model.offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=model.num_pdfs))])
    _update_transitions(model, stats.transitions)
    return of_pdf


def _update_transitions(model: Gmm, counts: np.ndarray) -> None:
    row = TransitionTable.of(model.topo).row
    states = row.max() + 1
    valid = row >= 0
    total = np.bincount(row[valid], weights=counts[valid], minlength=states)
    probs = counts / np.where(total > 0, total, 1.0)[row]
    for _ in range(3):
        scale = np.bincount(row[valid], weights=probs[valid], minlength=states)
        probs = np.maximum(probs / np.where(scale > 0, scale, 1.0)[row], TRANSITION_FLOOR)
    model.transitions = np.where(valid & (total >= TRANSITION_MIN_COUNT)[row], probs, model.transitions)


def split_targets(occupancy: np.ndarray, target: int) -> np.ndarray:
    """How many Gaussians each pdf shall have so that there are `target` in all (Kaldi's GetSplitTargets)."""
    import heapq

    sizes = np.ones(len(occupancy), dtype=np.int64)
    power = occupancy ** SPLIT_POWER
    heap = [(-p, i) for i, p in enumerate(power)]
    heapq.heapify(heap)
    total = len(sizes)
    while total < target and heap:
        _, i = heapq.heappop(heap)
        if (sizes[i] + 1) * SPLIT_MIN_COUNT < occupancy[i]:
            sizes[i] += 1
            total += 1
            heapq.heappush(heap, (-power[i] / sizes[i], i))
    return sizes


def mix_up(model: Gmm, occupancy: np.ndarray, target: int, rng: np.random.Generator) -> None:
    """Split Gaussians in place until there are about `target` (Kaldi's DiagGmm::Split): the heaviest of a pdf first,
    its halves moved apart by a hundredth of a standard deviation times a Gaussian random vector."""
    wanted = split_targets(occupancy, target)
    weights, means, variances, sizes = [], [], [], []
    for pdf in range(model.num_pdfs):
        own = slice(int(model.offsets[pdf]), int(model.offsets[pdf + 1]))
        w, m, v = list(model.weights[own]), list(model.means[own]), list(model.variances[own])
        while len(w) < wanted[pdf]:
            i = int(np.argmax(w))
            step = SPLIT_PERTURB * np.sqrt(v[i]) * rng.standard_normal(len(v[i]))
            w[i] /= 2
            w.append(w[i])
            m.append(m[i] + step)
            m[i] = m[i] - step
            v.append(v[i])
        weights += w
        means += m
        variances += v
        sizes.append(len(w))
    model.weights, model.means, model.variances = np.array(weights), np.array(means), np.array(variances)
    model.offsets = np.concatenate([[0], np.cumsum(sizes)])


# ------------------------------------------------------------------------------------------- bridge to kaldi-hmm-gmm

def _context(classes: List[List[int]], topo: Dict[int, Topology]):
    """(kaldi-hmm-gmm's context dependency, its topology) for classes of phones that share pdfs."""
    import kaldi_hmm_gmm as khg

    topology = khg.HmmTopology()
    topology.read(format_topology([([phone], states) for phone, states in sorted(topo.items())]))
    return khg.monophone_context_dependency_shared(classes, topology.get_phone_to_num_pdf_classes()), topology


def _tree_of(classes: List[List[int]], topo: Dict[int, Topology]) -> np.ndarray:
    """Rows (pdf-id, phone-id, state) sorted, with the pdf-ids that Kaldi's monophone tree gives."""
    context, _ = _context(classes, topo)
    rows = [(context.compute([phone], state)[1], phone, state) for phone in topo for state in range(len(topo[phone]))]
    return np.array(sorted(rows), dtype=np.int32)


def _transition_model(model: Gmm):
    """(transition model, context dependency) of kaldi-hmm-gmm with this model's probabilities."""
    import kaldi_hmm_gmm as khg

    context, topology = _context(model.classes, model.topo)
    transitions = khg.TransitionModel(context, topology)
    if transitions.num_transition_ids + 1 != len(model.transitions):
        raise ValueError("the transition-ids are not Kaldi's")
    with _quiet():
        transitions.mle_update(model.transitions * 1e6, khg.MleTransitionUpdateConfig(floor=1e-10, mincount=0.0))
    return transitions, context


class _quiet:
    """Silences what C++ code writes to stderr (Kaldi's log lines) while a block runs."""

    def __enter__(self):
        sys.stderr.flush()
        self.saved = os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *exc):
        os.dup2(self.saved, 2)
        os.close(self.saved)


def _acoustic_model(model: Gmm):
    """kaldi-hmm-gmm's AmDiagGmm of the same Gaussians."""
    import kaldi_hmm_gmm as khg

    out = khg.AmDiagGmm()
    for pdf in range(model.num_pdfs):
        own = slice(int(model.offsets[pdf]), int(model.offsets[pdf + 1]))
        diag = khg.DiagGmm(own.stop - own.start, model.dim)
        diag.set_weights(model.weights[own].astype(np.float32))
        diag.set_invvars_and_means((1.0 / model.variances[own]).astype(np.float32), model.means[own].astype(np.float32))
        out.add_pdf(diag)
    out.compute_gconsts()
    return out


class Aligner:
    """Aligns utterances of one data directory; holds features and compiled graphs of the utterances it is given."""

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
        """Sums of frames and their squares, and how many frames there are."""
        first, second = np.zeros(self.matrix.shape[1]), np.zeros(self.matrix.shape[1])
        for at in range(0, len(self.matrix), 4096):
            block = self.matrix[at:at + 4096].astype(np.float64)
            first += block.sum(axis=0)
            second += (block * block).sum(axis=0)
        return first, second, len(self.matrix)

    def compile(self, model: Gmm) -> None:
        """Training graphs (without transition probabilities) of all utterances."""
        transitions, context = _transition_model(model)
        self.compiler = _compiler(transitions, context, self.lexicon, self.lang.disambig)
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
        """(utterance, transition-ids or None where it failed) of some utterances, without keeping anything."""
        out = []
        for utt in utts:
            feats = self.reader[utt]
            graph = self.compiler.compile_graph_from_text(self.words[utt]) if self.words[utt] and len(feats) else None
            out.append((utt, self.scorer.align(utt, feats, graph, beam, retry_beam) if graph is not None else None))
        return out


def _compiler(transitions, context, lexicon, disambig: List[int]):
    import kaldi_hmm_gmm as khg

    options = khg.TrainingGraphCompilerOptions(transition_scale=0.0, self_loop_scale=0.0, reorder=True)
    return khg.TrainingGraphCompiler(transitions, context, lexicon, disambig, options)


class _Scorer:
    """One model ready for aligning."""

    def __init__(self, aligner: Aligner, model: Gmm):
        self.transitions, _ = _transition_model(model)
        self.acoustic = _acoustic_model(model)
        self.disambig = aligner.lang.disambig

    def align(self, utt: str, feats: np.ndarray, graph, beam: float, retry_beam: float) -> Optional[np.ndarray]:
        """Transition-ids of the best path, or None."""
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


def pdf_of_tid(model: Gmm) -> np.ndarray:
    """pdf-id by transition-id, int32 (index 0: -1)."""
    table = TransitionTable.of(model.topo)
    pdf_of = model.pdf_table()
    keys = zip(table.phone[1:].tolist(), table.state[1:].tolist())
    return np.array([-1] + [pdf_of[key] for key in keys], dtype=np.int32)


# ----------------------------------------------------------------------------------------------------- processes

def serve(descriptor: int) -> None:
    """A worker process: makes the Aligner it is told to, then answers (method, arguments) until the pipe closes."""
    from multiprocessing.connection import Connection

    pipe = Connection(descriptor)
    try:
        aligner = Aligner(*pipe.recv())
        pipe.send((True, None))
        while True:
            method, args = pipe.recv()
            pipe.send((True, getattr(aligner, method)(*args)))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except UserError as error:
        pipe.send((False, error))
    except Exception:
        pipe.send((False, RuntimeError(traceback.format_exc())))


class Team:
    """Aligners over parts of the utterances, one a process (a single one: in this process)."""

    def __init__(self, data_dir: str | Path, lang_dir: str | Path, shards: List[List[str]], words: Dict[str, List[int]],
                 dim: int | None, keep: bool):
        arguments = [(str(data_dir), str(lang_dir), shard, {utt: words[utt] for utt in shard} if keep else words, dim,
                      keep) for shard in shards]
        self.members: List[tuple] = []
        self.local: Optional[Aligner] = Aligner(*arguments[0]) if len(shards) == 1 else None
        if self.local is not None:
            return
        from multiprocessing import Pipe

        package_root = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": search,
                       **{name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}}
        try:
            for argument in arguments:
                ours, theirs = Pipe()
                # a new interpreter, not multiprocessing's: no threads are forked, the caller's script is not run again
                process = subprocess.Popen([sys.executable, "-c", "import sys; from essence_kd.hmm.gmm import serve; "
                                            "serve(int(sys.argv[1]))", str(theirs.fileno())],
                                           stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment)
                theirs.close()
                self.members.append((process, ours))
                ours.send(argument)
            for _, pipe in self.members:
                self._answer(pipe)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *exc) -> None:
        for process, pipe in self.members:
            pipe.close()
            process.terminate()
            process.wait()
        self.members = []

    @staticmethod
    def _answer(pipe):
        try:
            fine, value = pipe.recv()
        except EOFError:
            raise UserError("a worker process died (out of memory?); try again with --nj 1") from None
        if not fine:
            raise value
        return value

    def everyone(self, method: str, *args) -> list:
        """Call a method of every aligner; the answers in order."""
        if self.local is not None:
            return [getattr(self.local, method)(*args)]
        for _, pipe in self.members:
            pipe.send((method, args))
        return [self._answer(pipe) for _, pipe in self.members]

    def in_order(self, method: str, items: Sequence[tuple]):
        """Call a method once an item, on whichever process is free; yields the answers in the order of the items."""
        if self.local is not None:
            for item in items:
                yield getattr(self.local, method)(*item)
            return
        from multiprocessing.connection import wait

        answers: Dict[int, object] = {}
        working: Dict[object, int] = {}
        idle = [pipe for _, pipe in self.members]
        sent = given = 0
        while given < len(items):
            while idle and sent < len(items):
                pipe = idle.pop()
                pipe.send((method, items[sent]))
                working[pipe] = sent
                sent += 1
            for pipe in wait(list(working)):
                answers[working.pop(pipe)] = self._answer(pipe)
                idle.append(pipe)
            while given in answers:
                yield answers.pop(given)
                given += 1


# ---------------------------------------------------------------------------------------------------- training

@dataclass
class TrainOptions:
    """num_gauss: Gaussians in all at the end; num_iters: passes; split_iter: the pass after which positions of a phone
    get pdfs of their own; min_tokens: occurrences that a position needs for that; seed: of mixing up."""

    num_gauss: int = 3000
    num_iters: int = 30
    split_iter: int = 12
    min_tokens: int = 20
    nj: int = 1
    seed: int = 0
    map_oov: bool = False


def train(data_dir: str | Path, lang_dir: str | Path, options: TrainOptions = TrainOptions()) -> Gmm:
    """Monophone training from a flat start. Raises UserError for bad input, and when too few utterances align."""
    started = time.time()
    lang = load_lang(lang_dir)
    reader = FeatureReader(data_dir)
    words = read_transcripts(data_dir, reader.utts, lang, options.map_oov)
    dim = 3 * reader.feats[reader.utts[0]].shape[1]
    nj = max(1, min(options.nj, len(reader.utts)))
    shards = [reader.utts[n::nj] for n in range(nj)]
    rng = np.random.default_rng(options.seed)
    with Team(data_dir, lang_dir, shards, words, dim, keep=True) as team:
        model = _flat_start(lang, team.everyone("moments"))
        team.everyone("compile", model)
        failed = [utt for part in team.everyone("align_equally") for utt in part]
        _check_failed(failed, len(reader.utts), data_dir, "are too short for their transcripts or have none")
        update(model, _sum(team.everyone("statistics", model)), MIN_OCCUPANCY_FIRST)
        target, beam = model.num_pdfs, INITIAL_BEAM
        mixing = max(1, int(0.75 * options.num_iters))
        split_iter = min(options.split_iter, options.num_iters - 2)
        for x in range(1, options.num_iters):
            if x in REALIGN:
                failed = [utt for part in team.everyone("align", model, beam, RETRY_BEAM) for utt in part]
                beam = BEAM
            stats = _sum(team.everyone("statistics", model))
            if x == split_iter:
                model = split_positions(model, lang, stats.transitions, options.min_tokens)
                stats = _sum(team.everyone("statistics", model))
                target = max(target, model.num_pdfs)
            occupancy = update(model, stats)
            if x <= mixing:
                final = options.num_gauss if x >= split_iter else min(options.num_gauss, 3 * model.num_pdfs)
                last = mixing if x >= split_iter else split_iter
                target += max(0, final - target) // max(1, last - x + 1)
                mix_up(model, occupancy, target, rng)
            print(f"pass {x}: {len(model.weights)} Gaussians in {model.num_pdfs} pdfs, log-likelihood per frame "
                  f"{stats.log_likelihood / max(1, stats.frames):.3f}, {len(failed)} of {len(reader.utts)} utterances "
                  "failed", file=sys.stderr)
    _check_failed(failed, len(reader.utts), data_dir, "could not be aligned")
    model.meta = {"utterances": len(reader.utts), "failed": len(failed), "frames": stats.frames,
                  "log_likelihood_per_frame": stats.log_likelihood / max(1, stats.frames),
                  "num_iters": options.num_iters, "seed": options.seed, "seconds": round(time.time() - started, 1)}
    return model


def _sum(parts: List[Statistics]) -> Statistics:
    for part in parts[1:]:
        parts[0].add(part)
    return parts[0]


def _check_failed(failed: List[str], total: int, data_dir: str | Path, why: str) -> None:
    if total - len(failed) < MIN_ALIGNED * total:
        raise UserError(f"{data_dir}: {len(failed)} of {total} utterances {why} (first: {failed[0]}); at most "
                        f"{100 * (1 - MIN_ALIGNED):.0f} % may fail: check text, segments and lexicon")


def _flat_start(lang: Lang, moments: list) -> Gmm:
    """One Gaussian a pdf with the mean and variance of all frames; one set of pdfs a line of sets.int."""
    first, second, frames = (sum(part[i] for part in moments) for i in range(3))
    mean = first / frames
    variance = np.maximum(second / frames - mean * mean, MIN_VARIANCE)
    tree = _tree_of(lang.sets, lang.topo)
    pdfs = int(tree[:, 0].max()) + 1
    probs = [0.0] + [prob for phone in sorted(lang.topo) for arcs in lang.topo[phone] for _, prob in arcs]
    return Gmm(lang.phones, lang.topo, tree, np.arange(pdfs + 1), np.ones(pdfs), np.tile(mean, (pdfs, 1)),
               np.tile(variance, (pdfs, 1)), np.array(probs), [list(line) for line in lang.sets])


def split_positions(model: Gmm, lang: Lang, counts: np.ndarray, min_tokens: int) -> Gmm:
    """A copy of the model in which positions of a phone have pdfs of their own, each beginning as the shared ones.

    counts: by transition-id. A position seen fewer than `min_tokens` times stays with the commonest one of its phone.
    """
    table = TransitionTable.of(model.topo)
    tokens = np.bincount(table.phone[table.begin], weights=counts[table.begin], minlength=len(lang.phones))
    classes, unseen = [], []
    for line in lang.sets:
        own = [phone for phone in line if tokens[phone] >= min_tokens]
        rest = [phone for phone in line if phone not in own]
        commonest = max(own or line, key=lambda phone: tokens[phone])
        groups = {phone: [phone] for phone in own or [commonest]}
        groups[commonest] = sorted(set(groups[commonest] + rest))
        classes += list(groups.values())
        if not sum(tokens[phone] for phone in line):
            unseen.append(lang.phones[line[0]])
    if unseen:
        print(f"{len(unseen)} phones never occur in training, their pdfs stay as at the flat start: {' '.join(unseen)}",
              file=sys.stderr)
    classes.sort()
    tree = _tree_of(classes, model.topo)
    old = model.pdf_table()
    origin = np.zeros(int(tree[:, 0].max()) + 1, dtype=np.int64)
    for pdf, phone, state in tree:
        origin[pdf] = old[int(phone), int(state)]
    gauss = np.concatenate([np.arange(model.offsets[pdf], model.offsets[pdf + 1]) for pdf in origin])
    sizes = np.diff(model.offsets)[origin]
    return Gmm(model.phones, model.topo, tree, np.concatenate([[0], np.cumsum(sizes)]), model.weights[gauss],
               model.means[gauss], model.variances[gauss], model.transitions, classes, dict(model.meta))


# ---------------------------------------------------------------------------------------------------- alignment

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
        """Count one utterance's transition-ids."""
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
        z = read_npz(path, ("factor", "enter", "leave", "stay"), "align again with 'essence gmm-align'")
        return cls(int(z["factor"]), z["enter"], z["leave"], z["stay"])


def align(data_dir: str | Path, lang_dir: str | Path, model: Gmm, ali_dir: str | Path, *, nj: int = 1,
          beam: float = BEAM, retry_beam: float = RETRY_BEAM, factor: int = 3,
          map_oov: bool = False) -> Tuple[int, int]:
    """Align a data directory; returns (utterances, failed ones).

    Writes ali.ark/.scp (int32 pdf-ids, a feature frame each), priors.txt, num_pdfs, tree.txt, failed.txt (ids),
    ali.json, and topology.npz (:class:`SubsampledCounts`). Raises UserError when under 95 % align; failed.txt
    is there then too.
    """
    started = time.time()
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
    with Team(data_dir, lang_dir, [[] for _ in range(nj)], words, model.dim, keep=False) as team:
        team.everyone("start_alignment", model)
        with IntVectorWriter(f"ark,scp:{ali_dir / 'ali.ark'},{ali_dir / 'ali.scp'}") as writer:
            done = 0
            for batch in team.in_order("align_batch", batches):
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
            _check_failed(failed, len(reader.utts), data_dir, "could not be aligned")
    counts.save(ali_dir / "topology.npz")
    write_ali_dir(ali_dir, tree_lines(model), frames, len(reader.utts), failed, started)
    return len(reader.utts), len(failed)


def write_scores(data_dir: str | Path, model: Gmm, wspecifier: str, factor: int = 3) -> Tuple[int, int]:
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
        write_sidecar(sidecar, {"kind": "scores", "output": "loglike", "num_pdfs": model.num_pdfs,
                                "tree_hash": model.meta.get("tree_hash"), "frame_shift_ms": 10 * factor,
                                "num_utts": len(reader.utts), "num_frames": rows})
    return len(reader.utts), rows
