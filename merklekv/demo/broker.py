"""The broker of the demo: Mosquitto where it is installed, else `iotcore`, which pip installs.

Both listen on the loopback alone and speak MQTT 5.  Their outages differ, so that each keeps the sessions it has:
Mosquitto is stopped by SIGTERM and saves them; `iotcore` has them in memory only, so it is frozen and thawed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Final

from merklekv import interpreter
from merklekv.demo.process import Child, DemoFailed

HOST: Final = "127.0.0.1"
SBIN: Final = ("/usr/sbin", "/usr/local/sbin")  # where it is, and where the path of a user does not lead
CONNECT_S: Final = 0.2

MOSQUITTO_CONFIG: Final = """\
listener {port} {host}
allow_anonymous true
persistence true
persistence_location {directory}/
max_queued_messages 100000
user root
"""  # as root it would become a user who may read nothing here; for others the last line means nothing

IOTCORE_CONFIG: Final = """\
id = 0

[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10

[v5.1]
name = "demo"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 33554432
max_inflight_count = 100
dynamic_filters = true
"""


class Broker:
    """A broker that can be stopped and started without losing its sessions."""

    def __init__(self, kind: str, command: list[str], config: str, directory: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self.child = Child(kind, directory)
        self.stop_word = "frozen, because it keeps sessions in memory only" if kind == "iotcore" else "SIGTERM"
        self._freezes = kind == "iotcore"
        self._wanted = False
        self._answered = False
        file = directory / f"{kind}.toml"  # iotcore goes by the ending, Mosquitto does not look
        file.write_text(config.format(host=HOST, port=self.port, directory=directory))
        self._command = [*command, str(file)]

    def start(self) -> None:
        self._wanted = True
        if self._freezes and self.child.is_running:
            self.child.signal(signal.SIGCONT)
        else:
            self._answered = False
            self.child.launch(self._command)

    def stop(self) -> None:
        self._wanted = False
        self.child.signal(signal.SIGSTOP if self._freezes else signal.SIGTERM)

    @property
    def is_wanted(self) -> bool:
        """Whether it was started last, or stopped."""
        return self._wanted

    @property
    def state(self) -> str:
        """up, starting, stopping, frozen, down (as asked to) or dead."""
        if not self.child.is_running:
            return "dead" if self._wanted else "down"
        if not self._wanted:
            return "frozen" if self._freezes else "stopping"
        self._answered = self._answered or self._answers()
        return "up" if self._answered else "starting"

    def _answers(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), CONNECT_S).close()
        except OSError:
            return False
        return True


def make_broker(kind: str, directory: Path) -> Broker:
    """A broker of this kind, not yet started. Raises DemoFailed when there is none."""
    mosquitto = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))
    if kind != "iotcore" and mosquitto:
        return Broker("mosquitto", [mosquitto, "-c"], MOSQUITTO_CONFIG, directory)
    if kind != "mosquitto" and importlib.util.find_spec("iotcore"):
        command = interpreter.command("iotcore", "--log-level", "CRITICAL", "--config")
        return Broker("iotcore", command, IOTCORE_CONFIG, directory)
    missing = {"auto": "no MQTT broker", "mosquitto": "no mosquitto", "iotcore": "no iotcore"}[kind]
    raise DemoFailed(
        f"{missing} found: install Mosquitto ('apt-get install mosquitto'), "
        "or the wheel iotcore where merklekv is ('pip install iotcore')"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
