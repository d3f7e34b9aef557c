"""sherpa-onnx: a model of the type ``tdnn`` (offline), a graph for its CTC-FST search, and what makes text of it.

What the search of sherpa-onnx does, and what is made for it:

- It drops words of arcs that consume no row, and counts such arcs as time: the graph has none.
- A row is 10 ms. So a row of scores is followed by rows of zeros, until the next one begins, and every arc of the
  graph by arcs that consume them. The first of these says the words, if any.
- ``text`` is the tokens' symbols, not the words: words have columns of their own, whose symbols they are. Every other
  symbol is one character, which a rule FST deletes; where an arc has two words another one stands between them, which
  becomes a space. Column 0 is the blank, which says nothing: it is what the other rows of zeros are consumed with.
- Several utterances come at once, the shorter ones padded, and nothing tells their lengths: the network finds the
  padding by its value, computes each utterance alone, and what is behind its end is consumed by blanks.
- Its beam is 16: costs and scores are multiplied so that 16 is as wide as the beam that was asked for.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, List, Tuple

import numpy as np

from essence_kd.export.epsilon_free import EpsilonFree, without_epsilons
from essence_kd.export.format import Format, Written, register_format
from essence_kd.export.formats.onnx import (ARCHITECTURES, CMN, PACKAGES, calibration_of, check_calibration,
                                            front_end_text, metadata, score_settings)
from essence_kd.export.onnx_file import FORM, INT8, quantised, session
from essence_kd.hmm.fst import Fst, make_fst, write_fst
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_text

BEAM = 16.0  # of sherpa-onnx
NOTHING = -1e4  # score of what cannot be: a blank where there are scores, a pdf behind the end
PADDING = -23.025850929940457  # features behind the end of the shorter utterances of a batch
NO_PADDING = -20.0  # that no log-mel is below
INT16 = float(2 * np.log(32768))  # what log-mels of samples from -1 to 1 are below those of 16-bit samples
MARKS = "@#|^~_=+*%$"  # of these the first two that no word has: what is deleted, and what becomes a space
GRAPH, TOKENS, RULE, WORDS = "HLG.fst", "tokens.txt", "words_only.fst", "words.txt"

README = """# {arch}, {num_pdfs} pdfs, for sherpa-onnx

Offline recognition in the unmodified sherpa-onnx, from 2.0.1 on:

    pip install sherpa-onnx sherpa-onnx-bin
    sherpa-onnx-offline {options} \\
      {wav}

From the folder where these files lie. `text` is the words. `tokens` has them, too, and `{erased}` where something else
was heard; `timestamps`, in seconds, tell where the graph says each word, which is not always where it begins. Where two
words are said at one row they are one token, with `{between}` between them. `words` are ids of `words.txt`. Several
files at once get the same answers as one by one, and two runs the same ones.

In Python (`sherpa_onnx.OfflineRecognizer` has no factory for a graph; this is what lies beneath it):

    from sherpa_onnx.lib import _sherpa_onnx as S
    recognizer = S.OfflineRecognizer(S.OfflineRecognizerConfig(
        feat_config=S.FeatureExtractorConfig(sampling_rate={rate}, feature_dim={feat_dim}, low_freq={low:g},
                                             high_freq={high:g}, snip_edges=True,
                                             normalize_samples={normalize}),
        model_config=S.OfflineModelConfig(tdnn=S.OfflineTdnnModelConfig("{file}"), tokens="{tokens}"),
        ctc_fst_decoder_config=S.OfflineCtcFstDecoderConfig(graph="{graph}", max_active={max_active}),
        rule_fsts="{rule}"))
    stream = recognizer.create_stream()
    stream.accept_waveform({rate}, samples)  # float32, from -1 to 1
    recognizer.decode_streams([stream])
    print(stream.result.text)

{exact}

`sherpa-onnx-offline-websocket-server` takes the same options as the command, and `sherpa-onnx-vad-with-offline-asr`
cuts long audio. In other languages these files go into the OfflineRecognizerConfig of the C API: `model_config.tdnn`,
`model_config.tokens`, `ctc_fst_decoder_config.graph`, `rule_fsts`.

The graph is set for a beam of {beam:g} (sherpa-onnx's own is fixed at 16: all costs are multiplied by {widen:g}),
the acoustic scale {acoustic_scale:g} and the word insertion penalty {penalty:g}. Scores of {file} differ from PyTorch's
by at most {{worst}} before that multiplication.

{front_end}"""
EXACT = """These are the features that the model was trained on. The command and the other languages have no options
`snip_edges` and `normalize_samples`: their frames lie 7.5 ms earlier, and very soft sounds are cut off, so that their
words are others in some utterances."""
SHIFTED = """The network expects features of samples from -1 to 1, which the command and other languages compute, too;
but they have no option `snip_edges`: their frames lie 7.5 ms earlier, so that their words are others in some
utterances."""


@register_format
class Sherpa(Format):
    """model.onnx or model.int8.onnx, HLG.fst, tokens.txt, words_only.fst, words.txt."""

    name = "sherpa"
    architectures = ARCHITECTURES
    packages = PACKAGES
    cmn = CMN
    needs_graph = True
    int8 = INT8

    def check(self) -> None:
        """Static int8 needs features; two characters must be free; a row needs columns for words behind its scores."""
        check_calibration(self.settings)
        free_marks(self.source.graph.words)
        if self.source.factor < 2:
            raise UserError(f"{self.source.model_dir / 'model.yaml'}: frame_subsampling_factor is 1, but the format "
                            f"{self.name} says words in the frames between two rows of scores: there must be some")

    def write(self, folder: Path) -> Written:
        """All files."""
        from essence_kd.export.exporter import front_end

        source, settings = self.source, self.settings
        self.file = "model.int8.onnx" if settings.int8 else "model.onnx"
        self.running: Any = None
        self.widen, num_pdfs = BEAM / settings.beam, source.model.num_pdfs
        erased, between = free_marks(source.graph.words)
        free = without_epsilons(source.graph)
        texts = [between.join(str(source.graph.words[word]) for word in phrase) for phrase in free.phrases]
        fst = spread_out(free, num_pdfs, settings.word_insertion_penalty, self.widen, source.factor)
        tokens = ["<blk>", *[erased] * num_pdfs, *(f"\u2581{text}" for text in texts[1:])]
        self.num_columns = len(tokens)
        write_fst(folder / GRAPH, fst)
        write_text(folder / TOKENS, "".join(f"{symbol} {i}\n" for i, symbol in enumerate(tokens)))
        write_text(folder / WORDS, "".join(f"{text or '<eps>'} {i}\n" for i, text in enumerate(texts)))
        write_fst(folder / RULE, spelling(erased, between))
        (folder / self.file).write_bytes(self._bytes())
        ends, exact = front_end(settings), source.about["cmn"] == "utterance"
        options = {"sample-rate": ends.sample_frequency, "feat-dim": source.model.feat_dim,
                   "low-freq": f"{ends.low_freq:g}", "high-freq": f"{ends.top_freq:g}", "tdnn-model": self.file,
                   "tokens": TOKENS, "ctc.graph": GRAPH, "ctc.max-active": settings.max_active, "rule-fsts": RULE,
                   "num-threads": 1}
        readme = README.format(
            file=self.file, arch=source.about["arch"], num_pdfs=num_pdfs, erased=erased, between=between,
            wav="test_wavs/*.wav" if settings.test_data else "a.wav b.wav", tokens=TOKENS, rule=RULE, graph=GRAPH,
            options=wrapped([f"--{name}={value}" for name, value in options.items()]), rate=ends.sample_frequency,
            feat_dim=source.model.feat_dim, low=ends.low_freq, high=ends.top_freq, max_active=settings.max_active,
            normalize=not exact, exact=EXACT if exact else SHIFTED,
            beam=settings.beam, widen=self.widen, penalty=settings.word_insertion_penalty,
            acoustic_scale=settings.acoustic_scale, front_end=front_end_text(ends))
        return Written(readme, {"model": self.file, "graph": GRAPH, "num_states": fst.num_states,
                                "num_arcs": fst.num_arcs, "num_columns": len(tokens), "program": options,
                                "normalize_samples": not exact})

    def verify(self, folder: Path, feats: np.ndarray) -> np.ndarray:
        """By onnxruntime, beside a longer utterance; what is in the rows between is looked at, too."""
        self.running = self.running or session(folder / self.file)
        factor, num_pdfs = self.source.factor, self.source.model.num_pdfs
        batch = np.full((2, len(feats) + 40, feats.shape[1]), PADDING, np.float32)
        batch[0, :len(feats)] = feats - self.shift
        batch[1] = np.resize(feats, batch[1].shape) - self.shift
        found, = self.running.run(None, {"x": batch})
        rows = -(-len(feats) // factor)
        spread = found[0].reshape(-1, factor, self.num_columns)
        if len(spread) != -(-batch.shape[1] // factor) or not (spread[:rows, 0, 0] == NOTHING).all() \
                or spread[:rows, 0, 1 + num_pdfs:].any() or spread[:rows, 1:].any() \
                or not (spread[rows:, :, 1:1 + num_pdfs] == NOTHING).all() or spread[rows:, :, 0].any():
            raise UserError(f"{self.source.model_dir}: exported as {self.name}, {len(feats)} frames give "
                            f"{len(spread)} rows, and others than scores and zeros")
        return spread[:rows, 0, 1:1 + num_pdfs] / np.float32(self.widen)

    @property
    def shift(self) -> float:
        """What log-mels have less in sherpa-onnx than in training; the mean of an utterance has it, too."""
        return 0.0 if self.source.about["cmn"] == "utterance" else INT16

    def _bytes(self) -> bytes:
        from essence_kd.export.onnx_network import Network

        source, settings = self.source, self.settings
        net, how = Network(source.model, FORM[settings.int8]), score_settings(self)
        net.scores("feats", **{**how, "acoustic_scale": how["acoustic_scale"] * self.widen})
        data = net.to_bytes([("feats", np.float32, [1, "frames", source.model.feat_dim])],
                            [("scores", np.float32, [1, "rows", source.model.num_pdfs])], {})
        if settings.int8 is not None:
            data = quantised(data, settings.int8, ({"feats": feats[None]} for feats in calibration_of(self)))
        about = {**metadata(source, settings), "model_type": "tdnn", "vocab_size": self.num_columns,
                 "subsampling_factor": source.factor}
        return batched(data, source.model.feat_dim, source.factor, self.num_columns, self.shift, about)


def batched(data: bytes, feat_dim: int, factor: int, num_columns: int, shift: float, about: dict) -> bytes:
    """The model file ``data`` (feats -> scores of one utterance) for several: x (N, T, F), the shorter ones padded,
    plus ``shift`` -> (N, factor x R, num_columns): blank, scores, words, a row of scores before factor - 1 of zeros.

    Behind the end of an utterance there is nothing but blanks."""
    import onnx
    from onnx import TensorProto, compose, helper, numpy_helper

    from essence_kd.export.onnx_network import OnnxGraph

    inner = compose.add_prefix_graph(onnx.load_from_string(data).graph, "net/")
    num_pdfs = inner.output[0].type.tensor_type.shape.dim[2].dim_value
    net = OnnxGraph()
    factors, one = net.constant(factor, np.int64), net.constant(1, np.int64)
    loud = net.add("ReduceMax", "x", axes=[2], keepdims=0)
    there = net.add("Cast", net.add("Greater", loud, net.constant(NO_PADDING)), to=TensorProto.INT64)
    frames = net.add("Max", net.add("ReduceSum", there, net.ints(1), keepdims=0), one)  # (N,)
    longest = net.add("ReduceMax", frames, axes=[0], keepdims=1)
    rows = net.add("Mul", net.add("Div", net.add("Add", longest, net.constant(factor - 1, np.int64)), factors), factors)

    body = OnnxGraph()
    body.add("Identity", "go", name="on")
    count = body.add("Unsqueeze", body.add("Gather", frames, "number", axis=0), body.ints(0))
    feats = body.add("Slice", body.add("Gather", "x", "number", axis=0), body.ints(0), count, body.ints(0))
    if shift:
        feats = body.add("Add", feats, body.constant(shift))
    body.add("Unsqueeze", feats, body.ints(0), name="net/feats")
    body.nodes.extend(inner.node)
    scores = body.add("Pad", "net/scores", body.ints(0, 0, 1, 0, 0, 0), body.constant(NOTHING))
    scores = body.add("Unsqueeze", scores, body.ints(2))
    scores = body.add("Pad", scores, body.ints(0, 0, 0, 0, 0, 0, factor - 1, num_columns - 1 - num_pdfs))
    scores = body.add("Reshape", scores, body.ints(-1, num_columns))
    left = body.add("Sub", rows, body.add("Slice", body.add("Shape", scores), body.ints(0), body.ints(1)))
    behind = np.zeros((1, num_columns))
    behind[0, 1:1 + num_pdfs] = NOTHING
    behind = body.add("Expand", body.constant(behind), body.add("Concat", left, body.ints(num_columns), axis=0))
    body.add("Concat", scores, behind, axis=0, name="spread")
    for node in body.nodes:
        for names in (node.input, node.output):
            names[:] = [f"body/{name}" if name in body.constants else name for name in names]
    constants = [numpy_helper.from_array(array, f"body/{name}") for name, array in body.constants.items()]
    graph = helper.make_graph(
        body.nodes, "utterance",
        [helper.make_tensor_value_info("number", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("spread", TensorProto.FLOAT, ["all", num_columns])],
        [*inner.initializer, *constants])
    utterances = net.add("Gather", net.add("Shape", "x"), net.constant(0, np.int64))
    net.add("Loop", utterances, "", name="log_probs", body=graph)
    return net.to_bytes([("x", np.float32, ["utterances", "frames", feat_dim])],
                        [("log_probs", np.float32, ["utterances", "all", num_columns])], about)


def spread_out(free: EpsilonFree, num_pdfs: int, penalty: float, widen: float, factor: int) -> Fst:
    """The graph for sherpa-onnx of one without epsilons: ``factor`` > 1 arcs in the place of each.

    Input labels are columns + 1: 0 blank, 1 + pdf, num_pdfs + phrase; output labels are phrases. An arc consumes its
    pdf at its cost (with ``penalty`` a word), then its phrase or a blank, then blanks. Behind a final state blanks may
    follow without end. Costs are times ``widen``.
    """
    fst, blank = free.fst, 1
    counts = np.array([len(phrase) for phrase in free.phrases])
    weight = (fst.weight + penalty * counts[fst.olabel]) * widen
    # more states: one for every phrase that leads to a state, factor - 2 in front of each state that is led to, and
    # the one behind the end
    pairs, place = np.unique(np.stack([fst.dst, fst.olabel]).astype(np.int64), axis=1, return_inverse=True)
    led_to, where = np.unique(pairs[0], return_inverse=True)
    spoken = fst.num_states + np.arange(pairs.shape[1])
    more = fst.num_states + pairs.shape[1] + np.arange((factor - 2) * len(led_to)).reshape(factor - 2, -1)
    behind = fst.num_states + pairs.shape[1] + more.size
    chain, ends = [*more, led_to], np.flatnonzero(np.isfinite(fst.final))
    label = np.where(pairs[1] > 0, num_pdfs + pairs[1] + 1, blank)
    parts = [(fst.src, spoken[place.ravel()], fst.ilabel + 1, np.zeros(fst.num_arcs), weight),
             (spoken, chain[0][where.ravel()], label, pairs[1], np.zeros(len(spoken)))]
    for here, there, cost in (*((a, b, np.zeros(len(a))) for a, b in zip(chain, chain[1:])),
                              (ends, np.full(len(ends), behind), fst.final[ends] * widen), ([behind], [behind], [0])):
        parts.append((here, there, np.full(len(here), blank), np.zeros(len(here)), cost))
    final = np.full(behind + 1, np.inf)
    final[:fst.num_states], final[behind] = fst.final * widen, 0
    src, dst, ilabel, olabel, cost = (np.concatenate(column) for column in zip(*parts))
    return make_fst(src, dst, ilabel, olabel, cost, final, fst.start)


def free_marks(words) -> Tuple[str, str]:
    """Two characters that are in no word. Raises UserError where there are none."""
    used = set("".join(map(str, words[1:])))
    free = [mark for mark in MARKS if mark not in used]
    if len(free) < 2:
        raise UserError(f"words.txt: --format sherpa needs two of the characters {MARKS} that no word has, but "
                        f"{'only ' + free[0] + ' is' if free else 'none is'} free")
    return free[0], free[1]


def spelling(erased: str, between: str) -> Fst:
    """A transducer over bytes that deletes one character and makes another a space, as --rule-fsts takes it."""
    byte = np.arange(1, 256)
    nothing = np.zeros(255)
    out = np.where(byte == ord(erased), 0, np.where(byte == ord(between), ord(" "), byte))
    return make_fst(nothing, nothing, byte, out, nothing, [0.0])


def wrapped(words: List[str], width: int = 100) -> str:
    """Options of a command, on several lines where one would be too long."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n      ".join(lines)
