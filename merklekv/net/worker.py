"""A worker: one thread that serves many connections, a round at a time.

A round reads every connection that is ready, runs every complete request, commits once, and sends the replies. This
order is the promise of the server: no reply leaves before everything it could have seen is durable. It also makes
group commit free: fifty clients that write share one sync, without any hand-over between threads.

Nobody waits for anybody else's long work. A command that yields gets a slice of `SLICE_S` per round together with
all others of its kind; a connection whose write must wait for merging, or whose client does not read its replies, is
neither read nor run until it may go on. Per round a connection is read once, so a flood on one is no flood on all.

An error that nobody foresaw, also a shortage of memory, ends the connection it happened on, with a last reply where
possible. The others go on, and what was written is committed before any reply leaves. Only a failure of storage ends
the process.

The epoll set is level-triggered and its events are changed only when a connection leaves the usual course: it blocks
on sending, waits, or ends. What is unusual goes through `_settle`, the one place that decides what happens next to a
connection; the usual way touches neither.

Threads: everything here runs in the worker's own thread, but for `adopt` and `stop`.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from merklekv.errors import MerkleKVError, Shortage, Stalled, StorageFailed
from merklekv.net import limits
from merklekv.net.commands.registry import Entry
from merklekv.net.connection import Connection, discard
from merklekv.net.errors import Goodbye, RequestError, wrong_count
from merklekv.net.protocol.text import Request
from merklekv.net.session import Context, Long, writable

log = logging.getLogger(__name__)

EVENTS_MAX = 4096
_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR
Rows = dict[tuple[Entry, bytes], tuple[list[Connection], list[Request]]]
OUT_OF_MEMORY = "out of memory, closing this connection"
INTERNAL_ERROR = "internal error, see the server's log"


class Worker(threading.Thread):
    """Serves the connections given to `adopt` until `stop`, or until storage fails."""

    def __init__(self, context: Context, number: int, fatal: Callable[[Exception], None]) -> None:
        super().__init__(name=f"merklekv-worker-{number}", daemon=True)
        self.connections: dict[int, Connection] = {}
        self._context = context
        self._engine = context.engine
        self._output_soft = context.limits.output_soft_bytes
        self._commit = context.engine.commit
        self._fatal = fatal
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, _IN)
        self._listeners: dict[int, socket.socket] = {}  # of the worker that accepts
        self._accept: Callable[[socket.socket], None] = socket.socket.close
        self._answered: list[Connection] = []  # have replies that wait for the commit
        self._output = 0  # bytes of them
        self._taken_back = context.engine.taken_back  # how often it has taken changes back, as far as clients know
        self._runnable: deque[Connection] = deque()
        self._parked: list[Connection] = []
        self._next_sweep = time.monotonic() + limits.SWEEP_S
        self._stop_at: float | None = None

    def adopt(self, connection: Connection) -> None:
        """Takes over a connection. From any thread."""
        connection.mask = _IN
        self._epoll.register(connection.fd, _IN)  # first: it may fail
        self.connections[connection.fd] = connection

    def listen(self, listeners: list[socket.socket], accept: Callable[[socket.socket], None]) -> None:
        """Calls `accept` with a listener whenever that one has connections to take. Before `start`."""
        self._accept = accept
        self._listeners = {listener.fileno(): listener for listener in listeners}
        for fd in self._listeners:
            self._epoll.register(fd, _IN)

    def _take_in(self, fd: int) -> None:
        try:
            self._accept(self._listeners[fd])
        except Exception as problem:  # noqa: BLE001  no file or no memory is free; a listener that is always ready has to rest
            self._epoll.modify(fd, 0)
            self._report("accept", f"cannot accept connections for now: {problem or type(problem).__name__}")

    def stop(self, deadline: float) -> None:
        """Lets the thread end when all that was received is answered, at the latest at `deadline` (monotonic)."""
        os.eventfd_write(self._wakeup, 1)  # first: whoever sees the deadline finds the wake-up in place
        self._stop_at = deadline

    def run(self) -> None:
        try:
            while self._stop_at is None:
                self._try_round()
            self._finish(self._stop_at)
        except StorageFailed as problem:
            self._fatal(problem)
        finally:
            for connection in list(self.connections.values()):
                self._drop(connection)

    def close(self) -> None:
        """Gives back what the thread needed. After it has ended."""
        self._epoll.close()
        os.close(self._wakeup)

    def _finish(self, deadline: float) -> None:
        """Reads nothing more, finishes what was received, and closes each connection when it is done."""
        for fd in self._listeners:
            self._epoll.unregister(fd)
        os.eventfd_read(self._wakeup)
        while self.connections and time.monotonic() < deadline:
            for connection in list(self.connections.values()):
                connection.end_of_input = connection.special = True
                self._settle(connection)
            if self.connections:
                self._try_round()

    def _try_round(self) -> None:
        try:
            self._round()
        except StorageFailed:
            raise
        except Exception as problem:  # noqa: BLE001  reported; what is left of the round is done in the next one
            self._report("round", "an error outside of the work for any connection; going on", problem)
            time.sleep(limits.PARKED_POLL_S)  # it may come back at once

    def _round(self) -> None:
        events = self._epoll.poll(self._timeout(), EVENTS_MAX)
        now = time.monotonic()
        if events:
            self._serve(events, now)
            # The commit will wait for the disk: what has arrived meanwhile may as well share that wait.
            gatherings = limits.GATHERINGS_MAX
            while gatherings and self._engine.sync_is_due and (events := self._epoll.poll(0, EVENTS_MAX)):
                self._serve(events, now)
                gatherings -= 1
        if self._runnable or self._parked:
            self._continue(now)
        if self._answered:
            self._flush()
        if now >= self._next_sweep:
            self._sweep(now)

    def _serve(self, events: list[tuple[int, int]], now: float) -> None:
        """Reads each connection once and runs what it asks for."""
        share = limits.ROUND_BYTES // len(events)
        share = max(limits.RECEIVE_BYTES_MIN, min(limits.RECEIVE_BYTES_MAX, share))
        rows: Rows = {}
        for fd, event in events:
            connection = self.connections.get(fd)
            if connection is None:
                # The wake-up needs no more than waking; another one was closed earlier in this round.
                if fd in self._listeners:
                    self._take_in(fd)
                continue
            try:
                if event != _IN and not self._handle(connection, event):
                    continue
                if connection.special and connection.busy:
                    continue  # read earlier in this round, and what was read then comes first
                try:
                    data = connection.receive(share)
                except OSError as problem:
                    if not isinstance(problem, BlockingIOError):
                        self._drop(connection)
                    continue
                if data:
                    connection.last_active = now
                    requests = connection.feed(data)
                    if len(requests) == 1 and (entry := connection.find(requests[0][0])) and entry.batch:
                        row = rows.get((entry, connection.nil)) or rows.setdefault((entry, connection.nil), ([], []))
                        row[0].append(connection)
                        row[1].append(requests[0])
                        continue
                    self._run(connection, requests)
                    if self._output > limits.ROUND_OUTPUT_BYTES:
                        self._flush()
                else:
                    connection.end_of_input = connection.special = True
                    self._settle(connection)
            except Exception as problem:  # noqa: BLE001  logged by `_fail`
                self._fail(connection, problem)
        for (entry, _), (connections, requests) in rows.items():
            self._run_row(entry, connections, requests)

    def _run_row(self, entry: Entry, connections: list[Connection], requests: list[Request]) -> None:
        """Runs plain requests of equal name, one of each connection, in one call."""
        try:
            answers = entry.batch(connections[0], requests, self._output_soft) if entry.batch else []
        except StorageFailed:
            raise
        except Exception:  # noqa: BLE001  the one that causes it is told when it is run by itself
            answers = []
        entry.calls += len(answers)
        answered = self._answered
        for connection, reply in zip(connections, answers, strict=False):
            if not connection.replies:
                answered.append(connection)
            connection.replies.append(reply)
            self._output += len(reply)
        for at in range(len(answers), len(requests)):  # what is not so plain, or has to wait
            try:
                self._run(connections[at], (requests[at],))
            except Exception as problem:  # noqa: BLE001  logged by `_fail`
                self._fail(connections[at], problem)
            if self._output > limits.ROUND_OUTPUT_BYTES:
                self._flush()

    def _timeout(self) -> float:
        if self._runnable:
            return 0.0
        return limits.PARKED_POLL_S if self._parked or self._stop_at is not None else limits.SWEEP_S

    def _run(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Runs requests in order until they are all done, or until one makes the connection wait.

        This is the hot loop: a request costs a dictionary look-up, a count, the handler, and an append.
        """
        replies = connection.replies
        if not replies:
            self._answered.append(connection)
        before = self._output_soft - len(connection.unsent)
        room = before
        if len(requests) > 1 and (entry := connection.find(requests[0][0])) and entry.batch:
            # A pipeline that begins with a row of equal, plain requests: one call runs them.
            answers = entry.batch(connection, requests, room)
            entry.calls += len(answers)
            replies += answers
            room -= sum(map(len, answers))
            requests = requests[len(answers) :]
            if room < 0:
                self._hold(connection, requests, before - room)
                return
        queue = iter(requests)
        reply: bytes | None
        for request in queue:
            entry = connection.find(request[0]) or connection.lookup(request[0])  # anew: MULTI changes `find`
            entry.calls += 1
            try:
                if not entry.low <= len(request) <= entry.high:
                    raise wrong_count(request[0])
                answer = entry.handler(connection, request)
                if isinstance(answer, bytes):
                    reply = answer
                else:
                    # A long command: its first slice, which is all that most of them need.
                    reply = self._advance(connection, answer)
                    if reply is None:
                        break
            except Stalled:
                queue = iter([request, *queue])
                connection.pause = writable(connection)
                self._schedule(connection)
                break
            except Exception as problem:  # noqa: BLE001  all of them, logged by `_explain`
                reply = self._explain(connection, problem)
                if connection.closing:
                    replies.append(reply)
                    queue = iter(())
                    break
            replies.append(reply)
            room -= len(reply)
            if room < 0:
                break
        else:
            self._output += before - room
            return
        self._hold(connection, list(queue), before - room)

    def _hold(self, connection: Connection, requests: Sequence[Request], output: int) -> None:
        """Keeps requests for later: the connection waits, or has replies enough to send."""
        self._output += output
        connection.backlog = requests
        connection.special = True

    def _advance(self, connection: Connection, task: Long) -> bytes | None:
        """Runs a slice of a long command: its reply, or None when it needs more."""
        connection.task = None
        try:
            pause = next(task)
        except StopIteration as end:
            reply: bytes = end.value
            return reply
        connection.task = task
        connection.pause = pause
        self._schedule(connection)
        return None

    def _schedule(self, connection: Connection) -> None:
        if not connection.scheduled:
            connection.scheduled = True
            if connection.pause is None:
                self._runnable.append(connection)
            else:
                self._parked.append(connection)

    def _continue(self, now: float) -> None:
        """Gives a slice to what can go on."""
        parked, self._parked = self._parked, []
        for connection in parked:
            try:
                waits = not connection.closed and connection.pause is not None and not connection.pause()
            except Exception as problem:  # noqa: BLE001  logged by `_fail`
                waits = False
                self._fail(connection, problem)
            if waits:
                self._parked.append(connection)
            else:
                connection.pause = None
                self._runnable.append(connection)
        for _ in range(len(self._runnable)):
            connection = self._runnable.popleft()
            connection.scheduled = False
            if not connection.closed:
                try:
                    self._resume(connection)
                except Exception as problem:  # noqa: BLE001  logged by `_fail`
                    self._fail(connection, problem)
            if time.monotonic() - now > limits.SLICE_S:
                break

    def _resume(self, connection: Connection) -> None:
        if connection.task is not None:
            try:
                reply = self._advance(connection, connection.task)
            except Exception as problem:  # noqa: BLE001  all of them, logged by `_explain`
                reply = self._explain(connection, problem)
            if reply is None:
                return
            if not connection.replies:
                self._answered.append(connection)
            connection.replies.append(reply)
            self._output += len(reply)
            connection.last_active = time.monotonic()
        backlog, connection.backlog = connection.backlog, ()
        self._run(connection, backlog)

    def _explain(self, connection: Connection, problem: Exception) -> bytes:
        """The reply for a request that ended in an exception. Sets `closing` where the connection has to end."""
        match problem:
            case StorageFailed():
                raise problem
            case Goodbye():
                connection.afterwards = problem.afterwards
                connection.close_when_sent()
                return problem.reply
            case MerkleKVError():
                return connection.explain(problem)
        connection.close_when_sent()  # first: it lets go of the buffers
        self._log(connection, problem)
        return connection.explain(RequestError(OUT_OF_MEMORY if isinstance(problem, MemoryError) else INTERNAL_ERROR))

    def _fail(self, connection: Connection, problem: Exception) -> None:
        """Ends one connection after an error outside of a request; what it was answered before that is still sent."""
        if isinstance(problem, StorageFailed):
            raise problem
        if connection.closed:
            self._log(connection, problem)
            return
        connection.drop_task()
        reply = self._explain(connection, problem)
        if not connection.replies:
            self._answered.append(connection)
        connection.replies.append(reply)

    def _log(self, connection: Connection, problem: Exception) -> None:
        self._report(type(problem).__name__, f"request of {connection.address} failed", problem)

    def _report(self, kind: str, text: str, problem: Exception | None = None) -> None:
        try:
            self._context.throttle.warn(kind, text, problem)
        except MemoryError:
            pass  # there is none left even to say so

    def _flush(self) -> None:
        """Makes everything so far durable, then sends the replies."""
        try:
            self._commit()
        except Shortage:
            pass  # what was taken back is withdrawn below
        except MerkleKVError:
            raise
        except Exception as problem:
            raise StorageFailed(f"a commit was cut short by an unforeseen error: {problem!r}") from problem
        answered, self._answered = self._answered, []
        self._output = 0
        if self._taken_back != self._engine.taken_back:
            self._withdraw(answered)
        for connection in answered:
            try:
                replies = connection.replies
                if replies:
                    data = replies[0] if len(replies) == 1 else b"".join(replies)
                    replies.clear()
                    if connection.unsent:
                        connection.unsent = b"".join((connection.unsent, data))
                    else:
                        try:
                            sent = connection.send(data)
                        except BlockingIOError:
                            sent = 0
                        except OSError:
                            self._drop(connection)
                            continue
                        if sent < len(data):
                            connection.unsent = memoryview(data)[sent:]
                            connection.special = True
                if connection.special:
                    self._settle(connection)
            except Exception as problem:  # noqa: BLE001  logged by `_log`; nothing more can be sent to this one
                self._drop(connection)
                self._log(connection, problem)

    def _withdraw(self, answered: list[Connection]) -> None:
        """What these replies, and the commands under way, have done or seen may have been taken back: all say so."""
        self._taken_back, problem = self._engine.taken_back, self._engine.why_taken_back
        self._engine.begin()  # after that look: what is taken back from here on is withdrawn the next time
        for connection in answered:
            connection.replies[:] = [reply and connection.explain(problem) for reply in connection.replies]
        for connection in self.connections.values():
            if connection.task is not None:
                connection.drop_task()
                if not connection.replies:
                    answered.append(connection)
                connection.replies.append(connection.explain(problem))

    def _handle(self, connection: Connection, event: int) -> bool:
        """Takes an event other than plain input; whether there is input to read as well."""
        if event & _GONE:
            self._drop(connection)
            return False
        if event & _OUT and connection.unsent:
            try:
                sent = connection.send(connection.unsent)
            except BlockingIOError:
                return bool(event & _IN)
            except OSError:
                self._drop(connection)
                return False
            connection.last_active = time.monotonic()
            connection.unsent = connection.unsent[sent:]
            self._settle(connection)
        return bool(event & _IN) and not connection.closed and bool(connection.mask & _IN)

    def _settle(self, connection: Connection) -> None:
        """Decides what is next for a connection that has left the usual course."""
        if connection.closed or connection.replies:
            return  # nothing more to do, or it comes back here after sending
        limit = self._context.limits
        unsent = len(connection.unsent)
        if unsent > limit.output_hard_bytes:
            self._context.traffic.output_limit_closed += 1
            log.warning("closed %s: %d bytes of replies not read", connection.address, unsent)
            self._drop(connection)
            return
        if not unsent and self._settle_end(connection):
            return
        if connection.backlog and connection.pause is None and unsent <= limit.output_soft_bytes:
            self._schedule(connection)
        reading = not (connection.end_of_input or connection.busy or unsent > limit.output_soft_bytes)
        mask = (_IN if reading else 0) | (_OUT if unsent else 0)
        connection.special = mask != _IN or connection.closing
        if mask != connection.mask:
            connection.mask = mask
            self._epoll.modify(connection.fd, mask)

    def _settle_end(self, connection: Connection) -> bool:
        """With everything sent: closes what is to be closed. Whether it is closed for good."""
        if connection.closing and not connection.lingering:
            connection.lingering = True
            connection.deadline = time.monotonic() + limits.LINGER_S
            connection.say_afterwards()
            try:
                connection.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._drop(connection)
                return True
        if connection.end_of_input and not connection.busy:
            self._drop(connection)
            return True
        return False

    def _drop(self, connection: Connection) -> None:
        """Closes at once. What was not sent is lost."""
        if connection.closed:
            return
        connection.closed = True
        connection.say_afterwards()
        connection.replies.clear()
        connection.backlog = ()
        connection.unsent = b""
        connection.feed = discard
        connection.drop_task()
        del self.connections[connection.fd]
        connection.socket.close()  # which also takes it out of the epoll set

    def _sweep(self, now: float) -> None:
        """Looks after connections that nothing happens on."""
        self._next_sweep = now + limits.SWEEP_S
        for fd in self._listeners if self._stop_at is None else ():
            self._epoll.modify(fd, _IN)
        idle_limit = self._context.limits.idle_timeout_s
        for connection in [each for each in self.connections.values() if each.is_overdue(now, idle_limit)]:
            try:
                if connection.refusal and not connection.closing:
                    self._run(connection, connection.feed(b"\n"))
                    continue
                if connection.deadline > now:
                    self._context.traffic.idle_closed += 1
                self._drop(connection)
            except Exception as problem:  # noqa: BLE001  logged by `_fail`
                self._fail(connection, problem)
        # Also without a reply to send: a disk that failed behind the scenes, in merging or in the regular sync, has to
        # end the process even while all clients wait for it or are silent.
        self._flush()
