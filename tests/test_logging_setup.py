"""The log is complete and in order while it is read, and delays nothing when it is not."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.node import LineClient, NodeFactory, NodeProcess, clean_environment
from fixtures.support import WAIT_S, free_port, wait_until

from merklekv import exit_codes, logging_setup
from merklekv.harness.process import READY

PIPE_BYTES = 4096


class Pipe:
    """A pipe of 4 KiB, to be given to a process as its stderr."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fill(self) -> None:
        """Write until nothing fits any more."""
        os.set_blocking(self.into, False)
        while True:
            try:
                os.write(self.into, b"." * PIPE_BYTES)
            except BlockingIOError:
                break
        os.set_blocking(self.into, True)

    def read(self) -> str:
        """What is in it now."""
        os.set_blocking(self.out, False)
        try:
            return os.read(self.out, PIPE_BYTES).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
def full_pipe(pipe: Pipe) -> Pipe:
    pipe.fill()
    return pipe


@contextmanager
def launch(pipe: Pipe, code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Python with the pipe for stdout and stderr."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=pipe.into, stderr=pipe.into, env=clean_environment())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


RUN = "from merklekv import cli, node; node.STOP_DEADLINE_S = 3600.0; cli.main()"


def test_a_log_that_is_not_read_delays_neither_start_nor_requests_nor_stop(full_pipe: Pipe, tmp_path: Path) -> None:
    port = free_port()
    with launch(full_pipe, RUN, "run", "--port", str(port), "--data-dir", str(tmp_path / "data")) as process:
        wait_until(lambda: serves(port), what="a node that serves")
        with LineClient("127.0.0.1", port) as client:
            assert client.ask("SET k v") == "OK"
            assert client.ask("SYNC 127.0.0.1 1").startswith("ERROR")
            assert client.ask("GET k") == "VALUE v"
            process.send_signal(signal.SIGHUP)
            assert client.ask("PING") == "PONG"
        process.terminate()
        assert process.wait(WAIT_S) == exit_codes.EXIT_OK


def serves(port: int) -> bool:
    try:
        with LineClient("127.0.0.1", port) as client:
            return client.ask("PING") == "PONG"
    except OSError:
        return False


STOP_WITHOUT_END = """
    node.STOP_DEADLINE_S = 0.1
    stopping = threading.Event()
    stopping.set()
    node.limit_stop(stopping, threading.Event(), lambda: None)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("node.end_at_once(StorageFailed('no disk'))", exit_codes.EXIT_STORAGE),
        (STOP_WITHOUT_END, exit_codes.EXIT_SLOW_STOP),
        ("raise MerkleKVError('an error')", exit_codes.EXIT_FAILED),
    ],
)
def test_a_log_that_is_not_read_delays_no_end(full_pipe: Pipe, end: str, status: int) -> None:
    code = f"""
import threading
from merklekv import cli, node
from merklekv.errors import MerkleKVError, StorageFailed
node.start_logging("info", "text")
def app(**options):
    {end}
cli.app = app
cli.main()
"""
    with launch(full_pipe, code) as process:
        assert process.wait(WAIT_S) == status


def test_the_checkpoint_process_is_not_delayed_by_a_log_that_is_not_read(full_pipe: Pipe) -> None:
    """What it writes there comes to its parent."""
    code = """
import sys
from merklekv.engine.checkpoint import child
from merklekv.logging_setup import start_logging
start_logging("info", "text")
process = child.CheckpointProcess("base", "base.new", "log", 1)
process._command = [sys.executable, "-c", "import sys; sys.stderr.write('x' * 1_000_000)"]
try:
    process.checkpoint(1, print)
except child.ChildDied as death:
    sys.exit(0 if str(death) in ("exit status 0", "[Errno 32] Broken pipe") else 3)
"""
    with launch(full_pipe, code) as process:
        assert process.wait(WAIT_S) == 0


def test_a_failed_start_is_told_after_what_it_logged(node_factory: NodeFactory, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        node = node_factory(start=False)
        node.port = holder.getsockname()[1]
        node.launch()
        assert node.wait() == exit_codes.EXIT_ADDRESS
    assert node.output().splitlines()[-1].startswith("merklekv: ")


@pytest.fixture
def logger(pipe: Pipe) -> Iterator[logging.Logger]:
    """A logger that writes to the pipe."""
    made = logging.Logger("test")
    handler = logging_setup.QueuedHandler(pipe.into)
    handler.setFormatter(logging_setup.TextFormatter())
    made.addHandler(handler)
    yield made
    wait_until(lambda: not pipe.read() and not handler.queued)  # or its thread would write into the next file
    handler.flush()


def handler_of(logger: logging.Logger) -> logging_setup.QueuedHandler:
    (handler,) = logger.handlers
    assert isinstance(handler, logging_setup.QueuedHandler)
    return handler


def read_all(pipe: Pipe, last: str) -> list[str]:
    """The messages of all lines up to one with this text."""
    read: list[str] = []

    def is_complete() -> bool:
        read.append(pipe.read())
        return last in "".join(read) and read[-1] == ""

    wait_until(is_complete)
    return [line.partition(": ")[2] for line in "".join(read).splitlines()]


def test_lines_come_whole_and_in_order(logger: logging.Logger, pipe: Pipe) -> None:
    for number in range(logging_setup.QUEUE_LINES // 2):
        logger.warning("%d %s", number, "x" * 100)
    logger.warning("last")
    expected = [f"{number} {'x' * 100}" for number in range(logging_setup.QUEUE_LINES // 2)]
    assert read_all(pipe, "last") == [*expected, "last"]
    assert handler_of(logger).dropped == 0


def test_lines_beyond_the_queue_are_dropped_counted_and_told(logger: logging.Logger, pipe: Pipe) -> None:
    handler = handler_of(logger)
    pipe.fill()
    logger.warning("first")
    wait_until(lambda: not handler.queued, what="the thread that writes to have a line in hand")
    for number in range(logging_setup.QUEUE_LINES):
        logger.warning("%d", number)
    assert handler.dropped == 0
    logger.warning("one too many")
    logger.warning("two too many")
    assert handler.dropped == 2
    pipe.read()  # what it was filled with
    numbers = [str(number) for number in range(logging_setup.QUEUE_LINES)]
    note = "2 log lines were dropped: the log was not read fast enough"
    assert read_all(pipe, "were dropped") == ["first", *numbers, note]
    logger.warning("after")
    assert read_all(pipe, "after") == ["after"]


def test_a_flush_by_who_holds_the_lock_of_the_handler_waits_for_no_other(
    logger: logging.Logger, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `logging` does at the exit, which would take FLUSH_S otherwise and might lose the last lines."""
    monkeypatch.setattr(logging_setup, "FLUSH_S", WAIT_S)
    handler = handler_of(logger)
    handler.acquire()
    try:
        logger.warning("one")
        assert read_all(pipe, "one") == ["one"]
        logger.warning("two")
        handler.flush()
        assert pipe.read().endswith(": two\n")
    finally:
        handler.release()


def test_a_node_shows_how_many_lines_were_dropped(node_factory: NodeFactory) -> None:
    with node_factory().connect() as client:
        assert "log_lines_dropped:0" in client.ask_lines("STATS all")


def test_a_pipe_that_does_not_block_gets_every_line(logger: logging.Logger, pipe: Pipe) -> None:
    os.set_blocking(pipe.into, False)
    for number in range(200):
        logger.warning("%d %s", number, "x" * 100)
    logger.warning("last")
    assert len(read_all(pipe, "last")) == 201


HOSTILE = "x\r\n2026-01-01T00:00:00.000Z INFO    forged: line\x1b[31m\x00\x85\u2028\u202e\udc80"


def format_with(formatter: logging.Formatter, message: str, error: BaseException | None = None) -> str:
    record = logging.makeLogRecord({"name": "n", "levelname": "WARNING", "msg": "%s", "args": (message,)})
    record.exc_info = (type(error), error, None) if error else None
    return formatter.format(record)


def test_foreign_text_forges_no_line_and_commands_no_terminal() -> None:
    (line,) = format_with(logging_setup.TextFormatter(), HOSTILE).splitlines()
    assert line.isprintable()
    assert "x\\r\\n2026" in line
    assert "\\x1b[31m\\x00\\x85\\u2028\\u202e\\udc80" in line
    assert json.loads(format_with(logging_setup.JsonFormatter(), HOSTILE))["message"] == HOSTILE
    assert "Köln 東京" in format_with(logging_setup.TextFormatter(), "Köln 東京")


def test_foreign_text_in_a_traceback_forges_no_line() -> None:
    first, *others = format_with(logging_setup.TextFormatter(), "failed", ValueError(HOSTILE)).splitlines()
    assert first.endswith("failed")
    assert all(line.startswith(logging_setup.INDENT) and line.isprintable() for line in others)
    (line,) = format_with(logging_setup.JsonFormatter(), "failed", ValueError(HOSTILE)).splitlines()
    assert HOSTILE in json.loads(line)["exception"]


def test_a_long_line_is_cut() -> None:
    kept = "x" * logging_setup.MESSAGE_CHARS_MAX
    assert format_with(logging_setup.TextFormatter(), kept).endswith(": " + kept)
    assert format_with(logging_setup.TextFormatter(), kept + "yz").endswith(": " + kept + logging_setup.CUT)
    long = format_with(logging_setup.TextFormatter(), "failed", ValueError("y" * 100_000 + "end"))
    assert len(long) < logging_setup.TRACEBACK_CHARS_MAX + 1000
    assert long.endswith("yend")


def test_a_wrong_call_of_a_logger_is_a_line_and_no_error(logger: logging.Logger, pipe: Pipe) -> None:
    logger.warning("%d items", "no number")
    logger.warning("last")
    wrong, _ = read_all(pipe, "last")
    assert "'%d items'" in wrong


def test_a_wrong_call_is_a_line_of_json_where_all_are(logger: logging.Logger, pipe: Pipe) -> None:
    logger.handlers[0].setFormatter(logging_setup.JsonFormatter())
    logger.error("%(port)d", {"port": "x\n"})
    logger.handlers[0].flush()
    line = json.loads(pipe.read())
    assert (line["level"], line["logger"]) == ("error", logger.name)
    assert line["message"].startswith("TypeError(")
    assert line["message"].endswith("in a log line: '%(port)d'")


def test_a_thread_that_fails_is_logged() -> None:
    code = """
import threading
from merklekv import logging_setup
logging_setup.FLUSH_S = 3600.0
logging_setup.start_logging("info", "json")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    line = json.loads(done.stderr)
    assert line["message"] == "thread worker has failed"
    assert "ZeroDivisionError" in line["exception"]


def test_a_process_without_stderr_logs_nothing_and_runs(tmp_path: Path) -> None:
    code = """
import logging, os, sys
from merklekv.logging_setup import print_soon, start_logging
start_logging("info", "text")
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
logging.warning("a line")
print_soon(sys.stdout, "another")
"""
    command = f'exec "{sys.executable}" -c "$1" "$2" >&- 2>&-'
    file = tmp_path / "data"
    subprocess.run(["sh", "-c", command, "sh", code, str(file)], check=True, timeout=60)
    assert file.read_bytes() == b""


# -- fields of JSON ----------------------------------------------------------------------------------------------------


def json_of(message: str, fields: dict[str, object]) -> dict[str, object]:
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": message, "args": fields})
    line: dict[str, object] = json.loads(logging_setup.JsonFormatter().format(record))
    return line


def test_what_a_message_was_made_of_is_in_fields() -> None:
    line = json_of("%(peer)s took %(seconds).1f s", {"peer": "100%s", "seconds": 0.25, "path": Path("/x")})
    assert line.pop("message") == "100%s took 0.2 s"
    del line["time"]
    assert line == {"level": "info", "logger": "n", "node": "", "peer": "100%s", "seconds": 0.25, "path": "/x"}


def test_a_field_replaces_none_of_the_line_itself() -> None:
    line = json_of("%(level)s %(name)s", {"level": "own", "name": "own", "message": "own", "args": "own"})
    assert (line["level"], line["logger"], line["message"]) == ("info", "n", "own own")


def test_a_long_field_is_cut() -> None:
    line = json_of("x", {"reason": "r" * 100_000})
    assert line["reason"] == "r" * logging_setup.MESSAGE_CHARS_MAX + logging_setup.CUT


def json_lines(node: NodeProcess) -> list[dict[str, object]]:
    """What it has logged; the ready line on stdout is left out."""
    return [json.loads(line) for line in node.output().splitlines() if not READY.match(line)]


def test_the_lines_of_a_node_have_fields(node_factory: NodeFactory) -> None:
    peer = f"127.0.0.1:{free_port()}"
    exchanging = ("--set", f"anti_entropy.peer_list={peer}", "--set", "anti_entropy.interval_seconds=1")
    node = node_factory("--log-format", "json", "--node-id", "a", *exchanging)
    with node.connect() as client:
        assert client.ask("SET k v") == "OK"
    wait_until(lambda: [line for line in json_lines(node) if "exchange" in str(line["message"])])
    node.kill()
    first = json_lines(node)
    node.start()
    assert node.stop() == exit_codes.EXIT_OK
    lines = json_lines(node)
    assert {"time", "level", "logger", "message", "node"} <= set.intersection(*map(set, first + lines))

    (failed,) = [line for line in first if "exchange" in str(line["message"])]
    assert (failed["level"], failed["logger"]) == ("warning", "merklekv.replication.sync.anti_entropy")
    assert (failed["node"], failed["peer"], failed["address"]) == ("a", "", peer)
    assert failed["message"] == f"exchange with {peer} failed: {failed['reason']}"

    (recovered,) = [line for line in lines if line["logger"] == "merklekv.engine.recovery"]
    assert recovered["records"] == 1
    assert recovered["bytes"] > 0  # type: ignore[operator]
    ready, stopping, _ = [line for line in lines if line["logger"] == "merklekv.node"]
    assert (ready["node"], ready["host"], ready["port"]) == ("a", "127.0.0.1", node.port)
    assert (ready["data_dir"], ready["durability"], ready["pid"]) == (str(node.directory), "always", node.pid)
    assert ready["keys"] == 1
    assert (stopping["message"], stopping["reason"]) == ("stopping: SIGTERM", "SIGTERM")


ROOT = Path(logging_setup.__file__).parent
SOURCES = {path: path.read_text() for path in ROOT.rglob("*.py") if path.name != "logging_setup.py"}


def test_no_message_names_a_field_that_each_line_has() -> None:
    named = {name for text in SOURCES.values() for name in re.findall(r"%\((\w+)\)", text)}
    assert {"peer", "reason", "bytes"} <= named
    assert not named & {"time", "level", "logger", "message", "node", "exception"}


def test_the_fields_of_the_documentation_are_those_of_the_node() -> None:
    page = (ROOT.parent / "docs" / "operations.md").read_text()
    _, _, table = page.partition("\n## The log\n")[2].partition("\n| field | content | in lines about |\n")
    rows = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[1:]]
    for name in re.findall(r"`(\w+)`", "".join(rows)):
        assert any(f'"{name}":' in text for text in SOURCES.values()), name
