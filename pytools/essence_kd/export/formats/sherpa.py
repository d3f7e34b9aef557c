"""sherpa-onnx: a model of the type ``omnilingual`` (offline), which is given samples, and a graph for its search.

The network computes the features itself, so that they are those of training in every language and program. sherpa-onnx
gives it one utterance at a time, of 16,000 samples per second, less their mean and over their standard deviation. How
loud it was is lost, so the model must be one that takes the utterance's mean off: a factor of the samples is a constant
of all log-mels.

A row is 20 ms there, and one of scores 30 ms. So behind the first of two rows of scores comes one in which words are
said: they have columns of their own, which are nothing in other rows. What is said by an arc of the second of two rows
waits for the next such row. All that says nothing there consumes a blank.
"""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Tuple

import numpy as np

from essence_kd.corpus.features import FeatureExtractor
from essence_kd.export.epsilon_free import EpsilonFree, Phrase, Phrases, ranges, without_epsilons
from essence_kd.export.format import TOLERANCE, Format, Written, register_format
from essence_kd.export.formats.onnx import (ARCHITECTURES, PACKAGES, calibration_of, check_calibration, metadata,
                                            score_settings)
from essence_kd.export.onnx_file import FORM, INT8, quantised, session
from essence_kd.export.sherpa_files import (BEAM, BLANK, GRAPH, NOTHING, RULE, TOKENS, arc_costs, free_marks, log_mels,
                                            wrapped, write_graph_files)
from essence_kd.hmm.fst import Fst, make_fst
from essence_kd.io.errors import UserError

RATE = 16000  # Hz of what the model type is given
LEVEL = 1000.0  # what its standard deviation becomes: that of speech at 16 bits, so that the least energy is training's
MOST = 30000  # phrases: each is a column of 50 rows per second
ZEROS = 28  # of the filter before samples are left out, on each side

README = """# {arch}, {num_pdfs} pdfs, for sherpa-onnx

Offline recognition in the unmodified sherpa-onnx, from 2.0.1 on:

    pip install sherpa-onnx sherpa-onnx-bin
    sherpa-onnx-offline {options} \\
      {wav}

From the folder where these files lie. `text` is the words. `tokens` has them, too, and `{erased}` where something else
was heard; `timestamps`, in seconds, are 20 or 50 ms after the row where the graph says each word, which is not always
where it begins. Where two words are said at once they are one token, with `{between}` between them. `words` are ids of
`words.txt`. Several files at once get the same answers as one by one, and two runs the same ones.

In Python (`sherpa_onnx.OfflineRecognizer` has no factory for a graph; this is what lies beneath it):

    from sherpa_onnx.lib import _sherpa_onnx as S
    recognizer = S.OfflineRecognizer(S.OfflineRecognizerConfig(
        model_config=S.OfflineModelConfig(omnilingual=S.OfflineOmnilingualAsrCtcModelConfig("{file}"),
                                          tokens="{tokens}"),
        ctc_fst_decoder_config=S.OfflineCtcFstDecoderConfig(graph="{graph}", max_active={max_active}),
        rule_fsts="{rule}"))
    stream = recognizer.create_stream()
    stream.accept_waveform({rate}, samples)  # float32, from -1 to 1, of any rate from {rate} Hz on
    recognizer.decode_streams([stream])
    print(stream.result.text)

`sherpa-onnx-offline-websocket-server` takes the same options as the command, and `sherpa-onnx-vad-with-offline-asr`
cuts long audio. In other languages these files go into the OfflineRecognizerConfig of the C API:
`model_config.omnilingual`, `model_config.tokens`, `ctc_fst_decoder_config.graph`, `rule_fsts`.

The network computes the features itself, of audio of {rate} samples per second; sherpa-onnx gives it 16,000. Audio of a
lower rate lacks what it listens to.

The graph is set for a beam of {beam:g} (sherpa-onnx's own is fixed at 16: all costs are multiplied by {widen:g}),
the acoustic scale {acoustic_scale:g} and the word insertion penalty {penalty:g}. Scores of {file} differ from PyTorch's
by at most {{worst}} before that multiplication."""


@register_format
class Sherpa(Format):
    """model.onnx or model.int8.onnx, HLG.fst, tokens.txt, words_only.fst, words.txt."""

    name = "sherpa"
    architectures = ARCHITECTURES
    packages = PACKAGES
    cmn = ("utterance",)
    needs_graph = True
    int8 = INT8

    def check(self) -> None:
        """Static int8 needs features; two characters must be free; the rates must fit those of the model type."""
        check_calibration(self.settings)
        free_marks(self.source.graph.words)
        where, rate = self.source.model_dir / "model.yaml", self.settings.sample_rate
        if self.source.factor < 3:
            raise UserError(f"{where}: frame_subsampling_factor is {self.source.factor}, but the format {self.name} "
                            "has a row every 20 ms, and words between rows of scores: it must be 3 or more")
        if RATE % rate:
            raise UserError(f"{where}: hears {rate} samples per second, but --format {self.name} has {RATE}, or a "
                            "whole part of it, such as 8000")

    def write(self, folder: Path) -> Written:
        """All files."""
        from essence_kd.export.exporter import front_end

        source, settings = self.source, self.settings
        self.file = "model.int8.onnx" if settings.int8 else "model.onnx"
        self.widen, num_pdfs = BEAM / settings.beam, source.model.num_pdfs
        self.extractor, self.every = FeatureExtractor(front_end(settings), ["fbank"]), RATE // settings.sample_rate
        self.response = response(self.every, self.extractor._fft_size)
        free = without_epsilons(source.graph)
        fst, phrases = words_between(free, num_pdfs, arc_costs(free, settings), self.widen)
        self.num_columns = num_pdfs + len(phrases)
        write_graph_files(folder, source, fst, 1 + num_pdfs, phrases, range(1, len(phrases)))
        (folder / self.file).write_bytes(self._bytes())
        self.difference = self._compared(folder)
        erased, between = free_marks(source.graph.words)
        options = {"omnilingual-asr-model": self.file, "tokens": TOKENS, "ctc.graph": GRAPH,
                   "ctc.max-active": settings.max_active, "rule-fsts": RULE, "num-threads": 1}
        readme = README.format(
            file=self.file, arch=source.about["arch"], num_pdfs=num_pdfs, erased=erased, between=between,
            wav="test_wavs/*.wav" if settings.test_data else "a.wav b.wav", tokens=TOKENS, rule=RULE, graph=GRAPH,
            options=wrapped([f"--{name}={value}" for name, value in options.items()]), rate=settings.sample_rate,
            max_active=settings.max_active, beam=settings.beam, widen=self.widen,
            penalty=settings.word_insertion_penalty, acoustic_scale=settings.acoustic_scale)
        return Written(readme, {"model": self.file, "graph": GRAPH, "num_states": fst.num_states,
                                "num_arcs": fst.num_arcs, "num_columns": self.num_columns, "program": options})

    def verify(self, folder: Path, feats: np.ndarray) -> None:
        """Nothing: the network takes samples, and was compared when it was written."""

    def timed(self, folder: Path) -> Tuple[Callable[[], Any], float]:
        """By onnxruntime, features included."""
        samples = np.random.default_rng(1).standard_normal((1, 10 * RATE)).astype(np.float32)
        return partial(session(folder / self.file).run, None, {"x": samples}), 10.0

    def _compared(self, folder: Path) -> float:
        """The largest difference to PyTorch's scores, of noise of 1 to 1,000 frames."""
        from essence_kd.export.exporter import LENGTHS, torch_scores

        rng, worst, ends, running = np.random.default_rng(1), 0.0, self.extractor.options, session(folder / self.file)
        for frames in LENGTHS:
            length = self.every * (ends.window + (frames - 1) * ends.shift)
            samples = rng.standard_normal(length) * np.interp(np.arange(length), np.linspace(0, length, 9),
                                                              rng.uniform(0.05, 3, 9))
            samples = ((samples - samples.mean()) / samples.std()).astype(np.float32)
            found, = running.run(None, {"x": samples[None]})
            theirs = torch_scores(self, self._features(samples))
            rows = row_places(len(theirs), self.source.factor)
            between, pdfs = np.delete(found[0], rows, axis=0), slice(1, 1 + self.source.model.num_pdfs)
            if len(found[0]) != self.source.factor * (len(theirs) // 2 + 1) or (between[:, pdfs] != NOTHING).any() \
                    or np.delete(between, pdfs, axis=1).any() \
                    or (np.delete(found[0, rows], pdfs, axis=1) != NOTHING).any():
                raise UserError(f"{self.source.model_dir}: exported as {self.name}, there are other rows than expected")
            worst = max(worst, float(np.abs(found[0, rows, pdfs] / np.float32(self.widen) - theirs).max()))
        if not worst <= 2 * TOLERANCE and self.settings.int8 is None:  # features are computed in single precision
            raise UserError(f"{self.source.model_dir}: exported as {self.name}, scores differ from PyTorch's by "
                            f"{worst:.3g}: nothing was left")
        return worst

    def _features(self, samples: np.ndarray) -> np.ndarray:
        """What the network computes of samples, by NumPy in double precision."""
        wave = LEVEL * np.convolve(samples, low_pass(self.every), mode="same")[::self.every]
        frames = np.lib.stride_tricks.sliding_window_view(wave, self.extractor.options.window)
        frames = frames[::self.extractor.options.shift] @ self.extractor._prepare
        power = (abs(np.fft.rfft(frames, self.extractor._fft_size)) / self.response)**2
        return np.log(np.maximum(power @ self.extractor._banks["fbank"], np.finfo(np.float32).eps)).astype(np.float32)

    def _bytes(self) -> bytes:
        from essence_kd.export.onnx_network import Network

        source, settings = self.source, self.settings
        net, how = Network(source.model, FORM[settings.int8]), score_settings(self)
        net.scores("feats", **{**how, "acoustic_scale": how["acoustic_scale"] * self.widen})
        data = net.to_bytes([("feats", np.float32, [1, "frames", source.model.feat_dim])],
                            [("scores", np.float32, [1, "rows", source.model.num_pdfs])], {})
        if settings.int8 is not None:
            data = quantised(data, settings.int8, ({"feats": feats[None]} for feats in calibration_of(self)))
        return self._of_samples(data)

    def _of_samples(self, data: bytes) -> bytes:
        """The model file ``data`` (feats -> scores) for samples x (1, n): (1, rows of 20 ms, columns)."""
        import onnx
        from onnx import compose

        from essence_kd.export.onnx_network import OnnxGraph

        inner = compose.add_prefix_graph(onnx.load_from_string(data).graph, "net/")
        ends, net = self.extractor.options, OnnxGraph()
        add, ints = net.add, net.ints

        def size(value: str, axis: int) -> str:
            return add("Gather", add("Shape", value), ints(axis))

        wave = add("Mul", "x", net.constant(LEVEL))
        if self.every > 1:
            weights = low_pass(self.every)
            wave = add("Conv", add("Unsqueeze", wave, ints(1)), net.constant(weights[None, None]),
                       kernel_shape=[len(weights)], strides=[self.every], pads=[len(weights) // 2] * 2)
        wave = add("Reshape", wave, ints(-1))
        lacking = add("Max", add("Sub", ints(ends.window), size(wave, 0)), ints(0))  # a frame at least
        wave = add("Pad", wave, add("Concat", ints(0), lacking, axis=0))
        begins = add("Range", ints(0), add("Sub", size(wave, 0), ints(ends.window - 1)), ints(ends.shift))
        places = add("Add", add("Unsqueeze", begins, ints(1)), ints(*range(ends.window)))
        add("Unsqueeze", log_mels(net, wave, places, self.extractor, self.response), ints(0), name="net/feats")
        net.nodes.extend(inner.node)

        num_pdfs, factor, columns = self.source.model.num_pdfs, self.source.factor, self.num_columns
        scores = add("Pad", "net/scores", ints(0, 0, 1, 0, 0, columns - 1 - num_pdfs), net.constant(NOTHING))
        saying = np.zeros((1, 1, columns))
        saying[..., 1:1 + num_pdfs] = NOTHING

        def rows_between(number: str, where: str) -> str:
            shape = add("Concat", add("Slice", add("Shape", where), ints(0), ints(1)), number, ints(1), axis=0)
            return add("Expand", net.constant(saying), shape)

        more = add("Sub", ints(2), add("Mod", size(scores, 1), ints(2)))  # words that waited are said at the end
        pairs = add("Reshape", add("Concat", scores, rows_between(more, scores), axis=1), ints(-1, 2, columns))
        first, second = (add("Slice", pairs, ints(i), ints(i + 1), ints(1)) for i in range(2))
        ahead = -(-factor // 2)
        parts = [first, rows_between(ints(ahead - 1), pairs), second, rows_between(ints(factor - ahead - 1), pairs)]
        add("Reshape", add("Concat", *parts, axis=1), ints(1, -1, columns), name="log_probs")
        net.constants.update({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in inner.initializer})
        about = {**metadata(self.source, self.settings), "model_type": "omnilingual"}
        return net.to_bytes([("x", np.float32, [1, "samples"])],
                            [("log_probs", np.float32, [1, "all", columns])], about)


def row_places(rows: int, factor: int) -> np.ndarray:
    """Which rows of 20 ms the rows of scores become, of ``factor`` frames each."""
    number = np.arange(rows)
    return number // 2 * factor + number % 2 * -(-factor // 2)


def low_pass(every: int) -> np.ndarray:
    """Weights float64 of the filter after which each ``every``-th sample may stand for all; 1.0 for 1."""
    if every == 1:
        return np.ones(1)
    at = np.arange(-ZEROS * every, ZEROS * every + 1)
    weights = np.sinc(at / every) * np.kaiser(len(at), 6.0)
    return weights / weights.sum()


def response(every: int, fft_size: int) -> np.ndarray:
    """(fft_size // 2 + 1,): what is left of each frequency up to half of RATE / ``every``.

    sherpa-onnx raises the rate of such audio with Kaldi's LinearResample, six zeros and a cutoff of 0.99 of the
    highest frequency; low_pass follows.
    """
    if every == 1:
        return np.ones(fft_size // 2 + 1)
    cutoff, zeros = 0.99 / every, 6  # 1: half of RATE
    at = np.arange(-int(zeros / cutoff), int(zeros / cutoff) + 1)
    raising = cutoff * np.sinc(cutoff * at) * 0.5 * (1 + np.cos(np.pi * cutoff / zeros * at))
    angles = np.pi / every * np.arange(fft_size // 2 + 1) / (fft_size // 2)

    def of(weights: np.ndarray) -> np.ndarray:
        return np.cos(np.outer(angles, np.arange(len(weights)) - len(weights) // 2)) @ weights

    return of(raising) * of(low_pass(every))


def words_between(free: EpsilonFree, num_pdfs: int, weight: np.ndarray, widen: float) -> Tuple[Fst, List[Phrase]]:
    """(graph, phrases) of a graph without epsilons, where words are said by arcs of their own.

    Input labels are columns + 1: blank, 1 + pdf, num_pdfs + phrase; output labels are phrases; costs ``weight``, and
    final ones times ``widen``. Behind an arc that says something comes one that consumes its phrase, at once or after
    another pdf; what that one says is then said with it. Every other state has an arc that consumes a blank and stays.
    Where that makes more phrases than MOST, words do not follow each other within 30 ms.
    """
    fst, phrases = free.fst, Phrases(free.phrases)
    words, states = fst.olabel > 0, np.arange(fst.num_states)
    waiting, place = np.unique(np.stack([fst.dst[words], fst.olabel[words]]), axis=1, return_inverse=True)
    dst, here = fst.dst.copy(), fst.num_states + np.arange(waiting.shape[1])
    dst[words] = here[place.ravel()]
    first = np.searchsorted(fst.src, waiting[0])
    count = np.searchsorted(fst.src, waiting[0], side="right") - first
    arc, at = ranges(first, count), np.repeat(np.arange(len(here)), count)
    both = np.unique(np.stack([waiting[1][at], fst.olabel[arc]])[:, words[arc]], axis=1)
    if both.shape[1] + len(phrases.words) > MOST:
        arc, at = arc[~words[arc]], at[~words[arc]]
    longer, place = np.unique(np.stack([fst.dst[arc], phrases.joined(waiting[1][at], fst.olabel[arc])]), axis=1,
                              return_inverse=True)
    there = fst.num_states + len(here) + np.arange(longer.shape[1])

    def none(arcs) -> np.ndarray:
        return np.zeros(len(arcs))

    arcs = [(fst.src, dst, fst.ilabel + 1, none(dst), weight),
            (here[at], there[place.ravel()], fst.ilabel[arc] + 1, none(arc), weight[arc]),
            (here, waiting[0], waiting[1] + num_pdfs + 1, waiting[1], none(here)),
            (there, longer[0], longer[1] + num_pdfs + 1, longer[1], none(there)),
            (states, states, none(states) + BLANK, none(states), none(states))]
    final = np.concatenate([fst.final * widen, np.full(len(here) + len(there), np.inf)])
    src, dst, ilabel, olabel, cost = (np.concatenate(column) for column in zip(*arcs))
    return make_fst(src, dst, ilabel, olabel, cost, final, fst.start), phrases.words
