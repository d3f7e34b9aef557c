"""N-gram models against hand calculation, brute force, and kaldilm."""
import gzip
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.cli.main import main
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


@pytest.mark.parametrize("old, new, told", [
    ("\\data\\", "data", "no .data. line"),
    ("ngram 2=3", "ngram 2=4", "4 2-grams announced, 3 found"),
    ("ngram 2=3", "ngram 2=x", "expected 'ngram N=COUNT'"),
    ("-0.3\ta b\t-0.5", "-0.3\ta q\t-0.5", "the word 'q' is not among the unigrams"),
    ("-0.3\ta b\t-0.5", "-0.3x\ta b\t-0.5", "no 2-gram"),
    ("-0.3\ta b\t-0.5", "-0.3\ta", "no 2-gram"),
    ("-0.3\ta b\t-0.5", "nan\ta b\t-0.5", "'nan\ta b\t-0.5' has no probability"),
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

def best_cost(fst, labels, backoff):
    """Least cost of a sentence in G when #0 may be taken freely (all in plain dictionaries)."""
    arcs = {}
    for row in zip(fst.src.tolist(), fst.dst.tolist(), fst.ilabel.tolist(), fst.olabel.tolist(), fst.weight.tolist()):
        arcs.setdefault(row[0], []).append(row)

    def close(costs):
        queue = list(costs)
        while queue:
            state = queue.pop()
            for _, dst, ilabel, olabel, weight in arcs.get(state, []):
                if ilabel == backoff and costs[state] + weight < costs.get(dst, math.inf) - 1e-9:
                    assert olabel == 0
                    costs[dst] = costs[state] + weight
                    queue.append(dst)
        return costs

    costs = close({fst.start: 0.0})
    for label in labels:
        after = {}
        for state, cost in costs.items():
            for _, dst, ilabel, olabel, weight in arcs.get(state, []):
                if ilabel == label:
                    assert olabel == label
                    after[dst] = min(after.get(dst, math.inf), cost + weight)
        costs = close(after)
    return min((cost + float(fst.final[state]) for state, cost in costs.items()), default=math.inf)


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


def kaldilm_grammar(tmp_path, arpa, words):
    """kaldilm's G in its text form; in a process of its own, since it must not be loaded before kaldifst."""
    (tmp_path / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(words)))
    code = ("import sys, kaldilm; print(kaldilm.arpa2fst(input_arpa=sys.argv[1], disambig_symbol='#0', "
            "read_symbol_table=sys.argv[2]))")
    return subprocess.run([sys.executable, "-c", code, str(arpa), str(tmp_path / "words.txt")], check=True,
                          capture_output=True, text=True).stdout


@pytest.mark.parametrize("order, extra", [(1, []), (2, ["x"]), (3, ["x"]), (4, [])])
def test_grammar_equals_kaldilms(tmp_path, order, extra):
    from essence_kd.hmm.fst import make_fst

    rng = np.random.default_rng(order)
    sentences = [[f"w{i}" for i in rng.integers(0, 12, rng.integers(1, 7))] for _ in range(60)]
    model = lm.estimate(sentences, order, extra)
    lm.write_arpa(tmp_path / "x.arpa", model)
    words = words_table([w for w in model.words if w not in (lm.BOS, lm.EOS)])
    ours, _ = lm.make_grammar(lm.read_arpa(tmp_path / "x.arpa"), words)
    rows, final = [], {}
    for line in kaldilm_grammar(tmp_path, tmp_path / "x.arpa", words).splitlines():
        fields = line.split()
        if len(fields) >= 4:
            rows.append((*map(int, fields[:4]), float(fields[4]) if len(fields) > 4 else 0.0))
        elif fields:
            final[int(fields[0])] = float(fields[1]) if len(fields) > 1 else 0.0
    size = 1 + max(max(r[0], r[1]) for r in rows)
    theirs = make_fst(*np.array(rows).T, final=[final.get(s, np.inf) for s in range(size)], start=rows[0][0])
    assert abs(ours.num_arcs - theirs.num_arcs) <= 1  # they keep a start state of their own for unigrams
    backoff = words.index("#0")
    for sentence in sentences[:30] + [["w1"] * 5, []]:
        labels = [words.index(w) for w in sentence]
        assert best_cost(ours, labels, backoff) == pytest.approx(best_cost(theirs, labels, backoff), abs=1e-3)


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
    assert f"{text}: 4 words (3 different; most often: zebra 2, yak 1, e\u0301 1) are not in" in capsys.readouterr().err
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
