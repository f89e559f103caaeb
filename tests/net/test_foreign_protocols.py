"""Clients of another protocol, above all browsers that a web page sends here: nothing of what they send runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fixtures.servers import Start, StartedServer
from fixtures.support import wait_until
from fixtures.wire import Wire, encode, feed, feed_every_way

from merklekv.engine.engine import Engine
from merklekv.net.limits import RECEIVE_BYTES_MAX
from merklekv.net.protocol.text import FOREIGN, FOREIGN_WORDS, TextParser

Connect = Callable[..., Wire]

BROWSER_S = 120.0
BODY = b"TRUNCATE\r\nSET pwned yes\r\nSHUTDOWN\r\n"
HEADS = [
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:7379\r\nContent-Length: 20\r\n\r\n",
    b"POST / HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1 \t\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
    b"DELETE /k HTTP/1.1\r\n",
    b"SET k HTTP/1.1\r\n",
    b"ANYTHING at all HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/3\n",
    *(b"%b /\r\n" % method for method in (*sorted(FOREIGN_WORDS), b"post")),
    b"DESCRIBE rtsp://x RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    b"INVITE sip:x@y SIP/2.0\r\n",
    b"PROXY TCP4 10.0.0.1 10.0.0.2 5000 7379\r\n",
    b"Host: 127.0.0.1\r\n",
    b"HOST: x\n",
    b"host:x\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
]


@pytest.fixture
def closed(server: StartedServer) -> Callable[[], int]:
    """How many connections were closed for their protocol."""
    return lambda: server.context.traffic.foreign_protocol_closed


@pytest.mark.parametrize("head", HEADS)
def test_the_head_ends_the_connection_and_the_body_does_not_run(
    head: bytes, connect: Connect, closed: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    before = connect()
    assert before.ask("SET there 1") == "OK"
    wire = connect()
    wire.send(head + BODY)
    assert wire.rest() == b""
    assert before.ask("SCAN") == "KEYS 1"
    assert before.line() == b"there\r\n"
    assert closed() == 1
    assert "it sends another protocol" in caplog.text


def test_what_stands_before_it_runs_and_what_stands_behind_it_does_not(
    connect: Connect, closed: Callable[[], int]
) -> None:
    wire = connect()
    wire.send(b"SET before 1\nGET / HTTP/1.1\r\nSET after 1\n" + b"SET later 1\n" * 1000)
    assert wire.rest() == b"OK\r\n"
    assert connect().call("KEYS", "*") == b"*1\r\n$6\r\nbefore\r\n"
    assert closed() == 1


@pytest.mark.parametrize("head", HEADS[:9])
def test_however_the_head_is_cut(head: bytes, connect: Connect) -> None:
    """A segment each of one byte, and a segment boundary anywhere."""
    for pieces in ([head[at : at + 1] for at in range(len(head))], [head[:9], head[9:]], [head[:-1], head[-1:]]):
        wire = connect()
        try:
            for piece in (*pieces, BODY):
                wire.send(piece)
        except (ConnectionResetError, BrokenPipeError):
            continue
        assert wire.rest() == b""
    assert connect().call("DBSIZE") == b":0\r\n"


@pytest.mark.parametrize("size", [1000, RECEIVE_BYTES_MAX, 500_000], ids=str)
def test_a_head_larger_than_what_is_read_at_a_time(size: int, connect: Connect, closed: Callable[[], int]) -> None:
    wire = connect()
    wire.send(b"GET /%b HTTP/1.1\r\nX-Long: %b\r\n\r\n" % (b"x" * size, b"y" * size) + BODY)
    assert wire.rest() == b""
    assert connect().call("DBSIZE") == b":0\r\n"
    assert closed() == 1


def test_a_head_longer_than_a_line_may_be(connect: Connect) -> None:
    wire = connect()
    wire.send(b"GET /%b HTTP/1.1\r\n" % (b"x" * (1 << 20)) + BODY)
    assert wire.rest() == b"ERROR line too long\r\n"
    assert connect().call("DBSIZE") == b":0\r\n"


make_parser = partial(TextParser, 200)


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"PUT /x HTTP/1.0 ", b"x HTTP/2.0", b"PRI * HTTP/2.0"])
def test_the_parser_ends_there_with_any_cut(line: bytes) -> None:
    requests = feed_every_way(make_parser, b"PING\r\n" + line + b"\r\nSET k v\r\n", b"PING\r\n")
    assert requests == [[b"PING", b""], [FOREIGN, line.strip()]]


@pytest.mark.parametrize(
    "line", [b"SET k HTTP/1.1 is old", b"SET k HTTP/", b"SET k HTTP/x", b"SET k http/1.1", b"SET k HTTP 1.1"]
)
def test_what_only_resembles_it_is_a_line_like_any_other(line: bytes) -> None:
    word, _, rest = line.partition(b" ")
    assert feed(make_parser(), [line + b"\nPING\n"]) == [[word, rest], [b"PING", b""]]


def test_any_value_is_set_over_resp(resp: Wire) -> None:
    value = b"see HTTP/1.1"
    assert resp.call("SET", "k", value) == b"+OK\r\n"
    assert resp.call("GET", "k") == b"$12\r\nsee HTTP/1.1\r\n"


@pytest.mark.parametrize("name", ["POST", "Host:", "post", "HOST:"])
def test_http_words_as_commands_over_resp(name: str, connect: Connect, closed: Callable[[], int]) -> None:
    """As Redis: closed without a word."""
    wire = connect()
    wire.send(encode("PING") + encode(name, "/") + encode("SET", "k", "v"))
    assert wire.rest() == b"+PONG\r\n"
    assert connect().call("DBSIZE") == b":0\r\n"
    assert closed() == 1


def test_a_flood_of_them_is_logged_once(
    connect: Connect, closed: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        wire = connect()
        wire.send(b"POST / HTTP/1.1\r\n")
        assert wire.rest() == b""
        wire.close()
    assert closed() == 50
    assert caplog.text.count("it sends another protocol, b'POST / HTTP/1.1'") == 1
    assert b"foreign_protocol_closed:50\r\n" in connect().call("INFO")
    text = connect()
    text.send(b"INFO\n")
    assert b"foreign_protocol_closed:50\r\n" in iter(text.line, b"END\r\n")


# -- a head that is refused in another way -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "replies"),
    [
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$17000000\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n:5\r\n", b"-ERR Protocol error: expected '$', got ':'\r\n"),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nlong\r\n", b"-ERR Protocol error: expected CRLF after bulk string\r\n"),
        (b"*2\r\n*1\r\n$4\r\nPING\r\n", b"-ERR Protocol error: expected '$', got '*'\r\n"),
        (b"*2000000\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n$4\r\nPING\r\nPOST / HTTP/1.1\r\n", b"+PONG\r\n"),
        (b"*0\r\n*-1\r\n\r\n*1\r\n$4\r\nPING\r\n*x\r\n", b"+PONG\r\n-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1 / HTTP/1.1\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    ],
)
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "in pieces"])
def test_nothing_behind_a_broken_header_runs(sent: bytes, replies: bytes, apart: bool, connect: Connect) -> None:
    wire = connect()
    behind = BODY + encode("SET", "k", "v") + BODY
    for data in (sent, behind) if apart else (sent + behind,):
        wire.send(data)
    assert wire.rest() == replies
    assert connect().call("DBSIZE") == b":0\r\n"


def test_a_resp_request_in_a_connection_of_lines_ends_it(connect: Connect) -> None:
    """Its value may have lines in it, and these are no commands."""
    wire = connect()
    wire.send(b"PING\r\n" + encode("SET", "k", BODY) + b"SET k v\r\n")
    assert wire.rest() == b"PONG\r\nERROR RESP after the line protocol: use one connection for each\r\n"
    assert connect().call("DBSIZE") == b":0\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"AMQP\x00\x00\x09\x01",
        b"\x10\x0c\x00\x04MQTT\x05\x02\x00<\x00\x00",
        b"\x00\x00\x00\x08\x04\xd2\x16/",
        b"\x80\x01\x00\x05",
        b"\xef\xbb\xbfPING",
        b"$25",
        b">2",
        b"%1",
        b"|1",
        b"+OK",
        b"-ERR no",
        b":1",
        b"Content-Length: 20",
        b"{",
        b"<a>",
    ],
)
def test_a_line_that_is_none_of_a_command_ends_the_connection(head: bytes, start: Start, connect: Connect) -> None:
    """The lines that come with it may be the contents of a frame."""
    wire = connect()
    wire.send(b"PING\r\n" + head + b"\r\n" + BODY)
    assert wire.rest() == b"PONG\r\nERROR this is no line of a command: is it another protocol?\r\n"
    resp = connect(start(text_protocol=False))
    resp.send(b"PING\r\n" + head + b"\r\n" + BODY)
    pong, unknown, end = resp.rest().split(b"\r\n")
    assert (pong, unknown[:21], end) == (b"+PONG", b"-ERR unknown command ", b"")
    assert connect().call("DBSIZE") == b":0\r\n"


def test_such_a_line_alone_does_no_harm(start: Start, connect: Connect) -> None:
    wire, resp = connect(), connect(start(text_protocol=False))
    for _ in range(2):
        wire.send(b"\x00\x01\x02\r\n")
        assert wire.line() == b"ERROR this is no line of a command: is it another protocol?\r\n"
        assert wire.ask("PING") == "PONG"
        resp.send(b"\x80\x01\r\n")
        assert resp.line().startswith(b"-ERR unknown command")
        assert resp.call("PING") == b"+PONG\r\n"


@pytest.mark.parametrize("line", ["FLY", "fly-by", "A$%!?", "a.b_c|d x/y", "SSH-2.0-x", "GO to/2"])
def test_an_unknown_command_leaves_the_connection_usable(line: str, text: Wire) -> None:
    assert text.ask(line) == f"ERROR Unknown command: {line.split()[0]}"
    assert text.ask("PING") == "PONG"


def test_a_value_that_the_command_refuses_does_not_run(resp: Wire) -> None:
    for request in (("SET", "k", BODY, "FOO", "10"), ("EVAL", BODY, "0"), ("XADD", BODY), ("DBSIZE",)):
        resp.send(encode(*request))
    assert [resp.resp()[:5] for _ in range(3)] == [b"-ERR "] * 3
    assert resp.resp() == b":0\r\n"


# -- real programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--http0.9", "-X", "POST", "--data-binary", "@-"],
        ["--http0.9", "-X", "POST", "-H", "Transfer-Encoding: chunked", "--data-binary", "@-"],
        ["--http0.9", "-X", "SET", "--data-binary", "@-"],
        ["-X", "OPTIONS"],
        ["--http2-prior-knowledge", "--data-binary", "@-"],
        ["--http1.0"],
    ],
    ids=" ".join,
)
def test_curl(options: list[str], server: StartedServer, engine: Engine, closed: Callable[[], int]) -> None:
    program = shutil.which("curl")
    assert program, "curl is not installed: `make test` sees to that"
    host, port = server.address
    body = BODY + b"SET k v\r\n" * 100_000
    command = [program, "--silent", "--max-time", "60", *options, f"http://{host}:{port}/SET"]
    done = subprocess.run(command, input=body, capture_output=True, timeout=90, check=False)
    assert done.returncode != 0
    assert done.stdout == b""
    assert closed() == 1
    assert engine.live_count == 0


PAGE = """<!doctype html><title>attack</title><iframe name="a"></iframe><iframe name="b"></iframe>
<form method="post" enctype="text/plain" target="a" action="http://HOST/"><textarea name="x"></textarea></form>
<form method="post" enctype="multipart/form-data" target="b" action="http://HOST/"><textarea name="x"></textarea></form>
<script>
const body = "\\nTRUNCATE\\nSET pwned yes\\nSHUTDOWN\\n";
for (const form of document.forms) { form.x.value = body; form.submit(); }
fetch("http://HOST/", {method: "POST", mode: "no-cors", body}).catch(() => {});
fetch("http://HOST/", {method: "PUT", body}).catch(() => {});
new Image().src = "http://HOST/SET";
new WebSocket("ws://HOST/");
</script>"""
TRIES = 6


def test_a_page_in_a_browser(server: StartedServer, engine: Engine, closed: Callable[[], int], tmp_path: Path) -> None:
    """Chromium with a page that tries everything a page can send to a port."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed: `make test` sees to that"
    engine.set(b"there", b"1")
    host, port = server.address
    page = tmp_path / "attack.html"
    page.write_text(PAGE.replace("HOST", f"{host}:{port}"))
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", page.as_uri(),
    ]  # fmt: skip
    output = tmp_path / "output"
    with output.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process:
        try:
            wait_until(lambda: closed() >= TRIES or process.poll() is not None, seconds=BROWSER_S)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert closed() >= TRIES, output.read_text(errors="replace")
    assert list(engine.page(b"", None, 10)[0]) == [b"there"]
