"""Phonetic decision trees: which pdf-id an HMM state has in a context, and Kaldi's file of it (``tree``).

An event is a set of keys with values: key -1 is the HMM state of the central phone, keys 0 to N - 1 are the phone-ids
of a window of N phones (0: there is no phone), of which number P is the central one. The file is that of Kaldi's
ContextDependency and EventMap, binary or text (tree/context-dep.cc, tree/event-map.cc).
"""
from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from essence_kd.hmm.kaldi_objects import BinaryReader, ObjectWriter, TextReader, expect
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write

STATE = -1  # the key of the HMM state (Kaldi's kPdfClass)
MAX_DEPTH = 900  # of a tree that is read: Python's own limit is 1000


@dataclass
class Split:
    """A question: does the value of ``key`` lie in ``values`` (sorted)? ``yes`` and ``no`` are nodes."""

    key: int
    values: Tuple[int, ...]
    yes: "Node"
    no: "Node"


@dataclass
class Table:
    """A node by the value of ``key``: ``nodes[value]``, None where there is none."""

    key: int
    nodes: List[Optional["Node"]]


Node = Union[int, Split, Table]  # a number is a leaf: its pdf-id


@dataclass
class Tree:
    """A decision tree over windows of ``width`` phones whose number ``central`` is the one in question."""

    root: Node
    width: int = 3
    central: int = 1

    @property
    def num_pdfs(self) -> int:
        """The largest pdf-id + 1."""
        return max(leaves(self.root)) + 1

    def pdfs(self, windows: np.ndarray, states: np.ndarray) -> np.ndarray:
        """pdf-ids, int32 (n,), of phone windows, int (n, width), and HMM states, int (n,); -1 where there is none."""
        windows, states = np.asarray(windows), np.asarray(states)
        out = np.full(len(states), -1, dtype=np.int32)
        columns = {STATE: states, **{key: windows[:, key] for key in range(self.width)}}
        todo: List[Tuple[Node, np.ndarray]] = [(self.root, np.arange(len(states)))]
        while todo:
            node, rows = todo.pop()
            if not len(rows):
                continue
            if isinstance(node, Split):
                yes = np.isin(columns[node.key][rows], node.values)
                todo += [(node.yes, rows[yes]), (node.no, rows[~yes])]
            elif isinstance(node, Table):
                values = columns[node.key][rows]
                for value in np.unique(values).tolist():
                    if 0 <= value < len(node.nodes) and node.nodes[value] is not None:
                        todo.append((node.nodes[value], rows[values == value]))
            else:
                out[rows] = node
        return out


def leaves(node: Node) -> List[int]:
    """The pdf-ids below a node, in the order of Kaldi's file, some perhaps more than once."""
    out: List[int] = []
    todo: List[Optional[Node]] = [node]
    while todo:
        node = todo.pop()
        if isinstance(node, Split):
            todo += [node.no, node.yes]
        elif isinstance(node, Table):
            todo += reversed(node.nodes)
        elif node is not None:
            out.append(node)
    return out


def map_leaves(node: Node, new: Mapping[int, Node]) -> Node:
    """A copy in which each leaf that `new` names is what it names."""
    if isinstance(node, Split):
        return Split(node.key, node.values, map_leaves(node.yes, new), map_leaves(node.no, new))
    if isinstance(node, Table):
        return Table(node.key, [None if child is None else map_leaves(child, new) for child in node.nodes])
    return new.get(node, node)


def possible_pdfs(tree: Tree, phone: int, state: int) -> List[int]:
    """Every pdf-id, sorted, that a state of a phone may have in some context."""
    fixed, out = {STATE: state, tree.central: phone}, set()
    todo: List[Optional[Node]] = [tree.root]
    while todo:
        node = todo.pop()
        value = fixed.get(node.key) if isinstance(node, (Split, Table)) else None
        if isinstance(node, Split):
            todo += [node.yes, node.no] if value is None else [node.yes if value in node.values else node.no]
        elif isinstance(node, Table):
            todo += node.nodes if value is None else node.nodes[value:value + 1]
        elif node is not None:
            out.add(node)
    return sorted(out)


def monophone_tree(sets: List[List[int]], states: Dict[int, int]) -> Tree:
    """A tree without context: phones of a set share pdfs, one per HMM state.

    states: number of HMM states by phone-id. Pdf-ids ascend with sets and states, as Kaldi's
    MonophoneContextDependencyShared gives them.
    """
    highest = max(phone for line in sets for phone in line)
    nodes: List[Optional[Node]] = [None] * (highest + 1)
    at = 0
    for line in sets:
        size = max(states[phone] for phone in line)
        for phone in line:
            nodes[phone] = Table(STATE, list(range(at, at + states[phone])))
        at += size
    return Tree(Table(0, nodes), 1, 0)


# ------------------------------------------------------------------------------------------------------------- files

def write_tree(path: str | Path, tree: Tree) -> None:
    """Write Kaldi's binary file, whole or not at all."""
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(tree_bytes(tree))


def tree_bytes(tree: Tree) -> bytes:
    """What :func:`write_tree` writes."""
    out = ObjectWriter()
    out.token("ContextDependency").integer(tree.width).integer(tree.central).token("ToPdf")
    _write_node(out, tree.root)
    return out.token("EndContextDependency").data()


def _write_node(out: ObjectWriter, node: Optional[Node]) -> None:
    if node is None:
        out.token("NULL")
    elif isinstance(node, Split):
        out.token("SE").integer(node.key).integers(node.values).token("{")
        _write_node(out, node.yes)
        _write_node(out, node.no)
        out.token("}")
    elif isinstance(node, Table):
        out.token("TE").integer(node.key).unsigned(len(node.nodes)).token("(")
        for child in node.nodes:
            _write_node(out, child)
        out.token(")")
    else:
        out.token("CE").integer(node)


def read_tree(path: str | Path) -> Tree:
    """Read Kaldi's file ``tree``, binary or text; UserError where it is missing, cut off or something else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: this tree cannot be read") from None
    try:
        reader = BinaryReader(data) if data[:2] == b"\0B" else TextReader(data.decode("ascii"))
        expect(reader, "ContextDependency")
        width, central = reader.integer(), reader.integer()
        if not 0 <= central < width <= 100:
            raise ValueError(f"a window of {width} phones, the central one number {central}")
        expect(reader, "ToPdf")
        root = _read_node(reader, width, 0)
        expect(reader, "EndContextDependency")
        if root is None:
            raise ValueError("it is empty")
        return Tree(root, width, central)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: not a whole decision tree of Kaldi's ({error}); name the file tree of a GMM "
                        "directory") from None


def _read_node(reader, width: int, depth: int) -> Optional[Node]:
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} questions deep")
    kind = expect(reader, "CE", "SE", "TE", "NULL")
    if kind == "NULL":
        return None
    if kind == "CE":
        leaf = reader.integer()
        if leaf < 0:
            raise ValueError(f"pdf-id {leaf}")
        return leaf
    key = reader.integer()
    if not STATE <= key < width:
        raise ValueError(f"a question about position {key}")
    if kind == "SE":
        values = tuple(reader.integers())
        expect(reader, "{")
        yes, no = _read_node(reader, width, depth + 1), _read_node(reader, width, depth + 1)
        expect(reader, "}")
        if yes is None or no is None:
            raise ValueError("a question without an answer")
        return Split(key, values, yes, no)
    size = reader.integer()
    if size < 0:
        raise ValueError(f"a table of {size}")
    expect(reader, "(")
    nodes = []
    for _ in range(size):  # a list that grows: the size may promise more than the file holds
        nodes.append(_read_node(reader, width, depth + 1))
    expect(reader, ")")
    return Table(key, nodes)
