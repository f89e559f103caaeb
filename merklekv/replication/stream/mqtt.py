"""One connection to an MQTT broker: a shell on paho-mqtt that decides nothing.

An `MqttConnection` lives from one connect to its loss and belongs to one thread.  paho has no thread of its own: `wait`
lets it read and write.  Its callbacks only append to a queue, since an exception in one would end the loop and a lock
can deadlock.  paho's state ends with the connection, so it publishes nothing twice.

The broker keeps a session, and queues there what others publish while this node is away.  A session belongs to a client
id, so the client id names cluster and node.

MQTT 5 asks the broker to drop packets larger than PACKET_BYTES_MAX.  If one comes nevertheless (MQTT 3.1.1 cannot ask),
only so many bytes of it are kept.  It reaches the inbox as a message that is too large, and is acknowledged; otherwise
it would come again for ever.

A look-up of the broker's name cannot be interrupted, so connecting has a thread of its own (`_Client`), which goes on
alone when the caller stops waiting, and closes what it may still open.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from merklekv.address import format_address
from merklekv.replication.stream.event import MESSAGE_BYTES_MAX
from merklekv.shortage import reason_of

KEEPALIVE_S: Final = 20
CONNECT_TIMEOUT_S: Final = 5.0  # for one address
DIAL_MAX_S: Final = 30.0  # for the name and all its addresses
DIAL_POLL_S: Final = 0.1
RECEIVE_MAX: Final = 100  # messages the broker may send before it waits for acknowledgements
PACKET_BYTES_MAX: Final = MESSAGE_BYTES_MAX + (128 << 10)  # received; the rest is for the topic and for properties
READ_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class BrokerSettings:
    """Where the broker is, and the credentials of this node."""

    host: str
    port: int
    topic_prefix: str
    node_id: str
    version: str = "5"  # or "3.1.1", which cannot tell that a publish was refused
    username: str = ""
    password: str = ""
    tls: bool = False
    tls_ca_file: str = ""  # empty: the system's certificates
    tls_cert_file: str = ""
    tls_key_file: str = ""
    session_expiry_s: int = 86_400

    @property
    def address(self) -> str:
        """For people."""
        return format_address(self.host, self.port)

    @property
    def client_id(self) -> str:
        """Names cluster and node: `merkle_kv:node-1`.  No two pairs have the same one.

        Levels of the prefix are separated by colons, since some brokers refuse a '/', and a '$', in a client id.
        """
        return ":".join(_escaped(level) for level in (*self.topic_prefix.split("/"), self.node_id))


def _escaped(level: str) -> str:
    return "".join(f"%{ord(char):02X}" if char in "%:$" else char for char in level)


class ConnectionLost(Exception):
    """The connection is gone, or could not be made; the text says why."""


class TakenOver(ConnectionLost):
    """The broker has given our session to another client with the same client id."""


class Connected(NamedTuple):
    """The broker accepted the connection."""

    session_present: bool  # the broker kept one: what it queued will come
    packet_limit: int | None
    receive_max: int  # publishes it takes before it waits


class Published(NamedTuple):
    """The answer to a publish.  An empty `refusal`: the broker has the message."""

    mid: int
    refusal: str
    too_large: bool


class Subscribed(NamedTuple):
    """The answer to a subscription."""

    refusals: list[str]


class Received(NamedTuple):
    """A message; `token` is for `acknowledge`."""

    topic: str
    payload: bytes
    retained: bool  # from before our subscription
    token: tuple[int, int]


UNSPECIFIED: Final = ReasonCode(PacketTypes.DISCONNECT, "Unspecified error")
TAKEN_OVER: Final = ReasonCode(PacketTypes.DISCONNECT, "Session taken over")

Incoming = Connected | Published | Subscribed | Received


class MqttConnection:
    """One connection.  Every method raises ConnectionLost once the connection is gone."""

    def __init__(self, broker: BrokerSettings, will_topic: str, will: bytes) -> None:
        self._broker = broker
        self.incoming: deque[Incoming] = deque()  # answers and messages, to be taken from the left
        self._lost = ""
        self._taken_over = False
        self._client = self._make_client()
        self._client.will_set(will_topic, will, qos=1, retain=True)
        self._poll = select.poll()
        self._fd = -1
        self._polled = 0

    def open(self, leave: Callable[[], bool]) -> None:
        """Connect and send CONNECT; `Connected` comes when the broker accepts.

        `leave` is asked every DIAL_POLL_S whether to stop trying.
        """
        self._client.leave = leave
        properties = None
        if self._is_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._broker.session_expiry_s
            properties.ReceiveMaximum = RECEIVE_MAX
            properties.MaximumPacketSize = PACKET_BYTES_MAX
        try:
            self._client.connect(
                self._broker.host,
                self._broker.port,
                KEEPALIVE_S,
                clean_start=False if self._is_5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
                properties=properties,
            )
        except (OSError, ValueError) as error:
            raise ConnectionLost(f"cannot connect to {self._broker.address}: {reason_of(error)}") from error
        sock = cast(socket.socket, self._client.socket())
        # A lone event, or an acknowledgement, must not wait 40 ms for the one before it to be acknowledged by TCP.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._fd = sock.fileno()

    def wait(self, timeout_s: float, wake_fd: int, reading: bool = True) -> None:
        """Sleep until something comes in, `wake_fd` is readable (it is read), or the time is over."""
        self._require_connection()
        self._client.unread = 0
        wanted = (select.POLLIN if reading else 0) | (select.POLLOUT if self._client.want_write() else 0)
        if wanted != self._polled:
            self._poll.register(self._fd, wanted)
            self._polled = wanted
        self._poll.register(wake_fd, select.POLLIN)
        for fd, event in self._poll.poll(0 if reading and self._pending() else timeout_s * 1000):
            if fd == wake_fd:
                os.eventfd_read(wake_fd)
            else:
                if event & select.POLLOUT:
                    self._client.loop_write()
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._client.loop_read()
        while reading and self._pending() and self._client.unread < READ_BYTES:
            self._client.loop_read()
        self._require_connection()

    def keep_alive(self) -> None:
        """Ping, and notice that nothing answers; called about once a second."""
        self._client.loop_misc()
        self._require_connection()

    def subscribe(self, *filters: tuple[str, int]) -> None:
        """Subscribe to (topic filter, QoS)."""
        self._check(self._client.subscribe(list(filters))[0])

    def unsubscribe(self, *filters: str) -> None:
        """Unsubscribe from these topic filters."""
        self._check(self._client.unsubscribe(list(filters))[0])

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> int:
        """Publish with QoS 1.  Returns the id that `Published` will name."""
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        self._check(info.rc)
        return info.mid

    def publish_lossy(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 0: nothing comes back."""
        self._check(self._client.publish(topic, payload, qos=0).rc)

    @property
    def is_behind(self) -> bool:
        """Predicate: does the socket take no more for now?"""
        return bool(self._client.want_write())

    def acknowledge(self, token: tuple[int, int]) -> None:
        """Acknowledge a message, so that the broker drops it."""
        self._check(self._client.ack(*token))

    def close(self) -> None:
        """Disconnect in good order: the broker does not publish the will."""
        self._client.disconnect()
        self.drop()

    def drop(self) -> None:
        """Close the socket, without DISCONNECT."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    # -- paho ----------------------------------------------------------------------------------------------------------

    @property
    def _is_5(self) -> bool:
        return self._broker.version == "5"

    def _make_client(self) -> _Client:
        broker = self._broker
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if self._is_5 else MQTTProtocolVersion.MQTTv311,
            clean_session=None if self._is_5 else False,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # the window is the caller's
        client.suppress_exceptions = True  # ours only append; what paho does wrong must not end the loop either
        if broker.username:
            client.username_pw_set(broker.username, broker.password or None)
        if broker.tls:  # the files as they are now: they may have been renewed
            try:
                context = ssl.create_default_context(cafile=broker.tls_ca_file or None)
                if broker.tls_cert_file:
                    context.load_cert_chain(broker.tls_cert_file, broker.tls_key_file or None, password=lambda: "")
            except OSError as error:
                raise ConnectionLost(f"TLS files cannot be used: {error}") from error
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _pending(self) -> bool:
        """Predicate: has TLS decrypted more than was read?  poll does not see that."""
        sock = self._client.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _require_connection(self) -> None:
        if self._lost or self._client.socket() is None:
            raise self._loss("the connection is lost")

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._loss(paho.error_string(code))

    def _loss(self, reason: str) -> ConnectionLost:
        """The error to raise; `reason` if no other is known."""
        self._lost = self._lost or reason
        return TakenOver(self._lost) if self._taken_over else ConnectionLost(self._lost)

    def _on_connect(
        self, client: paho.Client, _: Any, flags: paho.ConnectFlags, reason: ReasonCode, given: Properties | None
    ) -> None:
        if reason.is_failure:
            self._lost = f"the broker at {self._broker.address} refuses us: {reason}"
            return
        limit = cast("int | None", getattr(given, "MaximumPacketSize", None))
        receive_max = cast(int, getattr(given, "ReceiveMaximum", 65_535))
        self.incoming.append(Connected(flags.session_present, limit, receive_max))

    def _on_disconnect(
        self, client: paho.Client, _: Any, flags: paho.DisconnectFlags, reason: ReasonCode, given: Properties | None
    ) -> None:
        self._taken_over = reason == TAKEN_OVER
        who = "the broker ended the connection" if flags.is_disconnect_packet_from_server else "the connection is lost"
        self._lost = self._lost or (who if reason == UNSPECIFIED else f"{who}: {reason}")

    def _on_publish(self, client: paho.Client, _: Any, mid: int, reason: ReasonCode, given: Properties | None) -> None:
        if cast(_Client, client).is_writing:
            return  # a publish with QoS 0 has left; its id may be that of another publish in flight
        refusal = str(reason) if reason.is_failure else ""
        self.incoming.append(Published(mid, refusal, refusal == "Packet too large"))

    def _on_subscribe(
        self, client: paho.Client, _: Any, mid: int, reasons: list[ReasonCode], given: Properties | None
    ) -> None:
        self.incoming.append(Subscribed([str(reason) for reason in reasons if reason.is_failure]))

    def _on_message(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        token = (message.mid, message.qos)
        cast(_Client, client).unread += len(message.payload)
        self.incoming.append(Received(_text(message), bytes(message.payload), bool(message.retain), token))


def _text(message: paho.MQTTMessage) -> str:
    """The topic; one that is not UTF-8, which the protocol forbids, as one that is of no cluster."""
    try:
        return message.topic
    except UnicodeDecodeError:
        return ""


class _Client(paho.Client):
    """paho's client, with bounds on its waits and on what it keeps of a packet."""

    leave: Callable[[], bool]  # asked whether to give up connecting
    is_writing = False
    unread = 0  # bytes of messages since the last wait; much of it has to be taken away first

    def _create_socket(self) -> Any:
        """The socket, connected and secured by a thread that is left alone if it takes too long."""
        create = super()._create_socket
        dialed: Future[Any] = Future()

        def dial() -> None:
            try:
                dialed.set_result(create())
            except BaseException as error:  # noqa: BLE001  raised in the thread that waits
                dialed.set_exception(error)

        threading.Thread(target=dial, name="replication-dial", daemon=True).start()
        deadline = time.monotonic() + DIAL_MAX_S
        while not wait([dialed], DIAL_POLL_S).done:
            if self.leave() or time.monotonic() > deadline:
                dialed.add_done_callback(_close_dialed)
                raise TimeoutError(f"no connection within {DIAL_MAX_S:.0f} s")
        return dialed.result()

    def _packet_write(self) -> MQTTErrorCode:
        self.is_writing = True
        try:
            return super()._packet_write()
        finally:
            self.is_writing = False

    def _packet_read(self) -> MQTTErrorCode:
        return super()._packet_read() if self.unread < READ_BYTES else MQTTErrorCode.MQTT_ERR_AGAIN

    def _sock_recv(self, size: int) -> bytes:
        """What has arrived, of `size` bytes; of a packet that is too large all behind PACKET_BYTES_MAX is skipped."""
        data = super()._sock_recv(min(size, READ_BYTES))
        packet = self._in_packet
        if packet["remaining_length"] > PACKET_BYTES_MAX:
            del packet["packet"][PACKET_BYTES_MAX:]
        return data


def _close_dialed(dialed: Future[Any]) -> None:
    if dialed.exception() is None:
        dialed.result().close()
