"""The mini corpus: invented telephone conversations, spoken by eSpeak NG over noisy lines.

Everything that decides how large and how difficult it is stands in ``SIZES`` and ``POPULATIONS``. The same seed gives
the same bytes on the same machine, whatever the number of processes.
"""
from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from essence_kd.corpus import channel
from essence_kd.corpus.channel import Condition
from essence_kd.corpus.grammar import Grammar
from essence_kd.io.data_dir import DataDir
from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.parallel import run_jobs
from essence_kd.io.provenance import write_text
from essence_kd.io.wave import write_wav


@dataclass(frozen=True)
class Size:
    """Words and speakers of each set (a word takes 0.28 s), words of a call, topics, extra sentences of LM text.

    Calls of other sets than train are shorter where that many speakers need it.
    """

    words: dict[str, int]
    speakers: dict[str, int]
    call: int
    topics: int
    lm_sentences: int
    pool: tuple[int, int]  # words and speakers of each set without transcripts; these come on request

    def next_call(self, corpus_set: str, written: int, spoken: int) -> int:
        """Words of the next call of a set that has ``written`` words, when ``spoken`` of its speakers have had one."""
        words = self.words[corpus_set] - written
        share = self.call if corpus_set == "train" else 2 * words // max(2, self.speakers[corpus_set] - spoken)
        return min(self.call, max(60, min(share, words)))


SIZES = {
    "tiny": Size({"train": 1500, "dev": 420, "eval_swbd": 420, "eval_che": 420},
                 {"train": 20, "dev": 6, "eval_swbd": 6, "eval_che": 6}, call=130, topics=3, lm_sentences=500,
                 pool=(700, 10)),
    "default": Size({"train": 9600, "dev": 2000, "eval_swbd": 2200, "eval_che": 2400},
                    {"train": 52, "dev": 16, "eval_swbd": 32, "eval_che": 32}, call=200, topics=10, lm_sentences=1500,
                    pool=(9600, 52)),
    "full": Size({"train": 103000, "dev": 5000, "eval_swbd": 10500, "eval_che": 10500},
                 {"train": 240, "dev": 16, "eval_swbd": 40, "eval_che": 40}, call=300, topics=12, lm_sentences=5000,
                 pool=(103000, 240)),
}


@dataclass(frozen=True)
class Population:
    """Who speaks in a set, and over what lines. Pairs are ranges.

    women, men: variants of eSpeak's voices, in no other set. accents: weights. rate: words per minute. pitch,
    pitch_range: eSpeak's 0 to 100. formants: factor on all formants (the length of the vocal tract). fillers:
    probability of a filler before a word. repeats: probability that a sentence starts over.
    """

    women: tuple[str, ...]
    men: tuple[str, ...]
    accents: dict[str, float]
    rate: tuple[int, int] = (150, 205)
    pitch: tuple[int, int] = (25, 75)
    pitch_range: tuple[int, int] = (30, 80)
    formants: tuple[float, float] = (0.92, 1.12)
    fillers: tuple[float, float] = (0.0, 0.05)
    repeats: tuple[float, float] = (0.0, 0.12)
    condition: Condition = Condition()


# Left out: variants that breathe (their noise differs from run to run), clip, whisper, or have nothing above 1 kHz.
_AMERICAN = {"en-us": 0.7, "en-us-nyc": 0.15, "en-gb-x-rp": 0.15}
POPULATIONS = {
    "train": Population(
        tuple("Andrea aunty f1 shelby zac".split()),
        tuple("adam Alex Andy boris david Denis edward Gene grandpa ian iven3 john klatt3 Lee m1 m3 m4 m7 marcelo "
              "Mario Michael michel Mike pablo pedro quincy rob Tweaky".split()),
        _AMERICAN,
    ),
    "dev": Population(("grandma",), ("m5", "miguel", "iven2"), _AMERICAN),
    "eval_swbd": Population(("f4", "linda"), ("m6", "robert", "benjamin", "max", "travis"), _AMERICAN),
    "eval_che": Population(
        ("Annie", "belinda"),
        ("m2", "Hugo", "RicishayMax", "edward2", "Nguyen", "klatt6"),
        {"en-029": 0.15, "en-gb-scotland": 0.35, "en-gb-x-gbclan": 0.35, "en-gb-x-gbcwmd": 0.15},
        rate=(170, 220),
        fillers=(0.0, 0.08),
        repeats=(0.05, 0.2),
        condition=Condition(
            snr_db=(2.0, 17.0),
            reverb_seconds=(0.1, 0.5),
            direct_db=(1.0, 12.0),
            low_hz=(250.0, 450.0),
            high_hz=(2900.0, 3500.0),
            tilt_db=(-10.0, 5.0),
        ),
    ),
}
LEXICON_ACCENTS = ("en-us", "en-us", "en-us-nyc", "en-gb-x-rp")  # weights of pronunciations by repetition
SETS = tuple(POPULATIONS)
TESTS = ("eval_swbd", "eval_che")
# Who speaks in the sets without transcripts: train's population; and one with the accents, the haste and the lines of
# eval_che, but with the voices of train, so that no voice of a test set is heard.
POOLS = {
    "untranscribed_swbd": POPULATIONS["train"],
    "untranscribed_che": replace(POPULATIONS["eval_che"], women=POPULATIONS["train"].women,
                                 men=POPULATIONS["train"].men),
}
LESS_NOISE = 15.0  # dB, in the clean rendering of each of POOLS
EVAL_DRAWS = 10  # eval seeds 0 to 9: none of their sentences is in the set without transcripts
STRAY = 0.5  # of the things and deeds, from another topic than the call's: perplexity
FIRST_IN_POOL = {"untranscribed_swbd": 5001, "untranscribed_che": 7001}  # number of the first speaker there
CALLS_A_SHARD = 2  # calls spoken by one process, in order


@dataclass(frozen=True)
class Speaker:
    """One voice: a variant of eSpeak's and what of Population's ranges was drawn for it (see there for the units)."""

    name: str
    gender: str
    accent: str
    variant: str
    rate: float
    pitch: float
    pitch_range: float
    formants: float
    fillers: float
    repeats: float


@dataclass(frozen=True)
class Call:
    """One telephone conversation: two speakers and who says what in which order."""

    name: str
    corpus_set: str
    sides: tuple[Speaker, Speaker]
    turns: tuple[tuple[int, str, bool], ...]  # (side, words, whether it is said while the other speaks)
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Utterance:
    """A segment of a recording, from ``start`` to ``end`` in seconds, with the words said in it."""

    name: str
    speaker: str
    recording: str
    start: float
    end: float
    words: str


def make_speakers(rng: random.Random, population: Population, count: int, first: int) -> list[Speaker]:
    """``count`` speakers numbered from ``first``; every second one a woman, variants and accents in turn."""
    accents: list[str] = []
    heard: Counter[str] = Counter()
    for n in range(1, count + 1):  # the accent that is furthest behind its share
        accent = max(population.accents, key=lambda a: (population.accents[a] * n - heard[a], a))
        heard[accent] += 1
        accents.append(accent)
    rng.shuffle(accents)
    speakers = []
    for i, accent in enumerate(accents):
        variants = population.women if i % 2 else population.men
        uniform = rng.uniform
        speakers.append(
            Speaker(
                f"{'mf'[i % 2]}{first + i:04d}",
                "mf"[i % 2],
                accent,
                variants[i // 2 % len(variants)],
                uniform(*population.rate),
                uniform(*population.pitch),
                uniform(*population.pitch_range),
                uniform(*population.formants),
                uniform(*population.fillers),
                uniform(*population.repeats),
            )
        )
    return speakers


def plan_calls(seed: int, size: Size, eval_seed: int = 0) -> tuple[list[Call], list[str]]:
    """Writes every conversation. Returns the calls and the extra sentences for the language model.

    eval_seed: what the test sets are drawn by, beside ``seed``: other speakers, sentences and lines of the same
    populations, while train, dev and the LM text stay.

    No sentence of dev or a test set occurs in train, in another of these sets, or in the LM text, and every word of
    theirs occurs in train.
    """
    grammar = Grammar(STRAY)
    rng = random.Random(f"mini text {seed}")
    topics = sorted(grammar.topics)
    rng.shuffle(topics)
    topics = topics[: size.topics]
    calls: list[Call] = []
    vocabulary: set[str] = set()
    seen: set[str] = set()  # sentences that the sets to come must not have
    mine: set[str] = set()  # sentences of the set at hand
    first = 1
    for corpus_set in SETS:
        if corpus_set == TESTS[0]:
            extra = _extra_sentences(grammar, rng, topics, size, mine, vocabulary)  # mine: still dev's
            seen.update(extra)
            rng = random.Random(f"mini tests {seed} {eval_seed}")
        speakers = make_speakers(rng, POPULATIONS[corpus_set], size.speakers[corpus_set], first)
        first += len(speakers)
        written, turn_of = 0, 0
        mine = set()
        while written < size.words[corpus_set] or (corpus_set != "train" and turn_of < len(speakers)):
            budget = size.next_call(corpus_set, written, turn_of)
            pair = (speakers[turn_of % len(speakers)], speakers[(turn_of + 1) % len(speakers)])
            turn_of += 2
            accept = None if corpus_set == "train" else (lambda s: s not in seen and vocabulary.issuperset(s.split()))
            turns = _write_call(grammar, rng, topics[len(calls) % len(topics)], topics, pair, budget, accept)
            calls.append(Call(f"mini{len(calls) + 1:04d}", corpus_set, pair, turns,
                              (seed, len(calls)) + (eval_seed,) * (corpus_set in TESTS)))
            written += sum(len(words.split()) for _, words, _ in turns)
            mine.update(words for _, words, _ in turns)
        if corpus_set == "train":
            vocabulary.update(word for words in mine for word in words.split())
        seen |= mine
    return calls, extra


def plan_pools(seed: int, size: Size, eval_seed: int = 0) -> list[Call]:
    """Conversations for the sets without transcripts, each of a population of POOLS, by speakers of their own.

    What they say is drawn by a stream of its own. No sentence of three words or more is train's, dev's, of the LM text
    or of the test sets of ``eval_seed`` and of eval seeds 0 to 9, for all of which these are the same conversations.
    """
    seen: set[str] = set()
    for draw in sorted({*range(EVAL_DRAWS), eval_seed}):
        calls, extra = plan_calls(seed, size, draw)
        seen.update(extra, (words for call in calls for _, words, _ in call.turns))
    grammar = Grammar(STRAY)
    topics = sorted(grammar.topics)
    random.Random(f"mini text {seed}").shuffle(topics)  # as plan_calls chooses them
    topics = topics[: size.topics]
    found: list[Call] = []
    for which, (name, population) in enumerate(POOLS.items(), start=1):
        rng = random.Random(f"mini {name} {seed}")
        count, number = size.pool
        speakers = make_speakers(rng, population, number, FIRST_IN_POOL[name])
        written, done = 0, 0  # words, and calls
        while written < count or 2 * done < number:
            pair = (speakers[2 * done % number], speakers[(2 * done + 1) % number])
            budget = min(size.call, max(60, count - written))
            turns = _write_call(grammar, rng, topics[done % len(topics)], topics, pair, budget,
                                lambda s: len(s.split()) < 3 or s not in seen)
            found.append(Call(f"pool{which}{done + 1:04d}", name, pair, turns, (seed, done, 0, which)))
            written += sum(len(words.split()) for _, words, _ in turns)
            done += 1
    return found


def _extra_sentences(grammar: Grammar, rng: random.Random, topics: list[str], size: Size, seen: set[str],
                     vocabulary: set[str]) -> list[str]:
    """Sentences for the language model, of known words, none of which is in ``seen``."""
    extra: list[str] = []
    while len(extra) < size.lm_sentences:
        symbol = rng.choice(("say", "say", "say", "question", "reply"))
        sentence = grammar.sentence(rng, rng.choice(topics), symbol, 0.02, 0.05, topics)
        if sentence not in seen and vocabulary.issuperset(sentence.split()):
            extra.append(sentence)
    return extra


def _write_call(
    grammar: Grammar, rng: random.Random, topic: str, topics: list[str], pair, budget: int, accept
) -> tuple:
    def draw(side: int, symbol: str) -> str | None:
        for _ in range(400):
            text = grammar.sentence(rng, topic, symbol, pair[side].fillers, pair[side].repeats, topics)
            if accept is None or accept(text):
                return text
        return None

    turns: list[tuple[int, str, bool]] = []
    plan = [(0, "hello"), (1, "hello"), (0, "topic")]
    words = 0
    side = 1
    while words < budget or plan:
        if not plan:
            for _ in range(rng.choice((1, 1, 2, 3))):
                plan.append((side, rng.choice(("say", "say", "say", "question"))))
            if rng.random() < 0.4:
                plan.append((1 - side, "backchannel"))
            plan.append((1 - side, "reply"))
            side = 1 - side
            if words > budget - 25:
                plan.extend([(side, "bye"), (1 - side, "bye")])
        who, symbol = plan.pop(0)
        text = draw(who, symbol)
        if text is None:
            continue
        overlap = symbol == "backchannel" and bool(turns) and turns[-1][0] != who
        turns.append((who, text, overlap))
        words += len(text.split())
    return tuple(turns)


def _speak(espeak, rng: np.random.Generator, speaker: Speaker, text: str) -> np.ndarray:
    """One utterance, 8 kHz float32, trimmed to what is audible. The formants are moved by resampling."""
    from scipy.signal import firwin, resample_poly

    words = text.split()
    spoken = " ".join(
        w + ("," if w in ("well", "yeah", "uh", "um", "oh", "okay", "right") and rng.random() < 0.4 else "")
        for w in words
    )
    if words[0] in ("do", "did", "what", "how", "are", "is", "why", "where", "have", "would", "don't"):
        spoken += "?"
    shift = speaker.formants
    samples = espeak.speak(spoken, rate=round(speaker.rate / shift * rng.uniform(0.9, 1.1)),
                           pitch=round(np.clip(speaker.pitch + rng.uniform(-6, 6), 0, 99)),
                           pitch_range=round(np.clip(speaker.pitch_range + rng.uniform(-10, 10), 0, 99)))
    ratio = Fraction(160, round(441 * shift))  # 8 kHz from 22,050 Hz, played faster by shift
    up, down = ratio.numerator, ratio.denominator
    taps = firwin(8 * down + 1, 0.94 / down, window=("kaiser", 5.0)).astype(np.float32)
    voice = resample_poly(samples.astype(np.float32) / 32768, up, down, window=taps)
    loud = np.flatnonzero(np.abs(voice) > 0.02 * np.abs(voice).max())
    voice = voice[max(0, loud[0] - 160): loud[-1] + 160] * np.float32(10 ** (rng.uniform(-2, 2) / 20))
    fade = np.linspace(0, 1, 120, dtype=np.float32)  # 15 ms: no click where the utterance begins and ends
    voice[:120] *= fade
    voice[-120:] *= fade[::-1]
    return voice


def speak_calls(calls: list[Call], wav_dir: str) -> tuple[list[Utterance], dict[str, dict]]:
    """Speaks, mixes and writes ``wav_dir/SET/CALL-SIDE.wav``; returns utterances, and recording -> what its line is.

    What has no transcripts is written with LESS_NOISE, too, in the folder SET_clean.

    Meant for a process of its own: what eSpeak computes depends on what it spoke before.
    """
    from essence_kd.corpus.espeak import Espeak

    espeak = Espeak()
    voices: dict[tuple[str, int], np.ndarray] = {}
    placed: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
    for call in calls:
        rng = np.random.default_rng([*call.seed, 1])
        spoken: list[np.ndarray] = [None] * len(call.turns)
        for side in (0, 1):
            espeak.set_voice(call.sides[side].accent, call.sides[side].variant)
            for i, (who, text, _) in enumerate(call.turns):
                if who == side:
                    spoken[i] = _speak(espeak, rng, call.sides[side], text)
        starts, total = _schedule(rng, call, spoken)
        for side in (0, 1):
            track = np.zeros(total, np.float32)
            placed[call.name, side] = []
            for (who, text, _), start, voice in zip(call.turns, starts, spoken):
                if who == side:
                    track[start: start + len(voice)] += voice
                    placed[call.name, side].append((start, start + len(voice), text))
            voices[call.name, side] = track
    # What others say, without their silence: the babble behind each side.
    crowd = {key: np.concatenate([voices[key][start:end] for start, end, _ in placed[key]]) for key in voices}
    utterances: list[Utterance] = []
    lines: dict[str, dict] = {}
    for call in calls:
        for side in (0, 1):
            key = (call.name, side)
            speaker = call.sides[side]
            recording = f"{call.name}-{'AB'[side]}"
            active = np.zeros(len(voices[key]), bool)
            for start, end, _ in placed[key]:
                active[start:end] = True
            others = [crowd[k] for k in sorted(crowd) if k != key]
            renderings = {clean(call.corpus_set): LESS_NOISE} if call.corpus_set in POOLS else {}
            for name, less_noise in {**renderings, call.corpus_set: 0.0}.items():  # with the same draws
                rng = np.random.default_rng([*call.seed, 2 + side])
                condition = {**POPULATIONS, **POOLS}[call.corpus_set].condition
                low, high = condition.snr_db
                condition = replace(condition, snr_db=(low + less_noise, high + less_noise))
                samples, drawn = channel.record(rng, condition, voices[key], active, others)
                folder = Path(wav_dir) / name
                folder.mkdir(parents=True, exist_ok=True)
                write_wav(folder / f"{recording}.wav", samples, SAMPLE_RATE)
            utterances.extend(_segments(rng, speaker, recording, placed[key], len(samples)))
            lines[recording] = {
                "speaker": speaker.name,
                **{k: v if isinstance(v, str) else round(v, 3) for k, v in drawn.items()},
            }
    return utterances, lines


def _schedule(rng: np.random.Generator, call: Call, spoken: list[np.ndarray]) -> tuple[list[int], int]:
    """The first sample of each turn, and the length of the call. No side ever speaks over itself."""
    rate = SAMPLE_RATE
    starts: list[int] = []
    free = [int(0.5 * rate), int(0.5 * rate)]  # when each side may speak again
    floor = int(0.5 * rate)  # when the turn that holds the floor is over
    for (side, _, overlap), voice in zip(call.turns, spoken):
        if overlap:
            start = max(free[side], floor - int(rng.uniform(0.3, 1.5) * rate))
        else:
            start = max(free[side], floor + int(np.clip(rng.normal(0.25, 0.35), -0.3, 1.2) * rate))
            floor = start + len(voice)
        starts.append(start)
        free[side] = start + len(voice) + int(0.35 * rate)
    return starts, max(free) + int(0.3 * rate)


def _segments(rng: np.random.Generator, speaker: Speaker, recording: str, placed, total: int) -> list[Utterance]:
    """Segments with a random margin of 0.05 to 0.17 s at each end, in whole hundredths of a second."""
    out = []
    for start, end, words in placed:
        first = max(0, round(100 * (start / SAMPLE_RATE - rng.uniform(0.05, 0.17))))
        last = min(
            total * 100 // SAMPLE_RATE, round(100 * (end / SAMPLE_RATE + rng.uniform(0.05, 0.17)))
        )
        name = f"{speaker.name}-{recording}_{first:06d}-{last:06d}"
        out.append(Utterance(name, speaker.name, recording, first / 100, last / 100, words))
    return out


def _pronounce(sentences: list[str]) -> dict[str, list[str]]:
    from essence_kd.corpus.espeak import Espeak
    from essence_kd.corpus.phones import count_pronunciations, make_lexicon

    return make_lexicon(count_pronunciations(Espeak(), sentences, LEXICON_ACCENTS))


def synthesize(out: str | Path, size: str = "default", seed: int = 1, eval_seed: int = 0,
               nj: int = 2) -> dict[str, dict[str, float]]:
    """Makes the whole corpus in ``out``: train, dev, eval_swbd, eval_che, dict, lm_text, wav/, and
    speakers.json and lines.json, which tell who speaks and over what line. eval_seed: see plan_calls.

    Returns per set the number of words, utterances, speakers and seconds of segments.
    """
    from essence_kd.corpus.phones import write_dict

    if size not in SIZES:
        raise UserError(f"there is no size '{size}' of the mini corpus: it has {', '.join(SIZES)}")
    out = Path(out).absolute()
    calls, extra = plan_calls(seed, SIZES[size], eval_seed)
    out.mkdir(parents=True, exist_ok=True)
    for corpus_set in SETS:
        shutil.rmtree(out / corpus_set, ignore_errors=True)
        shutil.rmtree(out / "wav" / corpus_set, ignore_errors=True)
    train_text = [words for call in calls if call.corpus_set == "train" for _, words, _ in call.turns]
    by_set = [[call for call in calls if call.corpus_set == corpus_set] for corpus_set in SETS]
    shards = [part[i: i + CALLS_A_SHARD] for part in by_set for i in range(0, len(part), CALLS_A_SHARD)]
    spoken = run_jobs(_work, [("lexicon", train_text)] + [("speak", shard, str(out / "wav")) for shard in shards], nj)
    write_dict(out / "dict", spoken[0])
    write_text(out / "lm_text", "".join(f"{line}\n" for line in train_text + extra))
    people = {speaker.name: {**asdict(speaker), "set": call.corpus_set} for call in calls for speaker in call.sides}
    lines = {recording: line for _, result in spoken[1:] for recording, line in result.items()}
    for name, content in (("speakers.json", people), ("lines.json", lines)):
        write_text(out / name, json.dumps(content, indent=1, sort_keys=True))
    counts = {}
    for corpus_set in SETS:
        utterances = [
            u for shard, result in zip(shards, spoken[1:]) if shard[0].corpus_set == corpus_set for u in result[0]
        ]
        counts[corpus_set] = write_set(out / corpus_set, utterances, out / "wav" / corpus_set,
                                       {name: who["gender"] for name, who in people.items()})
    return counts


def clean(pool: str) -> str:
    """The name of the rendering of a set without transcripts that has less noise."""
    return f"{pool}_clean"


def synthesize_untranscribed(out: str | Path, size: str = "default", seed: int = 1, eval_seed: int = 0,
                             nj: int = 2) -> dict[str, dict[str, float]]:
    """Adds the sets without transcripts to a corpus in ``out``, and the clean rendering of each: data directories
    without text, with the same utterances, speakers and times. What is there stays. Returns what `synthesize` does.
    """
    if size not in SIZES:
        raise UserError(f"there is no size '{size}' of the mini corpus: it has {', '.join(SIZES)}")
    out = Path(out).absolute()
    calls = plan_pools(seed, SIZES[size], eval_seed)
    by_pool = {pool: [call for call in calls if call.corpus_set == pool] for pool in POOLS}
    shards = [part[i: i + CALLS_A_SHARD] for part in by_pool.values() for i in range(0, len(part), CALLS_A_SHARD)]
    for name in (name for pool in POOLS for name in (pool, clean(pool))):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.rmtree(out / "wav" / name, ignore_errors=True)
    spoken = run_jobs(speak_calls, [(shard, str(out / "wav")) for shard in shards], nj)
    genders = {speaker.name: speaker.gender for call in calls for speaker in call.sides}
    counts = {}
    for pool in POOLS:
        utterances = [u for shard, (found, _) in zip(shards, spoken) if shard[0].corpus_set == pool for u in found]
        for name in (pool, clean(pool)):
            counts[name] = write_set(out / name, utterances, out / "wav" / name, genders, transcribed=False)
    return counts


def _work(kind: str, *args):
    return _pronounce(*args) if kind == "lexicon" else speak_calls(*args)


def write_set(
    path: Path, utterances: list[Utterance], wav_dir: Path, genders: dict[str, str] | None = None,
    transcribed: bool = True,
) -> dict[str, float]:
    """Writes one data directory with segments, stm, reco2file_and_channel and, where known, spk2gender.

    Without transcripts it has neither text nor stm. Returns its counts. A recording is named FILE-CHANNEL, with a
    channel of one letter.
    """
    recordings = sorted({u.recording for u in utterances})
    speakers = {u.speaker for u in utterances}
    extra = {"reco2file_and_channel": {reco: f"{reco[:-2]} {reco[-1]}" for reco in recordings}}
    if genders is not None:
        extra["spk2gender"] = {speaker: genders[speaker] for speaker in speakers}
    data = DataDir(
        path, {reco: str(wav_dir / f"{reco}.wav") for reco in recordings},
        {u.name: u.words for u in utterances if transcribed},
        {u.name: u.speaker for u in utterances}, {u.name: (u.recording, u.start, u.end) for u in utterances}, extra)
    label = {speaker: f"<O,{genders[speaker].upper()}>" if genders else "<O>" for speaker in speakers}
    ordered = sorted(utterances, key=lambda u: (u.recording, u.start))
    data.write(
        path,
        [
            f"{u.recording[:-2]} {u.recording[-1]} {u.speaker} {u.start:.2f} {u.end:.2f} {label[u.speaker]} {u.words}"
            for u in ordered
        ] if transcribed else None,
    )
    return {
        "words": sum(len(u.words.split()) for u in utterances),
        "utterances": len(utterances),
        "speakers": len(speakers),
        "seconds": round(sum(u.end - u.start for u in utterances), 2),
    }
