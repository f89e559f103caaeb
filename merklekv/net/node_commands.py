"""What both protocols ask of the node as a whole: HASH, SYNC and REPLICATE, without the form of their replies."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from merklekv.engine.integers import strict_integer
from merklekv.net.errors import RequestError
from merklekv.net.session import Long, Pause, Session, in_thread
from merklekv.net.text import show

PORT_MAX = 65535


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
        yield from in_thread(work)
        return reply

    return wait()


def replicate(session: Session, words: Sequence[bytes]) -> str:
    if not words:
        raise RequestError("REPLICATE command requires an action: enable, disable or status")
    action = show(words[0]).lower()
    if len(words) > 1 or action not in ("enable", "disable", "status"):
        raise RequestError("REPLICATE command action must be enable, disable or status")
    return session.context.services.replicate(action)
