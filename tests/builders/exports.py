"""Untrained models that hear 40 log-mels, audio for them, and sherpa-onnx with what was exported."""
import json
import types

import numpy as np
import torch
from builders.graphs import loop_graph, write_graph

from essence_kd.am.models.registry import build_model
from essence_kd.corpus.features import make_feats, num_frames
from essence_kd.io.settings import dump_settings
from essence_kd.io.wave import read_audio, write_wav

SIZES = {"tdnn": {"hidden": 24, "dilations": [1, 2, 0], "bottleneck": 12},
         "tdnn_f": {"hidden": 20, "bottleneck": 8, "dilations": [1, 0, 3], "prefinal": 12},
         "cnn_tdnn": {"channels": [4, 6], "freq_strides": [2, 1], "hidden": 16, "bottleneck": 8, "dilations": [1, 2]},
         "tdnn_lstm": {"hidden": 12, "cells": 10, "dilations": [1, 2]},
         "blstm": {"cells": 10, "hidden": 12, "channels": [4], "freq_strides": [2]},
         "conformer": {"hidden": 8, "heads": 2, "feed_forward": 12, "blocks": 1}}


def make_model(folder, arch="tdnn", *, num_pdfs=12, cmn="utterance", tree_hash="cafe", feat_dim=40, about=None,
               **options):
    """A model directory with random parameters, and priors of which one is 0; the folder. about: more of model.yaml."""
    torch.manual_seed(1)
    options = {**SIZES[arch], **options}
    model = build_model(arch, options, feat_dim=feat_dim, num_pdfs=num_pdfs, frame_subsampling_factor=3)
    with torch.no_grad():
        model.output.weight.mul_(4)
        model.feat_inv_std.uniform_(0.3, 0.6)
        model.feat_mean.uniform_(-1, 1)
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                value.uniform_(-1, 1)
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "final.pt")
    told = {"arch": arch, "model": options, "feat_dim": feat_dim, "num_pdfs": num_pdfs, "frame_subsampling_factor": 3,
            "cmn": cmn, "tree_hash": tree_hash, **(about or {})}
    dump_settings(told, folder / "model.yaml")
    priors = np.arange(num_pdfs) / np.arange(num_pdfs).sum()
    (folder / "priors.txt").write_text("".join(f"{p:.9g}\n" for p in priors))
    return folder


def make_wavs(folder, count, rate=8000):
    """A data directory of ``count`` recordings of coloured noise, 0.8 to 2.5 s long; the folder."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    names = [f"utt{i:02d}" for i in range(count)]
    for name in names:
        length = int(rate * rng.uniform(0.8, 2.5))
        loud = np.interp(np.arange(length), np.linspace(0, length, 12), rng.uniform(500, 6000, 12))
        sound = np.convolve(rng.standard_normal(length), rng.standard_normal(9) / 3, mode="same")
        write_wav(folder / f"{name}.wav", np.clip(loud * sound, -32000, 32000).astype(np.int16), rate)
    (folder / "wav.scp").write_text("".join(f"{name} {folder / name}.wav\n" for name in names))
    for table in ("utt2spk", "spk2utt", "text"):
        (folder / table).write_text("".join(f"{name} {name}\n" for name in names))
    return folder


def make_system(root):
    """A graph with homophones and words on epsilons (``graph``), a model (``model``), audio and features (``data``,
    ``data_hires``) in a folder, which is returned."""
    graph = loop_graph(num_words=30, num_phones=8, seed=2, lengths=(1, 3), moved=True)
    graph.words[4] = "\u00e9t\u00e9"  # UTF-8
    graph.meta.update(tree_hash="cafe", frame_subsampling_factor=3)
    write_graph(root / "graph", graph)
    make_model(root / "model", num_pdfs=graph.num_pdfs, hidden=48, dilations=[1, 2], bottleneck=0)
    make_feats(make_wavs(root / "data", 10), kinds=["fbank"], nj=1)
    return root


def sherpa_recognizer(out):
    """A recogniser of the Python package sherpa_onnx for a folder of --format sherpa, as its README.md has it."""
    from sherpa_onnx.lib import _sherpa_onnx as sherpa

    told = json.loads((out / "export.json").read_text())
    model = sherpa.OfflineOmnilingualAsrCtcModelConfig(str(out / told["model"]))
    return sherpa.OfflineRecognizer(sherpa.OfflineRecognizerConfig(
        model_config=sherpa.OfflineModelConfig(omnilingual=model, tokens=str(out / "tokens.txt")),
        ctc_fst_decoder_config=sherpa.OfflineCtcFstDecoderConfig(graph=str(out / "HLG.fst"), max_active=7000),
        rule_fsts=str(out / "words_only.fst")))


def sherpa_texts(out, data, batch):
    """Utterance -> words, and utterance -> its result (with the number of frames), of a directory of whole wavs."""
    recognizer, words, results = sherpa_recognizer(out), {}, {}
    lines = [line.split() for line in (data / "wav.scp").read_text().splitlines()]
    for first in range(0, len(lines), batch):
        streams = []
        for _, path in lines[first:first + batch]:
            rate, samples = read_audio(path)
            streams.append((recognizer.create_stream(), num_frames(len(samples))))
            streams[-1][0].accept_waveform(rate, samples[:, 0].astype(np.float32) / 32768)
        recognizer.decode_streams([stream for stream, _ in streams])
        for (utt, _), (stream, frames) in zip(lines[first:], streams):
            found = stream.result
            words[utt] = found.text.split()
            results[utt] = types.SimpleNamespace(timestamps=found.timestamps, tokens=found.tokens, frames=frames)
    return words, results
