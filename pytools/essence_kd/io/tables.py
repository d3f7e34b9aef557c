"""Kaldi's tables: rspecifiers and wspecifiers, archives and scp indexes, files, pipes, gzip, text and binary.

Binary matrices and float vectors are decoded by kaldi-io, which this module feeds from a guarded stream: sizes are
checked against what the file can still hold before anything is allocated. The rest is done here: specifiers, pipes
(a failing command is an error with its exit status and its stderr), duplicate keys, ranges, compressed matrices,
text, random access, and writers that leave either a whole file or none.

Nothing but NumPy and kaldi-io is imported, so the decoders' environments can use it too; what only some inputs need is
imported for them, so that a verb starts sooner.
"""
from __future__ import annotations

import contextlib
import fcntl
import functools
import gzip
import io
import mmap
import os
import re
import signal
import stat
import struct
import sys
import threading
import zlib
from collections import deque
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import is_special, staging_path, writing_failed

BLOCK = 1 << 20  # bytes read from a file at a time
_LONGEST_KEY = 4096  # bytes; a longer "key" is not a key
_USUAL_KEY = re.compile(rb"([!-~]+) ")
_SCP_BLOCK = 1 << 18  # bytes of an scp file taken at a time
_STORED = BLOCK  # bytes of a matrix that is worth leaving in its file
_BLIND = 16 * BLOCK  # bytes; the largest size that is believed before it is known how much will come
_KALDI_IO_LIMIT = 1 << 31  # bytes of a matrix; it counts them in 32 bits
_RANGE_TOLERANCE = 3  # rows a range may reach past the end, as in Kaldi
_READ_FLAGS = {"b", "t", "o", "no", "p", "np", "s", "ns", "cs", "ncs", "bg"}
_WRITE_FLAGS = {"b", "t", "f", "nf", "p"}


@functools.lru_cache(maxsize=None)
def _kaldi_io():
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


def _warn(message: str, *arguments: Any) -> None:
    import logging

    logging.getLogger(__name__).warning(message, *arguments)


# ---------------------------------------------------------------------------------------------------- specifiers

class Specifier(NamedTuple):
    """A parsed rspecifier or wspecifier: archive and/or scp file name, and the flags between the commas."""

    ark: str | None
    scp: str | None
    flags: frozenset


def parse_rspecifier(rspecifier: str) -> Specifier:
    """Takes ``ark:...`` or ``scp:...`` apart. Raises UserError for anything else."""
    head, colon, name = rspecifier.partition(":")
    kinds = head.split(",")
    flags = frozenset(k for k in kinds if k not in ("ark", "scp"))
    found = [k for k in kinds if k in ("ark", "scp")]
    if not colon or len(found) != 1 or flags - _READ_FLAGS:
        hint = " (what is compact is known by itself: leave out compact:)" if head == "compact" else ""
        raise UserError(f"'{rspecifier}': not a table to read; write ark:FILE, scp:FILE or 'ark:COMMAND |'{hint}")
    name = name.strip()
    return Specifier(name, None, flags) if found[0] == "ark" else Specifier(None, name, flags)


def parse_wspecifier(wspecifier: str) -> Specifier:
    """Takes ``ark:...`` or ``ark,scp:A,S`` apart. Raises UserError for anything else."""
    head, colon, name = wspecifier.partition(":")
    kinds = head.split(",")
    flags = frozenset(k for k in kinds if k not in ("ark", "scp"))
    found = [k for k in kinds if k in ("ark", "scp")]
    name = name.strip()
    if colon and name and not flags - _WRITE_FLAGS:
        if found == ["ark"]:
            return Specifier(name, None, flags)
        if found == ["ark", "scp"]:
            ark, comma, scp = name.partition(",")
            ark, scp = ark.strip(), scp.strip()
            if comma and ark and scp:
                if ark == "-" or ark.startswith("|") or ark.endswith(".gz"):
                    raise UserError(f"'{wspecifier}': an scp can only index a plain file, not a pipe or gzip")
                return Specifier(ark, scp, flags)
    raise UserError(f"'{wspecifier}': not a table to write; write ark:FILE, ark,t:FILE, ark,scp:FILE.ark,FILE.scp, "
                    f"ark:- or 'ark:| COMMAND'")


# -------------------------------------------------------------------------------------------------------- inputs

class _Command:
    """A shell command on the other end of a pipe; its stderr goes on to ours and its last lines are kept."""

    def __init__(self, command: str, reading: bool):
        import shutil
        import subprocess

        self.command = command.strip()
        shell = shutil.which("bash")
        argv = [shell, "-o", "pipefail", "-c", self.command] if shell else ["/bin/sh", "-c", self.command]
        self.process = subprocess.Popen(argv, stdin=None if reading else subprocess.PIPE,
                                        stdout=subprocess.PIPE if reading else None, stderr=subprocess.PIPE, bufsize=0,
                                        start_new_session=True)
        self._tail: deque = deque(maxlen=8)
        pipe = self.process.stdout if reading else self.process.stdin
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(pipe.fileno(), getattr(fcntl, "F_SETPIPE_SZ", 1031), BLOCK)  # fewer, larger reads (Linux)
        self._relay = threading.Thread(target=self._relay_stderr, daemon=True)
        self._relay.start()

    def _relay_stderr(self) -> None:
        with io.BufferedReader(self.process.stderr) as stream:
            for line in stream:
                text = line.decode("utf-8", "replace")
                self._tail.append(text.rstrip())
                sys.stderr.write(text)

    def wait(self) -> None:
        """Waits for the command; raises UserError with its exit status and stderr when it failed."""
        status = self.process.wait()
        self._relay.join()
        if status not in (0, 128 + signal.SIGPIPE, -signal.SIGPIPE):  # an early end of a reader (head) is no failure
            how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
            said = "; ".join(line for line in self._tail if line) or "nothing on stderr"
            raise UserError(f"'{self.command}' failed with {how}: {said}")

    def kill(self) -> None:
        """Ends the command and all it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGTERM)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.wait()
        self._relay.join()


class Truncated(UserError):
    """The input ended inside an object."""


class _Descriptor:
    """An open file, closed with the last object that uses it."""

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class StoredMatrix:
    """A float32 matrix (rows, columns) that still lies in a regular file; ``matrix[a:b]`` reads rows.

    `fd` and `offset` (of its first byte) are for those who read it themselves; `name` is the file's.
    """

    ndim = 2

    def __init__(self, file: _Descriptor, offset: int, shape: tuple[int, int], name: str):
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


class Source:
    """A binary input with look-ahead, read forwards: a file, a pipe, gzip, or stdin.

    Attributes: `name` (for messages), `mode` (kaldi-io asks for it). Reads are exact: what is not there raises
    Truncated, and a size that the file cannot hold is refused before memory is asked for.
    """

    mode = "rb"

    def __init__(self, raw, name: str, *, command: _Command | None = None, close: bool = True):
        self.name = name
        self._raw, self._command, self._close = raw, command, close
        self._readinto = getattr(raw, "readinto1", raw.readinto)
        self._buffer = np.empty(BLOCK, np.uint8)
        self._low = self._high = 0  # what is buffered
        self._ended = False
        self._left = None  # bytes of a regular file that are not buffered yet
        self._file: _Descriptor | None = None
        if isinstance(raw, io.FileIO):
            status = os.fstat(raw.fileno())
            if stat.S_ISREG(status.st_mode):
                self._left = max(0, status.st_size - raw.tell())

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _fetch(self, view: memoryview) -> int:
        """Fills the front of `view`; the number of bytes, 0 at the end."""
        try:
            count = self._readinto(view)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.name}: damaged gzip file ({error})") from error
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        if self._left is not None:
            self._left = max(0, self._left - count)
        return count

    def _grow(self, wanted: int) -> None:
        """Buffers `wanted` bytes or all there are. The buffer grows only with what arrives."""
        while self._high - self._low < wanted and not self._ended:
            have = self._high - self._low
            if self._low + wanted > len(self._buffer):
                size = len(self._buffer)
                reachable = wanted if self._left is None else min(wanted, have + self._left)
                while size < reachable and (self._left is not None or size < 2 * have):
                    size *= 2
                fresh = self._buffer if size == len(self._buffer) else np.empty(size, np.uint8)
                fresh[:have] = self._buffer[self._low:self._high].copy()
                self._buffer, self._low, self._high = fresh, 0, have
            if self._high == len(self._buffer):
                if self._low:
                    self._buffer[:have] = self._buffer[self._low:self._high].copy()
                    self._low, self._high = 0, have
                else:
                    self._buffer = np.concatenate([self._buffer, np.empty(len(self._buffer), np.uint8)])
            count = self._fetch(memoryview(self._buffer)[self._high:])
            self._ended = count == 0
            self._high += count

    def peek(self, count: int, least: int | None = None) -> np.ndarray:
        """The next `count` bytes (uint8), fewer at the end; valid until the next call; nothing is consumed.

        With `least`, a pipe is not waited for once that many are there.
        """
        if self._high - self._low < (count if least is None else least):
            self._grow(count if least is None else least)
        return self._buffer[self._low:min(self._low + count, self._high)]

    def skip(self, count: int) -> None:
        """Consumes `count` bytes that `peek` has shown."""
        self._low += count

    def pass_over(self, count: int) -> tuple[_Descriptor, int] | None:
        """Consumes `count` bytes of a regular file unread: the file and where they begin. None for other inputs."""
        if self._left is None:
            return None
        if self._file is None:
            self._file = _Descriptor(os.dup(self._raw.fileno()))
        buffered = self._high - self._low
        start = self._raw.tell() - buffered
        if count <= buffered:
            self._low += count
        else:
            self._raw.seek(start + count)
            self._left -= count - buffered
            self._low = self._high = 0
            self._buffer = self._buffer[:2 * _LONGEST_KEY]  # what follows may be passed over, too
        return self._file, start

    def read(self, count: int):
        """Exactly `count` bytes: bytes when few, a fresh uint8 array when many. Raises Truncated."""
        count = int(count)
        if count < 0:
            raise UserError(f"{self.name}: a negative size")
        if count <= 64:
            data = self.peek(count).tobytes()
            if len(data) < count:
                raise Truncated(f"{self.name}: ends in the middle")
            self._low += count
            return data
        have = min(count, self._high - self._low)
        if self._left is not None:
            if count > self._high - self._low + self._left:
                raise Truncated(f"{self.name}: ends in the middle")
        elif count > _BLIND:  # how much will come is unknown: memory grows with what has come
            data = self.peek(count)
            if len(data) < count:
                raise Truncated(f"{self.name}: ends in the middle")
            self._low += count
            return data.copy()
        out = np.empty(count, np.uint8)
        out[:have] = self._buffer[self._low:self._low + have]
        self._low += have
        view = memoryview(out)
        while have < count:
            got = self._fetch(view[have:])
            if got == 0:
                self._ended = True
                raise Truncated(f"{self.name}: ends in the middle")
            have += got
        return out

    def find(self, wanted: bytes) -> int:
        """How many bytes come before the next occurrence of the byte `wanted`; -1 when none comes."""
        size, start = 1 << 12, 0
        while True:
            data = self.peek(size)
            hits = np.flatnonzero(data[start:] == wanted[0])
            if len(hits):
                return start + int(hits[0])
            if len(data) < size:
                return -1
            start, size = size, 4 * size

    def readline(self) -> bytes:
        """The rest of the line with its newline; without one at the end of the input."""
        count = self.find(b"\n") + 1
        data = self.peek(count).tobytes() if count else self.peek(self._everything()).tobytes()
        self._low += len(data)
        return data

    def _everything(self) -> int:
        while not self._ended:
            self._grow(self._high - self._low + BLOCK)
        return self._high - self._low

    def at_end(self) -> bool:
        """True when nothing is left."""
        return len(self.peek(1)) == 0

    def holds(self, count: int) -> bool:
        """False when it is certain that fewer than `count` bytes are left."""
        return self._left is None or count <= self._high - self._low + self._left

    def finish(self) -> None:
        """Waits for the command behind a pipe; raises UserError when it failed."""
        if self._command is not None:
            command, self._command = self._command, None
            command.wait()

    def failed_command(self) -> None:
        """After an unreadable object at the end of a pipe: if the command failed, that is the cause, and is raised."""
        if self._ended:
            self.finish()

    def close(self) -> None:
        """Closes the input; a command that still runs is ended."""
        if self._command is not None:
            self._command.kill()
            self._command = None
        if self._close:
            self._raw.close()


def _split_offset(name: str) -> tuple[str, int | None]:
    """``file.ark:123`` -> ("file.ark", 123); ``file.ark`` -> ("file.ark", None)."""
    found = re.match(r"(.+):(\d{1,19})$", name, re.S)
    return (found.group(1), int(found.group(2))) if found else (name, None)


def open_source(rxfilename: str) -> Source:
    """Opens a file, ``file:offset``, ``file.gz``, ``-`` (stdin) or ``command |``. Raises UserError."""
    if rxfilename in ("", "-"):
        return Source(sys.stdin.buffer, "stdin", close=False)
    if rxfilename.endswith("|"):
        command = _Command(rxfilename[:-1], reading=True)
        return Source(command.process.stdout, f"'{command.command}'", command=command)
    path, offset = _split_offset(rxfilename)
    try:
        if path.endswith(".gz"):
            if offset is not None:
                raise UserError(f"{rxfilename}: an offset into a gzip file; write '{rxfilename.partition(':')[0]}'")
            return Source(gzip.open(path, "rb"), path)
        raw = open(path, "rb", buffering=0)
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a directory") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if offset is not None:
        raw.seek(offset)
    return Source(raw, path)


class Maps:
    """Memory-mapped files by name, let go of after every 64 MiB read: what is mapped counts as the process's memory.

    Pickled and forked copies start empty or share nothing but pages.
    """

    def __init__(self) -> None:
        self._maps: dict[str, np.ndarray] = {}
        self._files: dict[str, _Descriptor] = {}
        self._used = 0

    def __getstate__(self) -> dict:
        return {"_maps": {}, "_files": {}, "_used": 0}

    def pass_over(self, path: str, count: int) -> _Descriptor:
        """A mapped file, open, of which `count` bytes are not read. Raises OSError."""
        self._used -= count
        self._maps.pop(path, None)  # the system may have mapped megabytes around what was read
        if path not in self._files:
            if len(self._files) >= 256:
                self._files.clear()
            self._files[path] = _Descriptor(os.open(path, os.O_RDONLY))
        return self._files[path]

    def open(self, path: str) -> np.ndarray:
        """The bytes of a file, read-only. Raises UserError."""
        data = self._maps.get(path)
        if data is None:
            try:
                with open(path, "rb") as stream:
                    empty = os.fstat(stream.fileno()).st_size == 0
                    data = np.frombuffer(b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ),
                                         np.uint8)
            except IsADirectoryError as error:
                raise UserError(f"{path}: is a directory") from error
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from error
            if len(self._maps) >= 256:
                self._maps.clear()
            self._maps[path] = data
        return data

    def used(self, count: int) -> None:
        """Counts bytes that were read."""
        self._used += count
        if self._used > 64 * BLOCK:
            self._maps.clear()
            self._used = 0


class Mapped:
    """A memory-mapped file from some byte on, which reads like a Source."""

    mode = "rb"

    def __init__(self, data: np.ndarray, offset: int, name: str, maps: Maps):
        self.name, self._data, self._low = name, data, offset
        self._start, self._maps = offset, maps

    def __enter__(self) -> "Mapped":
        return self

    def __exit__(self, *exc) -> None:
        self._maps.used(self._low - self._start)

    def peek(self, count: int) -> np.ndarray:
        """The next `count` bytes (uint8, read-only), fewer at the end; nothing is consumed."""
        return self._data[self._low:self._low + count]

    def skip(self, count: int) -> None:
        """Consumes `count` bytes that `peek` has shown."""
        self._low += count

    def pass_over(self, count: int) -> tuple[_Descriptor, int]:
        """Consumes `count` bytes unread: the file and where they begin."""
        start = self._low
        self._low += count
        return self._maps.pass_over(self.name, count), start

    def holds(self, count: int) -> bool:
        """False when fewer than `count` bytes are left."""
        return count <= len(self._data) - self._low

    def read(self, count: int):
        """Exactly `count` bytes: bytes when few, a fresh uint8 array when many. Raises Truncated."""
        count = int(count)
        if count < 0:
            raise UserError(f"{self.name}: a negative size")
        if not self.holds(count):
            raise Truncated(f"{self.name}: ends in the middle")
        data = self.peek(count)
        self._low += count
        return data.tobytes() if count <= 64 else data.copy()

    find = Source.find

    def readline(self) -> bytes:
        """The rest of the line with its newline; without one at the end of the file."""
        count = self.find(b"\n") + 1
        data = self._data[self._low:self._low + count if count else None].tobytes()
        self._low += len(data)
        return data

    def failed_command(self) -> None:
        """A file has none."""


def open_object(file: str, maps: Maps, utt: str, scp: str):
    """What the right side of an scp line names: Mapped for a plain file, else a Source.

    Raises UserError, which names the index and the utterance, too: the archive may have moved.
    """
    path, offset = (file, None) if file.endswith("|") else _split_offset(file)
    try:
        if file.endswith("|") or path.endswith(".gz") or path == "-" or is_special(path):
            return open_source(file)
        return Mapped(maps.open(path), offset or 0, path, maps)
    except UserError as error:
        raise UserError(f"{scp}: utterance {utt}: {error}") from error


def read_key(source: Source) -> str | None:
    """The next utterance id and the blank after it; None at the end. Raises UserError for what is no key."""
    usual = _USUAL_KEY.match(source.peek(128, 1))
    if usual is not None:
        source.skip(usual.end())
        return usual.group(1).decode("ascii")
    least = 1
    while True:
        head = source.peek(_LONGEST_KEY, least).tobytes()
        blank = len(head) - len(head.lstrip(b" \t\r\n"))
        if blank:
            source.skip(blank)
            continue
        found = re.search(rb"[ \t\n]", head)
        if found is not None or len(head) < least or len(head) == _LONGEST_KEY:
            break
        least = len(head) + 1
    if not head:
        return None
    if found is None:
        if len(head) < _LONGEST_KEY:
            raise Truncated(f"{source.name}: ends inside the utterance id '{head[:40].decode('utf-8', 'replace')}'")
        raise UserError(f"{source.name}: not a Kaldi archive (no utterance id in its next {_LONGEST_KEY} bytes)")
    raw = head[:found.start()]
    try:
        key = raw.decode("utf-8")
    except UnicodeDecodeError:
        key = ""
    if not key.isprintable() or not key:
        raise UserError(f"{source.name}: not a Kaldi archive (an utterance id cannot be {raw[:40]!r})")
    source.skip(found.start() + (found.group() != b"\n"))
    return key


def _unreadable(source: Source, key: str, what: str, error: Exception) -> UserError:
    source.failed_command()
    if source.name.endswith((".scp", ".scp.gz")):
        return UserError(f"{source.name}: utterance {key}: not a readable {what}; is it an index? (scp:{source.name})")
    if isinstance(error, Truncated):
        return UserError(f"{source.name}: utterance {key}: the {what} is cut short; the archive is incomplete")
    reason = str(error).replace(f"{source.name}: ", "") or "bad header"
    return UserError(f"{source.name}: utterance {key}: not a readable {what} ({reason})")


def guarded(read_object: Callable[[Source], Any], source: Source, key: str, what: str) -> Any:
    """`read_object(source)` with every way of failing turned into one message."""
    try:
        return read_object(source)
    except (UserError, ValueError, AssertionError, OverflowError) as error:
        raise _unreadable(source, key, what, error) from error


def parse_scp_line(line: str, name: str, number: int) -> tuple[str, str, str | None]:
    """(utterance, rxfilename, range or None) of a line of an scp file. Raises UserError."""
    parts = line.split(None, 1)
    if len(parts) != 2:
        raise UserError(f"{name}: line {number}: '{line.strip()}' is not 'utterance file'")
    key, rest = parts[0], parts[1].strip()
    if rest.endswith("]"):
        rest, _, span = rest[:-1].rpartition("[")
        if not rest:
            raise UserError(f"{name}: line {number}: utterance {key}: a range without a file")
        return key, rest, span
    return key, rest, None


def _parse_span(span: str, size: int, unit: str) -> slice:
    """One half of a range: ``a:b`` (both inclusive), ``:`` or nothing; as a slice of `size` rows or columns."""
    if span in ("", ":"):
        return slice(0, size)
    found = re.match(r"(\d{1,18}):(\d{1,18})$", span)
    if not found:
        raise ValueError(f"the range '{span}' is not first:last")
    first, last = int(found.group(1)), int(found.group(2))
    if first > last or first >= size or last >= size + _RANGE_TOLERANCE:
        raise ValueError(f"the range {first}:{last} does not fit {size} {unit}")
    if last >= size:
        _warn("the range %d:%d is cut to the %d %s there are", first, last, size, unit)
    return slice(first, min(last + 1, size))


def _cut_matrix(matrix: np.ndarray, span: str) -> np.ndarray:
    rows, _, cols = span.partition(",")
    return np.ascontiguousarray(matrix[_parse_span(rows, matrix.shape[0], "rows"),
                                       _parse_span(cols, matrix.shape[1], "columns")])


def _cut_vector(vector: np.ndarray, span: str) -> np.ndarray:
    return vector[_parse_span(span, len(vector), "elements")].copy()


def row_span(span: str, size: int) -> slice:
    """A range ``a:b`` of an scp line (both ends inclusive) as a slice of `size` frames. Raises ValueError."""
    return _parse_span(span, size, "frames")


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
            _warn("left out: %s", error)
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


def read_scp(name: str) -> Iterator[tuple[int, str, str, str | None]]:
    """Every (line number, utterance, rxfilename, range or None) of an scp file, gzip, stdin or pipe."""
    with open_source(name) as source:
        number = 0
        while not source.at_end():
            data = source.peek(_SCP_BLOCK).tobytes()
            size = data.rfind(b"\n") + 1 or len(data)
            if len(data) == _SCP_BLOCK and size == len(data) and not data.endswith(b"\n"):
                raise UserError(f"{source.name}: line {number + 1} is too long; is it an archive? (ark:{name})")
            source.skip(size)
            try:
                lines = data[:size].decode("utf-8").split("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{source.name}: not text; is it an archive? (ark:{name})") from error
            for line in lines[:-1] if data[size - 1:size] == b"\n" else lines:
                number += 1
                if line.strip():
                    yield (number, *parse_scp_line(line, source.name, number))
        source.finish()


# ------------------------------------------------------------------------------------------------ reading objects

def _text_numbers(text: str, dtype) -> np.ndarray:
    return np.array(text.split(), dtype=dtype)


def int32_array(numbers: list) -> np.ndarray:
    """int32 from a list of int. Raises ValueError when one does not fit."""
    if numbers and not -2**31 <= min(numbers) <= max(numbers) < 2**31:
        raise ValueError("a number does not fit 32 bits")
    return np.array(numbers, dtype=np.int32)


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


def _is_binary(source: Source) -> bool:
    return source.peek(2).tobytes() == b"\0B"


def _read_matrix(source: Source, stored: bool = False) -> np.ndarray | StoredMatrix:
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
    return _kaldi_io().read_mat(source)


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


def _read_vector(source: Source) -> np.ndarray:
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
    return np.require(_kaldi_io().read_vec_flt(source), requirements="W")


_INT_CELL = np.dtype([("tag", "i1"), ("value", "<i4")])


def _read_int_vector(source: Source) -> np.ndarray:
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
    cells = np.frombuffer(source.read(5 * count), _INT_CELL)
    if not (cells["tag"] == 4).all():
        raise ValueError("not a vector of 32-bit integers")
    return np.ascontiguousarray(cells["value"])


def read_matrices(rspecifier: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every (utterance, matrix) of a table: float32 or float64, (rows, columns). Raises UserError."""
    return read_table(rspecifier, _read_matrix, _cut_matrix, "matrix")


def read_vectors(rspecifier: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every (utterance, vector) of a table: float32 or float64, (n,). Raises UserError."""
    return read_table(rspecifier, _read_vector, _cut_vector, "vector")


def read_int_vectors(rspecifier: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every (utterance, vector) of a table of int32, such as an alignment. Raises UserError."""
    return read_table(rspecifier, _read_int_vector, _cut_vector, "vector of integers")


# -------------------------------------------------------------------------------------------------- random access

class ScpTable:
    """Random access to the objects of an scp file: ``table[utt]``, ``utt in table``, ``len(table)``, iteration.

    Archives are memory-mapped when first needed, so a table may be handed to worker processes (forked or pickled)
    and holds nothing but its index. Lines with commands or gzip files work too, decoded at each access.
    """

    what = "object"

    def __init__(self, scp: str):
        name = scp[4:] if scp.startswith("scp:") else scp
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

    def _read(self, source) -> Any:
        raise NotImplementedError

    def _cut(self, value: Any, span: str) -> Any:
        raise NotImplementedError

    def __getitem__(self, utt: str) -> Any:
        file, span = self.line(utt)
        return _read_line(file, span, self._maps, self._read, self._cut, utt, self.what, self.name)


class MatrixTable(ScpTable):
    """Random access to float matrices: ``table[utt]`` is (rows, columns), float32 or float64."""

    what = "matrix"
    _read = staticmethod(_read_matrix)
    _cut = staticmethod(_cut_matrix)


class VectorTable(ScpTable):
    """Random access to float vectors."""

    what = "vector"
    _read = staticmethod(_read_vector)
    _cut = staticmethod(_cut_vector)


class IntVectorTable(ScpTable):
    """Random access to vectors of int32, such as alignments."""

    what = "vector of integers"
    _read = staticmethod(_read_int_vector)
    _cut = staticmethod(_cut_vector)


# -------------------------------------------------------------------------------------------------------- writers

class TableWriter:
    """Writes (utterance, object) pairs; a context manager.

    Files are written beside their place and renamed when the block ends well; when it raises, nothing is left. A
    subclass gives `encode(object) -> list of buffers` (what follows the utterance id and a blank).
    """

    def __init__(self, wspecifier: str):
        spec = parse_wspecifier(wspecifier)
        self.text = "t" in spec.flags
        self.flush = "f" in spec.flags
        self._ark, self._scp = spec.ark, spec.scp
        self.count = 0
        self._seen: set = set()
        self._position = 0
        self._command: _Command | None = None
        self._staged: list[tuple[str, str, Any]] = []  # (staging name, name, stream): the archive first, scp last
        self._stream = None
        self._index = None
        self._done = False
        try:
            if self._ark == "-":
                self._stream = sys.stdout.buffer
            elif self._ark.startswith("|"):
                self._command = _Command(self._ark[1:], reading=False)
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
            stream = open(staged, "wb", buffering=BLOCK)
        except OSError as error:
            raise writing_failed(path, error) from error
        if path.endswith(".gz") and not special:
            stream = _GzipFile(stream)
        self._staged.append(("" if special else staged, path, stream))
        return stream

    def __enter__(self) -> "TableWriter":
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
        if not utt or utt.split() != [utt]:
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
        rows, cols = array.shape if array.size else (0, 0)
        token = b"FM " if array.dtype.itemsize == 4 else b"DM "
        return [b"\0B" + token + struct.pack("<bibi", 4, rows, 4, cols), _payload(array)]


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
        cells = np.empty(len(array) + 1, _INT_CELL)
        cells["tag"] = 4
        cells["value"][0] = len(array)
        cells["value"][1:] = array
        return [b"\0B", _payload(cells)]
