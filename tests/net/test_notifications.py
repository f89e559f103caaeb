"""Keyspace notifications: against a real Redis, of writes from elsewhere, and what is not told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fixtures.servers import Start, StartedServer
from fixtures.support import no_room, wait_until
from fixtures.wire import Wire, encode, readable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.engine.format import OPS
from merklekv.net import limits
from merklekv.net.notifications import EVENTS, normalized

Connect = Callable[..., Wire]

NAME = "notify-keyspace-events"
END = b"the end of the test"


@given(st.text("AKEg$lshzxetdmnq ", max_size=8))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_flags_are_those_of_redis(server: StartedServer, redis_address: tuple[str, int], flags: str) -> None:
    replies = []
    for address in (server.address, redis_address):
        with Wire(address) as wire:
            replies.append((wire.call("CONFIG", "SET", NAME, flags), wire.call("CONFIG", "GET", NAME)))
            wire.call("CONFIG", "SET", NAME, "")
    assert replies[0] == replies[1]


def listen(address: tuple[str, int], stack: ExitStack, flags: str) -> tuple[Wire, Wire]:
    """A client, and a subscriber to all notifications."""
    client, subscriber = (stack.enter_context(Wire(address)) for _ in range(2))
    client.call("FLUSHALL")
    assert client.call("CONFIG", "SET", NAME, flags) == b"+OK\r\n"
    subscriber.call("PSUBSCRIBE", "__key*")
    return client, subscriber


def told(client: Wire, subscriber: Wire) -> list[bytes]:
    """All notifications up to now."""
    client.call("SET", END, "")
    heard = []
    while END not in (message := subscriber.resp()):
        heard.append(message)
    subscriber.send(encode("PING"))  # behind the rest of the end
    while b"pong" not in subscriber.resp():
        pass
    return heard


keys = st.sampled_from(["a", "b"])
values = st.sampled_from(["", "7", "text"])
requests = st.one_of(
    st.tuples(st.sampled_from(["SET", "GETSET", "SETNX", "APPEND"]), keys, values),
    st.tuples(st.just("SET"), keys, values, st.sampled_from(["NX", "XX", "GET"])),
    st.tuples(st.just("SET"), keys, values, st.sampled_from(["EX", "EXAT"]), st.just("99999999999")),
    st.tuples(st.sampled_from(["SETEX", "PSETEX"]), keys, st.just("1000000"), values),
    st.tuples(st.sampled_from(["DEL", "UNLINK", "MGET", "EXISTS", "TOUCH"]), keys, keys),
    st.tuples(st.sampled_from(["INCR", "DECR", "GET", "GETDEL", "PERSIST", "TTL", "STRLEN", "DEL", "TYPE"]), keys),
    st.tuples(st.sampled_from(["INCRBY", "DECRBY", "INCRBYFLOAT"]), keys, st.sampled_from(["5", "-1"])),
    st.tuples(st.sampled_from(["RENAME", "RENAMENX", "COPY"]), keys, keys),
    st.tuples(st.just("SETRANGE"), keys, st.sampled_from(["0", "3"]), values),
    st.tuples(st.just("SETBIT"), keys, st.sampled_from(["0", "9"]), st.sampled_from(["0", "1"])),
    st.tuples(st.just("BITOP"), st.just("NOT"), keys, keys),
    st.tuples(st.sampled_from(["MSET", "MSETNX"]), keys, values, keys, values),
    st.tuples(st.sampled_from(["EXPIRE", "PEXPIRE"]), keys, st.sampled_from(["9999999", "0", "-1"])),
    st.tuples(st.just("GETEX"), keys, st.sampled_from(["PERSIST", "EX"]), st.just("1000")),
    st.tuples(st.just("GETEX"), keys, st.just("PERSIST")),
)


@given(st.lists(requests, max_size=15), st.sampled_from(["KEA", "Kg", "E$", "KE$x", "K", "g$"]), st.booleans())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_are_those_of_redis(
    server: StartedServer,
    redis_address: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
    done: list[tuple[str, ...]],
    flags: str,
    in_transaction: bool,
) -> None:
    for place in ("limits.SLICE_S", "notifications.SLICE_MAX_S"):  # a change is told before the next request, whole
        monkeypatch.setattr(f"merklekv.net.{place}", 3600.0)
    heard = []
    for address in (server.address, redis_address):
        with ExitStack() as stack:
            client, subscriber = listen(address, stack, flags)
            for request in [("MULTI",), *done, ("EXEC",)] if in_transaction else done:
                client.call(*request)
            client.call("CONFIG", "SET", NAME, "KEA")
            heard.append(told(client, subscriber))
            client.call("CONFIG", "SET", NAME, "")
    assert heard[0] == heard[1]


@pytest.fixture
def heard(server: StartedServer) -> Iterator[tuple[Wire, Wire]]:
    with ExitStack() as stack:
        yield listen(server.address, stack, "KEA")


def message(channel: str, payload: str) -> bytes:
    return encode("pmessage", "__key*", channel, payload)


def of_key(key: str, event: str) -> list[bytes]:
    return [message(f"__keyspace@0__:{key}", event), message(f"__keyevent@0__:{event}", key)]


def test_what_is_not_of_a_client_is_told_as_well(heard: tuple[Wire, Wire], engine: Engine) -> None:
    """A write of another thread, as that of another node is merged; our own operation; a truncation."""
    client, subscriber = heard
    engine.set(b"k", b"v")
    engine.commit()
    client.call("PREPEND", "k", "x")
    assert told(client, subscriber) == of_key("k", "set") + of_key("k", "prepend")
    client.call("FLUSHALL")
    assert told(client, subscriber) == [message("__keyevent@0__:truncate", "")]


def test_what_is_rolled_back_is_not_told(heard: tuple[Wire, Wire]) -> None:
    client, subscriber = heard
    with no_room():
        assert client.call("SET", "lost", "v").startswith(b"-")
    assert told(client, subscriber) == []


@pytest.mark.parametrize("flags", ["KEA", "KEx"])
def test_keys_expire(server: StartedServer, flags: str) -> None:
    with ExitStack() as stack:
        client, subscriber = listen(server.address, stack, flags)
        client.call("SET", "k", "v", "PX", "30")
        expected = of_key("k", "set") + of_key("k", "expire") if flags == "KEA" else []
        expected += of_key("k", "expired")
        assert [subscriber.resp() for _ in expected] == expected
        client.call("CONFIG", "SET", NAME, "KEg")
        assert server.context.engine.expirer.on_expired is None


def test_a_burst_is_told_whole_and_in_order(heard: tuple[Wire, Wire]) -> None:
    client, subscriber = heard
    count = 3000
    client.send(b"".join(encode("SET", f"k{number}", "v") for number in range(count)))
    for _ in range(count):
        client.resp()
    expected = [one for number in range(count) for one in of_key(f"k{number}", "set")]
    assert told(client, subscriber) == expected


def test_a_lack_of_memory_does_not_end_them(
    server: StartedServer, heard: tuple[Wire, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, subscriber = heard
    pubsub = server.context.pubsub
    failed: list[object] = []

    def fail(*arguments: object) -> None:
        failed.append(arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pubsub, "deliver", fail)
        client.call("SET", "a", "1")
        wait_until(lambda: failed)
    client.call("SET", "b", "1")
    assert any(b"b" in one for one in told(client, subscriber))


def test_nothing_is_read_while_nothing_is_wanted(server: StartedServer, connect: Connect) -> None:
    """Switched on and off and on: one reader, and what was committed meanwhile is not told."""
    wire, subscriber = connect(), connect()
    subscriber.call("PSUBSCRIBE", "__key*")
    feed = server.context.engine.feed
    for _ in range(3):
        wire.call("SET", "untold", "v")
        wire.call("CONFIG", "SET", NAME, "E$")
        wire.call("CONFIG", "SET", NAME, "")
        wire.call("CONFIG", "SET", NAME, "E$")
        wire.call("SET", "told", "v")
        assert subscriber.resp() == message("__keyevent@0__:set", "told")
        wire.call("CONFIG", "SET", NAME, "")
        wait_until(lambda: not feed.has_waiting)
    assert not readable(subscriber)


@pytest.mark.parametrize("workers", [1, 3])
def test_subscribers_of_all_workers_are_told(start: Start, connect: Connect, workers: int) -> None:
    server = start(threads=workers)
    wires = [connect(server) for _ in range(2 * workers)]
    for wire in wires:
        wire.call("SUBSCRIBE", "__keyspace@0__:k")
    client = connect(server)
    client.call("CONFIG", "SET", NAME, "KEA")
    for number in range(20):
        client.call("INCR", "k")
        for wire in wires:
            assert wire.resp() == encode("message", "__keyspace@0__:k", "incrby"), number


def test_a_server_may_begin_with_them(start: Start, connect: Connect) -> None:
    server = start()
    server.stop(deadline_s=5)
    server.context.notifications.set("Kx$")
    host, port = server.start()
    server.address = (host, port)
    wire, subscriber = connect(server), connect(server)
    assert wire.call("CONFIG", "GET", NAME) == encode(NAME, "$xK")
    subscriber.call("PSUBSCRIBE", "*")
    wire.call("SET", "k", "v")
    assert subscriber.resp() == encode("pmessage", "*", "__keyspace@0__:k", "set")


def test_each_operation_of_the_log_has_an_event() -> None:
    assert EVENTS.keys() == {op.name for op in OPS.values()}


def test_the_longest_key_fits_a_channel() -> None:
    assert len("__keyspace@0__:") + 511 <= limits.SUBSCRIPTION_BYTES_MAX


def test_a_letter_that_is_no_flag() -> None:
    with pytest.raises(ValueError, match="q"):
        normalized("Kq")
