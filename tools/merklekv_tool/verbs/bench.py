"""`merklekv bench`: a quick load against a node, for a first look at its rate and latency.

`load_generator` says how it measures. To compare servers, use one tool on all of them (benchmarks/README.md of the
sources).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import typer

from merklekv.errors import InvalidArgument
from merklekv.output import counted, require_number
from merklekv_tool.arguments import DEFAULT_NODE, AsJson, NodeName
from merklekv_tool.output import say_result

EXAMPLES: Final = """
Examples:

    merklekv bench 127.0.0.1:7379
    merklekv bench 127.0.0.1:7379 --load mixed --clients 100 --seconds 10
    merklekv bench 127.0.0.1:7379 --load get --pipeline 16 --value-size 1000 --json
"""
CLIENTS_MAX: Final = 1000
PIPELINE_MAX: Final = 1000
SECONDS_MAX: Final = 3600.0
VALUE_SIZE_MAX: Final = 1 << 20
KEYS_MAX: Final = 1_000_000
PERCENTILES: Final = (50, 95, 99)


def bench(
    node: NodeName = DEFAULT_NODE,
    load: Annotated[
        Literal["set", "get", "mixed"], typer.Option("--load", metavar="set|get|mixed", help="Mixed is half and half.")
    ] = "mixed",
    clients: Annotated[
        int, typer.Option("--clients", "-c", metavar="N", min=1, max=CLIENTS_MAX, help="Connections.")
    ] = 50,
    pipeline: Annotated[
        int,
        typer.Option("--pipeline", "-P", metavar="N", min=1, max=PIPELINE_MAX, help="Requests a client sends at once."),
    ] = 1,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            "-s",
            metavar="SECONDS",
            min=0.1,
            max=SECONDS_MAX,
            callback=require_number,
            help="How long.",
        ),
    ] = 5.0,
    value_size: Annotated[
        int, typer.Option("--value-size", "-d", metavar="BYTES", min=0, max=VALUE_SIZE_MAX, help="Bytes of a value.")
    ] = 100,
    keys: Annotated[
        int, typer.Option("--keys", metavar="N", min=1, max=KEYS_MAX, help="How many different keys.")
    ] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Put a quick load on a node: requests a second and latency percentiles."""
    from merklekv_tool.load_generator import BATCH_BYTES_MAX, Load, run
    from merklekv_tool.source.open import node_address

    if pipeline * value_size > BATCH_BYTES_MAX:
        raise InvalidArgument(
            f"--pipeline {pipeline} of --value-size {value_size}: more than {BATCH_BYTES_MAX} bytes at once"
        )
    latencies, elapsed_s = run(node_address(node), Load(load, clients, pipeline, seconds, value_size, keys))
    result: dict[str, Any] = {
        "node": node,
        "load": load,
        "clients": clients,
        "pipeline": pipeline,
        "value_size": value_size,
        "keys": keys,
        "seconds": round(elapsed_s, 3),
        "requests": latencies.count,
        "requests_per_second": round(latencies.count / elapsed_s, 1),
        "latency_ms": {f"p{percent}": _ms(latencies.percentile(percent)) for percent in PERCENTILES}
        | {"max": _ms(latencies.max_s)},
    }
    text = (
        f"{load}, {counted(clients, 'client')}, pipeline {pipeline}, "
        f"values of {counted(value_size, 'byte')}, {counted(keys, 'key')}\n"
        f"{result['requests_per_second']:,.0f} requests a second: {latencies.count:,} in {result['seconds']} s\n"
        "latency " + ", ".join(f"{name} {value} ms" for name, value in result["latency_ms"].items())
    )
    say_result(result, text, as_json)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
