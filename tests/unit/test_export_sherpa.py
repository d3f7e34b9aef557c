"""--format sherpa: the graph without epsilons, and the export in the unmodified sherpa-onnx."""
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import refused
from builders.decoding import best_cost
from builders.exports import make_model, make_system, make_wavs, sherpa_recognizer, sherpa_texts
from builders.graphs import as_fst, loop_graph, random_path, scores_of

import essence_kd
from essence_kd.corpus.features import FeatureOptions, make_feats
from essence_kd.decode.decoders.kaldi import load_kaldi
from essence_kd.export.epsilon_free import without_epsilons
from essence_kd.export.exporter import export
from essence_kd.export.format import ExportSettings
from essence_kd.export.formats.sherpa import low_pass, response, words_between
from essence_kd.export.formats.sherpa_streaming import endless
from essence_kd.export.sherpa_files import arc_costs, free_marks, spelling
from essence_kd.hmm.fst import read_fst, to_kaldifst
from essence_kd.hmm.graph import Graph, load_graph


def best_path(fst, scores):
    """(input labels, output labels, cost) of the best path by kaldi-decoder at a wide beam."""
    kaldi_decoder, kaldifst = load_kaldi()
    graph = kaldifst.StdConstFst(to_kaldifst(fst))
    decoder = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=60.0, max_active=10 ** 6))
    scores = np.ascontiguousarray(scores, np.float32)
    decoder.decode(kaldi_decoder.DecodableCtc(scores))
    ok, best = decoder.get_best_path()
    _, taken, labels, weight = kaldifst.get_linear_symbol_sequence(best)
    return taken, labels, weight.value1 + weight.value2


@pytest.mark.parametrize("moved", [False, True])
def test_a_graph_without_epsilons_has_the_same_words_at_the_same_costs(moved):
    rng = np.random.default_rng(0)
    graph = loop_graph(num_words=40, num_phones=10, seed=1, lengths=(1, 3), moved=moved)
    free = without_epsilons(graph)
    assert (graph.ilabel == 0).any() and (free.fst.ilabel > 0).all()
    assert any(len(phrase) > 1 for phrase in free.phrases) or not moved
    for _ in range(12):
        path = random_path(graph, int(rng.integers(1, 6)), rng)
        scores = scores_of(graph, path, rng, strength=6.0)
        _, labels, cost = best_path(free.fst, scores)
        words = [word for label in labels for word in free.phrases[label]]
        assert words == best_path(as_fst(graph), scores)[1]
        np.testing.assert_allclose(cost, best_cost(graph, scores, 1.0, 0.0), rtol=1e-5)


def test_epsilons_at_the_start_and_at_the_end():
    """0 -a-> 1 -eps:w1-> 2 -b-> 3 -eps:w2-> end, and 0 -eps:w3-> 2: words at both edges stay, at their costs."""
    columns = {"src": [0, 0, 1, 2, 3], "dst": [1, 2, 2, 3, 4], "ilabel": [1, 0, 0, 2, 0], "olabel": [0, 3, 1, 0, 2],
               "weight": [0.5, 1.0, 2.0, 0.25, 4.0]}
    graph = Graph(**{name: np.array(value, np.float32 if name == "weight" else np.int32)
                     for name, value in columns.items()}, unit=np.array([1, 0, 0, 2, 0], np.int32),
                  begin=np.zeros(5, np.uint8), final=np.array([np.inf] * 4 + [8], np.float32),
                  unit_phone=np.arange(3, dtype=np.int32), unit_state=np.zeros(3, np.int32),
                  unit_pdf=np.arange(-1, 2, dtype=np.int32), phones=np.array(["<eps>", "a", "b"]),
                  phone_kind=np.zeros(3, np.uint8), words=np.array(["<eps>", "w1", "w2", "w3"]),
                  meta={"num_pdfs": 2, "frame_subsampling_factor": 3})
    free = without_epsilons(graph)
    found = {}
    for rows in (1, 2):
        _, labels, cost = best_path(free.fst, np.zeros((rows, 2)))
        found[rows] = [word for label in labels for word in free.phrases[label]], float(cost)
    assert found == {1: ([3, 2], 1.0 + 0.25 + 4 + 8), 2: ([1, 2], 0.5 + 2 + 0.25 + 4 + 8)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A graph with homophones and words on epsilons, an untrained model, audio, and the export."""
    root = tmp_path_factory.mktemp("sherpa")
    make_system(root)
    model, data = root / "model", root / "data"
    settings = ExportSettings(acoustic_scale=0.7, word_insertion_penalty=0.5, beam=12.0, test_data=str(data))
    export("sherpa", model, root / "out", root / "graph", settings)
    scores = essence_kd.forward(model, root / "data_hires")
    words = essence_kd.decode(root / "graph", scores, decoder="kaldi", acoustic_scale=0.7, word_insertion_penalty=0.5,
                              beam=12.0)
    return dataclasses.make_dataclass("Corpus", ["root", "model", "data", "settings", "words"])(
        root, model, data, settings, words)


def test_sherpa_onnx_has_the_words_of_essence_decode(corpus):
    """One by one and in batches, of all utterances, twice."""
    assert sum(map(len, corpus.words.values())) > 20
    for batch in (1, 10, 3, 1):
        assert sherpa_texts(corpus.root / "out", corpus.data, batch)[0] == corpus.words


def test_a_model_of_16_khz(corpus, tmp_path):
    """Nothing is left out of its samples."""
    num_pdfs = load_graph(corpus.root / "graph" / "graph.npz").num_pdfs
    model = make_model(tmp_path / "model", num_pdfs=num_pdfs, about={"sample_rate": 16000})
    data = make_wavs(tmp_path / "data", 6, 16000)
    make_feats(data, kinds=["fbank"], nj=1, options=FeatureOptions(sample_frequency=16000))
    settings = dataclasses.replace(corpus.settings, test_data=None)
    export("sherpa", model, tmp_path / "out", corpus.root / "graph", settings)
    words = essence_kd.decode(corpus.root / "graph", essence_kd.forward(model, tmp_path / "data_hires"),
                              decoder="kaldi", acoustic_scale=0.7, word_insertion_penalty=0.5, beam=12.0)
    assert sum(map(len, words.values())) > 10
    assert sherpa_texts(tmp_path / "out", data, 6)[0] == words


def raised(samples):
    """Twice as many samples, as Kaldi's LinearResample makes them with six zeros and a cutoff of 3,960 Hz of 8 kHz."""
    out, cutoff = np.zeros(2 * len(samples)), 3960.0
    for odd in range(2):
        late = (2 * np.arange(-8, 9) + odd) / 16000  # from the samples that come in to the one that goes out
        window = np.where(abs(late) < 3 / cutoff, 1 + np.cos(2 * np.pi * cutoff / 6 * late), 0)
        weights = 2 * cutoff * np.sinc(2 * cutoff * late) * window / 2 / 8000
        out[odd::2] = np.convolve(samples, weights, mode="same")
    return out


def test_the_rate_is_raised_and_lowered_without_loss():
    """What is left of tones of 8 kHz is what ``response`` says; tones that are no part of such audio are left out."""
    assert (response(1, 512) == 1).all() and (low_pass(1) == 1).all()
    for band in range(5, 120, 9):
        tone = np.exp(2j * np.pi * band / 256 * np.arange(4000))
        found = np.convolve(raised(tone.real) + 1j * raised(tone.imag), low_pass(2), mode="same")[::2]
        np.testing.assert_allclose(found[200:-200], response(2, 256)[band] * tone[200:-200], atol=2e-3)
        alias = np.convolve(np.cos(np.pi * (256 - band) / 256 * np.arange(8000)), low_pass(2), mode="same")
        assert abs(alias[200:-200]).max() < 2e-3


def test_times_are_those_of_the_rows(corpus):
    """Words of kaldi-decoder's best path are said 20 ms after their rows of 30 ms, every second one 50 ms after, or
    where the utterance ends."""
    free = without_epsilons(load_graph(corpus.root / "graph" / "graph.npz"))
    scores, words = dict(essence_kd.forward(corpus.model, corpus.root / "data_hires")), 0
    num_pdfs = len(next(iter(scores.values()))[0])
    fst, columns, _ = endless(free, num_pdfs, arc_costs(free, corpus.settings), 16 / 12)
    for utt, result in sherpa_texts(corpus.root / "out", corpus.data, 10)[1].items():
        rows = np.pad(scores[utt] * np.float32(0.7 * 16 / 12), ((0, 0), (1, 0)), constant_values=-1e4)
        labels = best_path(fst, rows[:, columns])[0]
        assert len(labels) == len(rows)
        end = 30 * len(rows)
        heard = [min(60 * (row // 2) + 20 + 60 * (row % 2), end) for row, label in enumerate(labels)
                 if label > 1 + num_pdfs]
        found = [round(1000 * time) for time, token in zip(result.timestamps, result.tokens) if token != "@"]
        assert found == heard
        words += len(heard)
    assert words > 20


def test_the_program_on_the_command_line(corpus):
    """The command of README.md, on test_wavs/, all files at once."""
    out = corpus.root / "out"
    block = (out / "README.md").read_text().split("sherpa-onnx-bin\n", 1)[1].split("\n\n", 1)[0]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-c", block], cwd=out, capture_output=True, text=True, env={"PATH": path})
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["text"].split() for line in (done.stdout + done.stderr).splitlines()
            if line.startswith("{")]
    assert said == list(corpus.words.values())[:3]


def test_with_too_many_phrases_words_keep_apart(corpus, monkeypatch):
    """The graph has no other phrases than before, and is smaller."""
    free = without_epsilons(load_graph(corpus.root / "graph" / "graph.npz"))
    every, phrases = words_between(free, 87, arc_costs(free, corpus.settings), 1.0)
    monkeypatch.setattr("essence_kd.export.formats.sherpa.MOST", len(free.phrases))
    fst, fewer = words_between(free, 87, arc_costs(free, corpus.settings), 1.0)
    assert fewer == free.phrases and len(phrases) > len(fewer) and fst.num_arcs < every.num_arcs


def test_it_is_the_same_at_every_export_and_small_in_8_bits(corpus, tmp_path):
    again, int8 = tmp_path / "again", tmp_path / "int8"
    export("sherpa", corpus.model, again, corpus.root / "graph", corpus.settings)
    for path in sorted((corpus.root / "out").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(corpus.root / "out")).read_bytes(), path
    export("sherpa", corpus.model, int8, corpus.root / "graph", dataclasses.replace(corpus.settings, int8="dynamic"))
    found, _ = sherpa_texts(int8, corpus.data, 10)
    assert len(found) == 10 and any(found.values())


def test_silence_zeros_and_nothing_at_all(corpus):
    """What is no speech gets an answer, too, and breaks nothing."""
    recognizer = sherpa_recognizer(corpus.root / "out")
    for samples in (np.zeros(8000), np.ones(4000), np.zeros(300)):
        stream = recognizer.create_stream()
        stream.accept_waveform(8000, samples.astype(np.float32))
        recognizer.decode_streams([stream])
        assert isinstance(stream.result.text, str)


def test_marks_are_characters_that_no_word_has(tmp_path):
    assert free_marks(["<eps>", "a@b", "c#"]) == ("|", "^")
    refused(lambda: free_marks(["<eps>", "@#|^~_=+*%"]), "only $ is free")
    fst = spelling("@", "#")
    assert fst.num_arcs == 255 and {(fst.ilabel[i], fst.olabel[i]) for i in (63, 34, 64)} == {
        (64, 0), (35, 32), (65, 65)}


def test_what_is_refused(corpus, tmp_path):
    refused(lambda: export("sherpa", corpus.model, tmp_path / "out"), "needs a graph")
    other = make_model(tmp_path / "other", num_pdfs=json.loads((corpus.root / "out" / "export.json").read_text())[
        "num_pdfs"], tree_hash="f00d")
    refused(lambda: export("sherpa", other, tmp_path / "out", corpus.root / "graph"), "tree_hash differs")
    for about, message in (({"cmn": "online"}, "cmn is 'online', which the format sherpa cannot hold"),
                           ({"sample_rate": 11025}, "hears 11025 samples per second, but --format sherpa has 16000")):
        other = make_model(tmp_path / message[:6], num_pdfs=load_graph(corpus.root / "graph" / "graph.npz").num_pdfs,
                           about=about)
        refused(lambda: export("sherpa", other, tmp_path / "out", corpus.root / "graph"), message)
    assert read_fst(corpus.root / "out" / "HLG.fst").ilabel.min() == 1  # no epsilon
