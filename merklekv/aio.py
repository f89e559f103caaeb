"""A client of a running node for asyncio.

    async with merklekv.aio.Client("127.0.0.1", 7379) as client:
        await client.set(b"k", b"v", ttl=60)
        await asyncio.gather(*(client.get(key) for key in keys))

It speaks RESP, as any Redis client does, and needs no other package. What it has beyond those is `changes`.

One connection: calls that are made at the same time share it, and their requests leave together. At most `pending_max`
wait for their replies; more wait for their turn. A call that gets no reply within `timeout_s` raises NoAnswer and ends
the connection, because nothing tells a lost reply from a late one. A call that is cancelled keeps its place until its
reply is there or that time is over, so that who cancels all calls does not fill the memory.

Reconnecting: a call is never sent twice, since only the caller knows whether it may be. When the connection breaks, the
calls under way raise Unreachable, and nobody knows whether they were done; the next call connects anew, unless
`reconnects` is False. `changes` has a cursor, so it goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, Self

from merklekv.address import format_address, parse_address
from merklekv.engine.batch import Batch, require_bytes, require_ttl
from merklekv.errors import InvalidArgument, shown
from merklekv.net.client import REPLY_BYTES_MAX, NoAnswer, NodeError, Reply, Unreachable
from merklekv.net.protocol.replies import INCOMPLETE, BadReply, ErrorReply, ReplyParser
from merklekv.shortage import reason_of
from merklekv.sockets import set_up

__all__ = ["Change", "Changes", "Client", "NoAnswer", "NodeError", "Unreachable"]

RECEIVE_BYTES: Final = 1 << 16
CHANGES_MAX: Final = 1000  # in one page
BLOCK_S: Final = 20.0  # of one request for changes
RETRY_S: Final = 0.5  # between two attempts of `changes` to reach the node
SECONDS_MAX: Final = 1_000_000_000
WHOLE_S: Final = 1.0  # within which a reply without BLOCK has looked at all; the node looks on for two seconds


Replies = asyncio.Future[list[Reply | BaseException]]


class Change(NamedTuple):
    """What was done to a key."""

    key: bytes | None  # None: to all keys
    op: str  # `set`, `del`, `truncate`, ...
    value: bytes | None  # the new value; None: the key is deleted
    version: str  # timestamp in nanoseconds, a dash, op id in hex
    origin: str  # the id of the node that wrote it
    expiry: int | None  # milliseconds since the epoch


class Changes(NamedTuple):
    """Changes, and the cursor behind them."""

    changes: list[Change]
    cursor: str


class Client:
    """A node behind its port. For one event loop. Raises Unreachable, NoAnswer (which is one), and NodeError."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 7379,
        *,
        timeout_s: float = 10.0,
        pending_max: int = 1000,
        reconnects: bool = True,
        reply_bytes: int = REPLY_BYTES_MAX,
    ) -> None:
        """`timeout_s`: for connecting, and for each reply. `reply_bytes`: of the longest reply.

        Raises InvalidArgument.
        """
        if not isinstance(host, str) or not isinstance(port, int):
            raise _refusal("host, port", (host, port), "a str and an int")
        parse_address(format_address(host, port))
        _require_seconds("timeout_s", timeout_s, math.ulp(0.0), f"seconds above 0, at most {SECONDS_MAX}")
        _require_count("pending_max", pending_max)
        _require_count("reply_bytes", reply_bytes)
        self._address = host, port
        self._timeout_s = timeout_s
        self._reconnects = reconnects
        self._reply_bytes = reply_bytes
        self._room = asyncio.Semaphore(pending_max)
        self._dialling: asyncio.Task[_Link] | None = None
        self._link: _Link | None = None
        self._links: set[_Link] = set()  # that one, and those of `changes`
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections; calls under way raise Unreachable, and so does every later one."""
        self._is_closed = True
        for link in list(self._links):
            await link.close()

    # -- commands ------------------------------------------------------------------------------------------------------

    async def call(self, *parts: bytes) -> Reply:
        """Any command over RESP: bytes, an int, None, or a list of these."""
        require_bytes(*parts)
        if not parts:
            raise InvalidArgument("a command has a name: give it, then its arguments")
        return (await self._ask([parts]))[0]

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key, None without one."""
        value = await self.call(b"GET", key)
        return value if isinstance(value, bytes) else None

    async def set(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None:
        """Stores a value, which expires after `ttl` seconds, or never."""
        require_bytes(key, value)
        await self._ask([_set(key, value, ttl)])

    async def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        return await self.call(b"DEL", key) == 1

    async def expire(self, key: bytes, ttl: float) -> bool:
        """Lets a key expire after `ttl` seconds; whether there is one."""
        require_ttl(ttl, allows_none=False)
        return await self.call(b"PEXPIRE", key, _milliseconds(ttl)) == 1

    async def compare_and_set(self, key: bytes, expected: bytes, value: bytes) -> bool:
        """Stores a value if the present one is as expected, and keeps the expiry; whether it did."""
        return await self.call(b"SET", key, value, b"IFEQ", expected, b"KEEPTTL") == b"OK"

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """Stores what is written to the batch when the block ends, all or none; nothing if the block raises."""
        batch = Batch()
        yield batch
        requests = [(b"DEL", key) if value is None else _set(key, value, ttl) for key, value, ttl in batch]
        if requests:
            await self._ask([(b"MULTI",), *requests, (b"EXEC",)])

    async def changes(
        self, after: str = "$", *, prefix: bytes = b"", wait_s: float | None = None
    ) -> AsyncIterator[Changes]:
        """Pages of what is changed behind a cursor, over a connection of its own. Store the cursor of each page.

        A page may be empty: other keys were changed, and its cursor is behind that.
        `after`: "$" is the end, "" the oldest change there is. `wait_s`: ends when there was nothing new for so long;
        None: never. Goes on when the node was away, but for the first time, without `reconnects`, or for `wait_s`.
        Raises NodeError with CHANGESGONE when the node no longer has the cursor: see docs/protocol.md.
        """
        if not isinstance(after, str):
            raise _refusal("after", after, "a cursor, a str")
        if wait_s is not None:
            _require_seconds("wait_s", wait_s, 0, f"seconds from 0 to {SECONDS_MAX}, or None")
        require_bytes(prefix)
        now = asyncio.get_running_loop().time
        link: _Link | None = None
        cursor, was_reached = after, False
        end_s = math.inf if wait_s is None else now() + wait_s
        try:
            while True:
                asked_s = now()
                block_s = max(0.0, min(BLOCK_S, end_s - asked_s)) if cursor != "$" else 0.0
                options = (b"PREFIX", prefix, b"COUNT", b"%d" % CHANGES_MAX)
                if block_s > 0:
                    options += (b"BLOCK", _milliseconds(block_s))  # type: ignore[assignment]
                try:
                    if link is None:
                        link = await self._dial()
                    request = (b"CHANGES", cursor.encode(errors="replace"), *options)
                    reply = (await link.receive(link.send([request]), block_s + self._timeout_s))[0]
                    page = _page(reply, link.name)
                except Unreachable:
                    if link is not None:
                        await link.close()
                        link = None
                    if self._is_closed or not was_reached or not self._reconnects or now() >= end_s:
                        raise
                    await asyncio.sleep(RETRY_S)
                    continue
                was_reached = True
                is_whole = page.cursor == cursor or now() - asked_s < WHOLE_S
                was_begin, has_moved, cursor = cursor == "$", page.cursor != cursor, page.cursor
                if page.changes or (has_moved and not was_begin):
                    yield page
                if page.changes:
                    end_s = math.inf if wait_s is None else now() + wait_s
                elif is_whole and not was_begin and now() >= end_s:
                    return
        finally:
            if link is not None:
                await link.close()

    # -- the connection ------------------------------------------------------------------------------------------------

    async def _ask(self, requests: Sequence[Sequence[bytes]]) -> list[Reply]:
        await self._room.acquire()
        try:
            link = await self._connected()
            replies = link.send(requests)
        except BaseException:
            self._room.release()
            raise
        replies.add_done_callback(lambda _: self._room.release())
        return await link.receive(replies, self._timeout_s)

    async def _connected(self) -> _Link:
        if self._link is not None and self._link.is_open:
            return self._link
        self._require_open(format_address(*self._address))
        if self._link is not None and not self._reconnects:
            raise Unreachable(f"{self._link.name}: the connection broke, and `reconnects` is False")
        if self._dialling is None or self._dialling.done():  # one attempt for all who wait
            self._dialling = asyncio.create_task(self._dial())
        self._link = await asyncio.shield(self._dialling)
        return self._link

    async def _dial(self) -> _Link:
        name = format_address(*self._address)
        self._require_open(name)
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_connection(*self._address)
        except TimeoutError as error:
            raise NoAnswer(f"{name}: cannot connect within {self._timeout_s} s") from error
        except (OSError, ValueError) as error:
            raise Unreachable(f"{name}: cannot connect: {reason_of(error)}") from error
        try:
            set_up(writer.get_extra_info("socket"))
            self._require_open(name)
        except OSError as error:
            writer.close()
            raise Unreachable(f"{name}: cannot connect: {reason_of(error)}") from error
        except Unreachable:
            writer.close()
            raise
        return _Link(name, reader, writer, self._reply_bytes, self._links)

    def _require_open(self, name: str) -> None:
        if self._is_closed:
            raise Unreachable(f"{name}: the client is closed")


class _Link:
    """One connection: requests leave in order, and the replies go to those who wait."""

    def __init__(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reply_bytes: int,
        links: set[_Link],
    ) -> None:
        """`links`: where it is while it is open."""
        self.name = name
        self.is_open = True
        self._links = links
        links.add(self)
        self._reader, self._writer = reader, writer
        self._parser = ReplyParser(reply_bytes)
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._task = asyncio.create_task(self._receive())

    def send(self, requests: Sequence[Sequence[bytes]]) -> Replies:
        """Sends requests in one piece. Their replies are there when all are, or the connection has ended."""
        if not self.is_open:
            raise Unreachable(f"{self.name}: the connection was closed")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in requests]
        self._waiting.extend(futures)
        self._writer.write(b"".join(map(_encode, requests)))
        return asyncio.gather(*futures, return_exceptions=True)

    async def receive(self, coming: Replies, timeout_s: float) -> list[Reply]:
        """The replies to what was sent. The last error among them is raised once all are there."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                replies = await asyncio.shield(coming)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(timeout_s, self._give_up, coming)
            raise
        except TimeoutError as error:
            self._end(Unreachable(f"{self.name}: closed, since a reply did not come"))
            raise NoAnswer(f"{self.name}: no whole answer within {timeout_s:g} s") from error
        except OSError as error:
            self._end(Unreachable(f"{self.name}: the connection broke: {reason_of(error)}"))
            raise Unreachable(f"{self.name}: the connection broke: {reason_of(error)}") from error
        errors = [one for one in replies if isinstance(one, BaseException)]
        if errors:
            raise errors[-1]  # of EXEC, which says why
        return replies  # type: ignore[return-value]

    async def _receive(self) -> None:
        problem = f"{self.name}: the connection was closed"
        try:
            while data := await self._reader.read(RECEIVE_BYTES):
                self._parser.feed(data)
                while self._take():
                    pass
        except OSError as error:
            problem = f"{self.name}: the connection broke: {reason_of(error)}"
        except BadReply as error:
            problem = f"{self.name}: does not answer as a MerkleKV node: {error}"
        finally:
            self._end(Unreachable(problem))

    def _take(self) -> bool:
        """Hands out the next reply that is there."""
        try:
            reply = self._parser.next()
        except ErrorReply as error:
            reply = NodeError(f"{self.name}: {error}")
        if reply is INCOMPLETE:
            return False
        if not self._waiting:
            raise BadReply("a reply that nobody asked for")
        future = self._waiting.popleft()
        if not future.done():  # its caller was cancelled
            if isinstance(reply, NodeError):
                future.set_exception(reply)
            else:
                future.set_result(reply)  # type: ignore[arg-type]
        return True

    def _give_up(self, coming: Replies) -> None:
        if not coming.done():
            self._end(Unreachable(f"{self.name}: closed, since a reply did not come"))

    def _end(self, problem: Unreachable) -> None:
        self.is_open = False
        self._links.discard(self)
        self._writer.close()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(problem)

    async def close(self) -> None:
        """Ends it."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._end(Unreachable(f"{self.name}: the client is closed"))
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _set(key: bytes, value: bytes, ttl: float | None) -> tuple[bytes, ...]:
    require_ttl(ttl)
    return (b"SET", key, value) if ttl is None else (b"SET", key, value, b"PX", _milliseconds(ttl))


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % math.ceil(seconds * 1000)


def _encode(parts: Sequence[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


def _page(reply: Reply, name: str) -> Changes:
    """What a node has answered to CHANGES. Raises Unreachable for anything else."""
    try:
        cursor, found = reply  # type: ignore[misc]
        return Changes([_change(*one) for one in found], cursor.decode())  # type: ignore[misc, union-attr]
    except (TypeError, ValueError, AttributeError) as error:
        raise Unreachable(f"{name}: answers CHANGES strangely: is it a MerkleKV node?") from error


def _change(
    key: bytes | None, op: bytes, value: bytes | None, version: bytes, origin: bytes, expiry: int | None = None
) -> Change:
    return Change(key, op.decode(), value, version.decode(), origin.decode(errors="replace"), expiry)


def _require_seconds(name: str, value: object, lowest: float, allowed: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (lowest <= value <= SECONDS_MAX or value == math.inf):  # type: ignore[operator]
        raise _refusal(name, value, allowed)


def _require_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _refusal(name, value, "an int from 1")


def _refusal(name: str, value: object, allowed: str) -> InvalidArgument:
    return InvalidArgument(f"{name} = {shown(value)} is not allowed; give {allowed}")
