"""What a supervisor hears of a node, over the socket that it listens on as systemd does."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from fixtures.node import NodeFactory
from fixtures.patient_node import patient
from fixtures.support import WAIT_S, wait_until

from merklekv import exit_codes
from merklekv.service import SEND_S, Supervisor, Watchdog

WATCHDOG_S = 0.8
STATUS = "STATUS=still here"


class Listener:
    """The supervisor's end: `address` as it is in NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def read(self, timeout_s: float = WAIT_S) -> list[str]:
        """The lines of the next message. Raises TimeoutError."""
        self._socket.settimeout(timeout_s)
        return self._socket.recv(4096).decode().split("\n")

    def read_until(self, line: str) -> list[str]:
        """The next message that begins with this line."""
        while (message := self.read())[0] != line:
            pass
        return message

    def wait_for_silence(self, seconds: float) -> None:
        """Until nothing comes for so long."""
        with suppress(TimeoutError):
            while True:
                self.read(seconds)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    name = f"merklekv-{secrets.token_hex(8)}"
    made = Listener(f"@{name}" if getattr(request, "param", "") == "abstract" else str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.mark.parametrize("listener", ["path", "abstract"], indirect=True)
def test_it_is_told_of_the_start_a_reload_and_the_stop(listener: Listener, node_factory: NodeFactory) -> None:
    node = node_factory(start=False, environment={"NOTIFY_SOCKET": listener.address})
    node.launch()
    ready, status = listener.read()
    assert ready == "READY=1"
    with node.connect() as client:  # at once
        assert client.ask("PING") == "PONG"
    assert status.startswith("STATUS=node ")
    assert status.endswith(f" serves on 127.0.0.1:{node.port}, 0 keys")
    node.send_signal(signal.SIGHUP)
    reloading, since = listener.read()
    assert reloading == "RELOADING=1"
    name, _, microseconds = since.partition("=")
    assert name == "MONOTONIC_USEC"
    assert time.monotonic() - WAIT_S < int(microseconds) / 10**6 < time.monotonic()
    assert listener.read()[0] == "READY=1"
    assert node.stop() == exit_codes.EXIT_OK
    assert listener.read() == ["STOPPING=1", "STATUS=stopping"]
    with pytest.raises(BlockingIOError):
        listener.read(0)


def test_nothing_that_a_node_starts_speaks_in_its_place(listener: Listener, node_factory: NodeFactory) -> None:
    variables = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}
    node = node_factory("--memtable-size", "64KiB", environment=variables)
    with node.connect() as client:
        assert client.ask(f"SET k {'v' * 70_000}") == "OK"
    (child, *_) = wait_until(psutil.Process(node.pid).children, what="the checkpoint process")
    assert not variables.keys() & wait_until(child.environ).keys()


HANG = """
import os
fdatasync = os.fdatasync
def hang(fd):
    if os.path.exists({fifo!r}):
        with open({fifo!r}) as opened:
            opened.read()
    fdatasync(fd)
os.fdatasync = hang
"""


@pytest.mark.parametrize("durability", ["always", "everysec"])
def test_it_hears_nothing_more_of_a_node_whose_disk_hangs(
    listener: Listener, node_factory: NodeFactory, tmp_path: Path, durability: str
) -> None:
    """In a commit, which holds up all clients, or in the sync that runs by itself."""
    watchdog = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 10**6))}
    node = node_factory("--durability", durability, start=False, environment=watchdog)
    fifo = tmp_path / "hang"
    node.program = patient(HANG.format(fifo=str(fifo)))
    node.start()
    for _ in range(3):
        assert listener.read_until("WATCHDOG=1")[1].endswith(" 0 keys")
    os.mkfifo(fifo)
    with node.connect() as client:
        client.send(b"SET k v\r\n")
        writer: int = wait_until(lambda: writer_of(fifo) or 0, what="a sync that hangs")
        fifo.unlink()
        listener.wait_for_silence(WATCHDOG_S)
        os.close(writer)
        assert client.line() == "OK"
        assert listener.read_until("WATCHDOG=1")[1].endswith(" 1 key")


def writer_of(fifo: Path) -> int | None:
    """A descriptor that keeps who reads there waiting, if someone does."""
    with suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None


def test_it_hears_of_a_node_that_gets_one_signal_after_the_other(listener: Listener, node_factory: NodeFactory) -> None:
    watchdog = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 10**6))}
    node = node_factory(environment=watchdog)
    beats = 0
    while beats < 3:
        node.send_signal(signal.SIGHUP)
        beats += listener.read()[0] == "WATCHDOG=1"


# -- by itself ---------------------------------------------------------------------------------------------------------


def supervisor(listener: Listener, **more: str) -> Supervisor:
    return Supervisor({"NOTIFY_SOCKET": listener.address, **more})


def test_without_a_socket_there_is_no_supervisor() -> None:
    alone = Supervisor({"WATCHDOG_USEC": "1000000"})
    alone.ready("")
    assert alone.watchdog_s == 0


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@nobody", "vsock:2:1", "x" * 200, "/dev/null"])
def test_a_supervisor_that_is_not_there_does_no_harm(address: str) -> None:
    Supervisor({"NOTIFY_SOCKET": address}).ready("")


def test_a_supervisor_that_does_not_read_does_not_hold_it_up(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merklekv.service.SEND_S", SEND_S / 1000)
    told = supervisor(listener)
    for _ in range(int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 2):
        told.stopping()
    assert listener.read()[0] == "STOPPING=1"


def test_the_time_of_the_watchdog_is_in_microseconds(listener: Listener) -> None:
    for watched in ("", str(os.getpid())):
        assert supervisor(listener, WATCHDOG_USEC="1500000", WATCHDOG_PID=watched).watchdog_s == 1.5


@pytest.mark.parametrize(
    "variables", [{"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-1"}]
)
def test_a_watchdog_of_another_process_or_without_a_time_is_none(listener: Listener, variables: dict[str, str]) -> None:
    assert supervisor(listener, **variables).watchdog_s == 0


def test_a_look_tells_nothing_until_each_worker_has_answered_the_one_before(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, late_s = 0.0, 0.0
    monkeypatch.setattr("merklekv.service.time.monotonic", lambda: now)
    answers = [threading.Event(), threading.Event()]
    looks = 0

    def look_at_workers() -> list[threading.Event]:
        nonlocal looks
        looks += 1
        for answer in answers:
            answer.clear()
        return answers

    watchdog = Watchdog(supervisor(listener, WATCHDOG_USEC="2000000"), look_at_workers, lambda: late_s)

    def look(step_s: float, *answering: int) -> bool:
        nonlocal now
        now += step_s
        watchdog.look(lambda: "still here")
        for number in answering:
            answers[number].set()
        try:
            return listener.read(0) == ["WATCHDOG=1", STATUS]
        except BlockingIOError:
            return False

    assert not look(0.5, 0, 1)
    assert look(0.5, 0, 1)
    assert not look(0.5, 0, 1)  # it is not due
    assert look(0.5, 0)
    before = looks
    assert not look(1.0, 0)  # the second worker hangs
    assert looks == before  # and gets no more to do for that
    assert not look(1.0, 0, 1)
    assert look(1.0, 0, 1)
    late_s = 1.0
    assert not look(1.0, 0, 1)
    late_s = 0.5
    assert look(0.0, 0, 1)


@pytest.mark.parametrize("digits", [1, 20, 400, 5000])
def test_a_watchdog_of_any_length_is_a_number_or_none(digits: int) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "9" * digits})
    assert supervisor.watchdog_s == (int("9" * digits) / 10**6 if digits <= 20 else 0)
