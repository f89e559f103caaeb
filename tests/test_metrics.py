"""Metrics: declared once, reported as declared, and read back as they were shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.node import NodeFactory
from fixtures.support import free_port, wait_until

from merklekv.harness.process import setting_flags
from merklekv.metrics import PARTS, Metric, ReplicationCounters, declared, parse, total, values_of

ROOT = Path(__file__).parent.parent
ALL = [(name, metric) for part in PARTS for name, metric in declared(part).items()]


def test_no_name_is_declared_twice() -> None:
    names = [name for name, _ in ALL]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(("name", "metric"), ALL, ids=[name for name, _ in ALL])
def test_a_name_tells_its_unit(name: str, metric: Metric) -> None:
    assert not metric.unit or metric.unit in name.split("_")


def test_a_running_node_reports_what_is_declared_and_nothing_else(node_factory: NodeFactory) -> None:
    peer = f"127.0.0.1:{free_port()}"
    settings = {
        "replication.enabled": "true",
        "replication.mqtt_broker": "127.0.0.1",
        "replication.mqtt_port": str(free_port()),
        "anti_entropy.peer_list": peer,
    }
    node = node_factory(*setting_flags(settings))
    with node.connect() as client:
        wait_until(lambda: total(parse("\r\n".join(client.ask_lines("STATS all"))), "exchange_failures"))
        for request in ("STATS all", "INFO"):
            reported = parse("\r\n".join(client.ask_lines(request)))
            groups = {name for name in reported if name.endswith("_commands") and name != "total_commands"}
            names = {name.partition("{")[0] for name in reported} - groups
            assert names <= {name for name, _ in ALL}
            never = {"peer_last_success_ms", "member_lag_ms"}  # this peer does not answer, and there is no broker
            never |= {"checkpoint_age_s"} | {name for name, metric in ALL if metric.kind == "histogram"}
            others = {"replication_gaps", "publishes_refused", "refused_events", "refused_record", "pubsub_unsent"}
            origins = {name for name, _ in ALL if name.startswith("origin_")}
            assert {name for name, _ in ALL} - {"commands_by_group"} - names == never | others | origins
            assert f'peer_error{{peer="{peer}"}}' in reported
            assert reported["ready"] == "0"
            assert 'not_ready{reason="broker"}' in reported


@pytest.mark.parametrize("label", ["node-2", "[::1]:7379", 'a"b', "a\\", 'a\\"b', "}:", '"}:', "küche"])
def test_what_is_shown_is_read_back(label: str) -> None:
    shown = Metric("info", "", label="node").shown_name("name", label)
    reply = f'STATS\r\n{shown}:a:b}}"\r\nplain:1\r\nEND'
    assert parse(reply) == {shown: 'a:b}"', "plain": "1"}


def test_labels_are_sorted() -> None:
    counters = ReplicationCounters()
    counters.refused_events.update(["stable", "clock", "range"])
    names = [name for name in values_of(counters) if name.startswith("refused_events")]
    assert names == [f'refused_events{{reason="{reason}"}}' for reason in ("clock", "range", "stable")]


def test_a_label_may_be_new_while_they_are_shown() -> None:
    counters = ReplicationCounters()

    class Label(str):
        def replace(self, *words: object) -> str:
            counters.refused_events["new"] += 1  # as another thread does it
            return str(self)

    counters.refused_events.update([Label("clock"), "range"])
    assert values_of(counters)['refused_events{reason="range"}'] == 1


def test_a_total_is_over_the_label() -> None:
    values = {'a{node="x"}': "1", 'a{node="y"}': "2", "ab": "5"}
    assert (total(values, "a"), total(values, 'a{node="x"}'), total(values, "ab"), total(values, "b")) == (3, 1, 5, 0)


def test_the_protocol_page_has_the_metrics_as_they_are_declared() -> None:
    command: list[str | Path] = [sys.executable, ROOT / "scripts" / "write_metrics.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
