"""Handlers of the RESP commands about the connection and the server: what stock Redis clients ask before they work.

HELLO, CLIENT, COMMAND and CONFIG GET answer in Redis's form, from the session and from the command table. There is
one user, without a password, and one database, and nothing is configured at run time: what would need more is refused
with a reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.registry import Command
from merklekv.net.commands.resp_data import WRONG_COUNT, number
from merklekv.net.commands.scan import SYNTAX_ERROR
from merklekv.net.commands.shared import refuse_foreign
from merklekv.net.commands.status import REDIS_VERSION
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.glob import compile_glob
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.resp import bulk, integer, simple
from merklekv.net.protocol.text import Request, show
from merklekv.net.session import Reply, Session

ARGUMENTS_SHOWN_BYTES = 128
SINCE = "0.1.0"

DEFAULT_USER = b"default"  # the only one, without a password
CLIENT_TYPES = (b"normal", b"replica", b"slave", b"master", b"pubsub")


class Subcommand(NamedTuple):
    """The second word of a command such as CLIENT: how many arguments may follow, and the two lines of its help."""

    least: int
    most: int
    run: Callable[[Session, Sequence[bytes]], bytes]
    syntax: str
    summary: str


def hello(session: Session, request: Request) -> Reply:
    protocol = session.protocol
    if len(request) > 1:
        asked = strict_integer(request[1])
        if asked is None:
            raise RequestError("Protocol version is not an integer or out of range")
        if asked not in resp.NIL:
            raise RequestError("unsupported protocol version", code="NOPROTO")
        protocol = asked
    words = list(request[2:])
    name = session.name
    while words:
        option = words.pop(0)
        if option.upper() == b"SETNAME" and words:
            name = checked_name(words.pop(0))
        elif option.upper() == b"AUTH" and len(words) > 1:
            check_user(words.pop(0))
            words.pop(0)
        else:
            raise RequestError(f"Syntax error in HELLO option '{show(option)}'")
    session.name = name
    choose_protocol(session, protocol)
    pairs = [
        (b"server", bulk(b"redis")),
        (b"version", bulk(REDIS_VERSION.encode())),
        (b"proto", integer(protocol)),
        (b"id", integer(session.id)),
        (b"mode", bulk(b"standalone")),
        (b"role", bulk(b"master")),
        (b"modules", resp.EMPTY_ARRAY),
    ]
    return resp.mapping([(bulk(field), value) for field, value in pairs], protocol)


def auth(session: Session, request: Request) -> Reply:
    """As on a Redis where no password is set: the default user may come with any, and there is no other user."""
    if len(request) > 3:
        raise RequestError(SYNTAX_ERROR)
    if len(request) == 2:
        raise RequestError(
            "AUTH <password> called without any password configured for the default user. "
            "Are you sure your configuration is correct?"
        )
    check_user(request[1])
    return resp.OK


def check_user(name: bytes) -> None:
    if name != DEFAULT_USER:
        raise RequestError("invalid username-password pair or user is disabled.", code="WRONGPASS")


def choose_protocol(session: Session, protocol: int) -> None:
    session.protocol = protocol
    session.nil = resp.NIL[protocol]


def checked_name(name: bytes) -> bytes:
    if any(not 33 <= byte <= 126 for byte in name):
        raise RequestError("Client names cannot contain spaces, newlines or special characters.")
    return name


def reset(session: Session, request: Request) -> Reply:
    choose_protocol(session, 2)
    session.refuse(False)
    session.name = b""
    return simple("RESET")


def select(session: Session, request: Request) -> Reply:
    if number(request[1]) != 0:
        raise RequestError("DB index is out of range")
    return resp.OK


def ping(session: Session, request: Request) -> Reply:
    if len(request) > 2:
        raise RequestError(WRONG_COUNT.format("ping"))
    return bulk(request[1]) if len(request) == 2 else b"+PONG\r\n"


def echo(session: Session, request: Request) -> Reply:
    return bulk(request[1])


def time_(session: Session, request: Request) -> Reply:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return resp.bulk_array([b"%d" % seconds, b"%d" % (nanoseconds // 1000)])


def quit_(session: Session, request: Request) -> Reply:
    raise Goodbye(resp.OK)


def shutdown(session: Session, request: Request) -> Reply:
    """No reply: as with Redis, the connection just ends."""
    words = {word.upper() for word in request[1:]}
    if words == {b"ABORT"}:
        raise RequestError("No shutdown in progress.")
    if words - {b"NOSAVE", b"SAVE", b"NOW", b"FORCE"} or words >= {b"NOSAVE", b"SAVE"}:
        raise RequestError(SYNTAX_ERROR)
    raise Goodbye(b"", session.context.services.shutdown)


def broken(session: Session, request: Request) -> Reply:
    """The stream cannot be understood any more, or is not wanted. Said once; then the connection ends."""
    if request[0] is text.BROKEN:
        session.context.traffic.protocol_errors += 1
    raise Goodbye(b"-ERR %b\r\n" % request[1])


def unknown(session: Session, request: Request) -> Reply:
    if request[0].upper() in (b"POST", text.HTTP_HOST):
        refuse_foreign(session, request[0])
    shown = ""
    for argument in request[1:]:
        if len(shown) >= ARGUMENTS_SHOWN_BYTES:
            break
        shown += f"'{show(argument, ARGUMENTS_SHOWN_BYTES - len(shown))}' "
    raise RequestError(f"unknown command '{show(request[0])}', with args beginning with: {shown}")


def _subcommand(session: Session, request: Request, known: dict[bytes, Subcommand]) -> bytes:
    """Runs the one that is named by the request's second word."""
    parent = request[0].decode().upper()
    name = request[1].upper()
    chosen = _help_of(parent, known) if name == b"HELP" else known.get(name)
    if chosen is None:
        raise RequestError(f"unknown subcommand '{show(request[1])}'. Try {parent} HELP.")
    arguments = request[2:]
    if not chosen.least <= len(arguments) <= chosen.most:
        raise RequestError(WRONG_COUNT.format(f"{parent}|{show(request[1])}".lower()))
    return chosen.run(session, arguments)


def _help_of(parent: str, known: dict[bytes, Subcommand]) -> Subcommand:
    """The subcommand HELP, which prints itself as well, in Redis's form: a list of simple strings."""

    def run(session: Session, arguments: Sequence[bytes]) -> bytes:
        lines = [f"{parent} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
        for one in (*known.values(), this):
            lines += [one.syntax, f"    {one.summary}"]
        return resp.array(list(map(simple, lines)))

    this = Subcommand(0, 0, run, "HELP", "Prints this help.")
    return this


def client(session: Session, request: Request) -> Reply:
    return _subcommand(session, request, _CLIENT)


def _client_id(session: Session, arguments: Sequence[bytes]) -> bytes:
    return integer(session.id)


def _client_list(session: Session, arguments: Sequence[bytes]) -> bytes:
    sessions = session.context.sessions()
    if arguments:
        kind = arguments[0].upper()
        if kind == b"ID" and len(arguments) > 1:
            wanted = {strict_integer(word) for word in arguments[1:]}
            if None in wanted:
                raise RequestError("Invalid client ID")
            sessions = [one for one in sessions if one.id in wanted]
        elif kind != b"TYPE" or len(arguments) != 2:
            raise RequestError(SYNTAX_ERROR)
        elif (kind := arguments[1].lower()) not in CLIENT_TYPES:
            raise RequestError(f"Unknown client type '{show(arguments[1])}'")
        elif kind != b"normal":
            sessions = []
    return resp.verbatim(b"".join(map(_describe, sessions)), session.protocol)


def _describe(one: Session) -> bytes:
    now = time.monotonic()
    return b"id=%d addr=%b laddr=%b fd=%d name=%b age=%d idle=%d flags=N db=0 resp=%d lib-name=%b lib-ver=%b\n" % (
        one.id,
        one.address.encode(),
        one.local_address.encode(),
        one.fd,
        one.name,
        now - one.opened,
        now - one.last_active,
        one.protocol,
        one.library,
        one.library_version,
    )


def _client_info(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.verbatim(_describe(session), session.protocol)


def _client_setname(session: Session, arguments: Sequence[bytes]) -> bytes:
    session.name = checked_name(arguments[0])
    return resp.OK


def _client_getname(session: Session, arguments: Sequence[bytes]) -> bytes:
    return bulk(session.name) if session.name else session.nil


def _client_setinfo(session: Session, arguments: Sequence[bytes]) -> bytes:
    field, value = arguments[0].lower(), arguments[1]
    if field not in (b"lib-name", b"lib-ver"):
        raise RequestError(f"Unrecognized option '{show(arguments[0])}'")
    if any(not 33 <= byte <= 126 for byte in value):
        raise RequestError(f"{field.decode()} cannot contain spaces, newlines or special characters.")
    if field == b"lib-name":
        session.library = value
    else:
        session.library_version = value
    return resp.OK


def _client_no_evict(session: Session, arguments: Sequence[bytes]) -> bytes:
    """Nobody is evicted here, so either answer to the question is already true."""
    if arguments[0].upper() not in (b"ON", b"OFF"):
        raise RequestError(SYNTAX_ERROR)
    return resp.OK


_MANY = 1 << 30
_CLIENT = {
    b"ID": Subcommand(0, 0, _client_id, "ID", "The number of this connection."),
    b"LIST": Subcommand(
        0, _MANY, _client_list, "LIST [TYPE type | ID id [id ...]]", "The connections, or some of them."
    ),
    b"INFO": Subcommand(0, 0, _client_info, "INFO", "This connection, in the form of LIST."),
    b"SETNAME": Subcommand(1, 1, _client_setname, "SETNAME name", "Names this connection."),
    b"GETNAME": Subcommand(0, 0, _client_getname, "GETNAME", "The name of this connection."),
    b"SETINFO": Subcommand(
        2, 2, _client_setinfo, "SETINFO LIB-NAME|LIB-VER value", "Names the library that the client uses."
    ),
    b"NO-EVICT": Subcommand(1, 1, _client_no_evict, "NO-EVICT ON|OFF", "Has no effect: no client is evicted."),
}


def command(session: Session, request: Request) -> Reply:
    if len(request) == 1:
        return resp.array([_info(one, session.protocol) for one in _table(session)])
    return _subcommand(session, request, _COMMAND)


def _table(session: Session) -> list[Command]:
    return [one for one in session.context.commands.table.values() if one.resp]


def _named(session: Session, names: Sequence[bytes]) -> list[Command | None]:
    """The commands of these names, None for one that does not exist; all of them when no name is given."""
    table = {one.name.encode(): one for one in _table(session)}
    return [table.get(name.upper()) for name in names] if names else list(table.values())


def _info(one: Command, protocol: int) -> bytes:
    first, last, step = one.keys
    name = bulk(one.name.lower().encode())
    flags = resp.flag_set([flag for flag in one.flags if flag != "long"], protocol)
    none = resp.flag_set((), protocol)
    numbers = [integer(one.arity), flags, integer(first), integer(last), integer(step)]
    return resp.array([name, *numbers, none, resp.EMPTY_ARRAY, resp.EMPTY_ARRAY, resp.EMPTY_ARRAY])


def _command_info(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.array([_info(one, session.protocol) if one else session.nil for one in _named(session, arguments)])


def _command_docs(session: Session, arguments: Sequence[bytes]) -> bytes:
    def document(one: Command) -> bytes:
        fields = {"summary": one.summary, "since": SINCE, "group": one.group or "connection"}
        pairs = [(bulk(name.encode()), bulk(value.encode())) for name, value in fields.items()]
        return resp.mapping(pairs, session.protocol)

    named = [one for one in _named(session, arguments) if one]
    return resp.mapping([(bulk(one.name.lower().encode()), document(one)) for one in named], session.protocol)


def _command_count(session: Session, arguments: Sequence[bytes]) -> bytes:
    return integer(len(_table(session)))


def _command_list(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.bulk_array([one.name.lower().encode() for one in _table(session)])


_COMMAND = {
    b"COUNT": Subcommand(0, 0, _command_count, "COUNT", "How many commands there are."),
    b"LIST": Subcommand(0, 0, _command_list, "LIST", "The names of all commands."),
    b"INFO": Subcommand(0, _MANY, _command_info, "INFO [name ...]", "Arity, flags and keys of commands, or of all."),
    b"DOCS": Subcommand(0, _MANY, _command_docs, "DOCS [name ...]", "What commands do, or all of them."),
}


def config(session: Session, request: Request) -> Reply:
    return _subcommand(session, request, _CONFIG)


def _config_get(session: Session, arguments: Sequence[bytes]) -> bytes:
    """What stock clients ask for, under Redis's names."""
    context = session.context
    settings = {
        b"save": b"",
        b"appendonly": b"yes",
        b"appendfsync": str(context.engine.statistics().get("durability", "always")).encode(),
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


def _config_fixed(session: Session, arguments: Sequence[bytes]) -> bytes:
    raise RequestError("nothing can be configured at run time: settings are given when the node starts")


_CONFIG = {
    b"GET": Subcommand(1, _MANY, _config_get, "GET pattern [pattern ...]", "Settings whose names match a pattern."),
    b"SET": Subcommand(0, _MANY, _config_fixed, "SET name value", _FIXED),
    b"REWRITE": Subcommand(0, _MANY, _config_fixed, "REWRITE", _FIXED),
    b"RESETSTAT": Subcommand(0, _MANY, _config_fixed, "RESETSTAT", _FIXED),
}
