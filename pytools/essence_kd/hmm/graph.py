"""Decoding graphs: one stored form for every decoder.

**graph.npz** (numpy only, ``allow_pickle=False``; A arcs, S states, U units, P phones) holds:

===============  ==================  =========================================================================
array            type, shape         meaning
===============  ==================  =========================================================================
``src``          int32 (A,)          state an arc leaves; arcs are sorted by ``src``, then ``ilabel``
``dst``          int32 (A,)          state an arc enters
``ilabel``       int32 (A,)          pdf-id + 1, or 0 = epsilon (consumes no frame); epsilons never form a cycle
``olabel``       int32 (A,)          word-id of words.txt, or 0 = no word
``weight``       float32 (A,)        cost (-log probability) of language model, lexicon and transitions, with the
                                     transition scales already applied
``unit``         int32 (A,)          which (phone, HMM state) the arc's frame belongs to: 1..U, or 0 on an epsilon arc
``begin``        uint8 (A,)          1 when the arc's frame is the first one of a phone, else 0
``final``        float32 (S,)        final cost, +inf where the state is not final
``unit_phone``   int32 (U+1,)        phone-id of a unit (index 0: 0)
``unit_state``   int32 (U+1,)        HMM state of a unit, 0-based (index 0: -1)
``unit_pdf``     int32 (U+1,)        pdf-id of a unit (index 0: -1); ``ilabel == unit_pdf[unit] + 1`` on every arc
``phones``       str (P,)            phone symbol by phone-id ("<eps>" at 0, disambiguation symbols included)
``phone_kind``   uint8 (P,)          0 nonword (optional silence, epsilon), 1 begin (_B), 2 end (_E), 3 internal (_I),
                                     4 singleton (_S): Kaldi's phones/word_boundary.txt
``words``        str (W,)            word by word-id ("<eps>" at 0)
``meta``         str ()              JSON: num_pdfs, frame_subsampling_factor, tree_hash, ...
===============  ==================  =========================================================================

The start state is 0 and every state lies on a path from start to a final state. Self-loops (``src == dst``) are
ordinary arcs. A frame's word follows from the phones: a word is one singleton, or begin, internals, end; the n-th such
group of a path is the n-th word label of that path, even though the label itself may lie on an earlier or later arc.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from essence_kd.io.errors import UserError

_ARC_FIELDS = {"src": np.int32, "dst": np.int32, "ilabel": np.int32, "olabel": np.int32, "weight": np.float32,
               "unit": np.int32, "begin": np.uint8}
_OTHER_FIELDS = {"final": np.float32, "unit_phone": np.int32, "unit_state": np.int32, "unit_pdf": np.int32,
                 "phone_kind": np.uint8}


@dataclass
class Graph:
    """A decoding graph over pdf-id + 1 (the module's docstring tells every field).

    ``num_pdfs`` etc. are in ``meta``: num_pdfs, frame_subsampling_factor, tree_hash.
    """

    src: np.ndarray
    dst: np.ndarray
    ilabel: np.ndarray
    olabel: np.ndarray
    weight: np.ndarray
    unit: np.ndarray
    begin: np.ndarray
    final: np.ndarray
    unit_phone: np.ndarray
    unit_state: np.ndarray
    unit_pdf: np.ndarray
    phones: np.ndarray
    phone_kind: np.ndarray
    words: np.ndarray
    meta: dict = field(default_factory=dict)

    @property
    def num_states(self) -> int:
        """How many states there are."""
        return len(self.final)

    @property
    def num_arcs(self) -> int:
        """How many arcs there are."""
        return len(self.src)

    @property
    def num_pdfs(self) -> int:
        """The width of score matrices that this graph decodes."""
        return int(self.meta["num_pdfs"])


def save_graph(path: str | Path, graph: Graph) -> None:
    """Write a graph as ``path`` (.npz), whole or not at all."""
    from essence_kd.io.provenance import atomic_write

    arrays = {name: np.ascontiguousarray(getattr(graph, name), dtype=dtype)
              for name, dtype in {**_ARC_FIELDS, **_OTHER_FIELDS}.items()}
    arrays["phones"] = np.asarray(graph.phones, dtype=np.str_)
    arrays["words"] = np.asarray(graph.words, dtype=np.str_)
    arrays["meta"] = np.asarray(json.dumps(graph.meta, sort_keys=True))
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)


def load_graph(path: str | Path) -> Graph:
    """Read what :func:`save_graph` wrote; UserError when the file is missing, truncated or something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(str(arrays.pop("meta")))
        return Graph(**arrays, meta=meta)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such graph; make it with 'essence make-graph'") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{path}: not a whole graph.npz ({error}); make it again with 'essence make-graph'") from None
