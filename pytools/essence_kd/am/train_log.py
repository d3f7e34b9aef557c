"""MODEL_DIR/train.log: what a training says, and the lock that keeps a second training out of its directory."""
from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from pathlib import Path
from typing import Iterator

from essence_kd.io.errors import UserError
from essence_kd.io.text import visible

LOCK_PATIENCE = 20.0  # seconds in which the readers of a killed training are expected to end


class TrainLog:
    """Of several processes the first one writes and holds the lock for all; the others are silent."""

    def __init__(self, model_dir: Path, first: bool) -> None:
        self.model_dir, self.first = model_dir, first
        self._file = open(model_dir / "train.log", "a", encoding="utf-8") if first else None

    def log(self, message: str) -> None:
        """A line to train.log and stderr."""
        if self._file is not None:
            self._file.write(visible(message) + "\n")
            self._file.flush()
        self.say(message)

    def say(self, message: str) -> None:
        """A line to stderr."""
        if self.first:
            print(message, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Refuses a second training in this model directory, such as a cluster's job that has outlived its stage."""
        if self._file is None:
            yield
            return
        self._lock()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock(self) -> None:
        began = time.monotonic()
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() - began > LOCK_PATIENCE:
                    raise UserError(f"{self.model_dir}: another training is at work here; wait for it, or stop it") \
                        from None
                time.sleep(0.2)
            except OSError as error:
                return self.log(f"{self.model_dir} can have no lock ({error.strerror}): nothing keeps a second "
                                "training out; do not start one here")
