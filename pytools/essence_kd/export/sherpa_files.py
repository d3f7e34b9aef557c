"""What the formats of sherpa-onnx share: the files beside the network, and features inside it.

What the CTC-FST search does, and what is made for it:

- It drops words of arcs that consume no row, and counts such arcs as time: the graph has none.
- ``text`` is the tokens' symbols, not the words: words have columns of their own, whose symbols they are. Every other
  symbol is one character, which a rule FST deletes; where an arc has two words another one stands between them, which
  becomes a space. Column 0 is the blank, which says nothing.
- Its beam is 16: costs and scores are multiplied so that 16 is as wide as the beam that was asked for.
"""
from __future__ import annotations

from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np

from essence_kd.corpus.features import FeatureExtractor
from essence_kd.export.epsilon_free import EpsilonFree, Phrase
from essence_kd.export.format import ExportSettings, Source
from essence_kd.export.onnx_network import OnnxGraph
from essence_kd.hmm.fst import Fst, make_fst, write_fst
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_text

BEAM = 16.0  # of sherpa-onnx
NOTHING = -1e4  # score of what cannot be: a blank where there are scores, a pdf where there are none
BLANK = 1  # its input label
MARKS = "@#|^~_=+*%$"  # of these the first two that no word has: what is deleted, and what becomes a space
GRAPH, TOKENS, RULE, WORDS = "HLG.fst", "tokens.txt", "words_only.fst", "words.txt"


def write_graph_files(folder: Path, source: Source, fst: Fst, num_blanks: int, phrases: Sequence[Phrase],
                      spoken: Sequence[int]) -> None:
    """HLG.fst, tokens.txt, words.txt and words_only.fst.

    The first ``num_blanks`` columns say nothing; behind them each says the phrase of ``spoken``.
    """
    erased, between = free_marks(source.graph.words)
    texts = [between.join(str(source.graph.words[word]) for word in phrase) for phrase in phrases]
    tokens = ["<blk>", *[erased] * (num_blanks - 1), *(f"\u2581{texts[number]}" for number in spoken)]
    write_fst(folder / GRAPH, fst)
    write_text(folder / TOKENS, "".join(f"{symbol} {i}\n" for i, symbol in enumerate(tokens)))
    write_text(folder / WORDS, "".join(f"{text or '<eps>'} {i}\n" for i, text in enumerate(texts)))
    write_fst(folder / RULE, spelling(erased, between))


def arc_costs(free: EpsilonFree, settings: ExportSettings) -> np.ndarray:
    """Costs of the arcs with the word insertion penalty, as wide as sherpa-onnx's beam asks for."""
    counts = np.array([len(phrase) for phrase in free.phrases])
    return (free.fst.weight + settings.word_insertion_penalty * counts[free.fst.olabel]) * (BEAM / settings.beam)


def free_marks(words) -> Tuple[str, str]:
    """Two characters that are in no word. Raises UserError where there are none."""
    used = set("".join(map(str, words[1:])))
    free = [mark for mark in MARKS if mark not in used]
    if len(free) < 2:
        raise UserError(f"words.txt: the formats of sherpa-onnx need two of the characters {MARKS} that no word has, "
                        f"but {'only ' + free[0] + ' is' if free else 'none is'} free")
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


def log_mels(net: OnnxGraph, wave: str, places: str, extractor: FeatureExtractor, response=1.0) -> str:
    """Log-mels (T, bins) of samples (n,) at 16-bit scale; ``places`` int64 (T, window): the samples of each frame.

    response: what is left of each frequency of the transform in these samples; it is divided out.
    """
    spectrum = np.fft.rfft(extractor._prepare, extractor._fft_size, axis=1) / response
    banks = extractor._banks["fbank"]
    heard = banks.any(axis=1)
    spectrum, banks = spectrum[:, heard], banks[heard]
    parts = net.add("MatMul", net.add("Gather", wave, places, axis=0),
                    net.constant(np.concatenate([spectrum.real, spectrum.imag], axis=1)))
    energy = net.add("MatMul", net.add("Mul", parts, parts), net.constant(np.concatenate([banks, banks])))
    return net.add("Log", net.add("Max", energy, net.constant(np.finfo(np.float32).eps)))
