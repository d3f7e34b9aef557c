"""The Posterior codec: Kaldi's own bytes, every shape, random access, damage, and the verb that copies."""
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import kaldi_native_io
import numpy as np
import pytest
from builders.posteriors import MANY, as_lists, fixed, ragged, same, write
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.io import posterior, sources, tables
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import Posterior, PosteriorTable, PosteriorWriter, read_posteriors

pytestmark = pytest.mark.usefixtures("inner_loops")
PYTOOLS = str(Path(posterior.__file__).resolve().parents[2])


def write_theirs(wspecifier: str, posts: dict) -> None:
    with kaldi_native_io.PosteriorWriter(wspecifier) as writer:
        for utt, post in posts.items():
            writer.write(utt, as_lists(post))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------ the bytes of Kaldi

@pytest.mark.parametrize("text", ["", ",t"])
def test_our_bytes_are_kaldis_and_each_reads_the_other(here, text):
    write(f"ark{text},scp:ours.ark,ours.scp", MANY)
    write_theirs(f"ark{text},scp:theirs.ark,theirs.scp", MANY)
    assert Path("ours.ark").read_bytes() == Path("theirs.ark").read_bytes()
    for spec in ("ark:theirs.ark", "scp:ours.scp", "scp:theirs.scp", "ark:cat theirs.ark |"):
        found = dict(read_posteriors(spec))
        assert list(found) == list(MANY)
        for utt, post in found.items():
            same(post, MANY[utt], exact=not text)
    with kaldi_native_io.SequentialPosteriorReader("scp:ours.scp") as reader:
        for utt, value in reader:
            assert [[i for i, _ in frame] for frame in value] == [[i for i, _ in frame] for frame in
                                                                  as_lists(MANY[utt])]
            if not text:
                assert value == as_lists(MANY[utt])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 2**32 - 1),
                          st.sampled_from([0.0, 0.3, 1.0])), max_size=4))
def test_any_posterior_is_kaldis_bytes_and_comes_back(tmp_path_factory, drawn):
    path = tmp_path_factory.getbasetemp() / "any"
    path.mkdir(exist_ok=True)
    posts = {f"u{i}": ragged(counts, seed, zeros) for i, (counts, seed, zeros) in enumerate(drawn)}
    write(f"ark,scp:{path}/a.ark,{path}/a.scp", posts)
    write_theirs(f"ark:{path}/b.ark", posts)
    assert (path / "a.ark").read_bytes() == (path / "b.ark").read_bytes()
    table = PosteriorTable(f"{path}/a.scp")
    assert len(table) == len(posts)
    for utt, post in read_posteriors(f"ark:{path}/a.ark"):
        same(post, posts[utt])
        same(table[utt], posts[utt])
        frames = post.num_frames
        for start, stop in ((0, frames), (frames // 3, frames // 2), (frames, frames)):
            same(table.frames(utt, start, stop), posts[utt][start:stop])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2**23 - 1), st.floats(width=32, allow_nan=False,
                                                                        allow_infinity=False)), max_size=5),
                max_size=12))
def test_any_weights_come_back(tmp_path_factory, frames):
    """Weights may be negative, denormal or zero, as in Kaldi's other uses of the type."""
    path = tmp_path_factory.getbasetemp() / "weights.ark"
    offsets = np.cumsum([0] + [len(frame) for frame in frames])
    post = Posterior(offsets, [i for frame in frames for i, _ in frame], [p for frame in frames for _, p in frame])
    write(f"ark:{path}", {"u": post})
    (utt, found), = read_posteriors(f"ark:{path}")
    same(found, post)


def test_lookalike_cells_do_not_mislead(here):
    """Weights whose bits are a count, pdf-ids that equal the number of entries: only the chain of lengths tells."""
    tiny = np.array([1, 2, 0, 3], np.int32).view(np.float32)
    posts = {"a": Posterior([0, 2, 4, 4, 8], [2, 0, 1, 1, 4, 2, 2, 2], np.concatenate([tiny, tiny])),
             "b": Posterior([0, 2, 4], [2, 2, 2, 2], tiny),
             "c": Posterior(np.arange(0, 402, 2), np.full(400, 2), np.zeros(400)),
             "d": Posterior(np.concatenate([np.arange(0, 402, 2), [401]]), np.full(401, 2), np.zeros(401))}
    write("ark,scp:a.ark,a.scp", posts)
    table = PosteriorTable("a.scp")
    for utt, post in read_posteriors("ark:a.ark"):
        same(post, posts[utt])
        same(table.frames(utt, 1, 2), posts[utt][1:2])


def test_utterances_larger_than_any_buffer(here):
    posts = {"a": fixed(30000, 20), "b": ragged(np.random.default_rng(0).integers(0, 40, 30000), zeros=0.01),
             "c": ragged(np.concatenate([[200], np.ones(40000, int)])),
             "d": ragged(np.concatenate([np.ones(1000, int), np.full(5000, 90)])), "e": fixed(3, 2)}
    write("ark,scp:a.ark,a.scp", posts)
    for spec in ("ark:a.ark", "ark:cat a.ark |", "scp:a.scp", "ark:gzip -c a.ark | gunzip -c |"):
        found = dict(read_posteriors(spec))
        for utt in posts:
            same(found[utt], posts[utt])


def test_arrays_of_other_types_are_written(here):
    ids, probs = np.array([[5, 3], [1, 0]]), np.array([[0.75, 0.25], [0.5, 0.5]])
    with PosteriorWriter("ark:a.ark") as writer:
        writer.write("a", ids.astype(np.uint16), probs)
        writer.write("b", ids[::-1], probs[::-1].astype(np.float16))
        writer.write_ragged("c", [0, 2, 4], ids.ravel(), probs.ravel())
        writer.write("d", np.asfortranarray(ids), np.asfortranarray(probs))
    found = dict(read_posteriors("ark:a.ark"))
    for utt in "acd":
        assert found[utt].fixed_k()[0].tolist() == ids.tolist() and found[utt].fixed_k()[1].tolist() == probs.tolist()
    assert found["b"].fixed_k()[0].tolist() == ids[::-1].tolist()


def test_ranges_in_scp_lines(here):
    write("ark,scp:a.ark,a.scp", MANY)
    lines = [line for line in Path("a.scp").read_text().splitlines() if line.startswith(("fixed ", "varying "))]
    Path("r.scp").write_text("".join(f"{line}[2:5]\n" for line in lines))
    table = PosteriorTable("r.scp")
    for utt, post in read_posteriors("scp:r.scp"):
        same(post, MANY[utt][2:6])
        same(table[utt], MANY[utt][2:6])
        same(table.frames(utt, 1, 3), MANY[utt][3:5])


def test_frames_touch_no_more_than_they_need(here):
    """A frame range of a damaged archive is fine as long as the damage lies behind it."""
    post = fixed(50, 4)
    write("ark,scp:a.ark,a.scp", {"u": post})
    data = bytearray(Path("a.ark").read_bytes())
    data[2 + 7 + 30 * 45] = 9  # the tag of frame 30
    Path("a.ark").write_bytes(data)
    table = PosteriorTable("a.scp")
    same(table.frames("u", 3, 20), post[3:20])
    with pytest.raises(UserError, match="utterance u: not a readable posterior"):
        table.frames("u", 20, 40)
    with pytest.raises(UserError, match="a.ark: utterance u: not a readable posterior"):
        table["u"]


def test_frames_that_do_not_exist(here):
    write("ark,scp:a.ark,a.scp", {"fixed": fixed(10, 3), "varying": ragged([1, 2, 3])})
    write("compact:ark,scp:c.ark,c.scp", {"fixed": fixed(10, 3), "varying": ragged([1, 2, 3])})
    for name in ("a.scp", "c.scp"):
        table = pickle.loads(pickle.dumps(PosteriorTable(name)))
        for utt, start, stop in (("fixed", 0, 11), ("fixed", -1, 3), ("fixed", 4, 3), ("varying", 2, 4)):
            with pytest.raises(UserError, match=f"{name}: utterance {utt}: frames {start}:{stop} of"):
                table.frames(utt, start, stop)
        with pytest.raises(UserError, match="no utterance nobody"):
            table.frames("nobody", 0, 1)


def test_frames_of_an_archive_that_moved_away(here):
    write("ark,scp:a.ark,a.scp", {"u": fixed(3, 2)})
    Path("a.ark").rename("b.ark")
    with pytest.raises(UserError, match="^a.scp: utterance u: .*a.ark: cannot be read: No such file"):
        PosteriorTable("a.scp").frames("u", 0, 2)


# ------------------------------------------------------------------------------------------------- the class itself

def test_views_of_a_posterior():
    post = ragged([2, 0, 3])
    assert post.num_frames == 3 and post.num_entries == 5 and post.counts().tolist() == [2, 0, 3]
    ids, probs = post.padded()
    assert ids.shape == probs.shape == (3, 3)
    assert ids[0].tolist() == [*post.ids[:2], 0] and probs[0].tolist() == [*post.probs[:2], 0] and not probs[1].any()
    assert post.padded(5)[0].shape == (3, 5)
    np.testing.assert_allclose(post.mass(), probs.sum(1, dtype=np.float64))
    with pytest.raises(UserError, match="from 0 to 3 entries"):
        post.fixed_k()
    with pytest.raises(UserError, match="3 entries where at most 2"):
        post.padded(2)
    steady = Posterior.from_fixed(np.array([[1, 2], [3, 4]]), np.array([[0.5, 0.25], [1, 0]]))
    assert steady.fixed_k()[0].tolist() == [[1, 2], [3, 4]] and steady.mass().tolist() == [0.75, 1]
    assert steady.padded(3)[0].tolist() == [[1, 2, 0], [3, 4, 0]] and steady[1:].fixed_k()[0].tolist() == [[3, 4]]
    assert fixed(0, 0).fixed_k()[0].shape == (0, 0) and fixed(0, 0).padded(4)[0].shape == (0, 4)
    with pytest.raises(ValueError):
        steady[::2]


# -------------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("ids, probs, said", [
    ([[1, -2]], [[0.5, 0.5]], "pdf-id is -2"), ([[1, 2**23]], [[0.5, 0.5]], "pdf-id is 8388608"),
    ([[1, 2**40]], [[0.5, 0.5]], "32-bit"), ([[1.5, 2]], [[0.5, 0.5]], "32-bit"),
    ([[1, 2]], [[0.5, np.nan]], "not a finite"), ([[1, 2]], [[0.5, np.inf]], "not a finite"),
    ([[1, 2]], [[0.5]], r"ids \(1, 2\) and probabilities \(1, 1\)"), ([1, 2], [0.5, 0.5], "are not both"),
    ([[1, 99]], [[0.5, 0.5]], "pdf-id 99 where there are 99 pdfs")])
@pytest.mark.parametrize("spec", ["ark:a.ark", "ark,t:a.ark", "compact:ark:a.ark"])
def test_what_cannot_be_written(here, ids, probs, said, spec):
    with pytest.raises(UserError, match=f"a.ark: utterance u: .*{said}"):
        with PosteriorWriter(spec, num_pdfs=99 if "99" in said else None) as writer:
            writer.write("u", np.array(ids), np.array(probs))
    assert not list(here.iterdir())


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [], [0, 2, 1, 2], [[0, 2]]])
def test_offsets_that_describe_nothing(here, offsets):
    with pytest.raises(UserError, match="do not describe one posterior"):
        with PosteriorWriter("ark:a.ark") as writer:
            writer.write_ragged("u", np.array(offsets), np.array([1, 2]), np.array([0.5, 0.5]))


def test_text_by_hand_is_what_kaldi_reads(here):
    """`[ ]` is a frame without entries, an empty line an utterance without frames."""
    lines = {"a": "[ ]", "b": "", "c": "[ 1 0.5 ] [ ]", "d": "[ ] [ ]", "e": "[ 1 .5 2 1e-3] [ 3 1 ]",
             "f": "[ 1 1 ][ ]"}
    Path("t.txt").write_text("".join(f"{utt} {line}\n" for utt, line in lines.items()) + "g\n")
    found = dict(read_posteriors("ark:t.txt"))
    with kaldi_native_io.SequentialPosteriorReader("ark:t.txt") as reader:
        theirs = dict(reader)
    assert list(found) == list(theirs) == [*lines, "g"]
    assert [len(value) for value in theirs.values()] == [1, 0, 2, 2, 2, 2, 0]
    for utt, value in theirs.items():
        assert as_lists(found[utt]) == value


@pytest.mark.parametrize("line", ["[ 1 0.5", "1 0.5 ]", "[ 1 ]", "[ 1 0.5 ] 2", "[ [ 1 0.5 ]", "[ x 0.5 ]",
                                  "[ 1 nan ]", "[ -1 0.5 ]", "[ 1.5 0.5 ]", "] [", "[ 1 0.5]2", "[ 99999999999 1 ]"])
def test_bad_text(here, line):
    Path("a.ark").write_text(f"good [ 1 0.5 2 0.5 ] [ ]\nbad {line}\n")
    stream = read_posteriors("ark:a.ark")
    assert next(stream)[1].counts().tolist() == [2, 0]
    with pytest.raises(UserError, match="a.ark: utterance bad: not a readable posterior"):
        next(stream)


def test_other_tables_are_not_posteriors(here):
    with tables.IntVectorWriter("ark:i.ark") as ints, tables.MatrixWriter("ark:m.ark") as matrices:
        ints.write("u", [40, 2, 3])
        matrices.write("u", np.ones((3, 4)))
    for name, said in (("i.ark", ""), ("m.ark", ".*a matrix: prune-post makes posteriors of matrices")):
        with pytest.raises(UserError, match=f"{name}: utterance u: {said}"):
            list(read_posteriors(f"ark:{name}"))
    with pytest.raises(UserError, match="i.ark: utterance u: .*posteriors or whole numbers"):
        list(tables.read_matrices("ark:i.ark"))
    with pytest.raises(UserError, match="leave out compact:"):
        list(read_posteriors("compact:ark:i.ark"))


def mutants() -> dict:
    return {"f": fixed(4, 2), "v": ragged([2, 0, 1, 3, 1]), "z": ragged([1, 2, 0], zeros=1.0)}


@pytest.mark.parametrize("prefix", ["", "compact:"])
def test_every_prefix_is_an_error_or_whole_utterances(here, prefix):
    write(f"{prefix}ark:a.ark", mutants())
    wanted = list(read_posteriors("ark:a.ark"))
    whole = Path("a.ark").read_bytes()
    assert len(wanted) == 3
    for size in range(len(whole)):
        Path("cut.ark").write_bytes(whole[:size])
        seen = []
        try:
            for utt, post in read_posteriors("ark:cut.ark"):
                seen.append(utt)
                same(post, dict(wanted)[utt])
        except UserError as error:
            assert "cut.ark" in str(error)
        assert len(seen) < 3, size


@pytest.mark.parametrize("prefix", ["", "compact:"])
@pytest.mark.parametrize("utt", list(mutants()))
def test_every_byte_damaged(here, prefix, utt):
    """Any one byte of a utterance's body set to 8 other values: an error or well-formed data of no larger size.

    In the compact form the checksum finds them all. Kaldi's form has none: a pdf-id or a weight may change unseen.
    """
    post = mutants()[utt]
    write(f"{prefix}ark,scp:a.ark,a.scp", {utt: post})
    whole = np.frombuffer(Path("a.ark").read_bytes(), np.uint8)
    rng = np.random.default_rng(3)
    caught = 0
    (_, right), = read_posteriors("ark:a.ark")
    tracemalloc.start()
    for place in range(2, len(whole)):
        for flip in rng.choice(np.arange(1, 256), 4, replace=False):
            damaged = whole.copy()
            damaged[place] ^= flip
            Path("a.ark").write_bytes(damaged.tobytes())
            for read in (lambda: dict(read_posteriors("ark:a.ark"))[utt], lambda: PosteriorTable("a.scp")[utt],
                         lambda: PosteriorTable("a.scp").frames(utt, 1, 2)):
                try:
                    found = read()
                except UserError:
                    caught += 1
                else:
                    assert found.offsets[0] == 0 and found.offsets[-1] == len(found.ids) == len(found.probs)
                    assert (np.diff(found.offsets) >= 0).all() and found.num_entries <= len(whole)
                    assert np.isfinite(found.probs).all() and (found.ids >= 0).all()
                    if prefix and found.num_frames != 1:
                        same(found, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught > len(whole) and peak < 3 * sources.BLOCK


def test_claimed_sizes_take_no_memory(here):
    def claims(frames, k):
        return (b"u \0B\4" + np.int32(frames).tobytes() + b"\4" + np.int32(k).tobytes() + b"\4" * 500)

    for frames, k in ((2**31 - 1, 1), (2, 2**31 - 1), (2**31 - 1, 2**31 - 1), (60, 0), (-1, 3), (3, -1), (100, 3)):
        Path("lie.ark").write_bytes(claims(frames, k))
        Path("lie.scp").write_text("u lie.ark:2\n")
        for read in (lambda: list(read_posteriors("ark:lie.ark")), lambda: list(read_posteriors("ark:cat lie.ark |")),
                     lambda: PosteriorTable("lie.scp")["u"], lambda: PosteriorTable("lie.scp").frames("u", 0, 50)):
            tracemalloc.start()
            with pytest.raises(UserError, match="utterance u: "):
                read()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4 * sources.BLOCK, (frames, k)


# --------------------------------------------------------------------------------------------------------- the verb

def essence(*args, **options):
    return subprocess.run([sys.executable, "-m", "essence_kd", *args], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": PYTOOLS, "OMP_NUM_THREADS": "1"}, **options)


def test_copy_post_goes_round_all_forms(here):
    posts = {"a": fixed(9, 5), "b": ragged([1, 0, 4])}
    write("ark,scp:post.ark,post.scp", posts)
    Path("essence.json").write_text('{"num_pdfs": 8816, "k": 5}')
    done = essence("copy-post", "scp:post.scp", "ark,t:text.ark")
    assert done.returncode == 0 and "2 utterances, 12 frames, 50 entries" in done.stderr, done.stderr
    assert essence("copy-post", "ark:text.ark", "compact:ark,scp:small.ark,small.scp").returncode == 0
    assert essence("copy-post", "scp:small.scp", "ark,scp:back.ark,back.scp").returncode == 0
    for utt, post in read_posteriors("scp:back.scp"):
        np.testing.assert_array_equal(post.ids, posts[utt].ids)
        np.testing.assert_allclose(post.probs, posts[utt].probs, rtol=0.02, atol=1e-5)
    assert '"num_pdfs": 8816' in Path("text.json").read_text() and '"form": "compact"' in Path("small.json").read_text()
    assert '"form": "kaldi"' in Path("back.json").read_text()
    done = essence("copy-post", "scp:post.scp", "ark,t:-")
    assert done.stdout == Path("text.ark").read_text()


def test_copy_post_of_a_part_counts_the_part(here):
    write("ark,scp:post.ark,post.scp", {"a": fixed(9, 5), "b": ragged([1, 0, 4])})
    Path("essence.json").write_text('{"num_pdfs": 8816, "num_utts": 2, "num_frames": 12, "num_entries": 50, '
                                    '"mean_mass": 0.9, "frame_shift_ms": 30}')
    Path("part.scp").write_text(Path("post.scp").read_text().splitlines(keepends=True)[1])
    Path("part.json").write_text(Path("essence.json").read_text())
    assert essence("copy-post", "--repeat", "3", "scp:part.scp", "ark:out.ark").returncode == 0
    fields = json.loads(Path("out.json").read_text())
    assert [fields[key] for key in ("num_utts", "num_frames", "num_entries", "mean_mass", "frame_shift_ms")] == [
        1, 9, 15, None, 10]
    assert essence("copy-post", "scp:post.scp", "ark:all.ark").returncode == 0
    fields = json.loads(Path("all.json").read_text())
    assert (fields["num_utts"], fields["mean_mass"], fields["frame_shift_ms"]) == (2, 0.9, 30)


def test_copy_post_counts_information(here):
    write("ark:post.ark", {"a": fixed(9, 5)})
    done = essence("copy-post", "--num-pdfs", "8816", "--information", "5", "ark:post.ark", "ark:/dev/null")
    found = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 0 and found["entries"] == 45 and found["id_flat"] == pytest.approx(13.106, abs=0.001)


def test_copy_post_says_what_is_wrong(here):
    write("ark,scp:post.ark,post.scp", {"a": fixed(9, 5)})
    Path("empty.scp").write_text("")
    for args, said in ((["scp:nothing.scp", "ark:b.ark"], "nothing.scp: cannot be read"),
                       (["scp:empty.scp", "ark:b.ark"], "empty.scp: holds no utterance"),
                       (["scp:post.scp", "ark:none/b.ark"], "none/b.ark: cannot be written"),
                       (["scp:post.scp", "compact:ark,t:b.ark"], "no text form"),
                       (["--information", "5", "ark:post.ark", "ark:b.ark"], "give --num-pdfs"),
                       (["--information", "-1", "ark:post.ark", "ark:b.ark"], "--information -1: must be at least 0"),
                       (["--num-pdfs", "3", "scp:post.scp", "ark:b.ark"], "where there are 3 pdfs")):
        done = essence("copy-post", *args)
        assert done.returncode == 1 and done.stderr.startswith("essence copy-post: ") and said in done.stderr
        assert "Traceback" not in done.stderr and not Path("b.ark").exists()


# ---------------------------------------------------------------------------------------------------- as targets

@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 8)), max_size=6), max_size=6), st.booleans())
def test_weights_of_a_repeated_pdf_are_added_up(frames, alike):
    """Against dictionaries, which keep the order in which pdfs come first; weights are eighths: exact sums."""
    if alike:
        frames = [[*frame, *[(20 + i, 1) for i in range(6)]][:6] for frame in frames]
    counts = [len(frame) for frame in frames]
    entries = [entry for frame in frames for entry in frame]
    post = Posterior(np.concatenate([[0], np.cumsum(counts)]), [c for c, _ in entries], [w / 8 for _, w in entries])
    wanted = []
    for frame in frames:
        wanted.append({})
        for pdf, weight in frame:
            wanted[-1][pdf] = wanted[-1].get(pdf, 0) + weight / 8
    found = post.as_targets()
    assert as_lists(found) == [list(frame.items()) for frame in wanted]
    assert (found is post) == all(len(frame) == count for frame, count in zip(wanted, counts))


def test_a_repeated_pdf_is_seen_in_long_frames():
    ids = np.arange(70000, dtype=np.int32)[None]
    weights = np.full(ids.shape, 2.0 ** -17, np.float32)
    assert Posterior.from_fixed(ids, weights).as_targets().num_entries == 70000
    ids[0, 69999] = 3
    assert Posterior.from_fixed(ids, weights).as_targets().num_entries == 69999


@pytest.mark.parametrize("ids, probs, told", [
    ([3, 4], [0.5, -0.5], "frame 1: pdf-id 4 has probability -0.5"),
    ([3, 4], [0.5, np.nan], "frame 1: pdf-id 4 has probability nan"),
    ([3, 4], [np.inf, 0.5], "frame 0: pdf-id 3 has probability inf"),
    ([3, 9], [0.5, 0.5], "frame 1: pdf-id 9 where there are 9 pdfs"),
    ([-3, 8], [0.5, 0.5], "frame 0: pdf-id -3 is negative")])
def test_what_is_no_target_is_refused_by_its_frame(ids, probs, told):
    with pytest.raises(ValueError, match=told):
        Posterior([0, 1, 2], ids, probs).as_targets(9)
