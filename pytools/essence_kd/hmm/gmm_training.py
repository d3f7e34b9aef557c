"""GMM-HMM monophone training from a flat start, following Kaldi's steps/train_mono.sh.

Training begins with one set of pdfs a phone, as in Kaldi, and gives each position of a phone (``AA_B``, ``AA_I`` ...)
its own pdfs once the alignment has settled; a position that hardly occurs keeps sharing the pdfs of the phone's
commonest position.
"""
from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import List

import numpy as np

from essence_kd.hmm.gmm import Gmm, TransitionTable
from essence_kd.hmm.gmm_alignment import BEAM, RETRY_BEAM, check_failed, open_aligners
from essence_kd.hmm.gmm_estimation import MIN_OCCUPANCY_FIRST, MIN_VARIANCE, Statistics, mix_up, update
from essence_kd.hmm.gmm_features import FeatureReader, read_transcripts
from essence_kd.hmm.kaldi_gmm import monophone_tree
from essence_kd.hmm.lang import Lang, load_lang

REALIGN = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 23, 26, 29, 32, 35, 38)  # passes that align first
INITIAL_BEAM = 6.0  # of the first alignment


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
    started = time.monotonic()
    lang = load_lang(lang_dir)
    reader = FeatureReader(data_dir)
    words = read_transcripts(data_dir, reader.utts, lang, options.map_oov)
    dim = 3 * reader.feats[reader.utts[0]].shape[1]
    nj = max(1, min(options.nj, len(reader.utts)))
    shards = [reader.utts[n::nj] for n in range(nj)]
    rng = np.random.default_rng(options.seed)
    with open_aligners(data_dir, lang_dir, shards, words, dim, keep=True) as aligners:
        model = _flat_start(lang, aligners.everyone("moments"))
        aligners.everyone("compile", model)
        failed = [utt for part in aligners.everyone("align_equally") for utt in part]
        check_failed(failed, len(reader.utts), data_dir, "are too short for their transcripts or have none")
        update(model, _sum(aligners.everyone("statistics", model)), MIN_OCCUPANCY_FIRST)
        target, beam = model.num_pdfs, INITIAL_BEAM
        mixing = max(1, int(0.75 * options.num_iters))
        split_iter = min(options.split_iter, options.num_iters - 2)
        for x in range(1, options.num_iters):
            if x in REALIGN:
                failed = [utt for part in aligners.everyone("align", model, beam, RETRY_BEAM) for utt in part]
                beam = BEAM
            stats = _sum(aligners.everyone("statistics", model))
            if x == split_iter:
                model = split_positions(model, lang, stats.transitions, options.min_tokens)
                stats = _sum(aligners.everyone("statistics", model))
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
    check_failed(failed, len(reader.utts), data_dir, "could not be aligned")
    model.meta = {"utterances": len(reader.utts), "failed": len(failed), "frames": stats.frames,
                  "log_likelihood_per_frame": stats.log_likelihood / max(1, stats.frames),
                  "num_iters": options.num_iters, "seed": options.seed, "seconds": round(time.monotonic() - started, 1)}
    return model


def _sum(parts: List[Statistics]) -> Statistics:
    for part in parts[1:]:
        parts[0].add(part)
    return parts[0]


def _flat_start(lang: Lang, moments: list) -> Gmm:
    """One Gaussian a pdf with the mean and variance of all frames; one set of pdfs a line of sets.int."""
    first, second, frames = (sum(part[i] for part in moments) for i in range(3))
    mean = first / frames
    variance = np.maximum(second / frames - mean * mean, MIN_VARIANCE)
    tree = monophone_tree(lang.sets, lang.topo)
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
    tree = monophone_tree(classes, model.topo)
    old = model.pdf_table()
    origin = np.zeros(int(tree[:, 0].max()) + 1, dtype=np.int64)
    for pdf, phone, state in tree:
        origin[pdf] = old[int(phone), int(state)]
    gauss = np.concatenate([np.arange(model.offsets[pdf], model.offsets[pdf + 1]) for pdf in origin])
    sizes = np.diff(model.offsets)[origin]
    return Gmm(model.phones, model.topo, tree, np.concatenate([[0], np.cumsum(sizes)]), model.weights[gauss],
               model.means[gauss], model.variances[gauss], model.transitions, classes, dict(model.meta))
