"""Training of acoustic models: the loop, checkpoints, resuming, several processes.

The order of chunks and SpecAugment's masks are functions of (seed, epoch, batch number), and dropout draws from a
state that a checkpoint holds beside parameters, averages, optimiser and the number of the batch: a training that was
killed at any step and started again ends, on CPU with the same number of threads, in the same bytes as one that ran
through. Processes that torchrun started share every batch; they get the loss curve of one process within rounding
(where nothing is dropped out: each process draws its own).
"""
from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Dict, Optional, Union

import numpy as np
import torch

from essence_kd import __version__
from essence_kd.am.checkpoints import check_fingerprint, load_checkpoint, load_init, save
from essence_kd.am.dataset import FeatureSource, TrainingData, epoch_batches, load_cuts, split_heldout
from essence_kd.am.models.acoustic_model import look_ahead, mflop_per_frame, num_params
from essence_kd.am.models.registry import build_model, model_settings
from essence_kd.am.optim import learning_rate, parameter_groups, take_average
from essence_kd.am.processes import Processes, precision_of
from essence_kd.am.settings import TrainSettings, check_settings
from essence_kd.am.shards import ShardSource, ShardTargets, is_sharded, read_index
from essence_kd.am.targets import attach_alignments, open_soft, read_count
from essence_kd.distill.losses import multitask_loss, retemper
from essence_kd.hmm.alignment_dir import read_log_priors, tree_hash
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import check_match, sha256_file, write_text
from essence_kd.io.settings import dump_settings, to_dict

LOCK_PATIENCE = 20.0  # seconds in which the readers of a killed training are expected to end


def train(settings: TrainSettings, data_dir, ali_dir, model_dir, *, soft=None, soft_kind: str = "post", init=None,
          dev_data=None, dev_ali=None, device: Optional[str] = None, tensorboard: bool = False,
          dev_wer=None) -> dict:
    """Train a model, or go on with one that was interrupted; returns what info.json says.

    Args:
        settings: the resolved settings.
        data_dir: Kaldi data directory with feats.scp (utt2spk and utt2uniq are used where they are there).
        ali_dir: alignment directory: ali.scp, num_pdfs, priors.txt, tree.txt.
        model_dir: where final.pt, model.yaml, priors.txt, progress.jsonl, train.log and info.json go.
        soft: scp of soft targets, one row an output frame; None trains on hard labels alone.
        soft_kind: "post" (Kaldi Posterior) or "dense" (matrices of probabilities).
        init: model directory whose parameters to start from (the same architecture and sizes).
        dev_data, dev_ali: data and alignments for the dev loss instead of a held-out share.
        device: torch device; default: cuda where there is one, else cpu. Each process of torchrun takes its own GPU.
        tensorboard: write scalars for TensorBoard to MODEL_DIR/tensorboard too.
        dev_wer: what measures the word error rate for early stopping: called with a model directory it returns
            percent; its ``fingerprint`` tells what it decodes (score.dev_wer.DevWer).

    Raises:
        UserError: inputs that do not fit each other, a checkpoint of another training, a loss that is not finite,
            too little memory for a batch.
    """
    processes = Processes(device)
    try:
        return _Training(settings, data_dir, ali_dir, model_dir, soft, soft_kind, init, dev_data, dev_ali, processes,
                         tensorboard, dev_wer).run()
    except RuntimeError as error:
        if processes.world == 1 or not any(word in str(error) for word in ("onnection", "gloo", "NCCL")):
            raise
        raise UserError(f"{model_dir}: another process of this training has ended; its own message says why") from None
    finally:
        processes.leave()


class _Training:
    """One training: its data, model and state."""

    def __init__(self, settings, data_dir, ali_dir, model_dir, soft, soft_kind, init, dev_data, dev_ali,
                 processes: Processes, tensorboard: bool, dev_wer) -> None:
        self.settings, self.dir, self.processes = settings, Path(model_dir), processes
        self.ali_dir, self.dev_wer = Path(ali_dir), dev_wer
        check_settings(settings)
        model_settings(settings.arch, settings.model, "settings")
        if (settings.early_stopping.metric == "dev_wer") != (dev_wer is not None):
            raise ValueError("early_stopping.metric=dev_wer and the argument dev_wer belong together")
        self.dir.mkdir(parents=True, exist_ok=True)
        self.log_file = open(self.dir / "train.log", "a", encoding="utf-8") if processes.first else None
        self.board_dir = self.dir / "tensorboard" if tensorboard and processes.first else None
        torch.set_num_threads(settings.threads)
        self.device = processes.device
        self.precision = precision_of(settings.precision, self.device)
        self.num_pdfs = read_count(self.ali_dir / "num_pdfs")
        self.tree_hash = tree_hash(self.ali_dir)
        read_log_priors(self.ali_dir / "priors.txt", self.num_pdfs)  # go with the model: refused now, not at its end
        if (dev_data is None) != (dev_ali is None):
            raise UserError("--dev-data and --dev-ali belong together")
        began = time.time()
        self.soft_mass: Optional[float] = None
        if is_sharded(data_dir):
            without = self._load_shards(Path(data_dir), soft, dev_data, dev_ali)
        else:
            self.soft, self.soft_temperature = self._open_soft(soft, soft_kind)
            without = self._load_data(Path(data_dir), dev_data, dev_ali)
        if self.dev is not None and self.dev.feat_dim != self.data.feat_dim:
            raise UserError(f"{dev_data}: features have {self.dev.feat_dim} bins, "
                            f"those of {data_dir} {self.data.feat_dim}")
        self.log(f"{len(self.data.ids)} utterances, {self.data.frames.sum() / 360000:.2f} h to train on, "
                 f"{self.dev_utterances} for the dev loss, {without} without alignment, "
                 f"{self.num_pdfs} pdfs; {'in memory' if self.data.in_memory else 'read from disk'}; "
                 f"{time.time() - began:.1f} s to load")
        if settings.early_stopping.metric == "dev_loss" and not self.dev_utterances:
            raise UserError("early_stopping.metric is dev_loss, but there is no dev set: data.heldout is 0")
        self.fingerprint = self._fingerprint(soft, init)
        self.init = init

    # ---- what goes in

    def _open_soft(self, soft, kind: str):
        """The soft targets and the temperature they were made at, their sidecar checked."""
        if soft is None:
            return None, 1.0
        targets, temperature, sidecar = open_soft(soft, kind, self.ali_dir, self.settings.frame_subsampling_factor)
        self.soft_mass = sidecar.get("mean_mass")
        if not sidecar:
            self.log(f"{soft} has no sidecar: that it belongs to this tree is taken on trust")
        return targets, temperature

    def _load_data(self, data_dir: Path, dev_data, dev_ali) -> int:
        """Sets data and dev; how many utterances have no alignment."""
        s = self.settings
        cuts, hard, without = attach_alignments(load_cuts(data_dir / "feats.scp"), self.ali_dir, self.num_pdfs,
                                                s.frame_subsampling_factor)
        dev = None
        if dev_data is None:
            chosen, held = split_heldout(cuts, s.data.heldout)
            if held:
                dev = FeatureSource(cuts.take(held), s.data.cmn), [hard[i] for i in held]
            cuts, hard = cuts.take(chosen), [hard[i] for i in chosen]
        if s.data.features == "on-the-fly":
            from essence_kd.am.audio import audio_source

            source = audio_source(cuts, s.data.cmn, data_dir, s.augment)
        else:
            source = FeatureSource(cuts, s.data.cmn)
        self.data = self._training_data(source, hard, self.soft)
        self._load_dev(dev, dev_data, dev_ali)
        return without

    def _load_shards(self, folder: Path, soft, dev_data, dev_ali) -> int:
        """Likewise, of data in shards."""
        d = self.settings.data
        index = read_index(folder)
        if self.ali_dir.resolve() != folder.resolve():
            raise UserError(f"{folder}: these shards hold their alignments: name them as ALI_DIR too, "
                            f"not {self.ali_dir}")
        if d.features != "precomputed":
            raise UserError(f"{folder}: shards hold features: data.features must be precomputed")
        mine = {"num_pdfs": self.num_pdfs, "frame_subsampling_factor": self.settings.frame_subsampling_factor,
                "tree_hash": self.tree_hash}
        check_match(folder / "shards.json", index, "this training", mine, mine)
        source = ShardSource(folder, "train", d.cmn, d.shards_at_once)
        self.soft, self.soft_temperature = None, 1.0
        if soft is not None:
            if Path(str(soft)).resolve() != folder.resolve() or index["soft"] is None:
                raise UserError(f"--soft {soft}: soft targets of shards lie in them (--soft {folder}; "
                                "essence shard --soft writes them)")
            self.soft = ShardTargets(source, index["soft"]["kind"] == "dense")
            self.soft_temperature = index["soft"]["temperature"]
        self.data = self._training_data(source, None, self.soft)
        dev = None
        if dev_data is None:  # each process takes its own shards
            held = ShardSource(folder, "heldout", d.cmn, 1, (self.processes.rank, self.processes.world))
            dev = (held, None) if len(held) else None
        self._load_dev(dev, dev_data, dev_ali, divided=True)
        return index["without_alignment"]

    def _load_dev(self, dev, dev_data, dev_ali, divided: bool = False) -> None:
        """Sets dev, None where this process has nothing to evaluate, and dev_utterances, those of all processes.

        ``dev``: None or (source, labels); ``divided``: each process has utterances of its own.
        """
        s = self.settings
        if dev_data is not None:
            cuts, hard, _ = attach_alignments(load_cuts(Path(dev_data) / "feats.scp"), dev_ali, self.num_pdfs,
                                              s.frame_subsampling_factor)
            dev, divided = (FeatureSource(cuts, s.data.cmn), hard), False
        self.dev, self.dev_divided = None, divided
        if dev is not None:
            self.dev = self._training_data(*dev, None, preload=divided or self.processes.world == 1)
        count = 0 if self.dev is None else len(self.dev.ids)
        self.dev_utterances = int(self.processes.sums([count])[0]) if divided else count

    def _training_data(self, source, hard, soft, preload: Optional[bool] = None) -> TrainingData:
        d = self.settings.data
        if preload is None:  # several processes would each keep what all of them read
            preload = self.processes.world == 1 and d.features == "precomputed"
        return TrainingData(source, hard, self.num_pdfs, self.settings.frame_subsampling_factor,
                            chunk_frames=d.chunk_frames, left_context=d.left_context, right_context=d.right_context,
                            soft=soft, preload_mb=d.preload_mb if preload else 0, sampler=d.sampler,
                            processes=self.processes.world)

    def _fingerprint(self, soft, init) -> Dict[str, Union[str, float]]:
        """What a checkpoint must agree with, by name: settings that change the model, and the data."""
        settings = to_dict(self.settings)
        for key in ("threads", "precision", "checkpoint"):
            settings.pop(key)
        for key in ("preload_mb", "workers"):
            settings["data"].pop(key)
        if self.settings.early_stopping.metric == "none":
            settings.pop("early_stopping")
        ids = hashlib.sha256("\n".join(self.data.ids).encode())
        ids.update(self.data.frames.tobytes())
        shards = _file_hash(self.data.source.folder / "shards.json") if self.data.sharded else None
        noise = self.settings.augment.noise
        found = {"settings": json.dumps(settings, sort_keys=True), "precision": self.precision,
                 "utterances": ids.hexdigest()[:16],
                 "alignments": shards or hashlib.sha256(self.data.hard.tobytes()).hexdigest()[:16],
                 "soft targets": "none" if soft is None else shards or _file_hash(str(soft)),
                 "noise": "none" if not noise else _file_hash(noise),
                 "initial model": "none" if init is None else _file_hash(Path(init) / "final.pt")}
        if self.soft_mass is not None:  # targets that were made anew may have the same index
            found["mass of the soft targets"] = self.soft_mass
        if self.settings.data.features == "precomputed":  # of other machines' computing they are the same but for rounding
            count, content = len(self.data.ids), hashlib.sha256()
            for i in (0, count // 2, count - 1):
                content.update(self.data.source.raw(i).tobytes())
            found["features of three utterances"] = content.hexdigest()[:16]
        if self.dev_wer is not None:
            found["set and graph of early stopping"] = self.dev_wer.fingerprint
        return found

    # ---- the loop

    def run(self) -> dict:
        with self._alone():
            return self._run()

    @contextlib.contextmanager
    def _alone(self):
        """Refuses a second training in this model directory, such as a cluster's job that has outlived its stage."""
        if self.log_file is None:  # the first process holds the lock for all
            yield
            return
        began = time.time()
        while True:
            try:
                fcntl.flock(self.log_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.time() - began > LOCK_PATIENCE:
                    raise UserError(f"{self.dir}: another training is at work here; wait for it, or stop it") from None
                time.sleep(0.2)
                continue
            except OSError:  # a file system without locks
                pass
            break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self.log_file, fcntl.LOCK_UN)

    def _run(self) -> dict:
        s = self.settings
        if (self.dir / "final.pt").is_file() and (self.dir / "info.json").is_file():
            info = json.loads((self.dir / "info.json").read_text(encoding="utf-8"))
            check_fingerprint(self.dir / "info.json", info.get("fingerprint", {}), self.fingerprint)
            self.log(f"{self.dir} is trained already")
            return info
        torch.manual_seed(s.seed)
        model = build_model(s.arch, s.model, feat_dim=self.data.feat_dim, num_pdfs=self.num_pdfs,
                            frame_subsampling_factor=s.frame_subsampling_factor)
        if self.processes.first:  # the others start from its parameters and normalisation
            mean, std = self.data.global_stats()
            model.feat_mean.copy_(torch.from_numpy(mean))
            model.feat_inv_std.copy_(torch.from_numpy(1.0 / std))
        if self.init is not None:
            load_init(model, Path(self.init))
        self.model = model.to(self.device)
        self.parallel = self.processes.parallel(self.model)
        self.ema = copy.deepcopy(self.model).eval() if s.optim.ema_decay else None
        groups = parameter_groups(self.model, s.optim.weight_decay)
        if s.optim.optimiser == "sgd":
            self.optimiser = torch.optim.SGD(groups, lr=s.optim.lr, momentum=0.9, nesterov=True)
        else:
            self.optimiser = torch.optim.AdamW(groups, lr=s.optim.lr, betas=(0.9, 0.98), fused=True)
        self.epoch, self.step, self.history = 0, 0, []
        self.best, self.stale = None, 0  # early stopping: the best epoch so far, and figures since that were no better
        self._begin_epoch()
        self._resume()
        self.board = None if self.board_dir is None else _board(self.board_dir, self.step)
        flops, size = mflop_per_frame(self.model), num_params(self.model)
        if self.step == 0:
            several = f", {self.processes.world} processes" if self.processes.world > 1 else ""
            self.log(f"{s.arch}: {size} parameters, {flops:.3f} MFLOP a frame, {self.precision} on {self.device}, "
                     f"{s.threads} threads{several}, {s.optim.epochs} epochs")
        while self.epoch < s.optim.epochs and not self._stopped():
            self._train_epoch()
        if self.board is not None:
            self.board.close()
        return self._finish(size, flops) if self.processes.first else {}

    def _begin_epoch(self) -> None:
        """The state of an epoch of which nothing is done yet."""
        self.batch, self.seconds = 0, 0.0  # batches of it that are done, what they took
        self.sums = {"train": 0.0, "hard": 0.0, "soft": 0.0, "frames": 0, "waited": 0.0}  # seconds, for data
        torch.manual_seed(self.settings.seed * 1_000_003 + self.epoch + 1_000_000_007 * self.processes.rank)

    def _train_epoch(self) -> None:
        s, world = self.settings, self.processes.world
        began = said = saved = time.time()
        before = self.seconds
        plan = self.data.plan(s.data.batch_frames, s.seed, self.epoch)
        batches = epoch_batches(self.data, plan, seed=s.seed, epoch=self.epoch, augment=s.augment,
                                workers=s.data.workers, first=self.batch, share=(self.processes.rank, world),
                                pin=self.device.type == "cuda")
        self.model.train()
        sums = self.sums
        asked = time.time()
        for number, batch in enumerate(batches, self.batch):
            sums["waited"] += time.time() - asked
            lr = learning_rate(s.optim, (self.epoch + number / len(plan)) / s.optim.epochs)
            for group in self.optimiser.param_groups:
                group["lr"] = lr
            frames = self.data.rows(plan[number])  # of all processes together
            self.optimiser.zero_grad(set_to_none=True)
            try:
                loss, _, _ = self._loss(self.parallel, batch, soft=True)
                (loss.total * world / frames).backward()  # the mean over processes is the sum over frames, divided
            except RuntimeError as error:
                raise self._out_of_memory(error, batch) from None
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.optim.grad_clip)
            value, hard, soft, norm = torch.stack([loss.total.detach(), loss.hard, loss.soft, norm]).tolist()
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise UserError(f"{self.dir}: the {'gradient' if math.isfinite(value) else 'loss'} of epoch "
                                f"{self.epoch + 1}, batch {number + 1} is not finite; lower optim.lr, or look at these "
                                f"utterances: {' '.join(sorted(set(batch.ids)))}")
            self.optimiser.step()
            self.step += 1
            if s.optim.constrain_every and self.step % s.optim.constrain_every == 0:
                self.model.constrain()
            if self.ema is not None:
                take_average(self.ema, self.model, min(s.optim.ema_decay, (1 + self.step) / (10 + self.step)))
            sums["train"] += value
            sums["hard"] += hard
            sums["soft"] += soft
            sums["frames"] += int(loss.num_frames)
            self.batch = number + 1
            if self.board is not None and self.step % 20 == 0:
                own = max(1, int(loss.num_frames))
                for name, scalar in (("batch/loss", value / own), ("batch/gradient_norm", norm), ("batch/lr", lr)):
                    self.board.add_scalar(name, scalar, self.step)
            now = time.time()
            if self._checkpoint_due(now - saved) and self.batch < len(plan):
                self.seconds = before + now - began
                self._save_checkpoint()
                saved = time.time()
            if now - said > 10:
                said = now
                done = self.epoch + (number + 1) / len(plan)
                spent = before + said - began + sum(h["seconds"] for h in self.history)
                self.say(f"epoch {self.epoch + 1}/{s.optim.epochs}, batch {number + 1}/{len(plan)}, "
                         f"loss {sums['train'] / max(1, sums['frames']):.3f}, "
                         f"{spent * (s.optim.epochs / done - 1):.0f} s to go")
            asked = time.time()
        self.epoch += 1
        train, hard, soft, frames, waited = self.processes.sums(list(sums.values()))
        dev_loss, dev_acc = self._evaluate()
        line = {"epoch": self.epoch, "train_loss": train / frames, "hard_loss": hard / frames,
                "soft_loss": soft / frames if self.soft is not None else None, "dev_loss": dev_loss,
                "dev_frame_acc": dev_acc, "seconds": 0.0, "data_seconds": round(waited / world, 3), "lr": lr}
        self.history.append(line)
        self._look_for_the_best(line)
        line["seconds"] = round(before + time.time() - began, 3)
        if self.board is not None:
            for name, scalar in line.items():
                if name not in ("epoch", "seconds", "data_seconds") and scalar is not None:
                    self.board.add_scalar(f"epoch/{name}", scalar, self.step)
        self._begin_epoch()
        self._save_checkpoint()
        left = (s.optim.epochs - self.epoch) * np.mean([h["seconds"] for h in self.history])
        soft = "" if self.soft is None else f" (hard {line['hard_loss']:.3f}, soft {line['soft_loss']:.3f})"
        dev = "" if dev_loss is None else f", dev loss {dev_loss:.3f}, dev frame accuracy {100 * dev_acc:.1f} %"
        if "dev_wer" in line:
            dev += f", dev WER {line['dev_wer']:.2f} %"
        to_go = f", {'' if self.best is None else 'at most '}{left:.0f} s to go" if left and not self._stopped() else ""
        self.log(f"epoch {self.epoch}/{s.optim.epochs}: loss {line['train_loss']:.3f}{soft}{dev}, "
                 f"{line['seconds']:.1f} s, {line['data_seconds']:.1f} of them waiting for data{to_go}")
        if self._stopped():
            self.log(f"stopped early: {self.stale} figures in a row no better than epoch {self.best['epoch']}'s "
                     f"{s.early_stopping.metric} of {self.best['value']:.3f}")

    # ---- early stopping

    def _look_for_the_best(self, line: dict) -> None:
        """Compares the epoch that ``line`` tells of with the best before it, where a figure of it is asked for."""
        e, final = self.settings.early_stopping, self.ema if self.ema is not None else self.model
        if e.metric == "none" or (self.epoch % e.every and self.epoch < self.settings.optim.epochs):
            return
        if e.metric == "dev_wer":
            value = 0.0
            if self.processes.first:
                folder = self.dir / "dev_wer"
                folder.mkdir(exist_ok=True)
                self._write_model(folder, final.state_dict())
                value = self.dev_wer(folder)
            line["dev_wer"], = self.processes.sums([value])
        if self.best is None or line[e.metric] < self.best["value"]:
            self.best = {"value": line[e.metric], "epoch": self.epoch,
                         "model": {name: x.detach().cpu().clone() for name, x in final.state_dict().items()}}
            self.stale = 0
        else:
            self.stale += 1

    def _stopped(self) -> bool:
        """Whether the figure of early stopping has not become better for too long."""
        return self.best is not None and self.stale >= self.settings.early_stopping.patience

    def _checkpoint_due(self, seconds: float) -> bool:
        """Whether a checkpoint is due, ``seconds`` after the last one; all processes answer the same."""
        c = self.settings.checkpoint
        if c.every_steps and self.step % c.every_steps == 0:
            return True
        # the clocks of processes differ, so the first one's counts, and is asked now and then
        return c.every_minutes > 0 and self.step % 10 == 0 and self.processes.told(seconds > 60 * c.every_minutes)

    def _out_of_memory(self, error: RuntimeError, batch) -> Exception:
        """A UserError in the place of PyTorch's when memory is short; anything else as it is."""
        text = str(error)
        if "memory" not in text or not ("alloc" in text or "out of memory" in text):
            return error
        return UserError(f"{self.dir}: not enough memory for a batch of {tuple(batch.feats.shape)} features "
                         f"(utterances {' '.join(sorted(set(batch.ids))[:5])}, ...); lower data.batch_frames or "
                         "data.chunk_frames")

    def _loss(self, model, batch, soft: bool):
        """(multitask loss, logits (N, C), hard labels (N,)) of a batch's N rows that count; the loss is a sum."""
        d = self.settings.distill
        # which rows count is looked up on the host: asking a GPU would wait for it
        rows = torch.nonzero(batch.hard.flatten() >= 0)[:, 0].to(self.device, non_blocking=True)
        batch = batch.to(self.device)
        hard, ids, probs = batch.hard.flatten()[rows], None, None
        if soft and batch.soft_probs is not None:
            probs = batch.soft_probs.flatten(0, 1)[rows]
            ids = None if batch.soft_ids is None else batch.soft_ids.flatten(0, 1)[rows]
            probs = retemper(probs, d.temperature, self.soft_temperature)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = model(batch.feats, batch.lens, keep=batch.keep, select=batch.hard >= 0)
        logits = logits.float()
        if probs is None:
            loss = multitask_loss(logits, hard, soft_weight=0.0)
        else:
            loss = multitask_loss(logits, hard, ids, probs, soft_weight=d.soft_weight, temperature=d.temperature,
                                  mass=d.mass)
        return loss, logits, hard

    @torch.no_grad()
    def _evaluate(self):
        """(cross-entropy, frame accuracy) of the averaged model on the dev data, or (None, None)."""
        if not self.dev_utterances:
            return None, None
        model = (self.ema if self.ema is not None else self.model).eval()
        hard, correct, frames = 0.0, 0, 0
        plan = [] if self.dev is None else self.dev.plan(self.settings.data.batch_frames, 0, None)
        for chunks in plan if self.dev_divided else plan[self.processes.rank::self.processes.world]:
            loss, logits, labels = self._loss(model, self.dev.batch(chunks), soft=False)
            hard, correct = hard + float(loss.hard), correct + int((logits.argmax(1) == labels).sum())
            frames += len(labels)
        hard, correct, frames = self.processes.sums([hard, correct, frames])
        return hard / frames, correct / frames

    # ---- what comes out

    def _save_checkpoint(self) -> None:
        random = {"cpu": self.processes.gather(torch.get_rng_state())}
        if self.device.type == "cuda":
            random["cuda"] = self.processes.gather(torch.cuda.get_rng_state(self.device))
        sums = dict(zip(self.sums, self.processes.sums(list(self.sums.values()))))
        if not self.processes.first:
            return
        state = {"fingerprint": self.fingerprint, "epoch": self.epoch, "batch": self.batch, "step": self.step,
                 "history": self.history, "sums": sums, "seconds": self.seconds, "random": random,
                 "model": self.model.state_dict(), "ema": None if self.ema is None else self.ema.state_dict(),
                 "optimiser": self.optimiser.state_dict(), "best": self.best, "stale": self.stale}
        save(state, self.dir / "checkpoint.pt")
        write_text(self.dir / "progress.jsonl", "".join(json.dumps(h) + "\n" for h in self.history))

    def _resume(self) -> None:
        path = self.dir / "checkpoint.pt"
        if not path.is_file():
            return
        state = load_checkpoint(path)
        check_fingerprint(path, state.get("fingerprint", {}), self.fingerprint)
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.best, self.stale = state.get("best"), state.get("stale", 0)
        self._begin_epoch()
        self.batch, self.seconds = state["batch"], state["seconds"]
        if self.processes.first:
            self.sums.update(state["sums"])
        rank, random = self.processes.rank, state["random"]
        if len(random["cpu"]) == self.processes.world:  # another number of processes cannot draw the same anyway
            torch.set_rng_state(random["cpu"][rank])
            if self.device.type == "cuda" and "cuda" in random:
                torch.cuda.set_rng_state(random["cuda"][rank], self.device)
        self.log(f"going on after epoch {self.epoch}" + (f" and {self.batch} batches" if self.batch else ""))

    def _write_model(self, folder: Path, state: dict) -> None:
        """A model directory that other commands read; final.pt last."""
        s = self.settings
        shutil.copyfile(self.ali_dir / "priors.txt", folder / "priors.txt")
        resolved = to_dict(s)
        resolved["model"] = model_settings(s.arch, s.model, "model")
        dump_settings({"arch": s.arch, "model": resolved["model"], "feat_dim": self.data.feat_dim,
                       "num_pdfs": self.num_pdfs, "frame_subsampling_factor": s.frame_subsampling_factor,
                       "cmn": s.data.cmn, "tree_hash": self.tree_hash,
                       "train": {k: v for k, v in resolved.items()
                                 if k not in ("arch", "model", "frame_subsampling_factor")}},
                      folder / "model.yaml")
        save({k: v.cpu() for k, v in state.items()}, folder / "final.pt")

    def _finish(self, size: int, flops: float) -> dict:
        s, last = self.settings, self.history[-1]
        final = self.ema if self.ema is not None else self.model
        if self.best is not None:
            final.load_state_dict(self.best["model"])
            last = self.history[self.best["epoch"] - 1]
        ahead = look_ahead(final)
        info = {"params": size, "mflop_per_frame": round(flops, 6),
                "look_ahead_ms": None if ahead is None else 10 * ahead, "epochs": self.epoch,
                "seconds": round(sum(h["seconds"] for h in self.history), 1), "steps": self.step,
                "dev_loss": last["dev_loss"], "dev_frame_acc": last["dev_frame_acc"], "precision": self.precision,
                "threads": s.threads, "device": str(self.device), "utterances": len(self.data.ids),
                "frames": int(self.data.frames.sum()), "tool_version": __version__, "fingerprint": self.fingerprint}
        if self.best is not None:
            info["best_epoch"] = self.best["epoch"]
            if "dev_wer" in last:
                info["dev_wer"] = last["dev_wer"]
        write_text(self.dir / "info.json", json.dumps(info, indent=1) + "\n")
        self._write_model(self.dir, final.state_dict())
        shutil.rmtree(self.dir / "dev_wer", ignore_errors=True)
        (self.dir / "checkpoint.pt").unlink()
        dev = "" if last["dev_loss"] is None else \
            f"dev loss {last['dev_loss']:.3f}, dev frame accuracy {100 * last['dev_frame_acc']:.1f} %, "
        self.log(f"{self.dir / 'final.pt'}: {dev}{info['seconds']:.0f} s")
        return info

    def log(self, message: str) -> None:
        """A line to train.log and stderr, from the first process alone."""
        if self.log_file is not None:
            self.log_file.write(message + "\n")
            self.log_file.flush()
        self.say(message)

    def say(self, message: str) -> None:
        if self.processes.first:
            print(message, file=sys.stderr, flush=True)


def _board(folder: Path, step: int):
    """A writer of TensorBoard's files that drops what an interrupted training wrote after ``step``."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard: the package tensorboard is not here (pip install tensorboard)") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _file_hash(path) -> str:
    path = Path(str(path)[4:] if str(path).startswith("scp:") else path)
    return sha256_file(path)[:16]
