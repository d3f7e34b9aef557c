"""Work side by side: fresh processes, processes that live on, threads over a stream, threads over rows."""
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from builders import ROOT

from essence_kd.io.errors import UserError, ended
from essence_kd.io.parallel import Workers, ahead, in_turn, over_rows, run_jobs


def _square(x):
    return os.getpid(), x * x


def _fail(kind):
    if kind == "user":
        raise UserError("file x: wrong")
    if kind == "memory":
        raise MemoryError("too wide")
    if kind == "dies":
        os._exit(7)
    raise ValueError("a mistake of ours")


FAILURES = [("user", UserError, "file x: wrong"), ("memory", MemoryError, "too wide"),
            ("bug", RuntimeError, "a mistake of ours")]


# ------------------------------------------------------------------------------------------------ fresh processes

def test_jobs_run_in_processes_of_their_own_and_keep_their_order():
    results = run_jobs(_square, [(x,) for x in range(7)], nj=3)
    assert [value for _, value in results] == [x * x for x in range(7)]
    assert len({pid for pid, _ in results} | {os.getpid()}) == 8


def test_what_jobs_took_is_time_of_the_callers_children():
    code = ("import time, timeit; from essence_kd.io import parallel as p\n"
            "print(p.run_jobs(timeit.timeit, [('sum(range(1000))', '', time.process_time, 100000)])[0])")

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "pytools")})
    assert done.returncode == 0 and spent() - before > float(done.stdout) > 0.3, done.stderr


def test_a_temporary_folder_whose_path_is_too_long_for_sockets(tmp_path):
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    code = "from essence_kd.io import parallel as p; print(p.run_jobs(abs, [(-3,)]), __import__('tempfile').tempdir)"
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT / "pytools")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"[3] {folder}\n", done.stderr


def test_modules_in_pythonpath_are_not_pythons(tmp_path):
    """The fork server starts without them; the jobs have the variable, for commands behind pipes."""
    (tmp_path / "queue.py").write_text("raise RuntimeError")
    code = "import os; from essence_kd.io import parallel as p; print(p.run_jobs(os.getenv, [('PYTHONPATH',)]))"
    named = f"{ROOT / 'pytools'}:{tmp_path}"
    code = f"import sys; sys.path.remove({str(tmp_path)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": named}, capture_output=True,
                          text=True, timeout=60)
    assert done.stdout == f"[{named!r}]\n", done.stderr


@pytest.mark.parametrize("status, words", [
    (0, "ended with status 0"), (3, "ended with status 3"), (255, "ended with status 255"),
    (-15, "was killed by SIGTERM"),
    (-9, "was killed by SIGKILL (out of memory?)"), (137, "was killed by SIGKILL (out of memory?)")])
def test_how_a_process_ended(status, words):
    assert ended(status) == words


@pytest.mark.parametrize("kind,error,words", [*FAILURES, ("dies", UserError, "status 7")])
def test_jobs_that_fail(kind, error, words):
    with pytest.raises(error, match=words):
        run_jobs(_fail, [(kind,)] * 3, nj=2)


# ----------------------------------------------------------------------------------------- processes that live on

class Counter:
    """Counts in a process of its own."""

    def __init__(self, start, kind=None):
        self.value = start
        if kind is not None:
            _fail(kind)

    def add(self, x=1, seconds=0.0):
        time.sleep(seconds)
        self.value += x
        return os.getpid(), self.value

    def fail(self, kind):
        _fail(kind)

    def threads(self):
        return os.environ.get("OMP_NUM_THREADS")

    def large(self, array):
        return array + 1


@pytest.mark.parametrize("count", [1, 3])
def test_objects_live_on_and_answer_in_order(count):
    with Workers(Counter, [(100 * n,) for n in range(count)], "died") as workers:
        first, second = workers.everyone("add"), workers.everyone("add", 5)
        assert [value for _, value in second] == [100 * n + 6 for n in range(count)]
        pids = {pid for pid, _ in second}
        assert first == [(pid, value - 5) for pid, value in second] and len(pids) == count
        assert (os.getpid() in pids) == (count == 1)
        items = [(x, 0.02 * (x % 3 == 0)) for x in range(20)]
        answers = list(workers.in_order("add", iter(items)))
        assert [item for item, _ in answers] == items and {pid for _, (pid, _) in answers} <= pids
        assert sum(value for _, value in workers.everyone("add", 0)) == sum(100 * n + 6 for n in range(count)) + 190


def test_large_arrays_go_both_ways_while_others_wait():
    with Workers(Counter, [(0,), (1,)], "died") as workers:
        arrays = [(np.full((1 << 19,), n),) for n in range(8)]
        for n, (_, answer) in enumerate(workers.in_order("large", arrays)):
            assert (answer == n + 1).all()
        assert all((answer == 2).all() for answer in workers.everyone("large", arrays[1][0]))


def test_items_are_not_taken_far_ahead():
    taken = []

    def items():
        for x in range(40):
            taken.append(x)
            yield x,

    with Workers(Counter, [(0,), (0,)], "died") as workers:
        for n, _ in enumerate(workers.in_order("add", items())):
            assert len(taken) <= n + 1 + 4
    assert n == 39


@pytest.mark.parametrize("where", ["start", "everyone", "in_order"])
@pytest.mark.parametrize("kind,error,words", [*FAILURES, ("dies", UserError, "it is gone; try less")])
def test_objects_that_fail(where, kind, error, words):
    with Workers(Counter, [(0,), (0, kind) if where == "start" else (0,)], "it is gone; try less") as workers:
        with pytest.raises(error, match=words):
            if where == "in_order":
                list(workers.in_order("fail", [(kind,)] * 3))
            else:
                workers.everyone("fail" if where == "everyone" else "add", kind if where == "everyone" else 1)


@pytest.mark.parametrize("one_thread", [True, False])
def test_threads_of_numerical_libraries(monkeypatch, one_thread):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with Workers(Counter, [(0,), (0,)], "died", one_thread) as workers:
        assert workers.everyone("threads") == ["1" if one_thread else "3"] * 2


def test_an_exception_ends_processes_at_once():
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        with Workers(Counter, [(0,), (0,)], "died") as workers:
            workers.everyone("add")
            processes = [member.process for member in workers._members]
            for _ in workers.in_order("add", [(1, 0), (1, 600), (1, 600)]):
                raise KeyboardInterrupt
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2 and time.monotonic() - began < 60


def test_a_stream_that_is_left_early_ends_the_processes():
    with Workers(Counter, [(0,), (0,)], "died") as workers:
        workers.everyone("add", 7)
        stream = workers.in_order("add", [(1, 0.1 * n) for n in range(9)])
        next(stream)
        stream.close()
        assert not workers._members
        assert [value for _, value in workers.everyone("add")] == [1, 1]  # made anew


def test_items_come_from_this_thread():
    threads = set()

    def items():
        for x in range(9):
            threads.add(threading.current_thread())
            yield x,

    with Workers(Counter, [(0,), (0,)], "died") as workers:
        assert len(list(workers.in_order("add", items()))) == 9 and threads == {threading.current_thread()}


def test_no_process_is_started_for_nothing():
    with Workers(Counter, [(0,), (0,)], "died") as workers:
        assert not workers._members and workers.local is None


# --------------------------------------------------------------------------------------- threads over a stream

@pytest.mark.parametrize("threads", [1, 2, 7])
def test_work_is_done_in_turn(threads):
    seen, closed = [], []

    def items():
        try:
            for i in range(60):
                seen.append(i)
                yield i
        finally:
            closed.append(True)

    def work(i):
        time.sleep(0.002 * (i % 3 == 0))
        return 10 * i

    before = threading.active_count()
    for i, value in enumerate(in_turn(work, items(), threads)):
        assert value == 10 * i and len(seen) <= i + 1 + 2 * threads
    assert i == 59 and seen == list(range(60)) and closed == [True]
    stream = in_turn(work, items(), threads)
    assert next(stream) == 0
    stream.close()
    assert closed == [True, True] and threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_first_error_in_turn_is_raised(threads):
    def items(last):
        yield from range(last)
        raise KeyError(last)

    def work(i):
        if i >= 20:
            raise ValueError(i)
        time.sleep(0.001)
        return i

    for last, error in ((30, ValueError), (10, KeyError)):
        got = []
        with pytest.raises(error) as caught:
            for value in in_turn(work, items(last), threads):
                got.append(value)
        assert got == list(range(min(last, 20))) and caught.value.args == (len(got),)
    with pytest.raises(RuntimeError):  # not taken for the end
        list(in_turn(lambda i: next(iter([])), items(5), threads))


def test_items_are_fetched_ahead():
    seen, threads = [], set()

    def items():
        for i in range(9):
            threads.add(threading.current_thread())
            seen.append(i)
            yield i
        raise KeyError("last")

    got = []
    with pytest.raises(KeyError, match="last"):
        for i in ahead(items()):
            got.append(i)
            time.sleep(0.05)
            assert len(seen) == min(9, i + 3)
    assert got == list(range(9)) and len(threads) == 1 and threading.current_thread() not in threads


# -------------------------------------------------------------------------------------------- threads over rows

@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_in_blocks(threads):
    done, workers = np.zeros(1000, int), set()

    def work(rows):
        workers.add(threading.current_thread())
        assert rows.stop - rows.start <= 64
        done[rows] += 1
        if rows.start <= 300 < rows.stop and fail or rows.start <= 600 < rows.stop and fail:
            raise ValueError(rows.start // 300)

    fail = False
    over_rows(work, 1000, 10, threads, elements=640)
    assert (done == 1).all() and len(workers) <= threads and (threads > 1 or workers == {threading.current_thread()})
    fail = True
    with pytest.raises(ValueError, match="0|1"):  # of the errors that there are, the one of the first rows
        over_rows(work, 1000, 10, threads, elements=640)
