"""One program: what `merklekv` has beside the server's commands is what `merklekv-tool` has."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import merklekv_tool.cli
import pytest
from fixtures.node import clean_environment
from fixtures.terminal import Terminal
from fixtures.tools import TOOL, results, several
from merklekv_tool.exit_codes import EXIT_UNREACHABLE

from merklekv import __main__, __version__, cli, core, program
from merklekv.exit_codes import EXIT_USAGE

MAIN = [sys.executable, "-m", "merklekv"]
VERBS = [command.name for command in merklekv_tool.cli.app.registered_commands if command.name]
BIN = Path(sys.executable).parent
CLEAR = b"\x15"  # Ctrl-U: empties the line


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment() | {"COLUMNS": "100"} | environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_server_has_the_commands_that_start_alone() -> None:
    assert [command.name for command in cli.app.registered_commands] == [*__main__.SERVER]


def test_every_command_is_in_a_group_of_the_help() -> None:
    groups = dict.fromkeys(command.rich_help_panel for command in program.app.registered_commands)
    assert [*groups] == ["Server", "Data", "Cluster", "Look"]
    text = run([*MAIN, "--help"]).stdout
    assert all(f" {group} " in text for group in groups)
    assert all(re.search(rf"\b{name}\b", text) for name in (*__main__.SERVER, *VERBS))


def test_a_verb_has_the_same_help_in_both() -> None:
    asked = [[*start, verb, "--help"] for verb in VERBS for start in (MAIN, TOOL)]
    done = subprocess.run(
        several(asked, marked=(1,)), capture_output=True, timeout=240, env=clean_environment(), check=True
    )
    shown = [result.shown.decode() for result in results(done.stdout)]
    for main, tool in zip(shown[::2], shown[1::2], strict=True):
        without_usage = [re.sub(r" Usage: .*\n(?: +\S.*\n)*", "", text) for text in (main, tool)]
        assert without_usage[0] == without_usage[1]


def test_an_error_begins_with_the_program_that_was_called() -> None:
    for start, name in ((MAIN, "merklekv"), (TOOL, "merklekv-tool")):
        done = run([*start, "stats", "127.0.0.1:1"])
        assert done.returncode == EXIT_UNREACHABLE
        assert done.stderr.startswith(f"{name}: 127.0.0.1:1: cannot connect")
        done = run([*start, "verify"])
        assert done.returncode == EXIT_USAGE
        assert done.stderr.endswith(f"; '{name} verify --help' shows what there is\n")


def test_short_options() -> None:
    for start, name in ((MAIN, "merklekv"), (TOOL, "merklekv-tool")):
        for option in ("-V", "--version"):
            assert run([*start, option]).stdout == f"{name} {__version__} ({core.DESCRIPTION})\n"
        assert run([*start, "-h"]).stdout == run([*start, "--help"]).stdout
        assert run([*start, "verify", "-h"]).stdout == run([*start, "verify", "--help"]).stdout
    assert run([*MAIN, "run", "-h"]).stdout == run([*MAIN, "run", "--help"]).stdout
    shown = run([*MAIN, "config", "-p", "7380", "-d", "here"]).stdout
    assert re.search(r"^port +7380 +flag --port$", shown, re.MULTILINE)
    assert re.search(r"^storage_path +here +flag --data-dir$", shown, re.MULTILINE)


IMPORTED = """
import sys
from merklekv.__main__ import main
try:
    main()
except SystemExit:
    pass
print([name for name in sys.modules if name.startswith("merklekv_tool")])
"""


@pytest.mark.parametrize("arguments", [["run", "--set", "nosuch=1"], ["run", "--help"], ["version"]])
def test_a_command_of_the_server_imports_no_verb(arguments: list[str]) -> None:
    assert run([sys.executable, "-c", IMPORTED, *arguments]).stdout.endswith("[]\n")


COMPLETED = {
    "ver": {"verify", "version"},
    "run --por": {"--port"},
    "run --durability e": {"everysec"},
    "run --log-format ": {"text", "json"},
    "dump --format c": {"cbor"},
    "log --op s": {"set", "setrange", "setbit"},
    "bench --load m": {"mixed"},
    "verify ": set(),  # the shell then completes files and directories
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("typed", COMPLETED)
def test_what_a_shell_is_told(typed: str, shell: str) -> None:
    words = f"merklekv {typed}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_TYPER_COMPLETE_ARGS": words}
    done = run(MAIN, _MERKLEKV_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_FISH_ACTION="get-args", **asked)
    if shell == "zsh":
        told = set(re.findall(r'(?m)^(?:_arguments .*\(\()?"([^"]+)"', done.stdout))
    else:
        told = {line.partition("\t")[0] for line in done.stdout.split("\n") if line}
    assert told == COMPLETED[typed]


def test_completion_in_a_shell(tmp_path: Path) -> None:
    """Installed as docs/operations.md says; keys pressed in a bash."""
    environment = {"HOME": str(tmp_path), "PATH": f"{BIN}:{os.environ['PATH']}"}
    for name in ("merklekv", "merklekv-tool"):
        command = f"{shlex.quote(str(BIN / name))} --install-completion && echo done"
        subprocess.run(
            ["bash", "-c", command], capture_output=True, timeout=120, env=os.environ | environment, check=True
        )
    (tmp_path / "directory").mkdir()
    with Terminal(["bash", "--noprofile"], {**environment, "PS1": "$ "}, columns=120) as terminal:
        for typed, completed in (
            ("merklekv compa", "merklekv compact "),
            ("merklekv-tool resta", "merklekv-tool restamp "),
            ("merklekv run --durability nev", "--durability never "),
            (f"merklekv verify {tmp_path}/direc", "/directory/"),
        ):
            terminal.press(typed.encode() + b"\t")
            terminal.wait_for(completed)
            terminal.press(CLEAR)
        terminal.press(b"exit\n")
        terminal.end()
