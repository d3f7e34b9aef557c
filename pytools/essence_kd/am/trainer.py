"""Training of acoustic models: the loop, checkpoints, resuming, several processes.

The order of chunks and SpecAugment's masks are functions of (seed, epoch, batch number), and dropout draws from a
state that a checkpoint holds beside parameters, averages, optimiser and the number of the batch: a training that was
killed at any step and started again ends, on CPU with the same number of threads, in the same bytes as one that ran
through. Processes that torchrun started share every batch; they get the loss curve of one process within rounding
(where nothing is dropped out: each process draws its own).
"""
from __future__ import annotations

import copy
import json
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch

from essence_kd import __version__
from essence_kd.am.checkpoints import (TrainingState, check_fingerprint, going_on, load_checkpoint, load_init,
                                       save)
from essence_kd.am.cmn import OnlineMean
from essence_kd.am.dataset import IGNORE, Batch, epoch_batches
from essence_kd.am.inputs import TrainingSets, fingerprint, load_sets
from essence_kd.am.models.acoustic_model import AcousticModel, look_ahead, mflop_per_frame, num_params
from essence_kd.am.models.registry import build_model, model_settings
from essence_kd.am.optim import build_optimiser, learning_rate, take_average
from essence_kd.am.processes import Processes, precision_of
from essence_kd.am.settings import TrainInputs, TrainSettings, check_settings
from essence_kd.am.train_log import TrainLog
from essence_kd.distill.losses import Loss, make_loss, retemper
from essence_kd.distill.losses.cross_entropy import multitask_loss
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.provenance import write_text
from essence_kd.io.settings import dump_settings, to_dict

SAY_EVERY = 10.0  # seconds between two lines about the epoch at work


def train(settings: TrainSettings, data_dir, ali_dir, model_dir, *, device: Optional[str] = None,
          tensorboard: bool = False, dev_wer: Optional[Callable[[Path], float]] = None, **inputs) -> dict:
    """Train a model, or go on with one that was interrupted; returns what info.json says.

    Args:
        settings: the resolved settings.
        data_dir, ali_dir, inputs: what is read: the fields of :class:`~essence_kd.am.settings.TrainInputs` (``soft``,
            ``soft_kind``, ``init``, ``dev_data``, ``dev_ali``).
        model_dir: where final.pt, model.yaml, priors.txt, progress.jsonl, train.log and info.json go.
        device: torch device; default: cuda where there is one, else cpu. Each process of torchrun takes its own GPU.
        tensorboard: write scalars for TensorBoard to MODEL_DIR/tensorboard too.
        dev_wer: what measures the word error rate for early stopping: called with a model directory it returns
            percent; its ``fingerprint`` tells what it decodes (score.dev_wer.DevWer).

    Raises:
        UserError: inputs that do not fit each other, a checkpoint of another training, a loss that is not finite,
            too little memory for a batch.
    """
    read = TrainInputs(data_dir, ali_dir, **inputs)
    processes = Processes(device)
    try:
        return _train(settings, read, Path(model_dir), processes, tensorboard, dev_wer)
    except RuntimeError as error:
        if processes.world == 1 or not any(word in str(error) for word in ("onnection", "gloo", "NCCL")):
            raise
        raise UserError(f"{model_dir}: {processes.failed(error)}") from None
    finally:
        processes.leave()


def _train(settings: TrainSettings, inputs: TrainInputs, model_dir: Path, processes: Processes, tensorboard: bool,
           dev_wer) -> dict:
    check_settings(settings)
    model_settings(settings.arch, settings.model, "settings")
    loss = make_loss(settings.distill.loss, settings.distill.parameters, "settings: distill")
    if (settings.early_stopping.metric == "dev_wer") != (dev_wer is not None):
        raise ValueError("early_stopping.metric=dev_wer and the argument dev_wer belong together")
    model_dir.mkdir(parents=True, exist_ok=True)
    log = TrainLog(model_dir, processes.first)
    torch.set_num_threads(settings.threads)
    precision = precision_of(settings.precision, processes.device)
    sets = load_sets(inputs, settings, processes, log.log)
    mine = fingerprint(inputs, settings, sets, precision, dev_wer)
    with log.alone():
        if (model_dir / "final.pt").is_file() and (model_dir / "info.json").is_file():
            info = json.loads((model_dir / "info.json").read_text(encoding="utf-8"))
            check_fingerprint(model_dir / "info.json", info.get("fingerprint", {}), mine)
            log.log(f"{model_dir} is trained already")
            if processes.first:
                _remove_work(model_dir)
            return info
        return Trainer(settings=settings, inputs=inputs, sets=sets, loss=loss, dir=model_dir, processes=processes,
                       log=log, precision=precision, fingerprint=mine, dev_wer=dev_wer, tensorboard=tensorboard).run()


@dataclass(eq=False)
class Trainer:
    """One training: what it is given, and what is made of that once; what changes while it learns is in ``state``."""

    settings: TrainSettings
    inputs: TrainInputs
    sets: TrainingSets
    loss: Loss
    dir: Path  # the model's
    processes: Processes
    log: TrainLog
    precision: str  # float32 or bfloat16
    fingerprint: Dict[str, Union[str, float]]
    dev_wer: Optional[Callable[[Path], float]] = None
    tensorboard: bool = False
    state: TrainingState = field(init=False)
    parallel: torch.nn.Module = field(init=False)  # the state's model, its gradients averaged over processes
    board: Any = field(init=False)  # TensorBoard's writer, or None
    mflop: float = field(init=False)  # a feature frame
    size: int = field(init=False)  # parameters

    def __post_init__(self) -> None:
        s = self.settings
        torch.manual_seed(s.seed)
        model = self._initial_model()
        self.parallel = self.processes.parallel(model)
        self.state = TrainingState(model, copy.deepcopy(model).eval() if s.optim.ema_decay else None,
                                   build_optimiser(model, s.optim))
        self._begin_epoch()
        self._resume()
        shown = self.tensorboard and self.processes.first
        self.board = _board(self.dir / "tensorboard", self.state.step) if shown else None
        self.mflop, self.size = mflop_per_frame(model), num_params(model)

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def _initial_model(self) -> AcousticModel:
        """The model as training finds it, on its device."""
        s, data = self.settings, self.sets.train
        model = build_model(s.arch, s.model, feat_dim=data.feat_dim, num_pdfs=self.sets.num_pdfs,
                            frame_subsampling_factor=s.frame_subsampling_factor)
        if self.processes.first:  # the others start from its parameters and normalisation
            mean, std = data.global_stats()
            model.feat_mean.copy_(torch.from_numpy(mean))
            model.feat_inv_std.copy_(torch.from_numpy(1.0 / std))
        if self.inputs.init is not None:
            load_init(model, Path(self.inputs.init))
        return model.to(self.device)

    def run(self) -> dict:
        """Train to the end; what info.json says, from the first process (of the others nothing)."""
        s, state = self.settings, self.state
        if state.step == 0:
            several = f", {self.processes.world} processes" if self.processes.world > 1 else ""
            self.log.log(f"{s.arch}: {self.size} parameters, {self.mflop:.3f} MFLOP per frame, {self.precision} on "
                         f"{self.device}, {s.threads} threads{several}, {s.optim.epochs} epochs")
        while state.epoch < s.optim.epochs and not self._stopped():
            self._train_epoch()
        if self.board is not None:
            self.board.close()
        return self._finish() if self.processes.first else {}

    # ---- an epoch

    def _begin_epoch(self) -> None:
        self.state.begin_epoch()
        self._seed()

    def _seed(self) -> None:
        torch.manual_seed(self.settings.seed * 1_000_003 + self.state.epoch + 1_000_000_007 * self.processes.rank)

    def _train_epoch(self) -> None:
        s, state = self.settings, self.state
        began = said = saved = time.monotonic()
        before = state.seconds
        plan = self.sets.train.plan(s.data.batch_frames, s.seed, state.epoch)
        batches = epoch_batches(self.sets.train, plan, seed=s.seed, epoch=state.epoch, augment=s.augment,
                                workers=s.data.workers, first=state.batch,
                                share=(self.processes.rank, self.processes.world), pin=self.device.type == "cuda")
        state.model.train()
        for batch in _timed(batches, state.sums):
            self._train_batch(batch, plan)
            now = time.monotonic()
            if self._checkpoint_due(now - saved) and state.batch < len(plan):
                state.seconds = before + now - began
                self._save_checkpoint()
                saved = time.monotonic()
            if now - said > SAY_EVERY:
                said = now
                self._say_how_far(len(plan), before + now - began)
        line = self._close_epoch(plan)
        line["seconds"] = round(before + time.monotonic() - began, 3)
        self._show_epoch(line)
        self._begin_epoch()
        self._save_checkpoint()
        self._log_epoch(line)

    def _train_batch(self, batch: Batch, plan: List[np.ndarray]) -> None:
        """A step of training; ``batch`` is this process's share of the next batch of ``plan``."""
        s, state = self.settings, self.state
        self.processes.batches += 1
        lr = learning_rate(s.optim, (state.epoch + state.batch / len(plan)) / s.optim.epochs)
        for group in state.optimiser.param_groups:
            group["lr"] = lr
        frames = self.sets.train.rows(plan[state.batch])  # of all processes together
        state.optimiser.zero_grad(set_to_none=True)
        try:
            loss, _, _ = self._loss(self.parallel, batch, soft=True)
            # the mean over processes is the sum over frames, divided
            (loss.total * self.processes.world / frames).backward()
        except RuntimeError as error:
            raise self._out_of_memory(error, batch) from None
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), s.optim.grad_clip)
        value, hard, soft, norm = torch.stack([loss.total.detach(), loss.hard, loss.soft, norm]).tolist()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise UserError(f"{self.dir}: the {'gradient' if math.isfinite(value) else 'loss'} of epoch "
                            f"{state.epoch + 1}, batch {state.batch + 1} is not finite; lower optim.lr, or look at "
                            f"these utterances: {' '.join(sorted(set(batch.ids)))}")
        state.optimiser.step()
        state.step += 1
        if s.optim.constrain_every and state.step % s.optim.constrain_every == 0:
            state.model.constrain()
        if state.average is not None:
            take_average(state.average, state.model, min(s.optim.ema_decay, (1 + state.step) / (10 + state.step)))
        own = int(loss.num_frames)
        for name, more in (("train", value), ("hard", hard), ("soft", soft), ("frames", own)):
            state.sums[name] += more
        state.batch += 1
        if self.board is not None and state.step % 20 == 0:
            for name, scalar in (("loss", value / max(1, own)), ("gradient_norm", norm), ("lr", lr)):
                self.board.add_scalar(f"batch/{name}", scalar, state.step)

    def _loss(self, model, batch: Batch, soft: bool):
        """(multitask loss, logits (N, C), hard labels (N,)) of a batch's N rows that count; the loss is a sum."""
        d = self.settings.distill
        # which rows count is looked up on the host: asking a GPU would wait for it
        rows = torch.nonzero(batch.hard.flatten() != IGNORE)[:, 0].to(self.device, non_blocking=True)
        batch = batch.to(self.device)
        hard, ids, probs = batch.hard.flatten()[rows], None, None
        if soft and batch.soft_probs is not None:
            probs = batch.soft_probs.flatten(0, 1)[rows]
            ids = None if batch.soft_ids is None else batch.soft_ids.flatten(0, 1)[rows]
            probs = retemper(probs, d.temperature, self.sets.soft_temperature)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = model(batch.feats, batch.lens, keep=batch.keep, select=batch.hard != IGNORE)
        logits = logits.float()
        if probs is None:
            loss = multitask_loss(logits, hard, soft_weight=0.0)
        else:
            # without --soft, what has a transcript learns from it alone
            loss = self.loss(logits, hard, ids, probs, soft_weight=0.0 if self.inputs.soft is None else d.soft_weight,
                             temperature=d.temperature, mass=d.mass)
        return loss, logits, hard

    def _out_of_memory(self, error: RuntimeError, batch: Batch) -> Exception:
        """A UserError in the place of PyTorch's when memory is short; anything else as it is."""
        text = str(error)
        if "memory" not in text or not ("alloc" in text or "out of memory" in text):
            return error
        return UserError(f"{self.dir}: not enough memory for a batch of {tuple(batch.feats.shape)} features "
                         f"(utterances {' '.join(sorted(set(batch.ids))[:5])}, ...); lower data.batch_frames or "
                         "data.chunk_frames")

    @torch.no_grad()
    def _evaluate(self) -> Tuple[Optional[float], Optional[float]]:
        """(cross-entropy, frame accuracy) of the averaged model on the dev data, or (None, None)."""
        sets = self.sets
        if not sets.dev_utterances:
            return None, None
        model = self.state.final.eval()
        hard, correct, frames = 0.0, 0, 0
        plan = [] if sets.dev is None else sets.dev.plan(self.settings.data.batch_frames, 0, None)
        for chunks in plan if sets.dev_divided else plan[self.processes.rank::self.processes.world]:
            loss, logits, labels = self._loss(model, sets.dev.batch(chunks), soft=False)
            hard, correct = hard + float(loss.hard), correct + int((logits.argmax(1) == labels).sum())
            frames += len(labels)
        hard, correct, frames = self.processes.sums([hard, correct, frames])
        return hard / frames, correct / frames

    def _close_epoch(self, plan: List[np.ndarray]) -> dict:
        """Count the epoch and evaluate it; its line of the history, whose ``seconds`` are still to be told."""
        state = self.state
        state.epoch += 1
        train, hard, soft, frames, waited = self.processes.sums(list(state.sums.values()))
        dev_loss, dev_acc = self._evaluate()
        transcribed = self.sets.train.rows(np.concatenate(plan), transcribed=True)
        line = {"epoch": state.epoch, "train_loss": train / frames, "hard_loss": hard / transcribed,
                "soft_loss": soft / frames if self.sets.has_soft else None, "dev_loss": dev_loss,
                "dev_frame_acc": dev_acc, "seconds": 0.0, "data_seconds": round(waited / self.processes.world, 3),
                "lr": state.optimiser.param_groups[0]["lr"]}
        state.history.append(line)
        self._look_for_the_best(line)
        return line

    # ---- early stopping

    def _look_for_the_best(self, line: dict) -> None:
        """Compares the epoch that ``line`` tells of with the best before it, where a figure of it is asked for."""
        e, state = self.settings.early_stopping, self.state
        if e.metric == "none" or (state.epoch % e.every and state.epoch < self.settings.optim.epochs):
            return
        if e.metric == "dev_wer":
            value = 0.0
            if self.processes.first:
                folder = self.dir / "dev_wer"
                folder.mkdir(exist_ok=True)
                self._write_model(folder)
                value = self.dev_wer(folder)
            line["dev_wer"], = self.processes.sums([value])
        if state.best is None or line[e.metric] < state.best["value"]:
            state.best = {"value": line[e.metric], "epoch": state.epoch,
                          "model": {name: x.detach().cpu().clone() for name, x in state.final.state_dict().items()}}
            state.stale = 0
        else:
            state.stale += 1

    def _stopped(self) -> bool:
        """Whether the figure of early stopping has not become better for too long."""
        return self.state.best is not None and self.state.stale >= self.settings.early_stopping.patience

    # ---- what is said of it

    def _say_how_far(self, batches: int, seconds: float) -> None:
        """A line about the epoch at work, which has taken ``seconds`` so far."""
        state, epochs = self.state, self.settings.optim.epochs
        done = state.epoch + state.batch / batches
        spent = seconds + sum(h["seconds"] for h in state.history)
        self.log.say(f"epoch {state.epoch + 1}/{epochs}, batch {state.batch}/{batches}, "
                     f"loss {state.sums['train'] / max(1, state.sums['frames']):.3f}, "
                     f"{spent * (epochs / done - 1):.0f} s to go")

    def _show_epoch(self, line: dict) -> None:
        """An epoch's scalars for TensorBoard."""
        for name, scalar in line.items():
            if self.board is not None and name not in ("epoch", "seconds", "data_seconds") and scalar is not None:
                self.board.add_scalar(f"epoch/{name}", scalar, self.state.step)

    def _log_epoch(self, line: dict) -> None:
        s, state, stopped = self.settings, self.state, self._stopped()
        left = (s.optim.epochs - state.epoch) * np.mean([h["seconds"] for h in state.history])
        soft = f" (hard {line['hard_loss']:.3f}, soft {line['soft_loss']:.3f})" if self.sets.has_soft else ""
        dev = "" if line["dev_loss"] is None else \
            f", dev loss {line['dev_loss']:.3f}, dev frame accuracy {100 * line['dev_frame_acc']:.1f} %"
        if "dev_wer" in line:
            dev += f", dev WER {line['dev_wer']:.2f} %"
        to_go = f", {'' if state.best is None else 'at most '}{left:.0f} s to go" if left and not stopped else ""
        self.log.log(f"epoch {state.epoch}/{s.optim.epochs}: loss {line['train_loss']:.3f}{soft}{dev}, "
                     f"{line['seconds']:.1f} s, {line['data_seconds']:.1f} of them waiting for data{to_go}")
        if stopped:
            self.log.log(f"stopped early: {state.stale} figures in a row no better than epoch {state.best['epoch']}'s "
                         f"{s.early_stopping.metric} of {state.best['value']:.3f}")

    # ---- what comes out

    def _checkpoint_due(self, seconds: float) -> bool:
        """Whether a checkpoint is due, ``seconds`` after the last one; all processes answer the same."""
        c, step = self.settings.checkpoint, self.state.step
        if c.every_steps and step % c.every_steps == 0:
            return True
        # the clocks of processes differ, so the first one's counts, and is asked from time to time
        return c.every_minutes > 0 and step % 10 == 0 and self.processes.told(seconds > 60 * c.every_minutes)

    def _save_checkpoint(self) -> None:
        state, processes = self.state, self.processes
        random = {"cpu": processes.gather(torch.get_rng_state())}
        if self.device.type == "cuda":
            random["cuda"] = processes.gather(torch.cuda.get_rng_state(self.device))
        sums = dict(zip(state.sums, processes.sums(list(state.sums.values()))))
        if not processes.first:
            return
        save(state.checkpoint(self.fingerprint, sums, random), self.dir / "checkpoint.pt")
        write_text(self.dir / "progress.jsonl", "".join(json.dumps(h) + "\n" for h in state.history))

    def _resume(self) -> None:
        """Go on after the last checkpoint, where there is one."""
        path, state, rank = self.dir / "checkpoint.pt", self.state, self.processes.rank
        if not path.is_file():
            return
        held = load_checkpoint(path)
        with going_on(path):
            check_fingerprint(path, held.get("fingerprint", {}), self.fingerprint)
            state.restore(held, self.processes.first)
            self._seed()
            random = held["random"]
            if len(random["cpu"]) == self.processes.world:  # another number of processes cannot draw the same anyway
                torch.set_rng_state(random["cpu"][rank])
                if self.device.type == "cuda" and "cuda" in random:
                    torch.cuda.set_rng_state(random["cuda"][rank], self.device)
        self.log.log(f"going on after epoch {state.epoch}" + (f" and {state.batch} batches" if state.batch else ""))

    def _write_model(self, folder: Path) -> None:
        """A model directory that other commands read; final.pt last."""
        s = self.settings
        write_text(folder / "priors.txt", (Path(self.inputs.ali_dir) / "priors.txt").read_text(encoding="utf-8"))
        resolved = to_dict(s)
        resolved["model"] = model_settings(s.arch, s.model, "model")
        dump_settings({"arch": s.arch, "model": resolved["model"], "feat_dim": self.sets.train.feat_dim,
                       "num_pdfs": self.sets.num_pdfs, "frame_subsampling_factor": s.frame_subsampling_factor,
                       "cmn": s.data.cmn, **self._streaming(), "tree_hash": self.sets.tree_hash, **self._audio(),
                       "train": {k: v for k, v in resolved.items()
                                 if k not in ("arch", "model", "frame_subsampling_factor")}},
                      folder / "model.yaml")
        save({k: v.cpu() for k, v in self.state.final.state_dict().items()}, folder / "final.pt")

    def _streaming(self) -> dict:
        """What model.yaml says of a running mean and of repeated frames, where the model has them."""
        data, cmn = self.sets.train, self.sets.cmn
        said: Dict[str, Any] = {}
        if isinstance(cmn, OnlineMean):
            said["online_cmn"] = {**vars(cmn), "mean": list(cmn.mean)}
        if data.repeat_edges:
            said["edge_rows"] = [data.left, data.right]
        return said

    def _audio(self) -> dict:
        """What model.yaml says of the audio, where it is known."""
        return {} if self.sets.sample_rate is None else {"sample_rate": self.sets.sample_rate}

    def _finish(self) -> dict:
        """Write the model and info.json, and take away what only a training at work needs."""
        s, state, data, last = self.settings, self.state, self.sets.train, self.state.history[-1]
        if state.best is not None:
            state.final.load_state_dict(state.best["model"])
            last = state.history[state.best["epoch"] - 1]
        ahead = look_ahead(state.final)
        if ahead is not None and s.data.cmn == "online":
            ahead += s.data.cmn_look_ahead
        info = {"params": self.size, "mflop_per_frame": round(self.mflop, 6),
                "look_ahead_ms": None if ahead is None else round(FRAME_SHIFT_MS * ahead), "epochs": state.epoch,
                "seconds": round(sum(h["seconds"] for h in state.history), 1), "steps": state.step,
                "dev_loss": last["dev_loss"], "dev_frame_acc": last["dev_frame_acc"], "precision": self.precision,
                "threads": s.threads, "device": str(self.device), "utterances": len(data.ids),
                "frames": int(data.frames.sum()), "tool_version": __version__, "fingerprint": self.fingerprint}
        if data.shares:
            more = data.source.set_of > 0
            info["untranscribed"] = {"utterances": int(more.sum()), "frames": int(data.frames[more].sum()),
                                     "left_out": self.sets.left_out}
        if state.best is not None:
            info["best_epoch"] = state.best["epoch"]
            if "dev_wer" in last:
                info["dev_wer"] = last["dev_wer"]
        write_text(self.dir / "info.json", json.dumps(info, indent=1) + "\n")
        self._write_model(self.dir)
        _remove_work(self.dir)
        dev = "" if last["dev_loss"] is None else \
            f"dev loss {last['dev_loss']:.3f}, dev frame accuracy {100 * last['dev_frame_acc']:.1f} %, "
        self.log.log(f"{self.dir / 'final.pt'}: {dev}{info['seconds']:.0f} s")
        return info


def _remove_work(model_dir: Path) -> None:
    """Takes away what only a training at work needs."""
    shutil.rmtree(model_dir / "dev_wer", ignore_errors=True)
    (model_dir / "checkpoint.pt").unlink(missing_ok=True)


def _timed(batches: Iterable[Batch], sums: Dict[str, float]) -> Iterator[Batch]:
    """The batches; what was waited for each, in seconds, is added to ``sums["waited"]``."""
    asked = time.monotonic()
    for batch in batches:
        sums["waited"] += time.monotonic() - asked
        yield batch
        asked = time.monotonic()


def _board(folder: Path, step: int):
    """A writer of TensorBoard's files that drops what an interrupted training wrote after ``step``."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard: the package tensorboard is not here (pip install tensorboard)") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
