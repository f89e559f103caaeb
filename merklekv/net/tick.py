"""What a tick does for each connection: reading, sorting requests by command, handing out replies, sending.

These loops are apart from the worker because they have compiled twins, which read and send for all connections in one
pass. They touch nothing but what is named here of a connection; what is unusual they hand back to the worker.
"""

from __future__ import annotations

import select
from collections.abc import Mapping, Sequence

from merklekv.core import compiled
from merklekv.net.connection import Connection
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Entry

ALIKE_BYTES = 1 << 20  # of values that are written together: what waits for a commit takes memory
GATHERED_MAX = 128  # requests of one connection that run together with those of others

Event = tuple[int, int]  # of epoll: a descriptor, and what has happened
Batches = dict[Entry, tuple[list[Connection], list[Request]]]


@compiled
class Sockets:
    """Reads and sends. A worker has one."""

    def __init__(self, buffer_bytes: int) -> None:
        """`buffer_bytes`: what is received at once, for all connections together; at least one share."""

    def read_each(
        self,
        events: list[Event],
        connections: Mapping[int, Connection],
        share: int,
        now: float,
        batches: Batches,
        pipelines: list[tuple[Connection, list[Request]]],
        odd: list[Event],
        ended: list[tuple[Connection, Exception | None]],
    ) -> int:
        """Reads up to `share` bytes from each connection that has input and needs no attention. Returns how many.

        Up to GATHERED_MAX requests of one command, and of as many parts, go to `batches`; all others to `pipelines`.
        Events of anything else go to `odd`. Connections without further input go to `ended`, also those that fail.
        """
        received = 0
        for event in events:
            connection = connections.get(event[0])
            if connection is None or event[1] != select.EPOLLIN or connection.needs_attention:
                odd.append(event)
                continue
            try:
                data = connection.receive(share)
                if data:
                    connection.last_active = now
                    received += len(data)
                    _sort(connection, connection.feed(data), batches, pipelines)
                else:
                    ended.append((connection, None))
            except BlockingIOError:
                pass
            except Exception as problem:  # noqa: BLE001  the worker tells the client
                ended.append((connection, problem))
        return received

    def send_each(self, connections: Sequence[Connection], looks: list[tuple[Connection, Exception | None]]) -> int:
        """Sends the replies of each connection, or keeps what its socket does not take. Returns how many bytes.

        Connections that need attention go to `looks`, and those that fail, with the reason.
        """
        given = 0
        for connection in connections:
            try:
                replies = connection.replies
                if replies:
                    data = replies[0] if len(replies) == 1 else b"".join(replies)
                    given += len(data)
                    replies.clear()
                    connection.pushed_bytes = 0
                    if connection.unsent_bytes:
                        connection.keep(data)
                    else:
                        try:
                            sent = connection.send(data)
                        except BlockingIOError:
                            sent = 0
                        if sent < len(data):
                            connection.keep(memoryview(data)[sent:])
                if connection.needs_attention:
                    looks.append((connection, None))
            except Exception as problem:  # noqa: BLE001  the worker closes it
                looks.append((connection, problem))
        return given


def _sort(
    connection: Connection,
    requests: list[Request],
    batches: Batches,
    pipelines: list[tuple[Connection, list[Request]]],
) -> None:
    if not requests:
        return
    entry = connection.find(requests[0][0])
    count = len(requests)
    if entry is None or not entry.batches or count > GATHERED_MAX or not _are_alike(requests):
        pipelines.append((connection, requests))
    elif (same := batches.get(entry)) is None:
        batches[entry] = ([connection] * count, requests)
    else:
        senders, together = same
        together.extend(requests)
        try:
            senders.extend([connection] * count)
        except BaseException:
            del together[len(senders) :]  # or all that follow would be answered to another client
            raise


def _are_alike(requests: list[Request]) -> bool:
    return len(requests) == 1 or len(alike(requests, 0, len(requests))) == len(requests)


@compiled
def answer_each(entry: Entry, connections: list[Connection], replies: list[bytes], answered: list[Connection]) -> int:
    """Gives each connection its reply to a request of one command, and the answered ones to `answered`; how many bytes.

    There may be fewer replies than connections.
    """
    for connection, reply in zip(connections, replies, strict=False):
        if not connection.replies:
            answered.append(connection)
        connection.replies.append(reply)
        connection.entry = entry
    return sum(map(len, replies))


@compiled
def alike(requests: list[Request], first: int, most: int) -> list[Request]:
    """At most so many requests from `first` on that have the name of the very first and as many parts.

    The last parts of them, which may be values, have at most ALIKE_BYTES together, if they are several.
    """
    name, parts = requests[first][0], len(requests[first])
    found: list[Request] = []
    size = 0
    for request in requests[first : first + most]:
        if request[0] != name or len(request) != parts:
            break
        size += len(request[-1])
        if size > ALIKE_BYTES and found:
            break
        found.append(request)
    return found
