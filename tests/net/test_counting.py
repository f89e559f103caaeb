"""Commands while a start counts what the log changes: those that need the count wait for it, all others are served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fixtures.counts import ROOMY, held_back, killed_with_a_log
from fixtures.servers import Start
from fixtures.wire import Wire, encode, readable

from merklekv.engine.engine import Engine


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
            assert not any(word in other.call(name) for word in (b"db_keys", b"db_tombstones", b"db0"))
        assert not any(map(readable, waiting.values()))
        may_count.set()
        for request, answer in answers.items():
            assert waiting[request].read(len(answer)) == answer
        assert waiting[encode("TREE", "0")].resp().startswith(b"$6144\r\n")
        assert b"db_tombstones:%d\r\n" % dead in other.call("STATS")
        server.stop(deadline_s=5)
        engine.close()
