"""`deploy/prometheus.yml`, the alerts and the dashboard: against promtool, what is declared, and a real cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.cluster import HEALING, ReplicationTestHarness
from fixtures.support import free_port, wait_until
from fixtures.web import DEPLOY, Prometheus, ask, promtool

from merklekv.metrics import PARTS, declared
from merklekv.web.metrics import full_name

DASHBOARD = DEPLOY / "grafana" / "merklekv.json"
NAME = re.compile(r"\bmerklekv_\w+")
RANGE = "10s"  # for $__rate_interval: several times the interval of the test's scrapes
# Of these there is only something to see in trouble.
TROUBLE = {"Not ready because", "Threads that wait", "Refused, dropped, missed"}


def names() -> set[str]:
    """All names that a query may use."""
    found = set()
    for part in PARTS:
        for name, metric in declared(part).items():
            full = full_name(name, metric)
            found |= {f"{full}_{end}" for end in ("bucket", "count", "sum")} if metric.kind == "histogram" else {full}
    return found


def targets() -> list[tuple[str, str]]:
    """The title and the expression of everything in the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def rules() -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    return found


def test_promtool_takes_them_and_each_alert_fires_for_its_trouble_alone() -> None:
    promtool("check", "config", DEPLOY / "prometheus.yml")
    promtool("check", "rules", DEPLOY / "alerts.yml")
    promtool("test", "rules", DEPLOY / "alerts_test.yml")


def test_each_alert_says_how_bad_it_is_and_what_to_do_and_is_tested() -> None:
    tests = (DEPLOY / "alerts_test.yml").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "$labels.instance" in rule["annotations"]["summary"]
        assert f'alertname="{rule["alert"]}"' in tests


def test_queries_use_what_is_declared() -> None:
    declared_names = names()
    for expression in (*(rule["expr"] for rule in rules()), *(expression for _, expression in targets())):
        assert set(NAME.findall(expression)) <= declared_names, expression


@pytest.fixture
def ports(harness: ReplicationTestHarness) -> list[int]:
    """The HTTP ports of three nodes that replicate and exchange."""
    found = [free_port() for _ in range(3)]
    for port in found:
        harness.create_node("", *HEALING, "--set", f"http_port={port}")
    for node in harness.nodes:
        node.wait_figure("replication_nodes", 3)
    return found


@pytest.fixture
def prometheus(ports: list[int], tmp_path: Path) -> Iterator[Prometheus]:
    made = Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{port}" for port in ports])
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.mark.slow
@pytest.mark.replication
def test_a_prometheus_sees_a_cluster(prometheus: Prometheus, harness: ReplicationTestHarness, ports: list[int]) -> None:
    for number, node in enumerate(harness.nodes):
        node.set_many({f"{number}:{one}": "v" * 100 for one in range(500)})
    harness.wait_converged()
    for port in ports:
        wait_until(lambda port=port: ask(port, "/readyz")[:2] == (200, "ready\n"))
        promtool("check", "metrics", stdin=ask(port, "/metrics")[1])
    wait_until(lambda: len(prometheus.query("merklekv_ready == 1")) == 3, what="three nodes that are ready")

    seen: dict[str, bool] = {}
    for title, expression in targets():
        seen[title] = bool(_asked(prometheus, expression)) or seen.get(title, False)
    for title in (title for title in seen if not seen[title] and title not in TROUBLE):  # rates need some scrapes
        wanted = [expression for of, expression in targets() if of == title]
        wait_until(lambda wanted=wanted: any(_asked(prometheus, one) for one in wanted), what=f"data of {title}")

    sets = 'sum(merklekv_commands_by_group_total{group="set"})'
    wait_until(lambda: [value for _, value in prometheus.query(sets)] == [1500.0])
    wait_until(
        lambda: [rule["health"] for rule in prometheus.get("rules")["groups"][0]["rules"]] == ["ok"] * len(rules())
    )
    assert prometheus.query('ALERTS{alertstate="firing"}') == []


def _asked(prometheus: Prometheus, expression: str) -> list[tuple[Mapping[str, str], float]]:
    """What Grafana would show now."""
    for name, value in (("$__rate_interval", RANGE), ("$instance", ".*"), ("$job", "merklekv")):
        expression = expression.replace(name, value)
    assert "$" not in expression
    return prometheus.query(expression)
