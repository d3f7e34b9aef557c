"""Text files: tables of a data directory, segments, counts, lists, lines."""
from __future__ import annotations

import os
from pathlib import Path

from essence_kd.am.targets import read_count
from essence_kd.decode.checks import ctm_places
from essence_kd.io.data_dir import DataDir, read_table, validate_data_dir
from essence_kd.io.errors import UserError
from essence_kd.io.text import BLANKS, read_lines, read_map, read_words, split
from fuzz.driver import directory, file, folder, target

DATA_DIR = ["wav.scp", "utt2spk", "segments", "text", "reco2file_and_channel", "spk2utt", "utt2uniq", "lexicon"]


@target
def lines(data: bytes) -> None:
    """Any text file, by each of the readers of lines."""
    path = file(data)
    found = read_lines(path)
    assert all(split(line) and line == line.strip(BLANKS) and "\n" not in line for _, line in found)
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    for reader in (read_table, read_count):
        try:
            reader(path)
        except UserError as error:
            assert str(error)
    table = read_map(path)
    assert len(table) == len(found) and set(read_words(path)) == set(table)
    assert all(split(key) == [key] for key in table)


@target
def data_dir(data: bytes) -> None:
    """A data directory; what is written again is the same, and the check of it says so or what is wrong."""
    path = directory(data, DATA_DIR, "data")
    loaded = DataDir.load(path)
    for utt, (reco, start, end) in loaded.utterances().items():
        assert utt and reco and 0 <= start and (end == -1 or end > start)
    copy = os.path.join(folder(), "data-copy")
    loaded.write(copy)
    again = DataDir.load(copy)
    assert (again.wav_scp, again.text, again.utt2spk, again.extra) == \
        (loaded.wav_scp, loaded.text, loaded.utt2spk, loaded.extra)
    ctm_places(path)
    lexicon = Path(path) / "lexicon"
    validate_data_dir(path, lexicon=lexicon if lexicon.exists() else None)
