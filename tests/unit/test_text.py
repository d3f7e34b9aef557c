"""Text files: where words end, which characters are refused, and what is said of words."""
import contextlib
import io
import os
import subprocess
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence_kd.cli.main import main
from essence_kd.io.data_dir import read_table
from essence_kd.io.errors import UserError
from essence_kd.io.settings import read_yaml
from essence_kd.io.specifiers import read_scp
from essence_kd.io.tables import ScpTable
from essence_kd.io.text import is_number, other_form, read_lines, read_map, read_words, split, visible
from essence_kd.io.words import is_reserved, unseen
from essence_kd.hmm.lang import read_symbols
from essence_kd.plan.recipe import read_recipe
from essence_kd.score.glm import load_filters
from essence_kd.score.hub5 import read_ctm, read_stm

BOM = "\ufeff"
NBSP, WIDE = "\xa0", "\u3000"
# every character that str.split or str.splitlines has for the end of a word or line, and Kaldi has not
NO_BLANKS = [chr(c) for c in range(0x11000) if chr(c).isspace() and chr(c) not in " \t\n\r\f\v"]


@given(st.text(alphabet=st.sampled_from([" ", "\t", "\r", "\f", "\v", "a", "é", "\u200c", *NO_BLANKS])),
       st.integers(-1, 4))
def test_words_end_where_kaldi_ends_them(line, most):
    """SplitStringToVector with " \\t\\n\\r\\f\\v", which is what bytes.split does."""
    assert split(line, most) == [field.decode() for field in line.encode().split(None, most)]


def test_every_reader_ends_words_there(tmp_path):
    assert len(NO_BLANKS) == 23
    words = [f"a{c}b" for c in NO_BLANKS]
    path = tmp_path / "text"
    path.write_text("".join(f"u{i:02d}\t {w}  x \r\n" for i, w in enumerate(words)), encoding="utf-8", newline="")
    utts = [f"u{i:02d}" for i in range(len(words))]
    assert read_words(path) == {utt: [word, "x"] for utt, word in zip(utts, words)}
    assert [key for _, key, _, _ in read_scp(str(path))] == utts
    assert list(read_table(path)) == utts
    path.write_text("".join(f"{w} file{w}\n" for w in sorted(words)), encoding="utf-8")
    assert {key: ScpTable(str(path)).line(key) for key in words} == {w: (f"file{w}", None) for w in words}
    path.write_text("".join(f"r A 0 1 {w} 0.5\n" for w in words), encoding="utf-8")
    assert [token.word for token in read_ctm(path)] == words
    path.write_text("".join(f"r A s 0 1 <o> {w}\n" for w in words), encoding="utf-8")
    assert [segment.text for segment in read_stm(path)] == words


def test_ids_are_sorted_as_bytes(tmp_path):
    """As ``LC_ALL=C sort`` does: U+FF21 before U+1F600, which UTF-16 has the other way round."""
    ids = ["B", "a", "a\xa0b", "é", "Ａ", "\U0001f600"]
    (tmp_path / "t").write_text("".join(f"{i} x\n" for i in reversed(ids)), encoding="utf-8")
    subprocess.run(["sort", "-o", tmp_path / "t", tmp_path / "t"], env={**os.environ, "LC_ALL": "C"}, check=True)
    assert list(read_table(tmp_path / "t")) == ids


READERS = {
    "table": read_table, "map": read_map, "lines": read_lines, "scp": lambda p: list(read_scp(str(p))),
    "words.txt": read_symbols, "stm": read_stm, "ctm": read_ctm, "glm": load_filters, "settings.yaml": read_yaml,
    "recipe.conf": lambda p: read_recipe(p, size="default"), "lm_text": lambda p: main_fails("train-lm", p, "x.arpa"),
    "arpa": lambda p: main_fails("perplexity", p, p), "ref": lambda p: main_fails("score", p, p),
    "plan.json": lambda p: main_fails("get", p, "key")}


def main_fails(*words):
    """What a verb says as it fails, as an error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main([str(w) for w in words])
    assert status == 1
    raise UserError(said.getvalue())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("data, told", [
    (f"{BOM}a x\nb x\n".encode(), r"line 1 has a byte order mark \(U\+FEFF"),
    (f"a x\n{BOM}b x\n".encode(), "line 2 has a byte order mark"),  # files joined by cat
    (f"a x\nb x{BOM}y z\n".encode(), "line 2 has a byte order mark"),
    ("a x\nb x\n".encode("utf-16"), "iconv -f utf-16"), ("a x\nb x\n".encode("utf-16-be"), "iconv -f utf-16"),
    (b"a x\rb x\r", "line 1 has a carriage return"), (b"a x\nb\rx\r\n", "line 2 has a carriage return"),
    (b"a x\nb caf\xe9\n", r"line 2 \(b\) is not UTF-8 at byte 5")])
def test_bytes_that_no_reader_takes(tmp_path, reader, data, told):
    path = tmp_path / reader
    path.write_bytes(data)
    if reader == "glm" and "not UTF-8" in told:
        with pytest.raises(UserError, match="no '=>'"):  # Latin-1, as the published tables are
            load_filters(path)
        return
    if reader == "scp" and b"\0" in data:
        told = "is it an archive"
    with pytest.raises(UserError, match=told) as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value)


def test_lines_that_end_as_on_windows(tmp_path):
    (tmp_path / "t").write_bytes(b"u1 one two\r\nu2 two\r\n")
    assert read_words(tmp_path / "t") == {"u1": ["one", "two"], "u2": ["two"]}
    (tmp_path / "g").write_bytes(b";; rules\r\n* name \"x\"\r\n[a b] => [c] / [ ] __ [ ]\r\n")
    assert load_filters(tmp_path / "g")[0]("x a b y") == "X c Y"
    (tmp_path / "recipe.conf").write_bytes(b"sizes=\"default\"\r\n")
    with pytest.raises(UserError, match="recipe.conf: its lines end in carriage returns"):
        read_recipe(tmp_path / "recipe.conf", size="default")


@pytest.mark.parametrize("scorer", ["auto", "native"])
def test_marks_in_what_is_scored_by_time(tmp_path, capsys, scorer):
    """Also where sclite, which has readers of its own, does the counting."""
    files = {"stm": "r A s 0 1 <o> one\n", "ctm": "r A 0 1 one\n", "glm": ";; x\n[a] => [b]\n"}
    command = ["score", "--scorer", scorer, "--glm", *(str(tmp_path / name) for name in ("glm", "stm", "ctm"))]
    for marked in (None, *files):
        for name, text in files.items():
            (tmp_path / name).write_text(BOM * (name == marked) + text, encoding="utf-8")
        assert main(command) == (marked is not None)
        assert marked is None or f"{tmp_path}/{marked}: line 1 has a byte order mark" in capsys.readouterr().err


def test_lines_of_a_long_scp_are_counted(tmp_path):
    (tmp_path / "s").write_text("".join(f"u{i:09d} file\n" for i in range(40000)) + f"{BOM}x file\n", encoding="utf-8")
    with pytest.raises(UserError, match="s: line 40001 has a byte order mark"):
        list(read_scp(str(tmp_path / "s")))


def test_digits_are_ascii():
    assert is_number("10") and not any(map(is_number, ("", "-1", "²", "٣", "1_0", " 1")))


def test_what_messages_show():
    assert visible("naïve café") == "naïve café" and visible(f"10{NBSP}km") == "10\\xa0km"
    assert visible("a\u200bb\u3000") == "a\\u200bb\\u3000"
    assert unseen(f"10{NBSP}km") == "U+00A0 NO-BREAK SPACE" and unseen("a\x07") == "U+0007 control character"
    assert unseen("a\u200bb") == "U+200B ZERO WIDTH SPACE" and all(map(unseen, NO_BLANKS))
    for word in ("naïve", "नमस्ते", "می\u200cخواهم", "क्\u200dष", "👩\u200d🚒", "\ue000"):
        assert unseen(word) is None


def test_reserved_words():
    assert all(map(is_reserved, ("<eps>", "<s>", "</s>", "#0", "#1", "#12", "#nonterm:name", "#nonterm_bos")))
    assert not any(map(is_reserved, ("#metoo", "#", "#1st", "<unk>", "s", "<S>", "-", "a(2)", "##0", "#nonterminal")))


def test_the_other_normal_form():
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert "in Unicode's form NFC" in other_form(decomposed, {composed})
    assert "in Unicode's form NFD" in other_form(composed, {decomposed})
    assert other_form(composed, {composed, "x"}) == "" == other_form("x", {composed})


@pytest.mark.kaldi("egs/wsj/s5/utils/validate_text.pl")
@pytest.mark.parametrize("word, fine", [
    ("naïve", True), ("می\u200cخواهم", True), (f"10{NBSP}km", False), (f"a{WIDE}b", False), ("a\u2028b", False),
    ("a\x85b", False), ("a\x0cb", False)])
def test_as_validate_text_has_it(tmp_path, word, fine):
    (tmp_path / "text").write_text(f"u1 {word}\n", encoding="utf-8")
    script = os.path.join(os.environ["KALDI_ROOT"], "egs/wsj/s5/utils/validate_text.pl")
    theirs = subprocess.run(["perl", script, tmp_path / "text"], capture_output=True)
    assert (theirs.returncode == 0) == fine
    if "\x0c" not in word:  # a form feed parts words: nothing is lost
        assert (unseen(word) is None) == fine


@pytest.mark.kaldi("src/bin/compute-wer")
def test_as_compute_wer_splits(tmp_path, capsys):
    (tmp_path / "ref").write_text(f"u1 it is 10{NBSP}km away\nu2 a{WIDE}b\n", encoding="utf-8")
    (tmp_path / "hyp").write_text("u1 it is 10 km away\nu2 a b\n")
    theirs = subprocess.run([os.path.join(os.environ["KALDI_ROOT"], "src/bin/compute-wer"), "--text", "--mode=all",
                             f"ark:{tmp_path}/ref", f"ark:{tmp_path}/hyp"], capture_output=True, text=True, check=True)
    assert main(["score", str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 0
    said = capsys.readouterr()
    assert "[ 4 / 5, 2 ins, 0 del, 2 sub ]" in said.out
    assert said.out.splitlines()[:2] == theirs.stdout.splitlines()[:2]
