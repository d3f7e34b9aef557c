"""The compact archive: exact pdf-ids, its stated error bound, its stated size, random access, and its checksum."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from essence_kd.io import compact
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import Posterior, PosteriorTable, PosteriorWriter, read_posteriors

ROOT = Path(__file__).resolve().parents[2]


def essence(frames: int, k: int, num_pdfs: int, seed: int = 0, steepness: float = 0.6) -> Posterior:
    """Distinct pdf-ids and probabilities in descending order that sum to 1 in each frame."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((frames, min(num_pdfs, 4 * k))), axis=1)[:, :k]
    ids = ids * (num_pdfs // min(num_pdfs, 4 * k)) + rng.integers(0, num_pdfs // min(num_pdfs, 4 * k), ids.shape)
    probs = np.exp(-np.cumsum(rng.exponential(steepness, (frames, k)), axis=1))
    return Posterior.from_fixed(ids.astype(np.int32), (probs / probs.sum(1, keepdims=True)).astype(np.float32))


def through(folder: Path, post: Posterior, **options) -> Posterior:
    with PosteriorWriter(f"compact:ark,scp:{folder}/c.ark,{folder}/c.scp", **options) as writer:
        writer.write("u", post)
    (_, found), = read_posteriors(f"ark:{folder}/c.ark")
    return found


def check_bound(found: Posterior, wanted: Posterior, num_pdfs: int) -> None:
    """What docs/formats.md promises."""
    np.testing.assert_array_equal(found.offsets, wanted.offsets)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    for start, stop in zip(wanted.offsets[:-1], wanted.offsets[1:]):
        p, q = wanted.probs[start:stop].astype(np.float64), found.probs[start:stop].astype(np.float64)
        if p.sum() == 0:
            assert not q.any()
            continue
        assert abs(q.sum() / p.sum() - 1) <= 2**-11 + 1e-6
        bound = compact.error_bound(num_pdfs) + len(p) * 2**-20 + 1e-5
        large = p >= p.max() * 2**-20
        assert (np.abs(q - p)[large] <= bound * p[large]).all()
        assert (np.abs(q - p)[~large] <= 2**-20 * p.max() * (1 + bound)).all()
        assert ((q == 0) == (p == 0)).all()
        assert (np.diff(q)[np.diff(p) <= 0] <= 0).all()  # the order stays


@pytest.mark.parametrize("num_pdfs", [20, 195, 8816, 16384, 16385, 65536, 65537, 1000000])
def test_ids_are_exact_and_the_bound_holds(tmp_path, num_pdfs):
    post = essence(200, 20, num_pdfs)
    post.ids[0], post.ids[-1] = 0, num_pdfs - 1
    check_bound(through(tmp_path, post, num_pdfs=num_pdfs), post, num_pdfs)


def test_the_bound_is_what_the_documentation_says():
    table = [line.split("|") for line in (ROOT / "docs" / "formats.md").read_text().splitlines()
             if line.startswith("| up to ") and "pdfs" in line]
    assert len(table) == 6
    for _, pdfs, bits, size, bound, _ in table:
        num_pdfs = int(pdfs.replace("up to", "").replace("pdfs", "").replace(",", ""))
        assert compact.widths(num_pdfs) == (int(bits), int(size))
        assert compact.widths(num_pdfs + 1) != (int(bits), int(size))
        assert compact.error_bound(num_pdfs) == pytest.approx(float(bound.strip(" %")) / 100, abs=0.00005)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 8815), st.floats(0, 1, width=32)), max_size=7), max_size=9))
def test_the_bound_holds_for_anything(tmp_path_factory, frames):
    folder = tmp_path_factory.getbasetemp() / "compact"
    folder.mkdir(exist_ok=True)
    offsets = np.cumsum([0] + [len(frame) for frame in frames])
    probs = np.array([p for frame in frames for _, p in frame], np.float32)
    probs[probs < 1e-4] *= np.float32(2**-10)  # mostly far below the frame's largest
    sums = np.add.reduceat(np.append(probs, 0), offsets[:-1]) if len(frames) else np.zeros(0)
    for i, total in enumerate(sums):  # the promise is for frames whose mass a float16 holds as a normal number
        if offsets[i] < offsets[i + 1] and total < 2**-13:
            probs[offsets[i]:offsets[i + 1]] = 0
    post = Posterior(offsets, [i for frame in frames for i, _ in frame], probs)
    check_bound(through(folder, post, num_pdfs=8816), post, 8816)


def test_what_is_exact(tmp_path):
    """One-hot frames, masses that are a multiple of 2^-11, empty frames, frames of zeros, equal probabilities."""
    probs = [1.0, 1.0, 0.0, 0.5, 0.25, 0.25, 0.0, 0.0, 0.75, 0.125, 0.125, 0.125, 0.125]
    post = Posterior([0, 1, 3, 3, 6, 8, 9, 13], np.arange(13), probs)
    np.testing.assert_allclose(through(tmp_path, post).probs[[0, 1, 2, 6, 7, 8, 9, 10, 11, 12]],
                               np.array(probs)[[0, 1, 2, 6, 7, 8, 9, 10, 11, 12]], rtol=1e-6)


def test_sums_stay_so_that_targets_need_no_second_normalisation(tmp_path):
    post = essence(500, 20, 8816)
    np.testing.assert_allclose(through(tmp_path, post).mass(), 1, atol=3e-7)
    post.probs[:] *= 0.9
    np.testing.assert_allclose(through(tmp_path, post).mass(), 0.9, rtol=2**-11)


def test_divergence_from_the_original_is_small(tmp_path):
    post = essence(2000, 20, 8816)
    found = through(tmp_path, post)
    p, q = post.probs.reshape(-1, 20).astype(np.float64), found.probs.reshape(-1, 20).astype(np.float64)
    assert (p * np.log(p / q)).sum(1).max() < 2.5e-5  # nats per frame: half the square of the largest error of ln p


@pytest.mark.parametrize("k, fixed", [(20, True), (20, False), (100, True), (100, False), (300, False)])
def test_size(tmp_path, k, fixed):
    """At most 3.2 bytes per entry: at k = 20, 62 bytes per frame, and 63 where the number of entries varies."""
    frames = 400
    post = essence(frames, k, 8816)
    if not fixed:
        counts = np.full(frames, k)
        counts[0] -= 1
        offsets = np.concatenate([[0], np.cumsum(counts)])
        post = Posterior(offsets, post.ids[1:], post.probs[1:])
    found = through(tmp_path, post)
    size = (tmp_path / "c.ark").stat().st_size
    layout = 0 if fixed else 1 if k < 256 else 2
    assert size == 2 + 30 + frames * (2 + layout) + 3 * post.num_entries
    assert size <= 3.2 * post.num_entries
    np.testing.assert_array_equal(found.ids, post.ids)


def test_random_access_by_utterance_and_frames(tmp_path):
    posts = {"a": essence(50, 20, 8816), "b": essence(40, 3, 8816, seed=1),
             "c": Posterior([0, 2, 2, 5], [1, 2, 3, 4, 5], [0.5, 0.5, 0.25, 0.25, 0.5]), "d": Posterior([0], [], [])}
    with PosteriorWriter(f"compact:ark,scp:{tmp_path}/c.ark,{tmp_path}/c.scp") as writer:
        for utt, post in posts.items():
            writer.write(utt, post)
    table = PosteriorTable(f"{tmp_path}/c.scp")
    for utt in reversed(list(posts)):
        whole = table[utt]
        np.testing.assert_array_equal(whole.ids, posts[utt].ids)
        frames = whole.num_frames
        for start, stop in ((0, frames), (frames // 3, frames // 2), (frames, frames)):
            part = table.frames(utt, start, stop)
            np.testing.assert_array_equal(part.ids, whole[start:stop].ids)
            np.testing.assert_array_equal(part.probs, whole[start:stop].probs)
            np.testing.assert_array_equal(part.offsets, whole[start:stop].offsets)


def test_equal_input_gives_equal_bytes_and_a_second_pass_changes_nothing(tmp_path):
    post = essence(100, 20, 8816)
    once = through(tmp_path, post)
    first = (tmp_path / "c.ark").read_bytes()
    through(tmp_path, post)
    assert (tmp_path / "c.ark").read_bytes() == first
    twice = through(tmp_path, once)
    np.testing.assert_allclose(twice.probs, once.probs, rtol=1e-6)


def test_field_widths_follow_num_pdfs_or_the_largest_id(tmp_path):
    post = Posterior([0, 2], [5, 7], [0.75, 0.25])
    bits = {}
    for num_pdfs in (None, 8, 1000, 8816, 30000, 65536, 70000):
        through(tmp_path, post, num_pdfs=num_pdfs)
        header = (tmp_path / "c.ark").read_bytes()[2:]
        bits[num_pdfs] = header[11], header[12]
    assert bits == {None: (14, 3), 8: (8, 3), 1000: (10, 3), 8816: (14, 3), 30000: (15, 3), 65536: (16, 3),
                    70000: (17, 4)}


@pytest.mark.parametrize("ids, probs, said", [([1], [-0.5], "negative weights"), ([1], [70000.0], "too large"),
                                              ([2**24 - 2**23], [0.5], "pdf-id is 8388608")])
def test_what_it_cannot_hold(tmp_path, ids, probs, said):
    with pytest.raises(UserError, match=f"c.ark: utterance u: .*{said}"):
        through(tmp_path, Posterior([0, 1], ids, probs))
    assert not (tmp_path / "c.ark").exists()


def test_damage_is_found_by_the_checksum(tmp_path):
    through(tmp_path, essence(30, 4, 100))
    whole = bytearray((tmp_path / "c.ark").read_bytes())
    whole[100] ^= 1
    (tmp_path / "c.ark").write_bytes(whole)
    with pytest.raises(UserError, match="utterance u: .*checksum"):
        list(read_posteriors(f"ark:{tmp_path}/c.ark"))


def information(posts: list, num_pdfs: int, k: int) -> dict:
    counted = compact.Information(num_pdfs, k)
    for post in posts:
        counted.add(*post.padded(k), post.counts())
    return counted.report()


def test_information_of_what_is_known():
    """Uniform independent pdf-ids need log2 of their number, a frame that repeats needs nothing, nor do its codes."""
    rng = np.random.default_rng(0)
    probs = np.array([[0.5, 0.25, 0.125, 0.125]] * 20000, np.float32)
    uniform = Posterior.from_fixed(rng.integers(0, 4, (20000, 4)) * 64 + np.arange(0, 16, 4) +
                                   rng.integers(0, 4, (20000, 4)), probs)  # 16 pdf-ids at each rank, 64 in all
    found = information([uniform], 256, 4)
    assert found["entries"] == 80000 and found["id_flat"] == 8 and found["probability"] == 0
    assert found["id_alone"] == pytest.approx(6, abs=0.01)
    constant = Posterior.from_fixed(np.tile([[9, 5, 7, 200]], (20000, 1)), probs)
    found = information([constant[:7], constant], 256, 4)
    assert found["id_alone"] == pytest.approx(2) and found["total"] < 0.01
    coin = Posterior.from_fixed(np.tile([[9, 5]], (20000, 1)), np.stack([np.ones(20000), rng.integers(1, 3, 20000) / 4],
                                                                        axis=1).astype(np.float32))
    assert information([coin], 256, 2)["total"] == pytest.approx(0.5, abs=0.01)  # one bit a frame of two entries


def test_information_takes_entries_by_rank_and_frames_of_any_length():
    post = Posterior([0, 2, 2, 5, 6], [3, 4, 4, 5, 3, 4], [0.25, 0.75, 0.5, 0.375, 0.125, 1.0])
    shuffled = Posterior([0, 2, 2, 5, 6], [4, 3, 5, 3, 4, 4], [0.75, 0.25, 0.375, 0.125, 0.5, 1.0])
    found = information([post], 8, 3)
    assert found == information([shuffled], 8, 3) and found["entries"] == 6
    assert information([Posterior([0], [], [])], 8, 3)["total"] == 0
