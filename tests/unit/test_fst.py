"""OpenFst files: against kaldifst and OpenFst's tools, and for any transducer."""
import os
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.hmm import fst as F
from essence_kd.io.errors import UserError


def random_fst(rng, states=30, arcs=100):
    final = np.where(rng.random(states) < 0.3, rng.random(states), np.inf)
    return F.make_fst(rng.integers(0, states, arcs), rng.integers(0, states, arcs), rng.integers(0, 9, arcs),
                      rng.integers(0, 9, arcs), rng.random(arcs), final, int(rng.integers(0, states)))


def assert_same(a, b):
    for name in ("src", "dst", "ilabel", "olabel", "weight", "final"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.start == b.start


@pytest.mark.parametrize("seed", range(5))
def test_fst_files_agree_with_kaldifst(tmp_path, seed):
    import kaldifst

    fst = random_fst(np.random.default_rng(seed), states=1 + 7 * seed, arcs=23 * seed)
    F.write_fst(tmp_path / "a.fst", fst)
    assert_same(F.read_fst(tmp_path / "a.fst"), fst)
    theirs = kaldifst.StdVectorFst.read(str(tmp_path / "a.fst"))
    assert theirs.num_states == fst.num_states
    assert sum(theirs.num_arcs(s) for s in range(theirs.num_states)) == fst.num_arcs
    theirs.write(str(tmp_path / "vector.fst"))
    kaldifst.StdConstFst(theirs).write(str(tmp_path / "const.fst"))
    assert_same(F.read_fst(tmp_path / "vector.fst"), fst)
    assert_same(F.read_fst(tmp_path / "const.fst"), fst)
    assert_same(F.from_kaldifst(F.to_kaldifst(fst)), fst)


@pytest.mark.mount
def test_a_temporary_folder_without_room_is_named(tmp_path):
    """kaldifst only answers false there; the graph of a decoder and its lattices go through such files."""
    code = """if True:
        import kaldifst
        import numpy as np
        from essence_kd.hmm import fst as F
        from essence_kd.io.errors import UserError
        big = F.make_fst(*np.zeros((4, 5000), int), np.zeros(5000), np.zeros(1), 0)
        F.write_fst("big.fst", big)
        theirs = kaldifst.StdVectorFst.read("big.fst")
        for work in (lambda: F.to_kaldifst(big), lambda: F.from_kaldifst(theirs), F.written(theirs).__enter__):
            try:
                work()
            except UserError as error:
                print(error)
    """
    (tmp_path / "small").mkdir()
    mount = 'mount -t tmpfs -o size=32k tmpfs small && exec "$@"'
    done = subprocess.run(["unshare", "--mount", "sh", "-c", mount, "-", sys.executable, "-c", code], cwd=tmp_path,
                          env={**os.environ, "TMPDIR": str(tmp_path / "small"), "PYTHONPATH": str(ROOT / "pytools")},
                          stdout=subprocess.PIPE, text=True, timeout=60)
    told = done.stdout.splitlines()
    assert len(told) == 3 and all(f"{tmp_path}/small/" in line and "cannot be written" in line for line in told), told
    assert "No space left" in told[0] and all("TMPDIR" in line for line in told[1:])


@pytest.mark.openfst
def test_fst_from_a_pipe_is_read(tmp_path):
    """A pipe cannot be sought in: the header's counts stay unknown."""
    fst = random_fst(np.random.default_rng(3))
    F.write_fst(tmp_path / "a.fst", fst)
    subprocess.run(["bash", "-c", f"fstprint {tmp_path}/a.fst | fstcompile | cat > {tmp_path}/b.fst"], check=True)
    read = F.read_fst(tmp_path / "b.fst")  # fstprint begins with the start state, so states have other numbers
    assert (read.num_states, read.num_arcs) == (fst.num_states, fst.num_arcs)
    assert sorted(read.ilabel) == sorted(fst.ilabel)
    assert sorted(read.weight) == pytest.approx(sorted(fst.weight), rel=1e-4)


def test_fst_with_symbol_tables_is_read(tmp_path):
    import kaldifst

    (tmp_path / "syms").write_text("<eps> 0\na 1\nb 2\n")
    fst = kaldifst.compile("0 1 1 2 0.5\n1 0.25\n", acceptor=False)
    table = kaldifst.SymbolTable.read_text(str(tmp_path / "syms"))
    fst.input_symbols = table
    fst.output_symbols = table
    fst.write(str(tmp_path / "a.fst"))
    read = F.read_fst(tmp_path / "a.fst")
    assert (read.ilabel.tolist(), read.olabel.tolist(), read.weight.tolist()) == ([1], [2], [0.5])
    assert read.final.tolist() == [np.inf, 0.25]


@pytest.mark.parametrize("keep", [0, 3, 20, 60, 500])
def test_truncated_fst_is_refused(tmp_path, keep):
    fst = random_fst(np.random.default_rng(0))
    F.write_fst(tmp_path / "a.fst", fst)
    whole = (tmp_path / "a.fst").read_bytes()
    (tmp_path / "a.fst").write_bytes(whole[:keep])
    with pytest.raises(UserError, match="a.fst: not a whole OpenFst file"):
        F.read_fst(tmp_path / "a.fst")
    with pytest.raises(UserError, match="b.fst"):
        F.read_fst(tmp_path / "b.fst")


def test_a_damaged_fst_is_an_error_or_an_fst(tmp_path):
    F.write_fst(tmp_path / "a.fst", random_fst(np.random.default_rng(1), states=6, arcs=9))
    whole = (tmp_path / "a.fst").read_bytes()
    rng, refused = np.random.default_rng(2), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / "a.fst").write_bytes(damaged)
        try:
            fst = F.read_fst(tmp_path / "a.fst")
            assert len(fst.src) == len(fst.dst) == len(fst.weight) <= 9
        except UserError:
            refused += 1
    assert refused > 40


def test_a_count_below_zero_ends(tmp_path):
    """Where the header does not know how many states there are, it could lead back to the first state for ever."""
    F.write_fst(tmp_path / "a.fst", F.make_fst([], [], [], [], [], [np.inf] * 4))
    data = bytearray((tmp_path / "a.fst").read_bytes())
    data[-64:-48] = b"\xff" * 16  # states and arcs: unknown
    data[-8:] = (-3).to_bytes(8, "little", signed=True)  # arcs of the last state
    (tmp_path / "a.fst").write_bytes(data)
    with pytest.raises(UserError, match="not a whole OpenFst file"):
        F.read_fst(tmp_path / "a.fst")


# ------------------------------------------------------------------------------------------------------ any transducer

COSTS = st.floats(width=32, allow_nan=False)


@st.composite
def fsts(draw):
    """Any transducer, the empty one and those without arcs, final states or a way to them included."""
    states = draw(st.integers(0, 12))
    if not states:
        return F.make_fst([], [], [], [], [], [], -1)
    state, label = st.integers(0, states - 1), st.integers(0, 2 ** 31 - 1)
    arcs = draw(st.lists(st.tuples(state, state, label, label, COSTS), max_size=30))
    final = draw(st.lists(COSTS, min_size=states, max_size=states))
    return F.make_fst(*(zip(*arcs) if arcs else ([],) * 5), final, draw(st.integers(-1, states - 1)))


@settings(deadline=None)
@given(fsts())
def test_what_is_written_is_read(tmp_path_factory, fst):
    path = tmp_path_factory.getbasetemp() / "any.fst"
    F.write_fst(path, fst)
    assert_same(F.read_fst(path), fst)
    assert path.stat().st_size == 4 + 4 + 6 + 4 + 8 + 40 + 12 * fst.num_states + 16 * fst.num_arcs


@settings(deadline=None, max_examples=40)
@given(fsts())
def test_kaldifst_has_the_same_transducer(fst):
    if fst.start < 0:  # OpenFst keeps no states of a transducer without a start
        return
    assert_same(F.from_kaldifst(F.to_kaldifst(fst)), fst)


@given(fsts(), st.sampled_from(["ilabel", "olabel"]))
def test_sorting_keeps_every_arc_with_its_state(fst, by):
    columns = ("src", "dst", "ilabel", "olabel", "weight")
    done = F.sort_arcs(fst, by)
    rows, before = (sorted(zip(*(getattr(x, name).tolist() for name in columns))) for x in (done, fst))
    assert rows == before and (np.diff(done.src) >= 0).all()
    assert (np.diff(getattr(done, by).astype(np.int64))[np.diff(done.src) == 0] >= 0).all()
    assert_same(F.sort_arcs(done, by), done)


@settings(deadline=None)
@given(fsts(), st.data())
def test_any_damage_is_an_error_or_a_transducer(tmp_path_factory, fst, data):
    path = tmp_path_factory.getbasetemp() / "any.fst"
    F.write_fst(path, fst)
    damaged = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        read = F.read_fst(path)
    except UserError as error:
        assert "any.fst" in str(error)
        return
    assert read.num_states <= fst.num_states and read.num_arcs == len(read.dst) == len(read.weight)
    assert -1 <= read.start < max(1, read.num_states)
    assert not read.num_arcs or 0 <= read.dst.min() and read.dst.max() < read.num_states
