"""Kaldi's programs on posteriors that this project writes."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from builders.posteriors import MANY, as_lists, ragged, same, write

from essence_kd.io.posterior import Posterior, read_posteriors
from essence_kd.io.tables import MatrixWriter, read_vectors

pytestmark = pytest.mark.usefixtures("inner_loops")
KALDI = Path(os.environ["KALDI_ROOT"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.kaldi("src/bin/copy-post")
def test_copy_post_changes_nothing(here):
    program = KALDI / "src" / "bin" / "copy-post"
    write("ark,scp:a.ark,a.scp", MANY)
    write("ark,t:a.txt", MANY)
    for source in ("ark:a.ark", "scp:a.scp"):
        for target, wanted in (("ark:b.ark", "a.ark"), ("ark,t:b.ark", "a.txt")):
            subprocess.run([program, source, target], check=True, capture_output=True)
            assert Path("b.ark").read_bytes() == Path(wanted).read_bytes()
    found = dict(read_posteriors(f"ark:{program} scp:a.scp ark:- |"))
    for utt, post in MANY.items():
        same(found[utt], post)


@pytest.mark.kaldi("src/bin/post-to-weights")
def test_post_to_weights_finds_our_masses(here):
    program = KALDI / "src" / "bin" / "post-to-weights"
    write("ark:a.ark", MANY)
    for utt, weights in read_vectors(f"ark:{program} ark:a.ark ark:- |"):
        np.testing.assert_allclose(weights, MANY[utt].mass(), rtol=1e-5)


def entries(text: str) -> list:
    """The frames of Kaldi's text form: {pdf-id: weight} each."""
    frames = [frame.split("]")[0].split() for frame in text.split("[")[1:]]
    return [{int(i): float(p) for i, p in zip(frame[::2], frame[1::2])} for frame in frames]


@pytest.mark.kaldi("src/bin/sum-post")
def test_sum_post_adds_ours(here):
    program = KALDI / "src" / "bin" / "sum-post"
    one, two = Posterior([0, 2, 3, 3], [7, 3, 1], [0.5, 0.25, 1.0]), Posterior([0, 2, 3, 4], [3, 9, 1, 4],
                                                                              [0.5, 0.5, 1.0, 1.0])
    write("ark:one.ark", {"u": one})
    write("ark,scp:two.ark,two.scp", {"u": two})
    done = subprocess.run([program, "--scale1=0.5", "--scale2=0.5", "ark:one.ark", "scp:two.scp", "ark,t:-"],
                          check=True,
                          capture_output=True, text=True)
    assert entries(done.stdout) == [{7: 0.25, 3: 0.375, 9: 0.25}, {1: 1.0}, {4: 0.5}]


@pytest.mark.kaldi("src/nnet3bin/nnet3-get-egs", "src/nnet3bin/nnet3-copy-egs")
def test_nnet3_examples_hold_our_targets(here):
    get, copy = KALDI / "src" / "nnet3bin" / "nnet3-get-egs", KALDI / "src" / "nnet3bin" / "nnet3-copy-egs"
    post = ragged([2, 1, 3, 0, 2], seed=4)
    write("ark,scp:post.ark,post.scp", {"u": post})
    with MatrixWriter("ark:feats.ark") as writer:
        writer.write("u", np.ones((5, 3)))
    subprocess.run([get, "--num-pdfs=8816", "--num-frames=5", "--compress=false", "ark:feats.ark", "scp:post.scp",
                    "ark:egs.ark"], check=True, capture_output=True)
    done = subprocess.run([copy, "ark:egs.ark", "ark,t:-"], check=True, capture_output=True, text=True)
    found = entries(done.stdout.partition("output")[2])
    assert "rows=5 dim=8816" in done.stdout and len(found) == 5
    for frame, wanted in zip(found, as_lists(post)):
        assert frame == pytest.approx(dict(wanted), rel=1e-5)
