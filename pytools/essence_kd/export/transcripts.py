"""Recognised words as text, JSON lines, CTM, and subtitles (SRT, WebVTT)."""
from __future__ import annotations

import json
from typing import Callable, Dict, List, Sequence

from essence_kd.export.recognizer import Word

PAUSE, LINE, LONGEST = 0.8, 80, 6.0  # a subtitle ends at a pause of so many seconds, so many characters, seconds


def as_text(name: str, words: Sequence[Word], seconds: float) -> str:
    """NAME and the words, as in Kaldi's text."""
    return " ".join([name, *(word.word for word in words)]) + "\n"


def as_json(name: str, words: Sequence[Word], seconds: float) -> str:
    """One object on one line: file, seconds, text, words (word, start, end, confidence)."""
    listed = [{key: value for key, value in vars(word).items() if value is not None} for word in words]
    told = {"file": name, "seconds": round(seconds, 3), "text": " ".join(word.word for word in words), "words": listed}
    return json.dumps(told, ensure_ascii=False) + "\n"


def as_ctm(name: str, words: Sequence[Word], seconds: float) -> str:
    """One line per word: NAME 1 START DURATION WORD CONFIDENCE."""
    return "".join(f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word}"
                   + ("" if word.confidence is None else f" {word.confidence:.3f}") + "\n" for word in words)


def subtitles(words: Sequence[Word]) -> List[List[Word]]:
    """The words in groups that are shown together."""
    groups: List[List[Word]] = []
    for word in words:
        last = groups[-1] if groups else []
        if last and word.start - last[-1].end < PAUSE and word.end - last[0].start <= LONGEST and \
                len(" ".join([w.word for w in last] + [word.word])) <= LINE:
            last.append(word)
        else:
            groups.append([word])
    return groups


def _clock(seconds: float, point: str) -> str:
    millis = round(seconds * 1000)
    return (f"{millis // 3_600_000:02d}:{millis // 60_000 % 60:02d}:{millis // 1000 % 60:02d}"
            f"{point}{millis % 1000:03d}")


def _cues(words: Sequence[Word], point: str) -> List[str]:
    return [f"{_clock(group[0].start, point)} --> {_clock(group[-1].end, point)}\n"
            f"{' '.join(word.word for word in group)}\n" for group in subtitles(words)]


def as_srt(name: str, words: Sequence[Word], seconds: float) -> str:
    """SubRip."""
    return "".join(f"{number}\n{cue}\n" for number, cue in enumerate(_cues(words, ","), 1))


def as_vtt(name: str, words: Sequence[Word], seconds: float) -> str:
    """WebVTT."""
    def escaped(cue: str) -> str:
        times, text = cue.split("\n", 1)
        return f"{times}\n{text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}"

    return "".join(["WEBVTT\n\n", *(f"{escaped(cue)}\n" for cue in _cues(words, "."))])


FORMS: Dict[str, Callable[[str, Sequence[Word], float], str]] = {
    "text": as_text, "json": as_json, "ctm": as_ctm, "srt": as_srt, "vtt": as_vtt}
