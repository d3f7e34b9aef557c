"""What a decoder is asked and what it answers, the same for both decoders."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import List

import numpy as np

from essence_kd.decode.lattice import Lattice, Occurrences
from essence_kd.io.errors import UserError

LAST_ROWS = 4  # of an utterance, at which k2 takes a wider beam so that the end is reached

@dataclass
class DecodeOptions:
    """Settings of a decoding. Beams are in units of cost after scaling (natural logarithms).

    ``acoustic_scale`` multiplies the scores, ``word_insertion_penalty`` is a cost a word (positive: fewer words).
    ``beam``: paths this much worse than the best of a row are dropped. ``output_beam``: what a lattice keeps
    around its best path. ``max_active``/``min_active``: graph states kept a row (advisory in k2).
    ``retry_factor``: an utterance without a path is decoded once more with a beam this many times wider (and its
    square times as many active states). ``frame_shift_ms``: time between two rows of the scores; 0: what their sidecar
    says, else what the graph expects. ``repeat_rows``: how many rows the graph gets for one row of the scores, each with
    that part of the score, so that scales mean the same for every graph; 0: as many as the two frame shifts tell.
    ``batch_rows``: rows, padding included, that k2 decodes at once; 0: 500 on a CPU (its caches), 20,000 on a GPU.
    ``piece_seconds``: an utterance that is longer is decoded in pieces of at most that length (decode.pieces), unless
    lattices are written; 0: never.
    ``active_rows``: at how many rows of a set, at most, the states that the search holds active are counted (k2 alone can).
    ``sweep_*``: the grid of a sweep; ``sweep_output_beam``: the output beam of the lattices that it rescores.
    """

    acoustic_scale: float = 0.4
    word_insertion_penalty: float = 0.0
    beam: float = 10.0
    output_beam: float = 5.0
    max_active: int = 7000
    min_active: int = 30
    retry_factor: float = 2.0
    frame_shift_ms: float = 0.0
    repeat_rows: int = 0
    batch_rows: int = 0
    piece_seconds: float = 600.0
    active_rows: int = 64
    sweep_scales: List[float] = field(default_factory=lambda: [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0])
    sweep_penalties: List[float] = field(default_factory=lambda: [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    sweep_output_beam: float = 8.0

    def check(self) -> None:
        """Raise UserError for a value that cannot be decoded with."""
        positive = {"acoustic-scale": self.acoustic_scale, "beam": self.beam, "output-beam": self.output_beam,
                    "max-active": self.max_active, "sweep-output-beam": self.sweep_output_beam}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise UserError(f"--{name} is {value}, but must be a number greater than 0")
        if not math.isfinite(self.word_insertion_penalty):
            raise UserError(f"--word-insertion-penalty is {self.word_insertion_penalty}, but must be a number")
        if not self.retry_factor >= 1:
            raise UserError(f"retry_factor is {self.retry_factor}, but must be at least 1")
        for name, value in {"batch-rows": self.batch_rows, "frame-shift-ms": self.frame_shift_ms,
                            "repeat-rows": self.repeat_rows, "piece-seconds": self.piece_seconds,
                            "active-rows": self.active_rows}.items():
            if not value >= 0:
                raise UserError(f"--{name} is {value}, but must be at least 0")
        if not 0 <= self.min_active <= self.max_active:
            raise UserError(f"--min-active is {self.min_active}, but must lie between 0 and --max-active "
                            f"({self.max_active})")
        if not self.sweep_scales or not self.sweep_penalties or not all(0 < s < math.inf for s in self.sweep_scales) \
                or not all(map(math.isfinite, self.sweep_penalties)):
            raise UserError("--sweep-scales and --sweep-penalties need at least one number each, scales above 0")


@dataclass
class Decoded:
    """A decoder's answer for one utterance.

    ``path`` int64 arc indices of the graph (epsilons included), None where no path survived; ``retried``: it took the
    wider beam. ``states`` and ``arcs``: size of the lattice, None where there is none. ``occurrences``: word
    labels with posteriors, None without a lattice. ``lattice`` only where it was asked for.
    """

    path: "np.ndarray | None"
    retried: bool = False
    states: "int | None" = None
    arcs: "int | None" = None
    occurrences: "Occurrences | None" = None
    lattice: "Lattice | None" = None
