"""/metrics: all that is declared, under the names and in the units of Prometheus, with the values of STATS."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from fixtures.node import NodeFactory
from fixtures.support import free_port
from fixtures.web import ask, promtool
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from merklekv.harness.process import setting_flags
from merklekv.histogram import Histogram
from merklekv.metrics import PARTS, ClientMetrics, Metric, ReplicationMetrics, declared, values_of
from merklekv.web.metrics import LIMITS, family_name, full_name, handler
from merklekv.web.server import Request, Response

UNITS = {"s": 1, "ms": 10**3, "ns": 10**9, "kb": 1 / 1024, "percent": 100}
AWKWARD = 'a"b\\c\n\udc80'
ALL = {name: metric for part in PARTS for name, metric in declared(part).items() if not metric.for_people}


def some(part: type[Any]) -> Any:
    """A part with a value of its own for each metric."""
    return part(**{one.name: _value(number, one.name, part) for number, one in enumerate(fields(part), 1)})


def _value(number: int, name: str, part: type[Any]) -> Any:
    metric = declared(part)[name]
    if metric.kind == "histogram":
        plain: Any = Histogram()
        plain.observe(number / 1000, number)
    else:
        plain = f"text {number}" if metric.kind == "info" else 1_000_003 * number
    return {"one": plain, AWKWARD: plain} if metric.label else plain


def page(*parts: object) -> str:
    answer = handler(lambda: parts)(Request("/metrics"))
    assert isinstance(answer, Response)
    return answer.body.decode()


def families(text: str) -> dict[str, Family]:
    return {one.name: one for one in text_string_to_metric_families(text)}


@pytest.mark.parametrize("part", PARTS)
def test_each_value_is_the_one_of_stats(part: type[Any]) -> None:
    filled = some(part)
    text = page(filled)
    promtool("check", "metrics", stdin=text)
    found, stats = families(text), values_of(filled)
    for name, metric in declared(part).items():
        if metric.for_people:
            continue
        assert f"# HELP {full_name(name, metric)} " in text
        assert f"# TYPE {full_name(name, metric)} " in text
        for label in ("one", AWKWARD) if metric.label else ("",):
            if metric.kind != "histogram":
                _check_value(found, name, metric, label, stats[metric.shown_name(name, label)])


def _check_value(found: dict[str, Family], name: str, metric: Metric, label: str, value: Any) -> None:
    labels = {metric.label: label.replace("\n", "\\n").replace("\udc80", "\\udc80")} if metric.label else {}
    if metric.kind == "info":
        labels, value = labels | {name: value}, 1
    family = found[family_name(name, metric) + ("_info" if metric.kind == "info" else "")]
    samples = {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
    assert samples[tuple(sorted(labels.items()))] == value / UNITS.get(metric.unit, 1)


def test_buckets_are_cumulative_and_the_last_one_is_the_count() -> None:
    part = next(part for part in PARTS if "commit_seconds" in declared(part))
    filled = some(part)
    for number in range(40):
        filled.commit_seconds.observe((1 << number) / 10**6)
    samples = families(page(filled))["merklekv_commit_seconds"].samples
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    assert [float(sample.labels["le"]) for sample in buckets[:-1]] == [(1 << one) / 10**6 for one in range(LIMITS)]
    assert buckets[-1].labels["le"] == "+Inf"
    counts = [sample.value for sample in buckets]
    assert counts == sorted(counts)
    rest = {sample.name.rpartition("_")[2]: sample.value for sample in samples if sample not in buckets}
    assert rest == {"count": counts[-1], "sum": pytest.approx(filled.commit_seconds.seconds)}
    assert counts[-1] == filled.commit_seconds.count


def test_what_is_not_known_has_no_value() -> None:
    text = page(ClientMetrics(1, "1 s", 2, 3, 4, {}, 5), ReplicationMetrics("connected", "", 1, 0, 0, 0, 0, 0, 0))
    assert "replication_state_info{" in text
    assert "replication_detail_info{" not in text, "an empty text says nothing"
    assert "merklekv_uptime_info" not in text, "it would be a new series each second"


def test_all_names_differ_and_have_no_unit_but_those_of_prometheus() -> None:
    names = [full_name(name, metric) for name, metric in ALL.items()]
    assert sorted(set(names)) == sorted(names)
    assert not {word for name in names for word in name.split("_")} & {"s", "ms", "ns", "us", "kb", "percent", "unix"}


def test_a_node_reports_what_is_declared(node_factory: NodeFactory) -> None:
    port = free_port()
    settings = {
        "http_port": port,
        "replication.enabled": "true",
        "replication.mqtt_broker": "127.0.0.1",
        "replication.mqtt_port": free_port(),
    }
    node = node_factory(*setting_flags(settings))
    with node.connect() as client:
        client.ask("SET k v")
    status, text, kind = ask(port, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    promtool("check", "metrics", stdin=text)
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")} == {
        full_name(name, metric) for name, metric in ALL.items()
    }
    assert 'merklekv_command_seconds_count{command="set"} 1.0' in text
