#!/usr/bin/env python3
"""Compares exports of the format onnx with the model in PyTorch: bytes, processor time, scores, word errors.

    benchmarks/deployment.py exp/mini/student_essence exp/mini/graph data/mini/eval_swbd data/mini/eval_che --out OUT...
    benchmarks/deployment.py ... --models exp/mini/{teacher_1,teacher_2,baseline} --json exp/mini/deployment.json

Prints a Markdown table. With --json it also measures whole recognition, by features, network and search, of MODEL_DIR,
--models and every OUT. The report of EXP_DIR shows the figures that lie in EXP_DIR/deployment.json.

Times of the table are those of the network alone, one utterance at a time on one thread: features of the first set are
in memory, and passes alternate between the systems; the smallest of --repeats counts. Words are found by kaldi-decoder
with the settings of the first OUT.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measure import ESSENCE, measured, script

import essence_kd
from essence_kd.corpus.features import hires_dir
from essence_kd.decode.lattice import edit_distance
from essence_kd.export.onnx_file import scorer
from essence_kd.export.recognizer import Recognizer, RecognizeSettings
from essence_kd.io.data_dir import DataDir
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.provenance import write_text
from essence_kd.io.recordings import Recordings
from essence_kd.io.tables import read_matrices
from essence_kd.io.text import read_words
from essence_kd.io.wave import write_wav

CHUNK_MS = 300  # of audio that comes at once


def pytorch(model_dir, settings: dict):
    """What answers features (T, F) with scaled scores, in PyTorch."""
    import torch

    from essence_kd.am.forward import scores
    from essence_kd.hmm.alignment_dir import read_log_priors

    torch.set_num_threads(1)
    model, about = essence_kd.load_model(model_dir)
    priors = read_log_priors(Path(model_dir) / "priors.txt", model.num_pdfs).astype(np.float32)

    def score(feats: np.ndarray) -> np.ndarray:
        if about["cmn"] == "utterance":
            feats = feats - feats.mean(axis=0)
        with torch.inference_mode():
            logits = model(torch.from_numpy(feats[None]), torch.tensor([len(feats)]))[0].numpy()
        return np.float32(settings["acoustic_scale"]) * scores(logits, "loglike", priors, settings["prior_scale"])

    return score


def whole_recognition(model, graph_dir, options: dict, audio: list, seconds: float, repeats: int) -> dict:
    """What recognition of int16 samples costs, of a model directory or an export, on one thread.

    CPU ms per second of audio of features, network and search, each the smallest of ``repeats``; where the model
    streams, the ms of a chunk (half of them, 99 %), features, network and search together, and how long after a word
    it is known.
    """
    recognizer = Recognizer(model, graph_dir, RecognizeSettings(confidences=False), **options)
    about, rate = recognizer.network.about, recognizer.rate
    spent = {"features": np.inf, "network": np.inf, "search": np.inf}
    for _ in range(repeats):
        steps, inputs = {"features": lambda x: recognizer._features(x)["fbank"], "network": recognizer.network.score,
                         "search": lambda x: recognizer.decoder.decode([x])}, audio
        for name, step in steps.items():
            began = time.process_time()
            inputs = [step(x) for x in inputs]
            spent[name] = min(spent[name], 1000 * (time.process_time() - began) / seconds)
    folder = Path(model)
    file = folder / about.get("model", "") if (folder / "export.json").is_file() else folder / "final.pt"
    row = {"bytes": file.stat().st_size, "cpu_ms": {name: round(value, 3) for name, value in spent.items()}}
    if recognizer.network.stream() is not None:
        times, size = [], CHUNK_MS * rate // 1000
        for samples in audio:
            partial = recognizer.begin()
            for end in range(size, len(samples) + 1, size):
                began = time.perf_counter()
                partial.words(samples[:end])
                times.append(1000 * (time.perf_counter() - began))
        p50, p99 = (round(float(np.percentile(times, p)), 2) for p in (50, 99))
        ahead = json.loads((folder / "info.json").read_text(encoding="utf-8"))["look_ahead_ms"]
        ends = recognizer.network.front_end.frame_length_ms
        row.update(chunk_p50_ms=p50, chunk_p99_ms=p99, word_ms=round(ahead + ends + CHUNK_MS / 2 + p50))
    return row


def one_answer(model, graph_dir, options: dict, samples: np.ndarray, rate: int) -> dict:
    """CPU seconds and MB of a process that recognises one utterance; of this one's memory, what is larger counts, so
    nothing large may be here yet."""
    with tempfile.TemporaryDirectory(prefix="essence-deployment-") as temporary:
        write_wav(Path(temporary) / "a.wav", samples, rate)
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        cost = measured([*ESSENCE, "recognize", "--confidences", "false", *given, model, graph_dir,
                         Path(temporary) / "a.wav"])
    return {"start_cpu_s": round(cost.cpu, 2), "peak_mb": round(cost.megabytes)}


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                platform.processor() or platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR")
    parser.add_argument("data", metavar="DATA", nargs="+", help="sets, whose features lie in DATA_hires")
    parser.add_argument("--out", metavar="OUT", nargs="+", required=True, help="of essence export --format onnx")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", metavar="MODEL_DIR", nargs="*", default=[], help="others of the run, for --json")
    parser.add_argument("--utterances", type=int, default=60, help="of the first set, for --json (default: 60)")
    parser.add_argument("--json", metavar="FILE", help="where the figures of whole recognition go")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    told = [json.loads((Path(out) / "export.json").read_text(encoding="utf-8")) for out in args.out]
    scales = {key: told[0][key] for key in ("word_insertion_penalty", "beam", "max_active", "acoustic_scale")}
    options = dict.fromkeys((args.model_dir, *args.models), scales)
    options.update((path, {}) for path in args.out)  # which hold their own
    starts = {}
    if args.json:
        data = DataDir.load(args.data[0])
        recordings = Recordings(data.wav_scp, data.path / "wav.scp")
        audio = [recordings.cut(utt, segment, data.channels.get(utt))
                 for utt, segment in list(data.utterances().items())[:args.utterances]]
        starts = {path: one_answer(path, args.graph_dir, given, audio[0], recordings.rate)
                  for path, given in options.items()}
    systems = {"PyTorch": (Path(args.model_dir) / "final.pt", pytorch(args.model_dir, told[0]))}
    for out, about in zip(args.out, told):
        if about["format"] != "onnx":
            raise UserError(f"{out}: is an export of the format {about['format']}, not onnx")
        path = Path(out) / about["model"]
        systems[f"ONNX {about['int8'] or 'fp32'}"] = (path, scorer(path))
    sets = {data: dict(read_matrices(f"scp:{hires_dir(data)}/feats.scp")) for data in args.data}
    words = {data: read_words(Path(data) / "text") for data in args.data}
    feats = list(sets[args.data[0]].values())
    seconds = sum(map(len, feats)) * FRAME_SHIFT_MS / 1000
    spent = dict.fromkeys(systems, np.inf)
    for _ in range(args.repeats):
        for name, (_, score) in systems.items():
            began = time.process_time()
            for matrix in feats:
                score(matrix)
            spent[name] = min(spent[name], time.process_time() - began)
    print("| network | bytes | CPU ms per second of audio | times as fast | largest difference | same best pdf |",
          *(f" WER {Path(data).name} | same words |" for data in args.data), sep="")
    print("|---|---|---|---|---|---|", *("---|---|" for _ in args.data), sep="")
    reference: dict = {}
    rates: dict = {}
    for name, (path, score) in systems.items():
        answers = {data: {utt: score(matrix) for utt, matrix in matrices.items()} for data, matrices in sets.items()}
        found = {data: essence_kd.decode(args.graph_dir, each.items(), decoder="kaldi", acoustic_scale=1.0,
                                         word_insertion_penalty=told[0]["word_insertion_penalty"],
                                         beam=told[0]["beam"], max_active=told[0]["max_active"])
                 for data, each in answers.items()}
        reference = reference or {"scores": answers, "words": found}
        pairs = [(each[utt], reference["scores"][data][utt]) for data, each in answers.items() for utt in each]
        worst = max(float(np.abs(a - b).max()) for a, b in pairs)
        same = np.mean(np.concatenate([a.argmax(1) == b.argmax(1) for a, b in pairs]))
        cells, total = [], [0, 0]
        for data in args.data:
            ref = words[data]
            errors = sum(edit_distance(ref[utt], found[data].get(utt, [])) for utt in ref)
            total = [total[0] + errors, total[1] + sum(map(len, ref.values()))]
            equal = sum(found[data][utt] == reference["words"][data][utt] for utt in found[data])
            cells += [f"{100 * errors / sum(map(len, ref.values())):.2f}", f"{equal} of {len(found[data])}"]
        print(f"| {name} | {path.stat().st_size:,} | {1000 * spent[name] / seconds:.3f} | "
              f"{spent['PyTorch'] / spent[name]:.2f} | {worst:.2g} | {100 * same:.1f} % | {' | '.join(cells)} |")
        sys.stdout.flush()
        rates[name] = round(100 * total[0] / total[1], 4)
    if args.json:
        length, rows = sum(map(len, audio)) / recordings.rate, []
        for path, given in options.items():
            row = {"system": Path(path).name}
            if path in args.out:
                int8 = told[args.out.index(path)]["int8"]
                row = {"system": Path(args.model_dir).name, "form": f"ONNX, int8 {int8}" if int8 else "ONNX",
                       "wer": rates[f"ONNX {int8 or 'fp32'}"]}
            rows.append({**row, **whole_recognition(path, args.graph_dir, given, audio, length, args.repeats),
                         **starts[path]})
        write_text(args.json, json.dumps({
            "kind": "deployment", "sets": [Path(each).name for each in args.data], "processor": processor(),
            "cores": os.cpu_count(), "written": time.strftime("%Y-%m-%d"),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)], "utterances": len(audio), "chunk_ms": CHUNK_MS,
            "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    script(main)
