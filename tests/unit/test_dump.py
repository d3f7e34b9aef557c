"""dump-post: archives, pipes and models in; wide, whole and fused archives and their sidecars out."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import table
from builders.posteriors import parts_of
from builders.training_data import untrained_models

from essence_kd.am.dump import DumpSettings, device_entries, describe_teachers, dump
from essence_kd.cli.main import main
from essence_kd.distill.ensemble import Ensemble, combine
from essence_kd.distill.essence import EssenceSettings, select
from essence_kd.distill.scales import Scale
from essence_kd.hmm.alignment_dir import read_log_priors
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import read_posteriors
from essence_kd.io.tables import MatrixWriter, read_matrices

PDFS = 60


def random_logits(seed, lengths=(4, 1, 9, 0, 6)):
    rng = np.random.default_rng(seed)
    return {f"utt{i}": (3 * rng.standard_normal((n, PDFS))).astype(np.float32) for i, n in enumerate(lengths)}


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
    return p / p.sum(axis=1, keepdims=True)


@pytest.fixture
def two(tmp_path):
    """Two teachers' logits and their tables."""
    values = [random_logits(1), random_logits(2)]
    return values, [table(MatrixWriter, tmp_path / f"t{i}", v) for i, v in enumerate(values)]


def entries(path):
    return dict(read_posteriors(path))


def test_a_wide_archive_has_the_largest_at_their_true_probability(two, tmp_path):
    values, tables = two
    out = f"ark,scp:{tmp_path}/wide.ark,{tmp_path}/wide.scp"
    tally = dump(DumpSettings(teachers=tables, output=out, keep=10, input="logit", weights=[3.0, 1.0],
                              frame_shift_ms=30.0))
    got = entries(f"scp:{tmp_path}/wide.scp")
    assert list(got) == list(values[0]) and tally.num_frames == 20
    ensemble = Ensemble([Scale("logit")] * 2, [3, 1])
    kept = 0.0
    for utt, post in got.items():
        want = select(combine(ensemble, [v[utt] for v in values]), EssenceSettings(top_k=10, mass="keep"))
        np.testing.assert_array_equal(post.ids, want.ids)
        np.testing.assert_array_equal(post.probs, want.probs)
        np.testing.assert_allclose(want.probs, np.sort(0.75 * softmax(values[0][utt]) + 0.25 * softmax(values[1][utt]),
                                                       axis=1)[:, :-11:-1].ravel(), rtol=1e-5)
        kept += want.kept.sum()
    fields = json.loads((tmp_path / "wide.json").read_text())
    assert fields["mean_mass"] == pytest.approx(kept / 20, rel=1e-6)
    for key, value in dict(num_pdfs=PDFS, k=10, mass="keep", selection="top-k", combine="mean", weights=[0.75, 0.25],
                           num_utts=5, num_frames=20, temperature=1.0, kind="wide", form="kaldi",
                           frame_shift_ms=30.0).items():
        assert fields[key] == value


def test_whole_posteriors_beside_the_wide_archive_and_alone(two, tmp_path):
    values, tables = two
    dump(DumpSettings(teachers=tables, output=f"ark:{tmp_path}/wide.ark", keep=5, input="logit", combine="logmean",
                      full=f"ark,scp:{tmp_path}/full.ark,{tmp_path}/full.scp"))
    dump(DumpSettings(teachers=tables, output=f"ark:{tmp_path}/all.ark", keep=0, input="logit", combine="logmean"))
    assert (tmp_path / "full.ark").read_bytes() == (tmp_path / "all.ark").read_bytes()
    ensemble = Ensemble([Scale("logit")] * 2, combine="logmean")
    wide = entries(f"ark:{tmp_path}/wide.ark")
    for utt, full in read_matrices(f"scp:{tmp_path}/full.scp"):
        want = combine(ensemble, [v[utt] for v in values])
        np.testing.assert_array_equal(full.reshape(want.shape), want)
        if len(want):
            np.testing.assert_array_equal(wide[utt].ids, select(full, EssenceSettings(top_k=5)).ids)
    for name in ("full", "all"):
        fields = json.loads((tmp_path / f"{name}.json").read_text())
        assert [fields[x] for x in ("kind", "selection", "num_pdfs", "mean_mass")] == ["dense", "all", PDFS, 1]


@pytest.mark.parametrize("rule", [EssenceSettings(top_k=7), EssenceSettings(select="top-p", top_p=0.9, max_k=20),
                                  EssenceSettings(select="min-post", min_post=0.05), EssenceSettings(select="top-p"),
                                  EssenceSettings(select="random-prune", min_post=0.05, seed=2),
                                  EssenceSettings(select="agree", top_k=5, agree=2)], ids=lambda rule: rule.select)
def test_fusing_is_dumping_and_pruning(rule, two, tmp_path):
    values, tables = two
    dump(DumpSettings(teachers=tables, output=f"ark:{tmp_path}/post.ark", essence=rule, input="logit"))
    ensemble = Ensemble([Scale("logit")] * 2)
    for utt, post in read_posteriors(f"ark:{tmp_path}/post.ark"):
        both = [v[utt] for v in values]
        full = combine(ensemble, both)
        want = select(full, rule, utt=utt, teachers=both)
        np.testing.assert_array_equal(post.ids, want.ids)
        np.testing.assert_array_equal(post.probs, want.probs)
    fields = json.loads((tmp_path / "essence.json").read_text())
    assert fields["selection"] == rule.select and fields["kind"] == "essence" and fields["mass"] == "renorm"


def test_temperatures_and_priors(two, tmp_path):
    values, tables = two
    priors = np.random.default_rng(0).dirichlet(np.ones(PDFS))
    priors[3] = 0
    priors /= priors.sum()
    (tmp_path / "priors.txt").write_text("\n".join(f"{p:.9g}" for p in priors) + "\n")
    log = read_log_priors(str(tmp_path / "priors.txt"))
    assert log[3] == 0 and log[4] == pytest.approx(np.log(max(1e-5, priors[4])), abs=1e-6)
    dump(DumpSettings(teachers=tables, output=f"ark:{tmp_path}/wide.ark", keep=PDFS, input="logit", temperatures=[2.0],
                      priors=str(tmp_path / "priors.txt"), prior_scale=0.5))
    fields = json.loads((tmp_path / "wide.json").read_text())
    assert fields["temperature"] == 2.0 and fields["prior_scale"] == 0.5
    for utt, post in read_posteriors(f"ark:{tmp_path}/wide.ark"):
        p = sum(softmax(v[utt] / 2 - 0.5 * log) for v in values) / 2
        np.testing.assert_allclose(post.probs, -np.sort(-p, axis=1).ravel(), rtol=2e-5)
    dump(DumpSettings(teachers=tables, output=f"ark:{tmp_path}/wide.ark", keep=3, input="logit",
                      temperatures=[2.0, 1.0]))
    fields = json.loads((tmp_path / "wide.json").read_text())
    assert fields["temperature"] == 1.0 and fields["teacher_temperatures"] == [2.0, 1.0]


def test_pipes_stdout_and_shuffled_scps(two, tmp_path, shell):
    values, tables = two
    shuffled = tmp_path / "shuffled.scp"
    shuffled.write_text("".join(reversed((tmp_path / "t1.scp").read_text().splitlines(True))))
    expected = f"{tmp_path}/expected.ark"
    dump(DumpSettings(teachers=tables, output=f"ark:{expected}", keep=4, input="logit"))
    done = shell("bash", "-c", f". ./path.sh; essence dump-post --input logit --keep 4 'ark:cat {tmp_path}/t0.ark |' "
                               f"scp:{shuffled} ark:- | cmp - {expected}")
    assert done.returncode == 0, done.stderr
    assert "5 utterances, 20 frames" in done.stderr


@pytest.mark.parametrize("change, message", [
    (lambda v: v.pop("utt2"), r"utterances differ: scp:.*t0.scp has 5, scp:.*t1.scp has 4; 1 not in .*utt2"),
    (lambda v: v.update(utt2=v["utt2"][:3]), "utt2: the teachers differ: 9 frames of 60 pdfs, 3 frames of 60 pdfs"),
    (lambda v: v.update(utt2=v["utt2"][:, :50]), "utt2: the teachers differ: 9 frames of 60 pdfs, 9 frames of 50 pdfs"),
    (lambda v: v.update(utt2=v["utt2"] * np.nan), r"utterance utt2: frame 0: holds a NaN \[scp:.*t1.scp\]")])
def test_teachers_that_do_not_fit(change, message, tmp_path):
    one, other = random_logits(1), random_logits(2)
    change(other)
    tables = [table(MatrixWriter, tmp_path / "t0", one), table(MatrixWriter, tmp_path / "t1", other)]
    with pytest.raises(UserError, match=message):
        dump(DumpSettings(teachers=tables, output=f"ark,scp:{tmp_path}/o.ark,{tmp_path}/o.scp", keep=5, input="logit",
                          full=f"ark:{tmp_path}/f.ark"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t0.ark", "t0.scp", "t1.ark", "t1.scp"]


def test_archives_must_be_in_the_same_order(two, tmp_path):
    values, tables = two
    swapped = dict(reversed(list(values[1].items())))
    table(MatrixWriter, tmp_path / "t1", swapped)
    settings = DumpSettings(output=f"ark:{tmp_path}/o.ark", keep=5, input="logit")
    for second, message in ((f"ark:{tmp_path}/t1.ark", "has utt4 where scp:.*t0.scp has utterance utt0.*same order"),
                            (f"ark:head -c 0 {tmp_path}/t1.ark |", "ends where"),):
        settings.teachers = [tables[0], second]
        with pytest.raises(UserError, match=message):
            dump(settings)
    table(MatrixWriter, tmp_path / "t2", {**values[1], "utt9": values[1]["utt0"]})
    settings.teachers = [tables[0], f"ark:{tmp_path}/t2.ark"]
    with pytest.raises(UserError, match="has utterance utt9 after .* has ended"):
        dump(settings)


@pytest.mark.parametrize("options", [{}, {"keep": 0}, {"keep": 2, "full": "full"},
                                     {"essence": EssenceSettings(top_k=3)},
                                     {"essence": EssenceSettings(select="agree", top_k=3, agree=1)}])
def test_utterances_without_frames_alone(options, tmp_path):
    """Nothing tells the number of pdfs; the archive and its sidecar are whole all the same."""
    teacher = table(MatrixWriter, tmp_path / "t", {"a": np.zeros((0, 0)), "b": np.zeros((0, 0))})
    if "full" in options:
        options = {**options, "full": f"ark:{tmp_path}/full.ark"}
    assert dump(DumpSettings(teachers=[teacher, teacher], output=f"ark:{tmp_path}/o.ark", **options)).num_frames == 0
    read = read_matrices if options.get("keep") == 0 else read_posteriors
    assert [utt for utt, _ in read(f"ark:{tmp_path}/o.ark")] == ["a", "b"]
    sidecar = tmp_path / "o.json"
    assert json.loads(sidecar.read_text())["num_utts"] == 2


def test_other_mistakes(two, tmp_path, capsys):
    _, tables = two
    out = f"ark:{tmp_path}/o.ark"
    (tmp_path / "priors.txt").write_text("0.5\n0.5\n")
    (tmp_path / "words.txt").write_text("a b\n")
    empty = table(MatrixWriter, tmp_path / "empty", {})
    for arguments, message in (
            (["--weights", "1,2,3", *tables], "--weights: 3 values for 2 teachers"),
            (["--weights", "1", *tables], "--weights: 1 values for 2 teachers"),
            (["--weights", "0,0", *tables], "weights must be 0 or more and not all 0"),
            (["--temperatures", "1,2,3", *tables], "--temperatures: 3 values for 2 teachers"),
            (["--temperatures", "-1", *tables], "temperature must be above 0"),
            (["--keep", "61", *tables], "k is 61, but must be from 1 to the 60 pdfs"),
            (["--input", "prob", *tables], "--input logit"),
            (["--top-k", "5", *tables], "--top-k selects essence targets: say --fuse"),
            (["--fuse", "--select", "agree", "--agree", "3", *tables], "agree is 3, but there are 2 teachers"),
            (["--fuse", "--top-k", "0", *tables], "--top-k must be 1 or more, not 0"),
            (["--frame-shift-ms", "-10", *tables], "--frame-shift-ms -10: must be more than 0"),
            (["--prior-scale", "nan", *tables], "--prior-scale nan: must be a number"),
            (["--priors", f"{tmp_path}/none.txt", *tables], "none.txt: no such file"),
            (["--priors", f"{tmp_path}/words.txt", *tables], "not one number per line"),
            (["--priors", f"{tmp_path}/priors.txt", *tables], "2 priors for 60 pdfs"),
            ([str(tmp_path)], "a model directory needs --feats"),
            ([empty], "holds no utterance")):
        kind = [] if "--input" in arguments else ["--input", "logit"]
        assert main(["dump-post", *kind, *arguments, out]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o.ark").exists() and not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("option, value, message", [
    ("--weights", "1,b", "1,b: numbers with commas between"), ("--keep", "some", "some: 1 or more, or all"),
    ("--keep", "0", "0: 1 or more, or all")])
def test_values_that_are_none(option, value, message, two, capsys):
    with pytest.raises(SystemExit):
        main(["dump-post", option, value, two[1][0], "ark:/dev/null"])
    assert f"argument {option}: {message}" in capsys.readouterr().err


def test_sidecars_of_teachers_must_agree(two, tmp_path):
    _, tables = two
    (tmp_path / "t0.json").write_text('{"num_pdfs": 60, "tree_hash": "aa", "frame_shift_ms": 30}')
    (tmp_path / "t1.json").write_text('{"num_pdfs": 60, "tree_hash": "bb", "frame_shift_ms": 30}')
    settings = DumpSettings(teachers=tables, output=f"ark:{tmp_path}/o.ark", input="logit")
    with pytest.raises(UserError, match="tree_hash differs: aa in .*t0.json, bb in .*t1.json"):
        dump(settings)
    (tmp_path / "t1.json").write_text('{"num_pdfs": 60, "tree_hash": "aa"}')
    assert describe_teachers(settings)["frame_shift_ms"] == 30
    settings.frame_shift_ms = 10.0
    with pytest.raises(UserError, match="frame_shift_ms differs: 30 in .*, 10.0 in --frame-shift-ms"):
        dump(settings)
    # what the first does not tell is still compared
    (tmp_path / "t0.json").unlink()
    table(MatrixWriter, tmp_path / "t2", two[0][0])
    (tmp_path / "t2.json").write_text('{"num_pdfs": 60, "tree_hash": "cc"}')
    settings = DumpSettings(teachers=[*tables, f"scp:{tmp_path}/t2.scp"], output=f"ark:{tmp_path}/o.ark", input="logit")
    with pytest.raises(UserError, match="tree_hash differs: aa in .*t1.json, cc in .*t2.json"):
        dump(settings)


# --------------------------------------------------------------------------------------------- models of this project


@pytest.fixture
def models(tmp_path):
    return untrained_models(tmp_path, PDFS)


def test_models_are_run_on_features(models, tmp_path):
    from essence_kd.am.forward import iter_logits

    directories, feats = models
    dump(DumpSettings(teachers=directories, feats=feats, output=f"ark:{tmp_path}/wide.ark", keep=8, device="cpu"))
    logits = [dict(iter_logits(d, feats[4:], device="cpu")) for d in directories]
    ensemble = Ensemble([Scale("logit")] * 2)
    got = entries(f"ark:{tmp_path}/wide.ark")
    assert list(got) == list(logits[0]) and got["utt3"].num_frames == 1 and got["utt2"].num_frames == 30
    for utt, post in got.items():
        want = select(combine(ensemble, [z[utt] for z in logits]), EssenceSettings(top_k=8, mass="keep"))
        np.testing.assert_array_equal(post.ids, want.ids)
        np.testing.assert_allclose(post.probs, want.probs, rtol=1e-6)
    fields = json.loads((tmp_path / "wide.json").read_text())
    assert fields["tree_hash"] == "cafe" and fields["frame_shift_ms"] == 30 and fields["num_pdfs"] == PDFS
    assert [len(model["sha256"]) for model in fields["models"]] == [64, 64]


@pytest.mark.parametrize("device_path", [False, True])
def test_jobs_share_batches_and_change_no_bit(models, tmp_path, monkeypatch, device_path):
    from essence_kd.am import dump as module, forward

    directories, feats = models
    utt2spk = {f"utt{i}": f"s{i // 4}" for i in range(6)}  # means of a speaker are over the utterances of all jobs
    (tmp_path / "data" / "utt2spk").write_text("".join(f"{utt} {s}\n" for utt, s in utt2spk.items()))
    yaml = tmp_path / "b" / "model.yaml"
    yaml.write_text(yaml.read_text().replace("cmn: utterance", "cmn: speaker"))
    monkeypatch.setattr(forward, "WINDOW_BYTES", 4 * PDFS * 20)
    monkeypatch.setattr(module, "WINDOW_FRAMES", 130)
    if device_path:
        monkeypatch.setattr(module, "_device", lambda settings: "cpu")
    settings = DumpSettings(teachers=directories, feats=feats, keep=8, device="cpu", batch_frames=60)
    monkeypatch.chdir(tmp_path)
    dump(replace(settings, output=f"ark,scp:{tmp_path}/alone.ark,{tmp_path}/alone.scp"))
    alone = parts_of("alone.scp")
    assert list(alone) == [f"utt{i}" for i in range(6)]
    for jobs in (1, 2, 3, 9):
        scps = []
        for job in range(1, jobs + 1):
            stem = f"{tmp_path}/wide{jobs}.{job}"
            dump(replace(settings, output=f"ark,scp:{stem}.ark,{stem}.scp", job=(job, jobs)))
            scps.append(f"{stem}.scp")
        sizes = [len(Path(scp).read_text().splitlines()) for scp in scps]
        assert jobs == 1 or max(sizes) < 6
        assert main(["join-post", f"wide{jobs}.scp", *scps]) == 0
        assert parts_of(f"wide{jobs}.scp") == alone
        mine, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in (f"wide{jobs}", "alone"))
        assert mine.pop("mean_mass") == pytest.approx(whole.pop("mean_mass")) and mine == whole


def test_a_table_is_not_shared_out(two, tmp_path, capsys):
    assert main(["dump-post", "--job", "1/2", two[1][0], f"ark:{tmp_path}/w.ark"]) == 1
    assert "--job: shares out the utterances of --feats" in capsys.readouterr().err
    for job in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(SystemExit):
            main(["dump-post", "--job", job, two[1][0], f"ark:{tmp_path}/w.ark"])
        assert "such as 1/8" in capsys.readouterr().err


def test_a_model_and_a_table(models, tmp_path):
    from essence_kd.am.forward import iter_logits

    directories, feats = models
    logits = dict(iter_logits(directories[0], feats[4:], device="cpu"))
    logs = {u: np.log(softmax(z.astype(np.float64))) for u, z in logits.items()}
    stored = table(MatrixWriter, tmp_path / "stored", logs)
    dump(DumpSettings(teachers=[stored, directories[0]], feats=feats, input="log", keep=5, device="cpu",
                      output=f"ark:{tmp_path}/wide.ark"))
    for utt, post in read_posteriors(f"ark:{tmp_path}/wide.ark"):
        np.testing.assert_allclose(post.probs, -np.sort(-softmax(logits[utt]), axis=1)[:, :5].ravel(), rtol=1e-4)


@pytest.mark.parametrize("combine_rule", ["mean", "logmean"])
def test_the_fused_path_of_a_device_gives_the_hosts_answer(models, tmp_path, combine_rule):
    yaml = tmp_path / "a" / "model.yaml"
    yaml.write_text(yaml.read_text().replace("cmn: none", "cmn: online\nedge_rows: [4, 3]\nonline_cmn: {prior: 9, "
                                             "window: 20, look_ahead: 2, mean: [1, 2, 3, 4, 5, 6, 7, 8]}"))
    """Run on the CPU here: the path is the same on a GPU."""
    import torch

    directories, feats = models
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = DumpSettings(teachers=directories, feats=feats, output=f"ark:{tmp_path}/wide.ark", keep=8, device="cpu",
                            combine=combine_rule, batch_frames=100)
    dump(settings)
    ensemble = Ensemble([Scale("logit")] * 2, combine=combine_rule)
    want = entries(f"ark:{tmp_path}/wide.ark")
    got = list(device_entries(settings, ensemble, 8, device))
    assert [utt for utt, _, _ in got] == list(want)
    for utt, ids, probs in got:
        wanted_ids, wanted_probs = want[utt].fixed_k()
        np.testing.assert_array_equal(ids, wanted_ids)
        np.testing.assert_allclose(probs, wanted_probs, rtol=1e-4)


def test_models_that_do_not_fit(models, tmp_path):
    directories, feats = models
    settings = DumpSettings(teachers=directories, feats=feats, output=f"ark:{tmp_path}/wide.ark", keep=8, device="cpu")
    for device, message in (("gpu", "--device gpu: no such device"), ("cuda:99", "cuda:99: there is no such GPU")):
        with pytest.raises(UserError, match=message):
            dump(replace(settings, device=device))
    yaml = tmp_path / "b" / "model.yaml"
    good = yaml.read_text()
    yaml.write_text(good.replace("cafe", "beef"))
    with pytest.raises(UserError, match="tree_hash differs: cafe in .*a/model.yaml, beef in .*b/model.yaml"):
        dump(settings)
    yaml.write_text(good)
    table(MatrixWriter, tmp_path / "narrow", {"utt0": np.zeros((5, 7), np.float32)})
    settings.feats = f"scp:{tmp_path}/narrow.scp"
    with pytest.raises(UserError, match="7 bins, but the model .*a takes 8"):
        dump(settings)
    with pytest.raises(UserError, match="7 bins, but the model .*a takes 8"):
        list(device_entries(settings, Ensemble([Scale("logit")] * 2), 8, "cpu"))
