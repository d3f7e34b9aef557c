"""Word errors, counted as Kaldi's ``compute-wer`` counts them, per utterance, per speaker and in total."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Sequence, Union

import kaldialign

from essence_kd.io.errors import UserError

Words = list[str]


@dataclass(frozen=True)
class Counts:
    """Reference words and errors of one utterance or of many; counts add with ``+``."""

    words: int = 0
    ins: int = 0
    dels: int = 0
    sub: int = 0
    utterances: int = 0
    wrong_utterances: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.words + other.words, self.ins + other.ins, self.dels + other.dels, self.sub + other.sub,
                      self.utterances + other.utterances, self.wrong_utterances + other.wrong_utterances)

    @property
    def errors(self) -> int:
        """Insertions, deletions and substitutions."""
        return self.ins + self.dels + self.sub

    @property
    def wer(self) -> float:
        """Word error rate in percent; 0 when there is neither a word nor an error, infinite for errors on no words."""
        if self.words:
            return 100.0 * self.errors / self.words
        return float("inf") if self.errors else 0.0

    def as_dict(self) -> dict[str, Union[int, float]]:
        """The keys of results.json: wer in percent, ins, del, sub, words, utterances."""
        return {"wer": round(self.wer, 4), "ins": self.ins, "del": self.dels, "sub": self.sub,
                "words": self.words, "utterances": self.utterances}


@dataclass
class Score:
    """Counts of every reference utterance, in the order of the reference.

    ``missing`` lists reference utterances without a hypothesis; their words are counted as deletions.
    ``refs`` and ``hyps`` are the word sequences that were compared, after filtering.
    """

    utts: dict[str, Counts] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    refs: dict[str, Words] = field(default_factory=dict)
    hyps: dict[str, Words] = field(default_factory=dict)

    @property
    def total(self) -> Counts:
        """Counts of all utterances."""
        return sum(self.utts.values(), Counts())

    def by_speaker(self, utt2spk: dict[str, str]) -> dict[str, Counts]:
        """Counts of each speaker, speakers in order of appearance."""
        speakers: dict[str, Counts] = {}
        for utt, counts in self.utts.items():
            if utt not in utt2spk:
                raise UserError(f"utterance '{utt}' has no speaker in utt2spk; add it there")
            speakers[utt2spk[utt]] = speakers.get(utt2spk[utt], Counts()) + counts
        return speakers


def count_errors(ref: Sequence[str], hyp: Sequence[str], *, sclite: bool = False) -> Counts:
    """Errors of one utterance by edit distance.

    With unit costs and ties broken as in Kaldi's LevenshteinEditDistance; with ``sclite`` insertions and deletions
    cost 3 and substitutions 4, which is the weighting of NIST's sclite.
    """
    result = kaldialign.edit_distance(list(ref), list(hyp), sclite_mode=sclite)
    return Counts(len(ref), result["ins"], result["del"], result["sub"], 1, int(result["total"] > 0))


def align(ref: Sequence[str], hyp: Sequence[str], *, sclite: bool = False) -> list[tuple[str | None, str | None]]:
    """Pairs (reference word, hypothesis word) of one best alignment; None marks an insertion or a deletion."""
    gap = "\0"
    pairs = kaldialign.align(list(ref), list(hyp), gap, sclite_mode=sclite)
    return [(None if r == gap else r, None if h == gap else h) for r, h in pairs]


def check_utterances(refs: dict[str, Any], hyps: dict[str, Any], ref_name: str, hyp_name: str) -> None:
    """Refuse an empty reference and hypotheses of utterances that the reference lacks."""
    if not refs:
        raise UserError(f"{ref_name}: holds no utterance")
    unknown = [utt for utt in hyps if utt not in refs]
    if unknown:
        raise UserError(f"{hyp_name}: utterance '{unknown[0]}' is not in {ref_name} "
                        f"({len(unknown)} such of {len(hyps)}); score against the reference that was decoded")


def score(refs: dict[str, Words], hyps: dict[str, Words], *, sclite: bool = False,
          ref_name: str = "reference", hyp_name: str = "hypothesis") -> Score:
    """Score hypotheses against references.

    Raises:
      UserError: there is no reference, or a hypothesis belongs to no reference utterance.
    """
    check_utterances(refs, hyps, ref_name, hyp_name)
    result = Score()
    for utt, ref in refs.items():
        if utt not in hyps:
            result.missing.append(utt)
        hyp = hyps.get(utt, [])
        result.refs[utt], result.hyps[utt] = ref, hyp
        result.utts[utt] = count_errors(ref, hyp, sclite=sclite)
    return result


def wer_line(counts: Counts) -> str:
    """``%WER 12.34 [ 123 / 1000, 10 ins, 20 del, 93 sub ]``, the line of Kaldi's compute-wer."""
    return (f"%WER {counts.wer:.2f} [ {counts.errors} / {counts.words}, {counts.ins} ins, {counts.dels} del, "
            f"{counts.sub} sub ]")


def ser_line(counts: Counts) -> str:
    """``%SER 45.00 [ 45 / 100 ]``: utterances with at least one error."""
    rate = 100.0 * counts.wrong_utterances / counts.utterances if counts.utterances else 0.0
    return f"%SER {rate:.2f} [ {counts.wrong_utterances} / {counts.utterances} ]"


def aligned_table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of strings as columns padded with spaces; columns whose number is in ``right`` are right-aligned."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
