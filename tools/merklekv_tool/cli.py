"""The command line of `merklekv-tool`: its verbs, and errors turned into one line and an exit status each.

A verb is a function in a module of its own; what it needs beyond typer is imported when it runs, so that `--help` and
completion answer at once. Results go to stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

import typer

from merklekv.errors import DirectoryLocked, MerkleKVError
from merklekv.exit_codes import EXIT_LOCKED, EXIT_UNWRITABLE, EXIT_USAGE
from merklekv.output import OutputClosed, take_over_output
from merklekv_tool import backup, bench, diff, dump, forget, load, log, members, restore, stats, statuses, tree, verify
from merklekv_tool.output import note

NAME: Final = "merklekv-tool"
STATUS_TABLE: Final = "\nExit statuses:\n\n" + "\n".join(
    f"    {status:3}  {meaning}" for status, meaning in statuses.MEANINGS.items()
)

app = typer.Typer(
    name=NAME,
    help="Looks after MerkleKV data, in a directory or behind the port of a running node.",
    epilog=STATUS_TABLE,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.command("dump", epilog=dump.EXAMPLES)(dump.dump)
app.command("load", epilog=load.EXAMPLES)(load.load)
app.command("backup", epilog=backup.EXAMPLES)(backup.backup)
app.command("restore", epilog=restore.EXAMPLES)(restore.restore)
app.command("log", epilog=log.EXAMPLES)(log.log)
app.command("tree", epilog=tree.EXAMPLES)(tree.tree)
app.command("stats", epilog=stats.EXAMPLES)(stats.stats)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("diff", epilog=diff.EXAMPLES)(diff.diff)
app.command("members", epilog=members.EXAMPLES)(members.members)
app.command("forget", epilog=forget.EXAMPLES)(forget.forget)


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a terminal that closes; not under nohup
        signal.signal(signal.SIGHUP, _end)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for what a script runs in the background
        signal.signal(signal.SIGINT, _interrupt)
    take_over_output()
    try:
        status = _status_of_run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to do takes no time
    except KeyboardInterrupt:
        status = statuses.EXIT_INTERRUPTED
    sys.exit(status)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(statuses.EXIT_TERMINATED)  # on the way out what is half done is removed, as after Ctrl-C


class _Interrupt(KeyboardInterrupt):
    """Python kills itself at the end, whatever the exit status, if a plain KeyboardInterrupt passed through `exec`.

    Most likely that is an import: dataclasses and named tuples are made so.
    """


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise _Interrupt


def _status_of_run() -> int:
    try:
        return int(app(standalone_mode=False, prog_name=NAME) or 0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else NAME
        return _fail(f"{error.format_message().rstrip('.')}; '{verb} --help' shows what there is", EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        return statuses.EXIT_INTERRUPTED
    except DirectoryLocked as error:
        return _fail(f"{error}; a running node is reached through its port: give HOST:PORT", EXIT_LOCKED)
    except MerkleKVError as error:
        return _fail(statuses.explained(error), statuses.status_of(error))
    except OutputClosed:  # as in `merklekv-tool dump data | head -1`
        return statuses.EXIT_PIPE
    except SystemExit as left:  # as SIGTERM does
        return left.code  # type: ignore[return-value]
    except OSError as error:
        if error.filename is not None:  # a path that was given, or leads where one was given
            return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}", EXIT_UNWRITABLE)
        return _fault()
    except Exception:  # noqa: BLE001 - shown whole; Python alone would end with 1, which means something else here
        return _fault()


def _fault() -> int:
    sys.excepthook(*sys.exc_info())
    return statuses.EXIT_FAULT


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(MerkleKVError, OutputClosed):  # of a stderr that takes nothing
        note(message)
    return status
