#!/usr/bin/env python3
"""Compares exports of the format onnx with the model in PyTorch: bytes, processor time, scores, word errors.

    benchmarks/deployment.py exp/mini/student_essence exp/mini/graph data/mini/eval_swbd data/mini/eval_che --out OUT...

Prints a Markdown table. Times are those of the network alone, one utterance at a time on one thread: features of the
first set are in memory, and passes alternate between the systems; the smallest of --repeats counts. Words are found by
kaldi-decoder with the settings of the first OUT.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measure import script

import essence_kd
from essence_kd.corpus.features import hires_dir
from essence_kd.decode.lattice import edit_distance
from essence_kd.export.onnx_file import scorer
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.tables import read_matrices
from essence_kd.io.text import read_words


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("graph_dir", metavar="GRAPH_DIR")
    parser.add_argument("data", metavar="DATA", nargs="+", help="sets, whose features lie in DATA_hires")
    parser.add_argument("--out", metavar="OUT", nargs="+", required=True, help="of essence export --format onnx")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    told = [json.loads((Path(out) / "export.json").read_text(encoding="utf-8")) for out in args.out]
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
        cells = []
        for data in args.data:
            ref = words[data]
            errors = sum(edit_distance(ref[utt], found[data].get(utt, [])) for utt in ref)
            equal = sum(found[data][utt] == reference["words"][data][utt] for utt in found[data])
            cells += [f"{100 * errors / sum(map(len, ref.values())):.2f}", f"{equal} of {len(found[data])}"]
        print(f"| {name} | {path.stat().st_size:,} | {1000 * spent[name] / seconds:.3f} | "
              f"{spent['PyTorch'] / spent[name]:.2f} | {worst:.2g} | {100 * same:.1f} % | {' | '.join(cells)} |")
        sys.stdout.flush()


if __name__ == "__main__":
    script(main)
