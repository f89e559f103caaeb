"""`merklekv health`: whether a node is ready for clients, and if not, why.

It asks through the port for clients. `/livez` and `/readyz` on the HTTP port say the same. A node that is alive and not
ready needs time or help, and no restart.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from merklekv_tool.arguments import DEFAULT_NODE, AsJson, NodeName
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.output import say_result

EXAMPLES: Final = """
Examples:

    merklekv health
    merklekv health 10.0.0.5:7379 --live
    until merklekv health; do sleep 1; done

Exit status 0: ready. 1: not ready, each reason on a line. 4: the node does not answer within five seconds.
"""
TIMEOUT_S: Final = 5.0


def health(
    node: NodeName = DEFAULT_NODE,
    live: Annotated[bool, typer.Option("--live", help="Only whether it answers, as for a supervisor.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a running node is ready for clients, and if not, why."""
    from merklekv_tool.source.open import open_node

    with open_node(node, TIMEOUT_S) as opened:
        if live:
            opened.ping()
            say_result({"live": True}, "live", as_json)
            return
        problems = opened.not_ready()
    lines = [f"{reason}: {problem}" for reason, problem in problems.items()]
    say_result({"ready": not problems, "not_ready": problems}, "\n".join(lines) or "ready", as_json)
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)
