"""Fixtures of all tests: the checkout's root and a way to run a command as a user does."""
import os
import signal
import subprocess
import sys

import pytest

pytest.register_assert_rewrite("builders")

from builders import ROOT  # noqa: E402

sys.path[:0] = [str(ROOT / "pytools"), str(ROOT / "benchmarks")]
os.environ.setdefault("KALDI_ROOT", "")  # keeps kaldi-io's banner out
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script starts in the background ignores Ctrl-C


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes; left out by tests/run.sh unless it is given -m slow")


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def shell(tmp_path):
    """Runs a command of the checkout; returns the finished process with text output."""

    def run(*command, cwd=ROOT, env=None, timeout=120, stdin=subprocess.DEVNULL):
        environment = {**os.environ, "ESSENCE_PYTHON": sys.executable, "WORK_DIR": str(tmp_path), **(env or {})}
        return subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True,
                              timeout=timeout, stdin=stdin)

    return run


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def inner_loops(request):
    """The test with the compiled kernels, and without them."""
    from essence_kd.distill import largest, threshold
    from essence_kd.io import posterior
    from essence_kd.io.kernels import kernels

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "compiled":
            if kernels() is None:
                pytest.skip("no C compiler, so no compiled kernels (apt-get install gcc)")
        else:
            for module in (largest, threshold, posterior):
                patch.setattr(module, "kernels", lambda: None)
        yield
