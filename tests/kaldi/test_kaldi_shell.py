"""The engine kaldi without a Kaldi: usage, options, and what is named when something of Kaldi's is missing."""
from __future__ import annotations

import os

import pytest
from builders import ROOT, plans, refused
from builders.graphs import loop_graph
from builders.training_data import make_data

from essence_kd.cli.main import main
from essence_kd.decode.decoders.kaldi_lattice import const_arpa_order
from essence_kd.hmm.graph import save_graph

SCRIPTS = sorted(p for p in (ROOT / "local" / "kaldi").glob("*.sh") if os.access(p, os.X_OK))
TAKES_ALL = ("check.sh", "train_nnet3.sh")  # paths, systems


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_every_script_has_help_and_refuses_nonsense(shell, path):
    relative = path.relative_to(ROOT)
    done = shell("bash", relative, "--help")
    assert done.returncode == 0 and f"Usage: {relative}" in done.stdout
    done = shell("bash", relative, "--no-such-option", "1")
    assert done.returncode == 2 and "invalid option --no-such-option" in done.stderr
    if path.name != "check.sh":
        assert shell("bash", relative).returncode == 2
    if path.name not in TAKES_ALL:
        assert shell("bash", relative, *["surplus"] * 10).returncode == 2


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.name not in ("check.sh",)], ids=lambda p: p.name)
def test_a_missing_input_names_the_stage(shell, tmp_path, path):
    exp = tmp_path / "exp"
    plans.write(plans.make_plan(exp, data=str(tmp_path / "data"), engine="kaldi", rescore_lm_order=4))
    more = {"align.sh": ["train", exp / "out"], "train_nnet3.sh": ["teacher_1:tdnn"]}.get(path.name, [])
    done = shell("bash", path.relative_to(ROOT), exp / "plan.json", *more)
    assert done.returncode == 1 and "makes it (./run.sh --stage" in done.stderr
    assert list(exp.iterdir()) == [exp / "plan.json"]


def test_a_step_that_failed_is_named_with_its_logs_and_done_again_alone(shell, tmp_path):
    """What Kaldi's scripts run as in stage 4."""
    script = tmp_path / "steps.sh"
    script.write_text(f"""nj=1
. local/kaldi/recipe_dir.sh
cd {tmp_path}
fp=made
step one out bash -c 'echo run >>ran.one; mkdir -p exp/one; echo 1 >exp/one/out'
step two out bash -c 'mkdir -p exp/two/log; [ -f repaired ] && echo 2 >exp/two/out'
""")
    done = shell("bash", script)
    assert done.returncode == 1 and f"bash failed; logs: {tmp_path}/exp/two/log" in done.stderr, done.stderr
    (tmp_path / "repaired").touch()
    for _ in range(2):
        done = shell("bash", script)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran.one").read_text() == "run\n" and (tmp_path / "exp" / "two" / "out").read_text() == "2\n"


@pytest.fixture
def kaldi_root(tmp_path):
    """The scripts of a Kaldi, none of its programs."""
    root = tmp_path / "kaldi"
    for name in ("steps", "utils"):
        (root / "egs" / "wsj" / "s5" / name).mkdir(parents=True)
    return root


def without_kaldi(tmp_path):
    """A PATH with what every system has, and nothing of Kaldi's or OpenFst's."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("bash", "sh", "env", "dirname", "cat", "sed", "awk", "grep", "perl", "gzip", "sox", "mkdir", "rm",
                 "nproc", "python3"):
        for folder in ("/usr/bin", "/bin"):
            if os.path.exists(f"{folder}/{name}") and not (programs / name).exists():
                (programs / name).symlink_to(f"{folder}/{name}")
    return programs


def test_kaldi_root_unset_or_wrong(shell, tmp_path):
    for root, message in (("", "KALDI_ROOT is not set"), (str(tmp_path), "there is no egs/wsj/s5/steps")):
        done = shell("./run.sh", "--engine", "kaldi", "--work-dir", tmp_path / "work", env={"KALDI_ROOT": root})
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "work").exists(), "the check comes before any work"


def test_half_compiled_names_the_first_missing_program(shell, tmp_path, kaldi_root):
    programs = without_kaldi(tmp_path)
    env = {"KALDI_ROOT": str(kaldi_root), "PATH": str(programs)}

    def compiled(*names):
        for name in names:
            (programs / name).write_text("#!/bin/sh\n")
            (programs / name).chmod(0o755)

    done = shell("/bin/bash", "local/kaldi/check.sh", env=env)
    assert done.returncode == 1 and "OpenFst's 'fstcompile'" in done.stderr
    compiled("fstcompile", "fstarcsort", "fstconvert", "fstdraw", "copy-int-vector", "copy-matrix", "copy-post",
             "ali-to-pdf",
             "ali-to-post", "ali-to-phones", "show-transitions")
    for name in ("sox", "perl"):
        if not (programs / name).exists():
            compiled(name)
    done = shell("/bin/bash", "local/kaldi/check.sh", env=env)
    assert done.returncode == 1 and "'compute-mfcc-feats' is not in" in done.stderr and "src/featbin" in done.stderr
    assert shell("/bin/bash", "local/kaldi/check.sh", "--gmm", "false", env=env).returncode == 0
    done = shell("/bin/bash", "local/kaldi/check.sh", "--gmm", "false", "--lattices", "true", env=env)
    assert done.returncode == 1 and "'lattice-best-path'" in done.stderr
    done = shell("/bin/bash", "local/kaldi/check.sh", "--gmm", "false", "--nnet3", "true", env=env)
    assert done.returncode == 1 and "'copy-feats'" in done.stderr
    done = shell("/bin/bash", "local/kaldi/check.sh", "--gmm", "false", "--rescore", "true", env=env)
    assert done.returncode == 1 and "'arpa-to-const-arpa' is not in" in done.stderr and "src/lmbin" in done.stderr


def test_white_space_is_refused_by_name(shell, tmp_path, kaldi_root):
    done = shell("local/kaldi/check.sh", tmp_path / "a b", env={"KALDI_ROOT": str(kaldi_root)})
    assert done.returncode == 1 and "a b' has a blank in it" in done.stderr
    for character in "'\"\\$&;(*?[]#!`{,:":
        done = shell("local/kaldi/check.sh", f"/a{character}b", env={"KALDI_ROOT": str(kaldi_root)})
        assert done.returncode == 1 and f"'/a{character}b' has {character} in it" in done.stderr


@pytest.mark.parametrize("args, message", [
    (["--decoder", "kaldi-lattice"], "needs --engine kaldi"),
    (["--engine", "kaldi", "--decoder", "nope"], "unknown decoder 'nope'"),
    (["--teachers", "nnet3"], "teacher nnet3/tdnn needs --engine kaldi"),
    (["--engine", "kaldi", "--teachers", "nnet3/nope"], "no conf/nnet3/nope.xconfig"),
    (["--corpus", "swbd"], "corpus swbd needs --engine kaldi"),
])
def test_run_sh_refuses_what_does_not_go_together(shell, tmp_path, args, message):
    done = shell("./run.sh", "--work-dir", tmp_path, *args)
    assert done.returncode == 2 and message in done.stderr


def test_a_network_of_kaldis_without_its_programs(shell, tmp_path):
    make_data(tmp_path, utterances=1)
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "final.mdl").write_text("")
    (teacher / "model.yaml").write_text("arch: nnet3\nnum_pdfs: 12\nframe_subsampling_factor: 3\nfeat_dim: 8\n")
    env = {"KALDI_ROOT": "", "PATH": f"{without_kaldi(tmp_path)}"}
    done = shell("/bin/bash", "local/bin/essence", "forward", "--output", "logprob", teacher, tmp_path / "data",
                 f"ark:{tmp_path}/scores.ark", env=env)
    assert done.returncode == 1 and "'nnet3-compute' is not found" in done.stderr and "Traceback" not in done.stderr
    done = shell("/bin/bash", "local/bin/essence", "dump-post", "--feats", f"scp:{tmp_path}/data/feats.scp", teacher,
                 f"ark:{tmp_path}/post.ark", env=env)
    assert done.returncode == 1 and "'nnet3-compute' is not found" in done.stderr and "Traceback" not in done.stderr


def test_kaldis_decoder_names_what_a_graph_lacks(shell, tmp_path):
    (tmp_path / "graph.npz").write_text("")
    done = shell("local/bin/essence", "decode", "--decoder", "kaldi-lattice", tmp_path, "ark:scores.ark",
                 tmp_path / "out")
    assert done.returncode == 1 and "HCLG.fst: missing" in done.stderr and "Traceback" not in done.stderr
    done = shell("local/bin/essence", "decode", "--decoder", "kaldi-lattice", tmp_path)
    assert done.returncode == 1 and "--jobs-file" in done.stderr


def test_grammars_that_cannot_be(tmp_path):
    assert const_arpa_order(write(tmp_path / "G.carpa", carpa(4))) == 4
    for content, message in ((None, "No such file"), (b"", "not a G.carpa"), (carpa(4)[:30], "not a G.carpa"),
                             (b"\\data\\\n", "not a G.carpa")):
        path = tmp_path / "other"
        if content is not None:
            write(path, content)
        refused(lambda: const_arpa_order(path), path, message)


def carpa(order):
    """How Kaldi's ConstArpaLm begins: bos, eos, unk, order."""
    numbers = b"".join(b"\4" + n.to_bytes(4, "little") for n in (5, 6, 2, order))
    return b"\0B<ConstArpaLm> <LmInfo> " + numbers + b"</LmInfo> "


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("args, message", [
    (["--old-lm", "G.fst"], "--old-lm and --new-lm belong together"),
    (["--old-lm", "G.fst", "--new-lm", "G.carpa", "--sweep", "text"], "--old-lm do not go with --sweep"),
    (["--nj", "2"], "leave out --nj"),
    (["--n-best", "5"], "--n-best, --lattices and --lm-scale do not go with --decoder kaldi-lattice"),
    (["--lattices"], "do not go with --decoder kaldi-lattice"),
    (["--old-lm", "G.fst", "--new-lm", "G.carpa", "--lm-scale", "2"], "do not go with --decoder kaldi-lattice"),
    (["--sweep", os.devnull, "--pooled", "all.json"], "--pooled does not go with --decoder kaldi-lattice"),
])
def test_kaldis_decoder_refuses_what_does_not_go_together(tmp_path, capsys, args, message):
    save_graph(tmp_path / "graph.npz", loop_graph(num_words=3, num_phones=3, seed=1))
    (tmp_path / "phones").mkdir()
    for name in ("HCLG.fst", "final.mdl", "phones/word_boundary.int"):
        (tmp_path / name).write_text("")
    command = ["decode", "--decoder", "kaldi-lattice", *args, str(tmp_path), "ark:scores.ark", str(tmp_path / "out")]
    assert main(command) == 1
    assert message in capsys.readouterr().err
