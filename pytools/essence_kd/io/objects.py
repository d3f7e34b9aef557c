"""What one entry of an archive holds: float matrices and vectors and vectors of int32, binary, compressed or text.

A function here reads one object from a sources.Source or sources.Mapped that stands behind the utterance id. It raises
Truncated, UserError or ValueError; tables.read_table adds the file and the utterance.
"""
from __future__ import annotations

import functools
import os
import struct

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.sources import BLOCK, OpenFile, Source, Truncated
from essence_kd.io.specifiers import parse_span

_STORED = BLOCK  # bytes of a matrix that is worth leaving in its file
_KALDI_IO_LIMIT = 1 << 31  # bytes of a matrix; it counts them in 32 bits
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


@functools.lru_cache(maxsize=None)
def kaldi_io_module():
    """The module kaldi_io; its import changes PATH and complains about KALDI_ROOT, which is undone and avoided."""
    kept = {name: os.environ.get(name) for name in ("KALDI_ROOT", "PATH")}
    os.environ["KALDI_ROOT"] = "/"
    try:
        import kaldi_io
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return kaldi_io


def read_matrix(source: Source, stored: bool = False) -> np.ndarray | StoredMatrix:
    """One float matrix: binary FM, DM, CM, CM2, CM3, or text. With `stored`, a large FM of a file is left there."""
    if not _is_binary(source):
        rows = [_text_numbers(line, np.float32) for line in _text_object(source).split("\n") if line.strip()]
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different lengths")
        return np.vstack(rows) if rows else np.zeros((0, 0), np.float32)
    head = source.peek(15).tobytes()
    if head[2:4] == b"CM":
        source.skip(2)
        return _read_compressed(source)
    if head[2:3] == b"\4":
        raise ValueError("what lies there are posteriors or whole numbers")
    if head[2:5] not in (b"FM ", b"DM "):
        raise ValueError(f"its header is {head[2:5]!r}")
    if len(head) < 15:
        raise Truncated(f"{source.name}: ends in the middle")
    tag_rows, rows, tag_cols, cols = struct.unpack("<bibi", head[5:])
    width = 4 if head[2:3] == b"F" else 8
    size = rows * cols * width
    if (tag_rows, tag_cols) != (4, 4) or rows < 0 or cols < 0:
        raise ValueError("its header is damaged")
    if not source.holds(15 + size):
        raise Truncated(f"{source.name}: ends in the middle")
    place = source.pass_over(15 + size) if stored and width == 4 and size >= _STORED else None
    if place is not None:
        return StoredMatrix(place[0], place[1] + 15, (rows, cols), source.name)
    if size >= _KALDI_IO_LIMIT:
        source.skip(15)
        return source.read(size).view(np.float32 if width == 4 else np.float64).reshape(rows, cols)
    return kaldi_io_module().read_mat(source)


def _read_compressed(source: Source) -> np.ndarray:
    """A compressed matrix from its token on (Kaldi's CompressedMatrix: CM, CM2, CM3), as float32."""
    token = source.read(2) + source.read(1)
    if token != b"CM ":
        token += source.read(1)
    if token not in (b"CM ", b"CM2 ", b"CM3 "):
        raise ValueError(f"its header is {token!r}")
    least, span, rows, cols = struct.unpack("<ffii", source.read(16))
    if rows < 0 or cols < 0 or not np.isfinite((least, span)).all():
        raise ValueError("its header is damaged")
    least, span = np.float32(least), np.float32(span)
    size = rows * cols * (2 if token == b"CM2 " else 1) + (8 * cols if token == b"CM " else 0)
    if not source.holds(size):
        raise Truncated(f"{source.name}: ends in the middle")
    data = np.frombuffer(source.read(size), np.uint8)
    if token == b"CM2 ":
        step = np.float32(span * np.float32(1 / 65535.0))
        return (data.view("<u2").astype(np.float32) * step + least).reshape(rows, cols)
    if token == b"CM3 ":
        step = np.float32(span * np.float32(1 / 255.0))
        return (data.astype(np.float32) * step + least).reshape(rows, cols)
    heads = data[:8 * cols].view("<u2").reshape(cols, 4).astype(np.float32)
    p0, p25, p75, p100 = (heads * (span * np.float32(1.52590218966964e-05)) + least).T[..., None]  # each (cols, 1)
    code = np.arange(256, dtype=np.float32)
    table = np.where(code <= 64, p0 + (p25 - p0) * code * np.float32(1 / 64.0),
                     np.where(code <= 192, p25 + (p75 - p25) * (code - 64) * np.float32(1 / 128.0),
                              p75 + (p100 - p75) * (code - 192) * np.float32(1 / 63.0)))  # (cols, 256)
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
    if not source.holds(10 + count * (4 if head[2:3] == b"F" else 8)):
        raise Truncated(f"{source.name}: ends in the middle")
    return np.require(kaldi_io_module().read_vec_flt(source), requirements="W")


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


def _is_binary(source: Source) -> bool:
    return source.peek(2).tobytes() == b"\0B"


def _text_object(source: Source) -> str:
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
