"""The executor: runs requests, counts them, and gathers the replies that wait for the commit.

Every request passes through `Executor._run_next`: the one place that finds the command, counts the call, runs it, and
turns an error into a reply. `run` gives it the requests of one connection, `run_each` one request of each of many.

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
from merklekv.net.session import BatchHandler, Context, Long, writable

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

    def run(self, connection: Connection, requests: list[Request]) -> None:
        """Runs requests of one connection in their order. Holds one that has to wait, with all that follow it."""
        if not connection.replies:
            self.answered.append(connection)
        connections = [connection] * len(requests)
        output_max = self.output + self._output_soft - len(connection.unsent)
        at, end = 0, len(requests)
        while True:
            done = self._run_next(connections, requests, at, output_max)
            at += done
            if at == end or not done or self.output > output_max or connection.state is not OPEN:
                break
        if at < end:
            connection.hold(requests[at:])

    def run_each(self, connections: list[Connection], requests: list[Request]) -> None:
        """Runs one request of each connection, all of one command. Holds those that have to wait."""
        self.answered += [one for one in connections if not one.replies]
        output_max = self.output + limits.TICK_OUTPUT_BYTES
        at = 0
        while at < len(requests):
            done = self._run_next(connections, requests, at, output_max) if self.output <= output_max else 0
            if not done:
                connections[at].hold([requests[at]])
            at += done or 1

    def _run_next(self, connections: list[Connection], requests: list[Request], at: int, output_max: int) -> int:
        """Runs the request at `at`, or several from there on in one call. Returns how many; 0: it has to wait.

        `connections` has the connection of each request: all of them one, or each another one.
        """
        connection, request = connections[at], requests[at]
        name = request[0]
        entry = connection.find(name) or connection.lookup(name)  # each time: MULTI changes `find`
        try:
            if connection.task is None:
                entry.calls += 1  # before it runs, so that STATS counts itself
                batch = entry.batch
                # A batch takes plain requests, without options. For a single one it is not worth the call.
                if (
                    batch
                    and at + 1 < len(requests)
                    and requests[at + 1][0] == name
                    and len(requests[at + 1]) == len(request) == entry.low
                ):
                    replies = _run_together(batch, connections, requests, at, output_max - self.output)
                    if replies:
                        entry.calls += len(replies) - 1
                        self.output += sum(map(len, replies))
                        if connection is connections[-1]:
                            connection.replies += replies
                        else:
                            for one, reply in zip(connections[at:], replies, strict=False):
                                one.replies.append(reply)
                        return len(replies)
                if not entry.low <= len(request) <= entry.high:
                    raise wrong_count(name)
                answer = entry.handler(connection, request)
            else:
                answer = connection.task
            result = answer if isinstance(answer, bytes) else _advance(connection, answer)
            if result is None:
                return 0
        except Stalled:
            entry.calls -= 1  # it begins again later
            connection.waits_for = writable(connection)
            return 0
        except Exception as problem:  # noqa: BLE001  all of them, logged by `_explain`
            result = self._explain(connection, problem)
        connection.replies.append(result)
        self.output += len(result)
        return 1

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


def _run_together(
    batch: BatchHandler, connections: list[Connection], requests: list[Request], at: int, room: int
) -> Sequence[bytes]:
    """Lets the first of the requests from `at` on run in one call: the replies to as many as it takes."""
    try:
        return batch(connections[at:], requests[at:], room) if at else batch(connections, requests, room)
    except StorageFailed:
        raise
    except Exception:  # noqa: BLE001  each runs by itself then, in order, and the one that fails is told
        return ()


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
