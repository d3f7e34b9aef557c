"""Kaldi data directories: reading, writing and checking. Ids are sorted as ``LC_ALL=C sort`` sorts them."""
from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any, Iterable, Mapping, Optional

import numpy as np

from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.pipes import check_pipe
from essence_kd.io.provenance import staging_path, write_text
from essence_kd.io.text import other_form, read_lines, split
from essence_kd.io.wave import (expect_pcm_wav, expect_rate, is_command, read_audio, split_speed, the_channel,
                                wav_info)
from essence_kd.io.words import refuse_reserved, refuse_unknown, refuse_unseen, unknown_words

MAX_OVERSHOOT = 0.05  # seconds by which a segment may end after its recording (rounding)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


@dataclass
class DataDir:
    """A data directory in memory; every mapping is sorted by id.

    wav_scp: recording -> path or pipe. segments: utterance -> (recording, start, end) in seconds, end -1 for the end of
    the recording; None where utterances are whole recordings. text: utterance -> words separated by single spaces.
    channels: utterance -> channel of its recording, from 0, of those segments that say it (their fifth column).
    """

    path: Path
    wav_scp: dict[str, str]
    text: dict[str, str]
    utt2spk: dict[str, str]
    segments: Optional[dict[str, tuple[str, float, float]]] = None
    extra: dict[str, dict[str, str]] = field(default_factory=dict)  # spk2gender, reco2file_and_channel, utt2uniq, ...
    channels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> "DataDir":
        """Reads wav.scp, utt2spk and, where they are, segments and text. Raises UserError (see ``read_table``)."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such data directory")
        segments, channels = read_segments(path / "segments") if (path / "segments").exists() else (None, {})
        text = read_table(path / "text", empty="an empty transcript") if (path / "text").exists() else {}
        text = {utt: " ".join(split(words)) for utt, words in text.items()}
        extra = {name: read_table(path / name) for name in _EXTRA if (path / name).exists()}
        return cls(path, read_wav_scp(path / "wav.scp"), text, read_table(path / "utt2spk"), segments, extra, channels)

    def spk2utt(self) -> dict[str, list[str]]:
        """speaker -> utterances, both sorted."""
        out: dict[str, list[str]] = {}
        for utt, spk in self.utt2spk.items():
            out.setdefault(spk, []).append(utt)
        return {spk: sorted(out[spk], key=_order) for spk in sorted(out, key=_order)}

    def utterances(self) -> dict[str, tuple[str, float, float]]:
        """utterance -> (recording, start, end); end -1 means the end of the recording."""
        return self.segments if self.segments is not None else {reco: (reco, 0.0, -1.0) for reco in self.wav_scp}

    def write(self, path: str | Path, stm: Optional[Iterable[str]] = None,
              segment_lines: Mapping[str, str] = MappingProxyType({})) -> None:
        """Writes the directory beside ``path`` and puts it there when it is whole; what was there before is removed.

        segment_lines: utterance -> its line of segments behind the id, where that must stay as it was read.
        """
        path = Path(path)
        temporary = Path(staging_path(path))
        temporary.mkdir(parents=True)
        try:
            self._write_tables(temporary, segment_lines)
            if stm is not None:
                (temporary / "stm").write_text("".join(f"{line}\n" for line in stm), encoding="utf-8")
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write_tables(self, path: Path, segment_lines: Mapping[str, str]) -> None:
        write_table(path / "wav.scp", self.wav_scp)
        if self.segments is not None:
            write_table(path / "segments", {utt: segment_lines.get(utt) or self._segment_line(utt)
                                            for utt in self.segments})
        if self.text:
            write_table(path / "text", self.text)
        write_table(path / "utt2spk", self.utt2spk)
        write_table(path / "spk2utt", {spk: " ".join(utts) for spk, utts in self.spk2utt().items()})
        for name, table in self.extra.items():
            write_table(path / name, table)


    def _segment_line(self, utt: str) -> str:
        reco, start, end = self.segments[utt]
        # all digits that tell a time from every other, and at least two decimals
        times = [np.format_float_positional(float(time), trim="k", min_digits=2) for time in (start, end)]
        return " ".join([reco, *times, *([str(self.channels[utt])] if utt in self.channels else [])])


_EXTRA = ("spk2gender", "reco2file_and_channel", "utt2uniq", "reco2dur", "utt2dur")


def _order(text: str) -> bytes:
    return text.encode("utf-8")


def read_table(path: str | Path, empty: str = "nothing after the id") -> dict[str, str]:
    """A text table: id -> the rest of the line. Raises UserError naming the file, the line or id, and the fix.

    Refused: a missing or empty file, text that is not UTF-8, an id with nothing after it (``empty`` says what that is),
    ids that come twice or not in the order of ``LC_ALL=C sort``.
    """
    path = Path(path)
    out: dict[str, str] = {}
    last = b""
    for number, line in read_lines(path):
        key, *rest = split(line, 1)
        if number > len(out) + 1:
            raise UserError(f"{path}: line {len(out) + 1} is empty: remove it")
        if not rest:
            raise UserError(
                f"{path}: {key} has {empty} (line {number}): complete the line or remove {key} from every file"
            )
        if key in out:
            raise UserError(f"{path}: {key} comes twice (line {number}): remove one of its lines")
        if _order(key) < last:
            raise UserError(
                f"{path}: {key} (line {number}) is out of order: sort the file with 'LC_ALL=C sort -o {path} {path}'"
            )
        last = _order(key)
        out[key] = rest[0]
    if not out:
        raise UserError(f"{path}: holds no line: run the data preparation again")
    return out


def read_wav_scp(path: str | Path) -> dict[str, str]:
    """recording -> path or pipe. Raises UserError as ``read_table`` does, and for a pipe where these are refused."""
    table = read_table(path)
    for number, (reco, source) in enumerate(table.items(), 1):
        if is_command(source):
            check_pipe(source, f"{path}: line {number}: recording {reco}")
    return table


def write_table(path: str | Path, table: Mapping[str, str]) -> None:
    """id -> rest of the line, sorted by id. Appears under its name only when it is whole."""
    write_text(path, "".join(f"{key} {table[key]}\n" for key in sorted(table, key=_order)))


def read_segments(path: str | Path) -> tuple[dict[str, tuple[str, float, float]], dict[str, int]]:
    """Utterance -> (recording, start, end) of a segments file, and utterance -> channel of those with a fifth column.

    Times are decimal numbers in seconds, 1e-2 too; end -1 is the end of the recording. Raises UserError.
    """
    segments, channels = {}, {}
    for utt, rest in read_table(path).items():
        reco, *times = split(rest)
        for number in times[:2]:
            if not _NUMBER.fullmatch(number):
                hint = " (write a decimal point)" if _NUMBER.fullmatch(number.replace(",", ".")) else ""
                raise UserError(f"{path}: {utt}: expected 'UTTERANCE RECORDING START END' with times in seconds, got "
                                f"'{utt} {rest}': '{number}' is no such number{hint}")
        if len(times) not in (2, 3):
            raise UserError(f"{path}: {utt}: expected 'UTTERANCE RECORDING START END', and perhaps a channel, "
                            f"got '{utt} {rest}'")
        if len(times) == 3:
            if not re.fullmatch("[0-9]{1,4}", times[2]):
                raise UserError(f"{path}: {utt}: the fifth column is '{times[2]}', and must be the number of a channel "
                                "(0, 1, ...)")
            channels[utt] = int(times[2])
        start, end = float(times[0]), float(times[1])
        if not (0 <= start < end or (end == -1 and start >= 0)):
            raise UserError(f"{path}: {utt} starts at {times[0]} and ends at {times[1]}: "
                            "a segment needs 0 <= start < end")
        segments[utt] = reco, start, end
    return segments, channels


def sample_range(segment: tuple[str, float, float], num_samples: int, rate: int, source: str, name: str,
                 max_overshoot: float = MAX_OVERSHOOT) -> tuple[int, int]:
    """(first sample, one after the last) of a segment, rounded as Kaldi's extract-segments does.

    num_samples: of its recording, at ``rate`` Hz; source: the recording's right-hand side of wav.scp. Raises UserError
    that begins with ``name`` where the segment begins or ends after the recording. A recording whose speed was changed
    has times that were scaled and rounded: a segment of its last samples may come out empty.
    """
    reco, start, end = segment
    factor = split_speed(source)[1]
    rounding = 0 if factor is None else 0.01
    first, last = int(start * rate + 0.5), int(end * rate + 0.5) if end >= 0 else num_samples
    allowed = num_samples + (max_overshoot / min(1.0, float(factor or 1)) + rounding) * rate
    if first >= num_samples + rounding * rate or last > allowed:
        what = f"ends at {end:.2f} s" if end >= 0 else f"starts at {start:.2f} s"
        raise UserError(f"{name} {what}, but recording {reco} ends at {num_samples / rate:.2f} s: "
                        "correct the segment or wav.scp")
    return min(first, num_samples), min(last, num_samples)


def _first(keys: Iterable[str]) -> str:
    keys = sorted(keys, key=_order)
    return keys[0] + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def same_ids(a: Path, in_a: Iterable[str], b: Path, in_b: Iterable[str]) -> None:
    """UserError where one of two files lacks an id that the other one has."""
    for (file, own), (other, others) in permutations(((a, set(in_a)), (b, set(in_b)))):
        missing = others - own
        if missing:
            hint = other_form(min(missing), own)
            raise UserError(
                f"{file}: lacks {_first(missing)}, which {other.name} has{hint}: add the line here or remove it there"
            )


def validate_data_dir(
    path: str | Path,
    *,
    lexicon: str | Path | None = None,
    allow_oov: bool = False,
    sample_rate: int = SAMPLE_RATE,
    need_text: bool = True,
    run_pipes: bool = False,
    max_overshoot: float = MAX_OVERSHOOT,
    wav_only: bool = False,
    apart_from: Optional[Iterable[str | Path]] = None,
    no_sentence_of: Optional[Iterable[str | Path]] = None,
) -> dict[str, Any]:
    """Checks a data directory; raises UserError at the first fault, one line with the file, the id and the fix.

    lexicon: a lexicon.txt or words.txt whose first column must hold every word of text (unless allow_oov). Reserved
    words (<s>, #0 ...) and characters that cannot be seen are refused in text. Headers of audio files are read; pipes
    are only run when run_pipes is true (make-feats runs them anyway).
    max_overshoot: seconds by which a segment may end after its recording. wav_only: files must be 16-bit PCM WAV.
    apart_from: data directories with which no utterance, recording or audio file may be shared. no_sentence_of:
    likewise, and no sentence of three words or more.
    Returns counts: utterances, speakers, recordings, words, oov_words (a Counter of words that the lexicon lacks),
    seconds (-1 where pipes were not run).
    """
    path = Path(path)
    data = DataDir.load(path)
    utts = data.utterances()
    same_ids(path / "utt2spk", data.utt2spk, path / ("segments" if data.segments is not None else "wav.scp"), utts)
    if need_text and not data.text:
        raise UserError(f"{path}/text: no such file: write one line 'UTTERANCE WORD WORD ...' an utterance")
    if data.text:
        same_ids(path / "text", data.text, path / "utt2spk", data.utt2spk)
    _check_speakers(path, data)
    unknown = {reco for reco, _, _ in utts.values()} - set(data.wav_scp)
    if unknown:
        utt = min((u for u, (reco, _, _) in utts.items() if reco in unknown), key=_order)
        raise UserError(
            f"{path}/segments: {utt} is cut from recording {utts[utt][0]}, which wav.scp lacks: add it there"
        )
    seconds = _check_audio(path, data, sample_rate, run_pipes, max_overshoot, wav_only)
    for other in (*(apart_from or ()), *(no_sentence_of or ())):
        _check_apart(path, data, DataDir.load(other))
    for other in no_sentence_of or ():
        _check_sentences(path, data, DataDir.load(other))
    oov = _check_words(path, data, lexicon, allow_oov)
    return {"utterances": len(utts), "speakers": len(set(data.utt2spk.values())), "recordings": len(data.wav_scp),
            "words": sum(len(split(words)) for words in data.text.values()), "oov_words": oov, "seconds": seconds}


def _check_speakers(path: Path, data: DataDir) -> None:
    refuse_unseen([(utt, [utt, *split(spk)]) for utt, spk in data.utt2spk.items()], path / "utt2spk")
    last = b""
    for utt, spk in data.utt2spk.items():
        if len(split(spk)) != 1:
            raise UserError(f"{path}/utt2spk: {utt} has the speaker '{spk}': a line is 'UTTERANCE SPEAKER'")
        if _order(spk) < last:
            raise UserError(f"{path}/utt2spk: sorted by utterance it is not sorted by speaker (at {utt} of {spk}): "
                            "make the speaker the beginning of each utterance id")
        last = _order(spk)
    if (path / "spk2utt").exists():
        given = {spk: split(rest) for spk, rest in read_table(path / "spk2utt").items()}
        for spk, utts in data.spk2utt().items():
            if given.get(spk) != utts:
                utt = next((u for u in utts if u not in given.get(spk, [])), (given.get(spk) or utts)[0])
                raise UserError(f"{path}/spk2utt: speaker {spk} disagrees with utt2spk (utterance {utt}): "
                                "make it again from utt2spk with utils/utt2spk_to_spk2utt.pl")
        same_ids(path / "spk2utt", given, path / "utt2spk", data.utt2spk.values())
    uniq = data.extra.get("utt2uniq")
    if uniq is not None:
        same_ids(path / "utt2uniq", uniq, path / "utt2spk", data.utt2spk)


def _check_apart(path: Path, data: DataDir, other: DataDir) -> None:
    """UserError where something is in both: what nobody transcribed must not hold what is tested."""
    for what, table, here, there in (
            ("utterance", "utt2spk", data.utt2spk, other.utt2spk),
            ("recording", "wav.scp", data.wav_scp, other.wav_scp),
            ("the audio", "wav.scp", set(data.wav_scp.values()), set(other.wav_scp.values()))):
        both = set(here) & set(there)
        if both:
            raise UserError(f"{path}/{table}: {what} {_first(both)} is also in {other.path}, with which it must share "
                            "nothing: leave it out here")


def _check_sentences(path: Path, data: DataDir, other: DataDir) -> None:
    """UserError where a sentence of three words or more is in both; shorter ones, such as 'yes', tell little."""
    heard = {words for words in other.text.values() if len(split(words)) >= 3}
    both = {utt: words for utt, words in data.text.items() if words in heard}
    if both:
        utt = min(both, key=_order)
        raise UserError(f"{path}/text: {_first(both)} says '{both[utt]}', which is also in {other.path}: leave out "
                        "what is tested")


def _check_audio(path: Path, data: DataDir, sample_rate: int, run_pipes: bool, max_overshoot: float,
                 wav_only: bool) -> float:
    found: dict[str, tuple[int, int]] = {}  # recording -> samples, channels
    for reco, source in data.wav_scp.items():
        file, factor = split_speed(source)
        try:
            if file.endswith("|"):
                if not run_pipes:
                    continue
                rate, samples = read_audio(file)
                count, channels = samples.shape
            else:
                if wav_only:
                    expect_pcm_wav(file)
                rate, channels, count = wav_info(file)
            expect_rate(rate, sample_rate, file)
        except UserError as error:
            raise UserError(f"{path}/wav.scp: recording {reco}: {error}") from None
        found[reco] = round(count / float(factor or 1)), channels
    total, unknown = 0.0, False
    for utt, segment in data.utterances().items():
        reco, start, end = segment
        if reco not in found:  # a pipe that was not run
            unknown = True
            continue
        count, channels = found[reco]
        the_channel(data.channels.get(utt), channels, f"{path}/wav.scp: recording {reco}, of which {utt} is cut")
        sample_range(segment, count, sample_rate, data.wav_scp[reco], f"{path}/segments: {utt}", max_overshoot)
        total += (count / sample_rate if end == -1 else end) - start
    return -1.0 if unknown else total


def _check_words(path: Path, data: DataDir, lexicon: str | Path | None, allow_oov: bool) -> Counter:
    """The words of text that the lexicon lacks."""
    rows = [(utt, split(words)) for utt, words in data.text.items()]
    refuse_reserved(rows, path / "text")
    refuse_unseen([(utt, [utt, *words]) for utt, words in rows], path / "text")
    if lexicon is None:
        return Counter()
    known = {split(line, 1)[0] for _, line in read_lines(lexicon)}
    if not allow_oov:
        refuse_unknown(rows, known, path / "text", lexicon, "add its pronunciation, or pass --allow-oov true")
    return unknown_words(rows, known, path / "text", lexicon)
