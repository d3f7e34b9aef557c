"""Alignment of transcripts with alternatives ``{ a / b c / @ }``, optional words ``(word)`` and fragments ``wo-``.

A transcript is a network of words; the cheapest pair of paths through two networks is found by dynamic programming
with sclite's costs (correct 0, insertion and deletion 3, substitution 4, a missing optional word 2, the null word @
almost nothing) and sclite's order of preference among equal costs, so that counts agree with it word for word.
"""
from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from essence_kd.io.errors import UserError
from essence_kd.io.text import split
from essence_kd.score.wer import Counts

CORRECT, SUBSTITUTION, INSERTION, DELETION = "C", "S", "I", "D"
NULL = "@"
_NULL_COST, _OPTIONAL_COST, _GAP_COST, _SUB_COST, _TWO_NULLS_COST = 0.001, 2.0, 3.0, 4.0, 1.0


@dataclass
class Network:
    """Words as arcs: ``words[i]`` may follow any arc of ``before[i]``; arc 0 is the start, ``ends`` are the last arcs.

    Arcs are in topological order. ``optional[i]`` marks ``(word)``; the word is stored without its parentheses.
    """

    words: list[str] = field(default_factory=lambda: [""])
    optional: list[bool] = field(default_factory=lambda: [False])
    before: list[list[int]] = field(default_factory=lambda: [[]])
    ends: list[int] = field(default_factory=lambda: [0])

    def append(self, word: str, before: list[int]) -> int:
        """Add one arc; returns its number."""
        optional = len(word) > 2 and word[0] == "(" and word[-1] == ")"
        self.words.append(word[1:-1] if optional else word)
        self.optional.append(optional)
        self.before.append(list(before))
        return len(self.words) - 1


def parse_network(text: str, where: str = "transcript") -> Network:
    """Read a transcript; alternatives nest. Letters are compared in lower case.

    Raises:
      UserError: braces do not match or an alternation has one branch.
    """
    tokens = split(re.sub(r"([{}])", r" \1 ", text.lower()))
    network = Network()
    position = 0

    def sequence(before: list[int], inside: bool) -> list[int]:
        nonlocal position
        while position < len(tokens):
            token = tokens[position]
            if token == "{":
                position += 1
                before = alternation(before)
            elif inside and token in ("/", "}"):
                return before
            elif token == "}":
                raise UserError(f"{where}: '}}' without '{{' in '{text}'")
            else:
                before = [network.append(token, before)]
                position += 1
        if inside:
            raise UserError(f"{where}: '{{' is never closed in '{text}'")
        return before

    def alternation(before: list[int]) -> list[int]:
        nonlocal position
        ends: list[int] = []
        branches = 0
        while True:
            start = position
            last = sequence(before, True)
            branches += 1
            ends += [network.append(NULL, before)] if position == start else last
            position += 1
            if tokens[position - 1] == "}":
                break
        if branches < 2:
            raise UserError(f"{where}: an alternation needs '/' between its branches in '{text}'")
        return ends

    network.ends = sequence([0], False)
    return network


_single = struct.Struct("f")


def _to_single(value: float) -> float:
    """Round to single precision, in which sclite adds its costs: that decides between paths with a null word."""
    return _single.unpack(_single.pack(value))[0]


def _gap_cost(network: Network, arc: int) -> float:
    if network.words[arc] == NULL:
        return _to_single(_NULL_COST)
    return _OPTIONAL_COST if network.optional[arc] else _GAP_COST


def same_word(a: str, b: str) -> bool:
    """Equal, or one is a fragment (``begin-`` or ``-end``) that fits the other."""
    if a == b:
        return True
    for fragment, whole in ((a, b), (b, a)):
        if len(fragment) > 1 and fragment[0] == "-":
            return whole.endswith(fragment[1:])
        if len(fragment) > 1 and fragment[-1] == "-":
            return whole.startswith(fragment[:-1])
    return False


@dataclass(frozen=True)
class Step:
    """One column of an alignment: C, S, I or D with the reference and hypothesis word (None for a gap)."""

    op: str
    ref: str | None
    hyp: str | None


def align_networks(ref: Network, hyp: Network) -> list[Step]:
    """The cheapest alignment; null words that meet a gap are left out of it."""
    num_a, num_b = len(ref.words), len(hyp.words)
    rounded = NULL in ref.words or NULL in hyp.words
    gap_a = [0.0] + [_gap_cost(ref, i) for i in range(1, num_a)]
    gap_b = [0.0] + [_gap_cost(hyp, i) for i in range(1, num_b)]
    cost = [[0.0] * num_b for _ in range(num_a)]
    back: list[list[tuple[int, int]]] = [[(-1, -1)] * num_b for _ in range(num_a)]
    for b in range(1, num_b):
        least, best = min((cost[0][q], n) for n, q in enumerate(hyp.before[b]))
        cost[0][b], back[0][b] = _to_single(least + gap_b[b]), (0, hyp.before[b][best])
    for a in range(1, num_a):
        before_a = ref.before[a]
        word_a, row, back_row = ref.words[a], cost[a], back[a]
        least, best = min((cost[p][0], n) for n, p in enumerate(before_a))
        row[0], back_row[0] = _to_single(least + gap_a[a]), (before_a[best], 0)
        for b in range(1, num_b):
            before_b = hyp.before[b]
            sub, sub_back = -1.0, (0, 0)
            dele, del_back = -1.0, (0, 0)
            for p in before_a:
                above = cost[p]
                if dele < 0 or above[b] < dele:
                    dele, del_back = above[b], (p, b)
                for q in before_b:
                    if sub < 0 or above[q] < sub:
                        sub, sub_back = above[q], (p, q)
            ins, ins_back = -1.0, (0, 0)
            for q in before_b:
                if ins < 0 or row[q] < ins:
                    ins, ins_back = row[q], (a, q)
            word_b = hyp.words[b]
            if word_a == NULL and word_b == NULL:
                sub += _TWO_NULLS_COST
            elif not same_word(word_a, word_b):
                sub += _SUB_COST
            dele += gap_a[a]
            ins += gap_b[b]
            if rounded:
                sub, dele, ins = _to_single(sub), _to_single(dele), _to_single(ins)
            if sub <= dele and sub <= ins:
                row[b], back_row[b] = sub, sub_back
            elif dele < ins:
                row[b], back_row[b] = dele, del_back
            else:
                row[b], back_row[b] = ins, ins_back
    at, least = (0, 0), -1
    for a in ref.ends:
        for b in hyp.ends:
            if least < 0 or cost[a][b] < least:
                at, least = (a, b), cost[a][b]
    steps: list[Step] = []
    while at != (0, 0):
        a, b = at
        at = back[a][b]
        if at[0] == a:
            if hyp.words[b] != NULL:
                steps.append(Step(CORRECT if hyp.optional[b] else INSERTION, None, hyp.words[b]))
        elif at[1] == b:
            if ref.words[a] != NULL:
                steps.append(Step(CORRECT if ref.optional[a] else DELETION, ref.words[a], None))
        elif not (ref.words[a] == NULL and hyp.words[b] == NULL):
            op = CORRECT if same_word(ref.words[a], hyp.words[b]) else SUBSTITUTION
            steps.append(Step(op, ref.words[a], hyp.words[b]))
    return steps[::-1]


def count_steps(steps: list[Step]) -> Counts:
    """Counts of one utterance; an optional word that is absent counts as a correct word, as sclite -D has it."""
    number = {op: sum(s.op == op for s in steps) for op in (CORRECT, SUBSTITUTION, INSERTION, DELETION)}
    errors = number[SUBSTITUTION] + number[INSERTION] + number[DELETION]
    return Counts(number[CORRECT] + number[SUBSTITUTION] + number[DELETION], number[INSERTION], number[DELETION],
                  number[SUBSTITUTION], 1, int(errors > 0))
