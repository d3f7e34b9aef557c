"""Registries: what a recipe chooses by its name, such as selection rules, losses or architectures.

A registry has a package of its own, in which one file holds one entry (entry ``top-k`` in ``top_k.py``) and registers
it when it is imported. A plugin is any other module that registers entries: it is named in the environment variable
`PLUGINS` (``ESSENCE_PLUGINS=my_module,other``) or by an entry point of the group ``essence_kd.plugins``, and is
imported when a name is looked up that the package does not have.
"""
from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
from typing import Any, Callable, Dict, Generic, Tuple, TypeVar

from essence_kd.io.errors import UserError

T = TypeVar("T")
PLUGINS = "ESSENCE_PLUGINS"
GROUP = "essence_kd.plugins"


class Registry(Generic[T]):
    """Entries by name. ``what`` is what messages call an entry, ``package`` the package of its own entries."""

    def __init__(self, what: str, package: str):
        self.what, self.package = what, package
        self._entries: Dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a class or function. Raises UserError for a name that is taken."""
        def add(entry: T) -> T:
            other = self._entries.get(name)
            if other is not None and _place(other) != _place(entry):
                raise UserError(f"{self.what} '{name}' is registered twice: by {_place(other)} and by {_place(entry)}")
            self._entries[name] = entry
            return entry
        return add

    def get(self, name: str, where: str = "") -> T:
        """The entry of this name. Raises UserError that starts with ``where`` (a file) and names what there is."""
        if name not in self:
            start = f"{where}: " if where else ""
            own = "" if os.environ.get(PLUGINS) else f"; if it is one of yours, {PLUGINS} must name its module"
            raise UserError(f"{start}unknown {self.what} '{name}' (known: {', '.join(self.names())}){own}")
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        if name in self._entries:
            return True
        for look in (lambda: self._import_own(name), _import_named, _import_installed):
            look()
            if name in self._entries:
                return True
        return False

    def names(self, plugins: bool = True) -> Tuple[str, ...]:
        """All names, sorted; without ``plugins`` those of modules that are not imported yet are left out."""
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            self._import_own(module.name)
        if plugins:
            _import_named()
            _import_installed()
        return tuple(sorted(self._entries))

    def _import_own(self, name: str) -> None:
        module = str(name).replace("-", "_")
        if module.isidentifier() and importlib.util.find_spec(f"{self.package}.{module}") is not None:
            importlib.import_module(f"{self.package}.{module}")


def _place(entry: Any) -> str:
    return f"{entry.__module__}.{entry.__qualname__}"


def _import_named() -> None:
    """The modules that the environment variable names."""
    for name in filter(None, (part.strip() for part in os.environ.get(PLUGINS, "").split(","))):
        _load(f"{PLUGINS}: {name}", functools.partial(importlib.import_module, name))


def _import_installed() -> None:
    """What installed packages have as entry points."""
    from importlib import metadata  # takes longer to import than most verbs to start

    points = metadata.entry_points()  # Python 3.9: a dictionary
    chosen = points.select(group=GROUP) if hasattr(points, "select") else points.get(GROUP, ())
    for point in chosen:
        _load(f"entry point {point.name} of {GROUP}", point.load)


def _load(where: str, load: Callable[[], Any]) -> None:
    try:
        load()
    except UserError:
        raise
    except Exception as error:  # whatever a plugin does when it is imported
        raise UserError(f"{where}: cannot be imported ({type(error).__name__}: {error})") from None
