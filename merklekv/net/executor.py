"""The executor: runs requests, counts them, and gathers the replies that wait for the commit.

`Executor.run` finds the command of each request, counts the call, runs it, and turns an error into a reply. Plain
requests of one command, in a pipeline or one from each of many clients (`run_each`), go to its batch in one call.

An error that is not the client's mistake, also a shortage of memory, ends the connection with a last reply. Only a
failure of storage leaves this module, as StorageFailed.

Threads: an executor belongs to its worker's thread. Cost: 0.25 us for a request beside its handler.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from merklekv.errors import MerkleKVError, Stalled, StorageFailed
from merklekv.net import limits
from merklekv.net.connection import CLOSED, OPEN, Connection
from merklekv.net.errors import Goodbye, RequestError, wrong_count
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Entry, Long
from merklekv.net.session import Context, writable

BATCH_REQUESTS = 128  # in one call; a batch that takes nothing costs a look at this many

OUT_OF_MEMORY = "out of memory, closing this connection"
INTERNAL_ERROR = "internal error, see the server's log"


class Executor:
    """Runs requests, and knows the connections that have something to send after the commit."""

    def __init__(self, context: Context) -> None:
        self.output = 0  # bytes of replies that wait for the commit
        self.answered: list[Connection] = []  # have replies, or need attention, after the commit
        self._context = context
        self._output_soft = context.limits.output_soft_bytes

    def take_answered(self) -> list[Connection]:
        """The connections to send to and to look at."""
        answered, self.answered = self.answered, []
        self.output = 0
        return answered

    def run(self, connection: Connection, requests: list[Request], until: float = 0.0) -> None:
        """Runs requests of one connection in their order. Pauses it at one that has to wait.

        A long command gets one slice, and more `until` then (monotonic).
        """
        replies = connection.replies
        if not replies:
            self.answered.append(connection)
        room = budget = self._output_soft - len(connection.unsent)
        at, end = 0, len(requests)
        while at < end and (room >= 0 or connection.task is not None):  # the worker asks until a long command ends
            request = requests[at]
            name = request[0]
            entry = connection.find(name) or connection.lookup(name)  # each time: MULTI changes `find`
            # For a single request a batch is not worth the call.
            if entry.batch and at + 1 < end and requests[at + 1][0] == name and len(request) == entry.low:
                plain = _plain(requests[at : at + BATCH_REQUESTS], name, entry.low)
                if together := _run_together(entry, [connection] * len(plain), plain, room):
                    replies += together
                    room -= sum(map(len, together))
                    at += len(together)
                    continue
            try:
                if connection.task is None:
                    entry.count(1)  # before it runs, so that STATS counts itself
                    if not entry.low <= len(request) <= entry.high:
                        raise wrong_count(name)
                    answer = entry.handler(connection, request)
                else:
                    answer = connection.task
                reply = answer if isinstance(answer, bytes) else _advance(connection, answer, until)
                if reply is None:
                    break
            except Stalled:
                entry.count(-1)  # it begins again later
                connection.waits_for = writable(connection)
                break
            except Exception as problem:  # noqa: BLE001  all of them, logged by `_explain`
                reply = self._explain(connection, problem)
                if connection.state is not OPEN:
                    end = at  # nothing more runs
            replies.append(reply)
            room -= len(reply)
            at += 1
        self.output += budget - room
        if at < end:
            connection.pause(requests[at:])

    def run_each(self, entry: Entry, connections: list[Connection], requests: list[Request]) -> int:
        """Runs one request of each connection, all of one command, in one call. Returns how many of the first it ran.

        The next one runs by itself: it has options, has to wait, or fails; or there are replies enough to send.
        """
        plain = _plain(requests[:BATCH_REQUESTS], requests[0][0], entry.low)
        replies = _run_together(entry, connections, plain, limits.TICK_OUTPUT_BYTES - self.output)
        for connection, reply in zip(connections, replies, strict=False):
            if not connection.replies:
                self.answered.append(connection)
            connection.replies.append(reply)
        self.output += sum(map(len, replies))
        return len(replies)

    def fail(self, connection: Connection, problem: Exception) -> None:
        """Ends a connection after an error outside of its requests; the replies before it are still sent."""
        if isinstance(problem, StorageFailed):
            raise problem
        if connection.state is CLOSED:
            self._log(connection, problem)
            return
        reply = self._explain(connection, problem)
        if not connection.replies:
            self.answered.append(connection)
        connection.replies.append(reply)

    def _explain(self, connection: Connection, problem: Exception) -> bytes:
        """The reply for a request that ended in an exception. Closes the connection where it has to end."""
        match problem:
            case StorageFailed():
                raise problem
            case Goodbye():
                connection.close_when_sent(problem.afterwards)
                return problem.reply
            case MerkleKVError():
                return connection.explain(problem)
        connection.close_when_sent()  # first: it lets go of the buffers
        self._log(connection, problem)
        return connection.explain(RequestError(OUT_OF_MEMORY if isinstance(problem, MemoryError) else INTERNAL_ERROR))

    def _log(self, connection: Connection, problem: Exception) -> None:
        self._context.report(type(problem).__name__, f"request of {connection.address} failed", problem)


def _plain(requests: list[Request], name: bytes, size: int) -> list[Request]:
    """The first of these requests that have the same name and so many parts."""
    count = 0
    for request in requests:
        if request[0] != name or len(request) != size:
            break
        count += 1
    return requests[:count]


def _run_together(
    entry: Entry, connections: Sequence[Connection], requests: Sequence[Request], room: int
) -> Sequence[bytes]:
    """Runs plain requests of a command in one call: the replies to as many of the first as its batch takes."""
    assert entry.batch is not None
    try:
        replies = entry.batch(connections, requests, room)
    except StorageFailed:
        raise
    except Exception:  # noqa: BLE001  each runs by itself then, in order, and the one that fails is told
        return ()
    entry.count(len(replies))
    return replies


def _advance(connection: Connection, task: Long, until: float) -> bytes | None:
    """Runs slices of a long command `until` then, at least one: its reply, or None when it needs more."""
    connection.task = None
    try:
        while (waits_for := next(task)) is None and time.monotonic() < until:
            pass
    except StopIteration as end:
        reply: bytes = end.value
        return reply
    connection.task, connection.waits_for = task, waits_for
    return None
