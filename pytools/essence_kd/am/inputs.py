"""What a training learns from: its inputs, opened, checked, and divided into training and dev data."""
from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from essence_kd.am.cmn import Cmn, cmn_of_training
from essence_kd.am.dataset import TrainingData
from essence_kd.am.processes import Processes
from essence_kd.am.settings import DataSettings, TrainInputs, TrainSettings
from essence_kd.am.shards import ShardSource, ShardTargets, is_sharded, read_index
from essence_kd.am.sources import FRAMES_PER_HOUR, FeatureSource, SourceOfSets, load_cuts, split_heldout
from essence_kd.am.targets import TargetsOfSets, attach_alignments, open_soft, open_untranscribed, read_count
from essence_kd.hmm.alignment_dir import read_log_priors, tree_hash
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import check_match, sha256_file
from essence_kd.io.recordings import sample_rate_of
from essence_kd.io.settings import to_dict


_NO_SIDECAR = "{} has no sidecar: that it belongs to this tree is taken on trust"


@dataclass(frozen=True)
class TrainingSets:
    """The data of one training, as far as this process sees them."""

    train: TrainingData  # with the soft targets, if there are any
    dev: Optional[TrainingData]  # for the dev loss; None where this process has nothing to evaluate
    dev_divided: bool  # whether each process has dev utterances of its own
    dev_utterances: int  # of all processes together
    num_pdfs: int
    cmn: Cmn  # what is taken from the features; a running mean begins with that of the training data
    tree_hash: Optional[str]
    sample_rate: Optional[int]  # Hz of the audio that the features were made of, where that is known
    without_alignment: int  # utterances that were left out
    left_out: int = 0  # utterances without transcript whose soft targets are unsure
    soft_temperature: float = 1.0  # at which the soft targets were made
    soft_mass: Optional[float] = None  # what their sidecar says of their mean mass
    untranscribed_mass: Sequence[Optional[float]] = ()  # likewise, of each set without transcripts

    @property
    def has_soft(self) -> bool:
        return self.train.soft is not None


def load_sets(inputs: TrainInputs, settings: TrainSettings, processes: Processes,
              log: Callable[[str], None]) -> TrainingSets:
    """Open and check everything that a training reads. Raises UserError where the inputs do not fit each other."""
    loader = _Loader(inputs, settings, processes)
    began = time.monotonic()
    sets = loader.from_shards() if is_sharded(inputs.data_dir) else loader.from_archives(log)
    data = sets.train
    if sets.dev is not None and sets.dev.feat_dim != data.feat_dim:
        raise UserError(f"{inputs.dev_data}: features have {sets.dev.feat_dim} bins, "
                        f"those of {inputs.data_dir} {data.feat_dim}")
    more = ""
    if data.shares:
        alone = data.source.set_of > 0
        more = (f" ({alone.sum()} of them, {data.frames[alone].sum() / FRAMES_PER_HOUR:.2f} h, without transcripts"
                + (f"; {sets.left_out} left out, whose mean best posterior is below {inputs.min_confidence:g}"
                   if inputs.min_confidence is not None else "") + ")")
    log(f"{len(data.ids)} utterances, {data.frames.sum() / FRAMES_PER_HOUR:.2f} h to train on{more}, "
        f"{sets.dev_utterances} for the dev loss, {sets.without_alignment} without alignment, "
        f"{sets.num_pdfs} pdfs; {'in memory' if data.in_memory else 'read from disk'}; "
        f"{time.monotonic() - began:.1f} s to load")
    if settings.early_stopping.metric == "dev_loss" and not sets.dev_utterances:
        raise UserError("early_stopping.metric is dev_loss, but there is no dev set: data.heldout is 0")
    return sets


class _Loader:
    """What both kinds of inputs, archives and shards, need to become training and dev data."""

    def __init__(self, inputs: TrainInputs, settings: TrainSettings, processes: Processes) -> None:
        self.inputs, self.settings, self.processes = inputs, settings, processes
        self.data_dir, self.ali_dir = Path(inputs.data_dir), Path(inputs.ali_dir)
        self.num_pdfs = read_count(self.ali_dir / "num_pdfs")
        self.tree_hash = tree_hash(self.ali_dir)
        self.factor = settings.frame_subsampling_factor
        read_log_priors(self.ali_dir / "priors.txt", self.num_pdfs)  # go with the model: refused now, not at its end

    def from_archives(self, log: Callable[[str], None]) -> TrainingSets:
        """Of a Kaldi data directory."""
        s, inputs = self.settings, self.inputs
        soft: Any = None
        temperature, mass = 1.0, None
        if inputs.soft is not None:
            soft, temperature, sidecar = open_soft(inputs.soft, inputs.soft_kind, self.ali_dir, self.factor)
            mass = sidecar.get("mean_mass")
            if not sidecar:
                log(_NO_SIDECAR.format(inputs.soft))
        cuts, hard, without = self._labelled(self.data_dir, self.ali_dir)
        added = open_untranscribed(inputs.untranscribed or (), self.data_dir, cuts, self.ali_dir,
                                   soft=soft and (temperature, inputs.soft), kind=inputs.soft_kind, factor=self.factor,
                                   min_confidence=inputs.min_confidence)
        dev = None
        if inputs.dev_data is None:
            chosen, held = split_heldout(cuts, s.data.heldout)
            if held:
                dev = cuts.take(held), [hard[i] for i in held]
            cuts, hard = cuts.take(chosen), [hard[i] for i in chosen]
        cmn = cmn_of_training(s.data, lambda: FeatureSource(cuts, "none"))
        if dev is not None:
            dev = FeatureSource(dev[0], cmn), dev[1]
        source: Any = self._source(cuts, cmn, self.data_dir)
        shares = inputs.shares_of(1 + len(added))
        if added:
            source = SourceOfSets([source, *(self._source(more.cuts, cmn, more.folder) for more in added)])
            soft = TargetsOfSets([soft, *(more.targets for more in added)], [part.ids for part in source.sources])
            temperature = added[0].temperature
        for more in added:
            hard += more.labels(self.factor)
            if not more.sidecar:
                log(_NO_SIDECAR.format(more.scp))
        return self._sets(source, hard, soft, dev, False, shares=shares if added else (),
                          sample_rate=sample_rate_of(self.data_dir),
                          left_out=sum(more.left_out for more in added), without_alignment=without,
                          soft_temperature=temperature, soft_mass=mass,
                          untranscribed_mass=[more.sidecar.get("mean_mass") for more in added])

    def _source(self, cuts, cmn: Cmn, data_dir) -> FeatureSource:
        """Features of some utterances of a data directory, stored or computed from its audio."""
        if self.settings.data.features != "on-the-fly":
            return FeatureSource(cuts, cmn)
        from essence_kd.am.audio import audio_source

        return audio_source(cuts, cmn, data_dir, self.settings.augment)

    def from_shards(self) -> TrainingSets:
        """Of data in shards, which hold alignments and soft targets, too."""
        folder, d, inputs = self.data_dir, self.settings.data, self.inputs
        index = read_index(folder)
        if self.ali_dir.resolve() != folder.resolve():
            raise UserError(f"{folder}: these shards hold their alignments: name them as ALI_DIR too, "
                            f"not {self.ali_dir}")
        if d.features != "precomputed":
            raise UserError(f"{folder}: shards hold features: data.features must be precomputed")
        if inputs.untranscribed:
            raise UserError(f"{folder}: shards hold what has no transcript: essence shard --untranscribed writes it")
        mine = {"num_pdfs": self.num_pdfs, "frame_subsampling_factor": self.factor, "tree_hash": self.tree_hash}
        check_match(folder / "shards.json", index, "this training", mine, mine)
        cmn = cmn_of_training(d, lambda: ShardSource(folder, "train", "none", d.shards_at_once))
        source = ShardSource(folder, "train", cmn, d.shards_at_once)
        soft, temperature = None, 1.0
        if inputs.soft is not None:
            if Path(inputs.soft).resolve() != folder.resolve() or index["soft"] is None:
                raise UserError(f"--soft {inputs.soft}: soft targets of shards are in them (--soft {folder}; "
                                "essence shard --soft writes them)")
            soft, temperature = ShardTargets(source, index["soft"]["kind"] == "dense"), index["soft"]["temperature"]
        shares = inputs.shares_of(1 + index.get("untranscribed_sets", 0))
        if len(shares) > 1 and soft is None:
            raise UserError(f"{folder}: has utterances without transcripts: train with --soft {folder}")
        dev = None
        if inputs.dev_data is None:  # each process takes its own shards
            held = ShardSource(folder, "heldout", cmn, 1, (self.processes.rank, self.processes.world))
            dev = (held, None) if len(held) else None
        return self._sets(source, None, soft, dev, True, shares=shares if len(shares) > 1 else (),
                          sample_rate=index.get("sample_rate"),
                          left_out=index.get("left_out", 0), without_alignment=index["without_alignment"],
                          soft_temperature=temperature)

    def _labelled(self, data_dir, ali_dir):
        return attach_alignments(load_cuts(Path(data_dir) / "feats.scp"), ali_dir, self.num_pdfs, self.factor)

    def _sets(self, source, hard: Optional[List], soft, dev: Optional[Tuple], divided: bool, shares: Sequence[float],
              **more) -> TrainingSets:
        """``dev``: what is held out, (source, labels) or None; ``divided``: by each process utterances of its own."""
        alone, d = self.processes.world == 1, self.settings.data
        # several processes would each keep what all of them read
        train = self._data(source, hard, soft, preload=alone and d.features == "precomputed", shares=shares)
        if self.inputs.dev_data is not None:
            cuts, labels, _ = self._labelled(self.inputs.dev_data, self.inputs.dev_ali)
            dev, divided = (FeatureSource(cuts, source.cmn), labels), False
        dev = None if dev is None else self._data(dev[0], dev[1], None, preload=divided or alone)
        count = 0 if dev is None else len(dev.ids)
        return TrainingSets(train, dev, divided, int(self.processes.sums([count])[0]) if divided else count,
                            self.num_pdfs, source.cmn, self.tree_hash, **more)

    def _data(self, source, hard, soft, preload: bool, shares: Sequence[float] = ()) -> TrainingData:
        d = self.settings.data
        return TrainingData(source, hard, self.num_pdfs, self.factor, chunk_frames=d.chunk_frames,
                            left_context=d.left_context, right_context=d.right_context, soft=soft,
                            preload_mb=d.preload_mb if preload else 0, sampler=d.sampler,
                            processes=self.processes.world, shares=shares,
                            repeat_edges=d.edges == "repeat")


def fingerprint(inputs: TrainInputs, settings: TrainSettings, sets: TrainingSets, precision: str,
                dev_wer=None) -> Dict[str, Union[str, float]]:
    """What a checkpoint must agree with, by name: settings that change the model, and the data."""
    values = to_dict(settings)
    for key in ("threads", "precision", "checkpoint"):
        values.pop(key)
    for key in ("preload_mb", "workers"):
        values["data"].pop(key)
    if settings.early_stopping.metric == "none":
        values.pop("early_stopping")
    if settings.data.cmn != "online":
        for key in ("cmn_prior", "cmn_window", "cmn_look_ahead"):
            values["data"].pop(key)
    if settings.data.edges == DataSettings.edges:
        values["data"].pop("edges")
    data, noise = sets.train, settings.augment.noise
    ids = hashlib.sha256("\n".join(data.ids).encode())
    ids.update(data.frames.tobytes())
    shards = _file_hash(data.source.folder / "shards.json") if data.sharded else None
    found: Dict[str, Union[str, float]] = {"settings": json.dumps(values, sort_keys=True), "precision": precision,
             "utterances": ids.hexdigest()[:16],
             "alignments": shards or hashlib.sha256(data.hard.tobytes()).hexdigest()[:16],
             "soft targets": "none" if inputs.soft is None else shards or _file_hash(inputs.soft),
             "noise": "none" if not noise else _file_hash(noise),
             "initial model": "none" if inputs.init is None else _file_hash(Path(inputs.init) / "final.pt")}
    if sets.soft_mass is not None:  # targets that were made anew may have the same index
        found["mass of the soft targets"] = sets.soft_mass
    if data.shares:
        found["shares"] = ",".join(map(str, data.shares))
        found["untranscribed targets"] = shards or ",".join(_file_hash(scp) for _, scp in inputs.untranscribed)
        found["mass of the untranscribed targets"] = ",".join(map(str, sets.untranscribed_mass))
    if settings.data.features == "precomputed":  # of other machines' computing they are the same but for rounding
        count, content = len(data.ids), hashlib.sha256()
        for i in (0, count // 2, count - 1):
            content.update(data.source.raw(i).tobytes())
        found["features of three utterances"] = content.hexdigest()[:16]
    if dev_wer is not None:
        found["set and graph of early stopping"] = dev_wer.fingerprint
    return found


def _file_hash(path) -> str:
    path = Path(str(path)[4:] if str(path).startswith("scp:") else path)
    return sha256_file(path)[:16]
