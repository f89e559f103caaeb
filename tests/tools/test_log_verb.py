"""`merklekv log`: every entry once and in order, filtered and followed, and nothing changed by reading."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fixtures.engines import LogWriter, set_entry
from fixtures.engines import entry as make_entry
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until
from fixtures.tools import TOOL, address, fails, opened, run, succeeds
from merklekv_tool import exit_codes
from merklekv_tool.source.log import DirectoryLog, EventReader
from merklekv_tool.verbs.log import OPERATIONS, nanoseconds

from merklekv.engine import format as form
from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_SET
from merklekv.engine.log.reader import READ_BYTES
from merklekv.engine.log.segment import list_segments, segment_path
from merklekv.engine.record import make_record
from merklekv.errors import Corruption, InvalidArgument
from merklekv.exit_codes import EXIT_CORRUPT, EXIT_FORMAT, EXIT_UNWRITABLE, EXIT_USAGE

OLD_NS = 1_700_000_000 * 10**9
LogPosition = Callable[[], str]


def version(time_ns: int) -> bytes:
    return time_ns.to_bytes(8, "big") + bytes(16)


def write(engine: Engine) -> None:
    """One entry of each kind, and some from elsewhere."""
    engine.set(b"user:1", b"one")
    engine.set(b"\xff\x00", b"\xfe")
    engine.commit()
    engine.increment(b"count", 5)
    engine.increment(b"count", -2)
    engine.append(b"user:1", b" more")
    engine.prepend(b"user:1", b"the ")
    engine.delete(b"user:1")
    old = make_record(b"old", version(OLD_NS), b"from elsewhere")
    engine.merge([(OP_SET, b"old", old)], b"node-2")
    engine.truncate()
    engine.put_metadata(b"fact", b"kept")
    engine.commit()


OPS = ["set", "set", "incr", "decr", "append", "prepend", "del", "set", "truncate", "metadata"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with opened(tmp_path / "data") as engine:
        engine.join()  # a lone node purges what it deletes
        engine.commit()
        engine.checkpoint_now()
        write(engine)
    return tmp_path / "data"


@pytest.fixture(params=["closed", "open", "port"])
def place(request: pytest.FixtureRequest, data: Path, node_factory: NodeFactory) -> str:
    """The same log: of a closed directory, of one that a node has open, and of that node."""
    if request.param == "closed":
        return str(data)
    node = node_factory(directory=data)
    return str(data) if request.param == "open" else address(node)


def entries(*arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in succeeds("log", *arguments, "--json").splitlines()]


def test_every_entry_in_order(place: str) -> None:
    told = entries(place, "--values")[: len(OPS)]  # a running node adds metadata entries of its own
    assert [one["op"] for one in told] == OPS
    assert [one["sequence"] for one in told] == [1, 2, 3, 4, 5, 6, 7, None, 8, None]
    assert [one["origin"] for one in told] == [None] * 7 + ["node-2", None, None]
    assert [one.get("key") for one in told] == [
        "user:1", None, "count", "count", "user:1", "user:1", "user:1", "old", None, "fact"
    ]  # fmt: skip
    assert told[1]["key_base64"] == "/wA="
    assert told[1]["value_base64"] == "/g=="
    assert [told[index]["value"] for index in (0, 3, 5)] == ["one", "3", "the one more"]
    assert told[7]["time_ns"] == OLD_NS
    assert told[7]["version"] == f"{OLD_NS}-{'0' * 32}"
    assert "value" not in told[6]
    assert told[-1]["value"] == "kept"


def test_without_values_only_their_sizes(data: Path) -> None:
    told = entries(data)
    assert told[0]["value_size"] == 3
    assert not any("value" in one or "value_base64" in one for one in told)


FILTERS: tuple[tuple[list[str], list[int]], ...] = (
    (["--key", "count"], [2, 3]),
    (["--key", "user"], []),
    (["--prefix", "user"], [0, 4, 5, 6]),
    (["--origin", "node-2"], [7]),
    (["--origin", "local"], [0, 1, 2, 3, 4, 5, 6, 8, 9]),
    (["--op", "del", "--op", "incr"], [2, 6]),
    (["--until", "2024-01-01"], [7]),
    (["--since", "10m"], [0, 1, 2, 3, 4, 5, 6, 8]),
    (["--since", "10m", "--prefix", "c"], [2, 3]),
    (["--last", "2"], [8, 9]),
    (["--last", "2", "--key", "user:1"], [5, 6]),
)


def test_filters(data: Path) -> None:
    everything = entries(data)
    for options, kept in FILTERS:
        assert entries(data, *options) == [everything[index] for index in kept], options


def test_the_expiry_of_a_key(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        engine.set(b"k", b"v", 4 * 10**12)
        engine.persist(b"k")
        engine.set(b"k", b"v", (1 << 63) - 1)
    found = [(one["op"], one.get("expiry_ms")) for one in entries(tmp_path / "data")]
    assert found == [("set", 4 * 10**12), ("persist", None), ("set", (1 << 63) - 1)]
    lines = succeeds("log", tmp_path / "data").decode().splitlines()
    assert "1 byte, expires 2096-" in lines[1]
    assert "expires" not in lines[2]


def test_every_op_has_its_name() -> None:
    names = {number: op.name for number, op in form.OPS.items()}
    own = {form.OP_METADATA: "metadata", form.OP_PURGE: "purge", form.OP_REPAIR: "repair"}
    assert names | own == OPERATIONS


def test_a_table_for_people(data: Path) -> None:
    lines = succeeds("log", data, "--values").decode().splitlines()
    assert lines[0].split() == ["time", "op", "origin", "key", "value"]
    assert len(lines) == 1 + len(OPS)
    assert lines[1].split()[2:] == ["set", "local", "user:1", "one"]
    assert "node-2" in lines[8]
    assert succeeds("log", data, "--key", "nothing") == b""


@pytest.mark.parametrize("from_base", [False, True])
def test_a_deletion_of_a_lone_node_is_one_line(from_base: bool, node_factory: NodeFactory, tmp_path: Path) -> None:
    """It leaves no tombstone, and is a `del` of the time at which it was made all the same."""
    with opened(tmp_path / "data") as engine:
        old = make_record(b"k", version(OLD_NS), b"v")
        engine.merge([(OP_SET, b"k", old)], b"node-2")
        if from_base:
            engine.checkpoint_now()
        else:
            engine.commit()
    node = node_factory(directory=tmp_path / "data")
    began = time.time_ns()
    with node.connect() as client:
        assert client.ask("DEL k") == "DELETED"
    for place in (address(node), str(tmp_path / "data")):
        told = entries(place, "--since", "1h")
        assert [(one["op"], one["key"], one["origin"]) for one in told] == [("del", "k", None)]
        assert began <= told[0]["time_ns"] <= time.time_ns()
        assert entries(place, "--op", "del", "--key", "k") == told
        assert "purged" not in [one["key"] for one in entries(place)]
        assert "purged" in [one["key"] for one in entries(place, "--op", "metadata")]
        assert entries(place, "--op", "purge") == []
        lines = succeeds("log", place, "--op", "del", "--values").decode().splitlines()
        assert lines[1].split()[2:] == ["del", "local", "k"]
    node.stop()
    succeeds("verify", tmp_path / "data")


def test_reading_changes_nothing(data: Path) -> None:
    segment = max((data / "log").glob("*.log"))
    segment.write_bytes(segment.read_bytes() + b"MKVF torn")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    done = run("log", data, "--json")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(OPS)
    assert "being written, or torn by a crash" in done.stderr.decode()
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_damage_that_a_start_refuses(node: NodeProcess) -> None:
    """In the last segment, before what was on disk; and in a header."""
    with node.connect() as client:
        for number in range(10):
            client.ask(f"SET key:{number} value")
    node.stop()
    segment = max((node.directory / "log").glob("*.log"))
    whole = segment.read_bytes()
    at = whole.index(b"key:3")
    segment.write_bytes(whole[:at] + b"?" + whole[at + 1 :])
    done = run("log", node.directory, "--json")
    fails(EXIT_CORRUPT, f"{segment}: damaged at byte ", "what follows was synced", done=done)
    assert b"key:2" in done.stdout
    segment.write_bytes(b"?" + whole[1:])
    fails(EXIT_CORRUPT, f"{segment}: damaged at byte 0", "header", done=run("log", node.directory, "--json"))


def test_damage_with_more_behind_it(segments: list[int], tmp_path: Path) -> None:
    damaged = segment_path(tmp_path / "three" / "log", segments[1])
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    done = run("log", tmp_path / "three", "--json")
    fails(EXIT_CORRUPT, f"the log segment {segments[1]} is damaged at byte 48", "merklekv verify", done=done)
    assert [json.loads(line)["key"] for line in done.stdout.splitlines()] == ["a"]


@pytest.mark.parametrize("entry", [(1, b"k", b""), (7, b"", bytes(23)), (10, b"k", bytes(24))])
def test_an_entry_that_is_none(entry: tuple[int, bytes, bytes], tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "data" / "log")
    log.frame([set_entry(1), make_entry(*entry)])
    (tmp_path / "data" / "FORMAT").write_text(f"{form.FORMAT_LINE}{form.FORMAT_VERSION}\n")
    done = run("log", tmp_path / "data")
    said = f"the log is damaged in the frame at LSN 0: an entry of op {entry[0]} with {len(entry[2])} bytes of record"
    fails(EXIT_CORRUPT, str(tmp_path / "data"), said, done=done)


@contextlib.contextmanager
def following(place: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`log --follow` while the block runs; Ctrl-C ends it without an error."""
    with (
        output.open("wb") as file,
        subprocess.Popen([*TOOL, "log", place, "--follow", "--json"], stdout=file, stderr=subprocess.PIPE) as process,
    ):
        try:
            yield process
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (0, b"")


def shown(output: Path) -> list[dict[str, Any]]:
    """The client writes that whole lines show."""
    told = [json.loads(line) for line in output.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [one for one in told if one["op"] != "metadata"]


@pytest.mark.parametrize("kind", ["open", "port"])
def test_following_over_many_segments(kind: str, node_factory: NodeFactory, tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        engine.retention.subscribe()  # a node that may have to publish its log keeps it
    node = node_factory("--set", "memtable_size=64KiB", directory=tmp_path / "data")
    output = tmp_path / "out"
    with node.connect() as client, following(str(node.directory) if kind == "open" else address(node), output):
        client.ask("SET first 0")
        wait_until(lambda: shown(output), what="the first entry")
        for number in range(200):
            client.ask(f"SET key:{number} {'x' * 2000}")
        wait_until(lambda: len(shown(output)) == 201, what="all entries")
    assert len(list_segments(node.directory / "log")) > 3
    told = shown(output)
    assert [one["key"] for one in told] == ["first", *(f"key:{number}" for number in range(200))]
    assert [one["sequence"] for one in told] == list(range(1, 202))


class Fake:
    """A log whose segments a test creates and deletes."""

    name = "fake"

    def __init__(self, directory: Path) -> None:
        self._log = DirectoryLog(directory)
        self.gone: set[int] = set()

    def segments(self) -> list[int]:
        return [segment for segment in self._log.segments() if segment not in self.gone]

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        return None if segment in self.gone else self._log.read(segment, position, min(size, 7))


@pytest.fixture
def segments(tmp_path: Path) -> list[int]:
    """A log of three segments with a key each."""
    with opened(tmp_path / "three") as engine:
        engine.retention.subscribe()  # keeps them
        for key in (b"a", b"b", b"c"):
            engine.set(key, b"x")
            engine.commit()
            if key != b"c":
                engine.checkpoint_now()
        return list_segments(engine.directory.log)


def keys(reader: EventReader) -> Iterator[bytes]:
    return (event.entry.key for event in reader.until_now())


def test_segments_are_joined(segments: list[int], tmp_path: Path) -> None:
    assert len(segments) == 3
    reader = EventReader(Fake(tmp_path / "three"))
    assert list(keys(reader)) == [b"a", b"b", b"c"]
    assert reader.skipped == 0
    assert not reader.unread()


def test_segments_that_go_while_they_are_read(segments: list[int], tmp_path: Path) -> None:
    source = Fake(tmp_path / "three")
    reader = EventReader(source)
    row = keys(reader)
    assert next(row) == b"a"
    source.gone = set(segments[:2])
    assert list(row) == [b"c"]
    assert reader.skipped == segments[2] - segments[1]


def test_a_missing_segment_is_damage(segments: list[int], tmp_path: Path) -> None:
    segment_path(tmp_path / "three" / "log", segments[1]).unlink()
    with pytest.raises(Corruption, match="no whole frame there, and more of the log behind it"):
        list(keys(EventReader(Fake(tmp_path / "three"))))


@pytest.mark.parametrize("size", [READ_BYTES - 200, READ_BYTES, 3 * READ_BYTES])
def test_frames_larger_than_one_read(size: int, tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        for key in (b"one", b"two"):
            engine.set(key, b"x" * size)
            engine.commit()
    told = entries(tmp_path / "data")
    assert [(one["key"], one["value_size"]) for one in told] == [("one", size), ("two", size)]


def test_times() -> None:
    now = time.time_ns()
    assert nanoseconds("90s", now) == now - 90 * 10**9
    assert nanoseconds("2d", now) == now - 2 * 86400 * 10**9
    assert nanoseconds("2023-11-14T22:13:20+00:00", now) == OLD_NS
    local = datetime.fromtimestamp(OLD_NS / 10**9).isoformat()
    assert nanoseconds(local, now) == OLD_NS
    for wrong in ("", "soon", "5", "2024-13-01"):
        with pytest.raises(InvalidArgument, match="not a time"):
            nanoseconds(wrong, now)


def test_what_may_not_be_read(data: Path) -> None:
    for part, said in (("log", "log: no permission to use it"), (".", "data: cannot be read")):
        before = (data / part).stat().st_mode
        (data / part).chmod(0)
        done = run("log", data, powers=False)
        (data / part).chmod(before)
        fails(EXIT_UNWRITABLE, said, done=done)


def test_wrong_arguments(data: Path, tmp_path: Path) -> None:
    fails(EXIT_USAGE, "--op nothing", done=run("log", data, "--op", "nothing"))
    fails(EXIT_USAGE, "'soon': not a time", done=run("log", data, "--since", "soon"))
    fails(EXIT_FORMAT, "neither a data directory nor HOST:PORT", done=run("log", tmp_path / "missing"))
    fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run("log", "127.0.0.1:1"))
