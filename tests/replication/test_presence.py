"""Presence: what other nodes say of themselves is taken as far as it is sound."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merklekv.replication.cluster import presence
from merklekv.replication.cluster.presence import OFFLINE, ONLINE, Presence, Status, decode_status
from merklekv.replication.stream.broker_session import Topics
from merklekv.replication.stream.mqtt import BrokerSettings

STATUS = Status("b", ONLINE, "10.0.0.1:7379", "ab" * 32, 17, "1.2.3", "0123", "cd" * 8)


def ignore(status: Status) -> None:
    """No one asks for changes."""


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(STATUS.encode()) | fields).encode()


def test_a_status_is_read_as_it_was_written() -> None:
    assert decode_status("b", STATUS.encode()) == STATUS


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"1",
        b"[]",
        b"{}",
        b"[" * 100_000,
        changed(node="c"),
        changed(state="asleep"),
        changed(node=1),
        changed(padding="x" * presence.STATUS_BYTES_MAX),
    ],
)
def test_what_is_no_status_is_ignored(payload: bytes) -> None:
    assert decode_status("b", payload) is None


def test_a_field_that_is_wrong_is_left_out() -> None:
    wrong = changed(address=5, root=None, version=["1"], sequence="many", store_id=7, unknown=1)
    assert decode_status("b", wrong) == Status("b", ONLINE, epoch="0123")
    read = decode_status("b", changed(sequence=True))
    assert read is not None
    assert read.sequence == 0


def test_peers_come_and_go() -> None:
    others = Presence("a", "own", ignore)
    others.on_status("b", STATUS.encode())
    assert (len(others.online()), others.online()) == (1, {"b"})
    others.on_status("b", b"garbage")
    assert others.online() == {"b"}
    others.on_status("b", changed(state=OFFLINE))
    assert (len(others.online()), list(others.nodes)) == (0, ["b"])
    others.on_status("b", b"")
    assert others.nodes == {}


def test_news_of_a_peer_is_told_once() -> None:
    news: list[Status] = []
    others = Presence("a", "own", news.append)
    for payload in (
        STATUS.encode(),
        changed(root="00" * 32, sequence=99),  # what changes all the time is no news
        changed(state=OFFLINE),
        changed(state=OFFLINE, sequence=100),
        changed(epoch="another process"),
        changed(epoch="another process", address="10.0.0.2:7379"),
        changed(epoch="another process", address="10.0.0.2:7379", store_id="00" * 8),
    ):
        others.on_status("b", payload)
    assert [(status.state, status.epoch, status.address[-6:], status.store_id[:2]) for status in news] == [
        (ONLINE, "0123", "1:7379", "cd"),
        (OFFLINE, "0123", "1:7379", "cd"),
        (ONLINE, "another process", "1:7379", "cd"),
        (ONLINE, "another process", "2:7379", "cd"),
        (ONLINE, "another process", "2:7379", "00"),
    ]
    others.on_status("b", b"")
    assert news[5:] == [replace(news[4], state=OFFLINE)], "it was removed while it was online"
    others.on_status("b", b"")
    others.on_status("b", changed(state=OFFLINE))
    others.on_status("b", b"")
    assert [status.state for status in news[6:]] == [OFFLINE], "its last one"
    others.on_status("a", Status("a", ONLINE, epoch="own").encode())
    assert len(news) == 7
    others.on_status("b", changed(store_id="00" * 8))
    assert (others.store_id("b"), others.store_id("unknown")) == ("00" * 8, "")


def test_this_node_is_no_other_node_and_a_duplicate_is_counted() -> None:
    others = Presence("a", "own", ignore)
    others.on_status("a", Status("a", ONLINE, epoch="own").encode())
    assert (others.duplicates, others.has_own) == (0, True)
    others.on_status("a", Status("a", ONLINE, epoch="other").encode())
    assert (others.duplicates, others.nodes) == (1, {})


def test_a_status_of_another_process_is_not_its_own() -> None:
    others = Presence("a", "own", ignore)
    for payload in (Status("a", ONLINE, epoch="other").encode(), b"", b"garbage"):
        others.on_status("a", payload)
    assert (others.duplicates, others.has_own) == (1, False)


def test_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "NODES_MAX", 2)
    others = Presence("a", "own", ignore)
    for number in range(5):
        others.on_status("n0", Status("n0", ONLINE, sequence=number).encode())
        others.on_status(f"n{number}", Status(f"n{number}", ONLINE).encode())
    assert others.online() == {"n0", "n4"}, "who was heard last, so retained statuses keep nobody out"
    others.on_status("n0", Status("n0", OFFLINE).encode())
    assert (others.online(), others.is_online("n0"), others.is_online("n4")) == ({"n4"}, False, True)


def test_retained_statuses_push_no_node_out_that_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "NODES_MAX", 3)
    others = Presence("a", "own", ignore)

    def say(node: str, retained: bool) -> None:
        others.on_status(node, Status(node, ONLINE).encode(), retained=retained)

    for node in "bc":
        say(node, retained=True)
        say(node, retained=False)
    for number in range(5):
        say(f"false{number}", retained=True)
        say("b", retained=True)  # after another connect to the broker
    assert others.online() == {"b", "c", "false4"}
    for node in "dbe":
        say(node, retained=False)
    assert others.online() == {"d", "b", "e"}, "c has been silent for longest"


def test_nodes_can_be_read_while_they_change() -> None:
    others = Presence("a", "own", ignore)
    statuses = {f"n{number}": Status(f"n{number}", ONLINE).encode() for number in range(50)}
    for node, payload in statuses.items():
        others.on_status(node, payload)
    is_over = threading.Event()

    def change() -> None:
        while not is_over.is_set():
            for node, payload in statuses.items():
                others.on_status(node, payload)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2000):
            assert len(others.online()) == 50
    finally:
        sys.setswitchinterval(interval_s)
        is_over.set()
        thread.join()


def test_who_goes_for_another_is_told_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "NODES_MAX", 1)
    news: list[tuple[str, str]] = []
    others = Presence("a", "own", lambda status: news.append((status.node, status.state)))
    for node, state in (("b", ONLINE), ("c", OFFLINE), ("d", ONLINE)):
        others.on_status(node, Status(node, state).encode())
    assert news == [("b", ONLINE), ("b", OFFLINE), ("c", OFFLINE), ("d", ONLINE)]


def test_topics_say_whose_they_are() -> None:
    topics = Topics("a/prefix", "node")
    assert topics.node_and_kind(topics.events) == ("node", "events")
    assert topics.node_and_kind("a/prefix/other/status") == ("other", "status")


HOSTILE = [
    {"address": "a..b:7379"},
    {"address": "x\r\nEND\r\nOK:1"},
    {"address": "h" * 1000 + ":1"},
    {"address": "host"},
    {"root": "ab" * 31},
    {"root": "x\nforged:1"},
    {"version": "1\r\nEND"},
    {"version": "\x1b[31m"},
    {"version": "v" * 65},
    {"epoch": "\ud800"},
    {"epoch": "ü"},
    {"store_id": ""},
    {"store_id": "0" * 15},
    {"store_id": "Z" * 16},
    {"sequence": -1},
    {"sequence": 1 << 63},
    {"sequence": 10**400},
    {"sequence": float("nan")},
    {"sequence": 1.0},
]


@pytest.mark.parametrize("fields", HOSTILE, ids=lambda fields: ascii(fields)[:40])
def test_a_field_that_no_node_would_write_is_left_out(fields: dict[str, object]) -> None:
    read = decode_status("b", changed(**fields))
    assert read is not None
    ((name, _),) = fields.items()
    assert getattr(read, name) == (0 if name == "sequence" else "")
    assert read == replace(STATUS, **{name: getattr(read, name)})


@pytest.mark.parametrize("node", ["", "a/b", "+", "\ud800", "n" * 129, "x\r\nEND", " "], ids=ascii)
def test_a_node_that_cannot_be_called_so_has_no_status(node: str) -> None:
    assert decode_status(node, json.dumps({"node": node, "state": ONLINE}).encode()) is None


@pytest.mark.parametrize(
    "payload",
    [
        b'{"node":"b","state":"online","sequence":' + b"9" * 4000 + b"}",  # more digits than Python reads
        b'{"node":"b","state":"online","x":' + b"[" * 4000,
        b'{"node":"b","state":["online"]}',
        b'{"node":"b","state":{"online":1}}',
    ],
)
def test_a_status_that_cannot_be_read_is_ignored(payload: bytes) -> None:
    read = decode_status("b", payload)
    assert read is None or read.sequence == 0


words = st.text(max_size=70) | st.sampled_from(["a:1", "ab" * 32, "cd" * 8])


@given(st.dictionaries(st.sampled_from(["address", "root", "version", "epoch", "store_id"]), words), st.integers())
def test_what_was_read_can_be_said_again(fields: dict[str, str], sequence: int) -> None:
    read = decode_status("b", json.dumps({"node": "b", "state": ONLINE, "sequence": sequence, **fields}).encode())
    assert read is not None
    assert decode_status("b", read.encode()) == read


@pytest.mark.parametrize(
    "topic",
    [
        "b/prefix/node/events",  # of equal length
        "a/prefiy/node/events",
        "a/prefix/b/node/events",  # a cluster within ours
        "a/node/events",  # ours is within that
        "x/a/prefix/node/events",
        "/a/prefix/node/events",
        "a/prefix/events",
        "a/prefix//events",
        "a/prefix/node/other",
        "a/prefix/node/events/",
        "a/prefix/node",
        "a/prefix",
        "events",
        "",
    ],
)
def test_topics_of_other_clusters_are_no_nodes(topic: str) -> None:
    assert Topics("a/prefix", "node").node_and_kind(topic) is None


@pytest.mark.parametrize(
    ("topic", "filters"),
    [
        ("b/prefix/node/events", ["b/prefix/+/events", "b/prefix/+/status", "b/prefix/+/pubsub"]),
        ("a/prefix/b/node/status", ["a/prefix/b/+/events", "a/prefix/b/+/status", "a/prefix/b/+/pubsub"]),
        ("a/prefix/node/events", []),
        ("a/prefix//status", []),  # from our own subscription
        ("something/else", []),
        ("", []),
    ],
)
def test_a_foreign_topic_tells_the_subscriptions_it_came_by(topic: str, filters: list[str]) -> None:
    assert Topics("a/prefix", "node").foreign_filters(topic) == filters


def test_no_two_nodes_of_any_clusters_share_a_client_id() -> None:
    levels = ["a", "b", "a:b", ":", "a%3Ab", "%", "a-b", "b-c", "$b", "%24b"]
    prefixes = [*levels, *(f"{first}/{second}" for first in levels for second in levels)]
    ids = {BrokerSettings("host", 1883, prefix, node).client_id for prefix in prefixes for node in levels}
    assert len(ids) == len(prefixes) * len(levels)
    assert not any(char in name for name in ids for char in "/$+# ")


def test_a_client_id_is_readable() -> None:
    assert BrokerSettings("host", 1883, "merkle_kv", "node-1").client_id == "merkle_kv:node-1"
    assert BrokerSettings("host", 1883, "test/kv", "nœud:1").client_id == "test:kv:nœud%3A1"
