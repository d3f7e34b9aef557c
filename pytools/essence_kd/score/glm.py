"""Global mapping rules (GLM): the table that says which spellings count as one word when transcripts are scored.

The format is NIST's (SCTK, GLMRules): ``A => B`` or ``A => B / C __ D`` a line, strings in ``[ ]`` or ``" "`` where
spaces at their ends matter, comments after the file's first token (``;;``), header lines that begin with ``*``, and
``;; INPUT_DEPENDENT_APPLICATION = "REGEXP"`` lines that limit the rules below them to one kind of input.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Union

from essence_kd.io.errors import UserError
from essence_kd.io.text import BLANKS, read_text, split

HESITATIONS = ("uh", "um", "eh", "mm", "hm", "ah", "huh", "ha", "er", "oof", "hee", "ach", "eee", "ew")

# Hesitations are one token on both sides, optional in the reference, as the Hub5 references mark them.
# The filter has put spaces inside parentheses when the rules apply.
DEFAULT_GLM = "\n".join(
    [";; Hesitations: one token, which a hypothesis may have or lack",
     '* name "essence default"', "* copy_no_hit = 'T'", "* case_sensitive = 'F'",
     ';; INPUT_DEPENDENT_APPLICATION = "stm"']
    + [f"[( {word} )] => [( %HESITATION )]" for word in HESITATIONS + ("%hesitation",)]
    + [f"[{word}] => [( %HESITATION )] / [ ] __ [ ]" for word in HESITATIONS + ("%hesitation",)]
    + [';; INPUT_DEPENDENT_APPLICATION = "ctm"']
    + [f"[{word}] => [%HESITATION] / [ ] __ [ ]" for word in HESITATIONS]) + "\n"


@dataclass(frozen=True)
class Rule:
    """Replace ``source`` by ``target`` where ``left`` precedes and ``right`` follows it in the input."""

    source: str
    target: str
    left: str = ""
    right: str = ""


@dataclass
class RuleSet:
    """Rules of one kind of input, in file order."""

    rules: list[Rule] = field(default_factory=list)
    case_sensitive: bool = False
    copy_no_hit: bool = True

    def __post_init__(self) -> None:
        self._by_first: dict[str, list[tuple[Rule, str, str, str]]] = {}
        for rule in self.rules:
            folded = (self._fold(rule.source), self._fold(rule.left), self._fold(rule.right))
            self._by_first.setdefault(folded[0][0], []).append((rule, *folded))

    def _fold(self, text: str) -> str:
        return text if self.case_sensitive else ascii_upper(text)

    def apply(self, text: str) -> str:
        """Rewrite a line: at each place the first rule that matches fires, contexts being those of the input."""
        folded = self._fold(text)
        out: list[str] = []
        at = 0
        while at < len(text):
            for rule, source, left, right in self._by_first.get(folded[at], ()):
                if folded.startswith(source, at) and folded.startswith(right, at + len(source)) \
                        and folded.endswith(left, 0, at):
                    out.append(rule.target)
                    at += len(source)
                    break
            else:
                if self.copy_no_hit:
                    out.append(text[at])
                at += 1
        return "".join(out)


_UPPER = {ord(c): ord(c.upper()) for c in "abcdefghijklmnopqrstuvwxyz"}


def ascii_upper(text: str) -> str:
    """Upper case of the letters a to z alone, so that lengths never change."""
    return text.translate(_UPPER)


def _unwrap(text: str) -> str:
    text = text.strip(BLANKS)
    if len(text) >= 2 and (text[0], text[-1]) in (("[", "]"), ('"', '"')):
        return text[1:-1]
    return text


def _parse_rule(line: str, where: str) -> Rule:
    source, arrow, rest = line.partition("=>")
    if not arrow:
        raise UserError(f"{where}: no '=>' in the rule '{line.strip()}'")
    left = right = ""
    slash = rest.rfind("/")
    if slash >= 0 and "_" in rest[slash:] and ("]" not in rest[slash:] or "[" in rest[slash:]):
        context = rest[slash + 1:]
        rest = rest[:slash]
        before, after = context[:context.index("_")], context[context.rindex("_") + 1:]
        left, right = _unwrap(before), _unwrap(after)
    source = _unwrap(source)
    if not source:
        raise UserError(f"{where}: the rule '{line.strip()}' has an empty left side")
    return Rule(source, _unwrap(rest), left, right)


def _truth(value: str) -> bool:
    return value.strip().upper() in ("T", "YES", "TRUE")


def parse_glm(text: str, kinds: Iterable[str], name: str = "GLM") -> RuleSet:
    """Rules of a GLM that apply to an input of ``kinds``, e.g. ``("ctm", "hyp")``.

    Raises:
      UserError: a line is no rule, or the format is one that cannot be read.
    """
    kinds = [k.lower() for k in kinds]
    lines = text.split("\n")
    first = next((split(line)[0] for line in lines if line.strip(BLANKS)), ";;")
    rules: list[Rule] = []
    header = {"case_sensitive": False, "copy_no_hit": True}
    applies = True
    for number, line in enumerate(lines, 1):
        condition = re.match(r'^;;\s+INPUT_DEPENDENT_APPLICATION\s*=\s*"([^"]*)"', line, re.ASCII)
        if condition:
            try:
                applies = any(re.search(condition.group(1).lower(), kind) for kind in kinds)
            except (re.error, RecursionError, OverflowError) as error:
                raise UserError(f"{name}: line {number}: '{condition.group(1)}' is no regular expression ({error})"
                                ) from None
            continue
        line = line.split(first, 1)[0]
        if not line.strip(BLANKS):
            continue
        where = f"{name}: line {number}"
        if line.lstrip(BLANKS).startswith("*"):
            value = re.search(r"[\"']([^\"']*)[\"']", line)
            if not value:
                raise UserError(f"{where}: a header line needs a quoted value: '{line.strip()}'")
            for key in header:
                if key in line.lower():
                    header[key] = _truth(value.group(1))
            if "format" in line.lower() and value.group(1).upper() != "NIST1":
                raise UserError(f"{where}: format '{value.group(1)}' cannot be read; only NIST1 can")
        elif applies:
            rules.append(_parse_rule(line, where))
    return RuleSet(rules, header["case_sensitive"], header["copy_no_hit"])


def split_optional(text: str) -> str:
    """``(you know)`` as ``(you) (know)``: every word of a transcript is optional on its own."""
    return re.sub(r"\(([^()]*)\)", lambda m: " ".join(f"({w})" for w in split(m.group(1))), text)


_SECOND_OPTIONAL = re.compile(r"(\(\s+[^()\s]+\s+)([^()\s]+)", re.ASCII)


class Filter:
    """The text filter of NIST's csrfilt.sh (-dh): upper case, rules, hyphens to spaces, ``(a b)`` to ``(a) (b)``."""

    def __init__(self, rules: RuleSet):
        self.rules = rules

    def __call__(self, line: str) -> str:
        line = " " + " ".join(split(ascii_upper(line))) + " "
        line = " " + line.replace("(", "( ").replace(")", " )") + " "
        line = self.rules.apply(line)
        line = re.sub(r"([^( ])-(?=[^) ])", r"\1 ", line)
        previous = None
        while previous != line:
            previous, line = line, _SECOND_OPTIONAL.sub(r"\1) ( \2", line)
        return " ".join(split(line)).replace("( ", "(").replace(" )", ")")


def read_glm(path: Union[str, Path]) -> str:
    """The text of a GLM file, in UTF-8 or, as the published tables are, in Latin-1. Raises UserError."""
    return read_text(path, "--glm takes a file of mapping rules", other="latin-1")


def load_filters(path: Union[str, Path, None]) -> tuple[Filter, Filter]:
    """(filter of references, filter of hypotheses) from a GLM file; None takes the default rules (hesitations)."""
    if path is None:
        text, name = DEFAULT_GLM, "default GLM"
    else:
        name = str(path)
        text = read_glm(path)
    return Filter(parse_glm(text, ("stm", "ref"), name)), Filter(parse_glm(text, ("ctm", "hyp"), name))


def is_noise(word: str) -> bool:
    """Tokens that the swbd recipe takes out of a hypothesis before scoring: noises, <unk>, hesitations, fragments."""
    lower = word.lower()
    return (lower in HESITATIONS or lower == "<unk>" or word.endswith("-") or word.startswith("-")
            or re.search(r"\[?(noise|laughter|vocalized-noise)\]?$", lower) is not None)


def spell(word: str) -> list[str]:
    """The letters of an acronym as Kaldi's swbd lexicon writes it: i._b._m. is i b m, t._v.s and t._v.'s are t v's."""
    if not re.fullmatch(r"[a-z]\.(_[a-z]\.)*('?s)?", word, re.IGNORECASE):
        return [word]
    letters = word.split("_")
    return [letter[0] for letter in letters[:-1]] + [letters[-1][0] + ("'s" if len(letters[-1]) > 2 else "")]
