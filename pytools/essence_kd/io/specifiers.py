"""Kaldi's specifiers: rspecifiers, wspecifiers, the lines of an scp file, and the ranges in them."""
from __future__ import annotations

import os
import re
from typing import Iterator, NamedTuple

from essence_kd.io.errors import UserError
from essence_kd.io.pipes import check_pipe
from essence_kd.io.sources import open_source
from essence_kd.io.text import BLANKS, decode_text, split

_SCP_BLOCK = 1 << 18  # bytes of an scp file taken at a time
_RANGE_TOLERANCE = 3  # rows a range may reach past the end, as in Kaldi
_READ_FLAGS = {"b", "t", "o", "no", "p", "np", "s", "ns", "cs", "ncs", "bg"}
_WRITE_FLAGS = {"b", "t", "f", "nf", "p"}


class Specifier(NamedTuple):
    """A parsed rspecifier or wspecifier: archive and/or scp file name, and the flags between the commas."""

    ark: str | None
    scp: str | None
    flags: frozenset


def indexed(ark: str | os.PathLike, scp: str | os.PathLike) -> Specifier:
    """``ark,scp:ARK,SCP`` of two files whatever their names, which that syntax would divide at the first comma."""
    first, second = (f"./{name}" if name.startswith(("|", "-")) else name for name in (os.fspath(ark), os.fspath(scp)))
    return Specifier(first, second, frozenset())


def check_name(path: str) -> None:
    """Whether an scp file can hold this name. Raises UserError, which says what in it cannot be."""
    what = "a line break" if "\n" in path else None
    if re.search("[\ud800-\udfff]", path):
        what = "a byte that is not UTF-8"
    if what:
        raise UserError(f"{path!a}: {what} in the name, which an scp file cannot hold: choose another folder")


def parse_rspecifier(rspecifier: str) -> Specifier:
    """Takes ``ark:...`` or ``scp:...`` apart. Raises UserError for anything else."""
    head, colon, name = rspecifier.partition(":")
    kinds = head.split(",")
    flags = frozenset(k for k in kinds if k not in ("ark", "scp"))
    found = [k for k in kinds if k in ("ark", "scp")]
    if not colon or len(found) != 1 or flags - _READ_FLAGS:
        hint = " (what is compact is known by itself: leave out compact:)" if head == "compact" else ""
        raise UserError(f"'{rspecifier}': not a table to read; write ark:FILE, scp:FILE or 'ark:COMMAND |'{hint}")
    name = name.strip()
    return Specifier(name, None, flags) if found[0] == "ark" else Specifier(None, name, flags)


def parse_wspecifier(wspecifier: str | Specifier) -> Specifier:
    """Takes ``ark:...`` or ``ark,scp:A,S`` apart. Raises UserError for anything else, and for names with a comma."""
    if isinstance(wspecifier, Specifier):
        return wspecifier
    head, colon, name = wspecifier.partition(":")
    kinds = head.split(",")
    flags = frozenset(k for k in kinds if k not in ("ark", "scp"))
    found = [k for k in kinds if k in ("ark", "scp")]
    name = name.strip()
    if colon and name and not flags - _WRITE_FLAGS:
        if found == ["ark"]:
            return Specifier(name, None, flags)
        if found == ["ark", "scp"]:
            ark, comma, scp = name.partition(",")
            ark, scp = ark.strip(), scp.strip()
            if comma and ark and scp:
                if "," in scp:
                    raise UserError(f"'{wspecifier}': a comma in the name of a file: ark,scp:ARK,SCP is divided at the "
                                    "first comma; choose other names, or call this from another folder")
                if ark == "-" or ark.startswith("|") or ark.endswith(".gz"):
                    raise UserError(f"'{wspecifier}': an scp can only index a plain file, not a pipe or gzip")
                return Specifier(ark, scp, flags)
    raise UserError(f"'{wspecifier}': not a table to write; write ark:FILE, ark,t:FILE, ark,scp:FILE.ark,FILE.scp, "
                    f"ark:- or 'ark:| COMMAND'")


def read_scp(name: str) -> Iterator[tuple[int, str, str, str | None]]:
    """Every (line number, utterance, rxfilename, range or None) of an scp file, gzip, stdin or pipe."""
    with open_source(name) as source:
        number = 0
        while not source.at_end():
            data = source.peek(_SCP_BLOCK).tobytes()
            size = data.rfind(b"\n") + 1 or len(data)
            if len(data) == _SCP_BLOCK and size == len(data) and not data.endswith(b"\n"):
                raise UserError(f"{source.name}: line {number + 1} is too long; is it an archive? (ark:{name})")
            source.skip(size)
            if b"\0" in data[:size]:
                raise UserError(f"{source.name}: not text; is it an archive? (ark:{name})")
            lines = decode_text(data[:size], source.name, first=number + 1).split("\n")
            for line in lines[:-1] if data[size - 1:size] == b"\n" else lines:
                number += 1
                if line.strip(BLANKS):
                    yield (number, *parse_scp_line(line, source.name, number))
        source.finish()


def parse_scp_line(line: str, name: str, number: int) -> tuple[str, str, str | None]:
    """(utterance, rxfilename, range or None) of a line of an scp file. Raises UserError, also for a refused pipe."""
    parts = split(line, 1)
    if len(parts) != 2:
        raise UserError(f"{name}: line {number}: '{line.strip(BLANKS)}' is not 'utterance file'")
    key, rest, span = parts[0], parts[1].strip(BLANKS), None
    if rest.endswith("]"):
        rest, _, span = rest[:-1].rpartition("[")
        if not rest:
            raise UserError(f"{name}: line {number}: utterance {key}: a range without a file")
    if rest.endswith("|"):
        check_pipe(rest, f"{name}: line {number}: utterance {key}")
    return key, rest, span


def parse_span(span: str, size: int, unit: str) -> slice:
    """One half of a range: ``a:b`` (both inclusive), ``:`` or nothing; as a slice of `size` things.

    `unit` names them in messages (rows, columns, frames). Raises ValueError.
    """
    if span in ("", ":"):
        return slice(0, size)
    found = re.match(r"(\d{1,18}):(\d{1,18})$", span)
    if not found:
        raise ValueError(f"the range '{span}' is not first:last")
    first, last = int(found.group(1)), int(found.group(2))
    if first > last or first >= size or last >= size + _RANGE_TOLERANCE:
        raise ValueError(f"the range {first}:{last} does not fit {size} {unit}")
    if last >= size:
        import logging

        logging.getLogger(__name__).warning("the range %d:%d is cut to the %d %s there are", first, last, size, unit)
    return slice(first, min(last + 1, size))
