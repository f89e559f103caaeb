"""Every command of `merklekv` on a real terminal, whatever that is, and on a pipe.

The cases come from the command tables: a verb without one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import free_port, wait_until
from fixtures.terminal import COLOUR, CTRL_C, Terminal, plain, surroundings
from fixtures.tools import ANY, TOOL, FakeNode, Result, address, opened, results, several
from merklekv_tool.cli import app as tool_app
from merklekv_tool.exit_codes import EXIT_INTERRUPTED, EXIT_NODE, EXIT_PIPE, EXIT_PROBLEMS

from merklekv import __version__, cli, core
from merklekv.engine.engine import Engine
from merklekv.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_UNWRITABLE
from merklekv.net.protocol.resp import bulk
from merklekv.program import app

VERBS = [command.name for command in tool_app.registered_commands if command.name]
COMMANDS = [command.name for command in cli.app.registered_commands if command.name]
MAIN = [sys.executable, "-m", "merklekv"]
TIMEOUT_S = 240  # of all verbs in a row
EVIL = b"esc\x1b[31m\x07\nforged"  # what a terminal obeys, and a line that is none
ODD = "käse 🧀".encode()
ASCII = {"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class Surroundings(NamedTuple):
    """Where a command runs."""

    environment: dict[str, str | None]
    columns: int = 120
    rows: int = 50
    encoding: str = "utf-8"
    coloured: bool = True

    def terminal(self, command: list[str]) -> Terminal:
        return Terminal(command, self.environment, self.columns, self.rows)

    def encoding_of(self, verb: str) -> str:
        return "utf-8" if verb == "dump" else self.encoding  # a dump is a file, of the same bytes everywhere

    def check(self, terminal: Terminal) -> None:
        """Nothing was sent that this terminal does not know, or is not to show."""
        if not self.coloured:
            assert not COLOUR.search(terminal.shown)
        if self.environment.get("TERM") == "dumb":
            assert b"\x1b" not in terminal.shown


WHERE = {
    "xterm": Surroundings({"TERM": "xterm-256color", "NO_COLOR": None}, columns=80, rows=24),
    "dumb": Surroundings({"TERM": "dumb"}, coloured=False),
    "no-colour": Surroundings({"NO_COLOR": "1"}, coloured=False),
    "small": Surroundings({}, columns=40, rows=8),
    "no-term": Surroundings({"TERM": None, "LANG": None, "LC_ALL": None}),
    "c-locale": Surroundings({"LC_ALL": "C", "LANG": None}),
    "ascii": Surroundings(ASCII, encoding="ascii"),
}


def somewhere(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("where", [WHERE[name] for name in names], ids=names)


class Stage:
    """Two directories that differ, a running node, and what was made of them before."""

    def __init__(self, place: Path, node: NodeProcess) -> None:
        self.node = node
        self.place = place
        self.a, self.b = place / "a", place / "b"
        for path in (self.a, self.b):
            with opened(path) as engine:
                engine.join()  # a lone node keeps no tombstone
                for key in (ODD, EVIL, b"plain"):
                    engine.set(key, bytes(path.name, "ascii"))
                engine.set(b"gone", b"x")
                engine.delete(b"gone")
                engine.set(b"only " + path.name.encode(), b"x")
                engine.commit()
        subprocess.run([*TOOL, "dump", self.a, "--output", place / "dump"], check=True, capture_output=True)
        subprocess.run([*TOOL, "backup", self.a, place / "backup"], check=True, capture_output=True)
        self.future = place / "future"
        engine = Engine(self.future, checkpoint="manual", wall_clock=lambda: 2 * time.time_ns())
        engine.set(EVIL, b"value")
        engine.close()
        self.damaged = place / "damaged"
        with opened(self.damaged) as engine:
            engine.set(EVIL, b"value")
            engine.checkpoint_now()
        with lmdb.open(str(self.damaged / "base"), max_dbs=4) as base, base.begin(write=True) as transaction:
            records = base.open_db(b"records", transaction)
            record = transaction.get(EVIL, db=records)
            assert record is not None
            transaction.put(EVIL, record[:-1] + b"\x00", db=records)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    place = tmp_path_factory.mktemp("stage")
    node = NodeProcess(place / "node", place / "node.log", "--node-id", "node-1").start()
    with node.connect() as client:
        client.ask(f"SET {ODD.decode()} value")
    yield Stage(place, node)
    node.end()


class Case(NamedTuple):
    """A command line, its exit status, and what it shows; `stdout`, which is also what goes into a pipe."""

    arguments: list[str | Path]
    stdout: list[str]
    stderr: list[str] = []  # noqa: RUF012 - never changed
    status: int = EXIT_OK


def verify(stage: Stage, scratch: Path) -> Case:
    return Case(["verify", stage.damaged], ["digest", "1 problem found"], status=EXIT_PROBLEMS)


def dump(stage: Stage, scratch: Path) -> Case:
    shown = ['{"key":"käse 🧀"', r"esc\u001b[31m\u0007\nforged", '"tombstone":true', '{"end":true']
    return Case(["dump", stage.a], shown, ["5 records, 1 of them deleted, "])


def load(stage: Stage, scratch: Path) -> Case:
    return Case(["load", stage.place / "dump", scratch / "loaded"], ["5 records read: 5 taken in, 0 not newer"])


def backup(stage: Stage, scratch: Path) -> Case:
    return Case(["backup", stage.a, scratch / "backup"], ["backup: 4 keys and 1 deleted one, "])


def restore(stage: Stage, scratch: Path) -> Case:
    return Case(["restore", stage.place / "backup", scratch / "data"], ["data: 4 keys and 1 deleted one, as "])


def log(stage: Stage, scratch: Path) -> Case:
    return Case(["log", stage.a, "--values"], ["origin", "set", "del", "käse 🧀", r"esc\x1b[31m\x07\nforged", "only a"])


def watch(stage: Stage, scratch: Path) -> Case:
    arguments: list[str | Path] = ["watch", address(stage.node), "--from", "", "--once", "--values"]
    return Case(arguments, ["origin", "set", "node-1", "käse", "🧀 value"])


def tree(stage: Stage, scratch: Path) -> Case:
    shown = [
        "A is ",
        " of 256 inner nodes differ: ",
        "only A",
        "käse 🧀",
        r"esc\x1b[31m\x07\nforged",
        "compared: 1 root",
    ]
    return Case(["tree", stage.a, stage.b], shown, status=EXIT_PROBLEMS)


def stats(stage: Stage, scratch: Path) -> Case:
    return Case(["stats", address(stage.node), "db_keys", "durability"], ["db_keys", "1", "durability", "always"])


def health(stage: Stage, scratch: Path) -> Case:
    return Case(["health", address(stage.node)], ["ready"])


def bench(stage: Stage, scratch: Path) -> Case:
    arguments: list[str | Path] = ["bench", address(stage.node), "--seconds", "0.1", "--clients", "2", "--keys", "10"]
    return Case(arguments, ["mixed, 2 clients", "requests a second", "latency p50"])


def diff(stage: Stage, scratch: Path) -> Case:
    shown = ["A is ", "only A", "only B", "newer B", "käse 🧀", r"esc\x1b[31m\x07\nforged", "6 keys differ"]
    return Case(["diff", stage.a, stage.b], shown, status=EXIT_PROBLEMS)


def members(stage: Stage, scratch: Path) -> Case:
    return Case(["members", address(stage.node)], ["node-1", "store id", "self", "no other member"])


def sync(stage: Stage, scratch: Path) -> Case:
    words = [f"with 127.0.0.1:{stage.node.port}: "]
    return Case(["sync", address(stage.node), address(stage.node)], ["0 nodes, 1 failed"], words, EXIT_NODE)


def forget(stage: Stage, scratch: Path) -> Case:
    shown = ["node-9: no such member"]
    return Case(["forget", "node-9", "--at", address(stage.node)], [], shown, EXIT_NODE)


def restamp(stage: Stage, scratch: Path) -> Case:
    return Case(["restamp", stage.future, "--dry-run"], ["it is 20", "1 record, up to 20", r"esc\x1b[31m\x07\nforged"])


def compact(stage: Stage, scratch: Path) -> Case:
    shutil.copytree(stage.future, scratch / "to-compact")
    return Case(["compact", scratch / "to-compact"], ["to-compact: takes ", " bytes on disk, before "])


CASES: dict[str, Callable[[Stage, Path], Case]] = {
    case.__name__: case
    for case in (
        *(verify, dump, load, backup, restore, log, watch, tree, stats, bench, diff),
        *(members, forget, restamp, compact, sync, health),
    )
}


def in_encoding(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)


def shows(text: str, words: list[str], encoding: str) -> None:
    for word in words:
        assert in_encoding(word, encoding) in text, text
    assert "Traceback" not in text
    assert "\x1b" not in text
    assert "\nforged" not in text


def test_every_verb_has_a_case() -> None:
    assert set(CASES) == set(VERBS)


def cases(stage: Stage, scratch: Path) -> list[Case]:
    """The case of every verb, each with a directory of its own."""
    for verb in VERBS:
        (scratch / verb).mkdir()
    return [CASES[verb](stage, scratch / verb) for verb in VERBS]


def commands_of(made: list[Case]) -> list[list[str | Path]]:
    return [[*TOOL, *case.arguments] for case in made]


@somewhere(*WHERE)
def test_every_verb_on_a_terminal(where: Surroundings, stage: Stage, tmp_path: Path) -> None:
    made = cases(stage, tmp_path)
    with where.terminal(several(commands_of(made))) as terminal:
        assert terminal.end() == EXIT_OK, terminal.text()
    for verb, case, result in zip(VERBS, made, results(terminal.shown), strict=True):
        encoding = where.encoding_of(verb)
        text = plain(result.shown, encoding)
        assert result.status == case.status, (verb, text)
        shows(text, case.stdout + case.stderr, encoding)
    where.check(terminal)


@somewhere("xterm", "c-locale", "ascii")
def test_every_verb_in_a_pipe(where: Surroundings, stage: Stage, tmp_path: Path) -> None:
    """Into a pipe goes the result alone, also from a terminal, where stderr shows what goes on."""
    made = cases(stage, tmp_path)
    command = several(commands_of(made), marked=(1, 2))
    done = subprocess.run(
        command, capture_output=True, timeout=TIMEOUT_S, env=surroundings(where.environment), check=False
    )
    for verb, case, stdout, stderr in zip(VERBS, made, results(done.stdout), results(done.stderr), strict=True):
        assert stderr.status == case.status, (verb, stderr.shown)
        encoding = where.encoding_of(verb)
        shows(stdout.shown.decode(encoding), case.stdout, encoding)
        shows(stderr.shown.decode(where.encoding), case.stderr, where.encoding)
    assert b"\x1b" not in done.stdout + done.stderr


def test_every_verb_of_which_stdout_alone_is_no_terminal(stage: Stage, tmp_path: Path) -> None:
    made = cases(stage, tmp_path)
    words = ["sh", "-c", 'output=$1; shift; exec "$@" > "$output"', "sh", str(tmp_path / "stdout")]
    with Terminal([*words, *several(commands_of(made), marked=(1, 2))]) as terminal:
        assert terminal.end() == EXIT_OK, terminal.text()
    written = results((tmp_path / "stdout").read_bytes())
    for verb, case, stdout, stderr in zip(VERBS, made, written, results(terminal.shown), strict=True):
        assert stderr.status == case.status, (verb, stderr.shown)
        shows(stdout.shown.decode(), case.stdout, "utf-8")
        shows(plain(stderr.shown), case.stderr, "utf-8")


HELPS = [TOOL, MAIN, *([*MAIN, command.name] for command in app.registered_commands if command.name)]


@somewhere("xterm", "dumb", "small", "ascii")
def test_every_help_on_a_terminal(where: Surroundings) -> None:
    with where.terminal(several([[*command, "--help"] for command in HELPS])) as terminal:
        assert terminal.end() == EXIT_OK, terminal.text()
    for command, result in zip(HELPS, results(terminal.shown), strict=True):
        assert result.status == EXIT_OK, (command, result.shown)
        name = " ".join(command[2:]).replace("_", "-")
        text = " ".join(plain(result.shown, where.encoding).split())
        shows(text, [f"Usage: {name} ", "--help"], where.encoding)
    where.check(terminal)


def run_command(where: Surroundings, scratch: Path) -> None:
    name = scratch / (os.fsdecode(ODD) if where.encoding == "utf-8" else "data")
    command = [*MAIN, "run", "--port", "0", "--data-dir", str(name)]
    with where.terminal(command) as terminal:
        terminal.wait_for(f"data in {name}, durability always, 0 keys")
        terminal.press(CTRL_C)
        assert terminal.end() == EXIT_OK, terminal.text()
    shows(terminal.text(where.encoding), ["stopping: SIGINT", "stopped"], where.encoding)
    where.check(terminal)


def config_command(where: Surroundings, scratch: Path) -> None:
    name = "käse" if where.encoding == "utf-8" else r"k\udcc3\udca4se"  # as it is to Python
    with where.terminal([*MAIN, "config", "--data-dir", "käse"]) as terminal:
        assert terminal.end() == EXIT_OK, terminal.text()
    shown = [name, "flag --data-dir", "replication.enabled", "default"]
    shows(terminal.text(where.encoding), shown, where.encoding)
    where.check(terminal)


def version_command(where: Surroundings, scratch: Path) -> None:
    with where.terminal([*MAIN, "version"]) as terminal:
        assert terminal.end() == EXIT_OK, terminal.text()
    assert terminal.text(where.encoding) == f"merklekv {__version__} ({core.DESCRIPTION})\n"
    where.check(terminal)


def demo_command(where: Surroundings, scratch: Path) -> None:
    with Terminal([*MAIN, "demo"], {**where.environment, "TMPDIR": str(scratch)}, where.columns) as terminal:
        if where.environment.get("TERM") == "dumb":  # it has no cursor to move, so the script is run
            terminal.wait_for("broker is up")
            terminal.press(CTRL_C)
            assert terminal.end() == EXIT_FAILED
        else:
            terminal.wait_for("q quit")
            terminal.press(b"q")
            assert terminal.end() == EXIT_OK
    shows(terminal.text(where.encoding), ["broker"], where.encoding)
    where.check(terminal)


DONE = {"run": run_command, "config": config_command, "version": version_command, "demo": demo_command}


@somewhere(*WHERE)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_terminal(command: str, where: Surroundings, tmp_path: Path) -> None:
    DONE[command](where, tmp_path)


FORGED = "x\x1b[31m\nEND\u202e"  # a client id that a broker may accept
SHOWN = r"x\x1b[31m\nEND\u202e"


def foreign(node: FakeNode, verb: str) -> list[str]:
    """The verb against a node that passes the forged name on."""
    row = {"node": FORGED, "store_id": "00" * 8, "state": "member", "address": f"{FORGED}:1", "contact_ms": 1}
    row |= {"applied_through_ns": 0, "stable_ns": 0, "holds_back": FORGED, "refuses": FORGED, "clock_problem": FORGED}
    row |= {"gc_horizon_ns": 0}
    node.replies[b"MEMBERS"] = bulk(json.dumps(row).encode())
    node.replies[b"STATS"] = bulk(f"peer_{FORGED}:{FORGED}\r\n".encode())
    node.replies[b"FORGET"] = f"-ERR {FORGED.replace(chr(10), ' ')}\r\n".encode()
    return [verb, "n", "--at", node.address] if verb == "forget" else [verb, node.address]


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["words", "json"])
@pytest.mark.parametrize("verb", ["members", "stats", "forget"])
def test_what_a_terminal_would_obey_is_shown(verb: str, more: list[str]) -> None:
    with FakeNode() as node, Terminal([*TOOL, *foreign(node, verb), *more], columns=200) as terminal:
        terminal.end()
    text = terminal.shown.decode()
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "\nEND" not in text
    if verb == "forget":
        assert SHOWN.replace(r"\n", " ") in text
    else:
        assert (json.dumps(FORGED)[1:-1] if more else SHOWN) in text


def test_a_watch_shows_what_a_terminal_would_obey() -> None:
    with FakeNode() as node:
        command = [*TOOL, *foreign(node, "stats"), "--watch", "--count", "2", "--interval", "0.1"]
        with Terminal(command, columns=200) as terminal:
            assert terminal.end() == EXIT_OK
    assert SHOWN in terminal.text()
    assert "\x1b[31m\n" not in terminal.shown.decode()


def test_a_watch_on_a_terminal_that_cannot_move_its_cursor(stage: Stage) -> None:
    command = [*TOOL, "stats", address(stage.node), "db_keys", "--watch", "--count", "2", "--interval", "0.1"]
    with WHERE["dumb"].terminal(command) as terminal:
        assert terminal.end() == EXIT_OK
    assert terminal.text() == "db_keys  1\n\ndb_keys  1\n\n"


def waiting(verb: str, node: FakeNode, stage: Stage, scratch: Path) -> list[str]:
    """A verb that waits for the node."""
    if verb == "load":
        return [verb, str(stage.place / "dump"), node.address]
    if verb == "diff":
        return [verb, node.address, str(stage.a)]
    if verb == "forget":
        return [verb, "n", "--at", node.address]
    more = {"backup": [str(scratch / "made")], "watch": ["--once"], "sync": ["127.0.0.1:1"]}
    return [verb, node.address, *more.get(verb, [])]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("restore", "restamp", "compact")])
def test_ctrl_c_on_a_terminal(verb: str, stage: Stage, tmp_path: Path) -> None:
    """Says nothing, and leaves nothing."""
    with FakeNode() as node:
        node.waits_at = ANY
        with Terminal([*TOOL, *waiting(verb, node, stage, tmp_path)]) as terminal:
            wait_until(lambda: node.asked.total(), what="the verb to ask")
            terminal.press(CTRL_C)
            assert terminal.end() == EXIT_INTERRUPTED, terminal.text()
        node.go_on.set()
    assert "Traceback" not in terminal.text()
    assert "merklekv-tool: " not in terminal.text()
    assert list(tmp_path.iterdir()) == []


RESTORE = """
import threading
import merklekv_tool.formats.backup
merklekv_tool.formats.backup.unpack = lambda *_: (print("unpacking"), threading.Event().wait())
from merklekv_tool.__main__ import main
main()
"""


def test_ctrl_c_within_a_restore(stage: Stage, tmp_path: Path) -> None:
    words = ["restore", str(stage.place / "backup"), str(tmp_path / "data")]
    with Terminal([sys.executable, "-c", RESTORE, *words]) as terminal:
        terminal.wait_for("unpacking")
        terminal.press(CTRL_C)
        assert terminal.end() == EXIT_INTERRUPTED, terminal.text()
    assert "Traceback" not in terminal.text()
    assert list(tmp_path.iterdir()) == []


def interrupted(module: str, program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """The program, with Ctrl-C in the moment in which it begins to import the module."""
    at_import = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"from {program}.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", at_import, *words]
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, env=surroundings({}), check=False)


@pytest.mark.parametrize("module", ["typer", "merklekv_tool.cli", "rich.progress", "merklekv_tool.source.open"])
def test_ctrl_c_while_the_tool_starts(module: str, stage: Stage) -> None:
    """While it imports what it needs, which is most of its first 0.2 s."""
    done = interrupted(module, "merklekv_tool", "dump", str(stage.a))
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, b"", b"")


@pytest.mark.parametrize("module", ["typer", "merklekv.cli", "merklekv.node"])
def test_ctrl_c_while_a_node_starts(module: str, tmp_path: Path) -> None:
    done = interrupted(module, "merklekv", "run", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, b"", b"")
    assert list(tmp_path.iterdir()) == []


PRINTING = [[*words, "--help"] for words in HELPS]
PRINTING += [[*MAIN, "config"], [*MAIN, "config", "--json"], [*MAIN, "version"]]


def printed_to(stdout: int) -> list[Result]:
    """What each of PRINTING writes to stderr, and its status."""
    done = subprocess.run(
        several(PRINTING), stdout=stdout, stderr=subprocess.PIPE, timeout=TIMEOUT_S, env=surroundings({}), check=True
    )
    return results(done.stderr)


def test_what_is_printed_on_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        printed = printed_to(full.fileno())
    for command, result in zip(PRINTING, printed, strict=True):
        name = command[2].replace("_", "-")
        said = f"{name}: the output: cannot write: No space left on device\n"
        assert (result.shown.decode(), result.status) == (said, EXIT_UNWRITABLE), command


def test_what_is_printed_for_a_reader_who_has_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    printed = printed_to(writing)
    os.close(writing)
    for command, result in zip(PRINTING, printed, strict=True):
        assert result == (b"", EXIT_PIPE), command


def test_a_node_whose_stdout_is_full_serves(node_factory: NodeFactory) -> None:
    node = node_factory(start=False)
    node.port = free_port()
    node.wrapper = ["sh", "-c", 'exec "$@" > /dev/full', "sh"]
    node.launch()

    def answers() -> bool:
        with contextlib.suppress(ConnectionRefusedError), node.connect() as client:
            return client.ask("PING") == "PONG"
        return False

    wait_until(answers, what="the node to serve")
    assert node.stop() == EXIT_OK
