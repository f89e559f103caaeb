"""`merklekv stats`: every figure or some, once and live."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from fixtures.node import NodeProcess
from fixtures.support import wait_until
from fixtures.terminal import Terminal
from fixtures.tools import TOOL, FakeNode, address, fails, run, succeeds
from merklekv_tool import exit_codes
from merklekv_tool.verbs import stats

from merklekv.exit_codes import EXIT_USAGE
from merklekv.net.client import Client


def test_all_of_them(node: NodeProcess) -> None:
    lines = succeeds("stats", address(node)).decode().splitlines()
    shown = {name: value.strip() for name, _, value in (line.partition(" ") for line in lines)}
    with Client("127.0.0.1", node.port) as client:
        reply = client.call(b"STATS")
    assert isinstance(reply, bytes)
    assert list(shown) == [line.split(":")[0] for line in reply.decode().splitlines()]
    assert shown["durability"] == "always"


def test_some_of_them_as_json(node: NodeProcess) -> None:
    with node.connect() as client:
        client.ask("SET key value")
    told = json.loads(succeeds("stats", address(node), "db_*", "durability", "--json"))
    none = dict.fromkeys(("db_keys_with_expiry", "db_expired", "db_tombstones"), 0)
    assert told == {"durability": "always", "db_keys": 1} | none


def test_a_name_that_is_none(node: NodeProcess) -> None:
    done = run("stats", address(node), "db_keys", "nothing")
    fails(EXIT_USAGE, address(node), "has no metric that is called nothing", done=done)


def test_a_watch_of_so_many_looks(node: NodeProcess) -> None:
    place = address(node)
    lines = succeeds("stats", place, "db_keys", "--watch", "--count", "3", "--interval", "0.1", "--json").splitlines()
    assert [json.loads(line)["db_keys"] for line in lines] == [0, 0, 0]
    blocks = succeeds("stats", place, "total_commands", "--watch", "--count", "2", "--interval", "0.1").decode()
    first, second = blocks.strip().split("\n\n")
    assert "/s" not in first
    assert "/s" in second


def test_a_count_without_a_watch(node: NodeProcess) -> None:
    fails(EXIT_USAGE, "--count", "--watch", done=run("stats", address(node), "--count", "2"))


def test_too_short_an_interval(node: NodeProcess) -> None:
    below = str(stats.INTERVAL_MIN_S / 2)
    fails(EXIT_USAGE, "--interval", done=run("stats", address(node), "--watch", "--interval", below))
    succeeds("stats", address(node), "--watch", "--count", "1", "--interval", str(stats.INTERVAL_MIN_S))


def test_a_watch_ends_by_ctrl_c_with_nothing_wrong(node: NodeProcess, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with (
        output.open("wb") as file,
        subprocess.Popen(
            [*TOOL, "stats", address(node), "--watch", "--json"], stdout=file, stderr=subprocess.PIPE
        ) as process,
    ):
        wait_until(output.read_bytes, what="a look")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert stderr == b""


def test_a_watch_on_a_terminal_is_drawn_as_a_table(node: NodeProcess) -> None:
    command = [*TOOL, "stats", address(node), "db_keys", "--watch", "--count", "2", "--interval", "0.1"]
    with Terminal(command, {"TERM": "xterm"}) as terminal:
        assert terminal.end() == 0
    assert "q ends" in terminal.text()
    assert terminal.shown.count(b"db_keys") >= 2


def test_a_watch_fits_its_window(node: NodeProcess) -> None:
    for rows, columns in ((24, 80), (8, 40), (60, 200)):
        command = [*TOOL, "stats", address(node), "--watch", "--count", "1"]
        with Terminal(command, columns=columns, rows=rows) as terminal:
            assert terminal.end() == 0
        last = terminal.text().rpartition("q ends")[2].splitlines()[1:]
        assert 1 < len(last) < rows
        assert max(map(len, last)) <= columns
        assert last[0].startswith("traffic")
        assert ("get_commands" in terminal.text()) == (rows == 60)  # zero, so only where there is room


def test_q_ends_a_watch(node: NodeProcess) -> None:
    with Terminal([*TOOL, "stats", address(node), "--watch", "--interval", "60"]) as terminal:
        terminal.wait_for("q ends")
        terminal.press(b"q")
        assert terminal.end() == 0
    assert terminal.shown.endswith(b"\r\n")


def test_a_terminal_shows_groups_and_what_says_something(node: NodeProcess) -> None:
    for more, is_whole in (([], False), (["--all"], True)):
        with Terminal([*TOOL, "stats", address(node), *more], columns=120) as terminal:
            assert terminal.end() == 0
        for title in ("traffic", "data", "log and checkpoints", "exchanges", "node"):
            assert f"{title}\n  " in terminal.text()
        assert ("get_commands" in terminal.text()) == is_whole
        assert ("more say nothing now: --all" in terminal.text()) != is_whole


def test_a_word_that_is_no_node_is_a_name(node: NodeProcess) -> None:
    with Client("127.0.0.1", node.port) as client:
        client.call(b"SET", b"key", b"value")
    assert succeeds("stats", str(node.port), "db_keys").split() == [b"db_keys", b"1"]
    for place in (f":{node.port}", f"localhost:{node.port}"):
        assert succeeds("stats", place, "db_keys").split() == [b"db_keys", b"1"]
    done = run("stats", "no/such")
    fails(EXIT_USAGE, "no address of a node", done=done)


def test_only_a_running_node_has_them(tmp_path: Path) -> None:
    fails(EXIT_USAGE, "give HOST:PORT", done=run("stats", tmp_path))
    fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run("stats", "127.0.0.1:1"))


def test_a_node_that_goes_away() -> None:
    with FakeNode() as node:
        node.closes_at = b"STATS"
        fails(exit_codes.EXIT_UNREACHABLE, node.address, "closed", done=run("stats", node.address))
