"""Parameters of what is registered: a rule or a loss is a frozen dataclass whose fields are its parameters.

A parameter's default, help text and check stand with the field; options, help and settings take them from there.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Callable, ClassVar, Dict, Mapping, Optional, Tuple, Type, TypeVar, cast

from essence_kd.io.registry import Registry
from essence_kd.io.settings import from_dict

T = TypeVar("T", bound="Parametrised")


def parameter(default: Any, help: str = "", valid: Optional[Callable[[Any], bool]] = None, wants: str = "", *,
              key: str = "") -> Any:
    """A field with a default, a help text, what is ``valid`` and how that is told, and its ``key`` in a sidecar.

    >>> from essence_kd import Rule, parameter
    >>> class Half(Rule):
    ...     share: float = parameter(0.5, "of the largest", lambda share: 0 < share <= 1, "above 0 and at most 1")
    """
    return field(default=default, metadata={"help": help, "valid": valid, "wants": wants, "key": key})


def borrowed(cls: Any, name: str) -> Any:
    """The same field as another class has: its default, help and check stand there."""
    theirs = cls.__dataclass_fields__[name]
    return field(default=theirs.default, metadata=theirs.metadata)


def check_fields(settings: Any) -> None:
    """Raise ValueError, naming the field, for a value that has no meaning."""
    for part in dataclasses.fields(settings):
        value, valid = getattr(settings, part.name), part.metadata.get("valid")
        if valid is not None and not valid(value):
            raise ValueError(f"{part.name} must be {part.metadata['wants']}, not {value}")


class Parametrised:
    """The base of what is registered. A subclass has a ``name``, and annotated fields that are its parameters."""

    name: ClassVar[str]
    parameters: ClassVar[Tuple[str, ...]] = ()  # names of the fields

    def check(self) -> None:
        """Raise ValueError, naming the parameter, for a value that has no meaning."""
        check_fields(self)

    def describe(self) -> Dict[str, Any]:
        """The parameters as a sidecar has them."""
        fields = dataclasses.fields(cast(Any, self))
        return {part.metadata.get("key") or part.name: getattr(self, part.name) for part in fields}


def add_to(registry: Registry, cls: Type[T]) -> Type[T]:
    """Makes a class a dataclass and registers it by its ``name``. Raises UserError for a name that is taken."""
    cls = dataclass(frozen=True)(cls)
    cls.parameters = tuple(part.name for part in dataclasses.fields(cast(Any, cls)))
    return registry.register(cls.name)(cls)


def build(cls: Type[T], values: Mapping[str, Any], where: str) -> T:
    """An entry with these parameters. Raises UserError that starts with ``where`` for unknown names and wrong types,
    ValueError for values without meaning."""
    entry = from_dict(cls, dict(values), where)
    entry.check()
    return entry
