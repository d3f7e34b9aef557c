"""Lang directories: lexicon, phones, topology and L, as Kaldi's utils/prepare_lang.sh lays them out.

Phones depend on their position in the word (``AA_B`` begin, ``AA_E`` end, ``AA_I`` internal, ``AA_S`` singleton); the
optional silence between words has no suffix.
"""
from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set, Tuple

import numpy as np

from essence_kd.hmm.fst import Fst, make_fst, sort_arcs, write_fst
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import staging_path
from essence_kd.io.text import is_number, read_lines, split
from essence_kd.io.words import is_reserved, refuse_unseen

POSITIONS = {"nonword": 0, "begin": 1, "end": 2, "internal": 3, "singleton": 4}
_SUFFIXES = {"_B": "begin", "_E": "end", "_I": "internal", "_S": "singleton"}
OOV_WORDS = ("<unk>", "<UNK>", "<spoken_noise>", "<SPOKEN_NOISE>", "[OOV]")  # unknown words are one of these
ADD_OOV = f"add '{OOV_WORDS[0]} SPN' to lexicon.txt of the dict directory, and SPN to silence_phones.txt"

# A phone's HMM: for each emitting state, its (next state, probability) pairs; the state after the last is final.
Topology = List[List[Tuple[int, float]]]


@dataclass(frozen=True)
class Pronunciation:
    """One line of the lexicon: a word, its phones (without position), and the probability of this pronunciation."""

    word: str
    phones: tuple
    prob: float = 1.0


@dataclass
class Dictionary:
    """A Kaldi dict directory. ``silence`` and ``nonsilence`` are lines of phones that share a tree root, ``questions``
    lines of phones that a tree may ask for (extra_questions.txt, which may be missing)."""

    lexicon: List[Pronunciation]
    silence: List[List[str]]
    nonsilence: List[List[str]]
    optional_silence: str
    questions: List[List[str]] = field(default_factory=list)


@dataclass
class Lang:
    """A lang directory in memory.

    phones, words: symbols by id ("" where an id is not used), phone_ids and word_ids the other way round; silence,
    nonsilence, disambig: phone-ids; sets: phone-ids of a line of sets.int each; oov: the word-id of unknown words, -1
    where the directory names none; topo: by phone-id; phone_kind: uint8 (P,), POSITIONS of P phones.
    """

    path: Path
    phones: List[str]
    words: List[str]
    phone_ids: Dict[str, int]
    word_ids: Dict[str, int]
    silence: List[int]
    nonsilence: List[int]
    optional_silence: int
    disambig: List[int]
    sets: List[List[int]]
    oov: int
    topo: Dict[int, Topology] = field(default_factory=dict)
    phone_kind: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))

    def phone_and_state(self) -> List[Tuple[int, int]]:
        """Every (phone-id, HMM state), in the order of phone-ids."""
        return [(phone, state) for phone in sorted(self.topo) for state in range(len(self.topo[phone]))]


# ------------------------------------------------------------------------------------------------- dict directories

def _lines(path: Path) -> List[Tuple[int, List[str]]]:
    """The non-empty lines of a text file as (line number, fields)."""
    return [(number, split(line)) for number, line in read_lines(path, "a dict and a lang directory need it")]


def read_dict(path: str | Path) -> Dictionary:
    """Read a Kaldi dict directory (lexiconp.txt where it is, else lexicon.txt).

    Raises UserError naming file, line and word for: missing or empty files, words without phones, unknown phones,
    a pronunciation given twice, reserved words, a phone that is silence and non-silence at once.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such dict directory")
    groups = {}
    seen: Dict[str, str] = {}
    for name in ("silence_phones.txt", "nonsilence_phones.txt"):
        lines = _lines(path / name)
        refuse_unseen([(f"line {number}", fields) for number, fields in lines], path / name)
        groups[name] = [fields for _, fields in lines]
        if not groups[name]:
            raise UserError(f"{path / name}: holds no phone")
        for phone in (p for line in groups[name] for p in line):
            if phone in seen:
                raise UserError(f"{path / name}: phone {phone} is there already, in {seen[phone]}; keep one of them")
            if phone == "<eps>" or phone.startswith("#") or phone[-2:] in _SUFFIXES:
                raise UserError(f"{path / name}: '{phone}' cannot be a phone; names that begin with # and those that "
                                f"end in {', '.join(_SUFFIXES)} are reserved")
            seen[phone] = name
    optional = [fields for _, fields in _lines(path / "optional_silence.txt")]
    if len(optional) != 1 or len(optional[0]) != 1:
        raise UserError(f"{path / 'optional_silence.txt'}: must hold exactly one phone")
    if seen.get(optional[0][0]) != "silence_phones.txt":
        raise UserError(f"{path / 'optional_silence.txt'}: {optional[0][0]} is not in silence_phones.txt; add it there")
    questions_file = path / "extra_questions.txt"
    questions = [fields for _, fields in _lines(questions_file)] if questions_file.exists() else []
    for phone in (p for line in questions for p in line):
        if phone not in seen:
            raise UserError(f"{questions_file}: the phone '{phone}' is neither in silence_phones.txt nor in "
                            "nonsilence_phones.txt; remove it or add it to one of them")
    lexicon = _read_lexicon(path, seen)
    return Dictionary(lexicon, groups["silence_phones.txt"], groups["nonsilence_phones.txt"], optional[0][0], questions)


def _read_lexicon(path: Path, known: Dict[str, str]) -> List[Pronunciation]:
    with_probs = (path / "lexiconp.txt").exists()
    file = path / ("lexiconp.txt" if with_probs else "lexicon.txt")
    lexicon: List[Pronunciation] = []
    first_line: Dict[tuple, int] = {}
    for number, fields in _lines(file):
        word, rest, prob = fields[0], fields[1:], 1.0
        if is_reserved(word):
            raise UserError(f"{file}: line {number}: '{word}' cannot be a word; that name is reserved")
        if with_probs:
            try:
                prob = float(rest[0])
            except (IndexError, ValueError):
                raise UserError(f"{file}: line {number}: word '{word}' has no probability; "
                                "write 'WORD PROBABILITY PHONES' or name the file lexicon.txt") from None
            if not 0.0 < prob <= 1.0:
                raise UserError(f"{file}: line {number}: word '{word}' has probability {rest[0]}; it must be in (0, 1]")
            rest = rest[1:]
        if not rest:
            raise UserError(f"{file}: line {number}: word '{word}' has no phones; give it a pronunciation")
        for phone in rest:
            if phone not in known:
                raise UserError(f"{file}: line {number}: word '{word}' has the phone '{phone}', which is neither in "
                                "silence_phones.txt nor in nonsilence_phones.txt; add it to one of them")
        key = (word, tuple(rest))
        if key in first_line:
            raise UserError(f"{file}: line {number}: word '{word}' has the same pronunciation as in line "
                            f"{first_line[key]}; remove one of the lines")
        first_line[key] = number
        lexicon.append(Pronunciation(word, tuple(rest), prob))
    if not lexicon:
        raise UserError(f"{file}: the lexicon is empty")
    refuse_unseen([(f"line {number}", [word]) for (word, _), number in first_line.items()], file)
    return lexicon


# ------------------------------------------------------------------------------------------------- building blocks

def add_positions(phones: tuple) -> tuple:
    """The phones of a word with the suffixes of their positions."""
    if len(phones) == 1:
        return (phones[0] + "_S",)
    return (phones[0] + "_B", *(p + "_I" for p in phones[1:-1]), phones[-1] + "_E")


def add_disambig(prons: List[tuple]) -> Tuple[List[tuple], int]:
    """Append ``#1``, ``#2`` ... where a pronunciation is another word's too, or the beginning of a longer one.

    Returns the pronunciations and the largest number used (Kaldi's utils/add_lex_disambig.pl).
    """
    count: Dict[tuple, int] = {}
    prefixes: Set[tuple] = set()
    for pron in prons:
        count[pron] = count.get(pron, 0) + 1
        prefixes.update(pron[:n] for n in range(len(pron)))
    used: Dict[tuple, int] = {}
    out = []
    for pron in prons:
        if count[pron] > 1 or pron in prefixes:
            used[pron] = used.get(pron, 0) + 1
            out.append((*pron, f"#{used[pron]}"))
        else:
            out.append(pron)
    return out, max(used.values(), default=0)


def make_lexicon_fst(words: List[int], prons: List[List[int]], probs: List[float], *, sil_phone: int, sil_prob: float,
                     sil_disambig: int | None = None, loops: Sequence[Tuple[int, int]] = ()) -> Fst:
    """L as in Kaldi's utils/lang/make_lexicon_fst.py: optional silence before the first word and after each.

    words: word-id of a pronunciation; prons: its phone-ids (disambiguation symbols included); probs: its probability;
    loops: (phone-id, word-id) of grammar symbols (#0) that pass through at the loop state.
    """
    arcs: List[Tuple[int, int, int, int, float]] = []  # src, dst, ilabel, olabel, cost
    if sil_prob > 0.0:
        sil_cost, no_sil_cost = -math.log(sil_prob), -math.log(1.0 - sil_prob)
        loop, sil, states = 1, 2, 3
        arcs += [(0, loop, 0, 0, no_sil_cost), (0, sil, 0, 0, sil_cost)]
        if sil_disambig is None:
            arcs.append((sil, loop, sil_phone, 0, 0.0))
        else:
            arcs += [(sil, states, sil_phone, 0, 0.0), (states, loop, sil_disambig, 0, 0.0)]
            states += 1
        ends = [(loop, no_sil_cost), (sil, sil_cost)]
    else:
        loop, states, ends = 0, 1, [(0, 0.0)]
    for word, pron, prob in zip(words, prons, probs):
        here, label, cost = loop, word, -math.log(prob)
        for phone in pron[:-1]:
            arcs.append((here, states, phone, label, cost))
            here, label, cost = states, 0, 0.0
            states += 1
        arcs += [(here, end, pron[-1], label, cost + end_cost) for end, end_cost in ends]
    arcs += [(loop, loop, phone, word, 0.0) for phone, word in loops]
    final = np.full(states, np.inf)
    final[loop] = 0.0
    src, dst, ilabel, olabel, cost = np.array(arcs, dtype=np.float64).T
    return sort_arcs(make_fst(src, dst, ilabel, olabel, cost, final), "olabel")


def linear_topology(num_states: int) -> Topology:
    """Left to right: every state stays (0.75) or goes on (0.25)."""
    return [[(s, 0.75), (s + 1, 0.25)] for s in range(num_states)]


def silence_topology(num_states: int) -> Topology:
    """Kaldi's silence: first and last state are passed once, those between are fully connected (3 states or more)."""
    if num_states < 3:
        return linear_topology(num_states)
    prob = 1.0 / (num_states - 1)
    first = [(s, prob) for s in range(num_states - 1)]
    middle = [[(s, prob) for s in range(1, num_states)] for _ in range(num_states - 2)]
    return [first, *middle, [(num_states - 1, 0.75), (num_states, 0.25)]]


def format_topology(entries: List[Tuple[List[int], Topology]]) -> str:
    """Kaldi's text form of topologies, each with the phones that it is for."""
    out = ["<Topology>"]
    for phones, topology in entries:
        out += ["<TopologyEntry>", "<ForPhones>", " ".join(map(str, phones)), "</ForPhones>"]
        for state, arcs in enumerate(topology):
            transitions = " ".join(f"<Transition> {dst} {prob:.6g}" for dst, prob in arcs)
            out.append(f"<State> {state} <PdfClass> {state} {transitions} </State>")
        out += [f"<State> {len(topology)} </State>", "</TopologyEntry>"]
    return "\n".join([*out, "</Topology>", ""])


def parse_topology(text: str, name: str = "topo") -> Dict[int, Topology]:
    """Kaldi's text form -> {phone-id: topology}. UserError where a state's pdf-class is not the state's number."""
    tokens = iter(split(text))
    out: Dict[int, Topology] = {}
    phones: List[int] = []
    states: Topology = []
    final = False
    try:
        for token in tokens:
            if token == "<ForPhones>":
                phones = []
                for item in tokens:
                    if item == "</ForPhones>":
                        break
                    phones.append(int(item))
                states, final = [], False
            elif token == "<State>":
                if int(next(tokens)) != len(states):
                    raise ValueError("its states are not numbered in order")
                arcs: List[Tuple[int, float]] = []
                emitting = False
                for item in tokens:
                    if item == "</State>":
                        break
                    if item == "<PdfClass>":
                        emitting = True
                        if int(next(tokens)) != len(states):
                            raise ValueError("a state's <PdfClass> must be its own number")
                    elif item == "<Transition>":
                        arcs.append((int(next(tokens)), float(next(tokens))))
                    else:
                        raise ValueError(f"'{item}' is not understood")
                if emitting and not final:
                    states.append(arcs)
                elif not arcs:
                    final = True
                else:
                    raise ValueError("only the last state may be without a <PdfClass>")
            elif token == "</TopologyEntry>":
                if not final or not states:
                    raise ValueError("an entry lacks its states")
                for dst, prob in (arc for arcs in states for arc in arcs):
                    if not 0 <= dst <= len(states) or not 0 < prob <= 1:
                        raise ValueError(f"a transition to state {dst} of probability {prob}")
                out.update(dict.fromkeys(phones, states))
    except (ValueError, StopIteration) as error:
        raise UserError(f"{name}: not a topology that can be used: {error or 'it ends too early'}") from None
    if not out:
        raise UserError(f"{name}: holds no topology")
    return out


# ------------------------------------------------------------------------------------------------- whole directories

def choose_oov(lexicon: List[Pronunciation], silence: List[List[str]],
               oov: str | None) -> Tuple[str, tuple | None]:
    """The word for unknown words, and the pronunciation to add for it: None when the lexicon has it, () where there is
    no phone of spoken noise."""
    words = {pron.word for pron in lexicon}
    if oov is None:
        oov = next((word for word in OOV_WORDS if word in words), OOV_WORDS[0])
    if oov in words:
        return oov, None
    return oov, tuple(phone for line in silence for phone in line if phone.upper() == "SPN")[:1]


def prepare_lang(dict_dir: str | Path, lang_dir: str | Path, *, oov: str | None = None, num_sil_states: int = 5,
                 num_nonsil_states: int = 3, sil_prob: float = 0.5) -> Lang:
    """Make a lang directory as Kaldi's utils/prepare_lang.sh does; it appears under its name only when it is whole.

    oov: the word that stands for unknown ones (default: the first of OOV_WORDS that the lexicon has, else the first;
    added as spoken noise, SPN, when the lexicon lacks it; without such a phone there is none, no oov.txt); sil_prob:
    probability of silence before and after a word. Raises UserError for a bad dict directory, and where a given
    ``oov`` is not in the lexicon and cannot be added.
    """
    if not 0.0 <= sil_prob < 1.0:
        raise UserError(f"--sil-prob {sil_prob}: must be at least 0 and under 1")
    if num_sil_states < 1 or num_nonsil_states < 1:
        raise UserError(f"--num-sil-states {num_sil_states}, --num-nonsil-states {num_nonsil_states}: at least 1 each")
    dictionary = read_dict(dict_dir)
    lexicon = list(dictionary.lexicon)
    given = oov
    oov, extra = choose_oov(lexicon, dictionary.silence, oov)
    if extra:
        lexicon.append(Pronunciation(oov, extra))
        print(f"{dict_dir}: the lexicon lacks {oov}: added as '{oov} {' '.join(extra)}'", file=sys.stderr)
    elif extra is not None:
        none = f"{dict_dir}: the lexicon has no word for unknown words, and silence_phones.txt no SPN: {ADD_OOV}"
        if given is not None:
            raise UserError(none)
        oov = None
        print(f"{none}, if there are words that the lexicon lacks", file=sys.stderr)
    lang_dir = Path(lang_dir)
    staged = Path(staging_path(lang_dir))
    try:
        (staged / "phones").mkdir(parents=True)
        _write_lang(staged, dictionary, lexicon, oov, num_sil_states, num_nonsil_states, sil_prob)
        if lang_dir.exists():
            shutil.rmtree(lang_dir)
        os.replace(staged, lang_dir)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return load_lang(lang_dir)


def _write_lang(out: Path, dictionary: Dictionary, lexicon: List[Pronunciation], oov: str | None,
                num_sil_states: int, num_nonsil_states: int, sil_prob: float) -> None:
    """Every file of a lang directory."""
    def variants(line: List[str], silence: bool) -> List[str]:
        return [phone + s for phone in line for s in ([""] if silence else []) + list(_SUFFIXES)]

    sets = [variants(line, True) for line in dictionary.silence]
    sets += [variants(line, False) for line in dictionary.nonsilence]
    silence = [p for line in dictionary.silence for p in variants(line, True)]
    nonsilence = [p for line in dictionary.nonsilence for p in variants(line, False)]
    prons = [add_positions(p.phones) for p in lexicon]
    disambiguated, largest = add_disambig(prons)
    disambig = [f"#{n}" for n in range(largest + 2)]  # #0 for the grammar's back-off, the last for silence
    phones = ["<eps>", *silence, *nonsilence, *disambig]
    clash = {p for p in phones if phones.count(p) > 1} if len(set(phones)) < len(phones) else ()
    if clash:
        raise UserError(f"the phone {sorted(clash)[0]} arises twice once positions are marked; rename it in the dict")
    words = ["<eps>", *sorted({p.word for p in lexicon}, key=lambda w: w.encode("utf-8")), "#0", "<s>", "</s>"]
    phone_ids = {p: i for i, p in enumerate(phones)}
    word_ids = {w: i for i, w in enumerate(words)}

    def write(name: str, rows: List[List[str]], ids_from: int | None = 0, keep: int = 0) -> None:
        """NAME.txt, and NAME.int in which the fields from `keep` on are phone-ids."""
        (out / f"{name}.txt").write_text("".join(" ".join(row) + "\n" for row in rows), encoding="utf-8")
        if ids_from is not None:
            ints = [[*row[:keep], *(str(phone_ids[p]) for p in row[keep:])] for row in rows]
            (out / f"{name}.int").write_text("".join(" ".join(row) + "\n" for row in ints), encoding="utf-8")

    for name, table in (("phones.txt", phones), ("words.txt", words)):
        (out / name).write_text("".join(f"{symbol} {i}\n" for i, symbol in enumerate(table)), encoding="utf-8")
    for name, members in (("silence", silence), ("nonsilence", nonsilence), ("disambig", disambig),
                          ("optional_silence", [dictionary.optional_silence]), ("context_indep", silence)):
        write(f"phones/{name}", [[p] for p in members])
        (out / f"phones/{name}.csl").write_text(":".join(str(phone_ids[p]) for p in members) + "\n")
    write("phones/sets", sets)
    write("phones/roots", [["shared", "split", *line] for line in sets], keep=2)
    silences = {phone for line in dictionary.silence for phone in line}
    questions = [[v for phone in line for v in variants([phone], phone in silences)] for line in dictionary.questions]
    for group, tails in ((dictionary.nonsilence, _SUFFIXES), (dictionary.silence, ["", *_SUFFIXES])):
        questions += [[phone + tail for line in group for phone in line] for tail in tails]
    kinds = [(p, _SUFFIXES.get(p[-2:], "nonword")) for p in [*silence, *nonsilence]]
    (out / "phones/word_boundary.txt").write_text("".join(f"{p} {kind}\n" for p, kind in kinds), encoding="utf-8")
    (out / "phones/word_boundary.int").write_text("".join(f"{phone_ids[p]} {kind}\n" for p, kind in kinds))
    write("phones/extra_questions", questions)
    align = sorted({(p.word, p.word, *pron) for p, pron in zip(lexicon, prons)}
                   | {("<eps>", "<eps>", dictionary.optional_silence)}, key=lambda row: " ".join(row).encode("utf-8"))
    write("phones/align_lexicon", [list(row) for row in align], ids_from=None)
    align_ids = [[*(word_ids[w] for w in row[:2]), *(phone_ids[p] for p in row[2:])] for row in align]
    (out / "phones/align_lexicon.int").write_text("".join(" ".join(map(str, row)) + "\n" for row in align_ids))
    (out / "phones/wdisambig.txt").write_text("#0\n")
    (out / "phones/wdisambig_phones.int").write_text(f"{phone_ids['#0']}\n")
    (out / "phones/wdisambig_words.int").write_text(f"{word_ids['#0']}\n")
    if oov is not None:
        (out / "oov.txt").write_text(f"{oov}\n", encoding="utf-8")
        (out / "oov.int").write_text(f"{word_ids[oov]}\n")
    (out / "topo").write_text(format_topology([
        ([phone_ids[p] for p in nonsilence], linear_topology(num_nonsil_states)),
        ([phone_ids[p] for p in silence], silence_topology(num_sil_states))]))
    shared: Dict[str, Any] = dict(words=[word_ids[p.word] for p in lexicon], probs=[p.prob for p in lexicon],
                  sil_phone=phone_ids[dictionary.optional_silence], sil_prob=sil_prob)
    write_fst(out / "L.fst", make_lexicon_fst(prons=[[phone_ids[p] for p in pron] for pron in prons], **shared))
    write_fst(out / "L_disambig.fst", make_lexicon_fst(
        prons=[[phone_ids[p] for p in pron] for pron in disambiguated], sil_disambig=phone_ids[disambig[-1]],
        loops=[(phone_ids["#0"], word_ids["#0"])], **shared))


def read_symbols(path: str | Path) -> List[str]:
    """A Kaldi symbol table (``symbol id`` lines, ids 0, 1, 2 ... in any order, gaps allowed) -> symbols by id."""
    table: Dict[int, str] = {}
    for number, fields in _lines(Path(path)):
        if len(fields) != 2 or not is_number(fields[1]):
            raise UserError(f"{path}: line {number}: expected 'SYMBOL ID', got '{' '.join(fields)}'")
        if int(fields[1]) in table:
            raise UserError(f"{path}: line {number}: id {fields[1]} is already {table[int(fields[1])]}")
        if len(fields[1]) > 7:
            raise UserError(f"{path}: line {number}: the id {fields[1]} is too large; ids count from 0")
        table[int(fields[1])] = fields[0]
    if table.get(0) != "<eps>":
        raise UserError(f"{path}: id 0 must be <eps>")
    return [table.get(i, "") for i in range(max(table) + 1)]


def _read_ints(path: Path) -> List[List[int]]:
    """A line or more of whole numbers."""
    try:
        rows = [[int(f) for f in fields] for _, fields in _lines(path)]
    except ValueError as error:
        raise UserError(f"{path}: {error}; make the lang directory again") from None
    if not rows:
        raise UserError(f"{path}: is empty; make the lang directory again")
    return rows


def read_roots(lang: Lang) -> Tuple[List[Tuple[bool, bool, List[int]]], List[List[int]], List[int]]:
    """What a decision tree needs of a lang directory: the roots, more questions, and context-independent phones.

    Roots are lines (do the HMM states share the root, may it be split, phone-ids) of phones/roots.int; questions are
    those of phones/extra_questions.int, where there is one; the phones are those of phones/context_indep.int. Raises
    UserError, also where a phone is in no root.
    """
    folder = lang.path / "phones"
    roots = []
    for number, fields in _lines(folder / "roots.int"):
        try:
            if fields[0] not in ("shared", "not-shared") or fields[1] not in ("split", "not-split") or not fields[2:]:
                raise ValueError("is not '[not-]shared [not-]split PHONES'")
            roots.append((fields[0] == "shared", fields[1] == "split", [int(field) for field in fields[2:]]))
        except (ValueError, IndexError) as error:
            raise UserError(f"{folder / 'roots.int'}: line {number}: {error}; make the lang directory again") from None
    in_roots = [phone for _, _, phones in roots for phone in phones]
    lacking = set(lang.silence + lang.nonsilence).symmetric_difference(in_roots)
    if lacking or len(set(in_roots)) < len(in_roots):
        phone = min(lacking) if lacking else max(in_roots, key=in_roots.count)
        raise UserError(f"{folder / 'roots.int'}: phone-id {phone} must be in one line; make the lang directory again")
    extra = folder / "extra_questions.int"
    questions = [[int(field) for field in fields] for _, fields in _lines(extra)] if extra.exists() else []
    return roots, questions, [row[0] for row in _read_ints(folder / "context_indep.int")]


def read_positions(lang: Path, num_phones: int) -> np.ndarray:
    """``phone_kind`` of hmm.graph, uint8 (num_phones,), from phones/word_boundary.int of a lang or a graph directory.

    All 0 where that file is not there. Raises UserError for a line that makes no sense.
    """
    kind = np.zeros(num_phones, np.uint8)
    boundary = lang / "phones" / "word_boundary.int"
    for number, fields in _lines(boundary) if boundary.exists() else []:
        if len(fields) != 2 or not is_number(fields[0]) or fields[1] not in POSITIONS:
            raise UserError(f"{boundary}: line {number}: expected 'PHONE-ID POSITION', got '{' '.join(fields)}'")
        if int(fields[0]) >= num_phones:
            raise UserError(f"{boundary}: line {number}: phone-id {fields[0]} is not in {lang / 'phones.txt'}")
        kind[int(fields[0])] = POSITIONS[fields[1]]
    return kind


def load_lang(path: str | Path) -> Lang:
    """Read a lang directory, ours or Kaldi's. Raises UserError for what is missing or does not fit together."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such lang directory; make it with 'essence make-lang'")
    phones, words = read_symbols(path / "phones.txt"), read_symbols(path / "words.txt")
    flat = {name: [row[0] for row in _read_ints(path / "phones" / f"{name}.int")]
            for name in ("silence", "nonsilence", "optional_silence", "disambig")}
    topo = parse_topology("\n".join(line for _, line in read_lines(path / "topo", "make the lang directory again")),
                          str(path / "topo"))
    lacking = [p for p in flat["silence"] + flat["nonsilence"]
               if p not in topo or not 0 < p < len(phones) or not phones[p]]
    if lacking:
        raise UserError(f"{path / 'topo'}: phone-id {lacking[0]} has no topology or no symbol; "
                        "make the lang directory again")
    oov = _read_ints(path / "oov.int")[0][0] if (path / "oov.int").exists() else -1
    return Lang(path, phones, words, {p: i for i, p in enumerate(phones) if p},
                {w: i for i, w in enumerate(words) if w}, flat["silence"], flat["nonsilence"],
                flat["optional_silence"][0], flat["disambig"],
                _read_ints(path / "phones" / "sets.int"), oov, topo, read_positions(path, len(phones)))
