"""Lang directories against hand-made expectations, kaldifst, and (where there is one) a real Kaldi."""
import numpy as np
import pytest
from builders.graphs import make_dict

from essence_kd.cli.main import main
from essence_kd.hmm import fst as F
from essence_kd.hmm import lang as L
from essence_kd.io.errors import UserError


@pytest.fixture
def lang(tmp_path):
    return L.prepare_lang(make_dict(tmp_path / "dict"), tmp_path / "lang")


def paths(fst, labels, limit=200):
    """Every (input string, cost) with this output string: exhaustive search over the arrays."""
    out, stack = [], [(fst.start, 0, (), 0.0)]
    arcs = [[] for _ in range(fst.num_states)]
    for row in zip(fst.src.tolist(), fst.dst.tolist(), fst.ilabel.tolist(), fst.olabel.tolist(), fst.weight.tolist()):
        arcs[row[0]].append(row)
    while stack and len(out) < limit:
        state, used, symbols, cost = stack.pop()
        if used == len(labels) and np.isfinite(fst.final[state]):
            out.append((symbols, cost + float(fst.final[state])))
        for _, dst, ilabel, olabel, weight in arcs[state]:
            if olabel and (used == len(labels) or olabel != labels[used]):
                continue
            if len(symbols) < 40:
                stack.append((dst, used + bool(olabel), symbols + ((ilabel,) if ilabel else ()), cost + weight))
    return out


def test_files(lang):
    symbols = (lang.path / "phones.txt").read_text().split("\n")
    assert symbols[:7] == ["<eps> 0", "SIL 1", "SIL_B 2", "SIL_E 3", "SIL_I 4", "SIL_S 5", "SPN 6"]
    assert (lang.path / "words.txt").read_text() == \
        "<eps> 0\n<unk> 1\na 2\nread 3\nreader 4\nred 5\n#0 6\n<s> 7\n</s> 8\n"
    assert (lang.path / "oov.int").read_text() == "1\n"
    assert [lang.phones[p] for p in lang.disambig] == ["#0", "#1", "#2", "#3"]
    boundary = dict(line.split() for line in (lang.path / "phones" / "word_boundary.txt").read_text().splitlines())
    assert (boundary["SIL"], boundary["R_B"], boundary["D_E"], boundary["IY_I"], boundary["AX_S"]) == \
        ("nonword", "begin", "end", "internal", "singleton")
    assert lang.phone_kind[lang.phone_ids["AX_S"]] == 4 and lang.phone_kind[lang.phone_ids["SIL"]] == 0
    align = (lang.path / "phones" / "align_lexicon.txt").read_text().splitlines()
    assert "reader reader R_B IY_I D_I ER_E" in align and "<eps> <eps> SIL" in align
    assert (lang.path / "phones" / "extra_questions.txt").read_text().startswith("AX_B AX_E AX_I AX_S ER_B")
    assert len(lang.topo[lang.phone_ids["SIL"]]) == 5 and len(lang.topo[lang.phone_ids["R_B"]]) == 3


def test_every_phones_file_has_its_ids(lang):
    for text in (lang.path / "phones").glob("*.txt"):
        ids = text.with_suffix(".int")
        if text.name in ("align_lexicon.txt", "wdisambig.txt"):
            continue
        a, b = text.read_text().split(), ids.read_text().split()
        assert len(a) == len(b), text.name
        for symbol, number in zip(a, b):
            assert number == symbol or lang.phones[int(number)] == symbol, text.name


def test_disambiguation():
    prons = [("A",), ("A", "B"), ("A", "B"), ("C",), ("A", "B", "C")]
    assert L.add_disambig(prons) == ([("A", "#1"), ("A", "B", "#1"), ("A", "B", "#2"), ("C",), ("A", "B", "C")], 2)
    assert L.add_disambig([("A", "B"), ("C",)]) == ([("A", "B"), ("C",)], 0)


def test_lexicon_paths(lang):
    """Each sentence has its pronunciations times the choices of silence, with the right probabilities."""
    fst = F.read_fst(lang.path / "L.fst")
    found = dict(paths(fst, [lang.word_ids["a"], lang.word_ids["read"]]))
    name = lang.phone_ids
    silence = (name["SIL"],)
    spellings = [(name["R_B"], name["EH_I"], name["D_E"]), (name["R_B"], name["IY_I"], name["D_E"])]
    expected = {s0 + (name["AX_S"],) + s1 + word + s2 for word in spellings
                for s0 in ((), silence) for s1 in ((), silence) for s2 in ((), silence)}
    assert set(found) == expected
    assert all(cost == pytest.approx(-3 * np.log(0.5), abs=1e-5) for cost in found.values())
    disambiguated = paths(F.read_fst(lang.path / "L_disambig.fst"), [lang.word_ids["red"]])
    assert len({symbols for symbols, _ in disambiguated}) == 4
    for symbols, _ in disambiguated:
        assert name["#1"] in symbols  # red and read share R EH D
        assert symbols.count(name["SIL"]) == symbols.count(name["#3"])


def test_probabilities_and_silence_options(tmp_path):
    make_dict(tmp_path / "dict", **{"lexiconp.txt": "a 1.0 AX\nb 0.25 D\nb 0.75 R\n"})
    lang = L.prepare_lang(tmp_path / "dict", tmp_path / "lang", sil_prob=0.2, num_sil_states=3, num_nonsil_states=1)
    found = dict(paths(F.read_fst(lang.path / "L.fst"), [lang.word_ids["b"]]))
    assert found[(lang.phone_ids["D_S"],)] == pytest.approx(-np.log(0.25 * 0.8 * 0.8), abs=1e-5)
    assert found[(lang.phone_ids["SIL"], lang.phone_ids["R_S"])] == pytest.approx(-np.log(0.75 * 0.2 * 0.8), abs=1e-5)
    assert len(lang.topo[lang.phone_ids["SIL"]]) == 3 and len(lang.topo[lang.phone_ids["R_S"]]) == 1
    without = L.prepare_lang(tmp_path / "dict", tmp_path / "lang0", sil_prob=0.0)
    assert paths(F.read_fst(without.path / "L.fst"), [without.word_ids["a"]]) == [((without.phone_ids["AX_S"],), 0.0)]


def test_oov_is_added_when_missing(tmp_path, capsys):
    lang = L.prepare_lang(make_dict(tmp_path / "dict", **{"lexicon.txt": "a AX\n"}), tmp_path / "lang")
    assert lang.words[lang.oov] == "<unk>"
    assert "added as '<unk> SPN'" in capsys.readouterr().err
    lang = L.prepare_lang(tmp_path / "dict", tmp_path / "lang", oov="a")
    assert lang.words[lang.oov] == "a" and "<unk>" not in lang.words


def test_no_phone_for_unknown_words(tmp_path, capsys):
    """They are not taken for silence: there is no word for them, and it is said what to add where."""
    folder = make_dict(tmp_path / "dict", **{"lexicon.txt": "a AX\n", "silence_phones.txt": "SIL\n"})
    lang = L.prepare_lang(folder, tmp_path / "lang")
    assert lang.oov == -1 and lang.words == ["<eps>", "a", "#0", "<s>", "</s>"]
    assert not (tmp_path / "lang" / "oov.txt").exists()
    assert "dict: the lexicon has no word for unknown words" in capsys.readouterr().err
    with pytest.raises(UserError, match="add '<unk> SPN' to lexicon.txt .* and SPN to silence_phones.txt"):
        L.prepare_lang(folder, tmp_path / "lang", oov="<unk>")


@pytest.mark.parametrize("word", ["#metoo", "#", "#1st", "-", "a(2)", "<unk", "naïve", "می\u200cخواهم"])
def test_words_that_look_like_marks(tmp_path, word):
    lang = L.prepare_lang(make_dict(tmp_path / "dict", **{"lexicon.txt": f"a AX\n{word} D AX\n<unk> SPN\n"}),
                          tmp_path / "lang")
    assert word in lang.word_ids and L.load_lang(tmp_path / "lang").word_ids == lang.word_ids


@pytest.mark.parametrize("changes, told", [
    ({"lexicon.txt": ""}, "empty"),
    ({"lexicon.txt": "\n \n"}, "empty"),
    ({"lexicon.txt": None}, "no such file"),
    ({"lexicon.txt": "a AX\nb\n"}, "line 2: word 'b' has no phones"),
    ({"lexicon.txt": "a AX\nb QQ\n"}, "line 2: word 'b' has the phone 'QQ'"),
    ({"lexicon.txt": "a AX\nb D\na AX\n"}, "line 3: word 'a' has the same pronunciation as in line 1"),
    ({"lexicon.txt": "<s> AX\n"}, "'<s>' cannot be a word"),
    ({"lexicon.txt": "#0 AX\n"}, "'#0' cannot be a word"),
    ({"lexicon.txt": "a AX\n#12 AX\n"}, "line 2: '#12' cannot be a word"),
    ({"lexicon.txt": "\ufeffa AX\n"}, "line 1 has a byte order mark"),
    ({"lexicon.txt": "b D\n10\xa0a AX\n"}, "line 2 has '10\\\\xa0a' with the character U+00A0 NO-BREAK SPACE"),
    ({"lexicon.txt": "a\u200b AX\n"}, "U+200B ZERO WIDTH SPACE"),
    ({"nonsilence_phones.txt": "AX\u3000D\n"}, "line 1 has 'AX\\\\u3000D'"),
    ({"nonsilence_phones.txt": "AX\nT_S\n"}, "'T_S' cannot be a phone"),
    ({"silence_phones.txt": "SIL\nNOISE_E\n"}, "'NOISE_E' cannot be a phone"),
    ({"lexiconp.txt": "a 1.5 AX\n"}, "probability 1.5"),
    ({"lexiconp.txt": "a AX\n"}, "no probability"),
    ({"nonsilence_phones.txt": ""}, "holds no phone"),
    ({"nonsilence_phones.txt": "AX\nSIL\n"}, "phone SIL is there already"),
    ({"nonsilence_phones.txt": "AX\nAX\n"}, "phone AX is there already"),
    ({"nonsilence_phones.txt": "#1\n"}, "reserved"),
    ({"silence_phones.txt": None}, "no such file"),
    ({"optional_silence.txt": "SIL SPN\n"}, "exactly one phone"),
    ({"optional_silence.txt": "AX\n"}, "AX is not in silence_phones.txt"),
    ({"extra_questions.txt": "ZZ\n"}, "'ZZ'"),
])
def test_bad_dictionaries(tmp_path, changes, told):
    with pytest.raises(UserError, match=told.replace("(", r"\(").replace("+", r"\+")) as caught:
        L.prepare_lang(make_dict(tmp_path / "dict", **changes), tmp_path / "lang")
    assert str(tmp_path / "dict") in str(caught.value)
    assert not (tmp_path / "lang").exists()


def test_bad_encoding_and_verb(tmp_path, capsys):
    make_dict(tmp_path / "dict")
    (tmp_path / "dict" / "lexicon.txt").write_bytes(b"caf\xe9 AX\n")
    assert main(["make-lang", str(tmp_path / "dict"), str(tmp_path / "lang")]) == 1
    assert "not UTF-8 at byte 3" in capsys.readouterr().err
    assert main(["make-lang", str(tmp_path / "none"), str(tmp_path / "lang")]) == 1
    make_dict(tmp_path / "dict")
    assert main(["make-lang", "--sil-prob", "1", str(tmp_path / "dict"), str(tmp_path / "lang")]) == 1
    assert main(["make-lang", str(tmp_path / "dict"), str(tmp_path / "lang")]) == 0
    assert "5 words, 10 silence and 24 other phones" in capsys.readouterr().out


def test_a_failure_leaves_the_old_directory(tmp_path):
    L.prepare_lang(make_dict(tmp_path / "dict"), tmp_path / "lang")
    before = (tmp_path / "lang" / "words.txt").read_text()
    with pytest.raises(UserError):
        L.prepare_lang(make_dict(tmp_path / "dict", **{"lexicon.txt": "a QQ\n"}), tmp_path / "lang")
    assert (tmp_path / "lang" / "words.txt").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dict", "lang"]


def test_topology_text_round_trip():
    entries = [([3, 4], L.linear_topology(3)), ([1], L.silence_topology(5))]
    back = L.parse_topology(L.format_topology(entries))
    assert back[3] == back[4] == L.linear_topology(3)
    assert back[1] == L.silence_topology(5)
    for state, arcs in enumerate(back[1]):
        assert sum(p for _, p in arcs) == pytest.approx(1.0)
        assert [d for d, _ in arcs] == ([0, 1, 2, 3] if state == 0 else [4, 5] if state == 4 else [1, 2, 3, 4])


@pytest.mark.parametrize("text", ["", "<Topology> </Topology>", "<State> 0 <ForwardPdfClass> 0 </State>",
                                  "<State> 0 <PdfClass> 1 </State>", "<State> 1 <PdfClass> 1 </State>",
                                  "<State> 0 <PdfClass> 0 <Transition> x 1 </State>", "<State> 0 <PdfClass> 0"])
def test_bad_topologies(text):
    if text.startswith("<State>"):
        text = f"<TopologyEntry> <ForPhones> 1 </ForPhones> {text} <State> 1 </State> </TopologyEntry>"
    with pytest.raises(UserError):
        L.parse_topology(text)


def test_load_refuses_what_does_not_fit(lang):
    (lang.path / "topo").write_text(L.format_topology([([1, 2], L.linear_topology(3))]))
    with pytest.raises(UserError, match="no topology"):
        L.load_lang(lang.path)
    for damaged, said in ((b"\xab\xff", "topo: line 1 .* is not UTF-8"), (None, "topo: no such file; make the lang")):
        (lang.path / "topo").unlink()
        if damaged:
            (lang.path / "topo").write_bytes(damaged)
        with pytest.raises(UserError, match=said):
            L.load_lang(lang.path)
    (lang.path / "words.txt").write_text("a 0\n")
    with pytest.raises(UserError, match="id 0 must be <eps>"):
        L.load_lang(lang.path)
    with pytest.raises(UserError, match="no such lang"):
        L.load_lang(lang.path / "nothing")
