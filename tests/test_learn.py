"""The guide in docs/learn is true: every command in it runs as written, and says what the page shows.

A page is one bash session, its exercises too.  Its blocks are of two kinds: `console`, with commands behind `$ ` (`> `
goes on) and what they print below, where `...` stands for anything, alone on a line also for any number of lines; and a
file, whose name is in a comment before the block.  They may be indented, below an item of a list.  A comment that
begins with `check` is a console block that readers do not see: whether an exercise led to what it should, where saying
so would answer it.  Ports are free ones instead of the lab's.

Commands in running text stand in a block somewhere as well, or in NOT_RUN.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures.support import free_port

from merklekv.harness.process import is_setting

ROOT = Path(__file__).parent.parent
LEARN = ROOT / "docs" / "learn"
PAGES = sorted(LEARN.glob("*.md"))
CHECK = re.compile(r"^( *)<!-- check\n(.*?)^ *-->$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"(?:<!-- file: (\S+) -->\n)?^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
PROGRAMS = ("merklekv", "merklekv-tool", "python", "pytest", "strace", "make", "start", "stop", "crash", "figure")
NOT_RUN = (
    "merklekv run --data-dir ... --port 7401",  # what `start` is
    "merklekv demo",  # with keys pressed; it is run by itself
    'make test ARGS="-k test_scripts"',  # this is run by it
    'make bench ARGS="--quick --part replication"',  # minutes
    "python run_tests.py --mode replication --verbose",  # minutes, and has tests of its own
    "python -m pytest test_replication_broker_outage.py -v -s",  # a minute, and is run with the other tests
)
PAGE_S = 280
PICTURE_BYTES_MAX = 200_000
MARK = "=== command"


class Command(NamedTuple):
    text: str
    expected: str


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """File name or nothing, language and text of each block."""
    whole = CHECK.sub(r"\1```console\n\2\1```", page.read_text())
    return [(name, kind, textwrap.dedent(text)) for name, kind, text in FENCE.findall(whole)]


def commands(text: str) -> list[Command]:
    """The commands of a console block, with what each is expected to print."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        length = next((at for at, line in enumerate(lines[1:], 1) if not line.startswith(">")), len(lines))
        words = [lines[0], *(line.removeprefix(">").removeprefix(" ") for line in lines[1:length])]
        found.append(Command("\n".join(words), "\n".join(lines[length:]).strip()))
    return found


def pattern(expected: str) -> re.Pattern[str]:
    """What matches the expected output, with `...` for anything."""
    lines = ["(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
             for line in expected.splitlines()]  # fmt: skip
    return re.compile("".join(lines))


def steps(page: Path) -> list[Command]:
    """A page as one session: files are written by commands too."""
    found = []
    for name, kind, text in blocks(page):
        if name:
            found.append(Command(f"cat > {name} << 'END OF FILE'\n{text}END OF FILE", ""))
        else:
            assert kind == "console", f"{page.name}: a block that no test runs: {text}"
            found += commands(text)
    return found


def environment(directory: Path) -> dict[str, str]:
    """Where the commands are this project's, and ports are free."""
    programs = {"merklekv": "-m merklekv", "merklekv-tool": "-m merklekv_tool", "python": "", "pytest": "-m pytest"}
    for name, words in programs.items():
        (directory / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (directory / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not is_setting(name)}
    ports = {f"PORT_{name}": str(free_port()) for name in ("a", "b", "c", "broker")}
    return clean | ports | {"PATH": f"{directory}:{clean['PATH']}", "COLUMNS": "120", "TMPDIR": str(directory)}


def run(script: str, environment: dict[str, str]) -> str:
    """What a bash says to the script; it and all that it started has ended afterwards."""
    bash = subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        return bash.communicate(timeout=PAGE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(bash.pid, signal.SIGKILL)
        raise AssertionError(f"not done after {PAGE_S} s; so far:\n{bash.communicate()[0]}") from None


@pytest.mark.replication
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    session = steps(page)
    script = "".join(f"status=$?; printf '\\n{MARK}\\n'; (exit $status)\n{step.text}\n" for step in session)
    output = run(script, environment(tmp_path))
    said = output.split(f"\n{MARK}\n")[1:]
    assert len(said) == len(session), output
    wrong = [
        f"$ {step.text}\n--- the page says\n{step.expected}\n--- it is\n{got.strip()}"
        for step, got in zip(session, said, strict=True)
        if not pattern(step.expected).fullmatch(f"{got.strip()}\n" if got.strip() else "")
    ]
    assert not wrong, "\n\n".join(wrong)


def test_commands_in_running_text_are_run_too() -> None:
    in_blocks = "\n".join(step.text for page in PAGES for step in steps(page))
    running_text = "".join(FENCE.sub("", page.read_text()) for page in PAGES)
    spans = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", running_text)}
    named = {span for span in spans if " " in span and span.split()[0] in PROGRAMS}
    pieces = {span: span.removeprefix("python scripts/learn/") for span in named - set(NOT_RUN)}
    assert {span for span, piece in pieces.items() if not is_run(piece, in_blocks)} == set()


def is_run(command: str, in_blocks: str) -> bool:
    """Whether its words stand in this order in one of the commands."""
    pattern_of = ".*".join(re.escape(word) for word in command.split())
    return re.search(pattern_of, in_blocks) is not None


def test_every_page_and_picture_is_reached_from_the_guide() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [file.name for file in LEARN.iterdir() if file.name != "README.md" and f"({file.name}" not in text] == []


def test_pictures_are_small() -> None:
    assert [picture.name for picture in LEARN.glob("*.svg") if picture.stat().st_size > PICTURE_BYTES_MAX] == []
