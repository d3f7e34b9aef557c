"""--format sherpa-streaming: the export in the unmodified sherpa-onnx, samples coming in parts."""
import json

import numpy as np
import pytest
from builders import refused
from builders.exports import make_model, make_system

import essence_kd
from essence_kd.export.exporter import export
from essence_kd.export.format import ExportSettings
from essence_kd.hmm.graph import load_graph
from essence_kd.io.wave import read_audio

ONLINE = {"cmn": "online", "about": {"online_cmn": {"prior": 30, "window": 100, "look_ahead": 0, "mean": [9.0] * 40},
                                     "edge_rows": [4, 4], "sample_rate": 8000}}
SIZES = {"hidden": 48, "dilations": [1, 2], "bottleneck": 0}
SETTINGS = ExportSettings(acoustic_scale=0.7, word_insertion_penalty=-4.0)


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A folder with graph, data, a streaming model (``online``) and its export (``out``); the number of pdfs."""
    root = make_system(tmp_path_factory.mktemp("streaming"))
    num_pdfs = load_graph(root / "graph" / "graph.npz").num_pdfs
    make_model(root / "online", num_pdfs=num_pdfs, **ONLINE, **SIZES)
    export("sherpa-streaming", root / "online", root / "out", root / "graph", SETTINGS)
    return root, num_pdfs


def recogniser(out):
    from sherpa_onnx.lib import _sherpa_onnx as sherpa

    model = sherpa.OnlineToneCtcModelConfig(str(out / "model.onnx"))
    return sherpa.OnlineRecognizer(sherpa.OnlineRecognizerConfig(
        feat_config=sherpa.FeatureExtractorConfig(sampling_rate=8000, feature_dim=80),
        model_config=sherpa.OnlineModelConfig(t_one_ctc=model, tokens=str(out / "tokens.txt"), num_threads=1),
        ctc_fst_decoder_config=sherpa.OnlineCtcFstDecoderConfig(graph=str(out / "HLG.fst"), max_active=7000),
        rule_fsts=str(out / "words_only.fst"), enable_endpoint=False, decoding_method="greedy_search"))


def test_words_of_sherpa_onnx_are_those_of_essence_decode(system):
    """Ten utterances in parts of 0.1 s, all streams at once, zeros behind each."""
    root, _ = system
    words = essence_kd.decode(root / "graph", essence_kd.forward(root / "online", root / "data_hires"), decoder="kaldi",
                              acoustic_scale=0.7, word_insertion_penalty=-4.0)
    assert sum(map(len, words.values())) > 20
    running, streams = recogniser(root / "out"), {}
    for line in (root / "data" / "wav.scp").read_text().splitlines():
        utt, path = line.split()
        samples = np.append(read_audio(path)[1][:, 0] / 32768, np.zeros(8000)).astype(np.float32)
        streams[utt] = running.create_stream()
        for first in range(0, len(samples), 800):
            streams[utt].accept_waveform(8000, samples[first:first + 800])
        streams[utt].input_finished()
    while True:
        ready = [stream for stream in streams.values() if running.is_ready(stream)]
        if not ready:
            break
        running.decode_streams(ready)
    assert {utt: running.get_result(stream).text.split() for utt, stream in streams.items()} == words


def test_what_it_tells(system):
    root, _ = system
    told = json.loads((root / "out" / "export.json").read_text())
    assert 0 < told["largest_difference"] < 2e-4 and told["times_late"] == pytest.approx(0.12)
    readme = (root / "out" / "README.md").read_text()
    assert "--t-one-ctc-model=model.onnx" in readme and "A row waits for 110 ms" in readme


def test_what_cannot_stream_is_refused(system, tmp_path):
    root, num_pdfs = system
    graph, kind = root / "graph", "sherpa-streaming"

    def model(name, **options):
        about = {**ONLINE["about"], **options.pop("about", {})}
        return make_model(tmp_path / name, num_pdfs=num_pdfs, **{**ONLINE, **SIZES, **options, "about": about})

    refused(lambda: export(kind, root / "model", tmp_path / "o", graph), "cmn is 'utterance'")
    zeros = model("edges", about={"edge_rows": [0, 0]})
    refused(lambda: export(kind, zeros, tmp_path / "o", graph), "data.edges=repeat")
    refused(lambda: export(kind, model("rate", about={"sample_rate": 16000}), tmp_path / "o", graph), "16000 samples")
    ahead = {"online_cmn": {**ONLINE["about"]["online_cmn"], "look_ahead": 5}}
    refused(lambda: export(kind, model("ahead", about=ahead), tmp_path / "o", graph), "looks 5 frames ahead")
    assert not (tmp_path / "o").exists()
