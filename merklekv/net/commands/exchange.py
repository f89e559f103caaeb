"""Exchanges over RESP: what nodes ask each other when they compare their data, and who takes part in that.

    EXCHANGE part [part ...]     one step of an exchange: the parts are one message, the reply is another
    MEMBERS                      a JSON object on a line for each node that this one knows
    FORGET node [birth]          takes a node that is gone for good out of the members

What the messages of an exchange say is between the nodes; here they are bytes that are carried.  A message comes in
parts because an argument may be no longer than the largest value, which may be set lower than a message needs: parts of
`limits.BULK_BYTES_MIN` pass everywhere.  As any request it is bounded by `limits.request_bytes`, as any reply by
`limits.output_hard_bytes`.

Answering works in slices, between which other clients are served.
"""

from __future__ import annotations

import json
from typing import Final

from merklekv.net.client import Client, Unreachable
from merklekv.net.errors import RequestError
from merklekv.net.limits import BULK_BYTES_MIN
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.session import Long, Reply, Session

PARTS_MAX: Final = 10_000


def exchange(session: Session, request: Request) -> Reply:
    return _exchange(session, request[1] if len(request) == 2 else b"".join(request[1:]))


def _exchange(session: Session, message: bytes) -> Long:
    answer = yield from session.context.services.exchange(message)
    return resp.bulk(answer)


def members(session: Session, request: Request) -> Reply:
    lines = [json.dumps(member) + "\n" for member in session.context.services.members()]
    return resp.verbatim("".join(lines).encode(), session.protocol)


def forget(session: Session, request: Request) -> Reply:
    if len(request) > 3:
        raise RequestError("syntax error: FORGET node [birth]")
    try:
        node, store_id = (word.decode() for word in (*request[1:], b"")[:2])
    except UnicodeDecodeError:
        raise RequestError("a node id is UTF-8 text, a birth hex digits") from None
    session.context.services.forget(node, store_id)
    return resp.OK


def ask(client: Client, message: bytes) -> bytes:
    """One step of an exchange with the node behind `client`: its answer to a message.

    Raises NodeError when it refuses, Unreachable when it is gone.
    """
    size = max(BULK_BYTES_MIN, -(-len(message) // PARTS_MAX))
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    answer = client.call(b"EXCHANGE", *parts)
    if not isinstance(answer, bytes):
        raise Unreachable(f"{client.name}: answers EXCHANGE strangely: is it a MerkleKV node?")
    return answer
