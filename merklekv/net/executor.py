"""The executor: runs requests, counts them, and gathers the replies that wait for the commit.

Every request passes through `Executor.run`, in a batch: a list of requests and a list with the connection of each.
Either all of a batch are of one connection, in its order, or each is of another one. So there is one place for what
concerns every request: finding its command, counters, limits on output, errors, waiting. Where a command offers it,
one call runs several plain requests that follow each other.

An error that is not the client's mistake, also a shortage of memory, ends the connection with a last reply. Only a
failure of storage leaves this module, as StorageFailed.

Threads: an executor belongs to its worker's thread. Cost: 0.3 us for a request beside its handler.
"""

from __future__ import annotations

from collections.abc import Sequence

from merklekv.errors import MerkleKVError, Stalled, StorageFailed
from merklekv.net import limits
from merklekv.net.connection import CLOSED, OPEN, Connection
from merklekv.net.errors import Goodbye, RequestError, wrong_count
from merklekv.net.protocol.text import Request
from merklekv.net.session import BatchHandler, Context, Long, Reply, writable

OUT_OF_MEMORY = "out of memory, closing this connection"
INTERNAL_ERROR = "internal error, see the server's log"


class Executor:
    """Runs batches, and knows the connections that have something to send after the commit."""

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

    def run(self, connections: list[Connection], requests: list[Request]) -> None:
        """Runs a batch in its order. A request that has to wait is held, with what follows it on its connection.

        The hot loop: a request costs a look-up, the handler, and the accounting in one place at the end.
        """
        connection = connections[0]
        replies = connection.replies
        pipeline = connection is connections[-1]
        if not pipeline:
            self.answered += [one for one in connections if not one.replies]
            room = before = limits.TICK_OUTPUT_BYTES
        else:
            if not replies:
                self.answered.append(connection)
            room = before = self._output_soft - len(connection.unsent)
        task = connection.task
        several: Sequence[bytes] = ()
        count = 1
        at, end = 0, len(requests)
        previous = connection.find(requests[0][0]) if end > 1 and requests[0][0] == requests[1][0] else None
        while at < end:
            if not pipeline:
                connection = connections[at]
                replies = connection.replies
            request = requests[at]
            entry = connection.find(request[0]) or connection.lookup(request[0])  # each time: MULTI changes `find`
            answer: Reply
            reply: bytes | None
            try:
                if entry is previous and entry.batch and task is None:
                    several = self._run_together(entry.batch, connections, requests, at, room)
                    count = len(several) or 1
                previous = entry
                entry.calls += count  # before it runs, so that STATS counts itself
                if not several:
                    if task is not None:
                        answer, task = task, None
                        entry.calls -= 1  # it was counted when it began
                    elif entry.low <= len(request) <= entry.high:
                        answer = entry.handler(connection, request)
                    else:
                        raise wrong_count(request[0])
                    reply = answer if isinstance(answer, bytes) else _advance(connection, answer)
            except Stalled:
                connection.waits_for = writable(connection)
                reply = None
            except Exception as problem:  # noqa: BLE001  all of them, logged by `_explain`
                reply = self._explain(connection, problem)
                if pipeline and connection.state is not OPEN:
                    end = at  # nothing that follows runs
            if several:
                if pipeline:
                    replies += several
                else:
                    for one, its_reply in zip(connections[at:], several, strict=False):
                        one.replies.append(its_reply)
                room -= sum(map(len, several))
                at += count
                several, count = (), 1
            elif reply is not None:
                replies.append(reply)
                room -= len(reply)
                at += 1
            else:
                if connection.task is None:
                    entry.calls -= 1  # it begins again
                connection.hold(requests[at:] if pipeline else [request])
                if pipeline:
                    break
                at += 1
            if room < 0 and at < end:
                if pipeline:
                    connection.hold(requests[at:])
                else:
                    for one, its_request in zip(connections[at:], requests[at:], strict=True):
                        one.hold([its_request])
                break
        self.output += before - room

    def _run_together(
        self, run: BatchHandler, connections: list[Connection], requests: list[Request], at: int, room: int
    ) -> Sequence[bytes]:
        """Lets the first of the requests from `at` on run in one call: the replies to as many as it takes."""
        try:
            return run(connections[at:], requests[at:], room) if at else run(connections, requests, room)
        except StorageFailed:
            raise
        except Exception:
            if connections[0] is connections[-1]:
                raise  # how many of them are done is unknown
            return ()  # each runs by itself then, and the one that fails is told

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


def _advance(connection: Connection, task: Long) -> bytes | None:
    """Runs a slice of a long command: its reply, or None when it needs more."""
    connection.task = None
    try:
        waits_for = next(task)
    except StopIteration as end:
        reply: bytes = end.value
        return reply
    connection.task, connection.waits_for = task, waits_for
    return None
