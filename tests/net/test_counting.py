"""Commands while a start counts what the log changes: those that need the count wait for it, all others are served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.counts import ROOMY, held_back, killed_with_a_log
from fixtures.engines import Wall
from fixtures.servers import Start
from fixtures.support import wait_until
from fixtures.wire import Wire, encode, readable

from merklekv.engine.engine import Engine
from merklekv.engine.record import version_of


def test_commands_during_a_count(tmp_path: Path, start: Start, connect: Callable[..., Wire]) -> None:
    root, live, dead = killed_with_a_log(tmp_path / "killed")
    hash_ = root.hex().encode()
    answers = {
        b"DBSIZE\r\n": b"DBSIZE %d\r\n" % live,
        b"HASH\r\n": b"HASH %b\r\n" % hash_,
        encode("DBSIZE"): b":%d\r\n" % live,
        encode("HASH"): b"$64\r\n%b\r\n" % hash_,
    }
    with held_back() as may_count:
        engine = Engine(tmp_path / "killed", durability="never", memtable_size=ROOMY)
        server = start(engine=engine)
        waiting = {request: connect(server) for request in (*answers, encode("TREE", "0"))}
        for request, wire in waiting.items():
            wire.send(request)
        other = connect(server)
        assert other.call("GET", "k1") == b"$3\r\nnew\r\n"
        assert other.call("EXISTS", "k1", "k5") == b":1\r\n"
        assert other.call("HASH", "k1").startswith(b"$64\r\n")  # of a prefix: from its records
        for name in ("STATS", "INFO"):
            assert not any(word in other.call(name) for word in (b"db_keys", b"db_tombstones", b"db0:"))
        assert not any(map(readable, waiting.values()))
        may_count.set()
        for request, answer in answers.items():
            assert waiting[request].read(len(answer)) == answer
        assert waiting[encode("TREE", "0")].resp().startswith(b"$6144\r\n")
        assert b"db_tombstones:%d\r\n" % dead in other.call("STATS")
        server.stop(deadline_s=5)
        engine.close()


def test_a_stop_waits_for_no_count(tmp_path: Path, start: Start, connect: Callable[..., Wire]) -> None:
    killed_with_a_log(tmp_path / "killed")
    with held_back():
        engine = Engine(tmp_path / "killed", durability="never", memtable_size=ROOMY)
        server = start(engine=engine)
        waiting = {name: connect(server) for name in ("HASH", "DBSIZE", "TREE")}
        for name, wire in waiting.items():
            wire.send(encode(name, *["0"] * (name == "TREE")) + encode("GET", "k1"))
        assert connect(server).call("PING") == b"+PONG\r\n"
        engine.end_waits()  # as a stop of the node does first
        server.stop(deadline_s=600)
        for wire in waiting.values():
            assert wire.rest() == b"-ERR the node stops, and has not counted its keys since its start\r\n$3\r\nnew\r\n"
        engine.close()


def test_a_hash_whose_leaves_become_unknown_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start, connect: Callable[..., Wire]
) -> None:
    wall = Wall()
    engine = engines.open_engine(tmp_path / "truncated", wall_clock=wall)
    for key in (b"old", b"new"):
        wall.now += 1
        engine.set(key, b"v")
    newer = engine.record(b"new")
    assert newer is not None
    engine.checkpoint_now()
    prepare_root = engine.prepare_root

    def truncate_behind() -> Iterator[None]:
        yield from prepare_root()
        engine.merge_truncation(version_of(newer), b"peer")

    monkeypatch.setattr(engine, "prepare_root", truncate_behind)
    server = start(engine=engine)
    waiting = connect(server)
    waiting.send(encode("HASH"))
    wait_until(lambda: not engine.root_ready, what="the truncation")
    assert connect(server).call("PING") == b"+PONG\r\n"
    assert not readable(waiting)
    engine.checkpoint_now()
    assert waiting.resp() == b"$64\r\n%b\r\n" % engine.root().hex().encode()
    server.stop(deadline_s=5)
    engine.close()
