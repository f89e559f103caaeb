"""The connection: what stock Redis clients ask before they work, and how a connection ends.

HELLO answers in Redis's form, from the session. There is one user, without a password, and one database; a
client that asks for more is refused with a reason.
"""

from __future__ import annotations

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import CLIENT_NAMES, SYNTAX_ERROR, integer, line_error, line_value, printable
from merklekv.net.errors import Goodbye, RequestError, wrong_count
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.resp import REDIS_VERSION, bulk
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import FAST, NOSCRIPT, Reply, command, line_command
from merklekv.net.session import Session

DEFAULT_USER = b"default"  # the only one, without a password


@command("PING [message]", "Shows that the server answers.", group="ping", flags=FAST)
def ping(session: Session, request: Request) -> Reply:
    if len(request) > 2:
        raise wrong_count(request[0])
    if session.subscriptions and session.protocol == 2:
        return resp.bulk_array([b"pong", *(request[1:] or [b""])])  # as a message, in the words of Redis
    return bulk(request[1]) if len(request) == 2 else b"+PONG\r\n"


@line_command("PING [text]", group="ping", reply="`PONG` or `PONG text`")
def ping_line(session: Session, request: Request) -> Reply:
    return b"PONG %b\r\n" % line_value(request[1]) if request[1] else text.PONG


@command("ECHO message", "Returns its argument.", group="echo", flags=FAST)
def echo(session: Session, request: Request) -> Reply:
    return bulk(request[1])


@line_command("ECHO text", group="echo", reply="`ECHO text`")
def echo_line(session: Session, request: Request) -> Reply:
    if not request[1]:
        raise line_error(request, "requires a message")
    return b"ECHO %b\r\n" % line_value(request[1])


@command(
    "HELLO [2|3] [AUTH default password] [SETNAME name]",
    "Chooses the version of RESP.",
    flags=(NOSCRIPT, *FAST),
    note="as for `AUTH`: there is one user, `default`, without a password",
)
def hello(session: Session, request: Request) -> Reply:
    protocol = session.protocol
    if len(request) > 1:
        asked = strict_integer(request[1])
        if asked is None:
            raise RequestError("Protocol version is not an integer or out of range")
        if asked not in resp.NIL:
            raise RequestError("unsupported protocol version", code="NOPROTO")
        protocol = asked
    name = session.name
    at = 2
    while at < len(request):
        option, *values = request[at : at + 3]
        if option.upper() == b"SETNAME" and values:
            name = printable(values[0], CLIENT_NAMES)
            at += 2
        elif option.upper() == b"AUTH" and len(values) == 2:
            _check_user(values[0])
            at += 3
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


@command(
    "AUTH default password",
    "Accepts the user `default` with any password: none is set.",
    arity=-2,
    flags=(NOSCRIPT, *FAST),
    note=(
        "any password is accepted, because none is set; another user is refused, and `AUTH password` "
        "is an error, as on such a Redis"
    ),
)
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


@command("RESET", "Undoes what the connection has chosen.", flags=(NOSCRIPT, *FAST), always=True)
def reset(session: Session, request: Request) -> Reply:
    session.context.pubsub.leave(session)
    session.context.monitor.leave(session)
    session.unmute()
    session.speak(2)
    session.use(None)
    session.watched.clear()
    session.name = b""
    return resp.simple("RESET")


@command("QUIT", "Ends the connection.", arity=-1, flags=(NOSCRIPT, *FAST), always=True)
def quit_(session: Session, request: Request) -> Reply:
    raise Goodbye(resp.OK)
