"""prune-post and mix-post as a user runs them: what comes out, what is refused, and that nothing half-done is left."""
from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from builders import ROOT, table

from essence_kd.am.targets import SparseTargets
from essence_kd.cli.main import main
from essence_kd.distill.archives import read_dense_or_sparse
from essence_kd.distill.essence import EssenceSettings, reference_select, select
from essence_kd.distill.mix import mix_frames
from essence_kd.io import objects
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import Posterior, PosteriorWriter, read_posteriors
from essence_kd.io.provenance import read_sidecar
from essence_kd.io.tables import IntVectorWriter, MatrixWriter, read_matrices

PDFS = 50


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return {f"utt{i}": (3 * rng.standard_normal((n, PDFS))).astype(np.float32) for i, n in enumerate((6, 1, 0, 11))}


@pytest.fixture
def probs(logits):
    return {u: (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)).astype(np.float32) for u, z in logits.items()}


@pytest.fixture
def full(probs, tmp_path):
    return table(MatrixWriter, tmp_path / "full", probs)


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    return status, capsys.readouterr().err


def frames(post):
    return [list(zip(post.ids[a:b].tolist(), post.probs[a:b].tolist()))
            for a, b in zip(post.offsets[:-1], post.offsets[1:])]


@pytest.mark.parametrize("options, rule", [
    (["--top-k", "5"], EssenceSettings(top_k=5)),
    (["--select", "top-p", "--top-p", "0.8", "--max-k", "9"], EssenceSettings(select="top-p", top_p=0.8, max_k=9)),
    (["--select", "min-post", "--min-post", "0.03"], EssenceSettings(select="min-post", min_post=0.03)),
    (["--select", "random-prune", "--min-post", "0.03", "--seed", "3"],
     EssenceSettings(select="random-prune", min_post=0.03, seed=3))], ids=lambda x: getattr(x, "select", ""))
@pytest.mark.parametrize("mass", ["renorm", "keep", "residual"])
def test_every_rule_from_dense_and_from_wide(options, rule, mass, probs, full, tmp_path, capsys):
    wide = table(PosteriorWriter, tmp_path / "wide", {
        u: Posterior(*select(p, EssenceSettings(top_k=PDFS, mass="keep"))[:3]) for u, p in probs.items()})
    status, told = run(capsys, "prune-post", *options, "--mass", mass, full,
                       f"ark,scp:{tmp_path}/post.ark,{tmp_path}/post.scp")
    assert status == 0 and "4 utterances, 18 frames" in told
    assert run(capsys, "prune-post", *options, "--mass", mass, wide, f"ark:{tmp_path}/again.ark")[0] == 0
    assert (tmp_path / "again.ark").read_bytes() == (tmp_path / "post.ark").read_bytes()
    for utt, post in read_posteriors(f"scp:{tmp_path}/post.scp"):
        want = reference_select(probs[utt], rule, utt)
        got = frames(post)
        assert [[c for c, _ in f] for f in got] == [[c for c, _ in f] for f in want]
        for f, w in zip(got, want):
            total = sum(p for _, p in w) if mass == "renorm" else 1.0
            np.testing.assert_allclose([p for _, p in f], [p / total for _, p in w], rtol=1e-6)
    fields = json.loads((tmp_path / "essence.json").read_text())
    assert (fields["selection"], fields["mass"], fields["num_pdfs"], fields["num_utts"]) == (rule.select, mass, PDFS, 4)
    assert 0 < fields["mean_mass"] <= 1.001


def test_logits_logs_and_probabilities_select_the_same(logits, probs, tmp_path, capsys):
    logs = {u: np.log(p) for u, p in probs.items()}
    outputs = []
    for kind, values in (("logit", logits), ("log", logs), ("prob", probs)):
        source = table(MatrixWriter, tmp_path / kind, values)
        assert run(capsys, "prune-post", "--input", kind, "--temperature", "2", source,
                   f"ark:{tmp_path}/post-{kind}.ark")[0] == 0
        outputs.append(dict(read_posteriors(f"ark:{tmp_path}/post-{kind}.ark")))
    for utt in probs:
        for other in outputs[1:]:
            np.testing.assert_array_equal(outputs[0][utt].ids, other[utt].ids)
            np.testing.assert_allclose(outputs[0][utt].probs, other[utt].probs, rtol=1e-4)


def test_the_split_into_jobs_does_not_matter(full, tmp_path, capsys):
    lines = (tmp_path / "full.scp").read_text().splitlines(True)
    options = ["--select", "random-prune", "--min-post", "0.05", "--seed", "1"]
    run(capsys, "prune-post", *options, full, f"ark:{tmp_path}/whole.ark")
    for i, part in enumerate((lines[:1], lines[1:])):
        (tmp_path / f"part{i}.scp").write_text("".join(part))
        assert run(capsys, "prune-post", *options, f"scp:{tmp_path}/part{i}.scp", f"ark:{tmp_path}/done{i}.ark")[0] == 0
    parts = (tmp_path / "done0.ark").read_bytes() + (tmp_path / "done1.ark").read_bytes()
    assert parts == (tmp_path / "whole.ark").read_bytes()
    run(capsys, "prune-post", *options[:-1], "2", full, f"ark:{tmp_path}/other.ark")
    assert (tmp_path / "other.ark").read_bytes() != (tmp_path / "whole.ark").read_bytes()


RULE_OPTIONS = [["--top-k", "5"], ["--select", "top-p", "--top-p", "0.8"],
                ["--select", "min-post", "--min-post", "0.03"],
                ["--select", "random-prune", "--min-post", "0.03", "--mass", "keep"]]


@pytest.mark.parametrize("options", RULE_OPTIONS, ids=lambda options: options[1])
def test_files_pipes_gzip_and_threads_give_the_same_bytes(options, tmp_path, capsys, monkeypatch):
    """Large matrices are selected from in their files; with 30 utterances the threads overtake each other."""
    monkeypatch.setattr(objects, "_STORED", 2000)
    rng = np.random.default_rng(5)
    values = {f"utt{i}": rng.dirichlet(np.full(PDFS, 0.1), n).astype(np.float32)
              for i, n in enumerate([*rng.integers(1, 60, 28), 3000, 1])}
    source = table(MatrixWriter, tmp_path / "many", values)
    (tmp_path / "many.ark.gz").write_bytes(gzip.compress((tmp_path / "many.ark").read_bytes()))
    outputs = []
    for spec in (source, f"ark:{tmp_path}/many.ark", f"ark:cat {tmp_path}/many.ark |", f"ark:{tmp_path}/many.ark.gz"):
        for threads in (1, 2, 5):
            assert run(capsys, "prune-post", "--threads", threads, *options, spec, f"ark:{tmp_path}/p.ark")[0] == 0
            outputs.append((tmp_path / "p.ark").read_bytes())
    monkeypatch.setattr("essence_kd.distill.prune.kernels", lambda: None)
    monkeypatch.setattr("essence_kd.distill.largest.kernels", lambda: None)
    monkeypatch.setattr("essence_kd.distill.threshold.kernels", lambda: None)
    assert run(capsys, "prune-post", *options, source, f"ark:{tmp_path}/p.ark")[0] == 0
    assert {(tmp_path / "p.ark").read_bytes(), *outputs} == {outputs[0]}


def test_compressed_matrices_are_pruned_too(tmp_path, capsys, monkeypatch):
    import kaldi_native_io

    monkeypatch.setattr(objects, "_STORED", 1)
    p = np.random.default_rng(5).dirichlet(np.full(PDFS, 0.1), 40).astype(np.float32)
    for method in ("kSpeechFeature", "kTwoByteAuto", "kOneByteZeroOne"):
        with kaldi_native_io.CompressedMatrixWriter(f"ark,scp:{tmp_path}/c.ark,{tmp_path}/c.scp") as writer:
            for utt in ("a", "b"):
                writer.write(utt, p, method=getattr(kaldi_native_io.CompressionMethod, method))
        want = dict(read_matrices(f"ark:{tmp_path}/c.ark"))["a"]
        good = method == "kTwoByteAuto"  # sums of the others miss 1
        for spec in (f"ark:{tmp_path}/c.ark", f"scp:{tmp_path}/c.scp"):
            status, told = run(capsys, "prune-post", "--top-k", "4", spec, f"ark:{tmp_path}/p.ark")
            if good:
                got = dict(read_posteriors(f"ark:{tmp_path}/p.ark"))["b"]
                np.testing.assert_array_equal(got.ids, select(want, EssenceSettings(top_k=4)).ids)
            assert status == (0 if good else 1) and (good or "utterance a: frame " in told), told


def test_settings_come_from_the_file_and_options_win(full, tmp_path, capsys):
    (tmp_path / "e.yaml").write_text("top_k: 3\nmass: keep\n")
    run(capsys, "prune-post", "--config", tmp_path / "e.yaml", full, f"ark:{tmp_path}/a.ark")
    run(capsys, "prune-post", "--config", tmp_path / "e.yaml", "--top-k", "4", full, f"ark:{tmp_path}/b.ark")
    for name, k in (("a", 3), ("b", 4)):
        fields = json.loads((tmp_path / f"{name}.json").read_text())
        assert (fields["k"], fields["mass"]) == (k, "keep")
    status, told = run(capsys, "prune-post", "--config", ROOT / "conf" / "essence.yaml", full, f"ark:{tmp_path}/c.ark")
    assert status == 0 and json.loads((tmp_path / "c.json").read_text())["k"] == 20
    (tmp_path / "e.yaml").write_text("topk: 3\n")
    status, told = run(capsys, "prune-post", "--config", tmp_path / "e.yaml", full, f"ark:{tmp_path}/d.ark")
    assert status == 1 and "unknown key 'topk'" in told


def test_text_compact_ranges_and_gzip(probs, full, tmp_path, capsys):
    run(capsys, "prune-post", "--top-k", "4", full, f"ark,t:{tmp_path}/text.ark")
    assert run(capsys, "prune-post", "--top-k", "2", f"ark:{tmp_path}/text.ark", f"ark:{tmp_path}/two.ark")[0] == 0
    want = [[c for c, _ in f] for f in reference_select(probs["utt0"], EssenceSettings(top_k=2))]
    assert [[c for c, _ in f] for f in frames(dict(read_posteriors(f"ark:{tmp_path}/two.ark"))["utt0"])] == want
    assert run(capsys, "prune-post", "--top-k", "4", full, f"compact:ark,scp:{tmp_path}/c.ark,{tmp_path}/c.scp")[0] == 0
    assert json.loads((tmp_path / "c.json").read_text())["form"] == "compact"
    assert run(capsys, "prune-post", "--top-k", "2", f"scp:{tmp_path}/c.scp", f"ark:{tmp_path}/three.ark")[0] == 0
    assert [[c for c, _ in f] for f in frames(dict(read_posteriors(f"ark:{tmp_path}/three.ark"))["utt0"])] == want
    line = (tmp_path / "full.scp").read_text().splitlines()[0]
    (tmp_path / "range.scp").write_text(f"{line}[2:4]\n")
    assert run(capsys, "prune-post", f"scp:{tmp_path}/range.scp", f"ark:{tmp_path}/r.ark")[0] == 0
    assert dict(read_posteriors(f"ark:{tmp_path}/r.ark"))["utt0"].num_frames == 3
    status, _ = run(capsys, "prune-post", f"ark:gzip -c {tmp_path}/full.ark | gunzip -c |", f"ark:{tmp_path}/z.ark")
    assert status == 0 and len(dict(read_posteriors(f"ark:{tmp_path}/z.ark"))) == 4


def test_a_matrix_in_text_form_is_a_matrix(probs, tmp_path, capsys):
    with MatrixWriter(f"ark,t:{tmp_path}/full.txt") as writer:
        for utt in ("utt0", "utt1"):
            writer.write(utt, probs[utt])
    assert run(capsys, "prune-post", "--top-k", "3", f"ark:{tmp_path}/full.txt", f"ark:{tmp_path}/p.ark")[0] == 0
    got = dict(read_posteriors(f"ark:{tmp_path}/p.ark"))
    np.testing.assert_array_equal(got["utt1"].ids, select(probs["utt1"], EssenceSettings(top_k=3)).ids)


def test_matrices_and_posteriors_in_text_are_told_apart(tmp_path):
    """As Kaldi writes both: a matrix begins with a second blank, and an empty one is all in one line."""
    with MatrixWriter(f"ark,t:{tmp_path}/m.txt") as writer:
        writer.write("none", np.zeros((0, 0)))
        writer.write("some", np.array([[0.25, 0.75]]))
    text = (tmp_path / "m.txt").read_text()
    assert text.startswith("none  [ ]\nsome  [\n")
    posts = "empty [ ] \nnothing \npost [ 3 0.5 2 0.5 ] [ ] \n"
    (tmp_path / "both.txt").write_text(text + "begun [ 0.5 0.5\n0 1 ]\n" + posts)
    got = dict(read_dense_or_sparse(f"ark:{tmp_path}/both.txt"))
    assert {utt: value.shape for utt, value in got.items() if isinstance(value, np.ndarray)} == {
        "none": (0, 0), "some": (1, 2), "begun": (2, 2)}
    assert {utt: value.counts().tolist() for utt, value in got.items() if isinstance(value, Posterior)} == {
        "empty": [0], "nothing": [], "post": [2, 0]}


def test_more_classes_than_pdfs_are_all_of_them(probs, tmp_path, capsys):
    """A small tree has fewer pdfs than k: an archive of all of them holds what k asks for."""
    table(PosteriorWriter, tmp_path / "wide", {
        u: Posterior(*select(p, EssenceSettings(top_k=PDFS, mass="keep"))[:3]) for u, p in probs.items()})
    (tmp_path / "wide.json").write_text(json.dumps({"num_pdfs": PDFS, "selection": "top-k", "k": PDFS, "mass": "keep"}))
    for k in (PDFS, PDFS + 5):
        assert run(capsys, "prune-post", "--top-k", k, f"scp:{tmp_path}/wide.scp", f"ark:{tmp_path}/{k}.ark")[0] == 0
    assert (tmp_path / f"{PDFS}.ark").read_bytes() == (tmp_path / f"{PDFS + 5}.ark").read_bytes()


def test_the_sources_sidecar_is_carried_on_and_obeyed(probs, tmp_path, capsys):
    table(PosteriorWriter, tmp_path / "wide", {
        u: Posterior(*select(p, EssenceSettings(top_k=10, mass="keep"))[:3]) for u, p in probs.items()})
    wide = {"num_pdfs": PDFS, "selection": "top-k", "k": 10, "mass": "keep", "mean_mass": 0.95, "temperature": 2.0,
            "tree_hash": "cafe", "frame_shift_ms": 30, "combine": "mean", "weights": [1.0]}
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    source = f"scp:{tmp_path}/wide.scp"
    assert run(capsys, "prune-post", "--top-k", "4", source, f"ark:{tmp_path}/post.ark")[0] == 0
    fields = json.loads((tmp_path / "essence.json").read_text())
    for key in ("num_pdfs", "tree_hash", "frame_shift_ms", "combine", "weights", "temperature"):
        assert fields[key] == wide[key]
    status, told = run(capsys, "prune-post", "--top-k", "11", source, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "wide.json: the archive holds 10 classes per frame, --top-k asks for 11" in told
    assert run(capsys, "prune-post", "--top-k", "4", "--temperature", "1", source, f"ark:{tmp_path}/t.ark")[0] == 0
    before, after = (dict(read_posteriors(f"ark:{tmp_path}/{n}.ark"))["utt0"].fixed_k()[1] for n in ("post", "t"))
    np.testing.assert_allclose(after, before ** 2 / (before ** 2).sum(axis=1, keepdims=True), rtol=1e-5)
    status, told = run(capsys, "prune-post", "--select", "top-p", "--temperature", "1", source, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "needs every class" in told
    (tmp_path / "wide.json").write_text(json.dumps({**wide, "mass": "renorm"}))
    status, told = run(capsys, "prune-post", "--top-k", "4", "--mass", "keep", source, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "scaled to mass 1 (it had 0.9500); --mass keep needs one made with --mass keep" in told
    (tmp_path / "wide.json").write_text(json.dumps({**wide, "num_pdfs": 20}))
    status, told = run(capsys, "prune-post", "--top-k", "4", source, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "where there are 20 pdfs" in told
    assert not (tmp_path / "x.ark").exists() and not (tmp_path / "x.json").exists()


def test_matrices_that_contradict_their_sidecar_are_refused(full, tmp_path, capsys):
    (tmp_path / "full.json").write_text('{"num_pdfs": 20}')
    status, told = run(capsys, "prune-post", "--top-k", "4", full, f"ark:{tmp_path}/x.ark")
    assert status == 1 and f"utterance utt0: 50 columns, but there are 20 pdfs ({tmp_path}/full.json)" in told


def bad_matrices(probs):
    p = probs["utt3"]
    return {"nan": (np.where(np.eye(11, PDFS) > 0, np.nan, p), "frame 0: holds a NaN"),
            "inf": (np.where(np.eye(11, PDFS) > 0, np.inf, p), "frame 0: holds an infinite value"),
            "negative": (p - 0.01, "frame 0: a probability is -"),
            "large": (p * 3, "a probability is"), "sum": (p * 0.5, "frame 0: its probabilities sum to 0.5, not 1"),
            "logs": (np.log(p), "it looks like log-probabilities (--input log)"),
            "other pdfs": (np.full((2, 40), 1 / 40), "40 columns, but there are 50 pdfs")}


@pytest.mark.parametrize("name", ["nan", "inf", "negative", "large", "sum", "logs", "other pdfs"])
def test_bad_matrices_are_refused_by_name(name, probs, tmp_path, capsys):
    matrix, message = bad_matrices(probs)[name]
    source = table(MatrixWriter, tmp_path / "bad", {**probs, "worse": matrix.astype(np.float32)})
    status, told = run(capsys, "prune-post", "--top-k", "3", source, f"ark,scp:{tmp_path}/x.ark,{tmp_path}/x.scp")
    assert status == 1 and "bad.scp: utterance worse: " in told and message in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ark", "bad.scp"]


@pytest.mark.parametrize("options", RULE_OPTIONS, ids=lambda options: options[1])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_wrong_in_a_file_is_named_by_utterance_and_frame(options, threads, tmp_path, capsys, monkeypatch):
    """The first that is wrong in the archive's order, whichever thread comes to one first."""
    monkeypatch.setattr(objects, "_STORED", 1)
    rng = np.random.default_rng(6)
    good = {f"utt{i}": rng.dirichlet(np.full(PDFS, 0.1), 30).astype(np.float32) for i in range(12)}
    for value, message in ((np.nan, "holds a NaN"), (np.inf, "holds an infinite value"),
                           (-0.5, "a probability is -0.5"), (2.0, "a probability is 2")):
        values = {**good, "utt5": np.concatenate([good["utt5"]] * 50)}
        values["utt5"][1400, 49] = value
        values["utt6"] = np.full((1, PDFS), np.nan, np.float32)
        source = table(MatrixWriter, tmp_path / "bad", values)
        for spec in (source, f"ark:{tmp_path}/bad.ark"):
            status, told = run(capsys, "prune-post", "--threads", threads, *options, spec, f"ark:{tmp_path}/x.ark")
            assert status == 1 and f"utterance utt5: frame 1400: {message}" in told, told
    whole = (tmp_path / "bad.ark").read_bytes()
    (tmp_path / "bad.ark").write_bytes(whole[:whole.index(b"utt5 ") + 2000])
    for spec in (source, f"ark:{tmp_path}/bad.ark"):
        status, told = run(capsys, "prune-post", "--threads", threads, *options, spec, f"ark:{tmp_path}/x.ark")
        assert status == 1 and "bad.ark: utterance utt5: the matrix or posterior is cut short" in told, told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ark", "bad.scp"]


@pytest.mark.parametrize("arguments, message", [
    (["--top-k", "51"], "k is 51, but must be from 1 to the 50 pdfs there are"),
    (["--top-k", "0"], "--top-k must be 1 or more"),
    (["--select", "top-p", "--top-p", "1.5"], "--top-p must be above 0"),
    (["--temperature", "0"], "--temperature must be above 0"),
    (["--select", "min-post", "--min-post", "1e-320"], "--min-post must be at least 1e-30"),
    (["--select", "agree"], "--select agree needs the teachers themselves"),
    (["--input", "post"], "a matrix, but --input says post"), (["--input", "log"], "--input prob")])
def test_bad_options_are_refused(arguments, message, full, tmp_path, capsys):
    status, told = run(capsys, "prune-post", *arguments, full, f"ark:{tmp_path}/x.ark")
    assert status == 1 and message in told and not (tmp_path / "x.ark").exists()


def test_bad_sources_are_refused(full, tmp_path, capsys):
    post = table(PosteriorWriter, tmp_path / "three", {"u": Posterior(
        np.array([0, 3, 6]), np.array([4, 2, 1, 5, 6, 7]), np.array([0.5, 0.3, 0.1] * 2))})
    minus = table(PosteriorWriter, tmp_path / "minus", {"u": Posterior([0, 2], [4, 3], [0.5, -0.25])})
    empty = table(MatrixWriter, tmp_path / "empty", {})
    (tmp_path / "cut.ark").write_bytes((tmp_path / "full.ark").read_bytes()[:-7])
    (tmp_path / "dup.ark").write_bytes((tmp_path / "full.ark").read_bytes() * 2)
    for source, message in ((post, "holds 3 classes per frame, --top-k asks for 20"),
                            (minus, "utterance u: frame 0: pdf-id 3 has probability -0.25"),
                            (empty, "holds no utterance"), (f"ark:{tmp_path}/cut.ark", "cut short"),
                            (f"ark:{tmp_path}/dup.ark", "occurs twice"), (f"ark:{tmp_path}/none.ark", "cannot be read"),
                            ("ark:echo no >&2; exit 3 |", "failed with exit status 3: no")):
        status, told = run(capsys, "prune-post", source, f"ark:{tmp_path}/x.ark")
        assert status == 1 and message in told, told
        assert not (tmp_path / "x.ark").exists() and not (tmp_path / "x.json").exists()
    status, told = run(capsys, "prune-post", full, f"ark:{tmp_path}/nowhere/x.ark")
    assert status == 1 and "its directory does not exist" in told
    status, told = run(capsys, "prune-post", full, "ark:| cat >/dev/null; exit 4")
    assert status == 1 and "exit status 4" in told


@pytest.mark.parametrize("form", ["ark", "ark,t", "compact:ark"])
def test_weights_of_a_repeated_pdf_are_added_up(form, tmp_path, capsys):
    """Two frames with 0.7 and 0.6 in their largest class, of which the first names pdf 5 twice, the second 2."""
    post = Posterior([0, 3, 6], [5, 7, 5, 7, 2, 2], [0.4, 0.3, 0.3, 0.6, 0.2, 0.2])
    with PosteriorWriter(f"{form}:{tmp_path}/dup.ark") as writer:
        writer.write("u", post)
    ali = table(IntVectorWriter, tmp_path / "ali", {"u": np.array([5, 2], np.int32)})
    source = f"ark:{tmp_path}/dup.ark"

    def made(verb, *arguments):
        status, told = run(capsys, verb, *arguments, f"ark:{tmp_path}/x.ark")
        assert status == 0, told
        (_, found), = read_posteriors(f"ark:{tmp_path}/x.ark")
        return [dict(zip(found[t:t + 1].ids.tolist(), found[t:t + 1].probs.tolist())) for t in range(2)]

    bound = pytest.approx if form != "compact:ark" else lambda x: pytest.approx(x, rel=0.06)
    assert made("mix-post", "--soft-weight", "0.5", source, ali) == [bound({5: 0.85, 7: 0.15}), bound({2: 0.7, 7: 0.3})]
    assert made("prune-post", "--top-k", "1", "--mass", "keep", source) == [bound({5: 0.7}), bound({7: 0.6})]
    status, _ = run(capsys, "post-stats", "--json", f"{tmp_path}/s.json", source)
    assert status == 0 and json.loads((tmp_path / "s.json").read_text())["f_k"] == bound([0.65, 1.0])


@pytest.mark.parametrize("post, message", [
    (Posterior([0, 1, 3], [1, 2, 3], [1.0, 0.5, -0.5]), "frame 1: pdf-id 3 has probability -0.5"),
    (Posterior([0, 1, 3], [1, 2, 50], [1.0, 0.5, 0.5]), "frame 1: pdf-id 50 where there are 50 pdfs")])
def test_what_is_no_target_is_refused_alike(post, message, tmp_path, capsys):
    scp = table(PosteriorWriter, tmp_path / "bad", {"u": post})
    (tmp_path / "bad.json").write_text('{"num_pdfs": 50}')
    ali = table(IntVectorWriter, tmp_path / "ali", {"u": np.array([5, 2], np.int32)})
    for verb, *arguments in (("mix-post", scp, ali, "ark:/dev/null"), ("post-stats", scp),
                             ("prune-post", "--top-k", "1", scp, "ark:/dev/null")):
        status, told = run(capsys, verb, *arguments)
        assert status == 1 and f"utterance u: {message}" in told, (verb, told)
    with pytest.raises(UserError, match=f"utterance u: {message}"):
        SparseTargets(tmp_path / "bad.scp").read("u", 2, 50)


def test_an_output_that_would_share_its_inputs_sidecar_is_refused(full, tmp_path, capsys):
    for verb, source in (("prune-post", [full]), ("dump-post", [full, f"ark:{tmp_path}/full.ark"])):
        status, told = run(capsys, verb, *source, f"ark:{tmp_path}/full.post")
        assert status == 1 and "full.json with scp:" in told and not (tmp_path / "full.post").exists()
    status, told = run(capsys, "mix-post", full, f"ark:{tmp_path}/ali.ark", f"compact:ark:{tmp_path}/full.mixed")
    assert status == 1 and "give it another name" in told


def test_a_full_disk_leaves_nothing(full, tmp_path, shell):
    command = f". ./path.sh; ulimit -f 1; trap '' XFSZ; essence prune-post {full} ark:{tmp_path}/x.ark"
    done = shell("bash", "-c", command)
    assert done.returncode == 1 and "cannot be written" in done.stderr, done.stderr
    assert not (tmp_path / "x.ark").exists()


@pytest.mark.parametrize("verb", [["prune-post", "--threads", "2"], ["dump-post", "--keep", "5"]], ids=lambda v: v[0])
@pytest.mark.parametrize("source", ["ark:{}", "ark:cat {} |", "scp:{}.scp"])
def test_memory_does_not_grow_with_the_archive(verb, source, tmp_path):
    """120 MB more of input, in utterances of 6 MB, take less than a third of that more memory.

    The smaller archive, too, is larger than all that is held at a time: a few utterances under way (how many is a
    matter of timing), or 64 MB of an index's file, which is mapped.
    """
    peaks = []
    p = np.random.default_rng(0).dirichlet(np.full(500, 0.1), 3000).astype(np.float32)
    with MatrixWriter(f"ark:{tmp_path}/one.ark") as writer:
        writer.write("utt00", p)
    utterance = (tmp_path / "one.ark").read_bytes()
    for count in (15, 35):
        path = tmp_path / f"full{count}.ark"
        path.write_bytes(b"".join(b"utt%02d" % i + utterance[5:] for i in range(count)))
        (tmp_path / f"full{count}.ark.scp").write_text(
            "".join(f"utt{i:02} {path}:{i * len(utterance) + 6}\n" for i in range(count)))
        code = ("import sys\nfrom essence_kd.cli.main import main\nstatus = main(sys.argv[1:])\n"
                "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])\n"
                "sys.exit(status)")
        done = subprocess.run([sys.executable, "-c", code, *verb, source.format(path), f"ark:{tmp_path}/post.ark"],
                              env={**os.environ, "PYTHONPATH": str(ROOT / "pytools")}, capture_output=True, text=True)
        assert done.returncode == 0 and f"{count} utterances" in done.stderr, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 40_000, peaks  # kilobytes


def test_too_little_memory_is_one_line(tmp_path):
    matrix = "printf 'u \\0BFM \\4\\144\\0\\0\\0\\4\\100\\102\\17\\0'; head -c 400000000 /dev/zero"  # 100 x 1,000,000
    done = subprocess.run(["bash", "-c", 'ulimit -v 900000; exec "$@"', "-", sys.executable, "-m", "essence_kd",
                           "prune-post", "--top-k", "3", f"ark:{matrix} |", f"ark:{tmp_path}/o.ark"],
                          capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "pytools"), "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 1 and done.stderr.startswith("essence prune-post: not enough memory: "), done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ mixing

@pytest.fixture
def soft(probs, tmp_path):
    values = {u: Posterior(*select(p, EssenceSettings(top_k=5))[:3]) for u, p in probs.items()}
    return values, table(PosteriorWriter, tmp_path / "post", values)


@pytest.fixture
def aligned(probs, tmp_path):
    rng = np.random.default_rng(1)
    values = {u: rng.integers(0, PDFS, len(p)).astype(np.int32) for u, p in probs.items()}
    return values, table(IntVectorWriter, tmp_path / "ali", values)


@pytest.mark.parametrize("weight", ["0", "0.3", "1"])
def test_mixing_is_the_weighted_sum(weight, soft, aligned, tmp_path, capsys):
    posts, source = soft
    alis, ali = aligned
    output = f"ark,scp:{tmp_path}/m.ark,{tmp_path}/m.scp"
    assert run(capsys, "mix-post", "--soft-weight", weight, source, ali, output)[0] == 0
    w = float(weight)
    for utt, post in read_posteriors(f"scp:{tmp_path}/m.scp"):
        want = np.zeros((post.num_frames, PDFS))
        ids, probs = posts[utt].padded(5)
        np.add.at(want, (np.arange(len(ids))[:, None], ids), w * probs)
        want[np.arange(len(ids)), alis[utt]] += 1 - w
        got = np.zeros_like(want)
        for t, entries in enumerate(frames(post)):
            assert len({c for c, _ in entries}) == len(entries)
            assert entries == sorted(entries, key=lambda entry: (-entry[1], entry[0]))
            for c, p in entries:
                assert p > 0
                got[t, c] = p
        np.testing.assert_allclose(got, want, atol=1e-7)
        assert post.num_entries <= 6 * post.num_frames
    fields = json.loads((tmp_path / "m.json").read_text())
    assert (fields["kind"], fields["soft_weight"], fields["num_utts"]) == ("mixed", w, 4)


def test_audio_without_transcripts_follows_with_its_soft_targets_alone(soft, aligned, tmp_path, capsys):
    posts, source = soft
    _, ali = aligned
    pool = {f"pool{u[3:]}": post for u, post in posts.items()}
    more = table(PosteriorWriter, tmp_path / "pool", pool)
    assert run(capsys, "mix-post", source, ali, f"ark:{tmp_path}/plain.ark")[0] == 0
    output = f"ark,scp:{tmp_path}/m.ark,{tmp_path}/m.scp"
    assert run(capsys, "mix-post", "--untranscribed", more, source, ali, output)[0] == 0
    plain, mixed = dict(read_posteriors(f"ark:{tmp_path}/plain.ark")), dict(read_posteriors(f"ark:{tmp_path}/m.ark"))
    assert set(mixed) == set(plain) | set(pool)
    for utt, post in mixed.items():
        want = plain[utt] if utt in plain else pool[utt]
        assert frames(post) == frames(want)
    fields = json.loads((tmp_path / "m.json").read_text())
    assert (fields["num_utts"], fields["untranscribed"]) == (8, 4)
    # at the rate of the features, whose frames must be told
    factor = ["--frame-subsampling-factor", "3", "--every-frame", "--untranscribed", more]
    table(IntVectorWriter, tmp_path / "fine", {u: np.zeros(3 * p.num_frames, np.int32) for u, p in posts.items()})
    status, told = run(capsys, "mix-post", *factor, source, f"scp:{tmp_path}/fine.scp", f"ark:{tmp_path}/f.ark")
    assert status == 1 and "--untranscribed with --every-frame needs --num-frames" in told
    lengths = {u: 3 * p.num_frames - (p.num_frames > 1) for u, p in pool.items()}
    (tmp_path / "utt2num_frames").write_text("".join(f"{u} {n}\n" for u, n in lengths.items()))
    status, told = run(capsys, "mix-post", *factor, "--num-frames", tmp_path / "utt2num_frames", source,
                       f"scp:{tmp_path}/fine.scp", f"ark:{tmp_path}/f.ark")
    assert status == 0, told
    for utt, post in read_posteriors(f"ark:{tmp_path}/f.ark"):
        if utt in pool:
            assert post.num_frames == lengths[utt]
            nearest = [min((t + 1) // 3, pool[utt].num_frames - 1) for t in range(lengths[utt])]
            assert frames(post) == [frames(pool[utt])[r] for r in nearest]
    # what does not fit
    for wrong, message in ((source, "has an alignment in"), (f"scp:{tmp_path}/none.scp", "none.scp")):
        status, told = run(capsys, "mix-post", "--untranscribed", wrong, source, ali, f"ark:{tmp_path}/x.ark")
        assert status == 1 and message in told and not (tmp_path / "x.ark").exists()
    (tmp_path / "utt2num_frames").write_text("pool0 900\n")
    status, told = run(capsys, "mix-post", *factor, "--num-frames", tmp_path / "utt2num_frames", source,
                       f"scp:{tmp_path}/fine.scp", f"ark:{tmp_path}/x.ark")
    assert status == 1 and "utterance pool0: 6 frames of posteriors" in told


def test_the_mixed_targets_cross_entropy_is_the_two_term_loss(soft, aligned, logits, tmp_path, capsys):
    """What an unmodified nnet3 setup minimises on the mixed archive is the multitask loss at T = 1."""
    import torch
    from essence_kd.distill.losses.cross_entropy import multitask_loss, sparse_soft_cross_entropy

    posts, source = soft
    alis, ali = aligned
    run(capsys, "mix-post", "--soft-weight", "0.7", source, ali, f"ark:{tmp_path}/m.ark")
    for utt, mixed in read_posteriors(f"ark:{tmp_path}/m.ark"):
        z = torch.tensor(logits[utt][::-1].copy(), dtype=torch.float64).requires_grad_()
        ids, probs = (torch.from_numpy(x) for x in mixed.padded())
        one = sparse_soft_cross_entropy(z, ids, probs, mass="keep")
        soft_ids, soft_probs = (torch.from_numpy(x) for x in posts[utt].padded(5))
        two = multitask_loss(z, torch.from_numpy(alis[utt]).long(), soft_ids, soft_probs, soft_weight=0.7).total
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.autograd.grad(one, z)[0], torch.autograd.grad(two, z)[0], rtol=1e-5, atol=1e-7)


def test_alignments_at_the_feature_rate_from_a_stream(soft, aligned, tmp_path, capsys):
    posts, source = soft
    alis, _ = aligned
    rng = np.random.default_rng(2)
    fine = {u: np.repeat(a, 3) for u, a in reversed(list(alis.items()))}
    fine = {u: a[:len(a) - (1 if len(a) > 3 else 0)] + 0 * rng.integers(1) for u, a in fine.items()}
    table(IntVectorWriter, tmp_path / "fine", {u: a.astype(np.int32) for u, a in fine.items()})
    run(capsys, "mix-post", source, f"scp:{tmp_path}/ali.scp", f"ark:{tmp_path}/coarse.ark")
    status, told = run(capsys, "mix-post", source, f"ark:{tmp_path}/fine.ark", f"ark:{tmp_path}/x.ark")
    assert status == 1 and "utterance utt0: 6 frames of posteriors, but the alignment has 17 frames" in told
    assert run(capsys, "mix-post", "--frame-subsampling-factor", "3", source, f"ark:{tmp_path}/fine.ark",
               f"ark:{tmp_path}/mixed.ark")[0] == 0
    assert (tmp_path / "mixed.ark").read_bytes() == (tmp_path / "coarse.ark").read_bytes()
    (tmp_path / "essence.json").write_text('{"frame_shift_ms": 30}')
    assert run(capsys, "mix-post", source, f"scp:{tmp_path}/fine.scp", f"ark:{tmp_path}/again.ark")[0] == 0
    assert (tmp_path / "again.ark").read_bytes() == (tmp_path / "coarse.ark").read_bytes()


def test_every_frame_of_an_alignment_takes_the_nearest_soft_target(soft, tmp_path, capsys):
    posts, source = soft
    (tmp_path / "essence.json").write_text('{"frame_shift_ms": 30, "num_pdfs": 50}')
    rng = np.random.default_rng(4)
    for shorter in (0, 1, 2):  # of 3 rows, each of three frames, the last may stand for one
        alis = {u: rng.integers(0, 50, max(0, 3 * post.num_frames - shorter)).astype(np.int32)
                for u, post in posts.items()}
        ali = table(IntVectorWriter, tmp_path / "fine", alis)
        status, told = run(capsys, "mix-post", "--soft-weight", "0.7", "--every-frame", source, ali,
                           f"ark:{tmp_path}/mixed.ark")
        assert status == 0, told
        for utt, mixed in read_posteriors(f"ark:{tmp_path}/mixed.ark"):
            assert mixed.num_frames == len(alis[utt])
            for t, pdf in enumerate(alis[utt]):
                expected = np.zeros(50)
                near = min(range(posts[utt].num_frames), key=lambda r: abs(3 * r - t))
                for row, weight in ((posts[utt].take(np.array([near])), 0.7), (mixed.take(np.array([t])), -1)):
                    np.add.at(expected, row.ids, weight * row.probs)
                expected[pdf] += 0.3
                assert np.abs(expected).max() < 1e-6
    (tmp_path / "other").mkdir()
    assert run(capsys, "mix-post", "--every-frame", source, ali, f"ark:{tmp_path}/other/post.ark")[0] == 0
    assert read_sidecar(tmp_path / "other" / "essence.json")["frame_shift_ms"] == 10
    table(IntVectorWriter, tmp_path / "fine", {u: np.zeros(3 * p.num_frames + 1, np.int32) for u, p in posts.items()})
    status, told = run(capsys, "mix-post", "--every-frame", source, ali, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "the alignment has one in 3 of" in told and not (tmp_path / "x.ark").exists()


def test_mixing_mistakes(soft, aligned, tmp_path, capsys):
    _, source = soft
    alis, ali = aligned
    bad = {
        "few": ({u: a for u, a in alis.items() if u != "utt0"}, "aligns 3 of 4 utterances"),
        "negative": ({**alis, "utt0": alis["utt0"] - 50}, "utterance utt0: pdf-ids from -"),
        "short": ({**alis, "utt0": alis["utt0"][:-1]}, "utt0: 6 frames of posteriors, but the alignment has 5")}
    for name, (values, message) in bad.items():
        other = table(IntVectorWriter, tmp_path / name, values)
        status, told = run(capsys, "mix-post", source, other, f"ark:{tmp_path}/x.ark")
        assert status == 1 and message in told and not (tmp_path / "x.ark").exists()
    status, told = run(capsys, "mix-post", "--soft-weight", "2", source, ali, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "--soft-weight must be from 0 to 1" in told
    status, told = run(capsys, "mix-post", "--frame-subsampling-factor", "0", source, ali, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "--frame-subsampling-factor 0: must be at least 1" in told
    (tmp_path / "essence.json").write_text('{"tree_hash": "aa", "num_pdfs": 50}')
    (tmp_path / "ali.json").write_text('{"tree_hash": "bb", "num_pdfs": 50}')
    status, told = run(capsys, "mix-post", source, ali, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "tree_hash differs: aa in" in told
    (tmp_path / "ali.json").unlink()
    (tmp_path / "essence.json").write_text('{"num_pdfs": 20}')
    status, told = run(capsys, "mix-post", source, ali, f"ark:{tmp_path}/x.ark")
    assert status == 1 and "but there are 20 pdfs" in told


def test_a_few_missing_alignments_are_left_out_with_a_warning(tmp_path, capsys, caplog):
    post = Posterior(np.array([0, 1]), np.array([3]), np.array([1.0]))
    source = table(PosteriorWriter, tmp_path / "post", {f"u{i:02}": post for i in range(40)})
    ali = table(IntVectorWriter, tmp_path / "ali", {f"u{i:02}": np.array([3], np.int32) for i in range(1, 40)})
    assert run(capsys, "mix-post", source, ali, f"ark:{tmp_path}/m.ark")[0] == 0
    assert "no alignment of 1 utterances (first: u00)" in caplog.text
    assert len(dict(read_posteriors(f"ark:{tmp_path}/m.ark"))) == 39
    assert json.loads((tmp_path / "m.json").read_text())["num_missing"] == 1


def test_mixing_frames_of_any_length():
    soft = Posterior(np.array([0, 0, 2]), np.array([5, 1]), np.array([0.75, 0.25]))
    mixed = mix_frames(soft, np.array([7, 1]), 0.5)
    assert frames(mixed) == [[(7, 0.5)], [(1, 0.625), (5, 0.375)]]
    with pytest.raises(ValueError, match="3 aligned frames for 2 frames"):
        mix_frames(soft, np.array([7, 1, 1]), 0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_and_does_not_wait_for_the_pipe(number, full, tmp_path):
    source = f"ark:cat {tmp_path}/full.ark; sleep 60 |"
    process = subprocess.Popen([sys.executable, "-m", "essence_kd", "prune-post", source, f"ark:{tmp_path}/x.ark"],
                               env={**os.environ, "PYTHONPATH": str(ROOT / "pytools")}, stderr=subprocess.PIPE,
                               text=True)
    wait_until = time.time() + 60
    while not list(tmp_path.glob(".x.ark*")) and time.time() < wait_until:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in told
    assert not list(tmp_path.glob("*x.ark*")) and not list(tmp_path.glob(".x.ark*"))
