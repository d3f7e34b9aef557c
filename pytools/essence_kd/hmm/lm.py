"""N-gram language models: modified Kneser-Ney estimation, ARPA files, perplexity, and the grammar G.

A model is held as one table an order (:class:`Order`): an n-gram is found by the key (row of its first n - 1 words in
the table below) * (number of words) + (its last word), so counting, estimating and scoring are array operations.
"""
from __future__ import annotations

import gzip
import math
import sys
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

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
    first word in the table below, -1 where that is missing (order 1: -1); logprob, backoff: float64 (G,) log10.
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
    """(utterance-id or line number, words) of a Kaldi ``text`` or of a file with a sentence a line.

    ids: "true" (each line begins with an utterance-id), "false", or "auto": they are there when all first fields
    differ and none of them is a word of the vocabulary (without a vocabulary: when the file is named ``text``); stderr
    then tells. Raises UserError for a file without a sentence and for reserved words such as <s>, by their lines.
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
    refuse_reserved([(f"line {number}", fields[with_ids:]) for number, fields in rows], path)
    text = [(fields[0], fields[1:]) if with_ids else (f"line {number}", fields) for number, fields in rows]
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


def estimate(sentences: List[List[str]], order: int = 3, words: List[str] | None = None) -> NgramModel:
    """An interpolated modified Kneser-Ney model of the sentences.

    words: the vocabulary (default: the words of the text); a vocabulary word that the text lacks gets its share of
    the uniform distribution below the unigrams. Every word of the sentences must be in it. Raises ValueError for an
    order under 1 or no sentence.
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
    return NgramModel(symbols, out)


# ------------------------------------------------------------------------------------------------------ ARPA files

def write_arpa(path: str | Path, model: NgramModel) -> None:
    """Write an ARPA file (gzip when the name ends in .gz), whole or not at all."""
    words = np.array(model.words, dtype=object)
    lines = ["", "\\data\\"] + [f"ngram {n}={len(table.key)}" for n, table in enumerate(model.orders, 1)]
    for n, table in enumerate(model.orders, 1):
        lines += ["", f"\\{n}-grams:"]
        texts = [" ".join(row) for row in words[model.ids_of(n)]]
        last = n == len(model.orders)
        lines += [f"{lp:.7g}\t{text}" if last or bo == 0 else f"{lp:.7g}\t{text}\t{bo:.7g}"
                  for lp, text, bo in zip(table.logprob.tolist(), texts, table.backoff.tolist())]
    data = ("\n".join([*lines, "", "\\end\\", ""])).encode("utf-8")
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as stream:
            stream.write(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def read_arpa(path: str | Path) -> NgramModel:
    """Read any ARPA file, gzip or not. Raises UserError naming the line for what is no ARPA file or is cut short."""
    lines = _read(path).split("\n")
    at, announced = 0, []
    while at < len(lines) and lines[at].strip() != "\\data\\":
        at += 1
    if at == len(lines):
        raise UserError(f"{path}: not an ARPA file: it has no \\data\\ line")
    at += 1
    while at < len(lines) and not lines[at].startswith("\\"):
        if lines[at].startswith("ngram "):
            try:
                announced.append(int(lines[at].split("=")[1]))
            except (IndexError, ValueError):
                raise UserError(f"{path}: line {at + 1}: expected 'ngram N=COUNT', got '{lines[at]}'") from None
        at += 1
    ids: Dict[str, int] = {}
    orders: List[Order] = []
    dropped = 0
    for n, count in enumerate(announced, 1):
        while at < len(lines) and not lines[at].strip():
            at += 1
        if at == len(lines) or lines[at].strip() != f"\\{n}-grams:":
            raise UserError(f"{path}: line {min(at + 1, len(lines))}: expected '\\{n}-grams:' of {count} lines; "
                            "the file is cut short or broken")
        rows, logprob, backoff = array("q"), array("d"), array("d")
        start = at + 1
        at = start
        try:
            while at < len(lines) and lines[at].strip() and lines[at][0] != "\\":
                fields = lines[at].split()
                logprob.append(float(fields[0]))
                rows.extend([ids.setdefault(w, len(ids)) for w in fields[1:n + 1]] if n == 1
                            else [ids[w] for w in fields[1:n + 1]])
                if not n + 1 <= len(fields) <= n + 2:
                    raise ValueError(f"it should have {n} words")
                backoff.append(float(fields[n + 1]) if len(fields) == n + 2 else 0.0)
                at += 1
        except KeyError as error:
            raise UserError(f"{path}: line {at + 1}: the word {error} is not among the unigrams") from None
        except ValueError as error:
            raise UserError(f"{path}: line {at + 1}: '{lines[at]}' is no {n}-gram ({error})") from None
        if len(logprob) != count:
            raise UserError(f"{path}: line {start}: {count} {n}-grams announced, {len(logprob)} found; "
                            "the file is cut short or broken")
        broken = np.flatnonzero(np.isnan(logprob) | np.isnan(backoff))
        if len(broken):
            raise UserError(f"{path}: line {start + 1 + broken[0]}: '{lines[start + broken[0]]}' has no probability")
        table, lost = _make_order(np.array(rows, dtype=np.int64).reshape(-1, n), np.array(logprob), np.array(backoff),
                                  orders, len(ids))
        dropped += lost
        orders.append(table)
    while at < len(lines) and not lines[at].strip():
        at += 1
    if not orders or at == len(lines) or lines[at].strip() != "\\end\\":
        raise UserError(f"{path}: line {min(at + 1, len(lines))}: no \\end\\ where it should be; "
                        "the file is cut short or broken")
    if dropped:
        print(f"{path}: {dropped} n-grams left out: their first words are no n-gram themselves", file=sys.stderr)
    return NgramModel(list(ids), orders)


def _make_order(rows: np.ndarray, logprob: np.ndarray, backoff: np.ndarray, below: List[Order],
                size: int) -> Tuple[Order, int]:
    """The table of n-grams given by word-ids (G, n), and how many had no prefix in the table below."""
    def row_of(columns: np.ndarray) -> np.ndarray:
        row = columns[:, 0]
        for n in range(1, columns.shape[1]):
            found = below[n].find(row * size + columns[:, n])
            row = np.where(row >= 0, found, -1)
        return row

    if rows.shape[1] == 1:
        key, prefix, suffix = rows[:, 0], np.zeros(len(rows), dtype=np.int64), np.full(len(rows), -1)
    else:
        prefix, suffix = row_of(rows[:, :-1]), row_of(rows[:, 1:])
        key = prefix * size + rows[:, -1]
    kept = np.flatnonzero(prefix >= 0)
    kept = kept[np.argsort(key[kept], kind="stable")]
    return Order(key[kept], suffix[kept].astype(np.int32), logprob[kept], backoff[kept]), len(rows) - len(kept)


# ---------------------------------------------------------------------------------------------- scoring and grammar

def sentence_scores(model: NgramModel, sentences: List[List[str]]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sum of log10 probabilities, predicted tokens, unknown words) of each of S sentences: float64, int64, int64 (S,).

    Each </s> is predicted too. Unknown words are not counted as predicted; the word after one is scored without it
    as history.
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
    logprob = np.where(row >= 0, unigrams.logprob[row], 0.0)
    for n in range(2, len(model.orders) + 1):
        table, below = model.orders[n - 1], model.orders[n - 2]
        context = np.where(place >= n - 1, np.concatenate([[-1], row[:-1]]), -1)
        found = np.where((context >= 0) & (stream >= 0), table.find(context * size + stream), -1)
        backed = logprob + (np.where(context >= 0, below.backoff[context], 0.0) if len(below.key) else 0.0)
        logprob = np.where(found >= 0, table.logprob[found] if len(table.key) else 0.0, backed)
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
    return 10.0 ** (-total / max(tokens, 1)), tokens, unknown


def make_grammar(model: NgramModel, words: List[str]) -> Tuple[Fst, List[str]]:
    """G: the model as a transducer over word-ids of a lang, with the symbol #0 (input) on back-off arcs.

    As Kaldi's ``arpa2fst --disambig-symbol=#0`` makes it: a state for every history that has a continuation; </s> as
    final costs. Costs are natural logarithms. Returns also the model's words that the lang lacks (their n-grams are
    left out). Raises UserError when the lang has no #0 or shares no word with the model.
    """
    lang_ids = {word: i for i, word in enumerate(words)}
    if _BACKOFF not in lang_ids:
        raise UserError(f"words.txt has no {_BACKOFF}; make the lang directory again with 'essence make-lang'")
    label = np.array([lang_ids.get(w, -1) if w not in ("<eps>", _BACKOFF) else -1 for w in model.words])
    bos = model.words.index(BOS) if BOS in model.words else -1
    eos = model.words.index(EOS) if EOS in model.words else -1
    missing = [w for i, w in enumerate(model.words) if label[i] < 0 and w not in (BOS, EOS)]
    if len(missing) >= len(model.words) - (bos >= 0) - (eos >= 0):
        raise UserError("the language model and words.txt share no word; they belong to different corpora")
    size, top = len(model.words), len(model.orders)

    # allowed[n]: rows of order n whose words the lang has; has_next[n]: those that are the history of a larger n-gram
    allowed, has_next = [], []
    for n, table in enumerate(model.orders, 1):
        word = table.key % size
        fine = (label[word] >= 0) | (word == bos) | (word == eos)
        allowed.append(fine if n == 1 else fine & allowed[-1][table.key // size])
    for n in range(1, top + 1):
        history = np.zeros(len(model.orders[n - 1].key), dtype=bool)
        if n < top:
            history[(model.orders[n].key // size)[allowed[n]]] = True
        has_next.append(history & (model.orders[n - 1].key % size != eos))
    # state of each history (0: the empty one), or of its longest suffix that has one, and the cost of falling there
    state_of: List[np.ndarray] = []
    fall_cost: List[np.ndarray] = []
    next_state = 1
    for n, table in enumerate(model.orders, 1):
        state = np.zeros(len(table.key), dtype=np.int64)
        cost = np.zeros(len(table.key))
        own = has_next[n - 1]
        state[own] = next_state + np.arange(int(own.sum()))
        next_state += int(own.sum())
        rest = ~own
        lower_state, lower_cost = np.zeros(int(rest.sum()), dtype=np.int64), np.zeros(int(rest.sum()))
        if n > 1:
            suffix = table.suffix[rest]
            lower_state = np.where(suffix >= 0, state_of[-1][suffix], 0)
            lower_cost = np.where(suffix >= 0, fall_cost[-1][suffix], 0.0)
        state[rest] = lower_state
        cost[rest] = lower_cost - table.backoff[rest] * _LOG10
        state_of.append(state)
        fall_cost.append(cost)

    columns: List[Tuple[np.ndarray, ...]] = []
    final = np.full(next_state, np.inf)
    for n, table in enumerate(model.orders, 1):
        word = table.key % size
        source = np.zeros(len(word), dtype=np.int64) if n == 1 else state_of[n - 2][table.key // size]
        cost = -table.logprob * _LOG10
        ends = (word == eos) & allowed[n - 1]
        final[source[ends]] = cost[ends]
        arc = np.flatnonzero(allowed[n - 1] & (word != eos) & (word != bos) & (table.logprob > -90))
        columns.append((source[arc], state_of[n - 1][arc], label[word[arc]], label[word[arc]],
                        cost[arc] + fall_cost[n - 1][arc]))
        back = np.flatnonzero(has_next[n - 1])
        target, extra = np.zeros(len(back), dtype=np.int64), np.zeros(len(back))
        if n > 1:
            suffix = table.suffix[back]
            target = np.where(suffix >= 0, state_of[n - 2][suffix], 0)
            extra = np.where(suffix >= 0, fall_cost[n - 2][suffix], 0.0)
        columns.append((state_of[n - 1][back], target, np.full(len(back), lang_ids[_BACKOFF]),
                        np.zeros(len(back)), extra - table.backoff[back] * _LOG10))
    src, dst, ilabel, olabel, weight = (np.concatenate(parts) for parts in zip(*columns))
    start = int(state_of[0][bos]) if bos >= 0 else 0
    return sort_arcs(make_fst(src, dst, ilabel, olabel, weight, final, start)), missing
