"""GMM-HMMs: the model, its likelihoods, and its directory, which is one of Kaldi's (docs/formats.md: gmm).

What trains it is in gmm_training, what aligns with it in gmm_alignment.
"""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from essence_kd.hmm.feature_transforms import FeatureSetup, read_setup, write_setup
from essence_kd.hmm.kaldi_objects import ObjectWriter, expect
from essence_kd.hmm.lang import read_symbols
from essence_kd.hmm.transition_model import TransitionModel, read_model_file, write_transition_model
from essence_kd.hmm.tree import Tree, read_tree, write_tree
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write, read_sidecar, sha256_file, write_sidecar, write_text


@dataclass
class Gmm:
    """A trained model. C pdfs, G Gaussians in all, of dimension D (of what ``features`` makes of MFCC).

    tree: which pdf-id an HMM state has in its context; transitions: what transition-ids mean; offsets: int64 (C + 1,),
    pdf c owns the Gaussians offsets[c] to offsets[c + 1]; weights (G,), means, variances (G, D): float64; phones:
    symbols by phone-id; features: what is made of MFCC before the GMM sees them; speaker_independent: of a model whose
    features are adapted to speakers, the model for features that are not (Kaldi's final.alimdl); meta: what gmm.json
    tells besides.
    """

    phones: List[str]
    tree: Tree
    transitions: TransitionModel
    offsets: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    features: FeatureSetup = field(default_factory=FeatureSetup)
    speaker_independent: Optional["Gmm"] = None
    meta: dict = field(default_factory=dict)

    @property
    def num_pdfs(self) -> int:
        """How many pdfs there are."""
        return len(self.offsets) - 1

    @property
    def dim(self) -> int:
        """Dimension of the features that the Gaussians see."""
        return self.means.shape[1]

    def log_likelihoods(self, feats: np.ndarray, pdfs: Optional[np.ndarray] = None) -> np.ndarray:
        """log p(x | pdf): float32 (T, C) for features (T, D); of some pdfs alone, int (c,): float32 (T, c)."""
        return Scorer(self).log_likelihoods(feats, pdfs)


class Scorer:
    """A model's Gaussians, ready for the likelihoods of many utterances."""

    def __init__(self, model: Gmm):
        self.params, self.const = natural_parameters(model.weights, model.means, model.variances)
        self.offsets = model.offsets

    def log_likelihoods(self, feats: np.ndarray, pdfs: Optional[np.ndarray] = None) -> np.ndarray:
        """As :meth:`Gmm.log_likelihoods`."""
        if pdfs is None:
            params, const, sizes = self.params, self.const, np.diff(self.offsets)
        else:
            sizes = np.diff(self.offsets)[pdfs]
            own = np.repeat(self.offsets[:-1][pdfs] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
            params, const = self.params[own], self.const[own]
        starts = np.cumsum(sizes) - sizes
        out = np.empty((len(feats), len(sizes)), dtype=np.float32)
        for at in range(0, len(feats), 128):
            block = np.asarray(feats[at:at + 128], dtype=np.float32).T
            scores = params @ np.vstack([block, block * block])  # (Gaussians, frames)
            scores += const[:, None]
            top = np.maximum.reduceat(scores, starts, axis=0)
            scores -= np.repeat(top, sizes, axis=0)
            np.exp(np.maximum(scores, -80.0, out=scores), out=scores)  # smaller ones would be slow denormals
            out[at:at + 128] = (top + np.log(np.add.reduceat(scores, starts, axis=0))).T
        return out


def natural_parameters(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Parameters (G, 2 D) and constants (G,), float32, with log(w N(x)) = parameters @ [x, x * x] + constants."""
    inverse = 1.0 / variances
    return np.hstack([means * inverse, -0.5 * inverse]).astype(np.float32), constants(weights, means, variances)


def constants(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The constants of :func:`natural_parameters`, float32 (G,) (Kaldi's gconsts)."""
    exponent = 0.5 * (np.log(2 * math.pi * variances) + means * means / variances).sum(axis=1)
    return (np.log(weights) - exponent).astype(np.float32)


def tree_text(model: Gmm) -> str:
    """tree.txt: ``pdf-id phone state`` lines, phones by symbol; pdf-ids ascend; a shared pdf has several lines."""
    rows = np.unique(model.transitions.tuples[:, [2, 0, 1]], axis=0).tolist()
    return "".join(f"{pdf} {model.phones[phone]} {state}\n" for pdf, phone, state in rows)


# --------------------------------------------------------------------------------------------------------- directories

def save_gmm(directory: str | Path, model: Gmm) -> None:
    """Write a GMM directory as Kaldi's training scripts leave it: tree, final.mdl, final.alimdl, final.mat, phones.txt,
    cmvn_opts, splice_opts; and tree.txt, num_pdfs and gmm.json."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = tree_text(model)
    write_text(directory / "tree.txt", text)
    write_tree(directory / "tree", model.tree)
    model.meta["tree_hash"] = sha256_file(directory / "tree.txt")
    write_model(directory / "final.mdl", model)
    if model.speaker_independent is not None:
        write_model(directory / "final.alimdl", model.speaker_independent)
    write_setup(directory, model.features)
    for name, content in (("num_pdfs", f"{model.num_pdfs}\n"),
                          ("phones.txt", "".join(f"{p} {i}\n" for i, p in enumerate(model.phones) if p))):
        write_text(directory / name, content)
    write_sidecar(directory / "gmm.json", {"kind": "gmm", "num_pdfs": model.num_pdfs, "num_gauss": len(model.weights),
                                           "dim": model.dim, **model.meta})


def load_gmm(directory: str | Path) -> Gmm:
    """Read a GMM directory, ours or one that Kaldi's training scripts left. UserError when it is missing or broken."""
    directory = Path(directory)
    if not (directory / "final.mdl").exists():
        raise UserError(f"{directory / 'final.mdl'}: there is no such file; train the model with 'essence gmm-train'")
    tree, features = read_tree(directory / "tree"), read_setup(directory)
    phones = read_symbols(directory / "phones.txt")
    meta = read_sidecar(directory / "gmm.json") if (directory / "gmm.json").exists() else {}
    model = read_model(directory / "final.mdl", phones, tree, features)
    model.meta = {name: value for name, value in meta.items() if name not in ("kind", "num_pdfs", "num_gauss", "dim")}
    if (directory / "final.alimdl").exists():
        model.speaker_independent = read_model(directory / "final.alimdl", phones, tree, features)
        if model.speaker_independent.dim != model.dim:
            raise UserError(f"{directory / 'final.alimdl'}: has dimension {model.speaker_independent.dim}, but "
                            f"final.mdl {model.dim}; both must be of one training")
    elif meta.get("model_kind") == "tri3":
        raise UserError(f"{directory / 'final.alimdl'}: missing, and gmm.json says that this GMM is of adapted "
                        "features (tri3); copy the whole directory, or train again")
    return model


def write_model(path: str | Path, model: Gmm) -> None:
    """Write a final.mdl: Kaldi's TransitionModel and AmDiagGmm, binary."""
    out = ObjectWriter()
    write_transition_model(out, model.transitions)
    out.token("<DIMENSION>").integer(model.dim).token("<NUMPDFS>").integer(model.num_pdfs)
    inverse = 1.0 / model.variances
    const = constants(model.weights, model.means, model.variances)
    for first, last in zip(model.offsets.tolist(), model.offsets[1:].tolist()):
        out.token("<DiagGMM>").token("<GCONSTS>").vector(const[first:last])
        out.token("<WEIGHTS>").vector(model.weights[first:last])
        out.token("<MEANS_INVVARS>").matrix(model.means[first:last] * inverse[first:last])
        out.token("<INV_VARS>").matrix(inverse[first:last]).token("</DiagGMM>")
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(out.data())


def read_model(path: str | Path, phones: List[str], tree: Tree, features: FeatureSetup) -> Gmm:
    """Read a final.mdl of diagonal GMMs; UserError where it is something else, or of another tree or phones."""
    transitions, reader = read_model_file(path)
    try:
        expect(reader, "<DIMENSION>")
        dim = reader.integer()
        expect(reader, "<NUMPDFS>")
        parts: list = []
        for _ in range(reader.integer()):
            expect(reader, "<DiagGMM>", "<DiagGMMBegin>")
            if expect(reader, "<GCONSTS>", "<WEIGHTS>") == "<GCONSTS>":
                reader.vector()
                expect(reader, "<WEIGHTS>")
            weights = reader.vector()
            expect(reader, "<MEANS_INVVARS>")
            scaled = reader.matrix()
            expect(reader, "<INV_VARS>")
            inverse = reader.matrix()
            expect(reader, "</DiagGMM>", "<DiagGMMEnd>")
            if not len(weights) or scaled.shape != (len(weights), dim) or inverse.shape != scaled.shape:
                raise ValueError(f"pdf-id {len(parts)}: {scaled.shape} means, {inverse.shape} variances of "
                                 f"{len(weights)} Gaussians of dimension {dim}")
            parts.append((weights, scaled, inverse))
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: holds no whole GMM of Kaldi's ({error}); name the final.mdl of a GMM") from None
    if len(parts) < max(tree.num_pdfs, transitions.num_pdfs):
        raise UserError(f"{path}: has {len(parts)} pdfs, but its tree {tree.num_pdfs}; both must be of one training")
    own = TransitionModel.of_tree(tree, transitions.topo).tuples
    if not np.array_equal(own, transitions.tuples):
        raise UserError(f"{path}: its states are not those of the tree beside it: they are of different trainings")
    if features.matrix is not None and len(features.matrix) != dim:
        raise UserError(f"{path}: has dimension {dim}, but final.mat beside it makes {len(features.matrix)}; both must "
                        "be of one training")
    if int(transitions.phone.max()) >= len(phones):
        raise UserError(f"{path}: has phone-id {int(transitions.phone.max())}, but phones.txt beside it ends at "
                        f"{len(phones) - 1}; both must be of one training")
    weights, scaled, inverse = (np.concatenate(column).astype(np.float64) for column in zip(*parts))
    if not (np.isfinite(scaled).all() and np.isfinite(inverse).all() and inverse.min() > 0 and weights.min() >= 0):
        raise UserError(f"{path}: has Gaussians that are not finite or have no variance; train the model again")
    offsets = np.concatenate([[0], np.cumsum([len(part[0]) for part in parts])])
    return Gmm(phones, tree, transitions, offsets, np.maximum(weights, 1e-30), scaled / inverse, 1.0 / inverse,
               features)
