"""`merklekv tree`: the way from the root to exactly the keys that differ, and the shape of one tree."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from fixtures.node import NodeFactory
from fixtures.terminal import COLOUR, Terminal
from fixtures.tools import TOOL, FakeNode, address, contents, fails, filled, opened, run, succeeds
from merklekv_tool import exit_codes
from merklekv_tool.comparison import Descent
from merklekv_tool.source.directory import Directory

from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_SET, bucket_of
from merklekv.engine.record import make_record
from merklekv.exit_codes import EXIT_FORMAT, EXIT_LOCKED, EXIT_USAGE
from merklekv.net.protocol.resp import bulk

LEAVES: Final = 65_536


@pytest.fixture
def data(tmp_path: Path) -> Path:
    filled(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def other(data: Path, tmp_path: Path) -> Path:
    """The same, but for three keys."""
    shutil.copytree(data, tmp_path / "other")
    with opened(tmp_path / "other") as engine:
        engine.set(b"more", b"x")
        engine.set(b"number:0001", b"changed")
        engine.delete(b"number:0002")
    return tmp_path / "other"


CHANGED: Final = {b"more": "only_b", b"number:0001": "newer_b", b"number:0002": "newer_b"}


def tree(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    done = run("tree", *arguments, "--json")
    assert done.returncode == status, done.stderr.decode()
    told: dict[str, Any] = json.loads(done.stdout)
    return told


# -- two sources -------------------------------------------------------------------------------------------------------


def version(time: int, writer: int) -> bytes:
    return time.to_bytes(8, "big") + writer.to_bytes(16, "big")


Model = dict[bytes, tuple[int, int, bytes | None]]  # of a key: time, writer, value or None for a tombstone


def written(path: Path, model: Model) -> Directory:
    """A source with just these records."""
    engine = Engine(path, durability="never", checkpoint="manual")
    engine.join()
    items = [
        (OP_SET, key, make_record(key, version(time, writer), value or b"", tombstone=value is None))
        for key, (time, writer, value) in model.items()
    ]
    engine.merge(items, b"test")
    engine.close()
    return Directory(path, to_load=False)


def kind_of(mine: tuple[int, int, bytes | None] | None, theirs: tuple[int, int, bytes | None] | None) -> str:
    if mine is None or theirs is None:
        return "only_b" if mine is None else "only_a"
    if mine[:2] == theirs[:2]:
        return "conflict"
    return "newer_a" if mine[:2] > theirs[:2] else "newer_b"


@pytest.mark.parametrize("seed", range(12))
def test_exactly_what_a_plain_model_says(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    shared = chance.choice((0, 30, 2000))
    changes = chance.choice((0, 1, 5, 300))

    def entry() -> tuple[int, int, bytes | None]:
        value = None if chance.random() < 0.2 else chance.randbytes(chance.randrange(20))
        return chance.randrange(1, 5), chance.randrange(1, 3), value

    a: Model = {b"key:%d" % number: entry() for number in range(shared)}
    b = dict(a)
    for _ in range(changes):
        side, key = chance.choice((a, b)), b"key:%d" % chance.randrange(2 * shared + 2)
        if key in side and chance.random() < 0.3:
            del side[key]
        else:
            side[key] = entry()
    expected = {key: kind_of(a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    buckets = {bucket_of(key) for key in expected}

    source_a, source_b = written(tmp_path / "a", a), written(tmp_path / "b", b)
    descent = Descent(source_a, source_b)
    found = list(descent.differences())
    source_a.close()
    source_b.close()
    assert {difference.key: difference.kind for _, difference in found} == expected
    assert all(bucket == bucket_of(difference.key) for bucket, difference in found)
    assert len(found) == len(expected)
    assert descent.equal is not bool(expected)
    assert descent.buckets == sorted(buckets)
    assert descent.inner == sorted({bucket // 256 for bucket in buckets})
    assert descent.inner_compared == (256 if expected else 0)
    assert descent.leaves_compared == 256 * len(descent.inner)
    assert descent.keys_compared == sum(bucket_of(key) in buckets for key in a.keys() | b.keys())


@pytest.mark.parametrize("kind", ["directories", "nodes", "node and directory"])
def test_where_two_differ(kind: str, data: Path, other: Path, node_factory: NodeFactory) -> None:
    with opened(data) as engine:
        keys = [key for key, _ in engine.records_page(limit=10_000)[0]]
    places: list[str | Path] = [data, other]
    if kind != "directories":
        places[0] = address(node_factory(directory=data))
    if kind == "nodes":
        places[1] = address(node_factory(directory=other))
    told = tree(*places, status=exit_codes.EXIT_PROBLEMS)
    buckets = sorted(map(bucket_of, CHANGED))
    assert told["equal"] is False
    assert told["leaves"] == buckets
    assert told["inner"] == [bucket // 256 for bucket in buckets]
    assert {one["key"].encode(): one["differs"] for one in told["keys"]} == CHANGED
    assert [one["leaf"] for one in told["keys"]] == buckets
    assert told["differing_keys"]["newer_b"] == 2
    assert told["b"]["records"] == told["a"]["records"] + 1 == len(keys) + 1
    assert told["a"]["root"] != told["b"]["root"]
    compared = sum(bucket_of(key) in buckets for key in {*keys, *CHANGED})
    assert told["compared"] == {"roots": 1, "inner": 256, "leaves": 3 * 256, "keys": compared}


def test_of_equal_ones_only_the_roots_are_compared(data: Path, tmp_path: Path, node_factory: NodeFactory) -> None:
    root, _, live, dead = contents(data)
    shutil.copytree(data, tmp_path / "copy")
    node = address(node_factory(directory=data))
    for places in ((node, tmp_path / "copy"), (node, node)):
        shown = succeeds("tree", *places).decode()
        assert shown == f"equal: root {root.hex()}, {live + dead:,} records\n"
        assert tree(*places)["compared"] == {"roots": 1, "inner": 0, "leaves": 0, "keys": 0}
    with FakeNode() as fake:  # which would fail a request for more
        fake.root, fake.truncation = root, contents(tmp_path / "copy")[1]
        assert tree(fake.address, tmp_path / "copy")["equal"] is True
        assert fake.asked[b"TREE"] == fake.asked[b"BUCKET"] == 0


def test_truncation_versions_that_differ(tmp_path: Path) -> None:
    for name in ("one", "other"):
        with opened(tmp_path / name) as engine:
            engine.merge_truncation(len(name).to_bytes(8, "big") + bytes(16), b"elsewhere")
    for with_records in (False, True):
        if with_records:
            with opened(tmp_path / "one") as engine:
                engine.set(b"key", b"x")
            succeeds("load", "-", tmp_path / "other", stdin=succeeds("dump", tmp_path / "one"))
        done = run("tree", tmp_path / "one", tmp_path / "other")
        assert "the truncation versions differ: A was truncated at " in done.stdout.decode()
        assert "\nno key differs\n" in done.stdout.decode()
        assert done.returncode == exit_codes.EXIT_PROBLEMS


def test_drawn_without_a_terminal(data: Path, other: Path) -> None:
    done = run("tree", data, other)
    shown = done.stdout.decode()
    lines = shown.splitlines()
    assert "\x1b" not in shown
    assert lines[0].startswith(f"A is {data}: root {contents(data)[0].hex()[:16]}, ")
    inner = sorted(bucket_of(key) // 256 for key in CHANGED)
    assert f"3 of 256 inner nodes differ: {' '.join(f'{node:02x}' for node in inner)}" in lines
    rows = [line.split() for line in lines if line.startswith(("  00", "  40", "  80", "  c0"))]
    assert "".join(row[1] for row in rows) == "".join("1" if node in inner else "." for node in range(256))
    leaves = sorted(map(bucket_of, CHANGED))
    assert f"3 of 768 leaves below differ: {' '.join(f'{leaf:04x}' for leaf in leaves)}" in lines
    assert any(
        line.startswith(f"{bucket_of(b'more'):04x}  only B    -  ") and line.endswith("  more") for line in lines
    )
    assert lines[-2] == "3 keys differ: 1 only B, 2 newer B"
    assert lines[-1].startswith("compared: 1 root, 256 inner digests, 768 of 65,536 leaves, ")
    assert len(lines) < 24


def test_the_limit(data: Path, other: Path) -> None:
    for limit, shown in ((0, 0), (2, 2), (3, 3), (9, 3)):
        text = run("tree", data, other, "--limit", str(limit)).stdout.decode()
        assert text.count("  newer B  ") + text.count("  only B  ") == shown
        assert (f"and {3 - shown} more\n" in text) is (shown < 3)
        told = tree(data, other, "--limit", str(limit), status=exit_codes.EXIT_PROBLEMS)
        assert (len(told["keys"]), told["differing_keys"]["newer_b"]) == (shown, 2)


def test_much_that_differs_still_fits_a_screen(data: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "empty"):
        pass
    shown = run("tree", data, tmp_path / "empty").stdout.decode()
    assert len(shown.splitlines()) <= 24
    assert "and 244 more\n" in shown
    assert "+" in shown
    assert f"and {sum(contents(data)[2:]) - 8:,} more\n" in shown


@pytest.mark.parametrize("count", [1, 2])
def test_in_colour_on_a_terminal(count: int, data: Path, other: Path) -> None:
    places = [str(data), str(other)][:count]
    surroundings = {"TERM": "xterm-256color", "NO_COLOR": None}
    with Terminal([*TOOL, "tree", *places], surroundings, 120) as terminal:
        terminal.wait_for("compared" if count == 2 else "#")
    assert COLOUR.search(terminal.shown)


# -- one source --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["directory", "port"])
def test_the_shape_as_it_is(kind: str, data: Path, node_factory: NodeFactory) -> None:
    root, _, live, dead = contents(data)
    with opened(data) as engine:
        keys = [key for key, _ in engine.records_page(limit=10_000)[0]]
    told = tree(data if kind == "directory" else address(node_factory(directory=data)))
    sizes = Counter(map(bucket_of, keys))
    assert told["root"] == root.hex()
    assert told["records"] == live + dead == len(keys)
    assert told["leaves"] == len(sizes)
    assert told["fullest"]["records"] == max(sizes.values()) == sizes[told["fullest"]["leaf"]]
    assert told["emptiest"]["records"] == 0 == sizes[told["emptiest"]["leaf"]]
    by_records = Counter(sizes.values()) | Counter({0: LEAVES - len(sizes)})
    assert told["leaves_by_records"] == {str(records): leaves for records, leaves in by_records.items()}


def test_the_histogram(data: Path) -> None:
    told = tree(data)
    lines = succeeds("tree", data).decode().splitlines()
    assert lines[0] == f"{data}: root {told['root']}"
    assert f"in {told['leaves']:,} of 65,536 leaves, below 256 inner nodes" in lines[1]
    rows = [line.split() for line in lines[lines.index("records  leaves") + 1 :]]
    assert {row[0]: int(row[1].replace(",", "")) for row in rows} == told["leaves_by_records"]
    assert [len(row[2]) for row in rows][:1] == [40]


def test_the_histogram_of_uneven_leaves(tmp_path: Path) -> None:
    keys = [key for number in range(400_000) if bucket_of(key := b"%d" % number) < 100][:300]
    with opened(tmp_path / "data") as engine:
        for key in keys:
            if bucket_of(key) != 50:
                engine.set(key, b"x")
        full = [key for number in range(3_000_000, 8_000_000) if bucket_of(key := b"%d" % number) == 50][:25]
        for key in full:
            engine.set(key, b"x")
    lines = succeeds("tree", tmp_path / "data").decode().splitlines()
    rows = [line.split() for line in lines[lines.index("records  leaves") + 1 :]]
    assert len(rows) <= 10
    assert sum(int(row[1].replace(",", "")) for row in rows) == LEAVES
    assert "25 at most (0032)" in lines[2]


def test_nothing_at_all(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    told = tree(tmp_path / "data")
    assert (told["root"], told["records"], told["leaves"]) == ("0" * 64, 0, 0)
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


# -- places ------------------------------------------------------------------------------------------------------------


def test_wrong_places(data: Path, tmp_path: Path, node_factory: NodeFactory) -> None:
    fails(EXIT_FORMAT, "neither a data directory nor HOST:PORT", done=run("tree", tmp_path / "missing"))
    fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run("tree", "127.0.0.1:1"))
    fails(EXIT_USAGE, "is the same directory as", done=run("tree", data, data))
    node = node_factory(directory=data)
    fails(EXIT_LOCKED, f"in use by process {node.pid}", "HOST:PORT", done=run("tree", data))
    with FakeNode() as fake:
        fake.knows_nothing = True
        fails(exit_codes.EXIT_NODE, fake.address, "unknown command", done=run("tree", fake.address))


@pytest.mark.parametrize("reply", [bulk(b"x" * 8191), bulk(b""), b":1\r\n"])
def test_a_node_that_answers_strangely(reply: bytes, data: Path) -> None:
    with FakeNode() as fake:
        fake.replies[b"TREE"] = reply
        done = run("tree", fake.address, data)
    fails(exit_codes.EXIT_UNREACHABLE, fake.address, "answers TREE strangely", done=done)
