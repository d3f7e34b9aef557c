"""essence export --format nnet3 and vosk: networks, graphs over transition-ids, and words in the real Vosk."""
import json

import numpy as np
import pytest
import torch
import vosk
from builders import refused
from builders.exports import make_model
from builders.graphs import paths_agree
from builders.speaking import WIDE, best_words, make_audio, make_language, make_speaker

from essence_kd.am.forward import load_model
from essence_kd.export.exporter import export
from essence_kd.export.kaldi_graph import kaldi_graph
from essence_kd.export.nnet3_model import nnet3_network
from essence_kd.export.nnet3_network import Network
from essence_kd.hmm.fst import write_fst
from essence_kd.hmm.graph import load_graph, save_graph
from essence_kd.hmm.hclg import import_graph
from essence_kd.hmm.kaldi_objects import BinaryReader, ObjectWriter
from essence_kd.hmm.lang import load_lang
from essence_kd.hmm.transition_model import read_transition_model, write_transition_model
from essence_kd.io.wave import read_wav

@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A folder with lang and graph, and the graph."""
    root = tmp_path_factory.mktemp("language")
    return root, make_language(root)


@pytest.mark.parametrize("arch,options", [
    ("tdnn", {}), ("tdnn", {"norm": "batch"}), ("tdnn", {"input_offsets": [0, 1, 4], "bottleneck": 0}),
    ("cnn_tdnn", {}), ("cnn_tdnn", {"channels": [3, 5, 4], "freq_strides": [2, 3, 2], "norm": "batch"}),
    ("tdnn_f", {}), ("tdnn_f", {"norm": "batch"}), ("tdnn_f", {"prefinal": 0, "bypass": 0.5, "dilations": [0, 2]})])
def test_a_network_is_pytorchs(tmp_path, arch, options):
    """Whatever the lengths and the edges, and where the variance is as small as layer normalisation's epsilon."""
    model, _ = load_model(make_model(tmp_path / "m", arch, **options))
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
                parameter[1] *= "weight" not in name  # a scale of 0
            elif "1" in name or arch == "tdnn_f":
                parameter.mul_(0.02 if "affine" in name else 1)
    mixing = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 40)))[0]
    network = nnet3_network(model, arch, mixing)
    left, right = network.context()
    model.edge_rows = (-(-left // 3), -(-right // 3))
    out = ObjectWriter()
    network.write(out)
    network = Network.read(BinaryReader(out.data()))
    for frames in (1, 2, 3, 4, 20, 100):
        feats = np.random.default_rng(frames).normal(0, 3, (frames, 40)).astype(np.float32)
        with torch.inference_mode():
            logits = model(torch.from_numpy(feats)[None], torch.tensor([frames]))[0]
        np.testing.assert_allclose(network.compute((feats @ mixing).astype(np.float32), 3),
                                   logits.log_softmax(1).numpy(), atol=1e-4)


@pytest.mark.parametrize("triphones", [False, True])
def test_a_graph_has_the_same_paths(tmp_path, triphones):
    """Read back by its transition-ids, it has the words and costs of graph.npz on any labels."""
    graph = make_language(tmp_path, triphones)
    hclg, transitions = kaldi_graph(graph, "graph.npz")
    assert (hclg.ilabel > 0).sum() > (graph.ilabel > 0).sum() and hclg.num_states > graph.num_states
    out = ObjectWriter()
    write_transition_model(out, transitions)
    (tmp_path / "final.mdl").write_bytes(out.data())
    write_fst(tmp_path / "HCLG.fst", hclg)
    (tmp_path / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(graph.words)))
    back = import_graph(tmp_path / "HCLG.fst", tmp_path / "final.mdl", tmp_path / "words.txt", factor=3)
    assert paths_agree(graph, back, 90, 1e-3) > 40
    np.testing.assert_array_equal(np.sort(graph.final[np.isfinite(graph.final)]),
                                  np.sort(back.final[np.isfinite(back.final)]))


def test_transition_ids_tell_where_phones_begin_and_end(language):
    """On any path a phone's ids go on where the one before led, and self-loops stand behind a state's id onwards."""
    _, graph = language
    hclg, model = kaldi_graph(graph, "graph.npz")
    bounds = np.searchsorted(hclg.src, np.arange(hclg.num_states + 1))
    rng, phones_seen = np.random.default_rng(0), 0
    sizes = {phone: len(states) for phone, states in model.topo.items()}
    for _ in range(200):
        state, ids = 0, []
        while not (np.isfinite(hclg.final[state]) and ids and rng.random() < 0.3):
            arc = int(rng.integers(bounds[state], bounds[state + 1]))
            ids += [int(hclg.ilabel[arc])] if hclg.ilabel[arc] else []
            state = int(hclg.dst[arc])
        here = before = None  # (phone, HMM state) that the next id must have, and that of the last
        for tid in ids:
            phone, at = int(model.phone[tid]), int(model.state[tid])
            if model.loop[tid]:
                assert here is not None and (phone, at) == before
                continue
            assert here in (None, (phone, at)) or here == "any"
            before, following = (phone, at), int(model.next[tid])
            here = "any" if following == sizes[phone] else (phone, following)
            phones_seen += here == "any"
        assert here == "any"  # the last phone has ended
    assert phones_seen > 400


def test_word_insertion_penalty_is_in_the_graph(language):
    _, graph = language
    plain, dear = (kaldi_graph(graph, "g", penalty)[0] for penalty in (0.0, 1.5))
    np.testing.assert_allclose(dear.weight - plain.weight, 1.5 * (plain.olabel > 0), atol=1e-6)
    assert (plain.olabel > 0).any()


@pytest.mark.parametrize("name,cmn", [("nnet3", "none"), ("nnet3", "utterance"), ("nnet3", "speaker"),
                                      ("nnet3", "online"), ("vosk", "none"), ("vosk", "online")])
def test_an_export_is_whole_and_the_same_again(language, tmp_path, name, cmn):
    root, graph = language
    model = make_speaker(tmp_path / "m", graph, cmn=cmn)
    for folder in ("a", "b"):
        said = export(name, model, tmp_path / folder, root / "graph", WIDE)
    assert "largest difference to PyTorch" in said
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    for file in files:
        if file.name != "export.json":
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    names = set(map(str, files))
    online = cmn == "online"
    if name == "vosk":
        assert names == {"README.md", "export.json", "am/final.mdl", "conf/mfcc.conf", "conf/model.conf",
                         "graph/HCLG.fst", "graph/words.txt", "graph/phones.txt", "graph/num_pdfs",
                         "graph/phones/word_boundary.int", "graph/phones/word_boundary.txt",
                         "graph/phones/silence.csl"} | ({"am/global_cmvn.stats"} if online else set())
        conf = (tmp_path / "a" / "conf" / "model.conf").read_text().splitlines()
        assert "--acoustic-scale=0.45" in conf and "--frame-subsampling-factor=3" in conf and "--beam=200" in conf
        assert f"--endpoint.silence-phones={':'.join(map(str, sorted(load_lang(root / 'lang').silence)[::5]))}" in conf
    else:
        assert ({"online_cmvn", "global_cmvn.stats", "conf/online_cmvn.conf"} <= names) == online
        assert ("conf/online.conf" in names) == (cmn in ("none", "online"))
        assert (tmp_path / "a" / "cmvn_opts").read_text() == {
            "none": "--norm-means=false --norm-vars=false\n", "online":
            "--norm-vars=false --cmn-window=600 --speaker-frames=600 --global-frames=200\n"}.get(
                cmn, "--norm-means=true --norm-vars=false\n")
    text = (tmp_path / "a" / "README.md").read_text()
    assert "so did training" in text and "{" not in text.replace("{factor}", "")
    mdl = tmp_path / "a" / ("am/final.mdl" if name == "vosk" else "final.mdl")
    assert read_transition_model(mdl).num_pdfs == graph.num_pdfs


def test_what_kaldi_cannot_hold(language, tmp_path):
    root, graph = language
    out = tmp_path / "out"

    def said(name, model, *words, graph_dir=root / "graph"):
        refused(lambda: export(name, model, out, graph_dir, WIDE), *words)

    for arch in ("tdnn_lstm", "blstm", "conformer"):
        said("nnet3", make_speaker(tmp_path / arch, graph, arch), f"arch is '{arch}'", "tdnn, tdnn_f, cnn_tdnn")
    said("vosk", make_speaker(tmp_path / "u", graph, cmn="utterance"), "cmn is 'utterance'",
         "online; such as conf/models/student_tdnn_online.yaml trains")
    ahead = make_speaker(tmp_path / "ahead", graph, online={"prior": 200, "window": 600, "look_ahead": 5})
    said("nnet3", ahead, ahead, "5 frames ahead", "data.cmn_look_ahead=0")
    other = make_speaker(tmp_path / "other", graph, online={"prior": 50, "window": 600, "look_ahead": 0})
    said("vosk", other, "prior of 50", "student_tdnn_online")
    export("nnet3", other, out, root / "graph", WIDE)
    assert "--global-frames=50" in (out / "cmvn_opts").read_text()
    good = make_speaker(tmp_path / "good", graph)
    refused(lambda: export("nnet3", good, tmp_path / "o", None, WIDE), "needs a graph")

    def of(change):
        changed = load_graph(root / "graph" / "graph.npz")
        change(changed)
        folder = tmp_path / f"g{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        save_graph(folder / "graph.npz", changed)
        return folder

    def imported(g):
        g.meta.update(transitions="HCLG", hclg="exp/HCLG.fst")

    def mixed(g):
        g.begin[:] = 0

    def free(g):
        g.dst[np.flatnonzero(g.ilabel == 0)[0]] = g.dst[np.flatnonzero(g.ilabel > 0)[0]]

    said("nnet3", good, "imported from Kaldi (exp/HCLG.fst)", graph_dir=of(imported))
    said("nnet3", good, "a phone goes on where another one was", graph_dir=of(mixed))
    said("nnet3", good, "or without a frame", graph_dir=of(free))


def heard_by_vosk(folder, samples):
    """The words of Vosk's best path, with their times, of int16 samples that come in parts."""
    recogniser = vosk.KaldiRecognizer(vosk.Model(str(folder)), 8000)
    recogniser.SetMaxAlternatives(1)
    recogniser.SetWords(True)
    results = []
    for begin in range(0, len(samples), 1600):
        if recogniser.AcceptWaveform(samples[begin:begin + 1600].astype("<i2").tobytes()):
            results.append(recogniser.Result())
    results.append(recogniser.FinalResult())
    return [word for result in results for word in json.loads(result)["alternatives"][0].get("result", [])]


@pytest.mark.parametrize("cmn,arch", [("online", "tdnn"), ("none", "tdnn"), ("online", "tdnn_f"),
                                      ("online", "cnn_tdnn")])
def test_vosk_says_the_words_of_the_best_path(language, tmp_path, cmn, arch):
    root, graph = language
    vosk.SetLogLevel(-1)
    feats, said = make_audio(tmp_path / "wav"), 0
    model = make_speaker(tmp_path / "m", graph, arch, cmn=cmn)
    export("vosk", model, tmp_path / "vosk", root / "graph", WIDE)
    for name, matrix in feats.items():
        words = heard_by_vosk(tmp_path / "vosk", read_wav(str(tmp_path / "wav" / f"{name}.wav"))[1])
        assert [word["word"] for word in words] == best_words(graph, model, matrix), name
        seconds = 0.01 * len(matrix)
        times = [time for word in words for time in (word["start"], word["end"])]
        assert times == sorted(times) and all(0 <= time <= seconds + 0.04 for time in times)
        said += len(words)
    assert said >= 5
    for samples in (np.zeros(0), np.zeros(100), np.zeros(16000), np.full(8000, 32767)):  # nothing, silence, clipped
        for word in heard_by_vosk(tmp_path / "vosk", samples):
            assert word["word"] in graph.words and word["end"] <= len(samples) / 8000 + 0.04
