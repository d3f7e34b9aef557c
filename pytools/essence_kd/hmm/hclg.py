"""Any Kaldi HCLG.fst with its final.mdl as the graph that every decoder here reads (hmm.graph)."""
from __future__ import annotations

import time
from pathlib import Path
from typing import List, Tuple

import numpy as np

from essence_kd.hmm.fst import Fst, read_fst
from essence_kd.hmm.graph import Graph, trim
from essence_kd.hmm.lang import read_positions, read_symbols
from essence_kd.hmm.transition_model import TransitionModel, read_transition_model
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.provenance import sha256_file
from essence_kd.io.text import BLANKS, is_number, read_text


def read_factor(model: str | Path) -> int:
    """Feature frames per row of scores: the file frame_subsampling_factor beside a final.mdl (chain models), else 1."""
    path = Path(model).parent / "frame_subsampling_factor"
    if not path.exists():
        return 1
    text = read_text(path).strip(BLANKS)
    if not is_number(text) or int(text) < 1:
        raise UserError(f"{path}: '{text}' is no number of frames; give --frame-subsampling-factor")
    return int(text)


def read_phones(lang: str | Path) -> Tuple[List[str], np.ndarray]:
    """Symbols by phone-id and positions in the word (``phone_kind`` of hmm.graph, uint8) from phones.txt and
    phones/word_boundary.int of a lang or a Kaldi graph directory.

    Nothing, and positions of 0, where the files are not there: graphs do not need them, word times do.
    """
    lang = Path(lang)
    phones = read_symbols(lang / "phones.txt") if (lang / "phones.txt").exists() else []
    return phones, read_positions(lang, len(phones))


def _check(fst: Fst, hclg: str | Path, model: TransitionModel, mdl: str | Path, words: List[str],
           words_txt: str | Path) -> None:
    if fst.start < 0 or not fst.num_arcs:
        raise UserError(f"{hclg}: the graph is empty; make it again with Kaldi's utils/mkgraph.sh")
    if int(min(fst.ilabel.min(), fst.olabel.min())) < 0:
        raise UserError(f"{hclg}: an arc has a negative label; make the graph again with Kaldi's utils/mkgraph.sh")
    if int(fst.ilabel.max()) > model.num_ids:
        raise UserError(f"{hclg}: transition-id {int(fst.ilabel.max())} is on an arc, but {mdl} has {model.num_ids}: "
                        "the graph was made with another model")
    nameless = [w for w in np.unique(fst.olabel).tolist() if w >= len(words) or not words[w]]
    if nameless:
        raise UserError(f"{hclg}: word-id {nameless[-1]} is on an arc, but not in {words_txt}; name the words.txt "
                        "that lies beside the graph")


def _refuse_epsilon_cycles(fst: Fst, hclg: str | Path) -> None:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    free = fst.ilabel == 0
    src, dst = fst.src[free], fst.dst[free]
    links = csr_matrix((np.ones(len(src), np.int8), (src, dst)), shape=(fst.num_states, fst.num_states))
    count, _ = connected_components(links, directed=True, connection="strong")
    if count < fst.num_states or (src == dst).any():
        raise UserError(f"{hclg}: arcs without input labels form a cycle, which cannot be decoded; its grammar lets a "
                        "path go on for ever without a word")


def import_graph(hclg: str | Path, mdl: str | Path, words_txt: str | Path, *, lang: str | Path | None = None,
                 factor: int | None = None, meta: dict | None = None) -> Graph:
    """A decoding graph over pdf-id + 1 from Kaldi's HCLG.fst (vector or const) over transition-ids.

    Args:
      mdl: a final.mdl with the transition model that HCLG.fst was made with.
      lang: where phones.txt and phones/word_boundary.int are; None: beside HCLG.fst, where mkgraph.sh puts them.
      factor: feature frames of 10 ms per row that the graph expects; None: what stands beside final.mdl, else 1.
      meta: more entries of the graph's ``meta``, e.g. tree_hash.

    Costs are HCLG's own. Raises UserError for files that are broken or do not belong together.
    """
    started = time.monotonic()
    fst, model, words = read_fst(hclg), read_transition_model(mdl), read_symbols(words_txt)
    _check(fst, hclg, model, mdl, words, words_txt)
    fst = trim(fst)
    if not fst.num_arcs:
        raise UserError(f"{hclg}: no path leads to a final state; make it again with Kaldi's utils/mkgraph.sh")
    _refuse_epsilon_cycles(fst, hclg)
    factor = read_factor(mdl) if factor is None else factor
    phones, kind = read_phones(Path(hclg).parent if lang is None else lang)
    if phones and int(model.phone.max()) >= len(phones):
        raise UserError(f"{mdl}: has phone-id {int(model.phone.max())}, but phones.txt ends at {len(phones) - 1}; "
                        "name the lang directory of the model with --lang")

    columns = np.stack([model.phone, model.state, model.pdf], axis=1)
    units, unit_of = np.unique(columns[1:], axis=0, return_inverse=True)
    unit_of = np.append(0, unit_of.ravel() + 1)  # by transition-id
    # mkgraph.sh puts a state's transition onwards before its self-loops: a phone begins where its state 0 is left
    begins = (model.state == 0) & (model.loop == 0)
    label = np.where(fst.ilabel > 0, model.pdf[fst.ilabel] + 1, 0)
    order = np.lexsort((fst.olabel, label, fst.src))
    tid, label = fst.ilabel[order], label[order].astype(np.int32)
    named = np.array([p or str(i) for i, p in enumerate(phones or [""] * (int(model.phone.max()) + 1))], dtype=np.str_)
    return Graph(fst.src[order], fst.dst[order], label, fst.olabel[order], fst.weight[order],
                 unit_of[tid].astype(np.int32), (begins[tid] & (tid > 0)).astype(np.uint8), fst.final,
                 np.append(0, units[:, 0]).astype(np.int32), np.append(-1, units[:, 1]).astype(np.int32),
                 np.append(-1, units[:, 2]).astype(np.int32), named,
                 kind if phones else np.zeros(len(named), np.uint8), np.array(words, dtype=np.str_),
                 {**(meta or {}), "num_pdfs": model.num_pdfs, "frame_subsampling_factor": factor,
                  "frame_shift_ms": round(FRAME_SHIFT_MS * factor), "transitions": "HCLG", "hclg": str(hclg),
                  "hclg_sha256": sha256_file(hclg), "model": str(mdl),
                  "word_times": "phones" if kind.any() else "labels",
                  "num_states": fst.num_states, "num_arcs": fst.num_arcs,
                  "num_self_loops": int(((fst.src == fst.dst) & (fst.ilabel > 0)).sum()),
                  "num_epsilons": int((fst.ilabel == 0).sum()), "seconds": round(time.monotonic() - started, 1)})
