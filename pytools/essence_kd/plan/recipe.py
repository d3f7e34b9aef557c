"""recipe.conf of a corpus: shell assignments, as bash reads them."""
from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List

from essence_kd.io.errors import UserError

# Variables of recipe.conf. Lists are words with blanks between.
TEXT = ("description", "student", "lm_order", "rescore_lm_order")
NUMBERS = ("post_keep", "disk_mb", "clips")
LISTS = ("sizes", "engines", "train_set", "dev_set", "eval_sets", "untranscribed_sets", "teachers", "options")
OPTIONAL = {"rescore_lm_order": "", "engines": "native kaldi", "untranscribed_sets": "", "options": "", "labels": "",
            "clips": "0"}
PAIRS = ("labels",)
_VARIABLES = (*TEXT, *NUMBERS, *LISTS, *PAIRS)


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
    post_keep: int  # classes a frame in the wide archive
    disk_mb: int
    options: List[str] = field(default_factory=list)  # of prepare_data.sh, which run.sh takes, too


def read_recipe(path: Path, *, size: str, fuse: str = "false") -> Recipe:
    """Source ``path`` in bash, with ``size`` and ``fuse`` set, and take its variables.

    Raises:
      UserError: bash refuses the file, a variable is missing or has a value of another kind.
    """
    # what the environment has under a name is not the recipe's
    script = ('unset "${@:4}"; size=$2 fuse=$3; . "$1" || exit 1; shift 3; '
              'for v; do [ -z "${!v+set}" ] || printf "%s=%s\\0" "$v" "${!v}"; done')
    done = subprocess.run(["bash", "-c", script, "bash", os.fspath(path), size, fuse, *_VARIABLES], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"{path}: bash cannot read it: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found = {**OPTIONAL, **dict(part.split("=", 1) for part in done.stdout.split("\0") if part)}
    if size not in found.get("sizes", size).split():  # the sizes are all that such a recipe has to say
        found = {**dict.fromkeys((*TEXT, *LISTS), ""), **dict.fromkeys(NUMBERS, "0"), **found}
    missing = [name for name in _VARIABLES if name not in found]
    if missing:
        raise UserError(f"{path}: says nothing of {missing[0]}")
    for name in NUMBERS:
        if not found[name].isdigit():
            raise UserError(f"{path}: {name} is '{found[name]}', not a whole number")
    labels = [pair.split("=", 1) for pair in found["labels"].split()]
    if any(len(pair) != 2 for pair in labels):
        raise UserError(f"{path}: labels are pairs such as 'eval_swbd=SWBD', not '{found['labels']}'")
    return Recipe(
        path=path, labels=dict(labels), **{name: found[name] for name in (*TEXT, "train_set", "dev_set", "teachers")},
        **{name: int(found[name]) for name in NUMBERS},
        **{name: found[name].split() for name in ("sizes", "engines", "eval_sets", "untranscribed_sets", "options")})
