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
from builders.exports import make_model, make_system, sherpa_recognizer, sherpa_texts
from builders.graphs import as_fst, loop_graph, random_path, scores_of

import essence_kd
from essence_kd.decode.decoders.kaldi import load_kaldi
from essence_kd.export.epsilon_free import without_epsilons
from essence_kd.export.exporter import export
from essence_kd.export.format import ExportSettings
from essence_kd.export.formats.sherpa import free_marks, spelling
from essence_kd.hmm.fst import read_fst, to_kaldifst
from essence_kd.hmm.graph import Graph


def decoded(fst, scores):
    """(output labels, cost) of the best path by kaldi-decoder at a wide beam."""
    kaldi_decoder, kaldifst = load_kaldi()
    graph = kaldifst.StdConstFst(to_kaldifst(fst))
    decoder = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=60.0, max_active=10 ** 6))
    scores = np.ascontiguousarray(scores, np.float32)
    decoder.decode(kaldi_decoder.DecodableCtc(scores))
    ok, best = decoder.get_best_path()
    _, _, labels, weight = kaldifst.get_linear_symbol_sequence(best)
    return labels, weight.value1 + weight.value2


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
        labels, cost = decoded(free.fst, scores)
        words = [word for label in labels for word in free.phrases[label]]
        assert words == decoded(as_fst(graph), scores)[0]
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
        labels, cost = decoded(free.fst, np.zeros((rows, 2)))
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


def test_times_are_those_of_the_rows(corpus):
    """A pdf is heard at the begin of its row of 30 ms, a word 10 ms later; of words, those of the graph's path."""
    _, results = sherpa_texts(corpus.root / "out", corpus.data, 10)
    for utt, result in results.items():
        frames, words = np.array(result.timestamps) / 0.01, [token != "@" for token in result.tokens]
        assert len(frames) == len(result.tokens) and np.allclose(frames, frames.round(), atol=1e-3)
        frames = frames.round().astype(int)
        assert (frames % 3 == words).all()
        # every row is heard, whatever else is in the batch
        assert (frames[np.logical_not(words)] == np.arange(0, result.frames, 3)).all()


def test_streaming_students_take_samples_from_minus_one_to_one(corpus, tmp_path):
    """A running mean does not take the scale off: all programs give the network what it expects."""
    told = json.loads((corpus.root / "out" / "export.json").read_text())
    assert not told["normalize_samples"] and "normalize_samples=False" in (corpus.root / "out/README.md").read_text()
    online = {"online_cmn": {"prior": 30, "window": 100, "look_ahead": 0, "mean": [9.0] * 40}}
    model = make_model(tmp_path / "model", num_pdfs=told["num_pdfs"], cmn="online", about=online)
    export("sherpa", model, tmp_path / "out", corpus.root / "graph", corpus.settings)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["normalize_samples"]
    words = essence_kd.decode(corpus.root / "graph", essence_kd.forward(model, corpus.root / "data_hires"),
                              decoder="kaldi", acoustic_scale=0.7, word_insertion_penalty=0.5, beam=12.0)
    assert any(words.values())
    for batch in (1, 10):
        assert sherpa_texts(tmp_path / "out", corpus.data, batch)[0] == words


def test_the_program_on_the_command_line(corpus):
    """The command of README.md, on test_wavs/, all files at once."""
    out = corpus.root / "out"
    block = (out / "README.md").read_text().split("sherpa-onnx-bin\n", 1)[1].split("\n\n", 1)[0]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-c", block], cwd=out, capture_output=True, text=True, env={"PATH": path})
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["text"].split() for line in (done.stdout + done.stderr).splitlines()
            if line.startswith("{")]
    found, _ = sherpa_texts(out, corpus.data, 1, snip_edges=False, normalize_samples=True)
    assert said == list(found.values())[:3]


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
    assert read_fst(corpus.root / "out" / "HLG.fst").ilabel.min() == 1  # no epsilon
