"""Kill, fill, drop: every stage is disturbed at random moments, and ends, run again, in the same bytes.

SWEEP_SEED has other moments, SWEEP_STAGES other stages ("5 8"). What is compared: every output but logs and times.
"""
import os
import signal
import tempfile
from pathlib import Path

import pytest
from builders.cluster import Cluster, until
from builders.sweep import Sweep

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("SWEEP_SEED", "1"))
STAGES = [int(stage) for stage in os.environ.get("SWEEP_STAGES", "0 1 2 3 4 5 6 7 8 9 10").split()]
TRAIN = [stage for stage in STAGES if stage in (5, 8)]
WITH_JOBS = [stage for stage in STAGES if stage >= 5]


@pytest.fixture
def told(capsys):
    """Prints to the terminal, whatever pytest does with output."""
    def say(text):
        with capsys.disabled():
            print(text, flush=True)

    return say


@pytest.fixture
def concluded(record_property):
    """Shows the table at the end of the tests, also where they ran in several processes, and fails with the faults."""
    def conclude(sweep):
        record_property("table", f"seed {SEED}\n{sweep.table()}")
        assert sweep.rows and not sweep.faults, "\n".join(sweep.faults)

    return conclude


def test_a_sweep_of_kills(told, concluded, tmp_path):
    """By signals, all at once as when the power fails, and by a reader that goes away."""
    sweep = Sweep(tmp_path, SEED, stages=STAGES, say=told)
    kinds = {"SIGKILL": sweep.signalled(signal.SIGKILL), "SIGTERM": sweep.signalled(signal.SIGTERM),
             "SIGINT": sweep.signalled(signal.SIGINT), "all": sweep.all_killed, "pipe": sweep.pipe_closed}
    for stage in STAGES:
        sweep.in_a_row(stage, kinds)
    concluded(sweep)


@pytest.mark.mount
def test_a_sweep_of_full_disks(told, concluded, tmp_path):
    """A disk that is full in the middle of the stage, and an output that is read-only."""
    sweep = Sweep(tmp_path, SEED, stages=STAGES, say=told)
    for stage in STAGES:
        sweep.alone(stage, "full", sweep.disk_full)
        sweep.alone(stage, "read-only", sweep.read_only)
    concluded(sweep)


@pytest.mark.parametrize("stages", [TRAIN][:len(TRAIN)])  # none where SWEEP_STAGES has no stage that trains
def test_a_sweep_of_one_of_two_processes(told, concluded, tmp_path, stages):
    """Of a training that torchrun has started."""
    sweep = Sweep(tmp_path, SEED, stages=stages,
                  environment={"train_launcher": "local/torchrun.sh", "PROCESSES_PER_NODE": "2"}, say=told)
    for stage in stages:
        sweep.in_a_row(stage, {"rank": sweep.one_process_killed})
    concluded(sweep)


@pytest.mark.slurm
@pytest.mark.parametrize("stages", [WITH_JOBS][:len(WITH_JOBS)])
def test_a_sweep_on_slurm(told, concluded, tmp_path, stages):
    """Undisturbed on this machine, disturbed on Slurm; stages before 5 have no jobs with the native engine."""
    short = tempfile.TemporaryDirectory(prefix="slurm")  # Slurm's sockets lie in it, whose paths must be short
    cluster = Cluster(Path(short.name))
    try:
        sweep = Sweep(tmp_path / "sweep", SEED, stages=stages, say=told)
        sweep.options += ["--cmd", "local/slurm.sh --partition all --mem 500M"]
        sweep.environment.update({name: cluster.environment[name] for name in ("SLURM_CONF", "PATH")})
        for stage in stages:
            sweep.in_a_row(stage, {"SIGKILL": sweep.signalled(signal.SIGKILL),
                                   "SIGTERM": sweep.signalled(signal.SIGTERM)})
            until(lambda: not cluster.jobs())
            sweep.alone(stage, "requeue", sweep.requeued(cluster))
        concluded(sweep)
    finally:
        cluster.stop()
        short.cleanup()
