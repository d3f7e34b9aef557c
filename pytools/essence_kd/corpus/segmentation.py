"""Audio without transcripts: which of it is speech, and long utterances cut at silences, by energy."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np

from essence_kd.io.data_dir import DataDir, same_ids
from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.parallel import run_jobs
from essence_kd.io.recordings import Recordings

FRAMES = 100  # frames per second, of 10 ms
MAX_SECONDS = 15.0
SILENT_RMS = 16.0  # of int16 samples: what is never louder holds no speech (64 dB below full scale)
RANGE_DB = 6.0  # where loud and soft frames of a long utterance differ by less, nobody speaks
MARGIN = 20  # frames that are kept on both sides of speech
PAUSE = 50  # frames; shorter pauses do not divide an utterance
SHORTEST = 30  # frames of speech, below which it is none


def energies(samples: np.ndarray, rate: int) -> np.ndarray:
    """int16 samples (N,) -> dB of each whole frame of 10 ms (T,), the mean of 11 frames."""
    size = rate // FRAMES
    frames = samples[:len(samples) // size * size].reshape(-1, size).astype(np.float64)
    power = (frames * frames).mean(axis=1)
    sums = np.concatenate([[0.0], np.cumsum(power)])
    first, last = (np.clip(np.arange(len(power)) + n, 0, len(power)) for n in (-5, 6))
    return 10 * np.log10((sums[last] - sums[first]).clip(0) / (last - first) + 1e-3)


def pieces(level: np.ndarray, most: int) -> Optional[List[Tuple[int, int]]]:
    """Where there is speech: (first frame, last frame + 1) of pieces of at most ``most`` frames.

    level: what `energies` gives, (T,). An utterance of at most ``most`` frames is not cut: None, or no piece where it
    is silent. In a longer one, frames are speech that are louder than a third of the way from its soft ones (10th
    percentile) to its loud ones (95th). Speech of more than ``most`` frames without a pause is cut where it is softest.
    """
    if not len(level) or level.max() < 20 * np.log10(SILENT_RMS):
        return []
    if len(level) <= most:
        return None
    soft, loud = np.percentile(level, (10, 95))
    soft = max(soft, 0.0)  # digital silence is as soft as it likes
    if loud - soft < RANGE_DB or loud < 20 * np.log10(SILENT_RMS):
        return []
    speech = np.concatenate([[False], level > soft + (loud - soft) / 3, [False]])
    edges = np.flatnonzero(np.diff(speech.astype(np.int8)))
    runs: List[List[int]] = []
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist()):
        if runs and first - runs[-1][1] < PAUSE:
            runs[-1][1] = last
        else:
            runs.append([first, last])
    found: List[Tuple[int, int]] = []
    for first, last in runs:
        if last - first >= SHORTEST:
            found += _divided(level, max(0, first - MARGIN), min(len(level), last + MARGIN), most)
    return found


def _divided(level: np.ndarray, first: int, last: int, most: int) -> List[Tuple[int, int]]:
    """Parts of at most ``most`` frames, cut where the middle half is softest."""
    length = last - first
    if length <= most:
        return [(first, last)]
    begin, end = first + length // 4, last - length // 4
    at = begin + int(level[begin:end].argmin())
    return _divided(level, first, at, most) + _divided(level, at, last, most)


def segment(source: str | Path, target: str | Path, *, max_seconds: float = MAX_SECONDS,
            audio_of: str | Path | None = None, sample_rate: int = SAMPLE_RATE, nj: int = 2) -> Dict[str, float]:
    """Write ``target``, a data directory of the speech of ``source``: utterances of more than ``max_seconds`` are cut.

    A piece is called UTTERANCE-FIRST-LAST, with its times in the utterance in hundredths of a second; utt2uniq maps it
    to its utterance. Silent utterances are left out. Texts are not taken along.

    Args:
        audio_of: another rendering of the same utterances, by whose audio it is decided: both are then cut alike.

    Returns counts: utterances (of source), pieces, cut, silent; seconds of the pieces.

    Raises:
        UserError: no speech at all, utterances that the other rendering has not, audio that cannot be read.
    """
    if not max_seconds >= 1:
        raise UserError(f"--max-seconds {max_seconds:g}: must be at least 1")
    data, heard = DataDir.load(source), DataDir.load(audio_of or source)
    utterances, spoken = data.utterances(), heard.utterances()
    if audio_of is not None:
        same_ids(data.path / "utt2spk", utterances, heard.path / "utt2spk", spoken)
    jobs = [(str(heard.path / "wav.scp"), heard.wav_scp, [(utt, spoken[utt], heard.channels.get(utt)) for utt in part],
             round(FRAMES * max_seconds), sample_rate) for part in _parts(spoken, nj)]
    places = {utt: found for result in run_jobs(_decide, jobs, nj) for utt, found in result.items()}
    out = DataDir(Path(target), data.wav_scp, {}, {}, {}, {"utt2uniq": {}})
    if "reco2file_and_channel" in data.extra:
        out.extra["reco2file_and_channel"] = data.extra["reco2file_and_channel"]
    seconds, cut, silent = 0.0, 0, []
    for utt, (reco, start, end) in utterances.items():
        frames, found = places[utt]
        if found is None:
            rows = [(utt, start, end, frames / FRAMES)]
        else:
            rows = [(f"{utt}-{first:07d}-{last:07d}", start + first / FRAMES, start + last / FRAMES,
                     (last - first) / FRAMES) for first, last in found]
            cut += bool(rows)
        for name, begin, finish, length in rows:
            out.segments[name] = reco, begin, finish
            out.utt2spk[name], out.extra["utt2uniq"][name] = data.utt2spk[utt], utt
            if utt in data.channels:
                out.channels[name] = data.channels[utt]
            seconds += length
        if not rows:
            silent.append(utt)
    if silent:
        print(f"{source}: {len(silent)} of {len(utterances)} utterances have no speech and are left out: "
              f"{' '.join(silent[:10])}", file=sys.stderr)
    if not out.utt2spk:
        raise UserError(f"{heard.path}: no speech in any of its {len(utterances)} utterances: is this the right audio?")
    out.write(target)
    return {"utterances": len(utterances), "pieces": len(out.utt2spk), "cut": cut, "silent": len(silent),
            "seconds": seconds}


def _parts(utterances: Dict[str, Tuple[str, float, float]], nj: int) -> List[List[str]]:
    """Utterances in at most nj groups; those of a recording stay together."""
    order = sorted(utterances, key=lambda utt: utterances[utt][0])
    groups: List[List[str]] = [[] for _ in range(max(1, nj))]
    number: Dict[str, int] = {}
    for utt in order:
        groups[number.setdefault(utterances[utt][0], len(number)) % len(groups)].append(utt)
    return [group for group in groups if group]


def _decide(where: str, wav_scp, utterances, most: int, rate: int) -> Dict[str, Tuple[int, Optional[list]]]:
    """One process: of each utterance its frames of 10 ms and its `pieces`."""
    recordings, found = Recordings(wav_scp, where, rate), {}
    for utt, place, channel in utterances:
        samples = recordings.cut(utt, place, channel)
        level = energies(samples, rate)
        found[utt] = len(level), pieces(level, most)
    return found
