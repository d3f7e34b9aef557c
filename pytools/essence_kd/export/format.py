"""The protocol of formats: what one is given, what it leaves, and all of them by their names.

A format is a subclass of :class:`Format` in a file of ``export/formats`` or of a plugin::

    @register_format
    class Mine(Format):
        name = "mine"
        architectures = ("tdnn",)

        def write(self, folder):
            ...  # files of the model self.source, by self.settings, into the folder
            return Written("text for README.md", {"more": "for export.json"})

        def verify(self, folder, feats):
            return ...  # scores of one utterance, by what was written

``essence export --format mine MODEL_DIR OUT`` then checks model and graph, compares the scores with PyTorch's, and
writes export.json, README.md and test_wavs/.
"""
from __future__ import annotations

import abc
import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, Optional, Tuple

import numpy as np

from essence_kd.am.settings import ForwardSettings
from essence_kd.decode.options import DecodeOptions
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS, SAMPLE_RATE
from essence_kd.io.registry import Registry

if TYPE_CHECKING:
    from essence_kd.am.models.acoustic_model import AcousticModel
    from essence_kd.hmm.graph import Graph

TOLERANCE = 1e-4  # between a score of PyTorch and one of what was written


@dataclass
class ExportSettings:
    """What is asked for besides model and graph; every default stands here."""

    acoustic_scale: float = DecodeOptions.acoustic_scale  # goes into the scores
    word_insertion_penalty: float = DecodeOptions.word_insertion_penalty  # goes into the graph
    beam: float = DecodeOptions.beam
    max_active: int = DecodeOptions.max_active
    prior_scale: float = ForwardSettings.prior_scale
    prior_floor: float = ForwardSettings.prior_floor
    sample_rate: Optional[int] = None  # Hz of the audio that the features were made of; None: what the model says
    int8: Optional[str] = None  # dynamic or static
    calibrate: Optional[str] = None  # data directory of the features that static int8 looks at
    test_data: Optional[str] = None  # data directory whose first utterances become test_wavs/

    def check(self) -> None:
        """Raise UserError for a value that cannot be exported with."""
        for name, value in {"acoustic-scale": self.acoustic_scale, "beam": self.beam, "max-active": self.max_active,
                            "sample-rate": self.sample_rate}.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} is {value}, but must be a number greater than 0")
        for name, value in {"word-insertion-penalty": self.word_insertion_penalty,
                            "prior-scale": self.prior_scale}.items():
            if not math.isfinite(value):
                raise UserError(f"--{name} is {value}, but must be a number")


def rate_of_model(where, known: Optional[int], asked: Optional[int]) -> int:
    """Hz of the audio that a model was trained on: what it says itself (``known``), else what was asked for.

    Raises UserError, which names ``where`` it says so, where the two differ.
    """
    if None not in (known, asked) and known != asked:
        raise UserError(f"{where}: was trained on audio of {known} samples per second, not {asked}: leave out "
                        "--sample-rate")
    return known or asked or SAMPLE_RATE


@dataclass
class Source:
    """What is exported: a trained model with its priors, and the graph where the format takes one.

    ``about``: model.yaml. ``log_priors``: float32 (num_pdfs,), what is subtracted from log-probabilities (times
    ``prior_scale``).
    """

    model_dir: Path
    model: "AcousticModel"
    about: Dict[str, Any]
    log_priors: np.ndarray
    graph_dir: Optional[Path] = None
    graph: Optional["Graph"] = None

    @property
    def factor(self) -> int:
        """Feature frames per row of scores."""
        return self.model.frame_subsampling_factor

    @property
    def row_ms(self) -> float:
        """Time of a row of scores."""
        return FRAME_SHIFT_MS * self.factor


@dataclass
class Written:
    """What a format tells of what it wrote: the text of README.md, and fields for export.json.

    ``{worst}`` in the text becomes the largest difference to PyTorch.
    """

    readme: str
    fields: Dict[str, Any] = field(default_factory=dict)


class Format(abc.ABC):
    """Writes one model (``self.source``), by ``self.settings``, for other programs.

    ``architectures`` and ``cmn`` are what the format can hold. ``packages``: the module to import -> what pip installs.
    """

    name: ClassVar[str]
    architectures: ClassVar[Tuple[str, ...]]
    cmn: ClassVar[Tuple[str, ...]] = ("none", "utterance")
    needs_graph: ClassVar[bool] = False
    needs_front_end: ClassVar[bool] = True  # what runs it computes the features, too
    exact_mean: ClassVar[bool] = False  # of an utterance, where it is not rounded as NumPy rounds sums of float32
    packages: ClassVar[Dict[str, str]] = {}
    int8: ClassVar[Tuple[str, ...]] = ()  # the kinds of int8 weights that it can write
    difference: float = 0.0  # to PyTorch's scores, that write() has found already

    def __init__(self, source: Source, settings: ExportSettings) -> None:
        self.source, self.settings = source, settings

    def check(self) -> None:
        """UserError for what the format cannot hold, beyond the attributes above."""

    @abc.abstractmethod
    def write(self, folder: Path) -> Written:
        """Write all files of the format into an empty folder, the same bytes at every call."""

    @abc.abstractmethod
    def verify(self, folder: Path, feats: np.ndarray) -> Optional[np.ndarray]:
        """Scores float32 (R, num_pdfs) of features float32 (T, feat_dim) by the files, T > 0.

        They are compared with acoustic scale x (log p - prior scale x log prior) of PyTorch. None: this utterance
        cannot be compared.
        """

    def timed(self, folder: Path) -> Optional[Tuple[Callable[[], Any], float]]:
        """What computes scores by the files, on one thread, and of how many seconds of audio, for its speed.

        None: another program does that.
        """
        return None


FORMATS: "Registry[Any]" = Registry("format", "essence_kd.export.formats")


def register_format(cls):
    """Class decorator: a subclass of Format becomes ``essence export --format NAME``, by its ``name``.

    Raises UserError for a name that is taken.
    """
    return FORMATS.register(cls.name)(cls)


def runtime(module: str, distribution: str, what: str):
    """A module that only deployment needs. Raises UserError that tells what pip installs; ``what`` needs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the package {module}, which cannot be imported ({error}): "
                        f"pip install {distribution}") from None
