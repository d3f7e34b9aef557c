"""sherpa-onnx: a model of the type ``wenet_ctc`` (offline), a graph for its CTC-FST search, and what makes text of it.

What the search of sherpa-onnx does, and what is made for it:

- Column 0 is the blank, whose label 1 it drops: a column that nothing reaches stands in front.
- It drops words of arcs that consume no row, and counts such arcs as time: the graph has none.
- ``text`` is the tokens' symbols, not the words: an arc with words has a column of its own for its (words, pdf), a copy
  of the pdf's, whose symbol is the words. Every other symbol is one character, which a rule FST deletes; where an arc
  has two words another one stands between them, which becomes a space.
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
BLANK_SCORE = -1e4
MARKS = "@#|^~_=+*%$"  # of these the first two that no word has: what is deleted, and what becomes a space
GRAPH, TOKENS, RULE, WORDS = "HLG.fst", "tokens.txt", "words_only.fst", "words.txt"

README = """# {arch}, {num_pdfs} pdfs, for sherpa-onnx

Offline recognition in the unmodified sherpa-onnx, from 2.0.1 on, in all its languages and on all its platforms:

    pip install sherpa-onnx sherpa-onnx-bin
    sherpa-onnx-offline {options} \\
      {wav}

From the folder where these files lie. `text` is the words. `tokens` has them, too, and `{erased}` where something else
was heard; `timestamps`, in seconds, tell the row at which the graph says each word, which is not always its beginning.
Where two words are said at one row they are one token, with `{between}` between them. `words` are ids of `words.txt`.
Several files at once get the same answers as one by one.

In Python (`sherpa_onnx.OfflineRecognizer` has no factory for a graph; this is what lies beneath it):

    from sherpa_onnx.lib import _sherpa_onnx as S
    recognizer = S.OfflineRecognizer(S.OfflineRecognizerConfig(
        feat_config=S.FeatureExtractorConfig(sampling_rate={rate}, feature_dim={feat_dim}, low_freq={low:g},
                                             high_freq={high:g}, snip_edges=True),
        model_config=S.OfflineModelConfig(wenet_ctc=S.OfflineWenetCtcModelConfig("{file}"), tokens="{tokens}"),
        ctc_fst_decoder_config=S.OfflineCtcFstDecoderConfig(graph="{graph}", max_active={max_active}),
        rule_fsts="{rule}"))
    stream = recognizer.create_stream()
    stream.accept_waveform({rate}, samples)  # float32, from -1 to 1
    recognizer.decode_streams([stream])
    print(stream.result.text)

`sherpa-onnx-offline-websocket-server` takes the same options, and `sherpa-onnx-vad-with-offline-asr` cuts long audio.
For Android, iOS or a browser these files go where the example apps have their models (`assets/`), and the same names
into their OfflineRecognizerConfig.

The graph is set for a beam of {beam:g} (sherpa-onnx's own is fixed at 16: all costs are multiplied by {widen:g}),
the acoustic scale {acoustic_scale:g} and the word insertion penalty {penalty:g}. Scores of {file} differ from PyTorch's
by at most {{worst}} before that multiplication.

{front_end}

sherpa-onnx adds dither of its own, so that answers are not the same to the last bit."""


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
        """Static int8 needs features; two characters must be free."""
        check_calibration(self.settings)
        free_marks(self.source.graph.words)

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
        fst, self.columns, tokens = with_columns(free, texts, num_pdfs, settings.word_insertion_penalty, self.widen)
        write_fst(folder / GRAPH, fst)
        write_text(folder / TOKENS, "".join(f"{symbol or erased} {i}\n" for i, symbol in enumerate(tokens)))
        write_text(folder / WORDS, "".join(f"{text or '<eps>'} {i}\n" for i, text in enumerate(texts)))
        write_fst(folder / RULE, spelling(erased, between))
        (folder / self.file).write_bytes(self._bytes())
        ends = front_end(settings)
        options = {"sample-rate": ends.sample_frequency, "feat-dim": source.model.feat_dim,
                   "low-freq": f"{ends.low_freq:g}", "high-freq": f"{ends.top_freq:g}", "wenet-ctc-model": self.file,
                   "tokens": TOKENS, "ctc.graph": GRAPH, "ctc.max-active": settings.max_active, "rule-fsts": RULE,
                   "num-threads": 1}
        readme = README.format(
            file=self.file, arch=source.about["arch"], num_pdfs=num_pdfs, erased=erased, between=between,
            wav="test_wavs/*.wav" if settings.test_data else "a.wav b.wav", tokens=TOKENS, rule=RULE, graph=GRAPH,
            options=_wrapped([f"--{name}={value}" for name, value in options.items()]), rate=ends.sample_frequency,
            feat_dim=source.model.feat_dim, low=ends.low_freq, high=ends.top_freq, max_active=settings.max_active,
            beam=settings.beam, widen=self.widen, penalty=settings.word_insertion_penalty,
            acoustic_scale=settings.acoustic_scale, front_end=front_end_text(ends))
        return Written(readme, {"model": self.file, "graph": GRAPH, "num_states": fst.num_states,
                                "num_arcs": fst.num_arcs, "num_columns": len(tokens), "program": options})

    def verify(self, folder: Path, feats: np.ndarray) -> np.ndarray:
        """By onnxruntime; the copies of columns and the number of rows are looked at, too."""
        self.running = self.running or session(folder / self.file)
        found, lens = self.running.run(None, {"x": feats[None], "x_lens": np.array([len(feats)], np.int64)})
        if lens.tolist() != [found.shape[1]] or not (found[0] == found[0][:, self.columns]).all():
            raise UserError(f"{self.source.model_dir}: exported as {self.name}, {len(feats)} frames give "
                            f"{found.shape[1]} rows, of which {lens.tolist()} are said to count")
        return found[0][:, 1:1 + self.source.model.num_pdfs] / np.float32(self.widen)

    def _bytes(self) -> bytes:
        from essence_kd.export.onnx_network import Network

        source, settings = self.source, self.settings
        net, how = Network(source.model, FORM[settings.int8]), score_settings(self)
        scores = net.scores("x", **{**how, "acoustic_scale": how["acoustic_scale"] * self.widen})
        padded = net.add("Pad", scores, net.ints(0, 0, 1, 0, 0, 0), net.constant(BLANK_SCORE))
        # copies of whole rows of the transposed matrix: a tenth of the time that single numbers take
        columns = net.constant(self.columns, np.int32)
        picked = net.add("Gather", net.add("Transpose", padded, perm=[2, 0, 1]), columns, axis=0)
        net.add("Transpose", picked, perm=[1, 2, 0], name="log_probs")
        rows = net.add("Add", "x_lens", net.constant(source.factor - 1, np.int64))
        net.add("Div", rows, net.constant(source.factor, np.int64), name="log_probs_lens")
        about = {**metadata(source, settings), "model_type": "wenet_ctc", "vocab_size": len(self.columns),
                 "subsampling_factor": source.factor}
        data = net.to_bytes([("x", np.float32, [1, "frames", source.model.feat_dim]), ("x_lens", np.int64, [1])],
                            [("log_probs", np.float32, [1, "rows", len(self.columns)]),
                             ("log_probs_lens", np.int64, [1])], about)
        if settings.int8 is None:
            return data
        return quantised(data, settings.int8, ({"x": feats[None], "x_lens": np.array([len(feats)], np.int64)}
                                               for feats in calibration_of(self)))


def with_columns(free: EpsilonFree, texts: List[str], num_pdfs: int, penalty: float,
                 widen: float) -> Tuple[Fst, np.ndarray, List[str]]:
    """(graph, columns, tokens) for sherpa-onnx of a graph without epsilons; ``texts``: of its phrases.

    Graph: input labels column + 1, output labels phrase, costs (with ``penalty`` a word) times ``widen``. ``columns``
    int64 (V,): which of (blank, pdf 0, pdf 1, ...) each column is. tokens: the symbol of each column, empty where it
    says nothing.
    """
    fst = free.fst
    spoken = fst.olabel > 0
    pairs, place = np.unique(np.stack([fst.olabel[spoken], fst.ilabel[spoken]]), axis=1, return_inverse=True)
    label = fst.ilabel + 1
    label[spoken] = 2 + num_pdfs + place.ravel()
    columns = np.concatenate([np.arange(num_pdfs + 1), pairs[1]])
    tokens = ["<blk>", *([""] * num_pdfs), *(f"\u2581{texts[number]}" for number in pairs[0])]
    counts = np.array([len(phrase) for phrase in free.phrases])
    weight = (fst.weight + penalty * counts[fst.olabel]) * widen
    return (make_fst(fst.src, fst.dst, label, fst.olabel, weight, fst.final * np.float32(widen), fst.start), columns,
            tokens)


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


def _wrapped(words: List[str], width: int = 100) -> str:
    """Options of a command, on several lines where one would be too long."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n      ".join(lines)
