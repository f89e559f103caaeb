"""The programs in docs/recipes.md and docs/mqtt-changes.md run as they stand, against real nodes and a real broker.

A program is a block with its file name in a comment before it. Addresses are those of the test.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.cluster import NodeHandle, Outsider, ReplicationTestHarness, make_event
from fixtures.node import NodeProcess
from fixtures.support import WAIT_S, free_port, wait_until

DOCS = Path(__file__).parent.parent / "docs"
PROGRAM = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def programs(page: str) -> dict[str, str]:
    return dict(PROGRAM.findall((DOCS / page).read_text()))


class Program:
    """A program of a page, running, with `said` on its stdin; what it prints is in a file."""

    def __init__(self, directory: Path, text: str, *arguments: str, said: str = "") -> None:
        self.directory = directory
        (directory / "program.py").write_text(text)
        self._output = directory / "output"
        (directory / "input").write_text(said)
        with self._output.open("a") as output, (directory / "input").open() as stdin:
            command = [sys.executable, str(directory / "program.py"), *arguments]
            self.process = subprocess.Popen(
                command, cwd=directory, stdin=stdin, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def wait_for(self, words: str, times: int = 1) -> None:
        wait_until(lambda: self.said.count(words) >= times, what=f"{words!r} of {self._output}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Run a program: `start(text, argument, ...)`, each time in the same directory."""
    directory = tmp_path / "program"
    directory.mkdir()
    running: list[Program] = []

    def run(text: str, *arguments: str, said: str = "") -> Program:
        running.append(Program(directory, text, *arguments, said=said))
        return running[-1]

    yield run
    for program in running:
        program.kill()


class Copy:
    """What the program of docs/mqtt-changes.md has stored."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def data(self) -> dict[str, bytes]:
        with sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=60) as db:
            found = db.execute("SELECT key, value FROM data WHERE value IS NOT NULL").fetchall()
        db.close()
        return {key.decode(): value for key, value in found}

    def wait_for(self, **expected: bytes | None) -> None:
        """Until each key has this value, None: it is not there."""
        wait_until(lambda: expected == {key: self.data().get(key) for key in expected}, what=f"{expected}")


@pytest.mark.replication
def test_changes_over_mqtt(harness: ReplicationTestHarness, outsider: Outsider, start: Callable[..., Program]) -> None:
    """At least once: what comes twice, late, or while the program is dead, and what does not come."""
    node = harness.create_node()
    for request in ("SET before 1", "SET gone 1", "DEL gone"):
        node.ask(request)
    broker = f"{harness.broker.host}:{harness.broker.port}"
    text = programs("mqtt-changes.md")["follow.py"]
    arguments = (broker, harness.prefix, f"127.0.0.1:{node.process.port}", "copy.sqlite")
    program = start(text, *arguments)
    program.wait_for("following")
    copy = Copy(program.directory / "copy.sqlite")
    copy.wait_for(before=b"1", gone=None)
    node.set_many({"a": "1", "b": "2"})
    for request in ("INC before 4", "DEL a"):
        node.ask(request)
    copy.wait_for(before=b"5", a=None, b=b"2")

    program.kill()
    node.set("away", "1")
    now = time.time_ns()
    newer, older = make_event("c", b"newer", ts=now), make_event("c", b"older", ts=now - 1)
    outsider.publish(newer | {"seq": 5}, newer | {"seq": 5}, older | {"seq": 6})
    outsider.publish_raw(b"junk")
    outsider.publish(make_event("d", 5, seq=7))  # type: ignore[arg-type]
    outsider.publish(make_event("e", b"1", seq=7))
    program = start(text, *arguments)
    program.wait_for("no event", times=2)
    copy.wait_for(away=b"1", c=b"newer", d=None, e=b"1")
    outsider.publish(make_event("g", b"1", seq=8, ts=now + 1200 * 10**9))
    program.wait_for("no event", times=3)
    assert "gap" not in program.said

    outsider.publish(make_event("f", b"1", seq=9))
    program.wait_for("gap: outsider is at 9, not at 8")
    copy.wait_for(f=b"1")
    node.ask("TRUNCATE")
    node.set("after", "1")
    copy.wait_for(before=None, after=b"1")
    wait_until(lambda: copy.data().keys() == {"after"}, what="the truncation")
    program.kill()
    harness.broker.forget("follow-1")


def fetch(port: int, path: str, browser: urllib.request.OpenerDirector) -> str:
    """The page, once the server is there."""

    def answer() -> str:
        try:
            with browser.open(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S) as page:
                text: str = page.read().decode()
                return text
        except urllib.error.URLError:
            return ""

    return wait_until(answer, what=path)


@pytest.mark.replication
def test_sessions_are_known_at_every_server(harness: ReplicationTestHarness, start: Callable[..., Program]) -> None:
    text = programs("recipes.md")["sessions.py"]
    ports = [free_port(), free_port()]
    for node, port in zip(harness.create_nodes(2), ports, strict=True):
        start(text, address(node), str(port))
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    assert fetch(ports[0], "/login/Ann", browser) == "welcome\n"
    wait_until(lambda: fetch(ports[1], "/", browser) == "you are Ann\n", what="the session at the other server")


def test_a_cache(node: NodeProcess, start: Callable[..., Program]) -> None:
    program = start(programs("recipes.md")["cache.py"], f"127.0.0.1:{node.port}", "apple", "pear", "apple")
    assert program.process.wait(WAIT_S) == 0, program.said
    assert program.said == "looking up apple\napple 5\nlooking up pear\npear 4\napple 5\n"


@pytest.mark.replication
def test_configuration_at_the_edge(harness: ReplicationTestHarness, start: Callable[..., Program]) -> None:
    centre, edge = harness.create_nodes(2)
    program = start(programs("recipes.md")["edge.py"], address(edge), "site-7")
    program.wait_for("{'interval': '10', 'unit': 'celsius'}")
    centre.set("config:all:interval", "60")
    program.wait_for("{'interval': '60', 'unit': 'celsius'}")
    centre.set("config:site-7:interval", "5")
    program.wait_for("{'interval': '5', 'unit': 'celsius'}")


def test_feature_flags_outlive_their_node(node: NodeProcess, start: Callable[..., Program]) -> None:
    program = start(programs("recipes.md")["flags.py"], f"127.0.0.1:{node.port}")
    program.wait_for("new checkout is off")
    for request, state, times in (("SET flag:new-checkout on", "on", 1), ("TRUNCATE", "off", 2)):
        with node.connect() as client:
            assert client.ask(request) == "OK"
        program.wait_for(f"new checkout is {state}", times)
        node.kill()
        node.start()


@pytest.mark.replication
def test_sensors_that_reach_one_node_and_each_other_not(
    harness: ReplicationTestHarness, start: Callable[..., Program]
) -> None:
    """What the page says of exchanges: the sensors begin them, and tombstones are collected on all nodes."""
    healing = ("--set", "anti_entropy.enabled=true", "--set", "anti_entropy.interval_seconds=1")
    centre = harness.create_node("centre", *healing)
    peers = ("--set", f"anti_entropy.peer_list={address(centre)}")
    names = ("sensor-1", "sensor-2")
    sensors = [
        harness.create_node(name, *healing, *peers, advertise_address=f"127.0.0.1:{free_port()}") for name in names
    ]
    program = start(programs("recipes.md")["sensor.py"], address(sensors[0]), "sensor-1", said="20.5\n21\n")
    assert program.process.wait(WAIT_S) == 0, program.said
    for node in (centre, sensors[1]):
        node.wait_for("latest:sensor-1", "21.0")
        assert node.key_count() == 3
    assert sensors[0].ask("DEL latest:sensor-1") == "DELETED"
    sensors[1].wait_for("latest:sensor-1", None)
    for node in harness.nodes:
        wait_until(lambda node=node: node.figure("db_tombstones") == 0, what="tombstones that are collected")


def address(node: NodeHandle) -> str:
    return f"127.0.0.1:{node.process.port}"
