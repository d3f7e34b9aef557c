"""The protocol of decoders: what a decoder is given, what it answers, and all of them by their names.

A new one is a subclass of :class:`Decoder` in any module that the environment variable ESSENCE_PLUGINS names::

    @register_decoder
    class MyDecoder(Decoder):
        name = "mine"

        def decode(self, batch, *, lattices=False):
            return [Decoded(path) for path in ...]

``essence decode --decoder mine`` then checks scores, cuts and batches, shares work out to processes, sweeps, rescores
lattices and writes files as for every other. A decoder whose programs take whole archives is an
:class:`ArchiveDecoder`.
"""
from __future__ import annotations

import abc
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from essence_kd.decode.lattice import Lattice, Occurrences, path_words
from essence_kd.decode.options import DecodeOptions
from essence_kd.hmm.graph import Graph
from essence_kd.io.errors import UserError
from essence_kd.io.registry import Registry

AUTO = ("k2", "kaldi")  # --decoder auto: the first of these that can be had
LAST_ROWS = 4  # of an utterance: active states are not counted there, for k2 widens its beam to reach the end


class Unavailable(UserError):
    """A decoder that neither this Python nor another one can run; the message says why."""


@dataclass
class Decoded:
    """A decoder's answer for one utterance.

    ``path`` int64 arc indices of the graph (epsilons included), None where no path survived; ``retried``: it took the
    wider beam. ``states`` and ``arcs``: size of the lattice, None where there is none. ``occurrences``: word
    labels with posteriors, None without a lattice. ``lattice`` only where it was asked for.

    >>> from essence_kd import Decoded
    >>> Decoded(None).retried  # no path survived
    False
    """

    path: Optional[np.ndarray]
    retried: bool = False
    states: Optional[int] = None
    arcs: Optional[int] = None
    occurrences: Optional[Occurrences] = None
    lattice: Optional[Lattice] = None


@dataclass
class Job:
    """One archive to decode: scores (rspecifier of float matrices (T, C)) into a directory.

    ``scale_from``: a sweep.json whose best acoustic scale and word insertion penalty replace the options'.
    ``data_dir``: a data directory whose segments and reco2file_and_channel turn the CTM's times into times of
    recordings; without it every utterance is its own recording, channel 1.
    """

    scores: str
    out_dir: Path
    scale_from: Optional[Path] = None
    data_dir: Optional[Path] = None


@dataclass
class Request:
    """What is wanted besides words and times: lists of so many word sequences, lattices, another language model.

    The weight of the language model ``old_lm`` of the graph becomes ``lm_scale``, or that of ``new_lm`` in its place,
    in the lattices, and so in words, times, confidences, lists and the lattices written.
    """

    n_best: int = 0
    lattices: bool = False
    old_lm: Optional[str] = None
    new_lm: Optional[str] = None
    lm_scale: float = 1.0


class _Named:
    """What every decoder tells of itself. ``library``: the distribution whose release decode.json tells."""

    name: str
    library: Optional[str] = None

    @classmethod
    def hand_over(cls, command: list[str]) -> int | None:
        """The exit status of ``essence COMMAND...`` where another Python has run it, None where this one can decode.

        Raises Unavailable where neither can.
        """
        return None

    @classmethod
    def version(cls) -> str | None:
        """Release of the decoder's library."""
        from importlib import metadata

        return metadata.version(cls.library) if cls.library else None


class Decoder(_Named, abc.ABC):
    """Decodes batches of score matrices float32 (T, C), T > 0, with one graph; C is the graph's number of pdfs.

    One object lives in each process. Costs of paths are those of decode.lattice. `register_decoder` shows one of one's
    own.

    >>> from essence_kd import Decoder
    >>> from essence_kd.decode.decoder import DECODERS
    >>> issubclass(DECODERS.get("kaldi"), Decoder)
    True
    """

    batch_rows = 500  # of a batch, padding included, where the options say nothing
    sweeps_lattices = False  # :meth:`sweep` takes one search for the whole grid, not one a setting
    counts_active_states = False  # there is :meth:`active_states`

    def __init__(self, graph: Graph, options: DecodeOptions):
        self.graph = graph
        self.set_options(options)

    @classmethod
    def check(cls) -> None:
        """UserError where what it needs cannot be imported."""

    def set_options(self, options: DecodeOptions) -> None:
        """Take other scales and beams."""
        self.options = options

    @abc.abstractmethod
    def decode(self, batch: list[np.ndarray], *, lattices: bool = False) -> list[Decoded]:
        """Answers in the order of the batch; an utterance without a path has been tried again wider (retry_factor)."""

    def sweep(self, batch: list[np.ndarray], scales: list[float],
              penalties: list[float]) -> list[list[list[np.ndarray]]]:
        """Words of every utterance for every acoustic scale and word insertion penalty, here each decoded anew.

        Returns ``[utterance][scale][penalty]`` of word-ids (int32); an utterance without a path has empty sequences.
        """
        kept = self.options
        answers: list = [[[] for _ in scales] for _ in batch]
        for i, scale in enumerate(scales):
            for penalty in penalties:
                self.set_options(dataclasses.replace(kept, acoustic_scale=scale, word_insertion_penalty=penalty))
                for row, decoded in enumerate(self.decode(batch)):
                    nothing = np.zeros(0, np.int32)
                    answers[row][i].append(nothing if decoded.path is None else path_words(self.graph, decoded.path))
        self.set_options(kept)
        return answers

    def active_states(self, batch: list[np.ndarray]) -> list[int]:
        """States that the search holds active after the last row of each matrix."""
        raise NotImplementedError


class ArchiveDecoder(_Named, abc.ABC):
    """Decodes whole jobs by means of its own; what it starts ends with the context. ``nj``: processes.

    Raises UserError for a request that it cannot fulfil.
    """

    def __init__(self, graph_dir, options: DecodeOptions, nj: int = 1):
        options.check()
        self.dir, self.options, self.nj = Path(graph_dir), options, nj

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc) -> None:
        """Whatever the end was."""

    @abc.abstractmethod
    def decode(self, jobs: list[Job], request: Request | None = None) -> list[dict]:
        """Decode every job and write its files; what went into each decode.json, in the order of the jobs."""

    @abc.abstractmethod
    def sweep(self, jobs: list[Job], reference: dict[str, list[str]], pooled=None, only: bool = False) -> list[dict]:
        """A sweep.json for every job and, but with ``only``, its decoding at the best setting; the tables
        (sweeps.sweep_table).

        ``reference``: utterance -> words. ``pooled``: a path for the common best of all jobs, at which they are
        then decoded.
        """


DECODERS: "Registry[Any]" = Registry("decoder", "essence_kd.decode.decoders")


def hand_over(name: str, command: Callable[[str], list[str]]) -> tuple[str, int | None]:
    """The decoder that decodes, which is `name` or the first of AUTO that can be had, and an exit status.

    command: the arguments of the essence command that decodes with a decoder. Where another Python has run it, the
    status is that command's; None: the decoder works in this one. Raises UserError where there is no such decoder.
    """
    names = list(AUTO) if name == "auto" else [name]
    while True:
        name = names.pop(0)
        try:
            return name, DECODERS.get(name, "--decoder").hand_over(command(name))
        except Unavailable as error:
            if not names:
                raise UserError(f"{error}; decode with --decoder {AUTO[-1]} meanwhile") from None
            print(f"essence decode: {error}: {DECODERS.get(names[0]).library} decodes instead", file=sys.stderr)


def register_decoder(cls):
    """Class decorator: a subclass of Decoder or ArchiveDecoder becomes ``--decoder NAME``, by its ``name``.

    Raises UserError for a name that is taken.

    >>> import numpy as np
    >>> from essence_kd import Decoded, Decoder, decode, register_decoder
    >>> @register_decoder
    ... class Silent(Decoder):
    ...     name = "silent"
    ...
    ...     def decode(self, batch, *, lattices=False):  # score matrices float32 (T, C)
    ...         return [Decoded(np.zeros(0, np.int64)) for scores in batch]  # arcs of a path through self.graph
    >>> decode("exp/graph", [("utt1", np.zeros((6, 8), np.float32))], decoder="silent")
    {'utt1': []}
    """
    return DECODERS.register(cls.name)(cls)
