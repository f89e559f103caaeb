"""Builds what the Containerfile describes without a container engine, and runs it: as root, with the network.

    python scripts/check_container.py [--directory DIR]     DIR keeps Debian's base for the next run

Each stage is a directory, at first Debian's `bookworm` with its Python in the place of the Python image. Every RUN is
executed there with chroot, and COPY, ARG, ENV, WORKDIR and USER do what an engine makes of them, so the steps cannot
drift from the file. Then ENTRYPOINT and CMD run as the image's user, on a root that is read-only but for the volume,
the HEALTHCHECK has to pass, and STOPSIGNAL to end the node with status 0. What this leaves out is the engine: image
layers, its network, volumes and limits, and the Python of the image.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
RELEASE: Final = "bookworm"
PACKAGES: Final = "python3,python3-venv,python3-dev,ca-certificates"
OF_THIS_MACHINE: Final = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")  # what reaches the network needs
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HEALTHY_S: Final = 60.0
STOP_S: Final = 20.0
POLL_S: Final = 0.2
CODE_NAMES: Final = {"ARG", "COPY", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN"} | {
    "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


@dataclass
class Stage:
    """A stage of the build: its root, and what the instructions so far have set."""

    root: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "HOME": "/root"})
    directory: str = "/"
    user: str = "0:0"
    volume: str = ""
    start: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    stop_signal: signal.Signals = signal.SIGTERM

    def inside(self, command: list[str], *, read_only: bool = False) -> list[str]:
        """The command that runs another one there, in a mount namespace of its own."""
        user, group = self.user.split(":")
        chroot = ["chroot", f"--userspec={user}:{group}", "--groups=", ".", *command]
        here = f'cd {shlex.quote(self.directory)} && exec "$@"'
        chroot[4:] = ["/bin/sh", "-c", here, "sh", *command]
        mounts = ["mount --bind . .", 'cd "$PWD"', "mount -t proc proc proc", "mount --rbind /dev dev"]
        if read_only:
            mounts += [f"mount --bind .{self.volume} .{self.volume}", "mount -o remount,ro,bind ."]
        return ["unshare", "--mount", "sh", "-ec", f'{" && ".join(mounts)} && exec "$@"', "sh", *chroot]

    def run(self, command: list[str]) -> None:
        """Run a command there, with the variables that are set so far."""
        subprocess.run(self.inside(command), cwd=self.root, env=self.variables, check=True)


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Containerfile: name and rest, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    unknown = {name for name, _, _ in found} - CODE_NAMES
    assert not unknown, f"this script does not know {unknown}"
    return [(name, rest.strip()) for name, _, rest in found]


def make_base(directory: Path) -> Path:
    """Debian with Python, as `python`; made once."""
    base = directory / "base"
    if not base.exists():
        making = directory / "base.new"
        shutil.rmtree(making, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(making)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (making / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        making.rename(base)
    return base


def build(directory: Path, base: Path) -> Stage:
    """Carry out the Containerfile; the last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage(directory)
    for name, rest in instructions((ROOT / "Containerfile").read_text()):
        print(f"{name} {rest}"[:110], flush=True)
        words = [expanded(word, stage.variables) for word in shlex.split(rest)]
        match name:
            case "FROM":
                root = directory / f"stage-{len(stages)}"
                shutil.rmtree(root, ignore_errors=True)
                subprocess.run(["cp", "--archive", base, root], check=True)
                for file in OF_THIS_MACHINE:
                    shutil.copy(file, root / file[1:])
                stage = stages[words[2] if len(words) > 2 else ""] = Stage(root)
            case "RUN":
                stage.run(["/bin/sh", "-c", rest])
            case "COPY":
                copy(stage, words, stages)
            case "ARG":
                key, _, value = rest.partition("=")
                stage.variables[key] = value
            case "ENV":
                stage.variables |= dict(word.split("=", 1) for word in words)
            case "WORKDIR":
                stage.directory = words[0]
                (stage.root / words[0][1:]).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = words[0]
            case "VOLUME":
                stage.volume = words[0]
            case "STOPSIGNAL":
                stage.stop_signal = signal.Signals[words[0]]
            case "ENTRYPOINT" | "CMD":
                stage.start += json.loads(rest)
            case "HEALTHCHECK":
                stage.health = json.loads(rest.partition("CMD ")[2])
    return stage


def expanded(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], ""), word)


def copy(stage: Stage, words: list[str], stages: dict[str, Stage]) -> None:
    """From the project, without what .dockerignore leaves out, or from another stage."""
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *names, target = words
    place = stage.root / os.path.join(stage.directory, target)[1:]
    for name in names:
        one = source / name.lstrip("/")
        if one.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_core.*.so") if source == ROOT else None
            shutil.copytree(one, place, symlinks=True, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(one, place)


def check(stage: Stage) -> None:
    """Run the image's command as its user until it is healthy, and stop it."""
    assert not stage.user.startswith("0"), "the image runs as root"
    for program in ("gcc", "cc"):
        assert not list(stage.root.glob(f"usr/bin/{program}")), f"{program} is in the image"
    stage.run(["merklekv", "version"])
    node = subprocess.Popen(stage.inside(stage.start, read_only=True), cwd=stage.root, env=stage.variables)
    try:
        deadline = time.monotonic() + HEALTHY_S
        health = stage.inside(stage.health, read_only=True)
        while subprocess.run(health, cwd=stage.root, env=stage.variables, check=False).returncode:
            assert node.poll() is None, f"the node ended with status {node.returncode}"
            assert time.monotonic() < deadline, "the node is not healthy"
            time.sleep(POLL_S)
        status = Path(f"/proc/{node.pid}/status").read_text()
        ids = re.findall(r"^[UG]id:\t(\d+)", status, re.MULTILINE)
        assert ids == stage.user.split(":"), f"it runs as {ids}"
        node.send_signal(stage.stop_signal)
        assert node.wait(STOP_S) == 0, f"the node ended with status {node.returncode}"
    finally:
        node.kill()
        node.wait()
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (stage.root / stage.volume[1:]).rglob("*")}
    assert owners == {(7379, 7379)}, f"files in the volume belong to {owners}"
    print("The image's command runs as its user, is healthy, and stops when told to.")


def main() -> None:
    """Build and check; the status is 0 if all of it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for the stages; a temporary one if not given")
    given = parser.parse_args().directory
    if os.geteuid() != 0:
        sys.exit("check_container: it needs root, for chroot and mount")
    subprocess.run([ROOT / "scripts/need", "debootstrap=debootstrap", "unshare=util-linux"], check=True)
    with tempfile.TemporaryDirectory(prefix="merklekv-container-") as scratch:
        directory = given or Path(scratch)
        directory.mkdir(exist_ok=True)
        check(build(directory, make_base(directory)))


if __name__ == "__main__":
    main()
