"""The HTTP server: who is served, and what a request may be."""

import contextlib
import errno
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
from fixtures.support import wait_until

from merklekv.errors import AddressInUse, InvalidArgument
from merklekv.net.listening import PROTECTED
from merklekv.web import server
from merklekv.web.server import Request, Response, Route, Stream, WebServer


class Ticks:
    """A stream that ends when it is told to, and knows whether it was closed."""

    def __init__(self) -> None:
        self.go_on = threading.Semaphore(0)
        self.closed = threading.Event()

    def __call__(self, request: Request) -> Stream:
        return Stream(self._chunks())

    def _chunks(self) -> Iterator[bytes]:
        try:
            while True:
                yield b"data: tick\n\n"
                self.go_on.acquire()
        finally:
            self.closed.set()


def fail(request: Request) -> Response:
    raise RuntimeError("a defect")


def run_short(request: Request) -> Response:
    raise OSError(errno.EMFILE, "Too many open files")


def refuse(request: Request) -> Response:
    raise InvalidArgument("give a prefix")


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def web(ticks: Ticks) -> Iterator[tuple[str, int]]:
    routes = {
        "/": Route(lambda request: Response(b"<p>page", "text/html")),
        "/static/": Route(lambda request: Response(request.path.encode())),
        "/echo": Route(lambda request: Response(repr(dict(request.query)).encode())),
        "/press": Route(lambda request: Response(request.body), method="POST"),
        "/ticks": Route(ticks),
        "/metrics": Route(lambda request: Response(b"up 1\n"), for_monitors=True),
        "/fail": Route(fail),
        "/short": Route(run_short),
        "/refuse": Route(refuse),
    }
    served = WebServer(routes, "127.0.0.1", 0)
    address = served.start()
    yield address
    served.stop()


Answer = tuple[int, bytes, http.client.HTTPMessage]


def ask(address: tuple[str, int], path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def send(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, 10) as sock:
        sock.sendall(data)
        received = b""
        while part := sock.recv(65536):
            received += part
        return received


def test_each_path_has_its_route_and_every_answer_is_guarded(web: tuple[str, int]) -> None:
    status, body, headers = ask(web, "/")
    assert (status, body, headers["Content-Type"]) == (200, b"<p>page", "text/html")
    for name, value in server.HEADERS.items():
        assert headers[name] == value
    assert "Server" not in headers
    assert ask(web, "/static/a/b.js")[1] == b"/static/a/b.js"
    assert ask(web, "/echo?a=1&b=%C3%A4&a=2")[1] == repr({"a": "2", "b": "ä"}).encode()
    assert ask(web, "/", "HEAD")[:2] == (200, b"")
    assert ask(web, "/nothing")[0] == 404
    assert ask(web, "/press")[0] == 405
    assert ask(web, "/", "POST")[0] == 405
    assert ask(web, "/", "DELETE")[0] == 501


def test_an_error_of_the_client_a_defect_or_a_shortage_is_an_answer(
    web: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(web, "/refuse")[:2] == (400, b"give a prefix\n")
    assert ask(web, "/echo?a=%ff")[0] == 400
    assert ask(web, "/echo?" + "a=1&" * 20)[0] == 400
    assert ask(web, "/short")[:2] == (503, b"resource shortage: Too many open files\n")
    assert "the answer to /short failed: Too many open files" in caplog.text
    assert "Traceback" not in caplog.text
    assert ask(web, "/fail")[:2] == (500, b"internal error, see the server's log\n")
    assert "a defect" in caplog.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8379", "", "[", "127.0.0.1.evil.example"])
def test_a_name_that_someone_else_may_own_gets_nothing_but_metrics(web: tuple[str, int], host: str) -> None:
    assert ask(web, "/", Host=host)[0] == 403
    assert ask(web, "/metrics", Host=host)[:2] == (200, b"up 1\n")


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "LOCALHOST", "[::1]:8379", "10.1.2.3"])
def test_a_name_of_this_machine_is_served(web: tuple[str, int], host: str) -> None:
    assert ask(web, "/", Host=host)[0] == 200
    assert ask(web, "/", Host=socket.gethostname())[0] == 200


def test_only_the_own_page_may_post(web: tuple[str, int]) -> None:
    own = f"http://{web[0]}:{web[1]}"
    assert ask(web, "/press", "POST", b"node-1", Origin=own)[:2] == (200, b"node-1")
    for origin in ("http://evil.example", "null", own + "0"):
        assert ask(web, "/press", "POST", b"node-1", Origin=origin)[0] == 403
    assert ask(web, "/press", "POST", b"node-1")[0] == 403
    assert ask(web, "/press", "POST", bytes(server.BODY_BYTES_MAX + 1), Origin=own)[0] == 400


@pytest.mark.parametrize(
    ("site", "part", "status"),
    [
        ("same-origin", "empty", 200),
        ("none", "document", 200),
        ("cross-site", "document", 200),
        ("cross-site", "image", 403),
        ("same-site", "iframe", 403),
        ("cross-site", "empty", 403),
    ],
)
def test_the_node_does_not_work_for_pages_of_others(web: tuple[str, int], site: str, part: str, status: int) -> None:
    head = f"GET /echo HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: {site}\r\nSec-Fetch-Dest: {part}\r\n\r\n"
    assert send(web, head.encode()).startswith(b"HTTP/1.1 %d " % status)


def test_clients_elsewhere_are_refused_unless_they_are_allowed() -> None:
    closed = WebServer({}, "127.0.0.1", 0)
    opened = WebServer({}, "127.0.0.1", 0, allow_remote=True)
    assert closed.refusal("192.0.2.1") == PROTECTED
    assert closed.refusal("::ffff:127.0.0.1") == ""
    assert opened.refusal("192.0.2.1") == ""
    closed.stop()
    opened.stop()


def test_a_head_that_is_too_long_or_no_http_ends_the_connection(web: tuple[str, int]) -> None:
    assert send(web, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000) == b""
    assert b"400" in send(web, b"*1\r\n$4\r\nPING\r\n\r\n").split(b"\r\n")[0]
    assert b" 200 " in send(web, b"GET /metrics HTTP/1.0\n\n").split(b"\r\n")[0]
    assert ask(web, "/metrics")[0] == 200


def test_streams_leave_room_for_a_monitor_and_end_with_their_client(web: tuple[str, int], ticks: Ticks) -> None:
    clients = [socket.create_connection(web, 10) for _ in range(server.STREAMS_MAX)]
    for client in clients:
        client.sendall(b"GET /ticks HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"data: tick\n\n" not in received:
            received += client.recv(4096)
        assert b"text/event-stream" in received
    assert ask(web, "/ticks")[0] == 503
    assert ask(web, "/metrics")[0] == 200
    for client in clients:
        client.close()

    def has_room() -> bool:
        ticks.go_on.release(server.STREAMS_MAX)
        connection = http.client.HTTPConnection(*web, timeout=10)
        connection.request("GET", "/ticks")
        found = connection.getresponse().status
        connection.close()
        return found == 200

    assert wait_until(has_room)
    assert ticks.closed.is_set()


def test_clients_that_send_nothing_make_room_in_time(web: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    silent = [socket.create_connection(web, 10) for _ in range(server.CONNECTIONS_MAX)]
    assert [client.recv(1) for client in silent] == [b""] * len(silent)
    for client in silent:
        client.close()


def test_clients_that_send_nothing_keep_no_monitor_away(web: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 600)
    silent = [socket.create_connection(web, 10) for _ in range(server.CONNECTIONS_MAX + 5)]

    def is_served() -> bool:
        try:
            return b" 200 " in send(web, b"GET /metrics HTTP/1.1\r\n\r\n")
        except OSError:
            return False

    assert wait_until(is_served)
    for client in silent:
        client.close()


def test_a_monitor_waits_for_clients_that_come_again_and_again_and_say_nothing(
    web: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the place of another one, so that none is silent for long."""
    monkeypatch.setattr(server, "SILENT_S", 1.0)  # not to take a monitor that is slow to ask for one that says nothing
    monkeypatch.setattr(server, "CUT_S", 60.0)
    ends = threading.Event()

    def come_again() -> None:
        while not ends.is_set():
            with contextlib.suppress(OSError), socket.create_connection(web, 10) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHo")
                client.recv(1)

    threads = [threading.Thread(target=come_again) for _ in range(server.CONNECTIONS_MAX + 6)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            assert b" 200 " in send(web, b"GET /metrics HTTP/1.1\r\n\r\n")
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def test_clients_that_have_asked_are_not_cut_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 600)
    monkeypatch.setattr(server, "SILENT_S", 0)
    served = WebServer({"/press": Route(lambda request: Response(request.body), "POST")}, "127.0.0.1", 0)
    address = served.start()
    waiting = [socket.create_connection(address, 10) for _ in range(server.CONNECTIONS_MAX)]
    for client in waiting:
        client.sendall(
            b"POST /press HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: 4\r\n\r\n"
        )
    wait_until(lambda: len(served._open) == len(waiting) and not served._silent)
    with socket.create_connection(address, 10) as further:
        assert further.recv(4096).startswith(b"HTTP/1.1 503 ")
    for client in waiting:
        client.sendall(b"body")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        client.close()
    served.stop()


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        blocked = WebServer({}, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(AddressInUse, match="in use"):
            blocked.start()


def test_a_stop_ends_streams(ticks: Ticks) -> None:
    served = WebServer({"/ticks": Route(ticks)}, "127.0.0.1", 0)
    address = served.start()
    with socket.create_connection(address, 10) as client:
        client.sendall(b"GET /ticks HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(10)
        served.stop()
        while client.recv(65536):
            pass
        ticks.go_on.release(2)
        assert wait_until(ticks.closed.is_set)
