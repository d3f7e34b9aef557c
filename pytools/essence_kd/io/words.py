"""Words of texts: names that cannot be words, characters that cannot be seen, and words that a vocabulary lacks."""
from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from typing import Collection, Container, Optional, Sequence, Set, Tuple

from essence_kd.io.errors import UserError
from essence_kd.io.text import other_form, visible

Rows = Collection[Tuple[str, Sequence[str]]]  # (utterance or line, its words)

_RESERVED = re.compile(r"<eps>|<s>|</s>|#[0-9]+|#nonterm[:_].*", re.DOTALL)
# Blanks of Unicode but space and tab, control characters, and what has neither width nor part in spelling: the joiners
# U+200C and U+200D have one.
_UNSEEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\xa0\xad\u1680\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f"
                     "\u3000\ufeff\ufff9-\ufffb]")


def is_reserved(word: str) -> bool:
    """Whether Kaldi's symbol tables have another use for it: <eps>, <s>, </s>, #0, #1 ..., #nonterm:..."""
    return _RESERVED.fullmatch(word) is not None


def unseen(text: str) -> Optional[str]:
    """The code and name of the first character that cannot be seen or is a blank that parts no words; None: none."""
    found = None if text.isprintable() else _UNSEEN.search(text)
    if found is None:
        return None
    return f"U+{ord(found.group()):04X} {unicodedata.name(found.group(), 'control character')}"


def _types(rows: Rows) -> Set[str]:
    return set().union(*(row for _, row in rows))


def _first(rows: Rows, words: Container[str]) -> Tuple[str, str]:
    """(utterance or line, word) of the first of ``words``."""
    return next((where, word) for where, row in rows for word in row if word in words)


def refuse_reserved(rows: Rows, path) -> None:
    """Raises UserError naming file, utterance or line, and word, where a text holds a reserved word."""
    reserved = set(filter(is_reserved, _types(rows)))
    if reserved:
        where, word = _first(rows, reserved)
        marks = " (sentences begin and end without marks)" if word in ("<s>", "</s>") else ""
        raise UserError(f"{path}: {where} has '{word}', which cannot be a word of a text; that name is reserved: "
                        f"remove it{marks}")


def refuse_unseen(rows: Rows, path) -> None:
    """Raises UserError naming file, utterance or line, word and character, where a text holds an unseen one."""
    strange = set(filter(unseen, _types(rows)))
    if strange:
        where, word = _first(rows, strange)
        raise UserError(f"{path}: {where} has '{visible(word)}' with the character {unseen(word)}, which cannot be "
                        "seen or looks like a space and is none: remove it or write a space")


def tell_unseen(rows: Rows, path) -> None:
    """Says on stderr which words of a text hold characters that cannot be seen."""
    strange = set(filter(unseen, _types(rows)))
    if strange:
        where, word = _first(rows, strange)
        print(f"{path}: {len(strange)} different words hold characters that cannot be seen, or blanks that part no "
              f"words, as {where}: '{visible(word)}' with {unseen(word)}", file=sys.stderr)


def unknown_words(rows: Rows, known: Container[str], path, where_known) -> Counter:
    """The words that ``known``, of the file where_known, lacks, with their counts. Says on stderr if it has them in
    another normal form of Unicode."""
    unknown = Counter(word for _, row in rows for word in row if word not in known)
    forms = [word for word in unknown if other_form(word, known)]
    if forms:
        print(f"{path}: {len(forms)} different words, as '{forms[0]}', are not in {where_known}"
              f"{other_form(forms[0], known)}", file=sys.stderr)
    return unknown


def counted(unknown: Counter, most: int = 5) -> str:
    """``7 words (2 different; most often: zebra 4, yak 3)``: how messages tell of unknown words."""
    often = ", ".join(f"{visible(word)} {n}" for word, n in unknown.most_common(most))
    return f"{sum(unknown.values())} words" + (f" ({len(unknown)} different; most often: {often})" if unknown else "")


def refuse_unknown(rows: Rows, known: Container[str], path, where_known,
                   remedy: str) -> None:
    """Raises UserError for the first word that ``known`` lacks; where_known: the file of these; remedy: what to do."""
    unknown = {word for word in _types(rows) if word not in known}
    if unknown:
        where, word = _first(rows, unknown)
        more = f" (and {len(unknown) - 1} more words)" if len(unknown) > 1 else ""
        raise UserError(f"{path}: {where} has the word '{visible(word)}'{more}, which {where_known} lacks"
                        f"{other_form(word, known)}: {remedy}")
