"""Combination and selection in torch against NumPy's, ties included."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from essence_kd.distill import on_device
from essence_kd.distill.ensemble import Ensemble, combine
from essence_kd.distill.scales import Scale

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("columns", [1, 7, 100, 1031])
@pytest.mark.parametrize("kind", ["random", "tied", "constant", "one-hot", "denormal"])
def test_top_k_is_the_stable_sort(device, columns, kind):
    rng = np.random.default_rng(3)
    p = {"random": rng.random((6, columns)), "tied": rng.integers(0, 3, (6, columns)) / 4,
         "constant": np.full((6, columns), 0.1), "one-hot": np.eye(columns)[rng.integers(0, columns, 6)],
         "denormal": rng.integers(0, 4, (6, columns)) * 1e-44}[kind].astype(np.float32)
    for k in sorted({1, min(5, columns), columns}):
        ids, probs = on_device.top_k(torch.from_numpy(p).to(device), k)
        assert ids.dtype == torch.int32 and probs.dtype == torch.float32
        want = np.argsort(-p, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(ids.cpu().numpy(), want)
        np.testing.assert_array_equal(probs.cpu().numpy(), np.take_along_axis(p, want, axis=1))
    with pytest.raises(ValueError, match="k is"):
        on_device.top_k(torch.from_numpy(p), columns + 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", ["mean", "logmean"])
def test_combination_is_the_hosts(device, rule):
    rng = np.random.default_rng(4)
    logits = [(3 * rng.standard_normal((5, 80))).astype(np.float32) for _ in range(3)]
    prior = np.log(rng.dirichlet(np.ones(80)))
    ensemble = Ensemble([Scale("logit"), Scale("logit", 2.0), Scale("logit", 1.0, prior)], [0.5, 0.3, 0.4], rule)
    priors = [None, None, torch.as_tensor(prior, dtype=torch.float32, device=device)]
    got = on_device.combine(ensemble, [torch.from_numpy(z).to(device) for z in logits], priors)
    np.testing.assert_allclose(got.cpu().numpy(), combine(ensemble, logits), rtol=1e-5)
    silent = Ensemble([Scale("logit")] * 3, [0.0, 1.0, 0.0], rule)
    got = on_device.combine(silent, [torch.from_numpy(z).to(device) for z in logits], [None] * 3)
    np.testing.assert_allclose(got.cpu().numpy(), combine(silent, logits), rtol=1e-5)
