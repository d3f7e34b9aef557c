"""The plug-in's scripts without a Kaldi: usage, refusals, and targets and a student from archives of posteriors."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from builders import ROOT
from builders.training_data import make_data

from essence_kd.cli.main import main
from essence_kd.distill.join import join
from essence_kd.io.errors import UserError
from essence_kd.io.posterior import Posterior, PosteriorWriter, read_posteriors
from essence_kd.io.provenance import read_sidecar, sha256_file, write_sidecar
from essence_kd.io.tables import MatrixWriter, read_matrices

PLUGIN = ROOT / "recipes" / "plugin"
SCRIPTS = ("essence_targets.sh", "train_student.sh", "train_nnet3_student.sh", "decode_student.sh")


@pytest.fixture
def recipe(tmp_path):
    """A recipe directory with data, an alignment directory of this project's form, and two teachers' posteriors."""
    corpus = make_data(tmp_path / "a recipe", utterances=5, num_pdfs=12)
    write_sidecar(corpus.ali / "ali.json", {"kind": "alignment", "num_pdfs": 12,
                                            "tree_hash": sha256_file(corpus.ali / "tree.txt")})
    rng = np.random.default_rng(3)
    for name in ("a", "b"):
        with MatrixWriter(f"ark,scp:{corpus.root}/{name}.ark,{corpus.root}/{name}.scp") as writer:
            for utt, probs in corpus.probs.items():
                noisy = probs * rng.uniform(0.5, 1.5, size=probs.shape).astype(np.float32)
                writer.write(utt, noisy / noisy.sum(axis=1, keepdims=True))
    return corpus


@pytest.fixture
def plugin(shell, recipe):
    """Runs a script of the plug-in in the recipe directory."""
    def run(name, *args, **options):
        return shell(PLUGIN / name, *args, cwd=recipe.root, **options)
    return run


def targets(plugin, *options, teachers=("a.scp", "b.scp"), out="essence"):
    return plugin("essence_targets.sh", "--cmd", ROOT / "local/jobs.sh", "--frame-subsampling-factor", "3",
                  "--top-k", "4", *options,
                  "data", "ali", *teachers, out)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_nonsense(shell, tmp_path, name):
    done = shell(PLUGIN / name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and f"Usage: ESSENCE/recipes/plugin/{name}" in done.stdout
    done = shell("sh", PLUGIN / name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and f"Usage: ESSENCE/recipes/plugin/{name}" in done.stdout
    assert shell(PLUGIN / name, "--nope", "1", cwd=tmp_path).returncode == 2
    assert shell(PLUGIN / name, cwd=tmp_path).returncode == 2
    done = shell(PLUGIN / name, "no data", "no ali", "no teacher", "out", cwd=tmp_path)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_jobs_make_what_one_process_makes(plugin, recipe, shell):
    done = targets(plugin, "--nj", "3")
    assert done.returncode == 0, done.stderr
    out = recipe.root / "essence"
    assert len(list((out / "jobs").glob("[0-9]*"))) == 3
    alone = shell("local/bin/essence", "dump-post", "--fuse", "--top-k", "4", f"scp:{recipe.root}/a.scp",
                  f"scp:{recipe.root}/b.scp", f"ark:{recipe.root}/alone.ark")
    assert alone.returncode == 0, alone.stderr
    ours = {u: (p.ids.tolist(), p.probs.tolist()) for u, p in read_posteriors(f"scp:{out}/post.scp")}
    want = {u: (p.ids.tolist(), p.probs.tolist()) for u, p in read_posteriors(f"ark:{recipe.root}/alone.ark")}
    assert ours == want
    fields = read_sidecar(out / "essence.json")
    assert fields["num_utts"] == 15 and fields["k"] == 4 and fields["frame_shift_ms"] == 30 and fields["num_pdfs"] == 12
    assert fields["tree_hash"] == sha256_file(recipe.ali / "tree.txt")
    assert [m["name"] for m in fields["models"]] == ["a.scp", "b.scp"]
    again = targets(plugin, "--nj", "3")
    assert again.returncode == 0 and "up to date" in again.stdout


def test_a_job_that_dies_is_named_and_the_rest_is_kept(plugin, recipe):
    ark = (recipe.root / "a.ark").read_bytes()
    (recipe.root / "a.ark").write_bytes(ark[:len(ark) // 2])
    done = targets(plugin, "--nj", "3")
    assert done.returncode == 1 and "targets.3.log" in done.stderr and "Traceback" not in done.stderr
    kept = recipe.root / "essence" / "jobs" / "1" / "post.ark"
    before = kept.stat().st_mtime_ns
    (recipe.root / "a.ark").write_bytes(ark)
    done = targets(plugin, "--nj", "3")
    assert done.returncode == 0, done.stderr
    assert kept.stat().st_mtime_ns == before
    assert read_sidecar(recipe.root / "essence" / "essence.json")["num_utts"] == 15


def test_other_alignments_for_the_same_targets(plugin, recipe):
    assert targets(plugin, "--nj", "2").returncode == 0
    kept = recipe.root / "essence" / "jobs" / "1" / "post.ark"
    before = kept.stat().st_mtime_ns
    shutil.copytree(recipe.ali, recipe.root / "ali2")
    ali = recipe.root / "ali2"
    (ali / "tree.txt").write_text((ali / "tree.txt").read_text().replace(" 1 0\n", " 1 5\n"))
    write_sidecar(ali / "ali.json", {"kind": "alignment", "num_pdfs": 12, "tree_hash": sha256_file(ali / "tree.txt")})
    done = plugin("essence_targets.sh", "--frame-subsampling-factor", "3", "--top-k", "4", "--nj", "2", "data", "ali2",
                  "a.scp",
                  "b.scp", "essence")  # without --cmd: local/jobs.sh, for the folder has a blank in its name
    assert done.returncode == 0 and "up to date" not in done.stdout, done.stderr
    assert read_sidecar(recipe.root / "essence" / "essence.json")["tree_hash"] == sha256_file(ali / "tree.txt")
    assert (recipe.root / "essence" / "ali").resolve() == ali and kept.stat().st_mtime_ns == before


def test_the_rate_of_matrices_is_what_their_sidecar_says(plugin, recipe):
    assert targets(plugin).returncode == 0
    told = ("essence_targets.sh", "--cmd", ROOT / "local/jobs.sh", "--top-k", "4")
    for name in ("a", "b"):
        write_sidecar(recipe.root / f"{name}.json", {"frame_shift_ms": 30})
    done = plugin(*told, "data", "ali", "a.scp", "b.scp", "again")
    assert done.returncode == 0, done.stderr
    assert read_sidecar(recipe.root / "again" / "essence.json")["frame_shift_ms"] == 30
    assert (recipe.root / "again" / "jobs" / "1" / "post.ark").read_bytes() == \
        (recipe.root / "essence" / "jobs" / "1" / "post.ark").read_bytes()
    done = plugin(*told, "--frame-subsampling-factor", "2", "data", "ali", "a.scp", "refused")
    assert done.returncode == 1 and "a.scp has a row every 3 frames (a.json), not every 2" in done.stderr
    (recipe.root / "b.json").unlink()
    done = plugin(*told, "data", "ali", "a.scp", "b.scp", "refused")
    assert done.returncode == 1 and "b.scp has a row every 1 frames, a.scp every 3" in done.stderr
    assert not (recipe.root / "refused").exists()


def test_lines_are_dealt_out(shell, tmp_path):
    """As many parts as asked for, however long lines are, and none without a line; a speaker's lines stay together."""
    scp, utt2spk = tmp_path / "feats.scp", tmp_path / "utt2spk"
    names = [f"s{i // 4}-{i:02d}" for i in range(10)]
    scp.write_text("".join(f"{u} {'x' * (2000 if i == 3 else 1)}\n" for i, u in enumerate(names)))
    utt2spk.write_text("".join(f"{u} {u[:2]}\n" for u in names))

    def parts(nj, *by):
        for old in tmp_path.glob("part.*"):
            old.unlink()
        script = tmp_path / "script.sh"
        script.write_text(f'nj=1\n. {PLUGIN}/common.sh\nparts "$@"\n')
        done = shell("bash", script, nj, scp, tmp_path / "part", *by)
        assert done.returncode == 0, done.stderr
        count = int(done.stdout.splitlines()[-1])
        assert len(list(tmp_path.glob("part.*"))) == count
        return [[line.split()[0] for line in (tmp_path / f"part.{j}").read_text().splitlines()]
                for j in range(1, count + 1)]

    for nj in (1, 3, 7, 10, 32):
        made = parts(nj)
        assert [u for part in made for u in part] == names and len(made) == min(nj, 10)
        assert max(map(len, made)) - min(map(len, made)) <= 1
    for nj in (1, 2, 3, 32):
        made = parts(nj, utt2spk)
        assert [u for part in made for u in part] == names and len(made) == min(nj, 3)
        assert sum(len({u[:2] for u in part}) for part in made) == 3


def test_one_scp_may_hold_posteriors(plugin, recipe):
    done = targets(plugin, teachers=[recipe.post(8)])
    assert done.returncode == 0, done.stderr
    for _, post in read_posteriors(f"scp:{recipe.root}/essence/post.scp"):
        assert post.counts().max() == 4


@pytest.mark.parametrize("teachers, options, message", [
    (["nowhere"], [], "teacher 'nowhere' is neither"),
    (["a.scp", "short.scp"], [], "targets.1.log"),
    (["half.scp"], [], "targets of 7 of the 15 utterances"),
    (["a.scp"], ["--nj", "0"], "--nj takes a whole number"),
    (["a.scp"], ["--online-ivector-dir", "none"], "'none/ivector_online.scp' is missing"),
])
def test_what_does_not_fit_is_refused(plugin, recipe, teachers, options, message):
    lines = (recipe.root / "a.scp").read_text().splitlines(keepends=True)
    (recipe.root / "half.scp").write_text("".join(lines[:7]))
    with MatrixWriter(f"ark,scp:{recipe.root}/short.ark,{recipe.root}/short.scp") as writer:
        for utt, probs in recipe.probs.items():
            writer.write(utt, probs[:-1])
    done = targets(plugin, "--nj", "1", *options, teachers=teachers)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr
    assert not (recipe.root / "essence" / "post.scp").exists()


def test_a_student_of_our_trainer(plugin, recipe, shell):
    assert targets(plugin, "--nj", "1").returncode == 0
    args = ["--cmd", ROOT / "local/jobs.sh", "--set", "optim.epochs=1 model.hidden=16 data.heldout=0.2", "data",
            "essence", "student"]
    done = plugin("train_student.sh", *args)
    assert done.returncode == 0, done.stderr
    scores = shell("local/bin/essence", "forward", recipe.root / "student", recipe.data,
                   f"ark:{recipe.root}/scores.ark")
    assert scores.returncode == 0, scores.stderr
    assert {u: m.shape for u, m in read_matrices(f"ark:{recipe.root}/scores.ark")} == {
        u: p.shape for u, p in recipe.probs.items()}
    assert "up to date" in plugin("train_student.sh", *args).stdout
    for name in ("HCLG.fst", "words.txt"):
        (recipe.root / name).write_text("")
    done = plugin("decode_student.sh", "--skip-scoring", "true", ".", "data", "student/decode")
    assert done.returncode == 1 and "student has no final.mdl" in done.stderr
    index = (recipe.root / "essence" / "post.scp").read_bytes()
    assert targets(plugin, "--nj", "1", "--weights", "3,1").returncode == 0
    assert (recipe.root / "essence" / "post.scp").read_bytes() == index  # where other targets lie, in the same file
    done = plugin("train_student.sh", *args)
    assert done.returncode == 0 and "up to date" not in done.stdout
    with open(recipe.data / "feats.scp") as stream:
        lines = [line.replace(" ", "-x ", 1) for line in stream]
    shutil.copytree(recipe.data, recipe.root / "other")
    (recipe.root / "other" / "feats.scp").write_text("".join(lines))
    done = plugin("train_student.sh", "--cmd", ROOT / "local/jobs.sh", "other", "essence", "student2")
    assert done.returncode == 1 and "targets of 0 of the 15 utterances" in done.stderr


def test_a_student_with_audio_without_transcripts(plugin, recipe):
    """Its targets are made with the alignment directory of the others, for it has none."""
    pool = make_data(recipe.root / "pool", utterances=2, num_pdfs=12, seed=5, prefix="v")
    shutil.rmtree(pool.ali)
    pool.dense()
    assert targets(plugin, "--nj", "1").returncode == 0
    done = plugin("essence_targets.sh", "--cmd", ROOT / "local/jobs.sh", "--frame-subsampling-factor", "3", "--top-k",
                  "4",
                  "--nj", "1", "pool/data", "essence/ali", "pool/full.scp", "essence_pool")
    assert done.returncode == 0, done.stderr
    args = ["--cmd", ROOT / "local/jobs.sh", "--set", "optim.epochs=1 model.hidden=16 data.heldout=0.2",
            "--untranscribed", "pool/data", "--untranscribed-targets"]
    done = plugin("train_student.sh", *args, "essence_pool", "data", "essence", "student")
    assert done.returncode == 0 and "6 of 6 utterances of pool/data have targets" in done.stdout, done.stderr
    info = json.loads((recipe.root / "student" / "info.json").read_text())
    assert info["untranscribed"] == {"utterances": 6, "frames": sum(pool.frames.values()), "left_out": 0}
    assert "up to date" in plugin("train_student.sh", *args, "essence_pool", "data", "essence", "student").stdout
    done = plugin("train_student.sh", *args, "essence", "data", "essence", "student")
    assert done.returncode == 1 and "targets of 0 of the 6 utterances of pool/data" in done.stderr


def test_a_model_takes_off_the_mean_of_all_that_a_speaker_says(plugin, recipe, shell):
    """Whatever the number of jobs."""
    small = ["--set", "optim.epochs=1", "--set", "model.hidden=16", "--set", "data.heldout=0.2",
             "--set", "data.cmn=speaker"]
    done = shell("local/bin/essence", "train", "--model", "conf/models/student_tdnn.yaml", *small, recipe.data,
                 recipe.ali,
                 recipe.root / "model")
    assert done.returncode == 0, done.stderr
    done = targets(plugin, "--nj", "4", teachers=["model"])
    assert done.returncode == 0, done.stderr
    assert len(list((recipe.root / "essence" / "jobs").glob("[0-9]*"))) > 1
    alone = shell("local/bin/essence", "dump-post", "--fuse", "--top-k", "4", "--feats", f"scp:{recipe.data}/feats.scp",
                  recipe.root / "model", f"ark:{recipe.root}/alone.ark")
    assert alone.returncode == 0, alone.stderr
    ours = dict(read_posteriors(f"scp:{recipe.root}/essence/post.scp"))
    want = dict(read_posteriors(f"ark:{recipe.root}/alone.ark"))
    assert sorted(ours) == sorted(want) and len(ours) == 15
    for utt, post in want.items():
        assert np.allclose(post.probs, ours[utt].probs, atol=1e-4)
    # a model of another tree, and one of another frame rate, are refused before any job
    yaml = recipe.root / "model" / "model.yaml"
    good = yaml.read_text()
    for old, new, teachers, message in (
            ("tree_hash: ", "tree_hash: beef", ["model"], "model was trained on another tree"),
            ("factor: 3", "factor: 1", ["a.scp", "model"], "model has a row every 1 frames, a.scp every 3")):
        assert old in good
        yaml.write_text(good.replace(old, new))
        done = targets(plugin, teachers=teachers, out="refused")
        assert done.returncode == 1 and message in done.stderr and not (recipe.root / "refused" / "jobs").exists()


def test_the_nnet3_student_needs_kaldi_and_says_so(plugin, recipe):
    done = plugin("train_nnet3_student.sh", "data", "ali", "essence", "student", env={"KALDI_ROOT": ""})
    assert done.returncode == 1
    assert "Kaldi's program 'nnet3-get-egs' is not found" in done.stderr or "is missing" in done.stderr
    done = plugin("train_nnet3_student.sh", "--trainer", "lstm", "data", "ali", "essence", "student")
    assert done.returncode == 2 and "--trainer is dnn or rnn" in done.stderr
    done = plugin("train_nnet3_student.sh", "--frames-per-eg", "8,x", "data", "ali", "essence", "student")
    assert done.returncode == 2 and "whole numbers with commas" in done.stderr


def parts(root, **changes):
    """Two archives of jobs with their sidecars."""
    scps = []
    for number in (1, 2):
        folder = root / str(number)
        folder.mkdir()
        with PosteriorWriter(f"ark,scp:{folder}/post.ark,{folder}/post.scp") as writer:
            probs = np.ones((2 * number, 1), np.float32)
            writer.write(f"u{number}", Posterior.from_fixed(np.zeros((2 * number, 1), np.int32), probs))
        fields = {"kind": "essence", "num_pdfs": 3, "k": 1, "num_utts": 1, "num_frames": 2 * number,
                  "num_entries": 2 * number,
                  "mean_mass": number / 10}
        if number == 2:
            fields.update(changes)
        write_sidecar(folder / "essence.json", fields)
        scps.append(str(folder / "post.scp"))
    return scps


def test_parts_are_joined_with_their_counts(tmp_path):
    fields = join(parts(tmp_path), tmp_path / "out", models=["m"], frame_shift_ms=10)
    assert (fields["num_utts"], fields["num_frames"], fields["num_entries"]) == (2, 6, 6)
    assert fields["mean_mass"] == pytest.approx((2 * 0.1 + 4 * 0.2) / 6)
    assert json.loads((tmp_path / "out" / "essence.json").read_text())["frame_shift_ms"] == 10
    assert [u for u, _ in read_posteriors(f"scp:{tmp_path}/out/post.scp")] == ["u1", "u2"]


def test_a_mass_that_a_part_does_not_know_is_not_known(tmp_path, capsys):
    assert main(["join-post", str(tmp_path / "out"), *parts(tmp_path, mean_mass=None)]) == 0
    assert json.loads((tmp_path / "out" / "essence.json").read_text())["mean_mass"] is None
    assert "2 utterances, 6 frames\n" in capsys.readouterr().out


def test_parts_that_do_not_fit(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="k differs"):
        join(parts(tmp_path / "a", k=2), tmp_path / "out")
    (tmp_path / "b").mkdir()
    scps = parts(tmp_path / "b")
    with pytest.raises(UserError, match="u1 is in .*, too"):
        join([scps[0], scps[0]], tmp_path / "out")
    (tmp_path / "ali.json").write_text('{"num_pdfs": 3}')
    with pytest.raises(UserError, match="ali.json: says nothing of tree_hash"):
        join(scps, tmp_path / "out", ali_dir=str(tmp_path))
    fields = {"num_pdfs": 3, "num_frames": None, "num_utts": 1, "num_entries": 4}
    (tmp_path / "b" / "2" / "essence.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="2/essence.json: says nothing of num_frames; run the job"):
        join(scps, tmp_path / "out")
    (tmp_path / "b" / "2" / "essence.json").unlink()
    with pytest.raises(UserError, match="its sidecar is missing"):
        join(scps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_targets_at_the_rate_of_the_features(tmp_path, shell):
    post = Posterior(np.array([0, 2, 3]), np.array([4, 1, 7], np.int32), np.array([0.6, 0.4, 1.0], np.float32))
    with PosteriorWriter(f"ark,scp:{tmp_path}/post.ark,{tmp_path}/post.scp") as writer:
        writer.write("u", post)
    write_sidecar(tmp_path / "essence.json", {"num_pdfs": 8, "num_frames": 2, "num_entries": 3, "frame_shift_ms": 30})
    (tmp_path / "full").mkdir()
    done = shell("local/bin/essence", "copy-post", "--repeat", "3", f"scp:{tmp_path}/post.scp",
                 f"ark,scp:{tmp_path}/full/post.ark,{tmp_path}/full/post.scp")
    assert done.returncode == 0, done.stderr
    (_, full), = read_posteriors(f"scp:{tmp_path}/full/post.scp")
    assert full.counts().tolist() == [2, 2, 2, 1, 1, 1] and full.ids.tolist() == [4, 1] * 3 + [7] * 3
    assert full.probs.tolist() == pytest.approx([0.6, 0.4] * 3 + [1.0] * 3)
    fields = read_sidecar(tmp_path / "full" / "essence.json")
    assert (fields["num_frames"], fields["num_entries"], fields["frame_shift_ms"]) == (6, 9, 10)
    assert shell("local/bin/essence", "copy-post", "--repeat", "0", f"scp:{tmp_path}/post.scp", "ark:-").returncode == 1
