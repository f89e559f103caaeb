"""`merklekv-tool forget`: takes a node that is gone for good out of its cluster.

It stops holding deleted keys back then.  What it wrote and nobody has is lost with it, and if it returns, it is refused
until it starts with a new data directory: what it still holds may have been deleted since.  The other nodes learn of it
as they exchange.

What `members` shows as unreadable, and so not as a node, is taken out by the name that it has there.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from merklekv_tool.output import AsJson, say, say_json

EXAMPLES: Final = """
Examples:

    merklekv-tool forget node-3 --at 127.0.0.1:7379
    merklekv-tool forget node-3 --at 127.0.0.1:7379 --store-id 9f86d081884c7d65

One node is told, and tells the others. `merklekv-tool members` shows who could be forgotten.
"""


def forget(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The id of the node that is gone.")],
    at: Annotated[str, typer.Option("--at", metavar="HOST:PORT", help="A running node of its cluster.")],
    store_id: Annotated[
        str, typer.Option("--store-id", metavar="HEX", help="Which, if several had this id.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Take a node that is gone for good out of the members of its cluster."""
    from merklekv_tool import places

    with places.node_at(at) as there:
        there.forget(node, store_id)
    if as_json:
        say_json({"at": there.name, "removed": node, "store_id": store_id})
    else:
        say(f"{node} is forgotten: should it return, back up its data directory, and start it with a new one")
