"""A worker: one thread that serves many connections, a tick at a time.

A tick reads every connection that is ready, runs every complete request, commits once, and sends the replies. So no
reply leaves before everything that it could have seen is durable, and all clients that write in a tick share one sync.

No connection waits for the long work of another. Commands that yield get one slice in a tick, and more if the tick has
taken long with other work: `LONG_SHARE` of that time, at most `SLICE_S`. A connection whose write waits for a
checkpoint, or whose client does not read its replies, is not read, and none of its requests begins, until it may go on.
A tick reads a connection once and runs its requests for at most PIPELINE_S, so a flood on one does not crowd the others
out.

An unforeseen error, also a shortage of memory, ends the connection on which it happens. Only a failure of storage ends
the process.

The epoll set is level-triggered. A connection's events change only when it needs attention: it cannot send, waits, or
ends. `_update_interest` alone decides what comes next for such a connection; all others cost one test.

Threads: everything runs in the worker's own thread, except `adopt`, `call_soon` and `stop`.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from merklekv.errors import MerkleKVError, Shortage, StorageFailed
from merklekv.net import limits
from merklekv.net.calls import Calls
from merklekv.net.connection import CLOSED, CLOSING, HUNG_UP, OPEN, PAUSED, READABLE, WRITABLE, Connection
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.executor import Executor
from merklekv.net.memory import RECEIVED_FACTOR
from merklekv.net.paused import Paused
from merklekv.net.protocol.resp import Push
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Entry
from merklekv.net.session import Context
from merklekv.net.tick import Batches, Event, Sockets
from merklekv.net.waiting import Signal
from merklekv.pause import pause

EVENTS_MAX = 4096
CROWDED = "clients hold too much memory, and this one the most: closing this connection"
_GONE = select.EPOLLHUP | select.EPOLLERR | HUNG_UP


class Worker(threading.Thread):
    """Serves the connections given to `adopt` until `stop`, or until storage fails."""

    def __init__(self, context: Context, number: int, fatal: Callable[[Exception], None]) -> None:
        super().__init__(name=f"merklekv-worker-{number}", daemon=True)
        self.connections: dict[int, Connection] = {}
        self.refused: set[Connection] = set()  # those of them that are not served
        self._context = context
        self._engine = context.engine
        self._executor = Executor(context)
        self._log = context.engine.log
        self._commit = context.engine.commit
        self._commits = context.engine.commits
        self._sockets = Sockets(limits.TICK_BYTES)
        self._fatal = fatal
        self._epoll = select.epoll()
        self._calls = Calls()
        self._epoll.register(self._calls.fd, READABLE)
        self._listeners: dict[int, socket.socket] = {}  # of the worker that accepts
        self._accept: Callable[[socket.socket], None] = socket.socket.close
        self._roll_backs = context.engine.roll_backs  # how often it has rolled changes back, as far as clients know
        self._memory = context.memory
        self._receive_bytes = limits.RECEIVE_BYTES_MAX  # of one connection at once
        self._paused = Paused(self.call_soon)
        self._looked = threading.Event()  # not set while a `look` waits for its answer
        self._looked.set()
        self._next_sweep = time.monotonic() + limits.SWEEP_S
        self._began = 0.0  # this tick (monotonic)
        self._stop_at: float | None = None

    def adopt(self, connection: Connection) -> None:
        """Takes over a connection. From any thread."""
        connection.interest = READABLE
        connection.worker = self
        self._epoll.register(connection.fd, READABLE)  # first: it may fail
        if connection.refusal:
            self.refused.add(connection)
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

    def call_soon(self, function: Callable[[], None]) -> None:
        """Runs a short function in the worker's thread, before it waits for clients again. From any thread.

        Functions run in the order of the calls. Those that come when the thread has ended, or ends, do not run.
        """
        self._calls.add(function)

    def look(self) -> threading.Event:
        """An event that is set as soon as the worker runs calls. From any thread, as often as one likes."""
        if self._looked.is_set():
            self._looked = threading.Event()
            self.call_soon(self._looked.set)
        return self._looked

    def push(self, connection: Connection, data: Push) -> None:
        """Sends what answers no request, behind the replies before it and after the next commit.

        Only in the worker's thread, in a command or in a function of `call_soon`. Nothing if the connection ends.
        """
        if connection.state is OPEN or connection.state is PAUSED:
            self._executor.push(connection, data)

    def if_lost(self, connection: Connection, undo: Callable[[], None]) -> None:
        """Calls `undo` if a roll-back takes back what a command does now, with the engine's lock held."""
        self._executor.parts.if_lost(connection, undo)

    def cut(self, connection: Connection) -> None:
        """Closes a connection of this worker at once. Only in the worker's thread, in a function of `call_soon`."""
        self._drop(connection)

    def stop(self, deadline: float) -> None:
        """Lets the thread end once the requests received are answered, at the latest at `deadline` (monotonic)."""
        self._stop_at = deadline
        self._calls.wake()

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
        self._calls.close()

    def _finish(self, deadline: float) -> None:
        """Reads nothing more, answers the requests received, and closes each connection when that is done."""
        for fd in self._listeners:
            self._epoll.unregister(fd)
        while self.connections and time.monotonic() < deadline:
            for connection in [each for each in self.connections.values() if not each.end_of_input]:
                connection.end_input()
                self._update_interest(connection)
            self._paused.expire()
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
        self._began = now = time.monotonic()
        if self._calls.waiting:
            self._run_calls()  # first: a notification of a commit comes before what is done after its reply
        if events or self._paused.late:
            self._serve(events, now)
            # The commit waits for the disk: requests that have arrived meanwhile share that wait.
            gatherings = limits.GATHERINGS_MAX if len(events) < len(self.connections) else 0
            while gatherings and self._engine.sync_is_due and (events := self._epoll.poll(0, EVENTS_MAX)):
                self._serve(events, now)
                gatherings -= 1
        self._paused.ring(now)
        if self._calls.waiting:
            self._run_calls()
        if self._paused.runnable or self._paused.parked:
            self._continue(now)
        if self._executor.answered:
            self._flush()
        if self._memory.is_due:
            self._relieve()
        if now >= self._next_sweep:
            self._sweep(now)

    def _serve(self, events: list[tuple[int, int]], now: float) -> None:
        """Runs what earlier ticks have put off, reads each ready connection once, and runs what it asks for.

        Requests of a command that can run many wait until all connections are read, and then run together.
        """
        share = max(limits.RECEIVE_BYTES_MIN, limits.TICK_BYTES // max(1, len(events)))
        share = min(self._receive_bytes, share)
        executor = self._executor
        batches: Batches = {}
        pipelines: list[tuple[Connection, list[Request]]] = []
        odd: list[Event] = []
        ended: list[tuple[Connection, Exception | None]] = []
        began = time.monotonic()
        received = self._sockets.read_each(events, self.connections, share, now, batches, pipelines, odd, ended)
        took = time.monotonic() - began
        if took > limits.READ_S:
            self._receive_bytes = max(limits.RECEIVE_BYTES_MIN, share // 2)
        elif self._receive_bytes < limits.RECEIVE_BYTES_MAX and took < limits.READ_S / 4:
            self._receive_bytes = min(limits.RECEIVE_BYTES_MAX, 2 * self._receive_bytes)
        for fd, event in odd:
            received += self._serve_odd(fd, event, share, now, pipelines, ended)
        self._context.traffic.input_bytes += received
        self._memory.grown += RECEIVED_FACTOR * received
        for connection, problem in ended:
            self._end(connection, problem)
        until = self._catch_up(now) + limits.TICK_S / 2
        is_late = False
        for connection, requests in pipelines:
            if connection.state is not OPEN:
                continue  # another one has closed it
            if is_late:
                self._put_off(connection, requests)
            else:
                self._run(connection, requests)
                until += limits.TURN_S
                is_late = time.monotonic() >= until
        for entry, (connections, requests) in batches.items():
            try:
                self._run_batch(entry, connections, requests, until)
            except Exception as problem:  # noqa: BLE001  logged by `fail`
                for connection in dict.fromkeys(connections):
                    executor.fail(connection, problem)

    def _catch_up(self, now: float) -> float:
        """Runs what earlier ticks have put off, oldest first, for half of TICK_S; the rest is for those who come now.

        Returns when that half is over (monotonic).
        """
        until = time.monotonic() + limits.TICK_S / 2
        for connection in list(self._paused.late):
            if self._paused.take_late(connection):
                connection.last_active = now
                self._run(connection, connection.resume())
                until += limits.TURN_S
                if time.monotonic() >= until:
                    break
        return until

    def _put_off(self, connection: Connection, requests: list[Request]) -> None:
        """Runs requests in later ticks: this one has taken long, and clients may have come meanwhile."""
        try:
            connection.pause(requests)
            self._paused.put_off(connection)
            self._update_interest(connection)
        except Exception as problem:  # noqa: BLE001  logged by `fail`
            self._executor.fail(connection, problem)

    def _run_batch(self, entry: Entry, connections: list[Connection], requests: list[Request], until: float) -> None:
        """Runs requests of one command, in their order, and takes those that are done out of both lists.

        Those that are large enough to be sent one by one are put off `until` then.
        """
        executor = self._executor
        is_sent = False  # after that, a connection may have to wait until its client has read more
        while requests:
            done = executor.run_each(entry, connections, requests) if len(requests) > 1 and not is_sent else 0
            if not done:  # the first one runs by itself, and behind it what its client has sent with it
                connection, done = connections[0], 1
                while done < len(requests) and connections[done] is connection:
                    done += 1
                if not is_sent or time.monotonic() < until:
                    executor.run(connection, requests[:done])
                else:
                    self._put_off(connection, requests[:done])
            until += limits.TURN_S * done
            del connections[:done], requests[:done]
            is_sent = self._flush_early() or is_sent

    def _serve_odd(
        self,
        fd: int,
        event: int,
        share: int,
        now: float,
        pipelines: list[tuple[Connection, list[Request]]],
        ended: list[tuple[Connection, Exception | None]],
    ) -> int:
        """Takes an event that is no plain input of an ordinary connection. Returns how many bytes came with it."""
        connection = self.connections.get(fd)
        if connection is None:
            # The wake-up needs no more than waking; a closed connection was closed earlier in this tick.
            if fd in self._listeners:
                self._take_in(fd)
            elif fd == self._calls.fd:
                self._calls.woken()
            return 0
        try:
            if event != READABLE and not self._handle(connection, event):
                return 0
            if connection.state is PAUSED:
                return 0  # it was read earlier in this tick, and its requests wait
            data = connection.receive(share)
            if not data:
                ended.append((connection, None))
                return 0
            connection.last_active = now
            if requests := connection.feed(data):
                pipelines.append((connection, requests))
            return len(data)
        except BlockingIOError:
            return 0
        except Exception as problem:  # noqa: BLE001  as in `read_each`
            ended.append((connection, problem))
            return 0

    def _end(self, connection: Connection, problem: Exception | None) -> None:
        """Takes the end of a connection's input, or a failure of the connection."""
        try:
            if isinstance(problem, OSError):
                self._drop(connection)
            elif problem is not None:
                self._executor.fail(connection, problem)
            else:
                connection.end_input()
                self._update_interest(connection)
        except Exception as failure:  # noqa: BLE001  logged by `fail`
            self._executor.fail(connection, failure)

    def _run_calls(self) -> None:
        for _ in range(self._calls.look()):
            try:
                self._calls.waiting.popleft()()
            except StorageFailed:
                raise
            except Exception as problem:  # noqa: BLE001  of no connection
                self._context.report("call", "a call in a worker's thread failed", problem)
            self._flush_early()

    def _run(self, connection: Connection, requests: list[Request], until: float = 0.0) -> None:
        try:
            self._executor.run(connection, requests, until)
        except Exception as problem:  # noqa: BLE001  logged by `fail`
            self._executor.fail(connection, problem)
        self._flush_early()

    def _flush_early(self) -> bool:
        """Commits and sends before the end of the tick when too much waits for that; whether it did."""
        if self._executor.output > limits.TICK_OUTPUT_BYTES or self._log.pending_size > limits.TICK_WRITTEN_BYTES:
            self._flush()
            is_sent = True
        else:
            is_sent = False
        if self._memory.is_due:
            self._relieve()
        return is_sent

    def _timeout(self) -> float:
        if self._calls.waiting:
            return 0.0
        return self._paused.timeout(limits.SWEEP_S if self._stop_at is None else limits.PARKED_POLL_S)

    def _continue(self, now: float) -> None:
        """Gives slices to the paused connections that can go on, one at least; the tick began at `now`."""
        self._paused.look()
        began = time.monotonic()
        until = began + min((began - now) * limits.LONG_SHARE, limits.SLICE_S)
        for connection in self._paused.first(limits.RESUMED_MAX):
            if self._paused.take(connection):
                connection.last_active = now
                requests = connection.resume()
                self._run(connection, requests, until)
            if time.monotonic() > until:
                break

    def _flush(self) -> None:
        """Makes everything so far durable, then sends the replies.

        A request counts from the tick on in which it was read: a long or blocked one from its last tick.
        """
        context, ran = self._context, self._executor.ran
        began = time.monotonic() if self._commits.is_pending else 0.0
        try:
            self._commit_all()
        except MerkleKVError:
            raise
        except Exception as problem:
            raise StorageFailed(f"a commit was cut short by an unforeseen error: {problem!r}") from problem
        if began:
            took = time.monotonic() - began
            context.commit_time.observe(took)
            context.slow.note("commit", took)
        if self._roll_backs != self._engine.roll_backs:
            self._withdraw()
        looks: list[tuple[Connection, Exception | None]] = []
        sent = 0
        for connection in self._executor.take_apart():
            try:
                sent += connection.send_apart()
            except Exception as problem:  # noqa: BLE001  the connection is closed
                connection.replies.clear()
                looks.append((connection, problem))
        sent += self._sockets.send_each(self._executor.take_answered(), looks)
        context.traffic.output_bytes += sent
        self._memory.grown += sent
        if ran:
            took = time.monotonic() - self._began
            for waited, count in ran.items():
                waited.observe(took, count)
            ran.clear()
        for connection, failure in looks:
            try:
                if failure is not None:
                    raise failure
                self._update_interest(connection)
            except OSError:
                self._drop(connection)
            except Exception as problem:  # noqa: BLE001  logged by `fail`
                self._drop(connection)  # nothing more can be sent to this one
                self._executor.fail(connection, problem)

    def _commit_all(self) -> None:
        """Makes durable what was not rolled back.

        A commit that raises has rolled everything back, or finds that another thread has; then what came after that is
        pending. The second one decides about the rest: since the first, this thread has written nothing. Without any
        rest it would only use up a look at whether there is room again.
        """
        try:
            self._commit()
        except Shortage:
            if self._engine.commits.is_pending:
                with suppress(Shortage):
                    self._commit()

    def _withdraw(self) -> None:
        """Turns replies into errors: those to requests that did or saw what was rolled back, and commands under way."""
        since = self._roll_backs
        self._roll_backs, problem = self._engine.roll_backs, self._engine.rolled_back
        lost = self._engine.frames_rolled_back(since)
        self._engine.begin()  # after that look: what is rolled back from here on is withdrawn the next time
        parts = self._executor.parts
        if not parts.is_any_in(lost):
            return
        parts.undo(lost)
        for connection in self._executor.answered:
            if parts.withdraw(connection, lost, connection.explain(problem)) and connection.transaction is not None:
                connection.transaction.fail()  # its client was told that what it has queued was refused
        for connection in self.connections.values():
            if connection.task is not None and not isinstance(connection.waits_for, Signal):  # which has seen nothing
                connection.fail_task(problem)

    def _handle(self, connection: Connection, event: int) -> bool:
        """Takes an event other than plain input. Returns whether there is input to read as well."""
        if event & _GONE:
            self._drop(connection)
            return False
        if event & WRITABLE and connection.unsent_bytes:
            unsent = connection.unsent_bytes
            try:
                connection.send_unsent()
            except OSError:
                self._drop(connection)
                return False
            if connection.unsent_bytes < unsent:
                connection.last_active = time.monotonic()
            self._update_interest(connection)
        return bool(event & connection.interest & READABLE) and connection.state is not CLOSED

    def _update_interest(self, connection: Connection) -> None:
        """Decides what comes next for a connection that needs attention: closing, going on, the events it waits for."""
        if connection.state is CLOSED or connection.replies:
            return  # nothing, or it comes back here after sending
        unsent = connection.unsent_bytes
        listens = connection.has_missed or connection.only_listens
        limit = self._context.limits.output_hard_bytes
        if listens:
            limit = min(limit, limits.SUBSCRIBER_OUTPUT_BYTES)
        if connection.has_missed or unsent > limit:
            self._context.traffic.output_limit_closed += 1
            what = "messages" if listens else "replies"
            self._context.report("unread", f"closed {connection.address}: {unsent} bytes of {what} not read")
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
            self._paused.add(connection)
        events = connection.events
        connection.needs_attention = events != READABLE or connection.state is not OPEN
        if events != connection.interest:
            connection.interest = events
            self._epoll.modify(connection.fd, events)

    def _drop(self, connection: Connection) -> None:
        """Closes at once. What was not sent is lost."""
        if connection.state is not CLOSED:
            del self.connections[connection.fd]
            self.refused.discard(connection)
            self._paused.forget(connection)
            connection.close()

    def _relieve(self) -> None:
        """Closes the clients that hold most, if all together hold too much."""
        for connection in self._memory.look(self._context.connections()):
            home = connection.worker
            if home is self:
                self._evict(connection)
            elif isinstance(home, Worker):
                home.call_soon(partial(home._evict, connection))

    def _evict(self, connection: Connection) -> None:
        """Closes a connection of this worker because all clients hold too much."""
        if connection.state is CLOSED:
            return
        self._context.traffic.evicted += 1
        size, limit = connection.memory_bytes, self._memory.limit
        text = "closed %(client)s, which held %(bytes)d bytes, most of all clients; together they may hold %(limit)d"
        fields = {"client": connection.address, "bytes": size, "limit": limit}
        self._context.throttle.warn("memory", text, fields=fields)
        if connection.state is OPEN and not connection.unsent_bytes and not connection.replies:
            self._executor.fail(connection, Goodbye(connection.explain(RequestError(CROWDED))))
        else:
            self._drop(connection)  # it would not read that

    def _sweep(self, now: float) -> None:
        """Closes connections that are silent for too long, and lets listeners accept again."""
        self._next_sweep = now + limits.SWEEP_S
        if self._context.vitals.is_due(now):
            self._context.vitals.sample(now, self._context.counters(), self._memory.used + self._engine.memtables_bytes)
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
        self._relieve()  # also where clients keep what they hold: the metrics show it
        # Also without a reply to send: a disk that failed in another thread, in a checkpoint or in the regular sync,
        # ends the process even while all clients wait or are silent.
        self._flush()
