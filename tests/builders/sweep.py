"""Stages that are disturbed and run again: each must end in the bytes of a run that was left alone."""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from builders.tones import make_tones

PARTS = re.compile(r"/scores/|_list\.|/\.|/posteriors/\w+\.\d+\.(json|scp)$")  # which a stage leaves while it works
LOGS = re.compile(r"\.log$|\.log\.sh$|/log/|/stages\.jsonl$|/\.lock$")
TIMES = re.compile(r"seconds|rtf|per_second|^written$|^bytes$")  # fields that differ from run to run
GROWS = {"progress.jsonl", ".marker", "checkpoint.pt"}  # whole at any moment, but of a run that is at work
PATIENCE = 300  # seconds until what was disturbed must have ended; generous, since machines are busy


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if not TIMES.search(key)}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def content(path):
    """The content of an output, but for times."""
    if path.suffix in (".json", ".jsonl"):
        documents = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [_without_times(json.loads(text)) for text in documents]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays}
        meta = _without_times(json.loads(str(found.pop("meta")))) if "meta" in found else None
        return meta, {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in found.items()}
    if path.name == ".marker":  # sizes of files with times in them vary
        first, *files = path.read_text().splitlines()
        return [first, *(line.split(" ", 1)[1] for line in files)]
    if path.suffix == ".html":  # the figures in it are those of results.json
        return re.sub(r"[\d.,]+", "", path.read_text())
    return path.read_bytes()


def outputs(folder):
    """path -> content of all files but logs."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not LOGS.search("/" + name):
            try:
                found[name] = content(path)
            except Exception as error:  # no JSON, no NumPy archive: half of one
                found[name] = repr(error)
    return found


def differences(got, want):
    """What is missing, odd or different, in words."""
    return [f"{name} {'is missing' if name not in got else 'is odd' if name not in want else 'differs'}"
            for name in sorted({*got, *want}) if got.get(name) != want.get(name)]


def marked(*tokens):
    """ids of the processes that have all of these tokens in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not dead and all(token.encode() in environment for token in tokens):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "?"


class Sweep:
    """The recipe ``tones``, run stage by stage and kept after each; then stages that are disturbed.

    ``options`` go to run.sh; ``say`` prints. ``rows`` counts: stage -> kind -> [survived, tried]; ``faults`` says what
    was not survived.
    """

    def __init__(self, folder, seed, options=(), environment=None, stages=range(11), say=print):
        self.folder, self.random = Path(folder), random.Random(seed)
        self.folder.mkdir(exist_ok=True)
        self.root, self.work = make_tones(self.folder / "checkout"), self.folder / "work"
        self.token = f"ESSENCE_SWEEP={os.getpid()}.{seed}.{self.folder.name}"
        name, _, value = self.token.partition("=")
        self.environment = {**os.environ, **(environment or {}), name: value, "OMP_NUM_THREADS": "1"}
        for name in ("WORK_DIR", "ESSENCE_WORKED"):
            self.environment.pop(name, None)
        self.options, self.stages = ["--corpus", "tones", "--decoder", "kaldi", "--nj", "2", *options], stages
        self.took, self.want, self.rows, self.faults = {}, {-1: {}}, {}, []
        self.say = say
        self.soon = 1.0  # the share of a stage in which it is disturbed: halved where it was done before
        self._undisturbed()

    def command(self, stage):
        return [str(self.root / "run.sh"), "--work-dir", str(self.work), "--stage", str(stage),
                "--stop-stage", str(stage), *self.options]

    def kept(self, stage):
        """The work directory as it is after a stage."""
        return self.folder / f"after_{stage}"

    def _undisturbed(self):
        self.kept(-1).mkdir()
        self.work.mkdir()
        for stage in range(max(self.stages) + 1):
            began = time.time()
            done = subprocess.run(self.command(stage), env=self.environment, capture_output=True, text=True, cwd="/")
            assert done.returncode == 0, done.stdout + done.stderr
            self.took[stage] = time.time() - began
            shutil.copytree(self.work, self.kept(stage), symlinks=True)
            self.want[stage] = outputs(self.work)

    def restore(self, stage):
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.kept(stage - 1), self.work, symlinks=True)

    # ---- kinds of disturbance: each ends when the disturbed run has ended; False: it came too late

    def start(self, stage):
        """run.sh at work on the stage; its output is read up to the line that says so."""
        process = subprocess.Popen(self.command(stage), env=self.environment, stdout=subprocess.PIPE,
                                   stderr=open(self.folder / "stderr", "wb"), cwd="/", start_new_session=True)
        for line in process.stdout:
            if f": stage {stage}: ".encode() in line:
                break
        return process

    def at_a_moment(self, stage, act):
        """Starts the stage, waits for a random moment of it, and calls act(process)."""
        process = self.process = self.start(stage)
        time.sleep(self.random.uniform(0, 0.8 * self.soon * self.took[stage]))
        late = process.poll() is not None
        self.soon = self.soon / 2 if late else 1.0
        act(process)
        if not process.stdout.closed:
            shutil.copyfileobj(process.stdout, open(os.devnull, "wb"))
        process.wait(timeout=PATIENCE)
        return not late

    def signalled(self, number):
        return lambda stage: self.at_a_moment(stage, lambda process: process.send_signal(number))

    def all_killed(self, stage):
        """SIGKILL of run.sh and all that it has started at once, as when the power fails."""
        def act(process):
            for _ in range(3):
                for pid in marked(self.token):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
        return self.at_a_moment(stage, act)

    def pipe_closed(self, stage):
        """Who reads run.sh's output goes away."""
        return self.at_a_moment(stage, lambda process: process.stdout.close())

    def _mounted(self, stage, size, before, after):
        """The stage in a file system of its own: after the shell commands ``before``, and again after ``after``."""
        script = f"""set -u
mount -t tmpfs -o size={size} tmpfs "$WORK" || exit 99
cp -a "$KEPT/." "$WORK" || exit 98
{before}
"$@" >"$FOLDER/out" 2>&1; first=$?
{after}
[ $first -ne 0 ] || exit 97
"$@" >"$FOLDER/out2" 2>&1 || exit 96
mkdir "$FOLDER/done" && cp -a "$WORK/." "$FOLDER/done"
"""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        shutil.rmtree(self.folder / "done", ignore_errors=True)
        done = subprocess.run(["unshare", "--mount", "bash", "-c", script, "sweep", *self.command(stage)], cwd="/",
                              env={**self.environment, "WORK": str(self.work), "KEPT": str(self.kept(stage - 1)),
                                   "FOLDER": str(self.folder)}, capture_output=True, text=True, timeout=2 * PATIENCE)
        if done.returncode == 97:
            return False
        told = "".join((self.folder / name).read_text() for name in ("out", "out2") if (self.folder / name).exists())
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr}{told[-1500:]}"
        first = (self.folder / "out").read_text()
        assert "Traceback" not in first, first
        shutil.rmtree(self.work)
        (self.folder / "done").rename(self.work)
        return True

    def disk_full(self, stage):
        """The disk is full in the middle of what the stage writes."""
        blocks = [sum(-(-path.stat().st_size // 4096) for path in self.kept(s).rglob("*") if path.is_file())
                  for s in (stage - 1, stage)]
        size = blocks[0] + int(self.random.uniform(0.1, 0.8) * (blocks[1] - blocks[0]))
        return self._mounted(stage, size * 4096, "", 'mount -o remount,size=1g "$WORK"')

    def read_only(self, stage):
        """A directory that the stage writes in cannot be written."""
        new = sorted({str(Path(name).parent) for name in self.want[stage] if name not in self.want[stage - 1]})
        folder = f'"$WORK"/{self.random.choice(new)}'
        return self._mounted(stage, "1g", f"mkdir -p {folder} && mount --bind {folder} {folder} && "
                             f"mount -o remount,ro,bind {folder} || exit 95", f"umount {folder}")

    def one_process_killed(self, stage):
        """SIGKILL of one of the two processes of a training; the run says which it was, and fails."""
        rank = self.random.randrange(2)

        def act(process):
            found = []
            while not found and process.poll() is None:
                found = marked(self.token, f"RANK={rank}")
                time.sleep(0.1)
            time.sleep(self.random.uniform(0, 0.3 * self.soon * self.took[stage]))
            for pid in marked(self.token, f"RANK={rank}")[:1]:
                os.kill(pid, signal.SIGKILL)

        in_time, said = self.at_a_moment(stage, act), (self.folder / "stderr").read_text()
        if self.process.returncode == 0:
            return False
        assert re.search(rf"torchrun: process {rank} \(on .*\) was killed by signal 9 \(SIGKILL\)", said), said
        assert "a job ended with status" in said and "/log/train." in said and "Traceback" not in said, said
        return in_time

    def requeued(self, cluster):
        """The jobs that run on the cluster begin once more; the stage waits for them and ends well itself."""
        def disturb(stage):
            def act(process):
                jobs = []
                while not jobs and process.poll() is None:
                    jobs = cluster.ask("squeue", "-h", "-t", "running", "-o", "%A").split()
                    time.sleep(0.1)
                for job in jobs:
                    cluster.ask("scontrol", "requeue", job)
            in_time, process = self.at_a_moment(stage, act), self.process
            assert process.returncode == 0, (self.folder / "stderr").read_text()
            return in_time
        return disturb

    # ---- one trial

    def left_behind(self):
        """Processes of the disturbed run that are there after a while."""
        for _ in range(10 * PATIENCE // 5):
            found = marked(self.token)
            if not found:
                return []
            time.sleep(0.1)
        said = [f"process {pid} is left: {command_line(pid)}" for pid in found]
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return said

    def half_files(self, stage):
        """Files under final names that are neither what they were nor what they become."""
        before, after = self.want[stage - 1], self.want[stage]
        return [f"{name} is half a file, or odd" for name, found in outputs(self.work).items()
                if found not in (before.get(name), after.get(name)) and Path(name).name not in GROWS
                and not PARTS.search(name)]

    def again(self, stage):
        """Runs the stage to its end; what is wrong then."""
        done = subprocess.run(self.command(stage), env=self.environment, capture_output=True, text=True, cwd="/",
                              timeout=3 * PATIENCE)
        if done.returncode:
            return [f"run again: status {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"]
        return differences(outputs(self.work), self.want[stage])

    def count(self, stage, kind, faults):
        row = self.rows.setdefault(stage, {}).setdefault(kind, [0, 0])
        row[0] += not faults
        row[1] += 1
        self.say(f"stage {stage}, {kind}: {faults or 'survived'}")
        self.faults += [f"stage {stage}, {kind}: {fault}" for fault in faults]

    def in_a_row(self, stage, kinds):
        """A stage that is disturbed in several ways (kind -> function), each time where the last one has left it.

        At last it runs to its end. The order is random.
        """
        order, faults, tries = self.random.sample(sorted(kinds), len(kinds)), {}, 0
        self.restore(stage)
        while order:
            kind = order[0]
            found = []
            try:
                in_time = kinds[kind](stage)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                found, in_time = [str(error)], True
            if not in_time:  # the stage was done before the moment came: once more from its beginning
                self.left_behind()
                tries += 1
                if tries > 9:
                    faults.update(dict.fromkeys(order, ["it was never disturbed: the stage was done each time"]))
                    break
                self.restore(stage)
                continue
            faults[order.pop(0)] = found + self.left_behind() + self.half_files(stage)
        wrong = self.again(stage)
        for kind, found in faults.items():
            self.count(stage, kind, found + wrong)

    def alone(self, stage, kind, disturb):
        """A disturbance that runs the stage to its end itself."""
        for _ in range(4):
            self.restore(stage)
            try:
                if not disturb(stage):  # the disk was large enough
                    continue
                faults = self.left_behind() + differences(outputs(self.work), self.want[stage])
            except (AssertionError, subprocess.TimeoutExpired) as error:
                faults = [str(error), *self.left_behind()]
            return self.count(stage, kind, faults)

    def table(self):
        """Survived of tried, by stage and kind."""
        kinds = list(dict.fromkeys(kind for row in self.rows.values() for kind in row))
        lines = ["stage  " + "  ".join(f"{kind:>9}" for kind in kinds)]
        for stage, row in sorted(self.rows.items()):
            cells = ("{}/{}".format(*row[kind]) if kind in row else "" for kind in kinds)
            lines.append(f"{stage:>5}  " + "  ".join(f"{cell:>9}" for cell in cells))
        survived, tried = (sum(cell[i] for row in self.rows.values() for cell in row.values()) for i in (0, 1))
        return "\n".join([*lines, f"{survived} of {tried} survived"])
