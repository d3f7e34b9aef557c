"""Work side by side, in four ways. Beside these there are only the processes of PyTorch (torchrun, DataLoader).

| | |
|---|---|
| `run_jobs` | a list of calls, each in a fresh process |
| `Workers` | methods of objects that live in processes of their own, for many calls on what was loaded once |
| `in_turn`, `ahead` | work on a stream of items by threads, results in the order of the items |
| `over_rows` | blocks of the rows of a matrix by threads, for work of less than a second |
"""
from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import queue
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence, TypeVar

from essence_kd.io.errors import UserError, ended
from essence_kd.io.pipes import ALLOW_PIPES, pipes_allowed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ROWS = 1 << 18  # elements of a block of rows: 1 MB, half of a core's second-level cache
_SOCKET_PATH = 107  # bytes of sockaddr_un.sun_path without the zero at its end
_PRELOAD = ["scipy.signal", "scipy.fft", "essence_kd.corpus.synth", "essence_kd.corpus.features"]
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_T = TypeVar("_T")
_R = TypeVar("_R")


def job_share(text: str) -> tuple[int, int]:
    """(1, 8) of "1/8", the first of eight jobs: an option's type for argparse."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text}: such as 1/8, the first of eight jobs")
    return int(number), int(of)


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return cores()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ------------------------------------------------------------------------------------------------------ processes

def sockets_in_reach() -> None:
    """Called before multiprocessing makes sockets: they lie in the temporary folder, or in /tmp where its path is
    longer than a socket's may be. Raises OSError where /tmp cannot be written to.
    """
    import multiprocessing.util
    import tempfile

    if len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678/listener-12345678") > _SOCKET_PATH:
        usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            multiprocessing.util.get_temp_dir()  # which it keeps, and hands to the processes that it starts
        finally:
            tempfile.tempdir = usual


def _end_fork_server() -> None:
    """Waits for the fork server, so that what its processes took counts as time of this one's children (`times`)."""
    from multiprocessing import forkserver

    stop = getattr(getattr(forkserver, "_forkserver", None), "_stop", None)
    if stop is not None:
        stop()


def _job(pipe: Connection, function: Callable[..., Any], args: tuple, environment: dict[str, str | None]) -> None:
    """A process of run_jobs. The fork server's environment may be older than the setting for pipes."""
    _set_environment(environment)
    _answer(pipe, function, args)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _answer(pipe: Connection, function: Callable[..., Any], args: tuple) -> bool:
    """Sends (True, what the function returns) or (False, what it raised); whether it returned."""
    try:
        pipe.send((True, function(*args)))
        return True
    except BaseException as error:  # whatever happened is told to the parent, which raises it
        import traceback

        kept = isinstance(error, (UserError, OSError, MemoryError))
        pipe.send((False, error if kept else RuntimeError(traceback.format_exc())))
        return False


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple], nj: int = 1) -> list[Any]:
    """``[function(*job) for job in jobs]``, each call in a process of its own, at most ``nj`` at a time.

    The processes come from a fork server that has imported the package but run none of it, so that a job never sees
    what another has left behind, and what it computes does not depend on ``nj``. A single job runs in a process too.
    Raises what a job raised (UserError, OSError and MemoryError as they were, else a RuntimeError with the traceback),
    or UserError when a process died; the other processes are ended first.
    """
    import multiprocessing
    from multiprocessing.connection import wait

    sockets_in_reach()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    atexit.unregister(_end_fork_server)
    atexit.register(_end_fork_server)
    server: dict[str, str | None] = {**_ONE_THREAD}  # nj processes, one thread each
    if os.environ.get("PYTHONPATH"):  # it must not take a queue.py that lies there for Python's
        server["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    before = {name: os.environ.get(name) for name in server}
    for_jobs = {"PYTHONPATH": os.environ.get("PYTHONPATH"), ALLOW_PIPES: "true" if pipes_allowed() else "false"}
    _set_environment(server)
    results: list[Any] = [None] * len(jobs)
    running: dict[Any, tuple[int, Any]] = {}  # pipe -> (job, process)
    todo = iter(range(len(jobs)))
    try:
        while True:
            while len(running) < max(1, nj):
                index = next(todo, None)
                if index is None:
                    break
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_job, args=(theirs, function, jobs[index], for_jobs),
                                          daemon=True)
                try:
                    process.start()
                except EOFError:
                    raise UserError("the process that starts others has died: look at the lines above") from None
                theirs.close()
                running[ours] = (index, process)
            if not running:
                return results
            pipe: Any
            for pipe in wait(list(running)):
                index, process = running.pop(pipe)
                try:
                    good, value = pipe.recv()
                except EOFError:
                    process.join()
                    raise UserError(
                        f"a worker process {ended(process.exitcode)}; where it was killed, try a smaller --nj"
                    ) from None
                process.join()
                if not good:
                    raise value
                results[index] = value
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
        _set_environment(before)


def _serve(descriptor: int) -> None:
    """A process of Workers: makes the object it is told to, then calls its methods until the pipe closes."""
    from multiprocessing.connection import Connection

    pipe = Connection(descriptor)
    made: list[Any] = []

    def make(function: Callable[..., Any], args: tuple) -> None:
        made.append(function(*args))

    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        good = _answer(pipe, make, pipe.recv())
        while good:
            method, args = pipe.recv()
            good = _answer(pipe, getattr(made[0], method), args)


class Workers:
    """``make(*args)`` of each of ``arguments``, in a process each, whose methods are called from here; a context.

    A single one lives in this process (`local`). The others are started by the first call, by new interpreters: no
    threads are forked, and the caller's script is not run again. What a method raises is raised here, as by `run_jobs`,
    a UserError that says ``died`` where a process ended. With ``one_thread`` numerical libraries use one thread a
    process.
    """

    def __init__(self, make: Callable[..., Any], arguments: Sequence[tuple], died: str, one_thread: bool = False):
        self.died, self._make, self._arguments = died, make, list(arguments)
        self._environment = _ONE_THREAD if one_thread else {}
        self._members: list[_Member] = []
        self.local = make(*self._arguments[0]) if len(self._arguments) == 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes at once, whatever they are at."""
        members, self._members = self._members, []
        for member in members:
            member.process.terminate()
        for member in members:
            member.process.wait()
            member.pipe.close()

    def _started(self) -> list[_Member]:
        if not self._members:
            environment = {**os.environ, **self._environment}
            try:
                for args in self._arguments:
                    self._members.append(_Member(environment, self.died))
                    self._members[-1].send((self._make, args))
            except BaseException:
                self.close()
                raise
        return self._members

    def everyone(self, method: str, *args: Any) -> list[Any]:
        """What a method of every object returns, in order."""
        if self.local is not None:
            return [getattr(self.local, method)(*args)]
        members = self._started()
        for member in members:
            member.send((method, args))
        return [member.receive() for member in members]

    def in_order(self, method: str, items: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """(item, ``method(*item)``) of every item, in their order; whichever object is free takes the next.

        Items are taken by this thread, at most two a process ahead. A stream that is left early ends the processes.
        """
        if self.local is not None:
            for item in items:
                yield item, getattr(self.local, method)(*item)
            return
        from concurrent.futures import ThreadPoolExecutor

        members = self._started()
        idle: queue.SimpleQueue = queue.SimpleQueue()
        for member in members:
            idle.put(member)

        def call(item: tuple) -> Any:
            member = idle.get()
            try:
                member.send((method, item))
                return member.receive()
            finally:
                idle.put(member)

        threads = ThreadPoolExecutor(len(members))
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append((item, threads.submit(call, item)))
                if len(waiting) > 2 * len(members):
                    yield waiting[0][0], waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][0], waiting[0][1].result()
                waiting.popleft()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            if waiting:
                self.close()


class _Member:
    """A process of Workers."""

    def __init__(self, environment: dict[str, str], died: str):
        import multiprocessing
        import subprocess

        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = sys.argv[2:]; from {__name__} import _serve; "
                 "_serve(int(sys.argv[1]))", str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment)
        self.died, self._made = died, False

    def send(self, message: tuple) -> None:
        with contextlib.suppress(OSError):  # what ended the process is what receive finds
            self.pipe.send(message)

    def receive(self) -> Any:
        """The next answer. Raises what was raised there, UserError where the process died."""
        try:
            good, value = self.pipe.recv()
            if good and not self._made:
                self._made = True
                good, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise UserError(self.died) from None
        if not good:
            raise value
        return value


# -------------------------------------------------------------------------------------------------------- threads

def in_turn(work: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[_R]:
    """``work(item)`` of all items, in their order. Each of the threads takes an item when it is free, and works on it.

    Items are taken one after the other, so that the iterator need not know of threads, and no further ahead than twice
    the threads. The first exception, of an item or of the work on it, is raised in its turn, and ends it.
    """
    source = iter(items)
    order: queue.SimpleQueue = queue.SimpleQueue()  # for each item that was begun, a queue that will hold its result
    taking, slots, stop = threading.Lock(), threading.Semaphore(2 * threads), threading.Event()
    end: Any = object()

    def run() -> None:
        while slots.acquire() and not stop.is_set():
            result: queue.SimpleQueue = queue.SimpleQueue()
            try:
                with taking:
                    if stop.is_set():
                        return
                    order.put(result)
                    item = end
                    try:
                        item = next(source, end)
                    finally:
                        if item is end:
                            stop.set()  # nothing comes after it
                result.put((end if item is end else work(item), None))
                del item
            except BaseException as error:  # handed to the thread that waits for it
                result.put((None, error))

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for helper in helpers:
        helper.start()
    try:
        while True:
            value, error = order.get().get()
            slots.release()
            if error is not None:
                raise error
            if value is end:
                return
            yield value
    finally:
        stop.set()
        for _ in helpers:
            slots.release()
        until = time.monotonic() + 2.0  # one may be waiting for a pipe; an interrupt does not wait with it
        for helper in helpers:
            helper.join(max(0.0, until - time.monotonic()))
        if hasattr(source, "close") and not any(helper.is_alive() for helper in helpers):
            source.close()


def ahead(items: Iterable[_T]) -> Iterator[_T]:
    """The same items, fetched by a thread of their own, at most two in advance; its exceptions come through."""
    return in_turn(lambda item: item, items, 1)


def over_rows(work: Callable[[slice], None], rows: int, columns: int, threads: int | None = None,
              elements: int = ROWS) -> None:
    """Call ``work(slice)`` for blocks of rows that fit in a cache, on several threads (NumPy lets go of the lock).

    Unlike `in_turn`, this thread works, too, and nothing is handed over, which would cost as much as a small block.
    """
    threads = threads or default_threads()
    step = max(1, min(elements // max(1, columns), -(-rows // threads)))
    slices = [slice(i, min(rows, i + step)) for i in range(0, rows, step)]
    threads = min(threads, len(slices))
    pending, errors = iter(slices), []

    def run() -> None:
        for rows_of in pending:
            try:
                work(rows_of)
            except BaseException as error:  # raised below
                errors.append((rows_of.start, error))
                return

    helpers = [threading.Thread(target=run) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
