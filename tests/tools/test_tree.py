"""`merklekv tree`: the fill as it is, the differences where they are, drawn or for programs."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fixtures.node import NodeFactory
from fixtures.tools import TOOL, FakeNode, address, contents, fails, filled, opened, run, succeeds
from merklekv_tool import exit_codes
from merklekv_tool.verbs.tree import abbreviated

from merklekv.engine.format import BUCKETS, bucket_of
from merklekv.exit_codes import EXIT_FORMAT, EXIT_LOCKED, EXIT_UNWRITABLE, EXIT_USAGE

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    filled(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def other(data: Path, tmp_path: Path) -> Path:
    """The same, but for three keys."""
    with opened(tmp_path / "other") as engine:
        engine.join()  # a lone node keeps nothing of what is deleted
    succeeds("load", "-", tmp_path / "other", stdin=succeeds("dump", data))
    with opened(tmp_path / "other") as engine:
        engine.set(b"more", b"x")
        engine.set(b"number:0001", b"changed")
        engine.delete(b"number:0002")
    return tmp_path / "other"


def tree(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    done = run("tree", *arguments, "--json")
    assert done.returncode == status, done.stderr.decode()
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("kind", ["directory", "port"])
def test_the_fill_as_it_is(kind: str, data: Path, node_factory: NodeFactory) -> None:
    root, _, live, dead = contents(data)
    with opened(data) as engine:
        keys = [key for key, _ in engine.records_page(limit=10_000)[0]]
    told = tree(data if kind == "directory" else address(node_factory(directory=data)))
    buckets = [bucket_of(key) for key in keys]
    assert told["root"] == root.hex()
    assert told["records"] == live + dead == len(keys)
    assert told["leaves"] == len(set(buckets))
    assert told["fullest_leaf"] == max(map(buckets.count, set(buckets)))
    assert told["inner"] == [sum(bucket // 256 == inner for bucket in buckets) for inner in range(256)]


def test_nothing_at_all(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    told = tree(tmp_path / "data")
    assert (told["root"], told["records"], told["leaves"], told["fullest_leaf"]) == ("0" * 64, 0, 0, 0)
    assert "0 records in 0 of 65,536 leaves" in succeeds("tree", tmp_path / "data").decode()


def test_a_tree_that_waits_for_the_base_to_take_in_a_floor(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        engine.set(b"old", b"x")
        engine.checkpoint_now()
        truncation = (engine.clock.newest + 1).to_bytes(8, "big") + bytes(16)
        engine.merge_truncation(truncation, b"elsewhere")
        engine.set(b"new", b"x")
        engine.commit()
    told = tree(tmp_path / "data")
    assert (told["root"], told["records"]) == (contents(tmp_path / "data")[0].hex(), 1)


@pytest.mark.parametrize("kind", ["directory", "port"])
def test_where_two_differ(kind: str, data: Path, other: Path, node_factory: NodeFactory) -> None:
    places = [data, other] if kind == "directory" else [address(node_factory(directory=path)) for path in (data, other)]
    told = tree(*places, status=exit_codes.EXIT_PROBLEMS)
    buckets = [bucket_of(key) for key in (b"more", b"number:0001", b"number:0002")]
    assert told["equal"] is False
    assert told["differing_leaves"] == 3
    assert told["differing"] == [sum(bucket // 256 == inner for bucket in buckets) for inner in range(256)]
    assert told["b"]["records"] == told["a"]["records"] + 1
    assert tree(places[0], places[0])["equal"] is True


def test_a_floor_alone_makes_a_difference(tmp_path: Path) -> None:
    for name in ("one", "other"):
        with opened(tmp_path / name) as engine:
            engine.merge_truncation(len(name).to_bytes(8, "big") + bytes(16), b"elsewhere")
    with opened(tmp_path / "one") as engine:
        engine.set(b"key", b"x")
    succeeds("load", "-", tmp_path / "other", stdin=succeeds("dump", tmp_path / "one"))
    done = run("tree", tmp_path / "one", tmp_path / "other")
    assert "the leaves are equal, the truncation versions differ" in done.stdout.decode()
    assert done.returncode == exit_codes.EXIT_PROBLEMS


def test_drawn_without_a_terminal(data: Path, other: Path) -> None:
    lines = succeeds("tree", data).decode().splitlines()
    grid = [line.split() for line in lines[-16:]]
    assert [row[0] for row in grid] == [f"{first:02x}" for first in range(0, 256, 16)]
    assert [int(cell) for row in grid for cell in row[1:]] == tree(data)["inner"]
    done = run("tree", data, other)
    lines = done.stdout.decode().splitlines()
    assert "3 leaves differ, below 3 of 256 inner nodes:" in lines
    cells = [cell for line in lines[-16:] for cell in line.split()[1:]]
    assert sorted(cells, reverse=True)[:4] == ["1", "1", "1", "."]
    assert "\x1b" not in done.stdout.decode()


def test_drawn_in_colour_on_a_terminal(data: Path) -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen([*TOOL, "tree", str(data)], stdout=follower, env=environment) as process:
        shown = b""
        while shown.count(b"\n") < 20:
            shown += os.read(leader, 1 << 16)
        assert process.wait(120) == 0
    os.close(leader)
    os.close(follower)
    assert len(set(re.findall(rb"48;2;\d+;\d+;\d+", shown))) > 5


def test_pictures(data: Path, other: Path, tmp_path: Path) -> None:
    succeeds("tree", data, "--output", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(PNG)
    for name in ("two.svg", "again.svg"):
        done = run("tree", data, other, "--output", tmp_path / name)
        assert done.returncode == exit_codes.EXIT_PROBLEMS
    drawn = (tmp_path / "two.svg").read_bytes()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert drawn == (tmp_path / "again.svg").read_bytes()
    assert b"<!-- 3 leaves differ -->" in drawn


def test_pictures_of_another_kind(data: Path, tmp_path: Path) -> None:
    for name in ("tree.gif", "tree", "png"):
        done = run("tree", data, "--output", tmp_path / name)
        fails(EXIT_USAGE, name, "ends in .png or .svg", done=done)
    fails(EXIT_UNWRITABLE, "cannot write", done=run("tree", data, "--output", tmp_path / "no" / "tree.png"))


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
from merklekv_tool.cli import main
main()
"""


def test_without_matplotlib_only_pictures_fail(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_MATPLOTLIB, "tree", str(data)]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "tree.png")], capture_output=True, timeout=120, check=False
    )
    fails(EXIT_USAGE, "pip install matplotlib", done=done)
    assert not (tmp_path / "tree.png").exists()


def test_short_numbers() -> None:
    numbers = [0, 1, 999, 1000, 1999, 99_999, 100_000, 999_999, 1_000_000, 99_999_999, 100_000_000, 5 * 10**9]
    shown = [abbreviated(number) for number in numbers]
    assert shown == ["0", "1", "999", "1k", "1k", "99k", ".1M", ".9M", "1M", "99M", ".1G", "5G"]
    assert BUCKETS // 256 < 1000


def test_wrong_places(data: Path, tmp_path: Path, node_factory: NodeFactory) -> None:
    fails(EXIT_FORMAT, "neither a data directory nor HOST:PORT", done=run("tree", tmp_path / "missing"))
    fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run("tree", "127.0.0.1:1"))
    node = node_factory(directory=data)
    fails(EXIT_LOCKED, f"in use by process {node.pid}", "HOST:PORT", done=run("tree", data))
    with FakeNode() as fake:
        fake.knows_nothing = True
        fails(exit_codes.EXIT_NODE, fake.address, "unknown command", done=run("tree", fake.address))
