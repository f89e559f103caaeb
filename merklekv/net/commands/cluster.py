"""The node among others: the hash of its data, an exchange now, replication, and the members of the cluster.

The rest of the node does the work, see `session.Services`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence

from merklekv.address import PORT_MAX
from merklekv.net.commands.arguments import bounded, line_value, optional_argument, words
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import ADMIN, ALONE, NOSCRIPT, SLOW_READ, Long, Pause, Reply, command, line_command
from merklekv.net.session import Session, in_thread, until_counted


@command(
    "HASH [prefix]",
    "The hash over all records, or those under a prefix; equal on nodes that agree.",
    group="hash",
    flags=SLOW_READ,
    note="MerkleKV's own, as in the line protocol",
)
def hash_(session: Session, request: Request) -> Long:
    digest = yield from _digest(session, request[1] if len(request) > 1 else b"")
    return resp.bulk(digest)


@line_command(
    "HASH [prefix]",
    group="hash",
    reply="`HASH hex` or `HASH prefix hex`",
    note=(
        "the [Merkle root](glossary.md#root), 64 hex digits, or a hash of all "
        "[records](glossary.md#record) under the prefix, [tombstones](glossary.md#tombstone) too; `*`"
        " is all; equal on nodes with equal data; zeros when there is nothing"
    ),
)
def hash_line(session: Session, request: Request) -> Long:
    prefix = optional_argument(request)
    digest = yield from _digest(session, prefix)
    return b"HASH %b %b\r\n" % (line_value(prefix), digest) if prefix else b"HASH %b\r\n" % digest


def _digest(session: Session, prefix: bytes) -> Generator[Pause, None, bytes]:
    """The hash over all records under the prefix, as 64 hex digits; an empty prefix or `*` means all of them."""
    engine = session.engine
    if prefix in (b"", b"*"):
        while True:
            yield from until_counted(session)
            for _ in engine.prepare_root():
                yield None
            with engine.lock:
                if engine.root_ready:  # else it was rolled back or truncated in between
                    return engine.root().hex().encode()
    value = yield from engine.prefix_digest(prefix)
    return value.hex().encode()


@command(
    "SYNC host port [--full] [--verify]",
    "Exchanges records with another node, both ways, now.",
    group="sync",
    flags=ALONE,
    note=(
        "MerkleKV's own; `redis-cli` runs it, but then expects the bulk transfer of Redis's `SYNC` "
        "and fails with `Error reading RDB payload`, so use `merklekv sync 127.0.0.1:7379 10.0.0.5:7379`"
    ),
)
def sync(session: Session, request: Request) -> Long:
    yield from _sync(session, request[1:])
    return resp.OK


@line_command(
    "SYNC host port [--full] [--verify]",
    group="sync",
    reply="`OK`",
    note="one [exchange](glossary.md#merkle-exchange) with that node, both ways",
)
def sync_line(session: Session, request: Request) -> Long:
    yield from _sync(session, words(request))
    return text.OK


def _sync(session: Session, given: Sequence[bytes]) -> Generator[Pause, None, None]:
    """One exchange, in a thread, while this connection waits."""
    if len(given) < 2:
        raise RequestError("SYNC command requires a host and port")
    flags = {word.lower() for word in given[2:]}
    for flag in sorted(flags - {b"--full", b"--verify"}):
        raise RequestError(f"SYNC command does not know the option {show(flag)}: it takes --full and --verify")
    host = show(given[0])
    port = bounded(given[1], 1, PORT_MAX, "SYNC command port")
    services = session.context.services
    yield from in_thread(session, "SYNC", lambda: services.sync(host, port, b"--full" in flags, b"--verify" in flags))


@command(
    "REPLICATE enable|disable|status",
    "Switches replication on or off, or shows its state.",
    arity=-2,
    group="replicate",
    flags=ALONE,
    note="MerkleKV's own, as in the line protocol",
)
def replicate(session: Session, request: Request) -> Reply:
    answer = _replicate(session, request[1:])
    return resp.OK if answer == "OK" else resp.bulk(answer.encode())


@line_command(
    "REPLICATE enable|disable|status",
    group="replicate",
    reply="`OK`, `OK`, `REPLICATION enabled N nodes` or `REPLICATION disabled`",
    note=(
        "words `key=value` follow: `state`, `outbox`, `gaps` and more at a broker, `peers` and "
        "`in_sync` where there are peers"
    ),
)
def replicate_line(session: Session, request: Request) -> Reply:
    return b"%b\r\n" % text.one_line(_replicate(session, words(request)))


def _replicate(session: Session, given: Sequence[bytes]) -> str:
    if not given:
        raise RequestError("REPLICATE command requires an action: enable, disable or status")
    action = show(given[0]).lower()
    if len(given) > 1 or action not in ("enable", "disable", "status"):
        raise RequestError("REPLICATE command action must be enable, disable or status")
    return session.context.services.replicate(action)


@command(
    "MEMBERS",
    "The nodes that this one knows, and how far each is.",
    flags=(NOSCRIPT, *ADMIN),
    reply=("a JSON object on a line for each member that the node knows, itself first; the names are explained below"),
)
def members(session: Session, request: Request) -> Reply:
    """A JSON object on a line for each node."""
    lines = [json.dumps(member) + "\n" for member in session.context.services.members()]
    return resp.verbatim("".join(lines).encode(), session.protocol)


@command(
    "FORGET node [store_id]",
    "Removes a node that is gone for good from the members.",
    flags=ALONE,
    reply=(
        "`OK`; the member is removed, first here and then at all nodes by their exchanges; the [store"
        " id](glossary.md#store-id) tells which, if several members have had that node id"
    ),
)
def forget(session: Session, request: Request) -> Reply:
    if len(request) > 3:
        raise RequestError("syntax error: FORGET node [store_id]")
    try:
        node, store_id = (word.decode() for word in (*request[1:], b"")[:2])
    except UnicodeDecodeError:
        raise RequestError("a node id is UTF-8 text, a store id hex digits") from None
    session.context.services.remove_member(node, store_id)
    return resp.OK
