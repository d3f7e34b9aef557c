"""Files that come with the package: those of the checkout that it lies in, or their copies in an installed package."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Optional, Union

from essence_kd.io.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent


def checkout() -> Optional[Path]:
    """The checkout of this project that the package lies in, as pytools/essence_kd; None where it is installed."""
    root = _PACKAGE.parent.parent
    inside = _PACKAGE.parent.name == "pytools" and all((root / name).is_file() for name in ("run.sh", "setup.py"))
    return root if inside else None


def conf_file(name: str) -> Path:
    """The path of conf/NAME of the checkout, or of its copy in the installed package.

    name: relative to conf, such as ``models/student_tdnn.yaml``. Raises UserError, which names the files there are.

    >>> from essence_kd import conf_file
    >>> conf_file("models/student_tdnn.yaml").read_text().splitlines()[0]  # doctest: +ELLIPSIS
    '...'
    """
    path = (checkout() or _PACKAGE) / "conf" / name
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob("*.*"))
        raise UserError(f"{path}: there is no such file" + (f" (there are: {', '.join(there)})" if there else ""))
    return path


def model_file(model: Union[str, os.PathLike]) -> Path:
    """The settings of a model: ``model`` itself, a YAML file, or conf/models/NAME.yaml where it is a bare name.

    Raises UserError for a name that conf/models does not have.
    """
    path = Path(model)
    if path.suffix or len(path.parts) > 1 or path.is_file():
        return path
    return conf_file(f"models/{model}.yaml")
