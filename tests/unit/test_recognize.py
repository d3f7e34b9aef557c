"""essence recognize: words, times and forms of audio of any kind, with and without PyTorch, and what is refused."""
import io
import json
import os
import queue
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
from builders import ROOT, refused
from builders.exports import make_model, make_system
from builders.graphs import pdf_graph, write_graph

import essence_kd
from essence_kd.am.stream import StreamingModel
from essence_kd.cli.main import main
from essence_kd.decode.lattice import path_words
from essence_kd.export import live
from essence_kd.export.exporter import export
from essence_kd.export.format import ExportSettings
from essence_kd.export.live import Endpointer, blocks_of_pipe
from essence_kd.export.recognizer import Recognizer, RecognizeSettings, Word
from essence_kd.export.transcripts import as_ctm, as_srt, as_vtt
from essence_kd.io.wave import read_wav, write_wav

SCALE = 0.7


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A folder with graph, model, data, the model as ONNX (``onnx``), and the words of every utterance by decode."""
    root = make_system(tmp_path_factory.mktemp("system"))
    export("onnx", root / "model", root / "onnx", settings=ExportSettings(acoustic_scale=SCALE))
    words = essence_kd.decode(root / "graph", essence_kd.forward(root / "model", root / "data_hires"),
                              decoder="kaldi", acoustic_scale=SCALE)
    return root, words


def recognize(capsys, *arguments, status=0):
    """(stdout, stderr) of the verb."""
    assert main(["recognize", *map(str, arguments)]) == status
    return capsys.readouterr()


def test_the_words_are_those_of_essence_decode(system, capsys):
    root, words = system
    wavs = [root / "data" / f"{utt}.wav" for utt in words]
    for model in ([root / "model", root / "graph", "--acoustic-scale", SCALE], [root / "onnx", root / "graph"]):
        said = recognize(capsys, "--confidences", "false", *model, *wavs)
        assert {line.split()[0]: line.split()[1:] for line in said.out.splitlines()} == words
        assert "10 of 10 recognised" in said.err


def test_without_pytorch(system):
    """The folder of an export is enough; a model directory says what is missing."""
    root, words = system
    code = ("import sys; sys.modules['torch'] = None\nfrom essence_kd.cli.main import main\n"
            "sys.exit(main(['recognize', *sys.argv[1:]]))")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pytools")}
    for model, status in (("onnx", 0), ("model", 1)):
        done = subprocess.run([sys.executable, "-c", code, root / model, root / "graph", root / "data" / "utt03.wav"],
                              capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
        if status:
            assert "pip install torch" in done.stderr and "onnxruntime alone" in done.stderr
        else:
            assert done.stdout.split() == ["utt03", *words["utt03"]]


def test_times_and_confidences(system, capsys):
    root, words = system
    said = json.loads(recognize(capsys, "--form", "json", root / "onnx", root / "graph", root / "data/utt05.wav").out)
    rate, samples = read_wav(str(root / "data" / "utt05.wav"))
    assert said["text"].split() == words["utt05"] == [word["word"] for word in said["words"]]
    assert said["seconds"] == round(len(samples) / rate, 3) and said["file"].endswith("utt05.wav")
    times = [time for word in said["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= said["seconds"] + 0.03
    assert all(0 <= word["confidence"] <= 1 for word in said["words"])
    assert any(word["confidence"] < 1 for word in said["words"])


def test_files_of_other_formats_rates_and_channels(system, tmp_path, capsys, monkeypatch):
    root, words = system
    rate, samples = read_wav(str(root / "data" / "utt01.wav"))
    soundfile.write(tmp_path / "a.flac", samples, rate, "PCM_16")
    soundfile.write(tmp_path / "both.wav", np.stack([samples, samples], axis=1), rate, "PCM_16")
    soundfile.write(tmp_path / "two.wav", np.stack([samples[::-1], samples], axis=1), rate, "PCM_16")
    model = (root / "onnx", root / "graph")
    said = recognize(capsys, *model, tmp_path / "a.flac", tmp_path / "both.wav").out.split("\n")
    assert said == [" ".join(["a", *words["utt01"]]), " ".join(["both", *words["utt01"]]), ""]
    assert recognize(capsys, "--channel", 1, *model, tmp_path / "two.wav").out.split()[1:] == words["utt01"]
    assert "--channel 0 to 1" in recognize(capsys, *model, tmp_path / "two.wav", status=1).err
    assert "counted from 0" in recognize(capsys, "--channel", 2, *model, tmp_path / "two.wav", status=1).err
    pipe = io.TextIOWrapper(io.BytesIO((tmp_path / "a.flac").read_bytes()))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert recognize(capsys, *model, "-").out.split() == ["stdin", *words["utt01"]]
    write_wav(tmp_path / "fast.wav", np.repeat(samples, 2), 16000)
    assert recognize(capsys, *model, tmp_path / "fast.wav").out.split()[0] == "fast"
    write_wav(tmp_path / "slow.wav", samples, 6000)
    assert "has 6000 samples per second, but the model hears 8000" in recognize(
        capsys, *model, tmp_path / "slow.wav", status=1).err


def test_a_model_tells_the_rate_of_its_audio(system, tmp_path, capsys):
    """model.yaml and exports: other audio is resampled or refused by name, another --sample-rate is refused."""
    root, words = system
    model = make_model(tmp_path / "model", num_pdfs=json.loads((root / "onnx/export.json").read_text())["num_pdfs"],
                       hidden=48, dilations=[1, 2], bottleneck=0, about={"sample_rate": 16000})
    export("onnx", model, tmp_path / "onnx", settings=ExportSettings(acoustic_scale=SCALE))
    assert json.loads((tmp_path / "onnx/export.json").read_text())["front_end"]["sample_frequency"] == 16000
    refused(lambda: export("onnx", model, tmp_path / "o", settings=ExportSettings(sample_rate=8000)),
            "model.yaml: was trained on audio of 16000 samples per second, not 8000")
    rate, samples = read_wav(str(root / "data" / "utt01.wav"))
    write_wav(tmp_path / "fast.wav", np.repeat(samples, 4), 32000)
    for folder, file in ((model, "model.yaml"), (tmp_path / "onnx", "export.json")):
        assert recognize(capsys, folder, root / "graph", tmp_path / "fast.wav").out.startswith("fast")
        assert "has 8000 samples per second, but the model hears 16000" in recognize(
            capsys, folder, root / "graph", root / "data" / "utt01.wav", status=1).err
        refused(lambda: Recognizer(folder, root / "graph", RecognizeSettings(sample_rate=8000)), file, "16000", "8000")
    assert Recognizer(root / "model", root / "graph", RecognizeSettings(sample_rate=16000)).rate == 16000


def test_subtitles_go_to_files(system, tmp_path, capsys):
    root, words = system
    wavs = [root / "data" / f"utt0{i}.wav" for i in (1, 2)]
    model = (root / "onnx", root / "graph")
    assert "need --out-dir" in recognize(capsys, "--form", "srt", *model, *wavs, status=1).err
    assert recognize(capsys, "--form", "srt", "--out-dir", tmp_path / "s", *model, *wavs).out == ""
    text = (tmp_path / "s" / "utt01.srt").read_text()
    assert text.startswith("1\n00:00:0") and " --> " in text and words["utt01"][0] in text
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["utt01.srt", "utt02.srt"]


def test_the_forms_to_the_letter():
    words = [Word("a", 0.0, 0.5, 0.25), Word("<b>", 0.5, 1.0, 1.0), Word("c", 3661.5, 3662.0)]
    assert as_srt("x", words, 4000) == ("1\n00:00:00,000 --> 00:00:01,000\na <b>\n\n"
                                        "2\n01:01:01,500 --> 01:01:02,000\nc\n\n")
    assert as_vtt("x", words, 4000) == ("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na &lt;b&gt;\n\n"
                                        "01:01:01.500 --> 01:01:02.000\nc\n\n")
    assert as_ctm("x", words, 4000) == ("x 1 0.000 0.500 a 0.250\nx 1 0.500 0.500 <b> 1.000\n"
                                        "x 1 3661.500 0.500 c\n")


def test_long_audio_is_cut_where_it_is_quiet(system):
    """Two recordings with noise between them: the words of both, at their places."""
    root, words = system
    parts = [read_wav(str(root / "data" / f"utt0{i}.wav"))[1] for i in (4, 7)]
    quiet = np.random.default_rng(0).normal(scale=20, size=4000).astype(np.int16)
    recognizer = Recognizer(root / "onnx", root / "graph", RecognizeSettings(piece_seconds=3.2, confidences=False))
    heard = recognizer.recognize(np.concatenate([parts[0], quiet, parts[1]]), 8000)
    first, cut = len(parts[0]) / 8000, (len(parts[0]) + 2000) / 8000
    assert {word.start < cut for word in heard} == {True, False}
    assert all(word.end <= first + 0.6 or word.start >= first for word in heard)


def test_audio_without_speech_has_no_words(system, tmp_path, capsys):
    root, _ = system
    rng = np.random.default_rng(0)
    sounds = {"zeros": np.zeros(16000), "noise": rng.normal(scale=30, size=16000), "short": np.ones(150)}
    for name, samples in sounds.items():
        write_wav(tmp_path / f"{name}.wav", samples.astype(np.int16), 8000)
    clipped = np.sign(rng.standard_normal(16000)) * np.repeat(rng.integers(0, 2, 40), 400) * 32767
    write_wav(tmp_path / "clipped.wav", clipped.astype(np.int16), 8000)
    said = recognize(capsys, root / "onnx", root / "graph", *(tmp_path / f"{name}.wav" for name in sounds),
                     tmp_path / "clipped.wav")
    assert said.out.splitlines()[:3] == list(sounds) and said.out.count("\n") == 4
    for part in ("zeros.wav: digital silence from 0.00 to", "noise.wav: even noise or silence", "150 samples are less"):
        assert part in said.err


def test_bad_files_are_told_and_the_others_recognised(system, tmp_path, capsys):
    root, words = system
    whole = (root / "data" / "utt02.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:len(whole) // 2])
    write_wav(tmp_path / "empty.wav", np.zeros(0, np.int16), 8000)
    (tmp_path / "text.wav").write_text("no audio at all")
    bad = [tmp_path / "cut.wav", tmp_path / "empty.wav", tmp_path / "text.wav", tmp_path / "none.wav"]
    said = recognize(capsys, root / "onnx", root / "graph", *bad, root / "data" / "utt02.wav", status=1)
    assert said.out.split() == ["utt02", *words["utt02"]]
    for part in ("cut.wav: truncated", "empty.wav: holds no samples", "text.wav: not audio", "none.wav: no such",
                 "1 of 5 recognised"):
        assert part in said.err
    assert "Traceback" not in said.err


def test_what_does_not_go_together(system, tmp_path, capsys):
    root, _ = system
    told = json.loads((root / "onnx" / "export.json").read_text())
    graph = write_graph(tmp_path / "graph", pdf_graph(told["num_pdfs"], "f00d"))
    for model in ("onnx", "model"):
        refused(lambda: Recognizer(root / model, graph), "tree_hash differs", "f00d", "cafe")
    refused(lambda: Recognizer(make_model(tmp_path / "m", feat_dim=23), root / "graph"), "23 feature bins")
    export("onnx", tmp_path / "m", tmp_path / "o")
    refused(lambda: Recognizer(tmp_path / "o", root / "graph"), "export.json", "23 feature bins")
    refused(lambda: Recognizer(make_model(tmp_path / "s", cmn="speaker"), root / "graph"), "nobody says who speaks")
    refused(lambda: Recognizer(tmp_path, root / "graph"), "neither model.yaml", "export.json")
    refused(lambda: Recognizer(root / "onnx", tmp_path / "nowhere"), "nowhere/graph.npz")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes((root / "onnx" / "model.onnx").read_bytes()[:5000])
    for format_name, part in (("onnx", "onnxruntime cannot load it"), ("vosk", "which its own program runs")):
        (broken / "export.json").write_text(json.dumps({**told, "format": format_name}))
        refused(lambda: Recognizer(broken, root / "graph"), part)
    for wrong, part in ((["a.wav", "--mic"], "leave out files"), ([], "no audio"), (["--raw", "a.wav"], "name -"),
                        (["--raw", "--form", "srt", "-"], "text or json"), (["-", "-"], "can be read once"),
                        (["--channel", "-1", "a.wav"], "counted from 0"), (["--threads", "0", "a.wav"], "--threads"),
                        (["--out-dir", "o", "a.wav", "b/a.flac"], "two files would be o/a.text")):
        assert part in recognize(capsys, root / "onnx", root / "graph", *wrong, status=1).err


def test_missing_packages_say_what_installs_them(system, monkeypatch):
    root, _ = system
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(lambda: Recognizer(root / "onnx", root / "graph"), "pip install onnxruntime")
    monkeypatch.setitem(sys.modules, "kaldi_decoder", None)
    refused(lambda: Recognizer(root / "model", root / "graph"), "pip install kaldifst", "kaldi-decoder")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    refused(lambda: next(live.blocks_of_microphone(8000, 800)), "pip install sounddevice")


def test_a_stream_is_cut_into_utterances(system, capsys, monkeypatch):
    """Two recordings in quiet noise, through a pipe: two lines of JSON at their times; partial results meanwhile."""
    root, _ = system
    rng = np.random.default_rng(1)
    quiet = rng.normal(scale=3, size=12000).astype(np.int16)
    parts = [read_wav(str(root / "data" / f"utt0{i}.wav"))[1] for i in (4, 7)]
    audio = np.concatenate([quiet, parts[0], quiet, parts[1], quiet])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(audio.astype("<i2").tobytes())))
    said = recognize(capsys, "--raw", "--partial", "--form", "json", root / "onnx", root / "graph", "-")
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert len(lines) == 2 and all(line["words"] for line in lines)
    begins = [1.5, 3.0 + len(parts[0]) / 8000]
    for line, begin, part in zip(lines, begins, parts):
        assert begin - 0.4 < line["words"][0]["start"] and line["words"][-1]["end"] < begin + len(part) / 8000 + 0.4
    assert "\n... " in "\n" + said.err


@pytest.mark.parametrize("cmn", ["none", "online"])
def test_partial_results_go_on_from_where_they_were(system, tmp_path, cmn):
    """Of a network that streams: every frame is computed once, and the words are those of all that has come."""
    root, _ = system
    told = json.loads((root / "onnx" / "export.json").read_text())
    about = {"online_cmn": {"prior": 30, "window": 100, "look_ahead": 3, "mean": [9.0] * 40}}
    model = make_model(tmp_path / "model", num_pdfs=told["num_pdfs"], cmn=cmn, hidden=48, dilations=[1, 2],
                       bottleneck=0, about=about if cmn == "online" else None)
    recognizer = Recognizer(model, root / "graph", acoustic_scale=SCALE, word_insertion_penalty=-20.0)
    samples = np.concatenate([read_wav(str(root / "data" / f"utt0{i}.wav"))[1] for i in (4, 7)])
    extractor, frames = recognizer._features, []
    recognizer._features = lambda part: frames.append(len(extractor(part)["fbank"])) or extractor(part)
    partial, heard = recognizer.begin(), []
    for end in [100, *range(3000, len(samples), 4001), len(samples)]:
        heard.append(partial.words(samples[:end]))
        assert heard[-1] == recognizer.begin().words(samples[:end])
    assert len(heard[-1]) > 3 and heard[0] == [] and any(heard[2:-1])
    alone = frames[::2]
    assert sum(alone) == len(extractor(samples)["fbank"]) and max(alone) <= 1 + 4001 // 80
    # the rows that are ready are scored as those of the whole utterance
    feats = extractor(samples)["fbank"]
    ready = len(StreamingModel(model).start().part(feats))
    search = recognizer.decoder.stream()
    search.part(recognizer.network.score(feats)[:ready])
    graph = recognizer.decoder.graph
    assert graph.words[path_words(graph, search.path)].tolist() == heard[-1]


def test_partial_results_of_other_networks_are_of_the_end(system, monkeypatch):
    root, _ = system
    recognizer, lengths = Recognizer(root / "onnx", root / "graph"), []
    whole = recognizer.recognize
    monkeypatch.setattr(recognizer, "recognize", lambda samples, *rest, **options: lengths.append(
        len(samples)) or whole(samples, *rest, **options))
    samples = np.tile(read_wav(str(root / "data" / "utt04.wav"))[1], 12)
    assert len(samples) > 10 * 8000
    partial = recognizer.begin()
    assert partial.words(samples[:12000]) == [word.word for word in whole(samples[:12000], 8000)]
    assert partial.words(samples) and lengths == [12000, 10 * 8000]


def test_a_microphone(system, capsys, monkeypatch):
    """It is recognised what a microphone hears, until Ctrl-C; without PortAudio or a microphone it is said so."""
    root, _ = system
    quiet = np.random.default_rng(1).normal(scale=3, size=8000).astype(np.int16)
    audio = np.concatenate([quiet, read_wav(str(root / "data" / "utt04.wav"))[1], quiet])
    asked = {}

    class Stream:
        def __init__(self, callback, **options):
            asked.update(options)
            for first in range(0, len(audio) - 799, options["blocksize"]):
                callback(audio[first:first + options["blocksize"], None], 800, None, None)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    class Queue(queue.Queue):
        def get(self):
            if self.empty():
                raise KeyboardInterrupt  # of whoever has said enough
            return super().get()

    module = types.SimpleNamespace(InputStream=Stream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(live.queue, "Queue", Queue)
    said = recognize(capsys, "--mic", "--form", "json", root / "onnx", root / "graph")
    assert asked == {"samplerate": 8000, "blocksize": 800, "channels": 1, "dtype": "int16"}
    assert json.loads(said.out)["words"]

    def none(**options):
        raise RuntimeError("no input device")

    module.InputStream = none
    assert "--mic: no microphone can be opened (no input device)" in recognize(
        capsys, "--mic", root / "onnx", root / "graph", status=1).err

    def without_portaudio(*names):
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(live, "runtime", without_portaudio)
    assert "apt-get install libportaudio2" in recognize(capsys, "--mic", root / "onnx", root / "graph", status=1).err


def test_blocks_and_ends():
    rng = np.random.default_rng(0)
    loud, quiet = rng.normal(scale=3000, size=8000), rng.normal(scale=5, size=8000)
    audio = np.concatenate([quiet, loud, quiet, loud[:4000]]).astype(np.int16)
    blocks = list(blocks_of_pipe(io.BytesIO(audio.astype("<i2").tobytes()), 800))
    assert np.array_equal(np.concatenate(blocks), audio) and {len(block) for block in blocks} == {800}
    ends = Endpointer(8000)
    found = [ends.add(block) for block in blocks] + [ends.end()]
    (first, said), (second, rest) = [utterance for utterance in found if utterance]
    assert (first, len(said)) == (8000 - 1600, 1600 + 8000 + 1600)
    assert (second, len(rest)) == (24000 - 1600, 1600 + 4000)
    assert np.array_equal(audio[first:first + len(said)], said) and np.array_equal(audio[second:], rest)
    assert Endpointer(8000).end() is None
    longest = Endpointer(8000, longest=0.5)
    assert sum(longest.add(block) is not None for block in blocks[10:20]) == 2
    refused(lambda: list(blocks_of_pipe(io.BytesIO(b"123"), 800)), "odd number of bytes")
