"""The executor: runs requests, counts them, and gathers the replies that wait for the commit.

`Executor.run` finds the command of each request, counts the call, runs it, and turns an error into a reply. Plain
requests of one command, in a pipeline or one from each of many clients (`run_each`), go to its batch in one call.

An error that is not the client's mistake, also a shortage of memory, ends the connection with a last reply. Only a
failure of storage leaves this module, as StorageFailed.

It measures what requests take: one look at a clock for each that runs by itself, and for each batch, whose requests
count with their mean. What they wait for, their turn or the disk, is not in that; the worker measures it, by `ran`.

Threads: an executor belongs to its worker's thread. Cost: 0.35 us for a request beside its handler.
"""

from __future__ import annotations

from collections import defaultdict
from time import monotonic

from merklekv.errors import MerkleKVError, Stalled, StorageFailed
from merklekv.histogram import Histogram
from merklekv.net import limits
from merklekv.net.connection import CLOSED, OPEN, Connection
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.memory import held_by
from merklekv.net.monitor import redacted
from merklekv.net.parts import Parts
from merklekv.net.protocol.resp import Push
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Entry, Long
from merklekv.net.session import Context, writable
from merklekv.net.tick import alike, answer_each
from merklekv.shortage import is_shortage, reason_of

BATCH_REQUESTS = 128  # in one call; a batch that takes nothing costs a look at this many

OUT_OF_MEMORY = "out of memory, closing this connection"
INTERNAL_ERROR = "internal error, see the server's log"


class Executor:
    """Runs requests, and knows the connections that have something to send after the commit."""

    def __init__(self, context: Context) -> None:
        self.output = 0  # bytes of replies that wait for the commit
        self.answered: list[Connection] = []  # have replies, or need attention, after the commit
        # Requests whose replies wait for the commit, by where what they wait is counted.
        self.ran: defaultdict[Histogram, int] = defaultdict(int)
        self.parts = Parts(context.engine.log)
        self._apart: list[Connection] = []
        self._pushed = 0  # what the messages that wait take: each once, however many receive it
        self._last_pushed: dict[int, Push] = {}  # by the protocol of its receivers
        self._context = context
        self._commit_log = context.engine.log
        self._lock = context.engine.lock
        self._output_soft = context.limits.output_soft_bytes
        self._slow = context.slow

    def take_answered(self) -> list[Connection]:
        """The connections to send to and to look at."""
        answered, self.answered = self.answered, []
        self.output = 0
        self._pushed, self._last_pushed = 0, {}
        self.parts.start_over()
        return answered

    def take_apart(self) -> list[Connection]:
        """Those of them whose replies are too large to be joined. A single one need not be."""
        apart, self._apart = self._apart, []
        return [connection for connection in apart if len(connection.replies) > 1]

    def run(self, connection: Connection, requests: list[Request], until: float = 0.0) -> None:
        """Runs requests of one connection in their order. Pauses it at one that has to wait, and after PIPELINE_S.

        A long command gets one slice, and more `until` then (monotonic).
        """
        log, parts = self._commit_log, self.parts
        frame = parts.frame
        if log.frame != frame:
            frame = parts.begin(self.answered)
        ran, replies = self.ran, connection.replies
        if not replies:
            self.answered.append(connection)
        room = budget = self._output_soft - connection.unsent_bytes
        at, end, entry = 0, len(requests), connection.entry
        began = monotonic()  # of each request
        others_at = began + limits.PIPELINE_S
        # The worker asks until a long command ends.
        while at < end and ((room >= 0 and began <= others_at) or connection.task is not None):
            request = requests[at]
            name = request[0]
            entry = connection.find(name) or connection.lookup(name)  # each time: MULTI changes `find`
            # For a single request a batch is not worth the call.
            if at + 1 < end and entry.batches and requests[at + 1][0] == name and len(request) in entry.batches:
                plain = alike(requests, at, BATCH_REQUESTS)
                if together := self._run_together(entry, [connection] * len(plain), plain, room):
                    frame = parts.frame
                    replies += together
                    room -= sum(map(len, together))
                    at += len(together)
                    began = self._took(entry, len(together), connection, request, began)
                    continue
            try:
                if connection.task is None:
                    entry.calls += 1  # before it runs, so that STATS counts itself
                    if not entry.low <= len(request) <= entry.high:
                        raise entry.wrong_count(connection, name)
                    answer = entry.handler(connection, request)
                else:
                    answer = connection.task
                    began -= connection.task_s  # what its slices took before
                    connection.task_s = 0.0
                reply = answer if isinstance(answer, bytes) else _advance(connection, answer, until)
                if log.frame != frame:
                    frame = parts.begin_if_due(self.answered)
                if reply is None:
                    self._context.memory.grown += held_by(connection.task)
                    connection.task_s = monotonic() - began
                    break
            except Stalled:
                entry.calls -= 1  # it begins again later
                connection.waits_for = writable(connection)
                break
            except Exception as problem:  # noqa: BLE001  all of them, logged by `_explain`
                entry.count_failure(problem)
                reply = self._explain(connection, _or_shortage(problem))
                if connection.state is not OPEN:
                    end = at  # nothing more runs
            replies.append(reply)
            room -= len(reply)
            at += 1
            now = monotonic()
            took = now - began
            entry.time.observe(took)
            ran[entry.waited] += 1
            if took >= self._slow.look_s:
                self._report_slow(entry, connection, request, took)
            began = now
        connection.entry = entry
        self.output += budget - room
        if at < end:
            connection.pause(requests[at:])

    def run_each(self, entry: Entry, connections: list[Connection], requests: list[Request]) -> int:
        """Runs one request of each connection, all of one command, in one call. Returns how many of the first it ran.

        The next one runs by itself: it has options, has to wait, or fails; or there are replies enough to send.
        """
        log, parts = self._commit_log, self.parts
        if log.frame != parts.frame:
            parts.begin(self.answered)
        plain = alike(requests, 0, BATCH_REQUESTS)
        began = monotonic()
        replies = self._run_together(entry, connections[: len(plain)], plain, limits.TICK_OUTPUT_BYTES - self.output)
        self._took(entry, len(replies), connections[0], requests[0], began)
        self.output += answer_each(entry, connections, replies, self.answered)
        return len(replies)

    def _run_together(
        self, entry: Entry, connections: list[Connection], requests: list[Request], room: int
    ) -> list[bytes]:
        """Runs a batch, whose replies are in the present part then.

        It writes with the lock held, so all that it has written is in the frame that is pending at its end, even if
        that is cut right afterwards, and others write into the next one.
        """
        log, parts = self._commit_log, self.parts
        if entry.writes:
            with self._lock:
                replies = entry.run_together(connections, requests, room)
                frame = log.frame
            if replies and frame != parts.frame:
                parts.begin_at(frame, self.answered)
        else:
            replies = entry.run_together(connections, requests, room)
            if replies and log.frame != parts.frame:
                parts.begin_if_due(self.answered)
        return replies

    def _took(self, entry: Entry, count: int, connection: Connection, request: Request, began: float) -> float:
        """Counts the time of a batch of so many requests that began then, and returns the time now."""
        now = monotonic()
        if count:
            entry.time.observe((now - began) / count, count)
            self.ran[entry.waited] += count
        if now - began >= self._slow.look_s:
            self._report_slow(entry, connection, request, now - began)
        return now

    def _report_slow(self, entry: Entry, connection: Connection, request: Request, seconds: float) -> None:
        event = "fast-command" if "fast" in entry.command.flags else "command"
        shown = redacted(entry, request)
        self._slow.took(seconds, event, shown, connection.address, connection.name)

    def push(self, connection: Connection, data: Push) -> None:
        """Adds what answers no request to what the connection is sent.

        A command may push any number of times before anything can be sent, so what a connection cannot be expected to
        read is dropped, and the worker closes it.
        """
        if connection.has_missed:
            return
        if not connection.replies:
            self.answered.append(connection)
        before, protocol = connection.pushed_bytes, connection.protocol
        size = before + len(data)
        is_new = data is not self._last_pushed.get(protocol)
        pushed = self._pushed + limits.PUSH_ROOM_BYTES + (len(data) if is_new else 0)
        is_too_much = connection.unsent_bytes + size > limits.SUBSCRIBER_OUTPUT_BYTES
        if before and (is_too_much or pushed > self._context.memory.limit // 2):
            connection.has_missed = connection.needs_attention = True
            return
        self._pushed, self._last_pushed[protocol] = pushed, data
        if before <= limits.JOINED_PUSHES_BYTES < size:
            self._apart.append(connection)
        connection.pushed_bytes = size
        connection.replies.append(data)
        self.output += len(data)

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
                self._context.traffic.count_error(problem)
                return connection.explain(problem)
        connection.close_when_sent()  # first: it lets go of the buffers
        self._log(connection, problem)
        return connection.explain(RequestError(OUT_OF_MEMORY if isinstance(problem, MemoryError) else INTERNAL_ERROR))

    def _log(self, connection: Connection, problem: Exception) -> None:
        self._context.report(type(problem).__name__, f"request of {connection.address} failed", problem)


def _or_shortage(problem: Exception) -> Exception:
    """A shortage of files or the like that a command has met, as the error that leaves the connection usable."""
    if isinstance(problem, OSError) and is_shortage(problem):
        return RequestError(f"resource shortage: {reason_of(problem)}; try again later")
    return problem


def _advance(connection: Connection, task: Long, until: float) -> bytes | None:
    """Runs slices of a long command `until` then, at least one: its reply, or None when it needs more."""
    connection.task = None
    try:
        while (waits_for := next(task)) is None and monotonic() < until:
            pass
    except StopIteration as end:
        reply: bytes = end.value
        return reply
    connection.task, connection.waits_for = task, waits_for
    return None
