"""The options of run.sh, and what of them makes no sense. Needs nothing but Python: it runs before any set-up."""
from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from essence_kd.hmm.gmm_kinds import KINDS
from essence_kd.io.errors import UserError
from essence_kd.io.pipes import pipes_allowed
from essence_kd.plan.recipe import OPTION_NAME, UNTRANSCRIBED, Recipe, is_share, read_recipe

LAST_STAGE = 10
ENGINES = ("native", "kaldi")
DECODERS = ("auto", "k2", "kaldi", "kaldi-lattice")  # that need no plugin
KALDIS_DECODER = "kaldi-lattice"  # needs the engine kaldi
COMBINE = ("mean", "logmean")
DEFAULT_SIZE = "default"
SAME = "same"  # --teacher-hears: what students hear
NNET3 = "nnet3"  # the name of all nnet3 teachers together
NNET3_TEACHERS = ("nnet3/tdnn", "nnet3/tdnn_lstm", "nnet3/blstm")
OF_RUN_SH = ("allow_pipes", "check", "cmd", "config", "force", "help", "work_dir")  # that the plan does not ask for


class OptionError(UserError):
    """An option that makes no sense: run.sh ends with status 2."""


@dataclass
class Options:
    """What run.sh was asked for, as text; run.sh has the defaults. Empty: the recipe's, or conf/essence.yaml's."""

    corpus: str
    size: str
    engine: str
    stage: str
    stop_stage: str
    nj: str
    seed: str
    decoder: str
    combine: str
    fuse: str
    ablation: str
    grid: str
    all_labels: str = "false"
    gmm: str = ""
    num_leaves: str = ""
    lm_order: str = ""
    lm_prune: str = ""
    rescore_lm_order: str = ""
    teachers: str = ""
    student: str = ""
    top_k: str = ""
    temperature: str = ""
    soft_weight: str = ""
    untranscribed: str = ""
    lattice_weight: str = ""
    min_confidence: str = ""
    teacher_hears: str = ""
    recipe_options: Dict[str, str] = field(default_factory=dict)  # options that the recipe declares, by name


def option_names() -> List[str]:
    """Names of the options that every corpus has."""
    return [f.name for f in fields(Options) if f.name != "recipe_options"]


def whole_number(name: str, text: str, low: int = 0) -> int:
    """The value of an option that takes a whole number. Raises OptionError."""
    if re.fullmatch("[0-9]{10,}", text):
        raise OptionError(f"--{name.replace('_', '-')} takes a whole number of at most nine digits, not '{text}'")
    if not re.fullmatch("[0-9]+", text) or int(text) < low:
        least = f" of at least {low}" if low else ""
        raise OptionError(f"--{name.replace('_', '-')} takes a whole number{least}, not '{text}'")
    return int(text)


def number(name: str, text: str) -> float:
    """The value of an option that takes a number. Raises OptionError."""
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"--{name.replace('_', '-')} takes a number, not '{text}'") from None


def corpora(root: Path) -> List[str]:
    """Names of the recipes of a checkout."""
    return sorted(conf.parent.name for conf in (root / "recipes").glob("*/recipe.conf"))


def model_file(root: Path, model: str) -> Path:
    """The file of a model: ``conf/models/NAME.yaml``, or ``conf/nnet3/NAME.xconfig`` of ``nnet3/NAME``."""
    return root / "conf" / (f"{model}.xconfig" if model.startswith("nnet3/") else f"models/{model}.yaml")


def run_name(options: Options) -> str:
    """What data/ and exp/ call the run: the corpus, and size and engine where these are not the usual ones."""
    return "_".join([options.corpus] + [options.size] * (options.size != DEFAULT_SIZE)
                    + [options.engine] * (options.engine != "native"))


def check_options(options: Options, root: Path) -> None:
    """Everything that can be said of the options alone. ``root``: the checkout. Raises OptionError."""
    for name in ("stage", "stop_stage"):
        if whole_number(name, getattr(options, name)) > LAST_STAGE:
            raise OptionError(f"there is no stage {getattr(options, name)}: stages are 0 to {LAST_STAGE}")
    if int(options.stage) > int(options.stop_stage):
        raise OptionError(f"--stage {options.stage} comes after --stop-stage {options.stop_stage}")
    whole_number("seed", options.seed)
    whole_number("nj", options.nj, 1)
    if options.lm_order:
        whole_number("lm_order", options.lm_order, 1)
    if options.lm_prune and not is_share(options.lm_prune):
        raise OptionError(f"--lm-prune takes a number of at least 0 and less than 1, not '{options.lm_prune}'")
    if options.num_leaves:
        whole_number("num_leaves", options.num_leaves, 1)
    if options.rescore_lm_order:
        whole_number("rescore_lm_order", options.rescore_lm_order)
    for k in options.top_k.split():
        whole_number("top_k", k, 1)
    for name in ("temperature", "soft_weight", "min_confidence", "lattice_weight"):
        if getattr(options, name):
            number(name, getattr(options, name))
    if options.corpus not in corpora(root):
        raise OptionError(f"unknown corpus '{options.corpus}'; there are: {' '.join(corpora(root))}")
    for what, value, known in (("engine", options.engine, ENGINES), ("combine", options.combine, COMBINE)):
        if value not in known:
            raise OptionError(f"unknown {what} '{value}'; there are: {' '.join(known)}")
    if options.gmm and options.gmm not in KINDS:
        raise OptionError(f"unknown gmm '{options.gmm}'; there are: {' '.join(KINDS)}")
    if options.engine == "kaldi" and options.gmm not in ("", KINDS[-1]):
        raise OptionError(f"--gmm {options.gmm} needs --engine native: the engine kaldi trains {KINDS[-1]}")
    if options.decoder not in DECODERS and not os.environ.get("ESSENCE_PLUGINS"):  # what a plugin has, the plan asks
        raise OptionError(f"unknown decoder '{options.decoder}'; there are: {' '.join(DECODERS)}")
    if options.decoder == KALDIS_DECODER and options.engine != "kaldi":
        raise OptionError(f"--decoder {options.decoder} needs --engine kaldi")
    if options.engine == "kaldi" and not pipes_allowed():
        raise OptionError("--allow-pipes false goes with --engine native alone: Kaldi's scripts are made of pipes")
    for name in ("min_confidence", "lattice_weight"):
        if getattr(options, name) and not 0 <= float(getattr(options, name)) <= 1:
            raise OptionError(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be from 0 to 1")
    if options.untranscribed and options.untranscribed not in UNTRANSCRIBED:
        raise OptionError(f"--untranscribed takes {', '.join(UNTRANSCRIBED[:-1])} or {UNTRANSCRIBED[-1]}, not "
                          f"'{options.untranscribed}'")
    for name in ("fuse", "ablation", "all_labels"):
        if getattr(options, name) not in ("true", "false"):
            raise OptionError(f"--{name.replace('_', '-')} takes true or false, not '{getattr(options, name)}'")
    if options.ablation == "true" and options.fuse == "true":
        raise OptionError("--ablation prunes the wide archive, which --fuse true does not leave")
    if options.lattice_weight and options.fuse == "true":
        raise OptionError("--lattice-weight is of the wide archive, which --fuse true does not leave")
    if options.all_labels == "true" and options.fuse == "true":
        raise OptionError("--all-labels needs the dense archive, which --fuse true does not leave")
    if not (root / options.grid).is_file():
        raise OptionError(f"no grid '{options.grid}'")
    if len(options.student.split()) != len(set(options.student.split())):
        raise OptionError(f"--student names a model twice: '{options.student}'")
    for name, value in options.recipe_options.items():
        if name.endswith("_dir") and value and not Path(value).is_dir():
            raise OptionError(f"no folder '{value}' for --{name.replace('_', '-')}")


def check_work_dir(work_dir: str) -> None:
    """Whether tables in this folder can be named. Raises OptionError."""
    if not work_dir:
        raise OptionError("--work-dir takes a folder, not ''")
    path = os.path.realpath(work_dir)
    for pattern, what in ((",", "a comma in its name, where Kaldi's ark,scp:FILE,FILE would be divided"),
                          ("\n", "a line break in its name, where tables would be divided"),
                          ("[\ud800-\udfff]", "a byte in its name that is not UTF-8, which tables cannot hold"),
                          ("JOB", "JOB in its name, which stands for the number of a job")):
        if re.search(pattern, path):
            raise OptionError(f"{path if path.isprintable() else ascii(path)} has {what}: choose another folder with "
                              "--work-dir")


def find_recipe(options: Options, root: Path) -> Tuple[Options, Recipe]:
    """The recipe of the corpus, and the options with a size of it: for ``default``, where it has none of that name, its
    first. The options are those that ``check_options`` has let pass. Raises UserError."""
    path = root / "recipes" / options.corpus / "recipe.conf"
    recipe = read_recipe(path, size=options.size, fuse=options.fuse, given=options.recipe_options)
    if options.size == DEFAULT_SIZE and recipe.sizes and DEFAULT_SIZE not in recipe.sizes:
        options = replace(options, size=recipe.sizes[0])
        recipe = read_recipe(path, size=options.size, fuse=options.fuse, given=options.recipe_options)
    return options, recipe


def check_recipe(options: Options, recipe: Recipe) -> None:
    """What the recipe of the corpus allows. Raises OptionError, UserError for an option that no recipe can declare."""
    for name in recipe.options:
        taken = name in (*option_names(), *OF_RUN_SH)
        if taken or not OPTION_NAME.fullmatch(name):
            why = "an option of run.sh: choose another" if taken else "no name: write small letters, digits and '_'"
            raise UserError(f"{recipe.path}: options: '{name}' is {why}")
    for name in options.recipe_options:
        if name not in recipe.options:
            raise OptionError(f"corpus {options.corpus} has no option --{name.replace('_', '-')}")
    asked = options.untranscribed or recipe.untranscribed
    if asked != "false" and not recipe.untranscribed_sets and options.size in recipe.sizes:
        raise OptionError(f"corpus {options.corpus} has no untranscribed audio: {recipe.path} names no "
                          "untranscribed_sets")
    for name in ("lattice_weight", "min_confidence", "teacher_hears"):
        if getattr(options, name) and asked == "false":
            raise OptionError(f"--{name.replace('_', '-')} is of the utterances of --untranscribed true or only")
    if options.teacher_hears not in ("", SAME):
        for pair in options.teacher_hears.split():
            name, _, heard = pair.partition("=")
            if name not in recipe.untranscribed_sets or heard not in recipe.teacher_hears.values():
                raise OptionError(f"--teacher-hears '{pair}': neither {SAME} nor a pair of an untranscribed set "
                                  f"({' '.join(recipe.untranscribed_sets)}) and a rendering that the recipe has "
                                  f"({' '.join(recipe.teacher_hears.values())})")
    if options.engine not in recipe.engines:
        raise OptionError(f"corpus {options.corpus} needs --engine {' '.join(recipe.engines)}")
    if options.size not in recipe.sizes:
        raise OptionError(f"corpus {options.corpus} has no size '{options.size}'; it has: {' '.join(recipe.sizes)}")


def model_names(given: str, default: str) -> List[str]:
    """Models of ``--teachers``: the recipe's where nothing or ``torch`` was given, ``nnet3`` is all of conf/nnet3."""
    names: Optional[str] = None if given in ("", "torch") else given
    if names == NNET3:
        return list(NNET3_TEACHERS)
    return (names or "").split() or default.split()


def student_names(given: str, default: str) -> List[str]:
    """Models of ``--student``. Raises OptionError for those of Kaldi's, which learn elsewhere (recipes/plugin)."""
    names = model_names(given, default)
    for name in names:
        if name.startswith("nnet3/"):
            raise OptionError(f"student {name}: students are models of conf/models")
    return names


def check_models(models: List[str], engine: str, root: Path) -> None:
    """Whether every model has a file, and nnet3 its engine. Raises OptionError."""
    for model in models:
        if model.startswith("nnet3/") and engine != "kaldi":
            raise OptionError(f"teacher {model} needs --engine kaldi")
        if model.split("/")[-1].startswith(".") or "/" in model[model.startswith("nnet3/") and 6:]:
            raise OptionError(f"'{model}' is no model: name files of conf/models without .yaml")
        path = model_file(root, model)
        if not path.is_file():
            raise OptionError(f"no {path.relative_to(root)} for model '{model}'")
