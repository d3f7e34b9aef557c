"""Settings: dataclasses filled from YAML, with unknown keys and wrong types refused.

A settings class is a dataclass whose fields are ``int``, ``float``, ``bool``, ``str``, ``dict``, ``Optional[...]``,
``List[...]`` or another such dataclass. Every default stands in the class; a YAML file and ``key.sub=value``
overrides change what they name and nothing else. Verbs without either start sooner: YAML is imported where it is read.
"""
from __future__ import annotations

import dataclasses
import math
import reprlib
import typing
from typing import Any, Iterable, Optional, Type, TypeVar, cast

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_text
from essence_kd.io.text import read_text

T = TypeVar("T")
_MOST = 100_000  # values that a YAML file may hold, each counted as often as aliases name it


def load_settings(cls: Type[T], yaml_path=None, overrides: Iterable[str] = ()) -> T:
    """Build a settings object from a YAML file (None: defaults only) and ``a.b=value`` overrides (values are YAML).

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown, a value has the wrong type.
    """
    values: dict = {}
    where = "settings"
    if yaml_path is not None:
        where = str(yaml_path)
        values = read_yaml(yaml_path)
    for override in overrides:
        _apply(values, override)
    return from_dict(cls, values, where)


def read_yaml(path) -> dict:
    """A YAML file whose top level is a mapping (an empty file is an empty mapping)."""
    try:
        values = _parse_yaml(read_text(path, "it should hold settings"))
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {_name(values)}")
    return values


def _parse_yaml(text: str) -> Any:
    """The values of a YAML document; ValueError, in one line, where it is none or its aliases make it huge."""
    import yaml

    try:
        values = yaml.safe_load(text)
        _count(values, {})
        return values
    except MemoryError:
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # conversions of scalars (dates, numbers, tags) raise many kinds
        raise ValueError(" ".join(str(error).split())) from None


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values there are when each alias stands for what it names. Raises ValueError from _MOST on, and for
    numbers that cannot be shown."""
    if not isinstance(value, (dict, list)):
        if isinstance(value, int) and abs(value) > 1e300:
            raise ValueError("a number is too large")
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST  # until it is known: what contains itself has no end
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known) for item in items)
    if known[id(value)] >= _MOST:
        raise ValueError(f"its aliases stand for {_MOST} values or more")
    return known[id(value)]


def from_dict(cls: Type[T], values: dict, where: str) -> T:
    """Build ``cls`` from a mapping; ``where`` (a file name) starts every message."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cast(Any, cls))
    names = [field.name for field in fields]
    built = {}
    for key, value in values.items():
        if key not in names:
            import difflib

            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{where}: unknown key '{key}'{hint} (known: {', '.join(names)})")
        built[key] = _convert(value, hints[key], f"{where}: {key}")
    try:
        return cls(**built)
    except TypeError:
        missing = [f.name for f in fields if f.name not in built
                   and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
        raise UserError(f"{where}: missing key '{missing[0]}'") from None


def to_dict(settings: Any) -> dict:
    """A settings object as plain dictionaries and lists."""
    return dataclasses.asdict(settings)


def dump_settings(settings: Any, path) -> None:
    """Write settings (a dataclass instance or a dictionary) as YAML that :func:`load_settings` reads back."""
    import yaml

    values = settings if isinstance(settings, dict) else to_dict(settings)
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _apply(values: dict, override: str) -> None:
    """Set one ``a.b=value`` in nested dictionaries."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: expected key=value, such as optim.lr=0.001")
    try:
        value = _parse_yaml(text)
    except ValueError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: '{parent}' is not a group of settings")
    values[last] = value


def _convert(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``, or a UserError that starts with ``where``."""
    origin = typing.get_origin(kind)
    if origin is typing.Union:  # Optional[X]
        if value is None:
            return None
        return _convert(value, [k for k in typing.get_args(kind) if k is not type(None)][0], where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a group of settings, found {_name(value)}")
        return from_dict(cast(Type, kind), value, where)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, found {_name(value)}")
        return [_convert(item, typing.get_args(kind)[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is float:
        number = _as_float(value)
        if number is None:
            raise UserError(f"{where}: expected a number, found {_name(value)}")
        return number
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {int: "a whole number", bool: "true or false", str: "a text", dict: "a group of settings"}[kind]
        raise UserError(f"{where}: expected {wanted}, found {_name(value)}")
    return value


def _as_float(value: Any) -> Optional[float]:
    """A finite number; YAML 1.1 reads 1e-3 as text, so numeric text counts."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _name(value: Any) -> str:
    return "nothing" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"
