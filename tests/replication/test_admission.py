"""Exchanges that other nodes begin: which are refused, and which go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import Cut, Node

from merklekv.replication.cluster.members import Identity
from merklekv.replication.sync import responder as module
from merklekv.replication.sync.initiator import Initiator
from merklekv.replication.sync.local_endpoint import LocalEndpoint
from merklekv.replication.sync.messages import ExchangeRefused, decode, encode
from merklekv.replication.sync.responder import BUSY, ITSELF, Responder

Open = Callable[[str], Node]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Open]:
    opened: list[Node] = []

    def open_one(name: str) -> Node:
        opened.append(Node(tmp_path / str(len(opened)) / name))
        return opened[-1]

    yield open_one
    for one in opened:
        one.engine.close()


class Desk:
    """A responder with what its node has begun and served."""

    def __init__(self, node: Node) -> None:
        self.begun: set[str] = set()
        self.served: list[Identity] = []
        self.responder = Responder(
            node.engine, node.members, "test", self.begun.__contains__, self.is_engaged, self.served.append
        )

    def is_engaged(self, node: str) -> bool:
        return self.responder.serves_another(node)

    def answer(self, message: bytes) -> bytes:
        slices = self.responder.answer(message)
        while True:
            try:
                next(slices)
            except StopIteration as end:
                answer: bytes = end.value
                return answer


def exchange(asking: Node, desk: Desk) -> str:
    """A whole exchange: why it was refused, if it was."""
    steps = Initiator(asking.engine, asking.members, "test").steps()
    try:
        message = next(steps)
        while True:
            message = steps.send(desk.answer(message))
    except StopIteration:
        return ""
    except ExchangeRefused as refusal:
        return refusal.why


@pytest.mark.parametrize(("asked", "asking", "refused"), [("a", "b", BUSY), ("b", "a", "")])
def test_of_two_that_begin_at_once_the_smaller_id_goes_on(node: Open, asked: str, asking: str, refused: str) -> None:
    here, there = node(asked), node(asking)
    desk = Desk(here)
    desk.begun.add(asking)
    assert exchange(there, desk) == refused
    desk.begun.clear()
    assert exchange(there, desk) == ""


def test_an_exchange_that_goes_on_may_finish(node: Open) -> None:
    """What was let in before this node began its own is not turned away at the last step."""
    here, there = node("a"), node("b")
    desk = Desk(here)
    there.engine.set(b"k", b"v")
    answer = desk.answer

    def answer_and_begin(message: bytes) -> bytes:
        answered = answer(message)
        desk.begun.add("b")
        return answered

    desk.answer = answer_and_begin  # type: ignore[method-assign]
    assert exchange(there, desk) == ""
    assert here.engine.get(b"k") == b"v"


def test_an_exchange_is_served_if_its_initiator_goes_before_the_last_answer(node: Open) -> None:
    here, there = node("a"), node("b")
    desk = Desk(here)
    there.engine.set(b"k", b"v")
    there.engine.commit()

    def go_away(message: bytes) -> bytes:
        slices = desk.responder.answer(message)
        try:
            while True:
                next(slices)
                if here.members.applied_through(there.members.identity):
                    slices.close()
                    raise Cut
        except StopIteration as end:
            answer: bytes = end.value
            return answer

    desk.answer = go_away  # type: ignore[method-assign]
    with pytest.raises(Cut):
        exchange(there, desk)
    assert desk.served == [there.members.identity]


def test_a_node_that_has_reached_itself_is_told_apart_from_a_copy(node: Open) -> None:
    here, other = node("a"), node("a")
    desk = Desk(here)
    assert exchange(here, desk) == ITSELF
    other.members.identity = here.members.identity
    other.tick()
    assert exchange(other, desk) == "self"


def test_a_served_exchange_is_reported_once(node: Open) -> None:
    here, there = node("a"), node("b")
    desk = Desk(here)
    for count in (1, 2):
        there.tick()
        there.engine.set(b"k", b"%d" % count)
        assert exchange(there, desk) == ""
        assert desk.served == [there.members.identity] * count


def test_an_exchange_goes_on_as_long_as_there_are_steps(node: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    here, there = node("a"), node("b")
    desk = Desk(here)
    hello, _ = LocalEndpoint(there.engine, there.members, "test").hello()
    assert not desk.responder.is_serving("b")
    desk.answer(encode("hello", hello=hello.plain()))
    for _ in range(5):
        now[0] += module.SERVING_S - 0.01
        assert desk.responder.is_serving("b")
        desk.answer(encode("inner"))  # whatever it says
    assert not desk.responder.is_serving("c")
    now[0] += module.SERVING_S
    assert not desk.responder.is_serving("b")


def test_an_exchange_has_its_nodes_for_itself_for_a_while(node: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is done, is cut or takes long; not when both hold the same."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    here, there, third = node("a"), node("b"), node("c")
    desk = Desk(here)
    hello = encode("hello", hello=LocalEndpoint(there.engine, there.members, "test").hello()[0].plain())
    desk.answer(hello)
    assert not desk.responder.serves_another("c"), "both hold nothing"
    here.set(b"k")
    desk.answer(hello)
    assert desk.responder.serves_another("c")
    assert not desk.responder.serves_another("b")
    assert exchange(third, desk) == BUSY
    now[0] += module.SILENT_S
    assert not desk.responder.serves_another("c"), "it was cut"
    desk.answer(hello)
    for _ in range(round(module.EXCLUSIVE_S / module.SILENT_S * 2)):
        assert desk.responder.serves_another("c") == (now[0] < 100 + module.SILENT_S + module.EXCLUSIVE_S)
        now[0] += module.SILENT_S / 2
        desk.answer(hello)  # a pass that begins again is no new exchange
    assert exchange(there, desk) == ""
    assert exchange(third, desk) == "", "it is done"


def test_what_is_refused_is_no_step(node: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    here, there, smaller = node("b"), node("c"), node("a")
    desk = Desk(here)
    hellos = [
        (LocalEndpoint(one.engine, one.members, cluster).hello()[0], why)
        for one, cluster, why in ((here, "test", ITSELF), (there, "test", BUSY), (smaller, "another", "cluster"))
    ]
    assert exchange(smaller, desk) == ""
    desk.begun.add("c")
    now[0] += module.SERVING_S - 0.01
    refused = [decode(desk.answer(encode("hello", hello=hello.plain())), 1 << 20)[1] for hello, _ in hellos]
    assert [fields.text("why", 20) for fields in refused] == [why for _, why in hellos]
    for message in (b"garbage", encode("unknown"), encode("hello"), encode("done")):
        desk.answer(message)
    assert desk.responder.is_serving("a")
    now[0] += 0.01
    assert not desk.responder.is_serving("a")


@pytest.mark.parametrize("message", [b"", b"x" * 100, encode("hello"), encode("done", hello=5), encode("inner")])
def test_what_makes_no_sense_is_refused(node: Open, message: bytes) -> None:
    kind, fields = decode(Desk(node("a")).answer(message), 1 << 20)
    assert (kind, fields.text("why", 20)) == ("refused", "damaged")
