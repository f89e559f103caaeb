"""What both protocols share beyond the data: HASH, SYNC and REPLICATE without the form of their replies, and the end of
a connection that speaks neither.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NoReturn

from merklekv.address import PORT_MAX
from merklekv.engine.integers import strict_integer
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.protocol.text import show
from merklekv.net.session import Long, Pause, Session, in_thread


def digest(session: Session, prefix: bytes) -> Generator[Pause, None, bytes]:
    """The hash over all records under the prefix, as 64 hex digits; an empty prefix or `*` means all of them."""
    engine = session.engine
    if prefix in (b"", b"*"):
        while not engine.root_ready:
            yield lambda: engine.root_ready
        value = engine.root()
    else:
        value = yield from engine.prefix_digest(prefix)
    return value.hex().encode()


def synchronize(session: Session, words: Sequence[bytes], reply: bytes) -> Long:
    """`host port [--full] [--verify]`: one exchange, in a thread, with this connection waiting for it."""
    if len(words) < 2:
        raise RequestError("SYNC command requires a host and port")
    flags = {word.lower() for word in words[2:]}
    for flag in sorted(flags - {b"--full", b"--verify"}):
        raise RequestError(f"SYNC command does not know the option {show(flag)}: it takes --full and --verify")
    host = show(words[0])
    port = strict_integer(words[1])
    if port is None or not 0 < port <= PORT_MAX:
        raise RequestError(f"SYNC command port must be a number from 1 to {PORT_MAX}")

    def work() -> None:
        session.context.services.sync(host, port, b"--full" in flags, b"--verify" in flags)

    def wait() -> Long:
        yield from in_thread(session, "SYNC", work)
        return reply

    return wait()


def replicate(session: Session, words: Sequence[bytes]) -> str:
    if not words:
        raise RequestError("REPLICATE command requires an action: enable, disable or status")
    action = show(words[0]).lower()
    if len(words) > 1 or action not in ("enable", "disable", "status"):
        raise RequestError("REPLICATE command action must be enable, disable or status")
    return session.context.services.replicate(action)


def refuse_foreign(session: Session, shown: bytes) -> NoReturn:
    """Closes the connection of a client that speaks HTTP or TLS, as Redis does: without a reply.

    It may be a browser that a web page has sent here, so nothing of what follows is run.
    """
    context = session.context
    context.traffic.foreign_protocol_closed += 1
    context.throttle.warn(
        "foreign protocol",
        f"closed {session.address}: it sends another protocol, {shown[:60]!r}; nothing of that was run. "
        "This may be an attack by a web page that is open on the client's machine",
    )
    raise Goodbye(b"")
