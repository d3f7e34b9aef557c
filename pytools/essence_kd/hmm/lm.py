"""N-gram language models: modified Kneser-Ney estimation, ARPA files, perplexity, and the grammar G.

A model is held as one table an order (:class:`Order`): an n-gram is found by the key (row of its first n - 1 words in
the table below) * (number of words) + (its last word), so counting, estimating and scoring are array operations.
"""
from __future__ import annotations

import gzip
import math
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, NoReturn, Tuple

import numpy as np

from essence_kd.hmm.fst import Fst, make_fst, sort_arcs
from essence_kd.hmm.lang import read_symbols
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import atomic_write
from essence_kd.io.text import BLANKS, decode_text, read_lines, split, visible
from essence_kd.io.words import is_reserved, refuse_reserved, tell_unseen

BOS, EOS = "<s>", "</s>"
_BACKOFF = "#0"  # on the back-off arcs of G
_LOG10 = math.log(10.0)


@dataclass
class Order:
    """The n-grams of one order, sorted by ``key``.

    key: int64 (G,) prefix row * V + last word (order 1: the word); suffix: int32 (G,) row of the n-gram without its
    first word in the table below (order 1: -1; it counts for nothing where the last word is </s>); logprob, backoff:
    float64 (G,) log10. A row whose logprob is NaN is a history only, no n-gram of the model.
    """

    key: np.ndarray
    suffix: np.ndarray
    logprob: np.ndarray
    backoff: np.ndarray

    def find(self, key: np.ndarray) -> np.ndarray:
        """Rows of these keys, -1 where there is none."""
        at = np.searchsorted(self.key, key)
        at[at == len(self.key)] = 0
        return np.where(self.key[at] == key, at, -1) if len(self.key) else np.full(len(key), -1)


@dataclass
class NgramModel:
    """words: symbols by id; orders[n - 1]: the n-grams."""

    words: List[str]
    orders: List[Order]

    def ids_of(self, order: int) -> np.ndarray:
        """Word-ids of every n-gram of an order, int64 (G, order)."""
        size = len(self.words)
        table = self.orders[order - 1]
        columns = [table.key % size]
        rows = table.key // size
        for n in range(order - 1, 0, -1):
            key = self.orders[n - 1].key[rows]
            columns.append(key % size)
            rows = key // size
        return np.stack(columns[::-1], axis=1)


# ------------------------------------------------------------------------------------------------------------- text

def _read(path: str | Path) -> str:
    """The text of a file, gzip or not."""
    data = Path(path).read_bytes()
    try:
        return decode_text(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from None


def read_text(path: str | Path, ids: str = "auto", words: Dict[str, int] | None = None) -> List[Tuple[str, List[str]]]:
    """(utterance-id or line number, words) of a Kaldi ``text`` or of a file with a sentence per line.

    ids: "true" (each line begins with an utterance-id), "false", or "auto": they are there when all first fields
    differ and none of them is a word of the vocabulary (without a vocabulary: when the file is named ``text``); stderr
    then tells. Raises UserError for a file without a sentence and for reserved words such as <s>, by line or
    utterance.
    """
    path = Path(path)
    rows = [(number, split(line)) for number, line in enumerate(_read(path).split("\n"), 1) if line.strip(BLANKS)]
    if not rows:
        raise UserError(f"{path}: holds no sentence")
    first = [fields[0] for _, fields in rows]
    if ids == "auto":
        with_ids = path.name == "text" if words is None else not any(f in words for f in first)
        with_ids = with_ids and len(set(first)) == len(first) and not any(map(is_reserved, first))
        if with_ids and path.name != "text":
            print(f"{path}: what a line begins with is taken for an utterance-id, as '{visible(first[0])}': all differ "
                  "and none is a word of the vocabulary (--ids false: they are words)", file=sys.stderr)
    else:
        with_ids = ids == "true"
    text = [(fields[0], fields[1:]) if with_ids else (f"line {number}", fields) for number, fields in rows]
    refuse_reserved(text, path)
    tell_unseen(text, path)
    return text


def vocabulary(words_txt: str | Path) -> Tuple[List[str], List[str]]:
    """The words of a lang's words.txt: those that a text may have (all but reserved ones, as <eps>, <s> and #0), and
    those that a model gets even where the text lacks them: without the word of ``oov.txt`` beside it, for nobody wants
    it recognised unless the text says so."""
    oov_file = Path(words_txt).parent / "oov.txt"
    oov = [line for _, line in read_lines(oov_file)] if oov_file.exists() else []
    words = [word for word in read_symbols(words_txt) if word and not is_reserved(word)]
    return words, [word for word in words if word not in oov]


# ------------------------------------------------------------------------------------------------------- estimation

def discounts(counts: np.ndarray) -> np.ndarray:
    """D(1), D(2), D(3 and more) of modified Kneser-Ney from an order's counts (Chen and Goodman 1998, equation 26).

    Where the counts of counts are too few to say (tiny texts), absolute discounting with n1 / (n1 + 2 n2), or 0.5.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == n)) for n in (1, 2, 3, 4))
    plain = n1 / (n1 + 2.0 * n2) if n1 and n2 else 0.5
    if not (n1 and n2 and n3 and n4):
        return np.array([plain, plain, plain])
    out = np.array([1 - 2 * plain * n2 / n1, 2 - 3 * plain * n3 / n2, 3 - 4 * plain * n4 / n3])
    return out if np.all(out > 0) and np.all(out < [1, 2, 3]) else np.array([plain, plain, plain])


def estimate(sentences: List[List[str]], order: int = 3, words: List[str] | None = None,
             prune: float = 0.0) -> NgramModel:
    """An interpolated modified Kneser-Ney model of the sentences.

    words: the vocabulary (default: the words of the text); a vocabulary word that the text lacks gets its share of
    the uniform distribution below the unigrams. Every word of the sentences must be in it. prune: of the highest order,
    n-grams without which the perplexity grows by less than this share are left out (see ``_pruned``). Raises
    ValueError for an order under 1 or no sentence.
    """
    if order < 1 or not sentences:
        raise ValueError("an order of at least 1 and at least one sentence are needed")
    seen = {word for sentence in sentences for word in sentence}
    symbols = [BOS, EOS, *sorted(seen | set(words or ()), key=lambda w: w.encode("utf-8"))]
    ids = {word: i for i, word in enumerate(symbols)}
    size = len(symbols)
    stream = np.array([i for sentence in sentences for i in (0, *(ids[w] for w in sentence), 1)], dtype=np.int64)
    place = np.concatenate([np.arange(len(sentence) + 2) for sentence in sentences])  # position in the sentence

    # counting: row[p] is the row of the n-gram that ends at position p of the stream
    row = stream
    tables = [(np.arange(size), np.full(size, -1), np.bincount(stream, minlength=size), np.arange(size) == 0)]
    for n in range(2, order + 1):
        at = np.flatnonzero(place >= n - 1)
        key, first, inverse, count = np.unique(row[at - 1] * size + stream[at], return_index=True, return_inverse=True,
                                               return_counts=True)
        starts = tables[-1][3][key // size]  # does the n-gram begin with <s>?
        tables.append((key, row[at][first], count, starts))
        row = np.full(len(stream), -1)
        row[at] = inverse

    # estimating, from the unigrams up; p: probabilities of the order below
    out: List[Order] = []
    p = np.full(size, 1.0 / (size - 1))
    for n, (key, suffix, count, starts) in enumerate(tables, 1):
        if n < order:  # how many different words come before; n-grams that begin with <s> keep their counts
            before = np.bincount(tables[n][1], minlength=len(key))
            count = np.where(starts, count, before)
        if n == 1:
            count = np.where(starts, 0, count)  # <s> is never predicted
        discount = np.concatenate([[0.0], discounts(count[count > 0])])[np.minimum(count, 3)]
        context = key // size if n > 1 else np.zeros(size, dtype=np.int64)
        total = np.bincount(context, weights=count)
        left = np.bincount(context, weights=discount) / np.where(total > 0, total, 1.0)  # mass for the order below
        below = p[suffix] if n > 1 else p
        p = (count - discount) / total[context] + left[context] * below
        if n == 1:
            p[0] = 0.0
        if n > 1:
            out[-1].backoff[:len(left)] = np.log10(np.where(left > 0, left, 1.0))
        with np.errstate(divide="ignore"):
            logprob = np.log10(p)
        logprob[p <= 0] = -99.0
        out.append(Order(key, suffix.astype(np.int32), logprob, np.zeros(len(key))))
    if prune > 0 and order > 1:
        history = tables[-2][2].astype(np.float64)
        out[-1] = _pruned(out[-2], out[-1], size, history / history.sum(), prune)
    return NgramModel(symbols, out)


def _pruned(below: Order, top: Order, size: int, history: np.ndarray, threshold: float) -> Order:
    """``top`` without the n-grams whose removal makes the perplexity grow by less than a share ``threshold``.

    Each by itself, by the relative entropy between the model and that without the n-gram (Stolcke 1998); history: how
    often each n-gram of ``below`` is the history of a word, a share of all (V,). Back-off weights of ``below`` become
    those of what is left.
    """
    rows = top.key // size
    p, q = 10.0**top.logprob, 10.0**below.logprob[top.suffix]

    def left(kept: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:  # what words that are no n-grams of a history share
        return tuple(np.maximum(1 - np.bincount(rows[kept], weights=value[kept], minlength=len(below.key)), 1e-12)
                     for value in (p, q))

    free, free_below = left(np.ones(len(rows), bool))
    old, new = np.log(free / free_below)[rows], np.log((free[rows] + p) / (free_below[rows] + q))
    grows = -history[rows] * (p * (np.log(q) + new - np.log(p)) + free[rows] * (new - old))
    kept = np.expm1(grows) >= threshold
    free, free_below = left(kept)
    below.backoff[:] = np.where(np.bincount(rows[kept], minlength=len(below.key)), np.log10(free / free_below), 0.0)
    return Order(top.key[kept], top.suffix[kept], top.logprob[kept], top.backoff[kept])


# ------------------------------------------------------------------------------------------------------ ARPA files

def write_arpa(path: str | Path, model: NgramModel) -> None:
    """Write an ARPA file (gzip when the name ends in .gz), whole or not at all."""
    words = np.array(model.words, dtype=object)
    own = [~np.isnan(table.logprob) for table in model.orders]
    lines = ["", "\\data\\"] + [f"ngram {n}={np.count_nonzero(rows)}" for n, rows in enumerate(own, 1)]
    for n, (table, rows) in enumerate(zip(model.orders, own), 1):
        lines += ["", f"\\{n}-grams:"]
        texts = [" ".join(row) for row in words[model.ids_of(n)[rows]]]
        last = n == len(model.orders)
        lines += [f"{lp:.7g}\t{text}" if last or bo == 0 else f"{lp:.7g}\t{text}\t{bo:.7g}"
                  for lp, text, bo in zip(table.logprob[rows].tolist(), texts, table.backoff[rows].tolist())]
    data = ("\n".join([*lines, "", "\\end\\", ""])).encode("utf-8")
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as stream:
            stream.write(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def read_arpa(path: str | Path) -> NgramModel:
    r"""Read any ARPA file, gzip or not, as Kaldi's ``arpa2fst`` understands it.

    What stands before ``\data\`` is passed over. An n-gram is left out where <s> is not its first or </s> not its last
    word, and where all its words but the last are no n-gram themselves; at the highest order, these may also be the
    last words of an n-gram that stands before it. Of an n-gram that comes several times, the best probability (of one
    that ends in </s>: the last) and the first back-off weight count. stderr is told how many n-grams this concerns.
    Raises UserError naming the line for what is no ARPA file or is cut short.
    """
    data = _read(path).encode("utf-8")
    file = _ArpaFile(path, data)
    announced, at = _read_header(file)
    ids: Dict[bytes, int] = {}
    sections: List[_Section] = []
    for n, count in enumerate(announced, 1):
        head, begin = at, file.next_line(at)
        if data[head:begin].strip() != b"\\%d-grams:" % n:
            if count:
                file.fail(head, f"expected '\\{n}-grams:' of {count} lines; the file is cut short or broken")
            begin = head  # an order without n-grams may have no section
        at = file.next_directive(begin)
        section = _read_section(file, begin, at, n, ids)
        found = len(section.logprob)
        if found > count:
            file.fail(head, f"{count} {n}-grams announced, {found} found; the file is broken")
        if found < count:
            file.tell(f"{count} {n}-grams announced, {found} found")
        if n == 1:
            unigrams = len(ids)
            if not unigrams:
                file.fail(head, "there are no 1-grams; the file is cut short or broken")
        sections.append(section)
    if data[at:file.next_line(at)].strip() != b"\\end\\":
        file.fail(at, "no \\end\\ where it should be; the file is cut short or broken")
    words = [word.decode("utf-8") for word in ids]
    if len(words) > unigrams:
        file.tell(f"{len(words) - unigrams} words of longer n-grams are no unigrams (first: '{words[unigrams]}')")
    return NgramModel(words, _make_orders(file, sections, words))


@dataclass
class _ArpaFile:
    """The bytes of an ARPA file, and what is told of them."""

    path: str | Path
    data: bytes

    def next_line(self, at: int) -> int:
        """Where the line after the one at ``at`` begins."""
        return self.data.find(b"\n", at) + 1 or len(self.data)

    def next_directive(self, at: int) -> int:
        """Where the next line begins that starts with a backslash; ``at`` is the beginning of a line."""
        return at if self.data[at:at + 1] == b"\\" else self.data.find(b"\n\\", at) + 1 or len(self.data)

    def fail(self, at: int, what: str) -> NoReturn:
        """A UserError about the line at ``at``."""
        number = self.data.count(b"\n", 0, min(at, len(self.data) - 1)) + 1
        raise UserError(f"{self.path}: line {number}: {what}")

    def tell(self, what: str) -> None:
        """A line on stderr."""
        print(f"{self.path}: {what}", file=sys.stderr)


def _read_header(file: _ArpaFile) -> Tuple[List[int], int]:
    """How many n-grams of the orders 1, 2 ... are announced, and where the first section begins."""
    data, at = file.data, 0
    while at < len(data):
        begin, at = at, file.next_line(at)
        if data[begin:at].strip() == b"\\data\\":
            break
    else:
        raise UserError(f"{file.path}: not an ARPA file: it has no \\data\\ line")
    announced: Dict[int, int] = {}
    while at < len(data) and data[at:at + 1] != b"\\":
        line = data[at:file.next_line(at)].strip()
        found = re.fullmatch(rb"ngram[ \t]+(\d{1,9})[ \t]*=[ \t]*(\d{1,18})", line)
        if found:
            announced[int(found[1])] = int(found[2])
        elif line.startswith(b"ngram"):
            file.fail(at, f"expected 'ngram N=COUNT', got '{line.decode('utf-8')}'")
        at = file.next_line(at)
    top = max(announced, default=0)
    if not top or len(announced) != top or min(announced) != 1:
        missing = next(n for n in range(1, top + 2) if n not in announced)
        file.fail(at, f"no line 'ngram {missing}=COUNT' before it; the file is cut short or broken")
    return [announced[n] for n in range(1, top + 1)], at


@dataclass
class _Section:
    """The lines of one order, as they come: words int32 (G, n) word-ids; logprob, backoff: float64 (G,) log10."""

    words: np.ndarray
    logprob: np.ndarray
    backoff: np.ndarray


_BLOCK = 1 << 20  # bytes of an ARPA file that are taken apart at once
_BLANK = np.isin(np.arange(256), list(b" \t\n\v\f\r"))  # where bytes.split() splits


def _read_section(file: _ArpaFile, begin: int, end: int, n: int, ids: Dict[bytes, int]) -> _Section:
    """The n-grams between two directives; words that ``ids`` lacks are added to it."""
    parts = [(np.zeros((0, n), dtype=np.int32), np.zeros(0), np.zeros(0))]
    while begin < end:
        stop = min(file.next_line(begin + _BLOCK), end)
        block = file.data[begin:stop]
        try:
            parts.append(_read_block(block, n, ids))
        except ValueError:
            for line in block.splitlines(keepends=True):
                _check_line(file, begin, line, n)
                begin += len(line)
            raise
        begin = stop
    return _Section(*(np.concatenate(column) for column in zip(*parts)))


def _read_block(block: bytes, n: int, ids: Dict[bytes, int]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(word-ids (G, n), logprob, backoff) of whole lines. Raises ValueError where one of them is no n-gram."""
    tokens = block.split()
    codes = np.frombuffer(block, dtype=np.uint8)
    begins = ~_BLANK[codes]
    begins[1:] &= _BLANK[codes[:-1]]
    ends = np.searchsorted(np.flatnonzero(begins), np.append(np.flatnonzero(codes == ord("\n")), len(codes)))
    lengths = np.diff(ends, prepend=0)
    ends, lengths = ends[lengths > 0], lengths[lengths > 0]
    has_backoff = lengths == n + 2
    if not (has_backoff | (lengths == n + 1)).all():
        raise ValueError("a line of another length")
    first = ends - lengths
    column = np.array(tokens, dtype=object)
    logprob = np.array(list(map(float, column[first].tolist())))
    backoff = np.zeros(len(first))
    backoff[has_backoff] = list(map(float, column[ends[has_backoff] - 1].tolist()))
    if not (logprob < np.inf).all() or not (backoff < np.inf).all():  # NaN is not smaller either
        raise ValueError("no number")
    words = column[(first[:, None] + np.arange(1, n + 1)).ravel()].tolist()
    try:
        numbers = list(map(ids.__getitem__, words))
    except KeyError:
        numbers = [ids.setdefault(word, len(ids)) for word in words]
    return np.array(numbers, dtype=np.int32).reshape(-1, n), logprob, backoff


def _check_line(file: _ArpaFile, at: int, line: bytes, n: int) -> None:
    """A UserError where the line at ``at`` is no n-gram."""
    fields, text = line.split(), line.decode("utf-8").strip()
    if not fields:
        return
    if not n + 1 <= len(fields) <= n + 2:
        file.fail(at, f"'{text}' is no {n}-gram (it should have {n} words)")
    try:
        numbers = [float(field) for field in (fields[0], *fields[n + 1:])]
    except ValueError as error:
        file.fail(at, f"'{text}' is no {n}-gram ({error})")
    if not all(number < math.inf for number in numbers):
        file.fail(at, f"'{text}' has no probability")


def _make_orders(file: _ArpaFile, sections: List[_Section], words: List[str]) -> List[Order]:
    """The tables of the n-grams that ``arpa2fst`` takes; the file's reader is told what was left out.

    Where an n-gram is in a table, so is the n-gram without its first word: a row without a probability (NaN) stands
    for one that the file lacks, as a history that costs nothing to leave.
    """
    size = len(words)
    bos, eos = (words.index(mark) if mark in words else -1 for mark in (BOS, EOS))
    orders: List[Order] = []
    for n, section in enumerate(sections, 1):
        grams = section.words

        def tell(those: np.ndarray, what: str) -> None:
            if those.any():
                first = " ".join(words[i] for i in grams[those.argmax()])
                file.tell(f"{np.count_nonzero(those)} {n}-grams {what} (first: '{first}')")

        fine = ~((grams[:, 1:] == bos) | (grams[:, :-1] == eos)).any(axis=1)
        tell(~fine, f"left out: {BOS} is not their first or {EOS} not their last word")
        prefix = _rows(orders, grams[:, :-1], size)
        known = fine & (prefix >= 0)
        if n == 2:  # a word that is no unigram has a row, too
            known &= ~np.isnan(orders[0].logprob[prefix])
        if n == len(sections):
            _add_made_histories(grams, fine, known, eos)
        tell(fine & ~known, "left out: their first words are no n-gram themselves")
        ends = grams[:, -1] == eos  # of such an n-gram nobody asks what follows
        suffix = _rows(orders, grams[:, 1:], size)
        lacking = known & ~ends & (suffix < 0)
        if lacking.any():
            _insert_histories(orders, grams[lacking, 1:], size)
            prefix, suffix = _rows(orders, grams[:, :-1], size), _rows(orders, grams[:, 1:], size)

        kept = np.flatnonzero(known)
        key = prefix[kept] * size + grams[kept, -1]
        order = np.argsort(key, kind="stable")
        key, kept = key[order], kept[order]
        logprob, backoff = section.logprob[kept], section.backoff[kept]
        again = np.diff(key, prepend=-1) == 0
        if again.any():
            repeated = np.zeros(len(grams), dtype=bool)
            repeated[kept[again]] = True
            tell(repeated, "stand there again: the best probability counts")
            starts = np.flatnonzero(~again)
            last = logprob[np.append(starts[1:], len(key)) - 1]
            key, kept, backoff = key[starts], kept[starts], backoff[starts]
            logprob = np.where(ends[kept], last, np.maximum.reduceat(logprob, starts))
        if n == 1:  # a row for every word
            full = Order(np.arange(size), np.full(size, -1, dtype=np.int32), np.full(size, np.nan), np.zeros(size))
            full.logprob[key], full.backoff[key] = logprob, backoff
            orders.append(full)
        else:
            orders.append(Order(key, np.maximum(suffix[kept], 0).astype(np.int32), logprob, backoff))
    return orders


def _rows(orders: List[Order], grams: np.ndarray, size: int) -> np.ndarray:
    """Rows of n-grams (G, n) in the table of their order, -1 where they are not there; 0 for the empty ones."""
    if not grams.shape[1]:
        return np.zeros(len(grams), dtype=np.int64)
    row = grams[:, 0].astype(np.int64)
    for n in range(1, grams.shape[1]):
        found = orders[n].find(row * size + grams[:, n])
        row = np.where(row >= 0, found, -1)
    return row


def _add_made_histories(grams: np.ndarray, fine: np.ndarray, known: np.ndarray, eos: int) -> None:
    """Adds to ``known`` n-grams of the highest order whose first words are the last ones of a known n-gram before."""
    rest = np.flatnonzero(fine & ~known)
    wanted = {tuple(gram) for gram in grams[rest, :-1].tolist()}
    likely = known & (grams[:, -1] != eos) & np.all(
        [np.isin(grams[:, i + 1], grams[rest, i]) for i in range(grams.shape[1] - 1)], axis=0)
    made: Dict[tuple, int] = {}  # the first line that leads to a history
    for row in np.flatnonzero(likely):
        history = tuple(grams[row, 1:].tolist())
        if history in wanted:
            made.setdefault(history, row)
    for row in rest:
        gram = tuple(grams[row].tolist())
        if made.get(gram[:-1], row) < row:
            known[row] = True
            if gram[-1] != eos:
                made[gram[1:]] = min(row, made.get(gram[1:], row))


def _insert_histories(orders: List[Order], grams: np.ndarray, size: int) -> None:
    """Adds rows without a probability for n-grams (G, n) that the n-th table lacks, and for what these fall to."""
    n = grams.shape[1]
    lacking = _rows(orders, grams[:, 1:], size) < 0
    if lacking.any():
        _insert_histories(orders, grams[lacking, 1:], size)
    table = orders[n - 1]
    key, first = np.unique(_rows(orders, grams[:, :-1], size) * size + grams[:, -1], return_index=True)
    new = table.find(key) < 0
    key, first = key[new], first[new]
    at = np.searchsorted(table.key, key)
    table.key, table.backoff = np.insert(table.key, at, key), np.insert(table.backoff, at, 0.0)
    table.logprob = np.insert(table.logprob, at, np.nan)
    table.suffix = np.insert(table.suffix, at, _rows(orders, grams[first, 1:], size))
    if n < len(orders):  # the rows behind the new ones have moved
        above, count = orders[n], len(table.key)
        moved = np.delete(np.arange(count), at + np.arange(len(at)))
        above.key = moved[above.key // size] * size + above.key % size
        above.suffix = moved[above.suffix].astype(np.int32)


# ---------------------------------------------------------------------------------------------- scoring and grammar

def sentence_scores(model: NgramModel, sentences: List[List[str]]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sum of log10 probabilities, predicted tokens, unknown words) of each of S sentences: float64, int64, int64 (S,).

    Each </s> is predicted too. Unknown words are not counted as predicted; the word after one is scored without it
    as history. What has no probability anywhere (a model without </s>) makes the sum -inf.
    """
    ids = {word: i for i, word in enumerate(model.words)}
    size = len(model.words)
    bos, eos = ids.get(BOS, -1), ids.get(EOS, -1)
    stream = np.array([i for s in sentences for i in (bos, *(ids.get(w, -1) for w in s), eos)])
    lengths = np.array([len(s) + 2 for s in sentences])
    owner = np.repeat(np.arange(len(sentences)), lengths)
    place = np.arange(len(stream)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    unigrams = model.orders[0]
    row = np.where(stream >= 0, stream, -1)
    logprob = np.where(row >= 0, np.nan_to_num(unigrams.logprob[row], nan=-np.inf, neginf=-np.inf), 0.0)
    for n in range(2, len(model.orders) + 1):
        table, below = model.orders[n - 1], model.orders[n - 2]
        context = np.where(place >= n - 1, np.concatenate([[-1], row[:-1]]), -1)
        found = np.where((context >= 0) & (stream >= 0), table.find(context * size + stream), -1)
        backed = logprob + (np.where(context >= 0, below.backoff[context], 0.0) if len(below.key) else 0.0)
        own = table.logprob[found] if len(table.key) else np.zeros(len(found))
        logprob = np.where((found >= 0) & ~np.isnan(own), own, backed)
        row = found
    counted = (place > 0) & (stream >= 0)

    def per_sentence(weights: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights, minlength=len(sentences))

    return (per_sentence(np.where(counted, logprob, 0.0)), per_sentence(counted).astype(np.int64),
            per_sentence(stream < 0).astype(np.int64))


def score(model: NgramModel, sentences: List[List[str]]) -> Tuple[float, int, int]:
    """(sum of log10 probabilities, predicted tokens, unknown words) of all sentences; see :func:`sentence_scores`."""
    total, tokens, unknown = sentence_scores(model, sentences)
    return float(total.sum()), int(tokens.sum()), int(unknown.sum())


def perplexity(model: NgramModel, sentences: List[List[str]]) -> Tuple[float, int, int]:
    """(perplexity, predicted tokens with one </s> a sentence, unknown words left out)."""
    total, tokens, unknown = score(model, sentences)
    with np.errstate(over="ignore"):
        return float(np.power(10.0, -total / max(tokens, 1))), tokens, unknown


def make_grammar(model: NgramModel, words: List[str]) -> Tuple[Fst, List[str]]:
    """G: the model as a transducer over word-ids of a lang, with the symbol #0 (input) on back-off arcs.

    It has the costs of Kaldi's ``arpa2fst --disambig-symbol=#0``: a state for every history that has a continuation;
    </s> as final costs; natural logarithms. Returns also the model's words that the lang lacks (their n-grams are left
    out). Raises UserError when the lang has no #0 or shares no word with the model, and where the model says nothing
    of how sentences begin or end, or has <eps> or #0 as a word.
    """
    lang_ids = {word: i for i, word in enumerate(words)}
    if _BACKOFF not in lang_ids:
        raise UserError(f"words.txt has no {_BACKOFF}; make the lang directory again with 'essence make-lang'")
    reserved = [word for word in ("<eps>", _BACKOFF) if word in model.words]
    if reserved:
        raise UserError(f"the language model has the word {reserved[0]}, which means something else in words.txt; "
                        "take its n-grams out of the model")
    label = np.array([lang_ids.get(w, -1) for w in model.words])
    size, top = len(model.words), len(model.orders)
    bos, eos = (model.words.index(mark) if mark in model.words else -1 for mark in (BOS, EOS))
    if bos < 0 or np.isnan(model.orders[0].logprob[bos]):
        raise UserError(f"the language model has no {BOS} among its unigrams: make it of sentences")
    missing = [w for i, w in enumerate(model.words) if label[i] < 0 and w not in (BOS, EOS)]
    if len(missing) >= size - 1 - (eos >= 0):
        raise UserError("the language model and words.txt share no word; they belong to different corpora")

    # allowed[n]: rows of order n whose words the lang has; has_next[n]: those that are the history of a larger n-gram
    allowed, has_next = _allowed(model, (label >= 0) | np.isin(np.arange(size), (bos, eos))), []
    for n in range(1, top + 1):
        history = np.zeros(len(model.orders[n - 1].key), dtype=bool)
        if n < top:
            history[(model.orders[n].key // size)[allowed[n]]] = True
        has_next.append(history & (model.orders[n - 1].key % size != eos))
    has_next[0][bos] |= model.orders[0].backoff[bos] != 0  # every sentence pays it
    # state of each history (0: the empty one), or of its longest suffix that has one, and the cost of falling there
    state_of: List[np.ndarray] = []
    fall_cost: List[np.ndarray] = []
    next_state = 1
    for n, table in enumerate(model.orders, 1):
        state, cost = np.zeros(len(table.key), dtype=np.int64), np.zeros(len(table.key))
        if n > 1:
            state, cost = state_of[-1][table.suffix], fall_cost[-1][table.suffix]
        own = has_next[n - 1]
        state[own] = next_state + np.arange(np.count_nonzero(own))
        next_state += np.count_nonzero(own)
        state_of.append(state)
        fall_cost.append(np.where(own, 0.0, cost - table.backoff * _LOG10 if n < top else cost))

    columns: List[Tuple[np.ndarray, ...]] = []
    final = np.full(next_state, np.inf)
    for n, table in enumerate(model.orders, 1):
        word = table.key % size
        source = np.zeros(len(word), dtype=np.int64) if n == 1 else state_of[n - 2][table.key // size]
        cost = -table.logprob * _LOG10
        said = allowed[n - 1] & np.isfinite(cost)
        ends = said & (word == eos)
        final[source[ends]] = cost[ends]
        arc = np.flatnonzero(said & (word != eos) & (word != bos) & np.isfinite(fall_cost[n - 1]))
        columns.append((source[arc], state_of[n - 1][arc], label[word[arc]], label[word[arc]],
                        cost[arc] + fall_cost[n - 1][arc]))
        target, extra = np.zeros(len(word), dtype=np.int64), np.zeros(len(word))
        if n > 1:
            target, extra = state_of[n - 2][table.suffix], fall_cost[n - 2][table.suffix]
        extra = extra - table.backoff * _LOG10
        back = np.flatnonzero(has_next[n - 1] & np.isfinite(extra))
        columns.append((state_of[n - 1][back], target[back], np.full(len(back), lang_ids[_BACKOFF]),
                        np.zeros(len(back)), extra[back]))
    if not np.isfinite(final).any():
        raise UserError(f"the language model gives {EOS} no probability, so no sentence ends: make it of sentences")
    src, dst, ilabel, olabel, weight = (np.concatenate(parts) for parts in zip(*columns))
    return sort_arcs(make_fst(src, dst, ilabel, olabel, weight, final, int(state_of[0][bos]))), missing


def ngrams_outside(model: NgramModel, words: List[str]) -> int:
    """How many n-grams have one of the words."""
    outside = set(words)
    fine = np.array([word not in outside for word in model.words])
    return sum(int(np.count_nonzero(~rows & ~np.isnan(table.logprob)))
               for table, rows in zip(model.orders, _allowed(model, fine)))


def _allowed(model: NgramModel, fine: np.ndarray) -> List[np.ndarray]:
    """Of each order, which rows have none but words that are ``fine``: bool (G,) each."""
    allowed: List[np.ndarray] = []
    for table in model.orders:
        rows = fine[table.key % len(fine)]
        allowed.append(rows & allowed[-1][table.key // len(fine)] if allowed else rows)
    return allowed
