"""One rule for a node id, the same for every way in, and the file that keeps it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merklekv import config
from merklekv.engine.engine import Engine
from merklekv.errors import Corruption, DirectoryUnwritable
from merklekv.net.commands.records import checked_origin
from merklekv.net.errors import RequestError
from merklekv.node_id import NODE_ID_BYTES_MAX, NODE_ID_RULE, is_node_id, read_node_id, stored_node_id
from merklekv.replication.cluster.members import Members
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.cluster.presence import ONLINE, Status, decode_status
from merklekv.replication.plain_cbor import Fields, Malformed
from merklekv.replication.stream.event import EventRefused, decode_message

GOOD = (
    "a",
    "node-1",
    "Node_1.example:7379",
    "küche",
    "ßÄ",
    "節点",
    "👍",
    "a" * 128,
    "é" * 64,
    "$node",
    "e\u0301",
    "%u",
    "\\",
)
BAD = (
    "",
    " ",
    "a b",
    "a/b",
    "+",
    "#",
    "a\n",
    "a\r\nb",
    "a\0",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "a\xa0b",
    "\u200b",
    "\u202e",
    "\u2028",
    "\u3000",
    "\ufeffa",
    "\ufdd0",
    "\uffff",
    "\U0010ffff",
    "\ud800",
    "\udcff",
    "a" * 129,
    "é" * 65,
    "👍" * 33,
)


def taken(name: str) -> dict[str, bool]:
    """Which ways in take a node id."""

    def by_setting() -> None:
        assert config.load({"replication.client_id": ("--node-id", name)}, {}, None).settings.replication.client_id

    def by_event() -> None:
        fields = {"v": 1, "op": "del", "key": "k", "val": None, "ts": 5, "op_id": bytes(16)}
        decode_message(cbor2.dumps(fields | {"src": name}))

    def by_status() -> None:
        assert decode_status(name, json.dumps({"node": name, "state": ONLINE}).encode()) is not None

    def by_table() -> None:
        Fields({"node": name}, "a row").node_id("node")

    def by_command() -> None:
        checked_origin(name.encode())

    ways = (by_setting, by_event, by_status, by_table, by_command)
    found = {}
    for way in ways:
        try:
            way()
        except (config.ConfigError, EventRefused, Malformed, RequestError, UnicodeEncodeError, AssertionError):
            found[way.__name__] = False
        else:
            found[way.__name__] = True
    return found


@pytest.mark.parametrize("name", GOOD)
def test_a_node_may_be_called_so(name: str) -> None:
    assert is_node_id(name)
    assert set(taken(name).values()) == {True}, taken(name)


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_no_node_is_called_so(name: str) -> None:
    assert not is_node_id(name)
    assert set(taken(name).values()) == {False}, taken(name)


@given(st.text(max_size=6) | st.text(min_size=30, max_size=135))
def test_every_way_in_has_the_same_rule(name: str) -> None:
    assert set(taken(name).values()) == {is_node_id(name)}


def test_the_limit_is_said_as_it_is() -> None:
    assert str(NODE_ID_BYTES_MAX) in NODE_ID_RULE


def test_ids_that_look_alike_are_different(tmp_path: Path) -> None:
    engine = Engine(tmp_path, checkpoint="manual")
    membership = Membership(engine, Members("own"))
    names = {"Node", "node", "n\u00f6de", "no\u0308de"}
    for name in names:
        membership.on_status(Status(name, ONLINE))
    assert {str(row["node"]) for row in membership.rows()} == {"own", *names}
    engine.close()


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", " \n"])
def test_the_id_in_the_file(tmp_path: Path, ending: str) -> None:
    (tmp_path / "node-id").write_bytes(f"küche-1{ending}".encode())
    assert stored_node_id(tmp_path) == "küche-1"


BAD_FILES = {
    "empty": b"",
    "spaces": b"  \n",
    "plus": b"+\n",
    "number sign": b"#\n",
    "slash": b"a/b\n",
    "two lines": b"a\nb\n",
    "NUL": b"a\0b\n",
    "long": b"n" * 600,
    "Latin-1": b"k\xfcche\n",
    "byte order mark": "\ufeffa\n".encode(),
    "UTF-16": "a\n".encode("utf-16"),
    "control": b"\x1b[31m\n",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_with_no_node_id_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node-id").write_bytes(content)
    with pytest.raises(Corruption) as caught:
        stored_node_id(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'node-id'}: ")
    assert NODE_ID_RULE in line
    assert "write this node's id into it" in line
    assert line.isprintable()
    with pytest.raises(Corruption, match="write 'n1' into it, which this node was called"):
        read_node_id(tmp_path, "n1")
    assert (tmp_path / "node-id").read_bytes() == content


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "node-id").mkdir()
    with pytest.raises(Corruption, match="not a file"):
        read_node_id(tmp_path)
    (tmp_path / "node-id").rmdir()
    os.mkfifo(tmp_path / "node-id")
    with pytest.raises(Corruption, match="not a file"):  # and does not wait for a writer
        read_node_id(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "node-id").symlink_to("node-id")
    with pytest.raises(
        DirectoryUnwritable, match="node-id: cannot read the node id: Too many levels of symbolic links"
    ):
        read_node_id(tmp_path)


@pytest.mark.parametrize("host", ["", "host.example", "a b/c+#", "\x1b[31m", "\udcff", "k" * 400, "é" * 400, "/"])
def test_the_id_that_a_node_gives_itself_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    made = stored_node_id(tmp_path)
    assert is_node_id(made)
    assert stored_node_id(tmp_path) == read_node_id(tmp_path) == made
