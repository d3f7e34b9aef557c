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

SAY = "from essence_kd.io.kernels import kernels; print(kernels() is not None, flush=True)"


def start(code=SAY, **env):
    """A fresh process with these variables; one that is None is not there."""
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).resolve().parents[2]), **env}
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def say(**env):
    """Whether it has kernels, and what stderr tells of them."""
    done = start(**env)
    return done.stdout.strip() == "True", done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """CC, which the tests below need not wait for: it copies what a compiler has made once."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CC", raising=False)
        module._compile(str(folder / "kernels.so"))
    (folder / "cc").write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp "{folder}/kernels.so" "$2"\n')
    (folder / "cc").chmod(0o755)
    return {"CC": str(folder / "cc")}


@pytest.mark.compiler
def test_made_once_and_kept(tmp_path):
    assert say(ESSENCE_KERNELS=str(tmp_path)) == (True, "")
    made, = tmp_path.iterdir()
    before = made.stat().st_mtime_ns
    assert say(ESSENCE_KERNELS=str(tmp_path)) == (True, "")
    assert [p.stat().st_mtime_ns for p in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("env, why", [
    ({"ESSENCE_KERNELS": "off"}, None), ({"CC": "/nowhere/cc"}, "/nowhere/cc: No such"), ({"CC": "false"}, "status 1"),
    ({"CC": "sh -c 'echo is out of order >&2; exit 2'"}, "sh: is out of order")])
def test_done_without_and_told_once(tmp_path, env, why):
    env = {"ESSENCE_KERNELS": str(tmp_path), **env}
    starts_another = f"{SAY}; import subprocess, sys; subprocess.run([sys.executable, '-c', {SAY!r}])"
    done = start(starts_another, **env)
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr == "" if why is None else why in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.compiler
def test_a_place_that_cannot_be_written_to_gives_way_to_the_next(tmp_path, compiled):
    (tmp_path / "file").write_text("")
    none = str(tmp_path / "file" / "below")
    good, told = say(**compiled, ESSENCE_KERNELS=none)
    assert good and f"can be kept nowhere ({none})" in told and told.count("\n") == 1
    work = tmp_path / "work"
    work.mkdir()
    assert say(**compiled, ESSENCE_KERNELS="", XDG_CACHE_HOME=None, HOME=none, WORK_DIR=str(work)) == (True, "")
    assert list((work / ".cache" / "essence_kd").iterdir())
    env = {"ESSENCE_KERNELS": "", "XDG_CACHE_HOME": "relative", "HOME": str(tmp_path / "home"), "WORK_DIR": None}
    assert say(**compiled, **env) == (True, "")
    assert list((tmp_path / "home" / ".cache" / "essence_kd").iterdir()) and not Path("relative").exists()


@pytest.mark.compiler
@pytest.mark.parametrize("mask, mode", [(0o000, 0o644), (0o002, 0o644), (0o077, 0o600)])
def test_a_kept_library_is_readable_as_the_umask_says_and_writable_for_its_owner_alone(tmp_path, compiled, mask, mode):
    for _ in range(2):
        done = start(f"import os; os.umask({mask}); {SAY}", **compiled, ESSENCE_KERNELS=str(tmp_path / "place"))
        assert (done.stdout, done.stderr) == ("True\n", "")
    made, = (tmp_path / "place").iterdir()
    assert made.stat().st_mode & 0o777 == mode and not made.parent.stat().st_mode & 0o022


@pytest.mark.compiler
def test_a_broken_library_is_made_anew(tmp_path, compiled):
    assert say(**compiled, ESSENCE_KERNELS=str(tmp_path))[0]
    made, = tmp_path.iterdir()
    whole = made.read_bytes()
    made.write_bytes(b"")
    assert say(**compiled, ESSENCE_KERNELS=str(tmp_path)) == (True, "")
    assert made.read_bytes() == whole


@pytest.mark.compiler
def test_a_library_that_others_could_have_put_there_is_not_loaded(tmp_path, compiled):
    """With what they put there, the process would end at once."""
    assert say(**compiled, ESSENCE_KERNELS=str(tmp_path))[0]
    made, = tmp_path.iterdir()
    mine = made.read_bytes()
    (tmp_path / "evil.c").write_text("void _exit(int); __attribute__((constructor)) void f(void) { _exit(66); }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "evil.so", tmp_path / "evil.c"], check=True)
    evil = (tmp_path / "evil.so").read_bytes()

    def place(mode, folder_mode):
        made.unlink()
        made.write_bytes(evil)
        made.chmod(mode)
        tmp_path.chmod(folder_mode)

    place(0o666, 0o755)  # that anybody can write to
    assert say(**compiled, ESSENCE_KERNELS=str(tmp_path)) == (True, "") and made.read_bytes() == mine
    place(0o644, 0o777)  # in a folder where anybody can replace it
    good, told = say(**compiled, ESSENCE_KERNELS=str(tmp_path))
    assert good and "kept nowhere" in told
    if os.getuid() == 0:
        place(0o644, 0o1777)
        os.chown(made, 12345, 12345)  # of somebody else
        assert say(**compiled, ESSENCE_KERNELS=str(tmp_path)) == (True, "") and made.read_bytes() == mine


@pytest.mark.compiler
@pytest.mark.mount
def test_places_where_nothing_may_run(tmp_path, compiled):
    """A library in a file system mounted noexec cannot be loaded: the next place has it."""
    for name in ("home", "tmp", "work"):
        (tmp_path / name).mkdir()
    code = f"for d in home tmp; do mount -t tmpfs -o noexec tmpfs $d || exit; done; {sys.executable} -c '{SAY}'"
    environment = {**os.environ, **compiled, "PYTHONPATH": str(Path(module.__file__).resolve().parents[2]),
                   "ESSENCE_KERNELS": "", "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"),
                   "XDG_CACHE_HOME": ""}
    for work, answer, told in ((str(tmp_path / "work"), "True", ""), ("", "False", "no compiled inner loops")):
        done = subprocess.run(["unshare", "--mount", "sh", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                              env={**environment, "WORK_DIR": work}, timeout=120)
        assert done.stdout.strip() == answer and (told in done.stderr if told else not done.stderr), done.stderr


@pytest.mark.compiler
@pytest.mark.parametrize("option", ["", *(["-mno-avx2"] if os.uname().machine == "x86_64" else [])])
@pytest.mark.parametrize("k", [3, 4, 9])
def test_every_kind_of_processor_finds_the_same_damage(tmp_path, monkeypatch, option, k):
    """Each bit of two frames turned over: the kernel decodes what NumPy decodes, to the same, and nothing else."""
    monkeypatch.setenv("CC", f"{next(filter(shutil.which, ('cc', 'gcc', 'clang')))} {option}")
    library = module._made(str(tmp_path))
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
