"""What a peer sends that lies about a time: a message with one time in it that no clock has reached.

Any number and any version of any message may be the lie.  A record in the future stands beside what the peer has to
send, not in its place: a peer that leaves out records cannot be told from one that does not have them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any, Final

import cbor2

from merklekv.engine.record import (
    HEAD_SIZE,
    OP_ID_SIZE,
    make_record,
    make_version,
    op_id_of,
    value_of,
    version_of,
)
from merklekv.replication.cluster.members import NO_REPORT, Identity, MemberTable, decode_table
from merklekv.replication.plain_cbor import decode_map
from merklekv.replication.stream.event import SCHEMA_VERSION
from merklekv.replication.sync.messages import encode, pack, unpack

HEAD: Final = slice(4, -8)  # of a message: the CBOR map in it
KEY: Final = b"k609"  # of a record that does not copy one in the message

Path = tuple[Any, ...]


def lie(message: bytes, known: MemberTable | None, far: int, chance: random.Random, with_records: bool = True) -> bytes:
    """The message with `far`, ns, in one place.  `known`: the table in the request, if this is an answer."""
    plain = _plain(message, known)
    places = [*_numbers(plain), *_versions(plain)]
    if "records" in plain and with_records:
        places.append(("records",))
    if not places:
        return message
    path = chance.choice(places)
    inner = plain
    for step in path[:-1]:
        inner = inner[step]
    old = inner[path[-1]]
    if path == ("records",):
        inner["records"] = old + _record(old, far)
    else:
        inner[path[-1]] = (
            far if isinstance(old, int) else make_version(far, op_id_of(old)) + old.removeprefix(version_of(old))
        )
    return _message(plain, known)


def table_in(message: bytes) -> MemberTable | None:
    """The table of members in a request."""
    hello = _plain(message, None).get("hello")
    return decode_table(decode_map(cbor2.dumps(hello["table"]))) if hello else None


def event(source: str, far: int, chance: random.Random) -> bytes:
    """An event of `far`, ns."""
    said: dict[str, Any] = {"v": SCHEMA_VERSION, "src": source, "ts": far, "op_id": chance.randbytes(OP_ID_SIZE)}
    what = chance.choice(("set", "delete", "truncate"))
    said |= {"op": what, "val": b"lie" if what == "set" else None} | ({} if what == "truncate" else {"key": KEY})
    return cbor2.dumps(said)


def _plain(message: bytes, known: MemberTable | None) -> dict[str, Any]:
    plain: dict[str, Any] = cbor2.loads(message[HEAD])
    for holder in (plain, plain.get("hello", {})):
        if "table" in holder:
            holder["table"] = unpack(holder["table"], known).plain()
    return plain


def _message(plain: dict[str, Any], known: MemberTable | None) -> bytes:
    plain = copy.copy(plain)
    for holder in (plain, plain.get("hello", {})):
        if "table" in holder:
            holder["table"] = _packed(holder["table"], known)
    return encode(plain.pop("do"), **plain)


def _packed(plain: dict[str, Any], known: MemberTable | None) -> bytes:
    class Told(MemberTable):
        def plain(self) -> dict[str, object]:
            return plain

    return pack(Told(Identity("", b""), NO_REPORT), known)


def _numbers(item: Any, path: Path = ()) -> Iterator[Path]:
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for at, inner in pairs:
        if type(inner) is int:
            yield (*path, at)
        else:
            yield from _numbers(inner, (*path, at))


def _versions(plain: dict[str, Any]) -> Iterator[Path]:
    if "hello" in plain:
        yield ("hello", "truncation")
    for name in ("stale", "heads"):
        yield from ((name, at) for at in range(1, len(plain.get(name, ())), 2))


def _record(records: list[bytes], far: int) -> list[bytes]:
    if records and len(records[-1]) >= HEAD_SIZE:
        key, value, op_id = records[-2], value_of(records[-1]), op_id_of(version_of(records[-1]))
    else:
        key, value, op_id = KEY, b"lie", bytes(OP_ID_SIZE)
    return [key, make_record(key, make_version(far, op_id), value)]
