"""sherpa-onnx while speech goes on: a model of the type ``t-one`` (samples at 8 kHz, 300 ms at once, rows of 30 ms).

The network is given samples and computes the features itself, so that they are those of training in every language that
sherpa-onnx has. What it needs of what came before is its state, a vector of 16-bit floating-point numbers, each number
in two of them: the last samples, the frames of the running mean and of the network's context, and how many chunks came.

Row r waits for frames after it. So the rows of a chunk are ``delay`` rows late, and in front of the first one there are
rows of blanks. Frames of digital silence, which programs append to the end of audio, are taken for the last frame
before them, as at the end of an utterance in training (``data.edges: repeat``). Where a row waits for nothing but
digital silence, the utterance has ended: there are blanks, which lead from the graph's end to its beginning.

Words have columns of their own, for each pdf that an arc which says them consumes.
"""
from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Tuple

import numpy as np

from essence_kd.corpus.features import FeatureExtractor
from essence_kd.export.epsilon_free import EpsilonFree, without_epsilons
from essence_kd.export.format import TOLERANCE, Format, Written, register_format
from essence_kd.export.formats.onnx import PACKAGES, metadata, score_settings
from essence_kd.export.onnx_file import FORM, quantised, session
from essence_kd.export.sherpa_files import (BEAM, BLANK, GRAPH, NOTHING, RULE, TOKENS, arc_costs, free_marks, log_mels,
                                            wrapped, write_graph_files)
from essence_kd.hmm.fst import Fst, make_fst
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS

RATE, CHUNK_MS, ROW_MS = 8000, 300, 30  # of the model type
SILENT_SAMPLES = 4  # of digital silence with which a frame ends that is taken for silence
SILENT_FRAMES = 64  # of digital silence at most that are taken for the frame before them
README = """# {arch}, {num_pdfs} pdfs, for sherpa-onnx while speech goes on

    pip install sherpa-onnx sherpa-onnx-bin
    sherpa-onnx {options} \\
      {wav}

From the folder where these files lie. It hears {rate} samples per second, 300 ms at once, and sherpa-onnx waits until
the next 300 ms are there. A row waits for {wait:g} ms of audio, and its time is {late:g} s later than what it is about.
`text` is the words; a word appears when the graph may end behind it. `tokens` has them, too, and `{erased}` where
something else was heard. The end of a phrase is found by a VAD in front, or after `rule3-min-utterance-length` seconds:
the model has no blanks, which the other rules count.

In Python (`sherpa_onnx.OnlineRecognizer.from_t_one_ctc` takes no graph; this is what lies beneath it):

    from sherpa_onnx.lib import _sherpa_onnx as S
    recognizer = S.OnlineRecognizer(S.OnlineRecognizerConfig(
        feat_config=S.FeatureExtractorConfig(sampling_rate={rate}, feature_dim=80),
        model_config=S.OnlineModelConfig(t_one_ctc=S.OnlineToneCtcModelConfig("{file}"), tokens="{tokens}",
                                         num_threads=1),
        ctc_fst_decoder_config=S.OnlineCtcFstDecoderConfig(graph="{graph}", max_active={max_active}),
        rule_fsts="{rule}", enable_endpoint=False, decoding_method="greedy_search"))
    stream = recognizer.create_stream()
    stream.accept_waveform({rate}, samples)  # float32, from -1 to 1; again and again
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    print(recognizer.get_result(stream).text)

At the end give it a second of zeros, which are not heard, and then `stream.input_finished()`.

`sherpa-onnx-online-websocket-server` takes the same options; in other languages these files go into the
OnlineRecognizerConfig: `model_config.t_one_ctc`, `model_config.tokens`, `ctc_fst_decoder_config.graph`, `rule_fsts`.

The graph is set for a beam of {beam:g} (sherpa-onnx's own is fixed at 16: all costs are multiplied by {widen:g}),
the acoustic scale {acoustic_scale:g} and the word insertion penalty {penalty:g}. Scores differ from PyTorch's by at
most {worst:.2g} before that multiplication."""


@register_format
class SherpaStreaming(Format):
    """model.onnx or model.int8.onnx, HLG.fst, tokens.txt, words_only.fst, words.txt."""

    name = "sherpa-streaming"
    architectures = ("tdnn", "tdnn_f", "cnn_tdnn")
    packages = PACKAGES
    cmn = ("none", "online")
    needs_graph = True
    int8 = ("dynamic",)

    def check(self) -> None:
        """UserError for a model that the type cannot hold, or whose context beyond an utterance are zeros."""
        from essence_kd.am.cmn import OnlineMean, cmn_of_model
        from essence_kd.am.stream import StreamingModel

        source, where = self.source, self.source.model_dir / "model.yaml"
        free_marks(source.graph.words)
        if self.settings.sample_rate != RATE or source.row_ms != ROW_MS:
            raise UserError(f"{where}: hears {self.settings.sample_rate} samples per second, with a row every "
                            f"{source.row_ms:g} ms, but --format {self.name} has {RATE} and {ROW_MS} ms")
        mean = cmn_of_model(source.about, source.model_dir)
        self.mean = mean if isinstance(mean, OnlineMean) else None  # of a running mean
        if self.mean and self.mean.look_ahead:
            raise UserError(f"{where}: the running mean looks {self.mean.look_ahead} frames ahead, which --format "
                            f"{self.name} cannot: train with data.cmn_look_ahead=0")
        layers = StreamingModel(source.model_dir)._layers
        left, right = (sum(getattr(layer, side) * layer.every for layer in layers) for side in ("left", "right"))
        factor = source.factor
        if source.model.edge_rows[0] * factor < left:
            raise UserError(f"{where}: in front of an utterance there are zeros (data.edges: zeros), but --format "
                            f"{self.name} repeats the first frame: train with data.edges=repeat, as "
                            "conf/models/student_tdnn_online.yaml does")
        self.before, self.delay = -(-left // factor), -(-right // factor)  # rows
        self.window = self.mean.window if self.mean else 0
        # frames that are kept: of the mean of the first frame that is needed, or from that on
        self.kept = factor * (self.before + self.delay) + max(0, self.window - 3)
        self.right = right

    def write(self, folder: Path) -> Written:
        """All files."""
        from essence_kd.export.exporter import front_end

        source, settings = self.source, self.settings
        self.file = "model.int8.onnx" if settings.int8 else "model.onnx"
        self.widen, num_pdfs = BEAM / settings.beam, source.model.num_pdfs
        self.extractor = FeatureExtractor(front_end(settings), ["fbank"])
        erased, between = free_marks(source.graph.words)
        free = without_epsilons(source.graph)
        fst, self.columns, spoken = endless(free, num_pdfs, arc_costs(free, settings), self.widen)
        write_graph_files(folder, source, fst, 1 + num_pdfs, free.phrases, spoken)
        (folder / self.file).write_bytes(self._bytes())
        self.difference = worst = self._compared(folder)
        options = {"t-one-ctc-model": self.file, "tokens": TOKENS, "ctc-graph": GRAPH,
                   "ctc-max-active": settings.max_active, "rule-fsts": RULE, "num-threads": 1}
        late = ROW_MS * self.delay / 1000
        readme = README.format(
            options=wrapped([f"--{name}={value}" for name, value in options.items()]), arch=source.about["arch"],
            num_pdfs=num_pdfs, wav="test_wavs/*.wav" if settings.test_data else "a.wav", rate=RATE,
            wait=FRAME_SHIFT_MS * self.right, late=late, erased=erased, file=self.file, tokens=TOKENS, graph=GRAPH,
            rule=RULE, beam=settings.beam, max_active=settings.max_active, widen=self.widen,
            acoustic_scale=settings.acoustic_scale, penalty=settings.word_insertion_penalty, worst=worst)
        return Written(readme, {"model": self.file, "graph": GRAPH, "num_states": fst.num_states,
                                "num_arcs": fst.num_arcs, "num_columns": len(self.columns), "program": options,
                                "times_late": late})

    def verify(self, folder: Path, feats: np.ndarray) -> None:
        """Nothing: the network takes samples, and was compared when it was written."""

    def timed(self, folder: Path) -> Tuple[Callable[[], Any], float]:
        """By onnxruntime, features included, chunk by chunk."""
        samples = np.random.default_rng(1).integers(-3000, 3000, (1, 9 * RATE))
        return partial(chunk_scores, session(folder / self.file), samples), 9.0

    def _compared(self, folder: Path) -> float:
        """The largest difference to PyTorch's scores of an utterance of noise, two streams at once."""
        from essence_kd.export.exporter import torch_scores

        rng, worst = np.random.default_rng(1), 0.0
        long = RATE * (10 + self.window // 100)  # until frames leave the running mean
        sound = np.convolve(rng.standard_normal(long), [1, 0.8, 0.3], mode="same")
        samples = (sound * np.interp(np.arange(long), np.arange(0, long, 2000), rng.uniform(30, 6000, -(-long // 2000)))
                   ).astype(np.int16)
        samples[np.abs(samples) < 2] = 2  # sherpa-onnx makes 1 a 0
        found = chunk_scores(session(folder / self.file), np.stack([samples, samples[::-1]]))
        for number, each in enumerate((samples, samples[::-1])):
            theirs = torch_scores(self, self.extractor(each)["fbank"])
            ours = found[number, self.delay:, :1 + self.source.model.num_pdfs]
            rows = min(len(ours), len(theirs) - self.delay - 1)  # behind these it ends
            if not (found[number, :self.delay, 0] == 0).all() or not (ours[:rows, 0] == NOTHING).all() \
                    or not (found[number] == found[number][:, self.columns]).all():
                raise UserError(f"{self.source.model_dir}: exported as {self.name}, there are other rows than expected")
            worst = max(worst, float(np.abs(ours[:rows, 1:] / np.float32(self.widen) - theirs[:rows]).max()))
        if not worst <= 2 * TOLERANCE and self.settings.int8 is None:  # features are computed in single precision
            raise UserError(f"{self.source.model_dir}: exported as {self.name}, scores differ from PyTorch's by "
                            f"{worst:.3g}: nothing was left")
        return worst

    def _bytes(self) -> bytes:
        from essence_kd.export.onnx_network import Network, logits_of

        source, settings, how = self.source, self.settings, score_settings(self)
        net, rows = Network(source.model, FORM[settings.int8]), CHUNK_MS // ROW_MS
        x = logits_of(net, net.normalised("feats"))
        x = net.add("Slice", x, net.ints(self.before), net.ints(self.before + rows), net.ints(1))
        x = net.add("Sub", net.add("LogSoftmax", x, axis=-1), net.constant(how["log_priors"]))
        net.add("Mul", x, net.constant(how["acoustic_scale"] * self.widen), name="scores")
        data = net.to_bytes([("feats", np.float32, [1, "frames", source.model.feat_dim])],
                            [("scores", np.float32, [1, rows, source.model.num_pdfs])], {})
        return self._of_chunks(data if settings.int8 is None else quantised(data, settings.int8))

    def _of_chunks(self, data: bytes) -> bytes:
        """The model file ``data`` (feats -> scores of the rows of a chunk), from samples and with its state."""
        import onnx
        from onnx import TensorProto, compose, helper, numpy_helper

        from essence_kd.export.onnx_network import OnnxGraph

        inner = compose.add_prefix_graph(onnx.load_from_string(data).graph, "net/")
        ends, num_pdfs, kept, bins = self.extractor.options, self.source.model.num_pdfs, self.kept, \
            self.source.model.feat_dim
        factor, rows, size = self.source.factor, CHUNK_MS // ROW_MS, RATE * CHUNK_MS // 1000
        frames = rows * factor
        early = -(-(ends.window - ends.shift) // ends.shift)  # frames of a chunk that begin in the one before
        old, count = early * ends.shift, kept + frames  # samples that are kept; frames at hand
        body = OnnxGraph()
        add, ints, const = body.add, body.ints, body.constant

        def part(first: int, length: int) -> str:
            return add("Slice", state, ints(first), ints(first + length), ints(0))

        def number_of(values: str) -> str:
            return add("Cast", values, to=TensorProto.INT64)

        add("Identity", "go", name="on")
        state = add("Cast", add("Gather", "state", "number", axis=0), to=TensorProto.FLOAT)
        samples = add("Cast", add("Reshape", add("Gather", "x", "number", axis=0), ints(size)), to=TensorProto.FLOAT)
        samples = add("Add", samples, add("Sign", samples))  # 32767/32768 of a sample, cut off, is one less
        wave = add("Concat", add("Add", part(0, old), part(old, old)), samples, axis=0)
        places = np.arange(frames)[:, None] * ends.shift + np.arange(ends.window)
        mel = log_mels(body, wave, const(places, np.int64), self.extractor)
        floor = math.log(np.finfo(np.float32).eps)  # of a log-mel
        end = add("Abs", add("Gather", wave, const(places[:, -SILENT_SAMPLES:], np.int64), axis=0))
        end = add("Greater", add("ReduceMax", end, axes=[1], keepdims=1), const(0.0))
        mel = add("Where", end, mel, const(floor))  # a frame that ends in silence is not wholly inside the utterance
        first = 2 * old
        past = add("Add", part(first, kept * bins), part(first + kept * bins, kept * bins))
        feats = add("Concat", add("Reshape", past, ints(kept, bins)), mel, axis=0)  # (count, bins)
        chunks = part(first + 2 * kept * bins, 1)

        # numbers of frames at hand; that of the utterance's first one is ``begin``
        begin = add("Sub", const(kept + early), add("Mul", chunks, const(frames)))
        begin = add("Max", begin, const(0.0))
        wanted = np.arange(kept + early - factor * (self.delay + self.before), count)
        at = add("Max", const(wanted), begin)
        loud = add("Greater", add("ReduceMax", feats, axes=[1], keepdims=0), const(floor + 1e-3))
        heard = add("Reshape", add("Where", loud, const(np.arange(count)), const(-1.0)), ints(1, 1, count))
        heard = add("MaxPool", heard, kernel_shape=[SILENT_FRAMES], strides=[1], pads=[SILENT_FRAMES - 1, 0])
        heard = add("Gather", add("Reshape", heard, ints(count)), number_of(at), axis=0)
        at = add("Where", add("Less", heard, const(0.0)), at, heard)
        chosen = add("Gather", feats, number_of(at), axis=0)
        if self.mean:
            there = add("Cast", add("GreaterOrEqual", const(np.arange(count)), begin), to=TensorProto.DOUBLE)
            sums = add("Mul", add("Cast", feats, to=TensorProto.DOUBLE), add("Unsqueeze", there, ints(1)))
            sums = add("CumSum", add("Pad", sums, ints(1, 0, 0, 0)), const(0, np.int64))
            end = add("Add", at, const(1.0))
            held = add("Min", add("Sub", end, begin), const(float(self.window)))
            prior = add("Min", add("Sub", const(float(self.window)), held), const(float(self.mean.prior)))
            total = add("Sub", add("Gather", sums, number_of(end), axis=0),
                        add("Gather", sums, number_of(add("Sub", end, held)), axis=0))

            def column(values: str) -> str:
                return add("Cast", add("Unsqueeze", values, ints(1)), to=TensorProto.DOUBLE)

            total = add("Add", total, add("Mul", column(prior), const(self.mean.mean, np.float64)))
            mean = add("Div", total, column(add("Add", held, prior)))
            chosen = add("Sub", chosen, add("Cast", mean, to=TensorProto.FLOAT))
        add("Unsqueeze", chosen, ints(0), name="net/feats")
        body.nodes.extend(inner.node)

        scores = add("Pad", add("Reshape", "net/scores", ints(rows, num_pdfs)), ints(0, 1, 0, 0), const(NOTHING))
        before = np.full((1, 1 + num_pdfs), NOTHING)
        before[0, 0] = 0
        row = add("Add", add("Mul", chunks, const(rows)), const(np.arange(rows) - self.delay))
        ended = add("Cast", loud, to=TensorProto.FLOAT)
        ended = add("MaxPool", add("Reshape", ended, ints(1, 1, count)), kernel_shape=[self.right + 1], strides=[1],
                    pads=[0, self.right])
        ended = add("Gather", add("Reshape", ended, ints(count)),
                    const(wanted[factor * self.before:][:factor * rows:factor], np.int64), axis=0)
        row = add("Or", add("Less", row, const(0.0)), add("Less", ended, const(0.5)))
        row = add("Unsqueeze", row, ints(1))
        scores = add("Transpose", add("Where", row, const(before), scores), perm=[1, 0])
        add("Transpose", add("Gather", scores, const(self.columns, np.int32), axis=0), perm=[1, 0], name="rows")

        def halves(values: str) -> List[str]:
            high = add("Cast", values, to=TensorProto.FLOAT16)
            low = add("Sub", values, add("Cast", high, to=TensorProto.FLOAT))
            return [high, add("Cast", low, to=TensorProto.FLOAT16)]

        late = add("Slice", wave, ints(size), ints(size + old), ints(0))
        late_feats = add("Reshape", add("Slice", feats, ints(frames), ints(count), ints(0)), ints(-1))
        more = add("Cast", add("Min", add("Add", chunks, const(1.0)), const(1000.0)), to=TensorProto.FLOAT16)
        add("Concat", *halves(late), *halves(late_feats), more, axis=0, name="later")
        for node in body.nodes:
            for names in (node.input, node.output):
                names[:] = [f"body/{name}" if name in body.constants else name for name in names]
        state_dim = first + 2 * kept * bins + 1
        tensor = helper.make_tensor_value_info
        graph = helper.make_graph(
            body.nodes, "stream", [tensor("number", TensorProto.INT64, []), tensor("go", TensorProto.BOOL, [])],
            [tensor("on", TensorProto.BOOL, []), tensor("rows", TensorProto.FLOAT, [rows, len(self.columns)]),
             tensor("later", TensorProto.FLOAT16, [state_dim])],
            [*inner.initializer, *(numpy_helper.from_array(array, f"body/{name}")
                                   for name, array in body.constants.items())])
        net = OnnxGraph()
        streams = net.add("Gather", net.add("Shape", "x", name="sizes"), net.constant(0, np.int64), name="streams")
        net.add("Loop", streams, "", name="log_probs", outputs=2, body=graph)
        about = {**metadata(self.source, self.settings), "model_type": "t-one", "frame_length_ms": CHUNK_MS,
                 "state_dim": state_dim, "sample_rate": RATE}
        return net.to_bytes([("x", np.int32, ["streams", size, 1]), ("state", np.float16, ["streams", state_dim])],
                            [("log_probs", np.float32, ["streams", rows, len(self.columns)]),
                             ("log_probs.1", np.float16, ["streams", state_dim])], about)


def chunk_scores(running: Any, samples: np.ndarray) -> np.ndarray:
    """Rows float32 (N, R, V) of whole chunks of int16 samples (N, T), as sherpa-onnx computes them."""
    size = RATE * CHUNK_MS // 1000
    scaled = np.trunc(np.clip(samples / 32768, -1, 1).astype(np.float32) * np.float32(32767)).astype(np.int32)
    state, rows = np.zeros((len(samples), running.get_inputs()[1].shape[1]), np.float16), []
    for first in range(0, samples.shape[1] - size + 1, size):
        found, state = running.run(None, {"x": scaled[:, first:first + size, None], "state": state})
        rows.append(found)
    return np.concatenate(rows, axis=1)



def endless(free: EpsilonFree, num_pdfs: int, weight: np.ndarray, widen: float) -> Tuple[Fst, np.ndarray, np.ndarray]:
    """(graph, columns, spoken) of a graph without epsilons.

    Graph: input labels column + 1, output labels phrase, costs ``weight`` and final ones times ``widen``. Blanks lead
    from its end to its beginning, and stand there. ``columns`` int64 (V,): which of (blank, pdf 0, pdf 1, ...) each
    column is. ``spoken``: the phrases of the columns behind those.
    """
    fst = free.fst
    words = fst.olabel > 0
    pairs, place = np.unique(np.stack([fst.olabel[words], fst.ilabel[words]]), axis=1, return_inverse=True)
    label = fst.ilabel + 1
    label[words] = 2 + num_pdfs + place.ravel()
    start, first, ends = fst.num_states, fst.src == fst.start, np.flatnonzero(np.isfinite(fst.final))
    ones, none = np.ones(len(ends) + 1), np.zeros(len(ends) + 1)
    arcs = [(fst.src, fst.dst, label, fst.olabel, weight),
            (np.full(first.sum(), start), fst.dst[first], label[first], fst.olabel[first], weight[first]),
            ([*ends, start], start * ones, BLANK * ones, none, [*(fst.final[ends] * widen), 0])]
    src, dst, ilabel, olabel, cost = (np.concatenate(column) for column in zip(*arcs))
    graph = make_fst(src, dst, ilabel, olabel, cost, [*(fst.final * widen), 0], start)
    return graph, np.concatenate([np.arange(num_pdfs + 1), pairs[1]]), pairs[0]
