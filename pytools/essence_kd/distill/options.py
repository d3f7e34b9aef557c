"""The options of `EssenceSettings` that verbs share."""
from __future__ import annotations

from dataclasses import fields, replace

from essence_kd.distill.essence import EssenceSettings
from essence_kd.distill.mass_rules import MASS_RULES
from essence_kd.distill.rules import RULES
from essence_kd.io.errors import UserError
from essence_kd.io.settings import load_settings

SELECTION = ("select", "top_k", "top_p", "max_k", "min_post", "mass", "temperature", "seed")


def add_settings_arguments(parser, names=SELECTION) -> None:
    """--config, options for these fields of `EssenceSettings`, and --set; help prints the defaults."""
    parser.add_argument("--config", metavar="YAML", help="settings (conf/essence.yaml); the options below win over it")
    for part in fields(EssenceSettings):
        if part.name not in names:
            continue
        registry = {"select": RULES, "mass": MASS_RULES}.get(part.name)
        text, metavar, kind = part.metadata["help"], part.name.rpartition("_")[2][0].upper(), type(part.default)
        if registry is not None:
            text, metavar = f"{text}: {', '.join(registry.names(plugins=False))}, or a plugin's", "NAME"
        default = f"{part.default:g}" if kind is not str else part.default
        parser.add_argument(option(part.name), type=kind, metavar=metavar, help=f"{text} (default: {default})")
    parser.add_argument("--set", action="append", metavar="NAME=VALUE",
                        help="a setting, or a parameter of a plugin's rule (repeat it)")


def option(name: str) -> str:
    """A field's name as an option."""
    return "--" + name.replace("_", "-")


def essence_settings(args) -> EssenceSettings:
    """EssenceSettings from --config, --set and the options. Raises UserError for values without meaning."""
    known = EssenceSettings.__dataclass_fields__
    overrides = [given if given.partition("=")[0].strip().partition(".")[0] in known else f"parameters.{given}"
                 for given in args.set or []]
    settings = load_settings(EssenceSettings, args.config, overrides)
    given = {name: getattr(args, name, None) for name in known}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    try:
        settings.check()
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise UserError(f"{option(name)} {rest}" if name in known else f"--set: {error}") from None
    return settings
