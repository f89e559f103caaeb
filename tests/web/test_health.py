"""/livez and /readyz, and what they are about: workers that answer, and reasons to send clients elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.broker import BrokerFactory
from fixtures.node import NodeFactory
from fixtures.servers import StartedServer
from fixtures.support import free_port, wait_until
from fixtures.web import ask

from merklekv.engine.engine import Engine
from merklekv.harness.process import setting_flags
from merklekv.web.health import alive, ready
from merklekv.web.server import Request, Response

ASKED = Request("/")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "data", durability="never", checkpoint="manual")
    yield engine
    engine.close()


def test_a_worker_that_hangs_is_not_alive(engine: Engine) -> None:
    server = StartedServer(engine, port=0, threads=2)
    go_on = threading.Event()

    def hang() -> None:
        go_on.wait(60)

    try:
        assert server.answers(60)
        server.workers[1].call_soon(hang)
        assert not server.answers(0.01)
        assert not server.answers(0.01), "also when it is asked again"
        waiting = len(server.workers[1]._calls.waiting)
        for _ in range(5):
            server.answers(0)
        assert len(server.workers[1]._calls.waiting) == waiting, "a monitor does not pile calls up"
        go_on.set()
        assert server.answers(60)
    finally:
        go_on.set()
        server.stop()


def test_the_answers() -> None:
    assert alive(lambda seconds: True)(ASKED) == Response(b"ok\n")
    hung = alive(lambda seconds: False)(ASKED)
    assert isinstance(hung, Response)
    assert (hung.status, hung.body) == (503, b"a thread that serves clients has not answered for 30 seconds\n")
    assert ready(dict)(ASKED) == Response(b"ready\n")
    unready = ready(lambda: {"broker": "no route", "disk": "/d\udc80: full"})(ASKED)
    assert isinstance(unready, Response)
    assert (unready.status, unready.body) == (503, b"broker: no route\ndisk: /d\\udc80: full\n")


def test_a_node_is_ready_once_it_has_a_broker_and_without_one_if_it_shall_have_none(
    node_factory: NodeFactory, broker_factory: BrokerFactory
) -> None:
    port, broker = free_port(), broker_factory(start=False)
    settings = {
        "http_port": port,
        "replication.enabled": "true",
        "replication.mqtt_broker": broker.host,
        "replication.mqtt_port": broker.port,
    }
    node = node_factory(*setting_flags(settings))
    assert ask(port, "/livez")[:2] == (200, "ok\n")
    status, text, kind = ask(port, "/readyz")
    assert (status, kind) == (503, "text/plain; charset=utf-8")
    assert text.startswith(f"broker: not connected to the broker at {broker.host}:{broker.port}")
    broker.start()
    wait_until(lambda: ask(port, "/readyz")[:2] == (200, "ready\n"))
    with node.connect() as client:
        lines = client.ask_lines("STATS all")
        assert "ready:1" in lines
        assert not [line for line in lines if line.startswith("not_ready")]
        assert client.ask("REPLICATE disable") == "OK"
    broker.stop()
    wait_until(lambda: ask(port, "/readyz")[0] == 200)
