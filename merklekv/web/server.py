"""A small HTTP server for a few routes: one request for each connection, a thread for each request.

    server = WebServer({"/livez": Route(is_alive)}, "127.0.0.1", 8379)
    server.start()
    ...
    server.stop()

It is for monitors and a handful of people, and guards the node against all others. A request has HEAD_BYTES_MAX and
BODY_BYTES_MAX bytes and REQUEST_S seconds, and an answer SEND_S seconds to be taken. CONNECTIONS_MAX requests run at
once, STREAMS_MAX of them streams, so streams leave room for a monitor. A further one takes the place of the client that
has been silent for longest, or gets status 503.

A page of another origin cannot use it. Only a route for monitors answers under any host name, because a name that
someone else owns may lead here (DNS rebinding). Answers are for this origin alone, and a POST must come from it. The
content security policy lets a page load only what this server has, and run no script or style within the HTML.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Final, Literal
from urllib.parse import parse_qsl, urlsplit

from merklekv.errors import InvalidArgument, StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.net.listening import PROTECTED, is_loopback, listen
from merklekv.readiness import wait_readable
from merklekv.shortage import is_shortage, reason_of
from merklekv.sockets import set_up
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

HEAD_BYTES_MAX: Final = 16 << 10
BODY_BYTES_MAX: Final = 4 << 10
REQUEST_S: Final = 5.0
SEND_S: Final = 10.0
CONNECTIONS_MAX: Final = 24
STREAMS_MAX: Final = 8
SILENT_S: Final = 0.2  # a client that sends no head for so long may be cut
CUT_S: Final = 0.5  # for its thread to end then
FIELDS_MAX: Final = 16  # of a query

TEXT: Final = "text/plain; charset=utf-8"
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FOREIGN_NAME: Final = "this host name is not known here: open the page by localhost or by the address of the machine"


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler gets: the path without its query, the query, and the body of a POST."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    content_type: str = TEXT
    status: int = HTTPStatus.OK


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer without an end: server-sent events (WHATWG HTML, section 9.2). `chunks` is closed with its client."""

    chunks: Iterable[bytes]


Handler = Callable[[Request], Response | Stream]


@dataclass(frozen=True, slots=True)
class Route:
    """A handler, which may raise InvalidArgument: the client gets the message with status 400."""

    handler: Handler
    method: Literal["GET", "POST"] = "GET"  # GET also serves HEAD
    for_monitors: bool = False  # answers under any host name


class WebServer:
    """Serves `routes`, by path; a path that ends in `/` serves all below it, and `/` only itself."""

    def __init__(self, routes: Mapping[str, Route], host: str, port: int, *, allow_remote: bool = False) -> None:
        self.routes = dict(routes)
        self.streams = threading.BoundedSemaphore(STREAMS_MAX)
        self.throttle = LogThrottle(log)
        self._host, self._port = host, port
        self._allow_remote = allow_remote
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._open: set[socket.socket] = set()
        self._silent: dict[socket.socket, float] = {}  # those that have yet to send a head: since when, in their order
        self._listeners: list[socket.socket] = []
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.worker = WorkerThread("web", self._accept, _raise, wake=self._wake)

    def start(self) -> tuple[str, int]:
        """Listens, and returns the first address. Raises AddressInUse and AddressUnavailable."""
        with ExitStack() as on_failure:
            on_failure.callback(self.stop)
            self._listeners = listen(self._host, self._port)
            self.worker.start()
            on_failure.pop_all()
        host, port = self._listeners[0].getsockname()[:2]
        return host, port

    def stop(self) -> None:
        """Listens no more and cuts what is still being answered. Call it once."""
        self.worker.stop()
        for one in [*self._listeners, *list(self._open)]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for listener in self._listeners:
            listener.close()
        os.close(self._woken)

    def find(self, path: str) -> Route | None:
        """The route of a path."""
        folders = (one for one in self.routes if one.endswith("/") and one != "/" and path.startswith(one))
        return self.routes.get(path) or self.routes.get(next(folders, ""))

    def refusal(self, peer: str) -> str:
        """Why a client at this address is not served, or nothing."""
        return "" if self._allow_remote or is_loopback(peer) else PROTECTED

    def is_own_name(self, host: str) -> bool:
        """Whether the Host field of a request names this machine, not a name that someone else may own."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets that do not match
            return False
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in self._names

    def _wake(self) -> None:
        os.eventfd_write(self._woken, 1)

    def _accept(self) -> None:
        ready = wait_readable([self._woken, *(one.fileno() for one in self._listeners)], None)
        for listener in self._listeners:
            if listener.fileno() in ready:
                with suppress(BlockingIOError, ConnectionAbortedError):
                    self._begin(*listener.accept())

    def _begin(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        if not self._take_room():
            self._turn_away(sock)
            return
        self._open.add(sock)
        self._silent[sock] = time.monotonic()
        try:
            threading.Thread(target=self._answer, args=(sock, peer[0]), name="web-request", daemon=True).start()
        except RuntimeError:  # the machine has no thread left
            self._turn_away(sock)
            self._end(sock)

    def _answer(self, sock: socket.socket, peer: str) -> None:
        try:
            set_up(sock)
            _Exchange(self, sock, peer)
        except OSError:
            pass  # the client is gone
        except Exception as problem:  # noqa: BLE001  logged
            self.throttle.warn("request", "a request over HTTP failed", problem, level=logging.ERROR)
        finally:
            self._end(sock)

    def _take_room(self) -> bool:
        """Takes a room, at last that of the client that has been silent for longest; whether there was one.

        Who comes next waits meanwhile, so those who say nothing keep a monitor waiting, but not away.
        """
        until = time.monotonic() + CUT_S
        while not self._room.acquire(blocking=False):
            oldest = next(iter([*self._silent.items()]), None)
            now = time.monotonic()
            if oldest is None or now >= until:
                return self._room.acquire(timeout=max(0.0, until - now))
            if now < oldest[1] + SILENT_S:
                if self._room.acquire(timeout=oldest[1] + SILENT_S - now):
                    return True
            elif self._silent.pop(oldest[0], None):
                with suppress(OSError):
                    oldest[0].shutdown(socket.SHUT_RDWR)
                return self._room.acquire(timeout=CUT_S)
        return True

    def has_spoken(self, sock: socket.socket) -> None:
        """A client has sent a head."""
        self._silent.pop(sock, None)

    def _end(self, sock: socket.socket) -> None:
        self._open.discard(sock)
        self._silent.pop(sock, None)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.close()
        self._room.release()

    def _turn_away(self, sock: socket.socket) -> None:
        """Refuses a client without waiting for it."""
        sock.setblocking(False)
        with suppress(OSError):
            sock.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            sock.recv(HEAD_BYTES_MAX)  # what is not read would reset the connection, and the client would not see this
        sock.close()


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer. The base class reads the head; nothing of its own answers is used."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # with 0.9, its default, an answer would have no head
    timeout = SEND_S

    def __init__(self, web: WebServer, sock: socket.socket, peer: str) -> None:
        self._web = web
        self._peer = peer
        super().__init__(sock, (peer, 0), web)  # type: ignore[arg-type]  # it only keeps the last one

    def setup(self) -> None:
        super().setup()
        head, self._rest = self._read_head()
        self._web.has_spoken(self.connection)
        self.rfile = BytesIO(head)

    def handle(self) -> None:
        self.handle_one_request()

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        answer = self._answer(method)
        if isinstance(answer, Response):
            self._send(answer)
        else:
            self._send_stream(answer)

    def _answer(self, method: str) -> Response | Stream:
        path, _, query = self.path.partition("?")
        route = self._web.find(path)
        if refusal := self._web.refusal(self._peer):
            return _problem(HTTPStatus.FORBIDDEN, refusal)
        if route is None:
            return _problem(HTTPStatus.NOT_FOUND, "there is no such page")
        if route.method != method:
            return _problem(HTTPStatus.METHOD_NOT_ALLOWED, f"this takes {route.method}")
        if not route.for_monitors and not self._web.is_own_name(self.headers.get("Host", "")):
            return _problem(HTTPStatus.FORBIDDEN, FOREIGN_NAME)
        if self._is_part_of_foreign_page() or (method == "POST" and not self._is_from_own_page()):
            return _problem(HTTPStatus.FORBIDDEN, "this takes requests of its own page only")
        try:
            request = Request(path, _fields(query), self._read_body() if method == "POST" else b"")
            return self._run(route, request)
        except InvalidArgument as error:
            return _problem(HTTPStatus.BAD_REQUEST, str(error))

    def _run(self, route: Route, request: Request) -> Response | Stream:
        """The answer of a handler; a defect or a shortage, also of descriptors, is one."""
        try:
            return route.handler(request)
        except InvalidArgument:
            raise
        except Exception as problem:  # noqa: BLE001  logged
            text = f"the answer to {request.path} failed"
            if is_shortage(problem):
                self._web.throttle.warn(request.path, f"{text}: {reason_of(problem)}")
                return _problem(HTTPStatus.SERVICE_UNAVAILABLE, f"resource shortage: {reason_of(problem)}")
            self._web.throttle.warn(request.path, text, problem, level=logging.ERROR)
            return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the server's log")

    def _is_part_of_foreign_page(self) -> bool:
        """Whether the browser says that a page of another origin has this loaded: an image, a frame, a script.

        Such a page cannot read the answer, but the node would work for it. A link to here is no part of a page.
        """
        site, part = self.headers.get("Sec-Fetch-Site", "none"), self.headers.get("Sec-Fetch-Dest", "")
        return site not in ("none", "same-origin") and part != "document"

    def _is_from_own_page(self) -> bool:
        """Whether the browser says that the request comes from a page of this server (RFC 6454)."""
        return self.headers.get("Origin") == f"http://{self.headers.get('Host')}"

    def _read_head(self) -> tuple[bytes, bytes]:
        """The head of the request, cut if it is too long or too slow, and what has come of the body."""
        received = b""
        deadline = time.monotonic() + REQUEST_S
        while b"\r\n\r\n" not in received and b"\n\n" not in received and len(received) < HEAD_BYTES_MAX:
            received += self._receive(deadline, HEAD_BYTES_MAX - len(received))
        end = received.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in received else received.find(b"\n\n") + 2
        if end < 4:
            raise ConnectionError("the head of the request is too long")
        return received[:end], received[end:]

    def _read_body(self) -> bytes:
        text = self.headers.get("Content-Length", "0")
        length = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else BODY_BYTES_MAX + 1
        if length > BODY_BYTES_MAX or "Transfer-Encoding" in self.headers:
            raise InvalidArgument(f"a body needs a Content-Length of at most {BODY_BYTES_MAX}")
        deadline = time.monotonic() + REQUEST_S
        while len(self._rest) < length:
            self._rest += self._receive(deadline, length - len(self._rest))
        return self._rest[:length]

    def _receive(self, deadline: float, most: int) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        data: bytes = self.connection.recv(most)
        if not data:
            raise ConnectionError("the client ended the request")
        self.connection.settimeout(SEND_S)
        return data

    def _send(self, response: Response) -> None:
        self._begin(response.status, response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def _send_stream(self, stream: Stream) -> None:
        if not self._web.streams.acquire(blocking=False):
            self._send(_problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{STREAMS_MAX} pages are open already: close one"))
            return
        chunks = iter(stream.chunks)
        try:
            self._begin(HTTPStatus.OK, "text/event-stream")
            self.end_headers()
            if self.command != "HEAD":
                for chunk in chunks:
                    self.wfile.write(chunk)
        finally:
            if callable(close := getattr(chunks, "close", None)):
                close()
            self._web.streams.release()

    def _begin(self, status: int, content_type: str) -> None:
        self.close_connection = True
        self.send_response_only(status)
        for name, value in {**HEADERS, "Content-Type": content_type, "Connection": "close"}.items():
            self.send_header(name, value)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The answer to a request that the base class cannot read."""
        self.command = self.command or ""
        self._send(_problem(code, HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a monitor asks all the time."""


def _fields(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"))
    except ValueError:
        raise InvalidArgument(f"a query is UTF-8 and has at most {FIELDS_MAX} fields") from None


def _problem(status: int, text: str) -> Response:
    return Response(f"{text}\n".encode(), status=status)


def _raise(error: StorageFailed) -> None:
    """Nothing here touches the disk."""
    raise error
