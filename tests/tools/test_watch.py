"""`merklekv watch`: every change once, across restarts of the node, the tool, and both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import free_port, wait_until
from fixtures.tools import TOOL, FakeNode, address, fails, run, succeeds
from merklekv_tool import exit_codes

from merklekv.exit_codes import EXIT_UNWRITABLE
from merklekv.net.client import Client


@pytest.fixture
def node(node_factory: NodeFactory) -> NodeProcess:
    node = node_factory("--node-id", "node-1", "--set", "retain_log_bytes=1MiB")
    with node.connect() as client:
        for line in ("SET user:1 Ann", "SET user:2 Bob", "INC visits 3", "DEL user:1"):
            client.ask(line)
    return node


def lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_is_there(node: NodeProcess) -> None:
    found = lines(succeeds("watch", address(node), "--from", "", "--once", "--json", "--values"))
    assert [(one["op"], one["key"], one.get("value"), one["origin"]) for one in found] == [
        ("set", "user:1", "Ann", "node-1"),
        ("set", "user:2", "Bob", "node-1"),
        ("incr", "visits", "3", "node-1"),
        ("del", "user:1", None, "node-1"),
    ]
    assert [one for one in found if "cursor" in one] == found[-1:]
    assert succeeds("watch", address(node), "--from", found[-1]["cursor"], "--once") == b""
    assert succeeds("watch", address(node), "--once") == b"", "without --from it begins at the end"
    table = succeeds("watch", address(node), "--from", "", "--once", "--prefix", "user:").decode().splitlines()
    assert [line.split()[2:] for line in table[1:]] == [
        ["set", "node-1", "user:1", "3", "bytes"],
        ["set", "node-1", "user:2", "3", "bytes"],
        ["del", "node-1", "user:1"],
    ]


def test_an_expiry_and_a_truncation(node: NodeProcess) -> None:
    with Client("127.0.0.1", node.port) as client:
        client.call(b"SET", b"k", b"v", b"PXAT", b"33333333333333")
        client.call(b"FLUSHALL")
    expiring, flush = lines(succeeds("watch", address(node), "--from", "", "--once", "--json"))[-2:]
    assert (expiring["key"], expiring["expiry_ms"]) == ("k", 33333333333333)
    assert flush["op"] == "truncate"
    assert "key" not in flush
    table = succeeds("watch", address(node), "--from", "", "--once", "--values")
    assert b"v, expires 3026-" in table


@contextlib.contextmanager
def watching(node: NodeProcess, output: Path, *options: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """The tool while the block runs; Ctrl-C ends it without an error."""
    with (
        output.open("ab") as file,
        subprocess.Popen(
            [*TOOL, "watch", address(node), "--json", *options], stdout=file, stderr=subprocess.PIPE
        ) as it,
    ):
        try:
            yield it
            it.send_signal(signal.SIGINT)
            _, said = it.communicate(timeout=120)
            assert it.returncode == 0, said
            assert b"to go on: --from " in said
        finally:
            it.kill()


def test_following_over_restarts_of_both(node: NodeProcess, tmp_path: Path) -> None:
    output, cursor_file = tmp_path / "output", tmp_path / "cursor"

    def has(count: int) -> None:
        wait_until(lambda: len(output.read_bytes().splitlines()) == count, what=f"{count} changes")

    def write(first: int, last: int) -> None:
        with node.connect() as client:
            for number in range(first, last):
                assert client.ask(f"SET n {number}") == "OK"

    with watching(node, output, "--from", "", "--cursor-file", cursor_file):
        has(4)
        write(0, 3)
        has(7)
        node.kill()
        node.start()
        write(3, 5)
        has(9)
        node.stop()
        node.start()
        write(5, 6)
        has(10)
    write(6, 8)
    with watching(node, output, "--cursor-file", cursor_file):
        has(12)
    found = lines(output.read_bytes())
    assert len({one["version"] for one in found}) == 12
    assert [one["key"] for one in found[4:]] == ["n"] * 8


def test_the_reader_of_the_output_goes_away(node: NodeProcess) -> None:
    command = [*TOOL, "watch", address(node), "--from", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        with node.connect() as client:
            client.ask("SET k v")
        assert process.wait(120) == exit_codes.EXIT_PIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_what_ends_it_with_an_error(node: NodeProcess, tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    fails(exit_codes.EXIT_UNREACHABLE, f"{nobody}: cannot connect", done=run("watch", nobody))
    fails(exit_codes.EXIT_NODE, "'x' is no cursor", done=run("watch", address(node), "--from", "x"))
    elsewhere = run("watch", address(node), "--from", "fffffffffffffff-0-0-0000000000000000")
    fails(exit_codes.EXIT_NODE, "CHANGESGONE this log does not", "to begin again", done=elsewhere)
    words = ["watch", address(node), "--from", "", "--once", "--cursor-file"]
    done = run(*words, tmp_path / "missing" / "cursor")
    assert done.returncode == EXIT_UNWRITABLE
    assert b"missing" in done.stderr
    fails(EXIT_UNWRITABLE, str(tmp_path), done=run(*words, tmp_path))


@pytest.mark.parametrize(
    "reply",
    [
        b"+OK\r\n",
        b"$-1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"*2\r\n:1\r\n*0\r\n",
        b"*2\r\n$1\r\n\xff\r\n*0\r\n",
        b"*2\r\n$1\r\nx\r\n*1\r\n*0\r\n",
        b"*2\r\n$1\r\nx\r\n*1\r\n*5\r\n$1\r\nk\r\n$3\r\nset\r\n$1\r\nv\r\n$3\r\nsoo\r\n$1\r\nn\r\n",
        b"*2\r\n$1\r\nx\r\n*1\r\n*5\r\n$1\r\nk\r\n$3\r\nset\r\n:5\r\n$3\r\n1-0\r\n$1\r\nn\r\n",
    ],
)
def test_a_node_that_answers_strangely(reply: bytes) -> None:
    with FakeNode() as node:
        node.replies[b"CHANGES"] = reply
        done = run("watch", node.address, "--once")
    fails(exit_codes.EXIT_UNREACHABLE, "answers CHANGES strangely: is it a MerkleKV node?", done=done)


def test_a_cursor_file_that_is_no_file(node: NodeProcess, tmp_path: Path) -> None:
    """Root would replace /dev/null, say, for the whole machine; a pipe would be waited for."""
    pipe, link, full = tmp_path / "pipe", tmp_path / "link", tmp_path / "full"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for place in (pipe, link, tmp_path):
        done = run("watch", address(node), "--once", "--cursor-file", place)
        fails(EXIT_UNWRITABLE, str(place), "no regular file", done=done)
    assert os.readlink(link) == str(pipe)
    assert pipe.is_fifo()
    (tmp_path / "cursor").touch()
    full.symlink_to(tmp_path / "cursor")
    succeeds("watch", address(node), "--once", "--cursor-file", full)
    assert full.is_symlink()
    assert (tmp_path / "cursor").read_bytes()
