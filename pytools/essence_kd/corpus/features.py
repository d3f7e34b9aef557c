"""MFCC, log-mel filterbanks and CMVN statistics with Kaldi's conventions, and three-way speed perturbation.

The formulas are those of Kaldi's feature-window.cc, mel-computations.cc and feature-mfcc.cc (snip-edges, povey window,
pre-emphasis 0.97, no dithering, C0 instead of the energy). A whole utterance is one matrix product per step, so one
core computes both kinds of features 2,000 times as fast as the speech was spoken. Up to the power spectrum the
arithmetic is in double precision: in single precision, as in Kaldi, quiet low bands are off by up to 0.003.
"""
from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np

from essence_kd.io.data_dir import DataDir, read_table, same_ids, write_table
from essence_kd.io.errors import UserError
from essence_kd.io.frames import FRAME_SHIFT_MS, SAMPLE_RATE
from essence_kd.io.parallel import run_jobs
from essence_kd.io.provenance import atomic_write, write_text
from essence_kd.io.recordings import Recordings
from essence_kd.io.specifiers import indexed
from essence_kd.io.tables import MatrixWriter, read_matrices
from essence_kd.io.wave import speed_command

KINDS = ("mfcc", "fbank")
SPEEDS = ("0.9", "1.0", "1.1")


@dataclass(frozen=True)
class FeatureOptions:
    """Names and meanings as in Kaldi's mfcc.conf and fbank.conf.

    sample_frequency: Hz of the audio. high_freq: Hz, from zero where it is above zero, else from half of the former.
    Raises UserError where nothing is left between low_freq and high_freq.
    """

    sample_frequency: int = SAMPLE_RATE
    frame_length_ms: float = 25.0
    frame_shift_ms: float = FRAME_SHIFT_MS
    low_freq: float = 20.0
    high_freq: float = -300.0
    num_mel_bins_mfcc: int = 23
    num_ceps: int = 13
    cepstral_lifter: float = 22.0
    num_mel_bins_fbank: int = 40
    preemphasis: float = 0.97

    def __post_init__(self) -> None:
        if not self.low_freq < self.top_freq <= self.sample_frequency / 2:
            raise UserError(f"audio of {self.sample_frequency} samples per second has no bands from "
                            f"{self.low_freq:g} to {self.top_freq:g} Hz: correct the sample rate")

    @property
    def top_freq(self) -> float:
        """Hz where the highest mel bin ends."""
        return self.high_freq if self.high_freq > 0 else self.sample_frequency / 2 + self.high_freq

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return int(self.sample_frequency * self.frame_length_ms / 1000)

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_frequency * self.frame_shift_ms / 1000)


def num_frames(num_samples: int, options: FeatureOptions = FeatureOptions()) -> int:
    """Frames of an utterance with snip-edges: only those that lie wholly inside."""
    return 0 if num_samples < options.window else 1 + (num_samples - options.window) // options.shift


def mel_banks(num_bins: int, fft_size: int, options: FeatureOptions) -> np.ndarray:
    """(fft_size // 2 + 1, num_bins) weights of triangular filters, equally spaced and triangular on the mel scale."""
    def mel(hz):
        return 1127.0 * np.log(1.0 + np.asarray(hz, dtype=np.float64) / 700.0)

    bins = mel(np.arange(fft_size // 2) * options.sample_frequency / fft_size)[:, None]
    edges = np.linspace(mel(options.low_freq), mel(options.top_freq), num_bins + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return np.vstack([weights, np.zeros(num_bins)]).astype(np.float32)  # Kaldi leaves the Nyquist bin out


def dct_matrix(num_bins: int, num_ceps: int) -> np.ndarray:
    """(num_bins, num_ceps) float64: log-mels times this are cepstra without lifter; its columns are orthonormal."""
    dct = np.sqrt(2.0 / num_bins) * np.cos(np.pi / num_bins * np.outer(np.arange(num_bins) + 0.5, np.arange(num_ceps)))
    dct[:, 0] = np.sqrt(1.0 / num_bins)
    return dct


class FeatureExtractor:
    """Computes the wanted kinds of features of an utterance in one pass."""

    def __init__(self, options: FeatureOptions = FeatureOptions(), kinds: Sequence[str] = KINDS) -> None:
        self.options, self.kinds = options, tuple(kinds)
        n = options.window
        self._fft_size = 1 << (n - 1).bit_length()
        # Everything before the FFT is linear: remove the mean, pre-emphasise (the first sample by itself), window.
        centred = np.eye(n) - 1.0 / n
        shifted = centred[:, [0, *range(n - 1)]]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n - 1))
        self._prepare = (centred - options.preemphasis * shifted) * hann**0.85  # (n, n)
        self._banks = {"mfcc": mel_banks(options.num_mel_bins_mfcc, self._fft_size, options),
                       "fbank": mel_banks(options.num_mel_bins_fbank, self._fft_size, options)}
        dct, ceps = dct_matrix(options.num_mel_bins_mfcc, options.num_ceps), np.arange(options.num_ceps)
        lifter = 1 + 0.5 * options.cepstral_lifter * np.sin(np.pi * ceps / options.cepstral_lifter)
        self._dct = (dct * lifter).astype(np.float32)  # (mel bins, cepstra)

    def __call__(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """samples: int16 (or float at int16 scale). Returns kind -> (frames, dim) float32; frames may be 0."""
        from scipy.fft import rfft

        options = self.options
        count = num_frames(len(samples), options)
        wave = np.ascontiguousarray(samples, dtype=np.float64)
        frames = np.lib.stride_tricks.as_strided(wave, (count, options.window), (8 * options.shift, 8))
        spectrum = rfft(frames @ self._prepare, self._fft_size, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)  # (frames, fft_size // 2 + 1)
        out = {}
        for kind in self.kinds:
            mel = np.log(np.maximum(power @ self._banks[kind], np.finfo(np.float32).eps))
            out[kind] = mel @ self._dct if kind == "mfcc" else mel
        return out


def hires_dir(path: str | Path) -> Path:
    """Where the filterbank features of a data directory lie: ``data/train`` -> ``data/train_hires``."""
    path = Path(path)
    return path.with_name(path.name + "_hires")


def make_feats(path: str | Path, kinds: Sequence[str] = KINDS, nj: int = 2,
               options: FeatureOptions = FeatureOptions()) -> dict[str, float]:
    """Computes features of a data directory: feats.scp (MFCC) in it, feats.scp (filterbank) in DIR_hires, a copy of it.

    Also writes utt2num_frames and utt2dur to both. Archives lie in DIR/data, one per process and kind. Utterances that
    are too short for a frame are counted, listed on stderr and left out; more than 5 % of them raise a UserError.
    Returns utterances, too_short, frames and seconds.
    """
    path, places = _places(path, kinds)
    jobs = _jobs(path, places, nj, options)
    for kind, place in places.items():
        if place != path:
            copy_data_dir(path, place)
        (place / "data").mkdir(exist_ok=True)
        _remove_feats(place, kind)
    try:
        results = run_jobs(_extract, jobs, nj)
    except BaseException:
        for kind, place in places.items():  # whole archives of some jobs, temporary files of others
            _remove_feats(place, kind)
        raise
    return _gather(path, places, jobs, results, options)


def make_feats_job(path: str | Path, number: int, of: int, kinds: Sequence[str] = KINDS,
                   options: FeatureOptions = FeatureOptions()) -> None:
    """The archives that job ``number`` of ``of`` has to write, for `join_feats`; there may be nothing to do for it.

    The archives are those of `make_feats` with as many processes. A job that ended well has left a file of counts.
    """
    path, places = _places(path, kinds)
    jobs = _jobs(path, places, of, options)
    if number > len(jobs):
        return
    for place in places.values():
        (place / "data").mkdir(parents=True, exist_ok=True)
    counts = _counts_file(jobs[number - 1])
    counts.unlink(missing_ok=True)
    write_text(counts, json.dumps(_extract(*jobs[number - 1])))


def join_feats(path: str | Path, of: int, kinds: Sequence[str] = KINDS,
               options: FeatureOptions = FeatureOptions()) -> dict[str, float]:
    """What `make_feats` does beside the archives, when all of ``of`` jobs have ended.

    Raises UserError where one has not.
    """
    path, places = _places(path, kinds)
    jobs = _jobs(path, places, of, options)
    for place in places.values():
        if place != path:
            copy_data_dir(path, place)
    results = []
    for number, job in enumerate(jobs, start=1):
        try:
            results.append(json.loads(_counts_file(job).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise UserError(f"{path}: features of job {number} of {of} are not there: it did not end well; "
                            "run it again") from None
    counts = _gather(path, places, jobs, results, options)
    for job in jobs:
        _counts_file(job).unlink()
    return counts


def _places(path: str | Path, kinds: Sequence[str]) -> tuple[Path, dict[str, Path]]:
    path = Path(path).absolute()
    if not kinds or set(kinds) - set(KINDS):
        raise UserError(f"there are no features '{','.join(set(kinds) - set(KINDS))}': choose from {','.join(KINDS)}")
    return path, {kind: path if kind == "mfcc" else hires_dir(path) for kind in kinds}


def _jobs(path: Path, places: dict[str, Path], nj: int, options: FeatureOptions) -> list[tuple]:
    """Arguments of `_extract`, at most nj times."""
    data = DataDir.load(path)
    return [(group, data.wav_scp, str(path / "wav.scp"),
             {kind: str(place / "data" / f"raw_{kind}.{n}") for kind, place in places.items()}, options)
            for n, group in enumerate(_split(data, nj), start=1)]


def _counts_file(job: tuple) -> Path:
    return Path(next(iter(job[3].values())) + ".json")


def _gather(path: Path, places: dict[str, Path], jobs: Sequence[tuple], results,
            options: FeatureOptions) -> dict[str, float]:
    """feats.scp, utt2num_frames and utt2dur of what the jobs wrote, each of which has returned (frames, seconds)."""
    frames: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for job_frames, job_seconds in results:
        frames.update(job_frames)
        seconds.update(job_seconds)
    short = [utt for utt, count in frames.items() if count == 0]
    if short:
        print(f"{path}: {len(short)} of {len(frames)} utterances are too short for a frame of "
              f"{options.frame_length_ms:g} ms and were left out: {' '.join(short[:10])}", file=sys.stderr)
    if len(short) > 0.05 * len(frames):
        raise UserError(f"{path}: {len(short)} of {len(frames)} utterances are too short (the first is {short[0]}): "
                        "correct segments")
    for kind in places:
        lines: dict[str, str] = {}
        for job in jobs:
            with open(job[3][kind] + ".scp", encoding="utf-8") as stream:
                lines.update((utt, place) for utt, place in (line.rstrip("\n").split(" ", 1) for line in stream))
        write_table(places[kind] / "utt2num_frames", {utt: str(frames[utt]) for utt in lines})
        write_table(places[kind] / "utt2dur", {utt: f"{seconds[utt]:.4f}" for utt in lines})
        write_table(places[kind] / "feats.scp", lines)
    return {"utterances": len(frames) - len(short), "too_short": len(short), "frames": sum(frames.values()),
            "seconds": sum(seconds.values())}


def _remove_feats(path: Path, kind: str) -> None:
    for file in [path / "feats.scp", *(path / "data").glob(f"raw_{kind}.*"), *(path / "data").glob(f".raw_{kind}.*")]:
        if file.exists():
            file.unlink()


def _split(data: DataDir, nj: int) -> list[list[tuple]]:
    """(utt, (recording, start, end), channel) in at most nj groups of about equal length; no recording is divided."""
    by_recording: dict[str, list[tuple]] = {}
    for utt, segment in data.utterances().items():
        by_recording.setdefault(segment[0], []).append((utt, segment, data.channels.get(utt)))
    lengths = [sum(end - start if end >= 0 else 5.0 for _, (_, start, end), _ in utts)
               for utts in by_recording.values()]
    total, done = sum(lengths), 0.0
    groups: list[list] = [[] for _ in range(max(1, nj))]
    for utts, length in zip(by_recording.values(), lengths):
        groups[min(len(groups) - 1, int(len(groups) * done / total))].extend(utts)
        done += length
    return [group for group in groups if group]


def _extract(utterances, wav_scp, scp_name: str, outputs: dict[str, str], options: FeatureOptions):
    """One process: every utterance of its recordings. Returns (utt -> frames, utt -> seconds)."""
    extractor = FeatureExtractor(options, tuple(outputs))
    frames: dict[str, int] = {}
    seconds: dict[str, float] = {}
    writers = {kind: MatrixWriter(indexed(f"{base}.ark", f"{base}.scp")) for kind, base in outputs.items()}
    try:
        recordings = Recordings(wav_scp, scp_name, options.sample_frequency)
        for utt, segment, channel in utterances:
            cut = recordings.cut(utt, segment, channel)
            frames[utt], seconds[utt] = num_frames(len(cut), options), len(cut) / options.sample_frequency
            if frames[utt]:
                for kind, matrix in extractor(cut).items():
                    writers[kind].write(utt, matrix)
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    for writer in writers.values():
        writer.close()
    return frames, seconds


def copy_data_dir(source: Path, target: Path) -> None:
    """Copies the tables of a data directory (not its features) and removes features that lay at the target."""
    target.mkdir(parents=True, exist_ok=True)
    skip = {"feats.scp", "cmvn.scp", "utt2num_frames", "utt2dur"}
    for name in skip:
        if (target / name).exists():
            (target / name).unlink()
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.name not in skip:
            with atomic_write(target / file.name) as temporary:
                shutil.copyfile(file, temporary)


def compute_cmvn(path: str | Path) -> dict[str, int]:
    """Kaldi's compute-cmvn-stats --spk2utt: cmvn.scp, a line per speaker, and data/cmvn.ark.

    A speaker's matrix is 2 x (dim + 1) float64: the sum of the frames and their number, the sum of their squares and 0.
    Returns speakers, utterances and missing (utterances of utt2spk without features, which are counted on stderr).
    """
    path = Path(path).absolute()
    data = DataDir.load(path)
    if not (path / "feats.scp").exists():
        raise UserError(f"{path}/feats.scp: no such file: run 'essence make-feats {path}' first")
    stats: dict[str, np.ndarray] = {}
    count = 0
    for utt, matrix in read_matrices(f"scp:{path}/feats.scp"):
        if utt not in data.utt2spk:
            raise UserError(f"{path}/utt2spk: lacks {utt}, which feats.scp has: run 'essence make-feats {path}' again")
        wide = matrix.astype(np.float64)
        total = stats.setdefault(data.utt2spk[utt], np.zeros((2, wide.shape[1] + 1)))
        total[0, :-1] += wide.sum(axis=0)
        total[1, :-1] += np.square(wide).sum(axis=0)
        total[0, -1] += len(wide)
        count += 1
    missing = len(data.utt2spk) - count
    if missing:
        print(f"{path}: {missing} of {len(data.utt2spk)} utterances have no features", file=sys.stderr)
    (path / "data").mkdir(exist_ok=True)
    with MatrixWriter(indexed(path / "data" / "cmvn.ark", path / "cmvn.scp")) as writer:
        for speaker in sorted(stats, key=lambda s: s.encode()):
            writer.write(speaker, stats[speaker])
    return {"speakers": len(stats), "utterances": count, "missing": missing}


def perturb_speed(source: str | Path, target: str | Path, speeds: Iterable[str] = SPEEDS) -> dict[str, int]:
    """Writes a data directory with every utterance at each speed, named as Kaldi's perturb_data_dir_speed_3way.sh does.

    Utterance, speaker and recording get the prefix ``sp0.9-``; the speed 1.0 keeps its names and its segments, to the
    digit. utt2uniq maps each to its origin. No audio is written: wav.scp ends in ``sox ... speed 0.9 |``, which
    make-feats does by itself, without sox. As in Kaldi, times at other speeds have two decimals, and segments of at
    most 10 ms are left out there, counted on stderr. Raises UserError where nothing is left.
    Returns utterances and speakers.
    """
    data = DataDir.load(source)
    if data.segments is not None:
        same_ids(data.path / "utt2spk", data.utt2spk, data.path / "segments", data.segments)
    if Path(source).absolute() == Path(target).absolute():
        raise UserError(f"{target}: the perturbed data need a directory of their own")
    out = DataDir(Path(target), {}, {}, {}, None if data.segments is None else {}, {"utt2uniq": {}})
    uniq = data.extra.get("utt2uniq", {})
    lines, short = {}, []
    for factor in speeds:
        speed = float(factor)
        if speed == 1 and data.segments is not None:
            lines = read_table(data.path / "segments")
        prefix = "" if speed == 1 else f"sp{factor}-"
        for reco, place in data.wav_scp.items():
            out.wav_scp[prefix + reco] = place if speed == 1 else speed_command(place, factor)
        for utt, speaker in data.utt2spk.items():
            if data.segments is not None:
                reco, start, end = data.segments[utt]
                if speed != 1:
                    start, end = start / speed, end if end == -1 else end / speed
                    if -1 < end <= start + 0.01:
                        short.append(prefix + utt)
                        continue
                    start, end = float(f"{start:.2f}"), float(f"{end:.2f}")
                out.segments[prefix + utt] = prefix + reco, start, end
                if utt in data.channels:
                    out.channels[prefix + utt] = data.channels[utt]
            out.utt2spk[prefix + utt] = prefix + speaker
            out.extra["utt2uniq"][prefix + utt] = uniq.get(utt, utt)
            if utt in data.text:
                out.text[prefix + utt] = data.text[utt]
        for name in ("spk2gender", "reco2file_and_channel"):
            for key, value in data.extra.get(name, {}).items():
                out.extra.setdefault(name, {})[prefix + key] = value
    if short:
        print(f"{target}: left out {len(short)} segments of at most 10 ms: {' '.join(short[:10])}", file=sys.stderr)
    if not out.utt2spk:
        raise UserError(f"{source}/segments: every segment has at most 10 ms at speed {','.join(speeds)}: correct the "
                        "times")
    out.write(target, segment_lines=lines)
    return {"utterances": len(out.utt2spk), "speakers": len(set(out.utt2spk.values()))}
