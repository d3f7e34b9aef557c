"""A made-up Switchboard: the directories, SPHERE audio, transcripts, PEM and STM of the LDC corpora, in small."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

RATE = 8000
WORDS = {"yeah": "y ae", "right": "r ay t", "house": "hh aw s", "music": "m y uw z ih k", "school": "s k uw l",
         "really": "r iy l iy", "people": "p iy p ax l", "summer": "s ah m er", "garden": "g aa r d en",
         "news": "n uw z",
         "seven": "s eh v ax n", "dinner": "d ih n er", "i": "ay", "the": "dh ax", "and": "ae n d", "kids": "k ih d z"}
PHONES = sorted({p for phones in WORDS.values() for p in phones.split()})
GLM = """;; a global mapping file in NIST's format, much shortened
* name "made_up.glm"
* desc "rules of a made-up test"
* format = 'NIST1'
* max_nrules = '10'
* copy_no_hit = 'T'
* case_sensitive = 'F'
YEAH => YES / [ ] __ [ ] ;; one rule
"""


def sphere(path: Path, sides: list[np.ndarray]) -> None:
    """Two-channel mu-law SPHERE, as on the discs: a header of 1024 bytes, then interleaved samples (CCITT G.711)."""
    length = max(len(s) for s in sides)
    pcm = np.stack([np.pad(s, (0, length - len(s))) for s in sides], axis=1)
    magnitude = np.minimum(np.abs(pcm.astype(np.int32)), 32635) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 15
    coded = (~((np.where(pcm < 0, 128, 0)) | (exponent << 4) | mantissa) & 255).astype(np.uint8)
    fields = [("sample_count", "-i", length), ("sample_n_bytes", "-i", 1), ("channel_count", "-i", 2),
              ("sample_byte_format", "-s1", "1"), ("sample_rate", "-i", RATE), ("sample_coding", "-s4", "ulaw")]
    header = "NIST_1A\n   1024\n" + "".join(f"{n} {t} {v}\n" for n, t, v in fields) + "end_head\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode().ljust(1024, b" ") + coded.tobytes())


def say(words: list[str], rng, pitch: float) -> np.ndarray:
    """A sound a phone: two sinusoids of its own in noise, about 100 ms."""
    pieces = []
    for phone in (p for w in words for p in WORDS[w].split()):
        n = int(RATE * rng.uniform(0.08, 0.13))
        t, k = np.arange(n) / RATE, PHONES.index(phone)
        f1, f2 = 250 * 1.35 ** (k % 5), 1000 * 1.27 ** (k // 5)  # further apart than voices and speeds differ
        f1, f2 = (f * pitch * rng.uniform(0.9, 1.1) for f in (f1, f2))  # as much as speed perturbation shifts them
        pieces.append(np.sin(2 * np.pi * f1 * t) + 0.7 * np.sin(2 * np.pi * f2 * t))
    return (3000 * np.concatenate(pieces)).astype(np.int16)


def side(rng, utterances: int):
    """(samples, [(start, end, words)]) of one side of a conversation."""
    pitch, at = rng.uniform(0.97, 1.03), 0.5
    parts, said = [np.zeros(int(0.5 * RATE), np.int16)], []
    for _ in range(utterances):
        words = list(rng.choice(list(WORDS), size=rng.integers(3, 8)))
        audio = say(words, rng, pitch)
        pause = np.zeros(int(RATE * rng.uniform(0.4, 0.8)), np.int16)
        said.append((at, at + len(audio) / RATE, words))
        at += (len(audio) + len(pause)) / RATE
        parts += [audio, pause]
    samples = np.concatenate(parts)
    return (samples + rng.normal(0, 200, size=len(samples))).astype(np.int16), said


def dictionary(path: Path, patch: Path) -> None:
    """sw-ms98-dict.text such that Kaldi's local/dict.patch, a list of line numbers and old lines, can be applied."""
    lines: dict[int, str] = {}
    at = last = 0
    for line in patch.read_text(encoding="latin-1").splitlines():
        hunk = re.match(r"(\d+)(?:,(\d+))?[acd]", line)
        if hunk:
            at = int(hunk.group(1))
            last = max(last, int(hunk.group(2) or at))
        elif line.startswith("< "):
            lines[at] = line[2:]
            at += 1
    text = [lines.get(n, "#") for n in range(1, last + 2)] + [f"{w} {p}" for w, p in WORDS.items()]
    path.write_text("\n".join(text) + "\n", encoding="latin-1")


def make_corpora(root: Path, patch: Path, *, conversations: int = 12, utterances: int = 6,
                 seed: int = 5) -> dict[str, str]:
    """LDC97S62, LDC2002S09 and LDC2002T43 under root; the environment by which recipes/swbd/recipe.conf finds them.

    Forty conversations of evaluation, as Kaldi's script counts them, with one utterance a side.
    """
    rng = np.random.default_rng(seed)
    swb, speech, text = root / "LDC97S62", root / "LDC2002S09" / "hub5e_00", root / "LDC2002T43" / "reference"
    transcripts = swb / "transcriptions" / "swb_ms98_transcriptions"
    for number in range(2001, 2001 + conversations):
        sides = [side(rng, utterances) for _ in "AB"]
        sphere(swb / "swb1_d1" / "data" / f"sw0{number}.sph", [samples for samples, _ in sides])
        folder = transcripts / str(number)[:2] / str(number)
        folder.mkdir(parents=True)
        for name, (_, said) in zip("AB", sides):
            lines, at = [], 0.0
            for start, end, words in said:
                lines += [f"{at:.6f} {start:.6f} [silence]", f"{start:.6f} {end:.6f} {' '.join(words)}"]
                at = end
            stem = f"sw{number}{name}-ms98-a"
            (folder / f"{stem}-trans.text").write_text(
                "".join(f"{stem}-{i:04d} {line}\n" for i, line in enumerate(lines, 1)))
    dictionary(transcripts / "sw-ms98-dict.text", patch)

    text.mkdir(parents=True)
    pem, stm = [";; made up"], [';; CATEGORY "0" "" ""', ';; LABEL "O" "Overall" "Overall"']
    for number in range(20):
        for prefix, label in (("sw", "swbd"), ("en", "en")):
            name, audio = f"{prefix}_4{number:03d}", []
            for channel in "AB":
                samples, ((start, end, words),) = side(rng, 1)
                audio.append(samples)
                pem.append(f"{name} {channel} unknown_speaker {start:.2f} {end:.2f}")
                shown = " ".join(words).upper() + (" (%HESITATION)" if number % 3 == 0 else "")
                stm.append(f"{name} {channel} {name}_{channel} {start:.2f} {end:.2f} <O,{label},F,{label}-F> {shown}")
            sphere(speech / "english" / f"{name}.sph", audio)
    (speech / "english" / "hub5e_00.pem").write_text("\n".join(pem) + "\n")
    (text / "hub5e00.english.000405.stm").write_text("\n".join(stm) + "\n")
    (text / "en20000405_hub5.glm").write_text(GLM)
    return {"LDC97S62": str(swb), "LDC2002S09": str(speech), "LDC2002T43": str(root / "LDC2002T43"), "SWBD_LM": "own",
            "FISHER": "", "LDC97S62_DOCS": ""}
