"""A real Mosquitto on a free port of the loopback, and somebody who listens and speaks there.

    def test_something(broker, wire):
        broker.stop(); broker.start(); broker.kill()      # the same port and, with persistence, the same memory
        wire.publish("prefix/node/events", b"...")
        wire.wait_for("prefix/node/events")

`MQTT_BROKER_HOST` and `MQTT_BROKER_PORT` name a broker that is already there; tests that stop theirs need an own one
(`broker_factory`), and always have it. `MQTT_TOPIC_PREFIX` is then the prefix of all topics as it stands, so that
somebody can listen there, unless tests run in parallel: these must not hear each other and get one each.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from support import free_port, wait_until

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 1883
DEFAULT_PREFIX = "test_merkle_kv"
PLAIN = ("allow_anonymous true", "max_queued_messages 100000")


class Broker:
    """A broker's address; with a directory, also its process."""

    def __init__(self, host: str, port: int, directory: Path | None = None, lines: tuple[str, ...] = PLAIN) -> None:
        self.host = host
        self.port = port
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        if directory is not None:
            directory.mkdir(exist_ok=True)
            first = (f"listener {port} {host}", "user root")  # as root it would become a user who may read nothing here
            (directory / "mosquitto.conf").write_text("\n".join((*first, *lines)) + "\n")

    def start(self) -> Broker:
        assert self._directory is not None, "this broker was there before the tests, they do not start it"
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-v", "-c", str(self._directory / "mosquitto.conf")],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self.answers, what="the broker")
        return self

    @property
    def is_shared(self) -> bool:
        """Whether it was there before the tests: then others use it too, and nothing may be left there."""
        return self._directory is None

    def forget(self, client_id: str, *retained: str) -> None:
        """Remove a client's session and what is retained on these topics. The client must be gone."""
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
        client.connect(self.host, self.port, clean_start=True)  # a session of no expiry: gone with the connection
        client.loop_start()
        for topic in retained:
            client.publish(topic, b"", qos=1, retain=True).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()

    def stop(self) -> None:
        """SIGTERM: with persistence it saves what it holds."""
        self._end("terminate")

    def kill(self) -> None:
        self._end("kill")

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def answers(self) -> bool:
        """Whether it lets somebody in."""
        probe = paho.Client(CallbackAPIVersion.VERSION2)
        try:
            return probe.connect(self.host, self.port) == 0
        except OSError:
            return False
        finally:
            sock = probe.socket()
            if sock is not None:
                sock.close()

    @property
    def log(self) -> Path:
        assert self._directory is not None
        return self._directory / "broker.log"

    def _end(self, how: str) -> None:
        assert self._process is not None
        getattr(self._process, how)()
        self._process.wait()


class Wire:
    """Somebody at the broker who is no node: hears everything under a prefix, and says what it is told to."""

    def __init__(self, broker: Broker, prefix: str, username: str = "", password: str = "") -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._refusals: dict[int, bool] = {}
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, f"wire-{secrets.token_hex(4)}", protocol=MQTTProtocolVersion.MQTTv5
        )
        if username:
            self._client.username_pw_set(username, password)
        self._subscribed = threading.Event()
        self._client.on_connect = lambda *_: self._client.subscribe(f"{prefix}/#", 1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _, __, message: self.messages.append((message.topic, bytes(message.payload)))
        self._client.on_publish = self._on_publish
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish with QoS 1 and wait for the broker's answer: whether it took it."""
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        wait_until(lambda: info.mid in self._refusals, what="the broker's answer")
        return not self._refusals.pop(info.mid)

    def heard(self, topic: str) -> list[bytes]:
        """The messages on a topic so far."""
        return [payload for name, payload in list(self.messages) if name == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_publish(self, _: Any, __: Any, mid: int, reason: Any, ___: Any) -> None:
        self._refusals[mid] = reason.is_failure


BrokerFactory = Callable[..., Broker]


@pytest.fixture
def broker_factory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BrokerFactory]:
    """Make brokers of the test's own: `broker_factory("allow_anonymous true", ..., start=False)`."""
    brokers: list[Broker] = []

    def make(*lines: str, start: bool = True) -> Broker:
        broker = Broker("127.0.0.1", free_port(), tmp_path / f"broker-{len(brokers)}", lines or PLAIN)
        brokers.append(broker)
        return broker.start() if start else broker

    yield make
    for broker in brokers:
        broker.end()
        if broker.log.exists():
            text = broker.log.read_text(errors="replace")
            request.node.add_report_section("teardown", "log of the broker", text[-20_000:])


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Broker:
    """A broker: the one that the environment names, or one of the test's own."""
    host, port = os.environ.get("MQTT_BROKER_HOST"), os.environ.get("MQTT_BROKER_PORT")
    if host or port:
        named = Broker(host or DEFAULT_HOST, int(port or DEFAULT_PORT))
        assert named.answers(), (
            f"no MQTT broker lets us in at {named.host}:{named.port}, as MQTT_BROKER_HOST and MQTT_BROKER_PORT say; "
            "unset them to have one started"
        )
        return named
    factory: BrokerFactory = request.getfixturevalue("broker_factory")
    return factory()


@pytest.fixture
def topic_prefix() -> str:
    """Topics of this test alone, also at a broker that others use; as it is named when no other test runs."""
    named = os.environ.get("MQTT_TOPIC_PREFIX")
    if named and not os.environ.get("PYTEST_XDIST_WORKER"):
        return named
    return f"{named or DEFAULT_PREFIX}_{secrets.token_hex(4)}"


@pytest.fixture
def wire(broker: Broker, topic_prefix: str) -> Iterator[Wire]:
    """Somebody who hears everything under the test's prefix."""
    made = Wire(broker, topic_prefix)
    yield made
    made.close()
