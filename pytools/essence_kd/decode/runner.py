"""Decoding whole score archives: checks, batches by duration, processes, and the files that come out.

Several sets are decoded in one go (:class:`Job`), so that the graph is loaded once a process. Every utterance of the
scores comes out, in the order of the scores; those without a path have an empty hypothesis and are counted and named.
"""
from __future__ import annotations

import collections
import dataclasses
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np

from essence_kd.decode.lattice import (Hypothesis, ctm_lines, edit_distance, empty_hypothesis, hypothesis, label_frames,
                                       lattice_lines, n_best)
from essence_kd.decode.options import LAST_ROWS, Decoded, DecodeOptions
from essence_kd.decode.pieces import first_rows, joined, joined_lists, silence_pdfs
from essence_kd.decode.rescoring import Entry, Rescorer
from essence_kd.hmm.graph import Graph, load_graph
from essence_kd.io.data_dir import DataDir
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import check_match, read_sidecar, sidecar_path, write_text
from essence_kd.io.tables import read_matrices

_BUFFER_CELLS = 1 << 26  # score cells that are held to sort utterances by duration: 256 MiB of float32
_BATCH_CELLS = 1 << 25  # score cells of one batch, padding included
NEAR = 1.75  # lattices made at one acoustic scale serve a sweep whose best scale is at most this factor away
_SILENCE_MS = 500  # of silence around a cut of a long utterance
_PROCESS_BATCH_ROWS = 500  # rows of one batch where several processes share the work
_RUN_UP = 100  # rows decoded before the one whose active states are counted


@dataclass
class Job:
    """One archive to decode: scores (rspecifier of float matrices (T, C)) into a directory.

    ``scale_from``: a sweep.json whose best acoustic scale and word insertion penalty replace the options'.
    ``data_dir``: a data directory whose segments and reco2file_and_channel turn the CTM's times into times of
    recordings; without it every utterance is its own recording, channel 1.
    """

    scores: str
    out_dir: Path
    scale_from: "Path | None" = None
    data_dir: "Path | None" = None


@dataclass
class Request:
    """What is wanted besides words and times: lists of so many word sequences, lattices.

    ``rescorer`` chooses among the ``rescore_n_best`` best word sequences. ``reference``: utterance -> words, for a
    sweep.
    """

    n_best: int = 0
    lattices: bool = False
    rescorer: "Rescorer | None" = None
    rescore_n_best: int = 100
    reference: "dict[str, list[str]] | None" = None


@dataclass
class _Task:
    """A batch of one job for one process; ``pieces``: (utterance, number of its piece).

    ``count``: instead of decoding, count the states that are active after the last row of each matrix.
    """

    job: int
    pieces: list
    batch: list
    options: DecodeOptions
    n_best: int
    lattices: bool
    sweep: bool
    count: bool = False


@dataclass
class _Outcome:
    """What a process answers for one utterance or a piece of one."""

    hyp: Hypothesis
    found: bool
    retried: bool = False
    states: "int | None" = None
    arcs: "int | None" = None
    n_best: list = field(default_factory=list)  # of Entry
    lattice: list = field(default_factory=list)  # lines
    sweep: list = field(default_factory=list)  # [scale][penalty] of word-ids


# --- one process -----------------------------------------------------------------------------------------------

def make_decoder(graph: Graph, backend: str, options: DecodeOptions):
    """The decoder named ``backend``: "k2" or "kaldi"."""
    if backend == "k2":
        from essence_kd.decode.k2_decoder import K2Decoder
        return K2Decoder(graph, options)
    from essence_kd.decode.kaldi_decoder import KaldiDecoder
    return KaldiDecoder(graph, options)


def check_backend(backend: str) -> None:
    """UserError where the library of a backend cannot be imported."""
    if backend == "k2":
        from essence_kd.decode.k2_decoder import load_k2
        load_k2()
    else:
        from essence_kd.decode.kaldi_decoder import load_kaldi
        load_kaldi()


_decoder = None  # of a worker process


def _start_worker(graph_path: str, backend: str, options: DecodeOptions) -> None:
    global _decoder
    _decoder = make_decoder(load_graph(graph_path), backend, options)


def _work(task: _Task) -> tuple[list[_Outcome], float]:
    return _run_task(_decoder, task)


def _run_task(decoder, task: _Task) -> tuple[list, float]:
    """Decode a batch; the outcomes (or counts of active states) and the seconds it took."""
    begin = time.perf_counter()
    decoder.set_options(task.options)
    graph, options = decoder.graph, task.options
    batch, repeat = task.batch, task.options.repeat_rows
    if repeat > 1:
        batch = [np.repeat(scores / np.float32(repeat), repeat, axis=0) for scores in batch]
    if task.count:
        return decoder.active_states(batch), 0.0
    if task.sweep:
        grids = decoder.sweep(batch, options.sweep_scales, options.sweep_penalties)
        outcomes = [_Outcome(empty_hypothesis(), True, sweep=grid) for grid in grids]
        return outcomes, time.perf_counter() - begin
    outcomes = []
    for answer in decoder.decode(batch, lattices=task.lattices or task.n_best > 0):
        outcomes.append(_outcome(graph, answer, task))
    return outcomes, time.perf_counter() - begin


def _outcome(graph: Graph, answer: Decoded, task: _Task) -> _Outcome:
    found = answer.path is not None
    hyp = hypothesis(graph, answer.path, answer.occurrences) if found else empty_hypothesis()
    outcome = _Outcome(hyp, found, answer.retried, answer.states, answer.arcs)
    if answer.lattice is not None:
        scale, penalty = task.options.acoustic_scale, task.options.word_insertion_penalty
        if task.n_best:
            outcome.n_best = [Entry(cost, hypothesis(graph, path, None), label_frames(graph, path))
                              for cost, path in n_best(answer.lattice, graph, task.n_best, scale, penalty)]
        if task.lattices:
            outcome.lattice = lattice_lines(answer.lattice, graph, penalty)
    return outcome


# --- checks and batches ----------------------------------------------------------------------------------------

def check_graph(graph: Graph, path) -> None:
    """UserError where the graph names words that words.txt lacks, or pdfs beyond num_pdfs."""
    if graph.num_arcs and int(graph.olabel.max()) >= len(graph.words):
        raise UserError(f"{path}: word-id {int(graph.olabel.max())} is on an arc, but the graph's words.txt ends at "
                        f"{len(graph.words) - 1}: graph and words.txt belong to different langs; make the graph again")
    if graph.num_arcs and int(graph.ilabel.max()) > graph.num_pdfs:
        raise UserError(f"{path}: pdf-id {int(graph.ilabel.max()) - 1} is on an arc, but num_pdfs is "
                        f"{graph.num_pdfs}; make the graph again")


def check_scores(matrix: np.ndarray, utt: str, scores: str, graph: Graph, graph_path) -> np.ndarray:
    """Scores of one utterance as float32 (T, C), T possibly 0; UserError for what cannot be decoded.

    Minus infinity (the logarithm of zero) is kept possible to decode as -1e5 while a row has anything better.
    """
    matrix = np.asarray(matrix, np.float32)
    if matrix.size == 0:
        return np.zeros((0, graph.num_pdfs), np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != graph.num_pdfs:
        raise UserError(f"{scores}: utterance '{utt}' has {matrix.shape[-1]} columns, but the graph {graph_path} has "
                        f"{graph.num_pdfs} pdfs: model and graph belong to different trees; decode with the "
                        "graph made from the model's own alignments")
    if not np.isfinite(matrix.sum()):
        bad = np.isnan(matrix) | np.isposinf(matrix)
        if bad.any():
            row, column = (int(x) for x in np.argwhere(bad)[0])
            raise UserError(f"{scores}: utterance '{utt}' has {matrix[row, column]} in row {row}, column {column}; "
                            "the model that wrote it has diverged or the archive is damaged")
        if np.isneginf(matrix).all(axis=1).any():
            row = int(np.flatnonzero(np.isneginf(matrix).all(axis=1))[0])
            raise UserError(f"{scores}: utterance '{utt}' gives every pdf probability 0 in row {row}")
        matrix = np.maximum(matrix, np.float32(-1e5))
    return matrix


def fit_rates(scores: str, options: DecodeOptions, graph: Graph, graph_path) -> DecodeOptions:
    """The options with the frame shift of the scores and the repetitions that bring them to the graph's rate.

    UserError where the scores' sidecar, if there is one, tells another tree, width or frame shift, and where the scores
    cannot be brought to the graph's rate.
    """
    path = sidecar_path(scores)
    told = None
    if path is not None and Path(path).is_file():
        fields = {key: value for key, value in read_sidecar(path).items() if value is not None}
        mine = {"num_pdfs": graph.num_pdfs, "tree_hash": graph.meta.get("tree_hash")}
        check_match(path, fields, graph_path, mine, [key for key, value in mine.items() if value is not None])
        if options.frame_shift_ms:
            wanted = {"frame_shift_ms": options.frame_shift_ms}
            check_match(path, fields, "--frame-shift-ms", wanted, wanted)
        told = fields.get("frame_shift_ms")
    shift = options.frame_shift_ms or told or graph.frame_shift_ms * max(options.repeat_rows, 1)
    ratio = shift / graph.frame_shift_ms
    repeat = options.repeat_rows or round(ratio)
    if repeat < 1 or not options.repeat_rows and abs(ratio - repeat) > 1e-6:
        raise UserError(f"{scores}: has a row every {shift:g} ms, but the graph {graph_path} expects one every "
                        f"{graph.frame_shift_ms:g} ms; decode with a graph of the scores' rate")
    return dataclasses.replace(options, frame_shift_ms=shift, repeat_rows=repeat)


def ctm_places(data_dir) -> dict[str, tuple[str, str, float]]:
    """Utterance -> (recording, channel, start in seconds) of a data directory, as a CTM names them."""
    data = DataDir.load(data_dir)
    sides = {reco: value.split() for reco, value in data.extra.get("reco2file_and_channel", {}).items()}
    places = {}
    for utt, (reco, start, _) in data.utterances().items():
        side = sides.get(reco, [reco, "1"])
        if len(side) != 2:
            raise UserError(f"{data_dir}/reco2file_and_channel: recording '{reco}' has {len(side)} fields after it; "
                            "wanted a file and a channel")
        places[utt] = (side[0], side[1], start)
    return places


def cut_batches(lengths: list[int], width: int, max_rows: int) -> list[list[int]]:
    """Groups of utterance indices of like length whose padded size stays within bounds; longest first.

    A batch has at most ``max_rows`` rows and 2^25 cells, padding included, or is one utterance.
    """
    batches: list[list[int]] = []
    limit = max(1, min(max_rows, _BATCH_CELLS // max(width, 1)))
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class _RowSample:
    """Scores up to rows that lie evenly among those of a set: ``limit`` at most, half as many at least.

    The last rows of an utterance, at which k2's beam is wider, are left out.
    """

    def __init__(self, limit: int):
        self._limit, self._step, self._seen = limit, 1, 0
        self.kept: list[np.ndarray] = []

    def add(self, scores: np.ndarray) -> None:
        """Take in what is decoded in one go."""
        rows = max(0, len(scores) - LAST_ROWS)
        while self._limit and (row := len(self.kept) * self._step - self._seen) < rows:
            self.kept.append(scores[max(0, row + 1 - _RUN_UP):row + 1].copy())
            if len(self.kept) > self._limit:
                del self.kept[1::2]
                self._step *= 2
        self._seen += rows


# --- all of it -------------------------------------------------------------------------------------------------

class _SetInProgress:
    """Counts and results of one job until its files can be written."""

    def __init__(self, job: Job, options: DecodeOptions):
        self.job, self.options = job, options
        self.places = ctm_places(job.data_dir) if job.data_dir else {}
        self.order: list[str] = []
        self.rows: dict[str, int] = {}
        self.starts: dict[str, list[int]] = {}  # first rows of an utterance's pieces; [0]: it is whole
        self.outcomes: dict[tuple[str, int], _Outcome] = {}  # of pieces
        self.active: list[int] = []  # states after some rows
        self.seconds = 0.0

    def pieces(self, utt: str) -> list[_Outcome]:
        """The outcomes of an utterance's pieces, in order."""
        return [self.outcomes[utt, number] for number in range(len(self.starts[utt]))]

    def all_pieces(self) -> list[_Outcome]:
        """The outcomes of all pieces, in the order of the scores."""
        return [outcome for utt in self.order for outcome in self.pieces(utt)]

    def hyp(self, utt: str) -> Hypothesis:
        """The words of an utterance; times in rows of the graph."""
        return joined([o.hyp for o in self.pieces(utt)], self._graph_rows(utt))

    def n_best(self, utt: str, count: int) -> list[Entry]:
        """Its best word sequences."""
        return joined_lists([o.n_best for o in self.pieces(utt)], self._graph_rows(utt), count)

    def _graph_rows(self, utt: str) -> list[int]:
        return [start * self.options.repeat_rows for start in self.starts[utt]]


class Runner:
    """Decodes jobs with one backend in ``nj`` processes, which end with the context; ``graph_dir`` holds graph.npz."""

    def __init__(self, graph_dir, backend: str, options: DecodeOptions, nj: int = 1):
        options.check()
        self.graph_path = Path(graph_dir) / "graph.npz"
        self.graph = load_graph(self.graph_path)
        check_graph(self.graph, self.graph_path)
        self.backend, self.options, self.nj = backend, options, nj
        self._decoder = make_decoder(self.graph, backend, options) if nj == 1 else None
        self._pool: "ProcessPoolExecutor | None" = None
        if nj > 1:
            check_backend(backend)

    # .. tasks

    def _tasks(self, jobs: list[Job], sets: list[_SetInProgress], request: Request, sweep: bool) -> Iterator[_Task]:
        silence = silence_pdfs(self.graph)
        for number, (job, progress) in enumerate(zip(jobs, sets)):
            held: list[tuple[tuple[str, int], np.ndarray]] = []
            cells, options = 0, progress.options
            limit = round(options.piece_seconds * 1000 / options.frame_shift_ms) if not request.lattices else 0
            width = max(round(_SILENCE_MS / options.frame_shift_ms), 1)
            sample = _RowSample(options.active_rows if self.backend == "k2" and not sweep else 0)
            for utt, matrix in read_matrices(job.scores):
                if utt in progress.rows:
                    raise UserError(f"{job.scores}: utterance '{utt}' is there twice")
                matrix = check_scores(matrix, utt, job.scores, self.graph, self.graph_path)
                progress.order.append(utt)
                progress.rows[utt] = len(matrix)
                progress.starts[utt] = starts = first_rows(matrix, silence, limit or len(matrix), width)
                if progress.places and utt not in progress.places:
                    raise UserError(f"{job.data_dir}: utterance '{utt}' of {job.scores} is not in it")
                if sweep and utt not in request.reference:
                    raise UserError(f"{job.scores}: utterance '{utt}' is not in the reference text of the sweep")
                if not len(matrix):
                    nothing = [np.zeros(0, np.int32)] * len(self.options.sweep_penalties)
                    grid = [nothing] * len(self.options.sweep_scales)
                    progress.outcomes[utt, 0] = _Outcome(empty_hypothesis(), False, sweep=grid if sweep else [])
                    continue
                for n, piece in enumerate(np.split(matrix, starts[1:])):
                    held.append(((utt, n), piece))
                    sample.add(piece)
                cells += matrix.size
                if cells >= _BUFFER_CELLS:
                    yield from self._cut(number, held, options, request, sweep)
                    held, cells = [], 0
            if held:
                yield from self._cut(number, held, options, request, sweep)
            if not progress.order:
                raise UserError(f"{job.scores}: there are no utterances in it")
            for group in self._groups(sample.kept, options):
                yield _Task(number, [], [sample.kept[i] for i in group], options, 0, False, False, count=True)

    def _groups(self, batch: list[np.ndarray], options: DecodeOptions) -> list[list[int]]:
        rows = options.batch_rows or (self._decoder.batch_rows if self._decoder else _PROCESS_BATCH_ROWS)
        return cut_batches([len(m) * options.repeat_rows for m in batch], self.graph.num_pdfs, rows)

    def _cut(self, number: int, held, options: DecodeOptions, request: Request, sweep: bool) -> Iterator[_Task]:
        for group in self._groups([m for _, m in held], options):
            yield _Task(number, [held[i][0] for i in group], [held[i][1] for i in group], options,
                        max(request.n_best, request.rescore_n_best if request.rescorer else 0),
                        request.lattices, sweep)

    def _run(self, tasks: Iterable[_Task]) -> Iterator[tuple[_Task, list, float]]:
        """Outcomes (or counts of active states) of tasks, in their order; at most two tasks a process are held."""
        if self.nj == 1:
            for task in tasks:
                yield (task, *_run_task(self._decoder, task))
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.nj, multiprocessing.get_context("spawn"), _start_worker,
                                             (str(self.graph_path), self.backend, self.options))
        waiting: collections.deque = collections.deque()
        try:
            for task in tasks:
                waiting.append((task, self._pool.submit(_work, task)))
                if len(waiting) > 2 * self.nj:
                    task, future = waiting.popleft()
                    yield (task, *future.result())
            while waiting:
                task, future = waiting.popleft()
                yield (task, *future.result())
        except BrokenProcessPool:
            raise UserError("a decoding process died, perhaps for want of memory; decode with --nj 1 or a "
                            "smaller --max-active") from None
        finally:
            for _, future in waiting:
                future.cancel()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, kind, *exc) -> None:
        if self._pool is None:
            return
        if kind is not None:  # nobody wants what they are at, which may take minutes
            # a thread may be writing a batch into a pipe that nobody will read any more: it is not waited for
            self._pool._call_queue.cancel_join_thread()
            for process in list(self._pool._processes.values()):
                process.terminate()
        self._pool.shutdown()

    def _collect(self, jobs: list[Job], all_options: list[DecodeOptions], request: Request,
                 sweep: bool) -> Iterator[_SetInProgress]:
        """Every job's results as soon as they are whole, in the order of the jobs."""
        sets = [_SetInProgress(job, fit_rates(job.scores, options, self.graph, self.graph_path))
                for job, options in zip(jobs, all_options)]
        done, utterances, shown = 0, 0, time.monotonic()
        for task, outcomes, seconds in self._run(self._tasks(jobs, sets, request, sweep)):
            while done < task.job:
                yield sets[done]
                sets[done].outcomes = {}
                done += 1
            if task.count:
                sets[task.job].active += outcomes
                continue
            sets[task.job].seconds += seconds
            sets[task.job].outcomes.update(zip(task.pieces, outcomes))
            utterances += len(outcomes)
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"essence decode: {utterances} utterances or pieces of them, at {task.job + 1} of {len(jobs)} sets",
                      file=sys.stderr)
        while done < len(jobs):
            yield sets[done]
            sets[done].outcomes = {}
            done += 1

    # .. decoding

    def decode(self, jobs: list[Job], request: Request | None = None) -> list[dict]:
        """Decode every job and write its files; what went into each decode.json, in the order of the jobs."""
        request = request or Request()
        if request.rescorer:
            request.rescorer.check(self.graph.words, self.graph_path)
        options = [self._job_options(job) for job in jobs]
        reports = []
        begin = time.perf_counter()
        for progress in self._collect(jobs, options, request, sweep=False):
            reports.append(self._write(progress, request, time.perf_counter() - begin))
            begin = time.perf_counter()
        return reports

    def _job_options(self, job: Job) -> DecodeOptions:
        if job.scale_from is None:
            return self.options
        best = read_best(job.scale_from)
        return dataclasses.replace(self.options, acoustic_scale=best["acoustic_scale"],
                                   word_insertion_penalty=best["word_insertion_penalty"])

    def _write(self, progress: _SetInProgress, request: Request, wall: float) -> dict:
        if request.rescorer:
            self._rescore(progress, request.rescorer)
        out, words = Path(progress.job.out_dir), self.graph.words
        shift = progress.options.frame_shift_ms / progress.options.repeat_rows / 1000  # of the graph's rows
        out.mkdir(parents=True, exist_ok=True)
        texts: dict[str, list[str]] = {"hyp.txt": [], "hyp.ctm": []}
        if request.n_best:
            texts["nbest.txt"], texts["nbest.cost"] = [], []
        if request.lattices:
            texts["lat.txt"] = []
        ctm: list[tuple[tuple[str, str, float], list[str]]] = []
        for utt in progress.order:
            hyp = progress.hyp(utt)
            texts["hyp.txt"].append(" ".join([utt, *words[hyp.words]]))
            place = progress.places.get(utt, (utt, "1", 0.0))
            ctm.append((place, ctm_lines(*place, hyp, words, shift)))
            for rank, entry in enumerate(progress.n_best(utt, request.n_best) if request.n_best else (), 1):
                texts["nbest.txt"].append(" ".join([f"{utt}-{rank}", *words[entry.hyp.words]]))
                texts["nbest.cost"].append(f"{utt}-{rank} {entry.cost:.4f}")
            if request.lattices and progress.outcomes[utt, 0].lattice:
                texts["lat.txt"] += [utt, *progress.outcomes[utt, 0].lattice, ""]
        if progress.places:
            ctm.sort(key=lambda entry: entry[0])
        texts["hyp.ctm"] = [line for _, lines in ctm for line in lines]
        for name, lines in texts.items():
            write_text(out / name, "".join(line + "\n" for line in lines))
        report = self._report(progress, wall)
        if request.rescorer:
            report["rescoring"] = {**request.rescorer.about(), "n_best": request.rescore_n_best}
        write_text(out / "decode.json", json.dumps(report, indent=1) + "\n")
        self._tell(progress.job, report)
        return report

    def _rescore(self, progress: _SetInProgress, rescorer: Rescorer) -> None:
        rescorer.unknown = 0
        outcomes = progress.all_pieces()
        for outcome, entries in zip(outcomes, rescorer.rescore([o.n_best for o in outcomes], self.graph.words)):
            outcome.n_best = entries
            if entries:
                outcome.hyp = entries[0].hyp
        if rescorer.unknown:
            print(f"essence decode: {progress.job.out_dir}: {rescorer.unknown} words of the n-best lists are not in "
                  "the new language model and cost as much as its rarest word", file=sys.stderr)

    def _report(self, progress: _SetInProgress, wall: float) -> dict:
        options, rows = progress.options, sum(progress.rows.values())
        audio = rows * options.frame_shift_ms / 1000
        empty = [utt for utt in progress.order if not progress.rows[utt]]
        outcomes = progress.all_pieces()
        found = {utt: [o.found for o in progress.pieces(utt)] for utt in progress.order if progress.rows[utt]}
        lost = [utt for utt in found if not any(found[utt])]
        gaps = [utt for utt in found if any(found[utt]) and not all(found[utt])]
        sizes = [(o.states, o.arcs) for o in outcomes if o.states is not None]
        per_row = (lambda i: round(sum(size[i] for size in sizes) / max(rows, 1), 2) if sizes else None)
        return {
            "decoder": self.backend, "decoder_version": decoder_version(self.backend),
            "graph": str(self.graph_path), "num_pdfs": self.graph.num_pdfs,
            "tree_hash": self.graph.meta.get("tree_hash"), "scores": progress.job.scores,
            "acoustic_scale": options.acoustic_scale, "word_insertion_penalty": options.word_insertion_penalty,
            "beam": options.beam, "output_beam": options.output_beam, "max_active": options.max_active,
            "min_active": options.min_active, "retry_factor": options.retry_factor,
            "frame_shift_ms": options.frame_shift_ms, "repeat_rows": options.repeat_rows,
            "num_utts": len(progress.order), "num_frames": rows,
            "num_words": int(sum(len(o.hyp.words) for o in outcomes)), "num_pieces": len(outcomes),
            "audio_seconds": round(audio, 3), "decode_seconds": round(progress.seconds, 3),
            "rtf": round(progress.seconds / audio, 5) if audio else None, "wall_seconds": round(wall, 3), "nj": self.nj,
            "active_states_per_frame": round(float(np.mean(progress.active)), 1) if progress.active else None,
            "active_states_counted_at": len(progress.active),
            "lattice_states_per_frame": per_row(0), "lattice_arcs_per_frame": per_row(1),
            "retried": sum(o.retried for o in outcomes),
            "no_path": len(lost), "no_path_utts": lost, "no_path_in_a_piece_utts": gaps, "empty_audio": len(empty), "empty_audio_utts": empty,
            "rescoring": None,
        }

    def _tell(self, job: Job, report: dict) -> None:
        print(f"essence decode: {job.out_dir}: {report['num_utts']} utterances, {report['audio_seconds']:.0f} s of "
              f"audio, {report['num_words']} words, RTF {report['rtf']} with {self.backend}"
              + (f", about {report['active_states_per_frame']:.0f} active states a frame"
                 if report["active_states_per_frame"] is not None else "")
              + (f", lattices of {report['lattice_states_per_frame']} states and {report['lattice_arcs_per_frame']} "
                 "arcs a frame" if report["lattice_states_per_frame"] else "")
              + (f"; long ones in pieces: {report['num_pieces']}" if report["num_pieces"] > report["num_utts"] else ""),
              file=sys.stderr)
        for key, why in (("no_path_utts", "an empty hypothesis (no path survived the search)"),
                         ("no_path_in_a_piece_utts", "no words in a piece (no path survived the search there)"),
                         ("empty_audio_utts", "an empty hypothesis (no audio)")):
            names = report[key]
            if names:
                more = " ..." if len(names) > 5 else ""
                print(f"essence decode: {job.out_dir}: {len(names)} of {report['num_utts']} utterances have "
                      f"{why}: {' '.join(names[:5])}{more}", file=sys.stderr)

    # .. sweeps

    def sweep(self, jobs: list[Job], reference: dict[str, list[str]], pooled=None) -> list[dict]:
        """WER of every (acoustic scale, word insertion penalty) on a set with known words; then decode at the best.

        k2 makes one lattice an utterance (at the options' scale, with the sweep's output beam) and rescores it for
        the whole grid; where the best scale lies more than a factor of 1.75 away, once more with lattices made there.
        kaldi decodes for every scale at the options' penalty, then for every penalty at the best scale, then for the
        scales beside it at the best penalty.
        Each job gets a sweep.json and is decoded at its own best; with ``pooled`` (a path) the errors of
        all jobs are added, written there, and every job is decoded at the common best.
        """
        request = Request(reference=reference)
        together = pooled is not None
        grids = (self._sweep_lattices if self.backend == "k2" else self._sweep_in_turn)(jobs, request, together)
        tables = [sweep_table(points, words) for points, words in grids]
        if together:
            self._write_sweep(Path(pooled), sweep_table(*_pool(grids)))
        targets = []
        for job, table in zip(jobs, tables):
            path = Path(job.out_dir) / "sweep.json"
            self._write_sweep(path, table)
            targets.append(dataclasses.replace(job, scale_from=Path(pooled) if together else path))
        self.decode(targets)
        return tables

    def _sweep_points(self, jobs, options, request) -> list[tuple[dict, int]]:
        """For every job errors by (scale, penalty), and the number of reference words."""
        grids = []
        for progress in self._collect(jobs, options, request, sweep=True):
            opts = progress.options
            errors: collections.Counter = collections.Counter()
            for utt in progress.order:
                ref, known = request.reference[utt], {}
                for i, scale in enumerate(opts.sweep_scales):
                    for j, penalty in enumerate(opts.sweep_penalties):
                        ids = np.concatenate([piece.sweep[i][j] for piece in progress.pieces(utt)])
                        key = ids.tobytes()
                        if key not in known:
                            known[key] = edit_distance(ref, list(self.graph.words[ids]))
                        errors[scale, penalty] += known[key]
            missing = [utt for utt in request.reference if utt not in progress.rows]
            if missing:
                print(f"essence decode: {progress.job.scores}: {len(missing)} reference utterances have no scores and "
                      f"count as deletions: {' '.join(missing[:5])}", file=sys.stderr)
                lost = sum(len(request.reference[utt]) for utt in missing)
                errors.update({point: lost for point in list(errors)})
            grids.append((dict(errors), sum(len(ref) for ref in request.reference.values())))
        return grids

    def _sweep_lattices(self, jobs, request, together: bool) -> list[tuple[dict, int]]:
        """The whole grid from one lattice an utterance, made near the best scale (of each job, or of all)."""
        options = [dataclasses.replace(self.options, output_beam=self.options.sweep_output_beam)] * len(jobs)
        grids = self._sweep_points(jobs, options, request)
        best = self._best_of(grids, together)
        far = [i for i, (scale, _) in enumerate(best)
               if max(scale / self.options.acoustic_scale, self.options.acoustic_scale / scale) > NEAR]
        if far:
            there = [dataclasses.replace(options[i], acoustic_scale=best[i][0], word_insertion_penalty=best[i][1])
                     for i in far]
            for i, grid in zip(far, self._sweep_points([jobs[i] for i in far], there, request)):
                grids[i] = grid
        return grids

    @staticmethod
    def _best_of(grids, together: bool) -> list[tuple[float, float]]:
        """Best scale and penalty of each job, or the common best."""
        tables = [sweep_table(*_pool(grids))] * len(grids) if together else [sweep_table(*grid) for grid in grids]
        return [(t["best"]["acoustic_scale"], t["best"]["word_insertion_penalty"]) for t in tables]

    def _sweep_in_turn(self, jobs, request, together: bool) -> list[tuple[dict, int]]:
        """The sweep of a decoder without lattices, one setting after the other (of each job, or of all)."""
        grids: list[tuple[dict, int]] = [({}, 0) for _ in jobs]

        def add(points):
            """Decode every job at its (scale, penalty); jobs whose point is None or known are left out."""
            which = [i for i, point in enumerate(points) if point is not None and point not in grids[i][0]]
            options = [dataclasses.replace(self.options, sweep_scales=[points[i][0]], sweep_penalties=[points[i][1]])
                       for i in which]
            for i, (new, words) in zip(which, self._sweep_points([jobs[i] for i in which], options, request)):
                grids[i] = ({**grids[i][0], **new}, words)

        scales = sorted(self.options.sweep_scales)
        for scale in scales:
            add([(scale, self.options.word_insertion_penalty)] * len(jobs))
        best = self._best_of(grids, together)
        for penalty in self.options.sweep_penalties:
            add([(scale, penalty) for scale, _ in best])
        best = self._best_of(grids, together)
        for step in (-1, 1):
            beside = [scales.index(scale) + step for scale, _ in best]
            add([(scales[at], point[1]) if 0 <= at < len(scales) else None for at, point in zip(beside, best)])
        return grids

    def _write_sweep(self, path: Path, table: dict) -> None:
        table = {"decoder": self.backend, "graph": str(self.graph_path), **table}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(table, indent=1) + "\n")
        best = table["best"]
        edge = " (at the edge of the grid: widen it)" if table["scale_at_edge"] or table["penalty_at_edge"] else ""
        print(f"essence decode: {path}: best of {len(table['points'])} settings: acoustic scale "
              f"{best['acoustic_scale']}, word insertion penalty {best['word_insertion_penalty']}: "
              f"{best['wer']:.2f} % WER{edge}", file=sys.stderr)


def _pool(grids: list[tuple[dict, int]]) -> tuple[dict, int]:
    """Errors and reference words of all jobs together."""
    total: collections.Counter = collections.Counter()
    for points, _ in grids:
        total.update(points)
    return dict(total), sum(words for _, words in grids)


def sweep_table(errors: dict, words: int) -> dict:
    """Points sorted by scale and penalty, and the best: fewest errors, then the smallest penalty, then the scale.

    Among scales with equally few errors the middle one is taken.
    """
    points = [{"acoustic_scale": scale, "word_insertion_penalty": penalty, "errors": int(count),
               "wer": round(100.0 * count / words, 4) if words else None}
              for (scale, penalty), count in sorted(errors.items())]
    fewest = min(point["errors"] for point in points)
    ties = [point for point in points if point["errors"] == fewest]
    smallest = min(abs(point["word_insertion_penalty"]) for point in ties)
    ties = [point for point in ties if abs(point["word_insertion_penalty"]) == smallest]
    best = ties[(len(ties) - 1) // 2]

    def at_edge(key: str) -> bool:
        tried = sorted({point[key] for point in points})
        return len(tried) > 2 and best[key] in (tried[0], tried[-1])

    return {"reference_words": words, "best": best, "points": points, "scale_at_edge": at_edge("acoustic_scale"),
            "penalty_at_edge": at_edge("word_insertion_penalty")}


def read_best(path) -> dict:
    """The best point of a sweep.json; UserError where it is missing or something else."""
    try:
        best = json.loads(Path(path).read_text(encoding="utf-8"))["best"]
        return {key: float(best[key]) for key in ("acoustic_scale", "word_insertion_penalty")}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such sweep; make it with 'essence decode --sweep TEXT'") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a sweep.json of 'essence decode --sweep'") from None


def pool_sweeps(paths, out) -> dict:
    """Add the errors of several sweep.json and write their common best to ``out``, a sweep.json too; returns it.

    Points that not all of them have are left out. An ``out`` that says the same already is not touched. Raises
    UserError for a file that is no sweep, and for sweeps that have no point in common.
    """
    grids = []
    for path in paths:
        read_best(path)
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        try:
            points = {(p["acoustic_scale"], p["word_insertion_penalty"]): p["errors"] for p in table["points"]}
            grids.append((points, table["reference_words"]))
        except (KeyError, TypeError):
            raise UserError(f"{path}: not a whole sweep.json of 'essence decode --sweep'") from None
    common = set.intersection(*(set(points) for points, _ in grids))
    if not common:
        raise UserError(f"{', '.join(map(str, paths))}: these sweeps have no setting in common; sweep them anew")
    table = sweep_table(*_pool([({p: n for p, n in points.items() if p in common}, words) for points, words in grids]))
    text = json.dumps(table, indent=1) + "\n"
    if not Path(out).is_file() or Path(out).read_text(encoding="utf-8") != text:
        write_text(out, text)
    return table


def decoder_version(backend: str) -> str:
    """Release of the decoder's library, for decode.json."""
    from importlib import metadata

    return metadata.version("k2" if backend == "k2" else "kaldi-decoder")
