"""Options of verbs whose defaults stand in what they are for: a function's parameters or a dataclass's fields.

A verb adds such options without a default, calls :func:`tell_defaults` for the help, and passes on :func:`given`.
"""
from __future__ import annotations

import argparse
import dataclasses
import inspect
from typing import Any, Callable, Dict, List


def numbers(text: str) -> List[float]:
    """The ``type`` of an option such as --weights 2,1. Raises argparse's error for what is no number."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: numbers with commas between") from None


def defaults_of(function: Callable) -> Dict[str, Any]:
    """The defaults of a function's parameters or a dataclass's fields, by name."""
    if dataclasses.is_dataclass(function):  # whose signature does not tell a list
        made = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
                for f in dataclasses.fields(function)}
        return {name: default for name, default in made.items() if default is not dataclasses.MISSING}
    parameters = inspect.signature(function).parameters.items()
    return {name: parameter.default for name, parameter in parameters if parameter.default is not parameter.empty}


def given(args, function: Callable) -> Dict[str, Any]:
    """The options that were given of those that `function` has defaults for, as its keyword arguments.

    args: the parsed options; one that was not given is None. An option of a true or false default may be a text,
    ``true`` or ``false``.
    """
    values = {name: getattr(args, name, None) for name in defaults_of(function)}
    bools = {name for name, default in defaults_of(function).items() if isinstance(default, bool)}
    return {name: value == "true" if name in bools and isinstance(value, str) else value
            for name, value in values.items() if value is not None}


def tell_defaults(parser, *functions: Callable) -> None:
    """End the help of each option that a function has a default for with that default, but for None.

    Raises ValueError where an option has a default of its own: it would win over the function's.
    """
    for function in functions:
        for name, default in defaults_of(function).items():
            for action in parser._actions:
                if action.dest == name and action.default is not None:
                    raise ValueError(f"--{name}: its default stands in {function.__name__} already")
                if action.dest == name and default is not None:
                    action.help = f"{action.help or ''} (default: {_text(default)})".strip()


def _text(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, list)):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default).replace("%", "%%")
