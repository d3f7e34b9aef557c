"""A Slurm of two nodes on this machine, for tests."""
import os
import socket
import subprocess
import sys
import time

from builders import ROOT

PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


def free_ports(count):
    """TCP ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class Cluster:
    """Two nodes on this machine, each with two GPUs in name: partitions "all" and "gpu" have both, "down" one that
    is not there.

    "gpu" and "cpu" have nodes of Switchboard's size, too, on which jobs wait for ever.
    """

    def __init__(self, folder):
        self.folder, self.daemons = folder, []
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool.node1", "spool.node2"):
            (folder / name).mkdir(parents=True)
        controller, one, two, gone = free_ports(4)
        munge = folder / "munge.socket"
        (folder / "slurm.conf").write_text(f"""
ClusterName=essence
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
ReturnToService=2
GresTypes=gpu
KillWait=2
JobRequeue=1
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs=4 RealMemory=2000 Gres=gpu:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={two} CPUs=4 RealMemory=2000 Gres=gpu:2
NodeName=big[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port={gone} CPUs=40 RealMemory=256000 Gres=gpu:4 State=DOWN
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port={gone} CPUs=1 RealMemory=2000 State=DOWN
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=60 State=UP
PartitionName=gpu Nodes=node1,node2,big[1-4] MaxTime=4-0 State=UP
PartitionName=cpu Nodes=big[1-4] MaxTime=4-0 State=UP
PartitionName=down Nodes=node3 MaxTime=60 State=UP
""")
        (folder / "gres.conf").write_text("".join(f"NodeName=node[1-2] Name=gpu File=/dev/{f}\n"
                                                  for f in ("null", "zero")) + "NodeName=big[1-4] Name=gpu Count=4\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH,
                            "ESSENCE_PYTHON": os.environ.get("ESSENCE_PYTHON", sys.executable)}
        self._start("munged", "--foreground", "--force", f"--socket={munge}", f"--key-file={key}",
                    f"--seed-file={folder}/munge.seed", f"--pid-file={folder}/munge.pid",
                    f"--log-file={folder}/munge.log")
        self._wait(munge.exists)
        self._start("slurmctld", "-D", "-c")
        for node in ("node1", "node2"):
            self._start("slurmd", "-D", "-N", node)
        self._wait(lambda: self.ask("sinfo", "-h", "-p", "all", "-o", "%t %D") == "idle 2")

    def _start(self, *command):
        with open(self.folder / f"{command[0]}.{len(self.daemons)}.out", "wb") as out:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out,
                                                 stdin=subprocess.DEVNULL, start_new_session=True))

    def _wait(self, condition, seconds=60):
        for _ in range(10 * seconds):
            if condition():
                return
            for daemon in self.daemons:
                assert daemon.poll() is None, f"{daemon.args} ended: {self._logs()}"
            time.sleep(0.1)
        self.stop()
        raise AssertionError(f"Slurm does not come up: {self._logs()}")

    def _logs(self):
        return "\n".join(p.read_text(errors="replace")[-2000:] for p in sorted(self.folder.glob("*.[lo][ou][gt]")))

    def ask(self, *command):
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout.strip()

    def jobs(self):
        """ids of the jobs that wait or run."""
        return set(self.ask("squeue", "-h", "-o", "%A").split())

    def start(self, *arguments, cwd=ROOT):
        return subprocess.Popen([str(ROOT / "local" / "slurm.sh"), *map(str, arguments)], cwd=cwd, text=True,
                                env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def stop(self):
        self.ask("scancel", "--full", "--signal=KILL", "--state=RUNNING")
        self.ask("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def until(condition, seconds=60):
    for _ in range(10 * seconds):
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen")
