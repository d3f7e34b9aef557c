#!/usr/bin/env python3
"""Compares sherpa-onnx, with an export of the format sherpa or sherpa-streaming, with essence decode.

    benchmarks/sherpa.py exp/student_sherpa exp/mini/student_essence exp/mini/graph data/mini/eval_swbd

Prints a Markdown table: utterances with the words of kaldi-decoder at the settings of OUT, word errors, processor time
per second of audio; while speech goes on also the ms of a chunk of 300 ms (half of them, 99 %), search included.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from measure import script

import essence_kd
from essence_kd.corpus.features import hires_dir
from essence_kd.decode.lattice import edit_distance
from essence_kd.io.data_dir import DataDir
from essence_kd.io.recordings import Recordings
from essence_kd.io.text import read_words

CHUNK = 2400  # samples of 300 ms


def recogniser(out: Path, told: dict):
    """The recogniser that README.md of an export has, and whether it streams."""
    from sherpa_onnx.lib import _sherpa_onnx as sherpa

    model, tokens, rule = str(out / told["model"]), str(out / "tokens.txt"), str(out / "words_only.fst")
    graph = {"graph": str(out / "HLG.fst"), "max_active": told["max_active"]}
    if told["format"] == "sherpa":
        network = sherpa.OfflineOmnilingualAsrCtcModelConfig(model)
        return sherpa.OfflineRecognizer(sherpa.OfflineRecognizerConfig(
            model_config=sherpa.OfflineModelConfig(omnilingual=network, tokens=tokens),
            ctc_fst_decoder_config=sherpa.OfflineCtcFstDecoderConfig(**graph), rule_fsts=rule)), False
    return sherpa.OnlineRecognizer(sherpa.OnlineRecognizerConfig(
        feat_config=sherpa.FeatureExtractorConfig(sampling_rate=8000, feature_dim=80),
        model_config=sherpa.OnlineModelConfig(t_one_ctc=sherpa.OnlineToneCtcModelConfig(model), tokens=tokens,
                                              num_threads=1),
        ctc_fst_decoder_config=sherpa.OnlineCtcFstDecoderConfig(**graph), rule_fsts=rule, enable_endpoint=False,
        decoding_method="greedy_search")), True


def offline(running, audio: dict, rate: int, batch: int) -> dict:
    """Utterance -> words, ``batch`` at once."""
    found, names = {}, list(audio)
    for first in range(0, len(names), batch):
        streams = {utt: running.create_stream() for utt in names[first:first + batch]}
        for utt, stream in streams.items():
            stream.accept_waveform(rate, audio[utt])
        running.decode_streams(list(streams.values()))
        found.update((utt, stream.result.text.split()) for utt, stream in streams.items())
    return found


def online(running, audio: dict, rate: int, times: list) -> dict:
    """Utterance -> words, 300 ms at once, a second of zeros behind each; the ms of each chunk go into ``times``."""
    found = {}
    for utt, samples in audio.items():
        stream = running.create_stream()
        for first in range(0, len(samples), CHUNK):
            stream.accept_waveform(rate, samples[first:first + CHUNK])
            while running.is_ready(stream):
                began = time.perf_counter()
                running.decode_stream(stream)
                times.append(1000 * (time.perf_counter() - began))
        stream.accept_waveform(rate, np.zeros(rate, np.float32))
        stream.input_finished()
        while running.is_ready(stream):
            running.decode_stream(stream)
        found[utt] = running.get_result(stream).text.split()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR")
    parser.add_argument("data", metavar="DATA", nargs="+", help="sets, whose features lie in DATA_hires")
    parser.add_argument("--batch", type=int, default=1, help="utterances at once, offline (default: %(default)s)")
    args = parser.parse_args()
    told = json.loads((args.out / "export.json").read_text(encoding="utf-8"))
    settings = {key: told[key] for key in ("acoustic_scale", "word_insertion_penalty", "beam", "max_active")}
    running, streams = recogniser(args.out, told)
    print("| set | same words | WER sherpa-onnx | WER essence decode | CPU ms per second of audio | chunk, ms |")
    print("|---|---|---|---|---|---|")
    for folder in args.data:
        data, times = DataDir.load(folder), []
        recordings = Recordings(data.wav_scp, data.path / "wav.scp")
        audio = {utt: recordings.cut(utt, segment, data.channels.get(utt)).astype(np.float32) / 32768
                 for utt, segment in data.utterances().items()}
        scores = essence_kd.forward(args.model_dir, hires_dir(folder))
        ours = essence_kd.decode(args.graph_dir, scores, decoder="kaldi", **settings)
        began, rate = time.process_time(), recordings.rate
        found = online(running, audio, rate, times) if streams else offline(running, audio, rate, args.batch)
        spent = 1000 * (time.process_time() - began) / (sum(map(len, audio.values())) / rate)
        words = read_words(Path(folder) / "text")
        count = sum(map(len, words.values()))
        theirs, mine = (100 * sum(edit_distance(words[utt], each.get(utt, [])) for utt in words) / count
                        for each in (found, ours))
        chunk = ", ".join(f"{value:.1f}" for value in np.percentile(times, (50, 99))) if times else ""
        print(f"| {Path(folder).name} | {sum(found[utt] == ours[utt] for utt in ours)} of {len(ours)} | {theirs:.2f} | "
              f"{mine:.2f} | {spent:.1f} | {chunk} |")
        sys.stdout.flush()


if __name__ == "__main__":
    script(main)
