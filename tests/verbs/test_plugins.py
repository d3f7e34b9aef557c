"""A selection rule, a mass rule and a loss of somebody else, in a module of their own that ESSENCE_PLUGINS names."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT, table
from builders.training_data import make_data
from builders.training_runs import SMALL

from essence_kd.io.posterior import read_posteriors
from essence_kd.io.settings import read_yaml
from essence_kd.io.tables import MatrixWriter

MODULE = '''
from essence_kd.distill.losses import Loss, register_loss
from essence_kd.distill.mass_rules import MassRule, register_mass_rule
from essence_kd.distill.parameters import parameter
from essence_kd.distill.rules import Rule, register_rule


@register_rule
class Half(Rule):
    name = "half"
    share: float = parameter(0.5, "of the largest", lambda share: 0 < share <= 1, "above 0 and at most 1")

    def reference(self, probs, utt="", teachers=()):
        return [[(c, p) for c, p in enumerate(row) if p >= self.share * row.max()] for row in probs]


@register_mass_rule
class Even(MassRule):
    name = "even"

    def reference(self, probs):
        return [1 / len(probs) for _ in probs], 0.0

    def apply(self, offsets, probs):
        counts = offsets[1:] - offsets[:-1]
        return (1 / counts).repeat(counts)


@register_loss
class Brier(Loss):
    name = "brier"
    scale: float = 1.0

    def soft(self, q, p):
        return self.scale * ((q - p) ** 2).sum(1)
'''


@pytest.fixture
def essence(tmp_path):
    """Runs a verb with the plugin, or without it (``plugins=""``); the finished process."""
    (tmp_path / "my_rules.py").write_text(MODULE)

    def run(*arguments, plugins="my_rules"):
        more = {"PYTHONPATH": f"{ROOT / 'pytools'}{os.pathsep}{tmp_path}", "ESSENCE_PLUGINS": plugins}
        return subprocess.run([sys.executable, "-m", "essence_kd", *map(str, arguments)], env={**os.environ, **more},
                              text=True, capture_output=True)
    return run


def test_a_rule_and_a_mass_rule(essence, tmp_path):
    p = {"a": np.array([[0.5, 0.1, 0.4], [0.2, 0.6, 0.2]], np.float32)}
    full, out = table(MatrixWriter, tmp_path / "full", p), f"ark,scp:{tmp_path}/post.ark,{tmp_path}/post.scp"
    done = essence("prune-post", "--select", "half", "--mass", "even", "--set", "share=0.3", full, out)
    assert done.returncode == 0, done.stderr
    (_, post), = read_posteriors(f"scp:{tmp_path}/post.scp")
    assert post.ids.tolist() == [0, 2, 1, 0, 2]
    np.testing.assert_allclose(post.probs, [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    fields = json.loads((tmp_path / "essence.json").read_text())
    assert (fields["selection"], fields["share"], fields["mass"]) == ("half", 0.3, "even")

    (tmp_path / "essence.yaml").write_text("select: half\nmass: keep\nparameters: {share: 0.9}\n")
    done = essence("dump-post", "--fuse", "--config", tmp_path / "essence.yaml", full, f"ark:{tmp_path}/fused.ark")
    assert done.returncode == 0, done.stderr
    (_, post), = read_posteriors(f"ark:{tmp_path}/fused.ark")
    assert post.ids.tolist() == [0, 1]

    for words, message in (
            (["--select", "half", "--set", "share=2"], "prune-post: --set: share must be above 0 and at most 1, not 2"),
            (["--select", "half", "--set", "part=1"], "have no parameter 'part' (known: share)"),
            (["--set", "share"], "--set parameters.share: expected key=value"),
            (["--select", "third"], "must be one of agree, half, min-post, random-prune, top-k, top-p, not third")):
        done = essence("prune-post", *words, full, f"ark:{tmp_path}/x.ark")
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = essence("prune-post", "--select", "half", full, f"ark:{tmp_path}/x.ark", plugins="")
    assert done.returncode == 1 and "--select must be one of agree, min-post," in done.stderr


def test_a_loss(essence, tmp_path):
    corpus = make_data(tmp_path / "corpus", utterances=4, num_pdfs=12)
    settings = [word for value in [*SMALL, "optim.epochs=2", "distill.loss=brier"] for word in ("--set", value)]
    train = ["train", "--soft", corpus.post(4), *settings]
    losses = []
    for scale in (1, 1000):
        model = tmp_path / f"model{scale}"
        done = essence(*train, "--set", f"distill.parameters.scale={scale}", corpus.data, corpus.ali, model)
        assert done.returncode == 0, done.stderr
        first = json.loads((model / "progress.jsonl").read_text().splitlines()[0])
        losses.append(first["soft_loss"])
        distill = read_yaml(model / "model.yaml")["train"]["distill"]
        assert (distill["loss"], distill["parameters"]) == ("brier", {"scale": scale})
    assert 0 < losses[0] < 2 and losses[1] > 100 * losses[0]
    done = essence(*train, "--set", "distill.loss=cross-entropy", corpus.data, corpus.ali, tmp_path / "model1")
    assert done.returncode == 1 and "(settings: distill.loss: brier there, cross-entropy here)" in done.stderr
    done = essence(*train, corpus.data, corpus.ali, tmp_path / "none", plugins="")
    assert done.returncode == 1 and "settings: distill: unknown loss 'brier' (known: cross-entropy, jens" in done.stderr
    done = essence(*train, "--set", "distill.parameters.size=1", corpus.data, corpus.ali, tmp_path / "none")
    assert done.returncode == 1 and "unknown key 'size'" in done.stderr and not (tmp_path / "none").exists()
