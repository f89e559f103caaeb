"""Writes docs/cli.md: every command, flag, setting and exit status, from the code that has them.

python scripts/write_cli_docs.py            write it
python scripts/write_cli_docs.py --check    exit 1 when it is not what would be written
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import get_args

import generated
import merklekv_tool.exit_codes
import typer
from typer.models import ArgumentInfo

import merklekv.program
from merklekv import exit_codes
from merklekv.settings import declarations, environment_name

HEAD = """\
# Commands, flags and settings

This page is made by `make docs` from the commands and settings themselves; `merklekv COMMAND -h` shows them, too.
`merklekv-tool` has all commands but the first four.
"""
SETTINGS_HEAD = """\
## Settings

A setting is taken from the first place that has it: a flag (`--set KEY=VALUE` reaches every one), the environment,
the TOML file named by `--config` or `MERKLEKV_CONFIG`, the default. In the file a dotted key stands in its section,
as `port` under `[limits]`. A secret may be given as a file, with `_file` at the end of its key or `_FILE` at the
end of its variable. An unknown key or a wrong value stops the start with one line that names it. `merklekv config`
shows what is in force and where it came from.
"""


def commands(app: typer.Typer) -> Iterator[str]:
    """The commands, each with what it does, its arguments and flags, and its examples."""
    first_rows: list[tuple[str, str]] = []
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"## merklekv {command.name}"
        yield inspect.cleandoc(command.callback.__doc__ or "")
        rows = [row(parameter) for parameter in inspect.signature(command.callback, eval_str=True).parameters.values()]
        if len(first_rows) > 3 and set(first_rows) <= set(rows):
            yield f"Takes the flags of `merklekv {app.registered_commands[0].name}`, and:"
            rows = [one for one in rows if one not in first_rows]
        first_rows = first_rows or rows
        if rows:
            yield generated.table(("argument or flag", "meaning"), *rows)
        if command.epilog:
            yield command.epilog


def row(parameter: inspect.Parameter) -> tuple[str, str]:
    """How a parameter is spelled, and its help, with the default unless the help has it."""
    kind, info = get_args(parameter.annotation)
    default = parameter.default
    has_default = default not in (parameter.empty, None, "", False) and info.show_default
    meaning = f"{info.help or ''}{f' [default: {default}]' if has_default else ''}"
    if isinstance(info, ArgumentInfo):
        return f"`{info.metavar or parameter.name.upper()}`", meaning
    # Inside Annotated the first spelling stands where typer has the default elsewhere.
    spellings = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
    value = "" if bool in (kind, *get_args(kind)) else f" {info.metavar or parameter.name.upper()}"
    return f"`{', '.join(spellings)}{value}`", meaning


def settings() -> str:
    rows = [
        (f"`{key}`", f"`{environment_name(key)}`", shown(declaration.type.show(default)), declaration.meaning)
        for key, declaration, default in declarations()
    ]
    return generated.table(("key", "variable", "default", "meaning"), *rows)


def shown(default: str) -> str:
    return f"`{default}`" if default else ""


def allowed() -> str:
    rows = [(f"`{key}`", declaration.type.allowed) for key, declaration, _ in declarations()]
    return generated.table(("key", "allowed"), *rows)


def statuses(meanings: dict[int, str]) -> str:
    return generated.table(("status", "meaning"), *meanings.items())


def page() -> str:
    parts = [
        HEAD,
        *commands(merklekv.program.app),
        "## Exit statuses of run, config, demo and version",
        statuses(exit_codes.MEANINGS),
        "## Exit statuses of the other commands",
        statuses(merklekv_tool.exit_codes.MEANINGS),
        SETTINGS_HEAD,
        settings(),
        "What each may be:",
        allowed(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    generated.write(generated.DOCS / "cli.md", page())
