"""Scripts and names of others: what comes from files is neither a command nor an option of the scripts."""
import json
import os
import shutil

import pytest
from builders import ROOT, plans
from builders.corpora import make_recordings
from builders.training_data import make_data

from essence_kd.io.data_dir import DataDir, write_table
from essence_kd.io.provenance import sha256_file, write_sidecar

PLUGIN = ROOT / "recipes" / "plugin"
HOSTILE = ["$(touch marker)", "`touch marker`", "a;touch marker", "a|touch marker|", "a&touch marker&", "--work-dir=..",
           "-rf", "@marker", "'", '"', "a[$(touch marker)]", "{}", "*", "%s%n", "\\", "|", ">marker", "#", "a'b"]
NAMES = [name.replace(" ", "${IFS}") for name in HOSTILE]  # of utterances, speakers and words


@pytest.fixture
def folder(tmp_path):
    """Where scripts run; fails where a file 'marker' is there in the end."""
    yield tmp_path
    assert not list(tmp_path.rglob("marker")) and not (ROOT / "marker").exists()


@pytest.fixture
def recipe(folder):
    """A recipe directory with an alignment directory of this project's form, and a model."""
    corpus = make_data(folder / "recipe", utterances=3, num_pdfs=12)
    write_sidecar(corpus.ali / "ali.json", {"kind": "alignment", "num_pdfs": 12,
                                            "tree_hash": sha256_file(corpus.ali / "tree.txt")})
    return corpus


@pytest.fixture
def programs(folder):
    """Programs that do nothing, by the names of Kaldi's; a dictionary with their PATH for the environment."""
    made = folder / "bin"
    made.mkdir()

    def program(name, text="exit 0"):
        (made / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (made / name).chmod(0o755)

    for name in ("nnet3-compute", "nnet3-am-copy", "apply-cmvn", "nnet3-copy", "latgen-faster-mapped", "lattice-scale",
                 "subsample-feats", "nnet3-get-egs", "nnet3-copy-egs", "nnet3-shuffle-egs", "nnet3-subset-egs",
                 "nnet3-train", "feat-to-len", "ali-to-pdf", "copy-post"):
        program(name)
    program("feat-to-dim", "echo 8")
    program("nnet3-am-info", 'echo "output-node name=output input=x"; echo "input-dim: 8"; echo "ivector-dim: -1"')
    program.path = {"PATH": f"{made}:{os.environ['PATH']}"}
    return program


def model(recipe, factor):
    """A model directory of ours whose model.yaml says this of its rate."""
    made = recipe.root / "model"
    made.mkdir()
    (made / "final.pt").write_text("")
    (made / "final.mdl").write_text("")
    (made / "model.yaml").write_text(f"num_pdfs: 12\nframe_subsampling_factor: {factor}\n")
    return made


EXPRESSIONS = ["PATH[$(touch${IFS}marker)]", "HOME[`touch${IFS}marker`]", "1;touch${IFS}marker;", "3 -- touch marker"]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_the_rate_of_a_model_is_a_number(shell, recipe, programs, text):
    made = model(recipe, text)
    done = shell(PLUGIN / "essence_targets.sh", "data", "ali", "model", "out", cwd=recipe.root)
    assert done.returncode == 1 and "model/model.yaml is '" in done.stderr and "no whole number" in done.stderr
    graph = recipe.root / "graph"
    graph.mkdir()
    for file in (graph / "HCLG.fst", graph / "words.txt", made / "frame_subsampling_factor"):
        file.write_text("")
    done = shell(PLUGIN / "decode_student.sh", "--skip-scoring", "true", graph, "data", "model/decode", cwd=recipe.root,
                 env=programs.path)
    assert done.returncode == 1 and "model/model.yaml is '" in done.stderr and "no whole number" in done.stderr


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_the_rate_of_targets_is_a_number(shell, recipe, programs, text):
    targets, student = recipe.root / "targets", recipe.root / "student"
    shutil.copytree(recipe.ali, targets / "ali")
    shutil.copy(recipe.post(3), targets / "post.scp")
    (targets / "essence.json").write_text(json.dumps({"frame_shift_ms": text}))
    done = shell(PLUGIN / "train_student.sh", "data", "targets", "student", cwd=recipe.root)
    assert done.returncode == 1 and "frame_shift_ms of targets/essence.json is '" in done.stderr, done.stderr
    (recipe.root / "steps" / "nnet3").mkdir(parents=True)
    (student / "configs").mkdir(parents=True)
    for file in ("data/cmvn.scp", "data/spk2utt", "steps/nnet3/train_dnn.py", "student/configs/final.config",
                 *(f"ali/{name}" for name in ("final.mdl", "tree", "ali.1.gz", "num_jobs", "phones.txt"))):
        (recipe.root / file).write_text("")
    work = ["data", "ali", "targets", "student"]
    (student / "configs" / "vars").write_text("model_left_context=2\nmodel_right_context=2\n")
    done = shell(PLUGIN / "train_nnet3_student.sh", *work, cwd=recipe.root, env=programs.path)
    assert done.returncode == 1 and "frame_shift_ms of targets/essence.json is '" in done.stderr, done.stderr
    (targets / "essence.json").write_text(json.dumps({"frame_shift_ms": 10.0}))
    (student / "configs" / "vars").write_text(f"model_left_context={text}\nmodel_right_context=2\n")
    done = shell(PLUGIN / "train_nnet3_student.sh", *work, cwd=recipe.root, env=programs.path)
    assert done.returncode == 1 and "left_context of student/configs/vars is '" in done.stderr, done.stderr


def network(recipe, programs, name="net"):
    """A directory of an nnet3 network, for programs that run what their arguments name, as Kaldi's do."""
    net = recipe.root / name
    net.mkdir()
    for file in ("final.mdl", "tree"):
        (net / file).write_text("")
    (recipe.data / "cmvn.scp").write_text("")
    (net / "cmvn_opts").write_text("--norm-means=true --norm-vars=false\n")
    for program in ("nnet3-am-copy", "apply-cmvn"):
        programs(program, f"printf '%s\\n' {program} \"$@\" >>'{recipe.root}/called'")
    programs("nnet3-compute", f'''for word; do
  case $word in *"|") word=${{word#ark,s,cs:}}; sh -c "${{word%|}}" ;; esac
done >&2
cat "{recipe.root}/full.ark"''')
    recipe.dense()
    return net


def targets_of(shell, recipe, programs, net):
    return shell(PLUGIN / "essence_targets.sh", "--cmd", ROOT / "local" / "jobs.sh", "--nj", "1", "--top-k", "3",
                 "data", "ali", net, "out", cwd=recipe.root, env=programs.path)


@pytest.mark.parametrize("text", [
    "; touch marker;", "$(touch marker)", "`touch marker`", "--utt2spk=ark:touch${IFS}marker|", "--help",
    "--norm-means=true\n--config=x", "--norm-vars=false | touch marker"])
def test_the_options_of_a_network(shell, recipe, programs, text):
    net = network(recipe, programs)
    (net / "cmvn_opts").write_text(text + "\n")
    done = targets_of(shell, recipe, programs, "net")
    assert done.returncode == 1 and "net/cmvn_opts: '" in done.stderr and "is no option" in done.stderr, done.stderr


def test_folders_whose_names_are_commands(shell, recipe, programs):
    name = "a net's $(touch marker);`touch marker`"
    network(recipe, programs, name)
    done = targets_of(shell, recipe, programs, name)
    log = (recipe.root / "out" / "log" / "targets.1.log").read_text()
    called = (recipe.root / "called").read_text().splitlines()
    assert f"{name}/final.mdl" in called and "--norm-means=true" in called, (done.stderr, log, called)
    assert called[called.index("apply-cmvn") + 1:][:2] == ["--norm-means=true", "--norm-vars=false"]


# ---- run.sh and its stages

def test_run_sh_hands_the_setting_on(shell, folder):
    done = shell("./run.sh", "--allow-pipes", "false", "--engine", "kaldi", "--work-dir", folder / "work")
    assert done.returncode == 2 and "--allow-pipes false goes with --engine native alone" in done.stderr
    done = shell("./run.sh", "--engine", "kaldi", "--work-dir", folder / "work", env={"ESSENCE_ALLOW_PIPES": "false"})
    assert done.returncode == 2 and "--allow-pipes false goes with --engine native alone" in done.stderr
    done = shell("./run.sh", "--allow-pipes", "no", "--work-dir", folder / "work")
    assert done.returncode == 2 and "--allow-pipes takes true or false, not 'no'" in done.stderr
    done = shell("bash", "-c", f"help_message=x; cd '{ROOT}'; . local/stage.sh; job_header",
                 env={"ESSENCE_ALLOW_PIPES": "false"})
    assert "export ESSENCE_ALLOW_PIPES=false" in done.stdout.splitlines()


def test_a_stage_refuses_the_pipes_of_a_set(shell, folder):
    data = folder / "data"
    source = make_recordings(folder)
    for name in plans.SETS:
        shutil.copytree(source, data / name)
    (data / "dict").mkdir()
    (data / "dict" / "lexicon.txt").write_text("one W AH N\ntwo T UW\n")
    (data / ".marker").write_text("done made\n")
    text = (data / "train" / "wav.scp").read_text().split("\n", 1)
    reco, place = text[0].split()
    (data / "train" / "wav.scp").write_text(f"{reco} touch {folder}/marker; cat {place} |\n{text[1]}")
    plan = plans.write(plans.make_plan(folder / "exp" / "mini", data=str(data)))
    done = shell("local/native/make_feats.sh", f"{plan.exp}/plan.json", env={"ESSENCE_ALLOW_PIPES": "false"})
    assert done.returncode != 0 and f"train/wav.scp: line 1: recording {reco}: the command 'touch" in done.stderr


def test_ids_and_words_that_look_like_commands(shell, folder):
    """Through checks, features in two processes, and scoring: they are ids and words."""
    source = DataDir.load(make_recordings(folder))
    recordings = sorted(source.wav_scp)
    ids = sorted((f"{name}-{n}" for n, name in enumerate(NAMES)), key=lambda text: text.encode())
    wavs = {name: source.wav_scp[recordings[n % 3]] for n, name in enumerate(ids)}
    data = folder / "work" / "data"
    made = DataDir(data, wavs, {name: " ".join(NAMES) for name in ids}, {name: name for name in ids})
    for name in plans.SETS:
        made.write(data / name)
    (data / "dict").mkdir()
    write_table(data / "dict" / "lexicon.txt", dict.fromkeys(NAMES, "AH"))
    (data / ".marker").write_text("done made\n")
    plan = plans.write(plans.make_plan(folder / "work" / "exp" / "mini", data=str(data)))
    done = shell("local/native/make_feats.sh", "--nj", "2", f"{plan.exp}/plan.json", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in plans.SETS:
        lines = (data / f"{name}_hires" / "feats.scp").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ids
    done = shell(ROOT / "local" / "bin" / "essence", "score", data / "dev" / "text", data / "dev" / "text", cwd=folder)
    words = len(ids) * len(NAMES)
    assert done.returncode == 0 and f"%WER 0.00 [ 0 / {words}, 0 ins, 0 del, 0 sub ]" in done.stdout, done.stdout


def test_names_of_sets_in_a_recipe(shell, folder):
    """recipe.conf is a script; what it names is still checked before it is a folder or an argument."""
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("run.sh", "path.sh", "cmd.sh", "local", "recipes", "conf", "pytools"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, checkout / name)
    conf = checkout / "recipes" / "fsdd" / "recipe.conf"
    text = conf.read_text()
    for name in ("--work-dir=..", "../x", "$(touch${IFS}marker)", ";touch", "-rf", "@x", "a|b", "a/b"):
        conf.write_text(text + f"\ndev_set='{name}'\n")
        done = shell("./run.sh", "--corpus", "fsdd", "--check", "true", "--work-dir", folder / "work", cwd=checkout)
        assert done.returncode == 1 and f"a set cannot be called '{name}'" in done.stderr, done.stderr
    description = "'$(touch marker)' `touch marker`; touch marker \\"
    conf.write_text(text + "\ndescription=" + "'" + description.replace("'", "'\\''") + "'\n")
    done = shell("./run.sh", "--corpus", "fsdd", "--check", "true", "--work-dir", folder / "work", cwd=checkout)
    assert done.returncode == 0, done.stderr
