"""Says what this machine has of what the project uses, and what to do about what it does not have.

e.g.: essence doctor

A line begins with "ok", with "-" where something is not there that can be done without, or with "!" where something is
not there that ./run.sh needs. Ends with status 1 where there is such a line.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, NamedTuple, Optional

HELP = "what this machine has of what the project uses, and what to do about the rest"

GB = 1e9
MEMORY = 4 * GB  # of ./run.sh: its largest process takes 2.1 GB
DISK = 4 * GB  # of ./run.sh; 5 GB more of the set-up


class Found(NamedTuple):
    """What was found: ``ok`` is None for something that can be done without. ``fix`` says what to do about it."""

    ok: Optional[bool]
    text: str
    fix: str = ""


def add_arguments(parser) -> None:
    pass


def run(args) -> int:
    found = [(name, _looked_at(look)) for name, look in LOOKS.items()]
    for name, (ok, text, fix) in found:
        mark = {True: "ok", None: "-", False: "!"}[ok]
        print(f"{mark:<3}{name:<12}{text}")
        if fix:
            print(f"{'':<15}-> {fix}")
    needed = [name for name, result in found if result.ok is False]
    print("\n" + (f"missing for ./run.sh: {', '.join(needed)}; the lines with -> say what to do" if needed else
                  "everything that ./run.sh needs is here"))
    return int(bool(needed))


def _looked_at(look: Callable[[], Found]) -> Found:
    try:
        return look()
    except ImportError as error:  # a package that the row of packages names
        return Found(None, f"cannot be told without the package {error.name}")


def _output(*command: str) -> str:
    """The first line that a command prints, or nothing where it cannot be run."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
                              errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""


def _work_dir() -> Path:
    from essence_kd.io.resources import checkout

    return Path(os.environ.get("WORK_DIR") or checkout() or ".")


# ---- what is looked at

def _essence() -> Found:
    from essence_kd import __version__
    from essence_kd.io.resources import checkout

    root = checkout()
    return Found(True, f"{__version__}, " + (f"the checkout {root}" if root else f"installed for {sys.executable}"))


def _python() -> Found:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 14):
        return Found(None, f"{version}, {sys.executable}", "tried with 3.9 to 3.13; ESSENCE_BASE_PYTHON names another")
    return Found(True, f"{version}, {sys.executable}")


def _packages() -> Found:
    from essence_kd.io.requirements import first_missing
    from essence_kd.io.resources import checkout

    root = checkout()
    if root is None:
        return Found(None, "pip has looked after those of the installed package")
    lists = ("core", "recipe")
    lacks = first_missing(str(root / "conf" / "requirements" / f"{name}.txt") for name in lists)
    if lacks:
        return Found(False, f"{lacks} in {sys.executable}",
                     "./run.sh sets up an environment that has all of them (or at once: local/setup_env.sh)")
    return Found(True, f"all of conf/requirements/{{{','.join(lists)}}}.txt")


def _version(package: str) -> Found:
    from importlib import metadata

    try:
        return Found(True, metadata.version(package))
    except metadata.PackageNotFoundError:
        return Found(False, "not in this Python", "local/setup_env.sh, or pip install 'essence-kd[recipe]'")


def _gpu() -> Found:
    import torch

    if torch.cuda.is_available():
        return Found(True, ", ".join(f"{torch.cuda.get_device_name(n)} "
                                     f"({torch.cuda.get_device_properties(n).total_memory / GB:.0f} GB)"
                                     for n in range(torch.cuda.device_count())))
    if shutil.which("nvidia-smi"):
        return Found(None, f"nvidia-smi is here, but PyTorch {torch.__version__} sees no GPU",
                     "a build of PyTorch for your driver: ESSENCE_TORCH_INDEX=(its wheel page) local/setup_env.sh, "
                     "after rm -r .venv")
    return Found(None, "none: training and decoding use processors, which the embedded corpora are sized for")


def _k2() -> Found:
    from essence_kd.decode.k2_python import k2_here, k2_python

    python, fix = (sys.executable, "") if k2_here() else k2_python()
    without = "kaldi-decoder decodes instead, with nearly the same words"
    if python is None:
        reason = _work_dir() / ".venv-k2" / ".none"
        why = f" ({reason.read_text(encoding='utf-8').strip()})" if reason.is_file() else ""
        return Found(None, f"not here{why}: {without}",
                     f"{'ESSENCE_RETRY_K2=1 ' if why else ''}local/setup_env.sh sets it up where it can be had")
    told = _output(python, "-c", "import torch, k2, importlib.metadata as m; torch.zeros(1); "
                                 "print(m.version('k2'), 'with PyTorch', torch.__version__)")
    if not told:
        return Found(None, f"{python} has none that can be used: {without}", fix)
    return Found(True, f"{told}, {python}")


def _kernels() -> Found:
    import contextlib
    import io

    from essence_kd.io import kernels

    slow = "NumPy does their work, with the same results, 2 to 20 times slower"
    if os.environ.get("ESSENCE_KERNELS") == "off":
        return Found(None, f"off by ESSENCE_KERNELS: {slow}", "unset ESSENCE_KERNELS")
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        library = kernels.kernels()
    if library is None:
        reason = told.getvalue().strip().partition("(")[2].partition(")")[0]
        return Found(None, f"not compiled ({reason or 'this processor is big-endian'}): {slow}",
                     "apt-get install gcc libc6-dev, or CC names a C compiler")
    return Found(True, f"compiled ({library._name})")


def _compiler() -> Found:
    from essence_kd.io.kernels import compiler

    words = compiler()
    version = _output(*words, "--version")
    if not version:
        return Found(None, f"'{words[0]}' is not here or does not run", "apt-get install gcc libc6-dev")
    return Found(True, f"{version} ({shutil.which(words[0])})")


def _kaldi() -> Found:
    from essence_kd.io.resources import checkout

    root, check = os.environ.get("KALDI_ROOT"), checkout()
    if not root:
        return Found(None, "KALDI_ROOT is not set: nothing but --engine kaldi and recipes/plugin needs it",
                     "where you have a compiled Kaldi: export KALDI_ROOT=/path/to/kaldi")
    if not Path(root, "src", "bin", "copy-post").exists():
        return Found(None, f"{root} has no src/bin/copy-post", "compile it (tools/INSTALL, src/INSTALL)")
    if check:
        done = subprocess.run([check / "local" / "kaldi" / "check.sh", "--nnet3", "true", "--lattices", "true",
                               "--rescore", "true"], capture_output=True, text=True, errors="replace", cwd=check)
        if done.returncode:
            return Found(None, f"{root}, not whole", (done.stderr.strip().splitlines() or ["local/kaldi/check.sh"])[-1])
    return Found(True, root)


def _sclite() -> Found:
    from essence_kd.score.hub5 import find_sclite

    folder = find_sclite()
    if folder is None:
        return Found(None, "not here: our own aligner counts errors by time, with the same counts",
                     "apt-get install sctk, or a Kaldi at KALDI_ROOT with tools/sctk")
    return Found(True, str(folder / "sclite"))


def _cores() -> Found:
    from essence_kd.io import parallel
    from essence_kd.io.resources import checkout

    root = checkout()
    counted = _output(str(root / "local" / "cores.sh")) if root else ""
    cores = int(counted) if counted.isdigit() else parallel.cores()
    model, flags = "", set()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = model or value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
    kind = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    text = ", ".join(filter(None, [str(cores), model, kind, f"load {os.getloadavg()[0]:.1f}"]))
    return Found(True if cores > 1 else None, text, "" if cores > 1 else "expect twice the time that is told for two")


def _memory() -> Found:
    values = {}
    with open("/proc/meminfo", encoding="ascii") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            values[name] = 1024 * int(value.split()[0])
    total, free = values["MemTotal"], values.get("MemAvailable", values["MemFree"])
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        total, free = min(total, limit), min(free, limit)
    except (OSError, ValueError):
        pass  # no limit, or none that is told there
    text = f"{total / GB:.0f} GB, {free / GB:.0f} GB of it free"
    if free < MEMORY:
        return Found(None, text, f"./run.sh is at ease with {MEMORY / GB:.0f} GB free; --nj 1 takes half")
    return Found(True, text)


def _disk() -> Found:
    folder = _work_dir()
    free = shutil.disk_usage(folder).free
    text = f"{free / GB:.0f} GB free in {folder.resolve()}"
    if not os.access(folder, os.W_OK):
        return Found(False, f"{folder.resolve()} cannot be written to", "./run.sh --work-dir DIR")
    if free < DISK:
        return Found(False, text, f"./run.sh needs about {DISK / GB:.0f} GB, and the set-up 5 more: --work-dir DIR")
    return Found(True, text)


def _slurm() -> Found:
    if not shutil.which("sbatch"):
        return Found(None, "no sbatch: jobs run on this machine (GridEngine: --cmd queue.pl of Kaldi)")
    version = _output("sbatch", "--version")
    if not version:
        return Found(None, "sbatch is here and does not answer: no cluster is set up", "slurm.conf, by who runs it")
    return Found(True, f"{version}; ./run.sh --cmd \"local/slurm.sh --partition NAME\"")


LOOKS: "dict[str, Callable[[], Found]]" = {
    "essence": _essence, "Python": _python, "packages": _packages, "PyTorch": lambda: _version("torch"), "GPU": _gpu,
    "lhotse": lambda: _version("lhotse"), "k2": _k2, "C compiler": _compiler, "kernels": _kernels, "Kaldi": _kaldi,
    "sclite": _sclite, "cores": _cores, "memory": _memory, "disk": _disk, "Slurm": _slurm}
