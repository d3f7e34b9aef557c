"""Selection of the essence of a posterior: what a rule keeps of each frame, and what the mass rule makes of it.

Legend: T frames, C pdfs, k entries per frame. A posterior is a row of C probabilities; its essence is a few
(pdf-id, probability) pairs, ordered by falling probability, ties by rising pdf-id. Values are compared as float32,
the type in which they are stored. Rules are in rules/, mass rules in mass_rules/; the definition is `reference_select`.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Sequence, Type, TypeVar

import numpy as np

from essence_kd.distill.entries import Entries, Essence, all_of, check_entries, mass_of
from essence_kd.distill.largest import top_k, top_k_of_mixture
from essence_kd.distill.mass_rules import MASS_RULES, MassRule
from essence_kd.distill.mass_rules.renorm import Renorm
from essence_kd.distill.parameters import Parametrised, borrowed, build, check_fields, parameter
from essence_kd.distill.rules import RULES, Frames, Rule, by_value
from essence_kd.distill.rules.agree import Agree
from essence_kd.distill.rules.min_post import MinPost
from essence_kd.distill.rules.random_prune import RandomPrune
from essence_kd.distill.rules.top_k import TopK
from essence_kd.distill.rules.top_p import TopP
from essence_kd.distill.scales import Matrix, Scale, as_float32, to_probabilities
from essence_kd.io.posterior import Posterior

T = TypeVar("T", bound=Parametrised)


@dataclass
class EssenceSettings:
    """What to keep of a posterior, and its weight in training (conf/essence.yaml says what differs from this).

    >>> from essence_kd import EssenceSettings
    >>> settings = EssenceSettings(select="top-p", top_p=0.9, max_k=40, mass="residual")
    >>> settings.check()  # ValueError for what has no meaning
    >>> settings.rule()
    TopP(top_p=0.9, max_k=40)
    """

    select: str = parameter(TopK.name, "selection rule")
    top_k: int = borrowed(TopK, "top_k")
    top_p: float = borrowed(TopP, "top_p")
    max_k: int = borrowed(TopP, "max_k")
    min_post: float = borrowed(MinPost, "min_post")
    agree: int = borrowed(Agree, "agree")
    mass: str = parameter(Renorm.name, "mass rule")
    temperature: float = parameter(1.0, "temperature of the result", lambda t: 0 < t < float("inf"), "above 0")
    seed: int = borrowed(RandomPrune, "seed")
    soft_weight: float = parameter(0.9, "weight of the soft target, where hard and soft are mixed",
                                   lambda weight: 0 <= weight <= 1, "from 0 to 1")
    parameters: dict = field(default_factory=dict)  # of the rule and the mass rule, where they have others than these

    def check(self) -> None:
        """Raises ValueError, naming the field, for a value that has no meaning."""
        for name, registry in (("select", RULES), ("mass", MASS_RULES)):
            if getattr(self, name) not in registry:
                raise ValueError(f"{name} must be one of {', '.join(registry.names())}, not {getattr(self, name)}")
        check_fields(self)
        rule, mass = RULES.get(self.select), MASS_RULES.get(self.mass)
        known = [name for name in (*rule.parameters, *mass.parameters) if name not in self.__dataclass_fields__]
        for name in self.parameters:
            if name not in known:
                raise ValueError(f"parameters: {self.select} and {self.mass} have no parameter '{name}'"
                                 + (f" (known: {', '.join(known)})" if known else ""))
        self.rule()
        self.mass_rule()

    def rule(self) -> Rule:
        """The selection rule with its parameters. Raises UserError, ValueError."""
        return self._entry(RULES.get(self.select))

    def mass_rule(self) -> MassRule:
        """The mass rule with its parameters. Raises UserError, ValueError."""
        return self._entry(MASS_RULES.get(self.mass))

    def _entry(self, cls: Type[T]) -> T:
        values = {name: getattr(self, name) for name in cls.parameters if name in self.__dataclass_fields__}
        if len(values) == len(cls.parameters):
            return cls(**values)
        values.update((name, self.parameters[name]) for name in cls.parameters if name in self.parameters)
        return build(cls, values, "parameters")


def reference_select(probs: np.ndarray, settings: EssenceSettings, utt: str = "",
                     teachers: Sequence[np.ndarray] = ()) -> Frames:
    """The definition of selection over one posterior: (T, C) float32 -> a list of (pdf-id, probability) per frame.

    Probabilities before the mass rule, save that a rule may have changed what it kept. A rule that would leave a frame
    without entries keeps its largest.
    """
    frames = settings.rule().reference(probs, utt, teachers)
    return [entries or [(by_value(row)[0], float(row.max()))] for entries, row in zip(frames, probs)]


def select(matrix: Matrix, settings: EssenceSettings, *, kind: str = "prob", utt: str = "",
           threads: Optional[int] = None, teachers: Sequence[np.ndarray] = ()) -> Essence:
    """The essence of a dense posterior at ``settings.temperature``: (T, C) float -> Essence of T frames.

    ``kind``: prob, log or logit. ``utt`` seeds random-prune together with ``settings.seed``. ``teachers``: (T, C) each,
    on any order-preserving scale, for a rule that asks them. Raises FrameError (NaN, not a posterior), ValueError (k
    above C, a rule without meaning).

    >>> import numpy as np
    >>> from essence_kd import EssenceSettings, select
    >>> probs = np.array([[0.125, 0.5, 0.125, 0.25], [0.25, 0.0, 0.75, 0.0]], np.float32)
    >>> essence = select(probs, EssenceSettings(top_k=2, mass="keep"))
    >>> ids, kept = essence.fixed()  # (T, k) each, int32 and float32
    >>> ids.tolist(), kept.tolist()
    ([[1, 3], [2, 0]], [[0.5, 0.25], [0.75, 0.25]])
    >>> select(np.log(probs[:1]), EssenceSettings(top_k=2), kind="logit").probs.round(3)  # the mass rule is renorm
    array([0.667, 0.333], dtype=float32)
    """
    settings.check()
    rule, mass = settings.rule(), settings.mass_rule()
    scale = Scale(kind, settings.temperature)
    matrix = as_float32(matrix)
    frames, columns = matrix.shape
    if frames == 0:
        return _empty()
    if rule.needs_teachers and not teachers:
        raise ValueError(f"{rule.name} needs the teachers themselves (dump-post --fuse), not one posterior")
    plain = scale.plain and kind == "prob"
    if not plain:
        matrix = matrix[:]  # from the file, where it is stored
    k = rule.reach(columns)
    if k is None:
        probs = matrix if plain else to_probabilities(matrix, scale, threads=threads)
        entries = rule.compiled(probs, utt, threads)
        if entries is None:
            if plain:
                probs = to_probabilities(matrix[:], scale, threads=threads)
            entries = rule.choose(probs, utt, threads, teachers)
    elif plain:
        entries = all_of(*top_k(matrix, k, kind="prob", threads=threads))
    else:
        entries = all_of(*top_k_of_mixture(lambda rows: [(*scale.logs(matrix[rows], rows.start), 1.0)], matrix.shape, k,
                                           check=lambda rows: scale.check(matrix[rows], rows.start), threads=threads))
    return _finish(entries, rule, mass)


def select_sparse(offsets: np.ndarray, ids: np.ndarray, probs: np.ndarray, settings: EssenceSettings, *,
                  utt: str = "", source_temperature: float = 1.0) -> Essence:
    """The essence of a sparse posterior, such as a wide archive: entries offsets[t] to offsets[t + 1] of frame t.

    A frame with fewer entries than a rule asks for keeps them all; one without any stays empty. A temperature other
    than the source's is possible where no other class matters: top-k with mass renorm. Entries of the same pdf are
    added up. Raises FrameError (entries that are no probabilities), ValueError.
    """
    settings.check()
    rule, mass = settings.rule(), settings.mass_rule()
    offsets = np.asarray(offsets, np.int64)
    if len(offsets) <= 1:
        return _empty()
    if rule.needs_teachers:
        raise ValueError(f"{rule.name} needs the teachers themselves (dump-post --fuse), not one posterior")
    tempered = settings.temperature != source_temperature
    if tempered and not (rule.by_order and mass.scale_free):
        raise ValueError(f"temperature {settings.temperature} from entries at {source_temperature} needs every class, "
                         f"except with top-k and mass renorm")
    probs = np.ascontiguousarray(probs, np.float32)
    counts = np.diff(offsets)
    rows = np.repeat(np.arange(len(counts)), counts)
    check_entries(rows, np.asarray(ids), probs, len(counts))
    post = Posterior(offsets, ids, probs).as_targets()
    if post.num_entries < len(rows):
        rows = np.repeat(np.arange(len(counts)), post.counts())
    essence = _finish(rule.choose_sparse(rows, post.ids, post.probs, len(counts), utt), rule, mass)
    if tempered:
        powered = essence.probs.astype(np.float64) ** (source_temperature / settings.temperature)
        return essence._replace(probs=_applied(mass, essence.offsets, powered))
    return essence


def entries_of(ids: np.ndarray, probs: np.ndarray, settings: EssenceSettings) -> Essence:
    """Apply a rule that looks at the largest entries of each frame alone (`Rule.reach`), and the mass rule, to these.

    ``ids``, ``probs`` (T, W), by falling probability; W must reach as far as the rule can.
    """
    return _finish(all_of(ids, probs), settings.rule(), settings.mass_rule())


def _empty() -> Essence:
    return Essence(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32))


def _finish(entries: Entries, rule: Rule, mass: MassRule) -> Essence:
    """How many of its sorted entries each frame keeps, and the mass rule."""
    counts = rule.trim(entries)
    width = int(counts.max(initial=0))
    ids, probs = entries.ids[:, :width], entries.probs[:, :width]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if (counts == width).all():
        ids, probs = ids.reshape(-1), probs.reshape(-1)
    else:
        chosen = np.arange(width) < counts[:, None]
        ids, probs = ids[chosen], probs[chosen]
    return Essence(offsets, np.ascontiguousarray(ids, np.int32), _applied(mass, offsets, probs),
                   mass_of(offsets, probs).astype(np.float32))


def _applied(mass: MassRule, offsets: np.ndarray, probs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mass.apply(offsets, probs), np.float32)
