"""The compiled inner loops (kernels.c): made once where there is a C compiler, and done without where there is none.

The library is compiled for the processor at hand when a process first asks for it (about a second), and kept in
``$XDG_CACHE_HOME/essence_kd`` (``~/.cache``), or else in ``$WORK_DIR/.cache/essence_kd``, under a name that holds the
source, the compiler and the processor. ``ESSENCE_KERNELS=off`` leaves it alone, ``ESSENCE_KERNELS=DIR`` keeps it
elsewhere. What another user could have put there is not loaded. Where it can be kept nowhere, every process compiles
it; without a compiler NumPy does the same work with the same results, two to twenty times slower. Both are told.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import stat
import sys
import zlib
from typing import Any, List, Optional

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernels.c")
_FLAGS = ["-O3", "-march=native", "-fopenmp-simd", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC"]
_I64, _F32, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES = {
    "top_k": [_POINTER, _I64, _I64, _I64, _I64, _I64, _F32, _F32, _F32, _POINTER, _POINTER],
    "top_k_of_mixture": [_POINTER, _POINTER, _POINTER, _I64, _I64, _I64, _I64, _F32, _POINTER, _POINTER],
    "over_threshold": [_POINTER, _I64, _I64, _I64, _I64, _F32, _POINTER, _F32, _F32, _I64, _POINTER, _POINTER,
                       _POINTER],
    "posterior_offsets": [_POINTER, _I64, _I64, _POINTER],
    "posterior_entries": [_POINTER, _I64, _I64, _POINTER, _POINTER, _POINTER],
    "repeated_entries": [_POINTER, _I64, _I64, _POINTER],
    "viterbi": [_POINTER, _I64, _I64, _I64] + [_POINTER] * 9,
}


def pointer(array: Optional[np.ndarray]) -> Optional[int]:
    """The address of a contiguous array for a kernel, None for NULL."""
    if array is None:
        return None
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # four times as fast, for what may be written to
    except (TypeError, ValueError):
        return array.__array_interface__["data"][0]


@functools.lru_cache(maxsize=None)
def kernels() -> Optional[Any]:
    """The library, its functions ready to be called; None where it cannot be had or is not wanted."""
    named = os.environ.get("ESSENCE_KERNELS", "")
    if named == "off" or sys.byteorder != "little":
        return None
    try:
        return _found(named) or _made(named)
    except OSError as error:
        os.environ["ESSENCE_KERNELS"] = "off"  # the processes that this one starts need not try, nor tell
        _tell(f"there are no compiled inner loops ({error.strerror or error}): NumPy does their work, with the same "
              "results, two to twenty times slower; CC names a C compiler, ESSENCE_KERNELS=off says that this is right")
        return None


def _tell(message: str) -> None:
    print(f"essence: {message}", file=sys.stderr, flush=True)


def _load(path: str) -> Any:
    library = ctypes.CDLL(path)
    for name, arguments in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"{path}: has no {name}") from error
        function.argtypes, function.restype = arguments, _I64
    return library


def compiler() -> List[str]:
    """The words of the compiler that is wanted, or the first that there is."""
    import shlex
    import shutil

    return shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, ("cc", "gcc", "clang")), "cc")]


def _paths(named: str) -> List[str]:
    """Where the library may be kept: the place that is named, or else the user's cache and the run's."""
    caches = [os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.path.expanduser("~"), ".cache"),
              os.path.join(os.environ.get("WORK_DIR", ""), ".cache")]
    places = [named] if named else [os.path.join(cache, "essence_kd") for cache in caches if os.path.isabs(cache)]
    with open(_SOURCE, "rb") as stream:
        source = stream.read()
    key = zlib.crc32(b"\0".join([source, _processor(), os.environ.get("CC", "").encode(), " ".join(_FLAGS).encode()]))
    return [os.path.join(place, f"kernels-{len(source)}-{key:08x}.so") for place in places]


def _trusted(path: str) -> bool:
    """Whether this user or root alone could have put the file there: code of others does not run. Raises OSError."""
    file, folder = os.stat(path), os.stat(os.path.dirname(path))
    return (file.st_uid in (0, os.geteuid()) and not file.st_mode & stat.S_IWOTH
            and (not folder.st_mode & stat.S_IWOTH or bool(folder.st_mode & stat.S_ISVTX)))


def _found(named: str) -> Optional[Any]:
    """The library where it has been kept whole, in a place that lets it run; None where it has not."""
    for path in _paths(named):
        with contextlib.suppress(OSError):
            if _trusted(path):
                return _load(path)
    return None


def _made(named: str) -> Any:
    """The library, compiled and kept in the first place that takes it and lets it run. Raises OSError."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="essence-kernels-")
    try:
        fresh = os.path.join(folder, "kernels.so")
        _compile(fresh)
        for path in _paths(named):
            with contextlib.suppress(OSError, UserError):
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                with atomic_write(path) as staged, open(fresh, "rb") as source, \
                        open(staged, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as stream:
                    shutil.copyfileobj(source, stream)
                    stream.flush()
                    os.fsync(stream.fileno())  # half a library would end the process that loads it
                if _trusted(path):
                    return _load(path)
        library = _load(fresh)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    places = ", ".join(map(os.path.dirname, _paths(named))) or "HOME has no folder"
    _tell(f"the compiled inner loops can be kept nowhere ({places}): every process compiles them, which takes a "
          "second; ESSENCE_KERNELS=DIR names a folder that you can write and run programs in")
    return library


def _compile(path: str) -> None:
    """Makes the library. Raises OSError."""
    import subprocess

    words = compiler()
    try:
        done = subprocess.run([*words, *_FLAGS, "-o", path, _SOURCE, "-lm"], timeout=120, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{words[0]} did not end in {error.timeout:.0f} s") from error
    except OSError as error:
        raise OSError(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"]
        raise OSError(f"{words[0]}: {said[-1]}")


def _processor() -> bytes:
    """What Linux says of the first processor: a shared cache may serve several kinds."""
    lines = []
    try:
        with open("/proc/cpuinfo", "rb") as stream:
            for line in stream:
                if not line.strip():
                    break
                if line.startswith((b"flags", b"Features", b"model")):
                    lines.append(line)
    except OSError:
        return " ".join(os.uname()).encode()
    return b"".join(lines)
