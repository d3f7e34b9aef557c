"""local/slurm.sh, Kaldi's slurm.pl and trainings over several nodes on a real Slurm: slurmctld, slurmd and munged of
Debian's slurm-wlm, started here with a configuration of their own and stopped afterwards."""
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from builders import ROOT
from builders.cluster import Cluster, until
from builders.training_data import TrainingStage, make_data

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield made
    finally:
        made.stop()


def ended(runner, seconds=150):
    out, err = runner.communicate(timeout=seconds)
    return runner.returncode, out, err


def shown(cluster, job):
    """What Slurm says of a job, by name."""
    return dict(word.split("=", 1) for word in cluster.ask("scontrol", "show", "job", job).split() if "=" in word)


def no_leftovers(folder):
    return not list(Path(folder).glob(".slurm.*"))


def test_jobs_of_an_array_write_their_logs(cluster, tmp_path):
    log = tmp_path / "a 50% log" / "j.JOB.log"
    runner = cluster.start("--mem", "100M", "--partition", "all", "--max-jobs-run", "2", "--num-threads", "1",
                           "JOB=2:5", log, "bash", "-c", 'echo "I am JOB of $1, $MINE in $PWD"; grep -c . || true', "x",
                           "two  words")
    code, out, err = ended(runner)
    assert (code, out, err) == (0, "", "")
    for j in range(2, 6):
        text = (tmp_path / "a 50% log" / f"j.{j}.log").read_text()
        assert f"I am {j} of two  words,  in {ROOT}\n0\n" in text and "status 0" in text
    assert sorted(p.name for p in log.parent.iterdir()) == [f"j.{j}.log" for j in range(2, 6)]
    alone = cluster.start(tmp_path / "one.log", "echo", "alone", "|", "tr", "a-z", "A-Z")  # as Kaldi's steps say it
    assert ended(alone)[0] == 0
    assert "ALONE\n" in (tmp_path / "one.log").read_text()


def test_failed_cancelled_and_late_jobs_are_named_and_requeued_ones_waited_for(cluster, tmp_path):
    """One array, so that the minutes that Slurm takes to notice a time limit pass once."""
    log = tmp_path / "j.JOB.log"
    body = f"""cd {tmp_path}
echo start JOB; touch started.JOB
case JOB in
  1) exit 0 ;;
  2) echo I broke; exit 7 ;;
  5) [ -e requeued ] && exit 0 ;;
esac
exec sleep 300"""
    runner = cluster.start("--partition", "all", "--time", "1", "JOB=1:5", log, "bash", "-c", body)
    until(lambda: all((tmp_path / f"started.{j}").exists() for j in range(1, 6)))
    job = cluster.ask("squeue", "-h", "-o", "%A", "--name=j.JOB").split()
    array = cluster.ask("squeue", "-h", "-o", "%F").split()[0]
    assert job
    (tmp_path / "requeued").touch()
    cluster.ask("scontrol", "requeue", f"{array}_5")
    cluster.ask("scancel", f"{array}_4")
    cluster.ask("scontrol", "update", f"JobId={array}_3", "EndTime=now+1")  # a time limit counts whole minutes
    code, out, err = ended(runner)
    assert code == 1 and out == ""
    assert "3 of 5 jobs failed" in err
    assert re.search(rf"job {array}_2 ended with status 7, see {tmp_path}/j.2.log:\n(.*\n)*I broke\n", err)
    assert f"job {array}_3 ran out of time (--time), see {tmp_path}/j.3.log:" in err and "DUE TO TIME LIMIT" in err
    assert f"job {array}_4 was cancelled, see {tmp_path}/j.4.log:" in err
    assert "j.1.log" not in err and "j.5.log" not in err
    text = (tmp_path / "j.5.log").read_text()
    assert text.count("start 5\n") == 2 and "after being requeued" in text
    assert no_leftovers(tmp_path)


def test_stopping_the_script_cancels_its_jobs(cluster, tmp_path):
    seconds = f"301.{os.getpid()}"
    runner = cluster.start("JOB=1:2", tmp_path / "JOB.log", "sleep", seconds)
    until(lambda: "started" in (tmp_path / "2.log").read_text() if (tmp_path / "2.log").exists() else False)
    assert cluster.jobs()
    runner.send_signal(signal.SIGTERM)
    assert ended(runner)[0] == 130
    until(lambda: not cluster.jobs())
    until(lambda: subprocess.run(["pgrep", "-f", f"sleep {seconds}"], capture_output=True).returncode == 1)
    assert no_leftovers(tmp_path)


def test_what_a_job_waits_for_and_what_slurm_refuses_is_said(cluster, tmp_path):
    runner = cluster.start("--partition", "down", tmp_path / "w.log", "true")
    line = runner.stderr.readline()
    assert re.search(r"job \d+_1 waits: \S+", line)
    runner.send_signal(signal.SIGINT)
    assert ended(runner)[0] == 130
    code, _, err = ended(cluster.start("--partition", "nowhere", tmp_path / "x.log", "true"))
    assert code == 1 and "nowhere" in err and "sbatch refused" in err and "x.log" in err
    code, _, err = ended(cluster.start("--no-such-option", "1", tmp_path / "x.log", "true"))
    assert code == 1 and "sbatch refused" in err
    assert ended(cluster.start("JOB=3:1", tmp_path / "x.log", "true"))[0] == 2
    assert ended(cluster.start("JOB=1:3"))[0] == 2
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("name, want", [
    ("cmd", dict(Partition="cpu", NumNodes="1", MinMemoryNode="8G")),
    ("forward_cmd", dict(Partition="gpu", NumNodes="1", CPUs="4", MinMemoryNode="32G", TresPerNode="gres:gpu:1")),
    ("cuda_cmd", dict(Partition="gpu", NumNodes="2-2", CPUs="20", MinMemoryNode="64G", TresPerNode="gres:gpu:4",
                      TimeLimit="2-00:00:00"))])
def test_what_the_recipe_swbd_asks_of_a_cluster(cluster, tmp_path, name, want):
    """The commands of recipes/swbd/slurm/run.sh: Slurm takes their jobs, and understands them as they are meant."""
    script = tmp_path / "recipes" / "swbd" / "slurm" / "run.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "swbd" / "slurm" / "run.sh", script)
    (tmp_path / "run.sh").write_text('#!/bin/sh\n'
                                     'while [ $# -gt 0 ]; do [ "$1" = --cmd ] && echo "cmd=$2"; shift; done\n'
                                     'echo "cuda_cmd=$cuda_cmd"; echo "forward_cmd=$forward_cmd"\n'
                                     'echo "launcher=$train_launcher"\n')
    (tmp_path / "run.sh").chmod(0o755)
    told = subprocess.run([script, "--stage", "5"], capture_output=True, text=True, check=True).stdout
    commands = dict(line.split("=", 1) for line in told.splitlines())
    assert (ROOT / commands["launcher"]).exists()
    words = commands[name].split()
    assert words[0] == "local/slurm.sh"
    runner = cluster.start(*words[1:], "--max-jobs-run", "2", "JOB=1:3", tmp_path / "JOB.log", "true")
    assert "waits: " in runner.stderr.readline()
    job = shown(cluster, cluster.ask("squeue", "-h", "-o", "%F").split()[0])
    runner.send_signal(signal.SIGTERM)
    assert ended(runner)[0] == 130
    job["CPUs"] = job["CPUs/Task"]
    assert {key: job[key] for key in want} == want


@pytest.mark.parametrize("script, options, cores, limit", [
    ("recipes/swbd/slurm/train.sbatch", [], "20", "2-00:00:00"),
    ("recipes/mini/slurm/train.sbatch", ["--partition=gpu", "--nodes", "2", "--gpus-per-node", "4"], "1",
     "4-00:00:00")])
def test_what_the_scripts_for_sbatch_ask_for(cluster, script, options, cores, limit):
    """As they stand there, with the options that they tell of; only nodes with four GPUs will do, which are down."""
    done = subprocess.run(["sbatch", "--parsable", "--output=/dev/null", *options, script], cwd=ROOT, text=True,
                          env=cluster.environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    job = shown(cluster, done.stdout.strip())
    cluster.ask("scancel", job["JobId"])
    assert (job["JobState"], job["NumNodes"], job["TresPerNode"]) == ("PENDING", "2-2", "gres:gpu:4")
    assert (job["CPUs/Task"], job["TimeLimit"], job["Requeue"]) == (cores, limit, "1")


def test_the_controller_may_restart_meanwhile(cluster, tmp_path):
    runner = cluster.start(tmp_path / "r.log", "sleep", "8")
    until(lambda: (tmp_path / "r.log").exists() and "started" in (tmp_path / "r.log").read_text())
    controller = next(d for d in cluster.daemons if d.args[0] == "slurmctld")
    controller.terminate()
    controller.wait(timeout=30)
    cluster.daemons.remove(controller)
    time.sleep(3)
    cluster._start("slurmctld", "-D")
    code, _, err = ended(runner)
    assert code == 0, err
    cluster._wait(lambda: cluster.ask("sinfo", "-h", "-p", "all", "-o", "%t %D") == "idle 2")


@pytest.mark.parametrize("script, options", [
    pytest.param("recipes/mini/slurm/train.sbatch", ["--nodes=2"], marks=pytest.mark.slow),  # the same by other options
    ("recipes/swbd/slurm/train.sbatch", ["--gpus-per-node=1", "--cpus-per-task=2", "--mem=500M", "--time=10"])])
def test_one_training_on_two_nodes(cluster, tmp_path, script, options):
    corpus = make_data(tmp_path / "corpus", utterances=4)
    words = ["--set", "optim.epochs=2", "--set", "data.batch_frames=300", "--set", "model.hidden=16", "--set",
             "model.dropout=0", "--set", "data.heldout=0.3", corpus.data, corpus.ali, tmp_path / "model"]
    done = subprocess.run(["sbatch", "--wait", f"--output={tmp_path}/log", *options, script, *map(str, words)],
                          cwd=ROOT,
                          text=True, env=cluster.environment, capture_output=True, timeout=600)
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0, log + done.stderr
    assert "2 processes" in log and log.count("epoch 2/2: loss") == 1
    assert (tmp_path / "model" / "final.pt").exists()


def test_a_stage_trains_with_a_process_a_gpu(cluster, tmp_path):
    """Of two nodes, as recipes/swbd/slurm/run.sh has it."""
    stage = TrainingStage(tmp_path, cluster.environment)
    done = stage.train_models("local/slurm.sh --partition gpu --nodes 2 --gpu 2 --num-threads 2",
                              "--launcher", "local/torchrun.sh")
    assert done.returncode == 0, done.stderr
    assert ", 4 processes, " in (stage.exp / "a" / "train.log").read_text()
    assert "a is up to date" in stage.train_models("local/jobs.sh").stdout
    # then it answers, in jobs of one GPU
    out = stage.exp / "posteriors"
    done = stage.script("local/dump_posteriors.sh", "--nj", "2", "--cmd", "local/slurm.sh --partition all",
                        "--forward-cmd",
                        "local/slurm.sh --partition gpu --gpu 1")
    assert done.returncode == 0, done.stderr
    assert len((out / "wide.scp").read_text().splitlines()) == 12 and (out / "post_stats.json").exists()
    logs = [(out / "log" / name).read_text() for name in ("dump.1.log", "dump.2.log", "post_stats.log")]
    assert [" on " in log for log in logs] == [True] * 3


@pytest.mark.kaldi("egs/wsj/s5/utils/parallel/slurm.pl")
def test_kaldis_slurm_pl_runs_the_jobs_of_a_stage(cluster, tmp_path):
    config = tmp_path / "slurm.conf"
    config.write_text("command sbatch --export=PATH --ntasks-per-node=1\noption mem=* --mem $0\ndefault gpu=0\n"
                      "option gpu=0 -p all\noption gpu=* -p gpu --gres=gpu:$0\n")
    stage = TrainingStage(tmp_path, cluster.environment)
    logs = stage.one_job_ends_well_and_one_fails(
        f"{os.environ['KALDI_ROOT']}/egs/wsj/s5/utils/parallel/slurm.pl --config {config} --mem 500M --gpu 1")
    assert all("SLURM_JOB_PARTITION=gpu" in log and "SLURM_MEM_PER_NODE=500" in log for log in logs)


@pytest.mark.slow
def test_the_recipe_through_slurm(cluster, tmp_path):
    """The tiny recipe from its teachers on (from its beginning where no run of it lies in WORK_DIR)."""
    done = Path(os.environ.get("WORK_DIR", ROOT))
    exp, first = tmp_path / "exp" / "mini_tiny", "0"
    if (done / "exp" / "mini_tiny" / "baseline" / ".marker").exists():
        first = "5"
        shutil.copytree(done / "data" / "mini_tiny", tmp_path / "data" / "mini_tiny")
        for name in ("gmm", "ali"):
            shutil.copytree(done / "exp" / "mini_tiny" / name, exp / name)
        for path in exp.glob("gmm/*"):
            if path.name.startswith(("decode_", "sweep")):
                shutil.rmtree(path)

    def run():
        command = ["./run.sh", "--size", "tiny", "--work-dir", str(tmp_path), "--stage", first, "--nj", "2",
                   "--cmd", "local/slurm.sh --partition all --mem 500M"]
        return subprocess.Popen(command, cwd=ROOT, env=cluster.environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)

    def logged(system, words):
        path = exp / system / "train.log"
        return path.exists() and words in path.read_text()

    runner = run()
    try:  # the first teacher is requeued in the middle of its training, the second one cancelled
        until(lambda: runner.poll() is not None or all(logged(f"teacher_{n}", "epoch 1/") for n in (1, 2)), 1200)
        array = cluster.ask("squeue", "-h", "-o", "%F").split()[0]
        cluster.ask("scontrol", "requeue", f"{array}_1")
        cluster.ask("scancel", f"{array}_2")
        out = runner.communicate(timeout=1200)[0]
        assert runner.returncode == 1, out
        assert f"job {array}_2 was cancelled, see {exp}/log/train.2.log" in out and "1 of 3 jobs failed" in out
        assert "stage 5 (teachers and baseline) failed" in out and "teacher_1: " in out and "baseline: " in out
        assert logged("teacher_1", "going on after epoch")
        runner = run()
        out = runner.communicate(timeout=1200)[0]
    finally:
        runner.terminate()
    assert runner.returncode == 0, out
    for system in ("teacher_1", "baseline"):
        assert f"{exp}/{system} is up to date" in out
    assert logged("teacher_2", "going on after epoch") and "%WER" in out
    if first == "5":  # the same bytes as on this machine alone
        for system in ("teacher_1", "teacher_2", "baseline"):
            there, here = exp / system, done / "exp" / "mini_tiny" / system
            assert (there / "final.pt").read_bytes() == (here / "final.pt").read_bytes(), system
