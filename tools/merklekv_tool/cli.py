"""The command line of `merklekv-tool`: its verbs, and for each error one line and an exit status.

A verb imports what it needs beyond typer when it runs, so that `--help` and completion answer at once. Results go to
stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Final

import typer

from merklekv.errors import DirectoryLocked, MerkleKVError
from merklekv.exit_codes import EXIT_LOCKED, EXIT_UNWRITABLE, EXIT_USAGE
from merklekv.output import OutputClosed, take_over_output
from merklekv_tool import exit_codes
from merklekv_tool.errors import NodeRuns
from merklekv_tool.output import note
from merklekv_tool.signals import receive_signals
from merklekv_tool.verbs import (
    backup,
    bench,
    compact,
    diff,
    dump,
    forget,
    health,
    load,
    log,
    members,
    restamp,
    restore,
    stats,
    tree,
    verify,
    watch,
)

NAME: Final = "merklekv-tool"
STATUS_TABLE: Final = "\nExit statuses:\n\n" + "\n".join(
    f"    {status:3}  {meaning}" for status, meaning in exit_codes.MEANINGS.items()
)

app = typer.Typer(
    name=NAME,
    help="Looks after MerkleKV data, in a directory or behind the port of a running node.",
    epilog=STATUS_TABLE,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for module in (
    *(verify, dump, load, backup, restore, log, watch, tree, stats, health, bench, diff),
    *(members, forget, restamp, compact),
):
    verb = module.__name__.rpartition(".")[2]
    app.command(verb, epilog=module.EXAMPLES)(getattr(module, verb))


def main() -> None:
    """Entry point."""
    receive_signals()
    take_over_output()
    try:
        status = _status_of_run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest takes no time
    except KeyboardInterrupt:
        status = exit_codes.EXIT_INTERRUPTED
    sys.exit(status)


def _status_of_run() -> int:
    try:
        return int(app(standalone_mode=False, prog_name=NAME) or 0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else NAME
        return _fail(f"{error.format_message().rstrip('.')}; '{verb} --help' shows what there is", EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        return exit_codes.EXIT_INTERRUPTED
    except NodeRuns as error:
        return _fail(str(error), EXIT_LOCKED)
    except DirectoryLocked as error:
        return _fail(f"{error}; a running node is reached through its port: give HOST:PORT", EXIT_LOCKED)
    except MerkleKVError as error:
        return _fail(exit_codes.explained(error), exit_codes.status_of(error))
    except OutputClosed:  # as in `merklekv-tool dump data | head -1`
        return exit_codes.EXIT_PIPE
    except SystemExit as left:  # SIGTERM
        return left.code  # type: ignore[return-value]
    except OSError as error:
        if error.filename is not None:  # a path that the user gave, or one below it
            return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}", EXIT_UNWRITABLE)
        return _fault()
    except Exception:  # noqa: BLE001 - shown whole; Python would exit with 1, which has another meaning here
        return _fault()


def _fault() -> int:
    sys.excepthook(*sys.exc_info())
    return exit_codes.EXIT_FAULT


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(MerkleKVError, OutputClosed):  # stderr accepts nothing
        note(message)
    return status
