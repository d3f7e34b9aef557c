"""Work spread over processes: every job in a fresh one, results in the order of the jobs."""
from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import traceback
from multiprocessing.connection import wait
from typing import Any, Callable, Sequence

from essence_kd.io.errors import UserError

_PRELOAD = ["scipy.signal", "scipy.fft", "essence_kd.corpus.synth", "essence_kd.corpus.features"]
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def job_share(text: str) -> tuple[int, int]:
    """(1, 8) of "1/8", the first of eight jobs: an option's type for argparse."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text}: such as 1/8, the first of eight jobs")
    return int(number), int(of)


def _child(pipe, function: Callable[..., Any], args: tuple) -> None:
    try:
        pipe.send((True, function(*args)))
    except BaseException as error:  # whatever happened is told to the parent, which raises it
        pipe.send((False, error if isinstance(error, (UserError, OSError)) else traceback.format_exc()))


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple], nj: int = 1) -> list[Any]:
    """``[function(*job) for job in jobs]``, each call in a process of its own, at most ``nj`` at a time.

    The processes come from a fork server that has imported the package but run none of it, so that a job never sees
    what another has left behind, and what it computes does not depend on ``nj``. A single job runs in a process too.
    Raises what a job raised (a UserError or OSError as it was, anything else as a RuntimeError with its traceback),
    or UserError when a process died; the other processes are ended first.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)  # inherited by the fork server: nj processes, one thread each
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
                process = context.Process(target=_child, args=(theirs, function, jobs[index]), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (index, process)
            if not running:
                return results
            for pipe in wait(list(running)):
                index, process = running.pop(pipe)
                try:
                    good, value = pipe.recv()
                except EOFError:
                    process.join()
                    raise UserError(
                        f"a worker process ended with status {process.exitcode} "
                        "(negative: the signal that killed it; -9 often means too little memory: try a smaller --nj)"
                    ) from None
                process.join()
                if not good:
                    raise value if isinstance(value, BaseException) else RuntimeError(value)
                results[index] = value
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
