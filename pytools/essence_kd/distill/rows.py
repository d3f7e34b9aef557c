"""Work on the rows of a matrix in blocks that fit in a cache, on several threads."""
from __future__ import annotations

import os
import threading
from typing import Callable, Optional, Tuple, Union

import numpy as np

from essence_kd.io.kernels import pointer
from essence_kd.io.objects import StoredMatrix

ROWS = 1 << 18  # elements of a block of rows: 1 MB, half of a core's second-level cache
MANY_ROWS = 1 << 20  # the same for kernels, which look at one row after the other
_STORED_ROWS = 1 << 26  # the same for kernels that read the rows from a file


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_rows(work: Callable[[slice], None], rows: int, columns: int, threads: Optional[int] = None,
              elements: int = ROWS) -> None:
    """Call ``work(slice)`` for blocks of rows that fit in a cache, on several threads (NumPy lets go of the lock)."""
    threads = threads or default_threads()
    step = max(1, min(elements // max(1, columns), -(-rows // threads)))
    slices = [slice(i, min(rows, i + step)) for i in range(0, rows, step)]
    threads = min(threads, len(slices))
    pending, errors = iter(slices), []

    def run() -> None:
        for rows_of in pending:
            try:
                work(rows_of)
            except BaseException as error:  # noqa: B036 - raised below
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


def over_many_rows(work: Callable[[slice], None], matrix: Union[np.ndarray, StoredMatrix],
                   threads: Optional[int]) -> None:
    """`over_rows` for a kernel."""
    over_rows(work, *matrix.shape, threads, _STORED_ROWS if isinstance(matrix, StoredMatrix) else MANY_ROWS)


def whereabouts(matrix: Union[np.ndarray, StoredMatrix], rows: slice) -> Tuple[Optional[int], int, int]:
    """Where a kernel finds rows: (address, -1, 0), or (NULL, file descriptor, offset)."""
    if isinstance(matrix, StoredMatrix):
        return None, matrix.fd, matrix.offset + 4 * rows.start * matrix.shape[1]
    return pointer(matrix[rows]), -1, 0
