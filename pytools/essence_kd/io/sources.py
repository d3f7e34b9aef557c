"""Inputs and outputs as bytes: files, pipes, gzip and stdin read with look-ahead, and files mapped into memory.

Sizes are checked against what a file can still hold before anything is allocated. A command that fails is an error
with its exit status and its stderr. What only some inputs need is imported for them, so that a verb starts sooner.
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
import sys
import threading
import zlib
from collections import deque
from typing import Any, Callable

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.pipes import check_pipe
from essence_kd.io.provenance import is_special

BLOCK = 1 << 20  # bytes read from a file at a time
_LONGEST_KEY = 4096  # bytes; a longer "key" is not a key
_USUAL_KEY = re.compile(rb"([!-~]+) ")
_NO_KEY = re.compile("[\x00-\x1f\x7f\ufeff]")  # what no utterance id has
_BLIND = 16 * BLOCK  # bytes; the largest size that is believed before it is known how much will come


class Command:
    """A shell command on the other end of a pipe, run by bash; its last lines of stderr are kept for messages.

    quiet: its stderr does not go on to ours, and its stdin is empty. Raises UserError where pipes are not allowed.
    """

    def __init__(self, command: str, reading: bool, quiet: bool = False):
        import shutil
        import subprocess

        check_pipe(command)
        self.command = command.strip()
        self._statuses, theirs = os.pipe()  # of each program of the pipeline, which bash alone can tell
        os.set_blocking(self._statuses, False)
        shell = shutil.which("bash")
        told = f'{self.command}\n\necho "${{PIPESTATUS[@]}}" >&{theirs}'
        argv = [shell, "-o", "pipefail", "-c", told] if shell else ["/bin/sh", "-c", self.command]
        stdin = subprocess.DEVNULL if quiet else None
        try:
            self.process = subprocess.Popen(argv, stdin=stdin if reading else subprocess.PIPE,
                                            stdout=subprocess.PIPE if reading else None, stderr=subprocess.PIPE,
                                            bufsize=0, start_new_session=True, pass_fds=[theirs])
        finally:
            os.close(theirs)
        self._quiet = quiet
        self._tail: deque = deque(maxlen=8)
        pipe = self.process.stdout if reading else self.process.stdin
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(pipe.fileno(), getattr(fcntl, "F_SETPIPE_SZ", 1031), BLOCK)  # fewer, larger reads (Linux)
        self._relay = threading.Thread(target=self._relay_stderr, daemon=True)
        self._relay.start()

    def _relay_stderr(self) -> None:
        errors: Any = self.process.stderr
        with io.BufferedReader(errors) as stream:
            for line in stream:
                text = line.decode("utf-8", "replace")
                self._tail.append(text.rstrip())
                if not self._quiet:
                    sys.stderr.write(text)

    def _ended(self) -> list[int]:
        """Waits; the exit statuses of the pipeline's programs (negative: a signal), or the command's alone."""
        status = self.process.wait()
        self._relay.join()
        told = b""
        with contextlib.suppress(OSError):  # bash ended before it told
            told = os.read(self._statuses, BLOCK)
        os.close(self._statuses)
        return [128 - int(s) if 128 < int(s) <= 192 else int(s) for s in told.split()] or [status]

    def wait(self) -> None:
        """Waits for the command; raises UserError with its exit status and stderr when it failed.

        A program that ends because the next one has stopped reading (head, sox trim) has not failed, as in Kaldi,
        which reads pipes without pipefail. Any other program of the pipeline that fails has: a source may be missing.
        """
        *earlier, last = self._ended()
        said = "; ".join(line for line in self._tail if line) or "nothing on stderr"
        if "broken pipe" in said.lower():  # programs that ignore SIGPIPE (ffmpeg, Python) say so, and end as they like
            earlier = []
        failed = [status for status in (last, *reversed(earlier)) if status not in (0, -signal.SIGPIPE)]
        if failed:
            how = f"exit status {failed[0]}" if failed[0] > 0 else f"killed by signal {-failed[0]}"
            raise UserError(f"'{self.command}' failed with {how}: {said}")

    def kill(self) -> None:
        """Ends the command and all it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGTERM)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._ended()


def output_of(command: str) -> bytes:
    """All that a command writes; its stdin is empty. Raises UserError when it failed."""
    running = Command(command, reading=True, quiet=True)
    try:
        data = running.process.stdout.read()
    except BaseException:
        running.kill()
        raise
    running.process.stdout.close()
    running.wait()
    return data


class Truncated(UserError):
    """The input ended inside an object."""


class OpenFile:
    """An open file, closed with the last object that uses it."""

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Source:
    """A binary input with look-ahead, read forwards: a file, a pipe, gzip, or stdin.

    `name` is for messages. Reads are exact: what is not there raises Truncated, and a size that the file cannot hold
    is refused before memory is asked for.
    """

    def __init__(self, raw, name: str, *, command: Command | None = None, close: bool = True):
        self.name = name
        self._raw, self._command, self._close = raw, command, close
        self._readinto = getattr(raw, "readinto1", raw.readinto)
        self._buffer = np.empty(BLOCK, np.uint8)
        self._low = self._high = 0  # what is buffered
        self._ended = False
        self._left = None  # bytes of a regular file that are not buffered yet
        self._file: OpenFile | None = None
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

    def pass_over(self, count: int) -> tuple[OpenFile, int] | None:
        """Consumes `count` bytes of a regular file unread: the file and where they begin. None for other inputs."""
        if self._left is None:
            return None
        if self._file is None:
            self._file = OpenFile(os.dup(self._raw.fileno()))
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

    def find(self: Any, wanted: bytes) -> int:
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
        command = Command(rxfilename[:-1], reading=True)
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


@functools.lru_cache(maxsize=None)
def _kept() -> int:
    """How many files a table keeps open: several tables and all else must fit in ``ulimit -n``."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if limit == resource.RLIM_INFINITY else max(1, min(256, limit // 4))


class Maps:
    """Memory-mapped files by name, let go of after every 64 MiB read: what is mapped counts as the process's memory.

    Pickled and forked copies start empty or share nothing but pages.
    """

    def __init__(self) -> None:
        self._maps: dict[str, np.ndarray] = {}
        self._files: dict[str, OpenFile] = {}
        self._used = 0

    def __getstate__(self) -> dict:
        return {"_maps": {}, "_files": {}, "_used": 0}

    def pass_over(self, path: str, count: int) -> OpenFile:
        """A mapped file, open, of which `count` bytes are not read. Raises OSError."""
        self._used -= count
        self._maps.pop(path, None)  # the system may have mapped megabytes around what was read
        if path not in self._files:
            if len(self._files) >= _kept():
                self._files.clear()
            self._files[path] = OpenFile(os.open(path, os.O_RDONLY))
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
            if len(self._maps) >= _kept():
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

    def pass_over(self, count: int) -> tuple[OpenFile, int]:
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
    if not key or _NO_KEY.search(key):
        raise UserError(f"{source.name}: not a Kaldi archive (an utterance id cannot be {raw[:40]!r})")
    source.skip(found.start() + (found.group() != b"\n"))
    return key


def guarded(read_object: Callable[[Any], Any], source: Source | Mapped, key: str, what: str) -> Any:
    """`read_object(source)` with every way of failing turned into one message."""
    try:
        return read_object(source)
    except (UserError, ValueError, AssertionError, OverflowError) as error:
        raise _unreadable(source, key, what, error) from error


def _unreadable(source: Source | Mapped, key: str, what: str, error: Exception) -> UserError:
    source.failed_command()
    if source.name.endswith((".scp", ".scp.gz")):
        return UserError(f"{source.name}: utterance {key}: not a readable {what}; is it an index? (scp:{source.name})")
    if isinstance(error, Truncated):
        return UserError(f"{source.name}: utterance {key}: the {what} is cut short; the archive is incomplete")
    reason = str(error).replace(f"{source.name}: ", "") or "bad header"
    return UserError(f"{source.name}: utterance {key}: not a readable {what} ({reason})")
