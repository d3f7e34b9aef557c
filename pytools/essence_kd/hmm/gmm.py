"""GMM-HMMs: the model, its likelihoods, and its directory (docs/formats.md: gmm).

What trains it is in gmm_training, what aligns with it in gmm_alignment.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

from essence_kd.hmm.lang import Topology, format_topology, parse_topology
from essence_kd.hmm.npz import read_npz, write_npz
from essence_kd.io.provenance import sha256_file, write_sidecar, write_text


@dataclass
class TransitionTable:
    """What each of Kaldi's transition-ids means: arrays (I + 1,) of I ids, index 0 unused.

    phone, state: int32, phone-id and HMM state; self_loop: bool; begin: bool, the frame is the first of
    its phone; row: int32, number of the (phone, state) from 0, -1 at index 0.
    """

    phone: np.ndarray
    state: np.ndarray
    self_loop: np.ndarray
    begin: np.ndarray
    row: np.ndarray

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
        return cls(phone, state, loop, (state == 0) & ~loop & (row >= 0), row)


@dataclass
class Gmm:
    """A trained model. C pdfs, G Gaussians in all, of dimension D (features with deltas).

    tree: int32 (N, 3), rows (pdf-id, phone-id, HMM state) for every state of every phone, sorted; offsets: int64
    (C + 1,), pdf c owns the Gaussians offsets[c] to offsets[c + 1]; weights (G,), means, variances (G, D): float64;
    transitions: float64 (I + 1,), probability by transition-id (index 0 unused); phones: symbols by phone-id; topo: the
    topology of every phone-id; classes: phone-ids that share pdfs, a list each; meta: what gmm.json tells besides.
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
        params, const = natural_parameters(self.weights, self.means, self.variances)
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


def natural_parameters(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Parameters (G, 2 D) and constants (G,), float32, with log(w N(x)) = parameters @ [x, x * x] + constants."""
    inverse = 1.0 / variances
    const = np.log(weights) - 0.5 * (np.log(2 * math.pi * variances) + means * means * inverse).sum(axis=1)
    return np.hstack([means * inverse, -0.5 * inverse]).astype(np.float32), const.astype(np.float32)


def pdf_of_tid(model: Gmm) -> np.ndarray:
    """pdf-id by transition-id, int32 (I + 1,), -1 at index 0."""
    table = TransitionTable.of(model.topo)
    pdf_of = model.pdf_table()
    keys = zip(table.phone[1:].tolist(), table.state[1:].tolist())
    return np.array([-1] + [pdf_of[key] for key in keys], dtype=np.int32)


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
    return read_npz(path, ("phones", "topo", "tree", "offsets", "weights", "means", "variances", "transitions",
                           "classes", "meta"), "train the model with 'essence gmm-train'", lambda z: _gmm_of(z, path))


def _gmm_of(z: Dict[str, np.ndarray], path: Path) -> Gmm:
    """The model of such arrays. Raises ValueError and the like where they do not fit together."""
    model = Gmm([str(p) for p in z["phones"]], parse_topology(str(z["topo"]), str(path)), z["tree"], z["offsets"],
                z["weights"].astype(np.float64), z["means"].astype(np.float64), z["variances"].astype(np.float64),
                z["transitions"], json.loads(str(z["classes"])), json.loads(str(z["meta"])))
    count = len(model.weights)
    if not (model.tree.ndim == 2 and model.tree.shape[1] == 3 and model.tree.dtype.kind == "i" and len(model.tree)
            and 0 <= model.tree.min() and model.tree[:, 0].max() < model.num_pdfs and isinstance(model.meta, dict)
            and isinstance(model.classes, list)
            and model.offsets.ndim == model.weights.ndim == model.transitions.ndim == 1
            and model.offsets.dtype.kind == "i" and model.transitions.dtype.kind == "f"
            and model.means.shape == model.variances.shape == (count, model.dim) and model.dim > 0
            and model.offsets[0] == 0 and model.offsets[-1] == count and (np.diff(model.offsets) > 0).all()
            and np.isfinite(model.means).all() and (model.weights >= 0).all() and (model.variances > 0).all()
            and np.isfinite(model.variances).all() and np.isfinite(model.weights).all()):
        raise ValueError("its parts do not fit together")
    return model
