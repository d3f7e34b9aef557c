"""Every selection path against the plain definition, on easy and on nasty posteriors."""
from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from essence_kd.distill import largest
from essence_kd.distill.entries import sort_entries
from essence_kd.distill.essence import EssenceSettings, entries_of, reference_select, select, select_sparse
from essence_kd.distill.largest import block_maxima, bound_maxima, positions, top_k
from essence_kd.distill.rules import min_post, random_prune
from essence_kd.distill.rules.random_prune import frame_uniforms
from essence_kd.distill.scales import FrameError, Scale, log_normalisers, to_probabilities
from essence_kd.io.objects import StoredMatrix
from essence_kd.io.sources import OpenFile, Truncated

pytestmark = pytest.mark.usefixtures("inner_loops")
RULES = [EssenceSettings(select="top-k", top_k=1), EssenceSettings(select="top-k", top_k=7),
         EssenceSettings(select="top-p", top_p=0.8), EssenceSettings(select="top-p", top_p=0.99, max_k=5),
         EssenceSettings(select="min-post", min_post=0.02), EssenceSettings(select="min-post", min_post=0.9),
         EssenceSettings(select="random-prune", min_post=0.03, seed=4)]


def softmax(z):
    p = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def posteriors(kind, frames=6, columns=53, seed=0):
    """Posteriors (frames, columns) float32 of a difficult kind."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        return softmax(4 * rng.standard_normal((frames, columns)))
    if kind == "tied":
        p = rng.integers(1, 4, (frames, columns)).astype(np.float64)
    elif kind == "constant":
        p = np.ones((frames, columns))
    elif kind == "one-hot":
        p = np.zeros((frames, columns))
        p[np.arange(frames), rng.integers(0, columns, frames)] = 1
    elif kind == "denormal":
        p = np.full((frames, columns), 1e-42)
        p[:, rng.integers(0, columns)] = 1
        p[:, ::7] = 3e-45
        return p.astype(np.float32)
    elif kind == "few":
        p = np.zeros((frames, columns))
        p[:, [3, columns - 1, columns // 2]] = [0.25, 0.25, 0.5]
    elif kind == "negative zeros":
        p = posteriors("few", frames, columns, seed)
        p[p == 0] = -0.0
        return p
    elif kind == "permuted":
        p = np.sort(softmax(4 * rng.standard_normal((frames, columns))), axis=1)[:, ::-1]
        p = np.take_along_axis(p, rng.permuted(np.tile(np.arange(columns), (frames, 1)), axis=1), axis=1)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


KINDS = ["random", "tied", "constant", "one-hot", "denormal", "few", "negative zeros", "permuted"]


def stored(folder, matrix, before=13):
    """The matrix in a file, behind some bytes."""
    path = folder / "stored"
    path.write_bytes(b"x" * before + matrix.tobytes())
    return StoredMatrix(OpenFile(os.open(path, os.O_RDONLY)), before, matrix.shape, str(path))


def frames_of(essence):
    return [list(zip(essence.ids[a:b].tolist(), essence.probs[a:b].tolist()))
            for a, b in zip(essence.offsets[:-1], essence.offsets[1:])]


def positive_zeros(frames):
    return [[(c, p + 0.0) for c, p in frame] for frame in frames]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [7, 53, 195, 1024])
def test_top_k_is_the_stable_sort(kind, columns):
    p = posteriors(kind, 5, columns)
    for k in {1, 2, 5, 7, columns // 2, columns}:
        ids, values = top_k(p, k)
        want = np.argsort(-p, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(ids, want)
        np.testing.assert_array_equal(values, np.take_along_axis(p, want, axis=1))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_is_its_definition(rule, kind):
    p = posteriors(kind)
    rule = replace(rule, mass="keep")
    essence = select(p, rule, utt="utt-1")
    want = reference_select(p, rule, "utt-1")
    assert frames_of(essence) == positive_zeros(want)
    mass = [sum(probability for _, probability in frame) for frame in want]
    np.testing.assert_allclose(essence.kept, mass, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_in_a_file_gives_what_it_gives_in_memory(rule, kind, tmp_path):
    for before, (frames, columns) in enumerate([(1, 7), (40, 195), (9, 1031), (300, 128)]):
        p = posteriors(kind, frames, columns)
        rule = replace(rule, top_k=min(columns, rule.top_k))
        assert frames_of(select(stored(tmp_path, p, before), rule, utt="u")) == frames_of(select(p, rule, utt="u"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 700), st.integers(1, 60), st.integers(1, 30),
       st.integers(0, 70))
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_matrix_in_a_file(tmp_path_factory, seed, frames, columns, k, levels, before):
    p = np.random.default_rng(seed).integers(1, levels + 1, (frames, columns))
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    k = min(k, columns)
    there = stored(tmp_path_factory.getbasetemp(), p, before)
    ids, values = top_k(there, k, kind="prob", threads=2)
    want = np.argsort(-p, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_array_equal(values, np.take_along_axis(p, want, axis=1))
    for rule in (EssenceSettings(select="min-post", min_post=0.02, mass="keep"),
                 EssenceSettings(select="random-prune", min_post=0.02, mass="keep", seed=seed)):
        assert frames_of(select(there, rule, utt="u")) == reference_select(p, rule, "u")


def test_more_than_one_window_of_a_file(tmp_path):
    """45 MB; the kernels map 16 at a time."""
    few = posteriors("random", 50, 2250)
    p = np.tile(few, (100, 1))
    there = stored(tmp_path, p)
    for got, wanted in zip(top_k(there, 5, kind="prob"), top_k(few, 5)):
        np.testing.assert_array_equal(got, np.tile(wanted, (100, 1)))
    rule = EssenceSettings(select="min-post", min_post=0.03)
    np.testing.assert_array_equal(select(there, rule).probs, np.tile(select(few, rule).probs, 100))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
def test_a_file_that_becomes_shorter_while_it_is_read(rule, tmp_path):
    p = posteriors("random", 400, 100)
    there = stored(tmp_path, p)
    os.truncate(there.name, 13 + p.nbytes // 2 + 6)
    with pytest.raises(Truncated, match="stored: became shorter while it was read"):
        select(there, rule)


def test_other_scales_are_read_from_the_file(tmp_path):
    z = (4 * np.random.default_rng(1).standard_normal((6, 53))).astype(np.float32)
    for rule in RULES:
        rule = replace(rule, temperature=2.0)
        assert frames_of(select(stored(tmp_path, z), rule, kind="logit")) == frames_of(select(z, rule, kind="logit"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
@pytest.mark.parametrize("kind", ["random", "tied", "few", "permuted"])
def test_sparse_input_gives_what_dense_input_gives(rule, kind):
    p = posteriors(kind)
    everything = select(p, EssenceSettings(top_k=p.shape[1], mass="keep"))
    dense = select(p, rule, utt="u")
    sparse = select_sparse(everything.offsets, everything.ids, everything.probs, rule, utt="u")
    assert frames_of(sparse) == frames_of(dense)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 300), st.integers(1, 40), st.integers(1, 9))
@hypothesis_settings(max_examples=60, deadline=None)
def test_top_k_with_many_equal_values(seed, frames, columns, k, levels):
    values = np.random.default_rng(seed).integers(-levels, levels, (frames, columns)).astype(np.float32)
    k = min(k, columns)
    ids, best = top_k(values, k)
    want = np.argsort(-values, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_array_equal(best, np.take_along_axis(values, want, axis=1))


def test_many_rows_and_threads_change_nothing():
    p = posteriors("random", 700, 800)
    one, two = top_k(p, 20, threads=1), top_k(p, 20, threads=3)
    np.testing.assert_array_equal(one[0], np.argsort(-p, axis=1, kind="stable")[:, :20])
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    for rule in RULES:
        assert frames_of(select(p, rule, threads=1)) == frames_of(select(p, rule, threads=2))


def test_views_and_other_dtypes():
    p = posteriors("random", 8, 106)
    for other in (p[:, ::2], p[::3], p[:, ::-1], p.T, p.astype(np.float64), np.asfortranarray(p), p.astype(np.float16)):
        np.testing.assert_array_equal(top_k(other, 3)[0],
                                      np.argsort(-other.astype(np.float32), axis=1, kind="stable")[:, :3])


def test_minus_infinity_is_a_value_like_others():
    z = np.full((2, 40), -np.inf, np.float32)
    z[0, 5], z[1, [30, 7]] = 1.0, 2.0
    ids, values = top_k(z, 3)
    assert ids.tolist() == [[5, 0, 1], [7, 30, 0]]
    assert values[0, 1] == -np.inf
    essence = select(z, EssenceSettings(top_k=3), kind="logit")
    assert essence.ids.tolist() == [5, 0, 1, 7, 30, 0]
    assert essence.probs.tolist() == [1, 0, 0, 0.5, 0.5, 0]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
@pytest.mark.parametrize("t", [1.0, 2.0, 0.5])
def test_scales_and_temperatures_agree(rule, t):
    z = (4 * np.random.default_rng(1).standard_normal((6, 53))).astype(np.float32)
    rule = replace(rule, temperature=t)
    log = (z - log_normalisers(z)[:, None]).astype(np.float32)
    reference = softmax(z / t)
    want = reference_select(reference, rule, "u")
    for kind, matrix in (("logit", z), ("log", log), ("prob", softmax(z))):
        essence = select(matrix, rule, kind=kind, utt="u")
        got = frames_of(essence)
        assert [[c for c, _ in f] for f in got] == [[c for c, _ in f] for f in want]
        total = [sum(p for _, p in f) for f in want]
        np.testing.assert_allclose([p for f in got for _, p in f],
                                   [p / m for f, m in zip(want, total) for _, p in f], rtol=2e-5)
        np.testing.assert_allclose(essence.kept, total, rtol=2e-5)


def test_stored_probabilities_decide_the_order_of_logits():
    """Two logits that differ, but give one float32 probability, tie: as they do when the archive is pruned again."""
    z = np.zeros((1, 60), np.float32)
    z[0, 3], z[0, 9] = 20.0, np.nextafter(np.float32(20), np.float32(30))  # 9 is larger by one part in 10^7
    z[0, 20:] = -200  # probabilities of 0
    probs = to_probabilities(z, Scale("logit"))
    essence = select(z, EssenceSettings(top_k=60, mass="keep"), kind="logit")
    assert essence.ids.tolist() == np.argsort(-probs, axis=1, kind="stable")[0].tolist()
    np.testing.assert_array_equal(essence.probs, probs[0, essence.ids])


def test_mass_rules():
    p = posteriors("random")
    by_rule = {mass: select(p, EssenceSettings(top_k=5, mass=mass)) for mass in ("renorm", "keep", "residual")}
    np.testing.assert_allclose(by_rule["renorm"].probs.reshape(6, 5).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(by_rule["keep"].probs, np.sort(p, axis=1)[:, :-6:-1].ravel())
    np.testing.assert_array_equal(by_rule["keep"].probs, by_rule["residual"].probs)
    np.testing.assert_allclose(by_rule["renorm"].kept, by_rule["keep"].probs.reshape(6, 5).sum(axis=1), rtol=1e-6)


def test_random_prune_keeps_expectations_and_does_not_depend_on_the_split():
    p = posteriors("random", 1, 300)
    rule = EssenceSettings(select="random-prune", min_post=0.05, mass="keep", seed=7)
    total = np.zeros(300)
    for i in range(4000):
        essence = select(p, rule, utt=f"utt{i}")
        total[essence.ids] += essence.probs
        assert abs(essence.kept[0] - 1) <= 0.05 + 1e-6  # one mark more or less than the tail is worth
    often = p[0] * 4000 / 0.05 > 10  # times it is expected to survive; the others are judged together
    assert 20 < often.sum() < 250
    for mean, want in [*zip(total[often] / 4000, p[0][often]), (total[~often].sum() / 4000, p[0][~often].sum())]:
        assert abs(mean - want) <= 5 * np.sqrt(0.05 * want / 4000)
    assert frames_of(select(p, rule, utt="a")) == frames_of(select(p, rule, utt="a"))
    assert frames_of(select(p, rule, utt="a")) != frames_of(select(p, rule, utt="b"))
    assert frame_uniforms(3, 7, "a").tolist() != frame_uniforms(3, 8, "a").tolist()


def test_a_shorter_essence_is_a_prefix():
    p = posteriors("tied", 5, 100)
    wide = select(p, EssenceSettings(top_k=50, mass="keep"))
    narrow = select(p, EssenceSettings(top_k=10, mass="keep"))
    np.testing.assert_array_equal(wide.ids.reshape(5, 50)[:, :10], narrow.ids.reshape(5, 10))
    again = entries_of(wide.ids.reshape(5, 50), wide.probs.reshape(5, 50), EssenceSettings(top_k=10, mass="keep"))
    assert frames_of(again) == frames_of(narrow)


def test_sparse_retempering():
    z = (3 * np.random.default_rng(2).standard_normal((4, 60))).astype(np.float32)
    wide = select(z, EssenceSettings(top_k=30, mass="keep"), kind="logit")
    tempered = select(z, EssenceSettings(top_k=8, temperature=3.0), kind="logit")
    again = select_sparse(wide.offsets, wide.ids, wide.probs, EssenceSettings(top_k=8, temperature=3.0))
    np.testing.assert_array_equal(again.ids, tempered.ids)
    np.testing.assert_allclose(again.probs, tempered.probs, rtol=1e-5)
    for rule in (EssenceSettings(select="top-p", temperature=3.0), EssenceSettings(mass="keep", temperature=3.0)):
        with pytest.raises(ValueError, match="needs every class"):
            select_sparse(wide.offsets, wide.ids, wide.probs, rule)


def test_sparse_frames_of_different_lengths():
    offsets, ids = np.array([0, 3, 3, 4]), np.array([5, 2, 9, 1], np.int32)
    probs = np.array([0.2, 0.5, 0.2, 1.0], np.float32)
    essence = select_sparse(offsets, ids, probs, EssenceSettings(top_k=2, mass="keep"))
    assert frames_of(essence) == [[(2, 0.5), (5, np.float32(0.2))], [], [(1, 1.0)]]
    assert essence.fixed() is None
    pruned = select_sparse(offsets, ids, probs, EssenceSettings(select="random-prune", min_post=0.4, mass="keep"))
    assert [len(f) for f in frames_of(pruned)][1:] == [0, 1]


def test_agree():
    teachers = [posteriors("random", 6, 53, seed) for seed in (1, 2, 3)]
    combined = np.mean(teachers, axis=0).astype(np.float32)
    for n in (1, 2, 3):
        rule = EssenceSettings(select="agree", top_k=5, agree=n, mass="keep")
        want = reference_select(combined, rule, teachers=teachers)
        assert frames_of(select(combined, rule, teachers=teachers)) == want
    with pytest.raises(ValueError, match="3 teachers"):
        select(combined, EssenceSettings(select="agree", agree=4), teachers=teachers)
    for dense_or_sparse in (lambda rule: select(combined, rule),
                            lambda rule: select_sparse(np.array([0, 1]), np.array([1]), np.array([1.0]), rule)):
        with pytest.raises(ValueError, match="teachers themselves"):
            dense_or_sparse(EssenceSettings(select="agree"))


@pytest.mark.parametrize("rule", RULES + [EssenceSettings(select="agree", agree=1)],
                         ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
def test_no_frames(rule):
    nothing = np.zeros((0, 5), np.float32)
    essence = select(nothing, rule, teachers=[nothing])
    assert essence.offsets.tolist() == [0] and len(essence.ids) == 0
    if rule.select != "agree":
        assert len(select_sparse(np.zeros(1), np.zeros(0, int), np.zeros(0), rule).ids) == 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
@pytest.mark.parametrize("value, message", [(np.nan, "frame 3: holds a NaN"), (np.inf, "frame 3: holds an infinite"),
                                            (-0.25, "frame 3: a probability is -0.25"),
                                            (1.5, "frame 3: a probability is 1.5"),
                                            (0.5, "frame 3: its probabilities sum to 1.")])
def test_what_is_no_posterior_is_refused(rule, value, message, tmp_path):
    p = posteriors("random")
    p[3, 11] = value
    for there in (p, stored(tmp_path, p)):
        with pytest.raises(FrameError, match=message):
            select(there, rule)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.select}-{rule.top_k}-{rule.top_p}-{rule.min_post}")
@pytest.mark.parametrize("column", [0, 15, 16, 127, 128, 639, 640, 641, 655, 656, 660])
def test_one_bad_element_anywhere_is_found(rule, column):
    for value, message in ((np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "probability is -inf"), (-1e-6, "-1e-06"),
                           (1.5, "probability is 1.5")):
        p = posteriors("random", 3, 661)
        p[1, column] = value
        with pytest.raises(FrameError, match=f"frame 1: .*{message}"):
            select(p, rule)


@pytest.mark.compiler
@pytest.mark.parametrize("inner_loops", ["compiled"], indirect=True)
def test_the_kernels_take_what_is_good(monkeypatch):
    """NumPy, which has the last word, is not asked."""
    monkeypatch.setattr(largest, "bound_maxima", None)
    for module in (largest, min_post, random_prune):
        monkeypatch.setattr(module, "positions", None)
    for kind in ("random", "tied", "constant", "one-hot", "denormal", "few", "permuted"):
        for columns in (1, 53, 640):
            if columns > 7 or kind in ("constant", "one-hot"):
                for rule in RULES:
                    p = posteriors(kind, 4, columns)
                    select(p, replace(rule, top_k=min(rule.top_k, columns)))


def test_messages_guess_the_kind():
    z = (5 * np.random.default_rng(3).standard_normal((3, 40))).astype(np.float32)
    log = (z - log_normalisers(z)[:, None]).astype(np.float32)
    p = softmax(z)
    for matrix, kind, guess in ((log, "prob", "--input log"), (z, "prob", "--input logit"), (p, "log", "--input prob"),
                                (z, "log", "--input logit"), (z - 100, "log", "--input logit")):
        with pytest.raises(FrameError, match=guess + r"\)"):
            select(matrix, EssenceSettings(top_k=3), kind=kind)


@pytest.mark.parametrize("kind", ["log", "logit"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_logs_are_refused(kind, value):
    z = (5 * np.random.default_rng(3).standard_normal((3, 40))).astype(np.float32)
    z = (z - log_normalisers(z)[:, None]).astype(np.float32)
    z[2, 39] = value
    for rule in RULES:
        with pytest.raises(FrameError, match="frame 2"):
            select(z, rule, kind=kind)
    with pytest.raises(FrameError, match="frame 0: all its values are -Inf"):
        select(np.full((1, 4), -np.inf), EssenceSettings(top_k=1), kind="logit")


@pytest.mark.parametrize("ids, probs, message", [
    ([1, 2], [0.5, -0.1], "pdf-id 2 has probability -0.1"), ([1, 1], [0.8, 0.8], "sum to 1.6, more than 1"),
    ([1, 2], [0.5, np.nan], "pdf-id 2 has probability nan"), ([1, 2], [0.9, 0.9], "sum to 1.8, more than 1"),
    ([-1, 2], [0.5, 0.5], "pdf-id -1")])
def test_bad_entries_are_refused(ids, probs, message):
    with pytest.raises(FrameError, match=f"frame 1: .*{message}"):
        select_sparse(np.array([0, 0, 2]), np.array(ids), np.array(probs), EssenceSettings(top_k=1))


def test_entries_of_the_same_pdf_are_added_up():
    essence = select_sparse(np.array([0, 3, 6]), np.array([5, 7, 5, 7, 2, 2]), np.array([.3, .4, .2, .6, .1, .2]),
                            EssenceSettings(top_k=1, mass="keep"))
    assert essence.ids.tolist() == [5, 7] and essence.probs.tolist() == [0.5, np.float32(0.6)]


def test_entries_without_mass_cannot_be_scaled():
    with pytest.raises(FrameError, match="frame 0: its entries have no mass"):
        select_sparse(np.array([0, 2]), np.array([1, 2]), np.array([0.0, 0.0]), EssenceSettings(top_k=1))


def test_settings_without_meaning_are_refused():
    p = posteriors("random")
    for bad in (dict(select="best"), dict(mass="half"), dict(top_k=0), dict(max_k=0), dict(top_p=0.0), dict(top_p=1.5),
                dict(min_post=0.0), dict(min_post=2.0), dict(temperature=0.0), dict(temperature=float("inf")),
                dict(seed=-1), dict(soft_weight=1.5), dict(agree=0)):
        with pytest.raises(ValueError, match=list(bad)[0]):
            select(p, EssenceSettings(**bad))
    with pytest.raises(ValueError, match="k is 54, but must be from 1 to the 53 pdfs"):
        select(p, EssenceSettings(top_k=54))
    with pytest.raises(ValueError, match="kind"):
        select(p, EssenceSettings(), kind="cost")
    with pytest.raises(ValueError, match="matrix"):
        top_k(p[0], 1)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 343, 511, 512, 513, 8816])
@pytest.mark.parametrize("kind", ["normal", "tied", "constant", "falling", "rising"])
def test_top_k_of_any_scale_and_width(columns, kind):
    rng = np.random.default_rng(columns)
    x = {"normal": 5 * rng.standard_normal((4, columns)), "tied": rng.integers(-2, 3, (4, columns)) * 1.0,
         "constant": np.full((4, columns), -0.0), "falling": -np.arange(4.0 * columns).reshape(4, columns),
         "rising": np.arange(4.0 * columns).reshape(4, columns)}[kind].astype(np.float32)
    x[0, ::3] = -np.inf
    order = np.argsort(-x, axis=1, kind="stable")
    for k in sorted({min(k, columns) for k in (1, 20, 33, 100, 700, columns)}):
        ids, values = top_k(x, k)
        np.testing.assert_array_equal(ids, order[:, :k])
        np.testing.assert_array_equal(values, np.take_along_axis(x, order[:, :k], axis=1))
        assert not np.signbit(values[values == 0]).any()
    x[2, columns // 2] = np.inf
    with pytest.raises(FrameError, match="frame 2: holds an infinite value"):
        top_k(x, 1)
    x[2, columns // 2] = np.nan
    with pytest.raises(FrameError, match="frame 2: holds a NaN"):
        top_k(x, 1)


def test_block_maxima():
    rng = np.random.default_rng(0)
    for columns in (1, 2, 7, 53, 100, 257, 700, 8816):
        x = rng.standard_normal((3, columns)).astype(np.float32)
        for n in (1, 3, 20, 200, 551):
            n = min(n, columns)
            np.testing.assert_array_equal(block_maxima(x, n), [[row[j::n].max() for j in range(n)] for row in x])
        for k in (1, 3, 20, 200):
            assert bound_maxima(x, k).shape[1] >= min(k, columns)


def test_positions_of_a_mask():
    mask = np.random.default_rng(1).random((5, 67)) < 0.1
    for got, wanted in zip(positions(mask), np.nonzero(mask)):
        np.testing.assert_array_equal(got, wanted)


def test_sorting_more_frames_than_one_sort_holds():
    """pdf-ids up to 2^29: eight frames at a time."""
    rng = np.random.default_rng(2)
    rows = np.sort(rng.integers(0, 30, 300))
    ids, probs = rng.integers(0, 1 << 29, 300), rng.integers(0, 4, 300).astype(np.float32)
    ids[0] = (1 << 29) - 1
    entries = sort_entries(rows, ids, probs, 30)
    order = np.lexsort((ids, -probs, rows))
    inside = np.arange(entries.ids.shape[1]) < entries.counts[:, None]
    np.testing.assert_array_equal(entries.ids[inside], ids[order])
    np.testing.assert_array_equal(entries.probs[inside], probs[order])
