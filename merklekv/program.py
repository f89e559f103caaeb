"""The whole program `merklekv`: the server's own commands and the verbs of the tool, in one `--help`.

A node does not come through here: `__main__` goes straight to the server's commands, which import no verb.
"""

from __future__ import annotations

from merklekv_tool import cli as tool

from merklekv import cli

app = tool.program(
    "MerkleKV, a persistent and replicated key-value server, and what looks after its data.",
    f"\nExit statuses of all commands but those of the server, which docs/cli.md lists:{tool.STATUSES}",
)
app.registered_commands += [*cli.app.registered_commands, *tool.app.registered_commands]


def main() -> None:
    """Entry point."""
    tool.main("merklekv", app)
