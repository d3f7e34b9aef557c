"""The sound of a few utterances as data URIs, small enough for a page that holds everything."""
from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Sequence

import numpy as np

from essence_kd.io.data_dir import read_segments, read_wav_scp
from essence_kd.io.recordings import Recordings

MOST_SECONDS = 15.0


def data_uri(samples: np.ndarray, rate: int) -> str:
    """int16 samples of one channel as MP3, or as mu-law WAV where libsndfile writes no MP3 (before 1.1)."""
    import soundfile

    kind = {"format": "MP3"} if "MP3" in soundfile.available_formats() else {"format": "WAV", "subtype": "ULAW"}
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, **kind)
    mime = "audio/mpeg" if kind["format"] == "MP3" else "audio/wav"
    return f"data:{mime};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def load_clips(data_dir: Path, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(set, utterance) -> data URI, of utterances of ``data_dir``/SET up to ``MOST_SECONDS`` long.

    Raises:
      UserError: an utterance has no recording, or it cannot be read.
    """
    clips: dict[tuple[str, str], str] = {}
    for name in dict.fromkeys(n for n, _ in wanted):
        recordings = Recordings(read_wav_scp(data_dir / name / "wav.scp"), data_dir / name / "wav.scp")
        segments: dict[str, tuple[str, float, float]] = {}
        channels: dict[str, int] = {}
        if (data_dir / name / "segments").exists():
            segments, channels = read_segments(data_dir / name / "segments")
        for utt in (u for n, u in wanted if n == name):
            samples = recordings.cut(utt, segments.get(utt, (utt, 0.0, -1.0)), channels.get(utt))
            if 0 < len(samples) <= MOST_SECONDS * recordings.rate:
                clips[name, utt] = data_uri(samples, recordings.rate)
    return clips
