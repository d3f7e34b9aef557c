"""Recognition of audio in one process: features, a network in PyTorch or onnxruntime, the search of kaldi-decoder.

A network is a model directory of ``essence train``, or a folder of ``essence export --format onnx``, for which PyTorch
need not be there. Long audio is cut where it is quietest; each piece is an utterance of its own.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from essence_kd.corpus.features import FeatureExtractor, FeatureOptions, num_frames
from essence_kd.decode.checks import check_scores
from essence_kd.decode.decoders.kaldi import KaldiDecoder
from essence_kd.decode.lattice import hypothesis, path_words
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.pieces import first_rows
from essence_kd.export.exporter import SIDECAR, check_graph
from essence_kd.export.format import ExportSettings, rate_of_model
from essence_kd.hmm.graph import load_graph
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.provenance import read_sidecar

QUIET = 0.9  # natural logarithm of energy: audio whose loud frames are no more above its quiet ones has no speech
_SMOOTH_MS = 300  # of quiet around a cut
PARTIAL_SECONDS = 10.0  # of the end of an utterance so far, by a network that does not stream
Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Word:
    """A word, its begin and end in seconds, and its confidence in [0, 1], None where none was asked for."""

    word: str
    start: float
    end: float
    confidence: Optional[float] = None


@dataclass
class RecognizeSettings:
    """How recordings are recognised; every default stands here."""

    piece_seconds: float = 30.0  # longer audio is cut
    confidences: bool = True
    threads: int = 1
    sample_rate: Optional[int] = ExportSettings.sample_rate  # Hz, of a model that does not tell it


@dataclass
class Network:
    """A network that answers features float32 (T, F) with scores (R, C).

    ``front_end``: of which features. ``about``: what model.yaml or export.json says, and ``where`` that stands.
    ``options``: settings of the search that go with it. ``stream`` begins an utterance that comes in parts:
    ``part(feats)`` of its answer are the scores of the rows that are ready. It answers None where the network needs the
    whole.
    """

    score: Score
    front_end: FeatureOptions
    about: Dict[str, Any]
    where: Path
    options: Dict[str, Any]
    stream: Callable[[], Optional[Any]] = lambda: None


def open_network(model, settings: RecognizeSettings) -> Network:
    """The network of a model directory or of an export. Raises UserError: what is missing, and what installs it."""
    folder = Path(model)
    if (folder / SIDECAR).is_file():
        return _exported(folder, settings)
    if not (folder / "model.yaml").is_file():
        raise UserError(f"{folder}: has neither model.yaml (a model of essence train) nor {SIDECAR} (essence export "
                        "--format onnx)")
    return _trained(folder, settings)


def _exported(folder: Path, settings: RecognizeSettings) -> Network:
    from essence_kd.export.onnx_file import scorer

    told = read_sidecar(folder / SIDECAR)
    if told.get("format") != "onnx":
        raise UserError(f"{folder}: is an export of the format {told.get('format')}, which its own program runs "
                        "(README.md there says how): export with --format onnx")
    try:
        ends = told["front_end"] and FeatureOptions(**told["front_end"])
        name, options = told["model"], {key: told[key] for key in ("word_insertion_penalty", "beam", "max_active")}
    except (KeyError, TypeError):
        raise UserError(f"{folder / SIDECAR}: is not what this version writes: export again") from None
    if not ends:
        raise _other_features(folder / SIDECAR, told.get("feat_dim"))
    rate_of_model(folder / SIDECAR, ends.sample_frequency, settings.sample_rate)
    score = scorer(folder / name, settings.threads)
    return Network(score, ends, told, folder / SIDECAR, {**options, "acoustic_scale": 1.0})


def _trained(folder: Path, settings: RecognizeSettings) -> Network:
    from essence_kd.hmm.alignment_dir import read_log_priors
    from essence_kd.io.settings import read_yaml

    said = read_yaml(folder / "model.yaml")
    if said.get("feat_dim") != FeatureOptions.num_mel_bins_fbank:
        raise _other_features(folder / "model.yaml", said.get("feat_dim"))
    ends = FeatureOptions(sample_frequency=rate_of_model(folder / "model.yaml", said.get("sample_rate"),
                                                         settings.sample_rate))
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{folder}: is a model of essence train, which needs PyTorch ({error}): pip install torch, or "
                        "name a folder of essence export --format onnx, which needs onnxruntime alone") from None
    from essence_kd.am.cmn import cmn_of_model, without_mean
    from essence_kd.am.forward import load_model, scores

    torch.set_num_threads(settings.threads)
    model, about = load_model(folder)
    priors = read_log_priors(folder / "priors.txt", model.num_pdfs).astype(np.float32)
    cmn = cmn_of_model(about, folder)
    if cmn == "speaker":
        raise UserError(f"{folder / 'model.yaml'}: cmn is speaker, but nobody says who speaks: train with data.cmn "
                        "utterance or online")

    def score(feats: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(torch.from_numpy(without_mean(feats, cmn))[None], torch.tensor([len(feats)]))
        return scores(logits[0].numpy(), "loglike", priors)

    return Network(score, ends, about, folder / "model.yaml", {}, _stream_of(folder, priors))


def _stream_of(folder: Path, priors: np.ndarray) -> Callable[[], Optional[Any]]:
    """What begins an utterance that comes in parts, with what is needed for it when it is first asked for."""
    from essence_kd.am.forward import scores

    @lru_cache(maxsize=None)
    def streaming():
        from essence_kd.am.stream import StreamingModel

        try:
            return StreamingModel(folder)
        except UserError:  # it needs the whole utterance
            return None

    class Scores:
        def __init__(self) -> None:
            self._logits = streaming().start()

        def part(self, feats: np.ndarray) -> np.ndarray:
            return scores(self._logits.part(feats), "loglike", priors)

    return lambda: Scores() if streaming() is not None else None


def _other_features(where: Path, feat_dim) -> UserError:
    return UserError(f"{where}: the model takes {feat_dim} feature bins of another front end than 'essence make-feats' "
                     "has, so nothing here can make them of audio")


class Recognizer:
    """Words of audio, by one network and one graph that are loaded once."""

    def __init__(self, model, graph_dir, settings: Optional[RecognizeSettings] = None, **options) -> None:
        """options: fields of DecodeOptions that win over what goes with the network.

        Raises UserError where model and graph do not belong together, and for what cannot be loaded.
        """
        self.settings = settings or RecognizeSettings()
        rate = self.settings.sample_rate
        if not self.settings.piece_seconds > 0 or self.settings.threads < 1 or not (rate is None or rate > 0):
            raise UserError("--piece-seconds, --threads and --sample-rate must be greater than 0")
        KaldiDecoder.check()
        self.graph_path, graph = Path(graph_dir) / "graph.npz", load_graph(Path(graph_dir) / "graph.npz")
        self.network = open_network(model, self.settings)
        check_graph(self.network.where, self.network.about, graph_dir, graph)
        options = DecodeOptions(**{**self.network.options, **options})
        options.check()
        self.decoder = KaldiDecoder(graph, options)
        self.rate = self.network.front_end.sample_frequency
        self._features = FeatureExtractor(self.network.front_end, ["fbank"])

    def recognize(self, samples: np.ndarray, rate: int, name: str = "audio",
                  say: Callable[[str], None] = lambda text: None, confidences: Optional[bool] = None) -> List[Word]:
        """The words of int16 samples (N,); none where nothing is heard, which ``say`` is told with the reason.

        ``confidences``: other than the settings say. Raises UserError where the audio has a lower sample rate than the
        model's.
        """
        confidences = self.settings.confidences if confidences is None else confidences
        samples = resampled(samples, rate, self.rate, name)
        if num_frames(len(samples), self.network.front_end) < 1:
            say(f"{name}: {len(samples)} samples are less than a frame of "
                f"{self.network.front_end.frame_length_ms:g} ms: no words")
            return []
        feats = self._features(samples)["fbank"]
        words: List[Word] = []
        for first, piece in self._pieces(feats):
            begin = first * FRAME_SHIFT_MS / 1000
            nothing = no_speech(piece)
            if nothing:
                say(f"{name}: {nothing} from {begin:.2f} to {begin + len(piece) * FRAME_SHIFT_MS / 1000:.2f} s: "
                    "no words")
                continue
            found = self._decoded(piece, name, confidences)
            if found is None:
                say(f"{name}: no path through the graph from {begin:.2f} s on: a wider --beam may find one")
                continue
            words += [replace(word, start=round(word.start + begin, 3), end=round(word.end + begin, 3))
                      for word in found]
        return words

    def begin(self) -> "Partial":
        """An utterance that is being spoken."""
        return Partial(self)

    def _pieces(self, feats: np.ndarray) -> Iterator[Tuple[int, np.ndarray]]:
        """(first frame, features) of each piece, at most piece_seconds long, cut where it is quietest."""
        limit = max(1, int(self.settings.piece_seconds * 1000 / FRAME_SHIFT_MS))
        quiet = np.stack([-feats.mean(axis=1), np.zeros(len(feats), np.float32)], axis=1)
        starts = first_rows(quiet, np.zeros(1, np.int64), limit, round(_SMOOTH_MS / FRAME_SHIFT_MS))
        return zip(starts, np.split(feats, starts[1:]))

    def _decoded(self, feats: np.ndarray, name: str, confidences: bool) -> Optional[List[Word]]:
        graph = self.decoder.graph
        scores = check_scores(self.network.score(feats), name, str(self.network.where.parent), graph, self.graph_path)
        answer, = self.decoder.decode([scores], lattices=confidences)
        if answer.path is None:
            return None
        hyp = hypothesis(graph, answer.path, answer.occurrences)
        seconds = graph.frame_shift_ms / 1000
        return [Word(str(graph.words[word]), round(start * seconds, 3), round((start + length) * seconds, 3),
                     round(float(confidence), 3) if answer.occurrences is not None else None)
                for word, start, length, confidence in zip(hyp.words, hyp.start, hyp.length, hyp.confidence)]


class Partial:
    """What is understood of an utterance while it is spoken.

    Where the network streams, features, scores and search go on from where they were, and nothing is computed twice.
    Else the last PARTIAL_SECONDS are recognised anew.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self._of, self._samples, self._heard = recognizer, np.zeros(0, np.int16), 0
        self._scores, self._search = recognizer.network.stream(), recognizer.decoder.stream()

    def words(self, samples: np.ndarray) -> List[str]:
        """The best words of int16 samples (N,) at the model's rate: those of the call before, and more."""
        of = self._of
        if self._scores is None:
            late = samples[-int(PARTIAL_SECONDS * of.rate):]
            return [word.word for word in of.recognize(late, of.rate, confidences=False)]
        self._samples = np.concatenate([self._samples, samples[self._heard:]])
        self._heard = len(samples)
        feats = of._features(self._samples)["fbank"]
        self._samples = self._samples[len(feats) * of.network.front_end.shift:]
        self._search.part(self._scores.part(feats))
        graph = of.decoder.graph
        return [str(graph.words[word]) for word in path_words(graph, self._search.path)]


def no_speech(feats: np.ndarray) -> str:
    """Why log-mels (T, F) hold no speech, an empty text where they may: digital silence, or nothing but even noise."""
    energy = feats.mean(axis=1)
    if feats.max() <= np.log(np.finfo(np.float32).eps) + 1e-3:
        return "digital silence"
    low, high = np.percentile(energy, [5, 95])
    return "even noise or silence" if len(energy) >= 10 and high - low < QUIET else ""


def resampled(samples: np.ndarray, rate: int, wanted: int, name: str) -> np.ndarray:
    """int16 samples (N,) at the rate that a model hears. Raises UserError where that is above their own."""
    if rate == wanted:
        return samples
    if rate < wanted:
        raise UserError(f"{name}: has {rate} samples per second, but the model hears {wanted}: what is above "
                        f"{rate // 2} Hz is missing; recognise it with a model for {rate}")
    from scipy.signal import resample_poly

    divisor = int(np.gcd(rate, wanted))
    out = resample_poly(samples.astype(np.float32), wanted // divisor, rate // divisor)
    return np.clip(np.rint(out), -32768, 32767).astype(np.int16)


def one_channel(samples: np.ndarray, channel: Optional[int], name: str) -> np.ndarray:
    """int16 samples (N,) of (N, channels). Raises UserError where none was chosen of several that differ."""
    count = samples.shape[1]
    if channel is None and count > 1 and not (samples == samples[:, :1]).all():
        raise UserError(f"{name}: has {count} channels that differ: choose one with --channel 0 to {count - 1}")
    if (channel or 0) >= count:
        raise UserError(f"{name}: has {count} channel{'s' * (count > 1)}, and --channel is {channel}, counted from 0")
    return samples[:, channel or 0]


def tell(text: str) -> None:
    """A notice on stderr."""
    print(f"essence recognize: {text}", file=sys.stderr)
