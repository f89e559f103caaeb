"""The connection: what stock Redis clients ask before they work, and how a connection ends.

HELLO and CLIENT answer in Redis's form, from the session. There is one user, without a password, and one database; a
client that asks for more is refused with a reason.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import SYNTAX_ERROR, integer, line_error, line_value, printable
from merklekv.net.commands.status import REDIS_VERSION
from merklekv.net.errors import Goodbye, RequestError, wrong_count
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.resp import bulk
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import FAST, Reply, Subcommands, command, line_command
from merklekv.net.session import Session

DEFAULT_USER = b"default"  # the only one, without a password
CLIENT_NAMES = "Client names"
CLIENT_TYPES = (b"normal", b"replica", b"slave", b"master", b"pubsub")


@command("PING [message]", "Shows that the server answers.", group="ping", flags=FAST)
def ping(session: Session, request: Request) -> Reply:
    if len(request) > 2:
        raise wrong_count(request[0])
    return bulk(request[1]) if len(request) == 2 else b"+PONG\r\n"


@line_command("PING [text]", group="ping")
def ping_line(session: Session, request: Request) -> Reply:
    return b"PONG %b\r\n" % line_value(request[1]) if request[1] else text.PONG


@command("ECHO message", "Returns its argument.", group="echo", flags=FAST)
def echo(session: Session, request: Request) -> Reply:
    return bulk(request[1])


@line_command("ECHO text", group="echo")
def echo_line(session: Session, request: Request) -> Reply:
    if not request[1]:
        raise line_error(request, "requires a message")
    return b"ECHO %b\r\n" % line_value(request[1])


@command("HELLO [2|3] [AUTH default password] [SETNAME name]", "Chooses the version of RESP.", flags=FAST)
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
            name = printable(words.pop(0), CLIENT_NAMES)
        elif option.upper() == b"AUTH" and len(words) > 1:
            _check_user(words.pop(0))
            words.pop(0)
        else:
            raise RequestError(f"Syntax error in HELLO option '{show(option)}'")
    session.name = name
    session.speak(protocol)
    pairs = [
        (b"server", bulk(b"redis")),
        (b"version", bulk(REDIS_VERSION.encode())),
        (b"proto", resp.integer(protocol)),
        (b"id", resp.integer(session.id)),
        (b"mode", bulk(b"standalone")),
        (b"role", bulk(b"master")),
        (b"modules", resp.EMPTY_ARRAY),
    ]
    return resp.mapping([(bulk(field), value) for field, value in pairs], protocol)


@command("AUTH default password", "Accepts the user `default` with any password: none is set.", arity=-2, flags=FAST)
def auth(session: Session, request: Request) -> Reply:
    """As on a Redis where no password is set: the default user may come with any, and there is no other user."""
    if len(request) > 3:
        raise RequestError(SYNTAX_ERROR)
    if len(request) == 2:
        raise RequestError(
            "AUTH <password> called without any password configured for the default user. "
            "Are you sure your configuration is correct?"
        )
    _check_user(request[1])
    return resp.OK


def _check_user(name: bytes) -> None:
    if name != DEFAULT_USER:
        raise RequestError("invalid username-password pair or user is disabled.", code="WRONGPASS")


@command("SELECT 0", "Database 0 is the only one.", flags=FAST)
def select(session: Session, request: Request) -> Reply:
    if integer(request[1]) != 0:
        raise RequestError("DB index is out of range")
    return resp.OK


@command("RESET", "Undoes what the connection has chosen.", flags=FAST, always=True)
def reset(session: Session, request: Request) -> Reply:
    session.speak(2)
    session.refuse(False)
    session.name = b""
    return resp.simple("RESET")


@command("QUIT", "Ends the connection.", arity=-1, flags=FAST, always=True)
def quit_(session: Session, request: Request) -> Reply:
    raise Goodbye(resp.OK)


# -- CLIENT ------------------------------------------------------------------------------------------------------------

_client = Subcommands("CLIENT")
command(
    "CLIENT ID|LIST|INFO|SETNAME name|GETNAME|SETINFO field value|NO-EVICT ON|OFF|HELP",
    "The connected clients, and what this one says of itself.",
    arity=-2,
    group="clientlist",
)(_client.run)


@line_command("CLIENT LIST", group="clientlist")
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


@_client.add("LIST [TYPE type | ID id [id ...]]", "The connections, or some of them.")
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


@_client.add("INFO", "This connection, in the form of LIST.")
def _client_info(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.verbatim(_describe(session), session.protocol)


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
