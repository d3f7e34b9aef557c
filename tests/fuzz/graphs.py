"""Transducers, transition models, alignments' companions, trees, GMMs, and the npz files of graphs."""
from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse.csgraph  # noqa: F401 - what graphs import, too

from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.hmm.fst import read_fst, write_fst
from essence_kd.hmm.gmm import load_gmm, save_gmm
from essence_kd.hmm.gmm_alignment import SubsampledCounts
from essence_kd.hmm.graph import load_graph, trim
from essence_kd.hmm.hclg import import_graph, read_factor
from essence_kd.hmm.kaldi_alignment import read_transitions
from essence_kd.hmm.transition_model import read_transition_model
from essence_kd.hmm.tree import read_tree, write_tree
from fuzz.driver import SEPARATOR, directory, file, folder, target


@target
def fst(data: bytes) -> None:
    """OpenFst's binary files, vector and const; what is written again is the same."""
    found = read_fst(file(data))
    assert -1 <= found.start < max(found.num_states, 0) or found.start == -1
    assert len(found.dst) == len(found.ilabel) == len(found.olabel) == len(found.weight) == found.num_arcs
    assert not found.num_arcs or (0 <= found.dst.min() and found.dst.max() < found.num_states)
    copy = os.path.join(folder(), "copy.fst")
    write_fst(copy, found)
    again = read_fst(copy)
    for name in ("src", "dst", "ilabel", "olabel", "weight", "final", "start"):
        assert np.array_equal(np.asarray(getattr(found, name)).view(), np.asarray(getattr(again, name)),
                              equal_nan=name in ("weight", "final")), name
    if found.start >= 0:
        trim(found)


@target
def transition_model(data: bytes) -> None:
    """What stands at the head of a final.mdl, binary or text."""
    found = read_transition_model(file(data))
    assert found.num_ids >= 1 and found.num_pdfs >= 1
    for column in (found.phone, found.state, found.pdf, found.loop):
        assert column.dtype == np.int32 and len(column) == found.num_ids + 1 and column[0] == -1
        assert (column[1:] >= 0).all()
    assert (found.loop[1:] <= 1).all()


@target
def kaldi_graph(data: bytes) -> None:
    """HCLG.fst, final.mdl, words.txt, phones.txt and the rate of a Kaldi recipe, as one graph."""
    here = Path(directory(data, ["HCLG.fst", "final.mdl", "words.txt", "phones.txt", "frame_subsampling_factor",
                                 "phones/word_boundary.int"], "kaldi"))
    read_factor(here / "final.mdl")
    found = import_graph(here / "HCLG.fst", here / "final.mdl", here / "words.txt")
    assert (found.ilabel <= found.num_pdfs).all() and (found.dst < found.num_states).all()


@target
def transitions(data: bytes) -> None:
    """What show-transitions printed."""
    rows = read_transitions(file(data))
    assert rows == sorted(set(rows)) and {pdf for pdf, _, _ in rows} == set(range(rows[-1][0] + 1))


@target
def priors(data: bytes) -> None:
    """priors.txt."""
    logs = read_log_priors(file(data))
    assert logs.ndim == 1 and np.isfinite(logs).all() and (logs <= 1e-12).all()


def _npz(data: bytes, names: list) -> str:
    """A file of arrays: zip as it is, else the input's parts are the members, in the order of the names."""
    if data[:2] == b"PK":
        return file(data, "input.npz")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, part in zip(names, data.split(SEPARATOR)):
            archive.writestr(zipfile.ZipInfo(name + ".npy"), part)
    return file(out.getvalue(), "input.npz")


@target
def graph(data: bytes) -> None:
    """graph.npz."""
    names = ["src", "dst", "ilabel", "olabel", "weight", "unit", "begin", "final", "unit_phone", "unit_state",
             "unit_pdf", "phones", "phone_kind", "words", "meta"]
    found = load_graph(_npz(data, names))
    assert found.num_pdfs > 0 and found.frame_shift_ms > 0
    arcs = {len(getattr(found, name)) for name in ("src", "dst", "ilabel", "olabel", "weight", "unit", "begin")}
    assert arcs == {found.num_arcs}
    for name, size in (("src", found.num_states), ("dst", found.num_states), ("ilabel", found.num_pdfs + 1),
                       ("olabel", len(found.words)), ("unit", len(found.unit_pdf))):
        column = getattr(found, name)
        assert column.ndim == 1 and (not len(column) or 0 <= column.min() and column.max() < size), name


@target
def decision_tree(data: bytes) -> None:
    """Kaldi's file tree, binary or text; what is written again is the same."""
    found = read_tree(file(data))
    copy = os.path.join(folder(), "copy.tree")
    write_tree(copy, found)
    assert read_tree(copy) == found
    windows = np.zeros((3, found.width), np.int32)
    assert found.pdfs(windows, np.arange(3)).max() < found.num_pdfs


@target
def gmm(data: bytes) -> None:
    """A GMM directory of Kaldi's."""
    here = directory(data, ["tree", "final.mdl", "phones.txt", "final.mat", "splice_opts", "cmvn_opts"], "gmm")
    model = load_gmm(here)
    assert model.num_pdfs > 0 and model.dim > 0 and model.means.shape == model.variances.shape
    assert np.isfinite(model.means).all() and (model.variances > 0).all()
    save_gmm(os.path.join(folder(), "gmm_copy"), model)
    again = load_gmm(os.path.join(folder(), "gmm_copy"))
    assert again.tree == model.tree and np.array_equal(again.transitions.tuples, model.transitions.tuples)


@target
def counts(data: bytes) -> None:
    """topology.npz of an alignment."""
    found = SubsampledCounts.load(_npz(data, ["factor", "enter", "leave", "stay"]))
    assert found.factor >= 1 and len(found.enter) == len(found.leave) == len(found.stay) and found.stay.ndim == 2
