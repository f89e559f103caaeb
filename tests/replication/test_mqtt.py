"""A connection to the broker, by itself."""

from __future__ import annotations

import socket

import paho.mqtt.client as paho
import pytest

from merklekv.replication.stream.mqtt import BrokerSettings, ConnectionLost, MqttConnection


def test_a_connection_that_breaks_before_connect_is_sent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(client: paho.Client, sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(paho.Client, "_call_socket_open", shut)
    with socket.create_server(("127.0.0.1", 0)) as broker:
        port = broker.getsockname()[1]
        connection = MqttConnection(BrokerSettings("127.0.0.1", port, "prefix", "node"), "prefix/node/status", b"")
        with pytest.raises(ConnectionLost, match=f"127.0.0.1:{port}"):
            connection.open(lambda: False)
