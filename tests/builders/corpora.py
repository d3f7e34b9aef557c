"""Small corpora: recordings that sound like speech, and the corpus mini in a size of its own."""
import numpy as np

from essence_kd.corpus.synth import SIZES, Size, synthesize, synthesize_untranscribed
from essence_kd.io.data_dir import DataDir
from essence_kd.io.wave import write_wav

RATE = 8000
MICRO = Size(
    {"train": 260, "dev": 60, "eval_swbd": 60, "eval_che": 60},
    {"train": 4, "dev": 2, "eval_swbd": 2, "eval_che": 2},
    call=70,
    topics=2,
    lm_sentences=50,
    pool=(80, 2),
)


def speechlike(seconds, seed=0):
    """Harmonics under a moving envelope, and noise: int16."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 25)) * (0.2 + np.abs(np.sin(2 * np.pi * 2.3 * t)))
    return np.clip(3000 * voice + 150 * rng.standard_normal(len(t)) + 40, -32768, 32767).astype(np.int16)


def make_recordings(folder):
    """Three recordings of three speakers, two utterances each."""
    wavs, text, utt2spk, segments = {}, {}, {}, {}
    for n, spk in enumerate(("ann", "bob", "eve")):
        reco = f"call{n}-A"
        write_wav(folder / f"{reco}.wav", speechlike(4, n), RATE)
        wavs[reco] = str(folder / f"{reco}.wav")
        for i, (start, end) in enumerate(((0.25, 1.5), (2.0, 3.91))):
            utt = f"{spk}-{reco}-{i}"
            text[utt], utt2spk[utt], segments[utt] = "one two", spk, (reco, start, end)
    DataDir(folder / "data", wavs, text, utt2spk, segments,
            {"spk2gender": {"ann": "f", "bob": "m", "eve": "f"},
             "reco2file_and_channel": {reco: f"{reco[:-2]} A" for reco in wavs}}).write(folder / "data")
    return folder / "data"


def make_mini(out, nj=2, untranscribed=False):
    """The corpus mini with four speakers of training in ``out``, or its set without transcripts; its counts."""
    SIZES["micro"] = MICRO
    try:
        return (synthesize_untranscribed if untranscribed else synthesize)(out, "micro", seed=3, nj=nj)
    finally:
        del SIZES["micro"]


def make_takes(folder, speakers, takes=10, rate=8000):
    """Tones of a frequency of their own for each digit, in the dataset's naming."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n, speaker in enumerate(speakers):
        for digit in range(10):
            for take in range(takes):
                t = np.arange(int(rate * rng.uniform(0.2, 0.4))) / rate
                wave = np.sin(2 * np.pi * (400 + 150 * digit + 10 * n) * t) * 5000
                write_wav(folder / f"{digit}_{speaker}_{take}.wav", wave.astype(np.int16), rate)
    return folder
