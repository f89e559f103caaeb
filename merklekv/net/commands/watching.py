"""SLOWLOG, LATENCY and MONITOR: what takes long, and what clients do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import slices
from merklekv.net.commands.config import Apply, changeable, number
from merklekv.net.errors import RequestError
from merklekv.net.interception import one_by_one
from merklekv.net.protocol import resp
from merklekv.net.protocol.resp import bulk
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import ADMIN, ALONE, NOSCRIPT, Long, Reply, Subcommands, command
from merklekv.net.session import Context, Session
from merklekv.net.slowlog import BATCH_US, SLOWLOG_ENTRIES_MAX, SlowRequest

SHOWN_DEFAULT: Final = 10
_INT64_MAX: Final = (1 << 63) - 1
_EXACT: Final = "slowlog"

# -- SLOWLOG -----------------------------------------------------------------------------------------------------------


@changeable("slowlog-log-slower-than", lambda context: str(context.slow.slower_than_us))
def _slower_than(context: Context, value: str) -> Apply:
    microseconds = number(value, -1, _INT64_MAX)

    def apply() -> None:
        context.slow.set_limits(microseconds, context.slow.threshold_ms)
        if 0 <= microseconds < BATCH_US:
            context.interception.add(_EXACT, one_by_one)
        else:
            context.interception.remove(_EXACT)

    return apply


@changeable("slowlog-max-len", lambda context: str(context.slow.length))
def _max_len(context: Context, value: str) -> Apply:
    most = number(value, 0, SLOWLOG_ENTRIES_MAX)
    return lambda: setattr(context.slow, "length", most)


_slowlog = Subcommands("SLOWLOG")
command(
    "SLOWLOG GET [count]|LEN|RESET|HELP",
    "The requests that took longer than `slowlog-log-slower-than` microseconds.",
    arity=-2,
    flags=ADMIN,
    note=(
        "at most 10,000 requests; of a pipeline of equal requests, a batch counts as one, unless "
        "`slowlog-log-slower-than` is below 2,000"
    ),
)(_slowlog.run)


@_slowlog.add("GET [count]", "The newest of them, 10 or as many as given; -1 is all.", most=1)
def _slowlog_get(session: Session, arguments: Sequence[bytes]) -> Long:
    count = strict_integer(arguments[0]) if arguments else SHOWN_DEFAULT
    if count is None or count < -1:
        raise RequestError("count should be greater than or equal to -1")
    requests = session.context.slow.requests
    found: list[bytes] = []
    for some in slices(requests if count < 0 else requests[:count]):
        if found:
            yield None
        found += map(_entry, some)
    return resp.array(found)


def _entry(one: SlowRequest) -> bytes:
    return resp.array(
        [
            resp.integer(one.number),
            resp.integer(one.at),
            resp.integer(one.microseconds),
            resp.bulk_array(one.request),
            bulk(one.address.encode()),
            bulk(one.name),
        ]
    )


@_slowlog.add("LEN", "How many there are.")
def _slowlog_len(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.integer(len(session.context.slow.requests))


@_slowlog.add("RESET", "Forgets them.")
def _slowlog_reset(session: Session, arguments: Sequence[bytes]) -> bytes:
    session.context.slow.clear()
    return resp.OK


# -- LATENCY -----------------------------------------------------------------------------------------------------------


@changeable("latency-monitor-threshold", lambda context: str(context.slow.threshold_ms))
def _threshold(context: Context, value: str) -> Apply:
    milliseconds = number(value, 0, _INT64_MAX)
    return lambda: context.slow.set_limits(context.slow.slower_than_us, milliseconds)


_latency = Subcommands("LATENCY")
command(
    "LATENCY LATEST|HISTORY event|RESET [event ...]|GRAPH event|DOCTOR|HISTOGRAM [command ...]|HELP",
    "What took longer than `latency-monitor-threshold` milliseconds: command, fast-command, commit.",
    arity=-2,
    flags=(NOSCRIPT, *ADMIN),
    note=(
        "the events are `command`, `fast-command` and `commit`, the wait for the disk; `HISTOGRAM` counts a command "
        "and its subcommands together, and the requests of a batch with their mean"
    ),
)(_latency.run)


@_latency.add("LATEST", "The last and the longest of each kind of event.")
def _latency_latest(session: Session, arguments: Sequence[bytes]) -> bytes:
    rows = []
    for name, event in list(session.context.slow.events.items()):
        at, milliseconds = event.samples[-1]
        numbers = map(resp.integer, (at, milliseconds, event.longest_ms))
        rows.append(resp.array([bulk(name.encode()), *numbers]))
    return resp.array(rows)


@_latency.add("HISTORY event", "The longest of each second in which one was too long.")
def _latency_history(session: Session, arguments: Sequence[bytes]) -> bytes:
    event = session.context.slow.events.get(show(arguments[0]))
    samples = list(event.samples) if event else []
    return resp.array([resp.array([resp.integer(at), resp.integer(ms)]) for at, ms in samples])


@_latency.add("RESET [event ...]", "Forgets kinds of events, or all.")
def _latency_reset(session: Session, arguments: Sequence[bytes]) -> bytes:
    events = session.context.slow.events
    names = [show(name) for name in arguments] or list(events)
    return resp.integer(sum(events.pop(name, None) is not None for name in names))


@_latency.add("GRAPH event", "The same as lines of text.")
def _latency_graph(session: Session, arguments: Sequence[bytes]) -> bytes:
    name = show(arguments[0])
    event = session.context.slow.events.get(name)
    if event is None:
        raise RequestError(f"No samples available for event '{name}'")
    lines = [f"{name} - high {event.longest_ms} ms", *(f"{at} {ms} ms" for at, ms in list(event.samples))]
    return resp.verbatim("\n".join(lines).encode(), session.protocol)


@_latency.add("DOCTOR", "A sentence on what is measured.")
def _latency_doctor(session: Session, arguments: Sequence[bytes]) -> bytes:
    slow = session.context.slow
    if not slow.threshold_ms:
        text = "LATENCY is off: CONFIG SET latency-monitor-threshold <milliseconds> turns it on."
    elif not slow.events:
        text = f"Nothing took {slow.threshold_ms} ms or more."
    else:
        longest = ", ".join(f"{name} {event.longest_ms} ms" for name, event in list(slow.events.items()))
        text = (
            f"The longest of each kind: {longest}. SLOWLOG GET names the requests. A long commit is the disk's; "
            "durability = everysec lets replies not wait for it."
        )
    return resp.verbatim(text.encode() + b"\n", session.protocol)


@_latency.add("HISTOGRAM [command ...]", "How long calls took, of these commands or of all.")
def _latency_histogram(session: Session, arguments: Sequence[bytes]) -> bytes:
    """In Redis's form: the calls, and how many of them took less than 1, 2, 4, ... microseconds."""
    wanted = {name.upper() for name in arguments}
    rows = []
    for name, used in session.context.usage_since_reset().items():
        if used.time.count and (not wanted or name.encode() in wanted):
            counts = [(resp.integer(limit), resp.integer(count)) for limit, count in used.time.cumulative()]
            fields = [
                (bulk(b"calls"), resp.integer(used.time.count)),
                (bulk(b"histogram_usec"), resp.mapping(counts, session.protocol)),
            ]
            rows.append((bulk(name.lower().encode()), resp.mapping(fields, session.protocol)))
    return resp.mapping(rows, session.protocol)


# -- MONITOR -----------------------------------------------------------------------------------------------------------


@command(
    "MONITOR",
    "Shows every request of all clients, from now on.",
    flags=ALONE,
    note="a request is shown when it has run, its first 64 KiB; a monitor that does not read is closed at 32 MiB",
)
def monitor(session: Session, request: Request) -> Reply:
    session.context.monitor.join(session)
    return resp.OK
