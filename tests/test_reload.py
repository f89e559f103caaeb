"""SIGHUP: which settings a running node takes, what it says of the others, and that a mistake changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import cast

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until

from merklekv import config
from merklekv.harness.process import HOST
from merklekv.net.client import Client
from merklekv.reload import Reload
from merklekv.signals import StopRequests

STARTED_WITH = 'log_level = "info"\nnotify_keyspace_events = "K$"\n[limits]\nidle_timeout_seconds = 0\n'


class Configured:
    """A node with a file of settings."""

    def __init__(self, node: NodeProcess, file: Path) -> None:
        self._node = node
        self._file = file

    def reload(self, text: str) -> str:
        """Write the file and send SIGHUP; the line that the node logs."""
        before = self._lines()
        self._file.write_text(text)
        self._node.send_signal(signal.SIGHUP)
        return str(wait_until(lambda: self._lines()[len(before) :], what="a line about it")[0])

    def _lines(self) -> list[str]:
        return [line.partition("SIGHUP: ")[2] for line in self._node.output().splitlines() if "SIGHUP: " in line]

    def parameter(self, name: str) -> str:
        """By its name in Redis."""
        with Client(HOST, self._node.port, 60) as client:
            _, value = cast("list[bytes]", client.call(b"CONFIG", b"GET", name.encode()))
            return value.decode()

    def set_parameter(self, name: str, value: str) -> None:
        with Client(HOST, self._node.port, 60) as client:
            client.call(b"CONFIG", b"SET", name.encode(), value.encode())


@pytest.fixture
def configured(node_factory: NodeFactory, tmp_path: Path) -> Configured:
    file = tmp_path / "merklekv.toml"
    file.write_text(STARTED_WITH)
    return Configured(node_factory("--config", str(file)), file)


def test_what_can_change_changes(configured: Configured) -> None:
    changed = STARTED_WITH.replace("K$", "E$").replace("seconds = 0", "seconds = 100\nmax_connections = 50")
    line = configured.reload(changed.replace("info", "debug"))
    assert line == (
        "log_level = debug; notify_keyspace_events = E$; limits.max_connections = 50; limits.idle_timeout_seconds = 100"
    )
    wait_until(lambda: configured.parameter("timeout") == "100")
    assert configured.parameter("maxclients") == "50"
    assert configured.parameter("notify-keyspace-events") == "$E"
    assert configured.parameter("loglevel") == "debug"
    assert configured.reload(changed.replace("info", "debug")) == "nothing changed"


def test_what_cannot_is_named_until_it_is_taken_back(configured: Configured) -> None:
    other = 'port = 1\nstorage_path = "elsewhere"\n' + STARTED_WITH + '[replication]\nclient_password = "hush"\n'
    restart = "a restart is needed for replication.client_password"
    assert configured.reload(other) == restart
    assert configured.reload(other.replace("info", "warning")) == f"log_level = warning; {restart}"
    assert configured.reload(STARTED_WITH + "# as it was\n").startswith("log_level = info")
    assert configured.reload(STARTED_WITH) == "nothing changed"


MISTAKES = {
    'log_level = "loud"': "log_level = 'loud' is not allowed",
    'log_level = "debug"\nprot = 1': "unknown key 'prot'",
    "log_level = ": "is not TOML",
    'log_level = "debug"\n[replication]\ntls_ca_file = "/nonexistent"': "cannot be read: No such file",
    'log_level = "debug"\n[replication]\nclient_password_file = "a\\u0000b"': "is not the name of a file",
}


def test_a_mistake_changes_nothing(configured: Configured) -> None:
    for wrong, why in MISTAKES.items():
        line = configured.reload(wrong)
        assert line.startswith("nothing is changed")
        assert why in line
    assert configured.parameter("loglevel") == "notice"
    assert configured.reload(STARTED_WITH) == "nothing changed"


def test_a_pipe_in_the_place_of_a_file_keeps_no_signal_waiting(node_factory: NodeFactory, tmp_path: Path) -> None:
    settings, secret = tmp_path / "merklekv.toml", tmp_path / "secret"
    settings.write_text(f"[replication]\nclient_password_file = '{secret}'\n")
    secret.write_text("hush")
    node = node_factory("--config", str(settings))
    for number, file in enumerate((secret, settings), 1):
        file.unlink()
        os.mkfifo(file)
        node.send_signal(signal.SIGHUP)
        wait_until(lambda number=number: node.output().count("it is no regular file") == number, what="the refusal")
    assert node.stop() == 0


def test_what_config_set_has_set_stays_while_its_setting_does(configured: Configured) -> None:
    configured.set_parameter("timeout", "7")
    assert configured.reload(STARTED_WITH.replace("info", "debug")) == "log_level = debug"
    assert configured.parameter("timeout") == "7"
    configured.reload(STARTED_WITH.replace("seconds = 0", "seconds = 9"))
    wait_until(lambda: configured.parameter("timeout") == "9")


def test_a_defect_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    readings = iter([config.load({}, {}, None)])
    Reload(next(readings), lambda: next(readings), {}, lambda: None)()
    assert "nothing is changed" in caplog.text
    assert "StopIteration" in caplog.text


def test_signals_without_end_keep_neither_a_look_nor_a_stop_away() -> None:
    requests = StopRequests()
    looks: list[None] = []

    def hang_up() -> None:
        os.write(requests._in, bytes([signal.SIGHUP, signal.SIGHUP]))

    def look() -> None:
        looks.append(None)
        if len(looks) == 3:
            requests.shut_down()

    hang_up()
    assert requests.wait(hang_up, look, 0.01) == "SHUTDOWN"
    assert len(looks) == 3
    os.close(requests._in)
    os.close(requests._out)
