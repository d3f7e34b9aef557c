"""Kaldi data directories: reading, writing and checking. Ids are sorted as ``LC_ALL=C sort`` sorts them."""
from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping, Optional

from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.pipes import check_pipe
from essence_kd.io.provenance import staging_path, write_text
from essence_kd.io.text import read_lines
from essence_kd.io.wave import is_command, read_wav, split_speed, wav_info

MAX_OVERSHOOT = 0.05  # seconds by which a segment may end after its recording (rounding)


@dataclass
class DataDir:
    """A data directory in memory; every mapping is sorted by id.

    wav_scp: recording -> path or pipe. segments: utterance -> (recording, start, end) in seconds, end -1 for the end of
    the recording; None where utterances are whole recordings. text: utterance -> words separated by single spaces.
    """

    path: Path
    wav_scp: dict[str, str]
    text: dict[str, str]
    utt2spk: dict[str, str]
    segments: Optional[dict[str, tuple[str, float, float]]] = None
    extra: dict[str, dict[str, str]] = field(default_factory=dict)  # spk2gender, reco2file_and_channel, utt2uniq, ...

    @classmethod
    def load(cls, path: str | Path) -> "DataDir":
        """Reads wav.scp, utt2spk and, where they are, segments and text. Raises UserError (see ``read_table``)."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such data directory")
        segments = None
        if (path / "segments").exists():
            segments = {
                utt: _segment(path / "segments", utt, rest) for utt, rest in read_table(path / "segments").items()
            }
        text = read_table(path / "text", empty="an empty transcript") if (path / "text").exists() else {}
        text = {utt: " ".join(words.split()) for utt, words in text.items()}
        extra = {name: read_table(path / name) for name in _EXTRA if (path / name).exists()}
        return cls(path, read_wav_scp(path / "wav.scp"), text, read_table(path / "utt2spk"), segments, extra)

    def spk2utt(self) -> dict[str, list[str]]:
        """speaker -> utterances, both sorted."""
        out: dict[str, list[str]] = {}
        for utt, spk in self.utt2spk.items():
            out.setdefault(spk, []).append(utt)
        return {spk: sorted(out[spk], key=_order) for spk in sorted(out, key=_order)}

    def utterances(self) -> dict[str, tuple[str, float, float]]:
        """utterance -> (recording, start, end); end -1 means the end of the recording."""
        return self.segments if self.segments is not None else {reco: (reco, 0.0, -1.0) for reco in self.wav_scp}

    def write(self, path: str | Path, stm: Optional[Iterable[str]] = None) -> None:
        """Writes the directory beside ``path`` and puts it there when it is whole; what was there before is removed."""
        path = Path(path)
        temporary = Path(staging_path(path))
        temporary.mkdir(parents=True)
        try:
            self._write_tables(temporary)
            if stm is not None:
                (temporary / "stm").write_text("".join(f"{line}\n" for line in stm), encoding="utf-8")
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write_tables(self, path: Path) -> None:
        write_table(path / "wav.scp", self.wav_scp)
        if self.segments is not None:
            write_table(path / "segments", {utt: f"{reco} {start:.2f} {end:.2f}"
                                            for utt, (reco, start, end) in self.segments.items()})
        if self.text:
            write_table(path / "text", self.text)
        write_table(path / "utt2spk", self.utt2spk)
        write_table(path / "spk2utt", {spk: " ".join(utts) for spk, utts in self.spk2utt().items()})
        for name, table in self.extra.items():
            write_table(path / name, table)


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
        key, *rest = line.split(None, 1)
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


def _segment(path: Path, utt: str, rest: str) -> tuple[str, float, float]:
    fields = rest.split()
    try:
        reco, start, end = fields[0], float(fields[1]), float(fields[2])
    except (IndexError, ValueError):
        raise UserError(f"{path}: {utt}: expected 'UTTERANCE RECORDING START END', got '{utt} {rest}'") from None
    if not (0 <= start < end or (end == -1 and start >= 0)):
        raise UserError(
            f"{path}: {utt} starts at {fields[1]} and ends at {fields[2]}: a segment needs 0 <= start < end"
        )
    return reco, start, end


def _first(keys: Iterable[str]) -> str:
    keys = sorted(keys, key=_order)
    return keys[0] + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def same_ids(a: Path, in_a: Iterable[str], b: Path, in_b: Iterable[str]) -> None:
    """UserError where one of two files lacks an id that the other one has."""
    for file, other, missing in ((a, b, set(in_b) - set(in_a)), (b, a, set(in_a) - set(in_b))):
        if missing:
            raise UserError(
                f"{file}: lacks {_first(missing)}, which {other.name} has: add the line here or remove it there"
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
) -> dict[str, float]:
    """Checks a data directory; raises UserError at the first fault, one line with the file, the id and the fix.

    lexicon: a lexicon.txt or words.txt whose first column must hold every word of text (unless allow_oov). Headers of
    audio files are read; pipes are only run when run_pipes is true (make-feats runs them anyway).
    max_overshoot: seconds by which a segment may end after its recording.
    Returns counts: utterances, speakers, recordings, words, oov_words, seconds (-1 where pipes were not run).
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
    seconds = _check_audio(path, data, sample_rate, run_pipes, max_overshoot)
    oov = _check_words(path, data, lexicon, allow_oov)
    return {"utterances": len(utts), "speakers": len(set(data.utt2spk.values())), "recordings": len(data.wav_scp),
            "words": sum(len(words.split()) for words in data.text.values()), "oov_words": oov, "seconds": seconds}


def _check_speakers(path: Path, data: DataDir) -> None:
    last = b""
    for utt, spk in data.utt2spk.items():
        if len(spk.split()) != 1:
            raise UserError(f"{path}/utt2spk: {utt} has the speaker '{spk}': a line is 'UTTERANCE SPEAKER'")
        if _order(spk) < last:
            raise UserError(f"{path}/utt2spk: sorted by utterance it is not sorted by speaker (at {utt} of {spk}): "
                            "make the speaker the beginning of each utterance id")
        last = _order(spk)
    if (path / "spk2utt").exists():
        given = {spk: rest.split() for spk, rest in read_table(path / "spk2utt").items()}
        for spk, utts in data.spk2utt().items():
            if given.get(spk) != utts:
                utt = next((u for u in utts if u not in given.get(spk, [])), (given.get(spk) or utts)[0])
                raise UserError(f"{path}/spk2utt: speaker {spk} disagrees with utt2spk (utterance {utt}): "
                                "make it again from utt2spk with utils/utt2spk_to_spk2utt.pl")
        same_ids(path / "spk2utt", given, path / "utt2spk", data.utt2spk.values())
    uniq = data.extra.get("utt2uniq")
    if uniq is not None:
        same_ids(path / "utt2uniq", uniq, path / "utt2spk", data.utt2spk)


def _check_audio(path: Path, data: DataDir, sample_rate: int, run_pipes: bool, max_overshoot: float) -> float:
    seconds: dict[str, float] = {}
    for reco, source in data.wav_scp.items():
        file, factor = split_speed(source)
        try:
            if file.endswith("|"):
                if not run_pipes:
                    continue
                rate, samples = read_wav(file)
                channels, count = 1, len(samples)
            else:
                rate, channels, count = wav_info(file)
        except UserError as error:
            raise UserError(f"{path}/wav.scp: recording {reco}: {error}") from None
        if rate != sample_rate:
            raise UserError(f"{path}/wav.scp: recording {reco}: {file} has {rate} samples a second, not {sample_rate}: "
                            f"resample it, for example with 'sox {file} -r {sample_rate} -t wav - |'")
        if channels != 1:
            raise UserError(f"{path}/wav.scp: recording {reco}: {file} has {channels} channels, not one: "
                            f"take one with 'sox {file} -t wav - remix 1 |'")
        seconds[reco] = count / rate / float(factor or 1)
    total, unknown = 0.0, False
    for utt, (reco, start, end) in data.utterances().items():
        if reco not in seconds:  # a pipe that was not run
            unknown = True
            continue
        if end > seconds[reco] + max_overshoot or start >= seconds[reco]:
            raise UserError(
                f"{path}/segments: {utt} ends at {end:.2f} s, but recording {reco} ends at {seconds[reco]:.2f} s: "
                "correct the segment or wav.scp"
            )
        total += (seconds[reco] if end == -1 else end) - start
    return -1.0 if unknown else total


def _check_words(path: Path, data: DataDir, lexicon: str | Path | None, allow_oov: bool) -> int:
    if lexicon is None:
        return 0
    known = {line.split()[0] for _, line in read_lines(lexicon)}
    missing: dict[str, str] = {}
    count = 0
    for utt, words in data.text.items():
        for word in words.split():
            if word not in known:
                missing.setdefault(word, utt)
                count += 1
    if missing and not allow_oov:
        word, utt = next(iter(missing.items()))
        more = f" (and {len(missing) - 1} more words)" if len(missing) > 1 else ""
        raise UserError(f"{path}/text: {utt} has the word '{word}'{more}, which {lexicon} lacks: "
                        "add its pronunciation, or pass --allow-oov true")
    return count
