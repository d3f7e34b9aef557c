"""Kaldi's basic types as they stand in files of models: tokens, numbers, vectors and matrices.

In a binary file (it begins with ``\\0B``) a token ends with a blank and a number follows a byte with its width (Kaldi's
base/io-funcs.cc, matrix/kaldi-matrix.cc).
"""
from __future__ import annotations

import struct
from typing import List, Sequence, Tuple

import numpy as np

_FLOATS = {"FV": "<f4", "DV": "<f8", "FM": "<f4", "DM": "<f8"}


class BinaryReader:
    """Reads the bytes of a binary file after its mark. ValueError, IndexError, KeyError or struct.error: broken."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 2

    def token(self) -> str:
        """The next token."""
        end = self._data.index(b" ", self._at, self._at + 40)
        token, self._at = self._data[self._at:end].decode("ascii"), end + 1
        return token

    def _number(self, kind: str, width: int = 4):
        if self._data[self._at] not in (width, 256 - width):
            raise ValueError(f"a number of {self._data[self._at]} bytes at byte {self._at}, not of {width}")
        value, = struct.unpack_from(kind, self._data, self._at + 1)
        self._at += 1 + width
        return value

    def integer(self) -> int:
        """A number of 32 bits."""
        return self._number("<i")

    def real(self) -> float:
        """A float32."""
        return self._number("<f")

    def double(self) -> float:
        """A float64."""
        return self._number("<d", 8)

    def boolean(self) -> bool:
        """A truth value, a letter."""
        self._at += 1
        return {b"T": True, b"F": False}[self._data[self._at - 1:self._at]]

    def line(self) -> str:
        """What is left of a line, without its end."""
        end = self._data.index(b"\n", self._at)
        text, self._at = self._data[self._at:end].decode("ascii"), end + 1
        return text

    def _array(self, kind: str, count: int) -> np.ndarray:
        if count < 0:  # for NumPy: all there is
            raise ValueError(f"a vector of {count} numbers")
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at += values.nbytes
        return values

    def integers(self) -> List[int]:
        """A vector of 32-bit integers."""
        return self._array("<i4", self.integer()).tolist()

    def pairs(self) -> List[Tuple[int, int]]:
        """A vector of pairs of 32-bit integers, whose number has a byte with its width, as that of integers has."""
        return [tuple(pair) for pair in self._array("<i4", 2 * self.integer()).reshape(-1, 2).tolist()]

    def vector(self) -> np.ndarray:
        """A float vector, float32 or float64 (n,)."""
        kind = self.token()
        if kind not in ("FV", "DV"):
            raise ValueError(f"{kind[:40]!r} where a vector should be")
        return self._array(_FLOATS[kind], self.integer())

    def matrix(self) -> np.ndarray:
        """A float matrix, float32 or float64 (rows, columns)."""
        kind = self.token()
        if kind not in ("FM", "DM"):
            raise ValueError(f"{kind[:40]!r} where a matrix should be")
        rows, columns = self.integer(), self.integer()
        if min(rows, columns) < 0:
            raise ValueError(f"a matrix of {rows} rows and {columns} columns")
        return self._array(_FLOATS[kind], rows * columns).reshape(rows, columns)


class TextReader:
    """The same of a text file."""

    def __init__(self, text: str):
        self._lines = text.replace("]", " ] ").replace("[", " [ ").split("\n")
        self._fields: List[str] = []
        self._line = 0

    def token(self) -> str:
        """The next token."""
        while not self._fields:
            if self._line == len(self._lines):
                raise ValueError("it ends too early")
            self._fields = self._lines[self._line].split()[::-1]
            self._line += 1
        return self._fields.pop()

    def integer(self) -> int:
        """A number of 32 bits."""
        value = int(self.token())
        if not -2 ** 31 <= value < 2 ** 31:
            raise ValueError(f"{value} is no number of 32 bits")
        return value

    def real(self) -> float:
        """A float."""
        return float(self.token())

    def integers(self) -> List[int]:
        """A vector of integers."""
        expect(self, "[")
        out: List[int] = []
        while True:
            field = self.token()
            if field == "]":
                return out
            self._fields.append(field)
            out.append(self.integer())

    def vector(self) -> np.ndarray:
        """A float vector, float64 (n,)."""
        expect(self, "[")
        return np.array([float(field) for field in iter(self.token, "]")])

    def matrix(self) -> np.ndarray:
        """A float matrix, float64 (rows, columns): a row per line."""
        expect(self, "[")
        rows: List[List[float]] = []
        while True:
            if self._fields:
                line, self._fields = self._fields[::-1], []
            else:
                self._fields = [self.token()]
                continue
            closed = "]" in line
            if closed:
                at = line.index("]")
                line, self._fields = line[:at], line[at + 1:][::-1]
            if line:
                rows.append([float(field) for field in line])
            if closed:
                if len({len(row) for row in rows}) > 1:
                    raise ValueError("a matrix whose rows differ in length")
                return np.array(rows)


def expect(reader, *tokens: str) -> str:
    """The next token, which must be one of those; else ValueError."""
    token = reader.token()
    if token not in tokens:
        raise ValueError(f"{token[:40]!r} where {' or '.join(tokens)} should be")
    return token


class ObjectWriter:
    """Collects the bytes of a binary file; every method returns the writer."""

    def __init__(self):
        self._parts: List[bytes] = [b"\0B"]

    def token(self, text: str) -> "ObjectWriter":
        """A token."""
        self._parts.append(text.encode("ascii") + b" ")
        return self

    def integer(self, value: int) -> "ObjectWriter":
        """A signed number of 32 bits."""
        self._parts.append(struct.pack("<bi", 4, value))
        return self

    def unsigned(self, value: int) -> "ObjectWriter":
        """An unsigned number of 32 bits, which Kaldi marks with a negative width."""
        self._parts.append(struct.pack("<bI", -4, value))
        return self

    def real(self, value: float) -> "ObjectWriter":
        """A float32."""
        self._parts.append(struct.pack("<bf", 4, value))
        return self

    def double(self, value: float) -> "ObjectWriter":
        """A float64."""
        self._parts.append(struct.pack("<bd", 8, value))
        return self

    def boolean(self, value: bool) -> "ObjectWriter":
        """A truth value."""
        self._parts.append(b"T" if value else b"F")
        return self

    def line(self, text: str) -> "ObjectWriter":
        """A line of text."""
        self._parts.append(text.encode("ascii") + b"\n")
        return self

    def integers(self, values: Sequence[int]) -> "ObjectWriter":
        """A vector of 32-bit integers."""
        self._parts.append(struct.pack("<bi", 4, len(values)) + np.asarray(values, dtype="<i4").tobytes())
        return self

    def pairs(self, values: Sequence[Tuple[int, int]]) -> "ObjectWriter":
        """A vector of pairs of 32-bit integers."""
        self._parts.append(struct.pack("<bi", 4, len(values)) + np.asarray(values, dtype="<i4").tobytes())
        return self

    def vector(self, values: np.ndarray) -> "ObjectWriter":
        """A float32 vector."""
        self._parts.append(b"FV " + struct.pack("<bi", 4, len(values)) + np.asarray(values, dtype="<f4").tobytes())
        return self

    def matrix(self, values: np.ndarray) -> "ObjectWriter":
        """A float32 matrix."""
        self._parts.append(b"FM " + struct.pack("<bibi", 4, values.shape[0], 4, values.shape[1])
                           + np.ascontiguousarray(values, dtype="<f4").tobytes())
        return self

    def data(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)
