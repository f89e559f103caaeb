"""What a client has queued between MULTI and EXEC, and how it runs: at once, seen by others whole or not at all.

A queue keeps its requests in runs of one command with as many parts: such a run is one call of the command's batch.

Bounds: QUEUED_MAX requests and the bytes of one whole request, for a transaction keeps everybody waiting while it runs.
One that is too large, or has a request that could not be queued, is broken: it keeps nothing, and EXEC refuses it.

Some requests cost much although they are short. After SECONDS_MAX, those that only read, and those that take long and
have changed nothing yet, are answered with an error; the other writes run, because half of them would be worse. After
HELD_SECONDS_MAX, the whole transaction is taken back. Those that make the data grow get an error once what waits for
the commit is as large as half of the memory of all clients.

Cost: 0.3 us to queue one of several requests that arrive together; to run it, what it costs outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from merklekv.errors import MerkleKVError, Shortage, Stalled, StorageFailed
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.limits import ARGUMENT_BYTES
from merklekv.net.protocol.text import Request
from merklekv.net.registry import QUEUED_MAX, Entry, Long

if TYPE_CHECKING:
    from merklekv.net.session import Session

BATCH_REQUESTS: Final = 128
# While a transaction or a script runs, nobody else is served. Redis calls a script slow after as long.
SECONDS_MAX: Final = 5.0
HELD_SECONDS_MAX: Final = 20.0  # of a transaction: many thousand small writes take a fraction of that
_TOO_LONG: Final = f"not done: what runs at one moment must not take more than {SECONDS_MAX:.0f} seconds"


class Transaction:
    """The requests of one transaction."""

    __slots__ = ("_runs", "broken", "bytes", "bytes_max", "count", "room", "undo")

    def __init__(self, bytes_max: int) -> None:
        self.broken = False  # EXEC must refuse it
        self.count = 0
        self.bytes = 0  # of all requests, with what they cost beside their arguments
        self.room = 0  # of those that make the data grow: at least what they take in the log
        self.bytes_max = bytes_max
        self.undo: Callable[[], None] | None = None  # takes back what its commands have changed beside data
        self._runs: list[tuple[Entry, int, list[Request]]] = []  # command, parts of each request, requests

    def fail(self) -> None:
        """A request could not be queued: nothing of the transaction may run."""
        self.broken = True
        self._runs.clear()

    def add(self, entry: Entry, requests: Sequence[Request]) -> bool:
        """Queues requests of one command with as many parts; whether all of them fit, for otherwise it queues none."""
        if self.broken:
            return True
        parts, count = len(requests[0]), len(requests)
        size = sum(map(len, map(b"".join, requests))) + ARGUMENT_BYTES * parts * count  # faster than part by part
        if self.count + count > QUEUED_MAX or self.bytes + size > self.bytes_max:
            return False
        self.count += count
        self.bytes += size
        if entry.grows:
            self.room += size
        runs = self._runs
        if runs and runs[-1][0] is entry and runs[-1][1] == parts:
            runs[-1][2].extend(requests)
        else:
            runs.append((entry, parts, list(requests)))
        return True

    def requests(self) -> Iterator[tuple[Entry, Request]]:
        """What is queued, in its order."""
        return ((entry, request) for entry, _, requests in self._runs for request in requests)

    def run(self, session: Session) -> list[bytes]:
        """Runs all, with the engine's lock held: the reply of each.  Raises what takes the whole transaction back."""
        replies: list[bytes] = []
        limit = session.context.limits.output_hard_bytes
        size = 0
        began = monotonic()
        until = began + SECONDS_MAX
        for entry, parts, requests in self._runs:
            done, end = 0, len(requests)
            sessions = [session] * min(end, BATCH_REQUESTS)
            while done < end:
                if (now := monotonic()) > until:
                    if now > began + HELD_SECONDS_MAX:
                        raise Shortage(
                            f"a transaction takes more than {HELD_SECONDS_MAX:.0f} seconds, write not stored"
                        )
                    if not entry.writes:
                        replies += [session.explain(RequestError(_TOO_LONG))] * (end - done)
                        break
                together: Sequence[bytes] = ()
                if end - done > 1 and parts in entry.batches:
                    some = requests[done : done + BATCH_REQUESTS]
                    together = entry.run_together(sessions[: len(some)], some, limit - size)
                if not together:
                    together = (run_here(session, entry, requests[done], until),)
                done += len(together)
                size += sum(map(len, together))
                if size > limit:
                    together = [session.explain(RequestError(f"replies of more than {limit} bytes"))] * len(together)
                    size = limit
                replies += together
        return replies


def run_here(session: Session, entry: Entry, request: Request, until: float) -> bytes:
    """Runs one request to its end, with the engine's lock held: its reply, which may be an error.

    It may take long `until` then (monotonic).
    Raises Shortage, Stalled, StorageFailed: what it belongs to cannot go on.
    """
    entry.calls += 1
    try:
        written_max = session.context.limits.memory_bytes // 2
        if entry.grows and session.engine.log.pending_size > written_max:
            raise RequestError(f"more than {written_max} bytes to write at one moment: split it into several")
        answer = entry.handler(session, request)
        return answer if isinstance(answer, bytes) else _finish(session, answer, entry, until)
    except (Shortage, Stalled, StorageFailed):
        raise
    except Goodbye:
        problem: MerkleKVError = RequestError("not allowed here: it ends the connection")
    except MerkleKVError as error:
        problem = error
    entry.count_failure(problem)
    session.context.traffic.count_error(problem)
    return session.explain(problem)


def _finish(session: Session, task: Long, entry: Entry, until: float) -> bytes:
    log = session.engine.log
    before = log.appended
    try:
        while True:
            if monotonic() > until and log.appended == before:
                task.close()
                raise RequestError(_TOO_LONG)
            waits_for = next(task)
            if waits_for is None or waits_for():
                continue
            task.close()
            if entry.writes:
                raise Stalled("checkpoints are behind, writes wait for them")
            raise RequestError("it would have to wait, which it cannot do here: try again, or outside of it")
    except StopIteration as end:
        reply: bytes = end.value
        return reply
