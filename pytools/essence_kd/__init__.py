"""Essence knowledge distillation for hybrid speech recognition.

What a program imports stands in ``__all__``; it is loaded when it is first asked for (docs/api.md).
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "io.errors": ("UserError",),
    "io.posterior": ("Posterior", "read_posteriors", "write_posteriors"),
    "io.resources": ("conf_file",),
    "io.tables": ("read_matrices",),
    "hmm.alignment_dir": ("read_alignments",),
    "distill.entries": ("Essence",),
    "distill.essence": ("EssenceSettings", "select"),
    "distill.ensemble": ("Ensemble", "combine"),
    "distill.losses": ("Loss", "register_loss"),
    "distill.losses.cross_entropy": ("multitask_loss", "sparse_soft_cross_entropy"),
    "distill.mass_rules": ("MassRule", "register_mass_rule"),
    "distill.parameters": ("parameter",),
    "distill.rules": ("Rule", "register_rule"),
    "distill.scales": ("Scale",),
    "am.forward": ("forward", "load_model"),
    "am.models.registry": ("build_model", "register_model"),
    "decode.decoder": ("Decoded", "Decoder", "register_decoder"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["decode", *_HOME]

if TYPE_CHECKING:  # what editors and type checkers see
    from essence_kd import decode
    from essence_kd.am.forward import forward, load_model
    from essence_kd.am.models.registry import build_model, register_model
    from essence_kd.decode.decoder import Decoded, Decoder, register_decoder
    from essence_kd.distill.ensemble import Ensemble, combine
    from essence_kd.distill.entries import Essence
    from essence_kd.distill.essence import EssenceSettings, select
    from essence_kd.distill.losses import Loss, register_loss
    from essence_kd.distill.losses.cross_entropy import multitask_loss, sparse_soft_cross_entropy
    from essence_kd.distill.mass_rules import MassRule, register_mass_rule
    from essence_kd.distill.parameters import parameter
    from essence_kd.distill.rules import Rule, register_rule
    from essence_kd.distill.scales import Scale
    from essence_kd.hmm.alignment_dir import read_alignments
    from essence_kd.io.errors import UserError
    from essence_kd.io.posterior import Posterior, read_posteriors, write_posteriors
    from essence_kd.io.resources import conf_file
    from essence_kd.io.tables import read_matrices


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "decode":  # the package of this name, which can be called
        return import_module(f"{__name__}.decode")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
