"""What these scripts share: the package on the path, the cost of a command, how a script begins and ends."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "pytools"))
os.environ.setdefault("KALDI_ROOT", "")

from essence_kd.io.errors import UserError  # noqa: E402

ESSENCE = [sys.executable, "-m", "essence_kd"]


class Cost(NamedTuple):
    """CPU seconds of a command and all that it started, seconds of the clock, MB of the largest process."""

    cpu: float
    seconds: float
    megabytes: float


def measured(command: list, env: "dict | None" = None, cwd: "Path | None" = None) -> Cost:
    """Run a command, ours on one thread; UserError with its last words when it fails."""
    env = env or {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "pytools")}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen([str(c) for c in command], stdout=said, stderr=said, env=env, cwd=cwd)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise UserError(f"{command[0]} failed: {' '.join(said.read().splitlines()[-3:])}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss * 1.024e-3)


def script(main: Callable[[], None]) -> None:
    """Run a script; its last line tells the machine's load, a user's mistake is one line."""
    load = os.getloadavg()[0]
    try:
        main()
    except UserError as error:
        sys.exit(f"{sys.argv[0]}: {error}")
    print(f"\n{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load average {load:.1f} before and "
          f"{os.getloadavg()[0]:.1f} after")
