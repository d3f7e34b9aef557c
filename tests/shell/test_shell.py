"""The shell side: option parsing, fingerprints, jobs, usage and exit codes of every stage script."""
import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from builders import ROOT, plans
from builders.sweep import marked

from essence_kd.io.wave import write_wav

RUNNERS = ("cores.sh", "guard.sh", "jobs.sh", "slurm.sh", "torchrun.sh")
STAGES = sorted(p for folder in ("local", "local/native") for p in (ROOT / folder).glob("*.sh")
                if os.access(p, os.X_OK) and p.name not in RUNNERS)
RECIPES = sorted((ROOT / "recipes").glob("*/prepare_data.sh"))
TAKES_MANY = ("local/prepare_data.sh", "local/train_models.sh")  # options of the recipe, roles


def script(tmp_path, body, options="name=x\nflag=false\nnj=4\n"):
    path = tmp_path / "script.sh"
    path.write_text(f"#!/usr/bin/env bash\nhelp_message='the help'\n{options}"
                    f". {ROOT}/local/parse_options.sh\nset -euo pipefail\n{body}\n")
    return path


SHOW = 'echo "$name|$flag|$nj|$*"'


@pytest.mark.parametrize("args, shown", [
    ([], "x|false|4|"),
    (["--name", "a b", "--flag", "true", "one", "two"], "a b|true|4|one two"),
    (["--name=v=w", "pos"], "v=w|false|4|pos"),
    (["--nj", "8", "--", "--name", "y"], "x|false|8|--name y"),
    (["--name", ""], "|false|4|"),
    (["--name", "$(echo no)"], "$(echo no)|false|4|"),
])
def test_options_are_parsed(shell, tmp_path, args, shown):
    done = shell("bash", script(tmp_path, SHOW), *args)
    assert (done.returncode, done.stdout.strip()) == (0, shown), done.stderr


@pytest.mark.parametrize("args, message", [
    (["--unknown", "1"], "invalid option --unknown"),
    (["--PATH", "/"], "invalid option --PATH"),
    (["--flag", "yes"], "takes true or false"),
    (["--name"], "needs a value"),
    (["-n", "3"], "invalid option -n"),
    (["--config", "/nowhere"], "cannot read '/nowhere'"),
    (["--na;me", "1"], "invalid option"),
])
def test_bad_options_are_refused(shell, tmp_path, args, message):
    done = shell("bash", script(tmp_path, SHOW), *args)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_a_config_file_comes_before_the_command_line(shell, tmp_path):
    config = tmp_path / "conf"
    config.write_text("# a comment\nname=from-file\nnj=2   # two\n")
    done = shell("bash", script(tmp_path, SHOW), "--nj", "3", "--config", config)
    assert done.stdout.strip() == "from-file|false|3|"
    config.write_text("what is this\n")
    done = shell("bash", script(tmp_path, SHOW), "--config", config)
    assert done.returncode == 2 and "expected name=value" in done.stderr


def test_help_prints_and_ends(shell, tmp_path):
    done = shell("bash", script(tmp_path, "echo after"), "--help")
    assert (done.returncode, done.stdout) == (0, "the help\n")


MARKER = f". {ROOT}/local/marker.sh\n"


def test_a_marker_knows_settings_inputs_and_outputs(shell, tmp_path):
    out, given = tmp_path / "out", tmp_path / "in"
    out.mkdir()
    given.write_text("1")
    (out / "f").write_text("abc")
    make = f'{MARKER}mark_done {out} "$(fingerprint lm "k=1" {given})" f'

    def up_to_date(settings):
        return shell("bash", "-c", f'{MARKER}is_done {out} "$(fingerprint lm "{settings}" {given})"').returncode == 0

    assert not up_to_date("k=1")
    assert shell("bash", "-c", make).returncode == 0
    assert up_to_date("k=1") and not up_to_date("k=2")
    given.write_text("2")
    assert not up_to_date("k=1")
    given.write_text("1")
    assert up_to_date("k=1")
    (out / "f").write_text("ab")  # a truncated output is not whole
    assert not up_to_date("k=1")
    (out / "f").unlink()
    assert not up_to_date("k=1")
    done = shell("bash", "-c", make)  # and a missing one is not marked
    assert done.returncode != 0 and "should have been made" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == [".marker"]


@pytest.fixture
def marker(shell, tmp_path):
    """Runs lines of shell with the functions of local/marker.sh, where $out is a directory; exit status and output."""
    def run(script, source=ROOT / "local" / "marker.sh"):
        done = shell("bash", "-c", f"set -euo pipefail; . {source}; out={tmp_path}/out; {script}", cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr
    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_begin_empties_and_resume_keeps_what_the_same_attempt_left(marker, tmp_path):
    out = tmp_path / "out"
    assert marker("begin $out fp1; touch $out/left") == (0, "")
    assert names(out) == [".marker", "left"] and (out / ".marker").read_text().split() == ["begun", "fp1"]
    assert marker("resume $out fp1; is_done $out fp1")[0] == 1 and names(out) == [".marker", "left"]
    assert marker("mark_done $out fp1 left; is_done $out fp1") == (0, "")
    assert marker("resume $out fp1; is_done $out fp1")[0] == 1 and names(out) == [".marker", "left"]
    assert marker("resume $out fp2")[0] == 0 and names(out) == [".marker"]
    assert marker("touch $out/left; begin $out fp2")[0] == 0 and names(out) == [".marker"]
    (out / ".marker").unlink()  # nobody knows what made the rest
    (out / "left").touch()
    assert marker("resume $out fp2")[0] == 0 and names(out) == [".marker"]


def test_the_note_of_an_attempt_is_kept(marker):
    """Such as its number of jobs, by which what it left is named."""
    assert marker("resume $out fp1 7; note_of $out") == (0, "7\n")
    assert marker("resume $out fp1 3; note_of $out") == (0, "7\n")
    assert marker("resume $out fp2 3; note_of $out") == (0, "3\n")
    assert marker("begin $out fp2; note_of $out") == (0, "\n")


def test_what_is_forced_is_made_anew_once(marker, tmp_path):
    """--force true: markers older than ESSENCE_FORCE count no more; those made since do."""
    made = "touch $out/f; mark_done $out fp f"
    assert marker(f"begin $out fp; touch $out/old; {made}; touch -d '1 hour ago' $out/.marker")[0] == 0
    force = f"export ESSENCE_FORCE={tmp_path}/stamp; touch $ESSENCE_FORCE"
    assert marker("is_done $out fp; resume $out fp; [ -f $out/old ]")[0] == 0
    assert marker(f"{made}; touch -d '1 hour ago' $out/.marker; {force}; ! is_done $out fp; resume $out fp; {made}; "
                  "is_done $out fp")[0] == 0
    assert names(tmp_path / "out") == [".marker", "f"]


def test_modules_of_plugins_count(marker, tmp_path):
    """What they make depends on them: a corrected one makes models and targets anew, but no data."""
    def fingerprints():
        status, said = marker(f"export PYTHONPATH={tmp_path}/none:{tmp_path}/x ESSENCE_PLUGINS=one,two.deep; "
                              "fingerprint train x; fingerprint targets x; fingerprint feats x")
        assert status == 0
        return said.split()

    (tmp_path / "x" / "two" / "deep").mkdir(parents=True)
    files = (tmp_path / "x" / "one.py", tmp_path / "x" / "two" / "deep" / "a.py")
    for file in files:
        file.write_text("a = 1")
    before = fingerprints()
    for file in files:
        file.write_text("a = 2")
        after = fingerprints()
        assert after[0] != before[0] and after[1] != before[1] and after[2] == before[2]
        before = after


def test_a_missing_input_names_the_stage(shell, tmp_path):
    done = shell("bash", "-c", f"{MARKER}need 4 {tmp_path}/ali.scp; echo on")
    assert done.returncode == 1 and "stage 4 makes it" in done.stderr and done.stdout == ""


def test_a_directory_that_is_only_begun_is_no_input(marker):
    status, said = marker("begin $out fp; need 4 $out; echo on")
    assert status == 1 and "out' is missing or not whole: stage 4 makes it" in said and "on\n" not in said
    status, said = marker("begin $out fp; fp=$(fingerprint ali '' $out); echo on")
    assert status == 1 and "missing input" in said and "on\n" not in said
    assert marker("begin $out fp; mark_done $out fp; need 4 $out; fp=$(fingerprint ali '' $out); echo on") == (
        0, "on\n")


def test_a_fingerprint_has_the_version_of_what_it_is_of(marker, tmp_path):
    """A raised number in local/marker.sh makes that which an older checkout made stale, and nothing else."""
    text = (ROOT / "local" / "marker.sh").read_text()
    raised, count = re.subn(r"\[graph\]=\d+", "[graph]=99", text)
    assert count == 1
    (tmp_path / "raised.sh").write_text(raised)
    made = "fp=$(fingerprint WHAT x); begin $out $fp; mark_done $out $fp; is_done $out $fp"
    for what, stale in (("graph", 1), ("lm", 0)):
        assert marker(made.replace("WHAT", what)) == (0, "")
        assert marker(f"is_done $out $(fingerprint {what} x)", tmp_path / "raised.sh")[0] == stale
    status, said = marker("fp=$(fingerprint nonsense x); echo on")
    assert status == 1 and "no 'nonsense' among the versions of local/marker.sh" in said and "on\n" not in said
    used = {word for path in [*ROOT.glob("local/**/*.sh"), *ROOT.glob("recipes/*/*.sh")]
            for word in re.findall(r"\$\(fingerprint ([\w-]+) ", path.read_text())}
    assert used - {"WHAT"} == set(re.findall(r"\[([\w-]+)\]=\d", text))


def test_jobs_write_logs_and_a_failure_names_its_own(shell, tmp_path):
    log = tmp_path / "log" / "j.JOB.log"
    done = shell("local/jobs.sh", "--mem", "4G", "--max-jobs-run", "2", "JOB=1:5", log, "bash", "-c",
                 "echo I am JOB; [ JOB != 3 ]")
    assert done.returncode == 1
    assert "j.3.log" in done.stderr and "j.2.log" not in done.stderr and "1 of 5 jobs failed" in done.stderr
    for j in range(1, 6):
        assert f"I am {j}\n" in (tmp_path / "log" / f"j.{j}.log").read_text()
    assert shell("local/jobs.sh", tmp_path / "one.log", "true").returncode == 0
    assert shell("local/jobs.sh", "JOB=3:1", log, "true").returncode == 2
    assert shell("local/jobs.sh", "JOB=1:3").returncode == 2


@pytest.mark.parametrize("status, words", [
    (1, "ended with status 1"), (128, "ended with status 128"), (255, "ended with status 255"),
    (137, "was killed by SIGKILL (status 137; out of memory?)"), (143, "was killed by SIGTERM (status 143)"),
    (141, "was killed by SIGPIPE (status 141)"),
    (135, "was killed by SIGBUS (status 135; /dev/shm or the disk is full?)")])
def test_how_a_command_ended(shell, tmp_path, status, words):
    """In the words of a stage that dies of it without a word of its own, and in those of a runner."""
    ends = f"sh -c 'exit {status}'"
    (tmp_path / "s.sh").write_text(f"help_message=x\n. {ROOT}/local/stage.sh\nwork() {{\n  {ends}\n}}\nwork\n")
    done = shell("bash", tmp_path / "s.sh")
    assert done.returncode == status and done.stderr == f"{tmp_path}/s.sh: line 4: {ends} {words}\n"
    done = shell("local/jobs.sh", tmp_path / "log", "bash", "-c", f"exit {status}")
    assert done.returncode == 1 and f"a job {words}, see {tmp_path}/log" in done.stderr


def test_commands_may_be_pieces_of_shell_as_kaldis_scripts_write_them(shell, tmp_path):
    def said(*words):
        done = shell("local/jobs.sh", "JOB=7:7", tmp_path / "JOB.log", *words)
        text = (tmp_path / "7.log").read_text().splitlines()
        return done.returncode, text[2:-1]

    # no operator: as it is
    assert said("echo", "two  words", 'a "b" c', "$HOME;x", "") == (0, ['two  words a "b" c $HOME;x '])
    assert said("echo", "two  words", 'a "b" c', "JOB", "|", "tr", "-d", "w") == (0, ['to  ords a "b" c 7'])
    assert said("false", "||", "echo", "x", ">", tmp_path / "x.JOB") == (0, [])
    assert (tmp_path / "x.7").read_text() == "x\n"


def test_a_list_of_jobs_runs_in_the_environment_of_its_stage(shell, tmp_path):
    """queue.pl and slurm.pl hand a job nothing but PATH, and start it anywhere."""
    made, there = tmp_path / "a list", tmp_path / "work dir"
    made.write_text("pwd && echo $WORK_DIR $OMP_NUM_THREADS 2>/dev/null && essence --version\nfalse\n"
                    "echo 'three;' && exit 3\n")
    head = f"help_message=x; cd '{ROOT}'; . local/stage.sh; unset OMP_NUM_THREADS"
    done = shell("bash", "-c", f"{head}; as_jobs '{made}'", env={"WORK_DIR": str(there)})
    assert done.returncode == 0, done.stderr

    def job(number, **env):
        return subprocess.run(["bash", str(made), str(number)], cwd="/", capture_output=True, text=True,
                              env={"PATH": os.environ["PATH"], **env})

    done = job(1)
    assert done.returncode == 0 and done.stdout.splitlines()[:2] == [str(ROOT), f"{there} 1"], done.stderr
    assert "essence --version" in done.stderr  # the log shows what ran
    assert job(1, SLURM_CPUS_PER_TASK="4").stdout.splitlines()[1] == f"{there} 4"
    assert job(2).returncode == 1 and job(3).returncode == 3


@pytest.mark.mount
@pytest.mark.parametrize("groups, limits, cores", [
    ("0::/", {}, 64), ("0::/", {"cpu.max": "max 100000"}, 64), ("0::/", {"cpu.max": "200000 100000"}, 2),
    ("0::/", {"cpu.max": "150000 100000"}, 2), ("0::/", {"cpu.max": "1000 100000"}, 1),
    ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "900000 100000"}, 3),  # the group above has the limit
    ("0::/../../gone", {"cpu.max": "400000 100000"}, 4),
    ("4:cpu,cpuacct:/x\n0::/", {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "50000"}, 5),
    ("4:cpuset,cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ("", {"cpu.max": "100000 100000"}, 1)])  # no /proc
def test_the_cores_of_a_container_are_those_of_its_limit(shell, tmp_path, groups, limits, cores):
    programs, files = tmp_path / "bin", tmp_path / "groups"
    programs.mkdir()
    for name, said in (("nproc", "echo 64"), ("cat", f"printf '{groups}' | grep ." if groups else "exit 1")):
        (programs / name).write_text(f"#!/bin/sh\n{said}\n")
        (programs / name).chmod(0o755)
    for name, text in {"here": "", **limits}.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text + "\n")
    done = shell("unshare", "--mount", "sh", "-c", f"mount --bind {files} /sys/fs/cgroup && local/cores.sh",
                 env={"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "7"})
    assert (done.stdout, done.stderr) == (f"{cores}\n", "")


def test_jobs_side_by_side_share_the_cores(shell, tmp_path):
    def threads(jobs, **env):
        done = shell("env", "-u", "OMP_NUM_THREADS", *(f"{k}={v}" for k, v in env.items()), "local/jobs.sh",
                     "--max-jobs-run", "3", f"JOB=1:{jobs}", tmp_path / "JOB.log", "printenv", "OMP_NUM_THREADS")
        assert done.returncode == 0, done.stderr
        return int((tmp_path / "1.log").read_text().splitlines()[2])

    cores = int(shell("local/cores.sh").stdout)
    assert threads(1) == cores
    assert threads(2) == max(cores // 2, 1)
    assert threads(9) == max(cores // 3, 1)
    assert threads(2, OMP_NUM_THREADS=7) == 7


def test_stopping_the_runner_stops_its_jobs(tmp_path):
    seconds = f"61.{os.getpid()}"
    runner = subprocess.Popen(["local/jobs.sh", "JOB=1:2", str(tmp_path / "JOB.log"), "sleep", seconds], cwd=ROOT)
    try:
        for _ in range(100):
            if (tmp_path / "2.log").exists():
                break
            time.sleep(0.05)
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(timeout=10) == 130
    finally:
        left = subprocess.run(["pkill", "-f", f"sleep {seconds}"]).returncode
    assert left == 1, "a job outlived its runner"


@pytest.mark.parametrize("path", STAGES + RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_script_has_help_and_refuses_nonsense(shell, path):
    relative = path.relative_to(ROOT)
    done = shell("bash", relative, "--help")
    assert done.returncode == 0 and "Usage: " in done.stdout and str(relative) in done.stdout
    assert shell("sh", relative, "--help").stdout == done.stdout
    done = shell("bash", relative, "--no-such-option", "1")
    assert done.returncode == 2 and "invalid option --no-such-option" in done.stderr
    if "--nj N" in shell("bash", relative, "--help").stdout:
        done = shell("bash", relative, "--nj", "0", "x")
        assert done.returncode == 2 and "--nj takes a whole number" in done.stderr
    done = shell("bash", relative, *["surplus"] * 40)
    assert done.returncode == 2 or str(relative) in TAKES_MANY
    if "PLAN" in shell("bash", relative, "--help").stdout.splitlines()[0]:
        done = shell("bash", relative, "surplus", *["twin"] * (str(relative) in TAKES_MANY))
        assert done.returncode == 1 and "surplus" in done.stderr and "Traceback" not in done.stderr
    if path.name != "setup_env.sh":
        assert shell("bash", relative).returncode == 2


# one of a kind; tests/unit/test_plan_options.py has all that a plan refuses
@pytest.mark.parametrize("args, message", [
    (["--nope", "1"], "invalid option --nope"),  # run.sh
    (["surplus"], "unexpected argument 'surplus'"),
    (["--check", "yes"], "--check takes true or false"),
    (["--stage", "11"], "there is no stage 11: stages are 0 to 10"),  # essence plan, of the options alone
    (["--nj", "0"], "--nj takes a whole number of at least 1, not '0'"),
    (["--seed", ""], "--seed takes a whole number, not ''"),
    (["--student", "--seed"], "no conf/models/--seed.yaml"),
    (["--corpus", "nope"], "unknown corpus 'nope'; there are: "),
    (["--ablation", "true", "--fuse", "true"], "wide archive"),
    (["--corpus", "fsdd", "--fsdd-dir", "/nowhere"], "no folder '/nowhere' for --fsdd-dir"),
    (["--size", "nope"], "corpus mini has no size 'nope'; it has: default full tiny"),  # of the recipe
    (["--fsdd-dir", "/tmp"], "corpus mini has no option --fsdd-dir"),
    (["--teachers", "nope"], "no conf/models/nope.yaml for model 'nope'"),  # of conf/
])
def test_run_sh_refuses_nonsense_before_any_work(shell, tmp_path, args, message):
    work = tmp_path / "work"
    done = shell("./run.sh", "--work-dir", work, *args)
    assert done.returncode == 2 and message in done.stderr and re.search(r"see (\./run\.sh )?--help$", done.stderr)
    assert "Traceback" not in done.stderr and done.stdout == "" and not work.exists()


@pytest.mark.parametrize("args, message", [  # what settings are read for
    (["--top-k", "5 20", "--fuse", "true"], "give one --top-k"),
    (["--temperature", "0"], "--temperature must"),
    (["--soft-weight", "2"], "--soft-weight must"),
    (["--teachers", "blstm blstm"], "--teachers names blstm twice"),
])
def test_settings_that_make_no_sense_are_refused_before_the_first_stage(shell, tmp_path, args, message):
    done = shell("./run.sh", "--work-dir", tmp_path, *args)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "stage 0" not in done.stdout


def test_run_sh_knows_the_kinds_of_teachers(shell, tmp_path):
    assert shell("./run.sh", "--teachers", "torch", "--check", "true", "--work-dir", tmp_path).returncode == 0
    done = shell("./run.sh", "--teachers", "nnet3", "--check", "true", "--work-dir", tmp_path)
    assert done.returncode == 2 and "teacher nnet3/tdnn needs --engine kaldi" in done.stderr


def test_run_sh_help_names_every_option(shell):
    text = (ROOT / "run.sh").read_text()
    options = re.findall(r"^([a-z_]+)=", text[text.index("\nstage=0"):text.index("\n}")], re.M)
    help_text = shell("./run.sh", "--help").stdout
    assert len(options) > 15
    recipes = [path for path in ROOT.glob("recipes/*/recipe.conf") if "\noptions=" in path.read_text()]
    for path in recipes:
        declared = re.search('^options="(.*)"', path.read_text(), re.M)[1].split()
        assert declared and f"Corpus {path.parent.name}\n  --{declared[0].replace('_', '-')} " in help_text
        options += declared
    assert "fsdd_dir" in options
    for option in options:
        assert "--" + option.replace("_", "-") in help_text


@pytest.mark.parametrize("path", ["run.sh", *(f"local/{runner}" for runner in RUNNERS)])
def test_sh_will_do_for_bash(shell, path):
    for called in (["sh"], ["bash", "--posix"]):  # as which sh is here and there
        done = shell(*called, path, "--help")
        assert done.returncode == 0 and f"Usage: {'./' if path == 'run.sh' else ''}{path}" in done.stdout


def test_folders_that_cd_would_take_another_for(shell, tmp_path):
    """CDPATH leads to a folder of the checkout's name."""
    (tmp_path / "others" / "essence").mkdir(parents=True)
    (tmp_path / "essence").symlink_to(ROOT)
    for path in ("essence/local/bin/essence", "essence/run.sh", "essence/recipes/plugin/essence_targets.sh",
                 "essence/local/setup_env.sh"):
        for cdpath in (".", tmp_path / "others"):
            done = shell("bash", path, "--help", cwd=tmp_path,
                         env={"CDPATH": str(cdpath), "ESSENCE_PYTHON": "", "PYTHONPATH": ""})
            assert done.returncode == 0 and "sage: " in done.stdout and done.stderr == "", done.stderr


def test_a_stage_called_from_another_folder_does_nothing(shell, tmp_path):
    kaldis = sorted((ROOT / "local" / "kaldi").glob("*.sh"))
    for script in [*STAGES, *kaldis, ROOT / "recipes" / "swbd" / "train_gmm.sh"]:
        sourced = re.search(r"^\. (local/(?:stage|kaldi/recipe_dir)\.sh)", script.read_text(), re.M)
        if sourced and script.name != "recipe_dir.sh":
            done = shell("bash", script, tmp_path / "plan.json", cwd=tmp_path)
            assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
            assert f"{sourced.group(1)}: No such file" in done.stderr and not list(tmp_path.iterdir())


def test_modules_of_the_working_directory_are_not_python_s(shell, tmp_path):
    for name in ("queue.py", "io.py", "yaml.py"):
        (tmp_path / name).write_text("raise SystemExit('taken from the working directory')")
    (tmp_path / "a.json").write_text('{"b": 1}')
    for words in (("get", "a.json", "b"), ("copy-post", "--help"),
                  ("get", ROOT / "conf/essence.yaml", "--default", "1", "b")):
        done = shell(ROOT / "local/bin/essence", *words, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout[0] in "1u", done.stderr


SURROUNDINGS = {  # what a user's profile may have exported
    "PYTHONPATH with modules of Python's names": {"PYTHONPATH": "shadow"},
    "the working directory": {"PYTHONPATH": "shadow:"},
    "another Python's home": {"PYTHONHOME": "/nonexistent"}, "warnings": {"PYTHONWARNINGS": "error"},
    "safe path": {"PYTHONSAFEPATH": "1"}, "-OO": {"PYTHONOPTIMIZE": "2"}, "no threads": {"OMP_NUM_THREADS": "0"},
    "threads": {"OMP_NUM_THREADS": "many"}, "TMPDIR": {"TMPDIR": "/nonexistent"}, "POSIX": {"POSIXLY_CORRECT": "1"},
    "cd": {"BASH_FUNC_cd%%": "() { builtin cd \"$@\" && ls; }"}, "locale": {"LC_ALL": "xx_YY.foo"},
    "shell options": {"SHELLOPTS": "noclobber:nounset:errexit:noglob", "BASHOPTS": "failglob:nocasematch"},
    "no GPU": {"CUDA_VISIBLE_DEVICES": ""}, "grep": {"GREP_OPTIONS": "--color=always", "GREP_COLORS": "x"},
    "start-up files": {"PYTHONSTARTUP": "/nonexistent", "ENV": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}}


@pytest.mark.parametrize("variables", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_what_surrounds_a_verb(shell, tmp_path, variables):
    (tmp_path / "shadow").mkdir()
    for name in ("queue", "logging", "numpy", "kaldi_io"):
        (tmp_path / "shadow" / f"{name}.py").write_text("raise RuntimeError('taken from PYTHONPATH')")
    (tmp_path / "post").write_text("a [ 0 0.5 1 0.25 ] [ 2 1 ] \n")
    words = ("prune-post", "--top-k", "1", f"ark:{tmp_path}/post", "ark,t:-")
    done = shell(ROOT / "local/bin/essence", *words, cwd=tmp_path / "shadow", env={**variables, **{
        k: v.replace("shadow", str(tmp_path / "shadow")) for k, v in variables.items() if k == "PYTHONPATH"}})
    assert (done.returncode, done.stdout) == (0, "a [ 0 1 ] [ 2 1 ] \n"), done.stderr


def test_what_surrounds_a_stage(shell, tmp_path):
    """All at once. Options of the shell that are exported would even hand on what a script sets."""
    (tmp_path / "profile").write_text("echo said by the profile\n")
    variables = {k: v for more in SURROUNDINGS.values() for k, v in more.items() if k != "PYTHONPATH"}
    done = shell("./run.sh", "--work-dir", tmp_path, "--stage", "7", "--stop-stage", "7",
                 env={**variables, "BASH_ENV": f"{tmp_path}/profile", "BASH_FUNC_grep%%": "() { echo nothing; }"})
    assert done.returncode == 1 and "stage 6 makes it" in done.stderr, done.stderr
    assert "engine native" in done.stdout
    assert done.stdout.count("said by the profile") <= 1  # 1: before run.sh's first line


def test_a_checkout_with_a_colon_in_its_path(shell, tmp_path):
    (tmp_path / "a:b").mkdir()
    for name in ("conf", "local", "pytools", "recipes", "run.sh", "path.sh", "cmd.sh"):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path / "a:b"], check=True)
    for words in (["./run.sh", "--stage", "7"], ["local/decode.sh", "plan.json"]):
        done = shell(*words, cwd=tmp_path / "a:b", env={"PYTHONPATH": "", "WORK_DIR": ""})
        assert done.returncode == 1 and "a:b' has a colon in its name, where PATH would be divided" in done.stderr
    done = shell(tmp_path / "a:b" / "local/bin/essence", "--version", env={"PYTHONPATH": ""})
    assert done.returncode == 0 and done.stdout.startswith("essence "), done.stderr


def test_run_sh_says_which_stage_is_missing(shell, tmp_path):
    done = shell("./run.sh", "--work-dir", tmp_path, "--stage", "7", "--stop-stage", "7",
                 env={"CC": "/nowhere/cc", "ESSENCE_KERNELS": str(tmp_path)})
    # before any work, not in a job's log alone
    assert "there are no compiled inner loops (/nowhere/cc: " in done.stderr
    assert done.returncode == 1 and "stage 6 makes it" in done.stderr


def test_only_one_run_at_a_time(shell, tmp_path):
    exp = tmp_path / "exp" / "mini"
    exp.mkdir(parents=True)
    with subprocess.Popen(["flock", str(exp / ".lock"), "sleep", "30"]) as holder:
        try:
            time.sleep(0.3)
            done = shell("./run.sh", "--work-dir", tmp_path, "--stage", "7", "--stop-stage", "7")
            at_work = subprocess.run(["pgrep", "-P", str(holder.pid)], capture_output=True, text=True).stdout.split()
        finally:
            holder.kill()
            subprocess.run(["pkill", "-P", str(holder.pid)])
    assert done.returncode == 1 and "another run is at work" in done.stderr
    assert set(done.stderr.split("kill ")[1].split()) == {str(holder.pid), *at_work}  # and not the run that says so


def test_a_file_system_without_locks(shell, tmp_path):
    """Lustre and some NFS have none: no other run is at work, and this one says that nothing would keep it out."""
    (tmp_path / "flock").write_text("#!/bin/sh\necho 'flock: 9: Function not implemented' >&2\nexit 65\n")
    (tmp_path / "flock").chmod(0o755)
    done = shell("./run.sh", "--work-dir", tmp_path, "--stage", "7", "--stop-stage", "7",
                 env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert "can have no lock (flock: 9: Function not implemented)" in done.stderr
    assert "another run" not in done.stderr and "stage 6 makes it" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_stopping_run_sh_stops_all_that_it_started(tmp_path, number):
    """Whatever runs holds the lock of the run, so a free lock means that nothing does."""
    exp = tmp_path / "exp" / "mini"
    text, log = tmp_path / "data" / "mini" / "eval_che" / "text", tmp_path / "log"

    def running():
        return subprocess.run(["flock", "-n", str(exp / ".lock"), "true"]).returncode == 1

    with log.open("w") as out:
        run = subprocess.Popen(["./run.sh", "--stop-stage", "0", "--work-dir", str(tmp_path)], cwd=ROOT,
                               stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))  # nohup would have it ignored
        while run.poll() is None and "stage 0: data" not in log.read_text():
            time.sleep(0.05)
        time.sleep(1)
        assert running(), log.read_text()
        run.send_signal(number)
        assert run.wait(timeout=60) == 128 + number, log.read_text()
    assert not running() and not text.exists()
    assert "stopped; the same command goes on from here" in log.read_text()
    assert "Traceback" not in log.read_text()
    noted, = map(json.loads, (exp / "stages.jsonl").read_text().splitlines())
    assert noted["stage"] == 0 and noted["unfinished"]


def test_a_run_that_is_killed_leaves_nothing_at_work_and_no_lock(tmp_path):
    """SIGKILL of run.sh alone: local/guard.sh ends what it has started; the next run waits for that, and goes on."""
    log, token = tmp_path / "log", f"SWEEP={tmp_path}"

    def run(stage):
        with log.open("w") as out:
            return subprocess.Popen(["./run.sh", "--stage", stage, "--stop-stage", stage, "--work-dir", str(tmp_path)],
                                    cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                    env={**os.environ, "SWEEP": str(tmp_path)})

    first = run("0")
    while first.poll() is None and "stage 0: data" not in log.read_text():
        time.sleep(0.05)
    time.sleep(1)
    at_work = marked(token)
    assert len(at_work) > 2, log.read_text()
    first.kill()
    first.wait()
    second = run("7")
    assert second.wait(timeout=200) == 1 and "stage 6 makes it" in log.read_text(), log.read_text()
    assert "another run is at work" not in log.read_text()
    for _ in range(600):
        if not set(at_work) & set(marked(token)):
            break
        time.sleep(0.1)
    assert not set(at_work) & set(marked(token)) and not (tmp_path / "data" / "mini" / "eval_che" / "text").exists()


def test_jobs_of_one_number_do_not_meet(shell, tmp_path):
    """Those of two clusters on one machine, or a requeued one and what is left of it: another port, another name."""
    for name, line in (("scontrol", "echo NodeAddr=10.0.0.1"), ("srun", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n",
           "SLURM_JOB_NUM_NODES": "2"}
    found = []
    for _ in range(3):
        words = shell("local/torchrun.sh", "train", env=env).stdout.splitlines()
        found.append(tuple(words[words.index(name) + 1] for name in ("--rdzv-id", "--rdzv-endpoint")))
    assert all(name.startswith("7.") and place.startswith("10.0.0.1:") for name, place in found)
    assert len({name for name, _ in found}) == 3 and len({place for _, place in found}) > 1


def test_a_folder_that_cannot_be_written_is_named(shell):
    done = shell("./run.sh", "--work-dir", "/proc/essence")
    assert done.returncode == 1 and "/proc/essence" in done.stderr


@pytest.mark.mount
def test_a_checkout_that_cannot_be_written_to(shell, tmp_path):
    """It says what to do, and --work-dir does."""
    checkout, work = tmp_path / "checkout", tmp_path / "work"
    checkout.mkdir()
    mount = f"mount --bind {ROOT} {checkout} && mount -o remount,bind,ro {checkout} && cd {checkout}"

    def run(*words):
        return shell("unshare", "--mount", "bash", "-c", f'{mount} || exit 77; exec "$@"', "-", *words, cwd=tmp_path,
                     env={"PYTHONPATH": "", "WORK_DIR": ""})

    done = run("./run.sh", "--stage", "7", "--stop-stage", "7")
    assert done.returncode == 1 and f"cannot write in '{checkout}'; name a writable folder" in done.stderr
    data = work / "data" / "mini_tiny"
    files = {"dict/lexicon.txt": "<unk> SPN\nno N OW\nyes Y EH S\n", "dict/silence_phones.txt": "SIL\nSPN\n",
             "dict/optional_silence.txt": "SIL\n", "dict/nonsilence_phones.txt": "EH\nN\nOW\nS\nY\n",
             "train/text": "a yes no\nb no no\nc yes\n", "dev/text": "d no\n", ".marker": "done made\n"}
    for name, text in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)
    done = run("./run.sh", "--size", "tiny", "--work-dir", work, "--stage", "1", "--stop-stage", "1")
    assert done.returncode == 0 and (data / "lang" / "G.fst").is_file(), done.stdout + done.stderr


@pytest.mark.mount
def test_a_machine_without_proc_is_told_of_it(shell, tmp_path):
    done = shell("unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /proc && ./run.sh --work-dir {tmp_path}")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("./run.sh: there is no /proc here")


def test_setup_names_a_python_that_is_too_old(shell, tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\ncase $1 in --version) echo Python 3.6.9;; *) exit 1;; esac\n")
    old.chmod(0o755)
    done = shell("local/setup_env.sh", "--work-dir", tmp_path, env={"ESSENCE_BASE_PYTHON": str(old)})
    assert done.returncode == 1 and "3.6.9 is too old" in done.stderr


FAKE_PYTHON = """#!/bin/bash
# A Python that makes environments and installs nothing, quickly.
here=$(dirname "$(dirname "$0")")
case "$*" in
  "--version") echo Python 3.11.0 ;;
  "-m venv "*)
    echo "venv ${PIP_USER-unset}" >>"$FAKE_LOG"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"
    [ -z "$NO_PIP" ] || { echo ensurepip is not available; exit 1; }
    sleep 1; touch "$3/pip" ;;
  *"find_spec"*" pip") [ -f "$here/pip" ] ;;
  *"find_spec"*" "*|*"import torch"*) [ -f "$here/torch" ] || { echo "${UNUSABLE:-no torch}" >&2; exit 1; } ;;
  *"-m pip install"*)
    echo "install ${PIP_USER-unset} ${PIP_TARGET-unset}" >>"$FAKE_LOG"
    [ -n "$UNUSABLE" ] || touch "$here/torch" ;;
esac
"""


@pytest.fixture
def fake_python(tmp_path):
    """Environment for a set-up in tmp_path/work with a Python that costs nothing, and the file of what it was asked."""
    python, work, log = tmp_path / "fake" / "bin" / "python", tmp_path / "work", tmp_path / "log"
    python.parent.mkdir(parents=True)
    work.mkdir()
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    env = {"ESSENCE_BASE_PYTHON": str(python), "FAKE_LOG": str(log), "NO_PIP": "", "UNUSABLE": "", "ESSENCE_PYTHON": "",
           "WORK_DIR": str(work), "PIP_USER": "1", "PIP_TARGET": "/elsewhere"}
    return env, work, log


def test_two_set_ups_at_once_make_one_environment(fake_python):
    """The second waits, finds what the first has made, and makes nothing; pip installs there whatever pip.conf says."""
    env, work, log = fake_python
    both = [subprocess.Popen(["local/setup_env.sh", "--k2", "false"], cwd=ROOT, env={**os.environ, **env}, text=True,
                             stderr=subprocess.PIPE) for _ in range(2)]
    told = [one.communicate(timeout=60)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sorted("waiting for it" in text for text in told) == [False, True], told
    assert log.read_text().splitlines() == ["venv 1", "install 0 ", "install 0 "]  # torch, the lists
    assert (work / ".venv" / ".ready").is_file()


def test_an_environment_that_was_half_made_is_made_anew(shell, fake_python):
    env, work, log = fake_python
    done = shell("local/setup_env.sh", "--k2", "false", env={**env, "NO_PIP": "1"})
    assert done.returncode == 1 and "apt install python3-venv" in done.stderr and not (work / ".venv").exists()
    done = shell("local/setup_env.sh", "--k2", "false", env=env)
    assert done.returncode == 0, done.stderr
    (work / ".venv" / "torch").unlink()  # the system's Python has become another: its venv has lost its packages
    (work / ".venv" / "pip").unlink()
    done = shell("local/setup_env.sh", "--k2", "false", env=env)
    assert done.returncode == 0 and "is broken" in done.stderr and log.read_text().count("venv") == 3, done.stderr


def test_an_environment_that_cannot_run_is_not_called_ready(shell, fake_python):
    env, work, _ = fake_python
    env = {**env, "UNUSABLE": "failed to map segment from shared object"}
    done = shell("local/setup_env.sh", "--k2", "false", env=env)
    assert done.returncode == 1 and "does not run: failed to map segment" in done.stderr and "noexec" in done.stderr
    assert not (work / ".venv" / ".ready").exists()


def test_setup_finds_a_python_that_is_new_enough(shell, tmp_path, fake_python):
    """python3 of an old distribution is not the only one there."""
    env, work, log = fake_python
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    shutil.copy(env["ESSENCE_BASE_PYTHON"], tmp_path / "bin" / "python3.13")
    (tmp_path / "bin" / "python3").chmod(0o755)
    env = {**env, "ESSENCE_BASE_PYTHON": "", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = shell("local/setup_env.sh", "--k2", "false", env=env)
    assert done.returncode == 0 and "(Python 3.11.0;" in done.stderr and log.read_text().startswith("venv"), done.stderr


def test_setup_without_a_network_names_the_packages_and_the_way_out(shell, tmp_path):
    env = {"ESSENCE_BASE_PYTHON": "python3", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": "",
           "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": "/dev/null"}
    (tmp_path / ".venv").mkdir()  # a broken environment is made anew
    done = shell("local/setup_env.sh", "--work-dir", tmp_path, "--k2", "false", env=env, timeout=300)
    assert done.returncode == 1
    assert "is broken" in done.stderr and "could not install torch" in done.stderr and "PIP_INDEX_URL" in done.stderr
    assert not (tmp_path / ".venv" / ".ready").exists()


def test_a_wheel_page_out_of_reach_leaves_kaldi_decoder(shell, tmp_path):
    """Without k2's wheel page and an index the set-up says so in one line, ends well, and does not try again."""
    nowhere = "http://127.0.0.1:9"
    env = {"PIP_INDEX_URL": f"{nowhere}/simple", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "",
           "ESSENCE_K2_PYTHON": "",
           "PIP_CONFIG_FILE": "/dev/null", "http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": "",
           "PIP_RETRIES": "0"}
    done = shell("local/setup_env.sh", "--work-dir", tmp_path, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "no k2 here (" in last and "kaldi-decoder decodes instead" in last and "ESSENCE_RETRY_K2=1" in last
    assert (tmp_path / ".venv-k2" / ".none").exists() and not (tmp_path / ".venv-k2" / ".ready").exists()
    again = shell("local/setup_env.sh", "--work-dir", tmp_path, env=env)
    assert again.returncode == 0 and not again.stderr


@pytest.mark.mount
def test_a_disk_too_small_is_named_before_any_work(shell, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=True)
    try:
        done = shell("./run.sh", "--work-dir", small)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert done.returncode == 1 and "needs about 4000" in done.stderr and "--work-dir" in done.stderr


def test_an_utterance_too_short_at_one_speed_is_no_failure(shell, tmp_path):
    train = tmp_path / "train"
    train.mkdir()
    write_wav(tmp_path / "r.wav", np.arange(8000, dtype=np.int16), 8000)
    ends = {**{f"u{i:02d}": 0.5 for i in range(29)}, "u29": 0.027}  # 25 ms make a frame
    for name, line in (("wav.scp", f"r {tmp_path}/r.wav\n"), ("feats.scp", "".join(f"{u} -\n" for u in ends)),
                       ("segments", "".join(f"{u} r 0.00 {end:.3f}\n" for u, end in ends.items())),
                       *((name, "".join(f"{u} {u}\n" for u in ends)) for name in ("utt2spk", "text")),
                       (".marker", "done 0\n")):
        (train / name).write_text(line)
    plan = plans.write(plans.make_plan(tmp_path / "exp" / "mini", data=str(tmp_path)))
    done = shell("local/native/perturb_speed.sh", "--nj", "1", f"{plan.exp}/plan.json")
    assert done.returncode == 0 and "30 utterances became 89" in done.stdout, done.stderr
