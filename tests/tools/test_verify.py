"""`verify`: silent about what is sound, and each thing that is not sound named, in a directory and behind a port."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2
import lmdb
import pytest
from fixtures.node import NodeFactory
from fixtures.records import with_flags
from fixtures.tools import FakeNode, address, filled, run, succeeds
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.verbs.verify import ATTEMPTS

from merklekv.engine.engine import Engine
from merklekv.engine.merkle import MerkleTree
from merklekv.engine.record import ZERO_VERSION, make_record
from merklekv.net.client import Client
from merklekv.replication.cluster.members import Members


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    filled(tmp_path / "data")
    return tmp_path / "data"


def test_a_sound_directory(sound: Path) -> None:
    assert succeeds("verify", sound).decode() == f"{sound}: no problems found\n"
    verdict = json.loads(succeeds("verify", sound, "--json"))
    assert verdict == {"source": str(sound), "ok": True, "problems": [], "notes": []}


def test_verifying_changes_nothing(sound: Path) -> None:
    before = {path: path.read_bytes() for path in sound.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    succeeds("verify", sound)
    after = {path: path.read_bytes() for path in sound.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    assert after == before


def test_a_sound_node(sound: Path, node_factory: NodeFactory) -> None:
    node = node_factory(directory=sound)
    assert succeeds("verify", address(node)).decode() == f"{address(node)}: no problems found\n"
    assert json.loads(succeeds("verify", address(node), "--json"))["ok"]


def test_every_problem_of_a_directory_is_named(sound: Path) -> None:
    with lmdb.open(str(sound / "base"), max_dbs=4) as base, base.begin(write=True) as txn:
        records = base.open_db(b"records", txn)
        for key in (b"plain", b"tab\t"):
            record = bytearray(txn.get(key, db=records) or b"")
            record[-1] ^= 1
            txn.put(key, bytes(record), db=records)
    done = run("verify", sound)
    assert done.returncode == EXIT_PROBLEMS
    *problems, last = done.stdout.decode().splitlines()
    assert last == f"{sound}: {len(problems)} problems found"
    assert any("b'plain'" in problem and "digest" in problem for problem in problems)
    assert any(r"b'tab\t'" in problem and "digest" in problem for problem in problems)
    as_json = run("verify", sound, "--json")
    assert as_json.returncode == EXIT_PROBLEMS
    verdict = json.loads(as_json.stdout)
    assert (verdict["ok"], verdict["problems"]) == (False, problems)


def test_a_torn_tail_is_noted_and_no_problem(sound: Path) -> None:
    newest = max((sound / "log").glob("*.log"))
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size - 1)
    done = run("verify", sound)
    assert done.returncode == 0
    assert done.stdout.decode() == f"{sound}: no problems found\n"
    assert str(newest) in done.stderr.decode()
    assert json.loads(succeeds("verify", sound, "--json"))["notes"]


def record(key: bytes, value: bytes = b"v", version: bytes = b"\x17" * 24, tombstone: bool = False) -> bytes:
    return make_record(key, version, value, tombstone=tombstone)


def root_of(records: dict[bytes, bytes], truncation: bytes = ZERO_VERSION) -> bytes:
    tree = MerkleTree({})
    for key, one in records.items():
        tree.add(key, one)
    return tree.root(truncation)


A, B, C = b"a", b"b", b"c"
SOUND = {key: record(key) for key in (A, B, C)}


@pytest.fixture
def fake() -> Iterator[FakeNode]:
    """A node that says what it is told to."""
    with FakeNode() as node:
        node.records = list(SOUND.items())
        node.root = root_of(SOUND)
        yield node


def test_a_fake_node_that_is_sound(fake: FakeNode) -> None:
    succeeds("verify", fake.address)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda node: node.records.reverse(), ["key b'b': comes after b'c'", "key b'a': comes after b'b'"]),
        (lambda node: node.records.insert(1, node.records[0]), ["key b'a': comes after b'a'"]),
        (lambda node: node.put(B, SOUND[B][:-1] + b"w"), ["key b'b': the digest is "]),
        (lambda node: node.put(B, SOUND[A]), ["key b'b': the digest is "]),
        (lambda node: node.put(B, with_flags(B, record(B), 4)), ["key b'b': the flags are 4"]),
        (lambda node: node.put(B, with_flags(B, record(B), 2)), ["key b'b': the expiry is 76, expected 8 bytes"]),
        (lambda node: node.put(B, record(B, tombstone=True)), ["key b'b': the tombstone has a value of 1 bytes"]),
        (lambda node: node.put(B, record(B, version=bytes(24))), ["the root that it answers"]),
        (lambda node: node.records.pop(), ["the root that it answers", "the number of records that it counts"]),
        (lambda node: setattr(node, "truncation", b"\x18" * 24), ["expected none below the truncation version"]),
        (lambda node: setattr(node, "truncation", b"\x16" * 24), ["the root that it answers"]),
        (lambda node: setattr(node, "live", 7), ["the number of records that it counts is 7, expected 3"]),
    ],
)
def test_every_problem_of_a_node_is_named(change: Callable[[FakeNode], None], words: list[str], fake: FakeNode) -> None:
    fake.live = len(fake.records)
    change(fake)
    done = run("verify", fake.address)
    assert done.returncode == EXIT_PROBLEMS, done.stdout
    for word in words:
        assert word in done.stdout.decode()


def test_a_node_that_is_written_to_all_the_time(fake: FakeNode) -> None:
    """Its root is tried again, and then left out; the rest is checked all the same."""
    fake.root_moves = True
    done = run("verify", fake.address)
    assert done.returncode == 0
    assert "written to all the time, so its root was not compared" in done.stderr.decode()
    assert fake.asked[b"HASH"] == 2 * ATTEMPTS
    fake.put(B, SOUND[B][:-1] + b"w")
    assert run("verify", fake.address).returncode == EXIT_PROBLEMS


def test_a_node_that_is_written_to_for_a_while(fake: FakeNode) -> None:
    fake.root_moves_for = 1
    assert json.loads(succeeds("verify", fake.address, "--json"))["notes"] == []
    assert fake.asked[b"HASH"] == 4


def test_a_busy_node(sound: Path, node_factory: NodeFactory) -> None:
    """Real writes beside it make no problem appear."""
    node = node_factory(directory=sound)
    stop = threading.Event()

    def write() -> None:
        with Client("127.0.0.1", node.port) as client:
            number = 0
            while not stop.is_set():
                client.call(b"SET", b"number:%04d" % (number % 3000), b"%d" % number)
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        succeeds("verify", address(node))
    finally:
        stop.set()
        writer.join()
    assert json.loads(succeeds("verify", address(node), "--json"))["notes"] == []


# -- what a node keeps beside its records ------------------------------------------------------------------------------


def put_metadata(directory: Path, name: bytes, value: bytes, checkpoint: bool = False) -> None:
    engine = Engine(directory, checkpoint="manual")
    engine.put_metadata(name, value)
    engine.commit()
    if checkpoint:
        engine.truncate()  # so that the base takes in all that is in the log
        engine.commit()
        engine.checkpoint_now()
    engine.close()


def table(*rows: object) -> bytes:
    plain = cbor2.loads(Members("n1").encode())
    return cbor2.dumps(plain | {"rows": list(rows)})


def problems_of(place: str | Path) -> list[str]:
    done = run("verify", place, "--json")
    problems: list[str] = json.loads(done.stdout)["problems"]
    assert done.returncode == (EXIT_PROBLEMS if problems else 0)
    return problems


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (b"members", b"\xff", "the table of members cannot be read: no CBOR"),
        (
            b"members",
            table(["", b"b" * 8, 0, 0, 0, 0, b""]),
            "which cannot be read: node is '', not 1 to 128 bytes",
        ),
        (b"members", cbor2.dumps({"v": 99}), "the table of members is of version 99, from a later release"),
        (b"gc_horizon", bytes(9), "the metadata entry gc_horizon has 9 bytes, not 8"),
    ],
)
def test_a_note_that_a_start_cannot_read_is_named(
    sound: Path, name: bytes, value: bytes, problem: str, checkpoint: bool
) -> None:
    put_metadata(sound, name, value, checkpoint)
    (found,) = problems_of(sound)
    assert problem in found


def test_the_newest_note_is_what_counts(sound: Path) -> None:
    put_metadata(sound, b"members", b"\xff", checkpoint=True)
    put_metadata(sound, b"members", table())
    assert problems_of(sound) == []


def test_a_file_with_no_node_id_is_a_problem(sound: Path) -> None:
    (sound / "node-id").write_bytes(b"a\nb\n")
    (problem,) = problems_of(sound)
    assert problem.startswith(f"{sound / 'node-id'}: contains 'a\\nb'; a node id has 1 to 128 bytes")


def test_a_damaged_place_in_the_log_is_noted(sound: Path) -> None:
    (sound / "outbox").write_bytes(b"damaged")
    verdict = json.loads(succeeds("verify", sound, "--json"))
    assert verdict["problems"] == []
    assert verdict["notes"] == [f"{sound / 'outbox'}: damaged, a start publishes again what is left of the log"]


def test_a_directory_with_an_unreadable_table_is_served_backed_up_and_restored(
    sound: Path, tmp_path: Path, node_factory: NodeFactory
) -> None:
    put_metadata(sound, b"members", b"\xff")
    succeeds("backup", sound, tmp_path / "backup.tgz")
    succeeds("restore", tmp_path / "backup.tgz", tmp_path / "restored")
    for directory in (sound, tmp_path / "restored"):
        assert succeeds("dump", directory)
        node = node_factory("--node-id", "n1", directory=directory)
        with node.connect() as client:
            assert client.ask("GET plain") == "VALUE text"
        assert "members: unreadable+" in node.output()
        (problem,) = problems_of(address(node))
        name = next(word for word in problem.split() if word.startswith("unreadable+")).rstrip(",")
        assert name in succeeds("members", address(node)).decode()
        succeeds("forget", name, "--at", address(node))
        assert problems_of(address(node)) == []
        assert node.stop() == 0
        node.start()
        assert "unreadable" not in node.output()
        assert node.stop() == 0
        assert problems_of(directory) == []
