"""EXCHANGE: one step of the comparison of two nodes' data. The parts are one message, the reply is another.

Here messages are bytes. One comes in parts because an argument may be no longer than the largest value, and that may be
set lower than a message needs: parts of `limits.BULK_BYTES_MIN` pass everywhere. `limits.request_bytes` bounds a
message, as any request, and `limits.output_hard_bytes` its reply. The answer is computed in slices.
"""

from __future__ import annotations

from typing import Final

from merklekv.net.client import Client, Unreachable
from merklekv.net.commands.registry import command
from merklekv.net.limits import BULK_BYTES_MIN
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.session import Long, Session

PARTS_MAX: Final = 10_000


@command(
    "EXCHANGE part [part ...]", "One step of an exchange with another node.", group="sync", flags=("write", "admin")
)
def exchange(session: Session, request: Request) -> Long:
    message = request[1] if len(request) == 2 else b"".join(request[1:])
    answer = yield from session.context.services.exchange(message)
    return resp.bulk(answer)


def ask(client: Client, message: bytes) -> bytes:
    """One step of an exchange with the node behind `client`: its answer to a message.

    Raises NodeError when the node refuses, Unreachable when it is gone.
    """
    size = max(BULK_BYTES_MIN, -(-len(message) // PARTS_MAX))
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    answer = client.call(b"EXCHANGE", *parts)
    if not isinstance(answer, bytes):
        raise Unreachable(f"{client.name}: answers EXCHANGE strangely: is it a MerkleKV node?")
    return answer
