"""Connected digits made from the Free Spoken Digit Dataset: takes of one speaker, joined with short gaps.

The folder holds ``{digit}_{speaker}_{index}.wav`` (8 kHz, one channel) of any number of speakers. Held-out speakers
make eval_che, held-out takes of the others eval_swbd and dev, the rest train. Sizes and noise stand in ``SIZES`` and
``CONDITIONS``.

Every set has the same noise: its kinds in turn, each at levels spread evenly over its range (a set left to chance may
lack babble, in which most errors happen). Babble is other speakers' training takes, for every set. Half of dev is
spoken by its speakers in another voice (resampled takes), as eval_che is by speakers that training lacks.
"""
from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from essence_kd.corpus import channel
from essence_kd.corpus.channel import Condition
from essence_kd.corpus.phones import write_dict
from essence_kd.corpus.synth import SETS, Utterance, write_set
from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.parallel import run_jobs
from essence_kd.io.wave import change_speed, read_wav, write_wav

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEXICON = {
    "zero": ["Z IH R OW", "Z IY R OW"], "one": ["W AH N"], "two": ["T UW"], "three": ["TH R IY"], "four": ["F AO R"],
    "five": ["F AY V"], "six": ["S IH K S"], "seven": ["S EH V AX N"], "eight": ["EY T"], "nine": ["N AY N"],
}


@dataclass(frozen=True)
class Size:
    """How often a training take is used (in different utterances), share of takes used, words of the other sets."""

    uses: int
    share: float
    words: dict[str, int]


SIZES = {
    "tiny": Size(2, 0.35, {"dev": 240, "eval_swbd": 300, "eval_che": 300}),
    "default": Size(3, 1.0, {"dev": 1500, "eval_swbd": 2200, "eval_che": 2200}),
    "full": Size(10, 1.0, {"dev": 3000, "eval_swbd": 10500, "eval_che": 10500}),
}
TAKES = {"dev": 0.1, "eval_swbd": 0.2}  # shares of each training speaker's takes of each digit that are held out
_TRAIN = Condition(snr_db=(0.0, 15.0), reverb_seconds=(0.05, 0.3), direct_db=(5.0, 15.0), low_hz=(100.0, 300.0),
                   high_hz=(3400.0, 3700.0), tilt_db=(-4.0, 4.0))
CONDITIONS = {"train": _TRAIN, "dev": _TRAIN, "eval_swbd": _TRAIN, "eval_che": _TRAIN}
DIGITS = (4, 7)  # of an utterance
GAP = (0.03, 0.2)  # seconds between digits
OTHER_VOICES = ("5/6", "6/5")  # speeds of dev's other voices, beyond training's perturbation of 0.9 to 1.1
BABBLE = (7, 10)  # voices to choose from, takes each
UTTERANCES_A_SESSION = 4
SESSIONS_A_SHARD = 20


@dataclass(frozen=True)
class Session:
    """One recording: some utterances of one speaker, each a list of (digit, path of the take), and its line.

    speed: of the takes. babble: other speakers, each a list of takes, where the noise is babble.
    """

    name: str
    corpus_set: str
    speaker: str
    utterances: tuple[tuple[tuple[int, str], ...], ...]
    seed: tuple[int, ...]
    speed: str
    noise: str
    snr_db: tuple[float, float]
    babble: tuple[tuple[str, ...], ...]


def find_takes(folder: str | Path) -> dict[str, dict[int, list[str]]]:
    """speaker -> digit -> paths of takes in the order of their index. folder: the dataset's root or its recordings."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder: name the recordings of the Free Spoken Digit Dataset with --fsdd-dir"
        )
    if (folder / "recordings").is_dir():
        folder = folder / "recordings"
    found: dict[str, dict[int, dict[int, str]]] = {}
    for file in folder.iterdir():
        match = re.fullmatch(r"([0-9])_([A-Za-z0-9]+)_([0-9]+)\.wav", file.name)
        if match:
            found.setdefault(match.group(2), {}).setdefault(int(match.group(1)), {})[int(match.group(3))] = str(
                file.absolute()
            )
    if not found:
        raise UserError(
            f"{folder}: holds no recording named DIGIT_SPEAKER_INDEX.wav: name the dataset's folder with --fsdd-dir"
        )
    return {speaker: {digit: [path for _, path in sorted(takes.items())] for digit, takes in sorted(digits.items())}
            for speaker, digits in sorted(found.items())}


def plan_sessions(takes: dict[str, dict[int, list[str]]], size: Size, seed: int,
                  heldout: Optional[Sequence[str]] = None) -> list[Session]:
    """Divides speakers and takes among the sets and writes the digit strings.

    heldout: the speakers of eval_che; None: the last third of the names (at least one). A take is in one set only.
    """
    speakers = list(takes)
    if heldout is None:
        heldout = speakers[-max(1, round(len(speakers) / 3)):]
    unknown = [name for name in heldout if name not in takes]
    if unknown:
        raise UserError(f"--heldout-speakers: there is no speaker '{unknown[0]}': the folder has {' '.join(speakers)}")
    if not heldout or len(set(heldout)) == len(speakers):
        raise UserError(
            f"--heldout-speakers: of the speakers {' '.join(speakers)} at least one must be held out and one not"
        )
    rng = random.Random(f"fsdd {seed}")
    pools: dict[str, dict[str, list[tuple[int, str]]]] = {corpus_set: {} for corpus_set in SETS}
    for speaker, digits in takes.items():
        for digit, paths in digits.items():
            paths = rng.sample(paths, max(1, round(size.share * len(paths))))
            if speaker in heldout:
                parts = {"eval_che": paths}
            else:
                dev = max(1, round(TAKES["dev"] * len(paths)))
                rest = dev + max(1, round(TAKES["eval_swbd"] * len(paths)))
                parts = {"train": paths[rest:], "dev": paths[:dev], "eval_swbd": paths[dev:rest]}
            for corpus_set, part in parts.items():
                pools[corpus_set].setdefault(speaker, []).extend((digit, path) for path in part)
    sessions: list[Session] = []
    for corpus_set in SETS:
        voices = [(speaker, speaker, "1") for speaker in pools[corpus_set]]  # name, speaker, speed
        if corpus_set == "dev":
            voices += [(f"{speaker}x", speaker, OTHER_VOICES[i % 2]) for i, speaker in enumerate(pools["dev"])]
        available = sum(len(pools[corpus_set][speaker]) for _, speaker, _ in voices)
        if not available:
            raise UserError(f"too few takes for {corpus_set}: every speaker needs at least ten takes of each digit")
        uses = size.uses if corpus_set == "train" else max(1, -(-size.words[corpus_set] // available))
        spoken = []
        for name, speaker, speed in voices:
            utterances = []
            for _ in range(uses):
                order = rng.sample(pools[corpus_set][speaker], len(pools[corpus_set][speaker]))
                while order:
                    count = len(order) if len(order) <= DIGITS[1] else min(rng.randint(*DIGITS), len(order) - DIGITS[0])
                    utterances.append(tuple(order[:count]))
                    del order[:count]
            spoken += [(name, speaker, speed, i // UTTERANCES_A_SESSION, tuple(utterances[i: i + UTTERANCES_A_SESSION]))
                       for i in range(0, len(utterances), UTTERANCES_A_SESSION)]
        lines = draw_lines(rng, CONDITIONS[corpus_set], len(spoken))
        for (name, speaker, speed, number, spoken_there), (noise, snr_db) in zip(spoken, lines):
            babble = draw_babble(rng, pools["train"], speaker) if noise == "babble" else ()
            sessions.append(Session(f"{name}{corpus_set.replace('_', '')}{number:05d}", corpus_set, name, spoken_there,
                                    (seed, len(sessions)), speed, noise, snr_db, babble))
    return sessions


def draw_lines(rng: random.Random, condition: Condition, count: int) -> list[tuple[str, tuple[float, float]]]:
    """(kind of noise, range of its signal-to-noise ratio) of so many recordings: kinds in turn, from any one on.

    The recordings of a kind share out the condition's range, each a part of its own, in any order.
    """
    low, high = condition.snr_db
    first = rng.randrange(len(condition.noises))
    kinds = [condition.noises[(first + i) % len(condition.noises)] for i in range(count)]
    parts = {kind: rng.sample(range(kinds.count(kind)), kinds.count(kind)) for kind in condition.noises}
    lines = []
    for kind in kinds:
        width, part = (high - low) / kinds.count(kind), parts[kind].pop()
        lines.append((kind, (low + part * width, low + (part + 1) * width)))
    return lines


def draw_babble(rng: random.Random, train: dict[str, list[tuple[int, str]]],
                speaker: str) -> tuple[tuple[str, ...], ...]:
    """Takes of the voices behind a speaker: training takes of others (of all, where training has no one else)."""
    others = [takes for name, takes in train.items() if name != speaker] or list(train.values())
    voices, length = BABBLE
    return tuple(tuple(path for _, path in rng.choices(rng.choice(others), k=length)) for _ in range(voices))


def mix_sessions(sessions: Sequence[Session], wav_dir: str) -> list[Utterance]:
    """Joins, mixes and writes ``wav_dir/SET/SESSION-A.wav``; returns the utterances."""
    out: list[Utterance] = []
    for session in sessions:
        rng = np.random.default_rng([*session.seed, 1])
        pieces, spans, at = [], [], 0
        for utterance in session.utterances:
            pieces.append(np.zeros(int(rng.uniform(0.4, 0.8) * SAMPLE_RATE), np.float32))
            start = at + len(pieces[-1])
            joined = []
            for i, (_, path) in enumerate(utterance):
                if i:
                    joined.append(np.zeros(int(rng.uniform(*GAP) * SAMPLE_RATE), np.float32))
                joined.append(_take(path, session.speed))
            pieces.extend(joined)
            at = start + sum(map(len, joined))
            spans.append((start, at, " ".join(WORDS[digit] for digit, _ in utterance)))
        track = np.concatenate([*pieces, np.zeros(int(0.6 * SAMPLE_RATE), np.float32)])
        active = np.zeros(len(track), bool)
        for start, end, _ in spans:
            active[start:end] = True
        rng = np.random.default_rng([*session.seed, 2])
        condition = replace(CONDITIONS[session.corpus_set], noises=(session.noise,), snr_db=session.snr_db)
        others = [np.concatenate([_take(path) for path in paths]) for paths in session.babble]
        samples, _ = channel.record(rng, condition, track, active, others)
        folder = Path(wav_dir) / session.corpus_set
        folder.mkdir(parents=True, exist_ok=True)
        recording = f"{session.name}-A"
        write_wav(folder / f"{recording}.wav", samples, SAMPLE_RATE)
        for start, end, words in spans:
            first = max(0, round(100 * (start / SAMPLE_RATE - rng.uniform(0.05, 0.17))))
            last = round(100 * (end / SAMPLE_RATE + rng.uniform(0.05, 0.17)))
            out.append(Utterance(f"{session.speaker}-{recording}_{first:06d}-{last:06d}", session.speaker, recording,
                                 first / 100, last / 100, words))
    return out


def _take(path: str, speed: str = "1") -> np.ndarray:
    """A take at 8 kHz, so many times as fast, at a common level; short fades, so that no click gives its ends away."""
    rate, samples = read_wav(path)
    if rate != SAMPLE_RATE:
        raise UserError(f"{path}: has {rate} samples per second, not {SAMPLE_RATE}: resample it, "
                        f"for example with 'sox {path} -r {SAMPLE_RATE} out.wav'")
    voice = (samples if speed == "1" else change_speed(samples, speed)).astype(np.float32)
    voice /= np.sqrt(np.mean(voice**2)) + 1e-6
    fade = np.linspace(0, 1, min(40, len(voice) // 2), dtype=np.float32)
    voice[: len(fade)] *= fade
    voice[len(voice) - len(fade):] *= fade[::-1]
    return voice


def prepare_fsdd(folder: str | Path, out: str | Path, size: str = "default", seed: int = 1, nj: int = 2,
                 heldout: Optional[Sequence[str]] = None) -> dict[str, dict[str, float]]:
    """Makes train, dev, eval_swbd, eval_che, dict and wav/ in ``out``; returns counts per set (as ``synthesize``)."""
    if size not in SIZES:
        raise UserError(f"there is no size '{size}' of the fsdd corpus: it has {', '.join(SIZES)}")
    out = Path(out).absolute()
    sessions = plan_sessions(find_takes(folder), SIZES[size], seed, heldout)
    out.mkdir(parents=True, exist_ok=True)
    for corpus_set in SETS:
        shutil.rmtree(out / corpus_set, ignore_errors=True)
        shutil.rmtree(out / "wav" / corpus_set, ignore_errors=True)
    by_set = [[s for s in sessions if s.corpus_set == corpus_set] for corpus_set in SETS]
    shards = [part[i: i + SESSIONS_A_SHARD] for part in by_set for i in range(0, len(part), SESSIONS_A_SHARD)]
    mixed = run_jobs(mix_sessions, [(shard, str(out / "wav")) for shard in shards], nj)
    write_dict(out / "dict", LEXICON)
    counts = {}
    for corpus_set in SETS:
        utterances = [u for shard, result in zip(shards, mixed) if shard[0].corpus_set == corpus_set for u in result]
        counts[corpus_set] = write_set(out / corpus_set, utterances, out / "wav" / corpus_set)
    return counts
