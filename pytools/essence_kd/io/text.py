"""Text files in UTF-8, and messages that name the line of what is wrong with them."""
from __future__ import annotations

import os

from essence_kd.io.errors import UserError


def decode_text(data: bytes, path: str | os.PathLike) -> str:
    """The text of a file's bytes; a UserError names the line, its first field, and the byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        number, first = data.count(b"\n", 0, begin) + 1, data[begin:].split(None, 1)[0]
        raise UserError(f"{path}: line {number} ({first.decode('ascii', errors='replace')}) is not UTF-8 at byte "
                        f"{error.start - begin}: convert the file, for example with 'iconv -f latin1 -t utf-8'"
                        ) from None


def read_lines(path: str | os.PathLike, remedy: str = "") -> list[tuple[int, str]]:
    """(line number, line without blanks at its ends) of every line that is not blank.

    Raises UserError: there is no such file (``remedy`` says what to do then), it is a directory, it is not UTF-8.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file" + (f"; {remedy}" if remedy else "")) from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory, not a text file") from None
    lines = ((number, line.strip()) for number, line in enumerate(decode_text(data, path).split("\n"), 1))
    return [(number, line) for number, line in lines if line]


def read_map(path: str | os.PathLike) -> dict[str, str]:
    """Lines ``ID REST`` of a Kaldi table such as text or utt2spk, in their order; REST may be empty.

    Raises UserError as ``read_lines`` does, and for an id that comes twice.
    """
    table: dict[str, str] = {}
    for number, line in read_lines(path):
        key, *rest = line.split(None, 1)
        if key in table:
            raise UserError(f"{path}: {key} comes twice (line {number}): remove one of its lines")
        table[key] = rest[0] if rest else ""
    return table


def read_words(path: str | os.PathLike) -> dict[str, list[str]]:
    """A Kaldi ``text`` file as utterance -> words, in its order. Raises UserError as ``read_map`` does."""
    return {utt: words.split() for utt, words in read_map(path).items()}
