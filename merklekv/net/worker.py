"""A worker: one thread that serves many connections, a tick at a time.

A tick reads every connection that is ready, runs every complete request, commits once, and sends the replies. So no
reply leaves before everything that it could have seen is durable, and all clients that write in a tick share one sync.

No connection waits for the long work of another. Commands that yield get one slice in a tick, and more if the tick has
taken long with other work: `LONG_SHARE` of that time, at most `SLICE_S`. A connection whose write waits for a
checkpoint, or whose client does not read its replies, is not read, and none of its requests begins, until it may go on.
A tick reads a connection once, so a flood on one does not crowd the others out.

An unforeseen error, also a shortage of memory, ends the connection on which it happens. Only a failure of storage ends
the process.

The epoll set is level-triggered. A connection's events change only when it needs attention: it cannot send, waits, or
ends. `_update_interest` alone decides what comes next for such a connection; all others cost one test.

Threads: everything runs in the worker's own thread, except `adopt` and `stop`.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable

from merklekv.errors import MerkleKVError, Shortage, StorageFailed
from merklekv.net import limits
from merklekv.net.connection import CLOSED, CLOSING, OPEN, PAUSED, READABLE, WRITABLE, Connection
from merklekv.net.executor import Executor
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Entry
from merklekv.net.session import Context
from merklekv.pause import pause

EVENTS_MAX = 4096
_GONE = select.EPOLLHUP | select.EPOLLERR


class Worker(threading.Thread):
    """Serves the connections given to `adopt` until `stop`, or until storage fails."""

    def __init__(self, context: Context, number: int, fatal: Callable[[Exception], None]) -> None:
        super().__init__(name=f"merklekv-worker-{number}", daemon=True)
        self.connections: dict[int, Connection] = {}
        self._context = context
        self._engine = context.engine
        self._executor = Executor(context)
        self._commit = context.engine.commit
        self._fatal = fatal
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, READABLE)
        self._listeners: dict[int, socket.socket] = {}  # of the worker that accepts
        self._accept: Callable[[socket.socket], None] = socket.socket.close
        self._roll_backs = context.engine.roll_backs  # how often it has rolled changes back, as far as clients know
        self._runnable: dict[Connection, None] = {}  # paused connections that go on next, in this order
        self._parked: dict[Connection, None] = {}  # paused connections that wait for a condition
        self._next_sweep = time.monotonic() + limits.SWEEP_S
        self._stop_at: float | None = None

    def adopt(self, connection: Connection) -> None:
        """Takes over a connection. From any thread."""
        connection.interest = READABLE
        self._epoll.register(connection.fd, READABLE)  # first: it may fail
        self.connections[connection.fd] = connection

    def listen(self, listeners: list[socket.socket], accept: Callable[[socket.socket], None]) -> None:
        """Calls `accept` with a listener whenever clients wait there. Before `start`."""
        self._accept = accept
        self._listeners = {listener.fileno(): listener for listener in listeners}
        for fd in self._listeners:
            self._epoll.register(fd, READABLE)

    def _take_in(self, fd: int) -> None:
        try:
            self._accept(self._listeners[fd])
        except Exception as problem:  # noqa: BLE001  no file or no memory is free
            self._epoll.modify(fd, 0)  # until the next sweep: it would be ready at once again
            self._context.report("accept", f"cannot accept connections for now: {problem or type(problem).__name__}")

    def stop(self, deadline: float) -> None:
        """Lets the thread end once the requests received are answered, at the latest at `deadline` (monotonic)."""
        os.eventfd_write(self._wakeup, 1)  # first: a thread that sees the deadline finds the wake-up in place
        self._stop_at = deadline

    def run(self) -> None:
        try:
            while self._stop_at is None:
                self._try_tick()
            self._finish(self._stop_at)
        except StorageFailed as problem:
            self._fatal(problem)
        finally:
            for connection in list(self.connections.values()):
                self._drop(connection)

    def close(self) -> None:
        """Frees what the thread needed. After it has ended."""
        self._epoll.close()
        os.close(self._wakeup)

    def _finish(self, deadline: float) -> None:
        """Reads nothing more, answers the requests received, and closes each connection when that is done."""
        for fd in self._listeners:
            self._epoll.unregister(fd)
        os.eventfd_read(self._wakeup)
        while self.connections and time.monotonic() < deadline:
            for connection in list(self.connections.values()):
                connection.end_input()
                self._update_interest(connection)
            if self.connections:
                self._try_tick()

    def _try_tick(self) -> None:
        try:
            self._tick()
        except StorageFailed:
            raise
        except Exception as problem:  # noqa: BLE001  reported; what is left of this tick is done in the next one
            self._context.report("tick", "an error outside of the work for any connection; going on", problem)
            pause(limits.PARKED_POLL_S)  # it may come back at once

    def _tick(self) -> None:
        events = self._epoll.poll(self._timeout(), EVENTS_MAX)
        now = time.monotonic()
        if events:
            self._serve(events, now)
            # The commit waits for the disk: requests that have arrived meanwhile share that wait.
            gatherings = limits.GATHERINGS_MAX
            while gatherings and self._engine.sync_is_due and (events := self._epoll.poll(0, EVENTS_MAX)):
                self._serve(events, now)
                gatherings -= 1
        if self._runnable or self._parked:
            self._continue(now)
        if self._executor.answered:
            self._flush()
        if now >= self._next_sweep:
            self._sweep(now)

    def _serve(self, events: list[tuple[int, int]], now: float) -> None:
        """Reads each ready connection once and runs what it asks for.

        Single requests of a command that can run many wait until all connections are read, and then run together.
        """
        share = limits.TICK_BYTES // len(events)
        share = max(limits.RECEIVE_BYTES_MIN, min(limits.RECEIVE_BYTES_MAX, share))
        executor = self._executor
        singles: dict[Entry, tuple[list[Connection], list[Request]]] = {}
        for fd, event in events:
            connection = self.connections.get(fd)
            if connection is None:
                # The wake-up needs no more than waking; a closed connection was closed earlier in this tick.
                if fd in self._listeners:
                    self._take_in(fd)
                continue
            try:
                if event != READABLE and not self._handle(connection, event):
                    continue
                if connection.needs_attention and connection.state is PAUSED:
                    continue  # it was read earlier in this tick, and its requests wait
                try:
                    data = connection.receive(share)
                except OSError as problem:
                    if not isinstance(problem, BlockingIOError):
                        self._drop(connection)
                    continue
                if not data:
                    connection.end_input()
                    self._update_interest(connection)
                    continue
                connection.last_active = now
                requests = connection.feed(data)
                if len(requests) == 1 and (entry := connection.find(requests[0][0])) and entry.batch:
                    same = singles.get(entry) or singles.setdefault(entry, ([], []))
                    same[0].append(connection)
                    same[1].append(requests[0])
                elif requests:
                    executor.run(connection, requests)
                    self._flush_early()
            except Exception as problem:  # noqa: BLE001  logged by `fail`
                executor.fail(connection, problem)
        for entry, (connections, gathered) in singles.items():
            try:
                while gathered:
                    done = executor.run_each(entry, connections, gathered) if len(gathered) > 1 else 0
                    if not done:
                        done = 1
                        executor.run(connections[0], gathered[:1])
                    del connections[:done], gathered[:done]
                    self._flush_early()
            except Exception as problem:  # noqa: BLE001  logged by `fail`
                for connection in connections:
                    executor.fail(connection, problem)

    def _run(self, connection: Connection, requests: list[Request], until: float = 0.0) -> None:
        try:
            self._executor.run(connection, requests, until)
        except Exception as problem:  # noqa: BLE001  logged by `fail`
            self._executor.fail(connection, problem)
        self._flush_early()

    def _flush_early(self) -> None:
        """Sends before the end of the tick when there are too many replies."""
        if self._executor.output > limits.TICK_OUTPUT_BYTES:
            self._flush()

    def _timeout(self) -> float:
        if self._runnable:
            return 0.0
        return limits.PARKED_POLL_S if self._parked or self._stop_at is not None else limits.SWEEP_S

    def _continue(self, now: float) -> None:
        """Gives slices to the paused connections that can go on, one at least; the tick began at `now`."""
        parked, self._parked = self._parked, {}
        for connection in parked:
            if self._still_waits(connection):
                self._parked[connection] = None
            else:
                connection.waits_for = None
                self._runnable[connection] = None
        began = time.monotonic()
        until = began + min((began - now) * limits.LONG_SHARE, limits.SLICE_S)
        for connection in list(self._runnable):
            del self._runnable[connection]
            if connection.state is PAUSED:
                connection.last_active = now
                requests = connection.resume()
                self._run(connection, requests, until)
            if time.monotonic() > until:
                break

    def _still_waits(self, connection: Connection) -> bool:
        if connection.state is not PAUSED or connection.waits_for is None:
            return False
        try:
            return not connection.waits_for()
        except Exception as problem:  # noqa: BLE001  raised when the command goes on
            connection.fail_task(problem)
            return False

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
        answered = self._executor.take_answered()
        if self._roll_backs != self._engine.roll_backs:
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
                            connection.needs_attention = True
                if connection.needs_attention:
                    self._update_interest(connection)
            except Exception as problem:  # noqa: BLE001  logged by `fail`; nothing more can be sent to this one
                self._drop(connection)
                self._executor.fail(connection, problem)

    def _withdraw(self, answered: list[Connection]) -> None:
        """Turns replies into errors: what these requests and the commands under way did or saw may be taken back."""
        self._roll_backs, problem = self._engine.roll_backs, self._engine.rolled_back
        self._engine.begin()  # after that look: what is taken back from here on is withdrawn the next time
        for connection in answered:
            connection.replies[:] = [reply and connection.explain(problem) for reply in connection.replies]
        for connection in self.connections.values():
            if connection.task is not None:
                connection.fail_task(problem)

    def _handle(self, connection: Connection, event: int) -> bool:
        """Takes an event other than plain input. Returns whether there is input to read as well."""
        if event & _GONE:
            self._drop(connection)
            return False
        if event & WRITABLE and connection.unsent:
            try:
                sent = connection.send(connection.unsent)
            except BlockingIOError:
                return bool(event & READABLE)
            except OSError:
                self._drop(connection)
                return False
            connection.last_active = time.monotonic()
            connection.unsent = connection.unsent[sent:]
            self._update_interest(connection)
        return bool(event & connection.interest & READABLE) and connection.state is not CLOSED

    def _update_interest(self, connection: Connection) -> None:
        """Decides what comes next for a connection that needs attention: closing, going on, the events it waits for."""
        if connection.state is CLOSED or connection.replies:
            return  # nothing, or it comes back here after sending
        unsent = len(connection.unsent)
        if unsent > self._context.limits.output_hard_bytes:
            self._context.traffic.output_limit_closed += 1
            self._context.report("unread", f"closed {connection.address}: {unsent} bytes of replies not read")
            self._drop(connection)
            return
        if not unsent and connection.state is CLOSING:
            try:
                connection.linger()
            except OSError:
                self._drop(connection)
                return
        if not unsent and connection.end_of_input and connection.state is not PAUSED:
            self._drop(connection)
            return
        if connection.state is PAUSED:
            if connection.waits_for is not None:
                self._parked[connection] = None
            elif connection.task is not None or connection.reads_replies:
                self._runnable[connection] = None
        events = connection.events
        connection.needs_attention = events != READABLE or connection.state is not OPEN
        if events != connection.interest:
            connection.interest = events
            self._epoll.modify(connection.fd, events)

    def _drop(self, connection: Connection) -> None:
        """Closes at once. What was not sent is lost."""
        if connection.state is not CLOSED:
            del self.connections[connection.fd]
            connection.close()

    def _sweep(self, now: float) -> None:
        """Closes connections that are silent for too long, and lets listeners accept again."""
        self._next_sweep = now + limits.SWEEP_S
        for fd in self._listeners if self._stop_at is None else ():
            self._epoll.modify(fd, READABLE)
        idle_limit = self._context.limits.idle_timeout_s
        for connection in [each for each in self.connections.values() if each.is_overdue(now, idle_limit)]:
            try:
                if connection.refusal and connection.state is OPEN:
                    requests = connection.feed(b"\n")
                    self._run(connection, requests)
                    continue
                if connection.deadline > now:
                    self._context.traffic.idle_closed += 1
                self._drop(connection)
            except Exception as problem:  # noqa: BLE001  logged by `fail`
                self._executor.fail(connection, problem)
        # Also without a reply to send: a disk that failed in another thread, in a checkpoint or in the regular sync,
        # ends the process even while all clients wait or are silent.
        self._flush()
