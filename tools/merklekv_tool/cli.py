"""The verbs, as `merklekv-tool` and as commands of `merklekv`; and for each error one line and an exit status.

A verb imports what it needs beyond typer when it runs, so that `--help` and completion answer at once. Results go to
stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Final

import typer

from merklekv import __version__, core
from merklekv.errors import DirectoryLocked, MerkleKVError
from merklekv.exit_codes import EXIT_LOCKED, EXIT_PIPE, EXIT_UNWRITABLE, EXIT_USAGE
from merklekv.output import OutputClosed, led_to_help, take_over_output
from merklekv_tool import exit_codes
from merklekv_tool.errors import NodeRuns
from merklekv_tool.output import note, say, speak_as
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
    sync,
    tree,
    verify,
    watch,
)

NAME: Final = "merklekv-tool"
VERBS: Final = {
    "Data": (verify, dump, load, backup, restore, compact, restamp),
    "Cluster": (members, diff, sync, forget),
    "Look": (health, stats, watch, log, tree, bench),
}
STATUSES: Final = "\n\n" + "\n".join(f"    {status:3}  {meaning}" for status, meaning in exit_codes.MEANINGS.items())


def program(about: str, epilog: str) -> typer.Typer:
    """A program without commands, with the options that each has."""
    made = typer.Typer(
        help=about,
        epilog=epilog,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    made.callback()(_options)
    return made


def _show_version(context: typer.Context, is_asked: bool) -> None:
    if is_asked:
        say(f"{context.find_root().info_name} {__version__} ({core.DESCRIPTION})")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            is_eager=True,
            callback=_show_version,
            help="Print the version, and whether the compiled core runs.",
        ),
    ] = False,
) -> None:
    pass


app = program(
    "Looks after MerkleKV data, in a directory or behind the port of a running node.", f"\nExit statuses:{STATUSES}"
)
for panel, modules in VERBS.items():
    for module in modules:
        verb = module.__name__.rpartition(".")[2]
        app.command(verb, epilog=module.EXAMPLES, rich_help_panel=panel)(getattr(module, verb))


def main(name: str = NAME, commands: typer.Typer = app) -> None:
    """Runs a command. `name` is the program's, before each line of an error."""
    receive_signals()
    take_over_output()
    speak_as(name)
    try:
        status = _status_of_run(name, commands)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest takes no time
    except KeyboardInterrupt:
        status = exit_codes.EXIT_INTERRUPTED
    sys.exit(status)


def _status_of_run(name: str, commands: typer.Typer) -> int:
    try:
        return int(commands(standalone_mode=False, prog_name=name) or 0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else name
        return _fail(led_to_help(error.format_message(), verb), EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        return exit_codes.EXIT_INTERRUPTED
    except NodeRuns as error:
        return _fail(str(error), EXIT_LOCKED)
    except DirectoryLocked as error:
        return _fail(f"{error}; a running node is reached through its port: give HOST:PORT", EXIT_LOCKED)
    except MerkleKVError as error:
        return _fail(exit_codes.explained(error), exit_codes.status_of(error))
    except OutputClosed:  # as in `merklekv dump data | head -1`
        return EXIT_PIPE
    except SystemExit as left:  # SIGTERM
        return left.code  # type: ignore[return-value]
    except OSError as error:
        if error.filename is not None:  # a path that the user gave, or one below it
            return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}", EXIT_UNWRITABLE)
        return _shortage_or_fault(error)
    except Exception as error:  # noqa: BLE001 - shown whole; Python would exit with 1, which has another meaning here
        return _shortage_or_fault(error)


def _shortage_or_fault(error: Exception) -> int:
    from merklekv.shortage import is_shortage, reason_of

    if is_shortage(error):
        return _fail(f"cannot go on: {reason_of(error)}", EXIT_UNWRITABLE)
    if isinstance(error, FileNotFoundError):  # without a name: of `os.getcwd`
        return _fail("the working directory was removed: go to another one", EXIT_UNWRITABLE)
    return _fault()


def _fault() -> int:
    sys.excepthook(*sys.exc_info())
    return exit_codes.EXIT_FAULT


def _fail(message: str, status: int) -> int:
    note(message)
    return status
