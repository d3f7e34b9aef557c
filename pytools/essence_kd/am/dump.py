"""Teachers to ensemble to essence, streamed: one utterance at a time from archives, pipes or models, to archives.

A teacher is a table of matrices (``ark:...``, ``scp:...``, ``ark:command |``) or a model directory that is run on
features. What is written is any of: the whole posterior (float32 matrices), a wide sparse archive (the `keep` largest
at their true probability), or the essence itself. Where all teachers are models on a GPU, forward passes,
combination and selection happen there, and only the kept entries cross to the host.
"""
from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from essence_kd.am.models import read_model_yaml
from essence_kd.am.nnet3 import is_nnet3
from essence_kd.am.settings import ForwardSettings
from essence_kd.distill.archives import (WIDE, Progress, Tally, describe, frame_error, num_utterances, sidecar_of,
                                         target_sidecar, write_essence)
from essence_kd.distill.ensemble import Ensemble, combine, combine_top_k
from essence_kd.distill.entries import Essence
from essence_kd.distill.essence import EssenceSettings, entries_of, select
from essence_kd.distill.scales import Scale
from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS
from essence_kd.io.parallel import ahead
from essence_kd.io.posterior import PosteriorWriter
from essence_kd.io.provenance import check_match, check_utterances, sha256_file, sidecar_path, write_sidecar
from essence_kd.io.specifiers import parse_rspecifier, read_scp
from essence_kd.io.tables import MatrixTable, MatrixWriter, read_matrices

DESCRIBED = ("num_pdfs", "tree_hash", "frame_shift_ms")
WINDOW_FRAMES = 2_000_000  # feature frames of a window in which utterances are sorted by length


@dataclass
class DumpSettings:
    """What to read, how to combine, what to write."""

    teachers: List[str] = field(default_factory=list)  # rspecifiers of matrices or model directories
    output: str = ""  # wspecifier of the posteriors
    keep: Optional[int] = None  # entries of the wide archive (None: 100, or all there are); 0: `output` gets matrices
    essence: Optional[EssenceSettings] = None  # given: `output` gets the essence
    full: Optional[str] = None  # wspecifier of matrices, beside `output`
    feats: Optional[str] = None  # scp of features, for model directories
    combine: str = Ensemble.combine
    weights: List[float] = field(default_factory=list)
    temperatures: List[float] = field(default_factory=list)
    input: str = "prob"  # what the rspecifiers hold
    priors: Optional[str] = None  # one prior per line, divided out of every teacher
    prior_scale: float = ForwardSettings.prior_scale
    frame_shift_ms: Optional[float] = None  # where no model and no sidecar says it
    job: Optional[Tuple[int, int]] = None  # (J, N): the utterances alone that fall to the J-th of N jobs
    batch_frames: int = ForwardSettings.batch_frames
    device: Optional[str] = None
    threads: Optional[int] = None


def is_table(teacher: str) -> bool:
    """True for an rspecifier, False for a model directory."""
    head = teacher.partition(":")[0].split(",")
    return ":" in teacher and bool({"ark", "scp"} & set(head)) and not os.path.isdir(teacher)


def dump(settings: DumpSettings) -> Tally:
    """Write the ensemble's posteriors of every utterance. Raises UserError; no archive is left then."""
    if not settings.teachers:
        raise UserError("no teachers")
    for name in ("weights", "temperatures"):
        given = getattr(settings, name)
        if given and len(given) != len(settings.teachers) and (name == "weights" or len(given) > 1):
            raise UserError(f"--{name}: {len(given)} values for {len(settings.teachers)} teachers")
    if settings.job is not None and any(map(is_table, settings.teachers)):
        raise UserError("--job: shares out the utterances of --feats among jobs that run models; "
                        "a table is read as a whole")
    if settings.frame_shift_ms is not None and not 0 < settings.frame_shift_ms < math.inf:
        raise UserError(f"--frame-shift-ms {settings.frame_shift_ms:g}: must be more than 0")
    if not math.isfinite(settings.prior_scale):
        raise UserError(f"--prior-scale {settings.prior_scale}: must be a number")
    described = describe_teachers(settings)
    ensemble = _ensemble(settings, described)
    outputs = [_Output(settings.full, "dense", settings, ensemble, described)] if settings.full else []
    kind = "essence" if settings.essence else "dense" if settings.keep == 0 else "wide"
    outputs.append(_Output(settings.output, kind, settings, ensemble, described))

    tally = Tally()
    first = settings.teachers[0]
    progress = Progress("dump-post", num_utterances(first if is_table(first) else f"scp:{feats_path(settings.feats)}"))
    on_device = _device(settings)
    with contextlib.ExitStack() as stack:
        for output in outputs:
            stack.enter_context(output)
        if on_device is not None and _fits_device(settings):
            for utt, ids, probs in device_entries(settings, ensemble, outputs[0].width(), on_device):
                essence = outputs[0].from_entries(ids, probs)
                outputs[0].write_essence(utt, essence)
                tally.add(len(essence.kept), len(essence.ids), essence.kept)
                progress.show(tally)
        else:
            for utt, matrices in ahead(_aligned(settings)):
                try:
                    kept = _write_utterance(utt, matrices, ensemble, outputs, settings)
                except ValueError as error:
                    raise frame_error(" + ".join(settings.teachers), utt, error) from None
                tally.add(*kept)
                progress.show(tally)
        if not tally.num_utts and settings.job is None:
            raise UserError(f"{first}: holds no utterance")
    for output in outputs:
        output.describe(tally)
    return tally


def _device(settings: DumpSettings) -> Optional[str]:
    """The GPU to work on, or None. Raises UserError for a device that is not there."""
    if all(is_table(teacher) or is_nnet3(teacher) for teacher in settings.teachers):
        return None
    from essence_kd.am.processes import device_of

    device = device_of(settings.device)
    return str(device) if device.type == "cuda" else None


def _fits_device(settings: DumpSettings) -> bool:
    """Whether all teachers are models of ours, and all that is asked for comes from the largest entries of a frame."""
    if any(is_table(teacher) or is_nnet3(teacher) for teacher in settings.teachers):
        return False
    if settings.essence is None:
        return settings.full is None and settings.keep != 0
    return settings.full is None and settings.essence.rule().reach(None) is not None


# ---------------------------------------------------------------------------------------------------------- teachers

def describe_teachers(settings: DumpSettings) -> Dict[str, Any]:
    """num_pdfs, tree_hash, frame_shift_ms (as far as known) and models of the teachers, which must agree."""
    known: Dict[str, Any] = {}
    told: Dict[str, str] = {}  # what is known -> where it stands
    models: List[Dict[str, str]] = []
    for teacher in settings.teachers:
        if is_table(teacher):
            fields = {k: v for k, v in sidecar_of(teacher).items() if k in DESCRIBED and v is not None}
            name = sidecar_path(teacher) or teacher
            models.append({"name": teacher})
        else:
            if settings.feats is None:
                raise UserError(f"{teacher}: a model directory needs --feats scp:DATA/feats.scp (an archive is written "
                                f"ark:FILE or scp:FILE)")
            name = os.path.join(teacher, "model.yaml")
            model = read_model_yaml(teacher)
            fields = {k: model.get(k) for k in ("num_pdfs", "tree_hash") if model.get(k) is not None}
            fields["frame_shift_ms"] = round(FRAME_SHIFT_MS * model["frame_subsampling_factor"])
            file = "final.mdl" if is_nnet3(teacher) else "final.pt"
            models.append({"name": str(teacher), "sha256": sha256_file(os.path.join(teacher, file))})
        for key, value in fields.items():
            check_match(told.setdefault(key, name), {key: known.setdefault(key, value)}, name, fields, [key])
    if settings.frame_shift_ms is not None:
        shift = {"frame_shift_ms": settings.frame_shift_ms}
        check_match(told.get("frame_shift_ms", ""), known, "--frame-shift-ms", shift, shift)
        known.update(shift)
    return {**known, "models": models}


def _ensemble(settings: DumpSettings, described: Dict[str, Any]) -> Ensemble:
    count = len(settings.teachers)
    temperatures = settings.temperatures or [1.0]
    temperatures = temperatures * count if len(temperatures) == 1 else temperatures
    prior = None
    if settings.priors is not None:
        prior = settings.prior_scale * read_log_priors(settings.priors, described.get("num_pdfs"))
    try:
        scales = [Scale(settings.input if is_table(teacher) else "logit", t, prior, teacher)
                  for teacher, t in zip(settings.teachers, temperatures)]
        return Ensemble(scales, settings.weights, settings.combine)
    except ValueError as error:
        raise UserError(str(error)) from None


def _aligned(settings: DumpSettings) -> Iterator[Tuple[str, List[np.ndarray]]]:
    """(utterance, one matrix per teacher); utterances in the order of the first teacher. Raises UserError."""
    names = settings.teachers
    tables = {}
    for i, name in enumerate(names[1:], 1):
        if is_table(name):
            spec = parse_rspecifier(name)
            if spec.scp is not None and os.path.isfile(spec.scp) and not spec.flags:
                tables[i] = MatrixTable(name)
    listed = _listed(names[0] if is_table(names[0]) else f"scp:{feats_path(settings.feats)}")
    for i, table in tables.items():
        if listed is not None:
            check_utterances(names[0], listed, names[i], table)
    streams = [None if i in tables else _stream(name, settings) for i, name in enumerate(names)]
    for utt, matrix in streams[0]:
        matrices = [matrix]
        for i in range(1, len(names)):
            if i in tables:
                if utt not in tables[i]:
                    raise UserError(f"{names[i]}: lacks utterance {utt}, which {names[0]} has")
                matrices.append(tables[i][utt])
                continue
            other, value = next(streams[i], (None, None))
            if other != utt:
                have = "ends" if other is None else f"has {other}"
                raise UserError(f"{names[i]}: {have} where {names[0]} has utterance {utt}: the teachers must hold the "
                                f"same utterances in the same order (an scp may be in any order)")
            matrices.append(value)
        yield utt, matrices
    for i, stream in enumerate(streams):
        if stream is not None and i > 0:
            extra = next(stream, None)
            if extra is not None:
                raise UserError(f"{names[i]}: has utterance {extra[0]} after {names[0]} has ended")


def _listed(rspecifier: str) -> Optional[List[str]]:
    """The utterances of an scp file; None for anything else."""
    if num_utterances(rspecifier) is None:
        return None
    return [utt for _, utt, _, _ in read_scp(parse_rspecifier(rspecifier).scp)]


def _stream(teacher: str, settings: DumpSettings) -> Iterator[Tuple[str, np.ndarray]]:
    if is_table(teacher):
        return read_matrices(teacher)
    from essence_kd.am.forward import iter_logits

    return iter_logits(teacher, feats_path(settings.feats), batch_frames=settings.batch_frames, device=settings.device,
                       threads=settings.threads, job=settings.job)


def feats_path(feats: str) -> str:
    """The file name of ``--feats``, with or without ``scp:``."""
    return feats.removeprefix("scp:")


def device_entries(settings: DumpSettings, ensemble: Ensemble, k: int,
                   device: str) -> Iterator[Tuple[str, np.ndarray, np.ndarray]]:
    """(utterance, ids (T, k) int32, probs (T, k) float32) of models run on a device, in the order of the features.

    Utterances are sorted by length within windows of `WINDOW_FRAMES` feature frames and batched; the host reads the
    next batch and takes the entries of the last one while the device works. Only the k largest leave the device.
    """
    import torch

    from essence_kd.am.cmn import cmn_of_model
    from essence_kd.am.forward import load_model, share
    from essence_kd.am.sources import FeatureSource, load_cuts
    from essence_kd.distill import on_device

    models = [load_model(teacher, device) for teacher in settings.teachers]
    cuts = load_cuts(feats_path(settings.feats))
    kinds = [cmn_of_model(model[1], teacher) for teacher, model in zip(settings.teachers, models)]
    sources = {cmn: FeatureSource(cuts, cmn) for cmn in kinds}
    some = next(iter(sources.values()))
    for teacher, (model, _) in zip(settings.teachers, models):
        if some.feat_dim != model.feat_dim:
            raise UserError(f"{settings.feats}: features have {some.feat_dim} bins, but the model "
                            f"{teacher} takes {model.feat_dim}")
    factor = models[0][0].frame_subsampling_factor
    priors = [None if scale.log_prior is None else torch.as_tensor(scale.log_prior, dtype=torch.float32, device=device)
              for scale in ensemble.scales]
    frames = some.frames

    def batches():
        """(positions, their features by kind of mean subtraction, whether a window ends here)."""
        for batch, last in share(frames, WINDOW_FRAMES, settings.batch_frames, settings.job):
            padded = {cmn: torch.from_numpy(source.padded(batch)) for cmn, source in sources.items()}
            if device.startswith("cuda"):
                padded = {cmn: feats.pin_memory() for cmn, feats in padded.items()}
            yield batch, padded, last

    def launch(batch, padded):
        """Queue the work of a batch; the entries arrive when the device gets there."""
        with torch.inference_mode():
            lens = torch.from_numpy(frames[batch])
            rows = -(-lens // factor)
            select = (torch.arange(int(rows.max()))[None] < rows[:, None]).to(device, non_blocking=True)
            on = {cmn: feats.to(device, non_blocking=True) for cmn, feats in padded.items()}
            lens = lens.to(device, non_blocking=True)
            logits = [model(on[cmn], lens, select=select) for cmn, (model, _) in zip(kinds, models)]
            return on_device.top_k(on_device.combine(ensemble, logits, priors), k)

    ready: Dict[int, Tuple[np.ndarray, np.ndarray]] = {}
    before = None
    for batch, padded, last in ahead(batches()):
        work = launch(batch, padded)
        if before is not None:
            _collect(ready, before, frames, factor)
        before = (batch, work)
        if last:
            _collect(ready, before, frames, factor)
            before = None
            for i in sorted(ready):
                ids, probs = ready.pop(i)
                if np.isnan(probs).any():
                    raise frame_error(settings.feats, some.ids[i], ValueError("the models answer NaN"))
                yield some.ids[i], ids, probs


def _collect(ready: Dict[int, Tuple[np.ndarray, np.ndarray]], done, frames: np.ndarray, factor: int) -> None:
    """Take the entries of a batch to the host, an utterance each."""
    batch, (ids, probs) = done
    ids, probs = ids.cpu().numpy(), probs.cpu().numpy()
    start = 0
    for i in batch:
        stop = start + -(-int(frames[i]) // factor)
        ready[i] = ids[start:stop], probs[start:stop]
        start = stop


# ----------------------------------------------------------------------------------------------------------- outputs

class _Output:
    """One archive that is being written, and its sidecar."""

    def __init__(self, wspecifier: str, kind: str, settings: DumpSettings, ensemble: Ensemble,
                 described: Dict[str, Any]):
        self.wspecifier, self.kind, self.described = wspecifier, kind, dict(described)
        self.sidecar = target_sidecar(wspecifier, *filter(is_table, settings.teachers))
        if kind == "essence":
            self.essence = settings.essence
        elif kind == "wide":
            self.essence = EssenceSettings(select="top-k", top_k=settings.keep or WIDE, mass="keep")
        else:
            self.essence = None
        temperatures = [scale.temperature for scale in ensemble.scales]
        same = all(t == temperatures[0] for t in temperatures)
        # teachers at one temperature make a posterior at that temperature; different ones are a calibration
        self.fields = {"combine": ensemble.combine, "weights": ensemble.weights,
                       "temperature": temperatures[0] if same else 1.0, "teacher_temperatures": temperatures}
        if settings.priors is not None:
            self.fields.update(priors=os.path.abspath(settings.priors), prior_scale=settings.prior_scale)
        self.writer: Any = None
        self._may_be_fewer = kind == "wide" and settings.keep is None
        if described.get("num_pdfs") is not None:
            self.set_num_pdfs(described["num_pdfs"])

    def set_num_pdfs(self, num_pdfs: Optional[int]) -> None:
        """What the first frames tell (or model.yaml). Raises ValueError for another number than before."""
        known = self.described.get("num_pdfs")
        if num_pdfs is not None and known not in (None, num_pdfs):
            raise ValueError(f"{num_pdfs} columns, but there are {known} pdfs")
        self.described["num_pdfs"] = num_pdfs if known is None else known
        if self._may_be_fewer and num_pdfs is not None:
            self.essence.top_k = min(WIDE, num_pdfs)

    def width(self) -> Optional[int]:
        """How many of a frame's largest entries the rule looks at; None: at all."""
        return self.essence.rule().reach(self.described.get("num_pdfs"))

    def __enter__(self) -> "_Output":
        if self.kind == "dense":
            self.writer = MatrixWriter(self.wspecifier)
        else:
            self.writer = PosteriorWriter(self.wspecifier, num_pdfs=self.described.get("num_pdfs"))
        return self

    def __exit__(self, *exc) -> Optional[bool]:
        return self.writer.__exit__(*exc)

    def from_entries(self, ids: np.ndarray, probs: np.ndarray) -> Essence:
        """The rule applied to the largest entries of each frame."""
        return entries_of(ids, probs, self.essence)

    def write_essence(self, utt: str, essence: Essence) -> None:
        write_essence(self.writer, utt, essence)

    def describe(self, tally: Tally) -> None:
        """Write the sidecar."""
        if self.sidecar is None:
            return
        form = "matrix" if self.kind == "dense" else "compact" if self.writer.compact else "kaldi"
        fields = {**self.described, "kind": self.kind, "form": form, **(describe(self.essence) if self.essence else {}),
                  **tally.fields(), **self.fields}
        if self.essence is None:
            fields.update(selection="all", mean_mass=1.0, num_entries=tally.num_frames * (fields["num_pdfs"] or 0))
        write_sidecar(self.sidecar, fields)


def _write_utterance(utt: str, matrices: Sequence[np.ndarray], ensemble: Ensemble, outputs: Sequence[_Output],
                     settings: DumpSettings) -> Tuple[int, int, np.ndarray]:
    """Combine and write one utterance; (frames, entries, kept mass (T,)) of the last output. Raises ValueError."""
    threads = settings.threads
    num_pdfs = matrices[0].shape[1] if matrices[0].size else None
    for output in outputs:
        output.set_num_pdfs(num_pdfs)
    essence = outputs[-1].essence
    width = None if essence is None else outputs[-1].width()
    whole = None
    if outputs[0].kind == "dense" or width is None:
        whole = combine(ensemble, matrices, threads=threads)
    for output in outputs:
        if output.kind == "dense":
            output.writer.write(utt, whole)
    if essence is None:
        return len(whole), whole.size, np.ones(len(whole), np.float32)
    if whole is None:
        kept = outputs[-1].from_entries(*combine_top_k(ensemble, matrices, width, threads=threads))
    else:
        kept = select(whole, replace(essence, temperature=1.0), utt=utt, threads=threads, teachers=matrices)
    outputs[-1].write_essence(utt, kept)
    return len(kept.kept), len(kept.ids), kept.kept
