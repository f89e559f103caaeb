"""Nodes that are watched: what is asked of them and when, and what strangers among them can do."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.proxy import ProxyFactory
from fixtures.support import free_port, wait_until
from fixtures.tools import FakeNode

import merklekv.net.commands  # noqa: F401  declares them
from merklekv.net import registry
from merklekv.net.protocol.resp import bulk
from merklekv.web import view, watch
from merklekv.web.latency import READS, WRITES, Calls, calls_of, percentile_us
from merklekv.web.view import NODES_MAX, ClusterView

NOT_ON_DATA = ("management", "sync", "hash")  # groups: of the server, of programs that run there, of other nodes
STATS = b"node_id:stranger\r\ndb_keys:3\r\n"


StrangerFactory = Callable[[dict[bytes, bytes]], FakeNode]


@pytest.fixture
def stranger() -> Iterator[StrangerFactory]:
    """Servers that answer each command with what is given for it, and an error to all others."""
    with contextlib.ExitStack() as made:

        def make(replies: dict[bytes, bytes]) -> FakeNode:
            one = made.enter_context(FakeNode())
            one.knows_nothing = True
            one.replies = replies
            return one

        yield make


@contextlib.contextmanager
def pictures(*addresses: str, here: str = "") -> Iterator[Callable[[], dict[str, Any]]]:
    """The next picture of a view of these nodes, again and again."""
    events = ClusterView(*addresses, here=here).events()

    def following() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(next(events).removeprefix(b"data: "))
        return found

    with contextlib.closing(events):
        yield following


def wait_for(following: Callable[[], dict[str, Any]], condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first picture of which the condition holds."""

    def look() -> dict[str, Any]:
        picture = following()
        return picture if condition(picture) else {}

    return wait_until(look, what="the picture")


def address_of(node: NodeProcess) -> str:
    return f"127.0.0.1:{node.port}"


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "page-watch"]


def test_what_is_asked_of_a_node_ends_with_the_last_viewer(node: NodeProcess) -> None:
    one = ClusterView(address_of(node), here=address_of(node))
    first, second = one.events(), one.events()
    assert not watchers()
    picture = json.loads(next(first).removeprefix(b"data: "))
    next(second)
    assert len(watchers()) == 1
    assert picture["here"] == picture["nodes"][0]["id"] != ""
    first.close()
    next(second)
    assert len(watchers()) == 1
    second.close()
    wait_until(lambda: not watchers(), what="the end of the watch")
    third = one.events()
    assert b'"state":"up"' in next(third)
    third.close()
    wait_until(lambda: not watchers(), what="the end of the watch")


def test_down_is_seen_within_two_seconds() -> None:
    assert watch.ROUND_S + watch.ANSWER_S + view.TICK_S <= 2


def test_a_node_that_hangs_keeps_no_other_waiting(node_factory: NodeFactory, proxy_factory: ProxyFactory) -> None:
    node = node_factory()
    proxy = proxy_factory("127.0.0.1", node_factory().port)
    with pictures(address_of(node), f"127.0.0.1:{proxy.port}") as following:
        wait_for(following, lambda picture: all(one["state"] == "up" for one in picture["nodes"]))
        proxy.freeze()
        picture = wait_for(following, lambda picture: [one["state"] for one in picture["nodes"]] == ["up", "down"])
        assert "answer within 1 s" in picture["nodes"][1]["error"]
        proxy.thaw()
        wait_for(following, lambda picture: picture["nodes"][1]["state"] == "up")


def test_where_nodes_differ(node_factory: NodeFactory) -> None:
    nodes = [node_factory() for _ in range(3)]
    clients = [node.connect() for node in nodes]
    addresses = [address_of(node) for node in nodes]
    with pictures(*addresses) as following:
        wait_for(following, lambda picture: picture["verdict"]["level"] == "good")
        assert clients[2].ask("SET only here") == "OK"
        picture = wait_for(
            following,
            lambda picture: (
                [node["differs"] for node in picture["nodes"]][:2] == [[], []] and picture["nodes"][2]["differs"]
            ),
        )
        assert [len(node["differs"]) for node in picture["nodes"]] == [0, 0, 1]
        assert picture["verdict"]["text"].startswith("Nodes differ in 1 of 256 parts") or "Clients write" in str(
            picture
        )
        for client in clients[:2]:
            assert client.ask(f"SYNC 127.0.0.1 {nodes[2].port}") == "OK"
        picture = wait_for(following, lambda picture: picture["verdict"]["level"] == "good")
        assert [node["differs"] for node in picture["nodes"]] == [[], [], []]
        assert picture["verdict"]["text"] == "All 3 nodes hold the same 1 key"
    for client in clients:
        client.close()


def test_a_program_that_is_no_node(stranger: StrangerFactory) -> None:
    floods = stranger({b"STATS": bulk(b"x" * (3 << 20))})
    strange = stranger({b"STATS": b"*2\r\n:1\r\n:2\r\n"})
    mute = stranger({})
    with pictures(floods.address, strange.address, mute.address) as following:
        picture = wait_for(following, lambda picture: all(node["state"] == "down" for node in picture["nodes"]))
    errors = [node["error"] for node in picture["nodes"]]
    assert "does not answer as a MerkleKV node" in errors[0]
    assert [error for error in errors[1:] if "answers STATS strangely" in error] == errors[1:]


def test_what_a_stranger_says_is_bounded(stranger: StrangerFactory) -> None:
    rows: list[dict[str, Any]] = [
        {"node": f"n{number:03}", "state": "member", "address": f"127.0.0.1:{free_port()}"} for number in range(40)
    ]
    rows += [{"node": "bad", "state": "member", "address": "no address"}, {"node": 7}]
    members = b"\n".join(json.dumps(row).encode() for row in rows) + b"\nno json\n[]\n" + b"[" * 5000
    long = (
        b"node_id:"
        + b"n" * 5000
        + b"\r\nclock_problem:\x1b[31m\xe2\x80\xae"
        + b"p" * 5000
        + b"\r\noutbox_events:many\r\n"
    )
    liar = stranger({b"STATS": bulk(long), b"MEMBERS": bulk(members), b"SLOWLOG": b"*1\r\n*2\r\n:1\r\n:2\r\n"})
    with pictures(liar.address) as following:
        picture = wait_for(following, lambda picture: len(picture["nodes"]) == NODES_MAX)
    node = picture["nodes"][0]
    assert node["state"] == "up"
    assert len(node["id"]) == 300
    assert node["problems"][0].startswith(r"\x1b[31m\u202ep")
    assert len(node["problems"][0]) < 400
    assert node["outbox"] is None
    assert picture["not_shown"] == 25
    assert picture["slow"] == []


def test_numbers_that_no_page_can_show_are_unknown(stranger: StrangerFactory) -> None:
    digits = b"9" * 4300  # Python reads so many, and the sum of two of them cannot be written
    stats = b"node_id:liar\r\ndb_keys:%b\r\noutbox_events:%b\r\ninbox_messages:9007199254740991\r\n" % (digits, digits)
    rows = b'{"node":"n","state":"gone","address":"","contact_ms":%b}' % digits
    replies = {b"STATS": bulk(stats), b"MEMBERS": bulk(rows)}
    down = f"127.0.0.1:{free_port()}"
    with pictures(stranger(replies).address, stranger(replies).address, down) as following:
        picture = wait_for(
            following, lambda picture: [one["state"] for one in picture["nodes"]] == ["up", "up", "down"]
        )
    node = picture["nodes"][0]
    assert (node["keys"], node["outbox"], node["inbox"]) == (None, None, (1 << 53) - 1)
    assert picture["members"][0]["contact_ms"] is None


def test_a_node_whose_replies_cost_much_is_asked_more_rarely() -> None:
    assert watch.pause_s(0.001) == watch.ROUND_S
    assert watch.pause_s(0.2) == pytest.approx(10.0)


def test_a_watch_begins_when_the_machine_has_a_thread(node: NodeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = threading.Thread.start, [1, 2, 3]

    def start_later(thread: threading.Thread) -> None:
        if thread.name == "page-watch" and refused:
            refused.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    with pictures(address_of(node)) as following:
        assert following()["verdict"]["text"] == "Asking the node"
        wait_for(following, lambda picture: picture["nodes"][0]["state"] == "up")
    assert not refused
    wait_until(lambda: not watchers(), what="the end of the watch")


def test_keys_that_are_counted_yet_have_no_root(stranger: StrangerFactory) -> None:
    starting = stranger({b"STATS": bulk(b"node_id:slow\r\n")})
    with pictures(starting.address) as following:
        picture = wait_for(following, lambda picture: picture["nodes"][0]["state"] == "up")
        assert picture["verdict"] == {"level": "busy", "text": "slow counts its keys"}
        starting.replies |= {b"STATS": bulk(STATS), b"HASH": bulk(b"ab" * 32)}
        picture = wait_for(following, lambda picture: picture["nodes"][0]["root"] == "ab" * 32)
        assert picture["verdict"]["text"] == "One node holds 3 keys"


# -- rates and percentiles ---------------------------------------------------------------------------------------------


def histogram(calls: int, *buckets: int) -> list[Any]:
    return [b"calls", calls, b"histogram_usec", list(buckets)]


def test_calls_of_commands_on_data() -> None:
    reply: Any = [b"get", histogram(5, 1, 2, 2, 5), b"set", histogram(3, 2, 3), b"stats", histogram(9, 1, 9)]
    assert calls_of(reply) == Calls(5, 3, {1: 2, 2: 6})


def test_every_command_of_clients_on_data_counts() -> None:
    known = {name.lower() for name in (*registry.RESP, *registry.LINE)}
    for flag, names in ((registry.READS, READS), (registry.WRITES, WRITES)):
        declared = {
            name.lower() for name, one in registry.RESP.items() if flag in one.flags and one.group not in NOT_ON_DATA
        }
        assert declared <= names <= known


@pytest.mark.parametrize(
    "reply",
    [None, 7, b"x", [], [b"get"], [b"get", 7], [7, []], [b"get", [b"calls", b"x"]], [b"get", [b"calls", 1, [], 2]]],
)
def test_replies_of_another_shape(reply: Any) -> None:
    assert calls_of(reply) == Calls()


def test_percentiles_between_two_totals() -> None:
    before, after = Calls(1, 0, {4: 10, 8: 5}), Calls(2, 0, {4: 10, 8: 103, 64: 2})
    assert percentile_us(before, after, 0.5) == 8
    assert percentile_us(before, after, 0.99) == 64
    assert percentile_us(after, after, 0.5) is None
    assert percentile_us(after, before, 0.5) is None  # the node has started anew
