"""Kaldi's queue.pl on a real GridEngine: sge_qmaster and sge_execd of Debian's gridengine-master and gridengine-exec,
started here with a configuration of their own and stopped afterwards."""
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from builders.training_data import TrainingStage

LIB, SHARE = "/usr/lib/gridengine", "/usr/share/gridengine"
pytestmark = [pytest.mark.gridengine, pytest.mark.kaldi("egs/wsj/s5/utils/parallel/queue.pl")]


class GridEngine:
    """One node: all.q has four slots, two GPUs in name, and what queue.pl asks for where no file tells it otherwise."""

    def __init__(self, folder):
        self.folder, self.daemons = folder, []
        self.host = socket.gethostname()
        for name in ("default/common", "spool/qmaster", "spool/execd", "spool/db"):
            (folder / name).mkdir(parents=True)
        for name in ("bin", "lib", "util", "utilbin"):
            (folder / name).symlink_to(f"/var/lib/gridengine/{name}")
        with socket.socket() as a, socket.socket() as b:
            a.bind(("", 0)), b.bind(("", 0))
            ports = a.getsockname()[1], b.getsockname()[1]
        self.environment = {**os.environ, "SGE_ROOT": str(folder), "SGE_CELL": "default",
                            "SGE_QMASTER_PORT": str(ports[0]),
                            "SGE_EXECD_PORT": str(ports[1]), "SGE_ND": "1",
                            "ESSENCE_PYTHON": os.environ.get("ESSENCE_PYTHON", sys.executable)}
        common = folder / "default" / "common"
        (common / "bootstrap").write_text(f"""admin_user none
default_domain none
ignore_fqdn true
spooling_method berkeleydb
spooling_lib libspoolb
spooling_params {folder}/spool/db
binary_path /usr/sbin
qmaster_spool_dir {folder}/spool/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
""")
        (common / "act_qmaster").write_text(f"{self.host}\n")
        (common / "host_aliases").write_text(f"{self.host} localhost\n")  # where the host's name is one of 127.0.0.1
        changes = {"execd_spool_dir": f"{folder}/spool/execd", "min_uid": "0", "min_gid": "0",
                   "load_report_time": "00:00:01"}
        settings = self._changed(open(f"{SHARE}/default-configuration").read(), changes)
        self._tell(f"{LIB}/spoolinit", "berkeleydb", "libspoolb", f"{folder}/spool/db", "init")
        self._tell(f"{LIB}/spooldefaults", "configuration", self._file("configuration", settings))
        self._tell(f"{LIB}/spooldefaults", "complexes", f"{SHARE}/util/resources/centry")
        self._tell(f"{LIB}/spooldefaults", "usersets", f"{SHARE}/util/resources/usersets")
        self._tell(f"{LIB}/spooldefaults", "managers", "root")
        self._start("sge_qmaster")
        self._wait("qconf", "-sh")
        self._tell("qconf", "-as", self.host)
        self._start("sge_execd")
        self._wait("qconf", "-se", self.host)
        self._change("-sc", "-Mc", {}, more="gpu gpu INT <= YES YES 0 0\nram_free ram_free MEMORY <= YES YES 0 0\n")
        self._change("-ssconf", "-Msconf", {"schedule_interval": "0:0:1", "flush_submit_sec": "1",
                                            "flush_finish_sec": "1"})
        self._tell("qconf", "-Ap", self._file("smp", "pe_name smp\nslots 9\nuser_lists NONE\nxuser_lists NONE\n"
                                              "start_proc_args NONE\n"
                                              "stop_proc_args NONE\nallocation_rule $pe_slots\ncontrol_slaves FALSE\n"
                                              "job_is_first_task TRUE\nurgency_slots min\n"
                                              "accounting_summary FALSE\nqsort_args NONE\n"))
        self._change("-sq", "-Aq", {"qname": "all.q", "hostlist": self.host, "slots": "4",
                                    "load_thresholds": "NONE", "pe_list": "smp",
                                    "complex_values": "gpu=2,ram_free=8G"})

    def _file(self, name, text):
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    @staticmethod
    def _changed(text, changes):
        lines = [line.split(maxsplit=1) for line in text.replace("\\\n", "").splitlines()]
        return "".join(f"{line[0]} {changes.get(line[0], line[-1])}\n" for line in lines if line)

    def _change(self, show, set_, changes, more=""):
        self._tell("qconf", set_, self._file(set_, self._changed(self.ask("qconf", show), changes) + more))

    def ask(self, *command):
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def _tell(self, *command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def _start(self, daemon):
        with open(self.folder / f"{daemon}.out", "wb") as out:
            self.daemons.append(subprocess.Popen([f"{LIB}/{daemon}"], env=self.environment, stdout=out, stderr=out,
                                                 stdin=subprocess.DEVNULL, start_new_session=True))

    def _wait(self, *command):
        for _ in range(300):
            if subprocess.run(command, env=self.environment, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        for daemon in self.daemons:
            daemon.kill()
        printed = "".join(p.read_text() for p in self.folder.glob("*.out"))
        raise AssertionError("GridEngine does not come up: " + printed)

    def stop(self):
        self.ask("qdel", "-f", "-u", "root")
        self.ask("qconf", "-ke", "all")
        self.ask("qconf", "-km")
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gridengine")
    made = GridEngine(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder / "spool", ignore_errors=True)


def test_kaldis_queue_pl_runs_the_jobs_of_a_stage(grid, tmp_path):
    stage = TrainingStage(tmp_path, grid.environment)
    stage.one_job_ends_well_and_one_fails(
        f"{os.environ['KALDI_ROOT']}/egs/wsj/s5/utils/parallel/queue.pl --mem 100M --num-threads 2 --gpu 1")
    script = (stage.exp / "q" / "train.sh").read_text()
    assert "mem_free=100M,ram_free=100M" in script and "-pe smp 2" in script and "-l gpu=1" in script
    assert "-tc 1" in script
