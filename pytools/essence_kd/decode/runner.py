"""Decoding whole score archives: jobs become batches for processes, and what these answer becomes files.

Several sets are decoded in one go (decoder.Job), so that the graph is loaded once a process. Every utterance of the
scores comes out, in the order of the scores; those without a path have an empty hypothesis and are counted and named.
"""
from __future__ import annotations

import collections
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

import numpy as np

from essence_kd.decode.checks import RowSample, check_scores, cut_batches, fit_rates
from essence_kd.decode.decoder import DECODERS, ArchiveDecoder, Decoder, Job, Request, hand_over
from essence_kd.decode.lattice import edit_distance, empty_hypothesis
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.output import DecodedSet
from essence_kd.decode.pieces import first_rows, silence_pdfs
from essence_kd.decode.rescoring import make_rescorer
from essence_kd.decode.sweeps import Grid, pool, read_best, sweep_in_turn, sweep_lattices, sweep_table, write_sweep
from essence_kd.decode.workers import Outcome, Task, open_workers
from essence_kd.hmm.graph import load_graph
from essence_kd.io.errors import UserError
from essence_kd.io.tables import MatrixWriter, read_matrices
from essence_kd.io.text import read_words

_BUFFER_CELLS = 1 << 26  # score cells that are held to sort utterances by duration: 256 MiB of float32
_SILENCE_MS = 500  # of silence around a cut of a long utterance


def open_decoder(name: str, graph_dir, options: DecodeOptions, nj: int = 1) -> ArchiveDecoder:
    """The decoder ``name`` with a graph, as a context; ``nj`` processes. UserError where there is no such decoder."""
    kind = DECODERS.get(name)
    return kind(graph_dir, options, nj) if issubclass(kind, ArchiveDecoder) else Runner(kind, graph_dir, options, nj)


def decode(graph_dir, scores, out_dir, decoder: str, nj: int, settings: dict) -> dict[str, list[str]]:
    """What calling the package does; its ``__call__`` says more."""
    options = DecodeOptions(**settings)
    options.check()
    texts = {name: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
             for name, value in settings.items()}
    flags = [f"--{name.replace('_', '-')}={text}" for name, text in texts.items()]
    with tempfile.TemporaryDirectory(prefix="essence-decode-") as scratch:
        if not isinstance(scores, str):
            with MatrixWriter(f"ark:{scratch}/scores.ark") as writer:
                for utt, matrix in scores:
                    writer.write(utt, matrix)
            scores = f"ark:{scratch}/scores.ark"
        out = Path(scratch if out_dir is None else out_dir)
        name, status = hand_over(decoder, lambda name: ["decode", f"--decoder={name}", f"--nj={nj}", *flags, "--",
                                                        str(graph_dir), scores, str(out)])
        if status is None:
            with open_decoder(name, graph_dir, options, nj) as opened:
                opened.decode([Job(scores, out)])
        elif status:
            raise UserError(f"{graph_dir}: decoding by {name} ended with status {status}; stderr says why")
        return read_words(out / "hyp.txt")


class Runner(ArchiveDecoder):
    """Decodes jobs by a decoder of batches in ``nj`` processes; ``graph_dir`` holds graph.npz."""

    def __init__(self, kind: type[Decoder], graph_dir, options: DecodeOptions, nj: int = 1):
        super().__init__(graph_dir, options, nj)
        self.kind, self.graph_path = kind, self.dir / "graph.npz"
        self.graph = load_graph(self.graph_path)
        self.workers = open_workers(kind, self.graph, self.graph_path, options, nj)
        self.batch_rows = (self.workers.local.decoder if nj == 1 else kind).batch_rows

    def __exit__(self, kind, *exc) -> None:
        self.workers.close()

    def decode(self, jobs: list[Job], request: Request | None = None) -> list[dict]:
        request, reports = request or Request(), []
        options = [self._job_options(job) for job in jobs]
        with tempfile.TemporaryDirectory(prefix="essence-rescore-") as folder:
            rescoring = None
            if request.old_lm is not None:
                rescoring = make_rescorer(folder, request.old_lm, request.new_lm, request.lm_scale, self.graph,
                                          self.graph_path)
            begin = time.perf_counter()
            for progress in self._collect(jobs, options, request, rescorer=folder if rescoring else None):
                reports.append(progress.write(request, rescoring, time.perf_counter() - begin, self.nj))
                begin = time.perf_counter()
        return reports

    def sweep(self, jobs: list[Job], reference: dict[str, list[str]], pooled=None, only: bool = False) -> list[dict]:
        def points(which: list[int], options: list[DecodeOptions]) -> list[Grid]:
            return [_errors(progress, reference)
                    for progress in self._collect([jobs[i] for i in which], options, Request(), reference)]

        strategy = sweep_lattices if self.kind.sweeps_lattices else sweep_in_turn
        grids = strategy(points, self.options, len(jobs), pooled is not None)
        tables, targets = [sweep_table(*grid) for grid in grids], []
        if pooled is not None:
            write_sweep(pooled, sweep_table(*pool(grids)), self.kind.name, self.graph_path)
        for job, table in zip(jobs, tables):
            path = Path(job.out_dir) / "sweep.json"
            write_sweep(path, table, self.kind.name, self.graph_path)
            targets.append(dataclasses.replace(job, scale_from=path if pooled is None else Path(pooled)))
        if not only:
            self.decode(targets)
        return tables

    def _job_options(self, job: Job) -> DecodeOptions:
        best = {} if job.scale_from is None else read_best(job.scale_from)
        return dataclasses.replace(self.options, **best)

    def _collect(self, jobs: list[Job], all_options: list[DecodeOptions], request: Request,
                 reference: dict | None = None, rescorer: str | None = None) -> Iterator[DecodedSet]:
        """Every job's results as soon as they are whole, in the order of the jobs; with a reference, of a sweep."""
        sets = [DecodedSet(job, fit_rates(job.scores, options, self.graph, self.graph_path), self.kind, self.graph,
                           self.graph_path) for job, options in zip(jobs, all_options)]
        done, utterances, shown = 0, 0, time.monotonic()
        tasks = ((task,) for task in self._tasks(sets, request, reference, rescorer))
        for (task,), (outcomes, seconds) in self.workers.in_order("run", tasks):
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
                print(f"essence decode: {utterances} utterances or pieces of them, at {task.job + 1} of {len(jobs)} "
                      "sets", file=sys.stderr)
        while done < len(jobs):
            yield sets[done]
            sets[done].outcomes = {}
            done += 1

    def _tasks(self, sets: list[DecodedSet], request: Request, reference: dict | None,
               rescorer: str | None) -> Iterator[Task]:
        silence, sweep = silence_pdfs(self.graph), reference is not None
        for number, progress in enumerate(sets):
            held: list[tuple[tuple[str, int], np.ndarray]] = []
            job, options, cells = progress.job, progress.options, 0
            limit = round(options.piece_seconds * 1000 / options.frame_shift_ms) if not request.lattices else 0
            width = max(round(_SILENCE_MS / options.frame_shift_ms), 1)
            sample = RowSample(options.active_rows if self.kind.counts_active_states and not sweep else 0)

            def tasks() -> Iterator[Task]:
                """The batches of what is held."""
                for group in self._groups([matrix for _, matrix in held], options):
                    yield Task(number, [held[i][0] for i in group], [held[i][1] for i in group], options,
                               request.n_best, request.lattices, rescorer, sweep)

            for utt, matrix in read_matrices(job.scores):
                if utt in progress.rows:
                    raise UserError(f"{job.scores}: utterance '{utt}' is there twice")
                matrix = check_scores(matrix, utt, job.scores, self.graph, self.graph_path)
                progress.order.append(utt)
                progress.rows[utt] = len(matrix)
                progress.starts[utt] = starts = first_rows(matrix, silence, limit or len(matrix), width)
                if progress.places and utt not in progress.places:
                    raise UserError(f"{job.data_dir}: utterance '{utt}' of {job.scores} is not in it")
                if sweep and utt not in reference:
                    raise UserError(f"{job.scores}: utterance '{utt}' is not in the reference text of the sweep")
                if not len(matrix):
                    nothing = [np.zeros(0, np.int32)] * len(options.sweep_penalties)
                    grid = [nothing] * len(options.sweep_scales)
                    progress.outcomes[utt, 0] = Outcome(empty_hypothesis(), False, sweep=grid if sweep else [])
                    continue
                for n, piece in enumerate(np.split(matrix, starts[1:])):
                    held.append(((utt, n), piece))
                    sample.add(piece)
                cells += matrix.size
                if cells >= _BUFFER_CELLS:
                    yield from tasks()
                    held, cells = [], 0
            if held:
                yield from tasks()
            if not progress.order:
                raise UserError(f"{job.scores}: there are no utterances in it")
            for group in self._groups(sample.kept, options):
                yield Task(number, [], [sample.kept[i] for i in group], options, count=True)

    def _groups(self, batch: list[np.ndarray], options: DecodeOptions) -> list[list[int]]:
        return cut_batches([len(m) * options.repeat_rows for m in batch], self.graph.num_pdfs,
                           options.batch_rows or self.batch_rows)


def _errors(progress: DecodedSet, reference: dict[str, list[str]]) -> Grid:
    """The grid of a set that was decoded for a sweep; reference utterances without scores count as deleted."""
    opts = progress.options
    errors: collections.Counter = collections.Counter()
    for utt in progress.order:
        ref, known = reference[utt], {}
        for i, scale in enumerate(opts.sweep_scales):
            for j, penalty in enumerate(opts.sweep_penalties):
                ids = np.concatenate([piece.sweep[i][j] for piece in progress.pieces(utt)])
                key = ids.tobytes()
                if key not in known:
                    known[key] = edit_distance(ref, list(progress.graph.words[ids]))
                errors[scale, penalty] += known[key]
    missing = [utt for utt in reference if utt not in progress.rows]
    if missing:
        print(f"essence decode: {progress.job.scores}: {len(missing)} reference utterances have no scores and "
              f"count as deletions: {' '.join(missing[:5])}", file=sys.stderr)
        lost = sum(len(reference[utt]) for utt in missing)
        errors.update(dict.fromkeys(list(errors), lost))
    return dict(errors), sum(len(ref) for ref in reference.values())
