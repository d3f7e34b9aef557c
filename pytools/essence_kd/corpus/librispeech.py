"""LibriSpeech as it is unpacked: PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac and SPEAKER-CHAPTER.trans.txt.

What stands here needs Python alone up to ``choose_sets``, so that ``run.sh --check true`` can ask before any set-up.
"""
from __future__ import annotations

import gzip
import random
import re
import shlex
import shutil
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Optional, Sequence

from essence_kd.io.errors import UserError
from essence_kd.io.text import read_lines, split

if TYPE_CHECKING:
    import numpy as np

PAGE = {"train-clean-5": 31, "dev-clean-2": 31, "train-clean-100": 12, "train-clean-360": 12, "train-other-500": 12,
        "dev-clean": 12, "test-clean": 12, "test-other": 12}  # part -> where it is published: openslr.org/PAGE
TRAIN = {"tiny": ("train-clean-5",), "mini": ("train-clean-5",), "clean-100": ("train-clean-100",),
         "full-960": ("train-clean-100", "train-clean-360", "train-other-500")}  # size -> parts
DEV = {"tiny": ("dev-clean-2", "dev-clean"), "mini": ("dev-clean-2", "dev-clean")}  # the first that is there
DEV_OF_OTHERS = ("dev-clean", "dev-clean-2")
TESTS = {"test_clean": "test-clean", "test_other": "test-other"}  # the second where it is there
LEXICON = "librispeech-lexicon.txt"  # what page 11 has
GRAMMARS = ("3-gram.pruned.3e-7.arpa.gz", "3-gram.pruned.1e-7.arpa.gz")
LARGE_GRAMMAR = "4-gram.arpa.gz"
RATE = 16000  # Hz
TINY_SECONDS = {"train": 300, "dev": 60, "test_clean": 100, "test_other": 100}  # of the size tiny, at most
TINY_SENTENCES = 5000  # of the language model's text
UNTRANSCRIBED = "untranscribed"
OOV = "<UNK>"
_NOT_SPOKEN = ("!SIL", "<SPOKEN_NOISE>", "<UNK>", "<S>", "</S>")  # what lexicons have beside words, in capitals
BABBLE = 8  # training utterances of other speakers that may be heard behind one


@dataclass(frozen=True)
class Utterance:
    """One line of a transcript with its FLAC file; seconds: of the audio, by its header."""

    name: str
    speaker: str
    chapter: str
    path: str
    words: str
    seconds: float


@dataclass
class Sources:
    """Where everything is: sets by name, the lexicon, and the text of the language model or the model itself."""

    sets: dict[str, list[Utterance]]
    lexicon: Path
    lm_text: Optional[Path]
    grammar: Optional[Path]
    large_grammar: Optional[Path]
    genders: dict[str, str] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------- what is there

def find_root(folder: str | Path) -> Path:
    """The folder that holds the parts: this one or its LibriSpeech. Raises UserError."""
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name an unpacked LibriSpeech with --librispeech-dir")
    for root in (folder / "LibriSpeech", folder):
        if any((root / part).is_dir() for part in PAGE):
            return root
    raise UserError(f"{folder}: is no LibriSpeech: neither it nor its folder LibriSpeech has any of {' '.join(PAGE)}: "
                    "unpack them there (openslr.org/31, openslr.org/12), or name another folder")


def published(part: str) -> str:
    """How messages name an archive."""
    return f"{part}.tar.gz of openslr.org/{PAGE[part]}"


def flac_seconds(path: str | Path) -> float:
    """Seconds of audio that the header of a FLAC file promises. Raises UserError: it is none, or not one channel."""
    with open(path, "rb") as stream:
        head = stream.read(42)
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
        raise UserError(f"{path}: is no FLAC file, or damaged: unpack its archive again")
    value = int.from_bytes(head[18:26], "big")  # 20 bits rate, 3 channels - 1, 5 bits a sample - 1, 36 samples
    rate, channels, samples = value >> 44, (value >> 41 & 7) + 1, value & (1 << 36) - 1
    if rate != RATE or channels != 1:
        raise UserError(f"{path}: has {channels} channels of {rate} Hz: LibriSpeech has one of {RATE}")
    if not samples:
        raise UserError(f"{path}: holds no samples: unpack its archive again")
    return samples / rate


def read_part(root: Path, part: str) -> list[Utterance]:
    """All utterances of a part, by name.

    Raises UserError: transcripts without audio or audio without transcripts (all are counted, the first is named),
    files that are no FLAC, folders that are not named by speaker and chapter.
    """
    found: list[Utterance] = []
    silent: list[str] = []
    unwritten: list[str] = []
    for speaker in _numbered(root / part):
        for chapter in _numbered(speaker):
            name = f"{speaker.name}-{chapter.name}"
            transcript = chapter / f"{name}.trans.txt"
            audio = {file.stem: file for file in chapter.iterdir() if file.suffix == ".flac"}
            if not transcript.is_file():
                unwritten += [str(file) for file in audio.values()] or [str(transcript)]
                continue
            for number, line in read_lines(transcript):
                fields = split(line, 1)
                if len(fields) < 2 or not fields[0].startswith(f"{name}-"):
                    raise UserError(f"{transcript}: line {number} is not '{name}-NUMBER WORD WORD ...': "
                                    f"unpack {published(part)} again")
                file = audio.pop(fields[0], None)
                if file is None:
                    silent.append(str(chapter / f"{fields[0]}.flac"))
                    continue
                words = " ".join(split(fields[1]))
                found.append(Utterance(fields[0], speaker.name, name, str(file), words, flac_seconds(file)))
            unwritten += [str(file) for file in audio.values()]
    for names, what in ((silent, "transcripts have no audio"), (unwritten, "recordings have no transcript")):
        if names:
            raise UserError(f"{root / part}: {len(names)} {what}, the first is {min(names)}: "
                            f"unpack {published(part)} again, or remove what is left over")
    if not found:
        raise UserError(f"{root / part}: holds no utterance: unpack {published(part)} again")
    return sorted(found, key=lambda u: u.name.encode())


def _numbered(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.name.isdecimal():
                raise UserError(f"{path}: a folder of LibriSpeech is called by the number of a speaker or chapter: "
                                "remove it")
            yield path


def read_genders(root: Path) -> dict[str, str]:
    """speaker -> f or m, of SPEAKERS.TXT; nothing where there is none."""
    path = root / "SPEAKERS.TXT"
    if not path.is_file():
        return {}
    rows = [[part.strip() for part in line.split("|")] for _, line in read_lines(path) if not line.startswith(";")]
    return {row[0]: row[1].lower() for row in rows if len(row) > 1 and row[1] in ("F", "M")}


def find_sources(folder: str | Path, size: str, dev_speakers: Sequence[str] = (), eval_speakers: Sequence[str] = (),
                 lexicon: str = "", lm_text: str = "") -> Sources:
    """Everything that a size needs; the arguments are those of ``prepare_librispeech``.

    Raises UserError that names all parts and files that are missing, and where they are published.
    """
    if size not in TRAIN:
        raise UserError(f"there is no size '{size}' of LibriSpeech: it has {', '.join(TRAIN)}")
    root = find_root(folder)
    missing = [published(part) for part in (*TRAIN[size], TESTS["test_clean"]) if not (root / part).is_dir()]
    dev = next((part for part in DEV.get(size, DEV_OF_OTHERS) if (root / part).is_dir()), None)
    if dev is None and not dev_speakers:
        missing.append(f"{published('dev-clean-2')} or {published('dev-clean')} (or name speakers of test-clean with "
                       "--dev-speakers)")
    places = list(dict.fromkeys([Path(folder).absolute(), root, Path(folder).absolute() / "lm", root / "lm"]))
    found = {name: next((place / name for place in places if (place / name).is_file()), None)
             for name in (LEXICON, *GRAMMARS, LARGE_GRAMMAR)}
    words = Path(lexicon).absolute() if lexicon else found[LEXICON]
    text = Path(lm_text).absolute() if lm_text else None
    for option, path in (("--lexicon", words if lexicon else None), ("--lm-text", text)):
        if path is not None and not path.is_file():
            raise UserError(f"{option}: there is no file '{path}'")
    grammar = None if text else next((found[name] for name in GRAMMARS if found[name]), None)
    if words is None:
        missing.append(f"{LEXICON} of openslr.org/11 (or another lexicon with --lexicon FILE)")
    if text is None and grammar is None:
        missing.append(f"{GRAMMARS[0]} of openslr.org/11 (or text for a language model with --lm-text FILE)")
    if missing or words is None:
        raise UserError(f"{root}: size {size} lacks {', '.join(missing)}")
    sets = choose_sets(root, size, dev, dev_speakers, eval_speakers)
    return Sources(sets, words, text, grammar, None if text else found[LARGE_GRAMMAR], read_genders(root))


def choose_sets(root: Path, size: str, dev: Optional[str], dev_speakers: Sequence[str],
                eval_speakers: Sequence[str]) -> dict[str, list[Utterance]]:
    """train, dev, test_clean and, where it is there, test_other.

    dev: the part that is the development set, unless speakers of it or of test-clean are named. test_clean: of
    test-clean the speakers that are named, or all that are not in dev. Raises UserError: a speaker that is not there,
    or is in two sets; an utterance that comes twice.
    """
    both = sorted(set(dev_speakers) & set(eval_speakers))
    if both:
        raise UserError(f"speaker {both[0]} is named by --dev-speakers and by --eval-speakers: choose one")
    train = [utt for part in TRAIN[size] for utt in read_part(root, part)]
    clean = read_part(root, TESTS["test_clean"])
    pool = (read_part(root, dev) if dev else []) + clean
    parts = " or ".join(filter(None, (dev, TESTS["test_clean"])))
    sets = {"train": train,
            "dev": _spoken_by(pool, dev_speakers, "--dev-speakers", parts) if dev_speakers else pool[:-len(clean)]}
    taken = {utt.speaker for utt in sets["dev"]}
    sets["test_clean"] = (_spoken_by(clean, eval_speakers, "--eval-speakers", TESTS["test_clean"]) if eval_speakers
                          else [utt for utt in clean if utt.speaker not in taken])
    if not sets["test_clean"]:
        raise UserError(f"{root / TESTS['test_clean']}: all of its speakers are in dev: name fewer by --dev-speakers")
    if (root / TESTS["test_other"]).is_dir():
        sets["test_other"] = read_part(root, TESTS["test_other"])
    speakers: dict[str, str] = {}
    for name, utts in sets.items():
        if len({utt.name for utt in utts}) < len(utts):
            twice = next(utt for utt, n in Counter(utt.name for utt in utts).items() if n > 1)
            raise UserError(f"{root}: utterance {twice} comes twice: unpack the archives again")
        for speaker in sorted({utt.speaker for utt in utts}):
            if speakers.setdefault(speaker, name) != name:
                raise UserError(f"{root}: speaker {speaker} is in {speakers[speaker]} and in {name}: a test would be "
                                "of a known voice; remove the speaker from one of them")
    if size == "tiny":
        sets = {name: cut(utts, TINY_SECONDS[name]) for name, utts in sets.items()}
    return sets


def _spoken_by(utts: list[Utterance], speakers: Sequence[str], option: str, where: str) -> list[Utterance]:
    there = {utt.speaker for utt in utts}
    unknown = [speaker for speaker in speakers if speaker not in there]
    if unknown:
        raise UserError(f"{option}: there is no speaker '{unknown[0]}' in {where}")
    return sorted((utt for utt in utts if utt.speaker in speakers), key=lambda u: u.name.encode())


def cut(utts: list[Utterance], seconds: float) -> list[Utterance]:
    """At most so many seconds: the first utterance of every speaker, then the second, and so on."""
    by_speaker: dict[str, list[Utterance]] = {}
    for utt in utts:
        by_speaker.setdefault(utt.speaker, []).append(utt)
    turns = [(number, utt.name) for own in by_speaker.values() for number, utt in enumerate(own)]
    length = {utt.name: utt.seconds for utt in utts}
    kept: set[str] = set()
    total = 0.0
    for _, name in sorted(turns):
        if kept and total + length[name] > seconds:
            break
        kept.add(name)
        total += length[name]
    return [utt for utt in utts if utt.name in kept]


# ---------------------------------------------------------------------------------------------------------- the words

def read_lexicon(path: str | Path) -> dict[str, list[str]]:
    """word -> pronunciations, of a lexicon such as CMUdict's: in capitals, variants such as WORD(2) under their word.

    Lines that begin with ;;; are comments. What stands for silence, noise or unknown words is left out. Raises
    UserError: a word without phones, a phone that is not letters with at most one digit, for stress.
    """
    out: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        fields = split(line)
        if not fields or fields[0].startswith(";;;"):
            continue
        word = re.sub(r"\([0-9]+\)$", "", fields[0]).upper()
        if word in _NOT_SPOKEN:
            continue
        wrong = next((phone for phone in fields[1:] if not re.fullmatch("[A-Z]+[0-9]?", phone)), None)
        if len(fields) < 2 or wrong:
            what = f"the phone '{wrong}', which is not as AH or AH0" if wrong else "no phones"
            raise UserError(f"{path}: line {number}: '{fields[0]}' has {what}: write 'WORD PHONE PHONE ...'")
        prons = out.setdefault(word, [])
        if " ".join(fields[1:]) not in prons:
            prons.append(" ".join(fields[1:]))
    if not out:
        raise UserError(f"{path}: holds no word: write 'WORD PHONE PHONE ...'")
    return out


def read_sentences(path: str | Path, most: Optional[int] = None) -> Iterator[str]:
    """Sentences of a text, a line each, gzip or not, in capitals. Raises UserError."""
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    count = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if zipped else open(path, encoding="utf-8") as lines:
            for line in lines:
                words = " ".join(split(line)).upper()
                if words:
                    yield words
                    count += 1
                if count == most:
                    return
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}): copy it again") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text: one sentence per line, gzip or not") from None
    if not count:
        raise UserError(f"{path}: holds no sentence: write one per line")


def pronounce(words: Sequence[str], known: frozenset[str]) -> dict[str, list[str]]:
    """word -> its pronunciation by eSpeak NG, in the phones ``known`` of a lexicon; for a process of its own.

    A word that eSpeak says in a phone that the lexicon lacks is left out. Where vowels have digits, the schwa gets 0
    and others 1.
    """
    from essence_kd.corpus.espeak import Espeak
    from essence_kd.corpus.phones import to_phones

    def of_lexicon(phone: str) -> str:
        plain, stress = {"AX": ("AH", "0"), "DX": ("T", "")}.get(phone, (phone, "1"))
        return plain + stress if plain + stress in known else plain

    espeak = Espeak()
    espeak.set_voice("en-us")
    out = {}
    for word in words:
        phones = [of_lexicon(p) for spoken in espeak.phonemes(word.lower()) for p in to_phones(spoken, "en-us")]
        if phones and known.issuperset(phones):
            out[word] = [" ".join(phones)]
    return out


# ------------------------------------------------------------------------------------------------------- what is left

def prepare_librispeech(folder: str | Path, out: str | Path, size: str = "mini", lexicon: str = "", lm_text: str = "",
                        g2p: bool = False, telephone: bool = False, transcribed: float = 1.0,
                        dev_speakers: Sequence[str] = (), eval_speakers: Sequence[str] = (), pipes: bool = False,
                        seed: int = 1, nj: int = 2) -> dict[str, dict[str, Any]]:
    """Makes data directories (see ``choose_sets``), dict, and lm_text or lm_arpa.gz in ``out``.

    folder: LibriSpeech, or what holds it. lexicon, lm_text: files; without them what is published with LibriSpeech.
    g2p: words of training and lm_text that the lexicon lacks are pronounced by eSpeak NG. telephone: audio is made
    anew, 8 kHz over simulated telephone lines, by chapter. transcribed: share of the training audio whose transcripts
    are used, by speaker; the rest is the set ``untranscribed``. pipes: wav.scp has commands that Kaldi runs.
    Returns per set utterances, speakers, words, seconds and the words that the lexicon lacks (a Counter).
    """
    from essence_kd.corpus.phones import write_dict
    from essence_kd.io.data_dir import DataDir
    from essence_kd.io.provenance import write_text

    out = Path(out).absolute()
    sources = find_sources(folder, size, dev_speakers, eval_speakers, lexicon, lm_text)
    sets = divide(sources.sets, transcribed, seed)
    words = read_lexicon(sources.lexicon)
    sentences = []
    if sources.lm_text:
        held_out = {utt.words for name, utts in sets.items() if name not in ("train", UNTRANSCRIBED) for utt in utts
                    if len(utt.words.split()) > 2}
        all_lines = list(read_sentences(sources.lm_text, TINY_SENTENCES if size == "tiny" else None))
        sentences = [line for line in all_lines if line not in held_out]
        if len(sentences) < len(all_lines):
            print(f"{sources.lm_text}: {len(all_lines) - len(sentences)} sentences of dev or test are left out",
                  file=sys.stderr)
        if not sentences:
            raise UserError(f"{sources.lm_text}: has no sentence but those of dev and test: name another text")
    spoken = Counter(word for text in (*sentences, *(utt.words for utt in sets["train"])) for word in text.split())
    if size == "tiny" and sentences:  # a small graph
        words = {word: prons for word, prons in words.items() if word in spoken}
    if g2p:
        from essence_kd.io.parallel import run_jobs

        lacking = sorted(word for word in spoken if word not in words and re.fullmatch("[A-Z']+", word))
        known = frozenset(phone for prons in words.values() for pron in prons for phone in pron.split())
        words.update(run_jobs(pronounce, [(lacking, known)])[0])
    out.mkdir(parents=True, exist_ok=True)
    write_dict(out / "dict", words, OOV)
    for name, source in (("lm_arpa.gz", sources.grammar), ("rescore_arpa.gz", sources.large_grammar)):
        if source:
            (out / name).unlink(missing_ok=True)
            (out / name).symlink_to(source)
    if sentences:
        write_text(out / "lm_text", "".join(f"{line}\n" for line in sentences))
    paths = over_telephone(sets, out / "wav", seed, nj) if telephone else None
    counts = {}
    for name, utts in sets.items():
        extra = {}
        if all(utt.speaker in sources.genders for utt in utts):
            extra["spk2gender"] = {utt.speaker: sources.genders[utt.speaker] for utt in utts}
        audio = {utt.name: paths[utt.name] if paths else _decoded(utt.path) if pipes else utt.path for utt in utts}
        DataDir(out / name, audio, {utt.name: utt.words for utt in utts} if name != UNTRANSCRIBED else {},
                {utt.name: utt.speaker for utt in utts}, None, extra).write(out / name)
        said = Counter(word for utt in utts for word in utt.words.split())
        counts[name] = {"utterances": len(utts), "speakers": len({utt.speaker for utt in utts}),
                        "words": sum(said.values()), "seconds": sum(utt.seconds for utt in utts),
                        "unknown": Counter({word: n for word, n in said.items() if word not in words})}
    return counts


def divide(sets: dict[str, list[Utterance]], transcribed: float, seed: int) -> dict[str, list[Utterance]]:
    """The sets; where not all of train is ``transcribed``, its speakers are divided, and the rest is untranscribed."""
    if not 0 < transcribed <= 1:
        raise UserError(f"--transcribed is {transcribed:g}, but must be more than 0 and at most 1, such as 0.33")
    if transcribed == 1:
        return sets
    length: dict[str, float] = {}
    for utt in sets["train"]:
        length[utt.speaker] = length.get(utt.speaker, 0.0) + utt.seconds
    order = sorted(length)
    random.Random(f"librispeech {seed}").shuffle(order)
    wanted, kept = transcribed * sum(length.values()), [order.pop(0)]
    for speaker in order:  # whoever brings it nearer
        have = sum(length[name] for name in kept)
        if abs(have + length[speaker] - wanted) < abs(have - wanted):
            kept.append(speaker)
    rest = [utt for utt in sets["train"] if utt.speaker not in kept]
    if not rest:
        raise UserError(f"--transcribed {transcribed:g} leaves no speaker of {len(length)} without transcripts")
    return {**sets, "train": [utt for utt in sets["train"] if utt.speaker in kept], UNTRANSCRIBED: rest}


def _decoded(path: str) -> str:
    """A pipe that makes 16-bit WAV of FLAC, which is what Kaldi reads. Raises UserError where no program does."""
    if shutil.which("flac"):
        return f"flac -c -d -s {shlex.quote(path)} |"
    if shutil.which("sox"):
        return f"sox {shlex.quote(path)} -t wav - |"
    raise UserError("Kaldi reads FLAC by the program flac or sox, and neither is here: install flac")


# -------------------------------------------------------------------------------------------------------- telephone

def _telephone():
    from essence_kd.corpus.channel import Condition

    return Condition(snr_db=(10.0, 30.0), evenness=(0.0, 0.0), reverb_seconds=(0.05, 0.25), direct_db=(5.0, 15.0))


def over_telephone(sets: dict[str, list[Utterance]], wav_dir: Path, seed: int, nj: int) -> dict[str, str]:
    """utterance -> its WAV file (8 kHz): a chapter is one call over a simulated line, cut into utterances again."""
    from essence_kd.io.parallel import run_jobs

    shutil.rmtree(wav_dir, ignore_errors=True)
    train = sets["train"]
    rng = random.Random(f"librispeech babble {seed}")
    jobs = []
    for name, utts in sets.items():
        chapters: dict[str, list[Utterance]] = {}
        for utt in utts:
            chapters.setdefault(utt.chapter, []).append(utt)
        for chapter, own in chapters.items():
            behind = [utt.path for utt in rng.sample(train, min(len(train), 3 * BABBLE))
                      if utt.speaker != own[0].speaker][:BABBLE]
            jobs.append(([utt.path for utt in own], behind, [seed, zlib.crc32(chapter.encode())],
                         [str(wav_dir / name / f"{utt.name}.wav") for utt in own]))
        (wav_dir / name).mkdir(parents=True)
    shards = [jobs[i::max(1, len(jobs) // 20)] for i in range(max(1, len(jobs) // 20))]
    run_jobs(_calls, [(shard,) for shard in shards], nj)
    return {Path(path).stem: path for job in jobs for path in job[3]}


def _calls(jobs: Iterable[tuple[list[str], list[str], list[int], list[str]]]) -> None:
    import numpy as np

    from essence_kd.corpus import channel
    from essence_kd.io.frames import SAMPLE_RATE
    from essence_kd.io.wave import write_wav

    for paths, behind, seed, made in jobs:
        voices = [_narrow(path) for path in paths]
        track = np.concatenate(voices)
        others = [_narrow(path) for path in behind]
        samples, _ = channel.record(np.random.default_rng(seed), _telephone(), track, np.ones(len(track), bool), others)
        at = 0
        for voice, path in zip(voices, made):
            write_wav(path, samples[at:at + len(voice)], SAMPLE_RATE)
            at += len(voice)


def _narrow(path: str) -> np.ndarray:
    """The samples (float32, full scale 1) of a FLAC file at 8 kHz."""
    import numpy as np
    from scipy.signal import resample_poly

    from essence_kd.io.frames import SAMPLE_RATE
    from essence_kd.io.wave import read_wav

    rate, samples = read_wav(path)
    return resample_poly(samples.astype(np.float32) / 32768, 1, rate // SAMPLE_RATE)
