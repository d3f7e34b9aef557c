"""Word errors: Kaldi's counts, Hub5 rules, and agreement with NIST's sclite wherever it is installed."""
from __future__ import annotations

import random
from pathlib import Path

import kaldialign
import pytest

from essence_kd.cli.main import main
from essence_kd.io.errors import UserError
from essence_kd.score import hub5, wer
from essence_kd.score.glm import DEFAULT_GLM, Filter, is_noise, load_filters, parse_glm, spell
from essence_kd.score.alternatives import align_networks, count_steps, parse_network

SCLITE = hub5.find_sclite()

GLM = """;; rules of the test
* name "test"
* format = 'NIST1'
* case_sensitive = 'F'
UH => %HESITATION / [ ] __ [ ]
UM => %HESITATION / [ ] __ [ ]
[CAN NOT] => [CANNOT] / [ ] __ [ ]
GONNA => [GOING TO] / [ ] __ [ ] ;; said both ways
;; INPUT_DEPENDENT_APPLICATION = "ctm"
[HE'S] => [{HE IS / HE HAS / HE'S}] / [ ] __ [ ]
"""
STM = """;; LABEL "O" "Overall" "Overall"
sw1 A sw1_A 0.00 2.00 <O> Hello (%hesitation) there { going to / gonna } be
sw1 A sw1_A 2.50 4.00 <O> he is { um / uh / @ } well-known wo- (you know) okay
sw1 A sw1_A 4.50 5.00 <O> IGNORE_TIME_SEGMENT_IN_SCORING
sw1 A sw1_A 5.50 8.00 <O> we { can not / can't { do / did } it } yes
sw1 B sw1_B 0.00 3.00 <O> nobody hears (this)
en2 A en2_A 0.00 3.00 Right UH right
"""
CTM = """sw1 A 0.10 0.20 hello 0.9
sw1 A 0.40 0.20 there 0.9
sw1 A 0.70 0.20 gonna 0.9
sw1 A 1.00 0.20 be 0.9
sw1 A 2.55 0.20 he's 0.9
sw1 A 2.80 0.20 well 0.9
sw1 A 3.00 0.20 known 0.9
sw1 A 3.20 0.20 world 0.9
sw1 A 3.50 0.20 oh 0.9
sw1 A 4.60 0.20 noisy 0.9
sw1 A 5.70 0.20 we 0.9
sw1 A 6.00 0.20 can't 0.9
sw1 A 6.30 0.20 did 0.9
sw1 A 6.60 0.20 it 0.9
sw1 A 7.60 0.20 yes 0.9
sw1 A 9.60 0.20 late 0.9
en2 A 0.20 0.20 right 0.9
en2 A 0.50 0.20 Um 0.9
en2 A 0.80 0.20 write 0.9
"""


def counts(words, ins, dels, sub):
    return wer.Counts(words, ins, dels, sub, 1, int(ins + dels + sub > 0))


@pytest.fixture
def hub5_files(tmp_path):
    for name, text in (("a.glm", GLM), ("a.stm", STM), ("a.ctm", CTM)):
        (tmp_path / name).write_text(text)
    return tmp_path


# ---- texts, as compute-wer counts them

@pytest.mark.parametrize("ref, hyp, expected", [
    ("a b c", "a b c", (3, 0, 0, 0)),
    ("a b c", "a x c", (3, 0, 0, 1)),
    ("a b c", "", (3, 0, 3, 0)),
    ("", "a b", (0, 2, 0, 0)),
    ("a b c d", "b c d e", (4, 1, 1, 0)),
    ("a b c", "a c", (3, 0, 1, 0)),
    ("A b", "a b", (2, 0, 0, 1)),  # Kaldi compares symbols: case matters
])
def test_counts_of_one_utterance(ref, hyp, expected):
    assert wer.count_errors(ref.split(), hyp.split()) == counts(*expected)


def test_wer_line_is_kaldis():
    assert wer.wer_line(wer.Counts(1000, 10, 20, 93)) == "%WER 12.30 [ 123 / 1000, 10 ins, 20 del, 93 sub ]"
    assert wer.ser_line(wer.Counts(utterances=3, wrong_utterances=1)) == "%SER 33.33 [ 1 / 3 ]"
    assert wer.Counts(0, 0, 0, 0).wer == 0.0
    assert wer.Counts(0, 2, 0, 0).wer == float("inf")


def test_missing_hypotheses_are_deletions(tmp_path, capsys):
    (tmp_path / "ref").write_text("a-1 one two three\na-2 four five\nb-1 six\n")
    (tmp_path / "hyp").write_text("a-1 one too three\nb-1\n")
    (tmp_path / "utt2spk").write_text("a-1 a\na-2 a\nb-1 b\n")
    status = main(["score", "--utt2spk", str(tmp_path / "utt2spk"), "--per-utt", str(tmp_path / "per_utt"),
                   str(tmp_path / "ref"), str(tmp_path / "hyp")])
    out, err = capsys.readouterr()
    assert status == 0
    assert out.splitlines() == ["%WER 66.67 [ 4 / 6, 0 ins, 3 del, 1 sub ]", "%SER 100.00 [ 3 / 3 ]",
                                "Scored 3 sentences, 1 not present in hyp.",
                                "%WER 60.00 [ 3 / 5, 0 ins, 2 del, 1 sub ] a",
                                "%WER 100.00 [ 1 / 1, 0 ins, 1 del, 0 sub ] b"]
    assert "1 reference utterances have no hypothesis" in err and "a-2" in err
    assert (tmp_path / "per_utt").read_text() == "a-1 3 0 0 1\na-2 2 0 2 0\nb-1 1 0 1 0\n"


@pytest.mark.parametrize("ref, hyp, words", [
    (b"a one\n", b"a one\nz two\n", "utterance 'z' is not in"),
    (b"a one\na two\n", b"a one\n", "a comes twice (line 2)"),
    (b"a one\n", b"a one\na one\n", "a comes twice (line 2)"),
    (b"a caf\xe9\n", b"a one\n", "line 1 (a) is not UTF-8"),
    (b"", b"", "holds no utterance"),
])
def test_bad_texts_are_refused_in_one_line(tmp_path, capsys, ref, hyp, words):
    (tmp_path / "ref").write_bytes(ref)
    (tmp_path / "hyp").write_bytes(hyp)
    assert main(["score", str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 1
    error = capsys.readouterr().err
    assert words in error and str(tmp_path) in error and len(error.splitlines()) == 1


def test_speakers_are_one_word(tmp_path, capsys):
    (tmp_path / "text").write_text("a one two\n")
    assert main(["score", "--utt2spk", str(tmp_path / "text"), str(tmp_path / "text"), str(tmp_path / "text")]) == 1
    assert "text: utterance 'a' has 'one two' after it, where one speaker is expected" in capsys.readouterr().err


def test_absent_file_and_mixed_formats_are_refused(tmp_path, capsys):
    assert main(["score", str(tmp_path / "nothing"), str(tmp_path / "hyp")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "a.stm"), str(tmp_path / "hyp")]) == 1
    assert "an STM reference goes with a CTM hypothesis" in capsys.readouterr().err


def test_alignment_agrees_with_the_counts():
    rng = random.Random(3)
    for _ in range(300):
        ref, hyp = ([rng.choice("abcd") for _ in range(rng.randint(0, 9))] for _ in range(2))
        pairs = wer.align(ref, hyp)
        assert [r for r, _ in pairs if r is not None] == ref
        assert [h for _, h in pairs if h is not None] == hyp
        assert sum(r != h for r, h in pairs) == wer.count_errors(ref, hyp).errors


# ---- networks: alternatives, optional words, fragments

@pytest.mark.parametrize("ref, hyp, expected", [
    ("a { b / c d } e", "a c d e", (4, 0, 0, 0)),
    ("a { b / c d } e", "a b e", (3, 0, 0, 0)),
    ("a { b / @ } e", "a e", (2, 0, 0, 0)),
    ("a { b / { c / d } e } f", "a d e f", (4, 0, 0, 0)),
    ("a (b) c", "a c", (3, 0, 0, 0)),  # a missing optional word counts as a correct one
    ("a (b) c", "a b c", (3, 0, 0, 0)),
    ("a (b) c", "a x c", (3, 0, 0, 1)),
    ("Hello There", "hello there", (2, 0, 0, 0)),
    ("th- that", "the that", (2, 0, 0, 0)),
    ("-ing that", "going that", (2, 0, 0, 0)),
    ("", "a", (0, 1, 0, 0)),
    ("a b", "", (2, 0, 2, 0)),
    ("he is", "{ he is / he has }", (2, 0, 0, 0)),
])
def test_counts_of_networks(ref, hyp, expected):
    assert count_steps(align_networks(parse_network(ref), parse_network(hyp))) == counts(*expected)


@pytest.mark.parametrize("text", ["a { b / c", "a } b", "a { b } c"])
def test_broken_alternations_are_refused(text):
    with pytest.raises(UserError, match="utterance 7.*[{}]|alternation"):
        parse_network(text, "utterance 7")


def test_linear_networks_cost_what_kaldialign_finds():
    rng = random.Random(5)
    for _ in range(300):
        ref, hyp = ([rng.choice("abcde") for _ in range(rng.randint(0, 12))] for _ in range(2))
        ours = count_steps(align_networks(parse_network(" ".join(ref)), parse_network(" ".join(hyp))))
        theirs = kaldialign.edit_distance(ref, hyp, sclite_mode=True)
        assert 3 * (ours.ins + ours.dels) + 4 * ours.sub == 3 * (theirs["ins"] + theirs["del"]) + 4 * theirs["sub"]


# ---- mapping rules

def test_rules_see_context_and_kind_of_input():
    ref, hyp = (Filter(parse_glm(GLM, kinds)) for kinds in (("stm", "ref"), ("ctm", "hyp")))
    assert ref("uh I can not gonna") == "%HESITATION I CANNOT GOING TO"
    assert ref("huh gonnas can notes") == "HUH GONNAS CAN NOTES"
    assert ref("he's well-known wo- -rd (you know)") == "HE'S WELL KNOWN WO- -RD (YOU) (KNOW)"
    assert hyp("he's") == "{HE IS / HE HAS / HE'S}"


def test_default_rules_make_hesitations_equal_and_optional():
    refs = {"u1": "well um I (uh) think huh so", "u2": "yes"}
    hyps = {"u1": "WELL uh I think so", "u2": "yes"}
    result = hub5.score_text(refs, hyps)
    assert result.total.errors == 0 and result.total.words == 8
    assert hub5.score_text({"u": "a b"}, {"u": "a uh b"}).total.ins == 1
    assert hub5.score_text({"u": "a b"}, {"u": "a uh th- <unk> [noise] b"}, drop_noise=True).total.errors == 0


@pytest.mark.parametrize("text, words", [
    ("UH %HESITATION\n", "no '=>'"), ("* format = 'NIST2'\n;; x\n", "NIST2"), ("[] => [a]\n", "empty left side"),
])
def test_bad_rules_are_refused(tmp_path, text, words):
    (tmp_path / "bad.glm").write_text(";; bad\n" + text)
    with pytest.raises(UserError, match=words) as error:
        load_filters(tmp_path / "bad.glm")
    assert "bad.glm: line" in str(error.value)


def test_noises_leave_the_hypothesis():
    words = "uh so [laughter] I- <unk> UM mean [NOISE] it".split()
    assert [w for w in words if not is_noise(w)] == ["so", "mean", "it"]


# ---- STM and CTM

@pytest.mark.parametrize("word, letters", [("i._b._m.", "i b m"), ("b._b._c.'s", "b b c's"), ("t._v.s", "t v's"),
                                           ("U._S.", "U S"), ("k.", "k"), ("etc.", "etc."), ("a.b.", "a.b."),
                                           ("it's", "it's"), ("s", "s")])
def test_acronyms_are_spelled(word, letters):
    assert spell(word) == letters.split()


@pytest.mark.parametrize("scorer", ["native", pytest.param("sclite", marks=pytest.mark.sclite)])
def test_letters_of_an_acronym_share_its_time(tmp_path, scorer):
    """Half of it lies in the next segment, and so do its last two letters."""
    (tmp_path / "stm").write_text("sw_1 A s 0.00 2.00 <O> THE U S\nsw_1 A s 2.00 4.00 <O> S R'S WAY\n")
    (tmp_path / "ctm").write_text("sw_1 A 0.50 0.20 the\nsw_1 A 1.20 0.05 [noise]\nsw_1 A 1.60 0.80 u._s._s._r.'s\n"
                                  "sw_1 A 2.60 0.30 way\n")
    scores, _ = hub5.score_hub5(tmp_path / "stm", tmp_path / "ctm", scorer=scorer, drop_noise=True)
    assert [(s.counts.words, s.counts.errors) for s in scores] == [(3, 0), (3, 0)]
    tokens = hub5.as_swbd(hub5.read_ctm(tmp_path / "ctm"))
    assert [t.word for t in tokens] == ["the", "u", "s", "s", "r's", "way"]
    assert [t.start for t in tokens[1:5]] == pytest.approx([1.6, 1.8, 2.0, 2.2])
    found = hub5.score_text({"u": "the u s s r's way"}, {"u": "the <unk> u._s._s._r.'s way"}, drop_noise=True)
    assert (found.total.words, found.total.errors) == (6, 0)


def test_hub5_files_scored_natively(hub5_files):
    scores, scorer = hub5.score_hub5(hub5_files / "a.stm", hub5_files / "a.ctm", glm=hub5_files / "a.glm",
                                     scorer="native")
    assert scorer == "native"
    assert [(s.segment.recording, s.segment.start, s.counts) for s in scores] == [
        ("en2", 0.0, counts(3, 0, 0, 1)),      # uh and um are one token; write is not right
        ("sw1", 0.0, counts(6, 0, 0, 0)),      # gonna = going to, the hesitation is optional
        ("sw1", 2.5, counts(8, 0, 0, 1)),      # he's = he is, world fits wo-, (you) (know) are optional; oh for okay
        ("sw1", 5.5, counts(5, 1, 0, 0)),      # noisy lies in an ignored segment; late goes to the last one
        ("sw1", 0.0, counts(3, 0, 2, 0)),      # nothing was recognised on channel B, (this) is optional
    ]
    assert {name: c.errors for name, c in hub5.halves(scores).items()} == {"CHE": 1, "SWBD": 4}


@pytest.mark.sclite
def test_hub5_files_agree_with_sclite(hub5_files):
    files = hub5_files / "a.stm", hub5_files / "a.ctm"
    for glm in (hub5_files / "a.glm", None):
        native, _ = hub5.score_hub5(*files, glm=glm, scorer="native")
        sclite, scorer = hub5.score_hub5(*files, glm=glm, scorer="auto")
        assert scorer == "sclite"
        assert [(s.segment, s.counts) for s in native] == [(s.segment, s.counts) for s in sclite]


def _random_files(rng, num_segments):
    """Segments and words over a small vocabulary with every construct, many of them wrong."""
    vocabulary = "a b c d e uh um he's can not ab- -cd well-known gonna cannot dog dogs Do cat".split()

    def text(depth):
        out = []
        for _ in range(rng.randint(0 if depth == 0 else 1, 8 if depth == 0 else 2)):
            kind = rng.random()
            if kind < 0.15 and depth < 2:
                branches = ["@" if rng.random() < 0.2 else text(depth + 1) for _ in range(rng.randint(2, 3))]
                out.append("{ " + " / ".join(branches) + " }")
            else:
                out.append(("(%s)" if kind < 0.25 else "%s") % rng.choice(vocabulary))
        return " ".join(out)

    segments, tokens, start = [], [], 0.0
    for number in range(num_segments):
        if number % 50 == 0:
            start = 0.0
        name, length = f"r{number // 50:02d}", rng.uniform(1, 3)
        segments.append(hub5.Segment(name, "A", f"s{number % 7}", round(start, 2), round(start + length, 2), "",
                                     text(0)))
        words = rng.randint(0, 8)
        tokens += [hub5.Token(name, "A", round(start + length * (i + 0.1) / words, 2), 0.05, rng.choice(vocabulary))
                   for i in range(words)]
        start += length + 0.2
    return segments, tokens


@pytest.mark.sclite
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rules", ["test", "default"])
def test_random_networks_agree_with_sclite(hub5_files, seed, rules):
    glm = hub5_files / "a.glm" if rules == "test" else None
    segments, tokens = _random_files(random.Random(seed), 600)
    native = hub5.score_stm(segments, tokens, *load_filters(glm))
    sclite = hub5.score_with_sclite(segments, tokens, glm, SCLITE)
    differing = [(a.segment.text, a.counts, b.counts) for a, b in zip(native, sclite) if a.counts != b.counts]
    assert len(native) == len(sclite) == 600 and not differing
    assert sum(a.counts.errors for a in native) > 1000


@pytest.mark.sclite
@pytest.mark.parametrize("kind", ["touching", "gaps", "overlapping", "starting together", "ignored", "out of order"])
@pytest.mark.parametrize("rules", ["test", "default"])
def test_words_on_and_across_edges_agree_with_sclite(hub5_files, kind, rules):
    """Words anywhere, overlapping, some of no length, some with their middle at the end of a segment, some made two."""
    rng = random.Random(kind + rules)
    vocabulary = "a b c um ab- -cd well-known he's gonna cannot".split()
    segments, tokens = [], []
    for channel in [(f"r{n:02d}", side) for n in range(40) for side in "AB"]:
        start = rng.uniform(0, 2)
        for number in range(rng.randint(1, 7)):
            length = rng.uniform(0, 3)
            words = vocabulary + ["(uh)", "{ a / b c }", "{ b / @ }"]
            text = " ".join(rng.choice(words) for _ in range(rng.randint(0, 6)))
            if kind == "ignored" and rng.random() < 0.2:
                text = hub5.IGNORED
            times = round(start, 2), round(start + length, 2)
            segments.append(hub5.Segment(*channel, f"s{number % 2}", *times, "", text))
            start += {"gaps": length + 0.7, "overlapping": 0.5 * length}.get(kind, length)
            if kind == "starting together" and rng.random() < 0.3:
                start = segments[-1].start
        for _ in range(rng.randint(0, 25)):
            tokens.append(hub5.Token(*channel, round(rng.uniform(0, start + 1), 2), rng.choice([0.0, 0.1, 0.3, 1.0]),
                                     rng.choice(vocabulary)))
        ends = [s.end for s in segments if (s.recording, s.channel) == channel]
        tokens += [hub5.Token(*channel, round(end - 0.15, 2), 0.3, rng.choice(vocabulary)) for end in ends if end > 1]
    if kind == "out of order":
        rng.shuffle(segments)
        rng.shuffle(tokens)
    glm = hub5_files / "a.glm" if rules == "test" else None
    native = hub5.score_stm(segments, tokens, *load_filters(glm))
    sclite = hub5.score_with_sclite(segments, tokens, glm, SCLITE)
    assert [(s.segment, s.counts) for s in native] == [(s.segment, s.counts) for s in sclite]
    assert len(native) > 200 and sum(s.counts.errors for s in native) > 500


@pytest.mark.parametrize("stm, ctm, words", [
    (STM, "sw9 A 0.1 0.2 hello\n", "recording 'sw9' channel 'A' is not in"),
    (STM, "sw1 A 0.1 hello\n", "line 1: a CTM line has 5 or 6 fields"),
    (STM, "sw1 A x 0.2 hello\n", "'x' is no time"),
    ("sw1 A sw1_A 2.0 1.0 hello\n", CTM, "ends .* before it starts"),
    ("sw1 A sw1_A 2.0\n", CTM, "line 1: an STM line has at least 5 fields"),
    (";; nothing\n", CTM, "holds no segment"),
    ("sw1 A sw1_A 0.0 99.0 { a / b\nen2 A x 0 9 a\n", CTM, "line 1: brackets do not match in '{ a / b'"),
    ("sw1 A sw1_A 0.0 99.0 a } b\n", CTM, "line 1: brackets do not match"),
    ("sw1 A sw1_A 0.0 99.0 (a b\n", CTM, "line 1: brackets do not match"),
    ("sw1 A sw1_A 0.0 99.0 ((a) b)\n", CTM, "line 1: brackets do not match"),
])
def test_bad_time_marks_are_refused(tmp_path, stm, ctm, words):
    (tmp_path / "a.stm").write_text(stm)
    (tmp_path / "a.ctm").write_text(ctm)
    with pytest.raises(UserError, match=words):
        hub5.score_hub5(tmp_path / "a.stm", tmp_path / "a.ctm", scorer="native")


def test_verb_scores_time_marks(hub5_files, capsys):
    assert main(["score", "--scorer", "native", "--glm", str(hub5_files / "a.glm"), "--per-speaker",
                 "--per-utt", str(hub5_files / "per_utt"), str(hub5_files / "a.stm"), str(hub5_files / "a.ctm")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "%WER 20.00 [ 5 / 25, 1 ins, 2 del, 2 sub ]"
    assert lines[2] == "Scored 5 segments with the native aligner."
    assert "%WER 33.33 [ 1 / 3, 0 ins, 0 del, 1 sub ] CHE" in lines
    assert "%WER 10.53 [ 2 / 19, 1 ins, 0 del, 1 sub ] sw1_A" in lines
    assert len(Path(hub5_files / "per_utt").read_text().splitlines()) == 5
    (hub5_files / "a.stm").rename(hub5_files / "stm")  # as it is called in a data directory
    assert main(["score", "--scorer", "native", "--glm", str(hub5_files / "a.glm"), str(hub5_files / "stm"),
                 str(hub5_files / "a.ctm")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == lines[0]


def test_default_rules_parse_for_both_sides():
    assert len(parse_glm(DEFAULT_GLM, ("stm", "ref")).rules) > len(parse_glm(DEFAULT_GLM, ("ctm", "hyp")).rules) > 10
