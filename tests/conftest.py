"""What the tests share: the checkout's root and a way to run a command as a user does."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "pytools"), str(ROOT / "benchmarks"), str(ROOT / "tests" / "unit")]
os.environ.setdefault("KALDI_ROOT", "")  # keeps kaldi-io's banner out
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script starts in the background ignores Ctrl-C


def table(writer_of, stem, values):
    """Writes STEM.ark and STEM.scp with a writer of io.tables or io.posterior; the rspecifier of the latter."""
    with writer_of(f"ark,scp:{stem}.ark,{stem}.scp") as writer:
        for utt, value in values.items():
            writer.write(utt, value)
    return f"scp:{stem}.scp"


def refused(call, *words):
    """The call ends in a UserError, one line that has all of these words."""
    from essence_kd.io.errors import UserError

    with pytest.raises(UserError) as error:
        call()
    for word in words:
        assert str(word) in str(error.value), f"{word} is not in: {error.value}"
    assert "\n" not in str(error.value)


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
    from essence_kd.distill import essence
    from essence_kd.io import posterior
    from essence_kd.io.kernels import kernels

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "compiled":
            if kernels() is None:
                pytest.skip("no C compiler, so no compiled kernels (apt-get install gcc)")
        else:
            for module in (essence, posterior):
                patch.setattr(module, "kernels", lambda: None)
        yield
