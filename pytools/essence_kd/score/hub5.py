"""Hub5 scoring: a time-marked hypothesis (CTM) against reference segments (STM), by sclite or by our own counting."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Union

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.text import read_lines, split
from essence_kd.score.glm import DEFAULT_GLM, Filter, is_noise, load_filters, read_glm, spell, split_optional
from essence_kd.score.alternatives import Step, align_networks, count_steps, parse_network
from essence_kd.score.wer import Counts, Score, check_utterances

PathLike = Union[str, Path]
IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"


@dataclass(frozen=True)
class Segment:
    """A line of an STM file; times in seconds, ``label`` without its angle brackets."""

    recording: str
    channel: str
    speaker: str
    start: float
    end: float
    label: str
    text: str


@dataclass(frozen=True)
class Token:
    """A line of a CTM file; times in seconds."""

    recording: str
    channel: str
    start: float
    duration: float
    word: str


@dataclass(frozen=True)
class SegmentScore:
    """Counts of one reference segment and, where we aligned it ourselves, the alignment."""

    segment: Segment
    counts: Counts
    steps: tuple[Step, ...] = ()


def _lines(path: PathLike) -> list[tuple[int, str]]:
    return [(number, line) for number, line in read_lines(path) if not line.startswith(";;")]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where}: '{text}' is no time in seconds") from None
    if not 0 <= value < 1e9:
        raise UserError(f"{where}: time {text} is negative, endless or not a number")
    return value


def read_stm(path: PathLike) -> list[Segment]:
    """Segments of an STM file: RECORDING CHANNEL SPEAKER START END [<LABELS>] WORDS."""
    segments = []
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        fields = split(line, 5)
        if len(fields) < 5:
            raise UserError(f"{where}: an STM line has at least 5 fields, this has {len(fields)}")
        start, end = _number(fields[3], where), _number(fields[4], where)
        if end < start:
            raise UserError(f"{where}: the segment ends ({end}) before it starts ({start})")
        text = fields[5] if len(fields) > 5 else ""
        label = re.match(r"<(\S+)>(?:\s+|$)", text, re.ASCII)
        if label:
            text = text[label.end():]
        if re.search(r"[()]", re.sub(r"\([^()]*\)", "", text)) or text.count("{") != text.count("}"):
            raise UserError(f"{where}: brackets do not match in '{text}'")
        segments.append(Segment(fields[0], fields[1], fields[2], start, end, label.group(1) if label else "",
                                split_optional(text)))
    if not segments:
        raise UserError(f"{path}: holds no segment")
    return segments


def read_ctm(path: PathLike) -> list[Token]:
    """Words of a CTM file: RECORDING CHANNEL START DURATION WORD [CONFIDENCE]."""
    tokens = []
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        fields = split(line)
        if len(fields) not in (5, 6):
            raise UserError(f"{where}: a CTM line has 5 or 6 fields, this has {len(fields)}")
        tokens.append(Token(fields[0], fields[1], _number(fields[2], where), _number(fields[3], where), fields[4]))
    return tokens


def check_recordings(segments: list[Segment], tokens: list[Token], stm: PathLike, ctm: PathLike) -> None:
    """Every recording and channel of the hypothesis must be in the reference."""
    known = {(s.recording, s.channel) for s in segments}
    strange = [t for t in tokens if (t.recording, t.channel) not in known]
    if strange:
        raise UserError(f"{ctm}: recording '{strange[0].recording}' channel '{strange[0].channel}' is not in {stm} "
                        f"({len(strange)} of {len(tokens)} words); check reco2file_and_channel")


def as_swbd(tokens: list[Token]) -> list[Token]:
    """What the swbd recipe has scored: no noises, and the letters of an acronym, which share its time."""
    kept = []
    for token in tokens:
        letters = [] if is_noise(token.word) else spell(token.word)
        length = token.duration / max(1, len(letters))
        kept += [replace(token, start=token.start + i * length, duration=length, word=letter)
                 for i, letter in enumerate(letters)]
    return kept


def _key(item) -> tuple[str, str]:
    return item.recording.upper(), item.channel.upper()


def _single(seconds: float) -> float:
    return float(np.float32(round(seconds, 3)))


def _timed(token: Token, text: str) -> list[tuple[float, str]]:
    """What the mapping rules made of a token, in words with their middles in seconds, in NIST's single precision.

    Several words share the token's time. Alternatives { a / b c } stay together at the middle of the word that has the
    latest one.
    """
    whole = "{" in text
    timed = []
    for branch in re.sub(r"[{}]", " ", text).split("/") if whole else [text]:
        words = split(branch)
        length = token.duration / max(len(words), 1)
        timed += [(round(token.start + i * length, 3) + round(length, 3) / 2.0, word) for i, word in enumerate(words)]
    return [(max(timed)[0], text)] if whole and timed else timed


def score_stm(segments: list[Segment], tokens: list[Token], ref_filter: Filter, hyp_filter: Filter,
              *, stm_name: str = "STM") -> list[SegmentScore]:
    """Align each reference segment with the words that fall into it.

    A word, after the mapping rules, belongs to the first segment of its channel that ends after the word's middle, and
    to the last one when none does, as in sclite; words in segments marked to be ignored are not scored.
    """
    channels: dict[tuple[str, str], list[Segment]] = {}
    for segment in segments:
        channels.setdefault(_key(segment), []).append(segment)
    words: dict[tuple[str, str], list[Token]] = {}
    for token in tokens:
        words.setdefault(_key(token), []).append(token)
    scores = []
    for key in sorted(channels):
        own = [timed for token in sorted(words.get(key, []), key=lambda t: t.start)
               for timed in _timed(token, hyp_filter(token.word))]
        at = 0
        ordered = sorted(channels[key], key=lambda s: s.start)
        for number, segment in enumerate(ordered):
            begin = at
            if number == len(ordered) - 1:
                at = len(own)
            while at < len(own) and own[at][0] < _single(segment.end):
                at += 1
            if IGNORED in segment.text:
                continue
            where = f"{stm_name}: {segment.recording} {segment.channel} at {segment.start:.2f} s"
            ref = parse_network(ref_filter(segment.text), where)
            hyp = parse_network(" ".join(text for _, text in own[begin:at]), "CTM")
            steps = align_networks(ref, hyp)
            scores.append(SegmentScore(segment, count_steps(steps), tuple(steps)))
    return scores


def find_sclite() -> Path | None:
    """The folder with sclite and csrfilt.sh (PATH, Debian's sctk, KALDI_ROOT/tools), or None."""
    candidates = []
    on_path = shutil.which("sclite")
    if on_path:
        candidates.append(Path(on_path).parent)
    candidates.append(Path("/usr/lib/sctk/bin"))
    if os.environ.get("KALDI_ROOT"):
        candidates.append(Path(os.environ["KALDI_ROOT"]) / "tools" / "sctk" / "bin")
    for folder in candidates:
        if (folder / "csrfilt.sh").exists() and (folder / "sclite").exists():
            return folder
    return None


def _run(command: list[str], folder: Path, *, stdin: Path | None = None, stdout: Path | None = None) -> None:
    """Run one of SCTK's programs with its folder first on the PATH; UserError with its last words when it fails."""
    environment = dict(os.environ, PATH=f"{folder}{os.pathsep}{os.environ.get('PATH', '')}", LC_ALL="C")
    with open(stdin or os.devnull, "rb") as source, open(stdout or os.devnull, "wb") as sink:
        done = subprocess.run(command, stdin=source, stdout=sink, stderr=subprocess.PIPE, env=environment)
    if done.returncode != 0:
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        raise UserError(f"{Path(command[0]).name} failed: {said[-1] if said else f'exit status {done.returncode}'}")


def score_with_sclite(segments: list[Segment], tokens: list[Token], glm: PathLike | None,
                      folder: Path) -> list[SegmentScore]:
    """Score with NIST's csrfilt.sh and sclite, called as hubscr.pl ``-l english -h hub5`` calls them.

    Raises:
      UserError: one of the programs failed, or a segment did not come back.
    """
    segments = sorted(segments, key=lambda s: (s.recording, s.channel, s.start))
    tokens = sorted(tokens, key=lambda t: (t.recording, t.channel, t.start))
    with tempfile.TemporaryDirectory(prefix="essence-sclite-") as scratch:
        here = Path(scratch)
        (here / "ref").write_text("".join(
            f"{s.recording} {s.channel} {s.speaker} {s.start:.3f} {s.end:.3f} {s.text}\n"
            for s in segments), "utf-8")
        (here / "hyp").write_text("".join(
            f"{t.recording} {t.channel} {t.start:.3f} {t.duration:.3f} {t.word}\n" for t in tokens), "utf-8")
        (here / "glm").write_bytes(DEFAULT_GLM.encode() if glm is None else Path(glm).read_bytes())
        for name, kind, purpose in (("ref", "stm", "ref"), ("hyp", "ctm", "hyp")):
            _run([str(folder / "csrfilt.sh"), "-i", kind, "-t", purpose, "-dh", str(here / "glm")], folder,
                 stdin=here / name, stdout=here / f"{name}.filt")
        _run([str(folder / "sclite"), "-r", str(here / "ref.filt"), "stm", "-h", str(here / "hyp.filt"), "ctm", "hyp",
              "-F", "-D", "-o", "sgml", "-O", str(here), "-n", "out"], folder)
        report = (here / "out.sgml").read_text(encoding="utf-8", errors="replace")
    kept = [segment for segment in segments if IGNORED not in segment.text]
    found: dict[int, tuple[tuple[str, ...], Counts]] = {}  # by the number of the segment
    paths = (r'<PATH [^\n]*? file="([^"]*)" channel="([^"]*)"[^\n]*? sequence="(\d+)"[^\n]*? R_T1="([\d.]+)"[^\n]*>'
             r'\n(.*)\n</PATH>')
    for path in re.finditer(paths, report):
        ops = re.findall(r'(?:^|:)([CSDI]),(?:"[^"]*")?,(?:"[^"]*")?', path.group(5))
        found[int(path.group(3))] = (path.group(1), path.group(2), path.group(4)), Counts(
            sum(op != "I" for op in ops), ops.count("I"), ops.count("D"), ops.count("S"), 1,
            int(any(op != "C" for op in ops)))
    scores = []
    for number, segment in enumerate(kept):
        place, counts = found.get(number, (None, Counts()))
        if place != (segment.recording.lower(), segment.channel.lower(), f"{segment.start:.3f}"):
            raise UserError(f"sclite left out the segment of {segment.recording} {segment.channel} at "
                            f"{segment.start:.2f} s; count with --scorer native")
        scores.append(SegmentScore(segment, counts))
    return scores


def score_hub5(stm: PathLike, ctm: PathLike, *, glm: PathLike | None = None, scorer: str = "auto",
               drop_noise: bool = False) -> tuple[list[SegmentScore], str]:
    """Score a CTM against an STM.

    Args:
      glm: mapping rules; None takes the default ones (hesitations).
      scorer: ``sclite``, ``native``, or ``auto`` (sclite where it is installed).
      drop_noise: take noises, hesitations and fragments out of the hypothesis and spell its acronyms first, as the
        swbd recipe does.

    Returns:
      Scores of all segments in order of recording, channel and time, and the scorer that was used.
    """
    segments, tokens = read_stm(stm), read_ctm(ctm)
    check_recordings(segments, tokens, stm, ctm)
    if drop_noise:
        tokens = as_swbd(tokens)
    if glm is not None:
        read_glm(glm)  # sclite would take a byte order mark for a part of the first rule
    folder = find_sclite() if scorer in ("auto", "sclite") else None
    if scorer == "sclite" and folder is None:
        raise UserError("sclite: not found on the PATH, in /usr/lib/sctk/bin or in KALDI_ROOT/tools/sctk/bin; install "
                        "Debian's package sctk, or use --scorer native")
    if folder is not None:
        return score_with_sclite(segments, tokens, glm, folder), "sclite"
    ref_filter, hyp_filter = load_filters(glm)
    return score_stm(segments, tokens, ref_filter, hyp_filter, stm_name=str(stm)), "native"


def score_text(refs: dict[str, str], hyps: dict[str, str], *, glm: PathLike | None = None, drop_noise: bool = False,
               ref_name: str = "reference", hyp_name: str = "hypothesis") -> Score:
    """Score utterances as the Hub5 rules score segments: mapping rules, alternatives, optional words, fragments.

    Args:
      refs, hyps: utterance id -> line of text.

    Raises:
      UserError: there is no reference, or a hypothesis belongs to no reference utterance.
    """
    check_utterances(refs, hyps, ref_name, hyp_name)
    ref_filter, hyp_filter = load_filters(glm)
    result = Score()
    for utt, ref in refs.items():
        if utt not in hyps:
            result.missing.append(utt)
        words = split(hyps.get(utt, ""))
        if drop_noise:
            words = [part for word in words if not is_noise(word) for part in spell(word)]
        hyp = hyp_filter(" ".join(words))
        steps = align_networks(parse_network(ref_filter(split_optional(ref)), f"{ref_name}: utterance '{utt}'"),
                               parse_network(hyp, f"{hyp_name}: utterance '{utt}'"))
        result.utts[utt] = count_steps(steps)
        result.refs[utt] = [s.ref for s in steps if s.ref is not None]
        result.hyps[utt] = [s.hyp for s in steps if s.hyp is not None]
    return result


def halves(scores: list[SegmentScore]) -> dict[str, Counts]:
    """Counts of the two halves of Hub5'00, SWBD (recordings sw...) and CHE (en...); empty for other test sets."""
    names = {"sw": "SWBD", "en": "CHE"}
    counts: dict[str, Counts] = {}
    for score in scores:
        name = names.get(score.segment.recording[:2].lower())
        if name is None:
            return {}
        counts[name] = counts.get(name, Counts()) + score.counts
    return counts if len(counts) == 2 else {}
