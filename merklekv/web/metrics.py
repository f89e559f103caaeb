"""/metrics: what the node reports, in the text format of Prometheus.

The names are those of STATS with `merklekv_` before them, in the units of Prometheus: `outbox_oldest_ms` becomes
`merklekv_outbox_oldest_seconds`. A counter ends in `_total`. Text becomes the label of an `_info` metric. Only here are
there histograms.

Cost: 10 us for a value, 150 us for a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock
from typing import Any, Final

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector, CollectorRegistry

from merklekv.metrics import Metric, declared
from merklekv.output import printable
from merklekv.web.server import Handler, Response

PREFIX: Final = "merklekv_"
# The unit that Prometheus wants, and how many of ours are one of these.
_UNITS: Final = {
    "s": ("seconds", 1),
    "ms": ("seconds", 10**3),
    "ns": ("seconds", 10**9),
    "unix": ("seconds", 1),
    "kb": ("bytes", 1 / 1024),
    "percent": ("ratio", 100),
}
_ENDS: Final = {"counter": "_total", "info": "_info"}
LIMITS: Final = 25  # of buckets: 1 us to 16.8 s
_SHOWN_LIMITS: Final = [*(str((1 << number) / 10**6) for number in range(LIMITS)), "+Inf"]

Parts = Callable[[], Iterable[object]]


def family_name(name: str, metric: Metric) -> str:
    """The name of a metric here, without the end that its kind gives it."""
    words = name.removeprefix("total_").split("_")
    unit = _UNITS.get(metric.unit, (metric.unit, 1))[0]
    return PREFIX + "_".join(unit if metric.unit and word == metric.unit else word for word in words)


def full_name(name: str, metric: Metric) -> str:
    """The name that queries use: of a histogram the one before `_bucket`, `_count` and `_sum`; empty if it has none."""
    return "" if metric.for_people else family_name(name, metric) + _ENDS.get(metric.kind, "")


def handler(parts: Parts) -> Handler:
    """Answers with the metrics of these parts of `merklekv.metrics`, as they are then."""
    registry = CollectorRegistry()
    registry.register(_Parts(parts))
    turn = Lock()  # many threads that compute would keep those that serve clients waiting

    def metrics(request: object) -> Response:
        with turn:
            return Response(generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)

    return metrics


class _Parts(Collector):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def describe(self) -> Iterator[Family]:
        """Nothing: no other collector could have the same names."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        for part in self._parts():
            for name, metric in declared(type(part)).items():
                if not metric.for_people:
                    yield _family(name, metric, getattr(part, name))


def _family(name: str, metric: Metric, value: Any) -> Family:
    """A metric with its values; without any if it is not known now."""
    labels = [metric.label] if metric.label else []
    values: Mapping[str, Any] = dict(value) if metric.label else {"": value} if value is not None else {}
    made: Family = _KINDS[metric.kind](family_name(name, metric), metric.meaning, labels=labels)
    for label, one in values.items():
        _add(made, name, metric, [printable(label)] if metric.label else [], one)
    return made


_KINDS: Final[Mapping[str, Callable[..., Any]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "info": InfoMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _add(made: Any, name: str, metric: Metric, labels: list[str], value: Any) -> None:
    if metric.kind == "histogram":
        made.add_metric(labels, list(zip(_SHOWN_LIMITS, value.below(LIMITS), strict=True)), value.seconds)
    elif metric.kind == "info":
        if value:
            made.add_metric(labels, {name: printable(value)})
    else:
        made.add_metric(labels, value / _UNITS.get(metric.unit, ("", 1))[1])
