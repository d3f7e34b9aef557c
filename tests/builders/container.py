"""A Dockerfile's instructions, taken in a clean folder with Debian (debootstrap, chroot): there is no docker here."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from builders import ROOT


def instructions(text):
    """[(instruction, argument)] of a Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


class Container:
    """A folder with Debian. ``run`` takes a command there, as the user and in the folder that instructions have set."""

    def __init__(self, folder, arguments):
        self.folder, self.arguments = Path(folder), dict(arguments)
        self.user, self.place, self.command = "root", "/", []
        self.mounted = []
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        # how pip reaches packages here
        self.env.update({name: value for name, value in os.environ.items() if name.startswith("PIP_")})

    def begin(self, release):
        """The base image: a minimal Debian, and the network's settings of this machine."""
        if not (self.folder / "etc" / "debian_version").exists():
            subprocess.run(["debootstrap", "--variant=minbase", release, self.folder], check=True, capture_output=True)
        own = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")  # may know of a proxy of this place
        for source, name in (("/etc/resolv.conf", "etc/resolv.conf"), (own, "etc/certificates-of-this-machine.crt")):
            if Path(source).is_file():
                shutil.copy(source, self.folder / name)
        self.env["PIP_CERT"] = "/etc/certificates-of-this-machine.crt"
        for name in ("proc", *(part for value in self.env.values() for part in re.findall(r"/opt/\S+", value))):
            place = self.folder / name.lstrip("/")
            if Path("/", name).is_dir():
                place.mkdir(parents=True, exist_ok=True)
                subprocess.run(["mount", "--rbind", f"/{name.lstrip('/')}", place], check=True)
                self.mounted.append(place)
        subprocess.run(["mount", "--rbind", "/dev", self.folder / "dev"], check=True)
        self.mounted.append(self.folder / "dev")

    def end(self):
        for place in reversed(self.mounted):
            subprocess.run(["umount", "--recursive", "--lazy", place], check=True)

    def run(self, command, timeout=1500):
        """The finished process of a line of shell."""
        words = " ".join(f"{name}={value!r}" for name, value in self.env.items())
        line = f"export {words}; cd {self.place} && {command}"
        how = ["chroot", self.folder, "/bin/sh", "-c", line] if self.user == "root" else \
            ["chroot", self.folder, "su", self.user, "-s", "/bin/sh", "-c", line]
        return subprocess.run(how, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                              env={"HOME": "/root", "PATH": self.env["PATH"]})

    def take(self, instruction, argument):
        """Takes one instruction; those that are not used in this project's Dockerfile are errors."""
        for name, value in self.arguments.items():
            argument = argument.replace(f"${name}", value)
        if instruction == "FROM":
            image = argument.split()[0]
            assert image in ("system", "debian:bookworm-slim")
            if image != "system":
                self.begin("bookworm")
        elif instruction == "ARG":
            name, _, value = argument.partition("=")
            self.arguments.setdefault(name, value)
        elif instruction == "RUN":
            done = self.run(argument)
            assert done.returncode == 0, f"RUN {argument}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        elif instruction == "COPY":
            *flags, source, target = argument.split()
            assert (flags, source) == (["--chown=essence"], ".")
            place = self.folder / target.lstrip("/")
            names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                   check=True, capture_output=True, text=True).stdout.split("\0")
            for name in filter(lambda name: (ROOT / name).is_file(), filter(None, names)):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place / name)
            self.run(f"chown -R essence {target}")
        elif instruction == "USER":
            self.user = argument.strip()
        elif instruction == "WORKDIR":
            self.place = argument.strip()
        elif instruction == "ENV":
            name, _, value = argument.partition("=")
            self.env[name] = value.replace("$PATH", self.env["PATH"])
        elif instruction == "CMD":
            self.command = json.loads(argument)
        else:
            raise AssertionError(f"{instruction}: not known here")
