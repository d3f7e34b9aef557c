"""The rows of a matrix for kernels: which are looked at together, and where they lie."""
from __future__ import annotations

from typing import Callable, Optional, Tuple, Union

import numpy as np

from essence_kd.io.kernels import pointer
from essence_kd.io.objects import StoredMatrix
from essence_kd.io.parallel import over_rows

MANY_ROWS = 1 << 20  # elements of a block of rows for kernels, which look at one row after the other
_STORED_ROWS = 1 << 26  # the same for kernels that read the rows from a file


def over_many_rows(work: Callable[[slice], None], matrix: Union[np.ndarray, StoredMatrix],
                   threads: Optional[int]) -> None:
    """`over_rows` for a kernel."""
    rows, columns = matrix.shape
    over_rows(work, rows, columns, threads, _STORED_ROWS if isinstance(matrix, StoredMatrix) else MANY_ROWS)


def whereabouts(matrix: Union[np.ndarray, StoredMatrix], rows: slice) -> Tuple[Optional[int], int, int]:
    """Where a kernel finds rows: (address, -1, 0), or (NULL, file descriptor, offset)."""
    if isinstance(matrix, StoredMatrix):
        return None, matrix.fd, matrix.offset + 4 * rows.start * matrix.shape[1]
    return pointer(matrix[rows]), -1, 0
