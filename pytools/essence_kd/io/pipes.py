"""Whether shell commands that stand in the place of files (``command |``, ``| command``) may run.

They may, as in Kaldi, unless the environment variable ``ESSENCE_ALLOW_PIPES`` is ``false``. ``./run.sh --allow-pipes
false`` and the same option of every verb set it; processes that a verb starts inherit it. SECURITY.md lists what else
runs code.
"""
from __future__ import annotations

import os

from essence_kd.io.errors import UserError

ALLOW_PIPES = "ESSENCE_ALLOW_PIPES"


def pipes_allowed() -> bool:
    """False where commands are refused. Raises UserError where the variable is neither true nor false."""
    value = os.environ.get(ALLOW_PIPES) or "true"
    if value not in ("true", "false"):
        raise UserError(f"{ALLOW_PIPES} is '{value}': set it to true or false")
    return value == "true"


def check_pipe(command: str, where: str = "") -> None:
    """Refuses a command where pipes are not allowed: a UserError that starts with ``where`` (file, line and id)."""
    if not pipes_allowed():
        start = f"{where}: " if where else ""
        raise UserError(f"{start}the command '{command.strip()}' is not run: pipes are refused (--allow-pipes false, "
                        f"or {ALLOW_PIPES}=false): name a file, or allow them if you trust who wrote this")
