"""The server's commands: `merklekv run`, `merklekv config`, `merklekv demo`, `merklekv version`.

Flags become settings (`config`), `run` starts a node with them (`node`), and every error ends as one line on stderr and
an exit status (`exit_codes`). A command imports what it needs when it runs, so that `--help` and `version` answer at
once.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from merklekv import __version__, config, core, setting_types
from merklekv.errors import MerkleKVError, shown
from merklekv.exit_codes import EXIT_PIPE, EXIT_USAGE, status_of
from merklekv.output import OutputClosed, led_to_help, printable, require_number, take_over_output
from merklekv.settings import declarations

Load = Callable[[], config.Loaded]

app = typer.Typer(
    help="MerkleKV, a persistent and replicated key-value server.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
PANEL = "Server"  # of `merklekv --help`

# The settings with a flag. `--set KEY=VALUE` reaches every one.
FLAGS: dict[str, tuple[str, ...]] = {
    "storage_path": ("--data-dir", "DIR", "-d"),
    "host": ("--host", "HOST"),
    "port": ("--port", "PORT", "-p"),
    "http_port": ("--http-port", "PORT"),
    "threads": ("--threads", "N"),
    "durability": ("--durability", "always|everysec|never"),
    "memtable_size": ("--memtable-size", "SIZE"),
    "max_value_size": ("--max-value-size", "SIZE"),
    "replication.client_id": ("--node-id", "NAME"),
    "log_level": ("--log-level", "debug|info|warning|error"),
    "log_format": ("--log-format", "text|json"),
    "allow_remote": ("--allow-remote", ""),
}


RUN_EXAMPLES = """
Examples:

    merklekv run --data-dir ./data
    merklekv run -d /var/lib/merklekv -p 7380 --durability everysec
    merklekv run --config /etc/merklekv.toml --log-format json
    MERKLEKV_PORT=7380 merklekv run --set limits.max_connections=500
"""
CONFIG_EXAMPLES = """
Examples:

    merklekv config --config /etc/merklekv.toml
    merklekv config --json | jq .port.value
"""
DEMO_EXAMPLES = """
Examples:

    merklekv demo
    merklekv demo --seconds 20
    merklekv demo --broker iotcore --no-browser
"""
VERSION_EXAMPLES = """
Examples:

    merklekv version
    merklekv version --json | jq .formats
"""
DEMO_SECONDS_MAX = 86_400


def _takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags of FLAGS, `--config` and `--set`, and calls it with what loads the settings."""

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        flags: dict[str, tuple[str, object]] = {}
        for key, (spelling, *_) in FLAGS.items():
            if (value := given.pop(_parameter(key))) is not None:
                flags[key] = (spelling, value)
        for pair in given.pop("set_pairs") or []:
            key, equals, value = pair.partition("=")
            if not equals:
                raise config.ConfigError(f"flag --set: {shown(pair)} is not allowed; give KEY=VALUE")
            flags[key] = ("--set", value)
        file = given.pop("config_file")
        if file is None:
            file = os.environ.get("MERKLEKV_CONFIG") or None
        command(functools.partial(config.load, flags, os.environ, None if file is None else Path(file)), **given)

    own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "load"]
    wrapper.__signature__ = inspect.Signature(_flag_parameters() + own)  # type: ignore[attr-defined]
    del wrapper.__wrapped__  # or typer would use the signature of the command itself
    return wrapper


def _parameter(key: str) -> str:
    return key.replace(".", "_")


def _flag_parameters() -> list[inspect.Parameter]:
    table = {key: (declaration, default) for key, declaration, default in declarations()}

    def parameter(name: str, annotation: object) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    parameters = []
    for key, (spelling, metavar, *short) in FLAGS.items():
        declaration, default = table[key]
        is_switch = declaration.type is setting_types.FLAG
        shown = "" if is_switch or default == "" else f" [default: {declaration.type.show(default)}]"
        option = typer.Option(
            spelling,
            *short,
            metavar=metavar,
            help=declaration.meaning + shown,
            show_default=False,
            autocompletion=_completion(metavar),
        )
        parameters.append(parameter(_parameter(key), Annotated[bool | None if is_switch else str | None, option]))
    file = typer.Option("--config", metavar="FILE", help="TOML file with settings", show_default=False)
    pairs = typer.Option("--set", metavar="KEY=VALUE", help="any setting; repeatable", show_default=False)
    parameters.append(parameter("config_file", Annotated[str | None, file]))
    parameters.append(parameter("set_pairs", Annotated[list[str] | None, pairs]))
    return parameters


def _completion(metavar: str) -> Callable[[], list[str]] | None:
    """What a shell offers for an option: the words of `a|b|c`."""
    return (lambda: metavar.split("|")) if "|" in metavar else None


@app.command("run", epilog=RUN_EXAMPLES, rich_help_panel=PANEL)
@_takes_settings
def run_command(load: Load) -> None:
    """Serve a data directory until told to stop (SIGTERM, SIGINT, SIGQUIT or the command SHUTDOWN).

    SIGHUP reads the settings again.
    """
    from merklekv import node

    def read() -> config.Loaded:
        loaded = load()
        config.require_tls_files(loaded)
        return loaded

    raise typer.Exit(node.serve(read, _announce))


def _announce(line: str) -> None:
    """Prints the ready line. A node that cannot print it serves nevertheless."""
    from merklekv.logging_setup import print_soon

    if (error := print_soon(sys.stdout, line)) is not None:
        log = logging.getLogger("merklekv.cli")
        log.warning("the node is ready, but stdout does not take the line: %s", error.strerror)


@app.command("config", epilog=CONFIG_EXAMPLES, rich_help_panel=PANEL)
@_takes_settings
def config_command(
    load: Load,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show every setting, its value and its source; secrets are masked."""
    loaded = load()
    if as_json:
        import json

        document = {one.key: {"value": one.plain(), "source": one.source} for one in loaded.effective}
        print(json.dumps(document, indent=2))
        return
    key_width = max(len(one.key) for one in loaded.effective)
    value_width = max(len(one.shown()) for one in loaded.effective)
    for one in loaded.effective:
        print(printable(f"{one.key:{key_width}}  {one.shown():{value_width}}  {one.source}"))


@app.command("demo", epilog=DEMO_EXAMPLES, rich_help_panel=PANEL)
def demo_command(
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="N",
            min=1,
            max=DEMO_SECONDS_MAX,
            callback=require_number,
            help="No keys: run a script of outages for so long; exit 0 if all nodes hold the same then, and every "
            "acknowledged write. Without a terminal that is what happens, for 10 seconds.",
            show_default=False,
        ),
    ] = None,
    broker: Annotated[
        Literal["auto", "mosquitto", "iotcore"],
        typer.Option(
            "--broker",
            metavar="auto|mosquitto|iotcore",
            help="Which broker to start; auto takes Mosquitto if it is installed.",
        ),
    ] = "auto",
    browser: Annotated[
        bool,
        typer.Option(
            "--browser/--no-browser",
            help="Open the demo's page in the browser, where there is a graphical session.",
        ),
    ] = True,
) -> None:
    """Watch three nodes and a broker in your browser and this terminal, kill and start them, and see them heal.

    Everything runs on free ports of this machine and in a temporary directory, and ends with the demo.
    """
    from merklekv.demo.show import show

    raise typer.Exit(show(seconds, broker, browser))


@app.command("version", epilog=VERSION_EXAMPLES, rich_help_panel=PANEL)
def version_command(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: also formats, libraries, Python and platform.")
    ] = False,
) -> None:
    """Print the version, and whether the compiled core runs."""
    if as_json:
        import json

        from merklekv.about import about

        print(json.dumps(about(), indent=2))
        return
    print(f"merklekv {__version__} ({core.DESCRIPTION})")


def main() -> None:
    """Entry point: runs the command, and turns each error into one line and an exit status."""
    take_over_output()
    sys.exit(_status_of_run())


def _status_of_run() -> int:
    try:
        return int(app(standalone_mode=False, prog_name="merklekv") or 0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        return _fail(led_to_help(error.format_message(), context.command_path if context else "merklekv"), EXIT_USAGE)
    except MerkleKVError as error:
        return _fail(str(error), status_of(error))
    except OutputClosed:  # as in `merklekv config | head -1`
        return EXIT_PIPE


def _fail(message: str, status: int) -> int:
    from merklekv.logging_setup import print_soon

    # A reader that does not read must not keep the process alive.
    print_soon(sys.stderr, f"merklekv: {printable(message)}")
    return status
