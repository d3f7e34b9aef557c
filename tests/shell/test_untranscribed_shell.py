"""Stages with audio without transcripts: its posteriors, targets, and the students that learn from them."""
import json
import shutil
import sys

import numpy as np
import pytest
from builders import plans
from builders.training_data import make_data
from builders.training_runs import SMALL

from essence_kd.am.settings import TrainSettings
from essence_kd.am.trainer import train
from essence_kd.cli.main import main
from essence_kd.io.posterior import read_posteriors
from essence_kd.io.settings import load_settings
from essence_kd.io.tables import MatrixTable, MatrixWriter
from essence_kd.io.wave import write_wav

C = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(WORK, train, pool): EXP with a trained teacher and a plan; found is pool in noise, teachers hear it without."""
    work = tmp_path_factory.mktemp("work")
    corpus = make_data(work / "corpus", utterances=2, num_pdfs=C, noise=0.6)
    pool = make_data(work / "pool", utterances=2, num_pdfs=C, noise=0.6, seed=5, prefix="v")
    data, exp = work / "data" / "mini", work / "exp" / "mini"
    data.mkdir(parents=True)
    exp.mkdir(parents=True)
    noisy, rng = work / "noisy", np.random.default_rng(2)
    noisy.mkdir()
    table = MatrixTable(str(pool.data / "feats.scp"))
    with MatrixWriter(f"ark,scp:{noisy}/feats.ark,{noisy}/feats.scp") as writer:
        for utt in table:
            writer.write(utt, table[utt] + rng.normal(size=table[utt].shape).astype(np.float32))
    shutil.copy(pool.data / "utt2spk", noisy / "utt2spk")
    for name, folder in (("train_sp_hires", corpus.data), ("found_cut_hires", noisy),
                         ("found_clean_cut_hires", pool.data)):
        (data / name).symlink_to(folder)
        (folder / ".marker").write_text("done made\n")
    (exp / "ali").symlink_to(corpus.ali)
    (corpus.ali / ".marker").write_text("done made\n")
    train(load_settings(TrainSettings, None, SMALL), corpus.data, corpus.ali, exp / "teacher_1")
    (exp / "teacher_1" / ".marker").write_text("done made\n")
    common = {"teachers": ["teacher_1"], "sets": ["train"]}
    wide = {"scp": "posteriors/wide.scp", "select": "wide", "k": None, "mass": None, "stage": 6}
    found = {"teachers": ["teacher_1"], "sets": ["found"]}
    targets = [plans.make_target("wide", **wide, **common), plans.make_target("k4", k=4, source="wide", **common),
               plans.make_target("full_found", "dense", scp="dense_found/full.scp", **found),
               plans.make_target("wide_found", **{**wide, "scp": "posteriors_found/wide.scp"}, **found),
               plans.make_target("k4_found", k=4, source="wide_found", **found),
               plans.make_target("one_found", k=1, source="wide_found", keep=False, **found)]
    systems = [plans.make_system("teacher_1", "teacher", model="cnn_tdnn", seed=1),
               plans.make_system("baseline", "twin", model=plans.STUDENT, seed=1),
               plans.student("same", "k4", "baseline", mass="renorm"),
               plans.student("more", "k4", "baseline", mass="renorm", untranscribed=["k4_found"], min_confidence=0.01),
               plans.student("control", None, "baseline", mass="renorm", soft_weight=None,
                             untranscribed=["one_found"], point=True)]
    sets = plans.make_sets({"train": "train", "dev": "dev", "found": "untranscribed", "found_clean": "rendering"})
    sets[2].teacher_hears = "found_clean"
    plans.write(plans.make_plan(exp, sets=sets, targets=targets, systems=systems, post_keep=8))
    return work, corpus, pool


def test_the_stages_from_posteriors_to_students(made, tmp_path, shell):
    work, corpus, pool = made
    exp, environment = work / "exp" / "mini", {"WORK_DIR": str(work), "ESSENCE_PYTHON": sys.executable}

    def stage(script, *words):
        return shell(f"local/{script}.sh", "--nj", "2", exp / "plan.json", *words, env=environment, timeout=600)

    done = stage("dump_posteriors")
    assert done.returncode == 0 and "posteriors of 6 utterances are in" in done.stdout, done.stdout + done.stderr
    for name, folder in (("posteriors", corpus.data), ("posteriors_found", pool.data)):  # what teachers hear
        words = ["dump-post", "--keep", "8", "--feats", f"scp:{folder}/feats.scp", exp / "teacher_1",
                 f"ark,scp:{tmp_path}/{name}.ark,{tmp_path}/{name}.scp"]
        assert main(list(map(str, words))) == 0
        wanted, got = (dict(read_posteriors(f"scp:{scp}")) for scp in (tmp_path / f"{name}.scp",
                                                                       exp / name / "wide.scp"))
        assert set(wanted) == set(got)
        assert all(np.array_equal(wanted[u].ids, got[u].ids) and np.array_equal(wanted[u].probs, got[u].probs)
                   for u in wanted)
    assert (exp / "dense_found" / "full.scp").exists() and not (exp / "dense").exists()
    assert not (exp / "posteriors_found" / "post_stats.json").exists()
    again = stage("dump_posteriors")
    assert again.stdout.count("is up to date") == 3

    done = stage("make_targets")
    assert done.returncode == 0 and "soft targets of 6 utterances are in" in done.stdout, done.stderr
    assert "soft targets of 6 utterances (6 aligned) are in" in done.stdout
    best = dict(read_posteriors(f"scp:{exp}/one_found/post.scp"))
    assert set(best) == set(pool.frames) and all((post.probs == 1).all() for post in best.values())

    done = stage("train_models", "student")
    assert done.returncode == 0, done.stdout + done.stderr
    infos = {name: json.loads((exp / name / "info.json").read_text()) for name in ("same", "more", "control")}
    assert "untranscribed" not in infos["same"]
    for name in ("more", "control"):
        assert infos[name]["untranscribed"] == {"utterances": 6, "frames": sum(pool.frames.values()), "left_out": 0}
    lines = {name: json.loads((exp / name / "progress.jsonl").read_text().splitlines()[-1]) for name in infos}
    assert lines["control"]["soft_loss"] > 0
    assert not (exp / "one_found" / "post.ark").exists()  # a point's alone
    assert (exp / "k4_found" / "post.ark").exists()
    done = stage("make_targets")
    assert done.returncode == 0 and "one_found is not needed: all that learn from it are trained" in done.stdout
    assert stage("train_models", "student").stdout.count("is up to date") == 3


def test_renderings_that_differ_in_frames_are_refused(made, tmp_path, shell):
    """By the lines that make_feats.sh ends with."""
    work = tmp_path / "work"
    for name, frames in (("found", 100), ("found_clean", 103)):
        folder = work / "data" / "mini" / f"{name}_cut_hires"
        folder.mkdir(parents=True)
        (folder / "utt2num_frames").write_text(f"a 50\nb {frames}\n")
    exp = work / "exp" / "mini"
    sets = plans.make_sets({"train": "train", "dev": "dev", "found": "untranscribed", "found_clean": "rendering"})
    sets[2].teacher_hears = "found_clean"
    plans.write(plans.make_plan(exp, sets=sets, targets=[], systems=[]))
    script = '. local/stage.sh; read_plan "$1"; . local/untranscribed.sh; read_heard; same_frames'
    done = shell("bash", "-c", script, "bash", exp / "plan.json")
    assert done.returncode == 1
    assert "set found and its rendering found_clean differ in the frames of utterance b 100" in done.stderr


def test_a_set_is_checked_and_cut_before_features_are_made(tmp_path, shell):
    """By the lines of make_feats.sh of both engines."""
    work = tmp_path / "work"
    data, exp = work / "data" / "mini", work / "exp" / "mini"
    rng = np.random.default_rng(1)
    names = ("dev", "fri", "found", "found_clean")
    for name in names:
        (data / name).mkdir(parents=True)
        utts = [f"{name[:5]}-u{i}" for i in range(2)]
        for utt in utts:
            write_wav(data / name / f"{utt}.wav", rng.integers(-900, 900, 8000).astype(np.int16), 8000)
        for table, line in (("wav.scp", "{0} {1}/{0}.wav"), ("utt2spk", "{0} {0}"), ("text", "{0} one two {0}")):
            (data / name / table).write_text("".join(line.format(utt, data / name) + "\n" for utt in utts))
    (data / ".marker").write_text("done made\n")
    sets = plans.make_sets({"train": "train", "dev": "dev", "fri": "test", "found": "untranscribed",
                            "found_clean": "rendering"})
    sets[3].teacher_hears = "found_clean"
    plans.write(plans.make_plan(exp, sets=sets, targets=[], systems=[]))
    script = ('nj=1; . local/stage.sh; read_plan "$1"; . local/untranscribed.sh; read_heard; '
              'cut_fingerprint found native; echo "$fp"; check_set found; cut_set found')

    def cut():
        return shell("bash", "-c", script, "bash", exp / "plan.json")

    def refused(*words):
        done = cut()
        assert done.returncode == 1 and all(str(word) in done.stderr for word in words), done.stderr

    done = cut()
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (data / "found_cut").iterdir()) == [
        "segments", "spk2utt", "utt2spk", "utt2uniq", "wav.scp"]
    (data / "fri" / "text").write_text("fri-u0 one two found-u1\nfri-u1 yes\n")
    refused("found/text: found-u1 says 'one two found-u1', which is also in", data / "fri")
    # another test set is looked at, but does not make the features anew
    assert next(w for w in cut().stdout.split() if len(w) == 64) == next(w for w in done.stdout.split() if len(w) == 64)
    (data / "found" / "text").unlink()
    scp = (data / "found" / "wav.scp").read_text()
    (data / "found" / "wav.scp").write_text(scp.replace(f"{data}/found/found-u1", f"{data}/dev/dev-u1"))
    refused("found/wav.scp: the audio", "is also in", data / "dev")
    (data / "found" / "wav.scp").write_text(scp)
    for utt in ("found-u0", "found-u1"):  # what teachers hear decides
        write_wav(data / "found_clean" / f"{utt}.wav", np.zeros(8000, np.int16), 8000)
    refused(data / "found_clean", "no speech in any of its 2 utterances")
    write_wav(data / "found" / "found-u0.wav", np.zeros(8000, np.int16), 16000)
    refused("found/wav.scp: recording found-u0", "16000")
