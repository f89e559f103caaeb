"""The key browser without a browser: what it asks of a node, and how it shows bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fixtures.node import NodeProcess

from merklekv.errors import InvalidArgument
from merklekv.net.client import Client
from merklekv.web import keys
from merklekv.web.keys import KeyBrowser, preview


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Client]:
    with Client("127.0.0.1", node.port) as client:
        yield client


@pytest.fixture
def browser(node: NodeProcess) -> KeyBrowser:
    return KeyBrowser(f"127.0.0.1:{node.port}")


@pytest.mark.parametrize(
    ("data", "form", "shown"),
    [
        (b"", "text", ""),
        (b"abc", "text", "abc"),
        ("\u00e4\u05e9".encode(), "text", "\u00e4\u05e9"),
        (b"two\nlines\tand more", "text", "two\nlines\tand more"),
        (b"\x00\xff", "hex", "00 ff"),
        (b"\x1b[31m", "hex", "1b 5b 33 31 6d"),
        ("\u202ereversed".encode(), "hex", "\u202ereversed".encode().hex(" ")),
        (b"x" * 1000, "text", "x" * 200),
        (b"x" + "\u00e4".encode() * 500, "text", "x" + "\u00e4" * 99),
    ],
)
def test_bytes_for_people(data: bytes, form: str, shown: str) -> None:
    assert preview(data) == {form: shown, "size": len(data), "cut": len(data) > 200}


def test_a_page_has_what_is_known_of_each_key(browser: KeyBrowser, client: Client) -> None:
    expiry_ms = time.time_ns() // 10**6 + 10**6
    client.call(b"SET", b"k", b"v", b"PXAT", b"%d" % expiry_ms)
    client.call(b"SET", b"gone", b"v")
    client.call(b"DEL", b"gone")
    client.call(b"SET", b"large", bytes(1 << 20))
    page = browser.page("", "")
    first, large = page["keys"]
    assert page["next"] is None
    assert first["key"]["text"] == "k"
    assert first["expiry_ms"] == expiry_ms
    assert abs(first["written_ms"] - time.time() * 1000) < 600_000
    assert first["origin"] == client.call(b"MEMBERS").split(b'"')[3].decode()  # type: ignore[union-attr]
    assert (large["value"]["size"], large["value"]["cut"], large["expiry_ms"]) == (1 << 20, True, None)


def test_deleted_keys_fill_no_page(browser: KeyBrowser, client: Client) -> None:
    client.send([(b"SET", b"a%04d" % number, b"v") for number in range(300)])
    client.send([(b"SET", b"b", b"v")])
    client.send([(b"DEL", b"a%04d" % number) for number in range(300)])
    for _ in range(601):
        client.receive()
    assert [one["key"]["text"] for one in browser.page("", "")["keys"]] == ["b"]


def test_history_is_of_this_key_and_has_truncations(browser: KeyBrowser, client: Client) -> None:
    for command in (b"SET k 1", b"INCR k", b"SET k2 other", b"DEL k", b"FLUSHALL", b"SET k 9"):
        client.call(*command.split())
    found = browser.history(b"k".hex())
    assert found["complete"]
    assert [change["op"] for change in found["changes"]] == ["set", "truncate", "del", "incr", "set"]
    assert found["changes"][3]["value"]["text"] == "2"


def test_history_is_bounded(browser: KeyBrowser, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        client.call(b"SET", b"k", b"%d" % number)
    assert [one["value"]["text"] for one in browser.history(b"k".hex())["changes"]] == [
        str(29 - at) for at in range(20)
    ]
    monkeypatch.setattr(keys, "SEARCH_S", -1.0)
    assert browser.history(b"k".hex()) == {"changes": [], "complete": False}


@pytest.mark.parametrize(("prefix", "cursor"), [("x" * 512, ""), ("", "xyz"), ("", "00" * 513)])
def test_what_is_refused(browser: KeyBrowser, prefix: str, cursor: str) -> None:
    with pytest.raises(InvalidArgument):
        browser.page(prefix, cursor)


def test_a_node_that_is_away() -> None:
    with pytest.raises(InvalidArgument, match="cannot connect"):
        KeyBrowser("127.0.0.1:1").page("", "")
