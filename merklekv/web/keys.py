"""The key browser: pages of keys, and what was changed of one key; read-only, from one node, through its client port.

Keys are bytes: the page gets each as text where it is printable UTF-8, else in hex, and always in hex to ask with.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from merklekv.address import parse_address
from merklekv.engine.format import MAX_KEY_SIZE, MAX_VALUE_SIZE_LIMIT
from merklekv.engine.record import (
    NS_PER_MS,
    Pair,
    expiry_of,
    is_expired,
    is_lead,
    is_live,
    store_id_of,
    timestamp_of,
    value_of,
)
from merklekv.errors import InvalidArgument, MerkleKVError
from merklekv.net.client import REPLY_ROOM_BYTES, Client, NodeError, Reply, Unreachable
from merklekv.web.watch import NAME

PAGE_KEYS: Final = 50
PREVIEW_BYTES: Final = 200
HISTORY_CHANGES: Final = 20
HISTORY_PAGE: Final = 200  # changes asked at once
SEARCH_S: Final = 2.0  # for one page of keys, or one history
ANSWER_S: Final = 5.0
AT_ONCE: Final = 2  # requests that run
WAITING_MAX: Final = 4  # of those that wait for them, so that they leave room for others, above all monitors

BUSY: Final = "others browse keys at this moment; try again"

Json = dict[str, Any]


class KeyBrowser:
    """The keys of the node at an address. Every method may be called from any thread, and raises InvalidArgument."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._room = threading.BoundedSemaphore(AT_ONCE)
        self._queue = threading.BoundedSemaphore(AT_ONCE + WAITING_MAX)

    def page(self, prefix: str, cursor: str) -> Json:
        """Up to PAGE_KEYS keys under a prefix, from a cursor on: hex, empty for the first page."""
        after, wanted = from_hex(cursor), prefix.encode()
        if len(wanted) > MAX_KEY_SIZE:
            raise InvalidArgument(f"a key has at most {MAX_KEY_SIZE} bytes")
        deadline = time.monotonic() + SEARCH_S
        found: list[Json] = []
        with self._client() as client:
            names = _names_of_stores(client)
            following: bytes | None = after
            while following is not None and len(found) < PAGE_KEYS and time.monotonic() < deadline:
                count = b"%d" % (PAGE_KEYS - len(found))
                following, records = _records(client, following, count, wanted)
                now = time.time_ns()
                live = [(key, record) for key, record in records if is_live(record) and not is_expired(record, now)]
                found += [_shown_record(key, record, names) for key, record in live]
        return {"keys": found, "next": None if following is None else following.hex()}

    def history(self, key: str) -> Json:
        """The newest changes of a key, given in hex, that the node's log has, newest first.

        `complete`: whether the log was read to its end; else there are newer ones.
        """
        wanted, cursor = from_hex(key), b""
        deadline = time.monotonic() + SEARCH_S
        newest: deque[Json] = deque(maxlen=HISTORY_CHANGES)
        complete = False
        with self._client() as client:
            while not complete and time.monotonic() < deadline:
                before = cursor
                cursor, changes = _changes(client, cursor, wanted)
                newest.extend(_shown_change(change) for change in changes if change[0] in (wanted, None))
                complete = not changes and cursor == before
        return {"changes": list(newest)[::-1], "complete": complete}

    @contextmanager
    def _client(self) -> Iterator[Client]:
        """A connection, for one of AT_ONCE requests. Its errors become InvalidArgument, whose text the page shows."""
        if not self._queue.acquire(blocking=False):
            raise InvalidArgument(BUSY)
        if not self._room.acquire(timeout=ANSWER_S):
            self._queue.release()
            raise InvalidArgument(BUSY)
        try:
            with Client(*parse_address(self._address), ANSWER_S, MAX_VALUE_SIZE_LIMIT + REPLY_ROOM_BYTES) as client:
                client.call(b"CLIENT", b"SETNAME", NAME)
                yield client
        except (NodeError, Unreachable) as error:
            raise InvalidArgument(str(error)) from error
        except (ValueError, LookupError, TypeError) as error:
            raise InvalidArgument(f"{self._address} answers strangely: is it a MerkleKV node?") from error
        finally:
            self._room.release()
            self._queue.release()


def from_hex(text: str) -> bytes:
    """A key or cursor that the page sends back. Raises InvalidArgument."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        raise InvalidArgument("a key is given in hex digits") from None
    if len(found) > MAX_KEY_SIZE + 1:  # a cursor may be a byte longer
        raise InvalidArgument(f"a key has at most {MAX_KEY_SIZE} bytes")
    return found


def preview(data: bytes) -> Json:
    """The beginning of a key or value: as `text` where that is printable, else in `hex`; `size` of the whole."""
    begin = data[:PREVIEW_BYTES]
    cut = len(data) > len(begin)
    try:
        text = begin.decode()
    except UnicodeDecodeError as error:  # it may only be cut within a character
        text = begin[: error.start].decode() if cut and error.start > len(begin) - 4 else ""
    shown = "".join(text.split("\n")).replace("\t", "")
    form = {"text": text} if (text and shown.isprintable()) or not data else {"hex": begin.hex(" ")}
    return {**form, "size": len(data), "cut": cut}


def _names_of_stores(client: Client) -> Mapping[str, str]:
    """Node ids by store id; none when the node does not tell."""
    try:
        reply = client.call(b"MEMBERS")
        rows = [json.loads(line) for line in reply.split(b"\n") if line] if isinstance(reply, bytes) else []
        return {str(row["store_id"]): str(row["node"]) for row in rows}
    except (MerkleKVError, ValueError, LookupError, TypeError):
        return {}


def _records(client: Client, after: bytes, count: bytes, prefix: bytes) -> tuple[bytes | None, list[Pair]]:
    """Where to go on, and records by key. Raises TypeError, ValueError for a reply of another shape."""
    reply = client.call(b"RECORDS", after, count, b"PREFIX", prefix)
    if not isinstance(reply, list):
        raise TypeError
    following, parts = reply
    if not isinstance(following, bytes | None) or not isinstance(parts, list):
        raise TypeError
    records: list[Pair] = []
    for key, head, value in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if not (isinstance(key, bytes) and isinstance(head, bytes) and isinstance(value, bytes) and is_lead(head)):
            raise TypeError
        records.append((key, head + value))
    return following, records


def _shown_record(key: bytes, record: bytes, names: Mapping[str, str]) -> Json:
    store_id = store_id_of(record).hex()
    return {
        "id": key.hex(),
        "key": preview(key),
        "value": preview(value_of(record)),
        "written_ms": timestamp_of(record) // NS_PER_MS,
        "origin": names.get(store_id, ""),
        "store_id": store_id,
        "expiry_ms": expiry_of(record),
    }


def _changes(client: Client, cursor: bytes, prefix: bytes) -> tuple[bytes, list[list[Reply]]]:
    """The next cursor, and changes. Raises TypeError, ValueError for a reply of another shape."""
    reply = client.call(b"CHANGES", cursor, b"PREFIX", prefix, b"COUNT", b"%d" % HISTORY_PAGE)
    if not isinstance(reply, list):
        raise TypeError
    following, changes = reply
    if not isinstance(following, bytes) or not isinstance(changes, list):
        raise TypeError
    return following, [change for change in changes if isinstance(change, list)]


def _shown_change(change: list[Reply]) -> Json:
    _, op, value, version, origin, *expiry = change
    if not isinstance(op, bytes) or not isinstance(version, bytes) or not isinstance(origin, bytes):
        raise TypeError
    return {
        "op": op.decode(),
        "value": preview(value) if isinstance(value, bytes) else None,
        "written_ms": int(version.partition(b"-")[0]) // NS_PER_MS,
        "version": version.decode(),
        "origin": origin.decode(errors="replace"),
        "expiry_ms": expiry[0] if expiry else None,
    }
