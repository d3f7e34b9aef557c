"""A made-up LibriSpeech: noise in FLAC files, in the corpus's own layout."""
import zlib
from pathlib import Path

import numpy as np
import soundfile

PARTS = {"train-clean-5": ("10", "11", "12"), "test-clean": ("20", "21", "22", "23")}  # part -> speakers
WORDS = ("ONE TWO THREE", "FOUR ONE SIX", "TWO TWO FOUR", "SIX THREE ONE")
LEXICON = (";;; made up\nONE  W AH1 N\nTWO T UW1\nTHREE  TH R IY1\nFOUR F AO1 R\nFOUR(2) F ER0\nsix S IH1 K S\n"
           "<UNK> SPN\n")


def make_librispeech(folder, parts=PARTS, chapters=2, utterances=2, seconds=0.6):
    """Parts with so many utterances in each chapter of each speaker, SPEAKERS.TXT, and lm/ with lexicon and text."""
    folder = Path(folder)
    speakers = []
    for part, names in parts.items():
        for speaker in names:
            speakers.append(f"{speaker:<6}| {'FM'[int(speaker) % 2]} | {part} | 1.0 | Somebody\n")
            for chapter in range(100, 100 + chapters):
                place = folder / part / speaker / str(chapter)
                place.mkdir(parents=True)
                lines = []
                for number in range(utterances):
                    name = f"{speaker}-{chapter}-{number:04d}"
                    rng = np.random.default_rng(zlib.crc32(name.encode()))
                    noise = rng.integers(-900, 900, int(seconds * 16000) + 160 * number).astype(np.int16)
                    soundfile.write(place / f"{name}.flac", noise, 16000)
                    lines.append(f"{name} {WORDS[(int(speaker) + chapter + number) % len(WORDS)]}\n")
                (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (folder / "SPEAKERS.TXT").write_text(";ID  |SEX| SUBSET\n" + "".join(speakers))
    (folder / "lm").mkdir()
    (folder / "lm" / "librispeech-lexicon.txt").write_text(LEXICON)
    (folder / "lm" / "text").write_text("one two\nthree four six zebra\nfour four\n" + WORDS[0] + "\n")
    return folder
