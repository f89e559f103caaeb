"""The server: its state, its settings, its commands, and its end.

The line protocol's STATS has fixed names only, see `status.basic_metrics`; `STATS all` and STATS over RESP have all.
COMMAND answers from the declarations of the commands. Nothing can be configured at run time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import merklekv
from merklekv.net.commands import status
from merklekv.net.commands.arguments import SYNTAX_ERROR, no_arguments
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.glob import compile_glob
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.resp import bulk, integer
from merklekv.net.protocol.text import Request
from merklekv.net.registry import ADMIN, FAST, RESP, Command, Reply, Subcommands, command, line_command
from merklekv.net.session import Session

SINCE = "0.1.0"


@command("VERSION", "The version of MerkleKV.", flags=FAST)
def version(session: Session, request: Request) -> Reply:
    return bulk(merklekv.__version__.encode())


@line_command("VERSION")
def version_line(session: Session, request: Request) -> Reply:
    return b"VERSION %b\r\n" % merklekv.__version__.encode()


@line_command("MEMORY", group="memory")
def memory_line(session: Session, request: Request) -> Reply:
    return b"MEMORY %d\r\n" % status.memory()[1]


@command("STATS", "Counters since the start.", group="stat")
def stats(session: Session, request: Request) -> Reply:
    return resp.verbatim(status.lines_of(status.all_metrics(session.context)), session.protocol)


@line_command("STATS [all]", group="stat")
def stats_line(session: Session, request: Request) -> Reply:
    if request[1] and request[1].lower() != b"all":
        raise RequestError("STATS command accepts only the argument all")
    values = status.all_metrics(session.context) if request[1] else status.basic_metrics(session.context)
    return b"STATS\r\n%bEND\r\n" % status.lines_of(values)


@command("INFO [section ...]", "The state of the server.", group="stat")
def info(session: Session, request: Request) -> Reply:
    """Redis's sections, as far as they mean something here; a section of our own holds the rest."""
    sections = status.sections(session.context)
    wanted = {word.lower() for word in request[1:]} or {b"default"}
    if not wanted & {b"all", b"default", b"everything"}:
        sections = {name: values for name, values in sections.items() if name.lower().encode() in wanted}
    body = b"\r\n".join(b"# %b\r\n%b" % (name.encode(), status.lines_of(values)) for name, values in sections.items())
    return resp.verbatim(body, session.protocol)


@line_command("INFO", group="stat")
def info_line(session: Session, request: Request) -> Reply:
    return b"INFO\r\n%bEND\r\n" % status.lines_of(status.info_metrics(session.context))


@command("TIME", "The clock of the server: seconds and microseconds.", flags=FAST)
def time_(session: Session, request: Request) -> Reply:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return resp.bulk_array([b"%d" % seconds, b"%d" % (nanoseconds // 1000)])


@command("SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE]", "Stops the server.", flags=ADMIN)
def shutdown(session: Session, request: Request) -> Reply:
    """No reply: as with Redis, the connection just ends."""
    words = {word.upper() for word in request[1:]}
    if words == {b"ABORT"}:
        raise RequestError("No shutdown in progress.")
    if words - {b"NOSAVE", b"SAVE", b"NOW", b"FORCE"} or words >= {b"NOSAVE", b"SAVE"}:
        raise RequestError(SYNTAX_ERROR)
    raise Goodbye(b"", session.context.services.shutdown)


@line_command("SHUTDOWN")
def shutdown_line(session: Session, request: Request) -> Reply:
    no_arguments(request)
    raise Goodbye(text.OK, session.context.services.shutdown)


# -- CONFIG ------------------------------------------------------------------------------------------------------------

_config = Subcommands("CONFIG")
command(
    "CONFIG GET pattern [pattern ...]|HELP", "Settings, under the names they have in Redis.", arity=-2, flags=ADMIN
)(_config.run)


@_config.add("GET pattern [pattern ...]", "Settings whose names match a pattern.")
def _config_get(session: Session, arguments: Sequence[bytes]) -> bytes:
    """What stock clients ask for, under Redis's names."""
    context = session.context
    settings = {
        b"save": b"",
        b"appendonly": b"yes",
        b"appendfsync": context.engine.durability.encode(),
        b"databases": b"1",
        b"maxclients": b"%d" % context.limits.connections,
        b"maxmemory": b"0",
        b"port": b"%d" % context.port,
        b"proto-max-bulk-len": b"%d" % context.engine.max_value_size,
        b"timeout": b"%d" % context.limits.idle_timeout_s,
    }
    matchers = [compile_glob(pattern.lower()) for pattern in arguments]
    found = [
        (bulk(name), bulk(value))
        for name, value in settings.items()
        if any(name.startswith(prefix) and matches(name) for prefix, matches in matchers)
    ]
    return resp.mapping(found, session.protocol)


_FIXED = "Refused: nothing can be configured at run time."


@_config.add("RESETSTAT", _FIXED)
@_config.add("REWRITE", _FIXED)
@_config.add("SET name value [name value ...]", _FIXED)
def _config_fixed(session: Session, arguments: Sequence[bytes]) -> bytes:
    raise RequestError("nothing can be configured at run time: settings are given when the node starts")


# -- COMMAND -----------------------------------------------------------------------------------------------------------

_command = Subcommands("COMMAND")


@command("COMMAND [COUNT|LIST|INFO [name ...]|DOCS [name ...]|HELP]", "Describes the commands.")
def command_(session: Session, request: Request) -> Reply:
    if len(request) == 1:
        return _command_info(session, ())
    return _command.run(session, request)


def _named(names: Sequence[bytes]) -> list[Command | None]:
    """The commands of these names, None for one that does not exist; all of them when no name is given."""
    known = {name: one for name, one in RESP.items() if one.name}
    return [known.get(name.upper()) for name in names] if names else list(known.values())


@_command.add("COUNT", "How many commands there are.")
def _command_count(session: Session, arguments: Sequence[bytes]) -> bytes:
    return integer(len(_named(())))


@_command.add("LIST", "The names of all commands.")
def _command_list(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.bulk_array([one.name.lower().encode() for one in _named(()) if one])


@_command.add("INFO [name ...]", "Arity, flags and keys of commands, or of all.")
def _command_info(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.array([_info(one, session.protocol) if one else session.nil for one in _named(arguments)])


def _info(one: Command, protocol: int) -> bytes:
    name = bulk(one.name.lower().encode())
    flags, none = resp.flag_set(one.flags, protocol), resp.flag_set((), protocol)
    arity, *keys = map(integer, (one.arity, *one.keys))
    return resp.array([name, arity, flags, *keys, none, resp.EMPTY_ARRAY, resp.EMPTY_ARRAY, resp.EMPTY_ARRAY])


@_command.add("DOCS [name ...]", "What commands do, or all of them.")
def _command_docs(session: Session, arguments: Sequence[bytes]) -> bytes:
    def document(one: Command) -> bytes:
        fields = {"summary": one.summary, "since": SINCE, "group": one.group or "connection"}
        pairs = [(bulk(name.encode()), bulk(value.encode())) for name, value in fields.items()]
        return resp.mapping(pairs, session.protocol)

    named = [one for one in _named(arguments) if one]
    return resp.mapping([(bulk(one.name.lower().encode()), document(one)) for one in named], session.protocol)
