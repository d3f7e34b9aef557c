"""k2 may live in a Python of its own, of another torch: the essence command runs there then."""
from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

import essence_kd
from essence_kd.decode.decoder import Unavailable
from essence_kd.io.errors import UserError, ended
from essence_kd.io.resources import checkout

_NO_K2 = 97  # exit status of a Python that cannot import k2
# k2's own Python starts here: says why k2 cannot be used there, or runs the same verb.
_BOOT = f"""
import sys
sys.path[:] = filter(None, sys.path)  # not the working directory
import signal
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    import numpy, yaml, torch, k2
    torch.zeros(1)
except BaseException as error:
    open(sys.argv[1], "w").write(" ".join(f"{{type(error).__name__}}: {{error}}".split())[:300])
    sys.exit({_NO_K2})
from essence_kd.cli.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""


def k2_here() -> bool:
    """Whether this Python can import k2."""
    if importlib.util.find_spec("k2") is None:
        return False
    try:
        import k2  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def run_in_k2_python(command: list[str]) -> int:
    """The exit status of ``essence COMMAND...`` in the Python that has k2. Raises Unavailable where there is none."""
    python, fix = k2_python()
    if python is None:
        fix = "local/setup_env.sh sets it up" if checkout() else "set ESSENCE_K2_PYTHON to a Python that has it"
        raise Unavailable(f"there is no k2: neither in this Python, nor $ESSENCE_K2_PYTHON, nor .venv-k2 ({fix})")
    with tempfile.TemporaryDirectory(prefix="essence-k2-") as folder:
        reason = Path(folder) / "reason"
        # this package alone: beside it may lie packages of this Python, which are not for the other one
        (Path(folder) / "essence_kd").symlink_to(Path(essence_kd.__file__).resolve().parent)
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            process = subprocess.Popen([python, "-c", _BOOT, str(reason), *command],
                                       env={**os.environ, "PYTHONPATH": path})
        except OSError as error:
            raise Unavailable(f"k2's Python {python} cannot be started ({error.strerror}); {fix}") from None
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # it ends the processes that it has started; killed, it would leave them behind
            process.wait()
            raise
        if status == _NO_K2:
            raise Unavailable(f"k2's Python {python} has no usable k2 ({reason.read_text()}); {fix}")
    if status < 0:
        raise UserError(f"k2's process {ended(status)}; perhaps for want of memory: try a smaller --batch-rows or "
                        "--max-active, or --decoder kaldi")
    return status


def k2_python() -> tuple[str | None, str]:
    """The Python to look for k2 in, and the fix to tell when it fails."""
    def anew(venv: Path) -> str:
        return f"make it anew: rm -r {venv}; local/setup_env.sh" if checkout() else f"{venv} is broken"

    named = os.environ.get("ESSENCE_K2_PYTHON")
    if named:
        venv = Path(named).parent.parent
        made_here = venv.name == ".venv-k2"  # path.sh names it
        return named, anew(venv) if made_here else "set ESSENCE_K2_PYTHON to a Python that has k2"
    places = [Path(place) for place in [os.environ.get("WORK_DIR")] if place]
    for place in [*places, *Path(essence_kd.__file__).resolve().parents]:
        venv = place / ".venv-k2"
        if (venv / "bin").is_dir():
            return str(venv / "bin" / "python"), anew(venv)
    return None, ""
