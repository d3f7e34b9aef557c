"""Architectures: shapes, where a row looks, independence of batching, constraints, counts."""
import pytest
import torch
from essence_kd.am.models.acoustic_model import look_ahead, mflop_per_frame, num_params
from essence_kd.am.models import conformer
from essence_kd.am.models.conformer import WindowAttention
from essence_kd.am.models.layers import (FactoredTdnn, FrameDropout, MaskedBatchNorm, SharedDropout,
                                         SplicedLinear, length_mask, reverse_rows, splice)
from essence_kd.am.models.registry import ARCHITECTURES, build_model, model_settings
from essence_kd.io.errors import UserError

SMALL = {
    "tdnn": {"hidden": 24, "bottleneck": 12},
    "tdnn_f": {"hidden": 16, "bottleneck": 8, "prefinal": 6, "dilations": [1, 0, 2]},
    "conformer": {"hidden": 16, "heads": 2, "feed_forward": 24, "blocks": 2, "kernel": 3, "left": 5, "right": 2},
    "cnn_tdnn": {"channels": [4, 6], "freq_strides": [2, 2], "hidden": 16, "bottleneck": 8, "dilations": [1, 2]},
    "tdnn_lstm": {"hidden": 16, "cells": 12},
    "blstm": {"cells": 10},
}


def make(arch, **more):
    torch.manual_seed(1)
    arch, variant = VARIANTS[arch]
    more = {**variant, **more}
    return build_model(arch, {**SMALL[arch], **more}, feat_dim=8, num_pdfs=11, frame_subsampling_factor=3).eval()


CONVOLUTIONS = {"channels": [4, 6], "freq_strides": [1, 2]}
VARIANTS = {**{name: (name, {}) for name in ARCHITECTURES.names(plugins=False)},
            "cnn_tdnn_lstm": ("tdnn_lstm", CONVOLUTIONS),
            "cnn_blstm": ("blstm", CONVOLUTIONS), "cnn_conformer": ("conformer", CONVOLUTIONS)}


@pytest.fixture(params=VARIANTS)
def arch(request):
    return request.param


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 30])
def test_one_row_every_third_frame(arch, frames):
    logits = make(arch)(torch.randn(2, frames, 8), torch.tensor([frames, frames]))
    assert logits.shape == (2, -(-frames // 3), 11)


def test_answers_do_not_depend_on_companions_or_on_what_lies_in_the_padding(arch):
    model = make(arch)
    lens = torch.tensor([61, 40, 3, 17])
    feats = torch.randn(4, 61, 8)
    together = model(feats, lens)
    for b, length in enumerate(lens):
        alone = model(feats[b:b + 1, :length], lens[b:b + 1])[0]
        torch.testing.assert_close(together[b, :len(alone)], alone, atol=2e-5, rtol=1e-5)
    for b, length in enumerate(lens):
        feats[b, length:] = float("nan")
    torch.testing.assert_close(model(feats, lens)[1, :14], together[1, :14])


def test_selected_rows_are_those_of_the_whole_answer(arch):
    model = make(arch)
    feats, lens = torch.randn(3, 20, 8), torch.tensor([20, 11, 20])
    select = torch.rand(3, 7) > 0.5
    torch.testing.assert_close(model(feats, lens, select=select), model(feats, lens)[select])


def test_a_masked_feature_has_no_influence(arch):
    model = make(arch)
    model.feat_mean.fill_(3.0)
    feats, lens = torch.randn(1, 15, 8), torch.tensor([15])
    keep = torch.ones(1, 15, 8)
    keep[:, 4:9, 2:5] = 0
    changed = feats.clone()
    changed[:, 4:9, 2:5] += 100.0
    torch.testing.assert_close(model(feats, lens, keep=keep), model(changed, lens, keep=keep))
    mean = feats.clone()
    mean[:, 4:9, 2:5] = 3.0
    torch.testing.assert_close(model(feats, lens, keep=keep), model(mean, lens))


def frames_seen(model, row, frames=90):
    """Feature frames that a row depends on."""
    feats = torch.randn(1, frames, 8, requires_grad=True)
    model(feats, torch.tensor([frames]))[0, row].sum().backward()
    return feats.grad[0].abs().sum(1).nonzero()[:, 0].tolist()


def test_row_t_is_centred_at_feature_frame_3t():
    assert frames_seen(make("tdnn", input_offsets=[0], dilations=[]), 7) == [21]
    assert frames_seen(make("tdnn", input_offsets=[-2, -1, 0, 1, 2], dilations=[]), 7) == [19, 20, 21, 22, 23]
    seen = frames_seen(make("tdnn", input_offsets=[-1, 0, 1], dilations=[1, 2]), 12)
    assert (seen[0], seen[-1]) == (36 - 1 - 9, 36 + 1 + 9)
    seen = frames_seen(make("cnn_tdnn", channels=[4], freq_strides=[1], dilations=[]), 7)
    assert seen == [20, 21, 22]


def test_what_a_recurrent_model_hears():
    blstm = frames_seen(make("blstm"), 10, 60)
    assert (blstm[0], blstm[-1]) == (0, 59)
    lstm = frames_seen(make("tdnn_lstm", input_offsets=[0], dilations=[1, 2]), 10, 60)
    assert (lstm[0], lstm[-1]) == (0, 30 + 9)  # the past without limit, three rows of the future


@pytest.mark.parametrize("arch, more, frames", [
    ("tdnn", {"input_offsets": [-2, 0, 2], "dilations": [1, 2]}, 2 + 9),
    ("tdnn", {"input_offsets": [-3, 0], "dilations": []}, 0),
    ("tdnn_f", {"input_offsets": [0], "dilations": [1, 0, 2]}, 3 * 3),
    ("cnn_tdnn", {"dilations": [1, 2]}, 1 + 3 + 3 * 3),  # 3 x 3: a frame, then a row
    ("tdnn_lstm", {"input_offsets": [-2, 2], "dilations": [1, 2]}, 2 + 9), ("blstm", {}, None),
    ("conformer", {"input_offsets": [-2, 2]}, 2 + 2 * 3 * (2 + 1)),  # two blocks: attention two rows, convolution one
    ("conformer", {"left": 300, "right": 300}, None)])
def test_look_ahead_is_what_a_row_waits_for(arch, more, frames):
    model = make(arch, **more)
    assert look_ahead(model) == frames
    if frames is not None:  # and nothing later changes it
        feats = torch.randn(1, 90, 8)
        later = feats.clone()
        later[:, 30 + frames + 1:] += 100.0
        lens = torch.tensor([90])
        torch.testing.assert_close(model(feats, lens)[0, :11], model(later, lens)[0, :11])
        later[:, 30 + frames] += 100.0
        assert not torch.allclose(model(feats, lens)[0, 10], model(later, lens)[0, 10])


def test_attention_hears_its_window_and_no_padding(monkeypatch):
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, left=2, right=1, dropout=0.0)
    layer.bias.data.normal_()
    x = torch.randn(1, 9, 8, requires_grad=True)
    layer(x, None)[0, 4].sum().backward()
    assert x.grad[0].abs().sum(1).nonzero()[:, 0].tolist() == [2, 3, 4, 5]
    mask = length_mask(torch.tensor([9, 5]), 9)
    two = torch.randn(2, 9, 8)
    torch.testing.assert_close(layer(two, mask)[1, :5], layer(two[1:, :5], None)[0])
    assert torch.isfinite(layer(two, mask)).all()
    longer = torch.randn(2, 40, 8)
    mask = length_mask(torch.tensor([40, 23]), 40)
    whole = layer(longer, mask)
    monkeypatch.setattr(conformer, "BLOCK", 7)  # an utterance of many blocks
    torch.testing.assert_close(layer(longer, mask), whole)
    # against the formula, written out
    qkv = layer.qkv(layer.norm(two[:1])).view(9, 3, 2, 4)
    expected = torch.zeros(9, 2, 4)
    for head in range(2):
        for row in range(9):
            seen = [t for t in range(row - 2, row + 2) if 0 <= t < 9]
            score = torch.stack([qkv[row, 0, head] @ qkv[t, 1, head] / 2 + layer.bias[head, t - row + 2] for t in seen])
            weights = torch.softmax(score, 0)
            expected[row, head] = sum(w * qkv[t, 2, head] for w, t in zip(weights, seen))
    torch.testing.assert_close(layer(two[:1], None)[0], layer.out(expected.reshape(9, 8)), atol=1e-5, rtol=1e-5)


def test_frame_dropout_drops_whole_rows():
    torch.manual_seed(0)
    layer = FrameDropout(0.25)
    y = layer(torch.ones(4, 100, 5))
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (y == y[:, :, :1]).all() and 0.15 < float((y == 0).float().mean()) < 0.35
    torch.testing.assert_close(layer.eval()(torch.ones(1, 2, 3)), torch.ones(1, 2, 3))
    model = make("tdnn_lstm", frame_dropout=0.5, dropout=0.0).train()
    feats, lens = torch.randn(1, 30, 8), torch.tensor([30])
    assert not torch.equal(model(feats, lens), model(feats, lens))
    assert torch.equal(model.eval()(feats, lens), model(feats, lens))


def test_gradients_reach_every_parameter(arch):
    model = make(arch)
    model(torch.randn(2, 60, 8), torch.tensor([60, 41])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_splice_is_a_convolution():
    x = torch.randn(2, 17, 4)
    conv = torch.nn.Conv1d(4, 5, 3, stride=2, dilation=3, padding=3, bias=False)
    weight = conv.weight.permute(0, 2, 1).reshape(5, 12)  # (out, offset * in)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(splice(x, [-3, 0, 3], stride=2) @ weight.t(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(splice(x, [0]), x)
    assert splice(x, [2], stride=3)[0, -1].tolist() == [0.0] * 4  # frame 15 + 2 is beyond the edge


@pytest.mark.parametrize("offsets, stride, frames", [([-2, -1, 0, 1, 2], 3, 10), ([-6, 0, 6], 1, 8), ([0, 3], 1, 9),
                                                     ([-4, 0], 1, 3),
                                                     ([-2, 5], 4, 17), ([-30, 30], 1, 9), ([1], 1, 1)])
def test_splice_frame_by_frame_and_its_gradient(offsets, stride, frames):
    x = torch.randn(2, frames, 3, dtype=torch.double, requires_grad=True)
    got = splice(x, offsets, stride)
    assert got.shape == (2, -(-frames // stride), 3 * len(offsets))
    for row in range(got.shape[1]):
        for i, offset in enumerate(offsets):
            t = row * stride + offset
            expected = x[:, t] if 0 <= t < frames else torch.zeros(2, 3, dtype=torch.double)
            assert torch.equal(got[:, row, 3 * i:3 * i + 3], expected)
    assert torch.autograd.gradcheck(lambda x: splice(x, offsets, stride), x)


@pytest.mark.parametrize("offsets, frames, bias", [
    ([-6, 0, 6], 8, True), ([0, 3], 9, True), ([-4, 0], 3, False), ([-30, 30], 9, True), ([-1, 0, 1], 1, False),
    ([2, 5], 4, True)])
def test_products_of_spliced_rows_without_copies(offsets, frames, bias):
    """Against the product of the copies, and the gradients of all three against numerical ones."""
    layer = SplicedLinear(3, 5, offsets, bias=bias).double()
    x = torch.randn(3, frames, 3, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(splice(x, offsets), layer.weight, layer.bias))
    parameters = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *words: torch.func.functional_call(
        layer, dict(zip(("weight", "bias"), words)), (x,)), (x, *parameters))
    with torch.autocast("cpu", torch.bfloat16):  # where the copies are made
        assert layer.float()(x.detach().float()).dtype == torch.bfloat16


def test_reversing_rows_keeps_padding_in_place():
    x = torch.arange(10.0).reshape(2, 5, 1)
    rows = torch.tensor([5, 3])
    mask = length_mask(rows, 5)
    back = reverse_rows(x, rows, mask)
    assert back[:, :, 0].tolist() == [[4, 3, 2, 1, 0], [7, 6, 5, 8, 9]]
    torch.testing.assert_close(reverse_rows(back, rows, mask), x)
    assert length_mask(torch.tensor([5, 5]), 5) is None


def test_masked_batch_norm_sees_only_valid_rows():
    torch.manual_seed(0)
    ours, plain = MaskedBatchNorm(6), torch.nn.BatchNorm1d(6)
    x = torch.randn(3, 7, 6) * 4 + 2
    mask = length_mask(torch.tensor([7, 2, 5]), 7)
    inside = mask[..., 0].bool()
    got = ours(x, mask)
    torch.testing.assert_close(got[inside], plain(x[inside]))
    assert got[~inside].abs().sum() == 0
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_shared_dropout_drops_a_channel_of_a_chunk_for_all_rows():
    torch.manual_seed(0)
    layer = SharedDropout(0.5)
    y = layer(torch.ones(4, 9, 100))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y == y[:, :1]).all() and 0.3 < float((y == 0).float().mean()) < 0.7
    torch.testing.assert_close(layer.eval()(torch.ones(1, 2, 3)), torch.ones(1, 2, 3))


def test_batch_norm_models_train_and_ignore_padding():
    model = make("tdnn", norm="batch").train()
    before = model.encoder.layers[0].norm.running_mean.clone()
    feats, lens = torch.randn(2, 12, 8), torch.tensor([12, 6])
    feats[1, 6:] = 1e6
    model(feats, lens).sum().backward()
    after = model.encoder.layers[0].norm.running_mean
    assert not torch.equal(before, after) and after.abs().max() < 10


def test_the_constraint_makes_bottlenecks_semi_orthogonal():
    torch.manual_seed(0)
    layer = FactoredTdnn(12, 6, 1)

    def distance():
        p = (layer.linear.weight @ layer.linear.weight.t()).detach()
        return float((p / p.diagonal().mean() - torch.eye(6)).abs().max())

    start = distance()
    for _ in range(60):
        layer.constrain()
    assert start > 0.1 and distance() < 1e-4


def test_counts_of_parameters_and_operations(arch):
    model = make(arch)
    assert num_params(model) == sum(p.numel() for p in model.parameters())
    if arch == "tdnn":  # by hand: 5 * 8 -> 24, four of 3 * 24 -> 24, 24 -> 12, 12 -> 11; two operations each, 1/3 rows
        macs = 40 * 24 + 4 * 72 * 24 + 24 * 12 + 12 * 11
        assert mflop_per_frame(model) == pytest.approx(2 * macs / 3 / 1e6)
    if arch in ("tdnn", "tdnn_f", "cnn_tdnn"):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 300, 8), torch.tensor([300]))
        assert mflop_per_frame(model) == pytest.approx(counter.get_total_flops() / 300 / 1e6)
    model.train()
    mflop_per_frame(model)
    assert model.training


def test_the_same_seed_gives_the_same_parameters(arch):
    for a, b in zip(make(arch).parameters(), make(arch).parameters()):
        assert torch.equal(a, b)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="unknown architecture 'transformer'.*blstm, .*tdnn, tdnn_f"):
        build_model("transformer", {}, feat_dim=8, num_pdfs=3, frame_subsampling_factor=3)
    with pytest.raises(UserError, match="m.yaml: model: unknown key 'hiden'; did you mean 'hidden'"):
        model_settings("tdnn", {"hiden": 3}, "m.yaml")
    with pytest.raises(UserError, match="norm: 'group' is neither layer nor batch"):
        build_model("tdnn", {"norm": "group"}, feat_dim=8, num_pdfs=3, frame_subsampling_factor=3)
    with pytest.raises(UserError, match="hidden .10. must be a multiple of heads .4."):
        build_model("conformer", {"hidden": 10}, feat_dim=8, num_pdfs=3, frame_subsampling_factor=3)
    with pytest.raises(UserError, match="channels .4, 4. and freq_strides .2. must be of one length"):
        build_model("blstm", {"channels": [4, 4], "freq_strides": [2]}, feat_dim=8, num_pdfs=3,
                    frame_subsampling_factor=3)
    assert model_settings("blstm", {"cells": 7}, "x")["layers"] == 2
