"""Kaldi's tables: archives and scp indexes read in order or by utterance, and written as a whole file or none.

Nothing but NumPy is imported, so that the decoders' environments can use it, too.
"""
from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import sys
from typing import Any, Callable, Iterator, TypeVar

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.objects import (INT_CELL, cut_matrix, cut_vector, matrix_shape, read_int_vector, read_matrix,
                                   read_vector)
from essence_kd.io.provenance import is_special, staging_path, writing_failed
from essence_kd.io.sources import BLOCK, Command, Maps, Source, guarded, open_object, open_source, read_key
from essence_kd.io.specifiers import Specifier, check_name, parse_rspecifier, parse_scp_line, parse_wspecifier, read_scp
from essence_kd.io.text import split


def read_table(rspecifier: str, read_object: Callable[[Source], Any], cut: Callable[[Any, str], Any],
               what: str) -> Iterator[tuple[str, Any]]:
    """Every (utterance, object) of a table, in its order; `read_object` reads one object from a Source.

    `cut(object, range)` applies the range of an scp line; `what` names the kind of object in messages. With the flag
    ``p`` (``scp,p:``) lines whose object cannot be read are left out with a warning each. Raises UserError for
    whatever cannot be read, a duplicate utterance, or a failing command.
    """
    spec = parse_rspecifier(rspecifier)
    seen: set = set()
    if spec.ark is not None:
        with open_source(spec.ark) as source:
            while True:
                try:
                    key = read_key(source)
                except UserError:
                    source.failed_command()
                    raise
                if key is None:
                    break
                if key in seen:
                    raise UserError(f"{source.name}: utterance {key} occurs twice")
                seen.add(key)
                yield key, guarded(read_object, source, key, what)
            source.finish()
        return
    maps = Maps()
    for number, key, file, span in read_scp(spec.scp):
        if key in seen:
            raise UserError(f"{spec.scp}: line {number}: utterance {key} occurs twice")
        seen.add(key)
        try:
            value = _read_line(file, span, maps, read_object, cut, key, what, spec.scp)
        except UserError as error:
            if "p" not in spec.flags:
                raise
            import logging

            logging.getLogger(__name__).warning("left out: %s", error)
            continue
        yield key, value


def _read_line(file: str, span: str | None, maps: Maps, read_object: Callable[[Any], Any],
               cut: Callable[[Any, str], Any], key: str, what: str, scp: str) -> Any:
    """The object of one line of an scp file."""
    with open_object(file, maps, key, scp) as source:
        value = guarded(read_object, source, key, what)
        if file.endswith("|") and source.at_end():
            source.finish()
    if span is not None:
        try:
            value = cut(value, span)
        except ValueError as error:
            raise UserError(f"{scp}: utterance {key}: {error}") from error
    return value


def read_matrices(rspecifier: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every (utterance, matrix) of a table (features, scores, logits): float32 or float64, (rows, columns).

    Raises UserError for what cannot be read.

    >>> from essence_kd import read_matrices
    >>> for utt, feats in read_matrices("scp:data/eval/feats.scp"):
    ...     print(utt, feats.shape, feats.dtype)
    utt1 (48, 8) float32
    utt2 (36, 8) float32
    """
    return read_table(rspecifier, read_matrix, cut_matrix, "matrix")


def read_vectors(rspecifier: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every (utterance, vector) of a table: float32 or float64, (n,). Raises UserError."""
    return read_table(rspecifier, read_vector, cut_vector, "vector")


def read_int_vectors(rspecifier: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every (utterance, vector) of a table of int32, such as an alignment. Raises UserError."""
    return read_table(rspecifier, read_int_vector, cut_vector, "vector of integers")


class ScpTable:
    """Random access to the objects of an scp file: ``table[utt]``, ``utt in table``, ``len(table)``, iteration.

    Archives are memory-mapped when first needed, so a table may be handed to worker processes (forked or pickled)
    and holds nothing but its index. Lines with commands or gzip files work too, decoded at each access.
    """

    what = "object"

    def __init__(self, scp: str):
        name = scp.removeprefix("scp:")
        if name.startswith(("ark:", "ark,")):
            raise UserError(f"'{scp}': random access needs an scp file "
                            f"(write the archive with ark,scp:FILE.ark,FILE.scp)")
        self.name = name
        self._lines: dict[str, tuple[str, str | None]] = {}
        for number, key, file, span in read_scp(name):
            if key in self._lines:
                raise UserError(f"{name}: line {number}: utterance {key} occurs twice")
            self._lines[key] = (file, span)
        self._maps = Maps()

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, utt: str) -> bool:
        return utt in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def keys(self) -> Iterator[str]:
        """The utterances, in the order of the scp file."""
        return iter(self._lines)

    def line(self, utt: str) -> tuple[str, str | None]:
        """The rxfilename and the range (or None) of an utterance. Raises UserError when it is not there."""
        try:
            return self._lines[utt]
        except KeyError:
            raise UserError(f"{self.name}: no utterance {utt}") from None

    _read: Callable[..., Any]  # of a source
    _cut: Callable[[Any, str], Any]  # of an object and a range

    def __getitem__(self, utt: str) -> Any:
        file, span = self.line(utt)
        return _read_line(file, span, self._maps, self._read, self._cut, utt, self.what, self.name)


class MatrixTable(ScpTable):
    """Random access to float matrices: ``table[utt]`` is (rows, columns), float32 or float64."""

    what = "matrix"
    _read = staticmethod(read_matrix)
    _cut = staticmethod(cut_matrix)


class MatrixPlaces:
    """Float matrices by what an scp line says of them (``feats.ark:17``, ``feats.ark:17[0:9]``, a command).

    For who keeps the lines himself; archives are memory-mapped as in an ScpTable. Raises UserError.
    """

    def __init__(self) -> None:
        self._maps = Maps()

    def read(self, utt: str, place: str) -> np.ndarray:
        """The matrix of an utterance: (rows, columns), float32 or float64."""
        _, file, span = parse_scp_line(f"{utt} {place}", place, 1)
        return _read_line(file, span, self._maps, read_matrix, cut_matrix, utt, "matrix", place)

    def shape(self, utt: str, place: str) -> tuple[int, int]:
        """(rows, columns) of the matrix of an utterance; of a binary one in a file, the header is read alone."""
        if place.endswith(("|", "]")):
            return self.read(utt, place).shape
        self._maps.used(1 << 16)  # what the system maps around a header
        with open_object(place, self._maps, utt, place) as source:
            return guarded(matrix_shape, source, utt, "matrix")


class VectorTable(ScpTable):
    """Random access to float vectors."""

    what = "vector"
    _read = staticmethod(read_vector)
    _cut = staticmethod(cut_vector)


class IntVectorTable(ScpTable):
    """Random access to vectors of int32, such as alignments."""

    what = "vector of integers"
    _read = staticmethod(read_int_vector)
    _cut = staticmethod(cut_vector)


_Writer = TypeVar("_Writer", bound="TableWriter")


class TableWriter:
    """Writes (utterance, object) pairs; a context manager.

    Files are written beside their place and renamed when the block ends well; when it raises, nothing is left. A
    subclass gives `encode(object) -> list of buffers` (what follows the utterance id and a blank).
    """

    def __init__(self, wspecifier: str | Specifier):
        spec = parse_wspecifier(wspecifier)
        if spec.scp is not None:
            check_name(os.path.abspath(spec.ark))
        self.text = "t" in spec.flags
        self.flush = "f" in spec.flags
        self._ark, self._scp = spec.ark, spec.scp
        self.count = 0
        self._seen: set = set()
        self._position = 0
        self._command: Command | None = None
        self._staged: list[tuple[str, str, Any]] = []  # (staging name, name, stream): the archive first, scp last
        self._stream = None
        self._index = None
        self._done = False
        try:
            if self._ark == "-":
                self._stream = sys.stdout.buffer
            elif self._ark.startswith("|"):
                self._command = Command(self._ark[1:], reading=False)
                self._stream = io.BufferedWriter(self._command.process.stdin, BLOCK)
            else:
                self._stream = self._open(self._ark)
            if self._scp is not None:
                self._index = self._open(self._scp)
        except BaseException:
            self.abort()
            raise

    def _open(self, path: str):
        special = is_special(path)
        if os.path.isdir(path):
            raise UserError(f"{path}: is a directory")
        staged = path if special else staging_path(path)
        try:
            stream: Any = open(staged, "wb", buffering=BLOCK)
        except OSError as error:
            raise writing_failed(path, error) from error
        if path.endswith(".gz") and not special:
            stream = _GzipFile(stream)
        self._staged.append(("" if special else staged, path, stream))
        return stream

    def __enter__(self: _Writer) -> _Writer:
        return self

    def __exit__(self, exc_type, exc, trace) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def encode(self, value: Any) -> list:
        """The bytes of one object, as buffers that are written one after the other."""
        raise NotImplementedError

    def write(self, utt: str, value: Any) -> None:
        """Writes one object. Raises UserError (and leaves nothing behind) when it cannot be written."""
        self.put(utt, self.encode(value))

    def put(self, utt: str, buffers: list) -> None:
        """Writes `utt`, a blank, and the buffers."""
        if split(utt) != [utt]:
            raise UserError(f"{self._ark}: '{utt}' cannot be an utterance id (it is empty or has blanks)")
        if utt in self._seen:
            raise UserError(f"{self._ark}: utterance {utt} is written twice")
        self._seen.add(utt)
        head = utt.encode("utf-8") + b" "
        try:
            self._stream.write(head)
            start = self._position + len(head)
            self._position = start
            for buffer in buffers:
                view = memoryview(buffer)
                self._stream.write(view)
                self._position += view.nbytes
            if self._index is not None:
                self._index.write(f"{utt} {os.path.abspath(self._ark)}:{start}\n".encode("utf-8"))
            if self.flush:
                self._stream.flush()
        except OSError as error:
            self._fail(error)
        self.count += 1

    def _fail(self, error: OSError) -> None:
        """Turns an error of the system into a message; the command's own failure when it is the cause."""
        command = self._command
        if command is not None:
            self._command = None
            self.abort()
            command.process.stdin.close()  # the file below the buffer: what is buffered has nobody to read it
            command.wait()
            raise UserError(f"'{command.command}' stopped reading its input ({error.strerror})") from error
        self.abort()
        if self._ark == "-":
            raise error
        raise writing_failed(self._ark, error) from error

    def close(self) -> None:
        """Finishes the files and gives them their names."""
        if self._done:
            return
        try:
            self._stream.flush()
            if self._command is not None:
                self._stream.close()
                command, self._command = self._command, None
                self._done = True
                command.wait()
                return
            for _, _, stream in self._staged:
                stream.close()
            if self._scp is not None and self._staged[1][0]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.realpath(self._scp))  # an older index must not be seen beside the new archive
            for staged, path, _ in self._staged:
                if staged:
                    os.replace(staged, os.path.realpath(path))
            self._done = True
        except OSError as error:
            self._fail(error)

    def abort(self) -> None:
        """Closes without finishing: temporary files are removed, a command behind a pipe is ended."""
        if self._done:
            return
        self._done = True
        if self._command is not None:
            self._command.kill()
        for staged, _, stream in self._staged:
            with contextlib.suppress(OSError):
                stream.close()
            if staged:
                with contextlib.suppress(OSError):
                    os.unlink(staged)


class _GzipFile(gzip.GzipFile):
    """gzip over an open stream, closing both; no name or time inside, so equal content gives equal bytes."""

    def __init__(self, stream):
        super().__init__(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0)
        self._under = stream

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._under.close()


def _floats(value: Any, dimensions: int) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != dimensions or array.dtype.kind not in "fiub":
        raise ValueError(f"a {dimensions}-dimensional array of numbers is wanted, not {array.dtype} {array.shape}")
    return np.ascontiguousarray(array, dtype="<f8" if array.dtype == np.float64 else "<f4")


def _text_row(row: np.ndarray) -> str:
    return ("%.7g " * len(row)) % tuple(row.tolist())


def _payload(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


class MatrixWriter(TableWriter):
    """Writes matrices (rows, columns): float64 as DM, everything else as float32 (FM)."""

    def encode(self, value: Any) -> list:
        array = _floats(value, 2)
        if self.text:
            rows = "".join("\n  " + _text_row(row) for row in array) if len(array) else " "
            return [f" [{rows}]\n".encode("ascii")]
        height, width = array.shape if array.size else (0, 0)
        token = b"FM " if array.dtype.itemsize == 4 else b"DM "
        return [b"\0B" + token + struct.pack("<bibi", 4, height, 4, width), _payload(array)]


class VectorWriter(TableWriter):
    """Writes vectors (n,): float64 as DV, everything else as float32 (FV)."""

    def encode(self, value: Any) -> list:
        array = _floats(value, 1)
        if self.text:
            return [f" [ {_text_row(array)}]\n".encode("ascii")]
        token = b"FV " if array.dtype.itemsize == 4 else b"DV "
        return [b"\0B" + token + struct.pack("<bi", 4, len(array)), _payload(array)]


class IntVectorWriter(TableWriter):
    """Writes vectors of int32 (n,), such as alignments."""

    def encode(self, value: Any) -> list:
        array = np.asarray(value)
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise ValueError(f"a vector of integers is wanted, not {array.dtype} {array.shape}")
        if array.size and not -2**31 <= int(array.min()) <= int(array.max()) < 2**31:
            raise ValueError("a number does not fit 32 bits")
        if self.text:
            return [(("%d " * len(array)) % tuple(array.tolist())).encode("ascii") + b"\n"]
        cells = np.empty(len(array) + 1, INT_CELL)
        cells["tag"] = 4
        cells["value"][0] = len(array)
        cells["value"][1:] = array
        return [b"\0B", _payload(cells)]
