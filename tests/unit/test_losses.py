"""The losses against the dense computation in float64, gradients too."""
from __future__ import annotations

import pytest
import torch
from builders import refused
from torch.nn import functional as F

from essence_kd.am.settings import DistillSettings
from essence_kd.distill.losses import make_loss, retemper
from essence_kd.distill.losses.cross_entropy import dense_soft_cross_entropy, multitask_loss, sparse_soft_cross_entropy

N, C, K = 7, 23, 4


def essence(seed=0, n=N, c=C, k=K, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    teacher = torch.softmax(3 * torch.randn(n, c, generator=g, dtype=dtype), 1)
    probs, ids = teacher.topk(k)
    logits = 2 * torch.randn(n, c, generator=g, dtype=dtype)
    hard = torch.randint(0, c, (n,), generator=g)
    return logits, hard, ids, probs


def dense_target(ids, probs, mass, c=C):
    """Dense (N, C) target of an essence and the mass of everything else."""
    q = torch.zeros(len(ids), c, dtype=probs.dtype).scatter_add(1, ids, probs)
    if mass == "renorm":
        total = q.sum(1, keepdim=True)
        return torch.where(total > 0, q / total.clamp_min(1e-300), q), None
    return (q, (1 - q.sum(1))) if mass == "residual" else (q, None)


def reference(logits, ids, probs, mass, t, c=C):
    """The definition, written out densely: (N,)."""
    q, rest = dense_target(ids, probs, mass, c)
    logp = F.log_softmax(logits / t, 1)
    loss = -(q * logp).sum(1)
    if rest is not None:
        others = torch.where(q > 0, torch.full_like(logp, -float("inf")), logp)
        loss = loss - rest * torch.logsumexp(others, 1)
    return loss


@pytest.mark.parametrize("mass", ["renorm", "keep", "residual"])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_value_and_gradient_equal_the_dense_definition(mass, t):
    logits, _, ids, probs = essence()
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours = sparse_soft_cross_entropy(a, ids, probs, temperature=t, mass=mass, reduction="none")
    dense = reference(b, ids, probs, mass, t)
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    weights = torch.arange(N, dtype=torch.float64) - 2  # negative and zero upstream gradients too
    (ours * weights).sum().backward()
    (dense * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    total = sparse_soft_cross_entropy(logits, ids, probs, temperature=t, mass=mass)
    torch.testing.assert_close(total, dense.detach().sum())


@pytest.mark.parametrize("mass", ["renorm", "keep", "residual"])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_gradcheck(mass, t):
    logits, hard, ids, probs = essence(1)
    hard[2] = -100
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: sparse_soft_cross_entropy(z, ids, probs, temperature=t, mass=mass, reduction="none"), logits)
    assert torch.autograd.gradcheck(
        lambda z: multitask_loss(z, hard, ids, probs, soft_weight=0.7, temperature=t, mass=mass).total, logits)
    full = torch.softmax(logits.detach() * 0.3, 1)
    assert torch.autograd.gradcheck(lambda z: dense_soft_cross_entropy(z, full, temperature=t), logits)
    assert torch.autograd.gradcheck(
        lambda z: multitask_loss(z, hard, None, full, soft_weight=0.7, temperature=t).total, logits)


@pytest.mark.parametrize("t", [1.0, 3.0])
def test_multitask_is_the_weighted_sum_of_its_terms(t):
    logits, hard, ids, probs = essence(2)
    hard[[0, 4]] = -100
    keep = hard != -100
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = multitask_loss(a, hard, ids, probs, soft_weight=0.9, temperature=t)
    ce = F.cross_entropy(b, hard, ignore_index=-100, reduction="sum")
    soft = reference(b[keep], ids[keep], probs[keep], "renorm", t).sum()
    want = 0.1 * ce + 0.9 * t * t * soft
    torch.testing.assert_close(loss.total, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.hard, ce.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.soft, soft.detach(), rtol=1e-12, atol=1e-12)
    assert int(loss.num_frames) == N - 2
    loss.total.backward()
    want.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    assert a.grad[0].abs().max() == 0 and a.grad[4].abs().max() == 0


def test_hard_loss_alone_is_cross_entropy():
    logits, hard, _, _ = essence(3)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = multitask_loss(a, hard, soft_weight=0.0)
    want = F.cross_entropy(b, hard, reduction="sum")
    torch.testing.assert_close(loss.total, want)
    assert loss.soft == 0
    loss.total.backward()
    want.backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_padding_entries_and_empty_frames_cost_nothing():
    logits, _, ids, probs = essence(4)
    padded_ids = torch.cat([ids, torch.zeros(N, 3, dtype=ids.dtype)], 1)  # id 0 repeated, with probability 0
    padded_probs = torch.cat([probs, torch.zeros(N, 3, dtype=probs.dtype)], 1)
    padded_ids[5], padded_probs[5] = 0, 0
    for mass in ("renorm", "keep", "residual"):
        z = logits.clone().requires_grad_()
        loss = sparse_soft_cross_entropy(z, padded_ids, padded_probs, mass=mass, reduction="none")
        want = reference(logits, ids, probs, mass, 1.0)
        want[5] = 0
        torch.testing.assert_close(loss, want)
        loss.sum().backward()
        assert z.grad[5].abs().max() == 0


def test_an_impossible_class_without_mass_is_no_nan():
    logits = torch.tensor([[0.0, -float("inf"), 1.0]], requires_grad=True)
    loss = sparse_soft_cross_entropy(logits, torch.tensor([[2, 1]]), torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_residual_gradient_is_exact_for_a_confident_student():
    """The student gives everything outside the entries about 1e-9, far below float32's 1 - p."""
    logits = torch.tensor([[20.0, 19.0, -1.0, -2.0, -3.0]])
    ids, probs = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]])
    a, b = logits.clone().requires_grad_(), logits.double().requires_grad_()
    sparse_soft_cross_entropy(a, ids, probs, mass="residual").backward()
    q, p = torch.tensor([0.6, 0.3], dtype=torch.float64), torch.softmax(b, 1)
    (-(q * p[0, :2].log()).sum() - (1 - q.sum()) * p[0, 2:].sum().log()).backward()
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_losses(dtype):
    logits, hard, ids, probs = essence(5, dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    loss = multitask_loss(half, hard, ids.int(), probs, soft_weight=0.5, temperature=2.0)
    assert loss.total.dtype == torch.float32
    full = half.detach().float().requires_grad_()
    want = multitask_loss(full, hard, ids, probs, soft_weight=0.5, temperature=2.0)
    torch.testing.assert_close(loss.total, want.total)
    loss.total.backward()
    want.total.backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad, full.grad.to(dtype))


def test_many_blocks_of_rows_equal_one():
    """More rows than one cache block holds, and float32."""
    logits, hard, ids, probs = essence(6, n=700, c=2000, k=5, dtype=torch.float32)
    hard[::3] = -100
    z = logits.clone().requires_grad_()
    loss = multitask_loss(z, hard, ids, probs, soft_weight=0.4)
    loss.total.backward()
    d = logits.double().requires_grad_()
    keep = hard != -100
    want = (0.6 * F.cross_entropy(d, hard, ignore_index=-100, reduction="sum")
            + 0.4 * reference(d[keep], ids[keep], probs[keep].double(), "renorm", 1.0, c=2000).sum())
    want.backward()
    torch.testing.assert_close(loss.total.double(), want, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(z.grad.double(), d.grad, rtol=1e-4, atol=1e-6)


def test_nothing_dense_is_stored_for_the_backward_pass():
    logits, hard, ids, probs = essence(7)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(tuple(x.shape)) or x, lambda x: x):
        multitask_loss(logits.requires_grad_(), hard, ids, probs, soft_weight=0.9)
    assert saved.count((N, C)) == 1  # the logits themselves


def test_no_frames():
    z = torch.zeros(0, C, requires_grad=True)
    loss = multitask_loss(z, torch.zeros(0, dtype=torch.long), torch.zeros(0, K, dtype=torch.long), torch.zeros(0, K),
                          soft_weight=0.5)
    loss.total.backward()
    assert loss.total == 0 and loss.num_frames == 0 and z.grad.shape == (0, C)


def test_retempering_one_teacher_equals_its_tempered_softmax():
    logits, _, _, _ = essence(8)
    probs, ids = torch.softmax(logits, 1).topk(K)
    want = torch.softmax(logits / 3, 1).gather(1, ids)
    torch.testing.assert_close(retemper(probs, 3.0), want / want.sum(1, keepdim=True))
    assert retemper(probs, 1.0) is probs
    assert retemper(torch.zeros(1, 2), 2.0).tolist() == [[0, 0]]


def test_mistakes_are_refused():
    logits, hard, ids, probs = essence(9)
    for bad in (dict(mass="all"), dict(temperature=0.0), dict(reduction="mean")):
        with pytest.raises(ValueError):
            sparse_soft_cross_entropy(logits, ids, probs, **bad)
    with pytest.raises(ValueError):
        sparse_soft_cross_entropy(logits, ids[:, :2], probs)
    with pytest.raises(ValueError):
        sparse_soft_cross_entropy(logits[0], ids, probs)
    with pytest.raises(ValueError):
        dense_soft_cross_entropy(logits, probs)
    with pytest.raises(ValueError):
        multitask_loss(logits, hard, ids, probs, soft_weight=1.5)
    with pytest.raises(ValueError):
        multitask_loss(logits, hard[:3], ids, probs)
    with pytest.raises(ValueError):
        multitask_loss(logits, hard, soft_weight=0.5)
    with pytest.raises(ValueError):
        retemper(probs, -1.0)
    with pytest.raises((RuntimeError, IndexError)):
        sparse_soft_cross_entropy(logits, ids + C, probs)


# ---------------------------------------------------------------------------- other losses, and losses of somebody else

def pairs(logits, ids, probs, mass, t):
    """(q, p) over all classes in float64, and over the bucket of everything else where the mass rule has one."""
    p = torch.softmax(logits.double() / t, 1)
    if ids is None:
        return probs.double(), p
    q, rest = dense_target(ids, probs.double(), mass)
    if rest is None:
        return q, p
    others = torch.where(q > 0, torch.zeros_like(p), p).sum(1, keepdim=True)
    return torch.cat([q, rest[:, None]], 1), torch.cat([torch.where(q > 0, p, torch.zeros_like(p)), others], 1)


def kl(one, other):
    """KL(one || other) of one frame; where one has no mass it costs nothing."""
    here = one > 0
    return (one[here] * (one[here] / other[here]).log()).sum()


def jensen_shannon(q, p, beta=0.5):
    means = beta * q + (1 - beta) * p
    return torch.stack([beta * kl(a, m) + (1 - beta) * kl(b, m) for a, b, m in zip(q, p, means)])


def reverse_kl(q, p):
    there = [a > 0 for a in q]
    return torch.stack([kl(b[at] / b[at].sum(), a[at] / a[at].sum()) for a, b, at in zip(q, p, there)])


def cross_entropy(q, p):
    return torch.stack([-(a[a > 0] * b[a > 0].log()).sum() for a, b in zip(q, p)])


LOSSES_AND_REFERENCES = [("jensen-shannon", {}, jensen_shannon),
                         ("jensen-shannon", {"beta": 0.1}, lambda q, p: jensen_shannon(q, p, 0.1)),
                         ("reverse-kl", {}, reverse_kl),
                         ("cross-entropy", {}, cross_entropy)]


@pytest.mark.parametrize("name, parameters, definition", LOSSES_AND_REFERENCES, ids=lambda x: str(x)[:20])
@pytest.mark.parametrize("mass", ["renorm", "keep", "residual", "dense"])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_every_loss_equals_its_dense_definition(name, parameters, definition, mass, t):
    logits, hard, ids, probs = essence(11)
    if mass == "dense":
        ids, probs = None, torch.softmax(logits.flip(0) / 2, 1)
    else:  # padding: class 0 again and again, without mass
        ids, probs = torch.cat([ids, ids[:, :1] * 0, ids[:, :1] * 0], 1), torch.cat([probs, probs[:, :2] * 0], 1)
    hard[[1, 5]] = -100
    keep = hard != -100
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours = make_loss(name, parameters, "test")(a, hard, ids, probs, soft_weight=0.7, temperature=t,
                                               mass="renorm" if mass == "dense" else mass)
    soft = definition(*pairs(b, ids, probs, mass, t))[keep].sum()
    want = 0.3 * F.cross_entropy(b, hard, ignore_index=-100, reduction="sum") + 0.7 * t * t * soft
    torch.testing.assert_close(ours.total, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.soft, soft.detach(), rtol=1e-10, atol=1e-12)
    assert int(ours.num_frames) == N - 2
    ours.total.backward()
    want.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12)
    assert a.grad[1].abs().max() == 0


@pytest.mark.parametrize("name", ["jensen-shannon", "reverse-kl", "cross-entropy"])
@pytest.mark.parametrize("mass", ["renorm", "keep", "residual"])
def test_no_loss_is_nan_where_a_frame_is_empty_or_a_class_impossible(name, mass):
    logits, hard, ids, probs = essence(12, dtype=torch.float32)
    probs[3], ids[3] = 0, 0
    logits[:, ids[0, 1]] = -200.0
    logits[0, ids[0, 0]] = 90.0
    logits.requires_grad_()
    loss = make_loss(name, {}, "test")(logits, hard, ids, probs, soft_weight=1.0, temperature=1.0, mass=mass)
    loss.total.backward()
    assert torch.isfinite(loss.total) and torch.isfinite(logits.grad).all()
    assert logits.grad[3].abs().max() == 0


def test_the_same_distribution_costs_nothing():
    logits, hard, _, _ = essence(13)
    probs = torch.softmax(logits, 1)
    for name in ("jensen-shannon", "reverse-kl"):
        loss = make_loss(name, {}, "test")(logits, hard, None, probs, soft_weight=1.0, temperature=1.0, mass="renorm")
        assert abs(float(loss.soft)) < 1e-12


def test_the_default_loss_is_the_fused_one_to_the_bit():
    logits, hard, ids, probs = essence(14, dtype=torch.float32)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    default = make_loss(DistillSettings().loss, {}, "test")
    one = default(a, hard, ids, probs, soft_weight=0.9, temperature=1.0, mass="renorm")
    two = multitask_loss(b, hard, ids, probs, soft_weight=0.9)
    one.total.backward()
    two.total.backward()
    assert all(torch.equal(x, y) for x, y in zip(one, two)) and torch.equal(a.grad, b.grad)


def test_a_loss_that_is_not_there_or_has_no_such_parameter():
    refused(lambda: make_loss("l2", {}, "m.yaml"), "m.yaml: unknown loss 'l2' (known: cross-entropy, jensen-shannon, ")
    refused(lambda: make_loss("jensen-shannon", {"gamma": 1}, "m.yaml"), "m.yaml: ", "unknown key 'gamma'", "beta")
    refused(lambda: make_loss("jensen-shannon", {"beta": "much"}, "m.yaml"), "m.yaml: ", "expected a number")
    refused(lambda: make_loss("jensen-shannon", {"beta": 2}, "m.yaml"), "beta must be above 0 and below 1, not 2")
