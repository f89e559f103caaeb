"""CONFIG: settings under the names that they have in Redis.

A `Parameter` says how to read one, and how to set it if it can change while the node runs. A change lasts until the
node stops, or until a reload finds that its setting has changed: the file and the flags, which have names of their own,
decide what the next start does. Several parameters are set all or none. Setting one that cannot change to the value it
has succeeds, because tools do that.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import SYNTAX_ERROR
from merklekv.net.errors import RequestError
from merklekv.net.glob import compile_glob
from merklekv.net.limits import SUBSCRIBER_OUTPUT_BYTES
from merklekv.net.notifications import normalized
from merklekv.net.protocol import resp
from merklekv.net.protocol.resp import bulk
from merklekv.net.protocol.text import show
from merklekv.net.registry import Long, Subcommands, command
from merklekv.net.session import Context, Session
from merklekv.net.steps import Steps

SLICE_PATTERN_BYTES: Final = 1000  # that CONFIG GET compiles and compares between two yields
PATTERN_ROOM_BYTES: Final = 50  # what a pattern costs beside its bytes
CLIENTS_MAX: Final = (1 << 32) - 1
SECONDS_MAX: Final = (1 << 31) - 1
_LEVELS: Final = {logging.DEBUG: "debug", logging.INFO: "notice", logging.WARNING: "warning", logging.ERROR: "warning"}
_GLOB: Final = re.compile(rb"[*?\[]")

Apply = Callable[[], None]


class BadValue(Exception):
    """The text says why a parameter does not take a value."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """`prepare` checks a value and returns what sets it; None: the parameter cannot change at run time."""

    read: Callable[[Context], str]
    prepare: Callable[[Context, str], Apply] | None = None


PARAMETERS: Final[dict[str, Parameter]] = {}


def parameter(name: str, read: Callable[[Context], str]) -> None:
    """Declares a parameter that cannot change at run time."""
    PARAMETERS[name] = Parameter(read)


def changeable(name: str, read: Callable[[Context], str]) -> Callable[[Callable[[Context, str], Apply]], None]:
    """Declares a parameter; the function decorated is its `prepare`."""

    def declare(prepare: Callable[[Context, str], Apply]) -> None:
        PARAMETERS[name] = Parameter(read, prepare)

    return declare


def number(value: str, low: int, high: int) -> int:
    """A number in these bounds. Raises BadValue, in Redis's words."""
    found = strict_integer(value.encode())
    if found is None:
        raise BadValue("argument couldn't be parsed into an integer")
    if not low <= found <= high:
        raise BadValue(f"argument must be between {low} and {high} inclusive")
    return found


def _always(value: str) -> Callable[[Context], str]:
    return lambda context: value


# -- the parameters ----------------------------------------------------------------------------------------------------

for _name, _value in {
    "save": "",
    "appendonly": "yes",
    "databases": "1",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "lfu-log-factor": "10",
    "lfu-decay-time": "1",
    "cluster-enabled": "no",
    "requirepass": "",
    "logfile": "",
    "daemonize": "no",
    "supervised": "no",
    "hz": "1",
    "latency-tracking": "no",
    "io-threads": "1",
    "activedefrag": "no",
    "tls-port": "0",
    "min-replicas-to-write": "0",
    "replica-read-only": "yes",
    "replicaof": "",
    "slaveof": "",
    "repl-backlog-size": "0",
}.items():
    parameter(_name, _always(_value))

parameter("appendfsync", lambda context: {"never": "no"}.get(context.engine.durability, context.engine.durability))
parameter("bind", lambda context: context.host)
parameter("port", lambda context: str(context.port))
parameter("dir", lambda context: str(context.engine.directory.path.resolve()))
parameter("protected-mode", lambda context: "no" if context.allow_remote else "yes")
parameter("proto-max-bulk-len", lambda context: str(context.engine.max_value_size))
parameter("client-query-buffer-limit", lambda context: str(context.limits.request_bytes))
parameter("maxmemory-clients", lambda context: str(context.memory.limit))
parameter("loglevel", lambda context: _LEVELS.get(logging.getLogger().getEffectiveLevel(), "notice"))
parameter("client-output-buffer-limit", lambda context: _output_limits(context.limits.output_hard_bytes))


def _output_limits(hard: int) -> str:
    return f"normal {hard} 0 0 slave {hard} 0 0 pubsub {min(hard, SUBSCRIBER_OUTPUT_BYTES)} 0 0"


@changeable("maxclients", lambda context: str(context.limits.connections))
def _maxclients(context: Context, value: str) -> Apply:
    wanted = number(value, 1, CLIENTS_MAX)
    room = context.room_for(wanted)
    if room < wanted:
        raise BadValue(
            f"The operating system is not able to handle the specified number of clients, try with {max(room, 0)}"
        )

    def apply() -> None:
        context.limits = replace(context.limits, connections=wanted)

    return apply


@changeable("timeout", lambda context: f"{context.limits.idle_timeout_s:.0f}")
def _timeout(context: Context, value: str) -> Apply:
    seconds = number(value, 0, SECONDS_MAX)

    def apply() -> None:
        context.limits = replace(context.limits, idle_timeout_s=float(seconds))

    return apply


@changeable("notify-keyspace-events", lambda context: context.notifications.flags)
def _notifications(context: Context, value: str) -> Apply:
    try:
        normalized(value)
    except ValueError:
        raise BadValue("Invalid event class character. Use 'Ag$lshzxeKEtmdn'.") from None
    return lambda: context.notifications.set(value)


# -- the command -------------------------------------------------------------------------------------------------------

_config = Subcommands("CONFIG")
command(
    "CONFIG GET pattern [pattern ...]|SET name value [name value ...]|RESETSTAT|REWRITE|HELP",
    "Settings, under the names they have in Redis.",
    arity=-2,
    flags=("noscript", "admin"),
    note=(
        "Redis's names for what tools ask; at run time `maxclients`, `timeout`, `notify-keyspace-events`, "
        "`slowlog-log-slower-than`, `slowlog-max-len` and `latency-monitor-threshold` can change, "
        "until the node stops; `REWRITE` is an error"
    ),
)(_config.run)


@_config.add("GET pattern [pattern ...]", "Settings whose names match a pattern.")
def _config_get(session: Session, arguments: Sequence[bytes]) -> Long:
    found: dict[bytes, bytes] = {}
    steps = Steps(SLICE_PATTERN_BYTES)
    for asked in arguments:
        if steps.add(PATTERN_ROOM_BYTES + len(asked)):
            yield None
        prefix, matches = compile_glob(asked.lower())
        for name, one in PARAMETERS.items():
            if name.encode().startswith(prefix) and matches(name.encode()):
                shown = name.encode() if _GLOB.search(asked) else asked  # a plain name as the client wrote it
                found[shown] = one.read(session.context).encode()
    return resp.mapping([(bulk(name), bulk(value)) for name, value in found.items()], session.protocol)


@_config.add("SET name value [name value ...]", "Changes settings until the node stops, all of these or none.")
def _config_set(session: Session, arguments: Sequence[bytes]) -> bytes:
    if len(arguments) % 2:
        raise RequestError(SYNTAX_ERROR)
    wanted: dict[str, tuple[str, str]] = {}  # parameter: as given, value
    for given, value in _pairs(arguments):
        name = given.lower()
        if name not in PARAMETERS:
            raise RequestError(f"Unknown option or number of arguments for CONFIG SET - '{given}'")
        if name in wanted:
            raise _refusal(given, "duplicate parameter")
        wanted[name] = given, value
    changes: list[Apply] = []
    for name, (given, value) in wanted.items():
        try:
            changes.append(_prepare(session.context, PARAMETERS[name], value))
        except BadValue as problem:
            raise _refusal(given, str(problem)) from None
    for apply in changes:
        apply()
    return resp.OK


def _refusal(given: str, problem: str) -> RequestError:
    return RequestError(f"CONFIG SET failed (possibly related to argument '{given}') - {problem}")


def _pairs(arguments: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        yield show(name), show(value)


def _prepare(context: Context, one: Parameter, value: str) -> Apply:
    if one.prepare is not None:
        return one.prepare(context, value)
    if value != one.read(context):
        raise BadValue("can't set immutable config")
    return lambda: None


@_config.add("RESETSTAT", "Lets INFO count from here on; STATS counts since the start.")
def _config_resetstat(session: Session, arguments: Sequence[bytes]) -> bytes:
    session.context.reset_counters()
    return resp.OK


@_config.add("REWRITE", "Refused: a change at run time lasts until the node stops.")
def _config_rewrite(session: Session, arguments: Sequence[bytes]) -> bytes:
    raise RequestError("The server is running without a config file")
