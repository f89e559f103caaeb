"""Commands whose second word says what to do, as in CLIENT LIST: they run it, and print its HELP in Redis's form.

_client = Subcommands("CLIENT")

@_client.add("GETNAME", "The name of this connection.")
def _client_getname(session: Session, arguments: Sequence[bytes]) -> bytes: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from merklekv.net.errors import RequestError, wrong_count
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request, show
from merklekv.net.session import Session

MANY = 1 << 30
Run = Callable[[Session, Sequence[bytes]], bytes]


class _Subcommand(NamedTuple):
    run: Run
    least: int
    most: int
    syntax: str
    summary: str


class Subcommands:
    """Those of one command."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[bytes, _Subcommand] = {}

    def add(self, syntax: str, summary: str, *, least: int = 0, most: int | None = None) -> Callable[[Run], Run]:
        """Declares one; `least` to `most` (`least`, unless given) arguments follow its name."""

        def declare(run: Run) -> Run:
            one = _Subcommand(run, least, least if most is None else most, syntax, summary)
            self._known[syntax.split()[0].encode()] = one
            return run

        return declare

    def run(self, session: Session, request: Request) -> bytes:
        known = self._known | {b"HELP": _Subcommand(self._help, 0, 0, "HELP", "Prints this help.")}
        chosen = known.get(request[1].upper())
        if chosen is None:
            raise RequestError(f"unknown subcommand '{show(request[1])}'. Try {self._name} HELP.")
        if not chosen.least <= len(request) - 2 <= chosen.most:
            raise wrong_count(f"{self._name}|{show(request[1])}")
        return chosen.run(session, request[2:])

    def _help(self, session: Session, arguments: Sequence[bytes]) -> bytes:
        lines = [f"{self._name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
        for one in self._known.values():
            lines += [one.syntax, f"    {one.summary}"]
        lines += ["HELP", "    Prints this help."]
        return resp.array(list(map(resp.simple, lines)))
