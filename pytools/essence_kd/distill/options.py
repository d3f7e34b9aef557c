"""The selection options that verbs share."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from essence_kd.io.errors import UserError

if TYPE_CHECKING:
    from essence_kd.distill.essence import EssenceSettings


def add_selection_arguments(parser) -> None:
    """The options that fill `EssenceSettings`; an option wins over --config."""
    parser.add_argument("--config", metavar="YAML", help="settings (conf/essence.yaml); the options below win over it")
    parser.add_argument("--select", choices=("top-k", "top-p", "min-post", "random-prune", "agree"),
                        help="selection rule (default: top-k)")
    parser.add_argument("--top-k", type=int, metavar="K", help="classes a frame (default: 20)")
    parser.add_argument("--top-p", type=float, metavar="P", help="top-p: the mass to reach (default: 0.95)")
    parser.add_argument("--max-k", type=int, metavar="K", help="top-p: never more classes than this (default: 100)")
    parser.add_argument("--min-post", type=float, metavar="P",
                        help="min-post and random-prune: the threshold (default: 0.01)")
    parser.add_argument("--mass", choices=("renorm", "keep", "residual"), help="mass rule (default: renorm)")
    parser.add_argument("--temperature", type=float, metavar="T", help="temperature of the result (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of random-prune (default: 0)")


def selection_settings(args) -> EssenceSettings:
    """EssenceSettings from --config and the options. Raises UserError for values without meaning."""
    from essence_kd.distill.essence import EssenceSettings
    from essence_kd.io.settings import load_settings

    settings = load_settings(EssenceSettings, args.config)
    given = {name: getattr(args, name, None) for name in EssenceSettings.__dataclass_fields__}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    try:
        settings.check()
    except ValueError as error:
        option, _, rest = str(error).partition(" ")
        raise UserError(f"--{option.replace('_', '-')} {rest}") from None
    return settings
