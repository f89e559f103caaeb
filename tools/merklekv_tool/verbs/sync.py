"""`merklekv sync`: makes a node exchange with another one, or with all its peers, now.

Nodes exchange by themselves every minute. This does not wait, and says what went wrong. An exchange goes both ways:
afterwards both nodes have the newer record of every key, but for what is written meanwhile.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from merklekv.errors import InvalidArgument
from merklekv.metrics import by_label
from merklekv.output import counted
from merklekv_tool.arguments import DEFAULT_NODE, AsJson, NodeName
from merklekv_tool.exit_codes import EXIT_NODE
from merklekv_tool.output import note, progress, say_result

if TYPE_CHECKING:
    from merklekv_tool.source.node import Node

EXAMPLES: Final = """
Examples:

    merklekv sync
    merklekv sync 10.0.0.5:7379
    merklekv sync 10.0.0.5:7379 10.0.0.6:7379 --verify

Without PEER the node exchanges with all peers that it knows and that are not offline, one after the other. PEER is an
address that the node can reach: 127.0.0.1 is the machine of the node.
"""
EXCHANGE_S: Final = 3600.0  # the longest that one may take


def sync(
    node: NodeName = DEFAULT_NODE,
    peer: Annotated[
        str | None,
        typer.Argument(metavar="[PEER]", help="Another node, HOST:PORT; without it all that the node knows."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare all records, not only where the trees differ.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare once more at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a node exchange with a peer now, or with all its peers."""
    from merklekv.address import format_address, parse_node
    from merklekv.net.client import NodeError
    from merklekv_tool.source.open import open_node

    began = time.monotonic()
    failed = []
    with open_node(node, EXCHANGE_S) as opened:
        named = [format_address(*parse_node(peer))] if peer is not None else _peers(opened)
        with progress(f"{opened.name}: exchange") as update:
            for done, address in enumerate(named):
                update(done, len(named))
                try:
                    opened.sync(address, full, verify)
                except NodeError as error:
                    failed.append(address)
                    note(f"with {address}: {error}")
    done = len(named) - len(failed)
    fields = {"node": opened.name, "peers": named, "failed": failed, "seconds": round(time.monotonic() - began, 3)}
    say_result(fields, f"{opened.name}: exchanged with {counted(done, 'node')}, {len(failed)} failed", as_json)
    if failed:
        raise typer.Exit(EXIT_NODE)


def _peers(node: Node) -> list[str]:
    """The addresses that it exchanges with. Raises InvalidArgument if there are none."""
    addresses = sorted(set(by_label(node.statistics(), "peer_address").values()))
    if not addresses:
        raise InvalidArgument(f"{node.name}: knows no peer that is online: give PEER, HOST:PORT")
    return addresses
