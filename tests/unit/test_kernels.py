"""How the compiled kernels are made, kept and done without, and what they do when a file becomes shorter."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from essence_kd.io import kernels as module
from essence_kd.io import posterior

SAY = "from essence_kd.io.kernels import kernels; print(kernels() is not None)"


def say(**env):
    """What a fresh process with these variables says of its kernels."""
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).resolve().parents[2]), **env}
    done = subprocess.run([sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.compiler
def test_made_once_and_kept(tmp_path):
    assert say(ESSENCE_KERNELS=str(tmp_path))
    made, = tmp_path.iterdir()
    before = made.stat().st_mtime_ns
    assert say(ESSENCE_KERNELS=str(tmp_path))
    assert [p.stat().st_mtime_ns for p in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("env", [{"ESSENCE_KERNELS": "off"}, {"CC": "/nowhere/cc"}, {"CC": "false"}])
def test_done_without(tmp_path, env):
    assert not say(**{"ESSENCE_KERNELS": str(tmp_path), **env})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    assert not say(ESSENCE_KERNELS=str(tmp_path / "file" / "below"))


@pytest.mark.compiler
def test_a_broken_library_is_not_used(tmp_path):
    assert say(ESSENCE_KERNELS=str(tmp_path))
    made, = tmp_path.iterdir()
    made.write_bytes(b"")
    assert not say(ESSENCE_KERNELS=str(tmp_path))


@pytest.mark.compiler
@pytest.mark.parametrize("option", ["", *(["-mno-avx2"] if os.uname().machine == "x86_64" else [])])
@pytest.mark.parametrize("k", [3, 4, 9])
def test_every_kind_of_processor_finds_the_same_damage(tmp_path, monkeypatch, option, k):
    """Each bit of two frames turned over: the kernel decodes what NumPy decodes, to the same, and nothing else."""
    monkeypatch.setenv("CC", f"{next(filter(shutil.which, ('cc', 'gcc', 'clang')))} {option}")
    library = module._load(module._compiled(str(tmp_path)))
    rng = np.random.default_rng(k)
    weights = 1 + rng.random((2, k), np.float32)  # one bit from infinity
    _, frames = posterior.encode_fixed(rng.integers(0, 1 << 22, (2, k)), weights)
    data = np.frombuffer(bytes(frames), np.uint8).copy()
    monkeypatch.setattr(posterior, "kernels", lambda: None)
    refused = 0
    for bit in range(-1, 8 * len(data)):
        if bit >= 0:
            data[bit // 8] ^= 1 << bit % 8
        ids, probs = np.empty(2 * k, np.int32), np.empty(2 * k, np.float32)
        good = library.posterior_entries(module.pointer(data), 2, k, None, module.pointer(ids), module.pointer(probs))
        try:
            wanted = posterior._fixed_frames(data, k)
        except ValueError:
            wanted = None
        assert good == (wanted is not None), bit
        if good:
            assert np.array_equal(ids, wanted.ids) and np.array_equal(probs, wanted.probs), bit
        refused += not good
        if bit >= 0:
            data[bit // 8] ^= 1 << bit % 8
    assert 0 < refused < 8 * len(data)


@pytest.mark.compiler
def test_a_file_that_becomes_shorter_ends_the_kernel_and_not_the_process(tmp_path):
    """Mapped pages that are gone raise SIGBUS: kernels return, on every thread; other faults end the process."""
    code = """if True:
        import mmap, os, sys, threading
        import numpy as np
        from essence_kd.io.kernels import kernels, pointer
        library = kernels()
        rows, columns = 300, 1000
        with open(sys.argv[1], "wb") as stream:
            stream.write(np.full((rows, columns), 1 / columns, np.float32))
        stream = open(sys.argv[1], "r+b")
        os.ftruncate(stream.fileno(), 4 * columns * 200)
        done = []
        def run():
            ids, values = np.empty((rows, 2), np.int32), np.empty((rows, 2), np.float32)
            for count in (200, rows):
                done.append(library.top_k(None, stream.fileno(), 0, count, columns, 2, 0, 1.01, 0.01, pointer(ids),
                                          pointer(values)))
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done)[3:] == [200] * 3 and all(190 < n <= 200 for n in done), done
        print("alive", flush=True)
        mapped = mmap.mmap(stream.fileno(), 0)
        os.ftruncate(stream.fileno(), 0)
        mapped[0]
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == -signal.SIGBUS and done.stdout == "alive\n", done.stderr
