"""Stages as scripts: what they leave, what they refuse, and what they do again."""
import json
import subprocess

import numpy as np
import pytest
from builders import ROOT, plans, table
from builders.graphs import loop_graph
from builders.posteriors import parts_of
from builders.training_data import make_data, untrained_models

from essence_kd.hmm import lm
from essence_kd.hmm.graph import save_graph
from essence_kd.io.posterior import read_posteriors
from essence_kd.io.tables import IntVectorWriter

SENTENCES = [line.split() for line in
             ("a b c", "a b", "b c a b", "c", "a a b c c a", "b b a c", "c a b c b a a", "a c b")]


def mark(*folders):
    """They are whole, as stages see it."""
    for folder in folders:
        (folder / ".marker").write_text("done made\n")


def test_the_larger_model_of_stage_1(tmp_path, shell):
    data = tmp_path / "data"
    for folder in ("dict", "train", "dev"):
        (data / folder).mkdir(parents=True)
    (data / "dict" / "lexicon.txt").write_text("<unk> SPN\na AA\nb B\nc K\n")
    (data / "dict" / "silence_phones.txt").write_text("SIL\nSPN\n")
    (data / "dict" / "optional_silence.txt").write_text("SIL\n")
    (data / "dict" / "nonsilence_phones.txt").write_text("AA\nB\nK\n")
    for name in ("train", "dev"):
        (data / name / "text").write_text("".join(f"utt{i} {' '.join(row)}\n" for i, row in enumerate(SENTENCES)))
    mark(data)

    def stage(script, **values):
        plan = plans.write(plans.make_plan(tmp_path / "exp" / "mini", data=str(data), **values))
        return shell(f"local/{script}.sh", f"{plan.exp}/plan.json")

    done = stage("rescore_lm", rescore_lm_order=3)
    assert done.returncode == 1 and "stage 1 makes it" in done.stderr and not (data / "lm_rescore").exists()
    assert stage("native/prepare_lang").returncode == 0 and not (data / "lm_rescore").exists()
    done = stage("rescore_lm", rescore_lm_order=3)
    assert done.returncode == 0, done.stderr
    assert "lm/lm.arpa.gz: 2-gram, perplexity" in done.stdout
    assert "lm_rescore/lm.arpa.gz: 3-gram, perplexity" in done.stdout
    assert len(lm.read_arpa(data / "lm_rescore" / "lm.arpa.gz").orders) == 3
    assert "lm_rescore is up to date" in stage("native/prepare_lang", rescore_lm_order=3).stdout
    # another order is another grammar and no other lang, on which GMM and networks depend
    lang, grammar = (data / "lang" / ".marker").read_bytes(), (data / "lang" / "G.fst").read_bytes()
    assert "lm is up to date" in stage("native/prepare_lang").stdout
    done = stage("native/prepare_lang", lm_order=1)
    assert done.returncode == 0 and "lang is up to date" in done.stdout and "lm is up to date" not in done.stdout
    assert (data / "lang" / ".marker").read_bytes() == lang and (data / "lang" / "G.fst").read_bytes() != grammar
    assert stage("native/prepare_lang").returncode == 0
    assert (data / "lang" / "G.fst").read_bytes() == grammar
    (data / "lang" / "G.fst").unlink()
    assert "lm is up to date" not in stage("native/prepare_lang").stdout
    assert (data / "lang" / "G.fst").read_bytes() == grammar
    lm.write_arpa(data / "rescore_arpa.gz", lm.estimate(SENTENCES, 4))
    assert "lm_rescore/lm.arpa.gz: 4-gram" in stage("rescore_lm", rescore_lm_order=3).stdout
    assert (data / "lm_rescore" / "lm.arpa.gz").read_bytes() == (data / "rescore_arpa.gz").read_bytes()
    assert "up to date" in stage("rescore_lm", rescore_lm_order=3).stdout
    # a language model that data preparation left is taken as it is; what it and the lang do not share is told
    lm.write_arpa(data / "lm_arpa.gz", lm.estimate([["a", "zebra"], ["b", "a"]], 3))
    done = stage("native/prepare_lang")
    assert done.returncode == 0 and "lm/lm.arpa.gz: 3-gram, perplexity" in done.stdout
    assert "lm.arpa.gz: 1 words are not in" in done.stderr and "lacks 1 words of" in done.stderr
    assert (data / "lm" / "lm.arpa.gz").read_bytes() == (data / "lm_arpa.gz").read_bytes()
    assert (data / "lang" / "G.fst").read_bytes() != grammar
    assert "lm is up to date" in stage("native/prepare_lang").stdout


@pytest.fixture
def teachers(tmp_path):
    """A function that makes EXP for stages 6 and 7, with two teachers, and its plan; EXP has a blank in its path."""
    models, _ = untrained_models(tmp_path, 60)
    data = tmp_path / "work"
    data.mkdir()
    (data / "train_sp_hires").symlink_to(tmp_path / "data")
    mark(tmp_path / "data", *(tmp_path / name for name in ("a", "b")))

    def make(name, **values):
        exp = tmp_path / "R & D" / "exp" / name
        (exp / "ali").mkdir(parents=True)
        (exp / "ali" / "num_pdfs").write_text("60\n")
        table(IntVectorWriter, exp / "ali" / "ali", {"utt0": np.zeros(31, np.int32)})
        mark(exp / "ali")
        for teacher, model in zip(plans.TEACHERS, models):
            (exp / teacher).symlink_to(model)
        plans.write(plans.make_plan(exp, data=str(data), **values))
        return exp

    return make


def test_a_job_that_fails_is_named_and_the_others_are_kept(teachers, tmp_path, shell):
    """Then stage 7 prunes to the same bytes as what one job has dumped."""
    runner = tmp_path / "first_alone.sh"
    runner.write_text('words=("${@/#JOB=1:3/JOB=1:1}")\nlocal/jobs.sh "${words[@]}"; exit 1\n')
    targets = [*plans.usual_targets()[:2], plans.make_target("essence_k4", source="wide", k=4, sets=["train"])]
    systems = [system for system in plans.usual_systems() if system.role != "student"]
    exp, one = (teachers(name, targets=targets, systems=systems, post_keep=8) for name in ("three", "one"))
    out = exp / "dense"

    def dump(exp, nj, *options):
        return shell("local/dump_posteriors.sh", "--nj", nj, *options, exp / "plan.json")

    done = dump(exp, 3, "--forward-cmd", f"bash {runner}")
    assert done.returncode == 1 and f"a job failed; its log is one of {out}/log/dump.*.log" in done.stderr
    assert [p.name for p in sorted(out.glob("full.*"))] == ["full.1.ark", "full.1.json", "full.1.scp"]
    before = (out / "full.1.ark").stat().st_mtime_ns
    # another number of jobs: what was begun is ended as it was begun
    done = dump(exp, 2)
    assert done.returncode == 0 and "2 of 3 jobs" in done.stdout, done.stderr
    assert before == (out / "full.1.ark").stat().st_mtime_ns
    done = dump(one, 1)
    assert done.returncode == 0, done.stderr
    for name in ("posteriors/wide.scp", "dense/full.scp"):
        assert parts_of(exp / name) == parts_of(one / name)
    stats = [json.loads((folder / "posteriors" / "post_stats.json").read_text())["f_k"] for folder in (exp, one)]
    assert stats[0] == stats[1]
    for folder in (exp, one):
        done = shell("local/make_targets.sh", folder / "plan.json")
        assert done.returncode == 0 and "targets of 6 utterances" in done.stdout, done.stderr
    assert (exp / "essence_k4" / "post.ark").read_bytes() == (one / "essence_k4" / "post.ark").read_bytes()
    again = dump(exp, 5)
    assert again.returncode == 0 and "up to date" in again.stdout


def test_the_recipe_fuses_by_the_settings(teachers, shell):
    options = ["--select", "min-post", "--min-post", "0.05", "--mass", "keep"]
    target = plans.make_target("essence", stage=6, select="min-post", k=None, mass="keep", options=options,
                               teachers=list(plans.TEACHERS), sets=["train"])
    exp = teachers("fused", fuse=True, targets=[target],
                   systems=[system for system in plans.usual_systems() if system.role != "student"])
    done = shell("local/make_targets.sh", exp / "plan.json")
    assert done.returncode == 1 and "essence' is missing or not whole: stage 6 makes it" in done.stderr
    done = shell("local/dump_posteriors.sh", exp / "plan.json")
    assert done.returncode == 0, done.stderr
    assert {"post.1.ark", "post.2.ark", "post.scp"} <= {p.name for p in (exp / "essence").iterdir()}
    fields = json.loads((exp / "essence" / "essence.json").read_text())
    assert (fields["selection"], fields["min_post"], fields["mass"]) == ("min-post", 0.05, "keep")
    done = shell("local/make_targets.sh", exp / "plan.json")
    assert done.returncode == 0, done.stderr
    assert not (exp / "posteriors").exists()
    assert list(dict(read_posteriors(f"scp:{exp}/essence/post.scp"))) == [f"utt{i}" for i in range(6)]


def test_stage_9_rescores_decodes_anew_and_resumes(tmp_path, shell):
    """local/decode.sh with a real network: the larger model is a setting like any other."""
    from essence_kd.am.settings import TrainSettings
    from essence_kd.am.trainer import train
    from essence_kd.hmm.alignment_dir import tree_hash
    from essence_kd.io.settings import load_settings

    data, exp = tmp_path / "data", tmp_path / "exp"
    graph = loop_graph(num_words=9, num_phones=3, seed=1)
    corpus = make_data(data / "dev_hires", utterances=4, num_pdfs=graph.num_pdfs)
    settings = load_settings(TrainSettings, None, ["arch=tdnn", "model.hidden=12", "optim.epochs=1"])
    train(settings, corpus.data, corpus.ali,
          exp / "baseline")
    graph.meta["tree_hash"] = tree_hash(corpus.ali)
    for folder in (data / "lang", exp / "gmm", exp / "graph"):
        folder.mkdir(parents=True)
    (data / "lang" / "G.fst").write_text("")
    (exp / "ali").symlink_to(corpus.ali)
    save_graph(exp / "graph" / "graph.npz", graph)
    for name in ("dev", "test"):
        (data / name).mkdir(parents=True)
        (data / f"{name}_hires").mkdir(exist_ok=True)
        (data / f"{name}_hires" / "feats.scp").write_text("".join(sorted(open(corpus.data / "feats.scp"))))
        for file, value in (("wav.scp", "/none.wav"), ("utt2spk", "s"), ("text", "w1 w2 w3")):
            (data / name / file).write_text("".join(f"{utt} {value}\n" for utt in sorted(corpus.frames)))
        mark(data / f"{name}_hires")
    sentences = [list(graph.words[[1 + i % 9, 1 + i * i % 9, 1 + 2 * i % 9]]) for i in range(40)]
    for name, order in (("lm", 1), ("lm_rescore", 3)):
        (data / name).mkdir()
        lm.write_arpa(data / name / "lm.arpa.gz", lm.estimate(sentences, order, graph.words[1:].tolist()))
    parts = [data / "lang", data / "lm", exp / "gmm", exp / "ali"]
    mark(*parts, data / "lm_rescore", exp / "baseline")
    made = subprocess.run(["bash", "-c", '. local/marker.sh; '
                           'mark_done "$1" "$(fingerprint graph transition_scale=0.3 "${@:2}")"',
                           "-", exp / "graph", *parts], cwd=ROOT)  # what local/native/make_graph.sh finds up to date
    assert made.returncode == 0

    def stage(rescore_lm_order=0):
        plans.write(plans.make_plan(exp, data=str(data), rescore_lm_order=rescore_lm_order, targets=[], systems=[
            plans.make_system("baseline", "twin", model=plans.STUDENT, seed=1)],
            sets=plans.make_sets({"train": "train", "dev": "dev", "test": "test"})))
        return shell("local/decode.sh", "--nj", "1", "--keep-scores", "true", exp / "plan.json")

    def decoded(rescore_lm_order=0):
        done = stage(rescore_lm_order)
        assert done.returncode == 0, done.stderr
        reports = [json.loads((exp / "baseline" / f"decode_{s}" / "decode.json").read_text()) for s in ("dev", "test")]
        assert len({json.dumps(r["rescoring"]) for r in reports}) == 1
        words = (exp / "baseline" / "decode_test" / "hyp.txt").read_text()
        return "baseline is up to date" in done.stdout, reports[0]["rescoring"], words

    _, told, plain = decoded()
    assert told is None and decoded()[0]
    current, told, words = decoded(3)
    assert not current and words != plain and len(words.splitlines()) == 12
    assert (told["new_lm"], told["order"], told["method"]) == (str(data / "lm_rescore" / "lm.arpa.gz"), 3, "lattice")
    assert decoded(3)[0]
    (data / "lm_rescore" / ".marker").write_text("done another\n")
    assert not decoded(3)[0]
    assert decoded() == (False, None, plain)
    (data / "lm_rescore" / "lm.arpa.gz").unlink()
    done = stage(3)
    assert done.returncode == 1 and "lm_rescore/lm.arpa.gz' is missing or not whole: stage 1 makes it" in done.stderr


def test_a_damaged_plan_and_a_role_that_is_none_are_refused(tmp_path, shell):
    plan = plans.write(plans.make_plan(tmp_path / "exp" / "mini"))
    path = tmp_path / "exp" / "mini" / "plan.json"
    done = shell("local/train_models.sh", path, "twins")
    assert done.returncode == 2 and "ROLE is teacher, twin or student, not 'twins'" in done.stderr
    text = path.read_text()
    for spoiled, message in ((text[:700], "not JSON"),
                             (text.replace('"role": "twin"', '"role": "twn"'), "is 'twn', none of")):
        path.write_text(spoiled)
        for script in ("local/train_models.sh", "local/decode.sh", "local/native/make_feats.sh"):
            done = shell(script, path, *(["twin"] if "train" in script else []))
            assert done.returncode == 1, done.stdout + done.stderr
            assert str(path) in done.stderr and message in done.stderr, done.stdout + done.stderr
            assert len(done.stderr.splitlines()) == 1
    assert plan.exp == str(path.parent)
