"""Selection rules: which classes of a frame are kept. One file of this package is one rule.

A rule is a class with a ``name``, annotated fields that are its parameters, and a ``reference``, the plain definition.
That is enough; what a rule overrides beyond it makes selection faster. A module of somebody else's adds one like this,
and is named in the environment variable ESSENCE_PLUGINS (io/registry.py)::

    @register_rule
    class Half(Rule):
        name = "half"
        share: float = parameter(0.5, "of the largest", lambda share: 0 < share <= 1, "above 0 and at most 1")

        def reference(self, probs, utt="", teachers=()):
            return [[(c, p) for c, p in enumerate(row) if p >= self.share * row.max()] for row in probs]

    essence prune-post --select half --set share=0.3 ...

Legend: T frames, C pdfs, n entries of all frames together.
"""
from __future__ import annotations

from typing import Any, ClassVar, List, Optional, Sequence, Tuple, Type, TypeVar

import numpy as np

from essence_kd.distill import largest
from essence_kd.distill.entries import Entries, all_of, listed, sort_entries
from essence_kd.distill.parameters import Parametrised, add_to
from essence_kd.distill.scales import Matrix
from essence_kd.io.registry import Registry

Frames = List[List[Tuple[int, float]]]  # (pdf-id, probability) of each frame
Teachers = Sequence[np.ndarray]  # (T, C) each, on any order-preserving scale


class Rule(Parametrised):
    """The base of selection rules; `register_rule` shows one of one's own.

    >>> import numpy as np
    >>> from essence_kd import EssenceSettings, Rule
    >>> rule = EssenceSettings(top_k=2).rule()
    >>> isinstance(rule, Rule), rule.title()
    (True, 'k = 2')
    >>> rule.reference(np.array([[0.25, 0.0, 0.75]], np.float32))
    [[(2, 0.75), (0, 0.25)]]
    """

    needs_teachers: ClassVar[bool] = False  # asks the teachers themselves, not their combination alone
    needs_every_class: ClassVar[bool] = False  # may keep any class, so that a wide archive will not do
    by_order: ClassVar[bool] = False  # goes by the order of the classes alone, which no temperature changes

    def label(self, base: Any = None) -> str:
        """A short name for files and tables: ``k20``; with ``base`` (settings or a rule) also what differs from it."""
        return "-".join([self.name, *(f"{name}{_text(getattr(self, name))}" for name in self.parameters)])

    def title(self) -> str:
        """The same for people: ``k = 20``."""
        return ", ".join([self.name, *(f"{name} = {_text(getattr(self, name))}" for name in self.parameters)])

    def reference(self, probs: np.ndarray, utt: str = "", teachers: Teachers = ()) -> Frames:
        """The definition: (T, C) float32 probabilities -> a list of (pdf-id, probability) for each frame, in any order.

        ``utt`` seeds what is drawn. A frame without entries keeps its largest, which need not be written here.
        """
        raise NotImplementedError

    # ---- what makes it faster

    @property
    def exact(self) -> Optional[int]:
        """How many entries every frame must get; None where that depends on the frame."""
        return None

    def usual(self) -> float:
        """Entries per frame, roughly, for a forecast."""
        return float(self.exact or 10)

    def reach(self, columns: Optional[int]) -> Optional[int]:
        """How many of a frame's largest entries the rule looks at; None: at all. ``columns``: how many there are, if
        known. A rule that gives a number says by `trim` which of them are kept.
        """
        return None

    def trim(self, entries: Entries) -> np.ndarray:
        """(T,) how many of its entries each frame keeps, the first ones."""
        return entries.counts

    def compiled(self, probs: Matrix, utt: str, threads: Optional[int]) -> Optional[Entries]:
        """What `choose` gives, by a kernel that checks the probabilities; None where it is missing or refuses a row."""
        return None

    def choose(self, probs: np.ndarray, utt: str, threads: Optional[int], teachers: Teachers = ()) -> Entries:
        """The entries of a posterior (T, C) float32 that `trim` is then given. Raises ValueError."""
        return listed(self.reference(probs, utt, teachers), probs)

    def choose_sparse(self, rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int, utt: str) -> Entries:
        """The same of sparse entries: rows (n,) ascending, ids (n,), probs (n,) float32. An empty frame stays empty."""
        counts = np.bincount(rows, minlength=frames)
        inside = np.arange(max(1, int(counts.max(initial=0)))) < counts[:, None]
        order = np.lexsort((ids, rows))
        column_ids, columns = np.zeros(inside.shape, np.int64), np.zeros(inside.shape, np.float32)
        column_ids[inside], columns[inside] = ids[order], probs[order]  # the classes there are, by rising pdf-id
        chosen = self.choose(columns, utt, None)
        real = (np.arange(chosen.ids.shape[1]) < chosen.counts[:, None]) & (chosen.ids < counts[:, None])
        row, place = np.nonzero(real)
        return sort_entries(row, column_ids[row, chosen.ids[row, place]], chosen.probs[row, place], frames)


class PrefixRule(Rule):
    """A rule that keeps the first entries of each frame: `trim` says how many."""

    def choose(self, probs: np.ndarray, utt: str, threads: Optional[int], teachers: Teachers = ()) -> Entries:
        return all_of(*largest.top_k(probs, probs.shape[1], threads=threads))

    def choose_sparse(self, rows: np.ndarray, ids: np.ndarray, probs: np.ndarray, frames: int, utt: str) -> Entries:
        return sort_entries(rows, ids, probs, frames)


T = TypeVar("T", bound=Rule)
RULES: Registry = Registry("selection rule", __name__)


def register_rule(cls: Type[T]) -> Type[T]:
    """Class decorator: a subclass of `Rule` becomes the selection rule of its ``name``, a dataclass of its parameters.

    Raises UserError for a name that another rule has.

    >>> import numpy as np
    >>> from essence_kd import EssenceSettings, Rule, parameter, register_rule, select
    >>> @register_rule
    ... class Half(Rule):
    ...     name = "half"
    ...     share: float = parameter(0.5, "of the largest", lambda share: 0 < share <= 1, "above 0 and at most 1")
    ...
    ...     def reference(self, probs, utt="", teachers=()):
    ...         return [[(c, p) for c, p in enumerate(row) if p >= self.share * row.max()] for row in probs]
    >>> probs = np.array([[0.125, 0.25, 0.125, 0.5]], np.float32)
    >>> select(probs, EssenceSettings(select="half", mass="keep", parameters={"share": 0.4})).ids.tolist()
    [3, 1]
    """
    return add_to(RULES, cls)


def by_value(row: np.ndarray) -> List[int]:
    """The pdf-ids of a row (C,) by falling value, ties by rising pdf-id: the plain way."""
    return sorted(range(len(row)), key=lambda c: (-row[c], c))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
