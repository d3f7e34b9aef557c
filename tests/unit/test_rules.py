"""What is known of selection rules and mass rules by their names; rules that have nothing but a definition."""
from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from builders import ROOT, refused

from essence_kd.distill.archives import describe
from essence_kd.distill.essence import EssenceSettings, reference_select, select, select_sparse
from essence_kd.distill.mass_rules import MASS_RULES, MassRule, register_mass_rule
from essence_kd.distill.parameters import parameter
from essence_kd.distill.rules import RULES, PrefixRule, Rule, by_value, register_rule
from essence_kd.io.settings import load_settings


@pytest.mark.parametrize("values, label, title, described", [
    ({"top_k": 5}, "k5", "k = 5", {"k": 5}),
    ({"select": "top-p", "top_p": 0.9}, "p0.9", "Mass of 0.9", {"top_p": 0.9, "max_k": 100}),
    ({"select": "top-p", "max_k": 9}, "p0.95_max9", "Mass of 0.95", {"top_p": 0.95, "max_k": 9}),
    ({"select": "min-post"}, "min0.01", "At least 0.01", {"min_post": 0.01}),
    ({"select": "random-prune", "min_post": 0.1}, "random0.1", "Random below 0.1", {"min_post": 0.1, "seed": 0}),
    ({"select": "random-prune", "seed": 4}, "random0.01_draw4", "Random below 0.01", {"min_post": 0.01, "seed": 4}),
    ({"select": "agree"}, "agree2-k20", "In the 20 best of 2 teachers", {"k": 20, "agree": 2})],
    ids=lambda x: x if isinstance(x, str) else "")
def test_labels_titles_and_what_a_sidecar_says(values, label, title, described):
    settings = EssenceSettings(**values)
    rule = settings.rule()
    assert (rule.label(EssenceSettings()), rule.title()) == (label, title)
    assert describe(settings) == {"selection": settings.select, "mass": "renorm", "temperature": 1.0, **described}
    assert all(name in RULES.get(settings.select).parameters for name in set(values) - {"select"})


def test_every_default_of_a_rule_is_that_of_the_settings_and_stands_once():
    settings = EssenceSettings()
    for name in RULES.names():
        rule = RULES.get(name)
        for part in fields(rule):
            if part.name in settings.__dataclass_fields__:
                assert part.default == getattr(settings, part.name), (name, part.name)
    run_sh_reads = load_settings(EssenceSettings, ROOT / "conf" / "essence.yaml")
    assert run_sh_reads == settings


@pytest.mark.parametrize("name", ["keep", "renorm", "residual"])
def test_a_mass_rule_stored_and_in_the_loss_is_its_definition(name):
    rule = MASS_RULES.get(name)()
    frames = [[0.5, 0.25], [0.125], [0.5, 0.25, 0.125, 0.0625]]
    probs, offsets = np.concatenate(frames).astype(np.float32), np.array([0, 2, 3, 7])
    stored = rule.apply(offsets, probs)
    for frame, a, b in zip(frames, offsets[:-1], offsets[1:]):
        q, rest = rule.target(torch.from_numpy(np.pad(stored[a:b], (0, 4 - len(frame))))[None])  # padded as in a batch
        want, everything_else = rule.reference(frame)
        np.testing.assert_allclose(q[0, :len(frame)], want, rtol=1e-6)
        assert (q[0, len(frame):] == 0).all()
        assert (0.0 if rest is None else float(rest)) == pytest.approx(everything_else)
    empty, rest = rule.target(torch.zeros(1, 3))
    assert (empty == 0).all() and (rest is None or float(rest) == 0)


# --------------------------------------------------------------------------------------------- rules of somebody else

@pytest.fixture(scope="module")
def mine():
    """A rule that has nothing but its definition, one that says how many of the first entries it keeps, a mass rule."""
    @register_rule
    class EveryOther(Rule):
        name = "test-every-other"
        start: int = parameter(0, "rank of the first", lambda start: start >= 0, "0 or more")

        def reference(self, probs, utt="", teachers=()):
            return [[(c, float(row[c])) for c in by_value(row)[self.start::2] if row[c] > 0.02] for row in probs]

    @register_rule
    class Half(PrefixRule):
        name = "test-half"
        share: float = 0.5

        def reference(self, probs, utt="", teachers=()):
            return [[(c, float(p)) for c, p in enumerate(row) if p >= self.share * row.max()] for row in probs]

        def trim(self, entries):
            inside = np.arange(entries.probs.shape[1]) < entries.counts[:, None]
            return ((entries.probs >= self.share * entries.probs[:, :1]) & inside).sum(axis=1)

    @register_mass_rule
    class Root(MassRule):
        name = "test-root"
        power: float = parameter(0.5, "of the probabilities", lambda power: power > 0, "above 0")

        def reference(self, probs):
            return [p ** self.power for p in probs], 0.0

        def apply(self, offsets, probs):
            return probs.astype(np.float64) ** self.power

    yield
    for registry, names in ((RULES, ("test-every-other", "test-half")), (MASS_RULES, ("test-root",))):
        for name in names:
            del registry._entries[name]


@pytest.mark.parametrize("values", [
    {"select": "test-every-other"}, {"select": "test-every-other", "parameters": {"start": 60}},
    {"select": "test-half"}, {"select": "test-half", "parameters": {"share": 0.1}}], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_definition_is_enough(mine, values, temperature):
    z = 3 * np.random.default_rng(3).standard_normal((7, 40)).astype(np.float32)
    settings = EssenceSettings(mass="keep", temperature=temperature, **values)
    p = np.exp(z / temperature) / np.exp(z / temperature).sum(axis=1, keepdims=True)
    want = [sorted(frame, key=lambda entry: (-entry[1], entry[0])) for frame in reference_select(p, settings)]
    whole = select(z, EssenceSettings(top_k=40, mass="keep", temperature=temperature), kind="logit")
    sparse = select_sparse(whole.offsets, whole.ids, whole.probs, settings, source_temperature=temperature)
    for essence in (select(z, settings, kind="logit"), sparse):
        assert [essence.ids[a:b].tolist() for a, b in zip(essence.offsets, essence.offsets[1:])] == \
            [[c for c, _ in frame] for frame in want]
        np.testing.assert_allclose(essence.probs, [p for frame in want for _, p in frame], rtol=1e-5)


def test_sparse_frames_of_different_lengths_by_a_definition(mine):
    offsets, ids = np.array([0, 3, 3, 4]), np.array([9, 2, 5], np.int32)
    essence = select_sparse(offsets, np.append(ids, 1), np.array([0.2, 0.5, 0.2, 1.0], np.float32),
                            EssenceSettings(select="test-every-other", mass="keep"))
    assert essence.ids.tolist() == [2, 9, 1] and essence.offsets.tolist() == [0, 2, 2, 3]


def test_a_mass_rule_with_a_parameter(mine):
    p = np.random.default_rng(1).dirichlet(np.ones(9), 4).astype(np.float32)
    settings = EssenceSettings(top_k=3, mass="test-root", parameters={"power": 0.25})
    keep = select(p, EssenceSettings(top_k=3, mass="keep"))
    np.testing.assert_allclose(select(p, settings).probs, keep.probs ** 0.25, rtol=1e-6)
    assert describe(settings)["power"] == 0.25
    with pytest.raises(ValueError, match="needs every class"):
        select_sparse(keep.offsets, keep.ids, keep.probs, EssenceSettings(top_k=3, mass="test-root", temperature=2.0))


def test_parameters_that_are_not_there_or_have_no_meaning(mine):
    with pytest.raises(ValueError, match="top-k and renorm have no parameter 'start'"):
        EssenceSettings(parameters={"start": 1}).check()
    with pytest.raises(ValueError, match="no parameter 'stat' .known: start"):
        EssenceSettings(select="test-every-other", parameters={"stat": 1}).check()
    with pytest.raises(ValueError, match="start must be 0 or more, not -1"):
        EssenceSettings(select="test-every-other", parameters={"start": -1}).check()
    refused(EssenceSettings(select="test-every-other", parameters={"start": "one"}).check, "expected a whole number")
    later = EssenceSettings(select="test-every-other", parameters={"start": 3})
    assert later.rule().label() == "test-every-other-start3"
    assert EssenceSettings(select="test-half").rule().title() == "test-half, share = 0.5"
