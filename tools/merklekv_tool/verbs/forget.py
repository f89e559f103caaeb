"""`merklekv forget`: removes a member that is gone for good from its cluster.

A removed member no longer holds back the GC horizon. Writes that only it had are lost. If it returns, it is refused
until it starts with a new data directory, because records that it still holds may have been deleted since. The other
nodes learn of the removal in their exchanges.

A member that `members` shows as unreadable is removed by the name that it has there.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from merklekv_tool.arguments import AsJson
from merklekv_tool.output import say_result

EXAMPLES: Final = """
Examples:

    merklekv forget node-3 --at 127.0.0.1:7379
    merklekv forget node-3 --at 127.0.0.1:7379 --store-id 9f86d081884c7d65

One node removes the member and tells the others. `merklekv members` shows all members.
"""


def forget(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The id of the node that is gone.")],
    at: Annotated[str, typer.Option("--at", metavar="HOST:PORT", help="A running node of its cluster.")],
    store_id: Annotated[
        str, typer.Option("--store-id", metavar="HEX", help="Which one, if several had this id.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Remove a node that is gone for good from the members of its cluster."""
    from merklekv_tool.source.open import open_node

    with open_node(at) as cluster_node:
        cluster_node.forget(node, store_id)
    text = f"{node} is removed: if it returns, back up its data directory, and start it with a new one"
    say_result({"at": cluster_node.name, "removed": node, "store_id": store_id}, text, as_json)
