#!/usr/bin/env python3
"""Times k2, kaldi-decoder and, where KALDI_ROOT has it, latgen-faster-mapped on the same graph and scores.

    benchmarks/decoding.py --seconds 120 --beams 10,12 exp/mini data/mini       # after ./run.sh up to stage 9

Prints a Markdown table: WER, utterances with the very words of kaldi-decoder, CPU seconds of one core per second of
audio beyond starting, CPU seconds of starting. Each decoder is a process of its own on one thread; what it takes for
the first utterance alone is subtracted, with that utterance's duration, and the rest of that is its start. Runs
alternate between the decoders; the smallest of --repeats counts, since other work on the machine only adds.

--part asks other questions: "long" decodes one utterance of --seconds of the scores, whole and in pieces, "sweep" tries
the whole grid of a sweep and decodes at each scale, "rescoring" rescores lattices of a bigram's graph by a trigram,
both of the text of DATA.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from kaldi_files import transition_model_text
from measure import ESSENCE, ROOT, measured, script

from essence_kd.hmm.fst import make_fst, write_fst
from essence_kd.hmm.graph import load_graph
from essence_kd.io.errors import UserError
from essence_kd.io.tables import MatrixWriter, read_matrices
from essence_kd.io.text import read_words
from essence_kd.score.wer import score

LATTICE_BEAM, MAX_ACTIVE, MIN_ACTIVE = 5, 7000, 30


class Bench:
    """The decoders' common inputs in a scratch folder, and how each of them is called."""

    def __init__(self, exp: Path, data: Path, args, here: Path):
        self.graph_dir, self.here = exp / "graph", here
        self.graph = load_graph(self.graph_dir / "graph.npz")
        system, test_set, seconds, scale = args.system, args.set, args.seconds, args.acoustic_scale
        if scale is None:
            chosen = exp / ("gmm/sweep/sweep.json" if system == "gmm" else "scales/networks.json")
            scale = json.loads(chosen.read_text())["best"]["acoustic_scale"]
        self.scale = scale
        whole = args.scores or f"ark:{here}/whole.ark"
        if system == "gmm" and not args.scores:
            measured([*ESSENCE, "gmm-scores", "--frame-subsampling-factor",
                      self.graph.meta["frame_subsampling_factor"], data / test_set, exp / "gmm", whole])
        elif not args.scores:
            measured([*ESSENCE, "forward", exp / system, data / f"{test_set}_hires", whole])
        shift = self.graph.frame_shift_ms / 1000
        self.audio, kept = {"one": 0.0, "all": 0.0}, []
        with MatrixWriter(f"ark:{here}/all.ark") as every, MatrixWriter(f"ark:{here}/one.ark") as first:
            for utt, matrix in read_matrices(whole):
                if not kept:
                    first.write(utt, matrix)
                    self.audio["one"] = len(matrix) * shift
                every.write(utt, matrix)
                kept.append(utt)
                self.audio["all"] += len(matrix) * shift
                if self.audio["all"] >= seconds:
                    break
        if len(kept) < 2:
            raise UserError(f"{data / test_set}: has one utterance in its first {seconds:g} s; give more --seconds")
        text = read_words(data / test_set / "text")
        self.reference = {utt: text[utt] for utt in kept}
        self.backends = ([] if args.without_k2 else [("k2", "k2")]) + [("kaldi-decoder", "kaldi")]
        self.kaldi = None
        program = Path(os.environ["KALDI_ROOT"] or "/nowhere") / "src" / "bin" / "latgen-faster-mapped"
        if program.exists():
            self.kaldi = program
            graph = self.graph
            write_fst(here / "graph.fst", make_fst(graph.src, graph.dst, graph.ilabel, graph.olabel, graph.weight,
                                                   graph.final))
            # transition-id i stands for pdf-id i - 1, as the input labels of the graph do
            topo = {phone: [[(1, 1.0)]] for phone in range(1, graph.num_pdfs + 1)}
            (here / "pdf.mdl").write_text(transition_model_text(topo, [(phone, 0, phone - 1) for phone in topo]))

    def commands(self, beam: float, archive: str, out: Path) -> dict[str, list]:
        """Decoder -> command that writes its words as ``out/NAME/hyp.txt``."""
        scores = f"ark:{self.here / archive}.ark"
        shared = {"acoustic-scale": self.scale, "beam": beam, "max-active": MAX_ACTIVE, "min-active": MIN_ACTIVE}
        options = [f"--{name}={value}" for name, value in shared.items()]
        commands = {name: [*ESSENCE, "decode", "--decoder", backend, *options, f"--output-beam={LATTICE_BEAM}",
                           "--active-rows=0", "--frame-shift-ms", self.graph.frame_shift_ms, self.graph_dir, scores,
                           out / name]
                    for name, backend in self.backends}
        if self.kaldi:
            for name, determinize in (("latgen-faster-mapped", "true"), ("the same, lattices as they are", "false")):
                (out / name).mkdir(parents=True, exist_ok=True)
                commands[name] = [self.kaldi, *options, f"--lattice-beam={LATTICE_BEAM}", "--allow-partial=false",
                                  f"--determinize-lattice={determinize}", self.here / "pdf.mdl",
                                  self.here / "graph.fst", scores, "ark:/dev/null", f"ark,t:{out / name}/ids.txt"]
        return commands

    def words(self, out: Path, name: str) -> dict:
        """A decoder's words by utterance; latgen-faster-mapped writes word-ids, and nothing where it found no path."""
        if (out / name / "ids.txt").exists():
            ids = read_words(out / name / "ids.txt")
            found = {utt: [str(self.graph.words[int(i)]) for i in line] for utt, line in ids.items()}
        else:
            found = read_words(out / name / "hyp.txt")
        return {utt: list(found.get(utt, [])) for utt in self.reference}

    def active_states(self, beam: float, out: Path) -> dict[str, float]:
        """Decoder -> states (tokens) that its search holds active, on average over rows, where it tells."""
        active, commands = {}, self.commands(beam, "all", out)
        if "k2" in commands:
            measured([*commands["k2"], "--active-rows=500"])
            active["k2"] = json.loads((out / "k2" / "decode.json").read_text())["active_states_per_frame"]
        if self.kaldi:
            name = "latgen-faster-mapped"
            program, *rest = map(str, commands[name])
            told = subprocess.run([program, "--verbose=6", *rest], capture_output=True, text=True, check=True).stderr
            active[name] = np.mean([int(n) for n in re.findall(r"tokens active on frame \d+ is (\d+)", told)])
        return active


def compare(bench: Bench, beams: list, repeats: int) -> None:
    """All decoders that are there, at each beam."""
    print("| beam | decoder | WER | same words | CPU s per second | of latgen-faster-mapped | start, CPU s | "
          "active states per row |\n|---|---|---|---|---|---|---|---|", flush=True)
    for beam in beams:
        out = bench.here / f"beam{beam:g}"
        least: dict = {}
        for _ in range(repeats):
            for archive in ("one", "all"):
                for name, command in bench.commands(beam, archive, out).items():
                    took = measured(command).cpu
                    least[name, archive] = min(took, least.get((name, archive), took))
        names = list(bench.commands(beam, "all", out))
        length = bench.audio["all"] - bench.audio["one"]
        rtf = {name: (least[name, "all"] - least[name, "one"]) / length for name in names}
        hyps = {name: bench.words(out, name) for name in names}
        active = bench.active_states(beam, out)
        for name in names:
            ratio = f"{rtf[name] / rtf['latgen-faster-mapped']:.2f}" if bench.kaldi else ""
            same = sum(hyps[name][utt] == words for utt, words in hyps["kaldi-decoder"].items())
            print(f"| {beam:g} | {name} | {score(bench.reference, hyps[name]).total.wer:.2f} % | "
                  f"{same} of {len(bench.reference)} | {rtf[name]:.4f} | {ratio} | "
                  f"{least[name, 'one'] - bench.audio['one'] * rtf[name]:.2f} | "
                  f"{f'{active[name]:.0f}' if name in active else ''} |",
                  flush=True)


def long_audio(bench: Bench, beam: float, seconds: float) -> None:
    """One utterance of ``seconds``: the rows of the scores, again and again."""
    rows = np.concatenate([matrix for _, matrix in read_matrices(f"ark:{bench.here}/all.ark")])
    wanted = int(seconds * 1000 / bench.graph.frame_shift_ms)
    with MatrixWriter(f"ark:{bench.here}/long.ark") as writer:
        writer.write("long", np.tile(rows, (-(-wanted // len(rows)), 1))[:wanted])
    print(f"One utterance of {seconds:g} s, {wanted} rows; beam {beam:g}\n\n"
          "| decoder | words | CPU s | MB |\n|---|---|---|---|")
    for name, command in bench.commands(beam, "long", bench.here / "long").items():
        if name in dict(bench.backends):
            words = {}
            for how, option in (("whole", "--piece-seconds=0"), ("in pieces", "--piece-seconds=600")):
                cpu, _, megabytes = measured([*command, option])
                words[how] = read_words(bench.here / "long" / name / "hyp.txt")["long"]
                print(f"| {name}, {how} | {len(words[how])} | {cpu:.1f} | {megabytes:,.0f} |", flush=True)
            differ = score({"": words["whole"]}, {"": words["in pieces"]}).total.errors
            print(f"| words that differ | {differ} | | |", flush=True)


def sweeps(bench: Bench, beam: float) -> None:
    """A sweep by each decoder, and whether what the first one's says of a scale is what decoding there finds."""
    text, out = bench.here / "text", bench.here / "sweep"
    text.write_text("".join(" ".join([utt, *words]) + "\n" for utt, words in bench.reference.items()))
    print("| decoder | settings | CPU s | best scale | best penalty | WER |\n|---|---|---|---|---|---|")
    commands, tables = bench.commands(beam, "all", out), {}
    for name, _ in bench.backends:
        cpu = measured([*commands[name], "--config", ROOT / "conf" / "decode.yaml", "--sweep", text]).cpu
        tables[name] = json.loads((out / name / "sweep.json").read_text())
        best = tables[name]["best"]
        print(f"| {name} | {len(tables[name]['points'])} | {cpu:.1f} | {best['acoustic_scale']} | "
              f"{best['word_insertion_penalty']} | {best['wer']:.2f} % |", flush=True)
    name = bench.backends[0][0]
    penalty = tables[name]["best"]["word_insertion_penalty"]
    print(f"\n| scale, penalty {penalty:g} | WER by {name}'s sweep | decoded |\n|---|---|---|")
    for point in tables[name]["points"]:
        if point["word_insertion_penalty"] == penalty:
            measured([*commands[name], f"--acoustic-scale={point['acoustic_scale']}",
                      f"--word-insertion-penalty={penalty}"])
            found = score(bench.reference, bench.words(out, name)).total.wer
            print(f"| {point['acoustic_scale']} | {point['wer']:.2f} % | {found:.2f} % |", flush=True)


def rescoring(bench: Bench, beam: float, exp: Path, data: Path) -> None:
    """A bigram graph, its lattices rescored by a trigram, and the graph of that, all of the text of DATA."""
    here, meta, models = bench.here, bench.graph.meta, {}
    text = data / "lm_text" if (data / "lm_text").exists() else data / "train" / "text"
    for name, order in (("trigram", 3), ("bigram", 2)):
        lang, models[name] = here / f"lang_{name}", here / f"{name}.arpa.gz"
        shutil.copytree(data / "lang", lang)
        measured([*ESSENCE, "train-lm", "--order", order, "--words", lang / "words.txt", text, models[name]])
        measured([*ESSENCE, "make-grammar", models[name], lang])
        measured([*ESSENCE, "make-graph", "--frame-subsampling-factor", meta["frame_subsampling_factor"],
                  "--transition-scale", meta["transition_scale"], "--ali-dir", exp / "ali", lang, exp / "gmm",
                  here / name])
    decode = bench.commands(beam, "all", here / "out")[bench.backends[0][0]][:-3]  # but for graph, scores and folder
    larger, first = ["--old-lm", models["bigram"], "--new-lm", models["trigram"]], None
    print("| decoded with | arcs | WER | words of the first | CPU s |\n|---|---|---|---|---|")
    for name, graph, options in (("graph of the trigram", here / "trigram", []),
                                 ("graph of the bigram", here / "bigram", []),
                                 ("graph of the bigram, rescored by the trigram", here / "bigram", larger)):
        cpu = measured([*decode, *options, graph, f"ark:{here}/all.ark", here / "out" / name]).cpu
        found = bench.words(here / "out", name)
        first = first or found
        print(f"| {name} | {load_graph(graph / 'graph.npz').num_arcs} | "
              f"{score(bench.reference, found).total.wer:.2f} % | "
              f"{sum(found[utt] == first[utt] for utt in found)} of {len(found)} | {cpu:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path, help="exp/CORPUS with graph, systems and scales/")
    parser.add_argument("data", type=Path, help="data/CORPUS")
    parser.add_argument("--system", default="baseline", help="whose scores: a directory of EXP, or gmm (%(default)s)")
    parser.add_argument("--set", default="eval_swbd", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of audio, from the set's beginning (%(default)s)")
    parser.add_argument("--beams", default="10,12", help="(%(default)s)")
    parser.add_argument("--acoustic-scale", type=float, help="default: what stage 9 chose")
    parser.add_argument("--scores", metavar="RSPECIFIER", help="these, not those of --system")
    parser.add_argument("--part", choices=("decoders", "long", "sweep", "rescoring"), default="decoders",
                        help="(%(default)s)")
    parser.add_argument("--without-k2", action="store_true")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="essence-bench-") as scratch:
        bench = Bench(args.exp, args.data, args, Path(scratch))
        graph = bench.graph
        print(f"{bench.graph_dir}: {graph.num_states} states, {graph.num_arcs} arcs; {args.scores or args.system} on "
              f"{bench.audio['all']:.0f} s of {args.set}, acoustic scale {bench.scale}, max-active "
              f"{MAX_ACTIVE}, lattice beam {LATTICE_BEAM}\n")
        beams = [float(b) for b in args.beams.split(",")]
        if args.part == "decoders":
            compare(bench, beams, args.repeats)
        elif args.part == "long":
            long_audio(bench, beams[0], args.seconds)
        elif args.part == "sweep":
            sweeps(bench, beams[0])
        else:
            rescoring(bench, beams[0], args.exp, args.data)


if __name__ == "__main__":
    script(main)
