"""Tables: every kind of specifier, Kaldi's own bytes, damaged input, and writers that leave all or nothing."""
from __future__ import annotations

import gzip
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import kaldi_native_io
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from essence_kd.io import objects, sources, tables
from essence_kd.io.errors import UserError
from essence_kd.io.specifiers import indexed
from essence_kd.io.tables import (IntVectorTable, IntVectorWriter, MatrixTable, MatrixWriter, VectorTable, VectorWriter,
                                  read_int_vectors, read_matrices, read_vectors)

PYTOOLS = str(Path(tables.__file__).resolve().parents[2])


def some_matrices(count: int = 3, rows: int = 7, cols: int = 5, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {f"utt{i}": rng.normal(size=(rows + i, cols)).astype(np.float32) for i in range(count)}


def write_matrices(wspecifier: str, matrices: dict) -> None:
    with MatrixWriter(wspecifier) as writer:
        for utt, matrix in matrices.items():
            writer.write(utt, matrix)


def same(found: list, wanted: dict) -> None:
    assert [utt for utt, _ in found] == list(wanted)
    for utt, value in found:
        assert value.dtype == wanted[utt].dtype, utt
        np.testing.assert_array_equal(value, wanted[utt])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------ the bytes of Kaldi

@pytest.mark.parametrize("text", ["", ",t"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrices_are_kaldis_bytes_and_come_back(here, text, dtype):
    wanted = {utt: matrix.astype(dtype) for utt, matrix in some_matrices().items()}
    wanted["none"] = np.zeros((0, 0), dtype)
    write_matrices(f"ark{text},scp:ours.ark,ours.scp", wanted)
    kind = "FloatMatrixWriter" if dtype == "float32" else "DoubleMatrixWriter"
    with getattr(kaldi_native_io, kind)(f"ark{text},scp:theirs.ark,theirs.scp") as writer:
        for utt, matrix in wanted.items():
            writer.write(utt, matrix)
    assert Path("ours.ark").read_bytes() == Path("theirs.ark").read_bytes()
    assert Path("ours.scp").read_text() == Path("theirs.scp").read_text().replace("theirs.ark", str(here / "ours.ark"))
    if not text:
        same(list(read_matrices("ark:theirs.ark")), wanted)
        same(list(read_matrices("scp:ours.scp")), wanted)
    for utt, matrix in read_matrices("scp:theirs.scp"):
        np.testing.assert_allclose(matrix, wanted[utt], rtol=1e-6)
        assert matrix.shape == wanted[utt].shape


@pytest.mark.parametrize("text", ["", ",t"])
def test_vectors_are_kaldis_bytes_and_come_back(here, text):
    floats = {"a": np.array([0.5, -2, 1e-9, np.inf], np.float32), "b": np.zeros(0, np.float32)}
    ints = {"a": np.array([3, -1, 2**31 - 1, -2**31], np.int32), "b": np.zeros(0, np.int32)}
    for mine, theirs, read, wanted in ((VectorWriter, kaldi_native_io.FloatVectorWriter, read_vectors, floats),
                                       (IntVectorWriter, kaldi_native_io.Int32VectorWriter, read_int_vectors, ints)):
        for writer_type, name in ((mine, "ours"), (theirs, "theirs")):
            with writer_type(f"ark{text},scp:{name}.ark,{name}.scp") as writer:
                for utt, vector in wanted.items():
                    writer.write(utt, vector if writer_type is mine or read is read_vectors else vector.tolist())
        assert Path("ours.ark").read_bytes() == Path("theirs.ark").read_bytes()
        for spec in ("ark:theirs.ark", "scp:ours.scp"):
            for (utt, found), expected in zip(read(spec), wanted):
                np.testing.assert_allclose(found, wanted[expected], rtol=1e-6)
                assert utt == expected and found.dtype == wanted[utt].dtype


def test_double_vectors_come_back(here):
    wanted = {"a": np.array([1 / 3, 2]), "b": np.array([1e300])}
    with VectorWriter("ark:d.ark") as writer:
        for utt, vector in wanted.items():
            writer.write(utt, vector)
    same(list(read_vectors("ark:d.ark")), wanted)


@settings(max_examples=40, deadline=None)
@given(st.lists(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)), max_size=4))
def test_any_matrix_comes_back(tmp_path_factory, matrices):
    path = tmp_path_factory.mktemp("m")
    wanted = {f"u{i}": matrix for i, matrix in enumerate(matrices)}
    write_matrices(f"ark,scp:{path}/m.ark,{path}/m.scp", wanted)
    same(list(read_matrices(f"ark:{path}/m.ark")), wanted)
    same(list(read_matrices(f"scp:{path}/m.scp")), wanted)
    table = MatrixTable(f"{path}/m.scp")
    same([(utt, table[utt]) for utt in table], wanted)


@pytest.mark.parametrize("method", ["kSpeechFeature", "kTwoByteAuto", "kTwoByteSignedInteger", "kOneByteAuto",
                                    "kOneByteUnsignedInteger", "kOneByteZeroOne"])
def test_compressed_matrices_are_read_as_kaldi_reads_them(here, method):
    rng = np.random.default_rng(1)
    wanted = {"few": rng.normal(size=(6, 3)), "flat": np.full((9, 4), 0.25), "many": rng.normal(size=(200, 40)) * 5}
    if method in ("kOneByteZeroOne", "kOneByteUnsignedInteger"):
        wanted = {utt: np.abs(matrix) % 1 for utt, matrix in wanted.items()}
    with kaldi_native_io.CompressedMatrixWriter("ark,scp:c.ark,c.scp") as writer:
        for utt, matrix in wanted.items():
            writer.write(utt, matrix.astype(np.float32), method=getattr(kaldi_native_io.CompressionMethod, method))
    token = {"kSpeechFeature": b"CM ", "kTwoByteAuto": b"CM2", "kTwoByteSignedInteger": b"CM2"}.get(method, b"CM3")
    assert Path("c.ark").read_bytes()[6:10] == b"\0" + b"B" + token[:2] or token in Path("c.ark").read_bytes()
    with kaldi_native_io.SequentialFloatMatrixReader("ark:c.ark") as reader:
        theirs = {utt: np.array(matrix, dtype=np.float32) for utt, matrix in reader}
    for spec in ("ark:c.ark", "scp:c.scp"):
        found = dict(read_matrices(spec))
        assert list(found) == list(theirs)
        for utt in theirs:
            assert found[utt].dtype == np.float32 and found[utt].shape == theirs[utt].shape
            np.testing.assert_array_equal(found[utt], theirs[utt])


def test_matrices_by_their_places(here):
    wanted = some_matrices(3, rows=30, cols=6)
    write_matrices("ark,scp:m.ark,m.scp", wanted)
    write_matrices("ark,t:m.txt", wanted)
    with kaldi_native_io.CompressedMatrixWriter("ark,scp:c.ark,c.scp") as writer:
        for utt, matrix in wanted.items():
            writer.write(utt, matrix, method=kaldi_native_io.CompressionMethod.kOneByteAuto)
    places = tables.MatrixPlaces()
    for scp in ("m.scp", "c.scp"):
        table = MatrixTable(scp)
        for line in Path(scp).read_text().splitlines():
            utt, place = line.split()
            for span, cut in (("", table[utt]), ("[2:9]", table[utt][2:10]), ("[:,1:3]", table[utt][:, 1:4])):
                assert places.shape(utt, place + span) == cut.shape
                np.testing.assert_array_equal(places.read(utt, place + span), cut)
    text = Path("m.txt").read_bytes().index(b" ")
    for place in (f"m.txt:{text}", "tail -c +6 m.ark |"):
        assert places.shape("utt0", place) == wanted["utt0"].shape
    Path("short.ark").write_bytes(Path("m.ark").read_bytes()[:17])
    for place in ("none.ark:5", "short.ark:5", "m.ark:6"):
        for read in (places.shape, places.read):
            with pytest.raises(UserError, match="utterance utt0"):
                read("utt0", place)


def test_matrices_can_be_written_to(here):
    write_matrices("ark,scp:m.ark,m.scp", some_matrices(rows=300))
    for spec in ("ark:m.ark", "scp:m.scp", "ark:cat m.ark |"):
        for _, matrix in read_matrices(spec):
            matrix += 1
    assert MatrixTable("m.scp")["utt0"].flags.writeable


def stored_or_read(spec):
    """What a table holds, large matrices left where they are."""
    def cut(value, span):
        return objects.cut_matrix(value[:], span)

    return list(tables.read_table(spec, lambda source: objects.read_matrix(source, True), cut, "matrix"))


def test_matrices_that_stay_in_their_files(here, monkeypatch):
    """Only those of float32 in regular files, and only large ones; all of them hold what is read otherwise."""
    monkeypatch.setattr(objects, "_STORED", 500)
    wanted = {**some_matrices(2, rows=40), "few": np.ones((3, 5), np.float32), "double": np.ones((200, 3)),
              **{f"more{i}": m for i, m in enumerate(some_matrices(2, rows=7000, cols=90).values())},
              "none": np.zeros((0, 0), np.float32), "last": np.full((60, 5), 0.5, np.float32)}
    write_matrices("ark,scp:m.ark,m.scp", wanted)
    with kaldi_native_io.CompressedMatrixWriter("ark:c.ark") as writer:
        writer.write("compressed", np.ones((90, 10), np.float32), method=kaldi_native_io.CompressionMethod.kTwoByteAuto)
    Path("m.ark").write_bytes(Path("m.ark").read_bytes() + Path("c.ark").read_bytes())
    Path("z.ark.gz").write_bytes(gzip.compress(Path("m.ark").read_bytes()))
    Path("m.scp").write_text(Path("m.scp").read_text() + f"part {here}/m.ark:5[3:8,1:2]\n")
    in_files = {"utt0", "utt1", "more0", "more1", "last"}
    for spec, there in (("ark:m.ark", in_files), ("scp:m.scp", in_files), ("ark:cat m.ark |", set()),
                        ("ark:z.ark.gz", set())):
        found = stored_or_read(spec)
        assert {utt for utt, value in found if isinstance(value, objects.StoredMatrix)} == there, spec
        assert [utt for utt, _ in found[:8]] == list(wanted)
        for utt, value in found[:8]:
            assert value.shape == wanted[utt].shape and len(value) == len(wanted[utt])
            for rows in (slice(None), slice(2, 5), slice(1, 0), slice(-3, None)):
                np.testing.assert_array_equal(value[rows], wanted[utt][rows])
        utt, value = found[8]
        if utt == "part":
            np.testing.assert_array_equal(value, wanted["utt0"][3:9, 1:3])
        else:
            np.testing.assert_allclose(value, 1)
    with pytest.raises(ValueError):
        dict(stored_or_read("ark:m.ark"))["last"][::2]


def test_archives_cut_short_behind_matrices_that_stay_in_them(here, monkeypatch):
    monkeypatch.setattr(objects, "_STORED", 30)
    wanted = some_matrices()
    write_matrices("ark:m.ark", wanted)
    whole = Path("m.ark").read_bytes()
    for size in range(len(whole)):
        Path("cut.ark").write_bytes(whole[:size])
        try:
            found = stored_or_read("ark:cut.ark")
        except UserError as error:
            assert "cut.ark: " in str(error) and "utt" in str(error) or size < 5
        else:
            assert len(found) < 3
            same([(utt, value[:]) for utt, value in found], dict(list(wanted.items())[:len(found)]))


def test_damaged_headers_of_matrices_that_stay_in_their_files(here, monkeypatch):
    """An error, or a matrix that lies inside the file."""
    monkeypatch.setattr(objects, "_STORED", 30)
    write_matrices("ark:m.ark", some_matrices(2, rows=20))
    whole = Path("m.ark").read_bytes()
    second = whole.index(b"utt1 ")
    refused = 0
    tracemalloc.start()
    for place in (*range(20), *range(second, second + 20)):
        for flip in (1, 2, 4, 16, 64, 128, 255):
            Path("bad.ark").write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1:])
            try:
                found = stored_or_read("ark:bad.ark")
            except UserError:
                refused += 1
            else:
                for _, value in found:
                    assert value[:].nbytes <= len(whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 150 and peak < 3 * sources.BLOCK


def test_a_stored_matrix_outlives_its_table(here):
    wanted = some_matrices(2, rows=60000)
    write_matrices("ark,scp:m.ark,m.scp", wanted)
    before = len(os.listdir("/proc/self/fd"))
    for spec in ("ark:m.ark", "scp:m.scp"):
        found = stored_or_read(spec)
        Path("m.ark").rename("other.ark")
        same([(utt, value[:]) for utt, value in found], wanted)
        Path("other.ark").rename("m.ark")
    os.truncate("m.ark", 1000)
    with pytest.raises(sources.Truncated, match="m.ark: became shorter while it was read"):
        found[0][1][:]
    del found
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------------------------------------------- specifiers

def test_files_pipes_gzip_and_stdin(here):
    wanted = some_matrices(rows=300)
    write_matrices("ark,scp:m.ark,m.scp", wanted)
    write_matrices("ark:m2.ark.gz", wanted)
    write_matrices("ark:| gzip -c > m3.ark.gz", wanted)
    assert gzip.open("m2.ark.gz").read() == gzip.open("m3.ark.gz").read() == Path("m.ark").read_bytes()
    Path("m.scp.gz").write_bytes(gzip.compress(Path("m.scp").read_bytes()))
    specs = ["ark:m.ark", "scp:m.scp", "ark,s,cs:m.ark", "scp,p:m.scp", "ark:m2.ark.gz", "ark:gunzip -c m3.ark.gz |",
             "ark: cat m.ark|", "scp:cat m.scp |", "scp:m.scp.gz"]
    for spec in specs:
        same(list(read_matrices(spec)), wanted)
    code = "from essence_kd.io.tables import *\nfor u, m in read_matrices('ark:-'): print(u, m.shape)"
    with open("m.ark", "rb") as stdin:
        done = subprocess.run([sys.executable, "-c", code], stdin=stdin, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": PYTOOLS}, check=True)
    assert done.stdout.splitlines() == [f"{utt} {matrix.shape}" for utt, matrix in wanted.items()]


def test_stdout_carries_an_archive(here):
    code = ("import numpy as np\nfrom essence_kd.io.tables import *\n"
            "with MatrixWriter('ark:-') as w: w.write('a', np.ones((2, 3)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True,
                          env={**os.environ, "PYTHONPATH": PYTOOLS})
    Path("a.ark").write_bytes(done.stdout)
    same(list(read_matrices("ark:a.ark")), {"a": np.ones((2, 3))})


def test_scp_lines_with_commands_gzip_ranges_and_whole_files(here):
    wanted = some_matrices(1, rows=10)["utt0"]
    write_matrices("ark:m.ark", {"x": wanted})
    bare = Path("m.ark").read_bytes()[2:]
    Path("bare.mat").write_bytes(bare)
    Path("bare.gz").write_bytes(gzip.compress(bare))
    Path("all.scp").write_text("a m.ark:2\nb m.ark:2[2:4]\nc m.ark:2[0:9,1:3]\nd m.ark:2[:,0:0]\ne cat bare.mat |\n"
                               "f bare.mat\ng bare.gz\nh m.ark:2[8:12]\n\ni cat bare.mat |[3:3]\n")
    expected = {"a": wanted, "b": wanted[2:5], "c": wanted[:, 1:4], "d": wanted[:, :1], "e": wanted, "f": wanted,
                "g": wanted, "h": wanted[8:], "i": wanted[3:4]}
    same(list(read_matrices("scp:all.scp")), expected)
    table = MatrixTable("all.scp")
    assert len(table) == 9 and "b" in table and "z" not in table and list(table.keys()) == list(expected)
    same([(utt, table[utt]) for utt in reversed(list(expected))], dict(reversed(list(expected.items()))))
    with pytest.raises(UserError, match="all.scp: no utterance z"):
        table["z"]


@pytest.mark.parametrize("span, said", [("5:20", "5:20 does not fit 10 rows"), ("4:2", "4:2"), ("x", "not first:last"),
                                        ("10:10", "10:10"), ("0:9,2:9", "2:9 does not fit 5 columns")])
def test_ranges_that_do_not_fit(here, span, said):
    write_matrices("ark:m.ark", {"x": np.zeros((10, 5), np.float32)})
    Path("m.scp").write_text(f"a m.ark:2[{span}]\n")
    with pytest.raises(UserError, match=f"m.scp: utterance a: .*{said}"):
        list(read_matrices("scp:m.scp"))


def test_vector_ranges(here):
    with IntVectorWriter("ark:a.ark") as writer:
        writer.write("u", np.arange(10))
    with VectorWriter("ark:v.ark") as writer:
        writer.write("u", np.arange(10.0))
    Path("a.scp").write_text("x a.ark:2[3:5]\n")
    Path("v.scp").write_text("x v.ark:2[3:5]\n")
    assert IntVectorTable("a.scp")["x"].tolist() == [3, 4, 5]
    assert VectorTable("v.scp")["x"].tolist() == [3, 4, 5]


@pytest.mark.parametrize("spec", ["m.ark", "foo:m.ark", "ark,scp:m.ark,m.scp", "ark,zz:m.ark", "t:m.ark"])
def test_what_is_no_rspecifier(spec):
    with pytest.raises(UserError, match="not a table to read"):
        list(read_matrices(spec))


@pytest.mark.parametrize("spec", ["m.ark", "scp:m.scp", "ark:", "ark,scp:m.ark", "scp,ark:a,b", "ark,zz:a"])
def test_what_is_no_wspecifier(spec):
    with pytest.raises(UserError, match="not a table to write"):
        MatrixWriter(spec)


def test_names_with_a_comma(here):
    """ark,scp:ARK,SCP, which Kaldi divides at the first comma, cannot hold them; in Python they can be handed over."""
    with pytest.raises(UserError, match="a comma in the name of a file"):
        MatrixWriter("ark,scp:a, b/m.ark,a, b/m.scp")
    assert not list(here.iterdir())
    for folder in ("a, b", "|a", "-"):
        (here / folder).mkdir()
        with MatrixWriter(indexed(f"{folder}/m.ark", f"{folder}/m.scp")) as writer:
            writer.write("u", np.ones((2, 3), np.float32))
        assert (here / folder / "m.scp").read_text() == f"u {here}/{folder}/m.ark:2\n"
        (utt, got), = read_matrices(f"scp:{here}/{folder}/m.scp")
        assert utt == "u" and got.shape == (2, 3)


@pytest.mark.parametrize("folder, what", [("a\nb", "a line break"), ("a\udcffb", "a byte that is not UTF-8")])
def test_names_that_an_scp_cannot_hold(here, folder, what):
    (here / folder).mkdir()
    with pytest.raises(UserError, match=f"{what} in the name, which an scp file cannot hold"):
        MatrixWriter(indexed(f"{folder}/m.ark", "m.scp"))
    assert not list((here / folder).iterdir())


@pytest.mark.parametrize("spec", ["ark,scp:-,m.scp", "ark,scp:| cat,m.scp", "ark,scp:m.ark.gz,m.scp"])
def test_an_scp_needs_a_plain_archive(spec):
    with pytest.raises(UserError, match="can only index a plain file"):
        MatrixWriter(spec)


def test_random_access_needs_an_scp():
    with pytest.raises(UserError, match="random access needs an scp"):
        MatrixTable("ark:m.ark")


def test_tables_travel_to_other_processes(here):
    wanted = some_matrices()
    write_matrices("ark,scp:m.ark,m.scp", wanted)
    table = MatrixTable("scp:m.scp")
    table["utt1"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(table))["utt2"], wanted["utt2"])


def test_an_index_takes_no_more_memory_than_its_objects(here):
    """400 MB through an scp, in order and by name: mapped pages are let go of."""
    with MatrixWriter("ark:m.ark") as writer:
        writer.write("u", np.zeros((2500, 1000)))
    Path("m.scp").write_text("".join(f"u{i} {here}/{i % 20}.ark:2\n" for i in range(20)))
    for i in range(20):
        os.link("m.ark", f"{i}.ark")
    code = """if True:
        import resource, sys
        from essence_kd.io.tables import MatrixTable, read_matrices
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.argv[1] == "order":
            for utt, matrix in read_matrices("scp:m.scp"):
                pass
        else:
            table = MatrixTable("m.scp")
            for utt in table:
                table[utt]
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    for way in ("order", "name"):
        done = subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": PYTOOLS})
        assert int(done.stdout) < 200_000, way  # kilobytes


def test_text_forms_by_hand(here):
    Path("t.ark").write_text("a  [\n  1 2 \n  3 4 ]\nb [ 5 6\n7 nan ]\nc  [ ]\n")
    found = dict(read_matrices("ark:t.ark"))
    assert found["a"].tolist() == [[1, 2], [3, 4]] and found["b"][0].tolist() == [5, 6] and np.isnan(found["b"][1, 1])
    assert found["c"].shape == (0, 0)
    Path("i.ark").write_text("a 1 2 3\nb\nc [ 4 ]\n")
    ints = {utt: vector.tolist() for utt, vector in read_int_vectors("ark:i.ark")}
    assert ints == {"a": [1, 2, 3], "b": [], "c": [4]}


# -------------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("text, read, said", [
    ("a  [\n 1 2\n 3 ]\n", read_matrices, "rows of different lengths"), ("a [ 1 x ]\n", read_matrices, "not convert"),
    ("a [ 1 2", read_matrices, "cut short"), ("a [ 1 ] 2\n", read_matrices, "follows the closing bracket"),
    ("a 1 2 ]\n", read_matrices, "no opening bracket"), ("a 1 2\n", read_matrices, "cut short"),
    ("a 1 2.5\n", read_int_vectors, "2.5"), ("a 1 99999999999\n", read_int_vectors, "32 bits"),
    ("a 1 2", read_int_vectors, "cut short"), ("abc", read_matrices, "inside the utterance id 'abc'")])
def test_bad_text(here, text, read, said):
    Path("bad.ark").write_text(text)
    with pytest.raises(UserError, match=f"bad.ark: .*{said}"):
        list(read("ark:bad.ark"))


def test_what_is_no_table_at_all(here):
    Path("zeros").write_bytes(bytes(5000))
    Path("noise").write_bytes(b"x" * 5000)
    Path("lines.scp").write_text("only-one-field\n")
    Path("range.scp").write_text("a [0:1]\n")
    for name in ("zeros", "noise"):
        with pytest.raises(UserError, match=f"{name}: not a Kaldi archive"):
            list(read_matrices(f"ark:{name}"))
    write_matrices("ark:m.ark", some_matrices())
    for scp, said in (("m.ark", "is it an archive"), ("lines.scp", "line 1: 'only-one-field' is not"),
                      ("range.scp", "a range without a file"), ("missing.scp", "missing.scp: cannot be read: No such"),
                      (".", "is a directory")):
        with pytest.raises(UserError, match=said):
            list(read_matrices(f"scp:{scp}"))
        with pytest.raises(UserError, match=said):
            MatrixTable(scp)
    Path("gone.scp").write_text("a gone.ark:5\n")
    with pytest.raises(UserError, match="^gone.scp: utterance a: gone.ark: cannot be read"):
        list(read_matrices("scp:gone.scp"))
    with pytest.raises(UserError, match="^gone.scp: utterance a: gone.ark: cannot be read"):
        MatrixTable("gone.scp")["a"]
    with pytest.raises(UserError, match="m.ark: utterance utt0: not a readable vector of integers .*a matrix"):
        list(read_int_vectors("ark:m.ark"))
    Path("index.scp").write_text("a m.ark:5\n")
    for read in (read_matrices, read_int_vectors):
        with pytest.raises(UserError, match="index.scp: utterance a: .*is it an index"):
            list(read("ark:index.scp"))
    Path("far.scp").write_text("a m.ark:999999\n")
    with pytest.raises(UserError, match="utterance a: .*cut short"):
        list(read_matrices("scp:far.scp"))


def test_permissive_reading_leaves_out_with_a_warning(here, caplog):
    write_matrices("ark,scp:m.ark,m.scp", some_matrices())
    lines = Path("m.scp").read_text().splitlines()
    Path("m.scp").write_text("\n".join([lines[0], "bad gone.ark:3", lines[2]]) + "\n")
    assert [utt for utt, _ in read_matrices("scp,p:m.scp")] == ["utt0", "utt2"]
    assert "gone.ark" in caplog.text


def test_duplicate_utterances(here):
    write_matrices("ark,scp:m.ark,m.scp", some_matrices(1))
    Path("twice.ark").write_bytes(2 * Path("m.ark").read_bytes())
    Path("twice.scp").write_text(2 * Path("m.scp").read_text())
    with pytest.raises(UserError, match="twice.ark: utterance utt0 occurs twice"):
        list(read_matrices("ark:twice.ark"))
    with pytest.raises(UserError, match="twice.scp: line 2: utterance utt0 occurs twice"):
        list(read_matrices("scp:twice.scp"))
    with pytest.raises(UserError, match="twice.scp: line 2: utterance utt0 occurs twice"):
        MatrixTable("twice.scp")


def small_archives(folder: Path) -> list:
    """One small archive of each kind, and its reader."""
    write_matrices(f"ark:{folder}/f.ark", {"a": np.ones((3, 2), np.float32), "bb": np.ones((1, 2), np.float32)})
    write_matrices(f"ark:{folder}/d.ark", {"a": np.ones((2, 2))})
    write_matrices(f"ark,t:{folder}/t.ark", {"a": np.ones((2, 2))})
    with IntVectorWriter(f"ark:{folder}/i.ark") as ints, VectorWriter(f"ark:{folder}/v.ark") as floats:
        ints.write("a", [1, 2, 3])
        floats.write("a", [1, 2, 3])
    found = [("f", read_matrices), ("d", read_matrices), ("t", read_matrices), ("i", read_int_vectors),
             ("v", read_vectors)]
    for method in ("kSpeechFeature", "kTwoByteAuto", "kOneByteAuto"):
        with kaldi_native_io.CompressedMatrixWriter(f"ark:{folder}/{method}.ark") as writer:
            writer.write("a", np.arange(60, dtype=np.float32).reshape(12, 5),
                         method=getattr(kaldi_native_io.CompressionMethod, method))
        found.append((method, read_matrices))
    return [(f"{folder}/{name}.ark", read) for name, read in found]


def test_every_prefix_is_an_error_or_whole_utterances(tmp_path):
    for path, read in small_archives(tmp_path):
        whole = Path(path).read_bytes()
        wanted = list(read(f"ark:{path}"))
        cut = tmp_path / "cut.ark"
        for size in range(len(whole)):
            cut.write_bytes(whole[:size])
            seen = []
            try:
                for utt, value in read(f"ark:{cut}"):
                    seen.append((utt, value))
            except UserError as error:
                assert "cut.ark" in str(error)
            else:
                assert len(seen) < len(wanted) or whole[size:] == b"\n", (path, size)
            for (utt, value), (expected, right) in zip(seen, wanted):
                assert utt == expected
                np.testing.assert_array_equal(value, right)


def test_random_damage_is_an_error_or_data_and_takes_no_memory(tmp_path):
    rng = np.random.default_rng(2)
    bad = tmp_path / "bad.ark"
    for path, read in small_archives(tmp_path):
        whole = np.frombuffer(Path(path).read_bytes(), np.uint8)
        list(read(f"ark:{path}"))
        tracemalloc.start()
        for _ in range(150):
            damaged = whole.copy()
            places = rng.integers(0, len(whole), rng.integers(1, 4))
            damaged[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
            bad.write_bytes(damaged.tobytes())
            for spec in (f"ark:{bad}", f"scp:echo 'a {bad}:2' |"):
                if spec.startswith("scp") and rng.random() > 0.1:
                    continue
                try:
                    for _, value in read(spec):
                        assert value.nbytes <= 16 * len(whole)
                except UserError:
                    pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * sources.BLOCK, path


def test_a_claimed_size_from_a_pipe_takes_no_memory(here):
    head = b"a \0BFM \4" + (2**15).to_bytes(4, "little") + b"\4" + (2**15).to_bytes(4, "little")  # 4 GiB
    Path("lie.ark").write_bytes(head + bytes(1000))
    Path("lie.gz").write_bytes(gzip.compress(head + bytes(1000)))
    for spec in ("ark:lie.ark", "ark:cat lie.ark |", "ark:lie.gz"):
        tracemalloc.start()
        with pytest.raises(UserError, match="utterance a: the matrix is cut short"):
            list(read_matrices(spec))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * sources.BLOCK


def test_large_objects_through_a_pipe(here, monkeypatch):
    monkeypatch.setattr(sources, "_BLIND", 1 << 12)
    wanted = some_matrices(3, rows=3000, cols=300)
    write_matrices("ark:m.ark", wanted)
    same(list(read_matrices("ark:cat m.ark |")), wanted)


def test_double_and_empty_matrices_among_others(here):
    wanted = {**some_matrices(), "double": np.ones((20, 3)), "none": np.zeros((0, 0), np.float32)}
    write_matrices("ark,scp:m.ark,m.scp", wanted)
    for spec in ("ark:m.ark", "scp:m.scp"):
        same(list(read_matrices(spec)), wanted)


def test_damaged_gzip(here):
    write_matrices("ark:m.ark.gz", some_matrices(rows=400))
    whole = Path("m.ark.gz").read_bytes()
    for data in (whole[:len(whole) // 2], whole[:100] + b"garbage" * 20 + whole[240:], b"not gzip at all"):
        Path("bad.ark.gz").write_bytes(data)
        with pytest.raises(UserError, match="bad.ark.gz: .*gzip"):
            list(read_matrices("ark:bad.ark.gz"))


# ------------------------------------------------------------------------------------------------------------ pipes

@pytest.mark.parametrize("command, said", [
    ("echo first >&2; echo why it failed >&2; exit 3", "exit status 3: first; why it failed"),
    ("false | cat", "exit status 1: nothing on stderr"), ("cat m.ark; exit 4", "exit status 4"),
    ("head -c 50 m.ark; echo broken >&2; exit 5", "exit status 5: broken"),
    ("echo no such model; exit 6", "exit status 6"), ("kill -9 $$", "signal 9"),
    ("no-such-program-here", "exit status 127: .*no-such-program-here")])
def test_a_failing_input_command_tells_its_status_and_stderr(here, command, said):
    write_matrices("ark:m.ark", some_matrices())
    with pytest.raises(UserError, match=said) as caught:
        list(read_matrices(f"ark:{command} |"))
    assert command in str(caught.value)


def test_a_failing_command_in_an_scp_line(here):
    Path("p.scp").write_text("a echo oops >&2; exit 7 |\n")
    for read in (lambda: list(read_matrices("scp:p.scp")), lambda: MatrixTable("p.scp")["a"]):
        with pytest.raises(UserError, match="exit status 7: oops"):
            read()


def test_stderr_of_a_good_command_is_passed_on(here, capsys):
    write_matrices("ark:m.ark", some_matrices())
    assert len(list(read_matrices("ark:echo hello >&2; cat m.ark |"))) == 3
    assert "hello" in capsys.readouterr().err


def test_an_early_stop_ends_the_command(here):
    write_matrices("ark:m.ark", some_matrices())
    stream = read_matrices("ark:cat m.ark; echo $$ > pid; sleep 1000 |")
    next(stream)
    for _ in range(200):
        if Path("pid").exists() and Path("pid").read_text().strip():
            break
        time.sleep(0.02)
    stream.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)


def test_a_pipeline_whose_reader_stops_early_is_no_failure(here):
    write_matrices("ark:m.ark", some_matrices(1))
    size = Path("m.ark").stat().st_size
    python = f"{sys.executable} -c 'import shutil, sys; [shutil.copyfileobj(open(name, \"rb\"), sys.stdout.buffer) "
    python += "for name in sys.argv[1:]]'"
    for first in ("cat m.ark /dev/zero", "cat m.ark /dev/zero | cat", f"{python} m.ark /dev/zero"):
        assert len(list(read_matrices(f"ark:{first} | head -c {size} |"))) == 1
    Path("p.scp").write_text(f"utt0 {python} m.ark /dev/zero | tail -c +6 | head -c {size} |\n")
    assert len(list(read_matrices("scp:p.scp"))) == 1
    with pytest.raises(UserError, match="exit status 1"):
        list(read_matrices(f"ark:cat m.ark none.ark | head -c {size} |"))


def test_a_failing_output_command_tells_its_status_and_stderr(here):
    for command, said in (("cat > /dev/null; echo too bad >&2; exit 3", "exit status 3: too bad"),
                          ("exit 4", "exit status 4"), ("true", "stopped reading")):
        with pytest.raises(UserError, match=said):
            with MatrixWriter(f"ark:| {command}") as writer:
                for i in range(100):
                    writer.write(f"u{i}", np.zeros((500, 100), np.float32))


def test_an_exception_ends_the_output_command(here):
    with pytest.raises(KeyError):
        with MatrixWriter("ark:| cat > out.tmp && mv out.tmp out.ark") as writer:
            writer.write("a", np.zeros((2, 2)))
            raise KeyError
    assert not Path("out.ark").exists()


# ---------------------------------------------------------------------------------------------------------- writers

def left(path: Path) -> set:
    return {p.name for p in path.iterdir()}


def test_an_exception_leaves_nothing_and_keeps_the_old(here):
    wanted = some_matrices()
    write_matrices("ark,scp:m.ark,m.scp", wanted)
    with pytest.raises(KeyError):
        with MatrixWriter("ark,scp:m.ark,m.scp") as writer:
            writer.write("new", np.zeros((2, 2)))
            raise KeyError
    assert left(here) == {"m.ark", "m.scp"}
    same(list(read_matrices("scp:m.scp")), wanted)
    with MatrixWriter("ark,scp:m.ark,m.scp") as writer:
        writer.write("new", np.zeros((2, 2)))
        same(list(read_matrices("scp:m.scp")), wanted)  # the old one until the end
    assert [utt for utt, _ in read_matrices("scp:m.scp")] == ["new"] and left(here) == {"m.ark", "m.scp"}


def test_a_link_is_followed(here):
    os.mkdir("store")
    os.symlink("store/m.ark", "m.ark")
    write_matrices("ark:m.ark", some_matrices())
    assert Path("m.ark").is_symlink() and left(here / "store") == {"m.ark"}
    os.symlink("store/m.scp", "m.scp")
    for _ in range(2):  # into nothing, and over an older index
        write_matrices("ark,scp:m.ark,m.scp", some_matrices())
        assert Path("m.scp").is_symlink() and left(here / "store") == {"m.ark", "m.scp"}


def test_writing_to_devices(here):
    write_matrices("ark:/dev/null", some_matrices())
    with pytest.raises(UserError, match="/dev/full: cannot be written: No space left on device"):
        write_matrices("ark:/dev/full", some_matrices())
    with pytest.raises(UserError, match="/dev/full: cannot be written: No space left on device"):
        write_matrices("ark:/dev/full", some_matrices(rows=100000))


@pytest.mark.parametrize("name", ["m.ark", "m.ark.gz"])
def test_a_full_disk_leaves_nothing(here, name):
    code = f"""if True:
        import resource, signal, sys
        import numpy as np
        from essence_kd.io.errors import UserError
        from essence_kd.io.tables import MatrixWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        rng = np.random.default_rng(0)
        try:
            with MatrixWriter("ark:{name}") as writer:
                for i in range(100):
                    writer.write(f"u{{i}}", rng.random((100, 100)))
        except UserError as error:
            sys.exit(f"said: {{error}}")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": PYTOOLS})
    assert done.returncode == 1 and f"said: {name}: cannot be written: File too large" in done.stderr, done.stderr
    assert left(here) == set()


def test_targets_that_cannot_be_written(here):
    with pytest.raises(UserError, match=r"no/such/m.ark: cannot be written: its directory does not exist \(mkdir -p"):
        MatrixWriter("ark:no/such/m.ark")
    os.mkdir("folder")
    with pytest.raises(UserError, match="folder: is a directory"):
        MatrixWriter("ark:folder")
    with pytest.raises(UserError, match="folder: is a directory"):
        MatrixWriter("ark,scp:m.ark,folder")
    with pytest.raises(UserError, match="/proc/m.ark: cannot be written"):
        MatrixWriter("ark:/proc/m.ark")
    assert left(here) == {"folder"}


def test_a_read_only_directory():
    code = """if True:
        import os, sys, tempfile
        from essence_kd.io.errors import UserError
        from essence_kd.io.tables import MatrixWriter
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(f"{folder}/locked", 0o555)
            os.chmod(folder, 0o755)
            if os.geteuid() == 0:
                os.seteuid(65534)  # root may write anywhere
            try:
                MatrixWriter(f"ark:{folder}/locked/m.ark")
            except UserError as error:
                print(error)
            if os.getuid() == 0:
                os.seteuid(0)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": PYTOOLS})
    assert "locked/m.ark: cannot be written: Permission denied" in done.stdout, done.stderr


def test_a_killed_writer_leaves_no_name(here):
    code = ("import os, signal\nimport numpy as np\nfrom essence_kd.io.tables import *\n"
            "with MatrixWriter('ark,scp:m.ark,m.scp') as w:\n"
            "    for i in range(1000):\n        w.write(f'u{i}', np.zeros((100, 100)))\n"
            "        if i == 500: os.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": PYTOOLS})
    assert done.returncode == -signal.SIGKILL
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left(here))


def test_utterance_ids_that_cannot_be(here):
    with MatrixWriter("ark:m.ark") as writer:
        writer.write("a", np.zeros((1, 1)))
        for utt in ("", "b c", "b\n", " b"):
            with pytest.raises(UserError, match="cannot be an utterance id"):
                writer.write(utt, np.zeros((1, 1)))
        with pytest.raises(UserError, match="utterance a is written twice"):
            writer.write("a", np.zeros((1, 1)))
    assert writer.count == 1


@pytest.mark.parametrize("writer, value", [(MatrixWriter, np.zeros(3)), (VectorWriter, np.zeros((3, 3))),
                                           (IntVectorWriter, np.zeros(3)), (IntVectorWriter, [2**31]),
                                           (MatrixWriter, [["a"]])])
def test_wrong_arrays_are_refused(here, writer, value):
    with pytest.raises(ValueError), writer("ark:m.ark") as stream:
        stream.write("a", value)
    assert left(here) == set()


def test_no_files_stay_open(here):
    write_matrices("ark,scp:m.ark,m.scp", some_matrices())
    list(read_matrices("ark:cat m.ark |"))
    before = len(os.listdir("/proc/self/fd"))
    for spec in ("ark:m.ark", "scp:m.scp", "ark:cat m.ark |", "ark:m.ark"):
        list(read_matrices(spec))
        next(read_matrices(spec))
    write_matrices("ark:| cat > /dev/null", some_matrices())
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_the_decoders_environment_suffices():
    """tables and posterior run without torch, lhotse and the kaldi packages, and leave the environment alone."""
    code = """if True:
        import os, sys
        for name in ("torch", "lhotse", "kaldi_io", "kaldi_native_io", "scipy", "k2"):
            sys.modules[name] = None
        before = dict(os.environ)
        import io
        import numpy as np
        from essence_kd.io.posterior import PosteriorWriter, read_posteriors
        from essence_kd.io.tables import MatrixWriter, read_matrices
        with MatrixWriter("ark:/dev/null") as writer:
            writer.write("a", np.ones((2, 2)))
        sys.stdin = io.TextIOWrapper(io.BytesIO(b"a \\0BFM \\4\\1\\0\\0\\0\\4\\1\\0\\0\\0\\0\\0\\0\\0"))
        print(list(read_matrices("ark:-")))
        assert dict(os.environ) == before
    """
    env = {key: value for key, value in os.environ.items() if key != "KALDI_ROOT"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**env, "PYTHONPATH": PYTOOLS})
    assert done.returncode == 0 and done.stderr == "" and "array([[0.]]" in done.stdout, done.stderr


@pytest.mark.parametrize("limit", [40, 256])
def test_more_archives_than_files_may_be_open(tmp_path, limit):
    """ulimit -n is 1024 where many a recipe has more jobs, and 256 here and there; two tables, entry by entry."""
    matrices = some_matrices(300, rows=1)
    lines = []
    for utt, matrix in matrices.items():
        write_matrices(f"ark,scp:{tmp_path}/{utt}.ark,{tmp_path}/x.scp", {utt: matrix})
        lines.append((tmp_path / "x.scp").read_text())
    (tmp_path / "all.scp").write_text("".join(lines))
    code = """if True:
        import sys
        from essence_kd.cli.main import main
        from essence_kd.io.tables import MatrixTable, read_matrices
        table = MatrixTable("all.scp")
        total = sum(float((table[utt] + matrix).sum()) for utt, matrix in read_matrices("scp:all.scp"))
        print(total)
        sys.exit(main(["prune-post", "--input", "logit", "--top-k", "2", "scp:all.scp", "ark:post.ark"]))
    """
    done = subprocess.run(["bash", "-c", f'ulimit -n {limit} && exec "$@"', "-", sys.executable, "-c", code],
                          cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": PYTOOLS})
    assert done.returncode == 0 and "300 utterances" in done.stderr, done.stderr
    assert float(done.stdout) == pytest.approx(2 * sum(float(matrix.sum()) for matrix in matrices.values()), abs=0.1)
