"""run.sh on a terminal: how long it will take, one line per stage, the rest in a log; and plain lines elsewhere."""
from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from builders import ROOT
from builders.plans import make_plan, write

FILES = {"dict/lexicon.txt": "<unk> SPN\nno N OW\nyes Y EH S\n", "dict/silence_phones.txt": "SIL\nSPN\n",
         "dict/optional_silence.txt": "SIL\n", "dict/nonsilence_phones.txt": "EH\nN\nOW\nS\nY\n",
         "train/text": "a yes no\nb no no\nc yes\n", "dev/text": "d no\n", ".marker": "done made\n"}


@pytest.fixture
def work(tmp_path):
    """A folder in which stage 1 of mini, tiny has its inputs."""
    for name, text in FILES.items():
        path = tmp_path / "data" / "mini_tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


class Terminal:
    """A process on a terminal of 100 columns; what it wrote is ``text``."""

    def __init__(self, *command, work):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvpe(command[0], command, {**os.environ, "ESSENCE_PYTHON": sys.executable, "WORK_DIR": str(work),
                                             "TERM": "xterm"})
        self.text = ""
        subprocess.run(["stty", "cols", "100"], stdin=self.fd, check=True)

    def read(self, until=None, seconds=60):
        """Reads until a pattern, or the end. Returns whether it was found."""
        end = time.time() + seconds
        while time.time() < end and not (until and re.search(until, self.text)):
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode()
                except OSError:
                    return False
        return bool(until and re.search(until, self.text))

    def status(self):
        """Its exit status, once it has ended."""
        self.read()
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def lines(self):
        """What stands on the terminal in the end."""
        return [line.rsplit("\r\x1b[K", 1)[-1] for line in self.text.replace("\r\n", "\n").split("\n")]


def run_sh(work, *words):
    return ["./run.sh", "--size", "tiny", "--work-dir", str(work), "--stage", "1", "--stop-stage", "1", *words]


def test_a_terminal_shows_a_line_per_stage(work):
    terminal = Terminal(*run_sh(work), work=work)
    assert terminal.status() == 0, terminal.text
    lines = terminal.lines()
    assert lines[0].startswith("./run.sh: mini (tiny): ") and lines[1].startswith("./run.sh: roughly 10 s (")
    assert re.fullmatch(r"stage 1: lexicon, lang, language model: \d+ s", lines[2])
    assert lines[3].startswith("./run.sh: done in ") and lines[4:] == [""]
    shown = re.findall(r"\x1b\[K(stage 1: [^\r\n]+)", terminal.text)
    assert any(" | " in line for line in shown) and max(map(len, shown)) <= 99
    exp = work / "exp" / "mini_tiny"
    log = (exp / "log" / "run.log").read_text()
    assert "lang and language model are in" in log and "\x1b" not in log
    noted, = map(json.loads, (exp / "stages.jsonl").read_text().splitlines())
    assert noted["stage"] == 1 and abs(noted["ended"] - time.time()) < 60
    assert 0.1 <= noted["cpu_seconds"] <= (os.cpu_count() or 1) * (noted["seconds"] + 1)
    again = Terminal(*run_sh(work), work=work)
    assert again.status() == 0
    assert again.lines()[1:3] == ["./run.sh: seconds, if nothing has changed since the last run; all anew took 10 s",
                                  "stage 1: lexicon, lang, language model: up to date"]


def test_a_log_has_plain_lines(work, shell):
    done = shell(*run_sh(work))
    assert done.returncode == 0 and not re.search(r"[\r\x1b]", done.stdout)
    assert "./run.sh: stage 1: lexicon, lang, language model\n" in done.stdout
    assert "lang and language model are in" in done.stdout and re.search(r"^./run.sh: stage 1 took \d+ s$", done.stdout,
                                                                         re.M)
    assert not (work / "exp" / "mini_tiny" / "log" / "run.log").exists()


def test_what_fails_on_a_terminal_says_why(work):
    (work / "data" / "mini_tiny" / "dict" / "lexicon.txt").write_text("<unk> SPN\nno\n")
    terminal = Terminal(*run_sh(work), work=work)
    assert terminal.status() == 1
    assert any("lexicon.txt" in line and "line 2" in line for line in terminal.lines()), terminal.text
    assert "stage 1 (lexicon, lang, language model) failed" in terminal.lines()[-2]


def test_ctrl_c_on_a_terminal_stops_all(tmp_path):
    terminal = Terminal("./run.sh", "--size", "tiny", "--work-dir", str(tmp_path), "--stop-stage", "0", work=tmp_path)
    assert terminal.read(r"stage 0: data preparation: 1 s"), terminal.text
    os.write(terminal.fd, b"\x03")
    assert terminal.status() == 128 + signal.SIGINT
    assert terminal.lines()[-2] == "./run.sh: stopped; the same command goes on from here"
    lock = tmp_path / "exp" / "mini_tiny" / ".lock"
    assert subprocess.run(["flock", "-n", str(lock), "true"]).returncode == 0


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (99, "99 s"), (133, "2 min 13 s"), (7500, "2 h 05 min")])
def test_times(shell, seconds, text):
    assert shell("bash", "-c", f". local/live.sh; time_text {seconds}").stdout == text + "\n"


def test_what_to_look_at_next(shell, tmp_path):
    """Of a run that has ended: its page, its student beside the twin, another k, and a microphone."""
    exp = tmp_path / "exp"
    write(make_plan(exp))
    script = (f"set -eu; plan={exp}/plan.json exp={exp} top_k=5 corpus=mini size=default engine=native work_dir=$PWD; "
              "recipe_args=(); eval \"$(sed -n '/^look_next()/,/^}/p' local/run_stage.sh)\"; . ./path.sh; look_next; "
              "corpus=librispeech size=tiny recipe_args=(--librispeech-dir 'a b') work_dir=/w; look_next")
    said = shell("bash", "-c", script).stdout.splitlines()
    assert "3. ./run.sh --corpus librispeech --size tiny --librispeech-dir a\\ b --work-dir /w --stage 7" in said[8]
    said = said[:5]
    assert len(said) == 5 and "essence recognize --mic" in said[4] and f"{exp}/report/report.html" in said[1]
    assert f"essence compare {exp}/baseline {exp}/student_essence:" in said[2] and "--top-k 10:" in said[3]
