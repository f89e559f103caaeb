"""Dumps of directories and nodes, read back into either: what arrives is what left, versions and all."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.node import NodeFactory, clean_environment
from fixtures.tools import (
    EXPIRIES,
    SAMPLES,
    TOOL,
    address,
    contents,
    fails,
    fill,
    filled,
    opened,
    root_of,
    run,
    succeeds,
)
from merklekv_tool.exit_codes import EXIT_DUMP, EXIT_PIPE, EXIT_REFUSED
from merklekv_tool.source.source import PAGE_RECORDS

from merklekv.engine.format import OP_SET
from merklekv.engine.record import ZERO_VERSION, make_record, timestamp_of, version_of
from merklekv.exit_codes import EXIT_UNWRITABLE, EXIT_USAGE
from merklekv.net.client import Client

FORMATS = ["jsonl", "cbor"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    filled(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("form", FORMATS)
def test_directory_to_directory(form: str, source: Path, tmp_path: Path) -> None:
    dump, target = tmp_path / "dump", tmp_path / "target"
    before = contents(source)
    assert before[1] != ZERO_VERSION
    assert before[3] >= 500
    succeeds("dump", source, "--format", form, "--output", dump)
    succeeds("load", dump, target)
    assert contents(target) == before == contents(source)
    with opened(target) as engine:
        assert {key: engine.get(key) for key in SAMPLES} == SAMPLES
    succeeds("verify", target)
    assert succeeds("dump", target, "--format", form) == dump.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_node_to_node(form: str, source: Path, tmp_path: Path, node_factory: NodeFactory) -> None:
    """The dump of a node is the dump of its directory, byte by byte.  A lone node would drop the tombstones one day."""
    offline = succeeds("dump", source, "--format", form)
    first = node_factory(directory=source)
    dump = tmp_path / "dump"
    succeeds("dump", address(first), "--format", form, "--output", dump)
    assert dump.read_bytes() == offline
    with opened(tmp_path / "second") as engine:
        engine.join()
    second = node_factory(directory=tmp_path / "second")
    succeeds("load", dump, address(second))
    assert root_of(second) == root_of(first)
    second.kill()  # what was loaded is durable
    second.start()
    assert root_of(second) == root_of(first)
    succeeds("verify", address(second))


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_place(form: str, tmp_path: Path) -> None:
    with opened(tmp_path / "source"):
        pass
    dump = succeeds("dump", tmp_path / "source", "--format", form)
    succeeds("load", "-", tmp_path / "target", stdin=dump)
    assert contents(tmp_path / "target") == (bytes(32), ZERO_VERSION, 0, 0)


def test_both_formats_hold_the_same(source: Path, tmp_path: Path) -> None:
    cbor = succeeds("dump", source, "--format", "cbor")
    succeeds("load", "-", tmp_path / "target", stdin=cbor)
    assert succeeds("dump", tmp_path / "target") == succeeds("dump", source)


def test_json_lines_are_for_people(tmp_path: Path) -> None:
    """Text is text, other bytes are base64, one object a line, in key order, deleted keys too."""
    with opened(tmp_path / "data") as engine:
        engine.set("käse".encode(), b"text\n")
        engine.set(b"\xff\x00", b"\x80")
        engine.set(b"gone", b"x")
        engine.set(b"until", b"v", 5 * 10**12)
        engine.join()
        engine.delete(b"gone")
        version = version_of(engine.record(b"gone"))  # type: ignore[arg-type]
    head, *records, end = [json.loads(line) for line in succeeds("dump", tmp_path / "data").splitlines()]
    assert head == {"merklekv_dump": 3, "prefix": ""}
    shown = [{name: value for name, value in one.items() if name not in ("version", "digest")} for one in records]
    assert shown == [
        {"key": "gone", "tombstone": True},
        {"key": "käse", "value": "text\n"},
        {"key": "until", "value": "v", "exp": 5 * 10**12},
        {"key_base64": "/wA=", "value_base64": "gA=="},
    ]
    assert records[0]["version"] == f"{int.from_bytes(version[:8], 'big')}-{version[8:].hex()}"
    assert (end["end"], end["records"]) == (True, 4)


@pytest.mark.parametrize("online", [False, True])
def test_a_prefix(online: bool, source: Path, tmp_path: Path, node_factory: NodeFactory) -> None:
    place = address(node_factory(directory=source)) if online else str(source)
    dump = succeeds("dump", place, "--prefix", "number:1")
    lines = [json.loads(line) for line in dump.splitlines()]
    assert len(lines) - 2 == lines[-1]["records"] == 1000
    assert all(line["key"].startswith("number:1") for line in lines[1:-1])
    assert lines[-1]["truncation"] is None, "loading it must not reach beyond the prefix"
    with opened(tmp_path / "target") as engine:
        engine.set(b"other", b"stays")
    succeeds("load", "-", tmp_path / "target", stdin=dump)
    with opened(tmp_path / "target") as engine:
        assert engine.get(b"other") == b"stays"
        assert engine.live_count == 1 + 800


def test_a_prefix_of_any_bytes(source: Path) -> None:
    command = [*(part.encode() for part in TOOL), b"dump", str(source).encode(), b"--prefix", b"\xff"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["records"] == 1


@pytest.mark.parametrize("count", [PAGE_RECORDS - 1, PAGE_RECORDS, PAGE_RECORDS + 1, 2 * PAGE_RECORDS])
def test_at_the_end_of_a_page(count: int, tmp_path: Path, node_factory: NodeFactory) -> None:
    with opened(tmp_path / "source") as engine:
        for number in range(count):
            engine.set(b"%d" % number, b"")
    dump = succeeds("dump", tmp_path / "source")
    node = node_factory()
    succeeds("load", "-", address(node), stdin=dump)
    assert succeeds("dump", address(node)) == dump


def test_the_largest_values(tmp_path: Path, node_factory: NodeFactory) -> None:
    node = node_factory("--max-value-size", "1MiB")
    with Client("127.0.0.1", node.port) as client:
        for number in range(5):
            client.call(b"SET", b"large:%d" % number, bytes((number,)) * (1 << 20))
    dump = succeeds("dump", address(node), "--format", "cbor")
    other = node_factory("--max-value-size", "1MiB")
    succeeds("load", "-", address(other), stdin=dump)
    assert root_of(other) == root_of(node)
    smaller = node_factory("--max-value-size", "1000KiB")
    done = run("load", "-", address(smaller), stdin=dump)
    assert done.returncode == EXIT_REFUSED
    assert done.stderr.decode().splitlines() == [
        f"merklekv-tool: refused large:{number}: value size" for number in range(5)
    ]
    assert done.stdout == b"5 records read: 0 taken in, 0 not newer than what is there, 5 refused\n"


def test_the_newer_record_stands_and_loading_twice_is_harmless(source: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    succeeds("dump", source, "--output", dump)
    with opened(source) as engine:
        engine.set(b"plain", b"newer")
        engine.set(b"new", b"x")
        engine.delete(b"number:0001")
        root = engine.root()
    for _ in range(2):
        summary = json.loads(succeeds("load", dump, source, "--json"))
        assert (summary["applied"], summary["refused"]) == (0, 0)
        assert summary["superseded"] == summary["records"]
        assert contents(source)[0] == root


def test_a_record_from_the_far_future_is_refused_by_name(tmp_path: Path) -> None:
    year = 365 * 86_400 * 10**9
    with opened(tmp_path / "source") as engine:
        engine.set(b"today", b"x")
        engine.time_gate.max_drift_ns = 10 * year
        version = (engine.clock.newest + year).to_bytes(8, "big") + bytes(16)
        engine.merge([(OP_SET, b"in a year", make_record(b"in a year", version, b"x"))], b"elsewhere")
        engine.commit()
    done = run("load", "-", tmp_path / "target", "--json", stdin=succeeds("dump", tmp_path / "source"))
    assert done.returncode == EXIT_REFUSED
    summary = json.loads(done.stdout)
    assert (summary["applied"], summary["refused"]) == (1, 1)
    assert summary["reasons"] == [{"key": "in a year", "reason": "clock"}]
    told = run("load", "-", tmp_path / "target", stdin=succeeds("dump", tmp_path / "source")).stderr.decode()
    assert "clock: a wrong clock stamped the record in the future, or" in told


@pytest.mark.parametrize("online", [False, True], ids=["directory", "node"])
def test_values_are_written_anew(online: bool, source: Path, tmp_path: Path, node_factory: NodeFactory) -> None:
    """Over newer and deleted records; tombstones of the dump and its truncation version are left out."""
    dump, target = tmp_path / "dump", tmp_path / "target"
    with opened(source) as engine:
        engine.set(b"expired", b"v", 1)
    succeeds("dump", source, "--output", dump)
    _, _, live, dead = contents(source)
    with opened(target) as engine:
        engine.set(b"plain", b"newer")
        engine.set(b"kept", b"here")
        engine.set(b"number:0000", b"dead in the dump")
        engine.set(b"number:0001", b"x")
        engine.join()
        engine.delete(b"number:0001")
        gc_horizon = engine.clock.closing()
        engine.raise_gc_horizon(gc_horizon)
        assert not engine.collect_tombstones()
        truncation = engine.truncation
    shutil.copytree(target, tmp_path / "copy")
    refused = run("load", dump, tmp_path / "copy")
    assert refused.returncode == EXIT_REFUSED
    assert b"refused empty: stable" in refused.stderr
    assert b"stable: the cluster has deleted and collected the record since; --anew" in refused.stderr
    node = node_factory(directory=target) if online else None
    place = address(node) if node else target
    summary = succeeds("load", "--anew", dump, place).decode()
    left_out = f"{dead + 1} of deleted or expired keys left out"
    assert summary == f"{live + dead:,} records read: {live - 1} written anew, {left_out}, 0 refused\n"
    if node:
        node.stop()
    with opened(target) as engine:
        assert {key: engine.get(key) for key in SAMPLES} == SAMPLES
        assert {key: engine.expiry(key) for key in EXPIRIES} == EXPIRIES
        assert [engine.get(key) for key in (b"kept", b"number:0000", b"number:0001")] == [
            b"here",
            b"dead in the dump",
            b"1",
        ]
        record = engine.record(b"number:0001")
        assert record is not None
        assert timestamp_of(record) > gc_horizon
        assert engine.truncation == truncation


def test_a_value_too_large_to_be_written_anew_is_refused(tmp_path: Path, node_factory: NodeFactory) -> None:
    with opened(tmp_path / "source") as engine:
        engine.set(b"large", bytes(2000))
        engine.set(b"small", bytes(1000))
    node = node_factory("--max-value-size", "1000")
    done = run("load", "--anew", "-", address(node), stdin=succeeds("dump", tmp_path / "source"))
    assert done.returncode == EXIT_REFUSED
    assert done.stderr == b"merklekv-tool: refused large: value size\n"
    assert done.stdout == b"2 records read: 1 written anew, 0 of deleted or expired keys left out, 1 refused\n"


def test_the_output_appears_whole_or_not_at_all(source: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(b"the one before")
    log = next((source / "log").glob("*.log"))
    log.write_bytes(log.read_bytes()[:10])
    assert run("dump", source, "--output", dump).returncode != 0
    assert dump.read_bytes() == b"the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump", "source"]


def test_an_output_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "missing" / "dump"
    fails(EXIT_UNWRITABLE, str(target), "No such file", done=run("dump", source, "--output", target))


def test_a_full_disk_under_the_output(source: Path) -> None:
    fails(EXIT_UNWRITABLE, "No space left", done=run("dump", source, "--output", "/dev/full"))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("missing", [0, 1, 2000])
def test_stdout_that_takes_no_more(source: Path, tmp_path: Path, unbuffered: str, missing: int) -> None:
    whole = succeeds("dump", source)
    command = ["prlimit", f"--fsize={len(whole) - missing}", *TOOL, "dump", str(source)]
    environment = clean_environment() | {"PYTHONUNBUFFERED": unbuffered}
    with (tmp_path / "dump").open("wb") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=120, env=environment, check=False)
    if missing:
        fails(EXIT_UNWRITABLE, "the output", "File too large", done=done)
    else:
        assert done.returncode == 0
        assert (tmp_path / "dump").read_bytes() == whole


def test_stdout_that_is_closed(source: Path) -> None:
    command = ["sh", "-c", f"{shlex.join(TOOL)} dump {source} >&-"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=120, env=clean_environment(), check=False)
    fails(EXIT_UNWRITABLE, "stdout is closed", done=done)


def test_loading_into_a_full_directory(source: Path, tmp_path: Path) -> None:
    """What was taken in by then is whole; loading again, with room, brings the rest."""
    dump = tmp_path / "dump"
    succeeds("dump", source, "--output", dump)
    done = run("load", dump, tmp_path / "t", file_size=150_000)
    assert done.returncode == EXIT_UNWRITABLE
    last = done.stderr.decode().splitlines()[-1]  # the engine has said before what is full
    assert last.startswith("merklekv-tool: ")
    assert "disk full" in last
    assert "taken in before that" in last
    succeeds("verify", tmp_path / "t")
    succeeds("load", dump, tmp_path / "t")
    assert contents(tmp_path / "t") == contents(source)


def test_a_dump_that_cannot_be_read(tmp_path: Path) -> None:
    fails(EXIT_UNWRITABLE, "missing", "No such file", done=run("load", tmp_path / "missing", tmp_path / "target"))
    fails(EXIT_UNWRITABLE, "Is a directory", done=run("load", tmp_path, tmp_path / "target"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("packer", "program"),
    [
        (gzip.compress, "gunzip"),
        (bz2.compress, "bunzip2"),
        (lzma.compress, "unxz"),
        (b"\x28\xb5\x2f\xfd".__add__, "unzstd"),
    ],
)
def test_a_dump_that_is_compressed(packer: Callable[[bytes], bytes], program: str, tmp_path: Path) -> None:
    packed = tmp_path / "dump"
    packed.write_bytes(packer(b"{}"))
    said = f"{packed}: compressed: unpack it first: {program} < FILE | merklekv load - TARGET"
    fails(EXIT_DUMP, said, done=run("load", packed, tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_the_summary_as_json(source: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    summary = json.loads(succeeds("dump", source, "--output", dump, "--json"))
    size = dump.stat().st_size
    assert summary | {"seconds": 0} == {
        "source": str(source),
        "records": 2500 + len(SAMPLES),
        "tombstones": 500,
        "bytes": size,
        "seconds": 0,
    }
    beside = run("dump", source, "--json")
    assert json.loads(beside.stderr)["bytes"] == size == len(beside.stdout)


def test_a_reader_that_stops(source: Path) -> None:
    with subprocess.Popen([*TOOL, "dump", str(source)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == EXIT_PIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_wrong_format(source: Path) -> None:
    fails(EXIT_USAGE, "--format", "xml", done=run("dump", source, "--format", "xml"))


def test_a_node_that_is_written_to_while_it_is_dumped(tmp_path: Path, node_factory: NodeFactory) -> None:
    """Keys that are there throughout are in the dump once, whatever else happens."""
    with opened(tmp_path / "source") as engine:
        fill(engine)
    node = node_factory(directory=tmp_path / "source")
    with (
        subprocess.Popen([*TOOL, "dump", address(node)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        Client("127.0.0.1", node.port) as client,
    ):
        number = 0
        while process.poll() is None and number < 300:
            client.call(b"SET", b"number:%04d" % (number % 2500), b"again")
            client.call(b"SET", b"other:%d" % number, b"x")
            number += 1
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    keys = [json.loads(line).get("key") for line in output.splitlines()[1:-1]]
    numbers = [key for key in keys if key is not None and key.startswith("number:")]
    assert numbers == [f"number:{number:04d}" for number in range(2500)]
    succeeds("load", "-", tmp_path / "target", stdin=output)
    succeeds("verify", tmp_path / "target")
