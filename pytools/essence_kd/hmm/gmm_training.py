"""GMM-HMM training, following Kaldi's steps/train_mono.sh, train_deltas.sh, train_lda_mllt.sh and train_sat.sh.

Each kind of model begins with the alignment that the kind before it left:

- ``mono``: phones without context, from a flat start; MFCC with derivatives.
- ``tri1``: states tied by a decision tree over triphones; the same features.
- ``tri2``: another tree; LDA of spliced MFCC, turned by an MLLT.
- ``tri3``: another tree; the features of tri2, adapted to each speaker by an fMLLR.
"""
from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Tuple

import numpy as np

from essence_kd.hmm.feature_transforms import FeatureSetup, estimate_lda, estimate_mllt
from essence_kd.hmm.gmm import Gmm, save_gmm
from essence_kd.hmm.gmm_alignment import check_failed, open_aligners, shards_by_speaker
from essence_kd.hmm.gmm_estimation import (
    MIN_OCCUPANCY,
    MIN_OCCUPANCY_FIRST,
    MIN_VARIANCE,
    Statistics,
    mix_up,
    of_tree_stats,
    update,
)
from essence_kd.hmm.gmm_features import FeatureReader, read_transcripts
from essence_kd.hmm.gmm_kinds import DEFAULT, KINDS
from essence_kd.hmm.lang import Lang, load_lang, read_roots
from essence_kd.hmm.transition_model import TransitionModel
from essence_kd.hmm.tree import monophone_tree
from essence_kd.hmm.tree_building import MIN_GAIN, TreeOptions, add_tree_stats, build_tree, cluster_phones, tell_tree
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write, write_text
from essence_kd.io.tables import IntVectorWriter, MatrixWriter

MONO_REALIGN = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 23, 26, 29, 32, 35, 38)  # passes that align first
REALIGN = (10, 20, 30)
TRANSFORM = (2, 4, 6, 12)  # passes that estimate an MLLT or fMLLRs first
FRAMES_PER_LEAF = 600  # of training, where the number of leaves is not given
GAUSS_PER_LEAF = 6
MIN_LEAVES, MAX_LEAVES = 100, 4000


@dataclass
class TrainOptions:
    """kind: the last model that is trained; num_leaves: of its tree at most, 0: one per FRAMES_PER_LEAF frames, between
    MIN_LEAVES and MAX_LEAVES, but one for each HMM state of each root; min_gain: log-likelihood that a split of the
    tree must bring; num_gauss: Gaussians in all at the end, 0: GAUSS_PER_LEAF per leaf; mono_gauss: of the model mono;
    mono_iters, num_iters: passes over the data, of mono and of each other kind; lda_dim: dimensions of LDA; splice:
    frames on each side that LDA sees; silence_boost: factor on the likelihoods of silence while training up to tri1;
    seed: of the flat start, of mixing up, and of the clusters of phones."""

    kind: str = DEFAULT
    num_leaves: int = 0
    min_gain: float = MIN_GAIN
    num_gauss: int = 0
    mono_gauss: int = 1000
    mono_iters: int = 40
    num_iters: int = 35
    lda_dim: int = 40
    splice: int = 3
    silence_boost: float = 1.25
    nj: int = 1
    seed: int = 0
    map_oov: bool = False


def train(data_dir: str | Path, lang_dir: str | Path, options: TrainOptions = TrainOptions(),
          gmm_dir: str | Path | None = None) -> Gmm:
    """Train a model of the kind that `options` name, and what it needs before.

    gmm_dir: where the model goes, and the last alignment of the training data beside it, as Kaldi leaves it:
    ali.1.gz (transition-ids), num_jobs and, where there are speakers' transforms, trans.1. Raises UserError for bad
    input, and when too few utterances align.
    """
    if options.kind not in KINDS:
        raise UserError(f"--kind {options.kind}: must be one of {', '.join(KINDS)}")
    started = time.monotonic()
    training = Training(data_dir, lang_dir, options)
    with training.aligners:
        model = training.mono()
        for kind in KINDS[1:KINDS.index(options.kind) + 1]:
            model = training.triphones(kind, model)
        model.meta.update(model_kind=options.kind, utterances=len(training.utts), seed=options.seed,
                          seconds=round(time.monotonic() - started, 1))
        if gmm_dir is not None:
            save_gmm(gmm_dir, model)
            training.save_alignment(Path(gmm_dir))
    return model


class Training:
    """One data directory, and processes that hold it while models are trained on it."""

    def __init__(self, data_dir: str | Path, lang_dir: str | Path, options: TrainOptions):
        self.data_dir, self.options = data_dir, options
        self.lang: Lang = load_lang(lang_dir)
        reader = FeatureReader(data_dir)
        words = read_transcripts(data_dir, reader.utts, self.lang, options.map_oov)
        self.utts = reader.utts
        self.rng = np.random.default_rng(options.seed)
        self.aligners = open_aligners(data_dir, lang_dir, shards_by_speaker(reader, options.nj), words, keep=True)

    # ------------------------------------------------------------------------------------------------ the four kinds

    def mono(self) -> Gmm:
        """Monophones from a flat start: first one Gaussian per pdf with the mean and variance of all frames."""
        lang, options = self.lang, self.options
        self.everyone("set_features", FeatureSetup())
        first, second, frames = (sum(part[i] for part in self.everyone("moments")) for i in range(3))
        if not frames:
            raise UserError(f"{self.data_dir}: holds no frame to train on")
        self.frames = int(frames)
        mean = first / frames
        variance = np.maximum(second / frames - mean * mean, MIN_VARIANCE)
        tree = monophone_tree(lang.sets, {phone: len(states) for phone, states in lang.topo.items()})
        pdfs = tree.num_pdfs
        model = Gmm(lang.phones, tree, TransitionModel.of_tree(tree, lang.topo), np.arange(pdfs + 1), np.ones(pdfs),
                    np.tile(mean, (pdfs, 1)), np.tile(variance, (pdfs, 1)))
        self.failed = sorted(utt for part in self.everyone("align_equally", model, options.seed) for utt in part)
        check_failed(self.failed, len(self.utts), self.data_dir, "are too short for their transcripts or have none")
        update(model, self.statistics(model), MIN_OCCUPANCY_FIRST)
        self.passes(model, "mono", pdfs, options.mono_gauss, options.mono_iters, MONO_REALIGN, options.silence_boost)
        return model

    def triphones(self, kind: str, before: Gmm) -> Gmm:
        """The next kind of model, from the one before it, with which the data are aligned once more."""
        options = self.options
        boost = options.silence_boost if kind == "tri1" else 1.0
        self.align(before, boost)
        setup = before.features
        if kind == "tri2":
            parts = self.everyone("lda_statistics", before, options.splice, options.splice)
            for part in parts[1:]:
                parts[0].add(part)
            dim = min(options.lda_dim, len(parts[0].products))
            try:
                matrix = estimate_lda(parts[0], dim).astype(np.float32)
            except UserError as error:
                raise UserError(f"{self.data_dir}: {error}; --kind tri1 (run.sh: --gmm tri1) needs no LDA") from None
            setup = FeatureSetup(options.splice, options.splice, matrix)
            self.everyone("set_features", setup)
        if kind == "tri3":
            self.adapt(before)
        model = self.grow_tree(kind, setup)
        leaves = model.num_pdfs
        gauss = options.num_gauss or GAUSS_PER_LEAF * leaves
        if kind == "tri1" and options.kind != "tri1":
            gauss = gauss * 2 // 3
        transform = {"tri1": None, "tri2": self.turn, "tri3": self.adapt}[kind]
        self.passes(model, kind, leaves, max(gauss, leaves), options.num_iters, REALIGN, boost, transform)
        if kind == "tri3":
            model.speaker_independent = self.without_adaptation(model)
        return model

    # ------------------------------------------------------------------------------------------------------ its parts

    def everyone(self, method: str, *arguments) -> list:
        """What every process answers."""
        return self.aligners.everyone(method, *arguments)

    def align(self, model: Gmm, boost: float) -> None:
        """Align all data."""
        self.failed = sorted(utt for part in self.everyone("align", model, boost) for utt in part)
        check_failed(self.failed, len(self.utts), self.data_dir, "could not be aligned")

    def statistics(self, model: Gmm, plain: bool = False) -> Statistics:
        """Sums of all processes."""
        parts = self.everyone("statistics", model, plain)
        for part in parts[1:]:
            parts[0].add(part)
        return parts[0]

    def passes(self, model: Gmm, name: str, start: int, gauss: int, iters: int, realign: Tuple[int, ...], boost: float,
               transform=None) -> None:
        """Passes of training in place: from `start` Gaussians to `gauss`, which three quarters of them reach."""
        mixing, target = max(1, iters * 3 // 4), start
        for x in range(1, iters):
            if x in realign:
                self.align(model, boost)
            if transform is not None and x in TRANSFORM:
                transform(model)
            stats = self.statistics(model)
            occupancy = update(model, stats)
            if x <= mixing:
                target += (gauss - target) // (mixing - x + 1)
                mix_up(model, occupancy, target, self.rng)
            if x in (1, iters - 1) or x % 5 == 0:
                print(f"{name}: pass {x} of {iters - 1}: {len(model.weights)} Gaussians in {model.num_pdfs} pdfs, "
                      f"log-likelihood per frame {stats.log_likelihood / max(1, stats.frames):.3f}, "
                      f"{len(self.failed)} of {len(self.utts)} utterances failed", file=sys.stderr)
        model.meta.update(failed=len(self.failed), frames=stats.frames,
                          log_likelihood_per_frame=stats.log_likelihood / max(1, stats.frames))

    def grow_tree(self, kind: str, setup: FeatureSetup) -> Gmm:
        """A tree for the current alignment and features, and a model of one Gaussian per leaf."""
        lang, options = self.lang, self.options
        roots, questions, independent = read_roots(lang)
        stats = add_tree_stats(self.everyone("tree_statistics", independent))
        questions = cluster_phones(stats, lang.sets, options.seed) + questions
        sizes = {phone: len(states) for phone, states in lang.topo.items()}
        # a root for each HMM state, so that a corpus too small for any split has the states of monophones
        roots = [(False, split, phones) for _, split, phones in roots]
        least = sum(max(sizes[phone] for phone in phones) for _, _, phones in roots)
        leaves = options.num_leaves or max(least, min(max(self.frames // FRAMES_PER_LEAF, MIN_LEAVES), MAX_LEAVES))
        tree = build_tree(stats, questions, roots, sizes, TreeOptions(leaves, options.min_gain))
        tell_tree(kind, tree, stats)
        model = of_tree_stats(stats, tree, lang.topo, lang.phones, setup)
        self.everyone("use", model)
        return model

    def turn(self, model: Gmm) -> None:
        """Estimate an MLLT; features, their matrix and the model's means are turned by it."""
        parts = self.everyone("mllt_statistics", model)
        try:
            matrix = estimate_mllt(sum(count for count, _ in parts), sum(products for _, products in parts))
        except np.linalg.LinAlgError:
            raise UserError(f"{self.data_dir}: too few frames that are not silence for an MLLT; --kind tri1 (run.sh: "
                            "--gmm tri1) needs none") from None
        model.features = FeatureSetup(model.features.left, model.features.right,
                                      (matrix @ model.features.matrix).astype(np.float32))
        model.means = model.means @ matrix.T
        self.everyone("set_features", model.features)

    def adapt(self, model: Gmm) -> None:
        """Estimate the speakers' transforms, on top of those there are."""
        few = sum(self.everyone("adapt_speakers", model))
        if few:
            print(f"{few} speakers have too few frames, or constant ones, for a transform of their own",
                  file=sys.stderr)

    def save_alignment(self, gmm_dir: Path) -> None:
        """ali.1.gz, num_jobs, and trans.1 where there are speakers' transforms."""
        tids: Dict[str, np.ndarray] = {}
        for part in self.everyone("transition_ids"):
            tids.update(part)
        with atomic_write(gmm_dir / "ali.1.gz") as temporary, tempfile.TemporaryDirectory() as folder:
            with IntVectorWriter(f"ark:{folder}/ali.ark") as writer:
                for utt in self.utts:
                    if utt in tids:
                        writer.write(utt, tids[utt])
            with open(Path(folder) / "ali.ark", "rb") as plain, open(temporary, "wb") as raw, \
                    gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed:
                shutil.copyfileobj(plain, packed)
        write_text(gmm_dir / "num_jobs", "1\n")
        transforms: Dict[str, np.ndarray] = {}
        for part in self.everyone("speaker_transforms"):
            transforms.update(part)
        if transforms:
            with MatrixWriter(f"ark:{gmm_dir / 'trans.1'}") as writer:
                for speaker in sorted(transforms):
                    writer.write(speaker, transforms[speaker].astype(np.float32))

    def without_adaptation(self, model: Gmm) -> Gmm:
        """The same model for features that are not adapted to speakers (Kaldi's final.alimdl)."""
        out = Gmm(model.phones, model.tree, TransitionModel(model.transitions.topo, model.transitions.tuples,
                                                            model.transitions.probs.copy()),
                  model.offsets.copy(), model.weights.copy(), model.means.copy(), model.variances.copy(),
                  model.features)
        update(out, self.statistics(model, plain=True), MIN_OCCUPANCY, remove=False)
        return out
