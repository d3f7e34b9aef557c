"""What one entry of an archive holds: float matrices and vectors and vectors of int32, binary, compressed or text.

A function here reads one object from a sources.Source or sources.Mapped that stands behind the utterance id. It raises
Truncated, UserError or ValueError; tables.read_table adds the file and the utterance.
"""
from __future__ import annotations

import os
import struct

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.sources import BLOCK, Mapped, OpenFile, Source, Truncated
from essence_kd.io.specifiers import parse_span

_STORED = BLOCK  # bytes of a matrix that is worth leaving in its file
INT_CELL = np.dtype([("tag", "i1"), ("value", "<i4")])


class StoredMatrix:
    """A float32 matrix (rows, columns) that still lies in a regular file; ``matrix[a:b]`` reads rows.

    `fd` and `offset` (of its first byte) are for those who read it themselves; `name` is the file's.
    """

    ndim = 2

    def __init__(self, file: OpenFile, offset: int, shape: tuple[int, int], name: str):
        self._file, self.fd, self.offset, self.shape, self.name = file, file.fd, offset, shape, name

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows of a slice with step 1: float32 (n, columns), read-only. Raises Truncated, UserError."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("only slices with step 1")
        parts, at, left = [], self.offset + 4 * start * self.shape[1], 4 * max(0, stop - start) * self.shape[1]
        while left:
            try:
                parts.append(os.pread(self.fd, left, at))
            except OSError as error:
                raise UserError(f"{self.name}: cannot be read: {error.strerror}") from error
            if not parts[-1]:
                raise Truncated(f"{self.name}: became shorter while it was read")
            at, left = at + len(parts[-1]), left - len(parts[-1])
        return np.frombuffer(b"".join(parts), np.float32).reshape(max(0, stop - start), self.shape[1])


def read_matrix(source: Source | Mapped, stored: bool = False) -> np.ndarray | StoredMatrix:
    """One float matrix, (rows, columns): binary FM, DM (float64), CM, CM2, CM3, or text, which are all float32.

    Every float matrix of the package is read here. With `stored`, a large FM of a file is left there.
    """
    if not _is_binary(source):
        lines = [_text_numbers(line, np.float32) for line in _text_object(source).split("\n") if line.strip()]
        if len({len(line) for line in lines}) > 1:
            raise ValueError("rows of different lengths")
        return np.vstack(lines) if lines else np.zeros((0, 0), np.float32)
    token, rows, cols, least, span = _matrix_header(source)
    if token.startswith(b"C"):
        return _uncompressed(source, token, rows, cols, np.float32(least), np.float32(span))
    width = 4 if token == b"FM " else 8
    size = rows * cols * width
    if not source.holds(size):
        raise Truncated(f"{source.name}: ends in the middle")
    place = source.pass_over(size) if stored and width == 4 and size >= _STORED else None
    if place is not None:
        return StoredMatrix(*place, (rows, cols), source.name)
    return _numbers(source, rows * cols, f"<f{width}").reshape(rows, cols)


def matrix_shape(source: Source | Mapped) -> tuple[int, int]:
    """(rows, columns) of the float matrix ahead; of a binary one no more is read than its header."""
    return _matrix_header(source)[1:3] if _is_binary(source) else read_matrix(source).shape


def _matrix_header(source: Source | Mapped) -> tuple[bytes, int, int, float, float]:
    """(token, rows, columns, least value, range of values) of a binary matrix; the last two are of compressed ones."""
    head = source.peek(15).tobytes()
    if head[2:4] == b"CM":
        start = 5 if head[4:5] == b" " else 6
        token, size = head[2:start], start + 16
        if len(token) == start - 2 and token not in (b"CM ", b"CM2 ", b"CM3 "):
            raise ValueError(f"its header is {token!r}")
    else:
        token, size = head[2:5], 15
        if token[:1] == b"\4":
            raise ValueError("what lies there are posteriors or whole numbers")
        if token not in (b"FM ", b"DM "):
            raise ValueError(f"its header is {token!r}")
    head = source.peek(size).tobytes()
    if len(head) < size:
        raise Truncated(f"{source.name}: ends in the middle")
    least = span = 0.0
    if token.startswith(b"C"):
        least, span, rows, cols = struct.unpack("<ffii", head[-16:])
        damaged = not np.isfinite((least, span)).all()
    else:
        tag_rows, rows, tag_cols, cols = struct.unpack("<bibi", head[5:])
        damaged = (tag_rows, tag_cols) != (4, 4)
    if damaged or rows < 0 or cols < 0:
        raise ValueError("its header is damaged")
    source.skip(size)
    return token, rows, cols, least, span


def _numbers(source: Source | Mapped, count: int, dtype: str) -> np.ndarray:
    """The next `count` numbers, in an array that can be written to."""
    data = np.frombuffer(source.read(count * np.dtype(dtype).itemsize), dtype)
    return data if data.flags.writeable else data.copy()


def _uncompressed(source: Source | Mapped, token: bytes, rows: int, cols: int, least: np.float32,
                  span: np.float32) -> np.ndarray:
    """What follows the header of Kaldi's CompressedMatrix, as float32; every number is the one that Kaldi has."""
    size = rows * cols * (2 if token == b"CM2 " else 1) + (8 * cols if token == b"CM " else 0)
    if not source.holds(size):
        raise Truncated(f"{source.name}: ends in the middle")
    data = np.frombuffer(source.read(size), np.uint8)
    if token != b"CM ":
        codes, most = (data.view("<u2"), 65535.0) if token == b"CM2 " else (data, 255.0)
        step = np.float32(float(span) * (1 / most))
        return (codes.astype(np.float32) * step + least).reshape(rows, cols)
    heads = data[:8 * cols].view("<u2").reshape(cols, 4).astype(np.float32)
    p0, p25, p75, p100 = (heads * (span * np.float32(1.52590218966964e-05)) + least).T[..., None]  # each (cols, 1)
    code = np.arange(129, dtype=np.float32)
    table = np.concatenate([p0 + (p25 - p0) * code[:65] * np.float32(1 / 64),
                            p25 + (p75 - p25) * code[1:] * np.float32(1 / 128),
                            (p75 + ((p100 - p75) * code[1:64]).astype(np.float64) * (1 / 63)).astype(np.float32)],
                           axis=1)
    codes = data[8 * cols:].reshape(cols, rows)
    return np.ascontiguousarray(np.take_along_axis(table, codes.astype(np.intp), axis=1).T)


def read_vector(source: Source) -> np.ndarray:
    """One float vector: binary FV or DV, or text."""
    if not _is_binary(source):
        return _text_numbers(_text_object(source), np.float32)
    head = source.peek(10).tobytes()
    if head[2:5] not in (b"FV ", b"DV "):
        raise ValueError(f"its header is {head[2:5]!r}")
    if len(head) < 10:
        raise Truncated(f"{source.name}: ends in the middle")
    tag, count = struct.unpack("<bi", head[5:])
    if tag != 4 or count < 0:
        raise ValueError("its header is damaged")
    width = 4 if head[2:3] == b"F" else 8
    if not source.holds(10 + count * width):
        raise Truncated(f"{source.name}: ends in the middle")
    source.skip(10)
    return _numbers(source, count, f"<f{width}")


def read_int_vector(source: Source) -> np.ndarray:
    """One vector of int32: binary, or text with or without brackets."""
    if not _is_binary(source):
        line = source.readline()
        if not line.endswith(b"\n"):
            raise Truncated(f"{source.name}: ends in the middle")
        text = line.decode("ascii").strip()
        if text.startswith("[") and text.endswith("]"):
            text = text[1:-1]
        return int32_array([int(token) for token in text.split()])
    source.skip(2)
    head = source.read(5)
    if head[1:3] == b"M ":
        raise ValueError("what lies there is a matrix")
    tag, count = struct.unpack("<bi", head)
    if tag != 4 or count < 0:
        raise ValueError("its header is damaged")
    if not source.holds(5 * count):
        raise Truncated(f"{source.name}: ends in the middle")
    cells = np.frombuffer(source.read(5 * count), INT_CELL)
    if not (cells["tag"] == 4).all():
        raise ValueError("not a vector of 32-bit integers")
    return np.ascontiguousarray(cells["value"])


def int32_array(numbers: list) -> np.ndarray:
    """int32 from a list of int. Raises ValueError when one does not fit."""
    if numbers and not -2**31 <= min(numbers) <= max(numbers) < 2**31:
        raise ValueError("a number does not fit 32 bits")
    return np.array(numbers, dtype=np.int32)


def _is_binary(source: Source | Mapped) -> bool:
    return source.peek(2).tobytes() == b"\0B"


def _text_object(source: Source | Mapped) -> str:
    """The text up to the closing bracket, without brackets; the rest of the line is consumed."""
    count = source.find(b"]")
    if count < 0:
        raise Truncated(f"{source.name}: ends in the middle")
    text = source.peek(count).tobytes().decode("ascii")
    source.skip(count + 1)
    if source.readline().strip():
        raise ValueError("something follows the closing bracket")
    head, bracket, body = text.partition("[")
    if head.strip() or not bracket:
        raise ValueError("no opening bracket")
    return body


def _text_numbers(text: str, dtype) -> np.ndarray:
    return np.array(text.split(), dtype=dtype)


def cut_matrix(matrix: np.ndarray, span: str) -> np.ndarray:
    """The rows and columns of a range ``a:b`` or ``a:b,c:d`` of an scp line (ends inclusive). Raises ValueError."""
    rows, _, cols = span.partition(",")
    return np.ascontiguousarray(matrix[parse_span(rows, matrix.shape[0], "rows"),
                                       parse_span(cols, matrix.shape[1], "columns")])


def cut_vector(vector: np.ndarray, span: str) -> np.ndarray:
    """The elements of a range ``a:b`` of an scp line (both ends inclusive). Raises ValueError."""
    return vector[parse_span(span, len(vector), "elements")].copy()
