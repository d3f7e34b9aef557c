"""What lies beside an archive: atomic writes, sidecars (``essence.json``) and the refusal of what does not match.

A file is written beside its place and renamed when it is whole, so that a name that can be seen is a file that can
be used. A sidecar is one JSON object next to an archive; docs/formats.md lists its fields.
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Mapping, Sequence

from essence_kd import __version__
from essence_kd.io.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

_ABSENT = object()
_NUMBERS = ("num_pdfs", "frame_shift_ms", "temperature", "k", "mean_mass", "num_utts", "num_frames", "num_entries")


def staging_path(path: str | os.PathLike) -> str:
    """A name under which `path` is written before it is renamed: in the same directory, hidden, another at every call.

    Nobody can guess it and put a link of that name into a shared folder, and processes of two machines never share it.
    """
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.{os.urandom(6).hex()}.tmp")


def is_special(path: str | os.PathLike) -> bool:
    """True for what cannot be renamed over: a device, a named pipe, a socket (``/dev/null``, ``/dev/fd/3``)."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def writing_failed(path: str | os.PathLike, error: OSError) -> UserError:
    """The message for an output that could not be written: its name, what the system said, and the usual fix."""
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
        reason = f"its directory does not exist (mkdir -p {folder})"
    return UserError(f"{path}: cannot be written: {reason}; nothing was left there")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renames it to `path` at the end, removes it when anything was raised.

    An older file at `path` stays until then. Raises UserError when the system refuses (full disk, read-only target).
    """
    from pathlib import Path

    with _staged(path) as staged:
        yield Path(staged)


@contextlib.contextmanager
def _staged(path: str | os.PathLike) -> Iterator[str]:
    """As atomic_write, with the name alone."""
    target = os.path.realpath(path)
    staged = staging_path(path)
    try:
        yield staged
        os.replace(staged, target)
    except OSError as error:
        if error.filename is not None and str(error.filename) != staged:  # of another file, one that is copied here
            raise
        raise writing_failed(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(staged)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all. Raises UserError when the system refuses."""
    with _staged(path) as staged, open(staged, "w", encoding="utf-8") as stream:
        stream.write(text)


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex; of ``tree.txt`` it is the ``tree_hash`` of every sidecar."""
    import hashlib

    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def sidecar_path(specifier: str) -> str | None:
    """The sidecar that belongs to an archive, from its rspecifier, wspecifier, or path; None for pipes and devices.

    A wspecifier may start with ``compact:``. ``post.ark`` and ``post.scp`` go with ``essence.json`` of their directory,
    ``wide.ark`` with ``wide.json``.
    """
    name = specifier = specifier.removeprefix("compact:")
    head, colon, rest = specifier.partition(":")
    if colon and {"ark", "scp"} & set(head.split(",")):
        name = rest
        if "scp" in head.split(",") and "ark" in head.split(","):
            name = rest.partition(",")[2]
    name = name.strip()
    if name in ("", "-") or name.startswith("|") or name.endswith("|") or is_special(name):
        return None
    folder, base = os.path.split(name)
    stem = os.path.splitext(base.removesuffix(".gz"))[0]
    return os.path.join(folder, "essence.json" if stem == "post" else f"{stem}.json")


def _plain(value: Any) -> Any:
    """JSON's own types from NumPy scalars, arrays, paths and tuples. Raises ValueError for numbers without end."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (int, float)) and not abs(value) <= 1e300:
        raise ValueError(f"{value} cannot be stored in a sidecar")
    return value


def write_sidecar(path: str | os.PathLike, fields: Mapping[str, Any]) -> None:
    """Writes `fields` as one JSON object, atomically; adds ``tool_version`` unless it is given.

    Raises UserError when the file cannot be written, ValueError when a value is not finite.
    """
    fields = {"tool_version": __version__, **fields}
    text = json.dumps(_plain(fields), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_text(path, text)


def read_sidecar(path: str | os.PathLike) -> dict[str, Any]:
    """The fields of a sidecar. Raises UserError when it is missing, not one JSON object, or has text for a number."""
    try:
        with open(path, encoding="utf-8") as stream:
            fields = _plain(json.load(stream))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; it is written beside the archive by the verb that makes it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); make the archive again") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds no JSON object; make the archive again")
    for name in _NUMBERS:
        if not isinstance(fields.get(name, 0), (int, float, type(None))):
            raise UserError(f"{path}: {name} is {fields[name]!r}, not a number; make the archive again")
    return fields


def check_match(path_a: str | os.PathLike, a: Mapping[str, Any], path_b: str | os.PathLike, b: Mapping[str, Any],
                keys: Iterable[str], *, required: bool = False) -> None:
    """Refuses two descriptions that disagree on any of `keys`: UserError with both files and both values.

    A key that one side lacks is passed over unless `required`. Numbers agree within one part in 10^9.
    """
    for key in keys:
        left, right = a.get(key, _ABSENT), b.get(key, _ABSENT)
        if left is _ABSENT or right is _ABSENT:
            if required:
                raise UserError(f"{path_a if left is _ABSENT else path_b}: says nothing of {key}")
            continue
        left, right = _plain(left), _plain(right)
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (left, right))
        if not (math.isclose(left, right, rel_tol=1e-9) if numbers else left == right):
            raise UserError(f"{key} differs: {left} in {path_a}, {right} in {path_b}; "
                            f"these were not made for each other")


def check_utterances(name_a: str, utts_a: Iterable[str], name_b: str, utts_b: Iterable[str]) -> None:
    """Refuses two tables that do not hold the same utterances: UserError with the counts and the first odd ones."""
    set_a, set_b = set(utts_a), set(utts_b)
    if set_a == set_b:
        return
    parts = []
    for missing, where in ((set_a - set_b, name_b), (set_b - set_a, name_a)):
        if missing:
            parts.append(f"{len(missing)} not in {where} (first: {_first(sorted(missing))})")
    raise UserError(f"utterances differ: {name_a} has {len(set_a)}, {name_b} has {len(set_b)}; " + "; ".join(parts))


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
