"""Decoding with a compiled Kaldi: latgen-faster-mapped on HCLG.fst, lattices, and what Kaldi's tools make of them.

A graph directory holds what the other decoders read (graph.npz, words.txt) and what Kaldi's programs read: HCLG.fst,
final.mdl and phones/word_boundary.int. Costs are those of decode.lattice: graph + penalty per word - scale x score, in
the search, too, as with the other decoders: Kaldi's own scripts add the penalty to lattices alone, whose best path may
be lost by then. The lattices that are kept do not have it in their costs.

Scores of a job may be lattices that Kaldi's scripts made of its data directory's utterances,
``lat:gunzip -c DIR/lat.*.gz |``: only their best paths are taken then.
"""
from __future__ import annotations

import collections
import json
import shlex
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

from essence_kd.decode.checks import check_scores, ctm_places, fit_rates
from essence_kd.decode.decoder import ArchiveDecoder, Job, Request, register_decoder
from essence_kd.decode.lattice import edit_distance
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.sweeps import is_far, read_best, sweep_table, write_sweep
from essence_kd.hmm.fst import read_fst, write_fst
from essence_kd.hmm.graph import load_graph
from essence_kd.io.data_dir import read_table
from essence_kd.io.errors import UserError, ended
from essence_kd.io.pipes import check_pipe
from essence_kd.io.provenance import write_text
from essence_kd.io.tables import MatrixWriter, read_matrices
from essence_kd.io.text import split

LATTICES = "lat:"  # a job's scores that begin so are the rxfilename of lattices that are there already


def const_arpa_order(path: str | Path) -> int:
    """The order of the n-gram in a G.carpa (Kaldi's lm/const-arpa-lm.cc); UserError for anything else."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; utils/build_const_arpa_lm.sh makes it") from None
    start = b"\0B<ConstArpaLm> <LmInfo> "  # then bos, eos, unk and the order: a byte 4 and an int32 each
    if not head.startswith(start) or len(head) < len(start) + 20:
        raise UserError(f"{path}: not a G.carpa, which utils/build_const_arpa_lm.sh makes of an ARPA file")
    return struct.unpack_from("<i", head, len(start) + 16)[0]


@dataclass
class _Set:
    """A job on its way: places in recordings, utterances in order, rows of scores, where its lattices are, seconds."""

    job: Job
    places: Dict[str, Tuple[str, str, float]]
    order: List[str] = field(default_factory=list)
    rows: int = 0
    empty: List[str] = field(default_factory=list)
    lattices: str = ""
    seconds: float = 0.0


@register_decoder
class KaldiLatticeDecoder(ArchiveDecoder):
    """Decodes jobs by Kaldi's programs, one after the other. UserError where the graph directory lacks a file."""

    name = "kaldi-lattice"

    def __init__(self, graph_dir: str | Path, options: DecodeOptions, nj: int = 1):
        super().__init__(graph_dir, options, nj)
        if nj != 1:
            raise UserError(f"--decoder {self.name} decodes in one process: leave out --nj and share out the sets")
        check_pipe("latgen-faster-mapped", f"--decoder {self.name} is made of pipes of Kaldi's programs")
        for name in ("graph.npz", "HCLG.fst", "final.mdl", "phones/word_boundary.int"):
            if not (self.dir / name).exists():
                raise UserError(f"{self.dir / name}: missing; stage 9 with --engine kaldi makes a graph that Kaldi's "
                                "programs read")
        self.graph = load_graph(self.dir / "graph.npz")
        self._scratch = tempfile.TemporaryDirectory(prefix="essence-hclg-")

    def __exit__(self, kind, *exc) -> None:
        self._scratch.cleanup()

    def _search_graph(self, penalty: float) -> Path:
        """HCLG.fst, or a copy of it (one a penalty) in which every word costs the penalty more."""
        path = self.dir / "HCLG.fst"
        if penalty:
            copy = Path(self._scratch.name) / f"{penalty}.fst"
            if not copy.exists():
                fst = read_fst(path)
                write_fst(copy, replace(fst, weight=fst.weight + np.float32(penalty) * (fst.olabel > 0)))
            path = copy
        return path

    # .. pipes

    def _run(self, what: str, commands: List[List[str]], log: Path, feed=None) -> str:
        """Standard output of a pipe of commands; feed(wspecifier) writes what it reads. UserError names the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        line = " | ".join(" ".join(shlex.quote(word) for word in command) for command in commands)
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"# {line}\n")
            stream.flush()
            if feed is not None:
                try:
                    feed(f"ark:| {line} 2>>{shlex.quote(str(log))}")
                    return ""
                except UserError as error:
                    raise UserError(f"{what} failed ({error}); log: {log}") from None
            done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=stream)
        if done.returncode:
            raise UserError(f"{what} {ended(done.returncode)}; log: {log}")
        return done.stdout.decode("utf-8")

    def _rescored(self, progress: _Set, scale: float, penalty: float) -> List[List[str]]:
        return [["lattice-scale", f"--acoustic-scale={scale}", f"ark:{progress.lattices}", "ark:-"],
                ["lattice-add-penalty", f"--word-ins-penalty={penalty}", "ark:-", "ark:-"]]

    # .. lattices

    def _load(self, job: Job, options: DecodeOptions) -> _Set:
        """The lattices of a job: made of its scores, or those that it names."""
        progress = _Set(job, ctm_places(job.data_dir) if job.data_dir else {})
        if job.scores.startswith(LATTICES):
            if job.data_dir is None:
                raise UserError(f"{job.scores}: lattices that are there already need "
                                "the data directory of their utterances")
            progress.lattices = job.scores[len(LATTICES):]
            frames = read_table(Path(job.data_dir) / "utt2num_frames")
            progress.order, progress.rows = list(frames), sum(int(n) for n in frames.values())
            return progress
        out = Path(job.out_dir)
        out.mkdir(parents=True, exist_ok=True)
        target, penalty = out / "lat.gz", options.word_insertion_penalty
        hclg = self._search_graph(penalty)
        repeat = fit_rates(job.scores, options, self.graph, self.dir / "graph.npz").repeat_rows

        def feed(wspecifier: str) -> None:
            with MatrixWriter(wspecifier) as writer:
                for utt, matrix in read_matrices(job.scores):
                    matrix = check_scores(matrix, utt, job.scores, self.graph, self.dir / "graph.npz")
                    progress.order.append(utt)
                    progress.rows += len(matrix) * repeat
                    if len(matrix):
                        writer.write(utt, np.repeat(matrix / np.float32(repeat), repeat, axis=0))
                    else:
                        progress.empty.append(utt)

        begin = time.perf_counter()
        self._run(f"decoding {job.scores}", [[
            "latgen-faster-mapped", f"--acoustic-scale={options.acoustic_scale}", f"--beam={options.beam}",
            f"--lattice-beam={options.output_beam}", f"--max-active={options.max_active}",
            f"--min-active={options.min_active}", "--allow-partial=true", str(self.dir / "final.mdl"),
            str(hclg), "ark:-",
            f"ark:|lattice-add-penalty --word-ins-penalty={-penalty} ark:- ark:- | "
            f"gzip -c >{shlex.quote(str(target))}"]],
            out / "log" / "decode.log", feed)
        progress.seconds = time.perf_counter() - begin
        if not progress.order:
            raise UserError(f"{job.scores}: there are no utterances in it")
        progress.lattices = f"gunzip -c {shlex.quote(str(target))} |"
        return progress

    def _swap_grammar(self, progress: _Set, new_lm: str) -> None:
        """The new grammar's costs in the place of the old one's, as steps/lmrescore_const_arpa.sh does."""
        out = Path(progress.job.out_dir)
        out.mkdir(parents=True, exist_ok=True)
        target = shlex.quote(str(out / "lat_rescored.gz"))
        begin = time.perf_counter()
        self._run("rescoring lattices", [
            ["lattice-lmrescore", "--lm-scale=-1.0", f"ark:{progress.lattices}",
             f"{self._scratch.name}/G.fst", "ark:-"],
            ["lattice-lmrescore-const-arpa", "--lm-scale=1.0", "ark:-", new_lm, f"ark:|gzip -c >{target}"]],
            out / "log" / "rescore.log")
        if progress.seconds:  # else the lattices were there already and nobody knows what they took
            progress.seconds += time.perf_counter() - begin
        progress.lattices = f"gunzip -c {target} |"

    # .. words

    def _words(self, progress: _Set, scale: float, penalty: float) -> Dict[str, np.ndarray]:
        """Word-ids of the best paths."""
        text = self._run("lattice-best-path", [*self._rescored(progress, scale, penalty),
                                               ["lattice-best-path", "ark:-", "ark,t:-"]],
                         Path(progress.job.out_dir) / "log" / "best_path.log")
        words = {}
        for line in text.split("\n")[:-1]:
            utt, *ids = split(line)
            words[utt] = np.array(ids, dtype=np.int32)
        return words

    def _ctm(self, progress: _Set, scale: float, penalty: float) -> List[str]:
        """Lines "file channel start duration word" of the best paths, in recordings' times where the job has data."""
        boundary = self.dir / "phones" / "word_boundary.int"
        shift = self.graph.frame_shift_ms / 1000
        text = self._run("nbest-to-ctm", [
            *self._rescored(progress, scale, penalty), ["lattice-1best", "ark:-", "ark:-"],
            ["lattice-align-words", str(boundary), str(self.dir / "final.mdl"), "ark:-", "ark:-"],
            ["nbest-to-ctm", f"--frame-shift={shift}", "ark:-", "-"]], Path(progress.job.out_dir) / "log" / "ctm.log")
        lines: List[Tuple[str, str, float, str]] = []
        for line in text.split("\n")[:-1]:
            utt, _, start, length, word = split(line)[:5]
            reco, channel, offset = progress.places.get(utt, (utt, "1", 0.0))
            lines.append((reco, channel, offset + float(start), f"{float(length):.2f} {self.graph.words[int(word)]}"))
        if progress.places:
            lines.sort(key=lambda entry: entry[:3])
        return [f"{reco} {channel} {start:.2f} {rest}" for reco, channel, start, rest in lines]

    # .. jobs

    def decode(self, jobs: List[Job], request: Request | None = None) -> List[dict]:
        """Lattices, hyp.txt, hyp.ctm and decode.json of every job.

        ``request.old_lm`` is the graph's G.fst, ``new_lm`` the G.carpa that takes its place in the lattices.
        """
        request, rescoring = request or Request(), None
        if request.n_best or request.lattices or request.lm_scale != 1:
            raise UserError(f"--n-best, --lattices and --lm-scale do not go with --decoder {self.name}, which leaves "
                            "lat.gz")
        if request.old_lm is not None:
            rescoring = {"method": "lattice", "old_lm": request.old_lm, "new_lm": request.new_lm,
                         "order": const_arpa_order(request.new_lm)}
            # projected here: fstproject's option has another name in every other OpenFst
            old = read_fst(request.old_lm)
            write_fst(Path(self._scratch.name) / "G.fst", replace(old, ilabel=old.olabel))
        reports = []
        for job in jobs:
            options = self.options if job.scale_from is None else replace(self.options, **read_best(job.scale_from))
            progress = self._load(job, options)
            if rescoring:
                self._swap_grammar(progress, request.new_lm)
            reports.append(self._write(progress, options, rescoring))
        return reports

    def _write(self, progress: _Set, options: DecodeOptions, rescoring: dict | None = None) -> dict:
        scale, penalty = options.acoustic_scale, options.word_insertion_penalty
        out, words = Path(progress.job.out_dir), self._words(progress, scale, penalty)
        out.mkdir(parents=True, exist_ok=True)
        lost = [utt for utt in progress.order if utt not in words and utt not in progress.empty]
        audio = progress.rows * self.graph.frame_shift_ms / 1000
        report = {
            "decoder": self.name, "graph": str(self.dir / "HCLG.fst"), "num_pdfs": self.graph.num_pdfs,
            "tree_hash": self.graph.meta.get("tree_hash"), "scores": progress.job.scores, "acoustic_scale": scale,
            "word_insertion_penalty": penalty, "beam": self.options.beam, "output_beam": self.options.output_beam,
            "max_active": self.options.max_active, "num_utts": len(progress.order), "num_frames": progress.rows,
            "num_words": int(sum(len(w) for w in words.values())), "audio_seconds": round(audio, 3),
            "decode_seconds": round(progress.seconds, 3),
            "rtf": round(progress.seconds / audio, 5) if audio and progress.seconds else None, "no_path": len(lost),
            "no_path_utts": lost, "empty_audio": len(progress.empty), "empty_audio_utts": progress.empty,
            "rescoring": rescoring}
        texts = {
            "hyp.txt": "".join(" ".join([utt, *self.graph.words[words.get(utt, np.zeros(0, np.int32))]]) + "\n"
                               for utt in progress.order),
            "hyp.ctm": "".join(line + "\n" for line in self._ctm(progress, scale, penalty)),
            "decode.json": json.dumps(report, indent=1) + "\n"}
        for name, text in texts.items():
            write_text(out / name, text)
        return report

    def sweep(self, jobs: List[Job], reference: Dict[str, List[str]], pooled=None, only: bool = False) -> List[dict]:
        """A sweep.json for every job and, but with ``only``, its decoding at the best setting; ``pooled`` is refused.

        As with k2, one lattice per utterance serves the whole grid; where the best scale is far from the one that
        it was made at, the lattices are made once more there.
        """
        if pooled is not None:
            raise UserError(f"--pooled does not go with --decoder {self.name}; essence pool-sweeps adds its sweeps")
        tables = []
        for job in jobs:
            options = replace(self.options, output_beam=self.options.sweep_output_beam)
            progress = self._load(job, options)
            table = self._grid(progress, reference)
            best = table["best"]["acoustic_scale"]
            if not job.scores.startswith(LATTICES) and is_far(best, self.options.acoustic_scale):
                progress = self._load(job, replace(options, acoustic_scale=best))
                table = self._grid(progress, reference)
            path = Path(job.out_dir) / "sweep.json"
            write_sweep(path, table, self.name, self.dir / "HCLG.fst")
            if not only:
                self._write(progress, replace(self.options, **read_best(path)))
            tables.append(table)
        return tables

    def _grid(self, progress: _Set, reference: Dict[str, List[str]]) -> dict:
        unknown = [utt for utt in progress.order if utt not in reference]
        if unknown:
            raise UserError(f"{progress.job.scores}: utterance '{unknown[0]}' is not in "
                            "the reference text of the sweep")
        errors: collections.Counter = collections.Counter()
        for scale in self.options.sweep_scales:
            for penalty in self.options.sweep_penalties:
                words = self._words(progress, scale, penalty)
                for utt, ref in reference.items():
                    hyp = list(self.graph.words[words[utt]]) if utt in words else []
                    errors[scale, penalty] += edit_distance(ref, hyp)
        return sweep_table(dict(errors), sum(len(ref) for ref in reference.values()))
