"""All settings of trainings, shards and scores, as dataclasses; their defaults stand here. It needs no PyTorch."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Sequence, Tuple, Union

from essence_kd.distill.ensemble import Ensemble
from essence_kd.distill.essence import EssenceSettings
from essence_kd.distill.mass_rules import MASS_RULES
from essence_kd.hmm.alignment_dir import PRIOR_FLOOR
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SUBSAMPLING_FACTOR


@dataclass
class DataSettings:
    """How utterances become batches; frames are feature frames of 10 ms."""

    chunk_frames: int = 300
    left_context: int = 21
    right_context: int = 21
    batch_frames: int = 9600  # frames of a batch, context and padding included
    sampler: str = "pooled"  # or bucketing: lhotse's DynamicBucketingSampler
    cmn: str = "utterance"  # mean subtraction: none, utterance, speaker, or online: a running mean, for streaming
    cmn_prior: int = 200  # online: frames that the mean of the training data counts as
    cmn_window: int = 600  # online: frames that the running mean is of, at most: the last ones
    cmn_look_ahead: int = 0  # online: frames after the one at hand that are among them
    edges: str = "zeros"  # what left_context and right_context are beyond an utterance: zeros, or repeat: end frames
    heldout: float = 0.05  # share of original utterances kept for the dev loss
    preload_mb: int = 3000  # features and soft targets up to this size are kept in memory
    workers: int = 1  # processes that read batches when they are not
    features: str = "precomputed"  # or on-the-fly: from the audio of DATA_DIR; feats.scp then tells their number alone
    shards_at_once: int = 4  # of data in shards: how many are shuffled together, in memory


@dataclass
class AugmentSettings:
    """SpecAugment (no masks: none) and noise, which needs data.features=on-the-fly."""

    freq_masks: int = 2
    freq_width: int = 6  # bins
    time_masks: int = 1
    time_width: int = 20  # frames
    noise: str = ""  # wav.scp of noise recordings
    noise_share: float = 0.5  # of utterances
    snr_low: float = 5.0  # dB
    snr_high: float = 20.0


@dataclass
class OptimSettings:
    """AdamW or SGD, with linear warm-up and decay; the final model is the moving average of the parameters."""

    optimiser: str = "adamw"  # or sgd (Nesterov's momentum, 0.9), which wants a learning rate ten or more times as high
    epochs: int = 12
    lr: float = 0.002
    warmup: float = 0.05  # share of all steps
    schedule: str = "cosine"  # cosine, exponential or linear decay from lr to final_lr * lr
    final_lr: float = 0.02
    weight_decay: float = 0.01
    grad_clip: float = 5.0  # most norm of the gradient of the mean loss
    ema_decay: float = 0.99  # 0: the last parameters are final
    constrain_every: int = 4  # steps between semi-orthogonal constraints


@dataclass
class DistillSettings:
    """The soft loss, when soft targets are given."""

    loss: str = "cross-entropy"  # a file of distill/losses, or a plugin's
    parameters: dict = field(default_factory=dict)  # of the loss
    soft_weight: float = EssenceSettings.soft_weight
    temperature: float = EssenceSettings.temperature
    mass: str = EssenceSettings.mass  # a file of distill/mass_rules, or a plugin's


@dataclass
class CheckpointSettings:
    """When a checkpoint is written, beside the one after every epoch; 0: never."""

    every_minutes: float = 5.0
    every_steps: int = 0


@dataclass
class EarlyStoppingSettings:
    """When a training ends before its last epoch; the final model is then that of the epoch with the best figure."""

    metric: str = "none"  # dev_loss, dev_wer (of ``data``, decoded with ``graph``), or none: all epochs, the last model
    patience: int = 3  # figures in a row that are no better than the best before them
    every: int = 1  # epochs between two figures
    data: str = ""  # Kaldi data directory with feats.scp and text
    graph: str = ""  # graph directory (essence make-graph)
    acoustic_scale: Optional[float] = None  # None: the default of essence decode
    decoder: Optional[str] = None  # likewise


@dataclass
class TrainSettings:
    """All settings of a training; ``model`` holds the architecture's own (models/ARCH.py)."""

    arch: str = "tdnn"
    model: dict = field(default_factory=dict)
    frame_subsampling_factor: int = FRAME_SUBSAMPLING_FACTOR
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    early_stopping: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)
    seed: int = 1
    threads: int = 1
    precision: str = "auto"  # auto, float32 or bfloat16


SOFT_KINDS = ("post", "dense")  # of soft targets: Kaldi Posterior, or matrices of probabilities


@dataclass(frozen=True)
class TrainInputs:
    """What a training reads; the names of files and directories may be any path or text."""

    data_dir: Union[str, Path]  # Kaldi data directory: feats.scp, maybe utt2spk and utt2uniq; or shards
    ali_dir: Union[str, Path]  # ali.scp, num_pdfs, priors.txt, tree.txt; shards hold theirs themselves
    soft: Union[str, Path, None] = None  # scp of soft targets, one row per output frame; None: hard labels alone
    soft_kind: str = SOFT_KINDS[0]
    init: Union[str, Path, None] = None  # model directory to start from, of the same architecture and sizes
    dev_data: Union[str, Path, None] = None  # data for the dev loss, in the place of a held-out share
    dev_ali: Union[str, Path, None] = None  # its alignments
    # data directories without transcripts, each with the scp of its soft targets, from which alone it is learnt
    untranscribed: Optional[Sequence[Tuple[Union[str, Path], Union[str, Path]]]] = None
    shares: Optional[Sequence[float]] = None  # of data_dir and of each of these, in an epoch; None: all of each
    min_confidence: Optional[float] = None  # least mean best posterior of an utterance without transcript

    def __post_init__(self) -> None:
        if (self.dev_data is None) != (self.dev_ali is None):
            raise UserError("--dev-data and --dev-ali belong together")
        if not all(0 < share < float("inf") for share in self.shares or ()):
            raise UserError(f"--shares {','.join(map(str, self.shares))}: shares are numbers above 0")
        check_confidence(self.min_confidence, self.untranscribed)

    def shares_of(self, sets: int) -> Sequence[float]:
        """The share of each of so many sets; all of it where nothing is said. Raises UserError: another number."""
        if self.shares is not None and sets == 1:
            raise UserError("--shares: there is no --untranscribed that an epoch could draw a share of")
        if self.shares is not None and len(self.shares) != sets:
            raise UserError(f"--shares {','.join(map(str, self.shares))}: {len(self.shares)} shares of {sets} sets: "
                            "one for DATA_DIR, and one for each --untranscribed")
        return tuple(self.shares or [1.0] * sets)


def check_confidence(least: Optional[float], untranscribed) -> None:
    """Refuses what --min-confidence cannot be."""
    if least is not None and not (untranscribed and 0 <= least <= 1):
        raise UserError(f"--min-confidence {least}: " + ("must be from 0 to 1" if untranscribed else
                                                         "there is no --untranscribed whose utterances it chooses"))


@dataclass(frozen=True)
class ShardSettings:
    """How training data are written as shards."""

    soft: Union[str, Path, None] = None  # scp of soft targets, which go into the shards
    soft_kind: str = TrainInputs.soft_kind
    untranscribed: Optional[Sequence[Tuple[Union[str, Path], Union[str, Path]]]] = None  # as in TrainInputs
    min_confidence: Optional[float] = None  # likewise
    shard_size: int = 500  # utterances
    heldout: float = DataSettings.heldout  # share of original utterances set apart for the dev loss
    seed: int = TrainSettings.seed  # of the order of utterances
    frame_subsampling_factor: int = TrainSettings.frame_subsampling_factor

    def __post_init__(self) -> None:
        check_confidence(self.min_confidence, self.untranscribed)
        if self.untranscribed and self.soft is None:
            raise UserError("--untranscribed needs --soft: in shards, all utterances have soft targets")


@dataclass(frozen=True)
class ForwardSettings:
    """Which scores trained models give, and how they are run."""

    output: str = "loglike"  # log p - prior_scale * log prior; or logprob, prob, logit
    combine: str = Ensemble.combine  # how the posteriors of several models become one
    weights: Optional[str] = None  # of the models, with commas between; None: all the same
    prior_scale: float = 1.0
    prior_floor: float = PRIOR_FLOOR
    batch_frames: int = 30000  # feature frames of a batch, padding included
    stream: bool = False  # every utterance by itself and in chunks, as while it is spoken
    chunk_ms: float = 300.0  # of a stream
    threads: int = 1  # on a CPU
    device: Optional[str] = None  # None: cuda where there is one, else cpu


def check_settings(s: TrainSettings) -> None:
    """UserError where no training can use a value. Those of ``model`` are models.registry.model_settings' to check."""
    bad = [("frame_subsampling_factor", s.frame_subsampling_factor >= 1, "at least 1"),
           ("threads", s.threads >= 1, "at least 1"),
           ("seed", s.seed >= 0, "at least 0"),
           ("data.left_context", s.data.left_context >= 0, "at least 0"),
           ("data.right_context", s.data.right_context >= 0, "at least 0"),
           ("data.workers", s.data.workers >= 0, "at least 0"),
           ("data.cmn_prior", s.data.cmn_prior >= 0, "at least 0"),
           ("data.cmn_look_ahead", s.data.cmn_look_ahead >= 0, "at least 0"),
           ("data.cmn_window", s.data.cmn_window > s.data.cmn_look_ahead, "above data.cmn_look_ahead"),
           ("data.edges", s.data.edges in ("zeros", "repeat"), "zeros or repeat"),
           *((f"augment.{name}", getattr(s.augment, name) >= 0, "at least 0")
             for name in ("freq_masks", "freq_width", "time_masks", "time_width")),
           ("augment.noise_share", 0 <= s.augment.noise_share <= 1, "from 0 to 1"),
           ("augment.snr_low", s.augment.snr_low <= s.augment.snr_high, "at most augment.snr_high"),
           ("augment.noise", not s.augment.noise or s.data.features == "on-the-fly",
            "empty where data.features is not on-the-fly: noise is mixed into audio"),
           ("data.features", s.data.features in ("precomputed", "on-the-fly"), "precomputed or on-the-fly"),
           ("data.shards_at_once", s.data.shards_at_once >= 1, "at least 1"),
           ("precision", s.precision in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
           ("optim.optimiser", s.optim.optimiser in ("adamw", "sgd"), "adamw or sgd"),
           ("optim.epochs", s.optim.epochs >= 1, "at least 1"),
           ("optim.lr", s.optim.lr > 0, "above 0"),
           ("optim.final_lr", 0 <= s.optim.final_lr <= 1, "from 0 to 1: a share of optim.lr"),
           ("optim.weight_decay", s.optim.weight_decay >= 0, "at least 0"),
           ("optim.grad_clip", s.optim.grad_clip > 0, "above 0"),
           ("optim.constrain_every", s.optim.constrain_every >= 0, "at least 0"),
           ("optim.warmup", 0 <= s.optim.warmup < 1, "from 0 to below 1"),
           ("optim.schedule", s.optim.schedule in ("cosine", "exponential", "linear"), "cosine, exponential or linear"),
           ("optim.ema_decay", 0 <= s.optim.ema_decay < 1, "from 0 to below 1"),
           ("checkpoint.every_minutes", s.checkpoint.every_minutes >= 0, "at least 0"),
           ("checkpoint.every_steps", s.checkpoint.every_steps >= 0, "at least 0"),
           ("early_stopping.metric", s.early_stopping.metric in ("none", "dev_loss", "dev_wer"),
            "none, dev_loss or dev_wer"),
           ("early_stopping.patience", s.early_stopping.patience >= 1, "at least 1"),
           ("early_stopping.every", s.early_stopping.every >= 1, "at least 1"),
           ("early_stopping.acoustic_scale", s.early_stopping.acoustic_scale is None
            or s.early_stopping.acoustic_scale > 0, "above 0"),
           ("data.heldout", 0 <= s.data.heldout < 1, "from 0 to below 1"),
           ("data.sampler", s.data.sampler in ("pooled", "bucketing"), "pooled or bucketing"),
           ("data.batch_frames", s.data.batch_frames >= 1, "at least 1"),
           ("data.chunk_frames", s.data.chunk_frames >= s.frame_subsampling_factor,
            "at least frame_subsampling_factor"),
           ("distill.soft_weight", 0 <= s.distill.soft_weight <= 1, "from 0 to 1"),
           ("distill.temperature", s.distill.temperature > 0, "above 0"),
           ("distill.mass", s.distill.mass in MASS_RULES, f"one of {', '.join(MASS_RULES.names(plugins=False))}")]
    for name, good, wanted in bad:
        if not good:
            raise UserError(f"settings: {name} must be {wanted}")
