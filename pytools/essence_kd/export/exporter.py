"""One export from beginning to end: checks, files, comparison with PyTorch, README.md, export.json.

Everything is written into a hidden folder beside OUT, which takes OUT's place when its scores are those of PyTorch.
"""
from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Type

import numpy as np

from essence_kd.am.cmn import cmn_of_model, without_mean
from essence_kd.corpus.features import FeatureOptions
from essence_kd.export.format import FORMATS, TOLERANCE, ExportSettings, Format, Source, Written, rate_of_model, runtime
from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.hmm.graph import load_graph
from essence_kd.io.data_dir import DataDir
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import check_match, staging_path, write_sidecar, write_text, writing_failed
from essence_kd.io.recordings import Recordings
from essence_kd.io.wave import write_wav

SIDECAR = "export.json"
LENGTHS = (1, 2, 3, 4, 5, 7, 10, 24, 46, 99, 150, 301, 1000)  # frames of the utterances that are compared


def export(name: str, model_dir, out, graph_dir=None, settings: Optional[ExportSettings] = None) -> str:
    """Write a model in the format ``name`` into the folder ``out``; a line that tells what is there.

    An earlier export in its place is replaced. Raises UserError where model, graph and format do not go together, and
    where what was written does not answer as PyTorch does; ``out`` is then as it was.
    """
    settings = settings or ExportSettings()
    settings.check()
    out, kind = Path(out), FORMATS.get(name, "--format")
    if out.exists() and not (out / SIDECAR).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there, and no export: name another folder, or remove it")
    for module, distribution in kind.packages.items():
        runtime(module, distribution, f"--format {name}")
    source = load_source(kind, model_dir, graph_dir, settings)
    rate = rate_of_model(source.model_dir / "model.yaml", source.about.get("sample_rate"), settings.sample_rate)
    settings = dataclasses.replace(settings, sample_rate=rate)
    made = kind(source, settings)
    made.check()
    folder = Path(staging_path(out))
    try:
        folder.mkdir(parents=True)
        written = made.write(folder)
        worst, speed = compare(made, folder), speed_text(made, folder)
        test_wavs = write_test_wavs(settings, folder)
        _describe(made, folder, written, worst, test_wavs)
        _replace(folder, out)
    except OSError as error:
        raise writing_failed(out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return f"{out}: {name} of {model_dir}, {size:,} bytes; largest difference to PyTorch {worst:.2g}{speed}"


def load_source(kind: Type[Format], model_dir, graph_dir, settings: ExportSettings) -> Source:
    """Model, priors and graph. Raises UserError where they do not fit each other or the format cannot hold them."""
    from essence_kd.am.forward import load_model
    from essence_kd.am.models import read_model_yaml
    from essence_kd.am.nnet3 import is_nnet3

    if is_nnet3(model_dir):
        raise UserError(f"{model_dir}: is Kaldi's own network already: only models of 'essence train' are exported")
    model_dir, about = Path(model_dir), read_model_yaml(model_dir)
    for key, can in (("arch", kind.architectures), ("cmn", kind.cmn)):
        if about.get(key) not in can:
            streams = "; such as conf/models/student_tdnn_online.yaml trains" if "online" in can else ""
            raise UserError(f"{model_dir / 'model.yaml'}: {key} is '{about.get(key)}', which the format {kind.name} "
                            f"cannot hold (it holds {', '.join(can)}{streams})")
    if settings.int8 is not None and settings.int8 not in kind.int8:
        raise UserError(f"--int8 {settings.int8}: the format {kind.name} has "
                        + (f"only {', '.join(kind.int8)}" if kind.int8 else "no int8"))
    if kind.needs_graph and graph_dir is None:
        raise UserError(f"--format {kind.name} needs a graph: essence export --format {kind.name} MODEL_DIR GRAPH_DIR "
                        "OUT")
    if not kind.needs_graph and graph_dir is not None:
        raise UserError(f"--format {kind.name} takes no graph: leave out {graph_dir}")
    bins = FeatureOptions.num_mel_bins_fbank
    if kind.needs_front_end and about.get("feat_dim") != bins:
        raise UserError(f"{model_dir / 'model.yaml'}: the model takes {about.get('feat_dim')} feature bins, but the "
                        f"front end that is exported makes {bins}: these features were not made by 'essence "
                        "make-feats'")
    model, about = load_model(model_dir)
    priors = read_log_priors(model_dir / "priors.txt", model.num_pdfs, settings.prior_floor).astype(np.float32)
    source = Source(model_dir, model, about, priors)
    if graph_dir is not None:
        source.graph_dir, source.graph = Path(graph_dir), load_graph(Path(graph_dir) / "graph.npz")
        check_graph(model_dir / "model.yaml", about, source.graph_dir, source.graph)
    return source


def front_end(settings: ExportSettings) -> FeatureOptions:
    """The features that every model is trained on."""
    return FeatureOptions(sample_frequency=settings.sample_rate)


def check_graph(where, about: Dict[str, Any], graph_dir, graph) -> None:
    """Raises UserError where a graph is of another tree or frame rate than the model that ``about`` tells of."""
    mine = {key: about[key] for key in ("num_pdfs", "frame_subsampling_factor", "tree_hash")
            if about.get(key) is not None}
    theirs = {key: value for key, value in graph.meta.items() if value is not None}
    check_match(where, mine, Path(graph_dir) / "graph.npz", theirs, mine)


def torch_scores(made: Format, feats: np.ndarray) -> np.ndarray:
    """What PyTorch answers: acoustic scale x (log p - prior scale x log prior), float32 (R, num_pdfs)."""
    import torch

    from essence_kd.am.forward import scores

    source, settings = made.source, made.settings
    cmn = cmn_of_model(source.about, source.model_dir)
    if cmn == "utterance" and made.exact_mean:
        feats = feats - feats.mean(axis=0, dtype=np.float64).astype(np.float32)
    else:
        feats = without_mean(feats, cmn)
    with torch.inference_mode():
        logits = source.model(torch.from_numpy(feats)[None], torch.tensor([len(feats)]))[0].numpy()
    return np.float32(settings.acoustic_scale) * scores(logits, "loglike", source.log_priors, settings.prior_scale)


def trial_features(source: Source) -> Iterator[np.ndarray]:
    """Features float32 (T, feat_dim) like the model's training data, T from LENGTHS."""
    rng = np.random.default_rng(1)
    mean, std = source.model.feat_mean.numpy(), 1 / source.model.feat_inv_std.numpy()
    level = 0 if source.about["cmn"] == "none" else 15  # of log-mels of speech at 16 bits
    for frames in LENGTHS:
        yield (level + mean + std * rng.standard_normal((frames, len(mean)))).astype(np.float32)


def compare(made: Format, folder: Path) -> float:
    """The largest difference between scores of PyTorch and of what was written.

    Raises UserError where it is above TOLERANCE, but for int8, whose error is told and not judged.
    """
    worst = made.difference
    for feats in trial_features(made.source):
        theirs = made.verify(folder, feats)
        if theirs is None:
            continue
        ours = torch_scores(made, feats)
        if theirs.shape != ours.shape:
            raise UserError(f"{made.source.model_dir}: exported as {made.name}, {len(feats)} frames give scores of "
                            f"shape {theirs.shape}, in PyTorch {ours.shape}")
        difference = float(np.abs(theirs - ours).max())
        if not difference <= TOLERANCE and made.settings.int8 is None:
            raise UserError(f"{made.source.model_dir}: exported as {made.name}, the scores of {len(feats)} frames "
                            f"differ from PyTorch's by {difference:.3g}, more than {TOLERANCE:g}: nothing was left")
        worst = max(worst, difference)
    return worst


def speed_text(made: Format, folder: Path) -> str:
    """What the network takes, the least of five passes, where what was written runs here."""
    timed = made.timed(folder)
    if timed is None:
        return ""
    (run, seconds), spent = timed, []
    for _ in range(5):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    return f"; {1000 * min(spent) / seconds:.2g} ms of processor time per second of audio"


def write_test_wavs(settings: ExportSettings, folder: Path, count: int = 3) -> list[str]:
    """The first utterances of --test-data as test_wavs/ID.wav, and their words in test_wavs/trans.txt; their names."""
    if settings.test_data is None:
        return []
    data, names = DataDir.load(settings.test_data), []
    recordings = Recordings(data.wav_scp, data.path / "wav.scp", settings.sample_rate)
    (folder / "test_wavs").mkdir()
    for utt, segment in itertools.islice(data.utterances().items(), count):
        names.append(f"test_wavs/{re.sub('[^A-Za-z0-9._-]', '_', utt)}.wav")
        write_wav(folder / names[-1], recordings.cut(utt, segment, data.channels.get(utt)), settings.sample_rate)
    lines = zip(names, itertools.islice(data.utterances(), count))
    write_text(folder / "test_wavs" / "trans.txt",
               "".join(f"{Path(name).name} {data.text.get(utt, '')}\n" for name, utt in lines))
    return names


def _describe(made: Format, folder: Path, written: Written, worst: float, test_wavs: list[str]) -> None:
    source, settings, ends = made.source, made.settings, front_end(made.settings)
    about = {key: source.about.get(key) for key in ("arch", "cmn", "num_pdfs", "feat_dim", "frame_subsampling_factor",
                                                    "tree_hash")}
    fields = {"kind": "export", "format": made.name, **about, "row_ms": source.row_ms,
              "front_end": dataclasses.asdict(ends) if about["feat_dim"] == ends.num_mel_bins_fbank else None,
              "acoustic_scale": settings.acoustic_scale, "prior_scale": settings.prior_scale,
              "word_insertion_penalty": settings.word_insertion_penalty, "beam": settings.beam,
              "max_active": settings.max_active, "int8": settings.int8,
              "largest_difference": float(f"{worst:.3g}"), "test_wavs": test_wavs, **written.fields}
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*"))
             if file.is_file()}
    table = "".join(f"| `{name}` | {size:,} |\n" for name, size in sizes.items())
    readme = written.readme.replace("{worst}", f"{worst:.2g}").rstrip()
    write_text(folder / "README.md", f"{readme}\n\n## Files\n\n| file | bytes |\n|---|---|\n{table}")
    write_sidecar(folder / SIDECAR, {**fields, "bytes": sizes})


def _replace(folder: Path, out: Path) -> None:
    """Put a folder in the place of an earlier export."""
    if out.exists():
        old = Path(staging_path(out))
        os.rename(out, old)
        os.rename(folder, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(folder, out)
