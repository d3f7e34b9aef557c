"""N-gram models against hand calculation, brute force, and kaldilm."""
import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.cli.main import main
from essence_kd.decode.rescoring import Histories
from essence_kd.hmm import lm
from essence_kd.hmm.fst import write_fst
from essence_kd.io.errors import UserError

TEXT = ["a b c", "a b", "b c a b", "c", "a a b c c a", "b b a c", "c a b c b a a", "a c b"]
SENTENCES = [line.split() for line in TEXT]


def log10_of(model, history, word):
    """log10 p(word | history) by the definition of back-off, from dictionaries: no code of the module's scoring."""
    tables = []
    for n in range(1, len(model.orders) + 1):
        order = model.orders[n - 1]
        words = [tuple(model.words[i] for i in row) for row in model.ids_of(n)]
        tables.append({w: (lp, bo) for w, lp, bo in zip(words, order.logprob, order.backoff)})
    history = tuple(history)[-(len(tables) - 1):] if len(tables) > 1 else ()
    total = 0.0
    while True:
        gram = history + (word,)
        if gram in tables[len(gram) - 1]:
            return total + tables[len(gram) - 1][gram][0]
        if not history:
            return -math.inf
        total += tables[len(history) - 1].get(history, (0.0, 0.0))[1]
        history = history[1:]


def histories(model):
    for n in range(1, len(model.orders)):
        for row in model.ids_of(n):
            if model.words[row[-1]] != lm.EOS:
                yield tuple(model.words[i] for i in row)
    yield ()
    yield ("never", "seen")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("extra", [[], ["x", "y"]])
def test_every_distribution_sums_to_one(order, extra):
    model = lm.estimate(SENTENCES, order, extra)
    predicted = [w for w in model.words if w != lm.BOS]
    for history in histories(model):
        assert sum(10 ** log10_of(model, history, w) for w in predicted) == pytest.approx(1.0, abs=1e-9), history
    assert all(10 ** log10_of(model, (), w) > 0 for w in extra)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=6), min_size=1, max_size=12), st.integers(1, 4))
def test_sums_to_one_for_any_text(sentences, order):
    model = lm.estimate(sentences, order)
    predicted = [w for w in model.words if w != lm.BOS]
    for history in histories(model):
        assert sum(10 ** log10_of(model, history, w) for w in predicted) == pytest.approx(1.0, abs=1e-8), history


def test_bigram_by_hand():
    """'a b' and 'a c': the counts are too few for three discounts, so one absolute discount an order.

    Bigrams <s>a 2, ab 1, ac 1, b</s> 1, c</s> 1: n1 = 4, n2 = 1, D = 4/6. Continuation counts a 1 (<s>), b 1, c 1,
    </s> 2: n1 = 3, n2 = 1, D = 3/5.
    """
    model = lm.estimate([["a", "b"], ["a", "c"]], 2)
    d1, d2, total = 3 / 5, 4 / 6, 5.0
    uniform = 1 / 4
    gamma1 = 4 * d1 / total
    one = {w: (n - d1) / total + gamma1 * uniform for w, n in (("a", 1), ("b", 1), ("c", 1), ("</s>", 2))}
    for word, p in one.items():
        assert 10 ** log10_of(model, (), word) == pytest.approx(p)
    assert 10 ** log10_of(model, ("a",), "b") == pytest.approx((1 - d2) / 2 + (2 * d2 / 2) * one["b"])
    assert 10 ** log10_of(model, ("<s>",), "a") == pytest.approx((2 - d2) / 2 + (d2 / 2) * one["a"])
    assert 10 ** log10_of(model, ("a",), "a") == pytest.approx((2 * d2 / 2) * one["a"])
    assert 10 ** log10_of(model, ("b",), "</s>") == pytest.approx((1 - d2) + d2 * one["</s>"])


def test_modified_discounts_by_formula():
    counts = np.array([1] * 20 + [2] * 8 + [3] * 4 + [4] * 2 + [7] * 3)
    y = 20 / (20 + 16)
    np.testing.assert_allclose(lm.discounts(counts), [1 - 2 * y * 8 / 20, 2 - 3 * y * 4 / 8, 3 - 4 * y * 2 / 4])
    np.testing.assert_allclose(lm.discounts(np.array([1, 1, 2])), [0.5] * 3)  # n1 / (n1 + 2 n2)
    np.testing.assert_allclose(lm.discounts(np.array([5, 6])), [0.5] * 3)


def test_trigram_by_definition():
    """Probabilities of a trigram model by Chen and Goodman's equations, written out with dictionaries."""
    rng = np.random.default_rng(0)
    sentences = [[str(w) for w in np.minimum(rng.geometric(0.3, rng.integers(1, 9)), 8)] for _ in range(300)]
    model = lm.estimate(sentences, 3)
    grams = {n: {} for n in (1, 2, 3)}
    for sentence in sentences:
        row = [lm.BOS, *sentence, lm.EOS]
        for n in (1, 2, 3):
            for i in range(len(row) - n + 1):
                gram = tuple(row[i:i + n])
                grams[n][gram] = grams[n].get(gram, 0) + 1
    counts = {3: grams[3]}
    for n in (2, 1):
        counts[n] = {g: (c if g[0] == lm.BOS else len({h[0] for h in grams[n + 1] if h[1:] == g}))
                     for g, c in grams[n].items()}
    del counts[1][(lm.BOS,)]

    def discount(n, c):
        values = list(counts[n].values())
        n1, n2, n3, n4 = (values.count(i) for i in (1, 2, 3, 4))
        assert min(n1, n2, n3, n4) > 0 or n == 1
        if not min(n1, n2, n3, n4):
            return n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
        y = n1 / (n1 + 2 * n2)
        return {1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2}.get(c, 3 - 4 * y * n4 / n3)

    def p(history, word):
        n = len(history) + 1
        rows = {g: c for g, c in counts[n].items() if g[:-1] == history}
        lower = p(history[1:], word) if history else 1 / len({g[0] for g in counts[1]})
        total = sum(rows.values())
        c = rows.get(history + (word,), 0)
        gamma = sum(discount(n, c) for c in rows.values()) / total
        return (c - discount(n, c) if c else 0.0) / total + gamma * lower

    for gram in list(grams[3])[:120] + [("1", "1", "8"), ("2", "1", lm.EOS)]:
        assert 10 ** log10_of(model, gram[:2], gram[2]) == pytest.approx(p(gram[:2], gram[2]), rel=1e-6), gram


def test_score_and_perplexity():
    model = lm.estimate(SENTENCES, 3)
    test = [["a", "b", "b", "c"], [], ["c", "zzz", "a"]]
    expected = sum(log10_of(model, [lm.BOS, *s[:i]], w) for s in test[:2] for i, w in enumerate([*s, lm.EOS]))
    expected += log10_of(model, [lm.BOS], "c") + log10_of(model, [], "a") + log10_of(model, ["a"], lm.EOS)
    total, tokens, unknown = lm.score(model, test)
    assert (tokens, unknown) == (9, 1)
    assert total == pytest.approx(expected)
    assert lm.perplexity(model, test)[0] == pytest.approx(10 ** (-expected / 9))
    better = lm.perplexity(model, SENTENCES)[0]
    assert better < lm.perplexity(lm.estimate(SENTENCES, 1), SENTENCES)[0]


def test_orders_longer_than_every_sentence_say_nothing_more():
    short = [["a"], ["b", "a"]]
    assert lm.score(lm.estimate(short, 9), short) == lm.score(lm.estimate(short, 4), short)


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_arpa_round_trip(tmp_path, name):
    model = lm.estimate(SENTENCES, 3, ["unused"])
    lm.write_arpa(tmp_path / name, model)
    back = lm.read_arpa(tmp_path / name)
    assert lm.score(back, SENTENCES)[0] == pytest.approx(lm.score(model, SENTENCES)[0], abs=1e-4)
    assert [len(t.key) for t in back.orders] == [len(t.key) for t in model.orders]
    first = (tmp_path / name).read_bytes()
    lm.write_arpa(tmp_path / name, model)
    assert (tmp_path / name).read_bytes() == first


ARPA = """made by hand

\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-0.5\t</s>
-99\t<s>\t-0.2
-0.6\ta\t-0.3
-0.7\tb\t-0.1
-0.8\tc

\\2-grams:
-0.2\t<s> a\t-0.4
-0.3\ta b\t-0.5
-0.4\tb </s>

\\3-grams:
-0.1\t<s> a b

\\end\\
"""


def test_foreign_arpa(tmp_path):
    (tmp_path / "x").write_text(ARPA.replace("\t", " "))
    model = lm.read_arpa(tmp_path / "x")
    # <s> a b </s>: -0.2 - 0.1 + back-off(a b) -0.5 - 0.4;  <s> c: -0.2 - 0.8, </s> after c: -0.5
    assert lm.score(model, [["a", "b"]])[0] == pytest.approx(-0.2 - 0.1 - 0.5 - 0.4)
    assert lm.score(model, [["c"]])[0] == pytest.approx(-0.2 - 0.8 - 0.5)


def shuffled_unigrams(text):
    lines = text.split("\n")
    at = lines.index("\\1-grams:") + 1
    return "\n".join([*lines[:at], *lines[at:at + 5][::-1], *lines[at + 5:]])


@pytest.mark.parametrize("change", [
    lambda text: text.replace("\t", " "),
    lambda text: text.replace("\t", "  \t"),
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\n", "\n\n"),
    lambda text: text.replace("\n\n", "\n"),
    lambda text: text.replace("made by hand", "ngram 9=9\n# a comment\n\\1-grams:"),
    lambda text: text.replace("ngram 2=3", "smoothing: none\nngram  2 =\t3 "),
    lambda text: text.replace("ngram 1=5\nngram 2=3", "ngram 2=3\nngram 1=5"),
    lambda text: text.replace("\\2-grams:", "\\2-grams: \t"),
    lambda text: text.rstrip("\n"),
    lambda text: text + "\nthe end\n",
    lambda text: text.replace("-0.8\tc\n", "-0.8\tc\t0\n"),
    lambda text: text.replace("ngram 3=1\n", "ngram 3=1\nngram 4=0\n"),
    lambda text: text.replace("ngram 3=1\n", "ngram 3=1\nngram 4=0\n").replace("\\end", "\\4-grams:\n\n\\end"),
    shuffled_unigrams,
])
def test_arpa_of_other_tools(tmp_path, change):
    (tmp_path / "x").write_bytes(change(ARPA).encode())
    (tmp_path / "y").write_bytes(gzip.compress(ARPA.encode()))
    sentences = [["a", "b"], ["c"], ["b", "a", "b"], []]
    words = words_table(["a", "b", "c"])
    found, expected = (lm.read_arpa(tmp_path / name) for name in "xy")
    assert lm.sentence_scores(found, sentences)[0].tolist() == lm.sentence_scores(expected, sentences)[0].tolist()
    grammar, same = lm.make_grammar(found, words)[0], lm.make_grammar(expected, words)[0]
    for sentence in sentences:
        labels = [words.index(w) for w in sentence]
        assert best_cost(grammar, labels, 4) == best_cost(same, labels, 4) < math.inf


@pytest.mark.parametrize("changes, told", [
    ({"ngram 2=3": "ngram 2=5", "\n\\3-grams": "-1\ta <s>\n-1\t</s> b\n\n\\3-grams"},
     ["2 2-grams left out: <s> is not their first or </s> not their last word (first: 'a <s>')"]),
    ({"ngram 3=1": "ngram 3=2", "\n\\end": "-1\tc c a\n\n\\end"},
     ["1 3-grams left out: their first words are no n-gram themselves (first: 'c c a')"]),
    ({"ngram 2=3": "ngram 2=4", "\n\\3-grams": "-1\ta b\n\n\\3-grams"},
     ["1 2-grams stand there again: the best probability counts (first: 'a b')"]),
    ({"ngram 2=3": "ngram 2=4", "ngram 1=5": "ngram 1=6"},
     ["6 1-grams announced, 5 found", "4 2-grams announced, 3 found"]),
    ({"-0.3\ta b": "-0.3\ta zebra"}, ["1 words of longer n-grams are no unigrams (first: 'zebra')"]),
])
def test_what_is_left_out_is_told(tmp_path, capsys, changes, told):
    text = ARPA
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "x").write_text(text)
    model = lm.read_arpa(tmp_path / "x")
    assert capsys.readouterr().err.splitlines() == [f"{tmp_path}/x: {line}" for line in told]
    lm.write_arpa(tmp_path / "y", model)
    again = lm.read_arpa(tmp_path / "y")
    assert "nan" not in (tmp_path / "y").read_text()
    assert lm.score(again, [["a", "b"], ["c"]]) == pytest.approx(lm.score(model, [["a", "b"], ["c"]]))


@pytest.mark.parametrize("old, new, told", [
    ("\\data\\", "data", "no .data. line"),
    ("ngram 2=3", "ngram 2=2", "line 15: 2 2-grams announced, 3 found"),
    ("ngram 2=3\n", "", "line 7: no line 'ngram 2=COUNT'"),
    ("ngram 1=5\nngram 2=3\nngram 3=1\n", "", "line 5: no line 'ngram 1=COUNT'"),
    ("ngram 2=3", "ngram 2=x", "expected 'ngram N=COUNT'"),
    ("-0.3\ta b\t-0.5", "-0.3x\ta b\t-0.5", r"line 17: '-0.3x\\ta b\\t-0.5' is no 2-gram"),
    ("-0.3\ta b\t-0.5", "-0.3\ta", "no 2-gram"),
    ("-0.3\ta b\t-0.5", "nan\ta b\t-0.5", r"'nan\\ta b\\t-0.5' has no probability"),
    ("-0.3\ta b\t-0.5", "-0.3\ta b\tinf", r"'-0.3\\ta b\\tinf' has no probability"),
    ("\\2-grams:", "\\4-grams:", "line 15: expected '.2-grams:' of 3 lines"),
    ("\\end\\", "\\4-grams:\n-0.1\t<s> a b c\n\\end\\", "line 23: no .end."),
    ("\\3-grams:\n-0.1\t<s> a b\n\n\\end\\\n", "", "cut short"),
    ("\n\\end\\\n", "", "no .end."),
])
def test_broken_arpa(tmp_path, old, new, told):
    assert old in ARPA
    (tmp_path / "x").write_text(ARPA.replace(old, new))
    with pytest.raises(UserError, match=told) as caught:
        lm.read_arpa(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


def test_broken_gzip(tmp_path):
    data = gzip.compress(ARPA.encode())
    (tmp_path / "x.gz").write_bytes(data[:-12])
    with pytest.raises(UserError, match="not a whole gzip"):
        lm.read_arpa(tmp_path / "x.gz")


# ------------------------------------------------------------------------------------------------------------ grammar

class Paths:
    """Costs of sentences in a grammar, all in plain dictionaries; rows: (src, dst, ilabel, olabel, weight)."""

    def __init__(self, rows, final, start, backoff):
        self.final, self.start, self.backoff, self.arcs = final, start, backoff, {}
        for src, dst, ilabel, olabel, weight in rows:
            assert olabel == (0 if ilabel == backoff else ilabel) or backoff < 0
            self.arcs.setdefault(src, []).append((dst, ilabel, weight))

    @classmethod
    def of(cls, fst, backoff):
        rows = zip(*(column.tolist() for column in (fst.src, fst.dst, fst.ilabel, fst.olabel, fst.weight)))
        return cls(rows, dict(enumerate(fst.final.tolist())), fst.start, backoff)

    @classmethod
    def of_text(cls, text, backoff):
        """Of OpenFst's text form."""
        lines = [line.split() for line in text.splitlines() if line.strip()]
        rows = [(*map(int, f[:4]), float(f[4]) if len(f) > 4 else 0.0) for f in lines if len(f) > 3]
        final = {int(f[0]): float(f[1]) if len(f) > 1 else 0.0 for f in lines if len(f) < 3}
        return cls(rows, final, int(lines[0][0]) if lines else 0, backoff)

    def close(self, costs):
        """Back-off arcs may be taken freely."""
        queue = list(costs)
        while queue:
            state = queue.pop()
            for dst, ilabel, weight in self.arcs.get(state, []):
                if ilabel == self.backoff and costs[state] + weight < costs.get(dst, math.inf) - 1e-9:
                    costs[dst] = costs[state] + weight
                    queue.append(dst)
        return costs

    def step(self, costs, label):
        after = {}
        for state, cost in costs.items():
            for dst, ilabel, weight in self.arcs.get(state, []):
                if ilabel == label:
                    after[dst] = min(after.get(dst, math.inf), cost + weight)
        return self.close(after)

    def least(self, costs):
        return min((cost + self.final.get(state, math.inf) for state, cost in costs.items()), default=math.inf)

    def cheapest(self, labels):
        """Cost of the best path of a sentence."""
        costs = self.close({self.start: 0.0})
        for label in labels:
            costs = self.step(costs, label)
        return self.least(costs)

    def all(self, labels, longest):
        """The same of every sentence of at most so many of the labels."""
        found, todo = {}, [((), self.close({self.start: 0.0}))]
        while todo:
            sentence, costs = todo.pop()
            found[sentence] = self.least(costs)
            if len(sentence) < longest:
                todo += [((*sentence, label), self.step(costs, label)) for label in labels]
        return found

    def defined(self, labels):
        """Cost by the definition of back-off: one backs off only where a word has no arc."""
        state, total = self.start, 0.0
        for label in [*labels, None]:
            while True:
                if label is None and state in self.final:
                    return total + self.final[state]
                arcs = [(weight, dst) for dst, ilabel, weight in self.arcs.get(state, []) if ilabel == label]
                back = [(weight, dst) for dst, ilabel, weight in self.arcs.get(state, []) if ilabel == self.backoff]
                if not arcs and not back:
                    return math.inf
                weight, state = min(arcs or back)
                total += weight
                if arcs:
                    break


def best_cost(fst, labels, backoff):
    """Least cost of a sentence in G when #0 may be taken freely."""
    return Paths.of(fst, backoff).cheapest(labels)


def words_table(words):
    return ["<eps>", *words, "#0", "<s>", "</s>"]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_grammar_costs_are_the_models(order):
    """The cheapest path is never dearer than the model's own; without back-off below it, it is the same."""
    model = lm.estimate(SENTENCES, order)
    words = words_table(["a", "b", "c"])
    fst, missing = lm.make_grammar(model, words)
    assert not missing
    for sentence in SENTENCES + [["c", "c", "c", "a"], [], ["b"]]:
        expected = -lm.score(model, [sentence])[0] * math.log(10)
        found = best_cost(fst, [words.index(w) for w in sentence], words.index("#0"))
        assert found <= expected + 1e-4
        if order == 1:
            assert found == pytest.approx(expected, abs=1e-4)
    if order > 1:
        training = [words.index(w) for w in SENTENCES[0]]
        expected = -lm.score(model, [SENTENCES[0]])[0] * math.log(10)
        assert best_cost(fst, training, -1) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def arpa2fst():
    """kaldilm's arpa2fst, a function of ARPA and words.txt that answers G as text.

    It works in a process of its own, since kaldilm must not be loaded before kaldifst, and aborts at its errors.
    """
    code = ("import json, sys, kaldilm\n"
            "for line in sys.stdin:\n"
            "    arpa, words = json.loads(line)\n"
            "    text = kaldilm.arpa2fst(input_arpa=arpa, disambig_symbol='#0', read_symbol_table=words)\n"
            "    print(json.dumps(text), flush=True)\n")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as process:
        def grammar(arpa, words_txt):
            process.stdin.write(json.dumps([str(arpa), str(words_txt)]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield grammar
        process.stdin.close()


def write_words(path, words):
    path.write_text("".join(f"{w} {i}\n" for i, w in enumerate(words)))
    return path


@pytest.mark.parametrize("order, extra", [(1, []), (2, ["x"]), (3, ["x"]), (4, [])])
def test_grammar_equals_kaldilms(tmp_path, arpa2fst, order, extra):
    rng = np.random.default_rng(order)
    sentences = [[f"w{i}" for i in rng.integers(0, 12, rng.integers(1, 7))] for _ in range(60)]
    model = lm.estimate(sentences, order, extra)
    lm.write_arpa(tmp_path / "x.arpa", model)
    words = words_table([w for w in model.words if w not in (lm.BOS, lm.EOS)])
    ours, _ = lm.make_grammar(lm.read_arpa(tmp_path / "x.arpa"), words)
    text = arpa2fst(tmp_path / "x.arpa", write_words(tmp_path / "words.txt", words))
    assert abs(ours.num_arcs - sum(len(line.split()) > 3 for line in text.splitlines())) <= 1  # one for unigrams' start
    ours, theirs = Paths.of(ours, words.index("#0")), Paths.of_text(text, words.index("#0"))
    for sentence in sentences[:30] + [["w1"] * 5, []]:
        labels = [words.index(w) for w in sentence]
        assert ours.cheapest(labels) == pytest.approx(theirs.cheapest(labels), abs=1e-3)


def foreign_sections(rng):
    """N-grams by order as pruning and other tools leave them, the words of a lang, which may lack one, and what is
    odd about them."""
    order, words = int(rng.integers(1, 5)), ["a", "b", "c"]
    kinds = {kind for kind in ("marks", "prefixes", "again", "never", "unigrams", "oov") if rng.random() < 0.35}
    if "prefixes" in kinds:
        kinds.discard("oov")  # whether a history was made hangs on the words of the lang, which read_arpa does not know
    sections, before = [], [()]
    for n in range(1, order + 1):
        last = [*words, "</s>", *(["<s>"] if n == 1 or "marks" in kinds else [])]
        grams = [(*history, word) for history in before for word in last if n == 1 or rng.random() < 0.4]
        if "prefixes" in kinds and n > 1:
            grams += [tuple(rng.choice(words, n)) for _ in range(6)]
        if "unigrams" in kinds and n == 1:
            grams.remove((rng.choice(words),))
        if "again" not in kinds:
            grams = sorted(set(grams))
        elif grams:
            grams += [grams[i] for i in rng.integers(0, len(grams), 3)]
        grams = [grams[i] for i in rng.permutation(len(grams))]
        before = [g for g in dict.fromkeys(grams) if g[-1] != "</s>" or "marks" in kinds]
        before = [before[i] for i in rng.permutation(len(before))[:8]]
        sections.append([])
        for gram in grams:
            value = -99 if "never" in kinds and rng.random() < 0.2 else rng.uniform(-2, 0.1)
            backoff = f"\t{rng.uniform(-2, 0.2):.2f}" if n < order and rng.random() < 0.8 else ""
            sections[-1].append(f"{value:.2f}\t{' '.join(gram)}{backoff}")
    return sections, words[:2] if "oov" in kinds else words, kinds


def arpa_text(sections):
    return "\n".join(["", "\\data\\", *(f"ngram {n}={len(lines)}" for n, lines in enumerate(sections, 1)), "",
                      *("\n".join([f"\\{n}-grams:", *lines, ""]) for n, lines in enumerate(sections, 1)),
                      "\\end\\", ""])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_model_costs_what_kaldilms_costs(tmp_path_factory, arpa2fst, seed):
    """The cheapest path of every short sentence, and its score by the definition of back-off."""
    sections, vocabulary, kinds = foreign_sections(np.random.default_rng(seed))
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.arpa").write_text(arpa_text(sections))
    words = words_table(vocabulary)
    backoff = words.index("#0")
    text = arpa2fst(folder / "any.arpa", write_words(folder / "any.txt", words))
    theirs = Paths.of_text(text, backoff)
    model = lm.read_arpa(folder / "any.arpa")
    labels = [words.index(word) for word in vocabulary]
    expected = theirs.all(labels, 4)
    try:
        grammar, _ = lm.make_grammar(model, words)
    except UserError as error:
        assert "gives </s> no probability" in str(error) and min(expected.values()) == math.inf
        return
    found = Paths.of(grammar, backoff).all(labels, 4)
    assert found == pytest.approx(expected, abs=1e-3)
    if "prefixes" in kinds:
        return  # from 'b c', which has no 'a', their G does not come to the history 'c a', though 'c a b' is an n-gram
    sentences = [sentence for sentence in found if len(sentence) < 4]
    scores, _, unknown = lm.sentence_scores(model, [[words[i] for i in sentence] for sentence in sentences])
    for sentence, score, left_out in zip(sentences, scores, unknown):
        assert left_out or -score * math.log(10) == pytest.approx(theirs.defined(sentence), abs=1e-3), sentence


def test_pruned_arpa_falls_to_shorter_histories(tmp_path):
    """b has no continuation and c no back-off state: histories without a state go on at the longest that has one."""
    (tmp_path / "x").write_text(ARPA)
    model = lm.read_arpa(tmp_path / "x")
    words = words_table(["a", "b", "c"])
    fst, _ = lm.make_grammar(model, words)
    ids = {w: i for i, w in enumerate(words)}
    ln10 = math.log(10)
    for sentence, expected in ((["a", "b"], 0.2 + 0.1 + 0.5 + 0.4), (["c"], 0.2 + 0.8 + 0.5),
                               (["c", "b", "b"], 0.2 + 0.8 + 0.7 + 0.1 + 0.7 + 0.4)):
        assert best_cost(fst, [ids[w] for w in sentence], ids["#0"]) == pytest.approx(expected * ln10, abs=1e-4)


def test_a_sentence_begins_at_the_history_of_its_mark(tmp_path):
    """Where no n-gram begins with <s>, a sentence pays its back-off weight nevertheless, as with Kaldi's arpa2fst."""
    (tmp_path / "x").write_text(ARPA.replace("-0.2\t<s> a\t-0.4\n", "").replace("-0.1\t<s> a b\n", "")
                                .replace("2=3", "2=2").replace("3=1", "3=0"))
    words = words_table(["a", "b", "c"])
    fst, _ = lm.make_grammar(lm.read_arpa(tmp_path / "x"), words)
    assert best_cost(fst, [3], 4) == pytest.approx((0.2 + 0.8 + 0.5) * math.log(10), abs=1e-4)


def test_words_that_never_come(tmp_path, capsys):
    """-99 costs as much as it says, and -inf (of which kaldilm knows nothing, but Kaldi's arpa2fst) cannot be."""
    (tmp_path / "x").write_text(ARPA.replace("-0.8\tc", "-99\tc").replace("-0.7\tb", "-inf\tb"))
    model, words = lm.read_arpa(tmp_path / "x"), words_table(["a", "b", "c"])
    fst, _ = lm.make_grammar(model, words)
    assert best_cost(fst, [3], 4) == pytest.approx((0.2 + 99 + 0.5) * math.log(10), abs=1e-3)
    assert best_cost(fst, [2], 4) == math.inf
    assert best_cost(fst, [1, 2], 4) == pytest.approx((0.2 + 0.1 + 0.5 + 0.4) * math.log(10), abs=1e-4)
    assert lm.sentence_scores(model, [["b"], ["c"]])[0].tolist() == [-math.inf, pytest.approx(-0.2 - 99 - 0.5)]
    assert lm.perplexity(model, [["b"]])[0] == math.inf
    histories = Histories.of(model, words)
    said = [histories.step(histories.start, np.array([word]))[1][0] for word in (1, 2, 3)]
    assert said == pytest.approx([0.2 * math.log(10), 1e9, (0.2 + 99) * math.log(10)], abs=1)


@pytest.mark.parametrize("old, new, told", [
    ("<s>", "<S>", "no <s> among its unigrams"),
    ("</s>", "</S>", "gives </s> no probability"),
    ("\tc", "\t<eps>", "has the word <eps>"),
    ("\tc", "\t#0", "has the word #0"),
])
def test_models_without_a_grammar(tmp_path, old, new, told):
    (tmp_path / "x").write_text(ARPA.replace(old, new))
    with pytest.raises(UserError, match=told):
        lm.make_grammar(lm.read_arpa(tmp_path / "x"), words_table(["a", "b", "c"]))


def test_words_that_the_lang_lacks():
    model = lm.estimate(SENTENCES, 3)
    fst, missing = lm.make_grammar(model, words_table(["a", "b"]))
    assert missing == ["c"]
    assert set(fst.ilabel.tolist()) <= {1, 2, 3}
    assert best_cost(fst, [1, 2], 3) < math.inf
    with pytest.raises(UserError, match="share no word"):
        lm.make_grammar(model, words_table(["x", "y"]))
    with pytest.raises(UserError, match="has no #0"):
        lm.make_grammar(model, ["<eps>", "a"])


# -------------------------------------------------------------------------------------------------------------- verbs

def test_verbs(tmp_path, capsys):
    lang = tmp_path / "lang"
    lang.mkdir()
    words = words_table(["<unk>", "a", "b", "c", "d"])
    (lang / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(words)))
    (lang / "oov.txt").write_text("<unk>\n")
    (tmp_path / "text").write_text("".join(f"utt{i} {line}\n" for i, line in enumerate(TEXT)))
    (tmp_path / "plain").write_text("".join(f"{line}\n" for line in TEXT))
    arpa = tmp_path / "lm.arpa.gz"
    for name in ("text", "plain"):
        assert main(["train-lm", "--order", "2", "--words", str(lang / "words.txt"), "--test", str(tmp_path / "plain"),
                     str(tmp_path / name), str(arpa)]) == 0
        out = capsys.readouterr().out
        assert "8 sentences, 4 words" in out and out.count("perplexity") == 2
    model = lm.read_arpa(arpa)
    assert "d" in model.words and "<unk>" not in model.words and "utt0" not in model.words
    assert main(["make-grammar", str(arpa), str(lang)]) == 0
    assert (lang / "G.fst").exists()
    assert main(["make-grammar", str(tmp_path / "none"), str(lang)]) == 1
    capsys.readouterr()
    (tmp_path / "x.arpa").write_text(ARPA.replace("a b", "a B").replace("\tb", "\tB"))  # <s> a B, a B, B </s>, B
    assert main(["make-grammar", str(tmp_path / "x.arpa"), str(lang)]) == 0
    err = capsys.readouterr().err
    assert f"1 words are not in {lang / 'words.txt'} (first: B); 4 n-grams with them are left out" in err
    assert f"lacks 2 words of {lang / 'words.txt'}, which will not be recognised (first: b, d)" in err
    (tmp_path / "text").write_text("utt1 a b\nutt2 a zebra\n")
    assert main(["train-lm", "--words", str(lang / "words.txt"), str(tmp_path / "text"), str(arpa)]) == 1
    assert f"text: utt2 has the word 'zebra', which {lang}/words.txt lacks" in capsys.readouterr().err
    assert main(["train-lm", "--words", str(lang / "words.txt"), "--map-oov", "<unk>", str(tmp_path / "text"),
                 str(arpa)]) == 0
    (tmp_path / "text").write_text("")
    assert main(["train-lm", str(tmp_path / "text"), str(arpa)]) == 1
    assert "holds no sentence" in capsys.readouterr().err
    (tmp_path / "text").write_bytes(b"utt1 caf\xe9\n")
    assert main(["train-lm", str(tmp_path / "text"), str(arpa)]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_marks_of_sentences_are_no_words(tmp_path, capsys):
    """Each verb that reads text, with and without a vocabulary, refuses them by their line."""
    (tmp_path / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(words_table(["<unk>", "a", "b"]))))
    (tmp_path / "oov.txt").write_text("<unk>\n")
    (tmp_path / "plain").write_text("a b\nb a a\n")
    arpa, words = str(tmp_path / "lm.arpa"), str(tmp_path / "words.txt")
    assert main(["train-lm", str(tmp_path / "plain"), arpa]) == 0
    for text, told in (("a b\n<s> a b </s>\n", "line 2 has '<s>'"), ("a\nb </s>\n", "line 2 has '</s>'"),
                       ("<s> a\n", "line 1 has '<s>'"), ("a #0\n", "line 1 has '#0'"), ("<eps> a\n", "'<eps>'")):
        (tmp_path / "marked").write_text(text)
        for verb in (["train-lm"], ["train-lm", "--words", words], ["train-lm", "--words", words, "--map-oov", "<unk>"],
                     ["train-lm", "--test", str(tmp_path / "marked")], ["perplexity"]):
            last = [arpa, str(tmp_path / "marked")] if verb == ["perplexity"] else [
                str(tmp_path / ("plain" if "--test" in verb else "marked")), str(tmp_path / "x.arpa")]
            capsys.readouterr()
            assert main([*verb, *last]) == 1
            assert f"{tmp_path}/marked: " in (said := capsys.readouterr().err) and told in said


def test_hash_words_and_unknown_words(tmp_path, capsys):
    """A vocabulary has '#metoo'; '#0' is none of it; unknown words are counted and written as the given word."""
    table = [*words_table(["#metoo", "<unk>", "b", "é"]), "#nonterm:name"]
    (tmp_path / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(table)), encoding="utf-8")
    (tmp_path / "oov.txt").write_text("<unk>\n")
    text, arpa, words = tmp_path / "lm_text", tmp_path / "x.arpa", ["--words", str(tmp_path / "words.txt")]
    text.write_text("b #metoo\nb é <unk>\n", encoding="utf-8")
    assert main(["train-lm", "--order", "1", *words, str(text), str(arpa)]) == 0
    assert set(lm.read_arpa(arpa).words) == {"<s>", "</s>", "#metoo", "<unk>", "b", "é"}
    text.write_text("b yak\nb zebra é zebra e\u0301\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["train-lm", *words, str(text), str(arpa)]) == 1
    assert "line 1 has the word 'yak' (and 2 more words), which" in capsys.readouterr().err
    assert main(["train-lm", "--order", "1", *words, "--map-oov", "<unk>", str(text), str(arpa)]) == 0
    said = capsys.readouterr().err
    assert f"{text}: 4 words (3 different; most often: zebra 2, yak 1, e\u0301 1) are not in" in said
    assert "1 different words, as 'e\u0301', are not in" in said and "same letters in Unicode's form NFC" in said
    mapped = arpa.read_bytes()
    text.write_text("b <unk>\nb <unk> é <unk> <unk>\n", encoding="utf-8")
    assert main(["train-lm", "--order", "1", *words, str(text), str(arpa)]) == 0 and arpa.read_bytes() == mapped
    assert main(["train-lm", *words, "--map-oov", "<UNK>", str(text), str(arpa)]) == 1
    assert "--map-oov <UNK>: " in capsys.readouterr().err
    text.write_text("b e\u0301\n", encoding="utf-8")
    assert main(["train-lm", *words, str(text), str(arpa)]) == 1
    assert "is there with the same letters in Unicode's form NFC" in capsys.readouterr().err


def test_what_is_taken_for_ids_is_said(tmp_path, capsys):
    (tmp_path / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(words_table(["a", "b"]))))
    (tmp_path / "lm_text").write_text("zebra a b\nyak b\n")
    command = ["train-lm", "--words", str(tmp_path / "words.txt"), str(tmp_path / "lm_text"), str(tmp_path / "x.arpa")]
    assert main(command) == 0
    assert "lm_text: what a line begins with is taken for an utterance-id, as 'zebra'" in capsys.readouterr().err
    assert main([*command, "--ids", "false"]) == 1


def test_blanks_that_part_no_words(tmp_path, capsys):
    (tmp_path / "lm_text").write_text("10\xa0km a\na a\n", encoding="utf-8")
    assert main(["train-lm", "--order", "1", str(tmp_path / "lm_text"), str(tmp_path / "x.arpa")]) == 0
    assert "1 different words hold characters that cannot be seen" in (said := capsys.readouterr()).err
    assert "line 1: '10\\xa0km' with U+00A0 NO-BREAK SPACE" in said.err and "2 sentences, 2 words" in said.out
    assert "\t10\xa0km\n" in (tmp_path / "x.arpa").read_text(encoding="utf-8")


def test_perplexity_of_any_arpa(tmp_path, capsys):
    (tmp_path / "text").write_text("utt1 a b\nutt2 zebra a\n")
    lm.write_arpa(tmp_path / "lm.arpa.gz", lm.estimate(SENTENCES, 2))
    assert main(["perplexity", str(tmp_path / "lm.arpa.gz"), str(tmp_path / "text")]) == 0
    value, tokens, unknown = lm.perplexity(lm.read_arpa(tmp_path / "lm.arpa.gz"), [["a", "b"], ["zebra", "a"]])
    out = capsys.readouterr().out
    assert f"lm.arpa.gz: 2-gram, perplexity {value:.2f} of {tmp_path}/text over 5 words" in out
    assert (tokens, unknown) == (5, 1)
    assert "1 unknown words left out" in out


def test_grammar_file_is_read_by_kaldifst(tmp_path):
    import kaldifst

    fst, _ = lm.make_grammar(lm.estimate(SENTENCES, 3), words_table(["a", "b", "c"]))
    write_fst(tmp_path / "G.fst", fst)
    theirs = kaldifst.StdVectorFst.read(str(tmp_path / "G.fst"))
    assert theirs.num_states == fst.num_states and theirs.start == fst.start


@pytest.mark.parametrize("order", [2, 3])
def test_pruning_leaves_out_what_relative_entropy_says(order):
    """Of every n-gram of the highest order, by the sum over all words of the model with and without it."""
    whole = lm.estimate(SENTENCES, order, ["x"])
    size, top = len(whole.words), whole.ids_of(order)
    padded = [[0, *(whole.words.index(w) for w in sentence), 1] for sentence in SENTENCES]
    counts = {}
    for row in padded:
        for at in range(len(row) - order + 2):
            counts[tuple(row[at:at + order - 1])] = counts.get(tuple(row[at:at + order - 1]), 0) + 1
    total = sum(counts.values())

    def distribution(history, own):  # of every word, where the n-grams of a history are ``own``
        words = whole.words
        below = {w: 10 ** log10_of(whole, [words[h] for h in history[1:]], words[w]) for w in range(1, size)}
        free = (1 - sum(own.values())) / (1 - sum(below[w] for w in own))
        return {w: own.get(w, free * below[w]) for w in range(1, size)}

    grows = {}
    for *history, word in top.tolist():
        own = {w: 10 ** log10_of(whole, [whole.words[h] for h in history], whole.words[w])
               for *other, w in top.tolist() if other == history}
        p = distribution(history, own)
        without = distribution(history, {w: value for w, value in own.items() if w != word})
        entropy = sum(p[w] * math.log(p[w] / without[w]) for w in p if p[w] > 0)
        grows[(*history, word)] = math.expm1(counts[tuple(history)] / total * entropy)
    threshold = float(np.median(list(grows.values()))) * (1 + 1e-9)
    pruned = lm.estimate(SENTENCES, order, ["x"], threshold)
    assert {tuple(row) for row in pruned.ids_of(order).tolist()} == {n for n, g in grows.items() if g >= threshold}
    assert 0 < len(pruned.orders[-1].key) < len(top)
    for history in histories(pruned):
        assert sum(10 ** log10_of(pruned, history, word) for word in pruned.words[1:]) == pytest.approx(1, abs=1e-6)
    assert (lm.estimate(SENTENCES, order, ["x"], 0.0).orders[-1].key == whole.orders[-1].key).all()


def test_pruning_by_the_verb(tmp_path, capsys):
    text = tmp_path / "lm_text"
    text.write_text("\n".join(" ".join(sentence) for sentence in SENTENCES) + "\n")
    assert main(["train-lm", "--order", "2", "--prune", "0.5", str(text), str(tmp_path / "a.gz")]) == 0
    assert lm.read_arpa(tmp_path / "a.gz").orders[0].key.size > 0
    assert main(["train-lm", "--prune", "1", str(text), str(tmp_path / "b.gz")]) == 1
    assert "--prune 1: must be at least 0 and less than 1" in capsys.readouterr().err
