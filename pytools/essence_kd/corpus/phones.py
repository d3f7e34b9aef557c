"""eSpeak's phonemes mapped to about 40 phones, and a pronunciation lexicon made from them in Kaldi's dict format."""
from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Iterable, Mapping

from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_text

SILENCE_PHONES = ("SIL", "SPN")
RHOTIC_ACCENTS = ("en-us", "en-us-nyc", "en-gb-scotland")
_R = "(r)"  # an r that only a rhotic accent speaks

_PHONES = {
    "p": "P", "b": "B", "t": "T", "t2": "T", "d": "D", "k": "K", "g": "G", "?": "T", "t#": "DX", "f": "F", "v": "V",
    "T": "TH", "D": "DH", "t[": "TH", "d[": "DH", "s": "S", "z": "Z", "S": "SH", "Z": "ZH", "h": "HH", "x": "K",
    "tS": "CH", "dZ": "JH", "m": "M", "n": "N", "N": "NG", "n-": "AX N", "l": "L", "L": "L", "l-": "AX L", "r": "R",
    "r-": "R", "w": "W", "w#": "W", "j": "Y", "i": "IY", "i:": "IY", "I": "IH", "I2": "IH", "I#": "IH", "E": "EH",
    "E2": "EH", "a": "AE", "aa": "AE", "a2": "AE", "a#": "AX", "A:": "AA", "A": "AA", "0": "AA", "O": "AO",
    "O:": "AO", "O2": "AO", "V": "AH", "U": "UH", "u": "UW", "u:": "UW", "@": "AX", "@2": "AX", "@5": "AX",
    "@-": "AX", "@L": "AX L", "3": "ER", "3:": "ER", "VR": "ER", "IR": "ER", "eI": "EY", "aI": "AY", "aI2": "AY",
    "aU": "AW", "OI": "OY", "oU": "OW", "@U": "OW", "A@": f"AA {_R}", "O@": f"AO {_R}", "o@": f"AO {_R}",
    "e@": f"EH {_R}", "i@": f"IY AX {_R}", "i@3": f"IY AX {_R}", "I@": f"IH {_R}", "U@": f"UH {_R}",
    "aI@": f"AY AX {_R}", "aI3": f"AY AX {_R}", "aU@": f"AW AX {_R}",
}
NONSILENCE_PHONES = tuple(sorted({p for phones in _PHONES.values() for p in phones.split()} - {_R}))

# Weak forms that eSpeak does not speak when a word stands alone.
_WEAK = {"and": "AX N", "to": "T AX", "a": "AX", "the": "DH AX"}


def to_phones(phonemes: Iterable[str], accent: str) -> tuple[str, ...]:
    """One spoken word of eSpeak's phoneme names -> phones. Raises UserError for a phoneme that is not in the table."""
    out: list[str] = []
    for name in phonemes:
        name = re.sub("[',%=;|!]", "", name)
        name = name if name in _PHONES else name.strip(":")
        if not name:
            continue  # stress, length and pause marks ("_!" is a pause, of which the separator leaves "!")
        if name not in _PHONES:
            raise UserError(f"eSpeak NG speaks a phoneme '{name}' ({accent}) that the table in corpus/phones.py lacks: "
                            "add it there, or use espeakng-loader 0.2")
        for phone in _PHONES[name].split():
            if phone == _R:
                if accent in RHOTIC_ACCENTS:
                    out.append("R")
            elif not (phone == "R" and out[-1:] == ["R"]):  # a linking r after a spoken one
                out.append(phone)
    return tuple(out)


def count_pronunciations(espeak, sentences: Iterable[str], accents: Iterable[str]) -> dict[str, Counter]:
    """word -> how often each pronunciation (tuple of phones) is spoken in these sentences, over all accents.

    Only sentences of which eSpeak speaks as many words as are written can be counted (it joins some: "of the"); every
    word is also counted once by itself in each accent.
    """
    sentences = list(sentences)
    counts: dict[str, Counter] = {word: Counter() for sentence in sentences for word in sentence.split()}
    for accent in accents:
        espeak.set_voice(accent)
        for sentence in [*sentences, *counts]:
            words = sentence.split()
            spoken = [phones for phones in (to_phones(word, accent) for word in espeak.phonemes(sentence)) if phones]
            if len(spoken) == len(words):
                for word, phones in zip(words, spoken):
                    counts[word][phones] += 1
    return counts


def make_lexicon(counts: Mapping[str, Counter], most: int = 3, share: float = 0.1) -> dict[str, list[str]]:
    """word -> its pronunciations: up to ``most`` of those with at least ``share`` of its count, the commonest first."""
    lexicon = {}
    for word, heard in sorted(counts.items()):
        ranked = sorted(heard.items(), key=lambda item: (-item[1], item[0]))
        least = share * sum(heard.values())
        kept = [" ".join(phones) for phones, count in ranked[:most] if count >= least] or [" ".join(ranked[0][0])]
        if word in _WEAK and _WEAK[word] not in kept:
            kept.append(_WEAK[word])
        lexicon[word] = kept
    return lexicon


def write_dict(path: str | Path, lexicon: Mapping[str, Iterable[str]], oov: str = "<unk>") -> None:
    """Kaldi's dict directory: lexicon.txt (with ``oov``, SPN), [non]silence_phones.txt, optional_silence.txt.

    lexicon: word -> pronunciations, phones separated by spaces. Phones that differ in a digit at their end, for stress,
    share a line, the root of their trees, and those of one digit are a question.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    lines = sorted({f"{word} {phones}" for word, prons in lexicon.items() for phones in prons} | {f"{oov} SPN"})
    used = {phone for line in lines for phone in line.split()[1:]} - set(SILENCE_PHONES)
    alike: dict[str, list[str]] = {}
    stressed: dict[str, list[str]] = {}
    for phone in sorted(used):
        alike.setdefault(phone.rstrip("0123456789"), []).append(phone)
        if phone[-1].isdigit():
            stressed.setdefault(phone[-1], []).append(phone)
    for name, content in (
        ("lexicon.txt", lines),
        ("silence_phones.txt", SILENCE_PHONES),
        ("nonsilence_phones.txt", map(" ".join, alike.values())),
        ("optional_silence.txt", SILENCE_PHONES[:1]),
        ("extra_questions.txt", (" ".join(stressed[digit]) for digit in sorted(stressed))),
    ):
        write_text(path / name, "".join(f"{line}\n" for line in content))
