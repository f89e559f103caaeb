"""CLIENT: the connected clients, what a connection says of itself, and what others may do to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Final

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import CLIENT_NAMES, SYNTAX_ERROR, integer, printable
from merklekv.net.commands.constants import require_timeout
from merklekv.net.connection import PAUSED, Connection, Muted
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.resp import bulk
from merklekv.net.protocol.text import Request, show
from merklekv.net.pubsub import Kind
from merklekv.net.registry import NOSCRIPT, Long, Reply, Subcommands, command, line_command
from merklekv.net.session import Context, Session, check_reply_size
from merklekv.net.steps import Steps

SLICE_CLIENTS: Final = 200  # that LIST describes between two yields
CLIENT_TYPES: Final = (b"normal", b"replica", b"slave", b"master", b"pubsub")

_client = Subcommands("CLIENT")
command(
    "CLIENT ID|LIST ...|INFO|KILL ...|PAUSE ...|UNPAUSE|REPLY ON|OFF|SKIP|UNBLOCK id|SETNAME name|GETNAME|"
    "SETINFO field value|NO-EVICT ON|OFF|GETREDIR|TRACKING OFF|TRACKINGINFO|CACHING YES|NO|HELP",
    "The connected clients: what they are, and what becomes of them.",
    arity=-2,
    group="clientlist",
    flags=(NOSCRIPT,),
    note=(
        "`cmd` of `LIST` is the command without its subcommand; names have at most 1,024 bytes; "
        "a pause spares `CLIENT`, and keys expire in it; no `REPLY` in a transaction; "
        "`TRACKING ON` is refused"
    ),
)(_client.run)


@line_command(
    "CLIENT LIST",
    group="clientlist",
    reply="`CLIENT LIST`, a line `id=1 addr=127.0.0.1:5000 age=3 idle=0` for each client, `END`",
    note="seconds",
)
def client_line(session: Session, request: Request) -> Reply:
    if request[1].upper() != b"LIST":
        raise RequestError("CLIENT command requires LIST: CLIENT LIST")
    now = time.monotonic()
    lines = [
        b"id=%d addr=%b age=%d idle=%d\r\n" % (one.id, one.address.encode(), now - one.opened, now - one.last_active)
        for one in session.context.sessions()
    ]
    return b"CLIENT LIST\r\n%bEND\r\n" % b"".join(lines)


@_client.add("ID", "The number of this connection.")
def _client_id(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.integer(session.id)


# -- LIST, INFO --------------------------------------------------------------------------------------------------------


def _connections(context: Context) -> list[Connection]:
    return [one for one in context.sessions() if isinstance(one, Connection)]


def _type_of(one: Connection) -> bytes:
    return b"pubsub" if one.subscriptions else b"normal"


@_client.add("LIST [TYPE type | ID client-id [client-id ...]]", "The connections, or some of them.")
def _client_list(session: Connection, arguments: Sequence[bytes]) -> Long:
    listed = _connections(session.context)
    if arguments:
        kind = arguments[0].upper()
        if kind == b"ID" and len(arguments) > 1:
            wanted = {strict_integer(word) for word in arguments[1:]}
            if None in wanted:
                raise RequestError("Invalid client ID")
            listed = [one for one in listed if one.id in wanted]
        elif kind != b"TYPE" or len(arguments) != 2:
            raise RequestError(SYNTAX_ERROR)
        else:
            kind = _checked_type(arguments[1])
            listed = [one for one in listed if _type_of(one) == kind]
    lines: list[bytes] = []
    size = 0
    steps = Steps(SLICE_CLIENTS)
    for one in listed:
        if one.fd >= 0:  # else it has left meanwhile
            lines.append(_describe(one, "client|list" if one is session else ""))
            size += len(lines[-1])
            check_reply_size(session, size)
        if steps.add(1):
            yield None
    return resp.verbatim(b"".join(lines), session.protocol)


@_client.add("INFO", "This connection, in the form of LIST.")
def _client_info(session: Connection, arguments: Sequence[bytes]) -> bytes:
    return resp.verbatim(_describe(session, "client|info"), session.protocol)


def _checked_type(word: bytes) -> bytes:
    if word.lower() not in CLIENT_TYPES:
        raise RequestError(f"Unknown client type '{show(word)}'")
    return word.lower()


def _describe(one: Connection, running: str = "") -> bytes:
    """A line of LIST; `running` is the command that it runs just now, if that is known better than by its name."""
    now = time.monotonic()
    transaction = one.transaction
    queued = transaction.bytes if transaction else 0
    entry = one.entry
    subscriptions = one.subscriptions  # looked up once: it may be a session of another thread
    names = subscriptions.names if subscriptions else {}
    fields = {
        "id": one.id,
        "addr": one.address,
        "laddr": one.local_address,
        "fd": one.fd,
        "name": one.name.decode(),
        "age": int(now - one.opened),
        "idle": int(now - one.last_active),
        "flags": _flags(one),
        "db": 0,
        "sub": len(names.get(Kind.CHANNEL, ())),
        "psub": len(names.get(Kind.PATTERN, ())),
        "ssub": 0,
        "multi": transaction.count if transaction else -1,
        "qbuf": one.held_bytes,
        "qbuf-free": 0,
        "argv-mem": 0,
        "multi-mem": queued,
        "rbs": 0,
        "rbp": 0,
        "obl": 0,
        "oll": len(one.unsent),
        "omem": one.unsent_bytes,
        "tot-mem": one.memory_bytes,
        "events": "rw" if one.unsent_bytes else "r",
        "cmd": running or (entry.command.name.lower() if entry else "") or "NULL",
        "user": "default",
        "redir": -1,
        "resp": one.protocol,
        "lib-name": one.library.decode(),
        "lib-ver": one.library_version.decode(),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items()).encode() + b"\n"


def _flags(one: Connection) -> str:
    is_set = {
        "P": bool(one.subscriptions),
        "O": one in one.context.monitor,
        "x": one.transaction is not None,
        "b": one.state is PAUSED and one.waits_for is not None,
    }
    return "".join(flag for flag, has in is_set.items() if has) or "N"


# -- KILL, PAUSE, UNBLOCK, REPLY ---------------------------------------------------------------------------------------

Filter = Callable[[Connection], bool]


@_client.add(
    "KILL <address | ID client-id | TYPE type | USER user | ADDR address | LADDR address | SKIPME yes|no ...>",
    "Closes the connection from an address, or all to which every option applies.",
)
def _client_kill(session: Connection, arguments: Sequence[bytes]) -> bytes:
    connections = _connections(session.context)
    if len(arguments) == 1:
        chosen = [one for one in connections if one.address.encode() == arguments[0]]
        if not chosen:
            raise RequestError("No such client")
        return _kill(session, chosen, resp.OK)
    filters, spares_self = _filters(arguments)
    chosen = [one for one in connections if all(applies(one) for applies in filters)]
    chosen = [one for one in chosen if one is not session or not spares_self]
    return _kill(session, chosen, resp.integer(len(chosen)))


def _filters(arguments: Sequence[bytes]) -> tuple[list[Filter], bool]:
    """What CLIENT KILL asks of a connection, the last of each option, and whether it spares the one that asks."""
    filters: dict[bytes, Filter] = {}
    spares_self = True
    for name, value in zip_longest(arguments[::2], arguments[1::2]):
        if value is None:
            raise RequestError(SYNTAX_ERROR)
        match option := name.upper():
            case b"ID":
                number = strict_integer(value)
                if number is None or number < 1:
                    raise RequestError("client-id should be greater than 0")
                filters[option] = partial(_has, "id", number)
            case b"TYPE":
                kind = _checked_type(value)
                filters[option] = partial(_is_of_type, kind)
            case b"USER":
                if value != b"default":
                    raise RequestError(f"No such user '{show(value)}'")
            case b"ADDR":
                filters[option] = partial(_has, "address", show(value))
            case b"LADDR":
                filters[option] = partial(_has, "local_address", show(value))
            case b"SKIPME" if value.lower() in (b"yes", b"no"):
                spares_self = value.lower() == b"yes"
            case _:
                raise RequestError(SYNTAX_ERROR)
    return list(filters.values()), spares_self


def _is_of_type(kind: bytes, one: Connection) -> bool:
    return _type_of(one) == kind


def _has(field: str, value: object, one: Connection) -> bool:
    return bool(getattr(one, field) == value)


def _kill(session: Connection, chosen: Sequence[Connection], reply: bytes) -> bytes:
    for one in chosen:
        if one is not session:
            one.worker.call_soon(partial(one.worker.cut, one))
    if session in chosen:
        raise Goodbye(reply)
    return reply


@_client.add("PAUSE timeout [WRITE | ALL]", "Lets clients, or their writes, wait for so many milliseconds.", most=2)
def _client_pause(session: Session, arguments: Sequence[bytes]) -> bytes:
    mode = arguments[1].upper() if arguments[1:] else b"ALL"
    if mode not in (b"WRITE", b"ALL"):
        raise RequestError("CLIENT PAUSE mode must be WRITE or ALL")
    timeout_ms = require_timeout(arguments[0])
    session.context.client_pause.begin(timeout_ms / 1000, only_writes=mode == b"WRITE")
    return resp.OK


@_client.add("UNPAUSE", "Ends a pause.")
def _client_unpause(session: Session, arguments: Sequence[bytes]) -> bytes:
    session.context.client_pause.end()
    return resp.OK


@_client.add("UNBLOCK client-id [TIMEOUT | ERROR]", "Ends the waiting of a command that blocks.", most=2)
def _client_unblock(session: Session, arguments: Sequence[bytes]) -> bytes:
    number = integer(arguments[0])
    if arguments[1:] and arguments[1].upper() not in (b"TIMEOUT", b"ERROR"):
        raise RequestError("CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    for one in _connections(session.context):
        if one.id == number and one.is_blocked:
            fails = arguments[1:] and arguments[1].upper() == b"ERROR"
            problem = RequestError("client unblocked via CLIENT UNBLOCK", code="UNBLOCKED") if fails else None
            one.worker.call_soon(partial(one.unblock, problem))
            return resp.ONE
    return resp.ZERO


@_client.add("REPLY ON|OFF|SKIP", "Whether this connection gets replies; SKIP: not to the next command.")
def _client_reply(session: Connection, arguments: Sequence[bytes]) -> Long:
    mode = arguments[0].upper()
    if mode not in (b"ON", b"OFF", b"SKIP"):
        raise RequestError(SYNTAX_ERROR)
    if session.transaction is not None:
        raise RequestError("CLIENT REPLY is not possible in a transaction, whose replies are one")
    replies = session.replies
    if not isinstance(replies, Muted):
        if mode == b"ON":
            return resp.OK
        session.replies = replies = Muted(replies)
        yield lambda: True  # what follows runs in the next tick, with this list
    if mode == b"ON":
        replies.unmute()
    elif mode == b"SKIP":
        replies.skip(2)  # this command, and the next
    else:
        replies.is_off = True
    return resp.OK


# -- what it says of itself --------------------------------------------------------------------------------------------


@_client.add("SETNAME name", "Names this connection.")
def _client_setname(session: Session, arguments: Sequence[bytes]) -> bytes:
    session.name = printable(arguments[0], CLIENT_NAMES)
    return resp.OK


@_client.add("GETNAME", "The name of this connection.")
def _client_getname(session: Session, arguments: Sequence[bytes]) -> bytes:
    return bulk(session.name) if session.name else session.nil


@_client.add("SETINFO LIB-NAME|LIB-VER value", "Names the library that the client uses.")
def _client_setinfo(session: Session, arguments: Sequence[bytes]) -> bytes:
    field, value = arguments[0].lower(), arguments[1]
    if field not in (b"lib-name", b"lib-ver"):
        raise RequestError(f"Unrecognized option '{show(arguments[0])}'")
    printable(value, field.decode())
    if field == b"lib-name":
        session.library = value
    else:
        session.library_version = value
    return resp.OK


@_client.add("NO-EVICT ON|OFF", "Has no effect: no client is evicted.")
def _client_no_evict(session: Session, arguments: Sequence[bytes]) -> bytes:
    if arguments[0].upper() not in (b"ON", b"OFF"):
        raise RequestError(SYNTAX_ERROR)
    return resp.OK


# -- client-side caching: not supported --------------------------------------------------------------------------------


@_client.add("TRACKING ON|OFF [option ...]", "Refused, but for OFF: a node does not tell clients what changed.")
def _client_tracking(session: Session, arguments: Sequence[bytes]) -> bytes:
    match arguments[0].upper():
        case b"OFF":
            return resp.OK
        case b"ON":
            raise RequestError("client-side caching is not supported: CLIENT TRACKING can only be off")
    raise RequestError(SYNTAX_ERROR)


@_client.add("TRACKINGINFO", "That tracking is off.")
def _client_trackinginfo(session: Session, arguments: Sequence[bytes]) -> bytes:
    fields = {
        b"flags": resp.set_of([bulk(b"off")], session.protocol),
        b"redirect": resp.integer(-1),
        b"prefixes": resp.EMPTY_ARRAY,
    }
    return resp.mapping([(bulk(name), value) for name, value in fields.items()], session.protocol)


@_client.add("GETREDIR", "-1: tracking is off.")
def _client_getredir(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.integer(-1)


@_client.add("CACHING YES|NO", "Refused: tracking is off.")
def _client_caching(session: Session, arguments: Sequence[bytes]) -> bytes:
    raise RequestError(
        "CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled"
    )
