"""Training data: utterances with their targets, cut into chunks, and padded batches of these.

Legend: T feature frames (10 ms) of an utterance, R = ceil(T / factor) output rows, row r at feature frame factor * r;
B chunks of a batch, F feature bins, C pdfs, k entries of a sparse soft target.

A chunk is a run of output rows of one utterance. Its features carry real context frames on both sides where the
utterance has them; rows of context and of padding have hard label -100 and soft mass 0, and count in no loss. Rows of
an utterance without transcript have hard label -1 (UNLABELLED).
Which chunks meet in which batch depends on the seed and the epoch alone: systems that differ in their targets see
the same batches.
"""
from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
import os
import warnings
from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch

from essence_kd.am.augment import spec_augment
from essence_kd.distill.losses import PADDING as IGNORE
from essence_kd.io.errors import UserError
from essence_kd.io.parallel import sockets_in_reach


@dataclass
class Batch:
    """One padded batch; the comments give shapes."""

    feats: torch.Tensor  # (B, T, F) float32, zero beyond lens
    lens: torch.Tensor  # (B,) int64 feature frames
    hard: torch.Tensor  # (B, R) int64 pdf-ids, UNLABELLED where there is none, IGNORE for context and padding
    soft_ids: Optional[torch.Tensor]  # (B, R, k) int64
    soft_probs: Optional[torch.Tensor]  # (B, R, k) float32, or (B, R, C) when dense
    keep: Optional[torch.Tensor]  # (B, T, F) float32 of 0 and 1: SpecAugment
    ids: List[str]  # utterance of each chunk

    def each(self, change) -> "Batch":
        """The batch with ``change`` of every tensor in its place."""
        return dataclasses.replace(self, **{name: change(value) for name, value in vars(self).items()
                                            if isinstance(value, torch.Tensor)})

    def shared(self) -> "Batch":
        """In shared memory, to be handed to another process; in NumPy's arrays where there is too little of it."""
        try:
            return self.each(torch.Tensor.share_memory_)
        except RuntimeError:  # said in the queue of a worker, the batch would never come
            return self.each(torch.Tensor.numpy)

    def unshared(self) -> "Batch":
        """In tensors again, where NumPy's arrays came."""
        return dataclasses.replace(self, **{name: torch.from_numpy(value) for name, value in vars(self).items()
                                            if isinstance(value, np.ndarray)})

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while the processor goes on; a DataLoader with pin_memory calls this."""
        return self.each(torch.Tensor.pin_memory)

    def to(self, device) -> "Batch":
        """On another device; from pinned memory nothing waits for the copy."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


class TrainingData:
    """Utterances with features, hard labels and maybe soft targets, cut into chunks of output rows."""

    def __init__(self, source, hard: Optional[List[np.ndarray]], num_pdfs: int, factor: int, *, chunk_frames: int,
                 left_context: int, right_context: int, soft=None, preload_mb: int = 0,
                 sampler: str = "pooled", processes: int = 1, shares: Sequence[float] = (),
                 repeat_edges: bool = False) -> None:
        """``hard`` has one int array (R,) per utterance, of UNLABELLED where it has no transcript; ``soft`` is None,
        SparseTargets, DenseTargets or TargetsOfSets. ``shares``: how much of each of the source's sets an epoch draws;
        without any, all of each.

        Features and soft targets that together need at most ``preload_mb`` are read once and kept in memory. A source
        with shards holds its labels itself (``hard`` is None) and has a plan of its own for each of ``processes``.
        ``repeat_edges``: beyond an utterance its first and last frame are the context, which is then always whole.
        """
        self.source, self.num_pdfs, self.factor, self.soft, self.sampler = source, num_pdfs, factor, soft, sampler
        self.ids, self.frames, self.feat_dim = source.ids, source.frames, source.feat_dim
        self.processes, self.sharded, self.shares = processes, hard is None, shares
        self.row_start = np.concatenate([[0], np.cumsum(-(-self.frames // factor))]).astype(np.int64)
        self.hard = None if hard is None else np.concatenate(hard).astype(np.int32, copy=False)
        self.left = -(-left_context // factor)  # rows
        self.right = -(-right_context // factor)
        self.repeat_edges = repeat_edges
        self.chunks = self._cut_chunks(max(1, chunk_frames // factor))
        self._feats: Optional[List[np.ndarray]] = None
        self._soft: Optional[list] = None
        wide = 0 if soft is None else (num_pdfs * 4 if soft.dense else 1000)
        if self.frames.sum() * self.feat_dim * 4 + self.row_start[-1] * wide <= preload_mb * 1e6:
            self._feats, self._soft, labels = [], None if soft is None else [], []
            for i in range(len(self.ids)):
                self._feats.append(source.load(i))
                if soft is not None:
                    self._soft.append(self._read_soft(i))
                if self.sharded:
                    labels.append(source.labels(i, factor))
            if self.sharded:
                self.hard = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def in_memory(self) -> bool:
        """Whether features and soft targets were read once and are kept."""
        return self._feats is not None

    def _cut_chunks(self, rows: int) -> np.ndarray:
        """(N, 3) int64: utterance, first row, last row + 1. An utterance makes equal parts of at most ``rows``."""
        total = np.diff(self.row_start)
        parts = -(-total // rows)
        utt = np.repeat(np.arange(len(total)), parts)
        part = np.arange(len(utt)) - np.repeat(np.cumsum(parts) - parts, parts)
        total, parts = total[utt], parts[utt]
        return np.stack([utt, part * total // parts, (part + 1) * total // parts], axis=1)

    def features(self, utt: int, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """Features of an utterance by position, (T, F) float32, mean removed; ``rng`` draws noise where it is mixed."""
        if self._feats is not None:
            return self._feats[utt]
        return self.source.load(utt) if rng is None else self.source.load(utt, rng)

    def labels(self, utt: int) -> np.ndarray:
        """pdf-ids (R,) of an utterance by position."""
        if self.hard is None:
            return self.source.labels(utt, self.factor)
        return self.hard[self.row_start[utt]:self.row_start[utt + 1]]

    def _read_soft(self, utt: int):
        return self.soft.read(self.ids[utt], int(self.row_start[utt + 1] - self.row_start[utt]), self.num_pdfs)

    def global_stats(self, most_frames: int = 2_000_000) -> Tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of a bin, (F,) float64 each, over utterances spread evenly over the data."""
        step = max(1, int(np.ceil(self.frames.sum() / most_frames)))
        # shards are shuffled: the first few will do
        some = range(max(1, len(self.ids) // step)) if self.sharded else range(0, len(self.ids), step)
        count, total, squares = 0, np.zeros(self.feat_dim), np.zeros(self.feat_dim)
        for i in some:
            feats = self.features(i).astype(np.float64)
            count, total, squares = count + len(feats), total + feats.sum(0), squares + (feats * feats).sum(0)
        mean = total / count
        return mean, np.sqrt(np.maximum(squares / count - mean * mean, 1e-8))

    def plan(self, batch_frames: int, seed: int, epoch: Optional[int]) -> List[np.ndarray]:
        """Chunk indices of every batch of an epoch; ``epoch`` None: in order (for evaluation).

        A plan is a function of its arguments, so the number of a batch is all that resuming needs to know. Chunks are
        shuffled, sorted by length within pools of 16 batches so that little is padding, cut into batches of
        at most ``batch_frames`` frames (context included), and the batches are shuffled. The sampler "bucketing" is
        lhotse's DynamicBucketingSampler, which counts frames without padding.
        """
        rows = self.chunks[:, 2] - self.chunks[:, 1] + self.left + self.right
        size = max(1, batch_frames // self.factor)
        if epoch is None:
            return self._fill(np.argsort(rows, kind="stable"), rows, size)
        if self.sharded:
            return self._plan_shards(rows, size, seed, epoch)
        drawn = self._drawn(seed, epoch)
        if self.sampler == "bucketing":
            return self._bucketing(drawn, rows, size, seed, epoch)
        return self._shuffled(drawn, rows, size, np.random.default_rng([seed, epoch]))

    def _drawn(self, seed: int, epoch: int) -> np.ndarray:
        """Chunks of an epoch, ascending: a share of each set. One after another, epochs go through permutations of a
        set, so that they draw each of its chunks equally often."""
        if all(share == 1 for share in self.shares):
            return np.arange(len(self.chunks))
        found = []
        for number, share in enumerate(self.shares):
            mine = np.flatnonzero(self.source.set_of[self.chunks[:, 0]] == number)
            first, last = (int(n * share * len(mine)) for n in (epoch, epoch + 1))
            places = np.arange(first, max(last, first + 1))
            for turn in range(places[0] // len(mine), places[-1] // len(mine) + 1):
                order = np.random.default_rng([seed, turn, number, 1]).permutation(mine)
                found.append(order[places[places // len(mine) == turn] % len(mine)])
        return np.sort(np.concatenate(found))

    def _plan_shards(self, rows: np.ndarray, size: int, seed: int, epoch: int) -> List[np.ndarray]:
        """Batches of which process r reads chunks r, r + n, ... from shards that are its own in this epoch.

        Shards are shuffled and dealt out; of as many as fit in memory at a time, a process shuffles the chunks as the
        plan of other data does. Where a process has no chunk for a place of a batch, there is -1.
        """
        rng = np.random.default_rng([seed, epoch])
        world, shards = self.processes, rng.permutation(np.unique(self.source.shard))
        if len(shards) < world:
            raise UserError(f"{self.source.folder}: {len(shards)} shards for {world} processes: each needs one of its "
                            "own; make smaller ones (essence shard --shard-size)")
        drawn = self._drawn(seed, epoch)
        shard_of = self.source.shard[self.chunks[drawn, 0]]
        parts = []
        for rank in range(world):
            mine, batches = shards[rank::world], []
            for start in range(0, len(mine), self.source.keep):
                some = drawn[np.isin(shard_of, mine[start:start + self.source.keep])]
                batches += self._shuffled(some, rows, max(1, size // world), rng)
            parts.append(batches)
        plan = []
        for step in range(max(len(batches) for batches in parts)):
            here = [batches[step] if step < len(batches) else np.zeros(0, np.int64) for batches in parts]
            whole = np.full((max(len(part) for part in here), world), -1)
            for rank, part in enumerate(here):
                whole[:len(part), rank] = part
            plan.append(whole.ravel())
        return plan

    def _shuffled(self, chunks: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator) -> List[np.ndarray]:
        """Batches of chunks of similar length, in random order."""
        order = rng.permutation(chunks)
        pool = max(1, 16 * size // int(rows.max()))
        batches: List[np.ndarray] = []
        for start in range(0, len(order), pool):
            part = order[start:start + pool]
            batches += self._fill(part[np.argsort(rows[part], kind="stable")], rows, size)
        return [batches[i] for i in rng.permutation(len(batches))]

    @staticmethod
    def _bucketing(drawn: np.ndarray, rows: np.ndarray, size: int, seed: int, epoch: int) -> List[np.ndarray]:
        """Batches of lhotse's sampler over cuts that stand for chunks; a second is a row."""
        from lhotse import CutSet, MonoCut
        from lhotse.dataset import DynamicBucketingSampler

        order = np.random.default_rng([seed, epoch]).permutation(drawn)  # lhotse shuffles its buffer, not the set
        cuts = CutSet.from_cuts(MonoCut(id=str(i), start=0, duration=float(rows[i]), channel=0) for i in order)
        most = max(float(rows.max()), float(size))
        with warnings.catch_warnings():  # it would like its cuts lazy; these hold no data
            warnings.simplefilter("ignore")
            sampler = DynamicBucketingSampler(cuts, max_duration=most, shuffle=True, num_buckets=min(10, len(drawn)),
                                              seed=seed, world_size=1, rank=0)
        sampler.set_epoch(epoch)
        return [np.array([int(cut.id) for cut in batch]) for batch in sampler]

    @staticmethod
    def _fill(order: np.ndarray, rows: np.ndarray, size: int) -> List[np.ndarray]:
        """Cut ``order`` (sorted by rows, ascending) into batches whose padded size stays within ``size`` rows."""
        batches: List[np.ndarray] = []
        current: List[int] = []
        for chunk in order:
            if current and rows[chunk] * (len(current) + 1) > size:
                batches.append(np.array(current))
                current = []
            current.append(chunk)
        return batches + ([np.array(current)] if current else [])

    def rows(self, chunks: np.ndarray, transcribed: bool = False) -> int:
        """Rows of some chunks that count; ``transcribed``: of those whose utterances have a transcript."""
        some = self.chunks[chunks[chunks >= 0]]
        if transcribed and self.shares:
            some = some[self.source.set_of[some[:, 0]] == 0]
        return int((some[:, 2] - some[:, 1]).sum())

    def batch(self, chunks: Sequence[int], augment=None, rng: Optional[np.random.Generator] = None,
              share: Tuple[int, int] = (0, 1), noise: Optional[Tuple[int, int]] = None) -> Batch:
        """The padded batch of some chunks; ``augment`` (AugmentSettings) with ``rng`` draws SpecAugment masks.

        ``noise`` is (seed, epoch) of the noise that a source of audio mixes in: an utterance's chunks get the same.

        ``share``: (rank, n): process ``rank`` gets chunks rank, rank + n, ..., with the masks that they have in the
        whole batch. One that gets none gets a frame that counts in no loss.
        """
        everything = np.asarray(chunks)
        mine = everything[share[0]::share[1]]
        numbers = np.flatnonzero(mine >= 0) * share[1] + share[0]
        if not len(numbers):
            return self._empty_batch(augment)
        parts = []
        for utt, first, last in self.chunks[everything[numbers]]:
            total = self.row_start[utt + 1] - self.row_start[utt]
            begin, end = first - self.left, last + self.right
            if not self.repeat_edges:
                begin, end = max(0, begin), min(total, end)
            parts.append((int(utt), int(first), int(last), int(begin), int(end)))
        size = len(parts)
        last_frame = [e * self.factor if self.repeat_edges else int(self.frames[u]) for u, _, _, _, e in parts]
        lens = [min(most, e * self.factor) - b * self.factor for most, (_, _, _, b, e) in zip(last_frame, parts)]
        frames, rows = max(lens), max(e - b for _, _, _, b, e in parts)
        feats = np.zeros((size, frames, self.feat_dim), dtype=np.float32)
        hard = np.full((size, rows), IGNORE, dtype=np.int64)
        for i, (utt, first, last, begin, _) in enumerate(parts):
            mixes = noise is not None and self.source.mixer is not None
            draw = np.random.default_rng([*noise, utt]) if mixes else None
            feats[i, :lens[i]] = _frames(self.features(utt, draw), begin * self.factor, lens[i])
            hard[i, first - begin:last - begin] = self.labels(utt)[first:last]
        soft_ids, soft_probs = self._soft_of(parts, rows)
        keep = None
        if augment is not None:
            keep = spec_augment(lens, frames, self.feat_dim, augment, rng, numbers, len(everything))

        def tensor(array: Optional[np.ndarray]) -> Optional[torch.Tensor]:
            return None if array is None else torch.from_numpy(array)

        return Batch(torch.from_numpy(feats), torch.tensor(lens, dtype=torch.int64), torch.from_numpy(hard),
                     tensor(soft_ids), tensor(soft_probs), tensor(keep), [self.ids[p[0]] for p in parts])

    def _soft_of(self, parts: Sequence[Tuple[int, int, int, int, int]],
                 rows: int) -> Tuple[Optional[np.ndarray], Optional[np.ndarray]]:
        """Soft targets of chunks: ids (B, rows, k) int64 (None: they are dense), probs (B, rows, k or C) float32.

        A part is an utterance, its first row and last row + 1, and those of the chunk with context.
        """
        if self.soft is None:
            return None, None
        softs = [self._soft[utt] if self._soft is not None else self._read_soft(utt) for utt, *_ in parts]
        dense = self.soft.dense
        width = self.num_pdfs if dense else max(ids.shape[1] for ids, _ in softs)
        soft_ids = None if dense else np.zeros((len(parts), rows, width), dtype=np.int64)
        soft_probs = np.zeros((len(parts), rows, width), dtype=np.float32)
        for i, (soft, (_, first, last, begin, _)) in enumerate(zip(softs, parts)):
            ids, probs = (None, soft) if dense else soft
            if not dense:
                soft_ids[i, first - begin:last - begin, :ids.shape[1]] = ids[first:last]
            soft_probs[i, first - begin:last - begin, :probs.shape[1]] = probs[first:last]
        return soft_ids, soft_probs

    def _empty_batch(self, augment) -> Batch:
        feats = torch.zeros(1, self.factor, self.feat_dim)
        ids = probs = None
        if self.soft is not None:
            k = self.num_pdfs if self.soft.dense else 1
            ids = None if self.soft.dense else torch.zeros(1, 1, k, dtype=torch.int64)
            probs = torch.zeros(1, 1, k)
        return Batch(feats, torch.tensor([self.factor]), torch.full((1, 1), IGNORE), ids, probs,
                     None if augment is None else torch.ones_like(feats), [])


def _frames(feats: np.ndarray, begin: int, count: int) -> np.ndarray:
    """``count`` frames of an utterance (T, F) from number ``begin`` on; beyond it lie its first and last ones."""
    if begin >= 0 and begin + count <= len(feats):
        return feats[begin:begin + count]
    return feats[np.clip(np.arange(begin, begin + count), 0, len(feats) - 1)]


class _Batches(torch.utils.data.Dataset):
    """The batches of an epoch by number, for a DataLoader whose workers build whole batches."""

    def __init__(self, data: TrainingData, plan: List[np.ndarray], seed: int, epoch: int, augment,
                 share: Tuple[int, int]) -> None:
        self.data, self.plan, self.seed, self.epoch, self.augment = data, plan, seed, epoch, augment
        self.share = share

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int):
        rng = np.random.default_rng([self.seed, self.epoch, number])
        try:
            batch = self.data.batch(self.plan[number], self.augment, rng, self.share, (self.seed, self.epoch))
            return batch if torch.utils.data.get_worker_info() is None else batch.shared()
        except UserError as error:  # raised in a worker it would come with a traceback in its message
            return error


_MORE = "a container has more with 'docker run --shm-size=2g', or --ipc=host"


@functools.lru_cache(maxsize=None)
def _warn_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def _end_with_parent(worker: int) -> None:
    """Ends a worker whose parent was killed before it watches it: PyTorch then takes process 1 for its own."""
    if not multiprocessing.parent_process().is_alive():
        os._exit(1)


def _semaphores() -> bool:
    """Whether processes can wait for each other by what lies in /dev/shm, as those of a DataLoader do."""
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:
        _warn_once(f"/dev/shm cannot be used ({' '.join(str(error).split())[:120]}): this process reads the batches, "
                   f"without others (data.workers=0); {_MORE}")
        return False
    return True


def epoch_batches(data: TrainingData, plan: List[np.ndarray], *, seed: int, epoch: int, augment, workers: int,
                  first: int = 0, share: Tuple[int, int] = (0, 1), pin: bool = False) -> Iterator[Batch]:
    """The batches of a training epoch from number ``first`` on; data in memory needs no worker and starts none.

    ``share``: (rank, processes): the part of every batch that this process gets. ``pin``: what workers read comes in
    pinned memory, for a GPU.
    """
    batches = _Batches(data, plan, seed, epoch, augment, share)
    numbers = range(first, len(plan))
    if data.in_memory or workers == 0 or not _semaphores():
        source = (batches[i] for i in numbers)
    else:
        if data.sharded:  # another one would read the same shards again
            workers = 1
        sockets_in_reach()
        own = torch.Generator()  # left alone, a loader draws from the generator of the dropout masks
        source = iter(torch.utils.data.DataLoader(batches, batch_size=None, sampler=numbers, num_workers=workers,
                                                  generator=own, pin_memory=pin,
                                                  worker_init_fn=_end_with_parent))
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(f"a process that reads batches died ({str(error).splitlines()[0]}), perhaps for want of "
                            "memory; --set data.workers=0 reads without one") from None
        if isinstance(batch, UserError):
            raise batch
        if isinstance(batch.feats, np.ndarray):
            _warn_once("/dev/shm is too small for the batches that are read ahead: some come through pipes, more "
                       f"slowly (data.workers=0 reads without either); {_MORE}")
            batch = batch.unshared()
        yield batch
