"""What runs a reader on made-up bytes, and what holds for each: a value or a UserError, within time and memory.

A file of this folder holds the targets of a family: functions of bytes that raise AssertionError where a value makes
no sense. Nothing here needs atheris; __main__.py runs targets with it, test_fuzz.py and __main__.py without.
"""
from __future__ import annotations

import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterator, List

FAMILIES = ("archives", "audio", "texts", "language", "graphs", "scoring", "settings", "models")
SEEDS = Path(__file__).resolve().parent / "seeds"
LONGEST = 1 << 16  # bytes of an input
MEMORY = 100 << 20  # bytes that a reader may ask for beyond what there is
SECONDS = 10  # of processor time that it may take
SEPARATOR = b"\n----\n"  # between the files of an input that stands for several

TARGETS: Dict[str, Callable[[bytes], None]] = {}
_statm = os.open("/proc/self/statm", os.O_RDONLY)
_page = resource.getpagesize()


class TooSlow(BaseException):
    """A reader took more than SECONDS."""


def target(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Registers a function under its name; its seeds lie in seeds/NAME."""
    TARGETS[function.__name__] = function
    return function


def load(name: str = "") -> None:
    """Imports every family, or that of a target alone.

    A family imports itself what its readers import when they are called: no import fits into MEMORY.
    """
    for family in FAMILIES:
        if f"\ndef {name}(" in (SEEDS.parent / f"{family}.py").read_text(encoding="utf-8") or not name:
            importlib.import_module(f"fuzz.{family}")


# ------------------------------------------------------------------------------------------------- inputs as files

_folder = ""


def folder() -> str:
    """An empty-handed place of this process, in memory where that can be had; removed when the process ends."""
    global _folder
    if not _folder:
        import atexit

        _folder = tempfile.mkdtemp(prefix="essence-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    return _folder


def file(data: bytes, name: str = "input") -> str:
    """The path of a file with these bytes."""
    path = os.path.join(folder(), name)
    with open(path, "wb", buffering=0) as stream:
        stream.write(data)
    return path


def directory(data: bytes, names: List[str], place: str = "dir") -> str:
    """The path of a directory in which each of the input's parts is a file; a part that is missing is no file."""
    path = os.path.join(folder(), place)
    parts = data.split(SEPARATOR)
    for number, name in enumerate(names):
        inside = os.path.join(path, name)
        if number < len(parts):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            file(parts[number], os.path.join(place, name))
        elif os.path.exists(inside):
            os.unlink(inside)
    os.makedirs(path, exist_ok=True)
    return path


# ------------------------------------------------------------------------------------------------------- one input

def _too_slow(number: int, frame) -> None:
    raise TooSlow(f"more than {SECONDS} s")


def run(function: Callable[[bytes], None], data: bytes) -> bool:
    """Whether the input was taken (True) or refused with a UserError of one line; anything else is raised."""
    from essence_kd.io.errors import UserError

    size = int(os.pread(_statm, 64, 0).split(None, 1)[0]) * _page
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        function(data)
    except UserError as error:
        text = str(error)
        assert text and "\n" not in text, f"a message of more lines than one: {text!r}"
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return True


class Quiet:
    """No words of readers on stderr, and the handler of the time limit, while this context is entered."""

    def __enter__(self) -> "Quiet":
        import logging
        import warnings

        self._before = signal.signal(signal.SIGPROF, _too_slow), sys.stderr, sys.stdout
        self._sink = open(os.devnull, "w", encoding="utf-8")
        sys.stderr = sys.stdout = self._sink
        logging.disable(logging.CRITICAL)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        return self

    def __exit__(self, *exc) -> None:
        import logging

        handler, sys.stderr, sys.stdout = self._before
        signal.signal(signal.SIGPROF, handler)
        self._sink.close()
        logging.disable(logging.NOTSET)
        self._warnings.__exit__(*exc)


def signature(error: BaseException) -> str:
    """What tells findings apart: the kind of the exception, and the lines of the package it came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if "essence_kd" in frame.filename or "/fuzz/" in frame.filename]
    return " ".join([type(error).__name__, *(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-2:])])


class Findings:
    """Inputs that broke what must hold, one for each signature, in a folder."""

    def __init__(self, name: str, place: Path):
        self._name, self._place, self._known = name, place, set()
        self.executions = self.taken = 0

    def __call__(self, data: bytes) -> None:
        self.executions += 1
        try:
            self.taken += run(TARGETS[self._name], data)
        except (Exception, TooSlow) as error:
            told = signature(error)
            if told not in self._known:
                self._known.add(told)
                self._place.mkdir(parents=True, exist_ok=True)
                path = self._place / f"{self._name}-{zlib.crc32(told.encode()):08x}"
                path.write_bytes(data)
                lines = traceback.format_exception(type(error), error, error.__traceback__)
                path.with_suffix(".txt").write_text(told + "\n" + "".join(lines), encoding="utf-8")
                print(f"FOUND {self._name}: {told}: {str(error)[:200]!r} ({path})", file=sys.__stderr__, flush=True)


# --------------------------------------------------------------------------------------------------- without atheris

_NUMBERS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\x01\0\0\0", b"\0\0\x80\x7f",
            b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff" * 8, b"\0" * 8, b"-1", b"0", b"1e999", b"nan", b"inf", b"-0",
            b"99999999999999999999", b"2147483648", b"1_0", "\u0661".encode(), b"\xff", b"\xc2\xa0", b"\xe3\x80\x80",
            b"\xef\xbb\xbf", b"\x0c", b"\x1c", b"\xc2\x85", b"\0", b" ", b"\n", b"\r\n", b"\t", b"[", b"]", b"{", b"}",
            b"(", b")", b"<", b">", b":", b",", b"|", b"/", b"\\", b"'", b'"', b"#0", b"<s>", b"</s>", b"<eps>",
            b"null"]


def mutated(data: bytes, seeds: List[bytes], rng: random.Random) -> bytes:
    """The bytes, changed in one to six places."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(9)
        end = min(len(out), at + rng.choice((1, 1, 2, 4, 8, 32)))
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at:end]
        elif kind == 3:
            out[at:at] = out[at:end]
        elif kind == 4:
            number = rng.choice(_NUMBERS)
            out[at:at + rng.choice((0, len(number)))] = number
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            other = rng.choice(seeds)
            begin = rng.randrange(len(other) + 1)
            out[at:end] = other[begin:begin + rng.choice((4, 16, 64, 1024))]
        elif kind == 7:  # two fields change places
            fields = bytes(out).split(b" ")
            i, j = rng.randrange(len(fields)), rng.randrange(len(fields))
            fields[i], fields[j] = fields[j], fields[i]
            out = bytearray(b" ".join(fields))
        else:
            lines = bytes(out).split(b"\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            out = bytearray(b"\n".join(lines))
    return bytes(out[:LONGEST])


def seeds(name: str) -> List[bytes]:
    """The seeds of a target in the order of their names, and the empty input."""
    return [path.read_bytes() for path in sorted((SEEDS / name).iterdir())] + [b""]


def made_up(name: str, seed: int = 1) -> Iterator[bytes]:
    """The seeds of a target, then mutations of them without end, the same in each process."""
    known = seeds(name)
    yield from known
    rng = random.Random(zlib.crc32(name.encode()) + seed)
    while True:
        yield mutated(rng.choice(known), known, rng)
