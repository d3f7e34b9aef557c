"""Text files in UTF-8, read as Kaldi reads them, and messages that name the line of what is wrong with them.

Words and ids end at ASCII blanks alone, as in Kaldi: a no-break space is a character of its word.
"""
from __future__ import annotations

import os
import unicodedata
from typing import Container, TextIO

from essence_kd.io.errors import UserError

BLANKS = " \t\n\r\f\v"  # what Kaldi's programs split at
_BOM = b"\xef\xbb\xbf"


def split(line: str, most: int = -1) -> list[str]:
    """The fields of a line between BLANKS, at most ``most`` + 1 of them (the last is then the rest of the line)."""
    if line.isprintable():  # then all that str.split takes for a blank is a space
        return line.split(None, most)
    return [field.decode("utf-8", "surrogateescape")
            for field in line.encode("utf-8", "surrogateescape").split(None, most)]


def is_number(text: str) -> bool:
    """Whether a text is a whole number without sign, in ASCII digits."""
    return text.isascii() and text.isdigit()


def visible(text: str, keep: str = "") -> str:
    """A text for a message: what cannot be seen (but for characters to ``keep``) is an escape, such as ``\\xa0``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


class VisibleStream:
    """A text stream that writes what is ``visible``: names that are read from files may move a terminal's cursor."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes to the stream."""
        self._stream.write(visible(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def other_form(name: str, known: Container[str]) -> str:
    """What a message adds where ``known`` has the same letters in another normal form of Unicode; else nothing."""
    for form in () if name.isascii() else ("NFC", "NFD"):
        other = unicodedata.normalize(form, name)
        if other != name and other in known:
            return (f" (it is there with the same letters in Unicode's form {form}: bring both files to one form, for "
                    "example with 'uconv -x nfc')")
    return ""


def decode_text(data: bytes, path: str | os.PathLike, *, first: int = 1, other: str | None = None) -> str:
    """The text of a file's bytes.

    first: the number of the line that the bytes begin with; other: an encoding for bytes that are not UTF-8.

    Raises UserError naming the line for: UTF-16 and other bytes of zero, byte order marks anywhere, carriage returns
    within a line, and bytes that are not UTF-8 (``other`` not given).
    """
    def place(at: int) -> str:
        return f"{path}: line {data.count(10, 0, at) + first}"

    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data:
        raise UserError(f"{place(max(0, data.find(0)))} has bytes of zero or begins with the mark of UTF-16: this is "
                        "not text in UTF-8; convert the file, for example with 'iconv -f utf-16 -t utf-8'")
    if _BOM in data:
        raise UserError(f"{place(data.find(_BOM))} has a byte order mark (U+FEFF, the bytes EF BB BF), which cannot be "
                        f"seen: remove it, for example with \"LC_ALL=C sed -i 's/\\xEF\\xBB\\xBF//g' {path}\"")
    if b"\r" in data and data.count(b"\r") > data.count(b"\r\n") + data.endswith(b"\r"):
        at = next(n for n in range(len(data)) if data[n] == 13 and data[n + 1:n + 2] != b"\n")
        raise UserError(f"{place(at)} has a carriage return that does not end it: end lines with a line feed, for "
                        "example with 'tr \"\\r\" \"\\n\"'")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if other is not None:
            return data.decode(other)
        begin = data.rfind(b"\n", 0, error.start) + 1
        name = data[begin:].split(None, 1)[0].decode("ascii", errors="replace")
        raise UserError(f"{place(begin)} ({name}) is not UTF-8 at byte {error.start - begin}: convert the file, for "
                        "example with 'iconv -f latin1 -t utf-8'") from None


def read_text(path: str | os.PathLike, remedy: str = "", *, other: str | None = None) -> str:
    """The text of a file. Raises UserError: as ``decode_text``; there is no such file (``remedy`` says what to do
    then); it is a directory."""
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file" + (f"; {remedy}" if remedy else "")) from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory, not a text file") from None
    return decode_text(data, path, other=other)


def read_lines(path: str | os.PathLike, remedy: str = "") -> list[tuple[int, str]]:
    """(line number, line without BLANKS at its ends) of every line that is not blank. Raises UserError as
    ``read_text`` does."""
    lines = ((number, line.strip(BLANKS)) for number, line in enumerate(read_text(path, remedy).split("\n"), 1))
    return [(number, line) for number, line in lines if line]


def read_map(path: str | os.PathLike) -> dict[str, str]:
    """Lines ``ID REST`` of a Kaldi table such as text or utt2spk, in their order; REST may be empty.

    Raises UserError as ``read_lines`` does, and for an id that comes twice.
    """
    return {key: rest[0] if rest else "" for key, rest in _read_fields(path, 1).items()}


def read_words(path: str | os.PathLike) -> dict[str, list[str]]:
    """A Kaldi ``text`` file as utterance -> words, in its order. Raises UserError as ``read_map`` does."""
    return _read_fields(path)


def _read_fields(path: str | os.PathLike, most: int = -1) -> dict[str, list[str]]:
    """id -> the other fields of its line."""
    table: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        key, *rest = split(line, most)
        if key in table:
            raise UserError(f"{path}: {key} comes twice (line {number}): remove one of its lines")
        table[key] = rest
    return table
