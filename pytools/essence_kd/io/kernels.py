"""The compiled inner loops (kernels.c): made once where there is a C compiler, and done without where there is none.

The library is compiled for the processor at hand when a process first asks for it (about a second), and kept in
``$XDG_CACHE_HOME/essence_kd`` (``~/.cache``) under a name that holds the source, the compiler and the processor.
``ESSENCE_KERNELS=off`` leaves it alone, ``ESSENCE_KERNELS=DIR`` keeps it elsewhere. Without it NumPy does the same work
with the same results, two to twenty times slower.
"""
from __future__ import annotations

import ctypes
import functools
import os
import sys
import zlib
from typing import Any, Optional

import numpy as np

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
    place = os.environ.get("ESSENCE_KERNELS", "")
    if place == "off" or sys.byteorder != "little":
        return None
    try:
        return _load(_compiled(place))
    except OSError:
        return None


def _load(path: str) -> Any:
    library = ctypes.CDLL(path)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _I64
    return library


def _compiled(place: str) -> str:
    """The path of the library, compiled if need be. Raises OSError."""
    wanted = os.environ.get("CC", "")
    place = place or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "essence_kd")
    with open(_SOURCE, "rb") as stream:
        source = stream.read()
    key = zlib.crc32(b"\0".join([source, _processor(), wanted.encode(), " ".join(_FLAGS).encode()]))
    path = os.path.join(place, f"kernels-{len(source)}-{key:08x}.so")
    if not os.path.exists(path):
        _compile(wanted, path)
    return path


def _compile(wanted: str, path: str) -> None:
    """Makes the library with the compiler that is wanted, or the one there is. Raises OSError."""
    import shlex
    import shutil
    import subprocess
    import tempfile

    compiler = shlex.split(wanted) or [next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found),
                                            "cc")]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=os.path.dirname(path))
    os.close(handle)
    try:
        subprocess.run([*compiler, *_FLAGS, "-o", unfinished, _SOURCE, "-lm"], check=True, timeout=120,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.replace(unfinished, path)
    except subprocess.SubprocessError as error:
        raise OSError(f"{compiler[0]}: {error}") from error
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


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
