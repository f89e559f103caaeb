"""An MQTT broker as a child process: Mosquitto where it is installed, else `iotcore`, which pip installs.

Both listen on the loopback alone and speak MQTT 5. An outage (`pause`, then `launch`) keeps the sessions of both:
Mosquitto is stopped by SIGTERM and saves them; `iotcore` has them in memory only, so it is frozen and thawed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from abc import abstractmethod
from pathlib import Path
from typing import Final

from merklekv import interpreter
from merklekv.harness.process import HOST, HarnessError, Server, free_port

SBIN: Final = ("/usr/sbin", "/usr/local/sbin")  # where it is, and where the path of a user does not lead

OPEN: Final = ("allow_anonymous true", "max_queued_messages 100000")
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


class Broker(Server):
    """A broker on a free port, with its configuration and its log in a directory."""

    kind = ""
    pause_word = ""  # how it is paused, for people

    def __init__(self, directory: Path, port: int, config: str, suffix: str, *, own_session: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        super().__init__(directory / f"{self.kind}.log", own_session=own_session, working_directory=directory)
        self.port = port
        self.config = directory / f"{self.kind}.{suffix}"
        self.config.write_text(config)

    @property
    def is_up(self) -> bool:
        return self.is_running and self.accepts()

    @abstractmethod
    def pause(self) -> None:
        """Let it serve no more, and keep its sessions until `launch`. Does not wait."""


class Mosquitto(Broker):
    """`lines` are its configuration beside the listener."""

    kind = "mosquitto"
    pause_word = "SIGTERM"

    def __init__(self, directory: Path, *lines: str, own_session: bool = False) -> None:
        # As root it would become a user who may read nothing here; for others `user` means nothing.
        port = free_port()
        config = "\n".join((f"listener {port} {HOST}", "user root", *(lines or OPEN))) + "\n"
        super().__init__(directory, port, config, "conf", own_session=own_session)

    def command(self) -> list[str]:
        program = mosquitto()
        if program is None:
            raise HarnessError("no mosquitto found: apt-get install mosquitto")
        return [program, "-c", str(self.config)]

    def pause(self) -> None:
        self.send_signal(signal.SIGTERM)


class IotCore(Broker):
    """`iotcore`, a broker in a wheel."""

    kind = "iotcore"
    pause_word = "frozen, because it keeps sessions in memory only"

    def __init__(self, directory: Path, *, own_session: bool = False) -> None:
        port = free_port()
        super().__init__(directory, port, IOTCORE_CONFIG.format(host=HOST, port=port), "toml", own_session=own_session)

    def command(self) -> list[str]:
        return interpreter.command("iotcore", "--log-level", "CRITICAL", "--config", str(self.config))

    def launch(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.is_running:
            self.send_signal(signal.SIGCONT)
            return self.process
        return super().launch()

    def pause(self) -> None:
        self.send_signal(signal.SIGSTOP)


def mosquitto() -> str | None:
    """The path of Mosquitto, if it is installed."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))


def make_broker(kind: str, directory: Path) -> Broker:
    """A broker of this kind (auto, mosquitto, iotcore) in a session of its own, not yet started."""
    if kind != "iotcore" and mosquitto():
        return Mosquitto(directory, *OPEN, "persistence true", own_session=True)
    if kind != "mosquitto" and importlib.util.find_spec("iotcore"):
        return IotCore(directory, own_session=True)
    missing = {"auto": "no MQTT broker", "mosquitto": "no mosquitto", "iotcore": "no iotcore"}[kind]
    raise HarnessError(
        f"{missing} found: install Mosquitto ('apt-get install mosquitto'), "
        "or the wheel iotcore where merklekv is ('pip install iotcore')"
    )
