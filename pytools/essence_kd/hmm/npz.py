"""NumPy's npz files: written whole or not at all, read with a clear message when they are not."""
from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Dict

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write


def write_npz(path: str | Path, arrays: Dict[str, np.ndarray]) -> None:
    """Write arrays by name; the file appears under its name only when it is whole."""
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)


def read_npz(path: str | Path, names: tuple, remedy: str) -> Dict[str, np.ndarray]:
    """The named arrays. Raises UserError, ending in `remedy`, when the file is missing, broken, or lacks one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; {remedy}") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: broken or of another kind ({error}); {remedy}") from None
