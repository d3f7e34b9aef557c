"""recipe.conf of a corpus: shell assignments, as bash reads them."""
from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from essence_kd.hmm.gmm_kinds import DEFAULT, KINDS
from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.text import read_text

# Variables of recipe.conf. Lists are words with blanks between.
TEXT = ("description", "student", "gmm", "lm_order", "lm_prune", "rescore_lm_order", "untranscribed")
NUMBERS = ("post_keep", "disk_mb", "clips", "sample_rate", "num_leaves")
LISTS = ("sizes", "engines", "train_set", "dev_set", "eval_sets", "untranscribed_sets", "teachers", "options")
OPTIONAL = {"rescore_lm_order": "", "lm_prune": "0", "gmm": DEFAULT, "engines": "native kaldi",
            "untranscribed_sets": "", "untranscribed": "false", "teacher_hears": "", "options": "", "labels": "",
            "clips": "0", "sample_rate": str(SAMPLE_RATE), "num_leaves": "0"}
PAIRS = ("labels", "teacher_hears")
OPTION_NAME = re.compile("[a-z][a-z0-9_]*")  # of prepare_data.sh, as run.sh takes it
UNTRANSCRIBED = ("false", "true", "only")  # no student learns from such audio; each does beside one that does not; each
SET_NAME = re.compile(r"\w[\w.+-]*")  # directories are called so, and stages have them as words
NOT_A_SET = ("dict", "download", "lang", "lang_rescore", "lm", "lm_rescore", "total")  # DATA and tables have these
_VARIABLES = (*TEXT, *NUMBERS, *LISTS, *PAIRS)


def is_share(text: str) -> bool:
    """Whether a text is a number of at least 0 and less than 1."""
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]*)?(e-?[0-9]{1,3})?|\.[0-9]+", text)) and float(text) < 1


@dataclass
class Recipe:
    """What recipe.conf says of a corpus at one size."""

    path: Path
    description: str
    sizes: List[str]
    engines: List[str]
    train_set: str
    dev_set: str
    eval_sets: List[str]
    untranscribed_sets: List[str]
    labels: Dict[str, str]  # set -> its short name in tables
    teachers: str
    student: str
    lm_order: str
    rescore_lm_order: str
    clips: int  # so many utterances gained, and lost, sound in the report
    post_keep: int  # classes per frame in the wide archive
    disk_mb: int
    options: List[str] = field(default_factory=list)  # of prepare_data.sh, which run.sh takes, too
    sample_rate: int = SAMPLE_RATE  # Hz of the audio
    gmm: str = DEFAULT  # the last one that the native engine trains
    num_leaves: int = 0  # of its trees; 0: by the frames of training
    untranscribed: str = "false"  # as run.sh takes it
    lm_prune: str = "0"  # share of the perplexity; 0: the n-gram of the graph is whole
    teacher_hears: Dict[str, str] = field(default_factory=dict)  # untranscribed set -> the set that teachers hear of it


def read_recipe(path: Path, *, size: str, fuse: str = "false", given: Optional[Dict[str, str]] = None) -> Recipe:
    """Source ``path`` in bash, with ``size``, ``fuse`` and the options of its own that were given; take its variables.

    Raises:
      UserError: bash refuses the file, a variable is missing or has a value of another kind.
    """
    if "\r" in read_text(path):
        raise UserError(f"{path}: its lines end in carriage returns, which bash takes for parts of values: remove "
                        f"them, for example with \"sed -i 's/\\r$//' {path}\"")
    options = " ".join(f"{name}={shlex.quote(value)}" for name, value in (given or {}).items()
                       if OPTION_NAME.fullmatch(name))
    # what the environment has under a name is not the recipe's
    script = ('unset "${@:5}"; size=$2 fuse=$3; eval "$4"; . "$1" || exit 1; shift 4; '
              'for v; do [ -z "${!v+set}" ] || printf "%s=%s\\0" "$v" "${!v}"; done')
    done = subprocess.run(["bash", "-c", script, "bash", os.fspath(path), size, fuse, options, *_VARIABLES],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"{path}: bash cannot read it: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found = {**OPTIONAL, **dict(part.split("=", 1) for part in done.stdout.split("\0") if part)}
    if size not in found.get("sizes", size).split():  # the sizes are all that such a recipe has to say
        found = {**dict.fromkeys((*TEXT, *LISTS), ""), **dict.fromkeys(NUMBERS, "0"), **found}
    missing = [name for name in _VARIABLES if name not in found]
    if missing:
        raise UserError(f"{path}: says nothing of {missing[0]}")
    for name in NUMBERS:
        if not re.fullmatch("[0-9]{1,9}", found[name]):
            raise UserError(f"{path}: {name} is '{found[name]}', not a whole number")
    for name in ("lm_order", "rescore_lm_order"):
        if not re.fullmatch("[0-9]{0,9}", found[name]):
            raise UserError(f"{path}: {name} is '{found[name]}', not the order of an n-gram")
    if not is_share(found["lm_prune"]):
        raise UserError(f"{path}: lm_prune is '{found['lm_prune']}', not a number of at least 0 and less than 1")
    if found["untranscribed"] not in UNTRANSCRIBED:
        raise UserError(f"{path}: untranscribed is '{found['untranscribed']}', none of {', '.join(UNTRANSCRIBED)}")
    if found["gmm"] not in KINDS:
        raise UserError(f"{path}: gmm is '{found['gmm']}', none of {', '.join(KINDS)}")
    pairs = {}
    for name, example in zip(PAIRS, ("eval_swbd=SWBD", "found=found_clean")):
        parts = [pair.split("=", 1) for pair in found[name].split()]
        if any(len(pair) != 2 for pair in parts):
            raise UserError(f"{path}: {name} are pairs such as '{example}', not '{found[name]}'")
        pairs[name] = dict(parts)
    if size in found["sizes"].split():
        _check_sets(path, found, **pairs)
    values: Dict[str, Any] = {name: found[name] for name in (*TEXT, "train_set", "dev_set", "teachers")}
    values.update((name, int(found[name])) for name in NUMBERS)
    for name in ("sizes", "engines", "eval_sets", "untranscribed_sets", "options"):
        values[name] = found[name].split()
    values.update(pairs)
    return Recipe(path=path, **values)


def _check_sets(path: Path, found: Dict[str, str], labels: Dict[str, str], teacher_hears: Dict[str, str]) -> None:
    """Whether the sets can be told apart, on disk and in tables. Raises UserError."""
    for name in ("train_set", "dev_set", "eval_sets", "teachers", "student"):
        count = len(found[name].split())
        if not count or (count > 1 and name in ("train_set", "dev_set")):
            raise UserError(f"{path}: {name} is '{found[name]}': name {'one' if count else 'at least one'}")
    names = [s for role in ("train_set", "dev_set", "eval_sets", "untranscribed_sets") for s in found[role].split()]
    names += dict.fromkeys(teacher_hears.values())
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: set '{name}' comes twice among train_set, dev_set, eval_sets, "
                            "untranscribed_sets and what teacher_hears has")
        if not SET_NAME.fullmatch(name) or name in NOT_A_SET:
            raise UserError(f"{path}: a set cannot be called '{name}': write letters, digits, '_', '.', '+' and '-', "
                            f"and none of {', '.join(NOT_A_SET)}")
        for made in (name + end for end in ("_hires", "_sp", "_sp_hires", "_cut", "_cut_hires")):
            if made in names:
                raise UserError(f"{path}: a set cannot be called '{made}': stages make data of that name from set "
                                f"'{name}'")
    for name in teacher_hears:
        if name not in found["untranscribed_sets"].split():
            raise UserError(f"{path}: teacher_hears: '{name}' is none of untranscribed_sets")
    for name in labels:
        if name not in names:
            raise UserError(f"{path}: labels: there is no set '{name}' (there are: {', '.join(names)})")
    shown = ["total", *(labels.get(s, s) for role in ("dev_set", "eval_sets") for s in found[role].split())]
    for label in shown:
        if not label or shown.count(label) > 1:
            raise UserError(f"{path}: labels: two columns of the tables would be called '{label}'" if label else
                            f"{path}: labels are pairs such as 'eval_swbd=SWBD', not '{found['labels']}'")
