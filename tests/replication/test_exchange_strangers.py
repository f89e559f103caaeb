"""Requests and answers that make no sense are refused, or end the exchange, and change nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from fixtures.exchanges import SECOND, Cut, Node, agree, answer, carry, cluster, exchange

from merklekv.replication.cluster.members import Members
from merklekv.replication.plain_cbor import Malformed
from merklekv.replication.sync import messages
from merklekv.replication.sync.local_endpoint import LocalEndpoint, Outdated
from merklekv.replication.sync.messages import ExchangeFailed, ExchangeRefused, decode, encode, pack, unpack

Answer = dict[str, Any]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with cluster(tmp_path, "ab") as (a, b):
        for number in range(40):
            a.set(b"both:%d" % number)
        exchange(a, b)
        a.set(b"a")
        b.set(b"b")
        b.set(b"large", b"v" * 3000)
        yield [a, b]


def changed(message: bytes, change: Callable[[Answer], object]) -> bytes:
    plain: Answer = cbor2.loads(message[4:-8])
    change(plain)
    return encode(plain.pop("do"), **plain)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("hello", lambda it: it["hello"].update(root=b"short"), "root has 5 bytes, not 0 or 32"),
        ("inner", lambda it: it.update(leaves=it["leaves"][8:]), "it sent no leaves for its inner nodes"),
        ("buckets", lambda it: it.update(done=0), "it does not go on"),
        ("buckets", lambda it: it.update(done=10_000), "done is 10000, not 0 to"),
        ("buckets", lambda it: it.update(records=[b"k", b"short"]), "it sent records that are cut"),
        ("buckets", lambda it: it.update(records=[b"k"]), "records has 1 items, an odd number of them"),
        ("buckets", lambda it: it.update(heads=[1, 2]), "heads holds something else than bytes"),
        ("buckets", lambda it: it.update(lacks=b"\xff" * 4), "it lacks more than it was asked for"),
        ("transfer", lambda it: it.update(served=0), "it does not send what it was asked for"),
        ("transfer", lambda it: it.update(do="scan"), "it answered 'scan' to 'transfer'"),
        ("done", lambda it: it.update(table=1), "table is int, not bytes"),
        ("done", lambda it: it.update(table=b"xx"), "a table that cannot be unpacked: "),
        ("done", lambda it: it.update(table=it["table"][:-1]), "a table that is cut, or has more than 4194304 bytes"),
        ("done", lambda it: it.update(table=zlib.compress(b"")), "no CBOR: "),
    ],
)
def test_an_answer_that_makes_no_sense(
    nodes: list[Node], kind: str, change: Callable[[Answer], object], says: str
) -> None:
    a, b = nodes
    done = 0

    def disturb(_: int, reply: bytes) -> bytes:
        nonlocal done
        if decode(reply, 1 << 20)[0] != kind:
            return reply
        done += 1
        return changed(reply, change)

    with pytest.raises(ExchangeFailed, match=f"^node .*: {says}"):
        carry(a.initiate().steps(), b, after=disturb)
    assert done == 1
    exchange(a, b)
    assert agree(a, b)


def test_pages_that_go_in_circles(nodes: list[Node]) -> None:
    a, b = nodes
    a.empty()

    def circle(number: int, reply: bytes) -> bytes:
        return changed(reply, lambda it: it.update(following=b"k")) if number > 0 else reply

    with pytest.raises(ExchangeFailed, match="node b: it does not go on"):
        carry(a.initiate().steps(), b, after=circle)


def test_a_tree_that_is_unknown_on_the_other_node(nodes: list[Node]) -> None:
    a, b = nodes

    def unknown(number: int, reply: bytes) -> bytes:
        return encode("inner", ready=0, nodes=b"", leaves=b"") if number == 1 else reply

    carry(a.initiate().steps(), b, after=unknown)
    assert agree(a, b)


@pytest.mark.parametrize(
    ("kind", "change", "why", "says"),
    [
        ("hello", lambda it: it.update(do="haggle"), "damaged", "no request is called 'haggle'"),
        ("buckets", lambda it: it.update(size=9), "damaged", "the fingerprints are not as many as it says"),
        ("buckets", lambda it: it.update(prints=b""), "damaged", "the fingerprints are not as many as it says"),
        ("buckets", lambda it: it.update(counts=b"123"), "damaged", "counts has 3 bytes"),
        ("buckets", lambda it: it.update(buckets=bytes(2 * 65_537)), "damaged", "buckets has 131074 bytes"),
        (
            "transfer",
            lambda it: it.update(stale=[b"k", bytes(23)]),
            "damaged",
            "stale records that are none",
        ),
    ],
)
def test_a_request_that_makes_no_sense(
    nodes: list[Node], kind: str, change: Callable[[Answer], object], why: str, says: str
) -> None:
    a, b = nodes

    def keep(_: int, request: bytes) -> bytes:
        if decode(request, 1 << 20)[0] == kind:
            answered, fields = decode(answer(b, changed(request, change)), 1 << 20)
            assert (answered, fields.text("why", 20)) == ("refused", why)
            assert says in fields.text("text", 1000)
            raise Cut
        return request

    with pytest.raises(Cut):
        carry(a.initiate().steps(), b, before=keep)


@pytest.mark.parametrize("why", ["removed", messages.DAMAGED])
def test_what_a_stranger_says_is_harmless_to_a_terminal(nodes: list[Node], why: str) -> None:
    def refuse(_: int, reply: bytes) -> bytes:
        return encode("refused", node="b", why=why, text="no\x1b[2J\r\nOK")

    with pytest.raises((ExchangeRefused, ExchangeFailed)) as error:
        carry(nodes[0].initiate().steps(), nodes[1], after=refuse)
    assert str(error.value).endswith(r"no\x1b[2J\r\nOK")


def test_both_nodes_may_lack_what_they_speak_of(nodes: list[Node]) -> None:
    """A record that is asked for may be gone by then, and one that was to be given as well."""
    a, b = nodes

    def collect(number: int, message: bytes) -> bytes:
        if number == 2:
            for node, key in ((a, b"a"), (b, b"large")):
                node.lose(key)
        return message

    carry(a.initiate().steps(), b, after=collect)
    assert agree(a, b)
    assert set(a.values()) == {b"b"} | {b"both:%d" % number for number in range(40)}


def test_what_was_decided_under_another_horizon_is_not_done(nodes: list[Node]) -> None:
    a, b = nodes
    endpoint = LocalEndpoint(a.engine, a.members, "test")
    for call in (endpoint.merge, endpoint.redelete):
        with pytest.raises(Outdated):
            call([], b"b", a.engine.gc_horizon + SECOND, 0)
    told = b.members.table()
    a.members.remove("b")
    with pytest.raises(ExchangeRefused, match="node b was removed meanwhile"):
        endpoint.complete(told, 0)


def test_a_table_of_members_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Members("a").table()
    assert unpack(pack(table)) == table
    size = len(cbor2.dumps(table.plain()))
    monkeypatch.setattr(messages, "TABLE_BYTES_MAX", size)
    assert unpack(pack(table)) == table
    monkeypatch.setattr(messages, "TABLE_BYTES_MAX", size - 1)
    with pytest.raises(Malformed, match=f"a table that is cut, or has more than {size - 1} bytes"):
        unpack(pack(table))
