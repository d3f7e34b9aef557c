"""Combined posteriors against their definition in float64, and their top-k against the whole."""
from __future__ import annotations

import numpy as np
import pytest

from essence_kd.distill.ensemble import Ensemble, combine, combine_top_k
from essence_kd.distill.scales import FrameError, Scale
from scipy.special import log_softmax, logsumexp


def teachers(frames=5, columns=67, count=3, seed=0, spread=4.0):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((frames, columns))
    return [(spread * (common + 0.5 * rng.standard_normal((frames, columns)))).astype(np.float32) for _ in range(count)]


def as_kind(z, kind):
    log = log_softmax(z.astype(np.float64), axis=1)
    return {"logit": z, "log": log.astype(np.float32), "prob": np.exp(log).astype(np.float32)}[kind]


def definition(logits, weights, rule, temperatures, priors):
    w = np.array(weights, np.float64)
    w = w / w.sum()
    logs = [log_softmax(z.astype(np.float64) / t - (0 if prior is None else prior), axis=1)
            for z, t, prior in zip(logits, temperatures, priors)]
    if rule == "mean":
        return sum(weight * np.exp(log) for weight, log in zip(w, logs))
    total = sum(weight * log for weight, log in zip(w, logs))
    return np.exp(total - logsumexp(total, axis=1, keepdims=True))


@pytest.mark.parametrize("rule", ["mean", "logmean"])
@pytest.mark.parametrize("kinds", [("logit",) * 3, ("log",) * 3, ("prob",) * 3, ("prob", "log", "logit")])
@pytest.mark.parametrize("special", ["plain", "temperatures", "priors"])
def test_combination_is_its_definition(rule, kinds, special):
    z = teachers()
    temperatures = [1.0, 2.0, 0.7] if special == "temperatures" else [1.0] * 3
    prior = np.log(np.random.default_rng(5).dirichlet(np.ones(67) * 5))
    priors = [prior, None, 0.3 * prior] if special == "priors" else [None] * 3
    weights = [0.5, 0.3, 0.4]
    ensemble = Ensemble([Scale(k, t, p) for k, t, p in zip(kinds, temperatures, priors)], weights, rule)
    matrices = [as_kind(one, kind) for one, kind in zip(z, kinds)]
    full = combine(ensemble, matrices)
    assert full.dtype == np.float32
    np.testing.assert_allclose(full, definition(z, weights, rule, temperatures, priors), rtol=3e-5, atol=1e-9)
    for k in (1, 6, 67):
        ids, probs = combine_top_k(ensemble, matrices, k)
        want = np.argsort(-full, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(ids, want)
        np.testing.assert_array_equal(probs, np.take_along_axis(full, want, axis=1))


@pytest.mark.parametrize("rule", ["mean", "logmean"])
@pytest.mark.parametrize("kind", ["prob", "log"])
@pytest.mark.parametrize("case", ["equal", "constant", "one-hot", "levels", "wide", "permuted"])
def test_top_k_of_nasty_teachers(rule, kind, case):
    rng = np.random.default_rng(1)
    if case == "constant":
        p = [np.full((3, 90), 1 / 90)] * 3
    elif case == "one-hot":
        p = [np.eye(90)[rng.integers(0, 90, 3)] for _ in range(3)] if rule == "mean" else [np.eye(90)[[4, 4, 7]]] * 3
    elif case == "levels":
        p = [rng.integers(1, 3, (3, 90)).astype(float) for _ in range(3)]
    elif case == "wide":  # many probabilities that are denormal or zero in float32
        common = 60 * rng.standard_normal((3, 90))
        p = [np.exp(log_softmax(common + 5 * rng.standard_normal((3, 90)), axis=1)) for _ in range(3)]
    else:
        base = np.exp(log_softmax(3 * rng.standard_normal((3, 90)), axis=1))
        p = [base] * 3 if case == "equal" else [base[:, rng.permutation(90)] for _ in range(3)]
    with np.errstate(divide="ignore"):
        p = [(one / one.sum(axis=1, keepdims=True)).astype(np.float32) for one in p]
        matrices = p if kind == "prob" else [np.log(one) for one in p]
    ensemble = Ensemble([Scale(kind)] * 3, combine=rule)
    full = combine(ensemble, matrices)
    for k in (1, 5, 40, 90):
        ids, probs = combine_top_k(ensemble, matrices, k)
        want = np.argsort(-full, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(ids, want)
        np.testing.assert_array_equal(probs, np.take_along_axis(full, want, axis=1))


def test_one_teacher_and_a_teacher_of_no_weight():
    z = teachers(count=2)
    alone = combine(Ensemble([Scale("logit")]), z[:1])
    for rule in ("mean", "logmean"):
        ensemble = Ensemble([Scale("logit")] * 2, [1.0, 0.0], rule)
        np.testing.assert_allclose(combine(ensemble, z), alone, rtol=1e-6)
        want = np.argsort(-alone, axis=1, kind="stable")[:, :4]
        np.testing.assert_array_equal(combine_top_k(ensemble, z, 4)[0], want)


def test_threads_and_many_rows_change_nothing():
    z = teachers(900, 400)
    ensemble = Ensemble([Scale("logit")] * 3)
    one, two = combine_top_k(ensemble, z, 9, threads=1), combine_top_k(ensemble, z, 9, threads=3)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    np.testing.assert_array_equal(combine(ensemble, z, threads=1), combine(ensemble, z, threads=3))


def test_no_frames():
    nothing = [np.zeros((0, 5), np.float32)] * 2
    ensemble = Ensemble([Scale("log")] * 2)
    assert combine(ensemble, nothing).shape == (0, 5)
    assert combine_top_k(ensemble, nothing, 2)[0].shape == (0, 2)


def test_mistakes_are_refused():
    z = teachers(count=2)
    with pytest.raises(ValueError, match="combine must be"):
        Ensemble([Scale()], combine="median")
    with pytest.raises(ValueError, match="no teachers"):
        Ensemble([])
    with pytest.raises(ValueError, match="3 weights for 2 teachers"):
        Ensemble([Scale()] * 2, [1, 2, 3])
    for weights in ([0, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ValueError, match="weights must be"):
            Ensemble([Scale()] * 2, weights)
    with pytest.raises(ValueError, match="kind"):
        Scale("cost")
    with pytest.raises(ValueError, match="temperature"):
        Scale("prob", 0.0)
    both = Ensemble([Scale("logit")] * 2)
    with pytest.raises(ValueError, match="1 matrices for 2 teachers"):
        combine(both, z[:1])
    with pytest.raises(ValueError, match="5 frames of 67 pdfs, 4 frames of 67 pdfs"):
        combine(both, [z[0], z[1][:4]])
    with pytest.raises(ValueError, match="k is 68"):
        combine_top_k(both, z, 68)
    with pytest.raises(ValueError, match="66 priors for 67 pdfs"):
        combine(Ensemble([Scale("logit", log_prior=np.zeros(66))]), z[:1])
    z[1][3, 60] = np.nan
    for call in (lambda: combine(both, z), lambda: combine_top_k(both, z, 3)):
        with pytest.raises(FrameError, match="frame 3: holds a NaN"):
            call()
