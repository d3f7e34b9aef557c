"""Fixtures of all tests, and what tests need beyond the packages of conf/requirements (README.md of this folder)."""
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("builders")

from builders import ROOT  # noqa: E402

sys.path[:0] = [str(ROOT / "pytools"), str(ROOT / "benchmarks")]
os.environ.setdefault("KALDI_ROOT", "")  # keeps kaldi-io's banner out
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script starts in the background ignores Ctrl-C

# ---- needs: each is a marker, and a word of REQUIRE

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DAEMONS = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/lib/gridengine"


def _programs(packages, *names):
    lacking = [name for name in names if shutil.which(name, path=DAEMONS) is None]
    return f"{', '.join(lacking)} not found (apt-get install {packages})" if lacking else None


def _kaldi(*paths):
    root = os.environ["KALDI_ROOT"]
    if not root:
        return "KALDI_ROOT is not set"
    lacking = [path for path in paths or ("src",) if not Path(root, path).exists()]
    return f"KALDI_ROOT has no {lacking[0]}" if lacking else None


def k2_python():
    """The Python that has k2, or None."""
    named = os.environ.get("ESSENCE_K2_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("k2"):
        return sys.executable
    python = ROOT / ".venv-k2" / "bin" / "python"
    return str(python) if python.exists() else None


def _compiler():
    from essence_kd.io.kernels import kernels

    return None if kernels() else "no compiled kernels: no C compiler (apt-get install gcc), or ESSENCE_KERNELS=off"


def _sclite():
    from essence_kd.score.hub5 import find_sclite

    found = find_sclite()
    return None if found and (found / "sc_stats").exists() else "no sclite and sc_stats (apt-get install sctk)"


def _mount():
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True)
    return "a file system could not be mounted (that takes root)" if done.returncode else None


def _gpu():
    import torch

    return None if torch.cuda.is_available() else "torch sees no GPU"


def _root():
    return None if os.getuid() == 0 else "its daemon runs jobs only when root starts it"


NEEDS = {  # name: what it is, and a function that says why it is not here
    "kaldi": ("a Kaldi at KALDI_ROOT; kaldi(PATH, ...): these files of it", _kaldi),
    "k2": ("a Python with k2",
           lambda: None if k2_python() else "no k2 (local/setup_env.sh sets it up where it can be had)"),
    "slurm": ("slurmctld, slurmd and munged, started by root", lambda: _programs(
        "slurm-wlm munge", "slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol") or _root()),
    "gridengine": ("sge_qmaster and sge_execd, started by root", lambda: _programs(
        "gridengine-master gridengine-exec gridengine-client", "sge_qmaster", "sge_execd", "spoolinit", "qsub",
        "qconf") or _root()),
    "browser": ("Chromium", lambda: _programs("chromium", next(filter(shutil.which, BROWSERS), BROWSERS[0]))),
    "sox": ("sox", lambda: _programs("sox", "sox")),
    "git": ("git", lambda: _programs("git", "git")),
    "openfst": ("OpenFst's command-line tools", lambda: _programs("libfst-tools", "fstcompile", "fstprint")),
    "sclite": ("NIST's sclite and sc_stats", _sclite),
    "compiler": ("a C compiler, and kernels made with it", _compiler),
    "clang": ("clang with libFuzzer and sanitizers", lambda: _programs("clang libclang-rt-dev", "clang")),
    "python": ("a program called python, which Kaldi's recipes start",
               lambda: _programs("python-is-python3", "python")),
    "debootstrap": ("debootstrap and git", lambda: _programs("debootstrap git", "debootstrap", "git")),
    "mount": ("leave to mount file systems", _mount),
    "gpu": ("a GPU that torch can use", _gpu),
    "setuptools": ("setuptools and pip", lambda: next((f"no package {name}" for name in ("setuptools", "pip")
                                                      if not importlib.util.find_spec(name)), None)),
}


@functools.lru_cache(maxsize=None)
def missing(need, *details):
    """Why this need is not met here, or None. ``details`` are the arguments of the marker."""
    reason = NEEDS[need][1](*details)
    return reason and f"{need.upper()} is not tested: {reason}"


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes; left out by tests/run.sh unless it is given -m slow")
    for name, (what, _) in NEEDS.items():
        config.addinivalue_line("markers", f"{name}: needs {what}")
    unknown = set(os.environ.get("REQUIRE", "").split()) - set(NEEDS)
    if unknown:
        raise pytest.UsageError(f"REQUIRE: no need is called {' '.join(sorted(unknown))}; there are {' '.join(NEEDS)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A test that takes the fixture ``k2`` or ``browser`` needs what its name says."""
    for item in items:
        for name in {"k2", "browser"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips the test where something that it needs is missing; fails it where REQUIRE names that."""
    for mark in item.iter_markers():
        reason = missing(mark.name, *mark.args) if mark.name in NEEDS else None
        if reason and mark.name in os.environ.get("REQUIRE", "").split():
            pytest.fail(f"REQUIRE has {mark.name}, but {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter):
    """Tables that tests have recorded (record_property)."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for table in (text for name, text in report.user_properties if name == "table" and report.when == "call"):
            terminalreporter.write_line(f"{report.nodeid}\n{table}")


# ---- fixtures

@pytest.fixture
def shell(tmp_path):
    """Runs a command of the checkout; returns the finished process with text output."""

    def run(*command, cwd=ROOT, env=None, timeout=120, stdin=subprocess.DEVNULL):
        environment = {**os.environ, "ESSENCE_PYTHON": sys.executable, "WORK_DIR": str(tmp_path), **(env or {})}
        return subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True,
                              timeout=timeout, stdin=stdin)

    return run


@pytest.fixture(scope="session")
def k2():
    """Environment with which ``essence decode --decoder k2`` works."""
    return {"ESSENCE_K2_PYTHON": k2_python()}


@pytest.fixture(scope="module", params=[pytest.param("compiled", marks=pytest.mark.compiler), "numpy"])
def inner_loops(request):
    """The test with the compiled kernels, and without them."""
    from essence_kd.distill import largest, threshold
    from essence_kd.io import posterior

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            for module in (largest, threshold, posterior):
                patch.setattr(module, "kernels", lambda: None)
        yield
