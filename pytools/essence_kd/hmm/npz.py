"""NumPy's npz files: written whole or not at all, read with a clear message when they are not."""
from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write


def write_npz(path: str | Path, arrays: Dict[str, np.ndarray]) -> None:
    """Write arrays by name; the file appears under its name only when it is whole."""
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)


def read_npz(path: str | Path, names: tuple, remedy: str, build: Callable[[Dict[str, np.ndarray]], Any] = dict) -> Any:
    """What `build` makes of the named arrays, which raises ValueError and the like where they make no sense.

    Raises UserError, ending in `remedy`, when the file is missing, broken, lacks an array, or `build` refuses them.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            for name in names:
                _check_member(parts, f"{name}.npy", os.path.getsize(path))
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in names}
        for name, array in arrays.items():
            if array.dtype.kind == "U" and array.size and array.reshape(-1).view(np.uint32).max() > 0x10FFFF:
                raise ValueError(f"{name} is no text")
        return build(arrays)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; {remedy}") from None
    except MemoryError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds of what they cannot read
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: broken or of another kind ({said[:200]}); {remedy}") from None


def _check_member(parts: zipfile.ZipFile, name: str, most: int) -> None:
    """ValueError for an array that is larger than what the file holds of it: NumPy would ask for its memory first."""
    info = parts.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"{name} is compressed or cut short")
    with parts.open(info) as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
        if dtype.hasobject or not dtype.isnative or \
                min(shape, default=0) < 0 or member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{name} is not {shape} of {dtype}")
