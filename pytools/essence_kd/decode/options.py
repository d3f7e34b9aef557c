"""Settings of a decoding: every default and its meaning stands here; command line and YAML files change single ones."""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Dict, List

from essence_kd.io.errors import UserError
from essence_kd.io.options import given, tell_defaults
from essence_kd.io.settings import load_settings

_LISTS = ("sweep_scales", "sweep_penalties")


def _setting(default, text: str):
    """A field with the help text of its option."""
    if isinstance(default, tuple):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass
class DecodeOptions:
    """Settings of a decoding. Beams are in units of cost after scaling (natural logarithms)."""

    acoustic_scale: float = _setting(0.4, "multiplies the scores")
    word_insertion_penalty: float = _setting(0.0, "cost per word; positive: fewer words")
    beam: float = _setting(10.0, "search beam: paths so much worse than the best of a row are dropped")
    output_beam: float = _setting(5.0, "lattice beam: what is kept around the best path")
    max_active: int = _setting(7000, "graph states kept per row (advisory in k2)")
    min_active: int = _setting(30, "graph states kept per row, whatever the beam")
    retry_factor: float = _setting(2.0, "an utterance without a path is decoded once more with a beam so many times "
                                   "wider, and the square of it times as many active states")
    frame_shift_ms: float = _setting(0.0, "between two rows of the scores; 0: what their sidecar says, else what the "
                                     "graph expects")
    repeat_rows: int = _setting(0, "rows that the graph gets for one of the scores, each with that part of its score, "
                                "so that scales mean the same for every graph; 0: as many as both frame shifts tell")
    batch_rows: int = _setting(0, "rows that are decoded at once, padding included; 0: what suits decoder and device "
                               "(k2: 500 on a CPU, 20,000 on a GPU)")
    piece_seconds: float = _setting(600.0, "decode a longer utterance in pieces, cut where silence is surest, so that "
                                    "memory is bounded; 0: never (nor with --lattices)")
    active_rows: int = _setting(64, "count the states that k2's search holds active at so many rows of a set at most; "
                                "0: never")
    sweep_scales: List[float] = _setting((0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8), "acoustic scales of a sweep")
    sweep_penalties: List[float] = _setting((-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0),
                                            "word insertion penalties of a sweep")
    sweep_output_beam: float = _setting(8.0, "output beam of the lattices that a sweep rescores")

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
            raise UserError(f"--retry-factor is {self.retry_factor}, but must be at least 1")
        for name, value in {"batch-rows": self.batch_rows, "frame-shift-ms": self.frame_shift_ms,
                            "repeat-rows": self.repeat_rows, "piece-seconds": self.piece_seconds,
                            "active-rows": self.active_rows}.items():
            if not value >= 0:
                raise UserError(f"--{name} is {value}, but must be at least 0")
        if not 0 <= self.min_active <= self.max_active:
            raise UserError(f"--min-active is {self.min_active}, but must be between 0 and --max-active "
                            f"({self.max_active})")
        if not self.sweep_scales or not self.sweep_penalties or not all(0 < s < math.inf for s in self.sweep_scales) \
                or not all(map(math.isfinite, self.sweep_penalties)):
            raise UserError("--sweep-scales and --sweep-penalties need at least one number each, scales above 0")


def add_option_arguments(parser) -> None:
    """--config and an option for every field of DecodeOptions."""
    parser.add_argument("--config", metavar="YAML", help="settings, e.g. conf/decode.yaml; options here win")
    for field in dataclasses.fields(DecodeOptions):
        several = field.name in _LISTS
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=str if several else type(field.default),
                            metavar="X,X,..." if several else "N" if isinstance(field.default, int) else "X",
                            help=field.metadata["help"])
    tell_defaults(parser, DecodeOptions)


def decode_options(args) -> DecodeOptions:
    """DecodeOptions from --config and the options that were given. Raises UserError for what cannot be decoded with."""
    values: Dict[str, Any] = {name: _numbers(value, name) if name in _LISTS else value
              for name, value in given(args, DecodeOptions).items()}
    options = dataclasses.replace(load_settings(DecodeOptions, args.config), **values)
    options.check()
    return options


def _numbers(text: str, name: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--{name.replace('_', '-')} is '{text}', but must be numbers with commas between") from None
