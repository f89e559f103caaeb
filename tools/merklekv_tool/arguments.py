"""Arguments and options that several verbs share."""

from typing import Annotated, Final

import typer

from merklekv.address import DEFAULT_HOST, DEFAULT_PORT

# Of verbs that look; what writes or deletes takes no node that was not named.
DEFAULT_NODE: Final = f"{DEFAULT_HOST}:{DEFAULT_PORT}"

SourceName = Annotated[str, typer.Argument(metavar="DIR|HOST:PORT", help="A data directory or a running node.")]
NodeName = Annotated[str, typer.Argument(metavar="HOST:PORT", help="A running node.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="A JSON object a line instead of a table.")]
Prefix = Annotated[str, typer.Option("--prefix", help="Only keys that begin with this.", show_default=False)]
